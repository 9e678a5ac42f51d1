"""`tilecast end`: a run whose camera will not end it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tilecast.commands._daemon import Remote, give_order, no_daemon, takes_remote
from tilecast.commands.common import Invocation, tilecast_command

if TYPE_CHECKING:
    from tilecast.store.folders import FoundRun


@tilecast_command("end")
@click.argument("run")
@takes_remote
def command(invocation: Invocation, run: str, daemon: str | None, key: Path | None, daemon_key: Path | None) -> None:
    """End a RUN that its camera has left open; its report is written.

    RUN is the beginning of its id, its name, its folder, or `last`. The daemon does it. Frames that come later are
    taken, and counted as late.

    \b
    Examples:
      tilecast end last
      tilecast end 3f2a --daemon tcp://microscope-pc:5573 --key me.key_secret --daemon-key daemon.key
    """
    config = invocation.config

    def alone(found: FoundRun) -> None:
        raise no_daemon(config, found)

    done, _ = give_order(
        config, run, Remote(daemon, key, daemon_key), ask=lambda client, run: client.end(run), alone=alone
    )
    click.echo(f"ended {done}; `tilecast info {done[:8]}` shows its report")
