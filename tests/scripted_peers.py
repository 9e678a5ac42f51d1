"""The other side of a publisher or a client, small enough to be scripted: what a daemon does on the wire, and faults.

They run in a thread of their own, on real sockets and free ports, take every message apart with the real parser, and
note all they saw. Tests wait for what they are interested in with `wait_for`, never for time to pass.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import zmq

from tilecast_protocol.errors import QueryError
from tilecast_protocol.messages import (
    Ack,
    End,
    Hello,
    Image,
    Message,
    PublisherMessage,
    Rejection,
    RunState,
    Start,
    Welcome,
    encode,
    parse,
)
from tilecast_protocol.queries import make_error, make_reply, parse_query
from tilecast_protocol.sockets import CurveKeys, Waker

PATIENCE_S = 20.0
"""How long a test waits for something that should happen at once, on a machine that is busy."""

Verdict = tuple[str, str] | None
"""Why a message is rejected, (reason, sentence), or None."""


Answer = Callable[[dict[str, Any]], tuple[dict[str, Any], list[bytes]]]
"""A query to (values for the header, payload); raises QueryError to refuse."""


class Peer:
    """A thread that serves one ROUTER socket, with these keys if any, until `stop`."""

    def __init__(self, keys: CurveKeys | None) -> None:
        self._keys = keys
        self.changed = threading.Condition()
        self.endpoint = "tcp://127.0.0.1:*"
        self._thread: threading.Thread | None = None
        self._waker = Waker()
        self._stopping = False
        self._errors: list[Exception] = []

    def _take(self, socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
        """Deal with a message; called with the lock."""
        raise NotImplementedError

    def _tend(self, socket: zmq.Socket[bytes]) -> None:
        """Called with the lock after every message and every `nudge`."""

    def start(self) -> None:
        """Bind, at the old address if there is one, and serve."""
        self._stopping = False
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = context.socket(zmq.ROUTER)
        if self._keys is not None:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(self.endpoint)
        self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._thread = threading.Thread(target=self._serve, args=(context, socket), name="peer")
        self._thread.start()

    def stop(self) -> None:
        """Die: the connection is cut, what was not answered is not answered."""
        if self._thread is not None:
            self._stopping = True
            self._waker.wake()
            self._thread.join()
            self._thread = None
        if self._errors:
            raise self._errors.pop()

    def _serve(self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._waker.fileno(), zmq.POLLIN)
        try:
            while not self._stopping:
                poller.poll(100)
                self._waker.clear()
                with self.changed:
                    while socket.poll(0):
                        self._take(socket, socket.recv_multipart())
                        self._tend(socket)
                    self._tend(socket)
                    self.changed.notify_all()
        except Exception as error:  # noqa: BLE001  (a thread ends here; `stop` raises it in the test)
            self._errors.append(error)
        finally:
            socket.close()
            context.term()

    def nudge(self) -> None:
        """Look again at what the test has changed."""
        self._waker.wake()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds; fails the test if it never does."""
        with self.changed:
            met = self.changed.wait_for(lambda: bool(self._errors) or condition(), PATIENCE_S)
        assert not self._errors, self._errors
        assert met, "what the test waits for did not happen"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._waker.close()


@dataclass
class Seen:
    """A message as it came: its parts, and which connection it came on."""

    message: Any
    parts: tuple[bytes, ...]
    connection: bytes


@dataclass
class Memory:
    """What the scripted daemon has on disk: it outlives `stop`."""

    upto_seq: dict[str, int] = field(default_factory=dict)
    frames: dict[str, set[int]] = field(default_factory=dict)

    def run_states(self) -> tuple[RunState, ...]:
        return tuple(
            RunState(run, "open", max(frames, default=-1) + 1, tuple((frame, frame) for frame in sorted(frames)))
            for run, frames in self.frames.items()
        )


class ScriptedDaemon(Peer):
    """The daemon's end of the acknowledged path.

    Attributes
    ----------
    credit : int
        What it grants.
    acking, welcoming : bool
        Whether it answers at all.
    judge : callable
        (message) → why it is rejected, or None; without it, images of unknown runs are.
    hellos, seen : list
        What came, in order; `seen` without the hellos.
    memory : Memory
        What it has kept.
    most_unacknowledged : int
        The most images that ever were out at once.
    """

    def __init__(self, credit: int = 4, keys: CurveKeys | None = None) -> None:
        super().__init__(keys)
        self.credit = credit
        self.acking = True
        self.welcoming = True
        self.judge: Callable[[PublisherMessage], Verdict] | None = None
        self.hellos: list[Hello] = []
        self.seen: list[Seen] = []
        self.memory = Memory()
        self.most_unacknowledged = 0
        self._unsettled: list[Seen] = []
        self._connection: bytes | None = None
        self._topic: tuple[str, str] = ("", "")
        self._told: tuple[Any, ...] = ()
        self._to_send: list[list[bytes]] = []

    # What tests look at.

    def of_type(self, kind: type[Any]) -> list[Any]:
        """The messages of one type, in the order they came, those that came again included."""
        return [seen.message for seen in self.seen if isinstance(seen.message, kind)]

    def kept(self) -> list[Any]:
        """Everything but heartbeats."""
        return [seen.message for seen in self.seen if seen.message.TYPE != "hb"]

    def has(self, n: int, kind: type[Any] = Image) -> Callable[[], bool]:
        """Condition: n messages of a type have come."""
        return lambda: len(self.of_type(kind)) >= n

    # What tests do to it.

    def set(self, **knobs: Any) -> None:
        """Turn knobs, and look what follows."""
        with self.changed:
            for name, value in knobs.items():
                assert hasattr(self, name)
                setattr(self, name, value)
        self.nudge()

    def say(self, parts: list[bytes]) -> None:
        """Send this to the publisher, whatever it is."""
        with self.changed:
            self._to_send.append(parts)
        self.nudge()

    # What it does.

    def start(self) -> None:
        """As `Peer.start`; the old connections are forgotten."""
        self._connection = None
        self._unsettled = []
        super().start()

    def _take(self, socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
        connection, *parts = frames
        message = parse(parts)
        if isinstance(message, Hello):
            self.hellos.append(message)
            if self.welcoming:
                self._greet(socket, connection, message)
            return
        assert connection == self._connection, "a message came on a connection that was not greeted"
        seen = Seen(message, tuple(bytes(part) for part in parts), connection)
        self.seen.append(seen)
        self._unsettled.append(seen)
        n_images = sum(isinstance(seen.message, Image) for seen in self._unsettled)
        self.most_unacknowledged = max(self.most_unacknowledged, n_images)

    def _greet(self, socket: zmq.Socket[bytes], connection: bytes, hello: Hello) -> None:
        self._connection = connection
        self._topic = (hello.instrument, hello.stream)
        self._boot = hello.boot
        self._unsettled = []
        self._told = ()
        upto = self.memory.upto_seq.setdefault(hello.boot, hello.next_seq - 1)
        welcome = Welcome(
            instrument=hello.instrument,
            stream=hello.stream,
            credit=self.credit,
            upto_seq=upto,
            max_frame_bytes=1 << 20,
            durability="fsync",
            state="ready",
            runs=self.memory.run_states(),
        )
        socket.send_multipart([connection, *encode(welcome)])

    def _tend(self, socket: zmq.Socket[bytes]) -> None:
        if self._connection is None:
            return
        for parts in self._to_send:
            socket.send_multipart([self._connection, *parts])
        self._to_send.clear()
        if not self.acking:
            return
        rejected = []
        for seen in self._unsettled:
            verdict = self._settle(seen.message)
            if verdict is not None:
                rejected.append(Rejection(seen.message.seq, *verdict))
        self._unsettled.clear()
        upto = self.memory.upto_seq[self._boot]
        if (upto, self.credit) != self._told or rejected:
            self._told = (upto, self.credit)
            self.acknowledge(socket, upto, rejected)

    def acknowledge(self, socket: zmq.Socket[bytes], upto_seq: int, rejected: list[Rejection]) -> None:
        instrument, stream = self._topic
        ack = Ack(
            instrument=instrument,
            stream=stream,
            upto_seq=upto_seq,
            credit=self.credit,
            rejected=tuple(rejected),
            state="ready",
            free_bytes=10**9,
        )
        socket.send_multipart([self._connection, *encode(ack)])

    def _settle(self, message: Any) -> Verdict:
        boot, seq = message.boot, message.seq
        assert seq == self.memory.upto_seq[boot] + 1, "numbers rise by one, and come again in order"
        self.memory.upto_seq[boot] = seq
        verdict = self.judge(message) if self.judge is not None else None
        if verdict is not None:
            return verdict
        if isinstance(message, Start):
            self.memory.frames.setdefault(message.run, set())
        elif isinstance(message, (Image, End)) and message.run not in self.memory.frames:
            return "unknown-run", f"no start of the run {message.run} was seen"
        elif isinstance(message, Image):
            self.memory.frames[message.run].add(message.frame)
        return None


class ScriptedQueries(Peer):
    """The daemon's query socket: `answers[cmd]` is a function of the query that returns (values, payload)."""

    def __init__(self, answers: dict[str, Answer], keys: CurveKeys | None = None) -> None:
        super().__init__(keys)
        self.answers = answers
        self.asked: list[dict[str, Any]] = []
        self.silent = False
        self.before: list[list[bytes]] = []  # answers that nobody asked for, sent before the next one

    def _take(self, socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
        connection, request = frames
        query = parse_query(request)
        self.asked.append(query)
        if self.silent:
            return
        try:
            values, payload = self.answers[query["cmd"]](query)
            reply = make_reply(query["id"], payload, **values)
        except QueryError as error:
            reply = make_error(query["id"], error)
        for stray in self.before:
            socket.send_multipart([connection, *stray])
        self.before.clear()
        socket.send_multipart([connection, *reply])


class ScriptedNotifications:
    """The daemon's `notify` socket; what the test does not send is lost."""

    def __init__(self) -> None:
        self.endpoint = "tcp://127.0.0.1:*"

    def start(self) -> None:
        """Bind, at the old address if there is one."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._socket.bind(self.endpoint)
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def stop(self) -> None:
        """Cut all connections."""
        self._socket.close()
        self._context.term()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def wait_subscribed(self, topic: str) -> None:
        """Until a viewer has subscribed to exactly this."""
        while True:
            assert self._socket.poll(PATIENCE_S * 1000), f"nobody subscribed to {topic}"
            if self._socket.recv() == b"\x01" + topic.encode():
                return

    def send(self, *messages: Message) -> None:
        """Publish these."""
        for message in messages:
            self._socket.send_multipart(encode(message))

    def send_raw(self, *parts: bytes) -> None:
        """Publish this, whatever it is."""
        self._socket.send_multipart(parts)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody announces."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "what the test waits for did not happen"
        time.sleep(0.002)
