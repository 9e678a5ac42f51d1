"""What `tilecast demo` scans: a simulated microscope, or a scan from disk; both send as real programs would.

An acquisition knows how large it is, opens the publishers that it needs, and sends one run through them. Neither knows
the daemon but by its endpoint.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tilecast.commands.send import send_frames, start_fields
from tilecast.geometry import Rect, extent_rect
from tilecast.simulate import Microscope, run_scan
from tilecast_protocol.publisher import Publisher

if TYPE_CHECKING:
    from tilecast.inputs import Scan


class Acquisition(Protocol):
    """Something that can be scanned again and again."""

    @property
    def title(self) -> str:
        """One line for people."""
        ...

    @property
    def n_frames(self) -> int:
        """Frames of one scan."""
        ...

    @property
    def frame_nbytes(self) -> int:
        """Size of a frame's pixels."""
        ...

    @property
    def extent(self) -> Rect:
        """What one scan covers, level-0 pixels."""
        ...

    def publishers(self, endpoint: str, instrument: str) -> tuple[Publisher, ...]:
        """New publishers; the camera's is the last."""
        ...

    def send(self, publishers: tuple[Publisher, ...], run: str, number: int, stop: threading.Event) -> None:
        """Send one run, the `number`-th from 1, until all of it is acknowledged or `stop` is set."""
        ...


@dataclass(frozen=True)
class SimulatedScan:
    """A microscope with a camera and a stage, two programs; each scan is of another specimen.

    Parameters
    ----------
    scope : Microscope
        The first.
    fps : float
    """

    scope: Microscope
    fps: float

    @property
    def title(self) -> str:
        (rows, cols), (height, width) = self.scope.grid, self.scope.shape
        return f"tilecast demo: {rows} × {cols} frames of {height} × {width} px, {self.fps:g} frames/s"

    @property
    def n_frames(self) -> int:
        return self.scope.n_frames

    @property
    def frame_nbytes(self) -> int:
        return self.scope.shape[0] * self.scope.shape[1] * 2

    @property
    def extent(self) -> Rect:
        return extent_rect(self.scope.extent_um(), self.scope.camera_affine)

    def publishers(self, endpoint: str, instrument: str) -> tuple[Publisher, ...]:
        return tuple(Publisher(endpoint, instrument=instrument, stream=stream) for stream in ("stage", "camera"))

    def send(self, publishers: tuple[Publisher, ...], run: str, number: int, stop: threading.Event) -> None:
        stage, camera = publishers
        scope = self.scope
        run_scan(
            camera,
            stage,
            Microscope(shape=scope.shape, grid=scope.grid, seed=scope.seed + number - 1, stage_hz=scope.stage_hz),
            fps=self.fps,
            name="simulated scan" if number == 1 else f"simulated scan {number}",
            pos_src="stage",
            start_fields={"run": run, "stage_stream": "stage"},
            stop=stop,
        )
        camera.flush()
        stage.flush()


@dataclass(frozen=True)
class ScanFromDisk:
    """A scan that lies on disk, at a camera's pace.

    Parameters
    ----------
    scan : Scan
    name : str
    fps : float
    """

    scan: Scan
    name: str
    fps: float

    @property
    def title(self) -> str:
        return f"tilecast demo: {self.name}, {self.scan.n_frames} frames, {self.fps:g} frames/s"

    @property
    def n_frames(self) -> int:
        return self.scan.n_frames

    @property
    def frame_nbytes(self) -> int:
        return self.scan.shape[0] * self.scan.shape[1] * int(self.scan.dtype[-1])

    @property
    def extent(self) -> Rect:
        (x_um, y_um), affine = self.scan.px_um, self.scan.affine
        return extent_rect(self.scan.extent_um, affine or ((x_um, 0.0), (0.0, y_um)))

    def publishers(self, endpoint: str, instrument: str) -> tuple[Publisher, ...]:
        return (Publisher(endpoint, instrument=instrument, stream="camera", src="tilecast-demo"),)

    def send(self, publishers: tuple[Publisher, ...], run: str, number: int, stop: threading.Event) -> None:
        (camera,) = publishers
        camera.start(self.name if number == 1 else f"{self.name} {number}", run=run, **start_fields(self.scan))
        send_frames(camera, self.scan, self.fps, stop, lambda: None)
        camera.flush()
