"""ZeroMQ sockets as publishers and viewers need them: limits and keys before connecting, and what goes wrong in words.

libzmq hides a connection that fails: it tries again, silently, for ever. A person at the microscope needs to be told
what is wrong, so a `Link` listens to the socket's monitor and remembers the last trouble as a sentence.

Not known here: the protocol, which messages are sent, threads. A link belongs to the thread that made it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import zmq
from zmq.utils.monitor import parse_monitor_message

from .key_files import read_public, read_secret

Frames = list[Any]
"""The parts of a multipart message, as pyzmq takes and gives them."""


class CurveKeys(NamedTuple):
    """The keys of an encrypted and authenticated connection, Z85-encoded as `zmq.curve_keypair()` makes them.

    Attributes
    ----------
    public, secret : bytes
        Our own pair. The daemon's allow-list must name `public`.
    server : bytes or None
        The public key of the daemon that is connected to; None where we bind (a publisher of mode `pub`).
    """

    public: bytes
    secret: bytes
    server: bytes | None = None

    @classmethod
    def load(cls, own: str | os.PathLike[str], server: str | os.PathLike[str] | None = None) -> CurveKeys:
        """Read keys from files, as `tilecast keys new` makes them.

        Parameters
        ----------
        own : path
            Our `*.key_secret`; nobody else may be able to read it.
        server : path, optional
            The daemon's `*.key`.

        Raises
        ------
        ValueError
            If a file holds no such key, or others can read the secret.
        OSError
            If a file cannot be read.
        """
        pair = read_secret(Path(own))
        assert pair.secret is not None, "read_secret refuses files without"
        return cls(pair.public, pair.secret, None if server is None else read_public(Path(server)))


_REFUSED_KEYS: Final = (
    "it ends the handshake: does it need CURVE keys, are they the right ones, and is our public key in its allow-list?"
)
_TROUBLE: Final = {
    zmq.Event.CLOSED: "nobody listens there",
    zmq.Event.DISCONNECTED: "the connection was lost",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: _REFUSED_KEYS,
    zmq.Event.HANDSHAKE_FAILED_AUTH: _REFUSED_KEYS,
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "it does not speak as expected: is it a tilecast socket of the right kind, "
    "and do both sides agree on whether CURVE is used?",
}
_EVENTS: Final = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.ACCEPTED
_WATCHED: Final = int(_EVENTS | zmq.Event(sum(int(event) for event in _TROUBLE)))


class Link:
    """One socket and what its monitor says.

    Parameters
    ----------
    context : zmq.Context
    kind : int
        `zmq.DEALER`, `zmq.PUSH`, `zmq.SUB` …
    endpoint : str
        `tcp://…` or `ipc://…`.
    bind : bool
        Whether to bind rather than connect.
    send_hwm, receive_hwm : int
        High-water marks, in messages.
    linger_s : float
        How long closing may wait for what is still queued.
    curve : CurveKeys, optional
        Keys; where `bind` is true the link is the CURVE server.
    prepare : callable, optional
        Sets further options before the socket is connected.

    Attributes
    ----------
    endpoint : str
        As given; where bound, the address as it was resolved (`tcp://127.0.0.1:*` gets its port).
    connected : bool
        Whether a peer has completed the handshake.
    trouble : str
        What was last seen to go wrong; empty if nothing was.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        endpoint: str,
        *,
        bind: bool = False,
        send_hwm: int = 1000,
        receive_hwm: int = 1000,
        linger_s: float = 0.0,
        curve: CurveKeys | None = None,
        prepare: Callable[[zmq.Socket[bytes]], None] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.connected = False
        self.trouble = ""
        self.socket = context.socket(kind)
        self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(_WATCHED)
        try:
            self.socket.setsockopt(zmq.LINGER, round(linger_s * 1000))
            self.socket.setsockopt(zmq.SNDHWM, send_hwm)
            self.socket.setsockopt(zmq.RCVHWM, receive_hwm)
            if curve is not None:
                self._set_keys(curve, bind)
            if prepare is not None:
                prepare(self.socket)
            self._attach(bind)
        except Exception:
            self.close()
            raise

    def _set_keys(self, curve: CurveKeys, bind: bool) -> None:
        self.socket.setsockopt(zmq.CURVE_PUBLICKEY, curve.public)
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, curve.secret)
        if bind:
            self.socket.setsockopt(zmq.CURVE_SERVER, 1)
        elif curve.server is None:
            raise ValueError("connecting with CURVE needs the daemon's public key: CurveKeys(public, secret, server)")
        else:
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, curve.server)

    def _attach(self, bind: bool) -> None:
        try:
            if bind:
                self.socket.bind(self.endpoint)
                self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
            else:
                self.socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            what = "bind to" if bind else "connect to"
            raise ValueError(
                f"cannot {what} {self.endpoint!r}: {error}; an endpoint looks like tcp://127.0.0.1:5570 or ipc:///path"
            ) from error

    def watch(self) -> bool:
        """Take in what the monitor has to say; returns whether the connection was lost since the last time."""
        lost = False
        while self.monitor.poll(0):
            event = zmq.Event(parse_monitor_message(self.monitor.recv_multipart())["event"])
            if event in (zmq.Event.HANDSHAKE_SUCCEEDED, zmq.Event.ACCEPTED):
                self.connected = True
                self.trouble = ""
                continue
            lost = lost or event is zmq.Event.DISCONNECTED
            self.connected = False
            if event is not zmq.Event.DISCONNECTED or not self.trouble:
                self.trouble = _TROUBLE[event]
        return lost

    def try_send(self, parts: Frames) -> bool:
        """Hand a message to the socket; False if it takes none now."""
        try:
            self.socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True

    def try_receive(self) -> list[memoryview] | None:
        """The next message, or None if there is none now; parts are views that keep their memory alive."""
        try:
            frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        return [frame.buffer for frame in frames]

    def close(self) -> None:
        """Close the socket; what is queued may still be sent for `linger_s`."""
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.monitor.close(linger=0)
            self.socket.close()


class Waker:
    """Wakes a thread that waits in a poller; any thread may call `wake`."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)

    def fileno(self) -> int:
        """What the poller waits on."""
        return self._ours.fileno()

    def wake(self) -> None:
        """Make the poller return, now or the next time it waits."""
        with suppress(OSError):  # full: it is awake already; closed: nobody waits any more
            self._theirs.send(b"!")

    def clear(self) -> None:
        """Take note of having been woken."""
        with suppress(BlockingIOError):
            while len(self._ours.recv(4096)) == 4096:
                pass

    def close(self) -> None:
        """Give both ends back."""
        self._ours.close()
        self._theirs.close()
