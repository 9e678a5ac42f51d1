"""The SQLite store passes the suite that every store inherits: read by its own writer, and by a reader beside it."""

from __future__ import annotations

from pathlib import Path

from hypothesis import settings

from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import NewRun, TileReader, TileStore
from tilecast.testing.store_suite import StoreMachine, StoreSuite


def _reopened(store: TileStore) -> TileStore:
    assert isinstance(store, SqliteStore)
    store.close()
    return SqliteStore.open(store.path.parent)


class TestSqliteStore(StoreSuite):
    def create(self, folder: Path, new: NewRun) -> TileStore:
        return SqliteStore.create(folder, new)

    def reopen(self, store: TileStore) -> TileStore:
        return _reopened(store)


class TestSqliteReader(TestSqliteStore):
    def reader(self, store: TileStore) -> TileReader:
        assert isinstance(store, SqliteStore)
        return SqliteReader(store.path.parent)


class SqliteMachine(StoreMachine):
    def create(self, folder: Path, new: NewRun) -> TileStore:
        return SqliteStore.create(folder, new)

    def reopen(self, store: TileStore) -> TileStore:
        return _reopened(store)


TestSqliteMachine = SqliteMachine.TestCase
TestSqliteMachine.settings = settings(max_examples=25, stateful_step_count=25)
