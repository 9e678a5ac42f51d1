"""A microscope for tests: the simulated one, and a scan of frames that know themselves.

`Microscope`, `Specimen` and `run_scan` are the simulated microscope of `tilecast demo`. For most tests a `TestScan` is
enough: a grid of self-describing frames, of which the test knows where every pixel belongs.

Examples
--------
>>> scan = TestScan(grid=(2, 2), shape=(32, 48), overlap_px=8)
>>> scan.corner(3), scan.frame(3).shape
((24, 40), (32, 48))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from tilecast.simulate import Microscope as Microscope
from tilecast.simulate import Specimen as Specimen
from tilecast.simulate import run_scan as run_scan
from tilecast.testing.frames import describe
from tilecast_protocol.publisher import Publisher


@dataclass(frozen=True, kw_only=True)
class TestScan:
    """A grid of frames, row by row from the top left, each with its number in its pixels.

    Attributes
    ----------
    grid, shape : tuple of int
        Rows and columns of frames, and of pixels in a frame.
    overlap_px : int
    dtype : str
        `|u1`, `<u2` or `<f4`.
    pixel_size_um : float
    """

    __test__: ClassVar[bool] = False  # pytest, this is none

    grid: tuple[int, int] = (2, 3)
    shape: tuple[int, int] = (64, 64)
    overlap_px: int = 0
    dtype: str = "<u2"
    pixel_size_um: float = 0.5

    @property
    def n_frames(self) -> int:
        """How many frames there are."""
        return self.grid[0] * self.grid[1]

    def corner(self, frame: int) -> tuple[int, int]:
        """Row and column of a frame's upper left pixel in the mosaic."""
        row, col = divmod(frame, self.grid[1])
        return row * (self.shape[0] - self.overlap_px), col * (self.shape[1] - self.overlap_px)

    def pos_um(self, frame: int) -> tuple[float, float]:
        """The stage position of a frame, x and y of its centre."""
        row, col = self.corner(frame)
        return (col + self.shape[1] / 2) * self.pixel_size_um, (row + self.shape[0] / 2) * self.pixel_size_um

    def frame(self, frame: int) -> NDArray[Any]:
        """The pixels of a frame."""
        return describe(frame, self.shape, self.dtype)

    def send(self, publisher: Publisher, name: str = "test scan", **start: Any) -> str:
        """Send the whole scan; returns the run when all of it is durable.

        Parameters
        ----------
        publisher : Publisher
        name : str
        **start
            Further fields of the `start` message.

        Raises
        ------
        RejectedError
            If the daemon refuses the run, or a frame.
        """
        run = publisher.start(
            name, shape=self.shape, dtype=self.dtype, px_um=(self.pixel_size_um, self.pixel_size_um), **start
        )
        publisher.flush()
        for frame in range(self.n_frames):
            publisher.image(self.frame(frame), pos_um=self.pos_um(frame))
        publisher.end()
        publisher.flush()
        return run
