"""Which tiles will probably not be touched again, told by what lies around them.

A scan lays frame beside frame, each over the edges of those before. So the next frame touches tiles near the edge of
what is covered so far, and hardly ever those with frames all around them. Whoever has to choose what to keep in memory
wants to know; a wrong answer costs time and nothing else.

It does not know pixels, memory or the order of frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tilecast.geometry import Rect, TileKey, tile_span

#: Edges of a tile are cut into so many cells; what one frame does not cover of a cell counts as uncovered.
_CELLS = 16


def block(frame: Rect, tile_size: int) -> Rect:
    """The pixels of all tiles that a frame touches."""
    span = tile_span(frame, 0, tile_size)
    return Rect(span.row0 * tile_size, span.col0 * tile_size, span.row1 * tile_size, span.col1 * tile_size)


def reach(frame: Rect, tile_size: int) -> Rect:
    """The rectangle of which `enclosed` wants to know all frames: half a frame around it, and its tiles."""
    margin = min(frame.height, frame.width) // 2
    wide = Rect(frame.row0 - margin, frame.col0 - margin, frame.row1 + margin, frame.col1 + margin)
    return wide.union(block(frame, tile_size))


def enclosed(frame: Rect, others: Iterable[Rect], keys: Sequence[TileKey], tile_size: int) -> NDArray[np.bool_]:
    """Which tiles under a frame lie deeper inside the covered area than neighbouring frames overlap.

    Parameters
    ----------
    frame : Rect
        The frame at hand, level-0 pixels.
    others : iterable of Rect
        The frames that share a pixel with ``reach(frame, tile_size)``.
    keys : sequence of TileKey
        Tiles of level 0 under the frame.
    tile_size : int
        Pixels; a multiple of 8.

    Returns
    -------
    (len(keys),) bool array
        True where everything around the tile, as far as the widest overlap of the frame with another, is covered.
    """
    rects = list(others)
    cell = max(1, tile_size // _CELLS)
    widest = max((_width(frame.intersect(other)) for other in rects), default=0)
    margin = min(-(-widest // cell) + 1, min(frame.height, frame.width) // 2 // cell)
    span = tile_span(frame, 0, tile_size)
    per_tile = tile_size // cell
    row0, col0 = span.row0 * per_tile - margin, span.col0 * per_tile - margin
    n_rows, n_cols = span.height * per_tile + 2 * margin, span.width * per_tile + 2 * margin
    covered = np.zeros((n_rows + 1, n_cols + 1), np.int32)
    for rect in (frame, *rects):
        rows = slice(max(0, -(-rect.row0 // cell) - row0) + 1, max(0, rect.row1 // cell - row0) + 1)
        cols = slice(max(0, -(-rect.col0 // cell) - col0) + 1, max(0, rect.col1 // cell - col0) + 1)
        covered[rows, cols] = 1
    sums = covered.cumsum(0).cumsum(1)  # of all cells above and to the left
    at = np.array([(key.row, key.col) for key in keys], np.intp).reshape(-1, 2)
    top, left = at[:, 0] * per_tile - margin - row0, at[:, 1] * per_tile - margin - col0
    edge = per_tile + 2 * margin
    around = sums[top + edge, left + edge] - sums[top, left + edge] - sums[top + edge, left] + sums[top, left]
    full: NDArray[np.bool_] = around == edge * edge
    return full


def _width(overlap: Rect) -> int:
    """How far two frames reach into each other: the shorter side of what they share."""
    return min(overlap.height, overlap.width)
