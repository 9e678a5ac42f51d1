"""Keeps SQLite's write-ahead log short without making a commit wait for it.

In WAL mode a commit only appends to the log; someone must carry the pages over into the database file now and then.
SQLite's own automatic checkpoint does so inside a commit, which then takes 60 ms and more. A passive checkpoint in
another thread costs the commits nothing, but under a steady writer it never finds the log completely carried over, so
the log is never started anew and grows without bound. Hence, on a connection and a thread of their own:

* *Passes*: passive checkpoints every few MiB of commits, at idle priority, while commits go on. Each leaves only the
  tail that was committed meanwhile.
* *Resets*: once the log is long, a pass follows each commit, in the hope of ending before the next one. As soon as that
  succeeds nothing is left to carry over, and the log is started anew between two commits in next to no time.
* *Back-pressure*: at a log of full length commits wait (a second each at most) until the log has been reset. A disk
  that cannot follow has to slow them down some time.

A reader with an open transaction stops a reset, which therefore gives up quickly and is tried again; once, at full
length, it insists for a second. Commits do not wait for readers: one that stays makes the log grow beyond its limit,
and `stats` shows it as blocked.

It knows nothing of runs or tiles. If a checkpoint fails (a full disk, say), the commits stay safe in the log; the
failure is kept for `stats`, and the next attempt follows with the next commit.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import psutil

#: How long the log may become before commits are made to wait, bytes.
WAL_LIMIT_BYTES = 8 * 2**20

#: A writer that pauses for so long gets its log cut to nothing, seconds.
IDLE_S = 0.5

_PASSES_PER_LIMIT = 4  # a pass each time the log has grown by this fraction of its limit
_LONG = 0.25  # fraction of the limit from which on the log is long
_MAX_PASSES = 4  # in a row, before giving way to whatever else is asked
_ROOM_S = 1.0  # a commit waits no longer for a log at its limit
_PATIENCE_MS = 5  # waiting for readers at a reset
_LONG_PATIENCE_MS = 1000  # the same when the log has reached its limit, or someone asked to have it settled


@dataclass(frozen=True, slots=True)
class CheckpointStats:
    """What the checkpointer did so far.

    Attributes
    ----------
    n_passes, n_resets, n_blocked : int
        Passive checkpoints; times the log was started anew by a reset; times a reader stood in the way of that.
    log_nbytes : int
        Length of the log's used part when last looked at.
    longest_wait_ns : int
        Longest time that a commit waited for any of this.
    blocked : bool
        Whether a reader stood in the way the last time.
    error : str
        The last failure, or empty after a success.
    """

    n_passes: int = 0
    n_resets: int = 0
    n_blocked: int = 0
    log_nbytes: int = 0
    longest_wait_ns: int = 0
    blocked: bool = False
    error: str = ""


class Superseded(Protocol):
    """Room that commits have left behind, oldest first.

    A checkpoint that carried over the whole log means that no reader looks at a state before it, since SQLite would
    have stopped there, and that a power failure will not bring such a state back: then nobody wants what the commits
    before it have replaced.
    """

    def __len__(self) -> int:
        """How much there is of it."""
        ...

    def give_back(self, count: int) -> None:
        """Free the oldest `count`; may raise OSError."""
        ...


class Checkpointer:
    """The thread that checkpoints one database. Its methods may be called from any thread.

    Parameters
    ----------
    connect : callable
        Makes its connection, in its own thread.
    page_nbytes : int
        Page size of the database.
    superseded : Superseded, optional
        What commits have replaced; given back when the log has been carried over whole.
    limit_bytes : int
        The length of the log from which on commits wait for it.
    idle_s : float
        A writer that pauses for this long gets its log carried over and cut to nothing.
    name : str
        Of the thread.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        *,
        page_nbytes: int,
        superseded: Superseded | None = None,
        limit_bytes: int = WAL_LIMIT_BYTES,
        idle_s: float = IDLE_S,
        name: str = "checkpointer",
    ) -> None:
        self._connect = connect
        self._page_nbytes = page_nbytes
        self._superseded = superseded
        self._limit_bytes = limit_bytes
        self._idle_s = idle_s
        self._turn = Turnstile()
        self._changed = threading.Condition()
        self._pending_bytes = 0  # committed since the last pass began, about
        self._unfinished = False  # the log has not been cut since: there is something to do at the next pause
        self._n_commits = 0
        self._n_asked = 0  # calls of `settle`, and how many of them have been served
        self._n_served = 0
        self._settled = False  # how the last of those ended
        self._stopping = False
        self._stats = CheckpointStats()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def commit(self, nbytes: int) -> Iterator[None]:
        """Surround a commit, which appends about `nbytes` to the log: wait for room in it, and keep resets away."""
        begun_ns = time.monotonic_ns()
        with self._changed:
            self._changed.wait_for(self._has_room, _ROOM_S)
        with self._turn:
            waited_ns = time.monotonic_ns() - begun_ns
            yield
            with self._changed:
                self._pending_bytes += nbytes
                self._n_commits += 1
                self._note(longest_wait_ns=max(self._stats.longest_wait_ns, waited_ns))

    def settle(self, timeout_s: float = 30.0) -> bool:
        """Have everything committed so far carried into the database file and synced to disk.

        Returns
        -------
        bool
            False if that did not succeed in time, or a reader or an error stood in the way: see `stats`.
        """
        with self._changed:
            self._n_asked += 1
            mine = self._n_asked
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._n_served >= mine or self._stopping, timeout_s)
            return self._n_served >= mine and self._settled

    def stats(self) -> CheckpointStats:
        """What it did so far."""
        with self._changed:
            return self._stats

    def close(self) -> None:
        """Stop the thread and wait for it; a pass under way is finished first."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def _has_room(self) -> bool:
        """Whether a commit need not wait, or would wait in vain."""
        stats = self._stats
        full = stats.log_nbytes + self._pending_bytes >= self._limit_bytes
        return not full or stats.blocked or bool(stats.error) or self._stopping

    def _is_long(self) -> bool:
        return self._stats.log_nbytes >= _LONG * self._limit_bytes

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            while (work := self._next_work()) is not None:
                asked, thorough = work
                settled = False
                try:
                    connection = connection or self._connect()
                    settled = self._checkpoint(connection, thorough=thorough, asked=asked > 0)
                    self._note(error="")
                except (sqlite3.Error, OSError) as error:
                    self._note(error=f"{type(error).__name__}: {error}")
                with self._changed:
                    if asked:
                        self._n_served, self._settled = asked, settled
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._stopping = True  # however it ended: nobody shall wait for this thread any more
                self._changed.notify_all()
            if connection is not None:
                connection.close()

    def _next_work(self) -> tuple[int, bool] | None:
        """Wait for something to do: the number of calls of `settle` to serve, or 0, and whether to carry over all."""
        with self._changed:
            while not self._stopping:
                asked = self._n_asked if self._n_asked > self._n_served else 0
                if asked:
                    return asked, True
                step_bytes = 1 if self._is_long() else self._limit_bytes // _PASSES_PER_LIMIT
                if self._pending_bytes >= step_bytes:
                    return 0, False
                seen = self._n_commits
                notified = self._changed.wait(self._idle_s if self._pending_bytes or self._unfinished else None)
                if not notified and seen == self._n_commits:
                    return 0, True
            return None

    def _checkpoint(self, connection: sqlite3.Connection, *, thorough: bool, asked: bool) -> bool:
        """Passes, and a reset if it is time for one; whether the log was started anew."""
        for _ in range(_MAX_PASSES):
            with self._changed:
                self._note(log_nbytes=self._stats.log_nbytes + self._pending_bytes)  # until it is known exactly
                self._pending_bytes, self._unfinished = 0, True
            unwanted = self._unwanted()
            with _idle_priority():
                _, is_complete, log_pages = _checkpoint(connection, "PASSIVE", _PATIENCE_MS)
                if is_complete:
                    self._give_back(unwanted)
            log_nbytes = log_pages * self._page_nbytes
            with self._changed:
                self._note(n_passes=self._stats.n_passes + 1, log_nbytes=log_nbytes)
                if not self._is_long() and not thorough:
                    return False
                if not self._pending_bytes:
                    break
        with self._turn:
            stats = self.stats()
            if self._pending_bytes and not asked:
                return False  # a commit came first; the pass that follows it tries again
            insist = asked or (log_nbytes >= self._limit_bytes and not stats.blocked)
            mode = "TRUNCATE" if thorough else "RESTART"
            unwanted = self._unwanted()
            blocked, *_ = _checkpoint(connection, mode, _LONG_PATIENCE_MS if insist else _PATIENCE_MS)
            if blocked:
                self._note(blocked=True, n_blocked=stats.n_blocked + 1)
            else:
                # After a mere restart the log has still its length; it is cut at the next pause.
                self._pending_bytes, self._unfinished = 0, not thorough
                self._note(blocked=False, n_resets=stats.n_resets + 1, log_nbytes=0)
        if not blocked:
            with _idle_priority():
                self._give_back(unwanted)
        return not blocked

    def _unwanted(self) -> int:
        """How much has been superseded so far, by commits that the next checkpoint sees."""
        return 0 if self._superseded is None else len(self._superseded)

    def _give_back(self, count: int) -> None:
        if self._superseded is not None:
            self._superseded.give_back(count)

    def _note(self, **changes: Any) -> None:
        with self._changed:
            self._stats = replace(self._stats, **changes)
            self._changed.notify_all()


class Turnstile:
    """A lock whose two users take turns.

    A plain lock is not fair: a writer that commits without pause would take it again before the waiting checkpointer
    has woken up. Here whoever waits is let in next.
    """

    def __init__(self) -> None:
        self._next = threading.Lock()
        self._inside = threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._inside.acquire()

    def __exit__(self, *_: object) -> None:
        self._inside.release()


def _checkpoint(connection: sqlite3.Connection, mode: str, patience_ms: int) -> tuple[bool, bool, int]:
    """One checkpoint: (whether someone was in the way, whether all was carried over, pages in the log)."""
    connection.execute(f"PRAGMA busy_timeout = {patience_ms}")
    blocked, log_pages, carried = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    return bool(blocked), not blocked and carried == log_pages, log_pages


@contextlib.contextmanager
def _idle_priority() -> Iterator[None]:
    """Let everyone else use the disk first, where the system knows input/output priorities (Linux).

    Not during a reset: the writer waits for that one, and would inherit the low priority.
    """
    thread = psutil.Process(threading.get_native_id()) if psutil.LINUX else None
    with contextlib.suppress(psutil.Error, OSError):
        if thread is not None:
            thread.ionice(psutil.IOPRIO_CLASS_IDLE)
    try:
        yield
    finally:
        with contextlib.suppress(psutil.Error, OSError):
            if thread is not None:
                thread.ionice(psutil.IOPRIO_CLASS_NONE)
