"""The store in memory passes the suite that every store inherits."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from hypothesis import settings

from tilecast.store.tile_store import NewRun, TileStore
from tilecast.testing.memory_store import MemoryStore
from tilecast.testing.store_suite import StoreMachine, StoreSuite


def _reopened(store: TileStore) -> TileStore:
    store.close()
    return cast(MemoryStore, store).reopen()


class TestMemoryStore(StoreSuite):
    def create(self, folder: Path, new: NewRun) -> TileStore:  # noqa: ARG002 (it has no use for a folder)
        return MemoryStore(new)

    def reopen(self, store: TileStore) -> TileStore:
        return _reopened(store)


class MemoryMachine(StoreMachine):
    def create(self, folder: Path, new: NewRun) -> TileStore:  # noqa: ARG002 (it has no use for a folder)
        return MemoryStore(new)

    def reopen(self, store: TileStore) -> TileStore:
        return _reopened(store)


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = settings(max_examples=60, stateful_step_count=25)
