"""Tells viewers what happened, after it did: the PUB socket.

Commits, notices and heartbeats are handed in by any thread and sent by the one that owns the socket, in the order in
which they came. A viewer that is slow loses notifications and finds the hole by `rev`; nobody waits for it.

It knows messages and a socket, nothing of stores: what it is told to announce must be committed already.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import zmq

from tilecast.histogram import Histogram
from tilecast_protocol.messages import DaemonMessage, encode


@dataclass(frozen=True, slots=True)
class NotifierStats:
    """Messages sent so far, and the longest that one waited between being handed in and sent, in seconds."""

    n_sent: int
    n_bytes: int
    longest_wait_s: float


class Notifier:
    """Owns the PUB socket.

    Parameters
    ----------
    socket : zmq.Socket
        Bound already; its high-water mark and linger were set before.
    wake : callable
        Makes the thread that calls :meth:`flush` do so soon; may be called from any thread.
    """

    def __init__(self, socket: zmq.Socket[bytes] | None, wake: Callable[[], None]) -> None:
        self._socket = socket
        self._wake = wake
        self._waiting: deque[tuple[DaemonMessage, float]] = deque()
        self._lock = threading.Lock()
        self._n_sent = 0
        self._n_bytes = 0
        self._longest_wait_s = 0.0
        self.latency = Histogram()

    def announce(self, message: DaemonMessage) -> None:
        """Send `message` soon; from any thread."""
        with self._lock:
            self._waiting.append((message, time.monotonic()))
        self._wake()

    def flush(self) -> None:
        """Send what was handed in; only from the thread that owns the socket."""
        while True:
            with self._lock:
                if not self._waiting:
                    return
                message, since = self._waiting.popleft()
            if self._socket is None:
                continue
            parts = encode(message)
            self._socket.send_multipart(parts, copy=True)  # PUB drops what a slow viewer cannot take; it never blocks
            self._n_sent += 1
            self._n_bytes += sum(len(part) for part in parts)
            waited_s = time.monotonic() - since
            self.latency.add(waited_s)
            self._longest_wait_s = max(self._longest_wait_s, waited_s)

    def stats(self) -> NotifierStats:
        """Counters since the start."""
        return NotifierStats(self._n_sent, self._n_bytes, self._longest_wait_s)
