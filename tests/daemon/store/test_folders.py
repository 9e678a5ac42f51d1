"""Runs are found whatever state they are in, and a rebuilt store takes the old one's place in one step."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tilecast.errors import StoreError, StoreTooNewError
from tilecast.geometry import TileKey
from tilecast.store import folders
from tilecast.store.folders import REBUILD_NAME, RunList, discard, folder_nbytes, list_runs, run_folder, swap_in
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_connection import TILES_NAME
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import Commit, CommitResult
from tilecast.testing.store_suite import NEW_RUN, P0, RUN, a_placement, a_tile, contents

OTHER_RUN = "11111111-2222-3333-4444-555555555555"
ORIGIN = TileKey(0, 0, 0)


def test_a_run_lives_in_a_folder_of_its_name(tmp_path: Path) -> None:
    assert run_folder(tmp_path, RUN) == tmp_path / RUN
    for name in ("..", "", "a/b", RUN.upper(), "{" + RUN + "}", str(uuid.UUID(RUN).urn)):
        with pytest.raises(StoreError, match="UUID"):
            run_folder(tmp_path, name)


def test_runs_are_listed_and_ruined_ones_reported(tmp_path: Path) -> None:
    clock = iter(range(1000, 10**6, 1000))
    for run in (OTHER_RUN, RUN):
        with SqliteStore.create(tmp_path / run, replace(NEW_RUN, run=run), clock_ns=lambda: next(clock)) as store:
            store.commit(Commit(tiles=[a_tile(0, 0)], levels=1))
    ruined, empty, foreign = (str(uuid.uuid4()) for _ in range(3))
    (tmp_path / ruined).mkdir()
    (tmp_path / ruined / "tiles.sqlite").write_bytes(b"no database" * 1000)
    (tmp_path / empty).mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").touch()
    (tmp_path / RUN).rename(tmp_path / foreign)
    found = list_runs(tmp_path)
    assert [entry.run for entry in found] == [OTHER_RUN, foreign, *sorted((ruined, empty))]
    first, renamed, *bad = found
    assert first.info is not None
    assert (first.info.rev, first.error, first.folder) == (1, "", tmp_path / OTHER_RUN)
    assert f"holds the run {RUN}" in renamed.error
    assert {entry.run: "damaged" in entry.error for entry in bad} == {ruined: True, empty: False}
    assert all(entry.info is None and "tilecast rebuild" in entry.error for entry in bad)
    assert list_runs(tmp_path / "nowhere") == []


def test_an_open_run_is_listed_too(tmp_path: Path) -> None:
    with SqliteStore.create(tmp_path / RUN, NEW_RUN) as store:
        store.commit(Commit())
        [entry] = list_runs(tmp_path)
        assert entry.info is not None
        assert entry.info.rev == 1


def test_bytes_of_a_folder_are_those_of_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "000000.tcj").write_bytes(bytes(1000))
    (tmp_path / "tiles.sqlite").write_bytes(bytes(234))
    assert folder_nbytes(tmp_path) == 1234


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[RunLock]:
    with RunLock(tmp_path) as lock:
        yield lock


def old_store(folder: Path, lock: RunLock) -> SqliteStore:
    """A run with a life behind it: rev 3, epoch 2."""
    store = SqliteStore.create(folder, NEW_RUN, lock=lock)
    store.commit(Commit(tiles=[a_tile(0, 0, text="old"), a_tile(7, 7)], placements=[a_placement(0)], levels=1))
    store.rename("renamed")
    store.bump_epoch("for the test")
    store.commit(Commit(gone=[(P0, TileKey(0, 7, 7))]))
    store.commit(Commit(tiles=[a_tile(0, 1)]))
    store.set_report(1, {"received": 1})
    store.set_state("ended")
    return store


def build_anew(folder: Path, lock: RunLock) -> None:
    """The same run, rebuilt in five commits with another blend mode."""
    new = replace(NEW_RUN, settings={**NEW_RUN.settings, "mode": "max"})
    with SqliteStore.create(folder, new, file_name=REBUILD_NAME, lock=lock) as store:
        for col in range(5):
            store.commit(Commit(tiles=[a_tile(0, col, text="new")], placements=[a_placement(col)], levels=1))
        store.add_event("rebuild", {"mode": "max"})


def files_in(folder: Path) -> list[str]:
    return sorted(re.sub("tiles-[0-9a-f]{8}[.]bin", "tiles-*.bin", path.name) for path in folder.iterdir())


def test_a_rebuilt_store_takes_over_as_one_commit(tmp_path: Path, lock: RunLock) -> None:
    old = old_store(tmp_path, lock)
    info = old.info()
    events = list(old.events())
    commits = list(old.commits())
    old.close()
    build_anew(tmp_path, lock)
    result = swap_in(tmp_path, lock=lock, clock_ns=lambda: 99)
    assert result == CommitResult(rev=4, epoch=3, t_commit_ns=99)
    assert files_in(tmp_path) == ["lock", "tiles-*.bin", "tiles.sqlite"]
    with SqliteStore.open(tmp_path, lock=lock) as store:
        now = store.info()
        assert (now.rev, now.epoch, now.epoch_rev, now.n_tiles, now.n_placements) == (4, 3, 4, 5, 5)
        assert (now.name, now.state, now.created_ns) == ("renamed", "ended", info.created_ns)
        assert (now.settings["mode"], now.report) == ("max", {"received": 1})
        assert {stamp.rev for stamp in store.stamps()} == {4}
        assert {row.rev for row in store.placements()} == {4}
        rows = list(store.commits())
        assert rows[:3] == commits
        assert (rows[3].rev, rows[3].epoch, rows[3].n_tiles, rows[3].n_placements) == (4, 3, 5, 5)
        assert list(store.events())[: len(events)] == events
        assert [event.name for event in list(store.events())[len(events) :]] == ["rebuild", "epoch"]
        assert store.changes(3, epoch=2).resync
        assert store.changes(3, epoch=3).resync
        assert not store.changes(4, epoch=3).resync
        assert store.check() == []
        assert store.commit(Commit(tiles=[a_tile(0, 0)])).rev == 5


def test_readers_follow_a_swap_without_a_gap(tmp_path: Path, lock: RunLock) -> None:
    old = old_store(tmp_path, lock)
    ready = threading.Barrier(4)
    swapped = threading.Event()
    with SqliteReader(tmp_path) as reader:
        failures: list[str] = []

        def read() -> None:
            ready.wait()
            last = (0, 0)
            over = False
            while not over:
                over = swapped.is_set()
                page = reader.snapshot()
                texts = {tile.pzf.rsplit(b" ", 1)[1] for tile in [reader.tile(P0, ORIGIN)] if tile is not None}
                whole = len(page.tiles) == (2 if page.epoch == 2 else 5)
                if not whole or (page.epoch, page.rev) < last or not texts <= {b"old", b"new"}:
                    failures.append(f"{page} {texts} after {last}")
                    return
                last = (page.epoch, page.rev)
            if last != (3, 4):
                failures.append(f"the swap was never seen: {last}")

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        ready.wait()
        try:
            build_anew(tmp_path, lock)
            old.close()
            swap_in(tmp_path, lock=lock)
            with SqliteStore.open(tmp_path, lock=lock) as store:
                store.set_state("ended")
        finally:
            swapped.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert reader.check() == []


def test_a_killed_rebuild_leaves_the_old_store_and_is_discarded(tmp_path: Path, lock: RunLock) -> None:
    with old_store(tmp_path, lock) as old:
        before = contents(old)
    half = SqliteStore.create(tmp_path, NEW_RUN, file_name=REBUILD_NAME, lock=lock)
    half.commit(Commit(tiles=[a_tile(0, 0)], levels=1))
    with pytest.raises(StoreError, match="holds a run already"):
        SqliteStore.create(tmp_path, NEW_RUN, file_name=REBUILD_NAME, lock=lock)
    half.close()
    (tmp_path / (REBUILD_NAME + "-wal")).touch()
    discard(tmp_path, lock=lock)
    discard(tmp_path, lock=lock)
    assert files_in(tmp_path) == ["lock", "tiles-*.bin", "tiles.sqlite"]
    with SqliteReader(tmp_path) as reader:
        assert contents(reader) == before


def test_a_swap_gives_up_while_somebody_reads_and_can_be_repeated(tmp_path: Path, lock: RunLock) -> None:
    old = old_store(tmp_path, lock)
    with SqliteReader(tmp_path) as reader:
        hold, held = threading.Event(), threading.Event()

        def wait_with_a_result(connection: sqlite3.Connection) -> None:
            connection.execute("SELECT * FROM run").fetchone()
            held.set()
            hold.wait()

        def hold_a_transaction() -> None:
            reader._read(wait_with_a_result)

        thread = threading.Thread(target=hold_a_transaction)
        thread.start()
        held.wait()
        old.add_note("while somebody reads")
        before = contents(old)
        old.close()
        build_anew(tmp_path, lock)
        with pytest.raises(StoreError, match="still being read"):
            swap_in(tmp_path, lock=lock)
        assert contents(reader) == before
        hold.set()
        thread.join()
        assert swap_in(tmp_path, lock=lock).rev == 4
        assert [event.name for event in reader.events()] == ["rename", "epoch", "note", "rebuild", "epoch"]


def test_a_ruined_store_is_succeeded_under_an_epoch_of_its_own(tmp_path: Path, lock: RunLock) -> None:
    old_store(tmp_path, lock).close()
    (tmp_path / "tiles.sqlite").write_bytes(b"ruined" * 1000)
    build_anew(tmp_path, lock)
    result = swap_in(tmp_path, lock=lock, clock_ns=lambda: 1_800_000_000 * 10**9)
    assert (result.rev, result.epoch) == (5, 1_800_000_000)
    assert [name.partition(".damaged-")[0] for name in files_in(tmp_path)] == [
        "lock",
        "tiles-*.bin",
        "tiles-*.bin",
        "tiles.sqlite",
        "tiles.sqlite",
    ]
    assert len(list(tmp_path.glob("tiles-*.bin.damaged-*"))) == len(list(tmp_path.glob("tiles.sqlite.damaged-*"))) == 1
    with SqliteReader(tmp_path) as reader:
        assert reader.info().epoch == 1_800_000_000
        assert reader.check() == []
        assert [row.rev for row in reader.commits()] == [5]


def test_a_missing_store_is_succeeded_too(tmp_path: Path, lock: RunLock) -> None:
    build_anew(tmp_path, lock)
    assert swap_in(tmp_path, lock=lock).epoch > 10**9
    assert files_in(tmp_path) == ["lock", "tiles-*.bin", "tiles.sqlite"]


def test_a_swap_refuses_what_does_not_belong(tmp_path: Path, lock: RunLock) -> None:
    with old_store(tmp_path, lock) as old:
        before = contents(old)
    with SqliteStore.create(tmp_path, replace(NEW_RUN, run=OTHER_RUN), file_name=REBUILD_NAME, lock=lock) as store:
        store.commit(Commit())
    with pytest.raises(StoreError, match=f"is of run {OTHER_RUN}, the old one of run {RUN}"):
        swap_in(tmp_path, lock=lock)
    discard(tmp_path, lock=lock)
    with pytest.raises(StoreError, match=r"there is no .*tiles\.sqlite\.rebuild"):
        swap_in(tmp_path, lock=lock)
    with SqliteReader(tmp_path) as reader:
        assert contents(reader) == before


def test_a_swap_never_sets_a_newer_store_aside(tmp_path: Path, lock: RunLock) -> None:
    with old_store(tmp_path, lock) as old:
        old._open_connection().execute("PRAGMA user_version = 999")
    build_anew(tmp_path, lock)
    with pytest.raises(StoreTooNewError):
        swap_in(tmp_path, lock=lock)
    assert not any("damaged" in name for name in files_in(tmp_path))


def test_a_swap_needs_the_lock_of_that_very_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with RunLock(tmp_path / "other") as other, pytest.raises(StoreError, match="needs the lock of that folder"):
        swap_in(tmp_path, lock=other)
    lock = RunLock(tmp_path)
    lock.release()
    with pytest.raises(StoreError, match="held"):
        discard(tmp_path, lock=lock)


def test_a_list_that_is_asked_for_again_opens_only_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [str(uuid.uuid4()) for _ in range(80)]
    with SqliteStore.create(tmp_path / runs[0], replace(NEW_RUN, run=runs[0])) as store:
        store.commit(Commit(tiles=[a_tile(0, 0)], levels=1))
    for run in runs[1:]:  # copies: to make each durably would take longer than all else here
        shutil.copytree(tmp_path / runs[0], tmp_path / run)
        with closing(sqlite3.connect(tmp_path / run / TILES_NAME)) as connection, connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("UPDATE run SET run = ?", (run,))

    def written(at_ns: int) -> None:
        for run in runs:
            for path in (tmp_path / run).iterdir():
                os.utime(path, ns=(at_ns, at_ns))

    opened: list[str] = []
    look_into = folders.look_into

    def seen(folder: Path) -> folders.FoundRun:
        opened.append(folder.name)
        return look_into(folder)

    monkeypatch.setattr(folders, "look_into", seen)
    runs_of = RunList(tmp_path)
    written(time.time_ns() + 10**12)  # a moment ago, however long the lists below take
    first = runs_of.runs()
    assert len(first) == len(opened) == 80
    opened.clear()
    assert runs_of.runs() == first
    assert len(opened) == 80  # files that were written a moment ago may change within the same tick of the clock
    written(time.time_ns() - 10**10)
    assert runs_of.runs() == first
    opened.clear()
    assert runs_of.runs() == first
    assert opened == []
    with SqliteStore.open(tmp_path / runs[7]) as store:
        store.commit(Commit())
        found = {one.run: one.info for one in runs_of.runs()}
        assert set(opened) == {runs[7]}
        store.commit(Commit())  # at once: no clock may have ticked
        again = {one.run: one.info for one in runs_of.runs()}
    for infos, rev in ((found, 2), (again, 3)):
        info = infos[runs[7]]
        assert info is not None
        assert info.rev == rev
    discard_run = tmp_path / runs[0]
    for path in discard_run.iterdir():
        path.unlink()
    discard_run.rmdir()
    assert runs[0] not in {one.run for one in runs_of.runs()}
