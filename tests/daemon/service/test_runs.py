"""The folder of a run: what is frozen stays frozen, and it is given back whole, whatever went wrong."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingest_harness import RUN
from recordings import Recording, config, record
from tilecast import calibration as cal
from tilecast.errors import CalibrationError, RunLockedError, StoreError
from tilecast.hookspecs import hookimpl
from tilecast.ingest.joining import PlacingRules
from tilecast.ingest.verdicts import RunPhase
from tilecast.plugins import Plugins
from tilecast.service import runs
from tilecast.service.rebuild import rebuild_run
from tilecast.store.lock import RunLock
from tilecast_protocol.errors import JournalError
from tilecast_protocol.journal import Journal

SEGMENT = 1 << 30


def names(folder: Path) -> set[str]:
    """What lies in a folder."""
    return {path.name for path in folder.iterdir()}


def test_a_new_run_is_all_there(tmp_path: Path) -> None:
    made = Recording(tmp_path, dark=np.ones((24, 30), np.float32))
    assert names(made.folder) == {"active", "frozen.json", "dark.npy", "journal", "lock"}
    with pytest.raises(RunLockedError):
        RunLock(made.folder)
    made.close()
    assert "active" not in names(made.folder)
    RunLock(made.folder).release()


def test_a_run_that_is_not_finished_is_found_by_the_next_daemon(tmp_path: Path) -> None:
    for number, (finished, stuck) in enumerate([(True, ""), (False, ""), (True, "its store is damaged")]):
        made = Recording(tmp_path, run_id=f"{number}" * 8 + RUN[8:])
        made.run.stuck = stuck
        made.close(finished=finished)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "active").touch()
    assert [folder.name[:8] for folder in runs.active_runs(tmp_path)] == ["11111111", "22222222"]
    assert runs.active_runs(tmp_path / "nowhere") == []


def test_a_run_is_given_back_even_if_its_journal_cannot_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Recording(tmp_path)

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        with pytest.raises(JournalError):
            made.run.release()
    RunLock(made.folder).release()
    Journal.open(made.folder / "journal").close()


def test_what_is_frozen_is_read_as_it_was_written(tmp_path: Path) -> None:
    rules = PlacingRules(join_max_gap_ms=12.5, allow_moving=True, blend_status=frozenset({0, 1}))
    made = Recording(tmp_path, blend="nearest", tile_size=32, rules=rules, dark=np.ones((24, 30), np.float32))
    made.close()
    frozen = runs.read_frozen(made.folder)
    assert frozen == made.run.frozen
    assert (frozen.mode, frozen.tile_size, frozen.rules) == ("nearest", 32, rules)
    assert len(frozen.calibration) == 64


@pytest.mark.parametrize("text", ["", "[]", "null", '{"mode": "max"}', '{"tile_size": "x"}'])
def test_frozen_settings_that_make_no_sense(tmp_path: Path, text: str) -> None:
    (tmp_path / "frozen.json").write_text(text)
    with pytest.raises(StoreError):
        runs.read_frozen(tmp_path)


def test_a_start_says_how_its_frames_are_blended_or_the_configuration_does(tmp_path: Path) -> None:
    settings = config(tmp_path, "blend.mode=max", "blend.tile_size=64")
    said = Recording(tmp_path, blend="min").start
    frozen, images = runs.resolve(said, PlacingRules(), settings, Plugins())
    assert (frozen.mode, frozen.tile_size, frozen.calibration) == ("min", 64, "")
    assert images.calibration.is_identity
    silent = replace(said, blend=None)
    assert runs.resolve(silent, PlacingRules(), settings, Plugins())[0].mode == "max"


class Shelf:
    """A plugin that knows one flat field."""

    @hookimpl
    def tilecast_find_calibration(self, name: str, role: str, shape: tuple[int, int]) -> object:
        return np.full(shape, 2.0, np.float32) if (name, role) == ("20x", "flat") else None


def test_calibrations_come_by_name_or_with_the_start(tmp_path: Path) -> None:
    plugins = Plugins([("shelf", Shelf())])
    made = Recording(tmp_path, dark=np.full((24, 30), 5.0, np.float32))
    start = replace(made.start, flat="20x")
    _, images = runs.resolve(start, PlacingRules(), config(tmp_path), plugins)
    assert images.calibration.dark is not None
    assert images.calibration.flat is not None
    assert (images.calibration.dark[0, 0], images.calibration.flat[0, 0]) == (5, 2)
    with pytest.raises(CalibrationError, match="no dark named '20x'"):
        runs.resolve(replace(made.start, dark="20x"), PlacingRules(), config(tmp_path), plugins)
    with pytest.raises(CalibrationError, match="part:0, and this start carries 0"):
        runs.resolve(replace(made.start, parts=(), nbytes=None), PlacingRules(), config(tmp_path), plugins)


def test_a_calibration_is_checked_against_what_was_frozen(tmp_path: Path) -> None:
    made = Recording(tmp_path, dark=np.ones((24, 30), np.float32))
    folder = made.close()
    digest = made.run.frozen.calibration
    assert runs.load_calibration(folder, (24, 30), digest).sha256 == digest
    assert list(runs.frozen_images(folder)) == ["dark"]
    for ruined in (cal.dump_npy(np.zeros((24, 30), np.float32)), b"", b"\x93NUMPY"):
        (folder / "dark.npy").write_bytes(ruined)
        with pytest.raises(CalibrationError):
            runs.load_run(folder, segment_bytes=SEGMENT)
        RunLock(folder).release()
        Journal.open(folder / "journal").close()
    (folder / "dark.npy").unlink()
    with pytest.raises(CalibrationError, match="not those that were frozen"):
        runs.load_calibration(folder, (24, 30), digest)


def test_a_run_is_loaded_as_it_was(tmp_path: Path) -> None:
    made = record(tmp_path, dark=np.ones((24, 30), np.float32))
    loaded = runs.load_run(made.folder, segment_bytes=SEGMENT)
    assert "active" in names(made.folder)
    assert (loaded.run, loaded.start, loaded.frozen) == (RUN, made.start, made.run.frozen)
    assert not loaded.store_ready.is_set()
    placement = made.run.journal.image(2)
    pixels = runs.image_pixels(loaded.journal, 2, loaded.start)
    assert placement.frame == 2
    assert (pixels == made.pixels[2]).all()
    assert (loaded.images.of(pixels)[0] == np.maximum(pixels, 1) - 1).all()
    loaded.release()


@pytest.mark.parametrize("ruin", ["frozen.json", "journal", "start"])
def test_a_run_that_cannot_be_loaded_is_left_free(tmp_path: Path, ruin: str) -> None:
    made = Recording(tmp_path)
    folder = made.close()
    if ruin == "start":
        segment = folder / "journal" / "000000.tcj"
        data = bytearray(segment.read_bytes())
        data[70] ^= 1  # the first record is the start
        segment.write_bytes(data)
    elif ruin == "journal":
        for path in (folder / "journal").iterdir():
            path.unlink()
    else:
        (folder / ruin).unlink()
    with pytest.raises((StoreError, JournalError)):
        runs.load_run(folder, segment_bytes=SEGMENT)
    RunLock(folder).release()


def test_what_nobody_was_promised_makes_room(tmp_path: Path) -> None:
    """A daemon that dies while it makes a folder must not keep the run from being started again."""
    folder = tmp_path / RUN
    folder.mkdir(parents=True)
    assert runs.is_stillborn(folder), "no journal"
    (folder / "journal").mkdir()
    assert runs.is_stillborn(folder), "a journal without a segment"
    (folder / "journal" / "000000.new").write_bytes(b"x")
    made = Recording(tmp_path)
    assert not runs.is_stillborn(folder)
    made.close()
    segment = folder / "journal" / "000000.tcj"
    whole = segment.read_bytes()
    index = segment.with_suffix(".tci")
    listed = index.read_bytes()
    index.unlink()
    segment.write_bytes(whole[:100])
    assert runs.is_stillborn(folder), "the start was torn before it was durable"
    index.write_bytes(listed)
    assert not runs.is_stillborn(folder), "the start was durable, and is damaged"
    assert not runs.is_stillborn(tmp_path / "nowhere")


def test_a_run_with_tiles_is_never_stillborn(tmp_path: Path) -> None:
    made = record(tmp_path)
    rebuild_run(made.folder)
    for path in (made.folder / "journal").iterdir():
        path.unlink()
    assert not runs.is_stillborn(made.folder)
    with pytest.raises(FileExistsError):
        Recording(tmp_path)
    assert (made.folder / "tiles.sqlite").exists()


def test_a_run_that_is_there_is_not_begun_again(tmp_path: Path) -> None:
    made = record(tmp_path)
    before = (made.folder / "journal" / "000000.tcj").read_bytes()
    with pytest.raises(FileExistsError):
        Recording(tmp_path)
    assert (made.folder / "journal" / "000000.tcj").read_bytes() == before


@pytest.mark.parametrize("at", ["frozen.json", "active", "000000.new"])
def test_a_disk_that_is_full_leaves_nothing_of_a_new_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    old_replace, old_rename = Path.replace, Path.rename

    def full(self: Path, target: Path) -> Path:
        if at in (self.name, Path(target).name):
            raise OSError(errno.ENOSPC, "No space left on device")
        return (old_rename if self.suffix == ".new" and at == "000000.new" else old_replace)(self, target)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", full)
        broken.setattr(Path, "rename", full)
        with pytest.raises(OSError, match="No space"):
            Recording(tmp_path)
    assert not (tmp_path / RUN).exists()
    Recording(tmp_path).close()


def test_a_small_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note"
    runs.write_durably(path, b"first")

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            runs.write_durably(path, b"second")
    assert path.read_bytes() == b"first"
    runs.write_durably(path, b"second")
    assert path.read_bytes() == b"second"


def test_what_is_kept_beside_the_journal_comes_back(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    folder = made.close()
    fresh = runs.read_record(folder, made.start, made.run.frozen, RunPhase.IDLE, 3)
    assert (fresh.phase, fresh.revision, fresh.stage_stream, fresh.held, fresh.counts) == (
        RunPhase.IDLE,
        3,
        None,
        False,
        {},
    )
    kept = replace(fresh, stage_stream="left", held=True, counts={"duplicate": 2})
    runs.keep_record(folder, kept)
    assert runs.read_record(folder, made.start, made.run.frozen, RunPhase.IDLE, 3) == kept
    runs.keep_counts(folder, {"duplicate": 5})
    again = runs.read_record(folder, made.start, made.run.frozen, RunPhase.IDLE, 3)
    assert again == replace(kept, counts={"duplicate": 5})
    for ruined in ("", "[]", "{"):
        (folder / runs.INGEST_NAME).write_text(ruined)
        assert runs.read_record(folder, made.start, made.run.frozen, RunPhase.IDLE, 3) == fresh
    json.loads((folder / runs.FROZEN_NAME).read_text())
