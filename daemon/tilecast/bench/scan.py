"""What the benchmark's camera sees: frames of Poisson noise over a structure, made beforehand, and where they lie.

Making a frame of noise takes longer than a frame lasts at any interesting rate, so a pool is made before the clock
starts: one tall image of noise, of which every frame is another window. Rows of the pool are thus sent more than once,
but no two frames are alike, and nothing in the daemon looks for likeness. Neighbouring frames show different
structures; whether they fit together makes no difference to the work.

>>> scan = Scan(shape=(100, 200), dtype="<u2", overlap=0.1, n_frames=6, columns=3)
>>> [scan.corner(frame) for frame in range(6)]
[(0, 0), (0, 180), (0, 360), (90, 360), (90, 180), (90, 0)]
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tilecast.geometry import Rect
from tilecast.simulate import Specimen

Dtype: TypeAlias = Literal["|u1", "<u2", "<f4"]

PX_UM: Final = 0.5
"""Size of a pixel; every figure is the same with another."""

_MEAN: Final[dict[Dtype, float]] = {"|u1": 100.0, "<u2": 2000.0, "<f4": 2000.0}
_STRUCTURE: Final = 0.3  # how far the structure goes from the mean
_POOL_FRAMES: Final = 24
_POOL_BYTES: Final = 400 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A serpentine scan.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of a frame, in pixels.
    dtype : {"|u1", "<u2", "<f4"}
    overlap : float
        Share of a frame's edge that it has in common with its neighbour, 0 to below 1.
    n_frames, columns : int
        Of the scan; its last row may be incomplete.
    """

    shape: tuple[int, int]
    dtype: Dtype
    overlap: float
    n_frames: int
    columns: int

    @property
    def frame_nbytes(self) -> int:
        """Bytes of a frame's pixels."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def corner(self, frame: int) -> tuple[int, int]:
        """Row and column of a frame's upper left pixel."""
        row, col = divmod(frame, self.columns)
        col = col if row % 2 == 0 else self.columns - 1 - col
        step_down, step_across = (max(1, round(size * (1 - self.overlap))) for size in self.shape)
        return row * step_down, col * step_across

    def pos_um(self, frame: int) -> tuple[float, float]:
        """Stage position of a frame's centre, x and y."""
        (row, col), (height, width) = self.corner(frame), self.shape
        return (col + (width - 1) / 2) * PX_UM, (row + (height - 1) / 2) * PX_UM


class FramePool:
    """The frames of a scan, cut from one tall image of noise, at least 24 frames high unless that is over 400 MiB.

    Parameters
    ----------
    scan : Scan
    seed : int
        Another seed is other noise.
    on_step : callable, optional
        Called after each of the `n_steps(scan)` pieces of work.
    """

    def __init__(self, scan: Scan, *, seed: int = 0, on_step: Callable[[], None] = lambda: None) -> None:
        height, width = scan.shape
        n = self.n_steps(scan)
        self._height = height
        self._tall: NDArray[Any] = np.empty((n * height, width), scan.dtype)
        expected = _expected(scan, seed)

        def fill(number: int) -> None:
            rng = np.random.default_rng((seed, number))
            photons = rng.poisson(np.roll(expected, 97 * number, axis=1))
            if scan.dtype == "|u1":
                np.clip(photons, 0, 255, out=photons)
            self._tall[number * height : (number + 1) * height] = photons
            on_step()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for future in [pool.submit(fill, number) for number in range(n)]:
                future.result()
        # Where windows begin: far from each other from frame to frame, and all of them before the first comes again.
        self._n_places = self._tall.shape[0] - height + 1
        self._stride = max(1, round(self._n_places * 0.618))
        while math.gcd(self._stride, self._n_places) != 1:
            self._stride += 1

    @staticmethod
    def n_steps(scan: Scan) -> int:
        """How many frames high the pool of a scan is."""
        return max(2, min(_POOL_FRAMES, _POOL_BYTES // scan.frame_nbytes))

    def frame(self, number: int) -> NDArray[Any]:
        """The pixels of a frame; a window of the pool, not to be written to."""
        row = number * self._stride % self._n_places
        return self._tall[row : row + self._height]


def _expected(scan: Scan, seed: int) -> NDArray[np.float64]:
    """Expected photons of each pixel of a frame: a specimen whose mean is that of the pixel type."""
    height, width = scan.shape
    light = Specimen(seed).region(Rect(0, 0, height, width)).astype(np.float64)
    light *= _STRUCTURE / light.mean()
    light += 1 - _STRUCTURE
    return light * _MEAN[scan.dtype]
