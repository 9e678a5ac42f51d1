"""From tiles to arrays: decoded tiles in a bounded cache, regions, values, profiles, histograms.

Pixels and coverage are exactly those of the store; nothing is interpolated or scaled. Levels above the store's top one
(DeepZoom goes down to one pixel) are reduced here as the daemon would reduce them. A decoded tile is kept under its
run, epoch and rev, so what is in the cache is never wrong, only unused.

It does not know how pixels are shown, or where tiles come from. All functions block and may be called by any thread.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tilecast.reading import PlaneKey, Rect, TileKey, rect_at_level, reduce_tiles
from tilecast_plugins.run import Blob, Run
from tilecast_protocol.mosaic.source import decoded

Mask = NDArray[np.bool_]


class TileSource(Protocol):
    """Where tiles come from."""

    def tile(self, run: Run, plane: PlaneKey, key: TileKey) -> Blob | None:
        """A tile as stored, or None if there is none."""

    def tile_rev(self, run: Run, plane: PlaneKey, key: TileKey) -> int | None:
        """The rev that last wrote a tile; None if there is none."""


class Tile(NamedTuple):
    """A decoded tile.

    Attributes
    ----------
    pixels : ndarray, shape (tile_size, tile_size)
        Read-only; uncovered pixels are 0, NaN in floats.
    coverage : ndarray of bool, same shape, or None
        None where every pixel is covered.
    rev : int
        The commit that last changed it.
    """

    pixels: NDArray[Any]
    coverage: Mask | None
    rev: int


class Region(NamedTuple):
    """Pixels of a rectangle of one level, which of them are covered (None: all), and the highest rev among them."""

    pixels: NDArray[Any]
    coverage: Mask | None
    rev: int


class Sample(NamedTuple):
    """A point of a profile: where, in level-0 pixel edges, and what; NaN where nothing is covered."""

    row: float
    col: float
    value: float


class Histogram(NamedTuple):
    """How often which values occur.

    Attributes
    ----------
    edges : ndarray, shape (n + 1,)
    counts : ndarray, shape (n,)
    low, high : float
        Least and greatest covered value; NaN for none.
    window : (float, float)
        Black and white point that show nearly all of it: its 0.1 and 99.9 percentiles.
    n : int
        Covered pixels.
    level : int
        On which level it was counted.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    low: float
    high: float
    window: tuple[float, float]
    n: int
    level: int


class Pixels:
    """Decoded tiles of a source.

    Parameters
    ----------
    source : TileSource
    cache_nbytes : int
        Bytes of decoded tiles to keep.
    """

    def __init__(self, source: TileSource, cache_nbytes: int) -> None:
        self._source = source
        self._cache: OrderedDict[tuple[Any, ...], Tile] = OrderedDict()
        self._cache_nbytes = cache_nbytes
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of tiles in the cache."""
        return self._nbytes

    def rev(self, run: Run, plane: PlaneKey, key: TileKey) -> int | None:
        """The rev of a tile of any level, also above the store's; None if there is none."""
        if key.level < run.levels:
            return self._source.tile_rev(run, plane, key)
        found = [rev for child in self._children(run, plane, key) if (rev := self.rev(run, plane, child)) is not None]
        return max(found, default=None)

    def tile(self, run: Run, plane: PlaneKey, key: TileKey) -> Tile | None:
        """A tile of any level, also above the store's; None if nothing of it is covered.

        Raises
        ------
        PZFError
            If its bytes are damaged.
        """
        name = (run.run, run.epoch, *plane, *key)
        with self._lock:
            kept = self._cache.get(name)
        if kept is not None:
            rev = self.rev(run, plane, key)
            if rev == kept.rev:
                with self._lock:
                    if name in self._cache:
                        self._cache.move_to_end(name)
                return kept
        made = self._make(run, plane, key)
        if made is not None:
            self._keep(name, made)
        return made

    def region(self, run: Run, plane: PlaneKey, level: int, bounds: Rect, fill: float | None = None) -> Region:
        """Pixels of a rectangle of a level, signed; what is not covered is `fill` (0, or NaN in floats)."""
        size = run.tile_size
        if fill is None:
            fill = math.nan if run.dtype.kind == "f" else 0
        pixels = np.full((bounds.height, bounds.width), fill, run.dtype)
        coverage = np.zeros(pixels.shape, np.bool_)
        rev = 0
        for row in range(bounds.row0 // size, -(-bounds.row1 // size)):
            for col in range(bounds.col0 // size, -(-bounds.col1 // size)):
                key = TileKey(level, row, col)
                tile = self.tile(run, plane, key)
                if tile is None:
                    continue
                rev = max(rev, tile.rev)
                whole = key.rect(size)
                part = whole.intersect(bounds)
                inside = _part(part, whole)
                target = _part(part, bounds)
                if tile.coverage is None:
                    pixels[target] = tile.pixels[inside]
                    coverage[target] = True
                else:
                    mask = tile.coverage[inside]
                    np.copyto(pixels[target], tile.pixels[inside], where=mask)
                    coverage[target] = mask
        return Region(pixels, None if bool(coverage.all()) else coverage, rev)

    def value(self, run: Run, plane: PlaneKey, row: int, col: int) -> float | None:
        """The value of a level-0 pixel; None where nothing is covered."""
        size = run.tile_size
        tile = self.tile(run, plane, TileKey(0, row // size, col // size))
        at = row % size, col % size
        if tile is None or (tile.coverage is not None and not tile.coverage[at]):
            return None
        value = float(tile.pixels[at])
        return value if math.isfinite(value) else None

    def profile(
        self, run: Run, plane: PlaneKey, start: tuple[float, float], end: tuple[float, float], n_samples: int
    ) -> list[Sample]:
        """The values of the pixels under equally spaced points of a line, ends included.

        Parameters
        ----------
        start, end : (row, col)
            Level-0 pixel coordinates; the centre of pixel (r, c) is (r + 0.5, c + 0.5).
        n_samples : int
            At least 1.
        """
        rows = np.linspace(start[0], end[0], n_samples)
        cols = np.linspace(start[1], end[1], n_samples)
        size = run.tile_size
        tile_rows, tile_cols = np.floor(rows).astype(np.int64), np.floor(cols).astype(np.int64)
        values = np.full(n_samples, np.nan)
        keys = np.stack([tile_rows // size, tile_cols // size], 1)
        for row, col in np.unique(keys, axis=0).tolist():
            tile = self.tile(run, plane, TileKey(0, row, col))
            if tile is None:
                continue
            here = np.flatnonzero((keys[:, 0] == row) & (keys[:, 1] == col))
            at = tile_rows[here] - row * size, tile_cols[here] - col * size
            found = tile.pixels[at].astype(np.float64)
            if tile.coverage is not None:
                found[~tile.coverage[at]] = np.nan
            values[here] = found
        return [Sample(*one) for one in zip(rows.tolist(), cols.tolist(), values.tolist(), strict=True)]

    def histogram(self, run: Run, plane: PlaneKey, level: int, bounds: Rect, n_bins: int = 256) -> Histogram:
        """Count the covered values in a rectangle of a level."""
        region = self.region(run, plane, level, bounds)
        values = region.pixels if region.coverage is None else region.pixels[region.coverage]
        return count(values[np.isfinite(values)] if run.dtype.kind == "f" else values, n_bins, level)

    def _make(self, run: Run, plane: PlaneKey, key: TileKey) -> Tile | None:
        if key.level < run.levels:
            blob = self._source.tile(run, plane, key)
            return None if blob is None else decode(run, blob)
        children = [self.tile(run, plane, child) for child in self._children(run, plane, key, all_four=True)]
        found = [child for child in children if child is not None]
        if not found:
            return None
        pixels, coverage = reduce_tiles(
            [child and (child.pixels, child.coverage) for child in children], run.dtype, run.tile_size
        )
        return _frozen(Tile(pixels, coverage, max(child.rev for child in found)))

    def _children(self, run: Run, plane: PlaneKey, key: TileKey, *, all_four: bool = False) -> list[TileKey]:
        """The children of a tile above the store's levels that may exist: only they are looked for."""
        box = run.bboxes.get(plane)
        if box is None or box.empty or run.levels == 0:
            return []
        if rect_at_level(box, key.level).intersect(key.rect(run.tile_size)).empty:
            return []
        children = list(key.children())
        if all_four:
            return children
        inside = rect_at_level(box, key.level - 1)
        return [child for child in children if not child.rect(run.tile_size).intersect(inside).empty]

    def _keep(self, name: tuple[Any, ...], tile: Tile) -> None:
        nbytes = _nbytes(tile)
        with self._lock:
            old = self._cache.pop(name, None)
            self._nbytes += nbytes - (0 if old is None else _nbytes(old))
            self._cache[name] = tile
            while self._nbytes > self._cache_nbytes and self._cache:
                self._nbytes -= _nbytes(self._cache.popitem(last=False)[1])


def decode(run: Run, blob: Blob, tile_size: int | None = None) -> Tile:
    """A stored tile as arrays, its edge the run's if not given; PZFError if its bytes are not a tile of this run."""
    size = tile_size or run.tile_size
    return Tile(*decoded(blob.pzf, blob.bits, (size, size), run.dtype.str), blob.rev)


def count(values: NDArray[Any], n_bins: int, level: int = 0) -> Histogram:
    """Count finite values into `n_bins` equal bins between the least and the greatest."""
    if values.size == 0:
        return Histogram(
            np.linspace(0.0, 1.0, n_bins + 1), np.zeros(n_bins, np.int64), math.nan, math.nan, (0.0, 1.0), 0, level
        )
    low, high = float(values.min()), float(values.max())
    window = percentile_window(values)
    counts, edges = np.histogram(values, n_bins, (low, high if high > low else low + 1.0))
    return Histogram(edges.astype(np.float64), counts.astype(np.int64), low, high, window, int(values.size), level)


def percentile_window(values: NDArray[Any], low: float = 0.1, high: float = 99.9) -> tuple[float, float]:
    """Black and white points between which nearly all finite values lie; (0, 1) for none; never equal."""
    if values.size == 0:
        return 0.0, 1.0
    black, white = (float(value) for value in np.percentile(values, (low, high)))
    return (black, white) if white > black else (black, black + 1.0)


def _part(part: Rect, whole: Rect) -> tuple[slice, slice]:
    """`part` as slices of an array that holds `whole`."""
    return (
        slice(part.row0 - whole.row0, part.row1 - whole.row0),
        slice(part.col0 - whole.col0, part.col1 - whole.col0),
    )


def _nbytes(tile: Tile) -> int:
    return tile.pixels.nbytes + (0 if tile.coverage is None else tile.coverage.nbytes)


def _frozen(tile: Tile) -> Tile:
    tile.pixels.flags.writeable = False
    if tile.coverage is not None:
        tile.coverage.flags.writeable = False
    return tile
