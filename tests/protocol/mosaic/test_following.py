"""Following: every region that changed is handed on, once or as part of a larger one, and an end is an end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from array_source import ArraySource, rebuilt, update
from tilecast_protocol.errors import DisconnectedError
from tilecast_protocol.mosaic import Change, Mosaic
from tilecast_protocol.mosaic.following import regions
from tilecast_protocol.mosaic.source import State
from tilecast_protocol.rects import Rect

PATIENCE_S = 30.0
PLANE = np.arange(1, 601, dtype="<u2").reshape(20, 30)
ALL = Rect(0, 0, 20, 30)


@pytest.fixture
def source() -> ArraySource:
    return ArraySource({(0, 0, 0): PLANE, (0, 1, 0): PLANE})


@pytest.fixture
def mosaic(source: ArraySource) -> Iterator[Mosaic]:
    with Mosaic(source) as made:
        yield made


@given(st.sets(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), max_size=30))
def test_regions_hold_all_tiles_and_groups_stay_apart(tiles: set[tuple[int, int]]) -> None:
    found = regions(tiles)
    for row, col in tiles:
        assert any(one.row0 <= row < one.row1 and one.col0 <= col < one.col1 for one in found)
    edges = {edge for one in found for edge in ((one.row0, "r"), (one.col0, "c"))}
    assert edges <= {edge for row, col in tiles for edge in ((row, "r"), (col, "c"))}
    assert len(found) <= len(tiles)


def test_frames_far_apart_are_regions_apart() -> None:
    assert regions([(0, 0), (0, 1), (1, 1), (9, 9), (9, 8)]) == [Rect(0, 0, 2, 2), Rect(9, 8, 10, 10)]
    assert regions([]) == []


def test_what_is_there_comes_first_and_then_what_changes(source: ArraySource, mosaic: Mosaic) -> None:
    with mosaic.follow() as following:
        changes = following.changes(PATIENCE_S)
        assert [next(changes), next(changes)] == [
            Change(0, 0, 0, ALL, 1, 1, whole=True),
            Change(0, 1, 0, ALL, 1, 1, whole=True),
        ]
        source.tell(update(2, (0, 0), (2, 3), plane=(0, 1, 0)), rev=2)
        assert [next(changes), next(changes)] == [
            Change(0, 1, 0, Rect(0, 0, 8, 8), 1, 2),
            Change(0, 1, 0, Rect(16, 24, 20, 30), 1, 2),
        ]
        source.tell(State("ended"), state="ended")
        assert list(changes) == []
        assert following.is_over
    with mosaic.follow(existing=False) as following:
        assert list(following) == []
    with mosaic.follow() as following:
        assert [change.whole for change in following] == [True, True]


def test_whoever_is_slow_gets_fewer_and_larger_regions(source: ArraySource, mosaic: Mosaic) -> None:
    with mosaic.follow(existing=False) as following:
        changes = following.changes(PATIENCE_S)
        source.tell(update(2, (0, 0)), rev=2)
        assert next(changes).bounds == Rect(0, 0, 8, 8)
        for rev in range(3, 300):
            source.tell(update(rev, (0, rev % 3)), rev=rev)
        source.tell(State("ended"), state="ended")
        following.wait(PATIENCE_S)
        assert [(one.bounds, one.rev) for one in changes] == [(Rect(0, 0, 8, 24), 299)]


def test_a_rebuild_is_a_change_of_everything(source: ArraySource, mosaic: Mosaic) -> None:
    mosaic.read()
    with mosaic.follow(existing=False) as following:
        changes = following.changes(PATIENCE_S)
        source.planes = {(0, 0, 0): PLANE + 1, (0, 1, 0): PLANE}
        source.tell(rebuilt(5, 2), epoch=2, rev=5)
        assert [next(changes), next(changes)] == [
            Change(0, 0, 0, ALL, 2, 5, whole=True),
            Change(0, 1, 0, ALL, 2, 5, whole=True),
        ]
        np.testing.assert_array_equal(mosaic.read(), PLANE + 1)


def test_what_came_between_looking_and_following_is_not_missed(source: ArraySource, mosaic: Mosaic) -> None:
    mosaic.read()
    source.planes[0, 0, 0] = PLANE + 1
    source.tell(update(2, (0, 0)), rev=2)
    with mosaic.follow(existing=False):
        assert mosaic.read((0, 0, 1, 1)) == PLANE[0, 0] + 1


def test_the_last_commit_may_be_heard_after_the_end(source: ArraySource, mosaic: Mosaic) -> None:
    with mosaic.follow(existing=False) as following:
        source.tell(State("ended"), update(2, (0, 0)), state="ended", rev=2)
        assert [one.rev for one in following] == [2]


def test_it_may_go_on_after_the_end(source: ArraySource, mosaic: Mosaic) -> None:
    source.tell(state="ended")
    with mosaic.follow(existing=False, until_end=False) as following:
        changes = following.changes(PATIENCE_S)
        source.tell(update(2, (0, 0)), rev=2)
        assert next(changes).rev == 2
        assert list(following.changes(0.05)) == []
        assert not following.is_over


def test_a_run_that_is_deleted_ends_it(source: ArraySource, mosaic: Mosaic) -> None:
    with mosaic.follow(existing=False, until_end=False) as following:
        source.tell(State("deleted"))
        assert list(following.changes(PATIENCE_S)) == []


def test_why_it_cannot_be_followed_any_more_is_raised(source: ArraySource, mosaic: Mosaic) -> None:
    def fail(*_: Any) -> Any:
        raise DisconnectedError("the cable was pulled")
        yield

    source.updates = fail  # type: ignore[method-assign]
    with pytest.raises(DisconnectedError, match="cable"), mosaic.follow(existing=False) as following:
        list(following.changes(PATIENCE_S))
    following = mosaic.follow(existing=False)
    with pytest.raises(DisconnectedError, match="cable"):
        following.wait(PATIENCE_S)
    following.close()


def test_closing_ends_whoever_waits(source: ArraySource, mosaic: Mosaic) -> None:
    following = mosaic.follow(existing=False)
    done = threading.Event()

    def watch() -> None:
        assert list(following) == []
        done.set()

    thread = threading.Thread(target=watch)
    thread.start()
    assert not following.wait(0.05)
    following.close()
    following.close()
    assert done.wait(PATIENCE_S)
    thread.join()
    mosaic.follow(existing=False)
    mosaic.close()  # closes what follows it
    assert source.news == []


def test_a_callback_is_called_one_after_the_other(source: ArraySource, mosaic: Mosaic) -> None:
    got: list[Change] = []
    with mosaic.follow(got.append) as following:
        source.tell(update(2, (1, 1)), rev=2)
        source.tell(State("ended"), state="ended")
        assert following.wait(PATIENCE_S)
    assert [one.whole for one in got[:2]] == [True, True]
    assert got[-1].rev == 2
