"""A daemon, a gateway and scans for the tests of the page: all real, each a process of its own.

Frames are made here, so that a test knows every pixel: `ramp` is a plane whose value says where it is.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecast.process import DaemonProcess
from tilecast_protocol.client import Client
from tilecast_protocol.messages import new_run
from tilecast_protocol.publisher import Publisher

FRAME = 256
PIXEL_UM = 0.5
STEP = 230  # pixels from one frame to the next


class Gateway:
    """`tilecast web` as a child process, on a port that stays the same when it is started again."""

    def __init__(self, store: Path, daemon: DaemonProcess, log_file: Path) -> None:
        self._store = store
        self._daemon = daemon
        self._log_file = log_file
        self._listen = "127.0.0.1:0"
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        """Start it and wait until it says its address."""
        endpoints = self._daemon.endpoints
        command = [sys.executable, "-m", "tilecast", "web", "--store", str(self._store), "--listen", self._listen]
        command += ["--daemon", endpoints["notify"], endpoints["query"]]
        with self._log_file.open("a") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r"http://([\d.]+:\d+)/", line)
        assert found is not None, f"the gateway did not say its address: {line!r}; {self._log_file.read_text()}"
        self._listen, self.url = found[1], found[0]

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGINT)

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait(20)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None


@dataclass(frozen=True)
class Station:
    """What a test of the page needs."""

    daemon: DaemonProcess
    gateway: Gateway
    store: Path

    def client(self) -> Client:
        """For queries."""
        return Client(None, self.daemon.endpoints["query"])


def ramp(row0: int, col0: int, shape: tuple[int, int] = (FRAME, FRAME)) -> NDArray[np.uint16]:
    """Pixels of a plane that rises to the lower right, by level-0 position: 1000 + row + 2·col."""
    rows, cols = np.arange(shape[0])[:, None] + row0, np.arange(shape[1])[None, :] + col0
    return np.clip(1000 + rows + 2 * cols, 0, 65535).astype("<u2")


class Scan:
    """One run, published frame by frame on a grid of `rows` × `cols`, its upper left corner at pixel (0, 0)."""

    def __init__(
        self,
        station: Station,
        name: str,
        grid: tuple[int, int],
        *,
        px_um: tuple[float, float] = (PIXEL_UM, PIXEL_UM),
        **start: Any,
    ) -> None:
        self.run = new_run()
        self.grid = grid
        self.px_um = px_um
        self._publisher = Publisher(station.daemon.endpoints["ingest.ack"], instrument="scope", stream=f"c-{self.run}")
        rows, cols = grid
        extent = [[0, 0], [((cols - 1) * STEP + FRAME) * px_um[0], ((rows - 1) * STEP + FRAME) * px_um[1]]]
        given = {"n_expected": rows * cols, "extent_um": extent} | start
        self._publisher.start(
            name, run=self.run, shape=(FRAME, FRAME), dtype="<u2", px_um=px_um, pos_src="frame", **given
        )

    def corner(self, frame: int) -> tuple[int, int]:
        """Upper left pixel of a frame; a serpentine."""
        row, col = divmod(frame, self.grid[1])
        return row * STEP, (col if row % 2 == 0 else self.grid[1] - 1 - col) * STEP

    def send(
        self, frame: int, pixels: NDArray[Any] | None = None, *, at: int | None = None, tcz: Sequence[int] = (0, 0, 0)
    ) -> None:
        """Send a frame, of the ramp unless pixels are given, to its place or to that of frame `at`."""
        row, col = self.corner(frame if at is None else at)
        pos_um = ((col + FRAME / 2) * self.px_um[0], (row + FRAME / 2) * self.px_um[1])
        self._publisher.image(
            ramp(row, col) if pixels is None else pixels,
            frame=frame,
            pos_um=pos_um,
            tcz=tuple(tcz),  # type: ignore[arg-type]
        )

    def send_nowhere(self, frame: int) -> None:
        """Send a frame that does not say where it was taken."""
        self._publisher.image(ramp(0, 0), frame=frame)

    def flush(self) -> None:
        """Wait until the daemon has everything."""
        self._publisher.flush()

    def end(self) -> None:
        """End the run."""
        self._publisher.end()
        self._publisher.flush()
        self._publisher.close()


@contextmanager
def in_background(work: Any) -> Iterator[threading.Event]:
    """Run `work(stop)` in a thread; what it raises is raised when the block ends."""
    stop = threading.Event()
    errors: list[Exception] = []

    def target() -> None:
        try:
            work(stop)
        except Exception as error:  # noqa: BLE001 - the end of a thread: raised again below
            errors.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(60)
    if errors:
        raise errors[0]
