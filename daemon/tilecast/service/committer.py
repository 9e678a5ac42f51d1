"""The store thread: encodes rendered tiles, commits them, and only then has viewers told.

It owns the one write connection of every loaded run. While one batch is committed, threads that help it encode the next
and put its bytes on the disk. What it is given comes in the order in which the blender made it;
a commit waits until the journal records of its frames are durable, because a tile must never show a frame whose record
is gone. It never calls back into blending: that a batch is in the store is told through `on_committed`, which only
leaves a note.

When room on the disk is short no tiles are written: the journal has the frames, and the room left is for more of them.
Such a run is *shed* (`Run.shed`), and its mosaic catches up when there is room. States, reports and logs are still
written, if need be from what is kept back for them.

A run of which something could not be written is *stuck* (`Run.stuck`): nothing further is written of its mosaic,
because it would rest on what is missing, and the next start takes it up again. So it is with a store that cannot be
opened or written for any other reason: the other runs go on. Only for a store that somebody else keeps locked this
thread waits, and at the end of the daemon not for that either.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import structlog

from tilecast import geometry
from tilecast.errors import StoreError
from tilecast.geometry import Canvas, Rect
from tilecast.histogram import Histogram
from tilecast.hookspecs import Committed, RunEnded
from tilecast.ingest.room import Disk, Room
from tilecast.ingest.syncer import Syncer
from tilecast.pyramid import Address, Batch, RenderedTile
from tilecast.queues import ByteQueue
from tilecast.service.runs import Run
from tilecast.store.coverage import coverage_pack
from tilecast.store.sqlite_connection import TILES_NAME, failed_disk, read_only_disk
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import (
    Commit,
    NewRun,
    StoreBusyError,
    StoreFullError,
    StoreUnfinishedError,
    TileRow,
)
from tilecast_protocol import pzf
from tilecast_protocol.messages import RunNotice, Start, Tiles

log = structlog.get_logger()
T = TypeVar("T")

#: Above this many changed tiles a notification only says that there are many (PROTOCOL, 3).
MAX_ANNOUNCED_TILES = 4000
_RETRY_S = 1.0
_ENCODERS = 2  # threads
_WORTH_AN_ENCODER = 8  # tiles, which take about as long as waking another thread
_DURABLE_POLL_S = 0.5
_ENDED = ("ended", "idle")


@dataclass(slots=True)
class Opened:
    """Open the run's store, making it if need be."""

    run: Run


@dataclass(slots=True)
class Rendered:
    """Tiles that changed, to be committed as one.

    Attributes
    ----------
    t_recv_ns : int or None
        UTC, when the oldest frame in it arrived.
    ticket : int
        What must be durable before.
    clipped : two int
        Pixels of its frames that were clipped, below and above what their type holds.
    """

    run: Run
    batch: Batch
    t_recv_ns: int | None
    ticket: int
    clipped: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Marked:
    """Something about a run to keep, and then to announce: its state, its report, entries of its log.

    `on_done` is called when it is done, with what went wrong, or None.
    """

    run: Run
    state: str | None = None
    report: tuple[int, dict[str, Any]] | None = None
    notices: Sequence[RunNotice] = ()
    events: Sequence[tuple[str, dict[str, Any]]] = ()
    renamed: str | None = None
    note: str | None = None
    on_done: Callable[[Exception | None], None] | None = None


@dataclass(slots=True)
class Closed:
    """Checkpoint and close the run's store; `on_done` is always called."""

    run: Run
    on_done: Callable[[], None]


StoreItem = Opened | Rendered | Marked | Closed


def refuse(item: StoreItem, error: StoreError) -> None:
    """Nothing is done with this: tell whoever waits for it."""
    match item:
        case Opened(run):
            run.stuck = run.stuck or str(error)
            run.store_ready.set()
        case Rendered():
            item.run.stuck = item.run.stuck or str(error)
        case Marked():
            if item.on_done is not None:
                item.on_done(error)
        case Closed(_, on_done):
            on_done()


def stuck_notice(run: Run) -> RunNotice:
    """What viewers are told of a run that is stuck."""
    then = "its mosaic catches up by itself" if run.shed else "`tilecast rebuild` shows them again"
    return run.notice("warning", {"what": "stuck", "message": f"{run.stuck}; frames are still recorded, {then}"})


class Announcer(Protocol):
    """Whoever tells viewers."""

    def announce(self, message: Tiles | RunNotice) -> None:
        """Send it soon; from any thread."""
        ...


@dataclass(slots=True)
class CommitterStats:
    """What the store thread has done, counted since its start.

    Attributes
    ----------
    latency_s : list of float
        Of the last commits: from the arrival of the oldest frame to the commit.
    """

    n_commits: int = 0
    n_tiles: int = 0
    n_bytes: int = 0
    encode_s: float = 0.0
    commit_s: float = 0.0
    wait_durable_s: float = 0.0
    n_retries: int = 0
    latency_s: list[float] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Open:
    store: SqliteStore
    canvas: Canvas | None
    bbox: Rect
    extent: Rect | None
    outside_told: bool = False


class Committer:
    """The thread that writes all stores.

    Parameters
    ----------
    queue : ByteQueue
        Its work; closed by this thread if it dies.
    syncer : Syncer
        Knows which journal records are durable.
    disk : Disk
        Knows whether there is room.
    announcer : Announcer
    on_committed : callable
        Called with (run, batch number) after each commit, in this thread.
    tell_plugins : callable
        Called with each commit; must not wait.
    on_failure : callable
        Called with the exception that ended this thread.

    Attributes
    ----------
    n_turns : int
        Rises whenever the thread does something, also if that is to look whether there is something to do, or to try
        again.
    """

    def __init__(
        self,
        queue: ByteQueue[StoreItem],
        *,
        syncer: Syncer,
        disk: Disk,
        announcer: Announcer,
        on_committed: Callable[[Run, int], None],
        tell_plugins: Callable[[Committed | RunEnded], None],
        on_failure: Callable[[str, BaseException], None],
        wal_limit_bytes: int,
    ) -> None:
        self._queue = queue
        self._syncer = syncer
        self._disk = disk
        self._announcer = announcer
        self._on_committed = on_committed
        self._tell_plugins = tell_plugins
        self._on_failure = on_failure
        self._wal_limit_bytes = wal_limit_bytes
        self._open: dict[str, _Open] = {}
        self._revs: dict[str, tuple[int, int]] = {}
        self._stopping = threading.Event()
        self.stats = CommitterStats()
        self._encoders = ThreadPoolExecutor(_ENCODERS, "tilecast-encode")
        self._writer = ThreadPoolExecutor(1, "tilecast-write")
        self._in_hand: deque[Encoding] = deque()
        self.latency = Histogram()
        self.n_turns = 0
        self._thread = threading.Thread(target=self._run, name="tilecast-store", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the thread has done all its work, or has died."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait until the queue was closed and everything in it is done."""
        self._thread.join()

    def abandon(self) -> None:
        """Stop waiting for whoever locks a store: give up what cannot be written now. The journal has it."""
        self._stopping.set()

    def revs(self) -> dict[str, tuple[int, int]]:
        """(epoch, rev) of every open store; from any thread."""
        return dict(self._revs)

    def wal_bytes(self) -> int:
        """Length of the write-ahead logs of all open stores; from any thread."""
        total = 0
        for opened in list(self._open.values()):
            with contextlib.suppress(StoreError):  # it has been closed meanwhile, or somebody has removed it
                total += opened.store.size().wal_nbytes
        return total

    def _run(self) -> None:
        try:
            while not self._queue.drained or self._in_hand:
                self.n_turns += 1
                item = self._queue.get(timeout_s=0.0 if self._in_hand else 1.0)
                if isinstance(item, Rendered):
                    self._in_hand.append(Encoding(item, self._encoders))
                    if len(self._in_hand) > 1:
                        for encoding in self._in_hand:
                            encoding.write_in(self._writer, self._append)
                        self._finish()  # while the next is encoded and written
                    continue
                while self._in_hand:
                    self._finish()
                if item is not None:
                    self._do(item, partial(self._other, item))
        except Exception as error:  # noqa: BLE001 - the end of a thread: named, and handed to whoever can act
            self._on_failure("store", error)
        finally:
            self._queue.close()
            self._encoders.shutdown()
            self._writer.shutdown()
            for run in list(self._open):
                self._close(run)
            left: list[StoreItem] = [encoding.item for encoding in self._in_hand]
            while (item := self._queue.get(timeout_s=0)) is not None:
                left.append(item)
            for item in left:
                refuse(item, StoreError("the daemon has stopped writing"))

    def _finish(self) -> None:
        """Commit the oldest of those that are in hand."""
        encoding = self._in_hand.popleft()
        self._do(encoding.item, partial(self._commit, encoding))

    def _append(self, encoding: Encoding) -> int:
        """Put the bytes of a batch on the disk; where they lie."""
        run = encoding.item.run
        if run.stuck:
            raise StoreError(run.stuck)  # it rests on one that is missing
        if self._disk.room() >= Room.STOP:
            raise StoreFullError(self._disk.sentence)
        rows = encoding.rows()
        try:
            return self._open[run.run].store.append(rows)
        except StoreFullError:
            self._disk.ran_out(Room.STOP)
            raise

    def _other(self, item: Opened | Marked | Closed) -> None:
        match item:
            case Opened(run):
                self._opened(run)
            case Marked():
                self._mark(item)
            case Closed(run, on_done):
                self._close(run.run)
                on_done()

    def _do(self, item: StoreItem, work: Callable[[], None]) -> None:
        """Do `work` for an item; if it fails, the item's run is stuck."""
        try:
            work()
        except StoreError as error:
            run = item.run
            if not run.stuck:
                read_only = read_only_disk(error)
                run.shed = isinstance(error, StoreFullError) or read_only or self._disk.room() >= Room.STOP
                run.stuck = str(error)
                if read_only or failed_disk(error):
                    self._disk.failed(run.stuck)
                log.error("the mosaic of a run is stuck; its frames are kept", run=run.run, why=run.stuck)
                self._announcer.announce(stuck_notice(run))
            refuse(item, error)

    def _patiently(self, run: Run, write: Callable[[], T]) -> T:
        """Do `write`, and again while somebody else keeps the store locked.

        Raises
        ------
        StoreError
            If it fails for another reason, or the daemon is to end.
        """
        while True:
            try:
                return write()
            except StoreBusyError as error:
                log.error("the store cannot be written now; tiles wait", run=run.run, error=str(error))
                self.stats.n_retries += 1
                self.n_turns += 1
                if self._stopping.wait(_RETRY_S):
                    raise

    def _insist(self, run: Run, write: Callable[[], T]) -> T:
        """Do `write`, on a full disk with what is kept back for it; StoreError as `_patiently`."""
        try:
            return self._patiently(run, write)
        except StoreFullError:
            self._disk.ran_out(Room.FULL)
            return self._patiently(run, write)

    def _opened(self, run: Run) -> None:
        store = self._insist(run, lambda: open_or_create(run, wal_limit_bytes=self._wal_limit_bytes))
        try:
            info = store.info()
        except StoreError:
            store.close()
            raise
        self._open[run.run] = _Open(store, info.canvas, info.bbox, extent_of(run.start))
        self._revs[run.run] = (info.epoch, info.rev)
        run.store_ready.set()

    def _commit(self, encoding: Encoding) -> None:
        item = encoding.item
        if item.run.stuck:
            return  # this batch rests on one that is missing
        offset = encoding.offset(self._append)
        opened = self._open[item.run.run]
        rows = encoding.rows()
        encoded = time.monotonic()
        while not self._syncer.wait_durable(item.ticket, _DURABLE_POLL_S):
            self.n_turns += 1
            if self._syncer.failure is not None:
                break
        refusal = self._syncer.refusal(item.run.journal)
        if refusal is not None:
            # No promise can be kept any more; the journal's recovery decides what was real.
            raise StoreError(f"frames could not be made durable: {refusal}")
        durable = time.monotonic()
        size = item.run.frozen.tile_size
        commit = as_commit(item.batch, rows, opened.canvas, opened.extent, size, item.t_recv_ns, clipped=item.clipped)
        try:
            result = self._patiently(item.run, lambda: opened.store.commit(commit, offset))
        except StoreFullError:
            self._disk.ran_out(Room.STOP)
            raise
        opened.canvas = commit.canvas
        opened.bbox = opened.bbox.union(geometry.union_of(item.batch.bboxes.values()))
        done = time.monotonic()
        self._revs[item.run.run] = (result.epoch, result.rev)
        tiles = tuple((*row.plane, *row.key) for row in rows)
        gone = tuple((*plane, *key) for plane, key in item.batch.gone)
        many = len(tiles) + len(gone) > MAX_ANNOUNCED_TILES
        self._look_outside(item.run, opened, commit)
        start = item.run.start
        self._announcer.announce(
            Tiles(
                instrument=start.instrument,
                stream=start.stream,
                run=item.run.run,
                epoch=result.epoch,
                rev=result.rev,
                tiles=None if many else tiles,
                gone=() if many else gone,
                truncated=many,
                t_recv_ns=item.t_recv_ns,
                t_commit_ns=result.t_commit_ns,
                bbox_um=None if opened.bbox.empty else rect_um(opened.bbox, start.effective_affine),
            )
        )
        self._on_committed(item.run, item.batch.number)
        self._tell_plugins(
            Committed(
                run=item.run.run,
                instrument=start.instrument,
                stream=start.stream,
                epoch=result.epoch,
                rev=result.rev,
                tiles=tiles,
                gone=gone,
                t_recv_ns=item.t_recv_ns if item.t_recv_ns is not None else result.t_commit_ns,
                t_commit_ns=result.t_commit_ns,
            )
        )
        stats = self.stats
        stats.n_commits += 1
        stats.n_tiles += len(rows)
        stats.n_bytes += sum(len(row.pzf) for row in rows)
        stats.encode_s += encoding.seconds
        stats.wait_durable_s += durable - encoded
        stats.commit_s += done - durable
        if item.t_recv_ns is not None:
            latency_s = (result.t_commit_ns - item.t_recv_ns) / 1e9
            self.latency.add(latency_s)
            stats.latency_s.append(latency_s)
            del stats.latency_s[:-1000]

    def _look_outside(self, run: Run, opened: _Open, commit: Commit) -> None:
        """Warn, once, of frames outside the canvas that was planned."""
        bbox = geometry.union_of(commit.bboxes.values())
        if opened.outside_told or commit.canvas is None or commit.canvas.contains(bbox):
            return
        opened.outside_told = True
        text = "frames lie outside extent_um; they are blended, and seen by signed queries only"
        log.warning(text, run=run.run)
        detail = {"what": "outside-extent", "message": text}
        self._insist(run, lambda: opened.store.add_event("warning", detail))
        self._announcer.announce(run.notice("warning", detail))

    def _mark(self, item: Marked) -> None:
        opened = self._open.get(item.run.run)
        try:
            if opened is None:
                raise StoreError(item.run.stuck or "the store of the run is closed")
            if item.report is not None and not item.run.images.is_identity:
                item = _with_clipped(item, opened.store.info().clipped)
            for write in marks(opened.store, item):
                self._insist(item.run, write)
        finally:
            # Also if it could not be kept: it has happened, and the journal tells it again.
            for notice in item.notices:
                self._announcer.announce(notice)
        if item.report is not None and item.report[1]["state"] in _ENDED:
            self._tell_plugins(_ended(item.run, item.report[1]))
        if item.on_done is not None:
            item.on_done(None)

    def _close(self, run: str) -> None:
        opened = self._open.pop(run, None)
        self._revs.pop(run, None)
        if opened is not None:
            try:
                opened.store.close()
            except StoreError as error:
                log.error("a store was not closed in good order", run=run, why=str(error))


def _ended(run: Run, report: dict[str, Any]) -> RunEnded:
    """What plugins are told of a run that is over, for now or for good."""
    start = run.start
    return RunEnded(
        run=run.run,
        name=start.name,
        instrument=start.instrument,
        stream=start.stream,
        folder=run.folder,
        state=report["state"],
        report=report,
    )


def _with_clipped(item: Marked, clipped: tuple[int, int]) -> Marked:
    """A mark whose report says, too, how many pixels were clipped by calibration."""
    assert item.report is not None
    revision, report = item.report
    report = report | {"clipped": {"low": clipped[0], "high": clipped[1]}}
    notices = [
        replace(notice, detail=dict(notice.detail) | {"report": report}) if notice.kind == "report" else notice
        for notice in item.notices
    ]
    return replace(item, report=(revision, report), notices=notices)


def marks(store: SqliteStore, item: Marked) -> Iterator[Callable[[], object]]:
    """What is to be written for a mark, each a transaction of its own."""
    if item.state is not None:
        yield partial(store.set_state, item.state)
    if item.report is not None:
        yield partial(store.set_report, *item.report)
    if item.renamed is not None:
        yield partial(store.rename, item.renamed)
    if item.note is not None:
        yield partial(store.add_note, item.note)
    for name, detail in item.events:
        yield partial(store.add_event, name, detail)
    for notice in item.notices:
        if notice.kind != "report":  # kept as the report itself
            yield partial(store.add_event, notice.kind, notice.detail)


def open_or_create(run: Run, *, wal_limit_bytes: int) -> SqliteStore:
    """The store of a loaded run; made from its `start` if the daemon died before it had one."""
    if (run.folder / TILES_NAME).exists():
        # What was cut short holds nothing yet: it is made now.
        with contextlib.suppress(StoreUnfinishedError):
            return SqliteStore.open(run.folder, lock=run.lock, wal_limit_bytes=wal_limit_bytes)
    return SqliteStore.create(run.folder, new_run(run), lock=run.lock, wal_limit_bytes=wal_limit_bytes)


def new_run(run: Run) -> NewRun:
    """What a run's store is made from."""
    return as_new_run(run.start, run.frozen.as_dict())


def as_new_run(start: Start, settings: dict[str, Any]) -> NewRun:
    """What the store of a run that began with `start` is made from."""
    return NewRun(
        run=start.run,
        name=start.name,
        instrument=start.instrument,
        stream=start.stream,
        start=start.raw_header or b"",
        settings=settings,
    )


def as_commit(
    batch: Batch,
    rows: list[TileRow],
    canvas: Canvas | None,
    extent: Rect | None,
    tile_size: int,
    t_recv_ns: int | None,
    *,
    clipped: tuple[int, int] = (0, 0),
) -> Commit:
    """The transaction of a batch.

    Parameters
    ----------
    rows : list of TileRow
        The batch's tiles, encoded.
    canvas : Canvas or None
        The one that holds now; the commit has the one that holds after it, and a new epoch if that is another.
    extent : Rect or None
        Where the scan is planned to go, for the first canvas.
    """
    bbox = geometry.union_of(batch.bboxes.values())
    after = canvas
    if canvas is not None:
        after = canvas.grown(bbox)
    elif not bbox.empty:
        after = geometry.canvas_for(bbox, batch.levels, tile_size, extent)
    return Commit(
        tiles=rows,
        clipped=clipped,
        gone=batch.gone,
        placements=batch.placements,
        levels=batch.levels,
        bboxes=batch.bboxes,
        canvas=after,
        t_recv_ns=t_recv_ns,
        new_epoch=None if canvas is None or after is canvas else "the canvas moved",
    )


def extent_of(start: Start) -> Rect | None:
    """Where a run is planned to go, in level-0 pixels; None if its start does not say."""
    return None if start.extent_um is None else geometry.extent_rect(start.extent_um, start.effective_affine)


def encode_rows(batch: Batch) -> list[TileRow]:
    """The tiles of a batch as the store keeps them: PZF, and packed coverage."""
    return _as_rows(list(batch.tiles.items()))


def _as_rows(tiles: Sequence[tuple[Address, RenderedTile]]) -> list[TileRow]:
    records = pzf.encode_images([tile.pixels for _, tile in tiles])
    return [
        TileRow(plane, key, record, coverage_pack(tile.coverage))
        for ((plane, key), tile), record in zip(tiles, records, strict=True)
    ]


class Encoding:
    """A batch while its tiles are encoded, each half by another thread, and put on the disk by a third.

    Parameters
    ----------
    item : Rendered
    encoders : Executor
        The threads.

    Attributes
    ----------
    seconds : float
        How long it took, once `rows` has returned.
    """

    def __init__(self, item: Rendered, encoders: Executor) -> None:
        self.item = item
        self.seconds = 0.0
        self._written: Future[int] | None = None
        tiles = [] if item.run.stuck else list(item.batch.tiles.items())
        parts = _ENCODERS if len(tiles) >= _ENCODERS * _WORTH_AN_ENCODER else 1
        size = -(-len(tiles) // parts)
        self._parts = [encoders.submit(self._encode, tiles[i * size : (i + 1) * size]) for i in range(parts)]

    def _encode(self, tiles: Sequence[tuple[Address, RenderedTile]]) -> list[TileRow]:
        began = time.monotonic()
        rows = _as_rows(tiles)
        self.seconds = max(self.seconds, time.monotonic() - began)
        return rows

    def rows(self) -> list[TileRow]:
        """Its tiles, encoded; waits for them."""
        return [row for part in self._parts for row in part.result()]

    def write_in(self, writer: Executor, append: Callable[[Encoding], int]) -> None:
        """Have another thread put its bytes on the disk, if that is not being done yet."""
        if self._written is None:
            self._written = writer.submit(append, self)

    def offset(self, append: Callable[[Encoding], int]) -> int:
        """Where its bytes are on the disk; waits for who puts them there, or does it."""
        return append(self) if self._written is None else self._written.result()


def rect_um(rect: Rect, affine: Sequence[Sequence[float]]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The bounding box in stage µm of a rectangle of level-0 pixels."""
    (a, b), (c, d) = affine
    corners: Iterable[tuple[int, int]] = (
        (rect.col0, rect.row0),
        (rect.col0, rect.row1),
        (rect.col1, rect.row0),
        (rect.col1, rect.row1),
    )
    points = [(a * x + b * y, c * x + d * y) for x, y in corners]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return (min(xs), min(ys)), (max(xs), max(ys))
