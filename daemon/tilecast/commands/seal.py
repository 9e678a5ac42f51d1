"""`tilecast seal`: drop the recording of a run, and keep its mosaic."""

from __future__ import annotations

import click

from tilecast.commands._daemon import daemon_of
from tilecast.commands.common import Invocation, find_run, format_bytes, stages_of_progress, tilecast_command
from tilecast.errors import RunLockedError


@tilecast_command("seal")
@click.argument("run")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Without a check, also if frames without a place would be lost.")
def command(invocation: Invocation, run: str, yes: bool, force: bool) -> None:
    """Drop the recorded frames of a RUN for good; its mosaic can still be viewed.

    RUN is the beginning of its id, its name, its folder, or `last`. The run must have ended. It is checked first, which
    takes as long as making its mosaic; it is not sealed if anything is wrong, or if a frame has no place in the mosaic.
    If the daemon has the run, the daemon does it.

    \b
    Examples:
      tilecast seal 3f2a
      tilecast seal last --yes
    """
    from tilecast.ingest.verdicts import NO_LONGER
    from tilecast.service.retention import Policy, seal_by_hand

    config = invocation.config
    found = find_run(config.store.path, run)
    if not yes:
        name = found.info.name if found.info is not None else found.run
        past = ", ".join(NO_LONGER)
        click.confirm(f"{found.run} ({name}): no longer possible then: {past}. Drop its recording?", abort=True)
    try:
        with stages_of_progress() as progress:
            freed_bytes = seal_by_hand(found.folder, Policy.of(config), force=force, progress=progress)
    except RunLockedError as locked:
        with daemon_of(config, found.folder, locked) as daemon:
            click.echo("the daemon has the run, and is asked to seal it", err=True)
            freed_bytes = daemon.seal(found.folder.name, force=force)
    click.echo(f"sealed {found.run}: {format_bytes(freed_bytes)} freed")
