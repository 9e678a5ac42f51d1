"""The write-ahead log stays short, commits and resets take turns, and trouble is told, not suffered in silence."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tilecast.store import checkpointer
from tilecast.store.checkpointer import Checkpointer, Turnstile
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import Commit
from tilecast.testing.store_suite import NEW_RUN

LIMIT = 2**20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore.create(tmp_path, NEW_RUN, wal_limit_bytes=LIMIT)
    yield store
    store.close()


def a_commit(number: int) -> Commit:
    """Some 200 KiB of the log, for four hundred events."""
    return Commit(events=[(f"commit {number}", {"text": "x" * 400})] * 400)


def test_the_log_stays_short_while_commits_go_on(store: SqliteStore) -> None:
    longest = 0
    for number in range(60):
        store.commit(a_commit(number))
        longest = max(longest, store.size().wal_nbytes)
    assert longest < 2 * LIMIT, "12 MiB were committed under a limit of 1"
    stats = store.checkpointer.stats()
    assert stats.n_passes >= stats.n_resets > 0
    assert stats.longest_wait_ns > 0
    assert stats.error == ""


def test_settling_carries_everything_over(store: SqliteStore, tmp_path: Path) -> None:
    for number in range(3):
        store.commit(a_commit(number))
    assert store.checkpointer.settle()
    assert store.size().wal_nbytes == 0
    alone = tmp_path / "alone.sqlite"
    alone.write_bytes(store.path.read_bytes())  # the file alone, without its log
    connection = sqlite3.connect(alone)
    assert connection.execute("SELECT rev, (SELECT count(*) FROM events) FROM run").fetchone() == (3, 1200)
    connection.close()
    assert store.checkpointer.settle(), "nothing to do is done as well"


def test_a_pause_empties_the_log(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    writer.execute("CREATE TABLE t (x)")
    emptied = threading.Event()

    class Watched(sqlite3.Connection):
        """Says when it has cut the log to nothing."""

        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            cursor = super().execute(sql, *values)
            if "TRUNCATE" in sql:
                emptied.set()
            return cursor

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, factory=Watched)

    keeper = Checkpointer(connect, page_nbytes=4096, limit_bytes=LIMIT, idle_s=0.01)
    try:
        with keeper.commit(4096):
            writer.execute("INSERT INTO t VALUES (1)")
        assert emptied.wait(20)
        assert path.with_name("x.sqlite-wal").stat().st_size == 0
    finally:
        keeper.close()
        writer.close()


def test_a_reader_in_the_way_is_told_of_and_waited_for(store: SqliteStore) -> None:
    store.commit(a_commit(0))
    reader = sqlite3.connect(store.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM run").fetchone()
    store.commit(a_commit(1))
    assert not store.checkpointer.settle()
    assert store.checkpointer.stats().n_blocked > 0
    assert store.commit(a_commit(2)).rev == 3, "commits go on all the same"
    reader.execute("COMMIT")
    reader.close()
    assert store.checkpointer.settle()
    assert store.size().wal_nbytes == 0


def test_a_failing_checkpoint_is_kept_for_the_statistics() -> None:
    failing = True

    def connect() -> sqlite3.Connection:
        if failing:
            raise sqlite3.OperationalError("disk I/O error")
        return sqlite3.connect(":memory:", isolation_level=None)

    keeper = Checkpointer(connect, page_nbytes=4096, limit_bytes=LIMIT)
    try:
        assert not keeper.settle()
        assert "disk I/O error" in keeper.stats().error
        failing = False
        assert keeper.settle()
        assert keeper.stats().error == ""
    finally:
        keeper.close()
    assert not keeper.settle(), "a closed one settles nothing, and does not make anyone wait"


def test_a_turnstile_lets_the_waiting_side_in_next() -> None:
    turnstile = Turnstile()
    order: list[str] = []

    def patient() -> None:
        with turnstile:
            order.append("patient")

    thread = threading.Thread(target=patient)
    with turnstile:
        thread.start()
        while not turnstile._next.locked():  # until it stands at the turnstile
            pass
    for _ in range(3):
        with turnstile:
            order.append("greedy")
    thread.join()
    assert order == ["patient", "greedy", "greedy", "greedy"]


def test_commits_wait_for_a_full_log_but_not_for_a_reader(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointer, "_ROOM_S", 1000.0)  # whoever waits for the reader waits for ever
    reader = sqlite3.connect(store.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM run").fetchone()
    for number in range(40):
        store.commit(a_commit(number))
    assert store.size().wal_nbytes > 2 * LIMIT, "a reader holds everything up but the commits"
    assert store.checkpointer.stats().blocked
    reader.close()
    for number in range(20):
        store.commit(a_commit(number))
    assert store.checkpointer.settle()
    assert not store.checkpointer.stats().blocked
