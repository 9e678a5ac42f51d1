"""What is exported: which planes of which part of a run, and how it is said.

`Picture` is the one thing that all formats of a mosaic are given. It knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecast.reading import PlaneKey, Rect, rect_at_level
from tilecast_plugins.export.errors import ExportError
from tilecast_plugins.export.levels import Levels, filled
from tilecast_plugins.pixels import Mask
from tilecast_plugins.run import Channel, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """Which planes, by their numbers in the run."""

    t: tuple[int, ...]
    c: tuple[int, ...]
    z: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many of each."""
        return len(self.t), len(self.c), len(self.z)

    def __iter__(self) -> Iterator[tuple[tuple[int, int, int], PlaneKey]]:
        """Each with its numbers in the export, t outermost."""
        for i, t in enumerate(self.t):
            for j, c in enumerate(self.c):
                for k, z in enumerate(self.z):
                    yield (i, j, k), PlaneKey(t, c, z)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A part of a mosaic, ready to be written.

    Attributes
    ----------
    levels : Levels
    planes : Planes
    fill : float or None
        What uncovered pixels get; None leaves 0, or NaN in floats.
    """

    levels: Levels
    planes: Planes
    fill: float | None

    @property
    def run(self) -> Run:
        """What it is of."""
        return self.levels.run

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Those that are exported."""
        return tuple(self.run.channel(c) for c in self.planes.c)

    @property
    def n_planes(self) -> int:
        """How many planes."""
        n_t, n_c, n_z = self.planes.shape
        return n_t * n_c * n_z

    @property
    def centre_um(self) -> tuple[float, float]:
        """Stage position (x, y) of its centre."""
        rect = self.levels.rect
        return self.run.stage_um((rect.row0 + rect.row1) / 2, (rect.col0 + rect.col1) / 2)

    @property
    def nbytes(self) -> int:
        """Most bytes that its tiles have, all levels, uncompressed; only those where a frame may lie."""
        edge = self.levels.tile_size
        n_pixels = 0
        for _, plane in self.planes:
            box = self.run.bboxes.get(plane, Rect(0, 0, 0, 0)).intersect(self.levels.shown)
            for level in range(self.levels.n_levels if not box.empty else 0):
                part = rect_at_level(box, level)
                n_pixels += (part.height + 2 * edge) * (part.width + 2 * edge)
        return n_pixels * self.run.dtype.itemsize

    def written(self, pixels: NDArray[Any], coverage: Mask | None) -> NDArray[Any]:
        """A tile as it is written."""
        return filled(pixels, coverage, self.fill)

    def blank(self) -> NDArray[Any]:
        """A tile where nothing is covered, as it is written."""
        size = self.levels.tile_size
        nothing: float = np.nan if self.run.dtype.kind == "f" else 0
        return np.full((size, size), nothing if self.fill is None else self.fill, self.run.dtype)


def choose_rect(run: Run, planes: Planes) -> Rect:
    """What the planes cover together, level-0 pixels.

    Raises
    ------
    ExportError
        If that is nothing.
    """
    from tilecast.reading import union_of

    box = union_of(run.bboxes[plane] for _, plane in planes if plane in run.bboxes)
    if box.empty:
        there = ", ".join("{},{},{}".format(*known) for known in sorted(run.bboxes)) or "none yet"
        raise ExportError(f"the run {run.run[:8]} has no frames in the planes asked for; t,c,z that it has: {there}")
    return box


def check_fill(fill: float | None, run: Run) -> None:
    """Refuse a value that the pixels cannot have.

    Raises
    ------
    ExportError
    """
    if fill is None or run.dtype.kind == "f":
        return
    most = np.iinfo(run.dtype).max
    if not (fill == fill and 0 <= fill <= most and fill == int(fill)):
        raise ExportError(f"--fill: pixels of this run are whole numbers from 0 to {most}; got {fill:g}")
