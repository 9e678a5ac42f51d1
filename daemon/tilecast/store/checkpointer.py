"""Keeps SQLite's write-ahead log short without making a commit wait for it.

In WAL mode a commit only appends to the log; someone must carry the pages over into the database file now and then.
SQLite's own automatic checkpoint does so inside a commit, which then takes 60 ms and more. A passive checkpoint in
another thread costs the commits nothing, but under a steady writer it never finds the log completely carried over, so
the log is never started anew and grows without bound. Hence two steps, on a connection and a thread of their own:

1. *passes*: passive checkpoints every few MiB of commits, at idle priority, while commits go on. Each leaves only the
   tail that was committed meanwhile;
2. *the reset*: when the log has become long, or the writer pauses, the small tail that is left is carried over between
   two commits, and the log starts anew. The writer waits for this, if at all, for a few milliseconds; `Gate` makes the
   two take turns.

A reader with an open transaction stops the reset. So the reset gives up quickly and is tried again; only when the log
has passed its limit does it insist, for at most a second. A reader that stays longer makes the log grow beyond the
limit, and `stats` shows it as blocked.

It knows nothing of runs or tiles, only a path. If a checkpoint fails (a full disk, say), the commits stay safe in the
log; the failure is kept for `stats` and the next attempt follows later.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import psutil

#: How long the log may become before commits are made to wait for it, bytes.
WAL_LIMIT_BYTES = 256 * 2**20

# Measured on two slow cores with a virtual disk: bench_store.py.
_PASSES_PER_LIMIT = 8  # a pass each time the log has grown by this fraction of its limit
_RESET_AT = 0.5  # fraction of the limit from which on a reset is tried
_TAIL_BYTES = 4 * 2**20  # a tail this short is carried over in some milliseconds
_MAX_PASSES = 4  # before a reset; further ones would hardly shorten the tail
_PATIENCE_MS = 5  # waiting for readers at a reset
_LONG_PATIENCE_MS = 1000  # the same when the log has passed its limit, or someone asked to have it settled


class Gate:
    """A lock whose two users take turns.

    A plain lock is not fair: a writer that commits without pause would take it again before the waiting checkpointer
    has woken up. Here whoever waits is let in next.
    """

    def __init__(self) -> None:
        self._next = threading.Lock()
        self._inside = threading.Lock()

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Wait for the turn, and keep it for the `with` block."""
        with self._next:
            self._inside.acquire()
        try:
            yield
        finally:
            self._inside.release()


@dataclass(frozen=True, slots=True)
class CheckpointStats:
    """What the checkpointer did so far.

    Attributes
    ----------
    n_passes, n_resets, n_blocked : int
        Passive checkpoints; times the log was started anew; times a reader stood in the way of that.
    longest_reset_ns : int
        Longest time that a commit could have waited for.
    log_nbytes : int
        Length of the log's used part when last looked at.
    error : str
        The last failure, or empty after a success.
    """

    n_passes: int = 0
    n_resets: int = 0
    n_blocked: int = 0
    longest_reset_ns: int = 0
    log_nbytes: int = 0
    error: str = ""


class _Work(NamedTuple):
    """Why to checkpoint: the writer pauses; the number of the last call of `settle` to serve, or 0."""

    idle: bool
    asked: int


class Checkpointer:
    """The thread that checkpoints one database. Its methods may be called from any thread.

    Parameters
    ----------
    connect : callable
        Makes its connection, in its own thread.
    page_nbytes : int
        Page size of the database.
    gate : Gate
        What the writer holds during each write.
    limit_bytes : int
        The length of the log from which on commits wait for it.
    idle_s : float
        A writer that pauses for this long gets its log carried over and cut to nothing.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        *,
        page_nbytes: int,
        gate: Gate,
        limit_bytes: int = WAL_LIMIT_BYTES,
        idle_s: float = 0.5,
        name: str = "checkpointer",
    ) -> None:
        self._connect = connect
        self._page_nbytes = page_nbytes
        self._gate = gate
        self._limit_bytes = limit_bytes
        self._step_bytes = limit_bytes // _PASSES_PER_LIMIT
        self._idle_s = idle_s
        self._changed = threading.Condition()
        self._pending_bytes = 0  # committed and not yet looked at by a pass
        self._n_commits = 0
        self._asked = 0  # `settle` calls so far, and how many of them have been served
        self._served = 0
        self._settled = True
        self._stopping = False
        self._stats = CheckpointStats()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def committed(self, nbytes: int) -> None:
        """Tell it that about so many bytes were appended to the log. Never waits."""
        with self._changed:
            self._pending_bytes += nbytes
            self._n_commits += 1
            self._changed.notify_all()

    def settle(self, timeout_s: float = 30.0) -> bool:
        """Have everything committed so far carried into the database file and synced to disk.

        Returns
        -------
        bool
            False if that did not succeed in time, or a reader or an error stood in the way: see `stats`.
        """
        with self._changed:
            self._asked += 1
            mine = self._asked
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._served >= mine or self._stopping, timeout_s)
            return self._served >= mine and self._settled

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

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            while (work := self._next_work()) is not None:
                settled = False
                try:
                    connection = connection or self._connect()
                    settled = self._checkpoint(connection, work)
                    self._note(error="")
                except sqlite3.Error as error:
                    # The log keeps what was committed; the next commit, or the next call of `settle`, tries again.
                    self._note(error=f"{type(error).__name__}: {error}")
                with self._changed:
                    if work.asked:
                        self._served, self._settled = work.asked, settled
                    self._changed.notify_all()
        finally:
            if connection is not None:
                connection.close()

    def _next_work(self) -> _Work | None:
        """Wait for something to do; None to stop."""
        with self._changed:
            while not self._stopping:
                asked = self._asked if self._asked > self._served else 0
                if asked or self._pending_bytes >= self._step_bytes:
                    self._pending_bytes = 0
                    return _Work(idle=False, asked=asked)
                seen = self._n_commits
                self._changed.wait(self._idle_s if self._pending_bytes else None)
                if self._pending_bytes and seen == self._n_commits and self._asked == self._served:
                    self._pending_bytes = 0
                    return _Work(idle=True, asked=0)
            return None

    def _checkpoint(self, connection: sqlite3.Connection, work: _Work) -> bool:
        """Passes, and a reset if the log is long or the work says so; whether all of the log has been carried over."""
        thorough = work.idle or work.asked > 0
        for _ in range(_MAX_PASSES):
            with _idle_priority():
                log_pages, done_pages = _checkpoint(connection, "PASSIVE", _PATIENCE_MS)[1:]
            log_nbytes = log_pages * self._page_nbytes
            self._note(n_passes=self.stats().n_passes + 1, log_nbytes=log_nbytes)
            if not thorough and log_nbytes < _RESET_AT * self._limit_bytes:
                return log_pages == done_pages
            if (log_pages - done_pages) * self._page_nbytes <= _TAIL_BYTES:
                break
        insist = work.asked > 0 or log_nbytes >= self._limit_bytes
        with self._gate.enter():
            begun_ns = time.monotonic_ns()
            blocked, *_ = _checkpoint(
                connection, "TRUNCATE" if thorough else "RESTART", _LONG_PATIENCE_MS if insist else _PATIENCE_MS
            )
            took_ns = time.monotonic_ns() - begun_ns
        stats = self.stats()
        if blocked:
            self._note(n_blocked=stats.n_blocked + 1)
            with self._changed:
                # Something stays to be done: try again after a pause even if no commit follows.
                self._pending_bytes = max(self._pending_bytes, 1)
        else:
            self._note(n_resets=stats.n_resets + 1, log_nbytes=0, longest_reset_ns=max(stats.longest_reset_ns, took_ns))
        return not blocked

    def _note(self, **changes: int | str) -> None:
        with self._changed:
            self._stats = replace(self._stats, **changes)  # type: ignore[arg-type]  # one dict for int and str fields


def _checkpoint(connection: sqlite3.Connection, mode: str, patience_ms: int) -> tuple[bool, int, int]:
    """One checkpoint: (someone was in the way, pages in the log, pages of those in the database)."""
    connection.execute(f"PRAGMA busy_timeout = {patience_ms}")
    blocked, log_pages, done_pages = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    return bool(blocked), log_pages, done_pages


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
