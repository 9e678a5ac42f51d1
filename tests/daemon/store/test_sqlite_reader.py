"""Readers beside a writer: they see whole commits, follow a swapped file, and leave nothing behind."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tilecast.errors import StoreError
from tilecast.geometry import Rect, TileKey
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import Commit, StoreDamagedError, TileRow
from tilecast.testing.store_suite import NEW_RUN, P0, a_placement, a_tile, contents


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore.create(tmp_path, NEW_RUN)
    yield store
    store.close()


def names_in(folder: Path) -> list[str]:
    return sorted(re.sub("tiles-[0-9a-f]{8}[.]bin", "tiles-*.bin", path.name) for path in folder.iterdir())


def test_many_threads_see_whole_commits(store: SqliteStore) -> None:
    n_commits, n_tiles = 60, 12
    finished = threading.Event()
    # A commit of large and small tiles, all of which say its number, and a placement that does.
    bodies = [b"." * (20_000 * (col % 3)) for col in range(n_tiles)]

    def commit(number: int) -> Commit:
        tiles = [TileRow(P0, TileKey(0, 0, col), b"%d" % number + bodies[col]) for col in range(n_tiles)]
        return Commit(tiles=tiles, placements=[a_placement(0, number)], levels=1, bboxes={P0: Rect(0, 0, number, 1)})

    store.commit(commit(1))
    with SqliteReader(store.path.parent) as reader:

        def watch(seed: int) -> int:
            last = 0
            over = False
            while not over:
                over = finished.is_set()
                page = reader.snapshot()
                assert {stamp.rev for stamp in page.tiles} == {page.rev}
                assert page.rev >= last
                last = page.rev
                tile = reader.tile(P0, TileKey(0, 0, seed))
                assert tile is not None
                assert tile.pzf == b"%d" % tile.rev + bodies[seed]
                info = reader.info()
                assert info.bboxes[P0] == Rect(0, 0, info.rev, 1)
                [placement] = reader.covering(P0, Rect(0, 0, 10**6, 10**6))
                assert placement.row >= info.rev
            return last

        with ThreadPoolExecutor(4) as pool:
            watchers = [pool.submit(watch, seed) for seed in range(4)]
            try:
                for number in range(2, n_commits + 1):
                    store.commit(commit(number))
            finally:
                finished.set()
            assert [watcher.result() for watcher in watchers] == [n_commits] * 4


def test_a_closed_run_is_read_without_leaving_anything_behind(store: SqliteStore) -> None:
    store.commit(Commit(tiles=[a_tile(0, 0)], placements=[a_placement(0)], levels=1))
    before = contents(store)
    store.close()
    assert names_in(store.path.parent) == ["lock", "tiles-*.bin", "tiles.sqlite"]
    with SqliteReader(store.path.parent) as reader:
        assert contents(reader) == before
        assert reader.check() == []
        assert names_in(store.path.parent) == ["lock", "tiles-*.bin", "tiles.sqlite"]
    assert names_in(store.path.parent) == ["lock", "tiles-*.bin", "tiles.sqlite"]


def test_a_reader_stays_right_while_writers_come_and_go(store: SqliteStore) -> None:
    store.close()
    with SqliteReader(store.path.parent) as reader:
        for number in range(1, 6):
            assert reader.info().rev == number - 1
            with SqliteStore.open(store.path.parent) as writer:
                assert reader.info().rev == number - 1
                writer.commit(Commit(tiles=[a_tile(0, 0, text=str(number))], levels=1))
                assert reader.tile(P0, TileKey(0, 0, 0)) == (a_tile(0, 0, text=str(number)).pzf, number, None)
            assert reader.tile(P0, TileKey(0, 0, 0)) == (a_tile(0, 0, text=str(number)).pzf, number, None)


def test_what_was_read_while_the_file_changed_hands_is_read_again(store: SqliteStore) -> None:
    store.close()
    revs: list[int] = []
    with SqliteReader(store.path.parent) as reader:

        def query(connection: sqlite3.Connection) -> int:
            rev = int(connection.execute("SELECT rev FROM run").fetchone()[0])
            if not revs:  # the first time, somebody opens the closed run under the reader's eyes
                with SqliteStore.open(store.path.parent) as writer:
                    writer.commit(Commit())
            revs.append(rev)
            return rev

        assert reader._read(query) == 1
    assert revs == [0, 1]


def test_a_reader_does_not_keep_the_log_from_being_reset(store: SqliteStore) -> None:
    with SqliteReader(store.path.parent) as reader:
        for number in range(20):
            store.commit(Commit(tiles=[a_tile(0, number)], placements=[a_placement(number)], levels=1))
            next(reader.placements())  # an iterator that nobody finishes
        assert store.checkpointer.settle()
        assert store.size().wal_nbytes == 0


def test_a_reader_cannot_write(store: SqliteStore) -> None:
    with SqliteReader(store.path.parent) as reader, pytest.raises(StoreError, match="readonly"):
        reader._rows("DELETE FROM run", ())


def test_a_closed_reader_says_so(store: SqliteStore) -> None:
    reader = SqliteReader(store.path.parent)
    reader.close()
    reader.close()
    with pytest.raises(StoreError, match="was closed"):
        reader.info()


def test_a_store_that_vanishes_is_named(store: SqliteStore) -> None:
    store.close()
    with SqliteReader(store.path.parent) as reader:
        store.path.rename(store.path.with_name("elsewhere"))
        with pytest.raises(StoreDamagedError, match=r"cannot open .*tiles\.sqlite"):
            reader.info()
        store.path.with_name("elsewhere").rename(store.path)
        assert reader.info().rev == 0


def test_the_reader_of_the_writing_process_sees_each_commit(store: SqliteStore) -> None:
    """It looks for no other file in the store's place, but reads no less than others do."""
    with SqliteReader(store.path.parent, own=True) as reader:
        for number in range(3):
            store.commit(Commit(tiles=[a_tile(0, number)], placements=[a_placement(number)], levels=1))
            assert reader.info().rev == number + 1
            assert reader.has_placement(number, 0)
        store.path.rename(store.path.with_name("elsewhere"))
        assert reader.has_placement(2, 0), "it holds on to the file that it has"
        store.path.with_name("elsewhere").rename(store.path)
