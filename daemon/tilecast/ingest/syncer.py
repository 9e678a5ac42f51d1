"""Group fsync: one thread makes written journal records durable, so that the ingest thread never waits for the disk.

The ingest thread appends records and gets a *ticket* for each, a number that rises by one over all journals of the
daemon. This thread lets at most `interval_s` pass after the first write that is not yet durable, makes every journal
durable that was written since, and only then moves `durable_ticket`: whatever carries a ticket up to that number
survives a power failure. Acknowledgements wait for it, and so do tile commits (a tile must never show a frame whose
record is gone).

A failed fsync is the end of its journal, as it is open now: the kernel may have dropped the very pages that failed, and
a later success would be a lie. So that journal is never synced again, none of its records is called durable, and
whoever waits for one asks `refusal` too; the others go on. What is really there is found by opening it anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from tilecast.histogram import Histogram


class Syncable(Protocol):
    """What this thread needs to know of a journal."""

    @property
    def run(self) -> str:
        """The run it is the journal of."""
        ...

    def sync(self) -> int:
        """Make everything that was appended before the call durable; up to which lsn that is."""
        ...


class Syncer:
    """The thread that calls fsync.

    Parameters
    ----------
    interval_s : float
        Longest time from a write to the fsync that covers it; 0 starts one at once.
    on_durable : callable
        Called in this thread after `durable_ticket` moved.
    on_refused : callable
        Called in this thread with a journal that the disk has refused to make durable, and the error; once for each.
    on_failure : callable
        Called in this thread, once, with the error that ended it: a bug.
    """

    def __init__(
        self,
        *,
        interval_s: float,
        on_durable: Callable[[], None],
        on_refused: Callable[[Syncable, Exception], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._interval_s = interval_s
        self._on_durable = on_durable
        self._on_refused = on_refused
        self._on_failure = on_failure
        self._refused: dict[int, tuple[Syncable, Exception]] = {}
        self._condition = threading.Condition()
        self._dirty: dict[int, Syncable] = {}
        self._written = 0
        self._durable = 0
        self._first_write: float | None = None
        self._closing = False
        self._news: list[tuple[str, int]] = []
        self._failure: Exception | None = None
        self._n_syncs = 0
        self._sync_s = 0.0
        self.latency = Histogram()
        self._thread = threading.Thread(target=self._run, name="tilecast-sync", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def written(self, journal: Syncable) -> int:
        """Say that a record was appended to `journal`; returns its ticket."""
        with self._condition:
            self._written += 1
            if id(journal) not in self._refused:
                self._dirty[id(journal)] = journal
            if self._first_write is None:
                self._first_write = time.monotonic()
                self._condition.notify_all()
            return self._written

    @property
    def durable_ticket(self) -> int:
        """The last ticket that is durable, unless it is one of a journal that was refused."""
        return self._durable

    @property
    def written_ticket(self) -> int:
        """The last ticket that was handed out."""
        return self._written

    @property
    def failure(self) -> Exception | None:
        """The error that ended this thread, if one did."""
        return self._failure

    def refusal(self, journal: Syncable) -> Exception | None:
        """Why nothing more of this journal becomes durable; None while it does. To be asked after `wait_durable`."""
        with self._condition:
            found = self._refused.get(id(journal))
            return self._failure if found is None else found[1]

    def forget(self, journal: Syncable) -> None:
        """A journal that was refused has been closed."""
        with self._condition:
            self._refused.pop(id(journal), None)

    def wait_durable(self, ticket: int, timeout_s: float | None = None) -> bool:
        """Wait until `ticket` is durable; False after `timeout_s`, or if it never will be."""
        with self._condition:
            self._condition.wait_for(lambda: self._durable >= ticket or self._failure is not None, timeout_s)
            return self._durable >= ticket

    def take_durable(self) -> list[tuple[str, int]]:
        """(run, lsn) pairs that became durable since the last call; lsn counts the bytes of that run's journal."""
        with self._condition:
            news, self._news = self._news, []
            return news

    def stats(self) -> dict[str, float]:
        """Number of rounds of fsync so far, and the time they took."""
        return {"n_syncs": self._n_syncs, "sync_s": self._sync_s, "waiting": self._written - self._durable}

    def close(self) -> None:
        """Make everything durable that was written, then end the thread."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._first_write is not None or self._closing)
                if self._first_write is None:
                    return
                first_write = self._first_write
                due = first_write + self._interval_s
                while not self._closing and (left := due - time.monotonic()) > 0:
                    self._condition.wait(left)
                journals, self._dirty = list(self._dirty.values()), {}
                ticket = self._written
                self._first_write = None
            began = time.monotonic()
            synced: list[tuple[str, int]] = []
            refused: list[tuple[Syncable, Exception]] = []
            try:
                for journal in journals:
                    if id(journal) in self._refused:
                        continue  # it was written to while it was refused
                    try:
                        synced.append((journal.run, journal.sync()))
                    except OSError as error:
                        refused.append((journal, error))
            except Exception as error:  # noqa: BLE001 - the end of a thread: kept, and handed to whoever can act
                with self._condition:
                    self._failure = error
                    self._condition.notify_all()
                self._on_failure(error)
                return
            with self._condition:
                # Known before the ticket moves: nobody may take a record of these for durable.
                self._refused |= {id(one): (one, why) for one, why in refused}
                self._durable = ticket
                self._news += synced
                self._n_syncs += 1
                done = time.monotonic()
                self._sync_s += done - began
                self.latency.add(done - first_write)
                self._condition.notify_all()
            for one, why in refused:
                self._on_refused(one, why)
            self._on_durable()
