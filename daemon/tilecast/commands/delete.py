"""`tilecast delete`: a run, for good."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tilecast.commands._daemon import Remote, give_order, takes_remote
from tilecast.commands.common import Invocation, format_bytes, tilecast_command

if TYPE_CHECKING:
    from tilecast.store.folders import FoundRun
    from tilecast_protocol.client import Client


@tilecast_command("delete")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@takes_remote
def command(
    invocation: Invocation,
    runs: tuple[str, ...],
    yes: bool,
    daemon: str | None,
    key: Path | None,
    daemon_key: Path | None,
) -> None:
    """Delete RUNs for good, each with its recording and its mosaic.

    RUN is the beginning of its id, its name, its folder, or `last`. A run that is open is never deleted: end it first.
    `tilecast runs --deleted` lists what was. `tilecast archive --remove` puts a run into a file before.

    \b
    Examples:
      tilecast delete 3f2a
      tilecast delete 3f2a 91c0 --yes
    """
    from tilecast.service.deletion import delete_run, finish_begun

    config = invocation.config

    def confirm(run: str, facts: dict[str, Any]) -> None:
        known = [
            repr(facts["name"]) if facts.get("name") else "",
            str(facts.get("state", "")),
            f"{facts['frames']} frames" if "frames" in facts else "",
            format_bytes(facts["bytes"]) if "bytes" in facts else "",
        ]
        if not yes:
            click.confirm(f"{run} ({', '.join(filter(None, known))}): delete it for good?", abort=True)

    def ask(client: Client, run: str) -> None:
        client.delete(run)

    def alone(found: FoundRun) -> None:
        for what, error in finish_begun(found.folder.parent):
            if error is None:
                click.echo(f"finished what was begun: {what}", err=True)
        delete_run(found.folder, "operator")

    for run in runs:
        done, _ = give_order(config, run, Remote(daemon, key, daemon_key), ask=ask, alone=alone, confirm=confirm)
        click.echo(f"deleted {done}")
