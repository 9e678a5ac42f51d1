"""`tilecast unarchive`: a run back from its file."""

from __future__ import annotations

from pathlib import Path

import click

from tilecast.commands.common import Invocation, bytes_progress, format_bytes, tilecast_command


@tilecast_command("unarchive")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--check", is_flag=True, help="Only check the archive, and write nothing.")
def command(invocation: Invocation, file: Path, check: bool) -> None:
    """Bring a run back from the archive FILE, into store.path; it is checked on the way.

    \b
    Examples:
      tilecast unarchive liver.tar
      tilecast unarchive liver.tar --check
    """
    from tilecast.service.archive import unarchive_run, verify_archive
    from tilecast.service.copying import step_back
    from tilecast.store.folders import folder_nbytes

    step_back()
    with bytes_progress() as progress:
        if check:
            run, files = verify_archive(file, progress=progress)
            click.echo(f"{file} is sound: run {run}, {len(files)} files")
            return
        folder = unarchive_run(file, invocation.config.store.path, progress=progress)
    click.echo(f"brought back {folder.name}: {format_bytes(folder_nbytes(folder))} in {folder}")
