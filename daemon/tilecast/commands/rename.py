"""`tilecast rename`: another name for a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tilecast.commands._daemon import Remote, give_order, takes_remote
from tilecast.commands.common import Invocation, tilecast_command

if TYPE_CHECKING:
    from tilecast.store.folders import FoundRun


@tilecast_command("rename")
@click.argument("run")
@click.argument("name")
@takes_remote
def command(
    invocation: Invocation, run: str, name: str, daemon: str | None, key: Path | None, daemon_key: Path | None
) -> None:
    """Give a RUN another NAME; the old one is kept in its log.

    RUN is the beginning of its id, its name, its folder, or `last`. It may be open.
    """

    def alone(found: FoundRun) -> None:
        from tilecast.store.sqlite_store import SqliteStore
        from tilecast_protocol.queries import make_query

        make_query("rename", run=found.run, name=name)  # refuses what a daemon would
        with SqliteStore.open(found.folder) as store:
            store.rename(name)

    done, _ = give_order(
        invocation.config,
        run,
        Remote(daemon, key, daemon_key),
        ask=lambda client, run: client.rename(run, name),
        alone=alone,
    )
    click.echo(f"{done} is now called {name!r}")
