"""Tiles of a source through the cache, by several threads at once, and arrays put together from them.

The threads only fetch and decode. What is written, is written by the thread that reads: an HDF5 file or a Zarr array
need not be safe between threads. Not more tiles are on their way than the threads can use, whatever is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..client import TileRef
from ..rects import rect_at_level
from .cache import TileCache
from .facts import Facts, Plane
from .source import Source, Tile


class Piece(NamedTuple):
    """Where a part of a tile belongs.

    Attributes
    ----------
    ref : TileRef
    number : int
        Of the plane, in the order in which planes were asked for.
    rows, cols : slice
        In what is read.
    inside : (slice, slice)
        In the tile.
    """

    ref: TileRef
    number: int
    rows: slice
    cols: slice
    inside: tuple[slice, slice]


def pieces(facts: Facts, level: int, planes: list[Plane], rows: range, cols: range) -> Iterator[Piece]:
    """The parts of tiles that hold these pixels, as far as anything is covered there.

    Parameters
    ----------
    facts : Facts
    level : int
    planes : list of (t, c, z)
    rows, cols : range
        Mosaic coordinates of the level; steps are positive.
    """
    for number, plane in enumerate(planes):
        box = facts.boxes.get(plane)
        if box is None:
            continue
        at_level = rect_at_level(box, level)
        down = list(_stretches(rows, at_level.row0, at_level.row1, facts.grid[0] >> level, facts.tile_shape[0]))
        right = list(_stretches(cols, at_level.col0, at_level.col1, facts.grid[1] >> level, facts.tile_shape[1]))
        for row, to_rows, from_rows in down:
            for col, to_cols, from_cols in right:
                yield Piece(TileRef(*plane, level, row, col), number, to_rows, to_cols, (from_rows, from_cols))


def _stretches(wanted: range, low: int, high: int, grid: int, size: int) -> Iterator[tuple[int, slice, slice]]:
    """Along one axis: a tile, which of the wanted pixels it holds, and where in it they lie."""
    first = max(0, -((wanted.start - low) // wanted.step))
    end = min(len(wanted), -((wanted.start - high) // wanted.step))
    while first < end:
        tile = (wanted[first] - grid) // size
        begins = grid + tile * size
        last = min(end, -((wanted.start - begins - size) // wanted.step))
        inside = slice(wanted[first] - begins, wanted[last - 1] - begins + 1, wanted.step)
        yield tile, slice(first, last), inside
        first = last


class Tiles:
    """Tiles of a source, those used last at hand.

    Parameters
    ----------
    source : Source
    cache : TileCache
    threads : int
        How many fetch at once; 1 fetches in the thread that reads.
    """

    def __init__(self, source: Source, cache: TileCache, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"at least one thread has to read; got {threads}")
        self.source = source
        self.cache = cache
        self.threads = threads
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def tile(self, ref: TileRef) -> Tile | None:
        """A tile; None if there is none."""
        known = self.cache.get(ref)
        if known is not None:
            return known[0]
        fetch = self.cache.begin(ref)
        found: tuple[Tile | None] | None = None
        try:
            found = (self.source.tile(ref),)
            return found[0]
        finally:
            self.cache.finish(fetch, found)

    def many(self, wanted: Iterator[Piece]) -> Generator[tuple[Piece, Tile | None], None, None]:
        """Tiles as they come, in any order; what is still on its way is let go of when the iterator is closed."""
        pool = self._threads()
        if pool is None:
            for piece in wanted:
                yield piece, self.tile(piece.ref)
            return
        waiting: dict[Future[Tile | None], Piece] = {}
        try:
            for piece in wanted:
                known = self.cache.get(piece.ref)
                if known is not None:
                    yield piece, known[0]
                    continue
                waiting[pool.submit(self.tile, piece.ref)] = piece
                if len(waiting) >= 2 * self.threads:
                    yield from _done(waiting)
            while waiting:
                yield from _done(waiting)
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the threads."""
        with self._lock:
            pool, self._pool, self._closed = self._pool, None, True
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def _threads(self) -> ThreadPoolExecutor | None:
        with self._lock:
            if self._closed:
                raise ValueError("this mosaic was closed; open it again")
            if self._pool is None and self.threads > 1:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="tilecast-mosaic")
            return self._pool


def _done(waiting: dict[Future[Tile | None], Piece]) -> Iterator[tuple[Piece, Tile | None]]:
    """Those that have come; waits for one. What one of them raises is raised here."""
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        piece = waiting.pop(future)
        yield piece, future.result()


Write = Callable[[int, slice, slice, NDArray[Any], "NDArray[np.bool_] | None"], None]
"""Takes the number of a plane, rows and columns of what is read, pixels, and which of these are covered (None: all)."""


def assemble(
    tiles: Tiles,
    wanted: list[Piece],
    write: Write,
    *,
    dtype: np.dtype[Any],
    stored: float,
    fill: float,
    blank: bool,
    advance: Callable[[], None],
) -> None:
    """Put tiles together.

    Parameters
    ----------
    tiles : Tiles
    wanted : list of Piece
    write : callable
        Puts a part where it belongs.
    dtype : dtype
        Of what is written.
    stored, fill : float
        What uncovered pixels are in the tiles, and what they are to be.
    blank : bool
        Whether parts of which nothing is covered are written too.
    advance : callable
        Called after each tile.
    """
    same = stored == fill or (stored != stored and fill != fill)
    nowhere = np.zeros((), np.bool_)
    coming = tiles.many(iter(wanted))
    try:
        for piece, tile in coming:
            if tile is None:
                if blank:
                    shape = (piece.rows.stop - piece.rows.start, piece.cols.stop - piece.cols.start)
                    write(
                        piece.number,
                        piece.rows,
                        piece.cols,
                        np.full(shape, fill, dtype),
                        np.broadcast_to(nowhere, shape),
                    )
            else:
                pixels = tile.pixels[piece.inside]
                mask = None if tile.coverage is None else tile.coverage[piece.inside]
                if mask is not None and not same:
                    pixels = np.where(mask, pixels.astype(dtype, copy=False), np.asarray(fill, dtype))
                write(piece.number, piece.rows, piece.cols, pixels, mask)
            advance()
    finally:
        coming.close()
