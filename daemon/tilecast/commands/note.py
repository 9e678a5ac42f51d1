"""`tilecast note`: what a person wants to have kept with a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tilecast.commands._daemon import Remote, give_order, takes_remote
from tilecast.commands.common import Invocation, tilecast_command

if TYPE_CHECKING:
    from tilecast.store.folders import FoundRun


@tilecast_command("note")
@click.argument("run")
@click.argument("text")
@takes_remote
def command(
    invocation: Invocation, run: str, text: str, daemon: str | None, key: Path | None, daemon_key: Path | None
) -> None:
    """Write a note, TEXT, into a RUN; `tilecast info` shows it.

    RUN is the beginning of its id, its name, its folder, or `last`. It may be open. TEXT may have several lines; `-`
    reads it from standard input.
    """
    said = sys.stdin.read().strip() if text == "-" else text

    def alone(found: FoundRun) -> None:
        from tilecast.store.sqlite_store import SqliteStore
        from tilecast_protocol.queries import make_query

        make_query("note", run=found.run, text=said)  # refuses what a daemon would
        with SqliteStore.open(found.folder) as store:
            store.add_note(said)

    done, _ = give_order(
        invocation.config,
        run,
        Remote(daemon, key, daemon_key),
        ask=lambda client, run: client.note(run, said),
        alone=alone,
    )
    click.echo(f"noted in {done}")
