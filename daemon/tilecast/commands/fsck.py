"""`tilecast fsck`: is everything of a run as it must be?"""

from __future__ import annotations

import click

from tilecast.commands.common import Invocation, find_run, stages_of_progress, tilecast_command
from tilecast.errors import StoreError


@tilecast_command("fsck")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--quick", is_flag=True, help="Leave out the longest part: blending all frames anew to compare.")
@click.pass_context
def command(ctx: click.Context, invocation: Invocation, runs: tuple[str, ...], quick: bool) -> None:
    """Check runs: journals, checksums, placements, and every tile against its children and its frames.

    Without RUN, all of them. Nothing is changed. The exit code is 0 if all is well, 1 if something was found, 2 if a
    run could not be checked, for instance because it is still being written.
    """
    from tilecast.service.fsck import check_run, describe
    from tilecast.service.runs import JOURNAL_NAME
    from tilecast_protocol.errors import TilecastError

    root = invocation.config.store.path
    if runs:
        folders = [find_run(root, run, readable=False).folder for run in runs]
    else:
        folders = sorted({path.parent for name in (JOURNAL_NAME, "tiles.sqlite") for path in root.glob(f"*/{name}")})
    if not folders:
        raise StoreError(f"there are no runs in {root}; set store.path if they are elsewhere")
    code = 0
    for folder in folders:
        try:
            with stages_of_progress() as progress:
                findings = check_run(folder, quick=quick, progress=progress)
        except TilecastError as error:
            click.secho(f"{folder.name}: not checked: {error}", fg="yellow")
            code = 2
            continue
        if not findings:
            click.secho(f"{folder.name}: clean", fg="green")
            continue
        code = max(code, 1)
        click.secho(f"{folder.name}: {len(findings)} findings", fg="red")
        for finding in findings:
            click.echo(f"  {describe(finding)}")
    ctx.exit(code)
