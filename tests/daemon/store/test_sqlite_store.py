"""What is particular to the SQLite store: its lock, crashes, a full disk, damage, schemas, and being read by people."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlite_utils

from old_store import old_store, old_tile
from tilecast.errors import RunLockedError, StoreError, StoreOutdatedError, StoreTooNewError
from tilecast.geometry import Rect, TileKey
from tilecast.store import migrations
from tilecast.store.folders import bring_up_to_date
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_connection import StoreConnection, check_version
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_file import Extent, disk_nbytes
from tilecast.store.tile_store import (
    Commit,
    StoreDamagedError,
    StoreFullError,
    StoreUnfinishedError,
    TileRow,
)
from tilecast.testing.store_suite import NEW_RUN, P0, P1, RUN, a_placement, a_tile, contents

BIG = bytes(2**20)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore.create(tmp_path, NEW_RUN)
    yield store
    store.close()


def in_another_process(code: str, folder: Path) -> int:
    """Run code that has `folder` and a store's usual imports; its exit status."""
    prelude = """
        import os, sys
        from pathlib import Path
        from tilecast.geometry import Placement, PlaneKey, Rect, TileKey
        from tilecast.store import migrations
        from tilecast.store.sqlite_store import SqliteStore
        from tilecast.store.tile_store import Commit, NewRun, TileRow
        folder = Path(sys.argv[1])
        P0 = PlaneKey()
    """
    # Not imported from the suite, which needs pytest and hypothesis: that would take most of the time here.
    script = f"{textwrap.dedent(prelude)}NEW_RUN = {NEW_RUN!r}\n{textwrap.dedent(code)}"
    return subprocess.run([sys.executable, "-W", "error", "-c", script, str(folder)], check=False).returncode


# One process writes a run.


def test_a_second_writer_is_told_who_the_first_is(store: SqliteStore) -> None:
    with pytest.raises(RunLockedError, match=f"being written by process {os.getpid()} on"):
        SqliteStore.open(store.path.parent)
    code = """
        from tilecast.errors import RunLockedError
        try:
            SqliteStore.open(folder)
        except RunLockedError:
            sys.exit(3)
    """
    assert in_another_process(code, store.path.parent) == 3
    store.close()
    SqliteStore.open(store.path.parent).close()


def test_a_dead_writer_holds_nothing(tmp_path: Path) -> None:
    assert in_another_process("store = SqliteStore.create(folder, NEW_RUN)\nos._exit(9)", tmp_path) == 9
    SqliteStore.open(tmp_path).close()


def test_a_borrowed_lock_outlives_the_store(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        SqliteStore.create(tmp_path, NEW_RUN, lock=lock).close()
        assert lock.held
        with pytest.raises(RunLockedError):
            SqliteStore.open(tmp_path)
    assert not lock.held
    SqliteStore.open(tmp_path).close()


def test_a_failed_opening_gives_the_lock_back(tmp_path: Path) -> None:
    with pytest.raises(StoreDamagedError, match=r"there is no .*tiles\.sqlite"):
        SqliteStore.open(tmp_path)
    RunLock(tmp_path).release()
    with pytest.raises(StoreError, match="no run folder"):
        SqliteStore.open(tmp_path / "elsewhere")


def test_another_thread_is_refused_and_harms_nothing(store: SqliteStore) -> None:
    said: list[str] = []

    def try_everything() -> None:
        for call in (store.info, lambda: store.commit(Commit()), store.close):
            try:
                call()
            except StoreError as error:
                said.append(str(error))

    thread = threading.Thread(target=try_everything)
    thread.start()
    thread.join()
    assert len(said) == 3
    assert all("by the thread that opened it only" in text for text in said)
    assert store.commit(Commit()).rev == 1


def test_a_run_is_created_once(store: SqliteStore) -> None:
    folder = store.path.parent
    store.commit(Commit(tiles=[a_tile(0, 0)], levels=1))
    store.close()
    with pytest.raises(StoreError, match="holds a run already; open it instead"):
        SqliteStore.create(folder, NEW_RUN)
    with SqliteReader(folder) as reader:
        assert reader.info().rev == 1


# A commit is whole or absent, and stays.


def test_commits_survive_a_process_that_dies_without_closing(tmp_path: Path) -> None:
    code = """
        store = SqliteStore.create(folder, NEW_RUN)
        for n in range(3):
            tile = TileRow(P0, TileKey(0, 0, n), b"tile")
            store.commit(Commit(tiles=[tile], placements=[Placement(n, 0, P0, 0, 0, 9, 9, "stage", n)], levels=1))
        os._exit(9)
    """
    assert in_another_process(code, tmp_path) == 9
    with SqliteReader(tmp_path) as reader:
        assert reader.info().rev == 3
    with SqliteStore.open(tmp_path) as store:
        info = store.info()
        assert (info.rev, info.epoch, info.n_tiles, info.n_placements) == (3, 1, 3, 3)
        assert store.check() == []


@pytest.mark.parametrize("length", [2, 20_000_000], ids=["small", "larger than SQLite's cache"])
def test_a_process_that_dies_in_a_commit_leaves_the_store_before_it(tmp_path: Path, length: int) -> None:
    with SqliteStore.create(tmp_path, NEW_RUN) as store:
        store.commit(
            Commit(tiles=[a_tile(0, 0)], placements=[a_placement(0)], levels=1, bboxes={P0: Rect(0, 0, 100, 200)})
        )
        before = contents(store)
    # The events of a commit are written last of all but its own line in the history: `items` is called in between.
    code = f"""
        class Death(dict):
            def items(self):
                os._exit(9)
        store = SqliteStore.open(folder)
        store.commit(Commit(
            tiles=[TileRow(P0, TileKey(0, 0, col), bytes(2**20)) for col in range(2)],
            placements=[Placement(frame, 0, P0, 0, 0, 9, 9, "stage", frame) for frame in range(2)],
            gone=[(P0, TileKey(0, 9, 9))],
            bboxes={{P0: Rect(0, 0, 5, 5)}},
            levels=4,
            events=[("note", {{"text": "x" * {length}}}), ("death", Death(x=1))],
        ))
    """
    assert in_another_process(code, tmp_path) == 9
    wal_nbytes = (tmp_path / "tiles.sqlite-wal").stat().st_size
    assert (wal_nbytes > 2**20) == (length > 2), "the larger commit should have begun to reach the disk"
    with SqliteReader(tmp_path) as reader:
        assert contents(reader) == before
    with SqliteStore.open(tmp_path) as store:
        assert contents(store) == before
        assert store.check() == []
        assert store.commit(Commit(tiles=[a_tile(0, 0)])).rev == 2


def test_a_full_disk_refuses_the_commit_and_says_so(store: SqliteStore) -> None:
    store.commit(Commit(tiles=[a_tile(0, 0)], placements=[a_placement(0)], levels=1))
    before = contents(store)
    connection = store._open_connection()
    connection.execute("PRAGMA max_page_count = 20")
    with pytest.raises(StoreFullError, match=r"could not commit tiles: the disk of .* is full.*try again"):
        store.commit(Commit(tiles=[TileRow(P0, TileKey(0, 0, n), BIG) for n in range(999)]))
    assert contents(store) == before
    connection.execute("PRAGMA max_page_count = 4294967294")
    assert store.commit(Commit(tiles=[TileRow(P0, TileKey(0, 0, 0), BIG)])).rev == 2
    assert store.check() == []


@pytest.fixture
def limited_files() -> Iterator[Callable[[int], None]]:
    """Makes every write beyond a file size fail, as a broken disk does; lifted at the end of the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(nbytes: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes if nbytes >= 0 else soft, hard))

    yield limit
    limit(-1)


def test_a_failing_disk_refuses_the_commit_and_says_so(
    store: SqliteStore, limited_files: Callable[[int], None]
) -> None:
    store.commit(Commit(tiles=[a_tile(0, 0)], placements=[a_placement(0)], levels=1))
    before = contents(store)
    limited_files(2**17)
    frames = [a_placement(number) for number in range(1, 5000)]
    with pytest.raises(StoreError, match=r"could not commit tiles .*disk I/O error; the disk failed.*dmesg"):
        store.commit(Commit(placements=frames))
    with pytest.raises(StoreError, match=r"could not write tiles .*File too large; look at the disk"):
        store.commit(Commit(tiles=[TileRow(P0, TileKey(0, 0, 0), BIG)], placements=[a_placement(1)]))
    assert contents(store) == before
    limited_files(-1)
    assert store.commit(Commit(tiles=[TileRow(P0, TileKey(0, 0, 0), BIG)])).rev == 2
    assert store.check() == []


# Room that is given back.


def test_what_was_replaced_is_given_back_once_nobody_wants_it(store: SqliteStore) -> None:
    store.commit(
        Commit(tiles=[TileRow(P0, TileKey(0, 0, col), bytes([col + 1]) * 2**20) for col in range(4)], levels=1)
    )
    tiles = tiles_of(store.path.parent)
    assert disk_nbytes(tiles) == 4 * 2**20
    with SqliteReader(store.path.parent) as reader:
        held, go_on = threading.Event(), threading.Event()
        seen: list[bytes] = []

        def read_slowly(connection: StoreConnection) -> None:
            before = connection.execute("SELECT offset, nbytes FROM tiles WHERE col = 1").fetchone()
            held.set()
            go_on.wait(60)
            seen.append(connection.tile_file.read(Extent(*before)))

        thread = threading.Thread(target=reader._read, args=(read_slowly,))
        thread.start()
        assert held.wait(60)
        store.commit(Commit(tiles=[TileRow(P0, TileKey(0, 0, col), b"new" * 2**18) for col in range(1, 3)]))
        assert not store.checkpointer.settle(), "a reader is in the way"
        assert disk_nbytes(tiles) == 4 * 2**20 + 3 * 2**19
        go_on.set()
        thread.join()
        assert seen == [b"\2" * 2**20], "what it began to read stayed in place"
        assert store.checkpointer.settle()
        assert disk_nbytes(tiles) == 2 * 2**20 + 3 * 2**19
        for col in range(4):
            tile = reader.tile(P0, TileKey(0, 0, col))
            assert tile is not None
            assert tile.pzf == (b"new" * 2**18 if col in (1, 2) else bytes([col + 1]) * 2**20)
    store.commit(Commit(gone=[(P0, TileKey(0, 0, 0))]))
    store.close()
    assert disk_nbytes(tiles) == 2**20 + 3 * 2**19


def test_room_that_a_dead_process_did_not_give_back_is_given_back_at_the_end(tmp_path: Path) -> None:
    code = """
        store = SqliteStore.create(folder, NEW_RUN)
        for n in range(3):
            store.commit(Commit(tiles=[TileRow(P0, TileKey(0, 0, 0), bytes([n]) * 2**20)], levels=1))
        os._exit(9)
    """
    assert in_another_process(code, tmp_path) == 9
    assert disk_nbytes(tiles_of(tmp_path)) == 3 * 2**20
    with SqliteStore.open(tmp_path) as store:
        store.commit(Commit(tiles=[TileRow(P0, TileKey(0, 0, 1), b"y" * 2**20)]))
    assert disk_nbytes(tiles_of(tmp_path)) == 2 * 2**20
    with SqliteReader(tmp_path) as reader:
        assert [reader.tile(P0, TileKey(0, 0, col)).pzf[:1] for col in (0, 1)] == [b"\2", b"y"]  # type: ignore[union-attr]
        assert reader.check() == []


def test_a_commit_that_failed_takes_no_room(store: SqliteStore) -> None:
    store.commit(Commit(tiles=[a_tile(0, 0)], levels=1))
    for _ in range(3):
        with pytest.raises(StoreError, match="64 bits"):
            store.commit(Commit(tiles=[TileRow(P0, TileKey(0, 0, 0), BIG)], t_recv_ns=2**64))
    store.commit(Commit(tiles=[TileRow(P0, TileKey(0, 0, 1), BIG)]))
    assert disk_nbytes(tiles_of(store.path.parent)) == 4096 + 2**20
    assert store.check() == []


# What a power failure may have taken.


def opened_after(store: SqliteStore, aside: Path, *, boot_id: str) -> SqliteStore:
    """The store as it is on disk now, opened elsewhere under a boot of the kernel."""
    shutil.copytree(store.path.parent, aside)
    return SqliteStore.open(aside, boot_id=boot_id)


def test_epoch_rises_when_a_power_failure_may_have_taken_commits(tmp_path: Path) -> None:
    with SqliteStore.create(tmp_path / "a", NEW_RUN, boot_id="boot 1") as store:
        # What had been synced when the power went: nothing after the opening.
        aside = tmp_path / "b"
        shutil.copytree(store.path.parent, aside)
        store.commit(Commit(tiles=[a_tile(0, 0)], levels=1))
    with SqliteStore.open(aside, boot_id="boot 2") as again:
        assert (again.info().epoch, again.info().rev) == (2, 0)
        assert [event.detail["reason"] for event in again.events()] == [
            "reopened after a power failure: the last commits may be missing"
        ]
        assert again.changes(1, epoch=1).resync


@pytest.mark.parametrize(
    ("boot_id", "epoch"), [("boot 1", 1), ("boot 2", 2), ("", 2)], ids=["same boot", "another", "unknown"]
)
def test_a_killed_process_alone_takes_nothing(tmp_path: Path, boot_id: str, epoch: int) -> None:
    with SqliteStore.create(tmp_path / "a", NEW_RUN, boot_id="boot 1") as store:
        store.commit(Commit(tiles=[a_tile(0, 0)], levels=1))
        with opened_after(store, tmp_path / "b", boot_id=boot_id) as again:
            assert (again.info().epoch, again.info().rev) == (epoch, 1)


def test_a_closed_store_has_nothing_to_lose(tmp_path: Path) -> None:
    with SqliteStore.create(tmp_path, NEW_RUN, boot_id="boot 1") as store:
        store.commit(Commit(tiles=[a_tile(0, 0)], levels=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", tiles_of(tmp_path).name, "tiles.sqlite"]
    with SqliteStore.open(tmp_path, boot_id="boot 2") as store:
        assert store.info().epoch == 1


# Schemas.


def test_a_newer_store_is_refused(store: SqliteStore) -> None:
    folder = store.path.parent
    store.close()
    with sqlite3.connect(store.path) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    before = store.path.read_bytes()
    for opening in (SqliteStore.open, SqliteReader):
        with pytest.raises(
            StoreTooNewError, match=f"has schema 999 and this tilecast knows up to {migrations.SCHEMA_VERSION}"
        ):
            opening(folder)
    with pytest.raises(StoreTooNewError):
        SqliteStore.create(folder, NEW_RUN)
    assert store.path.read_bytes() == before


def test_who_looks_while_a_store_is_made_sees_one_step_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two things that are read the next steps may be taken; that is no damage."""
    path = tmp_path / "tiles.sqlite"
    maker = sqlite3.connect(path, isolation_level=None)
    maker.execute("PRAGMA journal_mode = WAL")
    with monkeypatch.context() as half:
        half.setattr(migrations, "_STEPS", migrations._STEPS[:2])
        migrations.migrate(maker)
    looker = sqlite3.connect(path, isolation_level=None)
    said: list[str] = []

    def go_on(statement: str) -> None:
        said.append(statement)
        if "_sqlite_migrations" in statement and migrations.schema_version(maker) == 2:
            migrations.migrate(maker)

    looker.set_trace_callback(go_on)
    check_version(looker, path, for_reading=True)
    assert migrations.schema_version(maker) == migrations.SCHEMA_VERSION, said
    assert not looker.in_transaction
    maker.close()
    looker.close()


def test_a_making_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    code = """
        def last(db):
            os._exit(9)
        migrations._STEPS += (("9999 death", last),)
        migrations.SCHEMA_VERSION += 1
        from tilecast.store import sqlite_store
        sqlite_store.SCHEMA_VERSION = migrations.SCHEMA_VERSION
        SqliteStore.create(folder, NEW_RUN)
    """
    assert in_another_process(code, tmp_path) == 9
    for opening in (SqliteStore.open, SqliteReader):
        with pytest.raises(StoreUnfinishedError, match="its making was cut short"):
            opening(tmp_path)
    with SqliteStore.create(tmp_path, NEW_RUN) as store:
        assert store.info().name == NEW_RUN.name
        assert store.check() == []


def test_a_step_of_the_schema_is_taken_whole_or_not_at_all(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.commit(Commit(tiles=[a_tile(0, 0)], levels=1))
    store.close()
    connection = sqlite3.connect(store.path, isolation_level=None)
    try:
        steps = migrations._STEPS

        def fails(db: sqlite_utils.Database) -> None:
            db.execute("ALTER TABLE run ADD COLUMN weather TEXT")
            raise RuntimeError("killed here")

        monkeypatch.setattr(migrations, "_STEPS", (*steps, ("9999 weather", fails)))
        with pytest.raises(RuntimeError, match="killed here"):
            migrations.migrate(connection)
        assert migrations.schema_version(connection) == migrations.SCHEMA_VERSION
        assert "weather" not in sqlite_utils.Database(connection)["run"].columns_dict

        def works(db: sqlite_utils.Database) -> None:
            db.execute("ALTER TABLE run ADD COLUMN weather TEXT")

        monkeypatch.setattr(migrations, "_STEPS", (*steps, ("9999 weather", works)))
        for _ in range(2):
            migrations.migrate(connection)
            assert migrations.schema_version(connection) == migrations.SCHEMA_VERSION + 1
            assert "weather" in sqlite_utils.Database(connection)["run"].columns_dict
    finally:
        connection.close()


def test_a_store_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    folder = tmp_path / RUN
    old_store(folder, RUN, 1200)
    before = (folder / "tiles.sqlite").stat().st_size
    with pytest.raises(
        StoreOutdatedError, match=rf"schema 1 of {migrations.SCHEMA_VERSION}.*`tilecast run` brings all runs"
    ):
        SqliteReader(folder)
    assert list(bring_up_to_date(tmp_path)) == [(RUN, None)]
    assert list(bring_up_to_date(tmp_path)) == []
    assert (folder / "tiles.sqlite").stat().st_size < before
    with SqliteReader(folder) as reader:
        assert reader.check() == []
        assert [reader.tile(P0, TileKey(0, 0, col)) for col in range(1200)] == list(map(old_tile, range(1200)))
    with SqliteStore.open(folder) as store:
        store.commit(Commit(tiles=[a_tile(0, 0)]))
        assert store.check() == []


def test_bringing_a_store_up_to_date_can_be_killed(tmp_path: Path) -> None:
    folder = tmp_path / RUN
    old_store(folder, RUN, 1200)
    code = """
        from tilecast.store import tile_file
        keep, calls = tile_file.TileFile.keep, []
        def dying(self):
            keep(self)
            calls.append(1)
            if len(calls) == 2:
                os._exit(9)
        tile_file.TileFile.keep = dying
        SqliteStore.open(folder)
    """
    assert in_another_process(code, folder) == 9
    assert tiles_of(folder).stat().st_size > 10**6, "it was at work"
    assert list(bring_up_to_date(tmp_path)) == [(RUN, None)]
    with SqliteReader(folder) as reader:
        assert reader.check() == []
        assert reader.tile(P0, TileKey(0, 0, 1199)) == old_tile(1199)
        assert tiles_of(folder) == reader.tile_file_path(), "what was begun is gone"


# Damage.


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiles.sqlite"
    path.write_bytes(b"this is not a database, by any means" * 100)
    for opening in (SqliteStore.open, SqliteReader):
        with pytest.raises(StoreDamagedError, match=r"is damaged .*tilecast rebuild"):
            opening(tmp_path)
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1")
        connection.execute("CREATE TABLE run (x)")
    connection.close()
    for opening in (SqliteStore.open, SqliteReader):
        with pytest.raises(StoreError, match="not of tilecast"):
            opening(tmp_path)
    path.unlink()
    with pytest.raises(StoreDamagedError, match="rebuild"):
        SqliteReader(tmp_path)


def tiles_of(folder: Path) -> Path:
    """The file with the bytes of a store's tiles."""
    (path,) = folder.glob("tiles-*.bin")
    return path


def test_check_finds_a_flipped_bit_in_a_tile(store: SqliteStore) -> None:
    marked = TileRow(P1, TileKey(0, -3, 1), b"x" * 100_000 + b"here it is" + b"x" * 100_000, b"and its mask")
    store.commit(Commit(tiles=[a_tile(0, 0), marked, a_tile(0, 1)], levels=1))
    store.close()
    tiles = tiles_of(store.path.parent)
    for word in (b"here it is", b"and its mask"):
        image = tiles.read_bytes()
        tiles.write_bytes(image.replace(word, bytes([word[0] ^ 1]) + word[1:]))
        with SqliteReader(store.path.parent) as reader:
            assert reader.check() == [
                "the pixels of TileKey(level=0, row=-3, col=1) in PlaneKey(t=2, c=1, z=5) are damaged "
                "(wrong checksum); rebuild the run"
            ]
            with pytest.raises(StoreDamagedError, match=r"wrong checksum.*fsck --repair"):
                reader.tile(marked.plane, marked.key)
            assert reader.tile(P0, TileKey(0, 0, 0)) == (a_tile(0, 0).pzf, 1, None)
        tiles.write_bytes(image)


def test_what_is_written_into_a_file_that_was_cut_off_stays(store: SqliteStore) -> None:
    """The places of the lost tiles are given back when they are replaced: nothing new may lie there."""
    folder = store.path.parent
    keys = [TileKey(0, 0, col) for col in range(6)]
    store.commit(Commit(tiles=[TileRow(P0, key, b"old" * 9000) for key in keys], levels=1))
    store.close()
    os.truncate(tiles_of(folder), 0)
    with SqliteStore.open(folder) as again:
        for key in keys:
            again.commit(Commit(tiles=[TileRow(P0, key, b"new" * 9000)], levels=1))
    with SqliteReader(folder) as reader:
        assert [bytes(reader.tile(P0, key).pzf) for key in keys] == [b"new" * 9000] * 6
        assert reader.check() == []


def test_bytes_that_are_not_there_are_missed(store: SqliteStore) -> None:
    folder = store.path.parent
    store.commit(Commit(tiles=[a_tile(0, 0), TileRow(P0, TileKey(0, 0, 1), BIG)], levels=1))
    store.close()
    os.truncate(tiles_of(folder), 2**19)
    with SqliteReader(folder) as reader:
        assert reader.tile(P0, TileKey(0, 0, 0)) is not None
        with pytest.raises(StoreDamagedError, match="is damaged: it should hold 1048576 bytes"):
            reader.tile(P0, TileKey(0, 0, 1))
        (finding,) = reader.check()
        assert "TileKey(level=0, row=0, col=1) in PlaneKey(t=0, c=0, z=0) are lost" in finding
    tiles_of(folder).unlink()
    with SqliteReader(folder) as reader:
        with pytest.raises(StoreDamagedError, match=r"tiles-.*\.bin, are missing; `tilecast rebuild`"):
            reader.tile(P0, TileKey(0, 0, 0))
        assert len(reader.check()) == 2
    with pytest.raises(StoreDamagedError, match=r"tiles-.*\.bin, are missing; `tilecast rebuild`"):
        SqliteStore.open(folder)


@pytest.mark.parametrize("name", ["../elsewhere/tiles-1.bin", "/etc/passwd", "lock", ""])
def test_a_database_cannot_name_files_elsewhere(store: SqliteStore, name: str) -> None:
    store.commit(Commit(tiles=[a_tile(0, 0)], levels=1))
    store._open_connection().execute("UPDATE run SET tile_file = ?", (name,))
    with SqliteReader(store.path.parent) as reader, pytest.raises(StoreDamagedError, match="says that its tiles lie"):
        reader.tile(P0, TileKey(0, 0, 0))


def test_check_finds_a_torn_page(store: SqliteStore) -> None:
    store.commit(Commit(tiles=[a_tile(row, col) for row in range(20) for col in range(20)], levels=1))
    (page,) = store._open_connection().execute("SELECT rootpage FROM sqlite_master WHERE name = 'tiles'").fetchone()
    store.close()
    with store.path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))
    with SqliteReader(store.path.parent) as reader:
        assert reader.info().n_tiles == 400
        findings = reader.check()
        assert findings
        assert all("the database file is damaged" in finding for finding in findings)
        with pytest.raises(StoreDamagedError, match="tilecast fsck"):
            reader.tile(P0, TileKey(0, 0, 0))


@pytest.mark.parametrize(
    ("tampering", "finding"),
    [
        ("UPDATE tiles SET offset = 1", "2 tiles share the bytes of another"),
        ("UPDATE placements SET plane = 7 WHERE frame = 0", "1 rows name a plane that does not exist"),
        ("INSERT INTO gone SELECT plane, level, row, col, 1 FROM tiles WHERE col = 0", "1 tiles are both there and"),
        ("UPDATE run SET levels = 0", "3 tiles lie above the highest level"),
        ("UPDATE tiles SET rev = 3 WHERE col = 1", "1 rows carry a rev that no commit"),
        ("UPDATE run SET n_tiles = 5", "count of tiles is wrong by 2"),
        ("UPDATE run SET n_placements = 0", "count of placements is wrong by 2"),
        ("UPDATE placements SET width = width + 1 WHERE frame = 1", "misplaces or lacks 1 placements"),
        ("DELETE FROM placements_box WHERE id = 1", "misplaces or lacks 1 placements"),
        ("INSERT INTO placements_box VALUES (99, 1, 1, 0, 0, 0, 0)", "1 entries without a placement"),
        ("DELETE FROM commits WHERE rev = 2", "history of commits has holes"),
        ("DELETE FROM commits WHERE rev = 1; INSERT INTO commits VALUES (0, 1, 0, 0, 0, 0, 0)", "commits has holes"),
    ],
)
def test_check_finds_contradictions(store: SqliteStore, tampering: str, finding: str) -> None:
    store.commit(Commit(tiles=[a_tile(0, col) for col in range(3)], levels=1))
    store.commit(Commit(placements=[a_placement(0), a_placement(1)]))
    assert store.check() == []
    store._open_connection().executescript(tampering)
    findings = store.check()
    assert any(finding in text for text in findings), findings


def test_tombstones_do_not_pile_up_over_epochs(store: SqliteStore) -> None:
    for number in range(3):
        store.commit(Commit(gone=[(P0, TileKey(0, number, 0))]))
    store.bump_epoch("for the test")
    assert store._open_connection().execute("SELECT count(*) FROM gone").fetchone() == (0,)


# For people.


def test_a_person_can_read_it_with_sqlite_utils(store: SqliteStore) -> None:
    store.commit(Commit(tiles=[a_tile(-1, 2, plane=P1)], placements=[a_placement(0)], levels=1))
    store.set_report(1, {"missing": [[3, 4]]})
    store.add_note("bleached")
    store.close()
    db = sqlite_utils.Database(store.path)
    try:
        (run,) = db["run"].rows
        assert (run["run"], run["name"], run["state"], run["rev"]) == (RUN, NEW_RUN.name, "open", 1)
        assert '"by": "Ada"' in run["start_json"]
        assert '"tile_size": 256' in run["settings"]
        joined = db.query("SELECT t, c, z, level, row, col, rev FROM tiles JOIN planes ON planes.id = plane")
        assert list(joined) == [{"t": 2, "c": 1, "z": 5, "level": 0, "row": -1, "col": 2, "rev": 1}]
        assert [row["source"] for row in db["placements"].rows] == ["stage"]
        assert [row["detail"] for row in db["events"].rows] == ['{"text": "bleached"}']
        assert [row["report"] for row in db["report"].rows] == ['{"missing": [[3, 4]]}']
        assert [row["rev"] for row in db["commits"].rows] == [1]
        assert [row["name"] for row in db["_sqlite_migrations"].rows] == [
            "0001 first",
            "0002 tile file",
            "0003 clipped",
            "0004 registration",
        ]
    finally:
        db.close()


def test_a_number_too_large_for_the_file_is_refused_with_words(store: SqliteStore) -> None:
    with pytest.raises(StoreError, match="does not fit into 64 bits"):
        store.tile(P0, TileKey(0, 2**63, 0))


def test_a_name_may_hold_anything_a_person_types(tmp_path: Path) -> None:
    folder = tmp_path / "50% of a?b#c µm"
    with SqliteStore.create(folder, replace(NEW_RUN, name="'; DROP TABLE run; --")) as store:
        store.commit(Commit())
    with SqliteReader(folder) as reader:
        assert reader.info().name == "'; DROP TABLE run; --"
