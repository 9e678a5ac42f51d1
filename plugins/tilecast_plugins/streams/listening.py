"""Listens to a socket of another program and hands on what comes; what is wrong is counted, named, and harms nothing.

The daemon pushes back through here: while it is behind, nothing is read, and the other program's own queue decides what
is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

import zmq

from .pixels import StreamError
from .runs import log

SocketKind = Literal["sub", "pull"]

_POLL_MS: Final = 200
_KINDS: Final = 1000
"""Of bad messages, as many are told apart."""

_QUEUE_BYTES: Final = 256 * 1024 * 1024

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Taker(Protocol[T_contra]):
    """What becomes of parsed messages; may raise StreamError for one that does not fit."""

    def take(self, message: T_contra, now_s: float, /) -> None:
        """One message."""

    def tick(self, now_s: float, /) -> None:
        """Time has passed."""

    def close(self) -> None:
        """No more will come."""


class Listener(Generic[T]):
    """One socket.

    Parameters
    ----------
    endpoint : str
        Of the other program, or to be bound.
    kind : {"sub", "pull"}
    bind : bool
        Whether the other program connects to us.
    parse : callable
        Reads the parts of one message, or raises StreamError.
    max_frame_bytes : int
        Longer parts are refused by the socket, which drops the connection that sends them.

    Attributes
    ----------
    endpoint : str
        As it was bound, once `open` was called.
    n_messages, n_bad : int
    """

    def __init__(
        self,
        endpoint: str,
        *,
        kind: SocketKind,
        bind: bool,
        parse: Callable[[Sequence[memoryview]], T],
        max_frame_bytes: int,
    ) -> None:
        self.endpoint = endpoint
        self._kind = kind
        self._bind = bind
        self._parse = parse
        self._max_frame_bytes = max_frame_bytes
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self.n_messages = 0
        self.n_bad = 0
        self._bad_kinds: dict[str, int] = {}

    def open(self) -> None:
        """Make the socket.

        Raises
        ------
        StreamError
            The endpoint is none, or taken.
        """
        self._context = zmq.Context()
        self._socket = socket = self._context.socket(zmq.SUB if self._kind == "sub" else zmq.PULL)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, self._max_frame_bytes + 64 * 1024)
        socket.setsockopt(zmq.RCVHWM, max(2, _QUEUE_BYTES // self._max_frame_bytes))
        try:
            if self._bind:
                socket.bind(self.endpoint)
                self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
            else:
                socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise StreamError(
                f"cannot {'bind' if self._bind else 'connect to'} {self.endpoint!r}: {error}; an endpoint is "
                "tcp://host:port or ipc:///path"
            ) from error
        if self._kind == "sub":
            socket.subscribe(b"")

    def run(self, taker: Taker[T], stop: threading.Event) -> None:
        """Hand on what comes until `stop` is set; then end what is open, and close the socket."""
        if self._socket is None:
            self.open()
        assert self._socket is not None
        try:
            while not stop.is_set():
                if self._socket.poll(_POLL_MS):
                    self._one(self._socket.recv_multipart(copy=False), taker)
                taker.tick(time.monotonic())
            taker.close()
        finally:
            self.close()
            if self.n_bad:
                log.warning("%d of %d messages of %s were bad", self.n_bad, self.n_messages, self.endpoint)

    def close(self) -> None:
        """Close the socket; calling it again does nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._context is not None:
            self._context.term()
            self._context = None

    def _one(self, frames: list[Any], taker: Taker[T]) -> None:
        self.n_messages += 1
        try:
            taker.take(self._parse([frame.buffer for frame in frames]), time.monotonic())
        except (StreamError, ValueError) as error:  # ValueError: what the protocol allows no run or image to say
            self.n_bad += 1
            kind = "".join(character for character in str(error)[:60] if not character.isdigit())
            kind = kind if kind in self._bad_kinds or len(self._bad_kinds) < _KINDS else "others"
            count = self._bad_kinds[kind] = self._bad_kinds.get(kind, 0) + 1
            if count & (count - 1) == 0:  # the first, second, fourth … of each kind
                log.warning("%s sent a message that is left out (%d such so far): %s", self.endpoint, count, error)
