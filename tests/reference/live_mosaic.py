"""A pyramid in a test: fed with frames, compared with the reference, crashed and starved at will."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference import mosaic_reference
from tilecast.geometry import Placement, PlaneKey, TileKey
from tilecast.pyramid import Batch, Pyramid, PyramidSettings
from tilecast.testing.memory_sources import MemorySources

#: Enough for every test's mosaic; TINY makes a pyramid forget all it can at every step.
AMPLE, TINY = 1 << 28, 1


class LiveMosaic:
    """A pyramid and what surrounds it; knows all its frames, so that it can be compared with the reference."""

    def __init__(
        self,
        dtype: str = "<u2",
        mode: str = "feather",
        tile_size: int = 16,
        *,
        budget_bytes: int = AMPLE,
        pyramid_class: type[Pyramid] = Pyramid,
    ) -> None:
        self.settings = PyramidSettings(dtype, mode, tile_size)
        self.budget_bytes = budget_bytes
        self.pyramid_class = pyramid_class
        self.sources = MemorySources()
        self.placements: dict[tuple[int, int], Placement] = {}
        self.in_flight: list[Batch] = []
        self.flushes = self.committed_flushes = 0
        self.history: list[tuple[int, Placement]] = []  # every place a frame has had, with the flush that told of it
        self.pyramid = self._fresh()

    def _fresh(self) -> Pyramid:
        return self.pyramid_class(
            self.settings,
            budget_bytes=self.budget_bytes,
            placements=self.sources,
            frames=self.sources,
            tiles=self.sources,
            levels=self.sources.levels,
            bboxes=self.sources.bboxes,
        )

    def add(self, placement: Placement, pixels: NDArray[Any], *, give: bool = True) -> bool:
        """Record a frame, as the journal would, and blend it."""
        self.sources.frames.setdefault(placement.id, pixels)
        self.placements.setdefault(placement.id, placement)
        return self._added(placement, pixels if give else None)

    def _added(self, placement: Placement, pixels: NDArray[Any] | None = None) -> bool:
        self.history.append((self.flushes + 1, placement))
        return self.pyramid.add(placement, pixels)

    def _moved(self, old: Placement, new: Placement) -> None:
        self.history.append((self.flushes + 1, new))
        self.pyramid.move(old, new)

    def move(self, frame: int, view: int, **where: Any) -> None:
        """Put a frame somewhere else."""
        old = self.placements[frame, view]
        new = replace(old, source="registered", **where)
        self.placements[new.id] = new
        self._moved(old, new)

    def flush(self, *, commit: bool = True) -> Batch | None:
        """Flush; commit it and all before it, or leave it on its way."""
        pending_nbytes = self.pyramid.pending_nbytes
        batch = self.pyramid.flush()
        if batch is not None:
            assert batch.nbytes <= pending_nbytes, "a batch holds more than was told"
            self.flushes += 1
            self.in_flight.append(batch)
        if commit:
            self.commit()
        return batch

    def commit(self) -> None:
        """Commit what is on its way."""
        for batch in self.in_flight:
            self.sources.commit(batch)
            self.pyramid.committed(batch.number)
        self.in_flight = []
        self.committed_flushes = self.flushes

    def crash(self) -> None:
        """Lose everything that is not committed, start anew from the sources, and take up what has no placement."""
        self.in_flight = []
        self.flushes = self.committed_flushes
        self.history = [(number, each) for number, each in self.history if number <= self.flushes]
        self.pyramid = self._fresh()
        lost = [each for each in self.placements.values() if self.sources.placements.get(each.id) != each]
        for placement in sorted(lost, key=lambda each: each.order):
            committed = self.sources.placements.get(placement.id)
            if committed is None:
                self._added(placement)
            else:
                self._moved(committed, placement)

    def tiles(self) -> mosaic_reference.Mosaic:
        """The mosaic as a viewer would get it: what is committed, and over it what is on its way."""
        tiles = dict(self.sources.tiles)
        for batch in self.in_flight:
            for address in batch.gone:
                del tiles[address]
            tiles.update(batch.tiles)
        found: mosaic_reference.Mosaic = {}
        for (plane, key), tile in tiles.items():
            covered = np.ones(tile.pixels.shape, bool) if tile.coverage is None else tile.coverage
            found[tuple(plane), tuple(key)] = tile.pixels, covered
        return found

    def expected(self) -> mosaic_reference.Mosaic:
        """The mosaic from scratch."""
        frames = [self._as_reference(each) for each in self.placements.values()]
        left = [mosaic_reference.box_of(self._as_reference(each)) for _, each in self.history]
        settings = self.settings
        return mosaic_reference.mosaic(frames, settings.mode, settings.dtype, settings.tile_size, left=left)

    def _as_reference(self, placement: Placement) -> mosaic_reference.Frame:
        return mosaic_reference.Frame(
            number=placement.frame,
            view=placement.view,
            index=placement.index,
            plane=tuple(placement.plane),
            row=placement.row,
            col=placement.col,
            pixels=self.sources.frames[placement.id],
        )

    def problems(self) -> list[str]:
        """How the mosaic differs from the reference."""
        return mosaic_reference.differences(self.tiles(), self.expected())

    def check(self) -> None:
        """Fail if it differs at all."""
        problems = self.problems()
        assert not problems, f"{len(problems)} differences:\n" + "\n".join(problems[:10])


def placed(number: int, row: int, col: int, shape: tuple[int, int], **more: Any) -> Placement:
    """A placement with the usual rest: view 0, plane (0, 0, 0), journal index = frame number."""
    values: dict[str, Any] = {"view": 0, "plane": PlaneKey(), "source": "stage", "index": number} | more
    return Placement(frame=number, row=row, col=col, height=shape[0], width=shape[1], **values)


def noise(seed: int, shape: tuple[int, int], dtype: str = "<u2") -> NDArray[Any]:
    """Pixels of every value; among those of a float frame are NaN, infinities, both zeros and denormals.

    Every other float is large and of either sign, so that a sum taken in another order comes out differently.
    """
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind != "f":
        return rng.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)
    pixels = np.where(rng.random(shape) < 0.5, rng.normal(0, 1000, shape), rng.choice([-1e20, 1e20], shape)).astype(
        kind
    )
    strange = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3.4e38, -3.4e38], kind)
    spots = rng.random(shape) < 0.2
    pixels[spots] = rng.choice(strange, int(spots.sum()))
    return pixels


def parents_of(tiles: mosaic_reference.Mosaic) -> mosaic_reference.Mosaic:
    """Every upper tile as the reduction of its four children, by the reference's own rule."""
    made: mosaic_reference.Mosaic = {}
    for plane, (level, row, col) in list(tiles):
        if level == 0:
            continue
        size = len(tiles[plane, (level, row, col)][0])
        dtype = tiles[plane, (level, row, col)][0].dtype
        values = np.full((2 * size, 2 * size), np.nan if dtype.kind == "f" else 0, dtype)
        covered = np.zeros(values.shape, bool)
        for child in TileKey(level, row, col).children():
            if (plane, tuple(child)) in tiles:
                i, j = (child.row & 1) * size, (child.col & 1) * size
                pixels, mask = tiles[plane, tuple(child)]
                values[i : i + size, j : j + size] = pixels
                covered[i : i + size, j : j + size] = mask
        made[plane, (level, row, col)] = mosaic_reference.reduce(values, covered)
    return made
