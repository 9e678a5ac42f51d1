"""Messages that came before the start of their run, kept for a while on sockets that cannot be answered.

On the acknowledged path such a message is refused and its publisher tells of the run first. A one-way publisher cannot
be told; it repeats `start` every second, so what comes before it, after a restart in mid-scan, is worth keeping that
long. What cannot be kept, or waits in vain, is counted as lost, by run and frame: the oldest first, because it will be
the last second before the `start` that can be used.

Not known here: which runs exist, what a message is for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tilecast_protocol.messages import Image
from tilecast_protocol.ranges import RangeSet

from .verdicts import IngestPath, Input

MAX_RUNS: Final = 256
"""Runs that never started of which losses are remembered."""
_OVERHEAD_BYTES: Final = 2048
"""What a message costs in memory beside its header and payload, roughly."""


@dataclass(slots=True)
class Early:
    """What is known of a run that has not started.

    Attributes
    ----------
    instrument, stream : str
    lost_frames : RangeSet
        Images that were held in vain.
    n_refused : int
        Messages refused `unknown-run` on the acknowledged path.
    n_lost_said : int
        Of the lost images, those that have been spoken of.
    """

    instrument: str
    stream: str
    lost_frames: RangeSet = field(default_factory=RangeSet)
    n_refused: int = 0
    n_lost_said: int = 0


class _Held(NamedTuple):
    message: Input
    path: IngestPath
    held_ns: int
    nbytes: int
    run: str


class HeldMessages:
    """A store of early messages, bounded in bytes and in time.

    Parameters
    ----------
    max_bytes : int
        Of headers and payloads, with an allowance for each message.
    keep_ns : int
        How long one is kept.
    """

    def __init__(self, max_bytes: int, keep_ns: int) -> None:
        self.nbytes = 0
        self.n_lost = 0
        self._max_bytes = max_bytes
        self._keep_ns = keep_ns
        self._held: dict[int, _Held] = {}  # in the order in which they came
        self._by_run: dict[str, deque[int]] = {}
        self._instruments: dict[str, int] = {}
        self._count = 0
        self._early: dict[str, Early] = {}

    def __len__(self) -> int:
        return len(self._held)

    def waits_for(self, instrument: str) -> bool:
        """Whether a message of this instrument is held."""
        return instrument in self._instruments

    def hold(self, message: Input, run: str, path: IngestPath, now_ns: int) -> None:
        """Keep a message of a run; older ones give way, and one that is too large for the budget is lost at once."""
        size = _OVERHEAD_BYTES + len(message.raw_header or b"") + sum(memoryview(part).nbytes for part in message.parts)
        held = _Held(message, path, now_ns, size, run)
        self._early_of(message, run)
        if size > self._max_bytes:
            self._lose(held)
            return
        while self.nbytes + size > self._max_bytes:
            self._lose(self._take(next(iter(self._held))))
        self._count += 1
        self._held[self._count] = held
        self._by_run.setdefault(run, deque()).append(self._count)
        self._instruments[message.instrument] = self._instruments.get(message.instrument, 0) + 1
        self.nbytes += size

    def refused(self, message: Input, run: str) -> None:
        """A message of a run that has not started was refused, because its publisher can be told."""
        self._early_of(message, run).n_refused += 1

    def release(self, run: str) -> tuple[tuple[tuple[Input, IngestPath], ...], Early | None]:
        """The run has started: its messages in the order in which they came, and what went before; both are let go."""
        taken = [self._take(number) for number in list(self._by_run.get(run, ()))]
        return tuple((held.message, held.path) for held in taken), self._early.pop(run, None)

    def latest_t_ns(self, run: str) -> int:
        """When the last of a run's images that are held was exposed; -1 if none is."""
        messages = [self._held[number].message for number in self._by_run.get(run, ())]
        return max((message.t_mid_ns for message in messages if isinstance(message, Image)), default=-1)

    def expire(self, now_ns: int) -> None:
        """Count as lost what has waited for too long."""
        while self._held:
            number = next(iter(self._held))
            if self._held[number].held_ns + self._keep_ns > now_ns:
                return
            self._lose(self._take(number))

    def lose_all(self) -> None:
        """Count as lost everything that waits."""
        while self._held:
            self._lose(self._take(next(iter(self._held))))

    def take_news(self) -> list[tuple[str, Early]]:
        """The runs of which images have been lost since this was last asked."""
        news = []
        for run, early in self._early.items():
            if len(early.lost_frames) > early.n_lost_said:
                early.n_lost_said = len(early.lost_frames)
                news.append((run, early))
        return news

    def _take(self, number: int) -> _Held:
        held = self._held.pop(number)
        numbers = self._by_run[held.run]
        numbers.remove(number)  # nearly always the first
        if not numbers:
            del self._by_run[held.run]
        instrument = held.message.instrument
        self._instruments[instrument] -= 1
        if not self._instruments[instrument]:
            del self._instruments[instrument]
        self.nbytes -= held.nbytes
        return held

    def _lose(self, held: _Held) -> None:
        self.n_lost += 1
        if isinstance(held.message, Image):
            self._early_of(held.message, held.run).lost_frames.add(held.message.frame)

    def _early_of(self, message: Input, run: str) -> Early:
        early = self._early.pop(run, None) or Early(message.instrument, message.stream)
        self._early[run] = early  # the one heard last lies last
        if len(self._early) > MAX_RUNS:
            del self._early[next(iter(self._early))]
        return early
