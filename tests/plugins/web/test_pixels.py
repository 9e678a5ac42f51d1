"""Tiles to arrays: the cache is never wrong and never too large; what is derived equals what is counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from plugins.web.conftest import WebStation
from tilecast.geometry import PlaneKey, Rect, TileKey
from tilecast_plugins.pixels import Pixels, count, decode, percentile_window
from tilecast_plugins.run import Blob, Run
from tilecast_plugins.web.sources import LocalSource
from tilecast_protocol import pzf
from tilecast_protocol.errors import PZFError
from web_views import made_run

P0 = PlaneKey()
SIZE = 8


class Growing(LocalSource):
    """A run of one level whose tiles are numbered by their rev; a fault that a real store cannot be made to have."""

    def __init__(self) -> None:
        self.revs: dict[TileKey, int] = {}
        self.n_read = 0

    def tile(self, run: Run, plane: PlaneKey, key: TileKey) -> Blob | None:  # noqa: ARG002
        self.n_read += 1
        if key not in self.revs:
            return None
        return Blob(pzf.encode_image(np.full((SIZE, SIZE), self.revs[key], np.uint16)), self.revs[key], None)

    def tile_rev(self, run: Run, plane: PlaneKey, key: TileKey) -> int | None:  # noqa: ARG002
        return self.revs.get(key)


def growing_run() -> Run:
    return made_run(Rect(0, 0, 2 * SIZE, 2 * SIZE), tile_size=SIZE)


def test_a_kept_tile_is_read_again_when_it_has_changed() -> None:
    source, run, key = Growing(), growing_run(), TileKey(0, 0, 0)
    pixels = Pixels(source, 1 << 20)
    source.revs[key] = 3
    first = pixels.tile(run, P0, key)
    assert first is not None
    assert pixels.tile(run, P0, key) is first
    assert source.n_read == 1
    source.revs[key] = 4
    changed = pixels.tile(run, P0, key)
    assert changed is not None
    assert (changed.rev, changed.pixels[0, 0]) == (4, 4)
    del source.revs[key]
    assert pixels.tile(run, P0, key) is None


def test_the_cache_has_a_budget_in_bytes() -> None:
    source, run = Growing(), growing_run()
    source.revs = {TileKey(0, row, col): 1 for row in range(10) for col in range(10)}
    tile_nbytes = SIZE * SIZE * 2
    pixels = Pixels(source, 7 * tile_nbytes)
    for key in source.revs:
        pixels.tile(run, P0, key)
        assert pixels.nbytes <= 7 * tile_nbytes
    assert pixels.nbytes == 7 * tile_nbytes
    n_read = source.n_read
    pixels.tile(run, P0, TileKey(0, 9, 9))
    assert source.n_read == n_read  # the last ones are still there
    pixels.tile(run, P0, TileKey(0, 0, 0))
    assert source.n_read == n_read + 1
    none = Pixels(source, 0)
    assert none.tile(run, P0, TileKey(0, 1, 1)) is not None
    assert none.nbytes == 0


def test_a_level_above_changes_with_its_children() -> None:
    source, run = Growing(), growing_run()
    pixels = Pixels(source, 1 << 20)
    above = TileKey(run.levels, 0, 0)
    assert pixels.tile(run, P0, above) is None
    source.revs[TileKey(run.levels - 1, 0, 0)] = 5
    first = pixels.tile(run, P0, above)
    assert first is not None
    assert (first.rev, int(first.pixels[0, 0])) == (5, 5)
    assert first.coverage is not None
    assert first.coverage.sum() == SIZE * SIZE // 4
    source.revs[TileKey(run.levels - 1, 0, 1)] = 9
    second = pixels.tile(run, P0, above)
    assert second is not None
    assert (second.rev, second.coverage is not None and int(second.coverage.sum())) == (9, SIZE * SIZE // 2)


def test_levels_far_above_are_as_quick_as_the_first(web_station: WebStation) -> None:
    source = LocalSource(web_station.root)
    try:
        run = source.info(web_station.scan)
        pixels = Pixels(source, 1 << 20)
        top = pixels.tile(run, P0, TileKey(30, -1, -1))
        assert top is not None
        assert pixels.tile(run, P0, TileKey(30, 5, 5)) is None
    finally:
        source.close()


def test_damaged_bytes_are_named() -> None:
    run = growing_run()
    good = pzf.encode_image(np.zeros((SIZE, SIZE), np.uint16))
    with pytest.raises(PZFError):
        decode(run, Blob(good[:-3], 1, None))
    with pytest.raises(PZFError):
        decode(run, Blob(pzf.encode_image(np.zeros((SIZE, SIZE + 1), np.uint16)), 1, None))


def test_counting() -> None:
    found = count(np.array([1, 1, 2, 5], np.uint16), 4)
    assert found.counts.tolist() == [2, 1, 0, 1]
    assert (found.low, found.high, found.n) == (1, 5, 4)
    assert count(np.array([7, 7]), 3).counts.sum() == 2
    empty = count(np.zeros(0), 3)
    assert (empty.n, empty.counts.tolist()) == (0, [0, 0, 0])
    assert percentile_window(np.array([4.0, 4.0])) == (4.0, 5.0)
