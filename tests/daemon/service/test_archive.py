"""An archive holds all of a run, any tar program reads it, and damage anywhere in it is found."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from integration.stored import assert_same, journalled_frames, stored_mosaic
from recordings import Recording, record
from tilecast.errors import StoreError
from tilecast.geometry import PlaneKey, TileKey
from tilecast.service import archive
from tilecast.service.archive import archive_run, unarchive_run, verify_archive
from tilecast.service.deletion import delete_run, seen
from tilecast.service.fsck import check_run
from tilecast.service.rebuild import rebuild_run
from tilecast.service.retention import seal
from tilecast.store.folders import folder_nbytes
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_file import disk_nbytes
from tilecast.store.tile_store import Commit, TileRow
from tilecast_protocol.errors import QueryError

PLANE = PlaneKey()


@pytest.fixture
def made(tmp_path: Path) -> Recording:
    """A run that has ended, with large holes in its file of tiles."""
    made = record(tmp_path / "runs")
    rebuild_run(made.folder)
    with SqliteStore.open(made.folder) as store:
        store.set_state("ended")
        stamps = list(store.stamps())
        tiles = {stamp: store.tile(stamp.plane, stamp.key) for stamp in stamps}
        far = TileRow(PLANE, TileKey(0, 500, 500), bytes(1 << 20))
        for _ in range(3):
            store.commit(Commit(tiles=[far]))
            assert store.checkpointer.settle()
        rows = [TileRow(one.plane, one.key, tile.pzf, tile.coverage) for one, tile in tiles.items() if tile is not None]
        store.commit(Commit(tiles=rows))
        store.commit(Commit(gone=[(PLANE, far.key)]))
    with SqliteStore.open(made.folder) as store:
        store._is_tidy = False  # so that closing it makes holes of everything that nobody names
    return made


def tile_file(folder: Path) -> Path:
    with SqliteReader(folder) as reader:
        return reader.tile_file_path()


def has_holes(folder: Path) -> bool:
    path = tile_file(folder)
    return disk_nbytes(path) < path.stat().st_size // 2


def test_there_and_back(made: Recording, tmp_path: Path) -> None:
    assert has_holes(made.folder), "the file system of the tests knows holes"
    expected, nbytes = stored_mosaic(made.folder), folder_nbytes(made.folder)
    path = tmp_path / "scan.tar"
    assert archive_run(made.folder, path) == seen(made.folder)
    assert path.stat().st_size < nbytes + 64 * 1024, "holes are left out"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["runs", "scan.tar"]
    run, files = verify_archive(path)
    assert run == made.run_id
    assert {"frozen.json", "tiles.sqlite", "journal/000000.tcj", tile_file(made.folder).name} <= files.keys()
    frozen = (made.folder / "frozen.json").read_bytes()
    delete_run(made.folder, "test")

    folder = unarchive_run(path, made.root)
    assert folder == made.folder
    assert check_run(folder) == []
    assert_same(stored_mosaic(folder), expected)
    assert journalled_frames(folder).keys() == made.pixels.keys()
    assert (folder / "frozen.json").read_bytes() == frozen
    assert has_holes(folder)
    with SqliteReader(folder) as reader:
        assert [event.detail["from"] for event in reader.events() if event.name == "unarchived"] == [str(path)]
    with pytest.raises(StoreError, match=r"there is a run .* already"):
        unarchive_run(path, made.root)
    with pytest.raises(StoreError, match="is there already"):
        archive_run(made.folder, path)


@pytest.mark.skipif(shutil.which("tar") is None or shutil.which("sha256sum") is None, reason="needs tar and sha256sum")
def test_people_can_do_without_us(made: Recording, tmp_path: Path) -> None:
    path = tmp_path / "scan.tar"
    archive_run(made.folder, path)
    plain = tmp_path / "plain"
    plain.mkdir()
    subprocess.run(["tar", "-xf", path, "-C", plain], check=True, capture_output=True)
    done = subprocess.run(
        ["sha256sum", "-c", "SHA256SUMS"], cwd=plain / made.run_id, check=True, capture_output=True, text=True
    )
    assert f"{tile_file(made.folder).name}: OK" in done.stdout
    assert has_holes(plain / made.run_id)
    (plain / made.run_id / "SHA256SUMS").unlink()
    assert check_run(plain / made.run_id) == []


def test_an_open_run_is_refused(made: Recording, tmp_path: Path) -> None:
    with SqliteStore.open(made.folder) as store:
        store.set_state("open")
    with pytest.raises(QueryError, match="is open; end it first, or copy it"):
        archive_run(made.folder, tmp_path / "scan.tar")
    assert [one.name for one in tmp_path.iterdir()] == ["runs"]


def test_a_recording_that_goes_on_is_refused(tmp_path: Path) -> None:
    going_on = Recording(tmp_path / "runs")
    going_on.images()
    with pytest.raises(QueryError, match="is being recorded, by process"):
        archive_run(going_on.folder, tmp_path / "scan.tar")
    going_on.close()
    archive_run(going_on.folder, tmp_path / "scan.tar")


def test_sealed_runs_and_bare_recordings(made: Recording, tmp_path: Path) -> None:
    seal(made.folder, "test")
    archive_run(made.folder, tmp_path / "sealed.tar")
    assert check_run(unarchive_run(tmp_path / "sealed.tar", tmp_path / "sealed")) == []
    bare = record(tmp_path / "bare")
    archive_run(bare.folder, tmp_path / "bare.tar")
    folder = unarchive_run(tmp_path / "bare.tar", tmp_path / "recordings")
    assert journalled_frames(folder).keys() == bare.pixels.keys()


def test_a_run_into_which_something_comes_is_not_taken_for_archived(
    made: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = archive.verify_archive

    def and_rename(*arguments: Any, **others: Any) -> Any:
        with SqliteStore.open(made.folder) as store:
            store.rename("another")
        return verify(*arguments, **others)

    monkeypatch.setattr(archive, "verify_archive", and_rename)
    with pytest.raises(StoreError, match="came into the run"):
        archive_run(made.folder, tmp_path / "scan.tar")
    assert [one.name for one in tmp_path.iterdir()] == ["runs"]


def test_what_does_not_read_back_is_no_archive(
    made: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = archive.verify_archive

    def after_decay(path: Path, **others: Any) -> Any:
        flip(path, contents(path)[1] + 50)
        return verify(path, **others)

    monkeypatch.setattr(archive, "verify_archive", after_decay)
    with pytest.raises(StoreError, match="is damaged"):
        archive_run(made.folder, tmp_path / "scan.tar")
    assert [one.name for one in tmp_path.iterdir()] == ["runs"]


def flip(path: Path, at: int) -> None:
    """Change a bit."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 4]))


def contents(path: Path) -> list[int]:
    """Where in an archive the bytes of its larger files begin."""
    with tarfile.open(path) as archived:
        return [one.offset_data for one in archived if one.size > 100]


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6, 0.9])
def test_damage_is_found_and_nothing_is_left(made: Recording, tmp_path: Path, share: float) -> None:
    path = tmp_path / "scan.tar"
    archive_run(made.folder, path)
    places = contents(path)
    assert len(places) > 2
    flip(path, places[int(share * len(places))] + 50)
    with pytest.raises(StoreError, match="is damaged"):
        verify_archive(path)
    with pytest.raises(StoreError, match="is damaged"):
        unarchive_run(path, tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_an_archive_that_was_cut_short_is_found(made: Recording, tmp_path: Path, share: float) -> None:
    path = tmp_path / "scan.tar"
    archive_run(made.folder, path)
    with tarfile.open(path) as archived:
        end = max(one.offset_data for one in archived)
    with path.open("r+b") as file:
        file.truncate(int(end * share))
    with pytest.raises(StoreError):
        verify_archive(path)
    with pytest.raises(StoreError):
        unarchive_run(path, tmp_path / "back")
    assert not (tmp_path / "back").exists() or list((tmp_path / "back").iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "../outside.txt",
        "/etc/outside.txt",
        f"{'0' * 8}-1111-7000-8000-000000000001/../../outside.txt",
        "not-a-uuid/frozen.json",
        "frozen.json",
    ],
)
def test_an_archive_of_somebody_else_writes_nothing_outside(tmp_path: Path, name: str) -> None:
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as odd:
        info = tarfile.TarInfo(name)
        info.size = 4
        odd.addfile(info, io.BytesIO(b"evil"))
    with pytest.raises(StoreError):
        unarchive_run(path, tmp_path / "back" / "runs")
    with pytest.raises(StoreError):
        verify_archive(path)
    assert not list(tmp_path.rglob("*.txt"))


def test_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as odd:
        info = tarfile.TarInfo("0190a5a8-1111-7000-8000-000000000001/journal")
        info.type, info.linkname = tarfile.SYMTYPE, "/tmp"
        odd.addfile(info)
    with pytest.raises(StoreError, match="does not belong"):
        unarchive_run(path, tmp_path / "back")


def test_what_is_no_tar_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in ("", "hello " * 1000):
        path.write_text(text)
        with pytest.raises(StoreError):
            verify_archive(path)
        with pytest.raises(StoreError):
            unarchive_run(path, tmp_path / "back")
