"""What is known of a mosaic at one instant, and where its pixels lie: levels, planes, canvas and stage.

Two ways of counting pixels are kept apart. *Mosaic* coordinates are signed and fixed to stage (0, 0): they never change
their meaning while a run grows. *Canvas* coordinates count from the upper left corner of the rectangle that a viewer
is shown, from 0, as NumPy and other image libraries count. Both exist at every level; level 0 is full resolution.

It does not know tiles' contents, or where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from ..rects import Rect, rect_at_level

Plane: TypeAlias = tuple[int, int, int]
"""(t, c, z)."""

Space: TypeAlias = Literal["pixels", "level", "um"]
Origin: TypeAlias = Literal["mosaic", "canvas"]
Affine: TypeAlias = tuple[tuple[float, float], tuple[float, float]]

OVER: Final = frozenset({"ended", "sealed"})
"""States of a run to which nothing is added any more, as far as anybody planned."""

_ROUNDING_PX: Final = 1e-6  # a position in µm that is a whole pixel but for rounding is that pixel


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A mosaic at one instant.

    Attributes
    ----------
    run, name, state : str
        Its id, its name for people, and `open`, `idle`, `ended` or `sealed`.
    epoch, rev : int
        Which history, and the commit up to which this is true.
    levels : int
        How many there are; 0 before the first frame.
    tile_shape : (int, int)
        Rows and columns of a tile.
    dtype : dtype
    counts : (int, int, int)
        How many times, channels and slices there are, as planned and as seen.
    boxes : dict of (t, c, z) to Rect
        What is covered of each plane that has a frame: mosaic coordinates of level 0.
    canvas : Rect or None
        The rectangle that viewers are shown, in the same; None before the first frame.
    affine : ((a, b), (c, d))
        Carries (col, row) of level 0, pixel edges, to micrometres.
    offset_um : (x, y)
        Where (0, 0) lies.
    axes_um : (str, str)
        Which axes of the stage, or of a CATMAID project, these are: of columns, and of rows.
    grid : (row, col)
        Where the corner of tile (0, 0) lies, level 0.
    start : dict
        What the message `start` said; empty where that is not told.
    """

    run: str
    name: str
    state: str
    epoch: int
    rev: int
    levels: int
    tile_shape: tuple[int, int]
    dtype: np.dtype[Any]
    counts: tuple[int, int, int]
    boxes: dict[Plane, Rect]
    canvas: Rect | None
    affine: Affine
    offset_um: tuple[float, float] = (0.0, 0.0)
    axes_um: tuple[str, str] = ("x", "y")
    grid: tuple[int, int] = (0, 0)
    start: dict[str, Any] = field(default_factory=dict)

    @property
    def box(self) -> Rect:
        """What all planes cover together, level 0; empty for none."""
        covered = Rect(0, 0, 0, 0)
        for box in self.boxes.values():
            covered = covered.union(box)
        return covered

    @property
    def fill(self) -> float:
        """What uncovered pixels are stored as."""
        return math.nan if self.dtype.kind == "f" else 0

    def canvas_at(self, level: int) -> Rect:
        """The canvas in mosaic coordinates of a level.

        Raises
        ------
        ValueError
            There is none yet.
        """
        if self.canvas is None:
            raise ValueError(f"the run {self.run} has no picture yet: no frame of it has been placed; refresh later")
        return rect_at_level(self.canvas, level)

    def check_level(self, level: int) -> None:
        """Raise ValueError if there is no such level."""
        if not 0 <= level < self.levels:
            has = f"levels 0 to {self.levels - 1}" if self.levels else "no levels yet: no frame of it has been placed"
            raise ValueError(f"the mosaic has {has}; asked for {level}")

    def to_um(self, row: float, col: float) -> tuple[float, float]:
        """The stage position (x, y) of a point in mosaic coordinates of level 0, pixel edges."""
        (a, b), (c, d) = self.affine
        return a * col + b * row + self.offset_um[0], c * col + d * row + self.offset_um[1]

    def to_pixels(self, x_um: float, y_um: float) -> tuple[float, float]:
        """The point (row, col) in mosaic coordinates of level 0 that lies at a stage position."""
        (a, b), (c, d) = self.affine
        x, y = x_um - self.offset_um[0], y_um - self.offset_um[1]
        if b == 0 and c == 0:
            return y / d, x / a
        determinant = a * d - b * c
        return (a * y - c * x) / determinant, (d * x - b * y) / determinant

    def region(self, roi: Any, space: Space, origin: Origin, level: int) -> Rect:
        """A region as mosaic coordinates of a level.

        Parameters
        ----------
        roi : (row0, col0, row1, col1), ((row0, col0), (row1, col1)), ((x0, y0), (x1, y1)) or None
            Half-open; x before y if it is in micrometres; None is all that is covered.
        space : {"pixels", "level", "um"}
            Pixels of level 0, pixels of the level itself, or micrometres.
        origin : {"mosaic", "canvas"}
            What pixels are counted from.
        level : int

        Raises
        ------
        ValueError
            It is not a region, or holds nothing.
        """
        if roi is None:
            box = rect_at_level(self.box, level)
            if box.empty:
                raise ValueError(f"nothing of the run {self.run} is covered yet; give a region, or refresh later")
            return box
        first, last = _corners(roi)
        if space == "um":
            if origin == "canvas":
                raise ValueError("micrometres are those of the stage: there is no canvas in them; leave out origin")
            (row0, col0), (row1, col1) = self._around(first, last)
        elif space in ("pixels", "level"):
            (row0, col0), (row1, col1) = first, last
        else:
            raise ValueError(f"space is 'pixels', 'level' or 'um'; got {space!r}")
        if origin not in ("mosaic", "canvas"):
            raise ValueError(f"origin is 'mosaic' or 'canvas'; got {origin!r}")
        rect = Rect(_floor(row0), _floor(col0), _ceil(row1), _ceil(col1))
        if rect.empty:
            raise ValueError(
                f"a region begins before it ends, in both directions; got {roi!r} in {space}"
                + (", as ((x0, y0), (x1, y1))" if space == "um" else ", as (row0, col0, row1, col1)")
            )
        if origin == "canvas":
            corner = self.canvas_at(level if space == "level" else 0)
            rect = rect.shifted(corner.row0, corner.col0)
        return rect if space == "level" else rect_at_level(rect, level)

    def _around(self, first: Sequence[float], last: Sequence[float]) -> tuple[tuple[float, float], tuple[float, float]]:
        """The corners, in pixels of level 0, of what holds a rectangle of the stage, however the camera is turned."""
        if not (first[0] < last[0] and first[1] < last[1]):
            return (0, 0), (0, 0)
        points = [self.to_pixels(x_um, y_um) for x_um in (first[0], last[0]) for y_um in (first[1], last[1])]
        rows, cols = [row for row, _ in points], [col for _, col in points]
        return (min(rows), min(cols)), (max(rows), max(cols))


def plane_counts(start: Mapping[str, Any], planes: Iterable[Sequence[int]]) -> tuple[int, int, int]:
    """How many times, channels and slices there are: as `start` planned, and as seen."""
    planned = start.get("planes") or {}
    seen = list(planes)
    t, c, z = (max([int(planned.get(axis, 1)), *(one[n] + 1 for one in seen)]) for n, axis in enumerate("tcz"))
    return t, c, z


def affine_of(start: Mapping[str, Any]) -> Affine:
    """What carries (col, row) to micrometres, as `start` says it."""
    given = start.get("affine")
    if given is None:
        x_um, y_um = start.get("px_um") or (1.0, 1.0)
        return (float(x_um), 0.0), (0.0, float(y_um))
    (a, b), (c, d) = given
    return (float(a), float(b)), (float(c), float(d))


def _corners(roi: Any) -> tuple[Sequence[float], Sequence[float]]:
    values = np.asarray(roi, dtype=np.float64)
    if values.shape not in ((4,), (2, 2)) or not np.isfinite(values).all():
        raise ValueError(f"a region is two corners, four finite numbers in all; got {roi!r}")
    first, last = values.reshape(2, 2).tolist()
    return first, last


def _floor(value: float) -> int:
    nearest = round(value)
    return nearest if abs(value - nearest) < _ROUNDING_PX else math.floor(value)


def _ceil(value: float) -> int:
    nearest = round(value)
    return nearest if abs(value - nearest) < _ROUNDING_PX else math.ceil(value)
