"""`tilecast archive`: a run into one file that is checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tilecast.commands._daemon import Remote, give_order
from tilecast.commands._words import call_again
from tilecast.commands.common import Invocation, bytes_progress, find_run, format_bytes, tilecast_command
from tilecast.errors import StoreError
from tilecast_protocol.errors import QueryError

if TYPE_CHECKING:
    from tilecast.store.folders import FoundRun
    from tilecast_protocol.client import Client


@tilecast_command("archive")
@click.argument("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--remove", is_flag=True, help="Delete the run when the archive has been checked.")
@click.option("--yes", is_flag=True, help="Do not ask before that.")
def command(invocation: Invocation, run: str, file: Path, remove: bool, yes: bool) -> None:
    """Put a RUN, which must not be open, into one FILE.

    RUN is the beginning of its id, its name, its folder, or `last`. FILE is a tar archive; if it is a folder, the
    archive in it is called by the run's id. It is read again and checked before the command ends. Any tar program can
    unpack it, and `sha256sum -c SHA256SUMS` checks what it holds; `tilecast unarchive` brings the run back.

    \b
    Examples:
      tilecast archive last /mnt/tape/
      tilecast archive 3f2a liver.tar --remove
    """
    from tilecast.service.archive import archive_run
    from tilecast.service.copying import step_back
    from tilecast.service.deletion import delete_run

    config = invocation.config
    found = find_run(config.store.path, run, readable=False)
    path = file / f"{found.run}.tar" if file.is_dir() else file
    if remove and not yes:
        name = found.info.name if found.info is not None else found.run
        click.confirm(f"{found.run} ({name!r}): delete it when {path} has been checked?", abort=True)
    step_back()
    with bytes_progress() as progress:
        seen = archive_run(found.folder, path, progress=progress)
    click.echo(f"archived {found.run}: {format_bytes(path.stat().st_size)} in {path}, read again and checked")
    if remove:
        why = f"archived as {path.resolve()}"

        def ask(client: Client, run: str) -> None:
            client.delete(run, if_seen=seen, why=why)

        def alone(found: FoundRun) -> None:
            delete_run(found.folder, why, if_seen=seen)

        try:
            give_order(config, str(found.folder), Remote(), ask=ask, alone=alone)
        except (QueryError, StoreError) as error:
            raise StoreError(f"the archive is complete, and the run was not deleted: {error}") from error
        click.echo(f"deleted {found.run}")
    click.echo(f"To bring it back: {call_again('unarchive', path)}")
