"""Checks a run's folder: everything that must be true of it and can be seen on disk.

In order: the journal's records against their checksums; the store against itself; placements against the journal;
levels, boxes and canvas against the placements; every tile of an upper level against the reduction of its children;
and, the longest part, every tile against a mosaic made anew from the journal. What is wrong is a finding, with the
frames and tiles it concerns, never an exception; and one finding does not hide the next, unless it leaves nothing to
compare with.

Each finding says of what `Kind` it is, which decides what can be done about it (`tilecast.service.repair`).

It changes nothing but a scratch file, which it removes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecast.errors import StoreError, StoreTooNewError
from tilecast.geometry import Placement, PlaneKey, Rect, TileKey, place_centre, union_levels, union_of
from tilecast.hookspecs import View
from tilecast.ingest.journalled import read_record
from tilecast.ingest.verdicts import RunPhase
from tilecast.pyramid import PyramidSettings, RenderedTile
from tilecast.reduction import blank_tile, float_coverage, reduce_into
from tilecast.service import runs
from tilecast.service.blender import StoredMosaic
from tilecast.service.committer import as_new_run
from tilecast.service.frame_images import FrozenStep, placements_of
from tilecast.service.rebuild import DEFAULT_BUDGET_BYTES, JournalFrames, Progress, blend_all, place_all
from tilecast.store.folders import discard
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import Registration, RunInfo
from tilecast_protocol.errors import JournalError, TilecastError
from tilecast_protocol.journal import Journal
from tilecast_protocol.messages import Image, Start
from tilecast_protocol.ranges import RangeSet
from tilecast_protocol.vocabulary import BLEND_MODES

SCRATCH_NAME = "tiles.sqlite.fsck"
_MOST_NAMED = 20
_EMPTY = Rect(0, 0, 0, 0)
_SOURCES = frozenset({"stage", "joined", "registered"})

Address = tuple[PlaneKey, TileKey]


class Kind(Enum):
    """What a finding concerns, and so what can be done about it."""

    LOST = auto()
    """Something of the recording is gone: it can come back from a copy of the folder only."""
    COPY = auto()
    """Something that the journal holds twice: it can be made anew."""
    FROZEN = auto()
    """A small file beside the journal; store and journal may know what stood in it."""
    STORE = auto()
    """The database itself: it must be made anew."""
    PLACES = auto()
    """Placements, boxes, levels, canvas: they follow from the journal."""
    TILES = auto()
    """These tiles are not what they must be."""
    PARENTS = auto()
    """What lies above these tiles is missing."""
    OTHER = auto()
    """Nothing that could be made anew."""


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
    kind : Kind
    """

    what: str
    frames: tuple[int, ...] = ()
    tiles: tuple[Address, ...] = ()
    kind: Kind = Kind.OTHER


@dataclass(frozen=True, slots=True)
class Frozen:
    """What a run's folder holds beside journal and store, and the start: what a mosaic made anew is made from."""

    start: Start
    frozen: runs.Frozen
    frames: JournalFrames


def check_run(
    folder: Path,
    *,
    quick: bool = False,
    lock: RunLock | None = None,
    journal: Journal | None = None,
    frames_may_wait: bool = False,
    progress: Progress = lambda *_: None,
) -> list[Finding]:
    """All findings of one run; none if it is sound.

    Parameters
    ----------
    quick : bool
        Leave out the last and longest part: blending everything anew.
    lock : RunLock, optional
        The right to write the folder, where the caller has it.
    journal : Journal, optional
        The run's journal, where the caller has it open and goes on writing it.
    frames_may_wait : bool
        That frames which have a place are not in the mosaic is no finding: their turn has not come.

    Raises
    ------
    RunLockedError
        If the run is being written: what is half done looks like damage.
    StoreError
        If there is no such folder, or it may not be written.
    """
    with ExitStack() as stack:
        held = lock if lock is not None else stack.enter_context(RunLock(folder))
        is_going_on = journal is not None
        findings: list[Finding] = []
        if journal is None:
            journal = _open_journal(folder, findings)
            if journal is not None:
                stack.callback(journal.close)
        if journal is not None:
            findings += _check_journal(journal, progress)
        is_whole = not any(finding.kind is Kind.LOST for finding in findings)
        findings += _check_beside(folder)
        try:
            reader = stack.enter_context(SqliteReader(folder))
            info = reader.info()
            progress("checking the store", 0, 1)
            found = [Finding(what, kind=Kind.STORE) for what in reader.structure()]
            bad = tuple((tile.plane, tile.key) for tile in reader.damaged_tiles())
        except StoreTooNewError as error:
            return [*findings, Finding(str(error))]
        except TilecastError as error:
            return [*findings, Finding(str(error), kind=Kind.STORE)]
        findings += found
        if bad:
            findings.append(Finding("tiles are damaged (wrong checksum, or not there)", tiles=bad, kind=Kind.TILES))
        if found:
            return findings  # of a store that contradicts itself nothing more can be said
        try:
            if journal is None and is_whole and info.state != "sealed":
                what = f"there is no journal, and the run is not sealed but {info.state}"
                findings.append(Finding(what, kind=Kind.LOST))
            findings += _check_boxes(reader, info)
            findings += _check_registration(reader)
            findings += _check_reduction(reader, info, frozenset(bad), progress)
            if journal is not None:
                start = start_of(journal, info, findings)
                findings += _check_placements(journal, start, reader)
                if is_whole and not is_going_on:
                    findings += _check_received(journal, info)
                frozen = open_frozen(folder, journal, start, info, findings)
                if frozen is not None and not quick:
                    findings += _check_tiles(
                        folder, held, journal, frozen, reader, info, frozenset(bad), frames_may_wait, progress
                    )
        except (TilecastError, ValueError, TypeError, KeyError) as error:  # the store says what makes no sense
            findings.append(Finding(f"the store cannot be checked: {error}", kind=Kind.STORE))
        return findings


def _open_journal(folder: Path, findings: list[Finding]) -> Journal | None:
    """The journal; None, with a finding, if it cannot be opened, or without, if there is none."""
    if not (folder / runs.JOURNAL_NAME).is_dir():
        return None
    try:
        return Journal.open(folder / runs.JOURNAL_NAME, readonly=True)
    except JournalError as error:
        findings.append(Finding(str(error), kind=Kind.LOST))
        return None


def _check_journal(journal: Journal, progress: Progress) -> Iterator[Finding]:
    """What is damaged in it, but for what a crash took before it was promised to anybody."""
    for damage in journal.verify(lambda done, total: progress("checking the journal", done, total)):
        if damage.durable:
            kind = Kind.COPY if damage.derived else Kind.LOST
            what = f"journal segment {damage.segment:06d}, byte {damage.offset}: {damage.what}"
            yield Finding(what, damage.frames, kind=kind)


def _check_beside(folder: Path) -> Iterator[Finding]:
    """What is kept beside the journal can be read."""
    if (folder / runs.INGEST_NAME).exists() and not runs.can_read_kept(folder):
        what = f"{runs.INGEST_NAME} cannot be read; the counts of what was refused are lost"
        yield Finding(what, kind=Kind.FROZEN)


def start_of(journal: Journal, info: RunInfo, findings: list[Finding]) -> Start:
    """The start of a run: from its journal, or, with a finding, as its store keeps it.

    Raises
    ------
    StoreError
        If neither has it.
    """
    try:
        return runs.first_start(journal)
    except StoreError as error:
        start = runs.start_in_store(info)
        findings.append(Finding(str(error), kind=Kind.LOST))
        return start


def open_frozen(folder: Path, journal: Journal, start: Start, info: RunInfo, findings: list[Finding]) -> Frozen | None:
    """What was frozen at the start; None, with a finding, if it cannot be read or does not fit the store."""
    try:
        frozen = runs.read_frozen(folder)
        images = runs.load_images(folder, start, frozen)
    except StoreTooNewError as error:
        findings.append(Finding(str(error)))
        return None
    except TilecastError as error:
        findings.append(Finding(str(error), kind=Kind.FROZEN))
        return None
    if info.run != start.run:
        findings.append(Finding(f"the store is of run {info.run}, the journal of run {start.run}", kind=Kind.STORE))
        return None
    # The mode may be another one after a rebuild, the calibration may have come later than the store.
    ours, theirs = frozen.as_dict(), dict(info.settings)
    differ = [
        f"{name} is {ours[name]!r}, in the store {theirs.get(name)!r}"
        for name in ours
        if name not in ("mode", "calibration") and ours[name] != theirs.get(name)
    ]
    if theirs.get("mode") not in BLEND_MODES:
        differ.append(f"mode is {frozen.mode!r}, in the store {theirs.get('mode')!r}")
    if differ:
        what = f"{runs.FROZEN_NAME} and the store do not agree on what was frozen: {'; '.join(differ)}"
        is_store_wrong = runs.vouches(folder) or theirs.get("mode") not in BLEND_MODES
        findings.append(Finding(what, kind=Kind.STORE if is_store_wrong else Kind.FROZEN))
        return None
    return Frozen(start, frozen, JournalFrames(journal, start, images))


def _check_received(journal: Journal, info: RunInfo) -> Iterator[Finding]:
    """The journal holds at least the frames that the last report told of: a file missing at its end leaves no trace."""
    told, there = (info.report or {}).get("received", 0), len(journal.frames())
    if told > there:
        yield Finding(f"the last report of the run tells of {told} frames, its journal holds {there}", kind=Kind.LOST)


def _check_boxes(reader: SqliteReader, info: RunInfo) -> Iterator[Finding]:
    boxes: dict[PlaneKey, Rect] = {}
    for row in reader.placements():
        plane = row.placement.plane
        boxes[plane] = union_of((boxes.get(plane, _EMPTY), row.placement.rect))
    for plane in sorted(boxes.keys() | info.bboxes.keys()):
        rect, said = boxes.get(plane, _EMPTY), info.bboxes.get(plane, _EMPTY)
        if said != rect:
            what = f"the frames of plane {tuple(plane)} cover {tuple(rect)}, and the store says {tuple(said)}"
            yield Finding(what, kind=Kind.PLACES)
    levels = union_levels(boxes.values(), info.settings["tile_size"])
    if levels != info.levels:
        yield Finding(f"the frames need {levels} levels, and the store says {info.levels}", kind=Kind.PLACES)
    canvas = info.canvas
    if boxes and canvas is None:
        yield Finding("the run has frames, and no canvas to show them on", kind=Kind.PLACES)
    elif canvas is not None and not canvas.fixed and not canvas.contains(union_of(boxes.values())):
        yield Finding(f"frames lie outside the canvas, which is {tuple(canvas.rect)}", kind=Kind.PLACES)


def _check_registration(reader: SqliteReader) -> Iterator[Finding]:
    """Frames that say that they were registered lie where registration has them, and its shifts are between frames."""
    registration = reader.registration()
    kept = registration or Registration()
    registered = {(one.frame, one.view): one for one in kept.registered}
    placed = {row.placement.id: row.placement for row in reader.placements()}
    astray = [
        one.frame
        for one in placed.values()
        if one.source == "registered"
        and ((there := registered.get(one.id)) is None or (there.row, there.col) != (one.row, one.col))
    ]
    if astray:
        what = "frames are said to be registered, and do not lie where the registration has them"
        yield Finding(what, tuple(sorted(set(astray))), kind=Kind.PLACES)
    without_way_back = registered.keys() - {(one.frame, one.view) for one in kept.stage}
    if without_way_back:
        what = "it is not known where the stage had frames that were registered; `tilecast rebuild --rejoin` finds it"
        yield Finding(what, tuple(sorted({frame for frame, _ in without_way_back})))
    frames = {frame for frame, _ in placed}
    unknown = {frame for edge in kept.edges for frame in (edge.first, edge.second)} - frames
    if unknown:
        what = "the registration has shifts of frames that are not in the mosaic; `tilecast register` finds them anew"
        yield Finding(what, tuple(sorted(unknown)))


def _views_of(info: RunInfo) -> tuple[View, ...]:
    """What the frames of a run are split into, by its store; empty if they are not."""
    steps = [FrozenStep.from_dict(step) for step in info.settings.get("steps", ())]
    return steps[-1].views if steps else ()


def _check_placements(journal: Journal, start: Start, reader: SqliteReader) -> Iterator[Finding]:
    """Every placement is that of a journalled image, and where the image says, if it says so itself."""
    images: dict[int, tuple[int, PlaneKey, tuple[int, int] | None]] = {}
    views = _views_of(reader.info())
    for record in journal.records(with_parts=False):
        message = read_record(record).message
        if isinstance(message, Image) and record.image_index is not None:
            corner = None
            if message.pos_um is not None:
                corner = place_centre(message.pos_um, start.effective_affine, start.shape)
            images[record.image_index] = message.frame, PlaneKey(*message.tcz), corner
    known = {frame for frame, _, _ in images.values()}
    lost, confused, moved = [], [], []
    for row in reader.placements():
        placement = row.placement
        if placement.index not in images and placement.frame not in known:
            lost.append(placement.frame)
            continue
        frame, plane, corner = images.get(placement.index, (-1, placement.plane, None))
        whole = Placement(frame, 0, plane, *(corner or (0, 0)), *start.shape, placement.source, placement.index)
        expected = dict(enumerate(placements_of(whole, views))).get(placement.view)
        if expected is None or placement.source not in _SOURCES:
            confused.append(placement.frame)
            continue
        lies_elsewhere = placement.source == "stage" and (
            corner is None or (placement.row, placement.col) != (expected.row, expected.col)
        )
        if (placement.frame, placement.plane) != (frame, expected.plane):
            confused.append(placement.frame)
        elif lies_elsewhere or (placement.height, placement.width) != (expected.height, expected.width):
            moved.append(placement.frame)
    for what, frames, kind in (
        ("tiles show frames that the journal does not hold", lost, Kind.LOST),
        ("placements name another image or plane than theirs", confused, Kind.PLACES),
        ("frames do not lie where their images say, or are of another size", moved, Kind.PLACES),
    ):
        if frames:
            yield Finding(what, tuple(sorted(set(frames))), kind=kind)


def _check_reduction(
    reader: SqliteReader, info: RunInfo, bad: frozenset[Address], progress: Progress
) -> Iterator[Finding]:
    """Each upper tile is the reduction of its four children, values and coverage; those known as `bad` are left out."""
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
        if (plane, key) in bad:
            continue
        try:
            tile = read_tile(mosaic, plane, key, size, dtype)
        except TilecastError:
            unreadable.append((plane, key))
            continue
        if tile is not None and not _is_honest(tile):
            miscovered.append((plane, key))
        if tile is not None and key.level and not any((plane, child) in bad for child in key.children()):
            try:
                children = [read_tile(mosaic, plane, child, size, dtype) for child in key.children()]
            except TilecastError:
                continue  # of a child, which is told of by itself
            if not same_tile(tile, reduced(children, size, dtype)):
                wrong.append((plane, key))
    for what, tiles, kind in (
        ("tiles cannot be decoded", unreadable, Kind.TILES),
        ("tiles are not the reduction of their children", wrong, Kind.TILES),
        ("tiles have no parent", orphans, Kind.PARENTS),
        ("tiles show something where they say that nothing is covered", miscovered, Kind.TILES),
    ):
        if tiles:
            yield Finding(what, tiles=tuple(tiles), kind=kind)


def read_tile(
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
    frozen: Frozen,
    reader: SqliteReader,
    info: RunInfo,
    bad: frozenset[Address],
    frames_may_wait: bool,
    progress: Progress,
) -> Iterator[Finding]:
    """The mosaic, made anew from the journal at the placements that stand, is the one in the store.

    Where it shows a frame that can no longer be read, nothing can be compared: what the store has is all there is.
    """
    start, size = frozen.start, int(info.settings["tile_size"])
    placements = sorted((row.placement for row in reader.placements()), key=lambda placement: placement.order)
    record = runs.read_record(folder, start, frozen.frozen, RunPhase.OPEN, 0)
    placing = place_all(journal, record, frozen.frames.images.views, placements)
    if placing.n_joined and not frames_may_wait:
        frames = tuple(sorted({one.frame for one in placing.placements} - {one.frame for one in placements}))
        what = "frames could be placed and are not in the mosaic; `tilecast rebuild` adds them"
        yield Finding(what, frames, kind=Kind.PLACES)
    different: list[Address] = []
    discard(folder, SCRATCH_NAME, lock=lock)
    try:
        with SqliteStore.create(folder, as_new_run(start, info.settings), file_name=SCRATCH_NAME, lock=lock) as scratch:
            settings = PyramidSettings(dtype=start.dtype, mode=info.settings["mode"], tile_size=size)
            lost = blend_all(scratch, placements, frozen.frames, settings, start, DEFAULT_BUDGET_BYTES, progress)
            ours, theirs = StoredMosaic(scratch, size), StoredMosaic(reader, size)
            unknown = tiles_under(lost, placements, size, info.levels) | bad
            expected = {(stamp.plane, stamp.key) for stamp in scratch.stamps()} - unknown
            # Without the frames that are lost fewer levels may suffice; those above are checked against their children.
            top = scratch.info().levels if lost else info.levels
            found = {(stamp.plane, stamp.key) for stamp in reader.stamps() if stamp.key.level < top} - unknown
            for done, (plane, key) in enumerate(sorted(expected & found)):
                progress("comparing tiles", done, len(expected))
                one, other = ours.read(plane, key), _readable(theirs, plane, key)
                if one is None or (other is not None and not same_tile(one, other)):
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
            yield Finding(what, tiles=tuple(tiles), kind=Kind.TILES)


def _readable(mosaic: StoredMosaic, plane: PlaneKey, key: TileKey) -> RenderedTile | None:
    """A tile of the store; None if it cannot be decoded, which is told of by itself."""
    try:
        return mosaic.read(plane, key)
    except TilecastError:
        return None


def tiles_under(frames: Sequence[int], placements: Sequence[Placement], tile_size: int, levels: int) -> set[Address]:
    """The tiles of all levels that show any of these frames."""
    wanted = frozenset(frames)
    found: set[Address] = set()
    for placement in placements:
        if placement.frame in wanted:
            rect = placement.rect
            for row in range(rect.row0 // tile_size, (rect.row1 - 1) // tile_size + 1):
                for col in range(rect.col0 // tile_size, (rect.col1 - 1) // tile_size + 1):
                    key = TileKey(0, row, col)
                    found.add((placement.plane, key))
                    for _ in range(1, levels):
                        key = key.parent()
                        found.add((placement.plane, key))
    return found


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
    frames = [str(first) if first == last else f"{first}-{last}" for first, last in RangeSet(finding.frames).ranges()]
    tiles = [
        f"t{plane.t} c{plane.c} z{plane.z} level {key.level} row {key.row} col {key.col}"
        for plane, key in finding.tiles
    ]
    text = finding.what
    for what, named, n in (("frames", frames, len(finding.frames)), ("tiles", tiles, len(tiles))):
        if named:
            more = f" … ({n} in all)" if len(named) > _MOST_NAMED else ""
            text += f"; {what} {', '.join(named[:_MOST_NAMED])}{more}"
    return text
