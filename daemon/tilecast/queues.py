"""Bounded queues between threads, weighed in bytes, that can say how full they are and what they made wait.

A queue that counts items says nothing about memory: one item may be a stage position or an 8 MiB frame. These are
weighed, so that the budgets of the configuration mean something, and a full one pushes back on whoever fills it
instead of growing. One item is always let in, however heavy, or a frame larger than the queue would wait for ever.

>>> queue = ByteQueue("blend", max_bytes=100)
>>> queue.put("frame", nbytes=80)
True
>>> queue.put("another", nbytes=80, timeout_s=0)
False
>>> queue.get(timeout_s=0), queue.get(timeout_s=0)
('frame', None)
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class QueueStats:
    """How full a queue is and has been.

    Attributes
    ----------
    depth, nbytes : int
        Items and bytes waiting now.
    max_bytes, high_water_bytes : int
        The limit, and the most that ever waited.
    n_put : int
        Items that ever went in.
    waited_s : float
        Time that producers spent waiting for room, added up.
    """

    depth: int
    nbytes: int
    max_bytes: int
    high_water_bytes: int
    n_put: int
    waited_s: float


class ByteQueue(Generic[T]):
    """First in, first out, bounded in bytes; safe between any number of threads.

    Parameters
    ----------
    name : str
        What `stats` and messages call it.
    max_bytes : int
        Limit on the sum of the weights of the items that wait.
    """

    def __init__(self, name: str, max_bytes: int) -> None:
        self.name = name
        self.max_bytes = max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._lock = threading.Lock()
        self._not_empty = threading.Condition(self._lock)
        self._not_full = threading.Condition(self._lock)
        self._nbytes = 0
        self._high_water_bytes = 0
        self._n_put = 0
        self._waited_s = 0.0
        self._woken = False
        self._closed = False
        self._n_waiting = 0

    def put(self, item: T, nbytes: int = 0, *, timeout_s: float | None = None) -> bool:
        """Append `item`, waiting for room; False if there was none within `timeout_s`, or the queue is closed."""
        with self._lock:
            if not self._has_room(nbytes):
                began = time.monotonic()
                self._n_waiting += 1
                try:
                    self._not_full.wait_for(lambda: self._closed or self._has_room(nbytes), timeout_s)
                finally:
                    self._n_waiting -= 1
                self._waited_s += time.monotonic() - began
            if self._closed or not self._has_room(nbytes):
                return False
            self._items.append((item, nbytes))
            self._nbytes += nbytes
            self._high_water_bytes = max(self._high_water_bytes, self._nbytes)
            self._n_put += 1
            self._not_empty.notify()
            return True

    def get(self, *, timeout_s: float | None = None) -> T | None:
        """The oldest item; None if none came within `timeout_s`, if `wake` was called, or if it is closed and empty."""
        with self._lock:
            if not self._items:
                self._not_empty.wait_for(lambda: self._items or self._woken or self._closed, timeout_s)
            self._woken = False
            if not self._items:
                return None
            item, nbytes = self._items.popleft()
            self._nbytes -= nbytes
            self._not_full.notify_all()
            return item

    def wake(self) -> None:
        """Make `get` return, the one that waits or else the next, so that its thread looks at what else has changed."""
        with self._lock:
            self._woken = True
            self._not_empty.notify_all()

    def close(self) -> None:
        """Refuse more items; what waits can still be taken.

        Whoever takes items closes the queue when it dies, or those who put them in would wait for ever.
        """
        with self._lock:
            self._closed = True
            self._not_empty.notify_all()
            self._not_full.notify_all()

    def has_room_for(self, nbytes: int) -> bool:
        """Whether so much can be put now without waiting."""
        with self._lock:
            return self._has_room(nbytes)

    @property
    def n_waiting(self) -> int:
        """How many wait for room now."""
        with self._lock:
            return self._n_waiting

    @property
    def empty(self) -> bool:
        """Whether nothing waits now."""
        with self._lock:
            return not self._items

    @property
    def drained(self) -> bool:
        """Closed, with nothing left in it."""
        with self._lock:
            return self._closed and not self._items

    def stats(self) -> QueueStats:
        """How full it is, as one consistent reading."""
        with self._lock:
            return QueueStats(
                depth=len(self._items),
                nbytes=self._nbytes,
                max_bytes=self.max_bytes,
                high_water_bytes=self._high_water_bytes,
                n_put=self._n_put,
                waited_s=self._waited_s,
            )

    def _has_room(self, nbytes: int) -> bool:
        return not self._items or self._nbytes + nbytes <= self.max_bytes
