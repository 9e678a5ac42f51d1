"""Both ends of a daemon's sockets for tests: publishers as rude as a test wants, and an ear for all it publishes.

What is sent is written with msgpack alone, so that it may be as wrong as it likes; what comes back is read with the
project's own parser. Nothing here waits for time to pass, only for messages, and fails the test if they do not come.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from types import TracebackType
from typing import Any, Self

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray

from tilecast_protocol.messages import (
    Ack,
    DaemonHeartbeat,
    FromDaemon,
    Rejection,
    RunNotice,
    Tiles,
    Welcome,
    parse_from_daemon,
)

PATIENCE_S = 30.0
"""How long a test waits for something that should happen at once, on a machine that is busy."""

SHAPE = (24, 30)
"""Rows and columns of most frames here: neither square nor a tile."""

PX_UM = (0.5, 0.25)
"""A pixel, x and y."""


def built_in_plugins() -> set[str]:
    """Names of the plugins that come with tilecast."""
    return {entry.name for entry in distribution("tilecast").entry_points if entry.group == "tilecast.plugins"}


def new_uuid() -> str:
    """For runs and boots."""
    return str(uuid.uuid4())


def picture(seed: int, shape: tuple[int, int] = SHAPE, dtype: str = "<u2") -> NDArray[Any]:
    """A frame of noise, which no other frame is like."""
    rng = np.random.default_rng(seed)
    if dtype == "<f4":
        return rng.normal(0, 100, shape).astype(np.float32)
    return rng.integers(0, np.iinfo(np.dtype(dtype)).max, shape, np.dtype(dtype), endpoint=True)


def centre_um(row: int, col: int, shape: tuple[int, int] = SHAPE) -> tuple[float, float]:
    """The stage position of a frame whose upper left pixel is (row, col)."""
    return (col + shape[1] / 2) * PX_UM[0], (row + shape[0] / 2) * PX_UM[1]


class _Socket:
    """A socket of its own context, closed with the `with`."""

    def __init__(self, kind: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)

    def close(self) -> None:
        self.socket.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class RawPublisher(_Socket):
    """Sends any bytes as any message, and knows what it has been told.

    Parameters
    ----------
    endpoint : str
    kind : int
        `zmq.DEALER` for the acknowledged path, `zmq.PUSH`, or `zmq.XPUB`, which binds and waits to be listened to.
    instrument, stream : str
    boot : str, optional
        To be the publisher of before.

    Attributes
    ----------
    seq : int
        Number of the next message.
    upto_seq : int
        What the daemon has settled.
    rejections : dict of int to Rejection
    """

    def __init__(
        self,
        endpoint: str,
        kind: int = zmq.DEALER,
        *,
        instrument: str = "scope",
        stream: str = "cam",
        src: str | None = None,
        boot: str | None = None,
    ) -> None:
        super().__init__(kind)
        self.instrument, self.stream, self.src = instrument, stream, src or stream
        self.boot = boot or new_uuid()
        self.seq = 0
        self.upto_seq = -1
        self.rejections: dict[int, Rejection] = {}
        if kind == zmq.XPUB:
            self.socket.bind(endpoint)
            assert self.socket.poll(round(PATIENCE_S * 1000)), f"the daemon does not listen to {endpoint}"
            assert self.socket.recv() == b"\x01tc1/"
        else:
            self.socket.connect(endpoint)

    def hello(self) -> Welcome:
        """Greet the daemon, and wait until it has answered."""
        topic = f"tc1/{self.instrument}/{self.stream}/hello".encode()
        header = {"v": 1, "type": "hello", "src": self.src, "boot": self.boot, "next_seq": self.seq}
        self.socket.send_multipart([topic, msgpack.packb(header)])
        while not isinstance(message := self._receive(), Welcome):
            pass
        self.upto_seq = message.upto_seq
        return message

    def header(self, kind: str, **changes: Any) -> dict[str, Any]:
        """The header of the next message; a change to None takes a key out."""
        header = {
            "v": 1,
            "type": kind,
            "src": self.src,
            "boot": self.boot,
            "seq": self.seq,
            "t": time.time_ns(),
        } | changes
        return {key: value for key, value in header.items() if value is not None}

    def message(self, kind: str, *payload: bytes, **changes: Any) -> list[bytes]:
        """The parts of the next message."""
        return [
            f"tc1/{self.instrument}/{self.stream}/{kind}".encode(),
            msgpack.packb(self.header(kind, **changes)),
            *payload,
        ]

    def send(self, kind: str, *payload: bytes, **changes: Any) -> int:
        """Send a message; returns its number."""
        return self.send_parts(self.message(kind, *payload, **changes))

    def send_parts(self, parts: list[bytes]) -> int:
        """Send this, which stands for the next number, whatever it is."""
        self.socket.send_multipart(parts)
        self.seq += 1
        return self.seq - 1

    def start(self, run: str, **changes: Any) -> int:
        """Send a plain start."""
        fields = {"name": "raw", "shape": list(SHAPE), "dtype": "<u2", "px_um": list(PX_UM)} | changes
        return self.send("start", run=run, **fields)

    def image(self, run: str, frame: int, pixels: NDArray[Any], **changes: Any) -> int:
        """Send a plain image of raw pixels."""
        payload = pixels.tobytes()
        return self.send(
            "image", payload, **({"run": run, "frame": frame, "codec": "raw", "nbytes": len(payload)} | changes)
        )

    def wait_settled(self, seq: int) -> None:
        """Wait until this message is settled."""
        self._wait(lambda: self.upto_seq >= seq, f"seq {seq} settled")

    def wait_rejected(self, seq: int) -> Rejection:
        """Wait until this message is refused."""
        self._wait(lambda: seq in self.rejections, f"seq {seq} rejected")
        return self.rejections[seq]

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"{what}: the daemon does not say so"
            message = self._receive(what)
            if isinstance(message, Ack):
                self.upto_seq = max(self.upto_seq, message.upto_seq)
                self.rejections |= {rejected.seq: rejected for rejected in message.rejected}

    def _receive(self, what: str = "an answer") -> FromDaemon:
        assert self.socket.poll(round(PATIENCE_S * 1000)), f"{what}: the daemon does not answer"
        return parse_from_daemon(self.socket.recv_multipart())


class Watcher(_Socket):
    """Hears everything that a daemon publishes from the moment it was made, and keeps it.

    Attributes
    ----------
    heard : list
        All messages so far, in order.
    """

    def __init__(self, endpoint: str) -> None:
        super().__init__(zmq.SUB)
        self.heard: list[FromDaemon] = []
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.subscribe(b"tc1/")
        self.socket.connect(endpoint)
        self.until(lambda message: isinstance(message, DaemonHeartbeat), "a heartbeat")

    def messages(self, first: int = 0) -> Iterator[FromDaemon]:
        """All that was heard from the message with this number on, then all that comes."""
        number = first
        deadline = time.monotonic() + PATIENCE_S
        while True:
            while number < len(self.heard):
                yield self.heard[number]
                number += 1
            if not self.socket.poll(max(0, round((deadline - time.monotonic()) * 1000))):
                return
            self.heard.append(parse_from_daemon(self.socket.recv_multipart()))

    def until(self, condition: Callable[[Any], bool], what: str) -> Any:
        """The first message of which this is true, heard already or to come."""
        for message in self.messages():
            if condition(message):
                return message
        raise AssertionError(f"{what}: not published; last heard: {self.heard[-5:]}")

    def notice(self, run: str, kind: str, where: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """Detail of the first notice of a run with this word of which `where` is true."""

        def is_it(message: FromDaemon) -> bool:
            return (
                isinstance(message, RunNotice) and (message.run, message.kind) == (run, kind) and where(message.detail)
            )

        found: RunNotice = self.until(is_it, f"notice {kind} of {run}")
        return found.detail

    def report(self, run: str, revision: int = 1) -> dict[str, Any]:
        """The report of a run with this revision."""
        report: dict[str, Any] = self.notice(run, "report", lambda detail: detail["revision"] == revision)["report"]
        return report

    def placed(self, run: str, rev: int) -> Tiles:
        """The notification of this commit of a run."""
        found: Tiles = self.until(
            lambda message: isinstance(message, Tiles) and message.run == run and message.rev >= rev,
            f"rev {rev} of {run}",
        )
        return found

    def tiles(self, run: str) -> list[Tiles]:
        """The notifications of a run that were heard so far."""
        return [message for message in self.heard if isinstance(message, Tiles) and message.run == run]

    def notices(self, run: str) -> list[RunNotice]:
        """The notices of a run that were heard so far."""
        return [message for message in self.heard if isinstance(message, RunNotice) and message.run == run]
