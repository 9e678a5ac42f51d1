"""A daemon and a gateway, each in a process of its own, with runs that a test knows by heart, for real viewers to open.

Nothing is taken from the store that the test knows itself: frames and their places come from here, mosaics from the
reference.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faults.nursery import ForkedDaemon, shared
from integration.conftest import IMPATIENT
from integration.talking import PATIENCE_S, PX_UM, Watcher, centre_um, picture
from reference import mosaic_reference
from tilecast.process import DaemonProcess
from tilecast_protocol.publisher import Publisher

TILE = 32
SHAPE = (48, 40)
Plane = tuple[int, int, int]

#: Upper left pixels of the frames: a block that overlaps, grows to the upper left, and an island far from it.
CORNERS: tuple[tuple[int, int], ...] = (
    (0, 0),
    (0, 30),
    (40, 30),
    (40, 0),
    (-35, -25),
    (5, 65),
    (150, 190),
)


@dataclass(frozen=True)
class Canvas:
    """What a viewer sees of a plane at a level: values, 0 (NaN) where nothing is, and what is covered."""

    values: NDArray[Any]
    covered: NDArray[np.bool_]


@dataclass(frozen=True)
class Scan:
    """A run, and what its mosaic must be."""

    run: str
    dtype: str
    expected: mosaic_reference.Mosaic

    def canvas(self, bounds: tuple[int, int, int, int], level: int, plane: Plane = (0, 0, 0)) -> Canvas:
        """A rectangle of level 0 (half-open, signed, of whole tiles of the level), as it is at a level.

        Levels above the mosaic's own are reduced from it.
        """
        mine = {key: tile for (where, key), tile in self.expected.items() if where == plane}
        top = max((key[0] for _, key in self.expected), default=0)
        from_level = min(level, top)
        row0, col0, row1, col1 = (edge >> from_level for edge in bounds)
        values = np.full((row1 - row0, col1 - col0), np.nan if self.dtype == "<f4" else 0, self.dtype)
        covered = np.zeros(values.shape, bool)
        for (tile_level, row, col), (pixels, mask) in mine.items():
            row_end, col_end = (row + 1) * TILE, (col + 1) * TILE
            inside = row0 < row_end <= row0 + values.shape[0] and col0 < col_end <= col0 + values.shape[1]
            if tile_level == from_level and inside:
                there = np.s_[row * TILE - row0 : (row + 1) * TILE - row0, col * TILE - col0 : (col + 1) * TILE - col0]
                values[there], covered[there] = pixels, mask
        for _ in range(level - from_level):
            values, covered = mosaic_reference.reduce(values, covered)
        return Canvas(values, covered)


class Gateway:
    """`tilecast web` as a child process, on a free port.

    Attributes
    ----------
    address : str
        ``http://127.0.0.1:port``, once it answers.
    """

    def __init__(self, store: Path, endpoints: Mapping[str, str], log_file: Path, *arguments: str) -> None:
        shared().learn("tilecast_plugins.web.app")
        where = ["--store", str(store), "--listen", "127.0.0.1:0", "--daemon", endpoints["notify"], endpoints["query"]]
        self._process = shared().start("web", *where, *arguments, log_file=log_file)
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.address = self._lines.get(timeout=60).split()[-1].rstrip("/")
        except (queue.Empty, IndexError):
            self.stop()
            raise AssertionError(f"the gateway did not start: {log_file.read_text()[-2000:]}") from None

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def stop(self) -> int:
        """End it; gives its status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(30)
        finally:
            self._process.kill()
            self._reader.join()
            self._process.stdout.close()


@dataclass(frozen=True)
class Show:
    """A daemon, a gateway, and an ear for what the daemon publishes."""

    daemon: DaemonProcess
    gateway: Gateway | None
    watch: Watcher

    @property
    def address(self) -> str:
        """Of the gateway, without a slash at its end."""
        assert self.gateway is not None, "it was started without one"
        return self.gateway.address

    def publisher(self, stream: str) -> Publisher:
        """A publisher on the acknowledged path."""
        return Publisher(self.daemon.endpoints["ingest.ack"], instrument="scope", stream=stream)

    def scan(self, stream: str, dtype: str, planes: tuple[Plane, ...] = ((0, 0, 0),), **start: Any) -> Scan:
        """Send a run of all `CORNERS` in each plane, and wait until it is in the store."""
        frames = []
        with self.publisher(stream) as publisher:
            run = publisher.start(stream, shape=SHAPE, dtype=dtype, px_um=PX_UM, pos_src="frame", **start)
            for plane in planes:
                for corner in CORNERS:
                    frame = len(frames)
                    pixels = picture(700 + frame, SHAPE, dtype)
                    publisher.image(pixels, pos_um=centre_um(*corner, SHAPE), tcz=plane)
                    frames.append(mosaic_reference.Frame(frame, 0, frame, plane, *corner, pixels))
            publisher.end(run=run)
            publisher.flush()
        self.watch.report(run)
        return Scan(run, dtype, mosaic_reference.mosaic(frames, "feather", dtype, TILE))


@contextmanager
def show(folder: Path, *arguments: str) -> Iterator[Show]:
    """A daemon and its gateway, until the end of the `with`."""
    daemon = ForkedDaemon(folder / "runs", settings=IMPATIENT | {"blend.tile_size": str(TILE)}, log_file=folder / "log")
    daemon.start()
    try:
        gateway = Gateway(folder / "runs", daemon.endpoints, folder / "web.log", *arguments)
        try:
            with Watcher(daemon.endpoints["notify"]) as watch:
                yield Show(daemon, gateway, watch)
        finally:
            gateway.stop()
    finally:
        daemon.kill()


def eventually(condition: Any, what: str) -> Any:
    """The first true value of a function that asks the gateway; fails if it does not come."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)  # asks again: there is nothing to wait on at the other end of HTTP
    raise AssertionError(f"{what}: it did not happen")
