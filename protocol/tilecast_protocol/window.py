"""What a publisher still has to send, in which order, and what has become of it: a pure state machine.

Messages go in unnumbered; `head` gives the one that may go out now, numbered and encoded; `sent` says that it went;
`greeted` and `acknowledged` take in what the daemon answered and say what has thereby been settled. On the acknowledged
path a message is kept, as the very bytes that were sent, until the daemon has settled it, and goes out again after a
reconnect. It gets its `seq` only when it first goes out, so that a heartbeat, or an image that is repeated because the
daemon did not know its run, may pass what is still waiting. The `end` of a run waits until all its images are settled:
right behind them it would overtake those that are refused and come again, which would then be late.

Not known here: sockets, threads, clocks. Where several threads use one window, its owner holds a lock.

Examples
--------
>>> from tilecast_protocol.messages import Ack, Event, Welcome, new_boot
>>> boot = new_boot()
>>> window = SendWindow(acknowledged=True)
>>> window.put(Event(instrument="scope", stream="cam", src="cam", boot=boot, seq=0, t_ns=0, name="hello"), ticket=1)
>>> window.head() is None  # nothing goes out before the daemon's welcome
True
>>> window.greeted(Welcome(instrument="scope", stream="cam", credit=4, upto_seq=-1, max_frame_bytes=1 << 20,
...                        durability="fsync", state="ready"))
Settled(tickets=(), rejected=())
>>> window.head().seq
0
>>> window.sent()
Settled(tickets=(), rejected=())
>>> window.acknowledged(Ack(instrument="scope", stream="cam", upto_seq=0, credit=4, state="ready", free_bytes=1 << 30))
Settled(tickets=(1,), rejected=())
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .messages import Ack, Buffer, End, Image, PublisherMessage, Start, Welcome, encode
from .messages import Rejection as WireRejection

OWN: Final = 0
"""Ticket of what the publisher sends by itself (heartbeats, repeated starts): nobody waits for it."""

MAX_ATTEMPTS: Final = 3
"""How often a message is sent, in all, to a daemon that says it does not know the run."""

_REMEMBERED_REJECTIONS: Final = 4096


class Rejected(NamedTuple):
    """A message that the daemon refused.

    Attributes
    ----------
    reason : str
        The word on the wire (`run-conflict`, `disk-reserve`, …); `lost` for what the daemon settled several times
        without keeping it, and without saying why.
    message : str
        The daemon's sentence about it.
    type : str
        Type of the message; empty if it is not known any more.
    run : str or None
        Its run, where it had one.
    frame : int or None
        Its frame number, where it was an image.
    seq : int
        The number under which it was refused.
    ticket : int
        The ticket it was put in with.
    """

    reason: str
    message: str
    type: str = ""
    run: str | None = None
    frame: int | None = None
    seq: int = -1
    ticket: int = OWN

    def __str__(self) -> str:
        what = f"image {self.frame}" if self.frame is not None else self.type or f"message {self.seq}"
        return f"{what} was rejected ({self.reason}): {self.message}"


class Settled(NamedTuple):
    """What an answer has decided: tickets of what is safe or needs no keeping, and what was refused."""

    tickets: tuple[int, ...] = ()
    rejected: tuple[Rejected, ...] = ()


@dataclass(slots=True)
class Outgoing:
    """A message on its way. `parts` are the bytes that were sent, kept to be sent again."""

    message: PublisherMessage
    ticket: int
    attempts: int = 1
    seq: int = -1
    parts: list[Buffer] = field(default_factory=list)
    refused: bool = False

    @property
    def is_image(self) -> bool:
        """Whether it counts against the credit."""
        return isinstance(self.message, Image)

    @property
    def run(self) -> str | None:
        """The run it belongs to, if any."""
        run: str | None = getattr(self.message, "run", None)
        return run


@dataclass(slots=True)
class OpenRun:
    """A run whose `start` went out and whose `end` is not settled; `ended` once that went out."""

    start: Start
    start_seq: int
    n_sent: int = 0
    start_waiting: bool = False
    ended: bool = False


class SendWindow:
    """The messages of one publisher (`src` + `boot`) that are not settled.

    Parameters
    ----------
    acknowledged : bool
        True: messages are kept until the daemon settles them, and at most `credit` images are out at once. False
        (one-way sockets): a message is settled when the socket has taken it, and `credit` only bounds the queue.
    credit : int
        Images that may be unsettled; on the acknowledged path the daemon's word replaces it.

    Attributes
    ----------
    credit : int
        See above.
    next_seq : int
        The number of the next message that has none yet.
    """

    def __init__(self, *, acknowledged: bool, credit: int = 0) -> None:
        self.credit = credit
        self.next_seq = 0
        self._acknowledged = acknowledged
        self._open = not acknowledged
        # In the order in which they go out: numbered ones, our own, those to be sent anew, and the caller's.
        self._numbered: deque[Outgoing] = deque()
        self._own: deque[Outgoing] = deque()
        self._again: deque[Outgoing] = deque()
        self._waiting: deque[Outgoing] = deque()
        self._cursor = 0  # how many of the numbered ones are out on this connection
        self._images_out = 0  # how many of those are images
        self._last_out = -1  # highest number that was ever out
        self._n_images = 0
        self._runs: dict[str, OpenRun] = {}
        self._refused_seqs: deque[int] = deque(maxlen=_REMEMBERED_REJECTIONS)

    @property
    def n_images(self) -> int:
        """Images that are not settled."""
        return self._n_images

    @property
    def n_messages(self) -> int:
        """Messages that are not settled, images included."""
        return len(self._numbered) + len(self._own) + len(self._again) + len(self._waiting)

    @property
    def first_unsettled_seq(self) -> int:
        """The lowest number that may still come: everything before it is settled."""
        return self._numbered[0].seq if self._numbered else self.next_seq

    @property
    def has_own_waiting(self) -> bool:
        """Whether a message of `put_own` has not gone out yet."""
        return bool(self._own)

    def open_runs(self) -> list[OpenRun]:
        """The runs whose `start` went out and whose `end` did not."""
        return [known for known in self._runs.values() if not known.ended]

    def put(self, message: PublisherMessage, ticket: int) -> None:
        """Queue a message of the caller."""
        self._n_images += isinstance(message, Image)
        self._waiting.append(Outgoing(message, ticket))

    def put_own(self, messages: Iterable[PublisherMessage]) -> None:
        """Queue messages that pass all that have no number yet."""
        self._own.extend(Outgoing(message, OWN) for message in messages)

    def head(self) -> Outgoing | None:
        """The message that may go out now, or None: nothing to send, no credit, or no welcome yet.

        The same message is given until `sent` is called.
        """
        if not self._open:
            return None
        if self._cursor < len(self._numbered):
            item = self._numbered[self._cursor]
            return None if self._lacks_credit(item) else item
        for queue in (self._own, self._again, self._waiting):
            if queue:
                if self._lacks_credit(queue[0]) or self._is_early(queue[0]):
                    return None
                item = queue.popleft()
                self._number(item)
                self._numbered.append(item)
                return item
        return None

    def _lacks_credit(self, item: Outgoing) -> bool:
        return self._acknowledged and item.is_image and self._images_out >= self.credit

    def _is_early(self, item: Outgoing) -> bool:
        """Whether it ends a run of which images may still be refused and come again."""
        return isinstance(item.message, End) and any(
            out.is_image and not out.refused and out.run == item.run for out in self._numbered
        )

    def _number(self, item: Outgoing) -> None:
        item.seq = self.next_seq
        self.next_seq += 1
        item.message = message = item.message.numbered(item.seq)
        item.parts = encode(message)
        if isinstance(message, Start):
            known = self._runs.get(message.run)
            if known is None:
                self._runs[message.run] = OpenRun(message, item.seq)
            else:
                known.start_seq = item.seq
                known.start_waiting = False
        elif isinstance(message, Image) and message.run in self._runs:
            known = self._runs[message.run]
            known.n_sent = max(known.n_sent, message.frame + 1)
        elif isinstance(message, End) and message.run in self._runs:
            self._runs[message.run].ended = True

    def sent(self) -> Settled:
        """The socket has taken `head`."""
        item = self._numbered[self._cursor]
        self._last_out = max(self._last_out, item.seq)
        if not self._acknowledged:
            self._numbered.popleft()
            return self._settle([item])
        self._cursor += 1
        self._images_out += item.is_image
        return Settled()

    def disconnected(self) -> None:
        """Nothing goes out until the daemon has greeted us again."""
        self._open = False

    def greeted(self, welcome: Welcome) -> Settled:
        """Begin a connection: what the daemon has settled is done with, all the rest goes out again, in order.

        If the acknowledgement that refused an image was lost with the last connection, `upto_seq` covers it all the
        same; but then the daemon does not list it as received. Such an image goes out again under a new number, and so
        does a `start` of which the daemon knows nothing: if they are refused again, we hear why.
        """
        self.credit = welcome.credit
        items = self._pop_upto(welcome.upto_seq)
        received = {state.run: state.received for state in welcome.runs}
        lost = []
        for item in items:
            if not item.refused and _is_missing(item.message, received):
                item.refused = True
                if not self._send_anew(item, with_start=item.run not in received):
                    lost.append(_rejected(item, "lost", "the daemon has settled it and does not list it as received"))
        if not self._open:
            self._open = True
            self._cursor = 0
            self._images_out = 0
        return Settled(self._settle(items).tickets, tuple(lost))

    def acknowledged(self, ack: Ack) -> Settled:
        """Take in an acknowledgement: rejections first, because what they name is usually settled by the same one."""
        self.credit = ack.credit
        rejected = [found for found in map(self._refuse, ack.rejected) if found is not None]
        return Settled(self._settle(self._pop_upto(ack.upto_seq)).tickets, tuple(rejected))

    def _pop_upto(self, upto_seq: int) -> list[Outgoing]:
        done = []
        upto_seq = min(upto_seq, self._last_out)  # nothing that was never out can have been settled
        while self._numbered and self._numbered[0].seq <= upto_seq:
            item = self._numbered.popleft()
            if self._cursor:
                self._cursor -= 1
                self._images_out -= item.is_image
            done.append(item)
        return done

    def _settle(self, items: Sequence[Outgoing]) -> Settled:
        tickets = []
        for item in items:
            self._n_images -= item.is_image
            if item.refused:
                continue
            if isinstance(item.message, End):
                self._runs.pop(item.message.run, None)
            if item.ticket != OWN:
                tickets.append(item.ticket)
        return Settled(tuple(tickets))

    def _refuse(self, rejection: WireRejection) -> Rejected | None:
        """What becomes of a refused message: None if it is sent anew, or if this has been told before."""
        if rejection.seq in self._refused_seqs:
            return None
        self._refused_seqs.append(rejection.seq)
        first = self._numbered[0].seq if self._numbered else 0
        at = rejection.seq - first  # the numbered ones are numbered without holes
        if not 0 <= at < len(self._numbered):
            return Rejected(rejection.reason, rejection.message, seq=rejection.seq)
        item = self._numbered[at]
        # It stays where it is until it is covered by upto_seq: after a reconnect the daemon wants every number.
        item.refused = True
        known = self._runs.get(item.run or "")
        if isinstance(item.message, Start):
            if known is not None and known.start_seq == item.seq:
                del self._runs[item.message.run]
        elif rejection.reason == "unknown-run" and known is not None and self._send_anew(item, with_start=True):
            return None
        return _rejected(item, rejection.reason, rejection.message)

    def _send_anew(self, item: Outgoing, *, with_start: bool) -> bool:
        """Queue a message under a new number, after its run's `start` unless a later one is out or waiting already.

        Returns whether it was: what has been sent too often is not.
        """
        if item.attempts >= MAX_ATTEMPTS:
            return False
        known = self._runs.get(item.run or "")
        if isinstance(item.message, Start):
            if known is not None:
                known.start_waiting = True
        elif with_start and known is not None and known.start_seq <= item.seq and not known.start_waiting:
            known.start_waiting = True
            self._again.append(Outgoing(known.start, OWN))
        self._n_images += item.is_image
        self._again.append(Outgoing(item.message, item.ticket, item.attempts + 1))
        return True


def _rejected(item: Outgoing, reason: str, message: str) -> Rejected:
    frame = item.message.frame if isinstance(item.message, Image) else None
    return Rejected(reason, message, item.message.TYPE, item.run, frame, item.seq, item.ticket)


def _is_missing(message: PublisherMessage, received: Mapping[str, Sequence[tuple[int, int]]]) -> bool:
    """Whether the daemon lacks an image, or knows nothing of a run, although it has settled the message."""
    if isinstance(message, Image):
        return not any(first <= message.frame <= last for first, last in received.get(message.run, ()))
    return isinstance(message, Start) and message.run not in received
