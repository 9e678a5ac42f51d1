"""`fsck` names every damage that is planted, and finds nothing in runs that are sound."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damaged_store import change_bits, drop_tile, write_tile
from integration.stored import assert_same, stored_mosaic
from recordings import TILE, Recording, record
from tilecast.errors import RunLockedError
from tilecast.geometry import PlaneKey, TileKey
from tilecast.service import runs
from tilecast.service.fsck import SCRATCH_NAME, Finding, Kind, check_run, describe
from tilecast.service.rebuild import rebuild_run
from tilecast.service.repair import repair_run
from tilecast.store.coverage import coverage_pack, coverage_unpack
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_connection import TILES_NAME
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast_protocol import pzf
from tilecast_protocol.journal import Journal

P0 = PlaneKey()
MODES = ("feather", "mean", "max", "min", "newest", "nearest")


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a run; the lock's text does not count."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<f4"])
@pytest.mark.parametrize("mode", MODES)
def test_a_sound_run_is_clean(tmp_path: Path, dtype: str, mode: str) -> None:
    made = record(tmp_path, dtype=dtype, blend=mode, planes=3)
    rebuild_run(made.folder)
    before = snapshot(made.folder)
    assert check_run(made.folder) == []
    assert snapshot(made.folder) == before, "nothing is changed"


def test_a_sound_run_with_calibration_other_mode_and_unplaced_frames_is_clean(tmp_path: Path) -> None:
    made = Recording(tmp_path, dark=np.full((24, 30), 3, np.float32))
    made.images()
    made.image(7)  # waits for a stage that never comes
    made.image(8, (3, 3), status=1)
    made.end()
    made.close()
    rebuild_run(made.folder, mode="nearest")
    assert check_run(made.folder) == []


def test_a_sealed_run_is_checked_without_its_journal(sound: Sound) -> None:
    shutil.rmtree(sound.folder / runs.JOURNAL_NAME)
    assert sound.found() == ["there is no journal, and the run is not sealed but ended"]
    with SqliteStore.open(sound.folder) as store:
        store.set_state("sealed")
    assert sound.found() == []
    sound.change_tile(TileKey(1, 0, 0), lambda pixels: pixels + 1)
    assert "tiles are not the reduction of their children" in sound.found()[0]


class Sound:
    """A sound run, and ways to damage it."""

    def __init__(self, root: Path, dtype: str) -> None:
        self.made = record(root, dtype=dtype, planes=1)
        self.folder = self.made.folder
        rebuild_run(self.folder)
        self.mosaic = stored_mosaic(self.folder)

    def sql(self, statement: str, *values: Any) -> None:
        """Change the store behind everybody's back."""
        with SqliteStore.open(self.folder) as store:
            store._open_connection().execute(statement, values)

    def change_tile(
        self,
        key: TileKey,
        pixels: Callable[[Any], Any] = lambda pixels: pixels,
        mask: Callable[[Any], Any] = lambda mask: mask,
    ) -> None:
        """Change a tile as a bug would: its checksum is right."""
        with SqliteReader(self.folder) as reader:
            stored = reader.tile(P0, key)
        assert stored is not None
        covered = coverage_unpack(stored.coverage, TILE)
        covered = np.ones((TILE, TILE), bool) if covered is None else covered
        image = pzf.decode_image(stored.pzf).copy()
        blob = bytes(pzf.encode_image(np.ascontiguousarray(pixels(image).astype(image.dtype))))
        coverage = coverage_pack(mask(covered.copy()))
        write_tile(self.folder, key, blob, coverage)

    def findings(self, **options: Any) -> list[Finding]:
        """What is found."""
        found = check_run(self.folder, **options)
        assert not (self.folder / SCRATCH_NAME).exists()
        return found

    def found(self, **options: Any) -> list[str]:
        """What is found, in words."""
        return [describe(finding) for finding in self.findings(**options)]

    @property
    def full_base(self) -> TileKey:
        """A base tile that is wholly covered."""
        return next(
            TileKey(*key) for (_, key), (_, covered) in sorted(self.mosaic.items()) if key[0] == 0 and covered.all()
        )

    @property
    def ragged_base(self) -> TileKey:
        """A base tile that is partly covered."""
        return next(
            TileKey(*key) for (_, key), (_, covered) in sorted(self.mosaic.items()) if key[0] == 0 and not covered.all()
        )

    @property
    def top(self) -> TileKey:
        """A tile of the highest level."""
        return TileKey(*max(key for _, key in self.mosaic))


@pytest.fixture(params=["<u2", "<f4"])
def sound(tmp_path: Path, request: pytest.FixtureRequest) -> Sound:
    return Sound(tmp_path, request.param)


def named(key: TileKey) -> str:
    """How a tile is named in a finding."""
    return f"t0 c0 z0 level {key.level} row {key.row} col {key.col}"


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_in_the_journal(sound: Sound) -> None:
    segment = sound.folder / runs.JOURNAL_NAME / "000000.tcj"
    with Journal.open(segment.parent, readonly=True) as journal:
        lsn = journal.image(4).lsn
    flip(segment, lsn - 40)
    [finding] = sound.findings()
    assert "journal segment 000000, byte" in finding.what
    assert "payload" in finding.what
    assert finding.frames == (4,)
    flip(segment, lsn - 40)
    assert sound.findings() == []


def test_a_segment_that_is_gone(tmp_path: Path) -> None:
    made = record(tmp_path, segment_bytes=4_000)
    rebuild_run(made.folder)
    assert check_run(made.folder) == []
    before = stored_mosaic(made.folder)
    journal = made.folder / runs.JOURNAL_NAME
    segments = sorted(journal.glob("*.tcj"))
    assert len(segments) > 3
    segments[2].unlink()
    lost = [finding for finding in check_run(made.folder) if finding.kind is Kind.LOST]
    assert any("missing" in finding.what for finding in lost)
    with Journal.open(journal, readonly=True) as left:
        there = left.frames()
    frames = {frame for frame in made.pixels if frame not in there}
    assert frames
    assert {frame for finding in lost for frame in finding.frames} == frames
    assert any(str(min(frames)) in describe(finding) for finding in lost)
    # Nothing can bring the recording of them back, and the mosaic, which is right, is left as it is.
    repaired = repair_run(made.folder)
    assert {frame for finding in repaired.left for frame in finding.frames} == frames
    assert_same(stored_mosaic(made.folder), before)


def test_a_journal_whose_beginning_is_lost(sound: Sound) -> None:
    journal = sound.folder / runs.JOURNAL_NAME
    for path in journal.iterdir():
        path.unlink()
    (journal / "000000.tcj").write_bytes(b"nothing of a journal" * 100)
    found = sound.found()
    assert "no segment in" in found[0]
    drop_tile(sound.folder, sound.top)
    assert len(sound.found()) > 1, "and still the store is checked"


def test_a_flipped_bit_in_the_pixels_of_a_tile(sound: Sound) -> None:
    change_bits(sound.folder, sound.full_base)
    [finding] = sound.findings()
    assert "tiles are damaged (wrong checksum" in finding.what
    assert (finding.tiles, finding.kind) == (((P0, sound.full_base),), Kind.TILES)


def test_a_stale_parent(sound: Sound) -> None:
    key = sound.full_base.parent()
    sound.change_tile(key, lambda pixels: pixels + 1)
    found = sound.findings(quick=True)
    wrong = next(finding for finding in found if finding.what == "tiles are not the reduction of their children")
    assert (P0, key) in wrong.tiles
    assert named(key) in describe(wrong)
    differ = next(finding for finding in sound.findings() if "differ from what the journal gives" in finding.what)
    assert differ.tiles == ((P0, key),)


def test_a_base_tile_that_shows_something_else(sound: Sound) -> None:
    def other(pixels: Any) -> Any:
        pixels[3, 5] += 1
        return pixels

    sound.change_tile(sound.full_base, other)
    assert "tiles differ from what the journal gives; tiles " + named(sound.full_base) in sound.found()


def test_a_base_tile_that_shows_something_else_and_all_above_it_too(tmp_path: Path) -> None:
    """Nothing contradicts anything within the store: only the journal tells."""
    sound = Sound(tmp_path, "<u2")

    # The average of a block of equal changes is that change: add 4 to a whole base tile and to its part above.
    def brighter(part: tuple[slice, slice]) -> Callable[[Any], Any]:
        def change(pixels: Any) -> Any:
            pixels[part] += 4
            return pixels

        return change

    key, part = sound.full_base, (slice(0, TILE), slice(0, TILE))
    while True:
        sound.change_tile(key, brighter(part))
        if key.level == sound.top.level:
            break
        rows, cols = (
            slice((half * TILE + side.start) // 2, (half * TILE + side.stop) // 2)
            for half, side in ((key.row & 1, part[0]), (key.col & 1, part[1]))
        )
        key, part = key.parent(), (rows, cols)
    assert sound.found(quick=True) == []
    [finding] = sound.findings()
    assert finding.what == "tiles differ from what the journal gives"
    assert finding.tiles[0] == (P0, sound.full_base)
    assert len(finding.tiles) == sound.top.level + 1


@pytest.mark.parametrize("how", ["more", "less", "all"])
def test_a_wrong_coverage(sound: Sound, how: str) -> None:
    def other(mask: Any) -> Any:
        if how == "all":
            return np.ones_like(mask)
        mask[tuple(np.argwhere(mask == (how == "less"))[0])] ^= True
        return mask

    sound.change_tile(sound.ragged_base, mask=other)
    found = sound.findings()
    assert any(
        "differ from what the journal gives" in finding.what and (P0, sound.ragged_base) in finding.tiles
        for finding in found
    )
    if how == "less":
        assert any("nothing is covered" in finding.what for finding in sound.findings(quick=True))


def test_a_missing_base_tile(sound: Sound) -> None:
    drop_tile(sound.folder, sound.full_base)
    found = sound.found()
    assert f"tiles are missing; tiles {named(sound.full_base)}" in found
    assert any("not the reduction" in what and named(sound.full_base.parent()) in what for what in found)


def test_an_orphan(sound: Sound) -> None:
    drop_tile(sound.folder, sound.full_base.parent())
    orphans = next(finding for finding in sound.findings(quick=True) if finding.what == "tiles have no parent")
    assert (P0, sound.full_base) in orphans.tiles


def test_a_tile_that_no_frame_covers(sound: Sound) -> None:
    blob = bytes(pzf.encode_image(np.ones((TILE, TILE), sound.made.dtype)))
    write_tile(sound.folder, TileKey(0, 90, 90), blob, None)
    assert f"tiles are there that no frame covers; tiles {named(TileKey(0, 90, 90))}" in sound.found()


def move(sound: Sound, frame: int) -> None:
    """Let a frame lie one pixel lower, in every table."""
    sound.sql("UPDATE placements SET row = row + 1 WHERE frame = ?", frame)
    sound.sql(
        "UPDATE placements_box SET row0 = row0 + 1, row1 = row1 + 1 WHERE id ="
        " (SELECT id FROM placements WHERE frame = ?)",
        frame,
    )


def test_a_placement_moved_by_one(sound: Sound) -> None:
    move(sound, 3)
    found = sound.findings(quick=True)
    assert any("do not lie where their images say" in finding.what and finding.frames == (3,) for finding in found)
    assert any("differ from what the journal gives" in finding.what for finding in sound.findings())


def test_a_joined_placement_moved_by_one_shows_in_its_tiles(sound: Sound) -> None:
    move(sound, 3)
    sound.sql("UPDATE placements SET source = 'joined'")
    assert not any("where their images say" in what for what in sound.found())
    assert any("differ from what the journal gives" in what for what in sound.found())


def test_a_placement_without_a_journal_record(sound: Sound) -> None:
    sound.sql(
        "INSERT INTO placements (id, frame, view, plane, row, col, height, width, source, image_index, rev)"
        " SELECT 999, 77, 0, plane, row, col, height, width, source, 77, rev FROM placements WHERE frame = 3"
    )
    sound.sql(
        "INSERT INTO placements_box SELECT 999, plane0, plane1, row0, row1, col0, col1 FROM placements_box"
        " WHERE id = (SELECT id FROM placements WHERE frame = 3)"
    )
    sound.sql("UPDATE run SET n_placements = n_placements + 1")
    assert "tiles show frames that the journal does not hold; frames 77" in sound.found(quick=True)


def test_a_placement_of_another_image(sound: Sound) -> None:
    sound.sql("UPDATE placements SET image_index = image_index + 100 WHERE frame IN (1, 2)")
    sound.sql("UPDATE placements SET image_index = 2 WHERE frame = 1")
    sound.sql("UPDATE placements SET image_index = 1 WHERE frame = 2")
    assert "placements name another image or plane than theirs; frames 1-2" in sound.found(quick=True)


def test_a_frame_of_another_size(sound: Sound) -> None:
    sound.sql("UPDATE placements SET height = height - 1 WHERE frame = 3")
    sound.sql("UPDATE placements_box SET row1 = row1 - 1 WHERE id = (SELECT id FROM placements WHERE frame = 3)")
    assert any("of another size; frames 3" in what for what in sound.found(quick=True))


def test_a_frame_that_was_lost_on_its_way(sound: Sound) -> None:
    sound.sql("DELETE FROM placements_box WHERE id = (SELECT id FROM placements WHERE frame = 5)")
    sound.sql("DELETE FROM placements WHERE frame = 5")
    sound.sql("UPDATE run SET n_placements = n_placements - 1")
    assert any(
        "could be placed and are not in the mosaic" in finding.what and finding.frames == (5,)
        for finding in sound.findings()
    )


def test_wrong_levels(sound: Sound) -> None:
    sound.sql("UPDATE run SET levels = levels + 1")
    assert f"the frames need {sound.top.level + 1} levels, and the store says {sound.top.level + 2}" in sound.found()


def test_a_wrong_box(sound: Sound) -> None:
    sound.sql("UPDATE planes SET row1 = row1 + 1")
    [finding] = sound.findings(quick=True)
    assert finding.what.startswith("the frames of plane (0, 0, 0) cover (-64, -9, 41, 100)")
    sound.sql("UPDATE planes SET row1 = row1 - 1")
    sound.sql("INSERT INTO planes (t, c, z, row0, col0, row1, col1) VALUES (0, 5, 0, 0, 0, 9, 9)")
    [finding] = sound.findings(quick=True)
    assert "plane (0, 5, 0)" in finding.what


def test_a_wrong_canvas(sound: Sound) -> None:
    with SqliteStore.open(sound.folder) as store:
        (text,) = store._open_connection().execute("SELECT canvas FROM run").fetchone()
    canvas = json.loads(text)
    canvas["rect"] = [0, 0, 64, 64]
    sound.sql("UPDATE run SET canvas = ?", json.dumps(canvas))
    assert sound.found(quick=True) == ["frames lie outside the canvas, which is (0, 0, 64, 64)"]
    canvas["fixed"] = True
    sound.sql("UPDATE run SET canvas = ?", json.dumps(canvas))
    assert sound.found(quick=True) == [], "a planned canvas stays where it is"
    sound.sql("UPDATE run SET canvas = NULL")
    assert sound.found(quick=True) == ["the run has frames, and no canvas to show them on"]


def test_what_was_frozen_is_gone_or_changed(tmp_path: Path) -> None:
    sound = Sound(tmp_path, "<u2")
    frozen = sound.folder / runs.FROZEN_NAME
    text = frozen.read_text()
    changed = text.replace('"tile_size": 16', '"tile_size": 32')
    frozen.write_text(changed)
    assert any("its checksum is wrong" in what for what in sound.found())
    values = json.loads(changed)
    del values["crc32"]  # as it was written before there was one
    frozen.write_text(json.dumps(values))
    assert any("tile_size is 32, in the store 16" in what for what in sound.found())
    frozen.write_text("{")
    assert any("frozen.json" in what for what in sound.found())
    frozen.unlink()
    assert any("frozen.json" in what for what in sound.found())


def test_a_store_of_another_run(tmp_path: Path) -> None:
    sound = Sound(tmp_path / "one", "<u2")
    other = record(tmp_path / "other", run_id="11111111-2222-4333-8444-555555555555")
    rebuild_run(other.folder)
    shutil.copy(other.folder / TILES_NAME, sound.folder / TILES_NAME)
    assert any("the store is of run 11111111" in what for what in sound.found())


def test_no_store_at_all(tmp_path: Path) -> None:
    made = record(tmp_path)
    [finding] = check_run(made.folder)
    assert "`tilecast rebuild` makes it anew" in finding.what
    (made.folder / TILES_NAME).write_bytes(b"no database" * 1000)
    [finding] = check_run(made.folder)
    assert "is damaged" in finding.what


def test_a_run_that_is_being_written_is_not_checked(tmp_path: Path) -> None:
    sound = Sound(tmp_path, "<u2")
    with RunLock(sound.folder), pytest.raises(RunLockedError):
        check_run(sound.folder)


def test_progress_and_words(tmp_path: Path) -> None:
    sound = Sound(tmp_path, "<u2")
    stages: dict[str, None] = {}
    sound.findings(progress=lambda stage, *_: stages.setdefault(stage))
    assert list(stages) == [
        "checking the journal",
        "checking the store",
        "checking tiles against their children",
        "blending frames",
        "comparing tiles",
    ]
    assert describe(Finding("these", frames=(*range(100), 200))) == "these; frames 0-99, 200"
    tiles = tuple((P0, TileKey(0, 0, col)) for col in range(100))
    assert describe(Finding("these", tiles=tiles)).endswith("level 0 row 0 col 19 … (100 in all)")
