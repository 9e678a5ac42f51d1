"""Makes good what `fsck` finds in a run, as far as its journal, its store, or both together still know it.

In this order, each step with what the one before has brought back: the journal's indices and heads; what was frozen;
then the mosaic. Single tiles that are wrong are blended anew from the frames that cover them, and what lies above them
is reduced anew; the rest stays as it is. A database that is damaged itself is made anew as a whole and set aside.

One rule stands above: what only the store has left is not thrown away. Where the journal has lost frames that the
mosaic still shows, the mosaic is not made anew because of something smaller.

>>> repair_run(Path("runs/0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55"))  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tilecast import calibration as cal
from tilecast.errors import CalibrationError, StoreError, StoreTooNewError
from tilecast.geometry import PlaneKey, Rect, TileKey
from tilecast.pyramid import PyramidSettings, RenderedTile
from tilecast.service import runs
from tilecast.service.blender import StoredMosaic
from tilecast.service.committer import as_new_run
from tilecast.service.frame_images import FrameImages
from tilecast.service.fsck import (
    SCRATCH_NAME,
    Address,
    Finding,
    Kind,
    check_run,
    open_frozen,
    read_tile,
    reduced,
    start_of,
)
from tilecast.service.rebuild import DEFAULT_BUDGET_BYTES, Progress, Rebuilt, blend_all, rebuild_run
from tilecast.store.coverage import coverage_pack
from tilecast.store.folders import discard
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import Commit, CommitResult, RunInfo, TileRow
from tilecast_protocol import pzf
from tilecast_protocol.errors import TilecastError
from tilecast_protocol.journal import Journal
from tilecast_protocol.journal_repair import repair_journal
from tilecast_protocol.messages import Start

#: Above so many wrong tiles, if nothing is lost by it, the whole mosaic is made anew: one by one they fill the memory.
_MOST_TILES = 1000


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did.

    Attributes
    ----------
    done : tuple of str
        What was made good, in words.
    left : tuple of Finding
        What is still wrong.
    change : Change or None
        What viewers must be told; None if the mosaic is as it was.
    """

    done: tuple[str, ...]
    left: tuple[Finding, ...]
    change: Change | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A commit that a repair made.

    Attributes
    ----------
    tiles, gone : sequence of Address, or None
        What it changed; None if everything.
    bbox : Rect
        What the mosaic covers, level-0 pixels.
    """

    start: Start
    commit: CommitResult
    bbox: Rect
    tiles: Sequence[Address] | None = None
    gone: Sequence[Address] = ()


def repair_run(
    folder: Path,
    *,
    lock: RunLock | None = None,
    journal: Journal | None = None,
    frames_may_wait: bool = False,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    progress: Progress = lambda *_: None,
) -> Repaired:
    """Check a run, make good what can be made good, and check it again.

    Parameters
    ----------
    folder : Path
        The run's folder.
    lock : RunLock, optional
        The right to write the folder, where the caller has it.
    journal : Journal, optional
        The run's journal, where the caller has it open and goes on writing it.
    frames_may_wait : bool
        As for `fsck.check_run`.
    budget_bytes : int
        Memory for the pyramid.
    progress : callable
        Told how far it is. If it raises, the repair is off, and what was done so far stays.

    Raises
    ------
    RunLockedError
        If another process writes the run.
    StoreError, JournalError
        If something cannot be written.
    """
    with ExitStack() as stack:
        held = lock if lock is not None else stack.enter_context(RunLock(folder))

        def check() -> list[Finding]:
            return check_run(folder, lock=held, journal=journal, frames_may_wait=frames_may_wait, progress=progress)

        findings = check()
        done: list[str] = []
        if journal is None and _any(findings, Kind.COPY):
            done += repair_journal(folder / runs.JOURNAL_NAME)
        if _any(findings, Kind.FROZEN):
            done += _repair_frozen(folder, journal)
        if done:
            findings = check()
        change = None
        if _any(findings, Kind.STORE, Kind.PLACES, Kind.TILES, Kind.PARENTS):
            said, change = _repair_mosaic(folder, held, journal, findings, budget_bytes, progress)
            done += said
            findings = check()
        return Repaired(tuple(done), tuple(findings), change)


def _any(findings: Sequence[Finding], *kinds: Kind) -> bool:
    return any(finding.kind in kinds for finding in findings)


def _tiles_of(findings: Sequence[Finding], kind: Kind) -> set[Address]:
    return {tile for finding in findings if finding.kind is kind for tile in finding.tiles}


# ---- what was frozen -------------------------------------------------------------------------------------------------


def _repair_frozen(folder: Path, journal: Journal | None) -> list[str]:
    """Write anew what stood in the small files, where something else knows it."""
    done = []
    with suppress(TilecastError, ValueError, OSError), ExitStack() as stack:
        if journal is None:
            journal = stack.enter_context(Journal.open(folder / runs.JOURNAL_NAME, readonly=True))
        starts = list(runs.starts_of(journal))
        with SqliteReader(folder) as reader:
            info = reader.info()
        images = _calibration_of(folder, starts, info)
        sha256 = images.sha256 if images is not None else str(info.settings["calibration"])
        wanted = runs.Frozen.from_dict(dict(info.settings) | {"calibration": sha256})
        first = [start.blend for start in starts[:1] if start.blend is not None]
        try:
            found = runs.read_frozen(folder)
            calibration = found.calibration if images is None else sha256
            wanted = replace(found if runs.vouches(folder) else wanted, mode=found.mode, calibration=calibration)
        except StoreTooNewError:
            raise  # it is not damaged
        except StoreError:
            found = None
            wanted = replace(wanted, mode=first[0] if first else wanted.mode)
        if found != wanted:
            bare = cal.freeze(shape=starts[0].shape if starts else (1, 1))
            runs.freeze_in(folder, wanted, FrameImages(images or bare))
            done.append(f"{runs.FROZEN_NAME} was written again, as the store says")
        elif images is not None:
            try:
                runs.load_calibration(folder, starts[0].shape, wanted.calibration)
            except CalibrationError:
                runs.freeze_in(folder, wanted, FrameImages(images))
                done.append("the calibration images were written again, as the start message brought them")
    done += _repair_kept(folder)
    return done


def _calibration_of(folder: Path, starts: Sequence[Start], info: RunInfo) -> cal.Calibration | None:
    """The calibration of a run, if it is in its folder whole, or if a start message brought it; None if not known."""
    digests = {str(info.settings["calibration"])}
    with suppress(StoreError):
        digests.add(runs.read_frozen(folder).calibration)
    for start in starts:
        images = {
            role: cal.load_npy(bytes(start.parts[int(name.removeprefix("part:"))]), start.shape)
            for role, name in (("dark", start.dark), ("flat", start.flat))
            if name is not None and name.startswith("part:") and start.parts
        }
        found = cal.freeze(dark=images.get("dark"), flat=images.get("flat"), shape=start.shape)
        if images and found.sha256 in digests:
            return found
    return None


def _repair_kept(folder: Path) -> list[str]:
    """Begin anew with what ingest keeps beside the journal, if it cannot be read."""
    path = folder / runs.INGEST_NAME
    if not path.exists() or runs.can_read_kept(folder):
        return []
    path.unlink()
    return [f"{path.name} was removed: the counts of what was refused begin anew"]


# ---- the mosaic ------------------------------------------------------------------------------------------------------


def _repair_mosaic(
    folder: Path,
    lock: RunLock,
    journal: Journal | None,
    findings: Sequence[Finding],
    budget_bytes: int,
    progress: Progress,
) -> tuple[list[str], Change | None]:
    """Make tiles anew: those that are wrong, or all; what was done, and what viewers must be told."""
    bad, orphans = _tiles_of(findings, Kind.TILES), _tiles_of(findings, Kind.PARENTS)
    is_ruined = _any(findings, Kind.STORE)
    loses = any(finding.kind is Kind.LOST for finding in findings)
    too_many = len(bad) + len(orphans) > _MOST_TILES
    if is_ruined or ((_any(findings, Kind.PLACES) or too_many) and not loses):
        rebuilt = _rebuild(folder, lock, journal, findings, is_ruined, budget_bytes, progress)
        done = [f"the mosaic was made anew from {rebuilt.n_frames} frames"]
        if is_ruined:
            done[0] += "; what was left of the old one is beside it, as tiles.sqlite.damaged-…"
        return done, Change(rebuilt.start, rebuilt.commit, rebuilt.bbox)
    if not bad and not orphans:
        return [], None
    return _patch(folder, lock, journal, bad, orphans, budget_bytes, progress)


def _rebuild(
    folder: Path,
    lock: RunLock,
    journal: Journal | None,
    findings: Sequence[Finding],
    is_ruined: bool,
    budget_bytes: int,
    progress: Progress,
) -> Rebuilt:
    """All tiles anew; placements that contradict something are found again from the journal."""
    distrusted = {frame for finding in findings if finding.kind is Kind.PLACES for frame in finding.frames}
    with suppress(TilecastError), SqliteReader(folder) as reader:
        distrusted |= reader.misplaced()
    return rebuild_run(
        folder,
        distrusted=distrusted,
        store_is_damaged=is_ruined,
        lock=lock,
        journal=journal,
        budget_bytes=budget_bytes,
        progress=progress,
    )


def _patch(
    folder: Path,
    lock: RunLock,
    journal: Journal | None,
    bad: set[Address],
    orphans: set[Address],
    budget_bytes: int,
    progress: Progress,
) -> tuple[list[str], Change | None]:
    """Make some tiles anew, and all above them, in one commit."""
    with ExitStack() as stack:
        if journal is None and (folder / runs.JOURNAL_NAME).is_dir():
            journal = stack.enter_context(Journal.open(folder / runs.JOURNAL_NAME, readonly=True))
        store = stack.enter_context(SqliteStore.open(folder, lock=lock))
        info = store.info()
        start = runs.start_in_store(info) if journal is None else start_of(journal, info, [])
        bases = {address for address in bad if address[1].level == 0}
        changed: dict[Address, RenderedTile | None] = {}
        lost: tuple[int, ...] = ()
        if bases and journal is not None:
            changed, lost = _blend(folder, lock, journal, start, store, bases, budget_bytes, progress)
        unknown = bases - changed.keys()
        _reduce(store, info, changed, bad | orphans, unknown)
        rows = [
            TileRow(plane, key, bytes(pzf.encode_image(tile.pixels)), coverage_pack(tile.coverage))
            for (plane, key), tile in changed.items()
            if tile is not None
        ]
        gone = [address for address, tile in changed.items() if tile is None and store.tile_rev(*address) is not None]
        if not rows and not gone:
            return [], None
        detail = {"tiles": len(rows), "gone": len(gone), "without_frames": list(lost)}
        commit = store.commit(Commit(tiles=rows, gone=gone, events=[("repair", detail)]))
        text = f"{len(rows)} tiles were made anew" + (f", {len(gone)} removed" if gone else "")
        if lost:
            text += f"; without frames {', '.join(map(str, lost))}, which cannot be read any more"
        bbox = info.bbox
    return [text], Change(start, commit, bbox, [(row.plane, row.key) for row in rows], gone)


def _blend(
    folder: Path,
    lock: RunLock,
    journal: Journal,
    start: Start,
    store: SqliteStore,
    bases: set[Address],
    budget_bytes: int,
    progress: Progress,
) -> tuple[dict[Address, RenderedTile | None], tuple[int, ...]]:
    """Base tiles from the frames that cover them, None for those that none covers; and frames that cannot be read."""
    info = store.info()
    size = int(info.settings["tile_size"])
    frozen = open_frozen(folder, journal, start, info, [])
    if frozen is None:
        return {}, ()  # what was frozen is lost, and with it what pixels mean
    covering = {placement.id: placement for plane, key in bases for placement in store.covering(plane, key.rect(size))}
    placements = sorted(covering.values(), key=lambda placement: placement.order)
    settings = PyramidSettings(dtype=start.dtype, mode=info.settings["mode"], tile_size=size)
    discard(folder, SCRATCH_NAME, lock=lock)
    try:
        with SqliteStore.create(folder, as_new_run(start, info.settings), file_name=SCRATCH_NAME, lock=lock) as scratch:
            lost = blend_all(scratch, placements, frozen.frames, settings, start, budget_bytes, progress)
            mosaic = StoredMosaic(scratch, size)
            return {address: mosaic.read(*address) for address in sorted(bases)}, lost
    finally:
        discard(folder, SCRATCH_NAME, lock=lock)


def _reduce(
    store: SqliteStore,
    info: RunInfo,
    changed: dict[Address, RenderedTile | None],
    wrong: set[Address],
    unknown: set[Address],
) -> None:
    """Add to `changed` the tiles above those that changed, and above or at those that are wrong, level by level.

    What lies above a tile that is `unknown`, because nothing is left to make it from, is left as it is.
    """
    size, dtype = int(info.settings["tile_size"]), np.dtype(info.header["dtype"])
    mosaic = StoredMosaic(store, size)

    def child_of(plane: PlaneKey, key: TileKey) -> RenderedTile | None:
        address = plane, key
        return changed[address] if address in changed else read_tile(mosaic, plane, key, size, dtype)

    for level in range(1, info.levels):
        below = {address for address in (*changed, *wrong, *unknown) if address[1].level == level - 1}
        wanted = {(plane, key.parent()) for plane, key in below} | {one for one in wrong if one[1].level == level}
        for plane, key in sorted(wanted):
            children = [(plane, child) for child in key.children()]
            if any(child in unknown for child in children):
                unknown.add((plane, key))
                continue
            tiles = [child_of(*child) for child in children]
            there = any(tile is not None for tile in tiles)
            changed[plane, key] = reduced(tiles, size, dtype) if there else None
