"""The thread of a publisher that owns its socket, and the outbox through which callers' threads speak with it.

A ZeroMQ socket may be used by one thread only, and a camera script must not wait for the network; so whoever sends puts
messages into the outbox, and the courier carries them: greets the daemon, sends what the window allows, takes in
acknowledgements, beats every second, and makes a connection anew that was lost or has gone silent.

Which message is next and what an answer means is decided in `window`; what can be sent, in `publisher`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Final

import zmq

from .errors import MalformedError, TilecastError
from .messages import Ack, Heartbeat, Hello, PublisherMessage, Welcome, encode, parse_from_daemon
from .sockets import CurveKeys, Link, Waker
from .window import OWN, Outgoing, Rejected, SendWindow, Settled

LARGEST_SEQ: Final = 2**63 - 1
"""Stands for the number that a message gets later, so that limits checked now also hold then."""

MAX_SMALL_MESSAGES: Final = 10_000
"""Messages that may wait, images apart: more than three minutes of a stage at 50 Hz."""

KEPT_REJECTIONS: Final = 1000
"""How many rejections are kept; all are counted."""

RECONNECT_S: Final = 0.1
"""Pause before a lost connection is made anew; doubled each time, up to `RECONNECT_MAX_S`."""

RECONNECT_MAX_S: Final = 2.0

_BURST: Final = 64
_log = logging.getLogger(__name__)


class Outbox:
    """What callers' threads and the courier share. Hold `changed` to use it; it is notified at every change.

    Parameters
    ----------
    window : SendWindow
        The messages that are not settled.
    on_rejected : callable, optional
        Called by the courier, without the lock, with each rejection that no `start` waits for.

    Attributes
    ----------
    changed : threading.Condition
        Its lock is reentrant.
    connected : bool
        Whether the other side is there, as far as is known.
    welcome : Welcome or None
        What the daemon said when it greeted us last.
    ack : Ack or None
        Its last acknowledgement.
    trouble : str
        What was last seen to go wrong with the connection.
    failure : Exception or None
        Why nothing is sent any more: it was closed, or what the courier died of.
    reserved_images : int
        Room that was promised to images which are still being encoded.
    last_ticket : int
        Of the message that was put in last.
    rejected : deque of Rejected
        The latest rejections, oldest first.
    n_rejected : int
        How many there were.
    """

    def __init__(self, window: SendWindow, on_rejected: Callable[[Rejected], None] | None) -> None:
        self.changed = threading.Condition()
        self.window = window
        self.waker = Waker()
        self.connected = False
        self.welcome: Welcome | None = None
        self.ack: Ack | None = None
        self.trouble = ""
        self.failure: Exception | None = None
        self.reserved_images = 0
        self.last_ticket = OWN
        self.rejected: deque[Rejected] = deque(maxlen=KEPT_REJECTIONS)
        self.n_rejected = 0
        self._on_rejected = on_rejected
        self._logged_reasons: set[str] = set()
        self._unsettled: dict[int, None] = {}  # tickets in the order in which they were given
        self._awaited: dict[int, Rejected | None] = {}

    def put(self, message: PublisherMessage, *, awaited: bool = False) -> int:
        """Queue a message; raises MalformedError if it cannot be written. With `awaited`, `outcome` tells the end."""
        encode(message)
        with self.changed:
            self.last_ticket += 1
            self.window.put(message, self.last_ticket)
            self._unsettled[self.last_ticket] = None
            if awaited:
                self._awaited[self.last_ticket] = None
            self.waker.wake()
            return self.last_ticket

    def has_room(self, *, for_image: bool) -> bool:
        """Whether one more message may be put in."""
        n_small = self.window.n_messages - self.window.n_images
        if not for_image:
            return n_small < MAX_SMALL_MESSAGES
        return self.window.n_images + self.reserved_images < self.window.credit

    def is_settled(self, ticket: int) -> bool:
        """Whether this message is settled."""
        return ticket not in self._unsettled

    def all_settled(self, upto_ticket: int) -> bool:
        """Whether all messages up to this one are settled."""
        return next(iter(self._unsettled), math.inf) > upto_ticket

    def outcome(self, ticket: int) -> Rejected | None:
        """How an awaited message was refused; None if it was not."""
        return self._awaited.pop(ticket, None)

    def settle(self, settled: Settled) -> None:
        """Take in what was decided (the courier; without the lock)."""
        for rejected in settled.rejected:
            self._tell(rejected)
        with self.changed:  # last, so that who waited for a message finds its rejection told
            for ticket in settled.tickets:
                self._unsettled.pop(ticket, None)
            for rejected in settled.rejected:
                self._unsettled.pop(rejected.ticket, None)
            self.changed.notify_all()

    def _tell(self, rejected: Rejected) -> None:
        with self.changed:
            if rejected.ticket in self._awaited:
                self._awaited[rejected.ticket] = rejected
                return
            self.rejected.append(rejected)
            self.n_rejected += 1
        if rejected.reason not in self._logged_reasons:
            self._logged_reasons.add(rejected.reason)
            _log.warning("%s (further ones for this reason are only counted)", rejected)
        if self._on_rejected is None:
            return
        try:
            self._on_rejected(rejected)
        except Exception:  # noqa: BLE001  (a guest's code ends here; the log names it)
            _log.exception("on_rejected, which was given to the publisher, raised")

    def set_connected(self, connected: bool, trouble: str = "") -> None:
        """Note whether the other side is there, and if not, why."""
        with self.changed:
            self.connected = connected
            self.trouble = "" if connected else trouble or self.trouble
            self.changed.notify_all()


class Courier(threading.Thread):
    """What both kinds of courier have in common: the thread, the clock, sending.

    Parameters
    ----------
    outbox : Outbox
        What there is to send.
    endpoint : str
        Where to.
    who : Hello
        Names of this publisher.
    curve : CurveKeys, optional
        Keys.
    heartbeat_s : float
        Time between heartbeats.

    Raises
    ------
    ValueError
        The endpoint is none.
    """

    LINGERS: ClassVar[bool] = False

    def __init__(
        self, outbox: Outbox, endpoint: str, who: Hello, *, curve: CurveKeys | None, heartbeat_s: float
    ) -> None:
        super().__init__(name=f"tilecast publisher {who.src}", daemon=True)
        self.endpoint = endpoint
        self._outbox = outbox
        self._who = who
        self._curve = curve
        self._heartbeat_s = heartbeat_s
        self._next_beat = time.monotonic() + heartbeat_s
        self._linger_s: float | None = None  # set to stop
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._link: Link | None = None
        try:
            self._use(self._open())
        except Exception:
            self._close(0.0)
            outbox.waker.close()
            raise

    def stop(self, linger_s: float) -> None:
        """End the thread; a one-way socket may take up to `linger_s` to send what it has taken."""
        self._linger_s = linger_s
        self._outbox.waker.wake()
        self.join()
        with self._outbox.changed:
            self._outbox.failure = self._outbox.failure or TilecastError("it was closed")
            self._outbox.changed.notify_all()
        self._outbox.waker.close()

    def run(self) -> None:
        """Serve until `stop`."""
        try:
            while self._linger_s is None:
                self._tend(time.monotonic())
                self._beat(time.monotonic())
                self._wait(blocked=not self._send())
                if self._link is not None:
                    self._listen(self._link)
        except Exception as error:  # noqa: BLE001  (a thread ends here; its callers are told)
            _log.exception("the publisher's thread has died")
            with self._outbox.changed:
                self._outbox.failure = error
                self._outbox.changed.notify_all()
        finally:
            self._close(self._linger_s or 0.0)

    def _close(self, linger_s: float) -> None:
        if self._link is not None:
            self._link.socket.setsockopt(zmq.LINGER, round(linger_s * 1000) if self.LINGERS else 0)
            self._link.close()
        self._context.term()

    # What the two kinds do differently.

    def _open(self) -> Link:
        """The socket, connected or bound."""
        raise NotImplementedError

    def _tend(self, now_s: float) -> None:
        """Look after the connection."""

    def _deadline(self) -> float:
        """When `_tend` must be called at the latest, by the monotonic clock."""
        return math.inf

    def _listen(self, link: Link) -> None:
        """Take in what came."""
        raise NotImplementedError

    def _beats(self) -> list[PublisherMessage]:
        """What a heartbeat consists of."""
        raise NotImplementedError

    # What they have in common.

    def _use(self, link: Link | None) -> None:
        """Wait on this link from now on."""
        if self._link is not None:
            self._link.close()
        self._link = link
        self._poller = zmq.Poller()
        self._poller.register(self._outbox.waker.fileno(), zmq.POLLIN)
        if link is not None:
            self._poller.register(link.socket, zmq.POLLIN)
            self._poller.register(link.monitor, zmq.POLLIN)

    def _beat(self, now_s: float) -> None:
        if now_s < self._next_beat:
            return
        self._next_beat = now_s + self._heartbeat_s
        with self._outbox.changed:
            window = self._outbox.window
            if self._outbox.connected and not window.has_own_waiting and self._outbox.has_room(for_image=False):
                window.put_own(self._beats())

    def _heartbeats(self) -> list[PublisherMessage]:
        """One for each run that is open, or one that says that none is."""
        window = self._outbox.window
        common: dict[str, Any] = {
            "instrument": self._who.instrument,
            "stream": self._who.stream,
            "src": self._who.src,
            "boot": self._who.boot,
            "seq": LARGEST_SEQ,
            "t_ns": time.time_ns(),
            "queues": {"images": window.n_images, "messages": window.n_messages},
        }
        return [
            Heartbeat(state="acquiring", run=known.start.run, n_sent=known.n_sent, **common)
            for known in window.open_runs()
        ] or [Heartbeat(state="idle", **common)]

    def _head(self) -> Outgoing | None:
        with self._outbox.changed:
            return self._outbox.window.head()

    def _send(self) -> bool:
        """Send what may go out now; False if the socket takes no more, True if nothing more may go out."""
        for _ in range(_BURST):
            head = self._head()
            if head is None or self._link is None:
                return True
            if not self._link.try_send(head.parts):
                return False
            with self._outbox.changed:
                settled = self._outbox.window.sent()
            self._outbox.settle(settled)
        self._outbox.waker.wake()  # there may be more: listen first, then go on
        return True

    def _wait(self, *, blocked: bool) -> None:
        until_s = min(self._next_beat, self._deadline()) - time.monotonic()
        if self._link is not None:
            self._poller.modify(self._link.socket, zmq.POLLIN | zmq.POLLOUT if blocked else zmq.POLLIN)
        self._poller.poll(max(0, math.ceil(until_s * 1000)))
        self._outbox.waker.clear()


class AcknowledgedCourier(Courier):
    """Speaks with `ingest.ack`: hello, welcome, messages, acknowledgements.

    Every connection is a socket of its own, thrown away when the connection is lost: ZeroMQ would otherwise send what
    it still had queued before our hello.
    """

    def __init__(
        self,
        outbox: Outbox,
        endpoint: str,
        who: Hello,
        *,
        curve: CurveKeys | None,
        heartbeat_s: float,
        silence_s: float,
    ) -> None:
        self._silence_s = silence_s
        self._heard_s = time.monotonic()
        self._again_s = math.inf  # when to connect anew
        self._pause_s = RECONNECT_S
        super().__init__(outbox, endpoint, who, curve=curve, heartbeat_s=heartbeat_s)

    def _open(self) -> Link:
        link = Link(self._context, zmq.DEALER, self.endpoint, curve=self._curve)
        with self._outbox.changed:
            hello = replace(self._who, next_seq=self._outbox.window.first_unsettled_seq)
        link.try_send(encode(hello))
        self._heard_s = time.monotonic()
        self._again_s = math.inf
        return link

    def _deadline(self) -> float:
        return self._again_s if self._link is None else self._heard_s + self._silence_s

    def _tend(self, now_s: float) -> None:
        if now_s < self._deadline():
            return
        if self._link is not None:
            self._lose(self._link.trouble or self._what_silence_means(self._link))
        self._use(self._open())

    def _what_silence_means(self, link: Link) -> str:
        if self._outbox.connected:
            return f"it has said nothing for {self._silence_s:g} s"
        if link.connected:
            return "it takes the connection and does not answer: is this the ingest.ack endpoint of a tilecast daemon?"
        return "it does not answer"

    def _lose(self, trouble: str) -> None:
        if self._outbox.connected:
            _log.warning("lost the daemon at %s: %s; what it has not acknowledged is kept", self.endpoint, trouble)
        with self._outbox.changed:
            self._outbox.window.disconnected()
            self._outbox.set_connected(False, trouble)
        self._use(None)

    def _listen(self, link: Link) -> None:
        lost = link.watch()
        if link.trouble and not self._outbox.connected:
            self._outbox.set_connected(False, link.trouble)
        while (parts := link.try_receive()) is not None:
            try:
                message = parse_from_daemon(parts)
            except MalformedError as error:
                _log.warning("passed over a message from %s: %s", self.endpoint, error)
                continue
            self._heard_s = time.monotonic()
            if isinstance(message, Welcome):
                self._greet(message)
            elif isinstance(message, Ack) and self._outbox.connected:
                with self._outbox.changed:
                    self._outbox.ack = message
                    settled = self._outbox.window.acknowledged(message)
                self._outbox.settle(settled)
        if lost:
            self._lose(link.trouble)
            self._again_s = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, RECONNECT_MAX_S)

    def _greet(self, welcome: Welcome) -> None:
        self._pause_s = RECONNECT_S
        with self._outbox.changed:
            self._outbox.welcome = welcome
            settled = self._outbox.window.greeted(welcome)
            self._outbox.set_connected(True)
        self._outbox.settle(settled)
        _log.info("the daemon at %s greets us: state %s, credit %d", self.endpoint, welcome.state, welcome.credit)

    def _beats(self) -> list[PublisherMessage]:
        return self._heartbeats()


class OneWayCourier(Courier):
    """Pushes to `ingest.pull`, or publishes to subscribers: nobody answers, so every beat repeats what a run is.

    Publishing uses XPUB, which is PUB to the other side and tells us of subscriptions.
    """

    LINGERS: ClassVar[bool] = True

    def __init__(
        self,
        outbox: Outbox,
        endpoint: str,
        who: Hello,
        *,
        curve: CurveKeys | None,
        heartbeat_s: float,
        publish: bool,
        hwm: int,
    ) -> None:
        self._publish = publish
        self._hwm = hwm
        self._subscriptions: set[bytes] = set()
        super().__init__(outbox, endpoint, who, curve=curve, heartbeat_s=heartbeat_s)

    def _open(self) -> Link:
        kind = zmq.XPUB if self._publish else zmq.PUSH
        link = Link(self._context, kind, self.endpoint, bind=self._publish, send_hwm=self._hwm, curve=self._curve)
        self.endpoint = link.endpoint
        return link

    def _listen(self, link: Link) -> None:
        link.watch()
        if self._publish:
            while (parts := link.try_receive()) is not None:
                notice = bytes(parts[0])
                if notice.startswith(b"\x01"):
                    self._subscriptions.add(notice[1:])
                elif notice.startswith(b"\x00"):
                    self._subscriptions.discard(notice[1:])
        connected = bool(self._subscriptions) if self._publish else link.connected
        if connected != self._outbox.connected or link.trouble != self._outbox.trouble:
            self._outbox.set_connected(connected, link.trouble)

    def _beats(self) -> list[PublisherMessage]:
        now_ns = time.time_ns()
        starts: list[PublisherMessage] = [
            replace(known.start, t_ns=now_ns, nbytes=None, parts=()) for known in self._outbox.window.open_runs()
        ]
        return [*starts, *self._heartbeats()]
