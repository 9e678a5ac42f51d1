"""A copy of a run is a run: the same frames, the same mosaic, no larger than it, whatever was going on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from integration.stored import assert_same, journalled_frames, stored_mosaic
from recordings import Recording, record
from tilecast.errors import StoreError, StoreOutdatedError, StoreTooNewError
from tilecast.geometry import PlaneKey, TileKey
from tilecast.service import copying
from tilecast.service.copying import copy_run, named_extents, other_files
from tilecast.service.fsck import check_run
from tilecast.service.rebuild import rebuild_run
from tilecast.service.retention import seal
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_file import Extent, disk_nbytes
from tilecast.store.tile_store import Commit, TileRow

PLANE = PlaneKey()


@pytest.fixture
def made(tmp_path: Path) -> Recording:
    """A run that has ended."""
    made = record(tmp_path / "runs")
    rebuild_run(made.folder)
    with SqliteStore.open(made.folder) as store:
        store.set_state("ended")
    return made


def test_a_copy_is_the_run(made: Recording, tmp_path: Path) -> None:
    (made.folder / "my notes").mkdir()
    (made.folder / "my notes" / "a.txt").write_text("by a person")
    copy = copy_run(made.folder, tmp_path / "copies")
    assert copy == tmp_path / "copies" / made.run_id
    assert check_run(copy) == []
    assert_same(stored_mosaic(copy), stored_mosaic(made.folder))
    assert journalled_frames(copy).keys() == made.pixels.keys()
    assert (copy / "frozen.json").read_bytes() == (made.folder / "frozen.json").read_bytes()
    assert (copy / "my notes" / "a.txt").read_text() == "by a person"
    assert not (copy / "active").exists()
    with SqliteReader(copy) as reader:
        assert reader.info().state == "ended"
        assert [event.detail["from"] for event in reader.events() if event.name == "copied"] == [str(made.folder)]
    with SqliteReader(made.folder) as reader:
        assert "copied" not in [event.name for event in reader.events()]
    assert [path.name for path in (tmp_path / "copies").iterdir()] == [made.run_id]
    with pytest.raises(StoreError, match=r"there is a run .* already"):
        copy_run(made.folder, tmp_path / "copies")


def test_a_sealed_run_and_a_bare_recording_are_copied(made: Recording, tmp_path: Path) -> None:
    seal(made.folder, "test")
    copy = copy_run(made.folder, tmp_path / "sealed")
    assert check_run(copy) == []
    assert not (copy / "journal").exists()
    bare = record(tmp_path / "bare")
    copy = copy_run(bare.folder, tmp_path / "recordings")
    assert not (copy / "tiles.sqlite").exists()
    assert journalled_frames(copy).keys() == bare.pixels.keys()


def fill(store: SqliteStore, step: int, n: int = 40) -> None:
    """Write the same tiles again, as large as a block or more, with bytes of this step."""
    tiles = [TileRow(PLANE, TileKey(0, 0, col), bytes([step]) * 9000) for col in range(n)]
    store.commit(Commit(tiles=tiles, levels=1))


def test_a_run_that_is_written_is_copied_at_one_moment(
    made: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the rounds and in the transaction others write, and old tiles become holes as soon as they may."""
    store = SqliteStore.open(made.folder)
    fill(store, 1)
    store.set_state("open")
    steps = iter(range(2, 100))
    monkeypatch.setattr(copying, "_LITTLE_NBYTES", 1)
    copy_tiles = copying._copy_tiles

    def while_written(*arguments: Any) -> Any:
        fill(store, next(steps))
        store.checkpointer.settle(1.0)  # makes holes of what was replaced, if nobody reads
        done = copy_tiles(*arguments)
        fill(store, next(steps))
        return done

    monkeypatch.setattr(copying, "_copy_tiles", while_written)
    copy = copy_run(made.folder, tmp_path / "copies")
    last = next(steps) - 1
    assert last > 8
    with SqliteReader(copy) as reader:
        assert list(reader.damaged_tiles()) == []
        [seen] = {reader.tile(PLANE, TileKey(0, 0, col)).pzf[0] for col in range(40)}  # type: ignore[union-attr]
        info = reader.info()
        path = reader.tile_file_path()
    assert seen < last, "the moment is before the last that was written"
    assert info.state == "idle", "whoever sends it sends it elsewhere"
    assert (copy / "active").exists(), "the next daemon blends what was not shown yet"
    with SqliteReader(copy) as reader:
        named = sum(extent.nbytes for extent in named_extents(reader._connect(reader._identity())))
    assert disk_nbytes(path) <= named + 20 * 4096, "what no row names is a hole"
    store.close()


def test_a_recording_that_is_written_is_cut_at_a_whole_record(tmp_path: Path) -> None:
    made = Recording(tmp_path / "runs")
    made.images()
    # What the next append has written so far:
    segment = made.folder / "journal" / "000000.tcj"
    with segment.open("ab") as file:
        file.write(segment.read_bytes()[64:200])
    copy = copy_run(made.folder, tmp_path / "copies")
    rebuild_run(copy)
    assert check_run(copy) == []
    assert journalled_frames(copy).keys() == made.pixels.keys()
    assert (copy / "journal" / "000000.tcj").stat().st_size < segment.stat().st_size
    made.close()


def test_a_run_that_is_sealed_meanwhile_is_copied_sealed(
    made: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_recording, sealed = copying._copy_recording, []

    def after_sealing(folder: Path, *arguments: Any) -> None:
        if not sealed:
            sealed.append(seal(folder, "test"))
        copy_recording(folder, *arguments)

    monkeypatch.setattr(copying, "_copy_recording", after_sealing)
    copy = copy_run(made.folder, tmp_path / "copies")
    with SqliteReader(copy) as reader:
        assert reader.info().state == "sealed"
    assert check_run(copy) == []


def test_a_closed_run_that_is_written_meanwhile_is_copied_anew(
    made: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up, names = copying.back_up, []

    def and_rename(*arguments: Any) -> None:
        if not names:
            names.append("another")
            with SqliteStore.open(made.folder) as store:
                store.rename("another")
        back_up(*arguments)

    monkeypatch.setattr(copying, "back_up", and_rename)
    copy = copy_run(made.folder, tmp_path / "copies")
    with SqliteReader(copy) as reader:
        assert reader.info().name == "another"
    assert check_run(copy) == []


def test_what_cannot_be_read_is_not_copied(made: Recording, tmp_path: Path) -> None:
    into = tmp_path / "copies"
    for version, error in ((1, StoreOutdatedError), (99, StoreTooNewError)):
        folder = tmp_path / str(version) / made.run_id
        shutil.copytree(made.folder, folder)
        with SqliteStore.open(folder) as store:
            store._open_connection().execute(f"PRAGMA user_version = {version}")
        with pytest.raises(StoreError) as caught:
            copy_run(folder, into)
        assert isinstance(caught.value, error) or "says schema" in str(caught.value)
    next(made.folder.glob("tiles-*.bin")).unlink()
    with pytest.raises(StoreError, match="are missing"):
        copy_run(made.folder, into)
    (tmp_path / "nothing" / made.run_id).mkdir(parents=True)
    with pytest.raises(StoreError, match="nothing of a run"):
        copy_run(tmp_path / "nothing" / made.run_id, into)
    assert list(into.iterdir()) == []


def test_what_was_left_by_one_that_was_killed_is_in_nobodys_way(made: Recording, tmp_path: Path) -> None:
    partial = tmp_path / "copies" / f"{made.run_id}.partial"
    (partial / "journal").mkdir(parents=True)
    (partial / "journal" / "000007.tcj").write_bytes(b"old")
    (partial / "tiles-0badcafe.bin").write_bytes(b"old")
    with RunLock(partial), pytest.raises(StoreError, match="is being written by"):
        copy_run(made.folder, tmp_path / "copies")
    assert (partial / "tiles-0badcafe.bin").exists()
    copy = copy_run(made.folder, tmp_path / "copies")
    assert check_run(copy) == []
    assert not (copy / "tiles-0badcafe.bin").exists()


def test_other_files_are_those_that_are_no_cache_and_no_recording(made: Recording) -> None:
    for name in ("active", "checked.json", "deletion.json", "x.new", "tiles.sqlite.damaged-1", "dark.npy", "hello.txt"):
        (made.folder / name).write_bytes(b"x")
    names = [path.name for path in other_files(made.folder)]
    assert (
        {"frozen.json", "dark.npy", "hello.txt"}
        <= set(names)
        <= {"frozen.json", "dark.npy", "hello.txt", "ingest.json"}
    )


def test_extents_that_lie_close_are_one(made: Recording) -> None:
    with SqliteStore.open(made.folder) as store:
        connection = store._open_connection()
        connection.execute("DELETE FROM tiles")
        assert list(named_extents(connection)) == []
        for number, (offset, nbytes) in enumerate([(0, 100), (100, 50), (4096, 10), (900_000, 7)]):
            connection.execute("INSERT INTO tiles VALUES (1, 0, 0, ?, 1, ?, ?, NULL, 0)", (number, offset, nbytes))
        assert list(named_extents(connection)) == [Extent(0, 4106), Extent(900_000, 7)]
        assert list(named_extents(connection, 100)) == [Extent(100, 4006), Extent(900_000, 7)]
        connection.execute("DELETE FROM tiles")
