"""The pyramid's outside world in memory: committed placements, tiles, and the frames themselves.

What a store and a journal are to the daemon, :class:`MemorySources` is to a test or a notebook: it answers the three
questions that a `Pyramid` asks, and :meth:`MemorySources.commit` takes its batches. Nothing is encoded or copied to
disk, so a mosaic can be built from a list of frames and looked at. It holds everything it is given, for ever.

>>> import numpy as np
>>> sources = MemorySources()
>>> placement = Placement(0, 0, PlaneKey(), 0, 0, 2, 2, "stage", 0)
>>> sources.frames[placement.id] = np.ones((2, 2), np.uint16)
>>> sources.load(placement).sum()
np.uint64(4)
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from tilecast.geometry import Placement, PlaneKey, Rect, TileKey, tiles_in
from tilecast.pyramid import Address, Batch, RenderedTile

#: Edge of the squares by which placements are found, pixels.
_CELL = 1024


class MemorySources:
    """A `PlacementIndex`, `FrameSource` and `TileSource` in one.

    Attributes
    ----------
    frames : dict
        (frame, view) → pixels; the caller fills it.
    placements : dict
        (frame, view) → Placement, as committed.
    tiles : dict
        (plane, key) → RenderedTile, as committed.
    levels : int
    bboxes : dict
        As committed.
    queries, loads, reads : int
        How often `covering`, `load` and `read` have been asked.
    """

    def __init__(self) -> None:
        self.frames: dict[tuple[int, int], NDArray[Any]] = {}
        self.placements: dict[tuple[int, int], Placement] = {}
        self.tiles: dict[Address, RenderedTile] = {}
        self.levels = 0
        self.bboxes: dict[PlaneKey, Rect] = {}
        self.queries = self.loads = self.reads = 0
        self._cells: dict[Address, set[tuple[int, int]]] = {}

    def commit(self, batch: Batch) -> None:
        """Apply a batch as a store would: all of it, replacing what was there."""
        for placement in batch.placements:
            before = self.placements.get(placement.id)
            if before is not None:
                for cell in tiles_in(before.rect, 0, _CELL):
                    self._cells[before.plane, cell].discard(before.id)
            self.placements[placement.id] = placement
            for cell in tiles_in(placement.rect, 0, _CELL):
                self._cells.setdefault((placement.plane, cell), set()).add(placement.id)
        for address in batch.gone:
            del self.tiles[address]
        self.tiles.update(batch.tiles)
        self.levels = batch.levels
        self.bboxes.update(batch.bboxes)

    def covering(self, plane: PlaneKey, rect: Rect) -> list[Placement]:
        """See `PlacementIndex`."""
        self.queries += 1
        ids: set[tuple[int, int]] = set()
        for cell in tiles_in(rect, 0, _CELL):
            ids |= self._cells.get((plane, cell), set())
        found = [self.placements[each] for each in ids]
        return [placement for placement in found if not placement.rect.intersect(rect).empty]

    def has_placement(self, frame: int, view: int) -> bool:
        """See `PlacementIndex`."""
        return (frame, view) in self.placements

    def load(self, placement: Placement) -> NDArray[Any]:
        """See `FrameSource`."""
        self.loads += 1
        return self.frames[placement.id]

    def read(self, plane: PlaneKey, key: TileKey) -> RenderedTile | None:
        """See `TileSource`."""
        self.reads += 1
        return self.tiles.get((plane, key))
