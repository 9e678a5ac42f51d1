"""All levels of an exported image, tile by tile, in memory that does not depend on how large it is.

Level 0 is cut out of the mosaic as asked; every further level is the mean of the covered pixels of each 2 × 2 of the
one below, as everywhere in tilecast, so it shows nothing from outside the image. The tree of tiles is walked depth
first: a tile is made as soon as its four children are, and no more than four tiles of each level are alive.

If the image begins at a multiple of 2^(levels − 1) pixels, its levels are the run's own, pixel for pixel: `snapped`.

>>> image = Levels(pixels, run, Rect(0, 0, 3000, 2000), 512)        # doctest: +SKIP
>>> for tile in image.walk(PlaneKey()): ...                         # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilecast.reading import PlaneKey, Rect, reduce_tiles
from tilecast_plugins.pixels import Mask, Pixels
from tilecast_plugins.run import Run


class LevelTile(NamedTuple):
    """A tile of an exported image.

    Attributes
    ----------
    level, row, col : int
        Counted from the upper left corner of the image.
    pixels : ndarray, shape (tile_size, tile_size)
        Uncovered pixels are 0, NaN in floats.
    coverage : ndarray of bool, same shape, or None
        None where every pixel is covered.
    """

    level: int
    row: int
    col: int
    pixels: NDArray[Any]
    coverage: Mask | None


class Levels:
    """An image and its levels.

    Parameters
    ----------
    pixels : Pixels
        Where the mosaic's pixels come from.
    run : Run
    rect : Rect
        The image, level-0 pixels.
    tile_size : int
        Edge of its tiles, pixels; a multiple of 16.
    shown : Rect, optional
        What of the mosaic it shows, where the image is larger than that; the rest of it is uncovered.
    """

    def __init__(self, pixels: Pixels, run: Run, rect: Rect, tile_size: int, shown: Rect | None = None) -> None:
        self._pixels = pixels
        self.run = run
        self.rect = rect
        self.shown = rect if shown is None else shown.intersect(rect)
        self.tile_size = tile_size
        self.n_levels = n_levels(rect, tile_size)

    def size(self, level: int) -> tuple[int, int]:
        """Rows and columns of a level; a pixel that lies only partly inside counts."""
        return -(-self.rect.height >> level), -(-self.rect.width >> level)

    def grid(self, level: int) -> tuple[int, int]:
        """Rows and columns of tiles of a level."""
        height, width = self.size(level)
        return -(-height // self.tile_size), -(-width // self.tile_size)

    @property
    def n_tiles(self) -> int:
        """Tiles of all levels of a plane."""
        return sum(math.prod(self.grid(level)) for level in range(self.n_levels))

    def base(self, plane: PlaneKey, row: int, col: int) -> LevelTile | None:
        """A tile of level 0; None if nothing of it is covered."""
        size = self.tile_size
        whole = self._reach(0, row, col)
        inside = whole.intersect(self.shown)
        if not self._is_covered(plane, inside):
            return None
        found = self._pixels.region(self.run, plane, 0, inside)
        if found.coverage is not None and not found.coverage.any():
            return None
        if inside == whole:
            return LevelTile(0, row, col, found.pixels, found.coverage)
        pixels = np.full((size, size), np.nan if self.run.dtype.kind == "f" else 0, self.run.dtype)
        coverage = np.zeros((size, size), np.bool_)
        part = np.s_[
            inside.row0 - whole.row0 : inside.row1 - whole.row0, inside.col0 - whole.col0 : inside.col1 - whole.col0
        ]
        pixels[part] = found.pixels
        coverage[part] = True if found.coverage is None else found.coverage
        return LevelTile(0, row, col, pixels, coverage)

    def walk(self, plane: PlaneKey) -> Iterator[LevelTile]:
        """All tiles of all levels that show anything, each after its children."""
        top = self.n_levels - 1
        rows, cols = self.grid(top)
        for row in range(rows):
            for col in range(cols):
                yield from self._below(plane, top, row, col)

    def _below(self, plane: PlaneKey, level: int, row: int, col: int) -> Generator[LevelTile, None, LevelTile | None]:
        if not self._is_covered(plane, self._reach(level, row, col).intersect(self.shown)):
            return None
        if level == 0:
            made = self.base(plane, row, col)
        else:
            children: list[LevelTile | None] = []
            for half in range(4):
                child = yield from self._below(plane, level - 1, 2 * row + half // 2, 2 * col + half % 2)
                children.append(child)
            if not any(children):
                return None
            pixels, coverage = reduce_tiles(
                [child and (child.pixels, child.coverage) for child in children], self.run.dtype, self.tile_size
            )
            made = LevelTile(level, row, col, pixels, coverage)
        if made is not None:
            yield made
        return made

    def _reach(self, level: int, row: int, col: int) -> Rect:
        """The pixels of level 0 under a tile."""
        edge = self.tile_size << level
        top, left = self.rect.row0 + row * edge, self.rect.col0 + col * edge
        return Rect(top, left, top + edge, left + edge)

    def _is_covered(self, plane: PlaneKey, rect: Rect) -> bool:
        """Whether a frame may cover something there."""
        box = self.run.bboxes.get(plane)
        return not rect.empty and box is not None and not box.intersect(rect).empty


def n_levels(rect: Rect, tile_size: int) -> int:
    """How many levels an image has: up to the first that is one tile."""
    return max(0, math.ceil(math.log2(max(rect.height, rect.width, 1) / tile_size))) + 1


def snapped(rect: Rect, tile_size: int) -> Rect:
    """`rect` with its upper left corner moved outwards, so that all levels are the run's own.

    It gets fewer than tile_size rows and columns more than it needs, since the top level is a tile or less.
    """
    levels = n_levels(rect, tile_size)
    while True:
        step = 1 << (levels - 1)
        moved = Rect(rect.row0 // step * step, rect.col0 // step * step, rect.row1, rect.col1)
        if n_levels(moved, tile_size) == levels:
            return moved
        levels += 1


def filled(pixels: NDArray[Any], coverage: Mask | None, fill: float | None) -> NDArray[Any]:
    """Pixels with `fill` where nothing is covered; as they are (0, NaN in floats) if that is None."""
    if fill is None or coverage is None:
        return pixels
    return np.where(coverage, pixels, pixels.dtype.type(fill))
