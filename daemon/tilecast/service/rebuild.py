"""Makes a run's mosaic anew from its journal: the same pure function as the live one, over the same frames.

The new tiles are built in a file beside the old one and put in its place by one rename, so a rebuild that is killed
leaves everything as it was, and viewers see one change: a new epoch. Placements that are committed stand, and only
frames without one are joined to the stage again, unless all are to be joined anew, or to lie by another of the run's
layouts: as the stage had them, or as registration found them. What registration found is kept, or another put in its
place, in the same rename.

What cannot be read any more, because the journal is damaged there, is left out and named; the rest is made. It reads
the run's folder and nothing else; a run that a daemon has loaded is rebuilt by that daemon.

>>> rebuild_run(Path("runs/0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55"), mode="max")  # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from tilecast import calibration as cal
from tilecast.errors import StoreError
from tilecast.geometry import Placement, Rect, union_of
from tilecast.hookspecs import Role, View
from tilecast.ingest.journalled import read_record
from tilecast.ingest.machine import IngestMachine
from tilecast.ingest.settings import IngestSettings
from tilecast.ingest.verdicts import PhaseChange, Place, RunPhase, RunRecord
from tilecast.plugins import Plugins
from tilecast.pyramid import Pyramid, PyramidSettings
from tilecast.service import runs
from tilecast.service.blender import StoredMosaic
from tilecast.service.committer import as_commit, as_new_run, encode_rows, extent_of
from tilecast.service.frame_images import FrameImages, MadeImages, Step, ask_for_steps, placements_of
from tilecast.store.folders import REBUILD_NAME, discard, swap_in
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_connection import TILES_NAME
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import CommitResult, Position, Registration, RunInfo, StoreDamagedError
from tilecast_protocol.errors import JournalError, PZFError
from tilecast_protocol.journal import Journal
from tilecast_protocol.messages import Start
from tilecast_protocol.ranges import RangeSet
from tilecast_protocol.vocabulary import BLEND_MODES

DEFAULT_BUDGET_BYTES = 512 << 20
_BATCH_NBYTES = 64 << 20

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild made.

    Attributes
    ----------
    start : Start
    n_frames : int
        Frames in the mosaic.
    n_joined : int
        Of these, frames that had no place before.
    unplaced : dict of str to list of (first, last)
        Frames without a place, by the reason.
    damaged : tuple of int
        Frames whose pixels cannot be read any more: they are left out.
    mode : str
    bbox : Rect
        What the mosaic covers, level-0 pixels.
    commit : CommitResult
        The epoch and the rev that all tiles now have.
    frozen, images
        What is frozen in the run now, and how its frames become images by it.
    n_clipped : two int
        Pixels of its frames that were clipped, below and above what their type holds.
    """

    start: Start
    n_frames: int
    n_joined: int
    unplaced: dict[str, Any]
    damaged: tuple[int, ...]
    mode: str
    bbox: Rect
    commit: CommitResult
    frozen: runs.Frozen
    images: FrameImages
    n_clipped: tuple[int, int]


class Source(NamedTuple):
    """Where a calibration image is: what it is called, in which folder. Without a name: none, from now on."""

    folder: Path = Path()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Refreeze:
    """What is to be frozen anew in a run, whose mosaic is then made by it.

    Attributes
    ----------
    plugins : Plugins
        Whom to ask.
    calibrations : Path
        The option `calibration.path`.
    dark, flat : Source, optional
        If not given, what is frozen stays.
    steps : bool
        Ask plugins again what is to be done with every frame.
    """

    plugins: Plugins
    calibrations: Path
    dark: Source | None = None
    flat: Source | None = None
    steps: bool = False

    def of(self, start: Start, frozen: runs.Frozen, images: FrameImages) -> tuple[runs.Frozen, FrameImages]:
        """What is frozen instead.

        Raises
        ------
        CalibrationError, StartRefusedError
            If an image is not known or does not fit, or a plugin refuses the run.
        """
        before = images.calibration
        calibration = cal.freeze(
            dark=self._find("dark", self.dark, start, before.dark),
            flat=self._find("flat", self.flat, start, before.flat),
            shape=start.shape,
        )
        if self.steps:
            steps: Sequence[Step] = ask_for_steps(start, self.plugins, self.calibrations, calibration)
        else:
            steps = [step.after(calibration) for step in images.steps]
        made = FrameImages(calibration, steps)
        return replace(frozen, calibration=calibration.sha256, steps=made.frozen), made

    def _find(
        self, role: Role, source: Source | None, start: Start, frozen: NDArray[Any] | None
    ) -> NDArray[Any] | None:
        if source is None:
            return frozen
        if not source.name:
            return None
        return self.plugins.find_calibration(source.name, role, shape=start.shape, folder=source.folder)


@dataclass(frozen=True, slots=True)
class JournalFrames:
    """The images that a run's frames become, from its journal (the pyramid's `FrameSource`)."""

    journal: Journal
    start: Start
    images: FrameImages

    def load(self, placement: Placement) -> NDArray[Any]:
        """Pixels of one placed frame, or of a view of it."""
        return self.make(placement).images[placement.view]

    def make(self, placement: Placement) -> MadeImages:
        """All images of a placed frame, and how many of their pixels were clipped."""
        return runs.images_of(self.journal, placement.index, self.start, self.images)


@dataclass(frozen=True, slots=True)
class Placing:
    """Where all frames of a journal lie.

    Attributes
    ----------
    placements : list of Placement
        In the journal's order.
    n_joined : int
        How many of them had no place in the store.
    unplaced : dict
        The others, by the reason, as ranges.
    report : dict
        The run's report as of the journal's end.
    phase : RunPhase
        Where the journal says that the run is in its life.
    """

    placements: list[Placement]
    n_joined: int
    unplaced: dict[str, Any]
    report: dict[str, Any]
    phase: RunPhase


def rebuild_run(
    folder: Path,
    *,
    mode: str | None = None,
    rejoin: bool = False,
    refreeze: Refreeze | None = None,
    distrusted: Container[int] = frozenset(),
    store_is_damaged: bool = False,
    registration: Registration | None = None,
    layout: str | None = None,
    lock: RunLock | None = None,
    journal: Journal | None = None,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    progress: Progress = lambda *_: None,
) -> Rebuilt:
    """Make all tiles of a run anew.

    Parameters
    ----------
    folder : Path
        The run's folder.
    mode : str, optional
        Another blend mode; it then holds for frames that come later, too.
    rejoin : bool
        Join all frames to the stage anew, instead of only those without a place.
    refreeze : Refreeze, optional
        Another calibration; it then holds for frames that come later, too. If frames are split otherwise than before,
        all are placed anew.
    distrusted : container of int
        Frames whose place in the store is not to be believed: they are placed anew.
    store_is_damaged : bool
        The old store, though it can be opened, is not to be built upon: it is set aside.
    registration : Registration, optional
        To be kept in place of the run's own. If neither this is given nor frames are joined anew, that one stays.
    layout : 'stage' or 'registered', optional
        Frames are placed as the registration has them in this layout, those that it does not have as they are.
    lock : RunLock, optional
        The right to write the folder, where the caller has it.
    journal : Journal, optional
        The run's journal, where the caller has it open and goes on writing it.
    budget_bytes : int
        Memory for the pyramid.
    progress : callable
        Told how far it is. If it raises, the rebuild is off, and the old tiles stay.

    Raises
    ------
    RunLockedError
        If another process writes the run; a daemon does so while the run is open and for a while after.
    StoreError, JournalError, CalibrationError, StartRefusedError
        If the journal cannot be read, the new tiles not written, or another calibration not had; the old ones then
        stay.
    """
    with ExitStack() as stack:
        held = lock if lock is not None else stack.enter_context(RunLock(folder))
        is_going_on = journal is not None
        if journal is None:
            journal = stack.enter_context(runs.open_recording(folder))
        runs.settle_frozen(folder)
        frozen = runs.read_frozen(folder)
        settings: dict[str, Any] = {"mode": frozen.mode}
        old = []
        info = None
        kept: Registration | None = None
        # Of a ruined store nothing is believed: where its frames lay is found again from the journal.
        with suppress(StoreDamagedError):
            if (folder / TILES_NAME).exists():
                with SqliteReader(folder) as reader:
                    info = reader.info()
                    if info.settings.get("mode") in BLEND_MODES:
                        settings["mode"] = info.settings["mode"]
                    old = [row.placement for row in reader.placements() if row.placement.frame not in distrusted]
                    # It rests on positions that are not found anew.
                    kept = None if rejoin else reader.registration()
        has_store = info is not None and not store_is_damaged
        start = _start_of(journal, info)
        images = runs.load_images(folder, start, frozen)
        if refreeze is not None:
            views = images.views
            frozen, images = refreeze.of(start, frozen, images)
            if images.views != views:
                rejoin, kept = True, None
            # Whatever happens: what does not hold in the end is removed.
            stack.callback(runs.settle_frozen, folder)
            runs.freeze_beside(folder, frozen, images)
        settings = frozen.as_dict() | settings
        if mode is not None:
            settings["mode"] = mode
        record = runs.read_record(folder, start, frozen, RunPhase.OPEN, 0)
        placing = place_all(journal, record, images.views, [] if rejoin else old, progress)
        kept = kept if registration is None else registration
        placements = placing.placements if layout is None else laid_out(placing.placements, kept, layout)
        pyramid_settings = PyramidSettings(dtype=start.dtype, mode=settings["mode"], tile_size=frozen.tile_size)
        stack.callback(discard, folder, lock=held)  # what is left of a rebuild that was broken off; else nothing
        discard(folder, lock=held)
        with SqliteStore.create(folder, as_new_run(start, settings), file_name=REBUILD_NAME, lock=held) as store:
            frames = JournalFrames(journal, start, images)
            damaged = blend_all(store, placements, frames, pyramid_settings, start, budget_bytes, progress)
            if not has_store:
                # Nobody writes to it now, so it has gone idle if it has not ended.
                phase = RunPhase.IDLE if placing.phase is RunPhase.OPEN and not is_going_on else placing.phase
                store.set_state(phase.value)
                if phase is not RunPhase.OPEN:
                    store.set_report(1, placing.report | {"state": phase.value})
            if kept is not None:
                store.keep_registration(kept)
            n_clipped = store.info().clipped
        if is_going_on:
            journal.sync()  # tiles must not show frames that a power failure could still take
        reason = f"rebuilt, {settings['mode']}" + (f", placed as in the layout {layout}" if layout else "")
        commit = swap_in(folder, lock=held, reason=reason, old_is_damaged=store_is_damaged)
        left_out = frozenset(damaged)
        return Rebuilt(
            start=start,
            n_frames=len(placements) - len(damaged),
            n_joined=placing.n_joined,
            unplaced=placing.unplaced,
            damaged=damaged,
            mode=settings["mode"],
            bbox=union_of(one.rect for one in placements if one.frame not in left_out),
            commit=commit,
            frozen=frozen,
            images=images,
            n_clipped=n_clipped,
        )


def laid_out(placements: list[Placement], registration: Registration | None, layout: str) -> list[Placement]:
    """Placements as a run's layout has them; those that it does not have stay.

    Raises
    ------
    StoreError
        If the run has no layouts.
    """
    if registration is None:
        raise StoreError("the run was not registered, so its frames lie by the stage; `tilecast register` does it")
    positions: tuple[Position, ...] = getattr(registration, layout)
    found = {(one.frame, one.view): one for one in positions}
    return [
        replace(placement, row=there.row, col=there.col, source=there.source)
        if (there := found.get(placement.id)) is not None
        else placement
        for placement in placements
    ]


def _start_of(journal: Journal, info: RunInfo | None) -> Start:
    """How the run began: its journal says so, or, if that is lost, its store."""
    try:
        return runs.first_start(journal)
    except StoreError:
        if info is None:
            raise
        return runs.start_in_store(info)


def place_all(
    journal: Journal,
    record: RunRecord,
    views: Sequence[View],
    old: list[Placement],
    progress: Progress = lambda *_: None,
) -> Placing:
    """Where every frame of a journal lies: where it lay, and, for those that had no place, where they belong.

    Parameters
    ----------
    record : RunRecord
        What is kept beside the journal: how its frames are to be placed.
    views : sequence of View
        What each frame is split into.
    old : list of Placement
        Those that stand.
    """
    placed = RangeSet()
    for placement in old:
        placed.add(placement.frame)
    machine = IngestMachine(IngestSettings())
    found: list[Placement] = []
    phase = RunPhase.OPEN
    total, done = journal.n_images, 0

    def messages() -> Any:
        nonlocal done
        for one in journal.records(with_parts=False):
            item = read_record(one)
            if item.image_index is not None:
                done += 1
                progress("placing frames", done, total)
            yield item

    for effect in machine.recover(record, messages(), placed, time.time_ns()):
        if isinstance(effect, Place):
            found += placements_of(effect.placement, views)
        elif isinstance(effect, PhaseChange):
            phase = effect.phase
    placements = sorted([*old, *found], key=lambda placement: placement.order)
    return Placing(placements, len(found), machine.unplaced(record.run), machine.report(record.run), phase)


def blend_all(
    store: SqliteStore,
    placements: list[Placement],
    frames: JournalFrames,
    settings: PyramidSettings,
    start: Start,
    budget_bytes: int,
    progress: Progress = lambda *_: None,
) -> tuple[int, ...]:
    """Blend all placed frames into an empty store, batch by batch; those whose pixels cannot be read are left out.

    Returns
    -------
    tuple of int
        The frames that were left out.
    """
    source = StoredMosaic(store, settings.tile_size)
    pyramid = Pyramid(settings, budget_bytes=budget_bytes, placements=source, frames=frames, tiles=source)
    canvas, extent = None, extent_of(start)
    damaged: list[int] = []
    clipped = (0, 0)
    made: tuple[int, MadeImages] | None = None  # of the frame whose views come one after another
    for number, placement in enumerate(placements, 1):
        try:
            if made is None or made[0] != placement.frame:
                made = placement.frame, frames.make(placement)
                clipped = clipped[0] + made[1].n_low, clipped[1] + made[1].n_high
        except (JournalError, PZFError):
            damaged.append(placement.frame)
        else:
            pyramid.add(placement, made[1].images[placement.view])
        if pyramid.pending_nbytes >= _BATCH_NBYTES or number == len(placements):
            batch = pyramid.flush()
            if batch is not None:
                rows = encode_rows(batch)
                commit = as_commit(batch, rows, canvas, extent, settings.tile_size, None, clipped=clipped)
                clipped = (0, 0)
                canvas = commit.canvas
                store.commit(commit)
                pyramid.committed(batch.number)
        progress("blending frames", number, len(placements))
    return tuple(damaged)
