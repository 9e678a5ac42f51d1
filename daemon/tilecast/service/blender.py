"""The blend thread: placed frames in, batches of changed tiles out.

It owns the pyramids of all loaded runs and nothing else knows them. Its work comes through one bounded queue from the
ingest thread; what it makes goes through another to the store thread. When to hand tiles over is a question of
deadlines: if the store is idle and no frame waits, at once (a lone frame is on the screen as soon as it can be); if the
daemon is busy, frames are gathered for up to `commit_interval_s`, or until the store is ready again, so that larger
batches cost less; and at any time when the next batch has come to `batch_bytes`, because what is not in the store
cannot be dropped from memory, and memory has a budget. What is weighed are tiles, of all levels, not frames: a few
small frames far from each other change many tiles. A full store queue makes this thread wait, its own queue fills, and
the publishers slow down.

Blending needs to read: accumulators that were evicted are made again from the journal, tiles from the store. Both are
read here, in this thread, through `Run.load` and a read-only connection of its own, because the next step of the very
same tile needs the answer; to send the question to another thread and wait would only add a hop.

What cannot be read stops one run, not the daemon: its mosaic is *stuck* (`Run.stuck`), its frames go on into its
journal, and a rebuild or the next start goes on from there.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import structlog
from numpy.typing import NDArray

from tilecast.errors import StoreError
from tilecast.geometry import Placement, PlaneKey, Rect, TileKey
from tilecast.histogram import Histogram
from tilecast.pyramid import Pyramid, PyramidSettings, PyramidStats, RenderedTile
from tilecast.queues import ByteQueue
from tilecast.service.committer import Closed, Marked, Opened, Rendered, StoreItem, refuse, stuck_notice
from tilecast.service.frame_images import MadeImages, placements_of
from tilecast.service.runs import Run, image_pixels
from tilecast.store.coverage import coverage_unpack
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.tile_store import TileReader
from tilecast_protocol import pzf
from tilecast_protocol.errors import JournalError, PZFError, TilecastError

log = structlog.get_logger()

_RESTS_AFTER_S = 10.0
_LONGEST_WAIT_S = 1.0


@dataclass(slots=True)
class Placed:
    """A frame to be blended.

    Attributes
    ----------
    pixels : ndarray or None
        As the camera sent them; None if they are to be read from the journal.
    t_recv_ns : int or None
        UTC, when it arrived; None if that was before a restart.
    ticket : int
        What must be durable before its tiles are committed.
    """

    run: Run
    placement: Placement
    pixels: NDArray[Any] | None
    t_recv_ns: int | None
    ticket: int


@dataclass(slots=True)
class Unload:
    """Finish everything of a run, close its store, and forget it."""

    run: Run
    on_done: Callable[[], None]


@dataclass(slots=True)
class Rebuild:
    """Make all tiles of a run anew, while its images go on being journalled.

    Attributes
    ----------
    work : callable
        Does it, in a thread of its own, while nobody has the run's store open.
    on_done : callable
        Called with what went wrong, or None.
    """

    run: Run
    work: Callable[[], None]
    on_done: Callable[[Exception | None], None]


BlendItem = Placed | Opened | Marked | Unload | Rebuild


class StoredMosaic:
    """What is committed, as a pyramid asks for it: placements under a rectangle, and tiles.

    Parameters
    ----------
    reader : TileReader
    tile_size : int
    """

    def __init__(self, reader: TileReader, tile_size: int) -> None:
        self._reader = reader
        self._tile_size = tile_size

    def covering(self, plane: PlaneKey, rect: Rect) -> list[Placement]:
        """Committed placements that share a pixel with `rect`."""
        return self._reader.covering(plane, rect)

    def has_placement(self, frame: int, view: int) -> bool:
        """Whether a frame's placement is committed."""
        return self._reader.has_placement(frame, view)

    def read(self, plane: PlaneKey, key: TileKey) -> RenderedTile | None:
        """A committed tile."""
        stored = self._reader.tile(plane, key)
        if stored is None:
            return None
        return RenderedTile(pzf.decode_image(stored.pzf), coverage_unpack(stored.coverage, self._tile_size))


@dataclass(slots=True, eq=False)
class _Mosaic:
    """One loaded run.

    Attributes
    ----------
    pyramid, reader
        Made when the first frame comes.
    in_flight : int
        Batches that are on their way to the store.
    dirty_since, t_recv_ns
        Of what is not flushed: when that began, the arrival of its oldest frame.
    ticket : int
        What must be durable before it may be committed.
    used_at : float
        When the last frame came.
    parked : list or None
        What came since a rebuild began; None while there is none.
    clipped : two int
        Pixels of frames that are not flushed that were clipped, below and above what their type holds.
    n_clipped : two int
        The same of all frames that were blended since the run was loaded.
    """

    run: Run
    pyramid: Pyramid | None = None
    reader: SqliteReader | None = None
    in_flight: int = 0
    dirty_since: float | None = None
    t_recv_ns: int | None = None
    ticket: int = 0
    used_at: float = 0.0
    parked: list[BlendItem] | None = None
    clipped: tuple[int, int] = (0, 0)
    n_clipped: tuple[int, int] = (0, 0)


class Blender:
    """The thread that blends.

    Parameters
    ----------
    queue : ByteQueue
        Its work; closed by this thread if it dies.
    store_queue : ByteQueue
        Where its batches go; closed by this thread when it ends.
    budget_bytes : int
        Memory for accumulators and cached tiles. The runs that got frames lately share it evenly.
    commit_interval_s : float
        How long a busy daemon gathers frames before it commits them.
    batch_bytes : int
        A batch is handed on when its tiles may hold as much; so none holds more but for what the last frame adds.
    on_failure : callable
        Called with the exception that ended this thread.

    Attributes
    ----------
    n_turns : int
        Rises whenever the thread does something, also if that is to look whether there is something to do.
    waits_for_store : bool
        Whether it can do nothing until the store thread has made a store.
    """

    def __init__(
        self,
        queue: ByteQueue[BlendItem],
        store_queue: ByteQueue[StoreItem],
        *,
        budget_bytes: int,
        commit_interval_s: float,
        batch_bytes: int,
        on_failure: Callable[[str, BaseException], None],
    ) -> None:
        self._queue = queue
        self._store_queue = store_queue
        self._budget_bytes = budget_bytes
        self._commit_interval_s = commit_interval_s
        self._batch_bytes = batch_bytes
        self._on_failure = on_failure
        self._mosaics: dict[str, _Mosaic] = {}
        self._at_work: set[_Mosaic] = set()
        self._notes: deque[Callable[[], None]] = deque()
        self.n_turns = 0
        self.waits_for_store = False
        self.n_frames = 0
        self.blend_s = 0.0
        self.render_s = 0.0
        self.latency = Histogram()
        self._pyramid_stats: dict[str, PyramidStats] = {}
        self._thread = threading.Thread(target=self._run, name="tilecast-blend", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the thread has done all its work, or has died."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait until the queue was closed and everything in it was handed to the store."""
        self._thread.join()

    def committed(self, run: Run, number: int) -> None:
        """Note that a batch is in the store; from any thread."""
        self._notes.append(lambda: self._was_committed(run, number))
        self._queue.wake()

    def stats(self) -> dict[str, Any]:
        """Counters since the start; from any thread."""
        return {
            "n_frames": self.n_frames,
            "blend_s": self.blend_s,
            "render_s": self.render_s,
            "clipped": {run: list(mosaic.n_clipped) for run, mosaic in list(self._mosaics.items())},
            "pyramids": {run: asdict(stats) for run, stats in list(self._pyramid_stats.items())},
        }

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._queue.drained:
                self.n_turns += 1
                item = self._queue.get(timeout_s=self._patience_s())
                self._read_notes()
                if item is not None:
                    self._do(item)
                self._flush_due()
            for mosaic in self._mosaics.values():
                self._flush(mosaic)
        except Exception as error:  # noqa: BLE001 - the end of a thread: named, and handed to whoever can act
            self._on_failure("blend", error)
        finally:
            self._queue.close()
            self._leave()
            self._store_queue.close()

    def _leave(self) -> None:
        """Tell all who wait for something that is not done any more."""
        for mosaic in self._mosaics.values():
            self._drop_pyramid(mosaic)
            for item in mosaic.parked or ():
                self._refuse(item)
        while (left := self._queue.get(timeout_s=0)) is not None:
            self._refuse(left)

    def _patience_s(self) -> float:
        """How long to wait for work before something is due anyway."""
        now = time.monotonic()
        due = [
            mosaic.dirty_since + self._commit_interval_s - now
            for mosaic in self._mosaics.values()
            if mosaic.dirty_since is not None and not mosaic.in_flight
        ]
        return max(0.0, min([_LONGEST_WAIT_S, *due]))

    def _read_notes(self) -> None:
        while self._notes:
            self._notes.popleft()()

    def _do(self, item: BlendItem) -> None:
        if isinstance(item, Opened):
            self._mosaics[item.run.run] = _Mosaic(item.run)
            self._hand_on(item)
            return
        mosaic = self._mosaics.get(item.run.run)
        if mosaic is None or mosaic.run is not item.run:
            self._refuse(item)
        elif mosaic.parked is not None:
            if isinstance(item, Placed):
                item.pixels = None  # it is in the journal; a rebuild may take long, and memory has a budget
            mosaic.parked.append(item)
        else:
            self._work_on(mosaic, item)

    def _work_on(self, mosaic: _Mosaic, item: Placed | Marked | Unload | Rebuild) -> None:
        match item:
            case Placed():
                self._place(mosaic, item)
            case Marked():
                if item.state is not None or item.report is not None:
                    self._flush(mosaic)  # what is said of a run must be true of its tiles
                self._hand_on(item)
            case Unload(run, on_done):
                del self._mosaics[run.run]
                self._close(mosaic, on_done)
            case Rebuild():
                self._begin_rebuild(mosaic, item)

    @staticmethod
    def _refuse(item: BlendItem) -> None:
        """What comes for a run that has just been closed, or after the end; what was to be blended is in a journal."""
        if isinstance(item, Unload):
            item.on_done()
        elif not isinstance(item, Placed):
            error = StoreError("the run is being closed; ask again in a moment")
            if isinstance(item, Rebuild):
                item.on_done(error)
            else:
                refuse(item, error)

    def _hand_on(self, item: StoreItem, nbytes: int = 0) -> None:
        if not self._store_queue.put(item, nbytes):
            refuse(item, StoreError("the daemon has stopped writing"))

    # ---- frames ------------------------------------------------------------------------------------------------------

    def _place(self, mosaic: _Mosaic, item: Placed) -> None:
        run = mosaic.run
        self.waits_for_store = True
        run.store_ready.wait()  # a pyramid must know what there is, or it would begin anew over it
        self.waits_for_store = False
        if run.stuck:
            return
        mosaic.used_at = began = time.monotonic()
        try:
            pyramid = self._pyramid(mosaic)
            made = self._images(mosaic, item)
            if made is None:
                return
            for placement, pixels in zip(placements_of(item.placement, run.images.views), made.images, strict=True):
                pyramid.add(placement, pixels)
            mosaic.clipped = (mosaic.clipped[0] + made.n_low, mosaic.clipped[1] + made.n_high)
            mosaic.n_clipped = (mosaic.n_clipped[0] + made.n_low, mosaic.n_clipped[1] + made.n_high)
        except (TilecastError, OSError, ValueError) as error:
            self._give_up(mosaic, error)
            return
        self.n_frames += 1
        self.blend_s += time.monotonic() - began
        if mosaic.dirty_since is None:
            mosaic.dirty_since = began
        if item.t_recv_ns is not None:
            self.latency.add((time.time_ns() - item.t_recv_ns) / 1e9)
            mosaic.t_recv_ns = item.t_recv_ns if mosaic.t_recv_ns is None else min(mosaic.t_recv_ns, item.t_recv_ns)
        mosaic.ticket = max(mosaic.ticket, item.ticket)
        self._pyramid_stats[run.run] = pyramid.stats()

    def _images(self, mosaic: _Mosaic, item: Placed) -> MadeImages | None:
        """What a frame becomes: calibrated, one image for each view; None if it is lost, or not needed."""
        run = mosaic.run
        if item.pixels is not None:
            return run.images.of(item.pixels, item.placement.plane.c)
        if mosaic.reader is not None and mosaic.reader.has_placement(*item.placement.id):
            return None  # a rebuild found it in the journal, too
        try:
            pixels = image_pixels(run.journal, item.placement.index, run.start)
        except (JournalError, PZFError) as error:
            frame = item.placement.frame
            log.error("a frame cannot be blended: its recording is damaged", run=run.run, frame=frame, why=str(error))
            detail = {"what": "damaged", "frames": [[frame, frame]], "n": 1, "message": str(error)}
            self._hand_on(Marked(run, notices=[run.notice("warning", detail)]))
            return None
        return run.images.of(pixels, item.placement.plane.c)

    def _flush_due(self) -> None:
        now = time.monotonic()
        waiting = not self._queue.empty
        for mosaic in self._mosaics.values():
            if mosaic.dirty_since is None:
                continue
            full = mosaic.pyramid is not None and mosaic.pyramid.pending_nbytes >= self._batch_bytes
            due = not waiting or now - mosaic.dirty_since >= self._commit_interval_s
            if full or (due and not mosaic.in_flight):
                self._flush(mosaic)

    def _flush(self, mosaic: _Mosaic) -> None:
        if mosaic.pyramid is None or mosaic.dirty_since is None:
            return
        began = time.monotonic()
        try:
            batch = mosaic.pyramid.flush()
        except (TilecastError, OSError, ValueError) as error:
            self._give_up(mosaic, error)
            return
        self.render_s += time.monotonic() - began
        t_recv_ns, mosaic.t_recv_ns = mosaic.t_recv_ns, None
        clipped, mosaic.clipped = mosaic.clipped, (0, 0)
        mosaic.dirty_since = None
        if batch is not None:
            mosaic.in_flight += 1
            self._hand_on(Rendered(mosaic.run, batch, t_recv_ns, mosaic.ticket, clipped), batch.nbytes)

    def _was_committed(self, run: Run, number: int) -> None:
        mosaic = self._mosaics.get(run.run)
        if mosaic is None or mosaic.run is not run:
            return
        mosaic.in_flight -= 1
        if mosaic.pyramid is not None:
            mosaic.pyramid.committed(number)

    # ---- pyramids ----------------------------------------------------------------------------------------------------

    def _pyramid(self, mosaic: _Mosaic) -> Pyramid:
        if mosaic.pyramid is None:
            run = mosaic.run
            mosaic.reader = SqliteReader(run.folder, own=True)
            info = mosaic.reader.info()
            source = StoredMosaic(mosaic.reader, run.frozen.tile_size)
            mosaic.pyramid = Pyramid(
                PyramidSettings(dtype=run.start.dtype, mode=str(info.settings["mode"]), tile_size=run.frozen.tile_size),
                budget_bytes=self._budget_bytes,
                placements=source,
                frames=run,
                tiles=source,
                levels=info.levels,
                bboxes=info.bboxes,
            )
            self._at_work = set()
        self._share_memory(mosaic)
        return mosaic.pyramid

    def _share_memory(self, mosaic: _Mosaic) -> None:
        """Divide the budget anew if other mosaics are at work than before; those that rest keep nothing."""
        if mosaic in self._at_work and len(self._at_work) == 1:
            return
        at_work = {each for each in self._mosaics.values() if mosaic.used_at - each.used_at < _RESTS_AFTER_S}
        if at_work == self._at_work:
            return
        self._at_work = at_work
        for each in self._mosaics.values():
            if each.pyramid is not None:
                each.pyramid.budget_bytes = self._budget_bytes // len(at_work) if each in at_work else 0

    def _give_up(self, mosaic: _Mosaic, error: Exception) -> None:
        """Something that the mosaic needs cannot be read: leave it as it is committed."""
        run = mosaic.run
        run.stuck = str(error)
        log.error("the mosaic of a run is stuck; its frames are kept", run=run.run, why=run.stuck)
        self._drop_pyramid(mosaic)
        self._hand_on(Marked(run, notices=[stuck_notice(run)]))

    def _drop_pyramid(self, mosaic: _Mosaic) -> None:
        if mosaic.reader is not None:
            mosaic.reader.close()
        mosaic.pyramid, mosaic.reader = None, None
        mosaic.dirty_since, mosaic.t_recv_ns, mosaic.clipped = None, None, (0, 0)
        self._at_work = set()
        self._pyramid_stats.pop(mosaic.run.run, None)

    def _close(self, mosaic: _Mosaic, on_done: Callable[[], None]) -> None:
        """Hand on what there is, then have the store closed."""
        self._flush(mosaic)
        self._drop_pyramid(mosaic)
        self._hand_on(Closed(mosaic.run, on_done))

    # ---- rebuilds ----------------------------------------------------------------------------------------------------

    def _begin_rebuild(self, mosaic: _Mosaic, item: Rebuild) -> None:
        """Close the store, let another thread do the work, and park what comes meanwhile."""
        closed = threading.Event()
        self._close(mosaic, closed.set)
        mosaic.run.store_ready.clear()
        mosaic.parked = []

        def work() -> None:
            failure: Exception | None = None
            try:
                closed.wait()
                item.work()
                mosaic.run.stuck = ""
            except Exception as error:  # noqa: BLE001 - the end of a thread: reported to whoever asked
                failure = error
            self._notes.append(lambda: self._end_rebuild(mosaic))
            self._queue.wake()
            item.on_done(failure)

        threading.Thread(target=work, name="tilecast-rebuild", daemon=True).start()

    def _end_rebuild(self, mosaic: _Mosaic) -> None:
        """Open the store again, and do what was parked: frames that the rebuild found in the journal are done."""
        self._hand_on(Opened(mosaic.run))
        parked, mosaic.parked = mosaic.parked or [], None
        for item in parked:
            self._do(item)
