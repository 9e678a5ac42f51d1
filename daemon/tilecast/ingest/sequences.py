"""Numbers that should come without holes: which are missing, and up to where everything is settled.

Two small accounts on numbers, apart from all that they number. `GapWatch` says which numbers of a row (frames of a run,
messages of a publisher on a one-way socket) have been passed over for so long that they must be called missing, and
which of those came after all. `AckTracker` says for each publisher on the acknowledged path up to which `seq` all its
messages are *settled*: durable, or known not to be kept. Neither knows sockets, clocks or files: times and positions in
journals come in as numbers.

>>> watch = GapWatch(tolerance_ns=500)
>>> [watch.add(frame, now_ns=0) for frame in (0, 1, 4)]
[True, True, True]
>>> watch.take_news(now_ns=100), watch.take_news(now_ns=600)
(News(missing=[], healed=[]), News(missing=[(2, 3)], healed=[]))
>>> watch.add(3, now_ns=700), watch.take_news(now_ns=700)
(True, News(missing=[], healed=[(3, 3)]))

>>> acks = AckTracker()
>>> acks.journalled("cam", "boot-1", 0, [("run-1", 4096)])
>>> acks.upto_seq("cam", "boot-1")
-1
>>> acks.durable("run-1", 4096), acks.upto_seq("cam", "boot-1")
({('cam', 'boot-1')}, 0)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from tilecast_protocol.messages import Rejection
from tilecast_protocol.ranges import RangeSet

Ranges = list[tuple[int, int]]
"""Ascending (first, last) pairs, both inclusive."""

Source = tuple[str, str]
"""(src, boot): one publisher process, which counts its messages by itself."""

MAX_YOUNG_GAPS: Final = 1024
MAX_SOURCES: Final = 1024
MAX_TOLD_REJECTIONS: Final = 1024


class News(NamedTuple):
    """What has become known since it was last asked for.

    Attributes
    ----------
    missing : list of (first, last)
        Numbers that must be called missing now.
    healed : list of (first, last)
        Numbers that were called missing, and have come.
    """

    missing: Ranges
    healed: Ranges


class GapWatch:
    """Which numbers of a row have been passed over, and for how long.

    Parameters
    ----------
    tolerance_ns : int
        How long a number may be overtaken by higher ones before it counts as missing.
    first : int
        The number that comes first: those below it are not missed.

    Attributes
    ----------
    seen : RangeSet
        The numbers that came.
    """

    __slots__ = ("_called_missing", "_first", "_healed", "_next", "_tolerance_ns", "_young", "seen")

    def __init__(self, tolerance_ns: int, first: int = 0) -> None:
        self.seen = RangeSet()
        self._tolerance_ns = tolerance_ns
        self._first = self._next = first
        # (first, last, when noticed) of what is not called missing yet. Not cut up when numbers come late: what is
        # missing of it is asked of `seen` when its time has come.
        self._young: deque[tuple[int, int, int]] = deque()
        self._called_missing = RangeSet()
        self._healed = RangeSet()

    @property
    def next(self) -> int:
        """One more than the highest number that came or is known to have been sent."""
        return self._next

    def add(self, number: int, now_ns: int) -> bool:
        """A number came; False if it had come before."""
        if not self.seen.add(number):
            return False
        if number >= self._next:
            self.expect(number, now_ns)
            self._next = number + 1
        elif number in self._called_missing:
            self._healed.add(number)
        return True

    def expect(self, stop: int, now_ns: int) -> None:
        """All numbers below `stop` have been sent: those that have not come are overdue from now on."""
        if stop <= self._next:
            return
        if len(self._young) < MAX_YOUNG_GAPS:
            self._young.append((self._next, stop - 1, now_ns))
        else:
            # A bound on memory: what is noticed now shares the time of the last, and is called missing a little early.
            first, _, noticed_ns = self._young[-1]
            self._young[-1] = (first, stop - 1, noticed_ns)
        self._next = stop

    def missing(self) -> Ranges:
        """All numbers that were passed over and have not come, however short a time ago."""
        return self.seen.missing(self._next, self._first)

    def call_all(self) -> Ranges:
        """Everything that is missing now, however short a time ago: from here on it counts as said."""
        self._young.clear()
        self._healed = RangeSet()
        missing = self.missing()
        for first, last in missing:
            self._called_missing.add_range(first, last)
        return missing

    def has_news(self, now_ns: int) -> bool:
        """Whether `take_news` may have something to say."""
        return bool(self._healed) or (bool(self._young) and self._young[0][2] + self._tolerance_ns <= now_ns)

    def take_news(self, now_ns: int) -> News:
        """What is called missing now and was not before, and what has healed; each is said once."""
        missing = RangeSet()
        while self._young and self._young[0][2] + self._tolerance_ns <= now_ns:
            first, last, _ = self._young.popleft()
            for hole in self.seen.missing(last + 1, first):
                missing.add_range(*hole)
                self._called_missing.add_range(*hole)
        healed, self._healed = self._healed.ranges(), RangeSet()
        return News(missing.ranges(), healed)


class _AckState:
    """One publisher: what is settled, what still waits for the disk, what it must be told."""

    __slots__ = ("connection", "fresh", "last", "rejected", "settled", "told", "unsettled", "upto")

    def __init__(self) -> None:
        self.settled = RangeSet()
        self.upto = -1
        self.unsettled: dict[int, int] = {}  # seq → in how many journals it is not durable yet
        self.connection: object = None
        self.fresh = False
        self.last = -1
        self.rejected: list[Rejection] = []
        self.told: deque[Rejection] = deque(maxlen=MAX_TOLD_REJECTIONS)

    def settle(self, seq: int) -> bool:
        """True if `upto` has moved."""
        self.settled.add(seq)
        if seq != self.upto + 1:
            return False
        self.upto = seq if self.settled.last == seq else self._end_of_first_range()
        return True

    def settle_below(self, seq: int) -> None:
        """Everything below `seq` is settled, whether it came or not."""
        if seq > self.upto + 1:
            self.settled.add_range(0, seq - 1)
            self.upto = self._end_of_first_range()

    def _end_of_first_range(self) -> int:
        stop = (self.settled.last or 0) + 1
        holes = self.settled.missing(stop, self.upto + 1)
        return (holes[0][0] if holes else stop) - 1


class AckTracker:
    """Up to where the messages of every acknowledged publisher are settled.

    For each message that comes, the thread that owns the socket says `received`, then, once it knows, exactly one of
    `journalled`, `settled` and `rejected`; `durable` whenever a journal has been synced. A message in several journals
    is settled when it is durable in all of them. A message that repeats one which is still on its way to the disk is no
    more durable than that: it is said to be `journalled` at what has been written of its run.

    A hole is never guessed away: `upto_seq` stays below a number that has not come, because a publisher that connects
    again sends what its old connection swallowed, and what it sent before it noticed may come first. Only two things
    move it across numbers that never came. The first message on a connection after its `hello` shows where the
    publisher's window begins, and so that it was told of everything below (a daemon that starts again may not know that
    it did). And a message that could not be read at all lies, on an ordered connection, behind the last one that could.
    """

    def __init__(self) -> None:
        self._sources: dict[Source, _AckState] = {}
        self._waiting: dict[str, deque[tuple[int, Source, int]]] = {}  # run → (lsn, who, seq) in the order of lsn
        self._durable: dict[str, int] = {}

    def hello(self, src: str, boot: str, connection: object = None) -> int:
        """A publisher has connected; return `upto_seq` for its `welcome`.

        `connection` is whatever tells its connections apart. What it was told of rejections may have got lost with the
        old connection: the latest of them are said again.
        """
        state = self._state((src, boot))
        state.connection, state.fresh, state.last = connection, True, state.upto
        state.rejected = [*state.told, *state.rejected]
        state.told.clear()
        return state.upto

    def received(self, src: str, boot: str, seq: int, connection: object = None) -> None:
        """A message came and could be read."""
        state = self._state((src, boot))
        if state.connection is None:
            state.connection = connection
        if connection != state.connection:
            return  # left over from an older connection: its place in the order says nothing
        if state.fresh:
            state.fresh = False
            state.settle_below(seq)
        state.last = seq

    def unreadable(self, src: str, boot: str, reason: str, message: str, connection: object = None) -> int | None:
        """Something came on a connection of this publisher that names no `seq`: refuse it under the one it must have.

        Returns that `seq`, or None where it cannot be known: on another connection than the one that said `hello`.
        """
        state = self._state((src, boot))
        if connection != state.connection:
            return None
        state.fresh = False
        state.last += 1
        self.rejected(src, boot, state.last, reason, message)
        return state.last

    def journalled(self, src: str, boot: str, seq: int, positions: Iterable[tuple[str, int]]) -> None:
        """A message lies in journals: (run, lsn) each. Settled when all of them are durable up to there."""
        source = (src, boot)
        state = self._state(source)
        if seq in state.settled or seq in state.unsettled:
            return
        open_positions = [(run, lsn) for run, lsn in positions if self._durable.get(run, -1) < lsn]
        if not open_positions:
            state.settle(seq)
            return
        state.unsettled[seq] = len(open_positions)
        for run, lsn in open_positions:
            self._waiting.setdefault(run, deque()).append((lsn, source, seq))

    def settled(self, src: str, boot: str, seq: int) -> None:
        """A message of a kind that is not kept, or that nothing needs."""
        state = self._state((src, boot))
        if seq not in state.unsettled:
            state.settle(seq)

    def rejected(self, src: str, boot: str, seq: int, reason: str, message: str) -> None:
        """A message was refused; its publisher is told."""
        state = self._state((src, boot))
        state.rejected.append(Rejection(seq, reason, message))
        state.settle(seq)

    def durable(self, run: str, lsn: int) -> set[Source]:
        """The journal of a run is durable up to `lsn`; return the publishers whose `upto_seq` has moved."""
        self._durable[run] = max(lsn, self._durable.get(run, -1))
        moved = set()
        waiting = self._waiting.get(run, deque())
        while waiting and waiting[0][0] <= lsn:
            _, source, seq = waiting.popleft()
            state = self._state(source)
            if seq not in state.unsettled:
                continue  # it was lost from another journal, and refused
            state.unsettled[seq] -= 1
            if not state.unsettled[seq]:
                del state.unsettled[seq]
                if state.settle(seq):
                    moved.add(source)
        return moved

    def recovered(self, src: str, boot: str, seq: int, acked_seq: int) -> None:
        """A record of a journal that is durable: its own `seq`, and what was settled when it was appended."""
        state = self._state((src, boot))
        state.settle_below(acked_seq + 1)
        state.settle(seq)

    def lose_run(self, run: str, reason: str, message: str) -> None:
        """The journal of a run could not be synced, and has been read again: what was not found in it is refused."""
        for _, (src, boot), seq in self._waiting.pop(run, ()):
            state = self._state((src, boot))
            if state.unsettled.pop(seq, None) is not None and seq not in state.settled:
                self.rejected(src, boot, seq, reason, message)
        self._durable.pop(run, None)

    def close_run(self, run: str) -> None:
        """The journal of a run was closed, synced: no more will be said of it."""
        waiting = self._waiting.get(run)
        if waiting:
            self.durable(run, waiting[-1][0])
        self._waiting.pop(run, None)
        self._durable.pop(run, None)

    def upto_seq(self, src: str, boot: str) -> int:
        """Every message up to and including this one is settled; −1 if not even the first is."""
        return self._state((src, boot)).upto

    def n_unsettled(self, src: str, boot: str) -> int:
        """How many messages wait for the disk."""
        return len(self._state((src, boot)).unsettled)

    def take_rejected(self, src: str, boot: str) -> list[Rejection]:
        """The refusals that the next `ack` must carry; each is given once, and again after a `hello`."""
        state = self._state((src, boot))
        taken, state.rejected = state.rejected, []
        state.told.extend(taken)
        return taken

    def _state(self, source: Source) -> _AckState:
        state = self._sources.pop(source, None) or _AckState()
        self._sources[source] = state  # the one heard last lies last
        if len(self._sources) > MAX_SOURCES:
            oldest = next(key for key, old in self._sources.items() if old is state or not old.unsettled)
            if oldest != source:
                del self._sources[oldest]
        return state
