"""`tilecast fsck`: is everything of a run as it must be, and if not, what can be made good?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tilecast.commands._daemon import daemon_of
from tilecast.commands.common import Invocation, find_run, stages_of_progress, tilecast_command
from tilecast.errors import RunLockedError, StoreError

if TYPE_CHECKING:
    from tilecast.service.config import Config

_CLEAN, _FOUND, _NOT_CHECKED = 0, 1, 2


@tilecast_command("fsck")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--quick", is_flag=True, help="Leave out the longest part: blending all frames anew to compare.")
@click.option("--repair", is_flag=True, help="Make good whatever the recording, or the mosaic, still knows.")
@click.pass_context
def command(ctx: click.Context, invocation: Invocation, runs: tuple[str, ...], quick: bool, repair: bool) -> None:
    """Check runs: journals, checksums, placements, and every tile against its children and its frames.

    Without RUN, all of them. Nothing is changed without --repair. That makes tiles anew from the frames that cover
    them, indices from the recording, and a ruined database as a whole, which is then set aside; it never gives up what
    only the mosaic has left of a damaged recording. If the daemon has the run open, the daemon does it.

    The exit code is 0 if all is well, or is so again; 1 if something was found, and, with --repair, is still wrong; 2
    if a run could not be checked, for instance because it is still being written.
    """
    from tilecast.service.deletion import is_unfinished
    from tilecast.service.runs import JOURNAL_NAME
    from tilecast_protocol.errors import TilecastError

    if quick and repair:
        raise click.UsageError("--repair needs the whole check; leave out --quick")
    config = invocation.config
    root = config.store.path
    if runs:
        folders = [find_run(root, run, readable=False).folder for run in runs]
    else:
        folders = sorted({path.parent for name in (JOURNAL_NAME, "tiles.sqlite") for path in root.glob(f"*/{name}")})
        folders = [folder for folder in folders if not is_unfinished(folder)]
    if not folders:
        raise StoreError(f"there are no runs in {root}; set store.path if they are elsewhere")
    code = _CLEAN
    for folder in folders:
        try:
            done, left = _repair(config, folder) if repair else ([], _check(folder, quick=quick))
        except TilecastError as error:
            click.secho(f"{folder.name}: not checked: {error}", fg="yellow")
            code = _NOT_CHECKED
            continue
        for what in done:
            click.echo(f"{folder.name}: repaired: {what}")
        if not left:
            click.secho(f"{folder.name}: clean", fg="green")
            continue
        code = max(code, _FOUND)
        click.secho(f"{folder.name}: {len(left)} findings" + (" that cannot be repaired" if repair else ""), fg="red")
        for finding in left:
            click.echo(f"  {finding}")
    ctx.exit(code)


def _check(folder: Path, *, quick: bool) -> list[str]:
    """What is wrong with a run."""
    from tilecast.service.fsck import check_run, describe

    with stages_of_progress() as progress:
        return [describe(finding) for finding in check_run(folder, quick=quick, progress=progress)]


def _repair(config: Config, folder: Path) -> tuple[list[str], list[str]]:
    """What was made good in a run, here or by the daemon that has it, and what is still wrong."""
    from tilecast.service.fsck import describe
    from tilecast.service.repair import repair_run

    try:
        with stages_of_progress() as progress:
            repaired = repair_run(folder, progress=progress)
    except RunLockedError as locked:
        with daemon_of(config, folder, locked) as daemon:
            click.echo(f"{folder.name}: open; the daemon is asked to repair it", err=True)
            answer = daemon.repair(folder.name)
        return answer["done"], answer["left"]
    return list(repaired.done), [describe(finding) for finding in repaired.left]
