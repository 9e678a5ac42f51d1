"""A fault at every write, sync, rename and deletion, one after the other; and death at each of them.

A small piece of work is done once to count how often it uses the disk; then again for every one of these calls, which
fails as a full, a broken or a read-only disk does, once or from then on, or is done and then called failed, or is the
last that the process ever makes. After each: nothing is corrupt, all that was promised is there, and what was said is
clear.

By default eight calls of each piece of work are tried; all of them, each in every way, take an hour:

    uv run pytest tests/faults -m slow
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from faults import chores
from faults.nursery import Disk, Nursery
from ingest_harness import RUN
from integration.stored import assert_same, stored_mosaic
from old_store import old_store, old_tile
from recordings import record
from tilecast.geometry import PlaneKey, TileKey
from tilecast.service.archive import archive_run, verify_archive
from tilecast.service.copying import copy_run
from tilecast.service.deletion import deletions, finish_begun
from tilecast.service.fsck import check_run
from tilecast.service.rebuild import rebuild_run
from tilecast.service.retention import finish
from tilecast.store.folders import bring_up_to_date
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_file import disk_nbytes
from tilecast.store.tile_store import StoreDamagedError
from tilecast_protocol.journal import Journal
from tilecast_protocol.journal_direct import ALIGNMENT

FOR_EVER = 1 << 40


@dataclass(frozen=True)
class Way:
    """How a call fails: as `Disk` has it."""

    name: str
    errno: int
    is_lasting: bool = False

    @property
    def dies(self) -> bool:
        """Whether it is the last call of the process."""
        return self.errno == 0

    def disk(self, folder: Path, first: int) -> Disk:
        """One that fails so at its `first` call, or from then on."""
        last = FOR_EVER if self.is_lasting else first
        return Disk(folder=str(folder), first=first, last=last, errno=self.errno)


WAYS = [
    *(
        Way(name + (" for ever" if is_lasting else ""), number, is_lasting)
        for name, number in (("full", errno.ENOSPC), ("broken", errno.EIO), ("read-only", errno.EROFS))
        for is_lasting in (False, True)
    ),
    Way("dies", 0),
    Way("done and called failed", -errno.EIO),
]
FEW = len(WAYS)
EXTENT = pytest.mark.parametrize(
    "way",
    [None, *(pytest.param(way, marks=[pytest.mark.slow, pytest.mark.timeout(1200, func_only=True)]) for way in WAYS)],
    ids=["few", *(way.name for way in WAYS)],
)
"""Every call in one of the ways; without one a few calls, each in another."""
N_OLD_TILES = 40


@dataclass
class Outcome:
    """What became of a piece of work.

    Attributes
    ----------
    way : str
        What went wrong, for messages.
    code : int
        How the process ended.
    calls : list of int
        How often up to each time that it told.
    safe : list of int
        What it was promised.
    errors : list of str
    log : list
        What it said besides.
    """

    way: str
    code: int
    calls: list[int] = field(default_factory=list)
    safe: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    log: list[Any] = field(default_factory=list)

    @property
    def n_calls(self) -> int:
        """How often it used the disk; 0 if it did not live to tell."""
        return self.calls[-1] if self.calls else 0


def work(nursery: Nursery, chore: str, folder: Path, disk: Disk) -> Outcome:
    """Do it once."""
    promises = folder.with_suffix(".promises")
    promises.unlink(missing_ok=True)
    child = nursery.call(f"faults.chores:{chore}", str(folder), str(promises), disk=disk)
    word = "dies" if not disk.errno else os.strerror(abs(disk.errno))
    span = f"call {disk.first}" + (" and all others" if disk.last > disk.first else "")
    outcome = Outcome(f"{chore}: {span}: {word}", child.wait(), log=child.log)
    for line in promises.read_text().splitlines() if promises.exists() else ():
        what, _, detail = line.partition(" ")
        match what:
            case "safe":
                outcome.safe.append(int(detail))
            case "error":
                outcome.errors.append(detail)
            case "calls":
                outcome.calls.append(int(detail))
    return outcome


def outcomes(
    nursery: Nursery, chore: str, folder: Path, way: Way | None, *, template: Path | None = None
) -> Iterator[Outcome]:
    """The work as it should be, then with a fault at every call, or, in all ways, at a few; each anew."""

    def prepare() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if template is None:
            folder.mkdir()
        else:
            shutil.copytree(template, folder)

    prepare()
    whole = work(nursery, chore, folder, Disk(folder=str(folder)))
    assert (whole.code, whole.errors) == (0, [])
    assert whole.n_calls > 3, "the shim sees what is written"
    yield whole
    ways = itertools.cycle(WAYS if way is None else [way])
    for first in range(1, whole.n_calls + 1, -(-whole.n_calls // FEW) if way is None else 1):
        one = next(ways)
        prepare()
        outcome = work(nursery, chore, folder, one.disk(folder, first))
        # What a disk does to a checkpoint in the background is not for the caller, who is told if it lasts.
        assert outcome.code == (-9 if one.dies else 0), outcome
        assert all(_is_clear(error, abs(one.errno)) for error in outcome.errors), outcome
        yield outcome


def _is_clear(error: str, number: int) -> bool:
    """Whether a person can tell from it what to look at."""
    words = ("disk", "permission", os.strerror(number).lower(), "sync", "fsck", "not be written")
    return any(word in error.lower() for word in words)


@EXTENT
def test_a_journal_keeps_what_it_called_durable(shimmed: Nursery, tmp_path: Path, way: Way | None) -> None:
    folder = tmp_path / "run"
    for outcome in outcomes(shimmed, "write_journal", folder, way):
        journalled = folder / "journal"
        if not list(journalled.glob("*.tcj")):
            assert outcome.safe == [], outcome
            Journal.create(journalled, chores.RUN).close()
            continue
        with Journal.open(journalled, segment_bytes=chores.SEGMENT_BYTES) as journal:
            frames = [frame for first, last in journal.frames().ranges() for frame in range(first, last + 1)]
            assert frames == list(range(len(frames))), outcome
            assert set(outcome.safe) <= set(frames), outcome
            for frame in frames:
                assert bytes(journal.image_of_frame(frame).parts[0]) == chores.payload(frame), outcome
            assert not [damage for damage in journal.damage if damage.durable], outcome
            assert journal.verify() == [], outcome


@EXTENT
def test_a_store_is_what_it_was_after_a_commit(shimmed: Nursery, tmp_path: Path, way: Way | None) -> None:
    """Making it is bringing an empty file up to date: every step of the schema is interrupted as well."""
    folder = tmp_path / chores.RUN
    for outcome in outcomes(shimmed, "write_store", folder, way):
        assert outcome.safe == list(range(len(outcome.safe)))
        try:
            store = SqliteStore.open(folder)
        except StoreDamagedError:
            assert outcome.safe == [], outcome  # its making was cut short, and is finished
            store = SqliteStore.create(folder, chores.new_run())
        with store:
            assert store.check() == [], outcome
            rev = store.info().rev
            assert rev in (len(outcome.safe), len(outcome.safe) + 1), outcome
            found = {stamp.key: store.tile(stamp.plane, stamp.key) for stamp in store.stamps()}
            assert {key: tile.pzf for key, tile in found.items() if tile is not None} == tiles_after(rev), outcome
            assert [row.placement.frame for row in store.placements()] == list(range(rev)), outcome
            assert [row.detail["step"] for row in store.events() if row.name == "step"] == list(range(rev)), outcome
            result = store.commit(chores.commit(rev))  # and it goes on
            assert result.rev == rev + 1


@pytest.mark.parametrize("way", [WAYS[2], WAYS[-1]], ids=lambda way: way.name)
def test_a_commit_that_failed_harms_no_other(shimmed: Nursery, tmp_path: Path, way: Way) -> None:
    """It may have reached the log all the same: a crash in the next one then brings it back, with its tiles."""
    made, folder = tmp_path / "made", tmp_path / chores.RUN
    with SqliteStore.create(made, chores.new_run()) as store:
        store.commit(chores.commit(0))
    shutil.copytree(made, folder)
    begun, done = work(shimmed, "die_after_a_commit", folder, Disk(folder=str(folder))).calls
    assert done - begun > 3
    revs = []
    for first in range(begun + 1, done + 1):
        shutil.rmtree(folder)
        shutil.copytree(made, folder)
        outcome = work(shimmed, "die_after_a_commit", folder, way.disk(folder, first))
        assert (outcome.code, len(outcome.errors)) == (-9, 1), outcome
        with SqliteStore.open(folder) as store:
            assert store.check() == [], outcome
            revs.append(rev := store.info().rev)
            found = {stamp.key: store.tile(stamp.plane, stamp.key) for stamp in store.stamps()}
            assert {key: tile.pzf for key, tile in found.items() if tile is not None} == tiles_after(rev), outcome
        # What nobody names has been given back.
        [tiles] = folder.glob("tiles-*.bin")
        assert disk_nbytes(tiles) <= len(found) * (len(chores.payload(0)) + 2 * ALIGNMENT), outcome
    assert set(revs) == ({1, 2} if way.errno < 0 else {1})


@EXTENT
def test_an_old_store_is_brought_up_to_date_or_as_it_was(shimmed: Nursery, tmp_path: Path, way: Way | None) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "runs").mkdir()
    template, folder = tmp_path / "old" / RUN, tmp_path / "runs" / RUN
    old_store(template, RUN, N_OLD_TILES)
    for outcome in outcomes(shimmed, "open_store", folder, way, template=template):
        # One that is up to date needs nothing more; what was begun is begun anew.
        assert all(error is None for _, error in bring_up_to_date(folder.parent)), outcome
        with SqliteStore.open(folder) as store:
            assert store.check() == [], outcome
            found = [store.tile(PlaneKey(), TileKey(0, 0, col)) for col in range(N_OLD_TILES)]
            assert found == [old_tile(col) for col in range(N_OLD_TILES)], outcome
            assert [path for path in folder.glob("tiles-*.bin") if path != store.tile_file_path()] == [], outcome


def tiles_after(n: int) -> dict[TileKey, bytes]:
    """The tiles of the store after so many commits."""
    if n == 0:
        return {}
    own = {TileKey(0, step, 0): chores.payload(step) for step in range(n)}
    return own | {TileKey(1, 0, 0): chores.payload(n - 1), TileKey(0, -n, 5): chores.payload(n - 1)}


@EXTENT
def test_a_rebuild_leaves_the_old_mosaic_or_the_new_one(shimmed: Nursery, tmp_path: Path, way: Way | None) -> None:
    made = record(tmp_path / "made")
    shutil.copytree(made.folder, tmp_path / "bare")
    folder = tmp_path / made.folder.name
    # With tiles already, which are in the way of the new ones.
    first = work(shimmed, "rebuild", made.folder, Disk(folder=str(made.folder)))
    assert (first.code, first.errors) == (0, [])
    expected = stored_mosaic(made.folder)
    assert expected
    for outcome in outcomes(shimmed, "rebuild", folder, way, template=made.folder):
        assert_same(stored_mosaic(folder), expected)
        if outcome.code:
            assert work(shimmed, "rebuild", folder, Disk(folder=str(folder))).errors == []
            assert_same(stored_mosaic(folder), expected)
        assert check_run(folder) == [], outcome


@EXTENT
def test_a_run_is_whole_or_sealed(shimmed: Nursery, tmp_path: Path, way: Way | None) -> None:
    made = record(tmp_path / "made")
    assert work(shimmed, "rebuild", made.folder, Disk(folder=str(made.folder))).errors == []
    expected = stored_mosaic(made.folder)
    folder = tmp_path / made.folder.name
    for outcome in outcomes(shimmed, "drop_journal", folder, way, template=made.folder):
        RunLock(folder).release()
        assert_same(stored_mosaic(folder), expected)
        with SqliteReader(folder) as reader:
            info = reader.info()
            assert reader.tile(PlaneKey(), next(iter(reader.keys(PlaneKey(), 0)))) is not None
        if info.state == "sealed":
            finish(folder, info)
            assert not list(folder.glob("journal*")), outcome
        else:
            with Journal.open(folder / "journal") as journal:
                assert journal.n_images == len(made.pixels)
                assert journal.verify() == [], outcome
            assert check_run(folder) == [], outcome


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder of runs with one run in it, which has ended."""
    made = record(tmp_path / "made")
    rebuild_run(made.folder)
    with SqliteStore.open(made.folder) as store:
        store.set_state("ended")
    return made.root


def the_run(root: Path) -> Path:
    """Where that run lies, or lay."""
    return root / RUN


@EXTENT
def test_a_copy_is_whole_or_not_there(shimmed: Nursery, store: Path, tmp_path: Path, way: Way | None) -> None:
    expected = stored_mosaic(the_run(store))
    folder = tmp_path / "runs"
    for outcome in outcomes(shimmed, "copy_live", folder, way, template=store):
        assert check_run(the_run(folder)) == [], outcome
        copies = folder / "copies"
        copy = the_run(copies)
        if not copy.exists():
            assert outcome.safe == [], outcome
            list(finish_begun(copies))
            assert not copies.exists() or list(copies.iterdir()) == [], outcome
            copy_run(the_run(folder), copies)
        assert check_run(copy) == [], outcome
        assert_same(stored_mosaic(copy), expected)


@EXTENT
def test_a_run_is_deleted_whole_or_not_at_all(shimmed: Nursery, store: Path, tmp_path: Path, way: Way | None) -> None:
    folder = tmp_path / "runs"
    for outcome in outcomes(shimmed, "delete", folder, way, template=store):
        assert all(error is None for _, error in finish_begun(folder)), outcome
        if the_run(folder).exists():
            assert (outcome.safe, deletions(folder)) == ([], []), outcome
            assert check_run(the_run(folder)) == [], outcome
        else:
            assert [path.name for path in folder.iterdir()] == ["deletions.jsonl"], outcome
            assert [entry["run"] for entry in deletions(folder)] == [RUN], outcome


@EXTENT
def test_a_run_is_there_or_its_archive_is_whole(shimmed: Nursery, store: Path, tmp_path: Path, way: Way | None) -> None:
    folder = tmp_path / "runs"
    for outcome in outcomes(shimmed, "archive", folder, way, template=store):
        list(finish_begun(folder))
        path = folder / "scan.tar"
        assert path.exists() or not outcome.safe, outcome
        if path.exists():
            assert verify_archive(path)[0] == RUN, outcome
        else:
            assert the_run(folder).exists(), outcome
        if the_run(folder).exists():
            assert check_run(the_run(folder)) == [], outcome


@EXTENT
def test_a_run_is_back_whole_or_not_at_all(shimmed: Nursery, store: Path, tmp_path: Path, way: Way | None) -> None:
    template, folder = tmp_path / "archived", tmp_path / "runs"
    template.mkdir()
    archive_run(the_run(store), template / "scan.tar")
    expected = stored_mosaic(the_run(store))
    for outcome in outcomes(shimmed, "unarchive", folder, way, template=template):
        assert verify_archive(folder / "scan.tar")[0] == RUN, outcome
        list(finish_begun(folder))
        if the_run(folder).exists():
            assert check_run(the_run(folder)) == [], outcome
            assert_same(stored_mosaic(the_run(folder)), expected)
        else:
            assert outcome.safe == [], outcome
            assert [path.name for path in folder.iterdir()] == ["scan.tar"], outcome
