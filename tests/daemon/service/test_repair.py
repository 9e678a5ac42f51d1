"""A repair brings back what journal or store still know, keeps what only one of them has, and says what is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damaged_store import drop_tile, spoil_tiles
from integration.stored import assert_same, stored_mosaic
from recordings import CORNERS, TILE, Recording, record
from tilecast.errors import RunLockedError, StoreError
from tilecast.geometry import PlaneKey, TileKey
from tilecast.service import runs
from tilecast.service.fsck import Kind, check_run, describe
from tilecast.service.rebuild import rebuild_run
from tilecast.service.repair import Repaired, repair_run
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_connection import TILES_NAME
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast_protocol.journal import Journal

P0 = PlaneKey()
FRAME = 6
"""The frame that lies apart from all others."""


class Kept:
    """A sound run, and what it held."""

    def __init__(self, root: Path, **recording: Any) -> None:
        self.made = record(root, **recording)
        self.folder = self.made.folder
        rebuild_run(self.folder)
        with SqliteStore.open(self.folder) as store:
            store.rename("liver, again")
            store.add_note("keep me")
        self.mosaic = stored_mosaic(self.folder)
        self.segment = self.folder / runs.JOURNAL_NAME / "000000.tcj"
        self.index = self.segment.with_suffix(".tci")
        self.tiles = self.folder / TILES_NAME

    def sql(self, statement: str, *values: Any) -> None:
        """Change the store behind everybody's back."""
        with SqliteStore.open(self.folder) as store:
            store._open_connection().execute(statement, values)

    def spoil_frame(self, frame: int) -> None:
        """Let the record of a frame decay."""
        with Journal.open(self.segment.parent, readonly=True) as journal:
            flip(self.segment, journal.image_of_frame(frame).lsn - 40)

    def tiles_of(self, frame: int) -> list[TileKey]:
        """The base tiles that a frame touches."""
        row, col = CORNERS[frame]
        height, width = self.made.shape
        return [
            TileKey(0, r, c)
            for r in range(row // TILE, (row + height - 1) // TILE + 1)
            for c in range(col // TILE, (col + width - 1) // TILE + 1)
        ]

    def is_as_it_was(self, repaired: Repaired) -> None:
        """Nothing is left to be found, and every tile is the one that was there."""
        assert [describe(finding) for finding in repaired.left] == []
        assert repaired.done
        assert check_run(self.folder) == []
        assert_same(stored_mosaic(self.folder), self.mosaic)
        with SqliteReader(self.folder) as reader:
            assert reader.info().state == "ended"


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def name_and_notes(folder: Path) -> tuple[str, list[str]]:
    """What people have said of a run."""
    with SqliteReader(folder) as reader:
        notes = [event.detail["text"] for event in reader.events() if event.name == "note"]
        return reader.info().name, notes


def test_a_sound_run_is_left_alone(kept: Kept) -> None:
    before = kept.tiles.read_bytes()
    assert repair_run(kept.folder) == Repaired((), ())
    assert kept.tiles.read_bytes() == before


@pytest.mark.parametrize("dtype", ["<u2", "<f4"])
def test_damaged_tiles_are_made_anew_and_no_others(tmp_path: Path, dtype: str) -> None:
    kept = Kept(tmp_path, dtype=dtype)
    base, upper = kept.tiles_of(FRAME)[0], TileKey(*max(key for _, key in kept.mosaic))
    for key in (base, upper):
        spoil_tiles(kept.folder, [key])
    with SqliteReader(kept.folder) as reader:
        before = {stamp.key: stamp.rev for stamp in reader.stamps()}
    repaired = repair_run(kept.folder)
    kept.is_as_it_was(repaired)
    assert repaired.change is not None
    assert repaired.change.tiles is not None
    chain = [base]
    while chain[-1].level < upper.level:
        chain.append(chain[-1].parent())
    assert {key for _, key in repaired.change.tiles} == {*chain, upper}
    with SqliteReader(kept.folder) as reader:
        after = {stamp.key: stamp.rev for stamp in reader.stamps()}
        assert [event.name for event in reader.events()][-1] == "repair"
    assert {key for key in after if after[key] != before[key]} == {*chain, upper}
    assert name_and_notes(kept.folder) == ("liver, again", ["keep me"])


@pytest.mark.parametrize("level", [0, 1])
def test_tiles_that_are_missing_come_back(kept: Kept, level: int) -> None:
    key = kept.tiles_of(FRAME)[0]
    key = key.parent() if level else key
    drop_tile(kept.folder, key)
    kept.is_as_it_was(repair_run(kept.folder))


@pytest.mark.parametrize("ruin", ["junk", "missing", "torn page", "first page"])
def test_a_ruined_store_is_set_aside_and_made_anew(kept: Kept, ruin: str) -> None:
    data = bytearray(kept.tiles.read_bytes())
    if ruin == "missing":
        kept.tiles.unlink()
    elif ruin == "junk":
        kept.tiles.write_bytes(b"no database" * 10_000)
    else:
        at = 0 if ruin == "first page" else 32768 * 2
        data[at : at + 4096] = bytes(4096)
        kept.tiles.write_bytes(data)
    kept.is_as_it_was(repair_run(kept.folder))
    aside = [path.name for path in kept.folder.glob(f"{TILES_NAME}.damaged-*")]
    assert len(aside) == (ruin != "missing")


def test_what_people_said_survives_a_torn_page(kept: Kept) -> None:
    kept.sql("UPDATE placements_box SET row0 = row0 - 5 WHERE id = 1")
    repaired = repair_run(kept.folder)
    kept.is_as_it_was(repaired)
    assert name_and_notes(kept.folder) == ("liver, again", ["keep me"])
    assert "made anew from 7 frames" in repaired.done[0]


@pytest.mark.parametrize("source", ["stage", "joined"])
def test_a_placement_that_decayed_is_found_again(kept: Kept, source: str) -> None:
    kept.sql("UPDATE placements SET row = row + 1, source = ? WHERE frame = 3", source)
    kept.is_as_it_was(repair_run(kept.folder))


def test_a_store_that_is_right_keeps_a_frame_that_the_journal_has_lost(kept: Kept) -> None:
    kept.spoil_frame(3)
    before = kept.tiles.read_bytes()
    repaired = repair_run(kept.folder)
    assert (repaired.done, repaired.change) == ((), None)
    [finding] = repaired.left
    assert (finding.frames, finding.kind) == ((3,), Kind.LOST)
    assert kept.tiles.read_bytes() == before


def test_where_both_are_damaged_only_what_neither_has_is_lost(kept: Kept) -> None:
    kept.spoil_frame(FRAME)
    spoilt = kept.tiles_of(FRAME)[0]
    elsewhere = kept.tiles_of(0)[0]
    for key in (spoilt, elsewhere):
        spoil_tiles(kept.folder, [key])
    repaired = repair_run(kept.folder)
    assert f"without frames {FRAME}" in repaired.done[0]
    assert [describe(finding) for finding in repaired.left if finding.kind is not Kind.LOST] == []
    after = stored_mosaic(kept.folder)
    assert ((0, 0, 0), tuple(spoilt)) not in after
    for key in [elsewhere, *kept.tiles_of(FRAME)[1:]]:
        address = (0, 0, 0), tuple(key)
        assert all(np.array_equal(*pair) for pair in zip(after[address], kept.mosaic[address], strict=True))


def test_a_ruined_store_over_a_damaged_journal_is_made_from_what_is_left(kept: Kept) -> None:
    kept.spoil_frame(FRAME)
    kept.tiles.write_bytes(b"junk" * 1000)
    repaired = repair_run(kept.folder)
    assert "made anew from 6 frames" in repaired.done[0]
    assert {frame for finding in repaired.left for frame in finding.frames} == {FRAME}


def test_the_journals_copies_are_made_anew(kept: Kept) -> None:
    before = kept.segment.read_bytes(), kept.index.read_bytes()
    flip(kept.segment, 10)
    flip(kept.index, -20)
    found = check_run(kept.folder)
    assert {finding.kind for finding in found} == {Kind.COPY}
    first = repair_run(kept.folder)
    assert "head" in first.done[0]
    repair_run(kept.folder)
    assert (kept.segment.read_bytes(), kept.index.read_bytes()) == before
    assert check_run(kept.folder) == []


@pytest.mark.parametrize("name", ["frozen.json", "dark.npy", "ingest.json"])
@pytest.mark.parametrize("how", ["gone", "cut", "changed"])
def test_what_was_frozen_comes_back(tmp_path: Path, name: str, how: str) -> None:
    made = Recording(tmp_path, dark=np.full((24, 30), 3, np.float32))
    made.images()
    made.end()
    runs.keep_counts(made.close(), {"duplicate": 3})
    rebuild_run(made.folder)
    path = made.folder / name
    before = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(before[:-9])
    elif name == "frozen.json":
        path.write_bytes(before.replace(b'"join_max_gap_ms": ', b'"join_max_gap_ms": 1'))
    else:
        flip(path, -1)
    found = check_run(made.folder)
    if name == "ingest.json":
        assert bool(found) == (how != "gone")
    else:
        assert {finding.kind for finding in found} == {Kind.FROZEN}
    assert repair_run(made.folder).left == ()
    if name != "ingest.json":
        assert path.read_bytes() == before


def test_a_flipped_letter_in_what_was_frozen_is_made_good(kept: Kept) -> None:
    """Each bit of the file, one after the other: it is told, or it says what it said; and then it is as it was."""
    path = kept.folder / runs.FROZEN_NAME
    before, frozen = path.read_bytes(), runs.read_frozen(kept.folder)
    n_found = 0
    for at in range(len(before)):
        flip(path, at)
        try:
            assert runs.read_frozen(kept.folder) == frozen
        except StoreError:
            n_found += 1
            if at % 40 == 0 or before[at:].startswith(b"feather"):  # a whole repair takes its time
                assert {finding.kind for finding in check_run(kept.folder, quick=True)} == {Kind.FROZEN}
                assert repair_run(kept.folder).left == ()
                assert path.read_bytes() == before
        path.write_bytes(before)
    assert n_found > len(before) / 2


@pytest.mark.parametrize("blend", ["max", None])
def test_a_mode_that_there_is_not_comes_from_the_start_or_the_store(tmp_path: Path, blend: str | None) -> None:
    """Also where no checksum was written yet."""
    kept = Kept(tmp_path, changes={"blend": blend})
    rebuild_run(kept.folder, mode="mean")  # which is in the store alone
    path = kept.folder / runs.FROZEN_NAME
    values = json.loads(path.read_text())
    del values["crc32"]
    path.write_text(json.dumps(values | {"mode": "geather"}))
    assert {finding.kind for finding in check_run(kept.folder)} == {Kind.FROZEN}
    assert repair_run(kept.folder).left == ()
    assert runs.read_frozen(kept.folder).mode == (blend or "mean")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("mode", "geather"), ("tile_size", 17), ("join_max_gap_ms", 251.0), ("blend_status", [0, 2]), ("allow_moving", 1)],
)
def test_settings_that_decayed_in_the_store_are_made_good_from_what_was_frozen(
    kept: Kept, setting: str, value: object
) -> None:
    frozen = (kept.folder / runs.FROZEN_NAME).read_bytes()
    kept.sql(f"UPDATE run SET settings = json_replace(settings, '$.{setting}', json(?))", json.dumps(value))
    repaired = repair_run(kept.folder)
    kept.is_as_it_was(repaired)
    assert (kept.folder / runs.FROZEN_NAME).read_bytes() == frozen
    with SqliteReader(kept.folder) as reader:
        assert reader.info().settings == runs.read_frozen(kept.folder).as_dict()


def test_a_journal_without_its_beginning_leaves_the_mosaic(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    data = bytearray(kept.segment.read_bytes())
    data[64:300] = bytes(236)
    kept.segment.write_bytes(data)
    spoil_tiles(kept.folder, [kept.tiles_of(FRAME)[0]])
    repaired = repair_run(kept.folder)
    assert "tiles were made anew" in repaired.done[0]
    assert {finding.kind for finding in repaired.left} == {Kind.LOST}
    assert_same(stored_mosaic(kept.folder), kept.mosaic)


def test_a_sealed_run_gets_its_upper_levels_back(kept: Kept) -> None:
    shutil.rmtree(kept.segment.parent)
    with SqliteStore.open(kept.folder) as store:
        store.set_state("sealed")
    upper = kept.tiles_of(FRAME)[0].parent()
    spoil_tiles(kept.folder, [upper])
    assert repair_run(kept.folder).left == ()
    assert_same(stored_mosaic(kept.folder), kept.mosaic)
    base = kept.tiles_of(0)[0]
    spoil_tiles(kept.folder, [base])
    [finding] = repair_run(kept.folder).left
    assert finding.tiles == ((P0, base),)


def test_a_newer_store_is_not_touched(kept: Kept) -> None:
    kept.sql("PRAGMA user_version = 99")
    before = kept.tiles.read_bytes()
    [finding] = repair_run(kept.folder).left
    assert "a newer tilecast wrote it" in finding.what
    assert kept.tiles.read_bytes() == before


def test_a_run_that_somebody_writes_is_left_alone(kept: Kept) -> None:
    with RunLock(kept.folder), pytest.raises(RunLockedError):
        repair_run(kept.folder)
