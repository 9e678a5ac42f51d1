"""What ingest is told of run folders: which there are, what state they are in, and what is missing."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingest_harness import OTHER_RUN, RUN, Camera
from recordings import SHAPE, Recording, config, record
from tilecast import calibration as cal
from tilecast.errors import CalibrationError, RunLockedError, StoreError
from tilecast.ingest.verdicts import RunPhase, RunRecord
from tilecast.plugins import Plugins
from tilecast.service import runs
from tilecast.service.keeper import Keeper
from tilecast.service.rebuild import rebuild_run
from tilecast.service.runs import Run
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_connection import TILES_NAME
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast_protocol.errors import TilecastError
from tilecast_protocol.journal import RecordKind
from tilecast_protocol.messages import Start, encode


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    return Keeper(config(tmp_path), Plugins())


def a_start(**changes: object) -> Start:
    return Camera().start(**({"shape": SHAPE, "dtype": "<u2"} | changes))


def test_a_run_that_nobody_knows(keeper: Keeper, tmp_path: Path) -> None:
    assert keeper.lookup(RUN) is None
    (tmp_path / RUN).mkdir()
    assert keeper.lookup(RUN) is None
    (tmp_path / RUN / "journal").mkdir()
    assert keeper.lookup(RUN) is None, "nobody was promised anything of it"


def test_a_run_is_made_found_and_loaded(keeper: Keeper) -> None:
    made, held = keeper.create(RunRecord(start=a_start(blend="max")), may_lack_calibration=False)
    assert (made.run, made.frozen.mode, held) == (RUN, "max", False)
    append(made, made.start)
    keeper.keep(made, RunRecord(start=made.start, stage_stream="left", counts={"duplicate": 3}))
    made.release(finished=False)
    found = keeper.lookup(RUN)
    assert found is not None
    assert (found.start, found.phase, found.revision) == (made.start, RunPhase.OPEN, 0)
    assert (found.stage_stream, found.held, found.counts) == ("left", False, {"duplicate": 3})
    loaded, held = keeper.load(found)
    assert (loaded.frozen, held) == (made.frozen, False)
    assert len(keeper.placed_frames(loaded)) == 0
    keeper.keep_counts(loaded, {"duplicate": 4})
    loaded.release()
    again = keeper.lookup(RUN)
    assert again == replace(found, counts={"duplicate": 4})


def test_who_only_looks_at_a_run_is_asked_to_let_go_before_it_is_loaded(keeper: Keeper, tmp_path: Path) -> None:
    record(tmp_path)
    found = keeper.lookup(RUN)
    assert found is not None
    lock = RunLock(tmp_path / RUN)
    asked: list[str] = []

    def let_go(run: str) -> None:
        asked.append(run)
        lock.release()

    keeper.give_way = let_go
    keeper.load(found)[0].release()
    assert asked == [RUN]


def test_runs_that_are_loaded_were_not_left(keeper: Keeper, tmp_path: Path) -> None:
    made = Recording(tmp_path)
    made.close(finished=False)
    assert keeper.left_active() == [RUN]
    assert keeper.left_active({RUN}) == []


def test_phase_and_reports_are_what_the_store_says(keeper: Keeper, tmp_path: Path) -> None:
    made = record(tmp_path)
    rebuild_run(made.folder)
    with SqliteStore.open(made.folder) as store:
        store.set_state("idle")
        store.set_report(4, {"received": 7})
    found = keeper.lookup(RUN)
    assert found is not None
    assert (found.phase, found.revision) == (RunPhase.IDLE, 4)
    loaded, _ = keeper.load(found)
    assert keeper.placed_frames(loaded).ranges() == [(0, 6)]
    loaded.release()
    (made.folder / TILES_NAME).write_bytes(b"")
    found = keeper.lookup(RUN)
    assert found is not None
    assert (found.phase, found.revision) == (RunPhase.OPEN, 0), "a store whose making was cut short says nothing"
    assert len(keeper.placed_frames(loaded)) == 0


def test_a_run_without_its_journal_is_sealed(keeper: Keeper, tmp_path: Path) -> None:
    made = record(tmp_path, dark=np.ones(SHAPE, np.float32))
    rebuild_run(made.folder)
    shutil.rmtree(made.folder / "journal")
    found = keeper.lookup(RUN)
    assert found is not None
    assert (found.phase, found.start.instrument, found.start.stream) == (RunPhase.SEALED, "scope", "cam")


@pytest.mark.parametrize("ruin", ["tiles.sqlite", "journal/000000.tcj", "frozen.json"])
def test_a_run_that_cannot_be_read_says_so(keeper: Keeper, tmp_path: Path, ruin: str) -> None:
    made = record(tmp_path)
    rebuild_run(made.folder)
    (made.folder / ruin).write_bytes(b"ruined" * 1000)
    (made.folder / "journal" / "000000.tci").unlink(missing_ok=True)
    with pytest.raises(TilecastError):
        keeper.lookup(RUN)


def test_a_calibration_that_is_missing(keeper: Keeper, tmp_path: Path) -> None:
    lacking = RunRecord(start=a_start(dark="d20"))
    with pytest.raises(CalibrationError):
        keeper.create(lacking, may_lack_calibration=False)
    assert not (tmp_path / RUN).exists()
    made, held = keeper.create(lacking, may_lack_calibration=True)
    assert held
    assert made.images.calibration.is_identity
    made.release()


def append(run: Run, start: Start) -> None:
    """Journal a start."""
    header = bytes(encode(start)[1])
    run.journal.append(RecordKind.START, topic=start.topic, header=header, parts=start.parts, t_recv_ns=1)


@pytest.mark.parametrize("brought", ["nothing", "a ruined one", "a good one"])
def test_a_calibration_that_comes_later_is_frozen_when_the_run_is_loaded(tmp_path: Path, brought: str) -> None:
    data = cal.dump_npy(np.full(SHAPE, 9, np.float32))
    if brought == "a ruined one":
        data = data[:-1]
    whole = a_start(dark="part:0", nbytes=(len(data),), sha256=(hashlib.sha256(data).hexdigest(),), parts=(data,))
    bare = replace(whole, parts=(), nbytes=None)
    first = Keeper(config(tmp_path, "blend.tile_size=32", "blend.mode=min"), Plugins())
    made, held = first.create(RunRecord(start=bare), may_lack_calibration=True)
    assert held
    append(made, bare)
    if brought != "nothing":
        append(made, whole)
    first.keep(made, RunRecord(start=bare, held=True))
    made.release(finished=False)

    keeper = Keeper(config(tmp_path, "blend.tile_size=64", "blend.mode=max"), Plugins())
    found = keeper.lookup(RUN)
    assert found is not None
    assert found.held
    loaded, held = keeper.load(found)
    assert held == (brought != "a good one")
    assert (loaded.images.calibration.dark is None) == held
    assert loaded.frozen.calibration == loaded.images.calibration.sha256
    assert (loaded.frozen.tile_size, loaded.frozen.mode) == (32, "min"), "nothing else of it has changed"
    assert runs.read_frozen(loaded.folder) == loaded.frozen
    loaded.release()


def test_a_run_whose_start_could_not_be_journalled_is_taken_back(keeper: Keeper, tmp_path: Path) -> None:
    made, _ = keeper.create(RunRecord(start=a_start()), may_lack_calibration=False)
    keeper.discard(made)
    assert not (tmp_path / RUN).exists()
    again, _ = keeper.create(RunRecord(start=a_start()), may_lack_calibration=False)
    again.release()


def test_what_the_last_daemon_left(keeper: Keeper, tmp_path: Path) -> None:
    unfinished = Recording(tmp_path)
    unfinished.images()
    unfinished.close(finished=False)
    record(tmp_path, run_id=OTHER_RUN)
    stillborn = tmp_path / "22222222-2222-4333-8444-555555555555"
    (stillborn / "journal").mkdir(parents=True)
    (stillborn / "active").touch()
    foreign = tmp_path / "notes"
    foreign.mkdir()
    (foreign / "active").touch()
    assert keeper.left_active() == [RUN]
    assert not stillborn.exists()
    assert foreign.exists()


def test_a_ruined_run_is_left_to_be_loaded_or_refused(keeper: Keeper, tmp_path: Path) -> None:
    made = Recording(tmp_path)
    made.close(finished=False)
    (made.folder / "journal" / "000000.tcj").write_bytes(b"ruined" * 1000)
    (made.folder / "journal" / "000000.tci").unlink()
    assert keeper.left_active() == []
    assert made.folder.exists(), "what cannot be read is not thrown away"


def test_counts_that_cannot_be_kept_stop_nobody(keeper: Keeper, tmp_path: Path) -> None:
    made, _ = keeper.create(RunRecord(start=a_start()), may_lack_calibration=False)
    (tmp_path / RUN / (runs.INGEST_NAME + ".new")).mkdir()
    keeper.keep(made, RunRecord(start=made.start))
    keeper.keep_counts(made, {})
    made.release()


def test_notes_and_names_of_runs_that_are_not_loaded(keeper: Keeper, tmp_path: Path) -> None:
    made = record(tmp_path)
    rebuild_run(made.folder)
    keeper.write_closed(RUN, renamed="liver", note="focus drifted")
    with SqliteReader(made.folder) as reader:
        assert reader.info().name == "liver"
        assert [event.detail for event in reader.events() if event.name == "note"] == [{"text": "focus drifted"}]
    with RunLock(made.folder), pytest.raises(RunLockedError):
        keeper.write_closed(RUN, note="no")


def test_a_run_is_deleted_unless_somebody_writes_it(keeper: Keeper, tmp_path: Path) -> None:
    made = record(tmp_path)
    with RunLock(made.folder), pytest.raises(RunLockedError):
        keeper.delete(RUN, "operator")
    assert made.folder.exists()
    keeper.delete(RUN, "operator")
    assert not made.folder.exists()
    for name in ("..", "notes"):
        with pytest.raises(StoreError, match="UUID"):
            keeper.delete(name, "operator")
