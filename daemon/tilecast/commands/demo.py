"""`tilecast demo`: a daemon and a simulated microscope, to see in half a minute what this is.

Nothing here is pretended but the specimen: the daemon is a process of its own, started as `tilecast run` would be; the
camera and the stage are two publishers that talk to it over TCP; frames carry no positions and are joined to the stage
stream by time. What is shown comes from the daemon's own query and notify sockets. Ctrl-C stops in the order in which
an acquisition should stop: the scan, then its publishers, then the daemon.
"""

from __future__ import annotations

import io
import math
import os
import re
import shlex
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tilecast.commands.common import Invocation, format_bytes, tilecast_command
from tilecast.errors import StoreError
from tilecast_protocol.errors import DisconnectedError, TilecastError

if TYPE_CHECKING:
    from tilecast.commands._watch import RunWatch, Status
    from tilecast.process import DaemonProcess
    from tilecast.service.config import Config
    from tilecast.simulate import Microscope
    from tilecast_protocol.publisher import Publisher

_POLL_S = 0.25
_FINISH_S = 120.0
_SOCKETS = ("ingest.ack", "ingest.pull", "notify", "query")
_RUNS_NAME = "runs"
_PICTURE_NAME = "overview.png"
_LOG_NAME = "daemon.log"

# Journal and tiles of a noisy 16-bit scan take about 1.3 times its pixels; the write-ahead log comes and goes.
_DISK_PER_PIXEL_BYTE = 1.6
_DISK_BYTES = 300 << 20


def _two_numbers(_ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Reader of ROWSxCOLUMNS."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*[x×,]\s*(\d+)\s*", text)
    if match is None or not (int(match[1]) and int(match[2])):
        raise click.BadParameter(f"expected ROWSxCOLUMNS, as 10x18, got {text!r}", param=param)
    return int(match[1]), int(match[2])


@tilecast_command("demo")
@click.option(
    "--grid",
    metavar="ROWSxCOLUMNS",
    callback=_two_numbers,
    default="10x18",
    show_default=True,
    help="Frames down and across.",
)
@click.option("--frames", type=click.IntRange(1), help="A scan of at least so many frames, in place of --grid.")
@click.option(
    "--shape",
    metavar="ROWSxCOLUMNS",
    callback=_two_numbers,
    default="1024x1024",
    show_default=True,
    help="Pixels of a frame.",
)
@click.option(
    "--fps", type=click.FloatRange(0.01, 1000), default=8.0, show_default=True, help="Frames per second of the camera."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another number, another specimen.")
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("tilecast-demo"),
    show_default=True,
    help="Where the run, the picture and the daemon's log are kept.",
)
def command(
    invocation: Invocation,
    grid: tuple[int, int],
    frames: int | None,
    shape: tuple[int, int],
    fps: float,
    seed: int,
    out: Path,
) -> None:
    """See tilecast at work: a simulated microscope scans, and the mosaic grows.

    It starts a daemon, and a microscope with a camera and a stage that talk to it over TCP on this machine, as real
    ones would. It ends by itself and leaves a picture of the mosaic and the run, which the other commands can read.
    Ctrl-C ends it sooner, in good order.

    \b
    Examples:
      tilecast demo
      tilecast demo --grid 4x6 --fps 20 --out /tmp/demo
    """
    from tilecast.service.logging import configure
    from tilecast.simulate import Microscope

    config = invocation.config
    scope = Microscope(
        shape=shape,
        grid=_grid_of(frames) if frames else grid,
        seed=seed,
        # Read out often enough that each exposure lies between two readings of a stage that stands still.
        stage_hz=max(50.0, 10 * fps),
        clock_jitter_ms=0.0,
    )
    folder = _prepare_folder(out, scope)
    store = config.store.path if config.provenance["store.path"] != "default" else folder / _RUNS_NAME
    configure("warning", config.log.format)
    _warm_up()
    demo = _Demo(scope, fps, folder, store, invocation)
    demo.run()


def _grid_of(n_frames: int) -> tuple[int, int]:
    """Rows and columns, about 9 to 16, of at least so many frames."""
    rows = max(1, round(math.sqrt(n_frames * 9 / 16)))
    return rows, math.ceil(n_frames / rows)


def _prepare_folder(out: Path, scope: Microscope) -> Path:
    """Make sure, before anything is started, that the scan can be written.

    Raises
    ------
    StoreError
        If the folder cannot be made or written, or its disk is too full.
    """
    elsewhere = "choose another folder with --out FOLDER"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".tilecast-probe"
        probe.write_bytes(b"x")
        probe.unlink()
        free = shutil.disk_usage(out).free
    except OSError as error:
        raise StoreError(f"{out} cannot be written ({error.strerror}): {elsewhere}") from error
    needed = scope.n_frames * scope.shape[0] * scope.shape[1] * 2 * _DISK_PER_PIXEL_BYTE + _DISK_BYTES
    if free < needed:
        raise StoreError(
            f"this scan needs about {format_bytes(needed)}, and the disk of {out} has {format_bytes(free)} free: "
            f"{elsewhere}, or make the scan smaller with --grid"
        )
    return out


def _warm_up() -> None:
    """Compile in this process, where progress can be shown; the daemon then finds everything compiled."""
    from tilecast.service.warmup import warm_up

    click.echo("Loading the compiled kernels (the first use on a machine compiles them, up to half a minute) …")
    seconds = warm_up()
    if seconds > 5:
        click.echo(f"Compiled in {seconds:.0f} s; the next start is quick.")


def free_endpoints(config: Config) -> dict[str, str]:
    """Where the demonstration's daemon listens: where it is configured to, unless that is only the default and taken.

    A port that somebody chose stays; if it is taken, the daemon says so.
    """
    endpoints = {name: config.endpoints(name)[0] if config.endpoints(name) else "" for name in _SOCKETS}
    defaults = [name for name in _SOCKETS if config.provenance[name] == "default"]
    if all(_port_is_free(endpoints[name]) for name in defaults):
        return endpoints
    return endpoints | dict.fromkeys(defaults, "tcp://127.0.0.1:*")


def _port_is_free(endpoint: str) -> bool:
    port = int(endpoint.rpartition(":")[2])
    with socket.socket() as probe:
        # As ZeroMQ does: a port that a program left a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class _Demo:
    """One demonstration, from the start of the daemon to the last word."""

    def __init__(self, scope: Microscope, fps: float, folder: Path, store: Path, invocation: Invocation) -> None:
        from tilecast_protocol.messages import new_run

        self._scope = scope
        self._fps = fps
        self._folder = folder
        self._store = store
        self._config = invocation.config
        self._run = new_run()
        self._log_file = folder / _LOG_NAME
        self._arguments = [] if invocation.config_file is None else ["--config", str(invocation.config_file)]
        for override in invocation.overrides:
            self._arguments += ["--set", override]
        self._store_is_ours = self._config.provenance["store.path"] == "default"

    def run(self) -> None:
        """Do all of it."""
        from tilecast.process import DaemonProcess

        endpoints = free_endpoints(self._config)
        if "tcp://127.0.0.1:*" in endpoints.values():
            click.echo("The usual ports are taken (by another tilecast?); this one takes free ones.")
        self._log_file.unlink(missing_ok=True)
        settings = {**endpoints, "store.path": str(self._store)}
        with DaemonProcess(
            self._store, settings=settings, log_file=self._log_file, arguments=self._arguments
        ) as daemon:
            report = self._scan(daemon)
        self._tell(report)
    ...
