"""Checks a run's folder: everything that must be true of it and can be seen on disk.

In order: the journal's records against their checksums; the store against itself; placements against the journal;
levels, boxes and canvas against the placements; every tile of an upper level against the reduction of its children;
and, the longest part, every tile against a mosaic made anew from the journal. What is wrong is a finding, with the
frames and tiles it concerns, never an exception; and one finding does not hide the next, unless it leaves nothing to
compare with.

It changes nothing but a scratch file, which it removes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecast.errors import StoreError
from tilecast.geometry import PlaneKey, Rect, TileKey, place_centre, union_levels, union_of
from tilecast.ingest.journalled import read_record
from tilecast.ingest.verdicts import RunPhase
from tilecast.pyramid import PyramidSettings, RenderedTile
from tilecast.reduction import blank_tile, float_coverage, reduce_into
from tilecast.service import runs
from tilecast.service.blender import StoredMosaic
from tilecast.service.committer import as_new_run
from tilecast.service.rebuild import DEFAULT_BUDGET_BYTES, JournalFrames, Progress, blend_all, place_all
from tilecast.store.folders import discard
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import RunInfo
from tilecast_protocol.errors import JournalError, TilecastError
from tilecast_protocol.journal import Journal
from tilecast_protocol.messages import Image, Start

SCRATCH_NAME = "tiles.sqlite.fsck"
_MOST_NAMED = 20
_EMPTY = Rect(0, 0, 0, 0)

Address = tuple[PlaneKey, TileKey]


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
    tiles: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class _Frozen:
    """What a run's folder holds beside journal and store, and the start: what a mosaic made anew is made from."""

    start: Start
    frozen: runs.Frozen
    frames: JournalFrames


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
    StoreError
        If there is no such folder, or it may not be written.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(RunLock(folder))
        findings: list[Finding] = []
        journal = _open_journal(folder, findings)
        if journal is not None:
            stack.callback(journal.close)
            findings += _check_journal(journal, progress)
        is_whole = not findings
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
        if journal is None and is_whole and info.state != "sealed":
            findings.append(Finding(f"there is no journal, and the run is not sealed but {info.state}"))
        findings += _check_boxes(reader, info)
        findings += _check_reduction(reader, info, progress)
        if journal is not None:
            frozen = _open_frozen(folder, journal, info, findings)
            if frozen is not None:
                findings += _check_placements(journal, frozen.start, reader)
                if is_whole and not quick:
                    findings += _check_tiles(folder, lock, journal, frozen, reader, info, progress)
        return findings


def _open_journal(folder: Path, findings: list[Finding]) -> Journal | None:
    """The journal; None, with a finding, if it cannot be opened, or without, if there is none."""
    if not (folder / runs.JOURNAL_NAME).is_dir():
        return None
    try:
        return Journal.open(folder / runs.JOURNAL_NAME, readonly=True)
    except JournalError as error:
        findings.append(Finding(str(error)))
        return None


def _check_journal(journal: Journal, progress: Progress) -> Iterator[Finding]:
    for damage in journal.verify(lambda done, total: progress("checking the journal", done, total)):
        yield Finding(f"journal segment {damage.segment:06d}, byte {damage.offset}: {damage.what}", damage.frames)


def _open_frozen(folder: Path, journal: Journal, info: RunInfo, findings: list[Finding]) -> _Frozen | None:
    """What was frozen at the start; None, with a finding, if it cannot be read or does not fit the store."""
    try:
        start = runs.first_start(journal)
        frozen = runs.read_frozen(folder)
        calibration = runs.load_calibration(folder, start.shape, frozen.calibration)
    except TilecastError as error:
        findings.append(Finding(str(error)))
        return None
    if (info.run, info.settings["tile_size"]) != (start.run, frozen.tile_size):
        what = f"run {info.run} with tiles of {info.settings['tile_size']} pixels"
        findings.append(Finding(f"the store is of {what}, the journal of run {start.run} with {frozen.tile_size}"))
        return None
    return _Frozen(start, frozen, JournalFrames(journal, start, calibration))


def _check_boxes(reader: SqliteReader, info: RunInfo) -> Iterator[Finding]:
    boxes: dict[PlaneKey, Rect] = {}
    for row in reader.placements():
        plane = row.placement.plane
        boxes[plane] = union_of((boxes.get(plane, _EMPTY), row.placement.rect))
    for plane in sorted(boxes.keys() | info.bboxes.keys()):
        rect, said = boxes.get(plane, _EMPTY), info.bboxes.get(plane, _EMPTY)
        if said != rect:
            yield Finding(f"the frames of plane {tuple(plane)} cover {tuple(rect)}, and the store says {tuple(said)}")
    levels = union_levels(boxes.values(), info.settings["tile_size"])
    if levels != info.levels:
        yield Finding(f"the frames need {levels} levels, and the store says {info.levels}")
    canvas = info.canvas
    if boxes and canvas is None:
        yield Finding("the run has frames, and no canvas to show them on")
    elif canvas is not None and not canvas.fixed and not canvas.contains(union_of(boxes.values())):
        yield Finding(f"frames lie outside the canvas, which is {tuple(canvas.rect)}")


def _check_placements(journal: Journal, start: Start, reader: SqliteReader) -> Iterator[Finding]:
    """Every placement is that of a journalled image, and where the image says, if it says so itself."""
    images: dict[int, tuple[int, PlaneKey, tuple[int, int] | None]] = {}
    for record in journal.records(with_parts=False):
        message = read_record(record).message
        if isinstance(message, Image) and record.image_index is not None:
            corner = None
            if message.pos_um is not None:
                corner = place_centre(message.pos_um, start.effective_affine, start.shape)
            images[record.image_index] = message.frame, PlaneKey(*message.tcz), corner
    lost, confused, moved = [], [], []
    for row in reader.placements():
        placement = row.placement
        if placement.index not in images:
            lost.append(placement.frame)
            continue
        frame, plane, corner = images[placement.index]
        lies_elsewhere = placement.source == "stage" and (placement.row, placement.col) != corner
        if (placement.frame, placement.plane) != (frame, plane):
            confused.append(placement.frame)
        elif lies_elsewhere or (placement.height, placement.width) != start.shape:
            moved.append(placement.frame)
    for what, frames in (
        ("tiles show frames that the journal does not hold", lost),
        ("placements name another image or plane than theirs", confused),
        ("frames do not lie where their images say, or are of another size", moved),
    ):
        if frames:
            yield Finding(what, tuple(frames))


def _check_reduction(reader: SqliteReader, info: RunInfo, progress: Progress) -> Iterator[Finding]:
    """Each upper tile is the reduction of its four children, values and coverage."""
    size = int(info.settings["tile_size"])
    dtype = np.dtype(info.header["dtype"])
    mosaic = StoredMosaic(reader, size)
    unreadable: list[Address] = []
    wrong: list[Address] = []
    orphans: list[Address] = []
    miscovered: list[Address] = []
    for done, stamp in enumerate(reader.stamps()):
        progress("checking tiles against their children", done, info.n_tiles)
        plane, key = stamp.plane, stamp.key
        if key.level + 1 < info.levels and reader.tile_rev(plane, key.parent()) is None:
            orphans.append((plane, key))
        try:
            tile = _read(mosaic, plane, key, size, dtype)
        except TilecastError:
            unreadable.append((plane, key))
            continue
        if tile is not None and not _is_honest(tile):
            miscovered.append((plane, key))
        if tile is not None and key.level:
            with suppress(TilecastError):  # of a child, which is told of by itself
                children = [_read(mosaic, plane, child, size, dtype) for child in key.children()]
                if not same_tile(tile, reduced(children, size, dtype)):
                    wrong.append((plane, key))
    for what, tiles in (
        ("tiles cannot be decoded", unreadable),
        ("tiles are not the reduction of their children", wrong),
        ("tiles have no parent", orphans),
        ("tiles show something where they say that nothing is covered", miscovered),
    ):
        if tiles:
            yield Finding(what, tiles=tuple(tiles))


def _read(
    mosaic: StoredMosaic, plane: PlaneKey, key: TileKey, tile_size: int, dtype: np.dtype[Any]
) -> RenderedTile | None:
    """A tile of the store; TilecastError if it is not one of this run."""
    tile = mosaic.read(plane, key)
    if tile is not None and (tile.pixels.shape != (tile_size, tile_size) or tile.pixels.dtype != dtype):
        raise StoreError(
            f"expected {tile_size} pixels square of {dtype}, got {tile.pixels.shape} of {tile.pixels.dtype}"
        )
    return tile


def _check_tiles(
    folder: Path,
    lock: RunLock,
    journal: Journal,
    frozen: _Frozen,
    reader: SqliteReader,
    info: RunInfo,
    progress: Progress,
) -> Iterator[Finding]:
    """The mosaic, made anew from the journal at the placements that stand, is the one in the store."""
    start, size = frozen.start, int(info.settings["tile_size"])
    placements = sorted((row.placement for row in reader.placements()), key=lambda placement: placement.order)
    record = runs.read_record(folder, start, frozen.frozen, RunPhase.OPEN, 0)
    placing = place_all(journal, record, placements)
    if placing.n_joined:
        frames = tuple(sorted({one.frame for one in placing.placements} - {one.frame for one in placements}))
        yield Finding("frames could be placed and are not in the mosaic; `tilecast rebuild` adds them", frames)
    different: list[Address] = []
    discard(folder, SCRATCH_NAME, lock=lock)
    try:
        with SqliteStore.create(folder, as_new_run(start, info.settings), file_name=SCRATCH_NAME, lock=lock) as scratch:
            settings = PyramidSettings(dtype=start.dtype, mode=info.settings["mode"], tile_size=size)
            blend_all(scratch, placements, frozen.frames, settings, start, DEFAULT_BUDGET_BYTES, progress)
            ours, theirs = StoredMosaic(scratch, size), StoredMosaic(reader, size)
            expected = {(stamp.plane, stamp.key) for stamp in scratch.stamps()}
            found = {(stamp.plane, stamp.key) for stamp in reader.stamps()}
            for done, (plane, key) in enumerate(sorted(expected & found)):
                progress("comparing tiles", done, len(expected))
                one, other = ours.read(plane, key), theirs.read(plane, key)
                if one is None or other is None or not same_tile(one, other):
                    different.append((plane, key))
    except TilecastError as error:
        yield Finding(f"the mosaic could not be made anew to compare: {error}")
        return
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
    if dtype.kind == "f":
        mask = float_coverage(pixels)
    return RenderedTile(pixels, None if mask is None or mask.all() else mask)


def same_tile(one: RenderedTile, other: RenderedTile) -> bool:
    """Whether two tiles hold the same bits and cover the same pixels."""
    if (one.coverage is None) != (other.coverage is None):
        return False
    if one.coverage is not None and other.coverage is not None and not np.array_equal(one.coverage, other.coverage):
        return False
    return one.pixels.tobytes() == other.pixels.tobytes()


def _is_honest(tile: RenderedTile) -> bool:
    """Whether pixels that are said to be uncovered are blank; in float tiles, whether exactly those are."""
    if tile.pixels.dtype.kind == "f":
        mask = float_coverage(tile.pixels)
        return same_tile(tile, RenderedTile(tile.pixels, mask))
    return tile.coverage is None or not tile.pixels[~tile.coverage].any()


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
