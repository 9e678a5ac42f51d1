"""Checks a run's folder: everything that must be true of it and can be seen on disk.

In order: the journal's records against their checksums; the store against itself; placements against the journal;
levels and boxes against the placements; every tile of an upper level against the reduction of its children; and, the
longest part, every tile against a mosaic made anew from the journal. What is wrong is a finding, with the frames and
tiles it concerns, never an exception.

It changes nothing but a scratch file, which it removes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecast.geometry import PlaneKey, Rect, TileKey, union_levels, union_of
from tilecast.pyramid import PyramidSettings, RenderedTile
from tilecast.reduction import blank_tile, reduce_into
from tilecast.service import runs
from tilecast.service.blender import StoredMosaic
from tilecast.service.committer import as_new_run
from tilecast.service.rebuild import DEFAULT_BUDGET_BYTES, JournalFrames, Progress, blend_all, place_all
from tilecast.store.folders import discard
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_connection import TILES_NAME
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import RunInfo
from tilecast_protocol.errors import PZFError, TilecastError
from tilecast_protocol.journal import Journal, RecordKind

SCRATCH_NAME = "tiles.sqlite.fsck"
_MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Attributes
    ----------
    what : str
        A sentence.
    frames : tuple of int
        Frames it concerns.
    tiles : tuple of (PlaneKey, TileKey)
        Tiles it concerns.
    """

    what: str
    frames: tuple[int, ...] = ()
    tiles: tuple[tuple[PlaneKey, TileKey], ...] = ()


def check_run(folder: Path, *, quick: bool = False, progress: Progress = lambda *_: None) -> list[Finding]:
    """All findings of one run; none if it is sound.

    Parameters
    ----------
    quick : bool
        Leave out the last and longest part: blending everything anew.

    Raises
    ------
    RunLockedError
        If the run is being written: what is half done looks like damage.
    StoreError, JournalError
        If there is nothing that could be checked.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(RunLock(folder))
        journal = None
        findings: list[Finding] = []
        if (folder / runs.JOURNAL_NAME).is_dir():
            journal = stack.enter_context(Journal.open(folder / runs.JOURNAL_NAME, readonly=True))
            progress("checking the journal", 0, 1)
            findings += [
                Finding(f"journal segment {damage.segment:06d}, byte {damage.offset}: {damage.what}", damage.frames)
                for damage in journal.verify()
            ]
        if not (folder / TILES_NAME).exists():
            return [*findings, Finding(f"there is no {TILES_NAME}; `tilecast rebuild` makes it from the journal")]
        try:
            reader = stack.enter_context(SqliteReader(folder))
            info = reader.info()
            progress("checking the store", 0, 1)
            found = [Finding(what) for what in reader.check()]
        except TilecastError as error:
            return [*findings, Finding(str(error))]
        findings += found
        if found:
            return findings  # of a store that contradicts itself nothing more can be said
        findings += _check_boxes(reader, info)
        findings += _check_reduction(reader, info, progress)
        if journal is not None:
            findings += _check_placements(journal, reader)
            if not quick and not findings:
                findings += _check_tiles(folder, lock, journal, reader, info, progress)
        return findings


def _check_boxes(reader: SqliteReader, info: RunInfo) -> Iterator[Finding]:
    boxes: dict[PlaneKey, Rect] = {}
    for row in reader.placements():
        plane = row.placement.plane
        boxes[plane] = union_of((boxes.get(plane, Rect(0, 0, 0, 0)), row.placement.rect))
    for plane, rect in boxes.items():
        if info.bboxes.get(plane) != rect:
            yield Finding(f"plane {tuple(plane)} covers {tuple(rect)}, and the store says {info.bboxes.get(plane)}")
    levels = union_levels(boxes.values(), info.settings["tile_size"])
    if boxes and levels != info.levels:
        yield Finding(f"the frames need {levels} levels, and the store says {info.levels}")


def _check_placements(journal: Journal, reader: SqliteReader) -> Iterator[Finding]:
    """Every placement belongs to a journalled image; what has none is unplaced for a reason, which `info` tells."""
    frame_of = {
        record.image_index: record.frame
        for record in journal.records(with_parts=False)
        if record.kind is RecordKind.IMAGE
    }
    lost, moved = [], []
    for row in reader.placements():
        placement = row.placement
        if placement.index not in frame_of:
            lost.append(placement.frame)
        elif frame_of[placement.index] != placement.frame:
            moved.append(placement.frame)
    if lost:
        yield Finding("tiles show frames that the journal does not hold", tuple(lost))
    if moved:
        yield Finding("placements name another image of the journal than theirs", tuple(moved))


def _check_reduction(reader: SqliteReader, info: RunInfo, progress: Progress) -> Iterator[Finding]:
    """Each upper tile is the reduction of its four children, values and coverage."""
    size = int(info.settings["tile_size"])
    dtype = np.dtype(info.header["dtype"])
    mosaic = StoredMosaic(lambda: reader, size)
    wrong: list[tuple[PlaneKey, TileKey]] = []
    unreadable: list[tuple[PlaneKey, TileKey]] = []
    orphans: list[tuple[PlaneKey, TileKey]] = []
    total = max(1, info.n_tiles)
    for done, stamp in enumerate(reader.stamps()):
        progress("checking tiles against their children", done, total)
        plane, key = stamp.plane, stamp.key
        try:
            tile = mosaic.read(plane, key)
            children = [mosaic.read(plane, child) for child in key.children()] if key.level else []
        except (TilecastError, PZFError):
            unreadable.append((plane, key))
            continue
        if tile is None or tile.pixels.shape != (size, size) or tile.pixels.dtype != dtype:
            unreadable.append((plane, key))
            continue
        if key.level + 1 < info.levels and reader.tile_rev(plane, key.parent()) is None:
            orphans.append((plane, key))
        if key.level and not same_tile(tile, reduced(children, size, dtype)):
            wrong.append((plane, key))
    for what, tiles in (
        ("tiles cannot be decoded", unreadable),
        ("tiles are not the reduction of their children", wrong),
        ("tiles have no parent", orphans),
    ):
        if tiles:
            yield Finding(what, tiles=tuple(tiles))


def _check_tiles(
    folder: Path, lock: RunLock, journal: Journal, reader: SqliteReader, info: RunInfo, progress: Progress
) -> Iterator[Finding]:
    """The mosaic, made anew from the journal at the placements that stand, is the one in the store."""
    frozen = runs.read_frozen(folder)
    start = runs.first_start(journal)
    calibration = runs.load_calibration(folder, start.shape, frozen.calibration)
    size = int(info.settings["tile_size"])
    placements = sorted((row.placement for row in reader.placements()), key=lambda placement: placement.order)
    placing = place_all(journal, start, frozen, placements)
    if placing.n_joined:
        frames = tuple(sorted({one.frame for one in placing.placements} - {one.frame for one in placements}))
        yield Finding("frames could be placed and are not in the mosaic; `tilecast rebuild` adds them", frames)
    discard(folder, SCRATCH_NAME, lock=lock)
    try:
        with SqliteStore.create(folder, as_new_run(start, info.settings), file_name=SCRATCH_NAME, lock=lock) as scratch:
            settings = PyramidSettings(dtype=start.dtype, mode=info.settings["mode"], tile_size=size)
            frames_source = JournalFrames(journal, start, calibration)
            blend_all(scratch, placements, frames_source, settings, start, DEFAULT_BUDGET_BYTES, progress)
            ours, theirs = StoredMosaic(lambda: scratch, size), StoredMosaic(lambda: reader, size)
            expected = {(stamp.plane, stamp.key) for stamp in scratch.stamps()}
            found = {(stamp.plane, stamp.key) for stamp in reader.stamps()}
            different = []
            for done, (plane, key) in enumerate(sorted(expected & found)):
                progress("comparing tiles", done, len(expected))
                one, other = ours.read(plane, key), theirs.read(plane, key)
                if one is None or other is None or not same_tile(one, other):
                    different.append((plane, key))
    finally:
        discard(folder, SCRATCH_NAME, lock=lock)
    for what, tiles in (
        ("tiles are missing", sorted(expected - found)),
        ("tiles are there that no frame covers", sorted(found - expected)),
        ("tiles differ from what the journal gives", different),
    ):
        if tiles:
            yield Finding(what, tiles=tuple(tiles))


def reduced(children: Sequence[RenderedTile | None], tile_size: int, dtype: np.dtype[Any]) -> RenderedTile:
    """The parent of four tiles, in row-major order; None for one that is not there."""
    pixels = blank_tile(dtype, tile_size)
    mask: NDArray[np.bool_] | None = np.zeros(pixels.shape, np.bool_)
    for number, child in enumerate(children):
        if child is not None:
            mask = reduce_into(child.pixels, child.coverage, pixels, mask, *divmod(number, 2))
    return RenderedTile(pixels, None if mask is None or mask.all() else mask)


def same_tile(one: RenderedTile, other: RenderedTile) -> bool:
    """Whether two tiles hold the same bits and cover the same pixels."""
    if one.pixels.dtype.kind == "f":  # what is covered is finite
        return one.pixels.tobytes() == other.pixels.tobytes()
    if (one.coverage is None) != (other.coverage is None):
        return False
    if one.coverage is not None and other.coverage is not None and not np.array_equal(one.coverage, other.coverage):
        return False
    return one.pixels.tobytes() == other.pixels.tobytes()


def describe(finding: Finding) -> str:
    """A finding in one line, naming the first of what it concerns."""
    frames = [str(frame) for frame in finding.frames]
    tiles = [
        f"t{plane.t} c{plane.c} z{plane.z} level {key.level} row {key.row} col {key.col}"
        for plane, key in finding.tiles
    ]
    text = finding.what
    for what, named in (("frames", frames), ("tiles", tiles)):
        if named:
            more = len(named) - _MOST_NAMED
            text += f"; {what} {', '.join(named[:_MOST_NAMED])}" + (f" and {more} more" if more > 0 else "")
    return text
