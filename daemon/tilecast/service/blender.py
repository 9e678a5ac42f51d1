"""The blend thread: placed frames in, batches of changed tiles out.

It owns the pyramids of all loaded runs and nothing else knows them. Its work comes through one bounded queue from the
ingest thread; what it makes goes through another to the store thread. When to hand tiles over is a question of
deadlines: if the store is idle and no frame waits, at once (a lone frame is on the screen as soon as it can be); if the
daemon is busy, frames are gathered for up to `commit_interval_s`, or until the store is ready again, so that larger
batches cost less; and at any time when `batch_bytes` of frames have been gathered, because what is not in the store
cannot be dropped from memory, and memory has a budget. A full store queue makes this thread wait, its own queue fills, and the publishers slow down.

Blending needs to read: accumulators that were evicted are made again from the journal, tiles from the store. Both are
read here, in this thread, through `Run.load` and a read-only connection of its own, because the next step of the very
same tile needs the answer; to send the question to another thread and wait would only add a hop.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog
from numpy.typing import NDArray

from tilecast.geometry import Placement, PlaneKey, Rect, TileKey
from tilecast.pyramid import Pyramid, PyramidSettings, PyramidStats, RenderedTile
from tilecast.queues import ByteQueue
from tilecast.service.committer import Closed, Marked, Opened, Rendered, StoreItem
from tilecast.service.runs import Run
from tilecast.store.coverage import coverage_unpack
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.tile_store import TileReader
from tilecast_protocol import pzf

log = structlog.get_logger()


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
    """Make all tiles of a run anew, while its images go on being journalled."""

    run: Run
    work: Callable[[], None]
    on_done: Callable[[Exception | None], None]


BlendItem = Placed | Opened | Marked | Unload | Rebuild


class StoredMosaic:
    """What is committed, as a pyramid asks for it: placements under a rectangle, tiles, keys of a level.

    Parameters
    ----------
    reader : callable
        Gives the reader, or None while there is no store yet.
    tile_size : int
    """

    def __init__(self, reader: Callable[[], TileReader | None], tile_size: int) -> None:
        self._reader = reader
        self._tile_size = tile_size

    def covering(self, plane: PlaneKey, rect: Rect) -> list[Placement]:
        """Committed placements that share a pixel with `rect`."""
        reader = self._reader()
        return [] if reader is None else reader.covering(plane, rect)

    def has_placement(self, frame: int, view: int) -> bool:
        """Whether a frame's placement is committed."""
        reader = self._reader()
        return reader is not None and reader.has_placement(frame, view)

    def read(self, plane: PlaneKey, key: TileKey) -> RenderedTile | None:
        """A committed tile."""
        reader = self._reader()
        stored = None if reader is None else reader.tile(plane, key)
        if stored is None:
            return None
        return RenderedTile(pzf.decode_image(stored.pzf), coverage_unpack(stored.coverage, self._tile_size))

    def keys(self, plane: PlaneKey, level: int) -> Iterable[TileKey]:
        """Keys of the committed tiles of a level."""
        reader = self._reader()
        return () if reader is None else reader.keys(plane, level)


@dataclass(slots=True, eq=False)
class _Mosaic:
    run: Run
    pyramid: Pyramid | None = None
    reader: SqliteReader | None = None
    in_flight: int = 0
    dirty_since: float | None = None
    t_recv_ns: int | None = None
    ticket: int = 0
    gathered_nbytes: int = 0
    rebuilding: bool = False
    parked: list[Placed | Marked] = field(default_factory=list)


class Blender:
    """The thread that blends.

    Parameters
    ----------
    queue : ByteQueue
        Its work.
    store_queue : ByteQueue
        Where its batches go; closed by this thread when it ends.
    budget_bytes : int
        Memory for accumulators and cached tiles, shared by all loaded runs.
    commit_interval_s : float
        How long a busy daemon gathers frames before it commits them.
    batch_bytes : int
        How many bytes of frames it gathers at most.
    on_failure : callable
        Called with the exception that ended this thread.
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
        self._notes: deque[Callable[[], None]] = deque()
        self.n_frames = 0
        self.blend_s = 0.0
        self.render_s = 0.0
        self._pyramid_stats: dict[str, PyramidStats] = {}
        self._thread = threading.Thread(target=self._run, name="tilecast-blend", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

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
            "pyramids": {run: asdict(stats) for run, stats in list(self._pyramid_stats.items())},
        }

    def _run(self) -> None:
        try:
            while not self._queue.drained:
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
            self._store_queue.close()
            for mosaic in self._mosaics.values():
                if mosaic.reader is not None:
                    mosaic.reader.close()

    def _patience_s(self) -> float:
        """How long to wait for work before something is due anyway."""
        due = [
            mosaic.dirty_since + self._commit_interval_s - time.monotonic()
            for mosaic in self._mosaics.values()
            if mosaic.dirty_since is not None and not mosaic.in_flight
        ]
        return max(0.0, min([1.0, *due]))

    def _read_notes(self) -> None:
        while self._notes:
            self._notes.popleft()()

    def _do(self, item: BlendItem) -> None:
        match item:
            case Opened(run):
                self._mosaics[run.run] = _Mosaic(run)
                self._store_queue.put(item)
            case Placed():
                self._place(self._mosaics[item.run.run], item)
            case Marked():
                mosaic = self._mosaics[item.run.run]
                if mosaic.rebuilding:
                    mosaic.parked.append(item)
                else:
                    if item.state is not None or item.report is not None:
                        self._flush(mosaic)  # what is said of a run must be true of its tiles
                    self._store_queue.put(item)
            case Unload(run, on_done):
                mosaic = self._mosaics.pop(run.run)
                self._forget(mosaic, on_done)
            case Rebuild():
                self._begin_rebuild(item)

    def _place(self, mosaic: _Mosaic, item: Placed) -> None:
        if mosaic.rebuilding:
            item.pixels = None  # it is in the journal; a rebuild may take long, and memory has a budget
            mosaic.parked.append(item)
            return
        began = time.monotonic()
        pixels = None if item.pixels is None else mosaic.run.calibrated(item.pixels)
        pyramid = self._pyramid(mosaic)
        pyramid.add(item.placement, pixels)
        self.n_frames += 1
        self.blend_s += time.monotonic() - began
        if mosaic.dirty_since is None:
            mosaic.dirty_since = began
        if item.t_recv_ns is not None and mosaic.t_recv_ns is None:
            mosaic.t_recv_ns = item.t_recv_ns
        mosaic.ticket = max(mosaic.ticket, item.ticket)
        mosaic.gathered_nbytes += mosaic.run.start.frame_nbytes
        self._pyramid_stats[mosaic.run.run] = pyramid.stats()

    def _flush_due(self) -> None:
        now = time.monotonic()
        waiting = not self._queue.empty
        for mosaic in self._mosaics.values():
            if mosaic.dirty_since is None:
                continue
            if mosaic.gathered_nbytes >= self._batch_bytes:
                self._flush(mosaic)
            elif not mosaic.in_flight and (not waiting or now - mosaic.dirty_since >= self._commit_interval_s):
                self._flush(mosaic)

    def _flush(self, mosaic: _Mosaic) -> None:
        if mosaic.pyramid is None or mosaic.dirty_since is None:
            return
        began = time.monotonic()
        batch = mosaic.pyramid.flush()
        self.render_s += time.monotonic() - began
        item = None if batch is None else Rendered(mosaic.run, batch, mosaic.t_recv_ns, mosaic.ticket)
        mosaic.dirty_since, mosaic.t_recv_ns, mosaic.gathered_nbytes = None, None, 0
        if item is not None and batch is not None:
            mosaic.in_flight += 1
            self._store_queue.put(item, batch.nbytes)

    def _was_committed(self, run: Run, number: int) -> None:
        mosaic = self._mosaics.get(run.run)
        if mosaic is None or mosaic.run is not run:
            return
        mosaic.in_flight -= 1
        if mosaic.pyramid is not None:
            mosaic.pyramid.committed(number)

    def _pyramid(self, mosaic: _Mosaic) -> Pyramid:
        if mosaic.pyramid is None:
            run = mosaic.run
            source = StoredMosaic(lambda: self._reader(mosaic), run.frozen.tile_size)
            reader = self._reader(mosaic)
            info = None if reader is None else reader.info()
            mode = run.frozen.mode if info is None else str(info.settings["mode"])
            mosaic.pyramid = Pyramid(
                PyramidSettings(dtype=run.start.dtype, mode=mode, tile_size=run.frozen.tile_size),
                budget_bytes=self._budget_bytes,
                placements=source,
                frames=run,
                tiles=source,
                levels=0 if info is None else info.levels,
                bboxes={} if info is None else info.bboxes,
            )
        return mosaic.pyramid

    @staticmethod
    def _reader(mosaic: _Mosaic) -> SqliteReader | None:
        if mosaic.reader is None and mosaic.run.store_ready.is_set():
            mosaic.reader = SqliteReader(mosaic.run.folder)
        return mosaic.reader

    def _forget(self, mosaic: _Mosaic, on_done: Callable[[], None]) -> None:
        self._flush(mosaic)
        if mosaic.reader is not None:
            mosaic.reader.close()
        self._pyramid_stats.pop(mosaic.run.run, None)
        self._store_queue.put(Closed(mosaic.run, on_done))

    def _begin_rebuild(self, item: Rebuild) -> None:
        """Close the store, let another thread do the work, and park what comes meanwhile."""
        mosaic = self._mosaics[item.run.run]
        closed = threading.Event()
        self._forget(mosaic, closed.set)
        mosaic.run.store_ready.clear()
        mosaic.pyramid, mosaic.reader, mosaic.in_flight, mosaic.rebuilding = None, None, 0, True

        def work() -> None:
            failure: Exception | None = None
            try:
                closed.wait()
                item.work()
            except Exception as error:  # noqa: BLE001 - the end of a thread: reported to whoever asked
                failure = error
            self._notes.append(lambda: self._end_rebuild(mosaic))
            self._queue.wake()
            item.on_done(failure)

        threading.Thread(target=work, name="tilecast-rebuild", daemon=True).start()

    def _end_rebuild(self, mosaic: _Mosaic) -> None:
        self._store_queue.put(Opened(mosaic.run))
        mosaic.run.store_ready.wait()
        mosaic.rebuilding = False
        parked, mosaic.parked = mosaic.parked, []
        reader = self._reader(mosaic)
        assert reader is not None, "the store was just opened"
        for item in parked:
            if isinstance(item, Marked) or not reader.has_placement(*item.placement.id):
                self._do(item)
