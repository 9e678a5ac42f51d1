"""When a flat field is estimated of a run that goes on (what is done then: test_cameras.py, with a daemon)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins.export.test_moment import commit, new_store
from tilecast.reading import RunList
from tilecast.store.sqlite_store import SqliteStore
from tilecast_plugins.calibration.estimating import Rounds
from tilecast_protocol.messages import new_run

Runs = dict[Path, SqliteStore]


@pytest.fixture
def two_runs(tmp_path: Path) -> Iterator[Runs]:
    one, other = (tmp_path / new_run() for _ in range(2))
    with new_store(one) as first, new_store(other) as second:
        yield {one: first, other: second}


def test_each_run_every_so_often_if_something_has_come(tmp_path: Path, two_runs: Runs) -> None:
    rounds = Rounds(RunList(tmp_path), 60.0)
    (one, first), (other, second) = two_runs.items()
    commit(first, 1, n=1)
    assert rounds.next(0.0) is None  # seen for the first time
    assert rounds.next(59.0) is None
    assert [rounds.next(64.0), rounds.next(69.0)] == [one, None]  # of the other there is nothing yet
    assert [rounds.next(now_s) for now_s in (74.0, 130.0, 136.0)] == [None, None, None]  # nothing has come since
    commit(second, 1, n=1)
    assert rounds.next(141.0) == other
    commit(second, 2, n=1)
    assert rounds.next(190.0) is None  # too early
    assert rounds.next(192.0) is None  # runs are listed every 5 s
    second.set_state("ended")
    assert rounds.next(300.0) is None  # over


def test_not_at_all_if_that_is_said(tmp_path: Path, two_runs: Runs) -> None:
    rounds = Rounds(RunList(tmp_path), 0.0)
    for store in two_runs.values():
        commit(store, 1, n=1)
    assert [rounds.next(now_s) for now_s in (0.0, 1e6, 2e6)] == [None, None, None]
