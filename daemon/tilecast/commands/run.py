"""`tilecast run`: the daemon, until it is told to stop."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Final

import click

from tilecast.commands.common import Invocation, tilecast_command

if TYPE_CHECKING:
    from tilecast.service.app import Daemon

_SWITCH_INTERVAL_S: Final = 0.0005


@tilecast_command("run")
@click.option(
    "--until-eof",
    is_flag=True,
    help="End also when standard input does: for programs that start the daemon, which then never outlives them.",
)
def command(invocation: Invocation, until_eof: bool) -> None:
    """Run the daemon: take in frames, build mosaics, tell viewers.

    It listens on the sockets ingest.ack and ingest.pull (and to the sources in ingest.sub), writes runs below
    store.path, and answers viewers on notify and query. It ends in good order on Ctrl-C or SIGTERM: what it has read is
    finished first. On SIGHUP it reads its configuration again, unless that means that its terminal was closed.

    \b
    Examples:
      tilecast run
      tilecast run --set store.path=/data/runs --set instrument=confocal-2
    """
    from tilecast.service.allocator import collector_spared

    with collector_spared():
        daemon = _load(invocation, until_eof=until_eof)
    try:
        daemon.run()
    except RuntimeError as error:
        raise click.ClickException(f"{error}; what was acknowledged is safe in the journals, start it again") from error


def _load(invocation: Invocation, *, until_eof: bool) -> Daemon:
    """The daemon, with everything loaded that it will need."""
    from tilecast.service.allocator import keep_freed_memory
    from tilecast.service.app import Daemon
    from tilecast.service.config import load
    from tilecast.service.logging import configure
    from tilecast.service.notify import Manager, Patience
    from tilecast.service.settings import load_plugins
    from tilecast.service.warmup import warm_up

    config = invocation.config
    configure(config.log.level, config.log.format, flood_s=config.log.flood_s)
    faulthandler.enable()  # a watchdog ends what hangs with SIGABRT: then the log says where each thread was
    manager = Manager()
    if until_eof:
        threading.Thread(target=_end_with_stdin, name="tilecast-stdin", daemon=True).start()
    keep_freed_memory()
    # Kernels let go of the interpreter's lock and want it back at once: not after the 5 ms that others may keep it.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with Patience(manager, lambda: "loading kernels; on first use they are compiled"):
        warm_up(modes=sorted({"feather", config.blend.mode}))
    return Daemon(
        config,
        load_plugins(config),
        reload_config=lambda: load(invocation.config_file, invocation.overrides),
        manager=manager,
    )


def _end_with_stdin() -> None:
    """Wait until whoever holds the other end of standard input is gone, however that came; then as on SIGTERM."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
