"""`tilecast top`: a running daemon, live, in the terminal.

A thread asks, once a second, over the query socket; the main thread draws and listens to the keyboard. So the view can
always be ended, and says when the daemon is silent.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tilecast.commands.common import Invocation, console, tilecast_command
from tilecast.errors import ConfigError

if TYPE_CHECKING:
    from tilecast.commands._overview import Overview
    from tilecast_protocol.client import Client

_ANSWER_S: Final = 3.0
_LOOK_S: Final = 0.2
_RATE_OVER_S: Final = 5.0
_LEAVE_S: Final = 0.1


@tilecast_command("top")
@click.option("--endpoint", metavar="ENDPOINT", help="The daemon's query socket, if not the configured one.")
@click.option(
    "--key",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Our own key, a file *.key_secret, for a daemon that asks for one.",
)
@click.option(
    "--server-key",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="That daemon's public key, a file *.key.",
)
@click.option(
    "--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds between two looks."
)
@click.option("--once", is_flag=True, help="Print it once and end. So it is, too, if the output is no terminal.")
def command(
    invocation: Invocation,
    endpoint: str | None,
    key: Path | None,
    server_key: Path | None,
    interval: float,
    once: bool,
) -> None:
    """Watch a running daemon: state, rates, latencies, queues, disk, runs.

    End it with q or Ctrl-C; the daemon does not notice.

    \b
    Examples:
      tilecast top
      tilecast top --endpoint tcp://scope-pc:5573 --key me.key_secret --server-key daemon.key
      tilecast top --once | less
    """
    from tilecast.commands._overview import Overview, Screen
    from tilecast_protocol.client import Client
    from tilecast_protocol.sockets import CurveKeys

    endpoint = endpoint or invocation.config.query
    if not endpoint:
        raise ConfigError("query is empty, so this daemon answers no questions; name another one with --endpoint")
    if (key is None) != (server_key is None):
        raise click.UsageError("--key and --server-key belong together: our secret key, and the daemon's public one")
    try:
        curve = None if key is None else CurveKeys.load(key, server=server_key)
        client = Client(None, endpoint, curve=curve, timeout_s=_ANSWER_S)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    out = console()
    if once or not out.is_terminal or out.is_dumb_terminal:
        with client:
            asked = Asker(client, Overview(endpoint=endpoint))
            asked.ask()
        out.print(Screen(asked.overview, whole=True))
        return
    _watch(client, Overview(endpoint=endpoint), interval)


class Asker:
    """Asks a daemon how it is, and keeps what it needs for rates."""

    def __init__(self, client: Client, overview: Overview) -> None:
        from tilecast.service.rates import Rates

        self._client = client
        self._cpu = Rates(_RATE_OVER_S)
        self._of_runs: dict[str, Rates] = {}
        self._answered_s = time.monotonic()
        self.overview = overview

    def ask(self) -> None:
        """Ask once; raises DisconnectedError, QueryError or MalformedError."""
        from tilecast.service.rates import Rates

        hello = self.overview.hello or self._client.hello()
        stats = self._client.stats()
        health = self._client.health()
        self._answered_s = time.monotonic()
        if stats["uptime_s"] < self.overview.stats.get("uptime_s", 0.0):
            hello = self._client.hello()  # it was started anew, perhaps as another version
            self._cpu = Rates(_RATE_OVER_S)
        self._cpu.sample(self._answered_s, {"cpu": stats["cpu_s"]})
        # Each has its own: one that has just been loaded comes with all that it has, which is no rate.
        self._of_runs = {run: self._of_runs.get(run, Rates(_RATE_OVER_S)) for run in stats["runs"]}
        for run, rates in self._of_runs.items():
            rates.sample(self._answered_s, {"placed": stats["runs"][run]["placed"]})
        self.overview = replace(
            self.overview,
            hello=hello,
            stats=stats,
            health=health,
            cores=self._cpu.per_second()["cpu_per_s"] if self.overview.stats else None,
            frames_per_s={run: rates.per_second()["placed_per_s"] for run, rates in self._of_runs.items()},
            silent="",
            silent_s=0.0,
        )

    def silent(self, why: str) -> None:
        """There was no answer."""
        self.overview = replace(self.overview, silent=why, silent_s=time.monotonic() - self._answered_s)

    def keep_asking(self, interval_s: float, stop: threading.Event) -> None:
        """Ask until told to stop; in a thread, which owns the client."""
        from tilecast_protocol.errors import TilecastError

        with self._client:
            while not stop.is_set():
                try:
                    self.ask()
                except (TilecastError, KeyError) as error:
                    lacks = f"it does not tell {error}; is it another version?"
                    self.silent(lacks if isinstance(error, KeyError) else str(error))
                stop.wait(interval_s)


def _watch(client: Client, overview: Overview, interval_s: float) -> None:
    from rich.live import Live

    from tilecast.commands._overview import Screen
    from tilecast.commands._signals import stopped_by_signals

    asker = Asker(client, overview)
    hint = "q ends this view"
    done = threading.Event()
    thread = threading.Thread(target=asker.keep_asking, args=(interval_s, done), name="top-ask", daemon=True)
    out = console()
    with stopped_by_signals() as stop, _keyboard() as typed:
        thread.start()
        with Live(Screen(asker.overview, hint=hint), console=out, screen=True, auto_refresh=False) as live:
            while not stop.is_set() and not asks_to_end(typed(_LOOK_S)):
                live.update(Screen(asker.overview, hint=hint), refresh=True)
    done.set()
    thread.join(_LEAVE_S)  # it may wait for an answer; it ends with the process


@contextlib.contextmanager
def _keyboard() -> Iterator[Callable[[float], bytes]]:
    """What is typed, without Enter and without being shown, where standard input is a terminal.

    The value is called with a time in seconds, waits that long for a key, and returns what there is.
    """
    if not sys.stdin.isatty():
        yield _nothing_typed
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield lambda timeout_s: os.read(fd, 1024) if select.select([fd], [], [], timeout_s)[0] else b""
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _nothing_typed(timeout_s: float) -> bytes:
    time.sleep(timeout_s)
    return b""


def asks_to_end(typed: bytes) -> bool:
    r"""Whether q or Escape is among what was typed; other keys, also those that begin with Escape, mean nothing.

    >>> asks_to_end(b"xq"), asks_to_end(b"\x1b"), asks_to_end(b"\x1b[A\x1bOq")
    (True, True, False)
    """
    return bool(re.search(rb"[qQ\x1b]", re.sub(rb"\x1b[\[O][0-9;]*[A-Za-z~]", b"", typed)))
