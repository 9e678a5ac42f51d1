"""Makes the sockets that the configuration asks for: bound or connected, bounded, and with the keys they need.

A high-water mark is set before a socket is bound or connected, and counts messages where the configuration speaks of
bytes: budgets are turned into numbers of messages of the usual size (of notifications: the largest). What travels
through the sockets is not known here.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterable

import zmq

from tilecast.errors import ConfigError
from tilecast.ingest.verdicts import IngestPath
from tilecast.service.config import Config
from tilecast.service.curve import Doors

_LARGEST_NOTIFICATION_NBYTES = 128 * 1024  # 4,000 tiles with the largest numbers
_TYPICAL_FRAME_NBYTES = 8 << 20
_HEADERS_NBYTES = 1 << 20
_UNREAD_ANSWERS = 1000  # small ones; the query server counts the bytes of large ones

Socket = zmq.Socket[bytes]


class Sockets:
    """The sockets of one process.

    Parameters
    ----------
    config : Config
    with_feed : bool
        Whether the acknowledged path has a second door, for this user's programs on this machine: `feed`.

    Attributes
    ----------
    feed : str
        The endpoint of that door; empty if there is none.
    endpoints : dict of str to str
        Where each socket is bound, by its name in the configuration: with a wildcard port, the port it became.

    Raises
    ------
    ConfigError
        If a key file is missing or wrong.
    """

    def __init__(self, config: Config, *, with_feed: bool = False) -> None:
        self.endpoints: dict[str, str] = {}
        self.feed = ""
        self._feed_folder = tempfile.mkdtemp(prefix="tilecast-") if with_feed else ""  # only this user may look into it
        self._config = config
        self._context: zmq.Context[Socket] = zmq.Context()
        try:
            self._doors = Doors(config, self._context)
        except BaseException:
            self._context.term()
            raise

    def notify(self) -> Socket | None:
        """The PUB socket of notifications; None if it is switched off."""
        return self._bound(zmq.PUB, "notify")

    def query(self) -> Socket | None:
        """The ROUTER socket of queries; None if it is switched off."""
        return self._bound(zmq.ROUTER, "query")

    def ingest(self, paths: Iterable[IngestPath]) -> dict[IngestPath, list[Socket]]:
        """The sockets on which messages come in, by the way they come."""
        sockets: dict[IngestPath, list[Socket]] = {}
        for path in paths:
            if path is IngestPath.SUB:
                sockets[path] = [self._subscribed(endpoint) for endpoint in self._config.endpoints("ingest.sub")]
            else:
                socket = self._bound(zmq.ROUTER if path is IngestPath.ACK else zmq.PULL, f"ingest.{path}")
                if socket is None and path is IngestPath.ACK and self._feed_folder:
                    socket = self._context.socket(zmq.ROUTER)
                    self._bound_ingest(socket)
                    socket.linger, socket.router_mandatory = 0, True
                    self._open_feed(socket)
                sockets[path] = [] if socket is None else [socket]
        return sockets

    def is_operator(self, frame: zmq.Frame) -> bool:
        """Whether the peer that sent `frame` may change runs."""
        return self._doors.is_operator(frame)

    def close(self) -> None:
        """Close all that are still open, at once, and wait until those that were closed before have said their last."""
        self._doors.close()
        self._context.destroy(0)
        if self._feed_folder:
            shutil.rmtree(self._feed_folder, ignore_errors=True)

    def _bound(self, kind: int, name: str) -> Socket | None:
        for endpoint in self._config.endpoints(name):
            socket = self._context.socket(kind)
            if name.startswith("ingest"):
                self._bound_ingest(socket)
                if kind == zmq.ROUTER:
                    socket.router_mandatory = True  # or nobody would know that a publisher does not read
            elif kind == zmq.ROUTER:
                socket.rcvhwm, socket.sndhwm = self._config.viewers.max_in_flight, _UNREAD_ANSWERS
                socket.maxmsgsize = _HEADERS_NBYTES
                socket.router_mandatory = True  # as above, of a viewer
            else:
                socket.sndhwm = max(100, self._config.viewers.queue_bytes // _LARGEST_NOTIFICATION_NBYTES)
                socket.maxmsgsize = _HEADERS_NBYTES
            socket.linger = 0
            if name == "ingest.ack" and self._feed_folder:
                self._open_feed(socket)  # before the keys are asked for, which hold for what is bound after them
            self._doors.bind_security(socket, name)
            try:
                _bind(socket, endpoint)
            except zmq.ZMQError as error:
                raise ConfigError(
                    f"{name} = {endpoint} cannot be bound: {error.strerror}; is another tilecast running? "
                    f"Choose another endpoint with --set {name}=…"
                ) from error
            self.endpoints[name] = str(socket.get_string(zmq.LAST_ENDPOINT)).rstrip("\0")
            self._doors.bound(name, self.endpoints[name])
            return socket
        return None

    def _open_feed(self, socket: Socket) -> None:
        endpoint = f"ipc://{self._feed_folder}/feed"
        _bind(socket, endpoint)
        self.feed = endpoint

    def _subscribed(self, endpoint: str) -> Socket:
        socket = self._context.socket(zmq.SUB)
        self._bound_ingest(socket)
        socket.linger = 0
        self._doors.connect_security(socket, "ingest.sub")
        socket.subscribe(b"tc1/")
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"ingest.sub = {endpoint} cannot be connected to: {error.strerror}") from error
        return socket

    def _bound_ingest(self, socket: Socket) -> None:
        """Set how much may wait inside a socket on which frames come in, and how much one message may be."""
        socket.rcvhwm = max(2, math.ceil(self._config.ingest.queue_bytes / _TYPICAL_FRAME_NBYTES))
        socket.maxmsgsize = self._config.ingest.max_frame_bytes + _HEADERS_NBYTES


def _bind(socket: Socket, endpoint: str) -> None:
    """Bind; what is bound as a file is open to this user and, if the umask lets it, to the group, never to others."""
    if not endpoint.startswith("ipc://"):
        socket.bind(endpoint)
        return
    before = os.umask(0o777)
    os.umask(before | 0o117)
    try:
        socket.bind(endpoint)
    finally:
        os.umask(before)
