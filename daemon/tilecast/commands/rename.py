"""`tilecast rename`: another name for a run."""

from __future__ import annotations

from pathlib import Path

import click

from tilecast.commands._daemon import Remote, takes_remote, write_into
from tilecast.commands.common import Invocation, tilecast_command


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
    remote = Remote(daemon, key, daemon_key)
    done = write_into(invocation.config, run, remote, "rename", {"name": name}, lambda store: store.rename(name))
    click.echo(f"{done} is now called {name!r}")
