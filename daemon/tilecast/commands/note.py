"""`tilecast note`: what a person wants to have kept with a run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tilecast.commands._daemon import Remote, takes_remote, write_into
from tilecast.commands.common import Invocation, tilecast_command


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
    remote = Remote(daemon, key, daemon_key)
    done = write_into(invocation.config, run, remote, "note", {"text": said}, lambda store: store.add_note(said))
    click.echo(f"noted in {done}")
