"""The ingest thread: owns the sockets on which frames come in, and the journals.

    multipart message ─parse─▶ screen ─▶ check, encode ─▶ journal ─▶ accepted ─▶ effects ─▶ blend
                                                             └─▶ (fsync, another thread) ─▶ acknowledge

What a message means is decided by `IngestMachine`, which knows no sockets and no clock; this thread does what it says.
Three rules hold here. A message is journalled before anything else may see it. It is acknowledged when it is durable,
never before. And when whoever blends is behind, no more is read: the publishers' windows fill, PUSH sockets block, and
only PUB sources lose something, which the gaps in their numbers tell.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import structlog
import zmq
from numpy.typing import NDArray

from tilecast.errors import StartRefusedError, StoreError
from tilecast.geometry import Placement
from tilecast.histogram import Histogram
from tilecast.ingest.journalled import Journalled, read_record
from tilecast.ingest.machine import IngestMachine
from tilecast.ingest.room import Disk, Room, tell
from tilecast.ingest.sequences import AckTracker
from tilecast.ingest.settings import IngestSettings
from tilecast.ingest.syncer import Syncable, Syncer
from tilecast.ingest.verdicts import (
    Accept,
    Drop,
    Effect,
    Hold,
    IngestPath,
    Input,
    NeedsRun,
    Notice,
    PhaseChange,
    Place,
    Reject,
    Release,
    Reload,
    Report,
    RunPhase,
    RunRecord,
    Unload,
)
from tilecast_protocol import pzf
from tilecast_protocol.errors import JournalError, MalformedError, PZFError, QueryError, TilecastError
from tilecast_protocol.journal import Journal, RecordKind
from tilecast_protocol.messages import (
    Ack,
    End,
    Event,
    Heartbeat,
    Hello,
    Image,
    Limits,
    Rejection,
    RunNotice,
    Stage,
    Start,
    Welcome,
    check_payload,
    encode,
    parse,
)
from tilecast_protocol.ranges import RangeSet
from tilecast_protocol.topics import parse_topic

log = structlog.get_logger()
T = TypeVar("T")

_KINDS: dict[type[Input], RecordKind] = {
    Start: RecordKind.START,
    Image: RecordKind.IMAGE,
    Stage: RecordKind.STAGE,
    Event: RecordKind.EVENT,
    End: RecordKind.END,
}
_MESSAGES_A_TURN = 64  # read from one socket before the others have their turn
_TICK_S = 0.1
_ACK_EVERY_S = 0.9
_TYPICAL_FRAME_NBYTES = 8 << 20
_MARKS_NBYTES = 64 << 10  # of what is behind, left free for what is said of runs
_MAX_UNTOLD = 1024  # refusals kept for a publisher that does not read its acknowledgements
_UNLOAD_S = 1.0  # what a late image waits for a run that is just being closed
_LOAD_AGAIN_S = 10.0  # before a run that could not be loaded is tried again
_RENEW_S = 30.0  # what everybody waits for a run that is closed only to be opened again
_LOST_AGAIN_S = 60.0  # a journal that fails again within this time is not opened again at once
_LINGER_MS = 500  # for the last acknowledgements to leave


class OpenRun(Protocol):
    """What this thread needs of a run's folder; `shed` says that its mosaic is to catch up when there is room."""

    run: str
    start: Start
    journal: Journal
    shed: bool

    def release(self, *, finished: bool = True) -> None:
        """Close the journal and give the run back; if it is not finished, the next daemon loads it at once."""
        ...


class RunKeeper(Protocol):
    """Makes, finds and loads run folders. What cannot be read or written raises TilecastError or OSError."""

    def create(self, record: RunRecord, *, may_lack_calibration: bool) -> tuple[OpenRun, bool]:
        """Make the folder of a new run and freeze what its start means; whether a calibration is missing."""
        ...

    def discard(self, run: OpenRun) -> None:
        """Take back what `create` made: the start could not be journalled."""
        ...

    def lookup(self, run: str) -> RunRecord | None:
        """What is kept of a run beside its journal; None if there is no such run."""
        ...

    def load(self, record: RunRecord) -> tuple[OpenRun, bool]:
        """Open a run that exists, for writing; whether it still lacks a calibration."""
        ...

    def left_active(self, loaded: Collection[str] = ()) -> list[str]:
        """Runs, beside those that are loaded, that somebody had loaded and did not give back."""
        ...

    def placed_frames(self, run: OpenRun) -> RangeSet:
        """Frames that have a place in the run's store."""
        ...

    def keep(self, run: OpenRun, record: RunRecord) -> None:
        """Keep what the journal cannot tell."""
        ...

    def keep_counts(self, run: OpenRun, counts: Mapping[str, Any]) -> None:
        """Keep the last counts of a run that is about to be given back."""
        ...


class Sink(Protocol):
    """Where what this thread has journalled goes on to.

    All may be called with a full queue; they then wait. If nobody is left to take anything, they do nothing, but for
    the `on_done` of `unload`, which is always called.
    """

    def has_room_for(self, nbytes: int) -> bool:
        """Whether so much may come, and would not wait; while not, this thread reads no socket."""
        ...

    def opened(self, run: Any) -> None:
        """A run was made or loaded."""
        ...

    def placed(
        self, run: Any, placement: Placement, pixels: NDArray[Any] | None, t_recv_ns: int | None, ticket: int
    ) -> None:
        """A journalled frame has a place."""
        ...

    def marked(
        self, run: Any, state: str | None, report: tuple[int, dict[str, Any]] | None, notices: Sequence[RunNotice]
    ) -> None:
        """The state of a run, or its report, to be kept and then published, after all that came before."""
        ...

    def noticed(self, run: Any | None, notice: RunNotice) -> None:
        """Something to publish at once."""
        ...

    def unload(self, run: Any, on_done: Callable[[], None]) -> None:
        """Finish everything of a run and close its store."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class IngesterOptions:
    """Options of the ingest thread.

    Attributes
    ----------
    credit_bytes : int
        How much an acknowledged publisher may have unacknowledged; at least two frames.
    recent_bytes : int
        Pixels of frames that wait for their position are kept in memory up to this; others are read again.
    durability : str
        `fsync` or `os`: what an acknowledgement promises.
    fsync_interval_s : float
        Longest time from writing a message to the fsync that makes it durable.
    """

    limits: Limits
    credit_bytes: int
    recent_bytes: int
    durability: str
    fsync_interval_s: float


@dataclass(slots=True)
class _Peer:
    """A publisher on the acknowledged socket."""

    identity: bytes
    instrument: str
    stream: str
    src: str
    boot: str
    acked: int = -2
    acked_at: float = 0.0
    untold: list[Rejection] = field(default_factory=list)


@dataclass(slots=True)
class _Unloading:
    """A run that is on its way out: `done` is set when its store has been closed; `lost`, if its journal failed."""

    run: OpenRun
    finished: bool = True
    lost: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class Ingester:
    """The thread.

    Parameters
    ----------
    sockets : dict of IngestPath to list of zmq.Socket
        Bound or connected, with their high-water marks; owned by this thread from `start` on, which closes them.
    machine : IngestMachine
    keeper : RunKeeper
    sink : Sink
    options : IngesterOptions
    disk : Disk
        That of the runs.
    state : callable
        The daemon's state, for acknowledgements.
    on_failure : callable
        Called with the exception that ended this thread.
    recover : sequence of str
        Runs that the last daemon had loaded; they are loaded before anything is read from the sockets.
    on_verified : callable
        Called in this thread when the journals of these runs have been opened, and what a crash left of their last
        records cut off.
    on_recovered : callable
        Called in this thread when they are loaded.

    Attributes
    ----------
    n_turns : int
        Rises whenever the thread does something, also if that is to look whether there is something to do.
    """

    def __init__(
        self,
        sockets: dict[IngestPath, list[zmq.Socket[bytes]]],
        *,
        machine: IngestMachine,
        keeper: RunKeeper,
        sink: Sink,
        options: IngesterOptions,
        disk: Disk,
        state: Callable[[], str],
        on_failure: Callable[[str, BaseException], None],
        recover: Sequence[str] = (),
        on_verified: Callable[[], None] = lambda: None,
        on_recovered: Callable[[], None] = lambda: None,
    ) -> None:
        self._sockets = sockets
        self._to_recover = list(recover)
        self._verified: dict[str, tuple[RunRecord, OpenRun, bool]] = {}
        self._on_verified = on_verified
        self._on_recovered = on_recovered
        self._machine = machine
        self._keeper = keeper
        self._sink = sink
        self._options = options
        self._disk = disk
        self._state = state
        self._on_failure = on_failure
        self._tracker = AckTracker()
        self._runs: dict[str, OpenRun] = {}
        self._unloading: dict[str, _Unloading] = {}
        self._not_loadable: dict[str, tuple[float, str]] = {}
        self._peers: dict[bytes, _Peer] = {}
        self._recent: OrderedDict[tuple[str, int], tuple[NDArray[Any], int]] = OrderedDict()
        self._recent_nbytes = 0
        self._orders: deque[Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_lock = threading.Lock()  # held for a moment: orders come until the thread has ended, and none later
        self._ended = False
        self._stopping = False
        self._room = Room.OK
        self._was_short = False
        self._wanted: set[str] = set()
        self._wanted_at = 0.0
        self._lost_at: dict[str, float] = {}
        self.counters: Counter[str] = Counter()
        self.latency = Histogram()
        self.n_turns = 0
        self.encode_s = 0.0
        self.append_s = 0.0
        self.syncer = Syncer(
            interval_s=options.fsync_interval_s,
            on_durable=self.wake,
            on_refused=self._refused,
            on_failure=lambda error: on_failure("fsync", error),
        )
        self._thread = threading.Thread(target=self._run, name="tilecast-ingest", daemon=True)

    # ---- from other threads ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start this thread and the one that calls fsync."""
        self.syncer.start()
        self._thread.start()

    def stop(self) -> None:
        """Stop reading; what was read is journalled, made durable and acknowledged. Returns at once."""
        self._stopping = True
        self.wake()

    @property
    def ended(self) -> bool:
        """Whether the thread has done all its work, or has died."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait until the thread has ended; all runs are with the sink then, and journals are durable."""
        self._thread.join()

    def wake(self) -> None:
        """Make the thread look at what has changed."""
        with self._wake_lock:
            if not self._ended:
                os.eventfd_write(self._wake_fd, 1)

    def order(self, action: Callable[[], None]) -> bool:
        """Have `action` done in this thread, which owns the machine and the journals; False if it has ended."""
        with self._wake_lock:
            if self._ended:
                return False
            self._orders.append(action)
            os.eventfd_write(self._wake_fd, 1)
            return True

    def ask(self, question: Callable[[IngestMachine], T], timeout_s: float = 30.0) -> T:
        """Ask the machine something, in the thread that owns it; what the question raises is raised here.

        Raises
        ------
        QueryError
            `busy`, if the thread did not come to it in time, or has ended.
        """
        answer: Future[T] = Future()

        def find() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(question(self._machine))
            except Exception as error:  # noqa: BLE001 - handed to whoever asked; the thread goes on
                answer.set_exception(error)

        if not self.order(find):
            raise QueryError("busy", "the daemon is stopping; ask again when it has started")
        try:
            return answer.result(timeout_s)
        except TimeoutError as error:
            if not answer.cancel():  # it has begun, and is a matter of moments
                return answer.result()
            raise QueryError("busy", "the daemon is catching up and did not come to this; ask again later") from error

    def end_run(self, run: str) -> None:
        """End a run whose publisher will not.

        Raises
        ------
        QueryError
            `unknown-run`; `conflict`, if it has ended; `busy`, as `ask`.
        TilecastError, OSError
            If it is not loaded, and cannot be.
        """

        def end(machine: IngestMachine) -> None:
            is_loaded = run in machine.loaded()
            record = machine.record(run) if is_loaded else self._keeper.lookup(run)
            if record is None:
                raise QueryError("unknown-run", f"there is no run {run} here; `runs` lists those that are")
            if record.phase not in (RunPhase.OPEN, RunPhase.IDLE):
                raise QueryError("conflict", f"run {run} has ended already")
            if not is_loaded:
                self._load(run)
            self._do(machine.end_run(run, "abort", time.time_ns()))

        self.ask(end)

    def let_go(self, run: str) -> None:
        """Have a run that is not open closed, so that somebody else may write it; returns when it is.

        Raises
        ------
        QueryError
            `conflict`, if it is open; `busy`, as `ask`, or if it takes long.
        """

        def leave(machine: IngestMachine) -> _Unloading | None:
            if run in machine.loaded():
                if machine.record(run).phase is RunPhase.OPEN:
                    raise QueryError("conflict", f"run {run} is open; end it first")
                self._do(machine.let_go(run, time.time_ns()))
            return self._unloading.get(run)

        leaving = self.ask(leave)
        if leaving is not None and not leaving.done.wait(_RENEW_S):
            raise QueryError("busy", f"run {run} is still being written; ask again in a moment")
        self.ask(lambda _: None)  # it is given back in its turn

    def follow(self, settings: IngestSettings) -> None:
        """Have runs that begin, or are loaded, from now on follow other settings."""

        def take() -> None:
            self._machine.settings = settings

        self.order(take)

    @property
    def has_room(self) -> bool:
        """Whether the next frame could be handed on at once; while not, publishers are slowed.

        It is not read and then waited with: nothing would be acknowledged meanwhile.
        """
        largest = max((run.start.frame_nbytes for run in list(self._runs.values())), default=0)
        return self._sink.has_room_for(largest + _MARKS_NBYTES)

    def not_loadable(self) -> dict[str, str]:
        """Runs that could not be loaded a moment ago, and why."""
        now = time.monotonic()
        return {run: why for run, (until, why) in list(self._not_loadable.items()) if now < until}

    def loaded(self) -> list[str]:
        """Runs that are loaded."""
        return list(self._runs)

    def run_loaded(self, run: str) -> OpenRun | None:
        """A loaded run."""
        return self._runs.get(run)

    def stats(self) -> dict[str, Any]:
        """Counters since the start."""
        return {
            **self.counters,
            "encode_s": self.encode_s,
            "append_s": self.append_s,
            "recent_bytes": self._recent_nbytes,
            "loaded_runs": len(self._runs),
            "publishers": len(self._peers),
            "sync": self.syncer.stats(),
        }

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with contextlib.ExitStack() as last:  # each of these, whatever becomes of the others
                last.callback(self._end)
                last.callback(self._close_sockets)
                last.callback(self._last_acks)
                last.callback(self.syncer.close)
                last.callback(self._give_back_verified)
                self._loop()
                self._last_messages()
        except Exception as error:  # noqa: BLE001 - the end of a thread: named, and handed to whoever can act
            self._on_failure("ingest", error)

    def _loop(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_fd, zmq.POLLIN)
        paths: dict[Any, IngestPath] = {}
        for path, sockets in self._sockets.items():
            for socket in sockets:
                paths[socket] = path
        self._verify_journals()
        for run in self._to_recover:
            if self._stopping:
                return  # the next daemon finds them as this one did
            with contextlib.suppress(TilecastError, OSError):  # it has been said; the others go on
                self._load(run)
        self._on_recovered()
        reading = False
        next_tick = time.monotonic()
        while not self._stopping:
            self.n_turns += 1
            if reading != self.has_room:
                reading = not reading
                for socket in paths:
                    if reading:
                        poller.register(socket, zmq.POLLIN)
                    else:
                        poller.unregister(socket)
            wait_s = max(0.0, next_tick - time.monotonic())
            # While the queue behind is full nobody says when there is room again: look often.
            ready = dict(poller.poll(math.ceil(min(wait_s, 1.0 if reading else 0.005) * 1000)))
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
            while self._orders:
                self._orders.popleft()()
            for socket, path in paths.items():
                if ready.get(socket):
                    self._read(socket, path)
            self._take_durable()
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + _TICK_S
                self._do(self._machine.tick(time.time_ns()))
                self._look_at_disk()
            self._send_acks()

    def _last_messages(self) -> None:
        """What has been taken over from PUSH sockets, who think that it has arrived; then the last word."""
        for socket in self._sockets.get(IngestPath.PULL, ()):
            for _ in range(socket.rcvhwm):  # no more: who goes on sending would keep us for ever
                if not self._read_one(socket, IngestPath.PULL):
                    break
        self._do(self._machine.close(time.time_ns()))

    def _last_acks(self) -> None:
        self._take_durable()
        self._send_acks(all_of_them=True)

    def _close_sockets(self) -> None:
        for sockets in self._sockets.values():
            for socket in sockets:
                socket.close(linger=_LINGER_MS)

    def _end(self) -> None:
        """Carry out the last orders: whoever gave one waits for it. From here on none is taken."""
        with self._wake_lock:
            self._ended = True
            os.close(self._wake_fd)
        while self._orders:
            self._orders.popleft()()

    def close_runs(self, wait_s: float = 0.0, *, finish: bool = True) -> None:
        """After the thread has ended: finish every run, and give it back.

        Parameters
        ----------
        wait_s : float
            How long that may take for all of them together.
        finish : bool
            If not, something has failed: runs are given back as they are, to be recovered.
        """
        known = self._machine.loaded()
        for run in list(self._runs.values()):
            finished = False  # if it was loaded half-way when the daemon was stopped
            if run.run in known:
                record = self._machine.record(run.run)
                self._keeper.keep(run, record)
                # Its publisher will ask the next daemon how far it came; and if it does not, the run must go idle.
                finished = record.phase not in (RunPhase.OPEN, RunPhase.IDLE)
            if finish and run.run not in self._unloading:
                self._unload(run.run, finished=finished)
        deadline = time.monotonic() + wait_s
        for run in list(self._runs.values()):
            leaving = self._unloading.get(run.run, _Unloading(run))
            if not finish:
                leaving.finished = False
            elif not leaving.done.wait(max(0.0, deadline - time.monotonic())):
                log.error("run was not finished in time; it is recovered at the next start", run=run.run)
                leaving.finished = False
            self._release(leaving)

    # ---- the disk ----------------------------------------------------------------------------------------------------

    def _look_at_disk(self) -> None:
        """Say how short room is, end runs when there is none, and catch up when there is some again."""
        room = self._disk.room()
        if room is not self._room:
            self._say_room(room)
        if room is Room.FULL:
            for name in self._machine.loaded():
                if self._machine.record(name).phase is RunPhase.OPEN:
                    log.error("run ended: the disk is full", run=name)
                    self._do(self._machine.end_run(name, "disk-reserve", time.time_ns()))
        if room >= Room.STOP or self._disk.trouble:
            self._was_short = True
            return
        if self._was_short:
            self._was_short = False
            self._wanted.update(self._keeper.left_active(self._runs))
            self._wanted_at = 0.0
        for run in list(self._runs.values()):
            if run.shed and run.run not in self._unloading:
                log.info("the mosaic of a run catches up", run=run.run)
                self._renew(run.run)
        if self._wanted and time.monotonic() >= self._wanted_at:
            for name in list(self._wanted):
                if name in self._runs:
                    self._wanted.discard(name)
                else:
                    with contextlib.suppress(TilecastError, OSError):  # it has been said; it is tried again
                        self._load(name)
                        self._wanted.discard(name)
            self._wanted_at = time.monotonic() + _LOAD_AGAIN_S

    def _say_room(self, room: Room) -> None:
        """Once for each step, in the log and to whoever watches a run that is going on."""
        before, self._room = self._room, room
        sentence = self._disk.sentence or "there is room again on the disk of the runs"
        (log.info if room < before else log.warning if room is Room.WARN else log.error)(
            "room on the disk", room=room.word, before=before.word, message=sentence
        )
        detail = {"what": "disk", "room": room.word, "free_bytes": self._disk.free_bytes, "message": sentence}
        for name in self._machine.loaded():
            if self._machine.record(name).phase is RunPhase.OPEN and name in self._runs:
                run = self._runs[name]
                self._sink.noticed(run, _notice(run.start, "warning", detail))

    def _refused(self, journal: Syncable, error: Exception) -> None:
        self.order(lambda: self._lost(journal, error))

    def _lost(self, journal: Syncable, error: Exception) -> None:
        """A journal could not be made durable: nothing of it is believed until it has been opened anew."""
        run = next((run for run in self._runs.values() if run.journal is journal), None)
        self._take_durable()
        tell(self._disk, error)
        log.error("a journal could not be made durable", run=journal.run, why=str(error))
        if run is None:
            self.syncer.forget(journal)
            return
        name = run.run
        if name in self._machine.loaded():
            self._keep(run)
            self._machine.forget(name)
        if self._stopping:
            return  # it is given back unfinished, and the next daemon opens it anew
        leaving = self._unloading.get(name)
        if leaving is not None:
            leaving.finished, leaving.lost = False, True
        else:
            self._unload(name, finished=False, lost=True)
        now = time.monotonic()
        why = f"the disk refused to make the run's journal durable: {error}"
        if now - self._lost_at.get(name, -math.inf) < _LOST_AGAIN_S:
            self._not_loadable[name] = (now + _LOAD_AGAIN_S, why)
        else:
            self._not_loadable.pop(name, None)
        self._lost_at[name] = now
        try:
            self._load(name, _RENEW_S)
        except (TilecastError, OSError):
            self._wanted.add(name)
            self._wanted_at = now + _LOAD_AGAIN_S
        self._tracker.lose_run(name, "disk-reserve", f"{why}; it was not found again")

    def _renew(self, run: str) -> None:
        """Close a run and open it again: what its store lacks is then blended from its journal."""
        self._keep(self._runs[run])
        self._machine.forget(run)
        self._unload(run, finished=False)
        try:
            self._load(run, _RENEW_S)
        except (TilecastError, OSError):
            self._wanted.add(run)

    # ---- messages in -------------------------------------------------------------------------------------------------

    def _read(self, socket: zmq.Socket[bytes], path: IngestPath) -> None:
        for _ in range(_MESSAGES_A_TURN):
            if not self.has_room or not self._read_one(socket, path):
                return

    def _read_one(self, socket: zmq.Socket[bytes], path: IngestPath) -> bool:
        """Take one message from a socket; False if none waits."""
        try:
            frames = socket.recv_multipart(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return False
        if path is IngestPath.ACK:
            self._handle(frames[1:], path, frames[0].bytes)
        else:
            self._handle(frames, path, None)
        return True

    def _handle(self, parts: Sequence[Any], path: IngestPath, identity: bytes | None) -> None:
        """One message, from whichever door."""
        now_ns = time.time_ns()
        self.counters["messages"] += 1
        try:
            message = parse(parts, self._options.limits)
        except MalformedError as error:
            self._malformed(error, identity, now_ns)
            return
        if isinstance(message, Hello):
            if identity is not None:
                self._welcome(message, identity)
            return
        if not isinstance(message, Start | Image | Stage | Event | End | Heartbeat):
            self._malformed(MalformedError(f"a daemon does not take messages of type {message.TYPE}"), identity, now_ns)
            return
        if identity is not None:
            self._meet(message, identity)
            self._tracker.received(message.src, message.boot, message.seq, identity)
        self._screen(message, path, now_ns)

    def _malformed(self, error: MalformedError, identity: bytes | None, now_ns: int) -> None:
        self.counters["malformed"] += 1
        log.warning("message refused", reason=error.reason, why=str(error), src=error.src, topic=error.topic)
        self._machine.malformed(error, now_ns)
        if identity is None:
            return
        peer = self._peers.get(identity)
        if peer is None and error.topic is not None and error.src is not None and error.boot is not None:
            topic = parse_topic(error.topic)
            peer = _Peer(identity, topic.instrument, topic.stream, error.src, error.boot)
            self._introduce(peer)
        if peer is None:
            return
        if error.seq is not None and error.src == peer.src and error.boot == peer.boot:
            self._tracker.received(peer.src, peer.boot, error.seq, identity)
            self._tracker.rejected(peer.src, peer.boot, error.seq, error.reason, str(error))
        else:
            self._tracker.unreadable(peer.src, peer.boot, error.reason, str(error), identity)

    def _screen(self, message: Input, path: IngestPath, now_ns: int) -> None:
        try:
            verdict = self._machine.screen(message, path, now_ns)
            if isinstance(verdict, NeedsRun):
                self._load(verdict.run)
                verdict = self._machine.screen(message, path, now_ns)
        except (TilecastError, OSError) as error:
            # Its folder is damaged, or somebody else has it: no reason to stop for the other runs.
            self.counters["rejected_busy"] += 1
            self._reject(message, path, "busy", f"the run cannot be loaded: {error}")
            return
        match verdict:
            case Accept():
                self._accept(verdict)
            case Drop(reason, run):
                self.counters[f"dropped_{reason}"] += 1
                self._settle(message, path, run)
            case Reject(reason, why):
                self.counters[f"rejected_{reason}"] += 1
                self._reject(message, path, reason, why)
            case Hold():
                self.counters["held"] += 1
            case NeedsRun(run):
                self._reject(message, path, "busy", f"run {run} is being loaded; send this again")

    def _settle(self, message: Input, path: IngestPath, run: str | None) -> None:
        """Nothing is to be done for this message; what it repeats must be durable all the same."""
        if path is not IngestPath.ACK:
            return
        open_run = self._runs.get(run) if run is not None else None
        # Of a run that was just loaded everything is durable, and no fsync will come to say so.
        if open_run is None or open_run.journal.synced_lsn >= open_run.journal.written_lsn:
            self._tracker.settled(message.src, message.boot, message.seq)
        else:
            at = [(open_run.run, open_run.journal.written_lsn)]
            self._tracker.journalled(message.src, message.boot, message.seq, at)

    def _reject(self, message: Input, path: IngestPath, reason: str, why: str) -> None:
        log.warning("message refused", reason=reason, why=why, src=message.src, seq=message.seq, type=message.TYPE)
        if path is IngestPath.ACK:
            self._tracker.rejected(message.src, message.boot, message.seq, reason, why)

    def _accept(self, accept: Accept) -> None:
        message = accept.message
        held = False
        # An end is let through: it is small, and tells how many images there were.
        if accept.targets and self._disk.room() is Room.FULL and not isinstance(message, End):
            self._refuse(accept, "disk-reserve", self._disk.sentence)
            return
        if accept.opens is not None:
            opened = self._open(accept, accept.opens)
            if opened is None:
                return
            held = opened
        pixels: NDArray[Any] | None = None
        stored: Sequence[Any] = message.parts
        was_raw = False
        if isinstance(message, Image):
            assert accept.start is not None, "an image is accepted for a run that has a start"
            try:
                pixels, stored = self._decode(message, accept.start)
            except (MalformedError, PZFError) as error:
                reason = error.reason if isinstance(error, MalformedError) else "bad-payload"
                self._refuse(accept, reason, str(error))
                return
            was_raw = message.codec == "raw"
        try:
            index, ticket = self._journal(accept, stored, was_raw)
        except JournalError as error:
            tell(self._disk, error)
            if accept.opens is not None:
                self._discard(accept.opens.run)
            self._refuse(accept, "disk-reserve", f"the journal cannot be written: {error}")
            return
        self.counters["accepted"] += 1
        if accept.opens is not None:
            self._sink.opened(self._runs[accept.opens.run])
        if isinstance(message, Image):
            self.counters["images"] += 1
            self.latency.add((time.time_ns() - accept.now_ns) / 1e9)
            self.counters["image_bytes"] += sum(memoryview(part).nbytes for part in message.parts)
            if pixels is not None and index is not None:
                self._remember((message.run, index), pixels, ticket)
        self._do(self._machine.accepted(accept, index, held=held))

    def _open(self, accept: Accept, record: RunRecord) -> bool | None:
        """Make the run that a start begins; whether it lacks a calibration, or None if the start was refused."""
        if self._disk.room() >= Room.STOP:
            self._refuse(accept, "disk-reserve", self._disk.sentence)
            return None
        try:
            # Only where nobody can be told to send the start again with all it needs is the run made without.
            one_way = accept.path is not IngestPath.ACK
            run, held = self._keeper.create(record, may_lack_calibration=one_way)
        except StartRefusedError as error:
            self._refuse(accept, "calibration-missing", str(error))
            return None
        except (StoreError, JournalError, OSError) as error:
            tell(self._disk, error)
            self._refuse(accept, "disk-reserve", f"the run's folder cannot be made: {error}")
            return None
        self._runs[run.run] = run
        return held

    def _discard(self, run: str) -> None:
        """Its start could not be journalled: then it does not exist, and may come again."""
        try:
            self._keeper.discard(self._runs.pop(run))
        except (TilecastError, OSError) as error:
            log.error("what is left of a run that could not be begun cannot be removed", run=run, why=str(error))

    def _refuse(self, accept: Accept, reason: str, why: str) -> None:
        self.counters[f"rejected_{reason}"] += 1
        self._machine.refused(accept, reason, why)
        self._reject(accept.message, accept.path, reason, why)

    def _decode(self, message: Image, start: Start) -> tuple[NDArray[Any], Sequence[Any]]:
        """The pixels of an image, checked, and its payload as it is to be journalled.

        Raises
        ------
        MalformedError, PZFError
            If the payload is not what it says, or not what the run's start promised.
        """
        check_payload(message, start, self._options.limits)
        began = time.monotonic()
        if message.codec == "pzf":
            # Decoded in full: bytes that do not decode must be refused now, while the publisher can send them again.
            pixels = pzf.decode_image(message.parts[0], shape=start.shape, dtype=start.dtype)
            payload = message.parts[0]
        else:
            pixels = np.frombuffer(message.parts[0], dtype=start.dtype).reshape(start.shape)
            # With a code from a sample of the frame: half a percent longer than its own, in two thirds of the time.
            numbers = {"frame_num": message.frame & 0xFFFFFFFF, "timestamp": message.t_ns}
            (payload,) = pzf.encode_images([pixels], **numbers)
        self.encode_s += time.monotonic() - began
        return pixels, (payload,)

    def _journal(self, accept: Accept, stored: Sequence[Any], was_raw: bool) -> tuple[int | None, int]:
        """Append a message to its journals; its image index, and the ticket of its last record."""
        message = accept.message
        began = time.monotonic()
        acked = self._tracker.upto_seq(message.src, message.boot) if accept.path is IngestPath.ACK else -1
        index: int | None = None
        ticket = 0
        positions = []
        for target in accept.targets:
            journal = self._runs[target.run].journal
            for stage in target.prelude:
                self._append(journal, stage, stage.parts, accept.now_ns)
            position = self._append(journal, message, stored, accept.now_ns, acked_seq=acked, encoded=was_raw)
            positions.append((target.run, position.lsn))
            index = position.image_index
            ticket = self.syncer.written(journal)
        if accept.path is IngestPath.ACK:
            if self._options.durability == "os":
                positions = []
            self._tracker.journalled(message.src, message.boot, message.seq, positions)
        self.append_s += time.monotonic() - began
        return index, ticket

    @staticmethod
    def _append(
        journal: Journal,
        message: Input,
        parts: Sequence[Any],
        t_recv_ns: int,
        *,
        acked_seq: int = -1,
        encoded: bool = False,
    ) -> Any:
        header = message.raw_header
        if header is None:
            header = bytes(encode(message)[1])
        return journal.append(
            _KINDS[type(message)],
            topic=message.topic,
            header=header,
            parts=parts,
            t_recv_ns=t_recv_ns,
            frame=message.frame if isinstance(message, Image) else None,
            acked_seq=acked_seq,
            pzf=encoded,
        )

    # ---- what follows ------------------------------------------------------------------------------------------------

    def _do(self, effects: Iterable[Effect]) -> None:
        """Carry out what the machine says follows."""
        for effect in effects:
            match effect:
                case Place(run, placement, t_recv_ns):
                    pixels, ticket = self._recall((run, placement.index))
                    self._sink.placed(self._runs[run], placement, pixels, t_recv_ns, ticket)
                case PhaseChange():
                    self._phase(effect)
                case Report(run, revision, report):
                    open_run = self._runs[run]
                    notice = _notice(open_run.start, "report", {"revision": revision, "report": report})
                    log.info("run report", run=run, **_numbers(report))
                    self._keep(open_run)
                    self._sink.marked(open_run, None, (revision, report), [notice])
                case Notice(instrument, stream, run, kind, detail):
                    log.warning(kind, run=run, **_short(detail))
                    notice = RunNotice(instrument=instrument, stream=stream, run=run, kind=kind, detail=detail)
                    self._sink.noticed(self._runs.get(run), notice)
                case Release(messages):
                    for message, path in messages:
                        self._screen(message, path, time.time_ns())
                case Reload(run):
                    self._reload(run)
                case Unload(run, counts):
                    self._keeper.keep_counts(self._runs[run], counts)
                    self._unload(run)

    def _phase(self, effect: PhaseChange) -> None:
        run = self._runs[effect.run]
        self._keep(run)
        detail: dict[str, Any] = {"name": run.start.name} if effect.phase is RunPhase.OPEN else {}
        log.info(f"run {effect.kind}", run=effect.run, name=run.start.name)
        self._sink.marked(run, effect.phase.value, None, [_notice(run.start, effect.kind, detail)])

    def _keep(self, run: OpenRun) -> None:
        if run.run in self._machine.loaded():
            self._keeper.keep(run, self._machine.record(run.run))

    def _remember(self, key: tuple[str, int], pixels: NDArray[Any], ticket: int) -> None:
        self._recent[key] = (pixels, ticket)
        self._recent_nbytes += pixels.nbytes
        while self._recent_nbytes > self._options.recent_bytes and len(self._recent) > 1:
            _, (old, _) = self._recent.popitem(last=False)
            self._recent_nbytes -= old.nbytes

    def _recall(self, key: tuple[str, int]) -> tuple[NDArray[Any] | None, int]:
        """Pixels of a frame that came a moment ago, if they are still here, and the ticket of its record."""
        found = self._recent.pop(key, None)
        if found is None:
            return None, self.syncer.written_ticket
        self._recent_nbytes -= found[0].nbytes
        return found

    # ---- loading and unloading ---------------------------------------------------------------------------------------

    def _forget_recent(self, run: str) -> None:
        """Forget the pixels of a run: what was lost from its journal leaves its numbers to others."""
        for key in [key for key in self._recent if key[0] == run]:
            self._recent_nbytes -= self._recent.pop(key)[0].nbytes

    def _load(self, run: str, wait_s: float | None = None) -> None:
        """Open a run's journal and let the machine read it; what is not in its store is then blended.

        Raises
        ------
        TilecastError, OSError
            If that fails. It is not tried again for a while: somebody may send to that run all the time.
        """
        until, why = self._not_loadable.get(run, (0.0, ""))
        if time.monotonic() < until:
            raise StoreError(why)
        try:
            self._await_unloaded(run, _UNLOAD_S if wait_s is None else wait_s)
            self._recover(run)
        except (TilecastError, OSError) as error:
            tell(self._disk, error)
            log.error("run cannot be loaded; the others go on", run=run, why=str(error))
            now = time.monotonic()
            still = {other: entry for other, entry in self._not_loadable.items() if entry[0] > now}
            self._not_loadable = still | {run: (now + _LOAD_AGAIN_S, str(error))}
            raise

    def _verify_journals(self) -> None:
        """Open the journals of the runs to recover: until then nobody knows whether what was acknowledged is there."""
        for run in self._to_recover:
            if self._stopping:
                return
            self.n_turns += 1
            with contextlib.suppress(TilecastError, OSError):  # loading it will say what is wrong
                self._verified[run] = self._open_journal(run)
        self._on_verified()

    def _give_back_verified(self) -> None:
        for _, opened, _ in self._verified.values():
            opened.release(finished=False)

    def _open_journal(self, run: str) -> tuple[RunRecord, OpenRun, bool]:
        """Open a run; with whether it still lacks a calibration."""
        record = self._keeper.lookup(run)
        if record is None:
            raise StoreError(f"there is no run {run}")
        return (record, *self._keeper.load(record))

    def _recover(self, run: str) -> None:
        began = time.monotonic()
        verified = self._verified.pop(run, None)
        record, opened, held = self._open_journal(run) if verified is None else verified
        try:
            placed = self._keeper.placed_frames(opened)
        except BaseException:
            opened.release(finished=False)
            raise
        self._runs[run] = opened
        self._sink.opened(opened)
        record = replace(record, held=held)
        try:
            for effect in self._machine.recover(record, self._messages(opened), placed, time.time_ns()):
                if self._stopping:
                    self._machine.forget(run)  # so that it is not taken for finished
                    return
                self._do([effect])
        except (TilecastError, OSError):
            self._machine.forget(run)
            self._unload(run, finished=False)
            raise
        log.info("run loaded", run=run, images=opened.journal.n_images, seconds=round(time.monotonic() - began, 3))
        for damage in opened.journal.damage:
            log.warning("journal damaged", run=run, segment=damage.segment, what=damage.what, frames=damage.frames)

    def _messages(self, run: OpenRun) -> Iterator[Journalled]:
        """The messages of a journal, one by one; what they say of their publishers is noted on the way."""
        for record in run.journal.records(with_parts=False):
            self.n_turns += 1
            item = read_record(record)
            self._tracker.recovered(item.message.src, item.message.boot, item.message.seq, record.acked_seq)
            yield item

    def _unload(self, run: str, *, finished: bool = True, lost: bool = False) -> None:
        """Have a run finished, and then give it back."""
        leaving = self._unloading[run] = _Unloading(self._runs[run], finished, lost)

        def done() -> None:
            leaving.done.set()
            self.order(lambda: self._release(leaving))

        self._sink.unload(leaving.run, done)

    def _release(self, leaving: _Unloading) -> None:
        """Give a run back, once; what is wrong with it is no reason to stop for the others."""
        run = leaving.run
        if self._runs.get(run.run) is not run:
            return
        try:
            run.release(finished=leaving.finished)
        except (TilecastError, OSError) as error:
            log.error("run was not closed in good order", run=run.run, why=str(error))
        else:
            # Of a journal that failed nothing is durable for having been closed.
            if self.syncer.refusal(run.journal) is None and not leaving.lost:
                self._tracker.close_run(run.run)
        self._forget_recent(run.run)
        self.syncer.forget(run.journal)
        # Only now: whoever sees that it is not loaded may want to lock it.
        self._unloading.pop(run.run, None)
        del self._runs[run.run]

    def _await_unloaded(self, run: str, wait_s: float) -> None:
        """If a run is just being unloaded, wait for that: it is a matter of one commit, if it is not rebuilt."""
        leaving = self._unloading.get(run)
        if leaving is not None:
            if not leaving.done.wait(wait_s):
                raise StoreError(f"run {run} is still being written; send this again in a moment")
            self._release(leaving)

    def _reload(self, run: str) -> None:
        """A calibration that was missing has come: begin anew with it."""
        self._renew(run)

    # ---- acknowledgements --------------------------------------------------------------------------------------------

    def _take_durable(self) -> None:
        for run, lsn in self.syncer.take_durable():
            if run in self._runs:
                self._tracker.durable(run, lsn)

    def _meet(self, message: Input, identity: bytes) -> None:
        """Remember who sends on this connection, also if it did not say hello."""
        peer = self._peers.get(identity)
        if peer is None or (peer.src, peer.boot) != (message.src, message.boot):
            self._introduce(_Peer(identity, message.instrument, message.stream, message.src, message.boot))

    def _introduce(self, peer: _Peer) -> None:
        """Answer this publisher on this connection from now on, and on no older one."""
        for identity, other in list(self._peers.items()):
            if (other.src, other.boot) == (peer.src, peer.boot):
                del self._peers[identity]
        self._peers[peer.identity] = peer

    def _welcome(self, hello: Hello, identity: bytes) -> None:
        peer = _Peer(identity, hello.instrument, hello.stream, hello.src, hello.boot)
        self._introduce(peer)
        upto = self._tracker.hello(hello.src, hello.boot, identity)
        runs = self._machine.welcome(hello.instrument, hello.stream)
        self._answer(
            peer,
            Welcome(
                instrument=hello.instrument,
                stream=hello.stream,
                credit=self._credit(),
                upto_seq=upto,
                max_frame_bytes=self._options.limits.max_frame_bytes,
                durability=self._options.durability,
                state=self._state(),
                runs=tuple(runs),
            ),
        )

    def _credit(self) -> int:
        largest = max((run.start.frame_nbytes for run in self._runs.values()), default=_TYPICAL_FRAME_NBYTES)
        return max(2, self._options.credit_bytes // max(1, largest))

    def _send_acks(self, *, all_of_them: bool = False) -> None:
        now = time.monotonic()
        for peer in list(self._peers.values()):
            upto = self._tracker.upto_seq(peer.src, peer.boot)
            rejected = [*peer.untold, *self._tracker.take_rejected(peer.src, peer.boot)]
            due = all_of_them or now - peer.acked_at >= _ACK_EVERY_S
            if upto == peer.acked and len(rejected) == len(peer.untold) and not due:
                continue
            peer.acked, peer.acked_at = upto, now
            told = self._answer(
                peer,
                Ack(
                    instrument=peer.instrument,
                    stream=peer.stream,
                    upto_seq=upto,
                    credit=self._credit(),
                    rejected=tuple(rejected),
                    state=self._state(),
                    free_bytes=self._disk.free_bytes,
                ),
            )
            peer.untold = [] if told else rejected[-_MAX_UNTOLD:]

    def _answer(self, peer: _Peer, message: Ack | Welcome) -> bool:
        """Tell a publisher; False if it does not read just now."""
        for socket in self._sockets.get(IngestPath.ACK, []):
            try:
                socket.send_multipart([peer.identity, *encode(message)], zmq.DONTWAIT)
            except zmq.Again:
                return False
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                self._peers.pop(peer.identity, None)  # gone; should it come back, it says hello
        return True


def _notice(start: Start, kind: str, detail: dict[str, Any]) -> RunNotice:
    return RunNotice(instrument=start.instrument, stream=start.stream, run=start.run, kind=kind, detail=detail)


def _short(detail: dict[str, Any]) -> dict[str, Any]:
    """What of a notice fits in a line of the log: long lists are cut."""
    return {
        key: [*value[:5], "…"] if isinstance(value, list) and len(value) > 5 else value for key, value in detail.items()
    }


def _numbers(report: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a report, for one line in the log."""
    return {key: value for key, value in report.items() if isinstance(value, int | float | str) and key != "run"}
