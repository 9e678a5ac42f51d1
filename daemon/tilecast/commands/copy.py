"""`tilecast copy`: a run into another folder of runs, also while it is being scanned."""

from __future__ import annotations

from pathlib import Path

import click

from tilecast.commands._words import call_again
from tilecast.commands.common import Invocation, bytes_progress, find_run, format_bytes, tilecast_command


@tilecast_command("copy")
@click.argument("run")
@click.argument("into", metavar="FOLDER", type=click.Path(path_type=Path, file_okay=False))
def command(invocation: Invocation, run: str, into: Path) -> None:
    """Copy a RUN into another FOLDER of runs.

    RUN is the beginning of its id, its name, its folder, or `last`. It may be open: the copy then shows one moment of
    it, is sound, and is idle. The daemon is not needed, and does not wait. What is left by a copy that was killed is
    removed by the next.

    \b
    Examples:
      tilecast copy last /mnt/backup/runs
      tilecast runs --set store.path=/mnt/backup/runs
    """
    from tilecast.service.copying import copy_run, step_back
    from tilecast.store.folders import folder_nbytes

    found = find_run(invocation.config.store.path, run, readable=False)
    step_back()
    with bytes_progress() as progress:
        copy = copy_run(found.folder, into, progress=progress)
    click.echo(f"copied {found.run}: {format_bytes(folder_nbytes(copy))} in {copy}")
    click.echo(f"To look at it: {call_again('info', found.run[:8], '--set', f'store.path={into}')}")
