"""A daemon under load: what the benchmarks of the whole daemon share.

Scan and frames are those of `tilecast bench`. Frames are sent by an absolute schedule, so that one that was late does
not delay all that follow. The daemon is a process of its own, as `tilecast run` would be, and is asked and watched over
its sockets.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from tilecast.bench.scan import PX_UM, FramePool, Scan
from tilecast.process import DaemonProcess
from tilecast_protocol.client import Client, TileUpdate
from tilecast_protocol.publisher import Publisher

INSTRUMENT = "bench"
STREAM = "cam0"
MIB = 2**20
PATIENCE_S = 600.0
"""How long the daemon may take for what it still has to do."""


def start_run(publisher: Publisher, scan: Scan, name: str) -> str:
    """Begin a run of a scan's frames; its uuid."""
    return publisher.start(name, shape=scan.shape, dtype=scan.dtype, px_um=(PX_UM, PX_UM), pos_src="frame")


def start_daemon(folder: Path, settings: Mapping[str, str] | None = None) -> DaemonProcess:
    """A daemon with the default options but for these, with its store and its log in this folder; not started yet."""
    return DaemonProcess(
        folder / "runs", settings={"instrument": INSTRUMENT} | dict(settings or {}), log_file=folder / "log"
    )


def make_publisher(daemon: DaemonProcess) -> Publisher:
    """A camera on the acknowledged path, which is as patient as the daemon is slow."""
    return Publisher(daemon.endpoints["ingest.ack"], instrument=INSTRUMENT, stream=STREAM, timeout_s=PATIENCE_S)


def send_paced(
    publisher: Publisher,
    scan: Scan,
    pool: FramePool,
    frames: range,
    *,
    fps: float | None = None,
    until_s: float | None = None,
    on_sent: Callable[[int], None] | None = None,
) -> int:
    """Send frames, by the clock or as fast as the publisher takes them; how many were sent.

    Parameters
    ----------
    frames : range
        Their numbers.
    fps : float, optional
        Frames per second, by an absolute schedule.
    until_s : float, optional
        Stop at this time of the monotonic clock.
    on_sent : callable, optional
        Called with how many were sent, after each.
    """
    began_s = time.monotonic()
    for n, frame in enumerate(frames):
        if fps is not None:
            time.sleep(max(0.0, began_s + n / fps - time.monotonic()))
        if until_s is not None and time.monotonic() >= until_s:
            return n
        publisher.image(pool.frame(frame), frame=frame, pos_um=scan.pos_um(frame))
        if on_sent is not None:
            on_sent(n + 1)
    return len(frames)


class Progress:
    """Waits until frames are in the mosaic, woken by the daemon's notifications; one question for each of them.

    It also fetches a tile now and then, so that the daemon's readers, and what they cache, are part of what is
    measured.
    """

    def __init__(self, daemon: DaemonProcess, run: str) -> None:
        self._run = run
        self._client = Client(daemon.endpoints["notify"], daemon.endpoints["query"], run=run, timeout_s=PATIENCE_S)
        self._client.wait_connected()

    def wait_committed(self, n_frames: int) -> None:
        """Wait until so many frames are committed; raises TimeoutError if that takes too long."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self._client.run(self._run)["frames"] < n_frames:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{n_frames} frames were not committed within {PATIENCE_S:g} s")
            update = self._client.next_update(1.0)
            if isinstance(update, TileUpdate) and update.tiles:
                t, c, z, level, row, col = update.tiles[0]
                self._client.ask("tile", run=self._run, tcz=(t, c, z), level=level, row=row, col=col)

    def stats(self) -> dict[str, Any]:
        """What the daemon says of itself."""
        return self._client.stats()

    def close(self) -> None:
        """Close the sockets."""
        self._client.close()


def cpu_s(process: psutil.Process) -> float:
    """Processor time that a process has used so far, to 10 ms."""
    times = process.cpu_times()
    return float(times.user + times.system)


def add_common_options(parser: argparse.ArgumentParser, *, shape: str, dtype: str = "u2") -> None:
    """The options of every benchmark of the whole daemon."""
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be judged; nothing is left"
    )
    parser.add_argument("--shape", type=_shape, default=shape, help=f"of a frame, ROWSxCOLUMNS ({shape})")
    parser.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="OPTION=VALUE", help="an option of the daemon"
    )
    parser.add_argument("--dtype", type=_dtype, default=dtype, help=f"u1, u2 or f4 ({dtype})")


def _shape(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected ROWSxCOLUMNS, as 512x512, got {text!r}")
    return int(found[1]), int(found[2])


def _dtype(text: str) -> str:
    known = {"u1": "|u1", "u2": "<u2", "f4": "<f4"}
    if text not in known:
        raise argparse.ArgumentTypeError(f"expected {', '.join(known)}, got {text!r}")
    return known[text]


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected OPTION=VALUE, as blend.budget_bytes=64MiB, got {text!r}")
    return name, value
