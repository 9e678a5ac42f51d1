"""The last stage messages of every instrument, so that a run that starts now can be joined from its first frame on.

A stage is read all the time, whether a run is open or not. The messages of the last `join_max_gap_ms`, of each stage
stream by its own times, and always its latest, are kept here; a run's journal begins with them. It also knows which
stage streams an instrument has, which decides whether a `start` that names none is clear.

Not known here: runs, joins, clocks.
"""

from __future__ import annotations

from typing import Final

from tilecast_protocol.messages import Stage

MAX_STREAMS: Final = 256
"""Stage streams that are remembered; those silent for longest are forgotten."""
MAX_MESSAGES: Final = 8192
"""Messages kept of one stream, whatever their times say."""


class _Stream:
    __slots__ = ("heard_ns", "latest_t_ns", "messages", "oldest_t_ns", "publisher")

    def __init__(self) -> None:
        self.messages: dict[tuple[str, str, int], tuple[int, Stage]] = {}  # by (src, boot, seq), in the order they came
        self.latest_t_ns = -1
        self.oldest_t_ns = -1  # what is older has served its time, though it may still lie behind what has not
        self.heard_ns = 0
        self.publisher = ("", "")


class StageHistory:
    """The last stage messages of every instrument.

    Parameters
    ----------
    window_ns : int
        How far back they are kept, from the latest of each stream.
    """

    def __init__(self, window_ns: int) -> None:
        self._window_ns = window_ns
        self._streams: dict[tuple[str, str], _Stream] = {}
        self._count = 0

    def add(self, message: Stage, now_ns: int, *, keep_all: bool = False) -> None:
        """Remember a message; with `keep_all`, forget no other for its age (frames wait that may need it)."""
        key = (message.instrument, message.stream)
        stream = self._streams.pop(key, None) or _Stream()
        self._streams[key] = stream  # the one heard last lies last
        if len(self._streams) > MAX_STREAMS:
            del self._streams[next(iter(self._streams))]
        publisher = message.src, message.boot
        if publisher != stream.publisher and message.t_ns < stream.oldest_t_ns:
            # Another program goes on with this stream, at an earlier time: a replay, or a clock that was set. What came
            # before belongs to another time and would make this look old.
            stream.messages.clear()
            stream.latest_t_ns = stream.oldest_t_ns = -1
        stream.publisher = publisher
        self._count += 1
        stream.messages[message.src, message.boot, message.seq] = (self._count, message)
        stream.latest_t_ns = max(stream.latest_t_ns, message.t_ns)
        stream.heard_ns = max(stream.heard_ns, now_ns)
        if not keep_all:
            stream.oldest_t_ns = stream.latest_t_ns - self._window_ns
        while len(stream.messages) > 1:
            first = next(iter(stream.messages))
            if len(stream.messages) <= MAX_MESSAGES and stream.messages[first][1].t_ns >= stream.oldest_t_ns:
                break
            del stream.messages[first]

    def recall(self, message: Stage, heard_ns: int) -> None:
        """Remember a message of a journal that is read again after a restart, unless a later one is known already."""
        stream = self._streams.get((message.instrument, message.stream))
        if stream is None or message.t_ns >= stream.oldest_t_ns:
            self.add(message, heard_ns)

    def __contains__(self, message: object) -> bool:
        if not isinstance(message, Stage):
            return False
        stream = self._streams.get((message.instrument, message.stream))
        return stream is not None and (message.src, message.boot, message.seq) in stream.messages

    def recent(self, instrument: str) -> list[Stage]:
        """All that is kept of an instrument, in the order in which it came."""
        kept = [
            entry
            for key, stream in self._streams.items()
            if key[0] == instrument
            for entry in stream.messages.values()
            if entry[1].t_ns >= stream.oldest_t_ns
        ]
        return [message for _, message in sorted(kept, key=lambda entry: entry[0])]

    def latest(self) -> list[Stage]:
        """The latest message of every stage stream that is remembered, the stream heard last at the end."""
        return [
            max((message for _, message in stream.messages.values()), key=lambda message: message.t_ns)
            for stream in self._streams.values()
            if stream.messages
        ]

    def streams(self, instrument: str, now_ns: int, silent_ns: int) -> list[str]:
        """The stage streams of an instrument: those heard within `silent_ns`, or all that are remembered if none."""
        known = {key[1]: stream.heard_ns for key, stream in self._streams.items() if key[0] == instrument}
        live = [name for name, heard_ns in known.items() if now_ns - heard_ns <= silent_ns]
        return sorted(live or known)
