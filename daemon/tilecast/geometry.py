"""Where things lie: planes, tiles, rectangles, placements, levels and the canvas.

Everything here is exact arithmetic on whole pixels, except :func:`place_centre`, the one door through which a stage
position in micrometres becomes a pixel. Rows come before columns, rectangles are half-open, indices are signed, and
pixel (0, 0) of every plane is stage (0, 0), whatever arrives first; so no number in this module ever has to be
revised because a later frame lies further up or to the left.

It does not know pixel values, files, runs or time.

>>> row, col = place_centre((650.0, 325.0), ((0.65, 0.0), (0.0, 0.65)), (256, 512))
>>> row, col
(372, 744)
>>> frame = Rect(row, col, row + 256, col + 512)
>>> [(key.row, key.col) for key in tiles_in(frame, 0, 256)]
[(1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (2, 4)]
>>> level_count(frame, 256)
2
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tilecast_protocol.rects import Rect as Rect
from tilecast_protocol.rects import rect_at_level as rect_at_level

#: A pixel coordinate of a frame's corner lies within ±MAX_PIXEL (PROTOCOL, "Positions").
MAX_PIXEL = 2**30

Affine = Sequence[Sequence[float]]


class PlaneKey(NamedTuple):
    """One (t, c, z) of a run: a pyramid of its own."""

    t: int = 0
    c: int = 0
    z: int = 0


class TileKey(NamedTuple):
    """A tile of a plane; level 0 is full resolution, row and col are signed and fixed to stage (0, 0)."""

    level: int
    row: int
    col: int

    def parent(self) -> TileKey:
        """The tile of the next level that this one is reduced into."""
        return TileKey(self.level + 1, self.row >> 1, self.col >> 1)

    def children(self) -> tuple[TileKey, TileKey, TileKey, TileKey]:
        """The four tiles of the level below, in row-major order.

        Raises
        ------
        ValueError
            For a tile of level 0, which has none.
        """
        if self.level < 1:
            raise ValueError(f"a tile of level 0 has no children: {self}")
        level, row, col = self.level - 1, 2 * self.row, 2 * self.col
        return (
            TileKey(level, row, col),
            TileKey(level, row, col + 1),
            TileKey(level, row + 1, col),
            TileKey(level, row + 1, col + 1),
        )

    def rect(self, tile_size: int) -> Rect:
        """The pixels of its own level that it holds."""
        row, col = self.row * tile_size, self.col * tile_size
        return Rect(row, col, row + tile_size, col + tile_size)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one frame, or one view of a split frame, lies in its plane, and how that is known.

    Attributes
    ----------
    frame : int
        Number of the frame in its run.
    view : int
        0, or the number of the view where one camera frame holds several.
    plane : PlaneKey
        The (t, c, z) it belongs to.
    row, col : int
        Its upper left pixel, at full resolution.
    height, width : int
        Its size in pixels.
    source : str
        Where the position came from: ``stage``, ``joined`` or ``registered``.
    index : int
        Ordinal of the image among the images of the run's journal: the order in which frames were recorded.
    """

    frame: int
    view: int
    plane: PlaneKey
    row: int
    col: int
    height: int
    width: int
    source: str
    index: int

    @property
    def rect(self) -> Rect:
        """The pixels of level 0 that it covers."""
        return Rect(self.row, self.col, self.row + self.height, self.col + self.width)

    @property
    def id(self) -> tuple[int, int]:
        """(frame, view): what makes it one of its run."""
        return self.frame, self.view

    @property
    def order(self) -> tuple[int, int]:
        """(index, view): its place in the journal's order, in which float frames are summed."""
        return self.index, self.view


def place_centre(pos_um: Sequence[float], affine: Affine, shape: Sequence[int]) -> tuple[int, int]:
    """The upper left pixel of a frame whose centre lies at a stage position.

    (left, top) = floor(affine⁻¹ · pos_um − (w/2, h/2) + 0.5), after PROTOCOL, "Positions", in float64. An affine
    without off-diagonal terms is inverted by plain division, so that what a publisher computed as ``pixel * px_um``
    comes back to the same pixel; any other by Cramer's rule.

    Parameters
    ----------
    pos_um : (x, y) or (x, y, z), micrometres
        Stage position of the centre of the frame; z takes no part.
    affine : ((a, b), (c, d)), micrometres per pixel
        Carries (dx right, dy down) in pixels to stage micrometres.
    shape : (height, width), pixels
        Shape of the frame.

    Returns
    -------
    (row, col) : tuple of int

    Raises
    ------
    ValueError
        If a number is not finite, the affine cannot be inverted, or the place lies beyond ±2**30 pixels.
    """
    x_um, y_um = float(pos_um[0]), float(pos_um[1])
    (a, b), (c, d) = ((float(value) for value in row) for row in affine)
    if not all(math.isfinite(value) for value in (x_um, y_um, a, b, c, d)):
        raise ValueError(f"a position needs finite numbers; got {pos_um!r} with affine {affine!r}")
    if b == 0.0 and c == 0.0:
        invertible = a != 0.0 and d != 0.0
        x, y = (x_um / a, y_um / d) if invertible else (math.nan, math.nan)
    else:
        determinant = a * d - b * c
        invertible = determinant != 0.0
        x = (d * x_um - b * y_um) / determinant if invertible else math.nan
        y = (a * y_um - c * x_um) / determinant if invertible else math.nan
    if not invertible:
        raise ValueError(f"the affine {affine!r} cannot be inverted; its determinant must not be 0")
    height, width = shape
    left, top = x - width / 2 + 0.5, y - height / 2 + 0.5
    if not (abs(left) <= MAX_PIXEL and abs(top) <= MAX_PIXEL):
        raise ValueError(
            f"position {pos_um!r} µm lies at pixel (x {left:.6g}, y {top:.6g}), beyond ±2**30; "
            "check its unit and the affine"
        )
    return math.floor(top), math.floor(left)


def tile_span(rect: Rect, level: int, tile_size: int) -> Rect:
    """The half-open range of tile rows and columns of a level that a rectangle of level 0 meets."""
    if rect.empty:
        return Rect(0, 0, 0, 0)
    size = tile_size << level
    return Rect(rect.row0 // size, rect.col0 // size, -(-rect.row1 // size), -(-rect.col1 // size))


def tiles_in(rect: Rect, level: int, tile_size: int) -> Iterator[TileKey]:
    """The tiles of a level that a rectangle of level 0 meets, row by row."""
    span = tile_span(rect, level, tile_size)
    for row in range(span.row0, span.row1):
        for col in range(span.col0, span.col1):
            yield TileKey(level, row, col)


def union_of(rects: Iterable[Rect]) -> Rect:
    """The smallest rectangle that holds all; empty for none."""
    result = Rect(0, 0, 0, 0)
    for rect in rects:
        result = result.union(rect)
    return result


def level_count(bbox: Rect, tile_size: int) -> int:
    """How many levels a pyramid over `bbox` has: up to the first whose tiles span at most 2 × 2; 0 for an empty one."""
    if bbox.empty:
        return 0
    level = 0
    while True:
        span = tile_span(bbox, level, tile_size)
        if span.height <= 2 and span.width <= 2:
            return level + 1
        level += 1


def union_levels(bboxes: Iterable[Rect], tile_size: int) -> int:
    """How many levels all planes of a run have: those of the union of their bounding boxes."""
    return level_count(union_of(bboxes), tile_size)


@dataclass(frozen=True, slots=True)
class Canvas:
    """The rectangle that a viewer with non-negative indices is shown (SERVING).

    Attributes
    ----------
    rect : Rect
        Level-0 pixels; its edges are multiples of the top level's tiles, so the floor and the ceiling of every
        level's size agree.
    levels : int
        Number of levels it is served with; the tiles of level ``levels - 1`` are what it is snapped to.
    tile_size : int
        Edge of a tile, pixels.
    fixed : bool
        True where it was planned (`extent_um`, or the stage's travel): then it never moves.
    """

    rect: Rect
    levels: int
    tile_size: int
    fixed: bool

    def contains(self, rect: Rect) -> bool:
        """Whether a rectangle of level 0 lies wholly inside."""
        return self.rect.contains(rect)

    def at_level(self, level: int) -> Rect:
        """Its pixels of one level; exact, because it is snapped.

        Raises
        ------
        ValueError
            If it is not served with that level.
        """
        if not 0 <= level < self.levels:
            raise ValueError(f"the canvas has levels 0 to {self.levels - 1}; asked for {level}")
        return rect_at_level(self.rect, level)

    def grown(self, bbox: Rect) -> Canvas:
        """The canvas that serves `bbox`: this very object while it can, else a new one, and the epoch must rise.

        A fixed canvas never moves: what lies outside it is seen by signed queries only.
        """
        if self.fixed or self.contains(bbox):
            return self
        return canvas_for(bbox, level_count(bbox, self.tile_size), self.tile_size)


def canvas_for(bbox: Rect, levels: int, tile_size: int, extent: Rect | None = None) -> Canvas:
    """The canvas of a run, after SERVING.

    Parameters
    ----------
    bbox : Rect
        What is covered so far (all planes), level-0 pixels.
    levels : int
        Levels of the pyramid so far.
    tile_size : int
        Edge of a tile, pixels.
    extent : Rect, optional
        Where the scan is planned to go, level-0 pixels. Then the canvas is that, snapped outwards to whole tiles of
        its top level; else `bbox`, snapped outwards to whole tiles of one spare level above the top.

    Raises
    ------
    ValueError
        If neither rectangle holds a pixel.
    """
    if extent is not None and not extent.empty:
        planned = level_count(extent, tile_size)
        return Canvas(_snapped(extent, planned - 1, tile_size), planned, tile_size, fixed=True)
    if bbox.empty:
        raise ValueError("a canvas needs a covered or a planned rectangle; both are empty")
    return Canvas(_snapped(bbox, levels, tile_size), levels + 1, tile_size, fixed=False)


def extent_rect(extent_um: Sequence[Sequence[float]], affine: Affine) -> Rect:
    """The level-0 pixels inside the planned outer edges of a scan.

    Parameters
    ----------
    extent_um : ((x0, y0), (x1, y1)), micrometres
        Outer edges, as in the `start` message. With a rotated or flipped affine the rectangle that holds all four
        carried corners.
    affine : ((a, b), (c, d)), micrometres per pixel

    Raises
    ------
    ValueError
        As :func:`place_centre`.
    """
    (x0, y0), (x1, y1) = ((float(value) for value in corner[:2]) for corner in extent_um)
    corners = [place_centre(corner, affine, (0, 0)) for corner in ((x0, y0), (x0, y1), (x1, y0), (x1, y1))]
    rows, cols = [row for row, _ in corners], [col for _, col in corners]
    return Rect(min(rows), min(cols), max(rows), max(cols))


def _snapped(rect: Rect, level: int, tile_size: int) -> Rect:
    """`rect` grown outwards to whole tiles of a level."""
    span = tile_span(rect, level, tile_size)
    size = tile_size << level
    return Rect(span.row0 * size, span.col0 * size, span.row1 * size, span.col1 * size)
