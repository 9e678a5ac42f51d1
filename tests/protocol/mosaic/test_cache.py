"""The cache: bounded in items and bytes, and never holding what was out of date when it came."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from array_source import ArraySource, update
from tilecast_protocol.client import TileRef
from tilecast_protocol.mosaic import Mosaic
from tilecast_protocol.mosaic.cache import TileCache
from tilecast_protocol.mosaic.source import frozen

PATIENCE_S = 30.0
PLANE = np.arange(1, 601, dtype="<u2").reshape(20, 30)


def keep(cache: TileCache, col: int, side: int | None) -> None:
    tile = None if side is None else frozen(np.zeros((side, side), np.uint8), None)
    cache.finish(cache.begin(TileRef(0, 0, 0, 0, 0, col)), (tile,))


@given(
    st.integers(0, 5),
    st.integers(0, 300),
    st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(1, 15)), max_size=40),
)
def test_it_never_holds_more_than_it_may(items: int, nbytes: int, kept: list[tuple[int, int | None]]) -> None:
    cache = TileCache(items, nbytes)
    held: dict[int, int] = {}
    for col, side in kept:
        keep(cache, col, side)
        held.pop(col, None)
        held[col] = 0 if side is None else side * side
        while len(held) > items or sum(held.values()) > nbytes:
            held.pop(next(iter(held)))
        assert len(cache) == len(held)
        assert cache.nbytes == sum(held.values())
        for number in range(10):
            assert (cache.get(TileRef(0, 0, 0, 0, 0, number)) is not None) == (number in held)
            if number in held:
                held[number] = held.pop(number)  # used last


def test_what_is_used_stays_longest() -> None:
    cache = TileCache(2, 10**6)
    keep(cache, 0, 1)
    keep(cache, 1, 1)
    assert cache.get(TileRef(0, 0, 0, 0, 0, 0)) is not None
    keep(cache, 2, 1)
    assert [cache.get(TileRef(0, 0, 0, 0, 0, col)) is not None for col in range(3)] == [True, False, True]


@pytest.mark.parametrize("whole", [False, True])
def test_a_tile_that_changes_while_it_is_fetched_is_not_kept(whole: bool) -> None:
    cache = TileCache(9, 10**6)
    ref = TileRef(0, 0, 0, 0, 0, 0)
    before, other = cache.begin(ref), cache.begin(TileRef(0, 0, 0, 0, 0, 1))
    if whole:
        cache.clear()
    else:
        cache.drop([ref])
    after = cache.begin(ref)
    cache.finish(before, (None,))
    cache.finish(other, (None,))
    assert cache.get(ref) is None
    assert (cache.get(other.ref) is None) == whole
    cache.finish(after, (None,))
    assert cache.get(ref) == (None,)


def test_a_fetch_that_fails_leaves_what_was_there() -> None:
    cache = TileCache(9, 10**6)
    keep(cache, 0, 3)
    cache.finish(cache.begin(TileRef(0, 0, 0, 0, 0, 0)), None)
    assert cache.get(TileRef(0, 0, 0, 0, 0, 0)) is not None


def test_tiles_are_fetched_once_and_anew_when_they_changed() -> None:
    source = ArraySource({(0, 0, 0): PLANE})
    with Mosaic(source) as mosaic:
        mosaic.read()
        mosaic.read()
        assert len(source.fetched) == len(set(source.fetched)) == 12
        source.planes[0, 0, 0] = PLANE + 7
        source.tell(update(2, (0, 0), (1, 2)), rev=2)
        np.testing.assert_array_equal(mosaic.read(), PLANE)
        mosaic.refresh()
        expected = PLANE.copy()
        for row, col in ((0, 0), (1, 2)):
            expected[8 * row : 8 * row + 8, 8 * col : 8 * col + 8] += 7
        np.testing.assert_array_equal(mosaic.read(), expected)
        assert len(source.fetched) == 14
    with Mosaic(source, cache_items=0) as mosaic:
        source.fetched.clear()
        mosaic.read()
        mosaic.read()
        assert len(source.fetched) == 24


def test_a_commit_in_the_middle_of_a_fetch() -> None:
    """A reader is given what it fetched; who reads after the news gets what is there now."""
    source = ArraySource({(0, 0, 0): PLANE})
    fetching, told = threading.Event(), threading.Event()

    def wait(_: TileRef) -> None:
        fetching.set()
        assert told.wait(PATIENCE_S)

    with Mosaic(source) as mosaic, mosaic.follow(existing=False) as following:
        source.before_tile = wait
        reader = threading.Thread(target=lambda: mosaic.read((0, 0, 8, 8)))
        reader.start()
        assert fetching.wait(PATIENCE_S)
        changes = following.changes(PATIENCE_S)
        source.tell(update(2, (0, 0)), rev=2)
        assert next(changes).rev == 2
        source.before_tile = lambda _: None
        told.set()
        reader.join()
        source.fetched.clear()
        mosaic.read((0, 0, 8, 8))
        assert source.fetched == [TileRef(0, 0, 0, 0, 0, 0)]
