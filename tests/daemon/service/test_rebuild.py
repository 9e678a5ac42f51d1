"""A run's mosaic made anew from its journal is the one that its frames give, and nothing is lost if that fails."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faults.nursery import shared
from ingest_harness import T0
from integration.stored import assert_same, reference_mosaic, stored_mosaic
from recordings import CORNERS, MS, Recording, record
from tilecast.errors import CalibrationError, RunLockedError, StoreError
from tilecast.ingest.joining import PlacingRules
from tilecast.ingest.verdicts import RunPhase
from tilecast.service import runs
from tilecast.service.rebuild import rebuild_run
from tilecast.service.retention import seal
from tilecast.store.folders import REBUILD_NAME
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_connection import TILES_NAME
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import RunInfo
from tilecast_protocol.errors import JournalError

MODES = ("feather", "mean", "max", "min", "newest", "nearest")


def info_of(folder: Path) -> RunInfo:
    """What the store of a run says of it."""
    with SqliteReader(folder) as reader:
        return reader.info()


def corners_of(folder: Path) -> dict[int, tuple[int, int]]:
    """Where each frame lies."""
    with SqliteReader(folder) as reader:
        return {row.placement.frame: (row.placement.row, row.placement.col) for row in reader.placements()}


@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<f4"])
@pytest.mark.parametrize("mode", MODES)
def test_a_recording_becomes_the_mosaic_of_its_frames(tmp_path: Path, dtype: str, mode: str) -> None:
    made = record(tmp_path, dtype=dtype, blend=mode, planes=2)
    rebuilt = rebuild_run(made.folder)
    assert (rebuilt.n_frames, rebuilt.n_joined, rebuilt.mode) == (len(CORNERS), len(CORNERS), mode)
    corners = dict(enumerate(CORNERS))
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels, corners))
    info = info_of(made.folder)
    assert (info.state, info.revision, info.n_placements) == ("ended", 1, len(CORNERS))
    assert info.report is not None
    assert (info.report["received"], info.report["placed"], info.report["state"]) == (7, 7, "ended")
    assert not (made.folder / REBUILD_NAME).exists()


def test_a_memory_that_holds_almost_nothing_changes_no_bit(tmp_path: Path) -> None:
    made = record(tmp_path)
    rebuild_run(made.folder)
    roomy = stored_mosaic(made.folder)
    rebuild_run(made.folder, budget_bytes=1)
    assert_same(stored_mosaic(made.folder), roomy)


def test_another_blend_mode_holds_from_then_on(tmp_path: Path) -> None:
    made = record(tmp_path, blend="feather")
    first = rebuild_run(made.folder)
    again = rebuild_run(made.folder, mode="max")
    assert (again.commit.epoch, again.commit.rev) == (first.commit.epoch + 1, first.commit.rev + 1)
    assert again.n_joined == 0
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels))
    assert rebuild_run(made.folder).mode == "max"
    assert runs.read_frozen(made.folder).mode == "feather"


def test_placements_stand_unless_all_are_to_be_found_anew(tmp_path: Path) -> None:
    made = record(tmp_path)
    rebuild_run(made.folder)
    with SqliteStore.open(made.folder) as store:
        connection = store._open_connection()
        connection.execute("UPDATE placements SET row = row + 5 WHERE frame = 2")
    rebuild_run(made.folder)
    assert corners_of(made.folder)[2] == (CORNERS[2][0] + 5, CORNERS[2][1])
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels))
    rebuilt = rebuild_run(made.folder, rejoin=True)
    assert rebuilt.n_joined == len(CORNERS)
    assert corners_of(made.folder) == dict(enumerate(CORNERS))


def joined_recording(root: Path, **recording: Any) -> Recording:
    """Three frames between stage messages, one after the last."""
    made = Recording(root, **recording)
    for number in range(4):
        made.stage(number * 100, (0, 20 * number))
    for frame, t_ms in enumerate((50, 150, 250, 350)):
        made.image(frame, t0_ns=T0 + t_ms * MS, t1_ns=T0 + t_ms * MS)
    return made


def test_frames_are_joined_to_the_stage_by_the_frozen_rules(tmp_path: Path) -> None:
    made = joined_recording(tmp_path / "wide", rules=PlacingRules(join_max_gap_ms=100))
    made.end()
    rebuilt = rebuild_run(made.close())
    assert corners_of(made.folder) == {0: (0, 10), 1: (0, 30), 2: (0, 50)}
    assert rebuilt.unplaced == {"no-later-stage": [(3, 3)]}
    narrow = joined_recording(tmp_path / "narrow", rules=PlacingRules(join_max_gap_ms=99))
    rebuilt = rebuild_run(narrow.close())
    assert (rebuilt.n_frames, rebuilt.unplaced["stage-gap"]) == (0, [(0, 2)])


@pytest.mark.parametrize("how", ["named by the start", "frozen when the run began"])
def test_frames_are_joined_to_the_stage_that_was_frozen(tmp_path: Path, how: str) -> None:
    """Not to whichever stage stands first in the journal."""
    named = how == "named by the start"
    made = Recording(tmp_path, changes={"stage_stream": "right"} if named else {})
    for stream, row in (("left", 0), ("right", 40)):
        made.stages.common |= {"stream": stream, "src": stream}
        for number in range(2):
            made.stage(number * 100, (row, 20 * number))
    made.image(0, t0_ns=T0 + 50 * MS, t1_ns=T0 + 50 * MS)
    if not named:
        record = runs.read_record(made.folder, made.start, made.run.frozen, RunPhase.OPEN, 0)
        runs.keep_record(made.folder, replace(record, stage_stream="right"))
    rebuild_run(made.close())
    assert corners_of(made.folder) == {0: (40, 10)}


def test_a_run_that_lacks_its_calibration_is_not_shown_without_it(tmp_path: Path) -> None:
    made = record(tmp_path)
    kept = runs.read_record(made.folder, made.start, made.run.frozen, RunPhase.OPEN, 0)
    runs.keep_record(made.folder, replace(kept, held=True))
    rebuilt = rebuild_run(made.folder)
    assert (rebuilt.n_frames, rebuilt.unplaced) == (0, {"calibration-missing": [(0, 6)]})


def test_the_frozen_calibration_is_applied(tmp_path: Path) -> None:
    dark = np.full((24, 30), 7, np.float32)
    made = record(tmp_path, dark=dark)
    rebuild_run(made.folder)
    corrected = {frame: np.maximum(pixels, 7) - np.uint16(7) for frame, pixels in made.pixels.items()}
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, corrected))
    np.save(made.folder / "dark.npy", dark + 1)
    before = (made.folder / TILES_NAME).read_bytes()
    with pytest.raises(CalibrationError, match="not those that were frozen"):
        rebuild_run(made.folder)
    assert (made.folder / TILES_NAME).read_bytes() == before


def test_a_run_that_nobody_ended_is_idle(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    made.images()
    rebuild_run(made.close())
    info = info_of(made.folder)
    assert info.state == "idle"
    assert info.report is not None
    assert info.report["state"] == "idle"


@pytest.mark.parametrize("ruin", ["missing", "no database", "cut off", "unfinished"])
def test_a_store_that_is_missing_or_ruined_is_made_anew(tmp_path: Path, ruin: str) -> None:
    made = record(tmp_path)
    rebuild_run(made.folder)
    sound = stored_mosaic(made.folder)
    tiles = made.folder / TILES_NAME
    if ruin == "missing":
        tiles.unlink()
    elif ruin == "no database":
        tiles.write_bytes(b"no database" * 10_000)
    elif ruin == "cut off":
        os.truncate(tiles, 3 * 65536)
    else:
        tiles.write_bytes(b"")
    rebuilt = rebuild_run(made.folder)
    assert rebuilt.commit.epoch > 1_000_000  # more than any daemon has counted
    assert_same(stored_mosaic(made.folder), sound)
    info = info_of(made.folder)
    assert (info.state, info.revision) == ("ended", 1)


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 16]))


def test_frames_that_cannot_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    made = record(tmp_path)
    segment = made.folder / runs.JOURNAL_NAME / "000000.tcj"
    with runs.Journal.open(segment.parent, readonly=True) as journal:
        flip(segment, journal.image(3).lsn - 10)
    rebuilt = rebuild_run(made.folder)
    assert (rebuilt.damaged, rebuilt.n_frames) == ((3,), len(CORNERS) - 1)
    assert sorted(corners_of(made.folder)) == [0, 1, 2, 4, 5, 6]
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels))


def test_a_journal_that_cannot_be_read_leaves_the_old_mosaic(tmp_path: Path) -> None:
    made = record(tmp_path)
    rebuild_run(made.folder)
    before = (made.folder / TILES_NAME).read_bytes()
    shutil.rmtree(made.folder / runs.JOURNAL_NAME)
    with pytest.raises(JournalError, match="there is no journal"):
        rebuild_run(made.folder)
    assert (made.folder / TILES_NAME).read_bytes() == before


def test_of_a_sealed_run_it_is_said_since_when(tmp_path: Path) -> None:
    made = record(tmp_path)
    rebuild_run(made.folder)
    with SqliteStore.open(made.folder) as store:
        store.set_state("ended")
    sealed_ns = 1_700_000_000 * 10**9
    seal(made.folder, "operator", clock_ns=lambda: sealed_ns)
    since = datetime.fromtimestamp(sealed_ns // 10**9).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    with pytest.raises(StoreError, match=f"is sealed since {since}: its recorded frames were dropped"):
        rebuild_run(made.folder)


def test_a_run_that_somebody_writes_is_left_alone(tmp_path: Path) -> None:
    made = record(tmp_path)
    with RunLock(made.folder), pytest.raises(RunLockedError, match=str(os.getpid())):
        rebuild_run(made.folder)
    assert not (made.folder / TILES_NAME).exists()


def test_progress_tells_how_far_it_is_and_can_break_it_off(tmp_path: Path) -> None:
    made = record(tmp_path)
    seen: list[tuple[str, int, int]] = []
    rebuild_run(made.folder, progress=lambda *step: seen.append(step))
    assert seen == [
        *(("placing frames", done, 7) for done in range(1, 8)),
        *(("blending frames", done, 7) for done in range(1, 8)),
    ]
    before = (made.folder / TILES_NAME).read_bytes()

    def stop(what: str, done: int, _total: int) -> None:
        if (what, done) == ("blending frames", 4):
            raise StoreError("enough")

    with pytest.raises(StoreError, match="enough"):
        rebuild_run(made.folder, mode="min", progress=stop)
    assert (made.folder / TILES_NAME).read_bytes() == before
    assert not list(made.folder.glob(f"{REBUILD_NAME}*"))
    RunLock(made.folder).release()


_KILLED = """
import os, signal, sys
from pathlib import Path
from tilecast.service.rebuild import rebuild_run

def kill(what, done, total):
    if (what, done) == ("blending frames", 5):
        os.kill(os.getpid(), signal.SIGKILL)

rebuild_run(Path(sys.argv[1]), mode="min", progress=kill)
"""


def test_a_rebuild_that_is_killed_leaves_everything_as_it_was(tmp_path: Path) -> None:
    made = record(tmp_path)
    rebuild_run(made.folder)
    before, epoch = stored_mosaic(made.folder), info_of(made.folder).epoch
    done = shared().script(_KILLED, str(made.folder))
    assert done.returncode == -signal.SIGKILL
    assert (made.folder / REBUILD_NAME).exists()
    info = info_of(made.folder)
    assert (info.settings["mode"], info.epoch) == ("feather", epoch)
    assert_same(stored_mosaic(made.folder), before)
    rebuild_run(made.folder, mode="min")
    assert not (made.folder / REBUILD_NAME).exists()
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels))
