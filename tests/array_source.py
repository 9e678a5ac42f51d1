"""A mosaic whose tiles are cut from arrays that a test made: a source in memory, for what all sources share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tilecast_protocol.client import Resync, TileRef, TileUpdate
from tilecast_protocol.mosaic.facts import Facts, Plane
from tilecast_protocol.mosaic.source import Changed, News, Source, State, Tile, frozen
from tilecast_protocol.rects import Rect

IDENTITY = ((1.0, 0.0), (0.0, 1.0))


class ArraySource(Source):
    """A single level, or several that have nothing to do with each other.

    Parameters
    ----------
    planes : dict of (t, c, z) to ndarray
        Values of level 0; level k shows every 2^k-th of them.
    covered : ndarray of bool, optional
        Which of them are; all, if it is left out.
    corner : (row, col)
        Of the canvas, in mosaic coordinates; a multiple of 2^(levels − 1).
    grid : (row, col)
        Of tile (0, 0); likewise.
    """

    threads: ClassVar[int] = 1

    def __init__(
        self,
        planes: dict[Plane, NDArray[Any]],
        *,
        covered: NDArray[np.bool_] | None = None,
        corner: tuple[int, int] = (0, 0),
        grid: tuple[int, int] = (0, 0),
        tile_shape: tuple[int, int] = (8, 8),
        levels: int = 1,
        **facts: Any,
    ) -> None:
        self.planes = planes
        self.covered = covered
        self.fetched: list[TileRef] = []
        self.before_tile: Callable[[TileRef], None] = lambda _: None
        first = next(iter(planes.values()))
        canvas = Rect(*corner, corner[0] + first.shape[0], corner[1] + first.shape[1])
        counts = tuple(max(plane[axis] for plane in planes) + 1 for axis in range(3))
        told: dict[str, Any] = {
            "run": "run",
            "name": "made",
            "state": "open",
            "epoch": 1,
            "rev": 1,
            "levels": levels,
            "tile_shape": tile_shape,
            "dtype": first.dtype,
            "counts": counts,
            "boxes": dict.fromkeys(planes, canvas),
            "canvas": canvas,
            "affine": IDENTITY,
            "grid": grid,
        }
        self.now = Facts(**(told | facts))
        self.news: list[News] = []
        self.changed = threading.Condition()

    def facts(self) -> Facts:
        return self.now

    def tile(self, ref: TileRef) -> Tile | None:
        self.fetched.append(ref)
        self.before_tile(ref)
        height, width = self.now.tile_shape
        assert self.now.canvas is not None
        step = 1 << ref.level
        row0 = ref.row * height + ((self.now.grid[0] - self.now.canvas.row0) >> ref.level)
        col0 = ref.col * width + ((self.now.grid[1] - self.now.canvas.col0) >> ref.level)
        values = self.planes[ref.tcz][::step, ::step]
        covered = np.ones(values.shape, np.bool_) if self.covered is None else self.covered[::step, ::step]
        pixels = np.full((height, width), self.now.fill, values.dtype)
        mask = np.zeros((height, width), np.bool_)
        rows = slice(max(0, row0), min(values.shape[0], row0 + height))
        cols = slice(max(0, col0), min(values.shape[1], col0 + width))
        if rows.start < rows.stop and cols.start < cols.stop:
            there = (
                slice(rows.start - row0, rows.stop - row0),
                slice(cols.start - col0, cols.stop - col0),
            )
            mask[there] = covered[rows, cols]
            pixels[there] = np.where(mask[there], values[rows, cols], pixels[there])
        return frozen(pixels, mask) if mask.any() else None

    def tell(self, *news: News, **facts: Any) -> None:
        """Have something happen."""
        with self.changed:
            self.now = replace(self.now, **facts)
            self.news += news
            self.changed.notify_all()

    def changes(self, epoch: int, since: int) -> Changed:
        if epoch != self.now.epoch:
            return Changed(self.now.epoch, self.now.rev, True)
        newer = [one for one in self.news if isinstance(one, TileUpdate) and one.rev > since]
        tiles = tuple(ref for one in newer for ref in one.tiles)
        return Changed(epoch, max([since, *(one.rev for one in newer)]), False, tiles)

    def updates(self, epoch: int, rev: int, stop: threading.Event) -> Generator[News, None, None]:
        n_told = [0]
        while not stop.is_set():
            with self.changed:
                self.changed.wait_for(lambda: n_told[0] < len(self.news) or stop.is_set(), 0.05)
                news, n_told[0] = self.news[n_told[0] :], len(self.news)
            for one in news:
                if isinstance(one, State) or (one.epoch, one.rev) > (epoch, rev):
                    yield one

    def close(self) -> None:
        pass


def update(rev: int, *places: tuple[int, int], plane: Plane = (0, 0, 0), epoch: int = 1) -> TileUpdate:
    """The commit of tiles of level 0."""
    return TileUpdate("run", epoch, rev, tuple(TileRef(*plane, 0, row, col) for row, col in places))


def rebuilt(rev: int, epoch: int) -> Resync:
    """Another history."""
    return Resync("run", epoch, rev, "epoch")
