"""What all messages have in common: how a table of keys becomes checks, a header, and an object.

A message class names its type and lists its keys (`Key`): what each is called on the wire and in Python, and what it
must be. The constructor runs those checks, so that a message object is valid or does not exist, whether it was received
or is being built. This module does not know any particular message, nor where messages come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple, Protocol, Self, TypeAlias

from . import checks
from .errors import MalformedError
from .headers import MAX_DAEMON_DEPTH, MAX_DAEMON_HEADER_BYTES, MAX_DEPTH, MAX_HEADER_BYTES
from .topics import Topic
from .vocabulary import VERSION

Buffer: TypeAlias = bytes | bytearray | memoryview


class BufferOwner(Protocol):
    """A zmq.Frame, without importing zmq."""

    @property
    def buffer(self) -> memoryview: ...


Part: TypeAlias = Buffer | BufferOwner


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a receiver takes from outside.

    Parameters
    ----------
    max_header_bytes : int
        Longest header, in bytes.
    max_depth : int
        Deepest nesting of a header; its own map is 1.
    max_frame_bytes : int
        Largest frame, in bytes of its pixels; also the largest payload part, apart from what an encoding may add to it.
    max_parts : int
        Most payload parts.
    """

    max_header_bytes: int = MAX_HEADER_BYTES
    max_depth: int = MAX_DEPTH
    max_frame_bytes: int = 256 * 1024 * 1024
    max_parts: int = 8

    @property
    def max_part_bytes(self) -> int:
        """Largest payload part: a PZF record may be longer than its pixels by its header and padding."""
        return self.max_frame_bytes + 64 * 1024


DEFAULT_LIMITS: Final = Limits()
"""What a daemon takes unless it is configured otherwise."""

DAEMON_LIMITS: Final = Limits(max_header_bytes=MAX_DAEMON_HEADER_BYTES, max_depth=MAX_DAEMON_DEPTH)
"""What publishers and viewers take from a daemon."""


def as_part(part: Any, what: str) -> bytes | memoryview:
    """Payload as bytes or as a flat view of bytes, not copied; raises MalformedError for what is neither."""
    if isinstance(part, bytes):
        return part
    try:
        view = part if isinstance(part, memoryview) else memoryview(getattr(part, "buffer", part))
    except TypeError:
        raise checks.refuse(what, "bytes", part) from None
    if view.nbytes == 0:
        return b""  # a view of nothing cannot be cast
    if not view.c_contiguous:
        raise checks.refuse(what, "contiguous bytes in C order", part)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def nbytes_of(part: Buffer) -> int:
    """Size of a payload part in bytes."""
    return part.nbytes if isinstance(part, memoryview) else len(part)


class Key(NamedTuple):
    """One row of a message's table.

    Attributes
    ----------
    key : str
        Its name on the wire.
    check : callable
        (value, name for errors) → the value in the form that the program uses; raises MalformedError.
    attribute : str
        Its name in Python where that is another one (with its unit).
    required : bool
        Whether a message without it is malformed.
    plain : callable, optional
        How the value is turned into what msgpack can carry, where it is not that already.
    default : Any
        What a message that leaves the key out means by it; then it is left out when written, too.
    """

    key: str
    check: checks.Check
    attribute: str = ""
    required: bool = False
    plain: Any = None
    default: Any = None

    @property
    def attr(self) -> str:
        """Its name in Python."""
        return self.attribute or self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What all messages have.

    Attributes
    ----------
    instrument, stream : str
        The names in the topic.
    extra : dict
        Keys that this version does not know, kept as they came.
    parts : tuple of bytes or memoryview
        The payload; empty also for a message of which only the header was read.
    raw_header : bytes or None
        The header exactly as it came; None for a message that was built here.
    """

    TYPE: ClassVar[str] = ""
    _KEYS: ClassVar[tuple[Key, ...]] = ()
    _KNOWN: ClassVar[frozenset[str]] = frozenset()

    instrument: str
    stream: str
    extra: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Buffer, ...] = field(default=(), repr=False)
    raw_header: bytes | None = field(default=None, init=False, compare=False, repr=False)

    def __init_subclass__(cls) -> None:
        cls._KNOWN = frozenset({"v", "type", *(row.key for row in cls._KEYS)})

    def __post_init__(self) -> None:
        put = object.__setattr__  # the class is frozen for everyone else
        put(self, "instrument", checks.name(self.instrument, f"{self.TYPE}: instrument"))
        put(self, "stream", checks.name(self.stream, f"{self.TYPE}: stream"))
        put(self, "parts", tuple([as_part(part, f"{self.TYPE}: payload") for part in self.parts]))
        for row in self._KEYS:
            value = getattr(self, row.attr)
            if value is not None:
                put(self, row.attr, row.check(value, f"{self.TYPE}: {row.key}"))
            elif row.required:
                raise MalformedError(f"{self.TYPE}: the key {row.key} is missing")
        known = self._KNOWN & checks.mapping(self.extra, f"{self.TYPE}: extra").keys()
        if known:
            raise MalformedError(f"{self.TYPE}: extra may not hold {', '.join(sorted(known))}: give it by its own name")
        self._check()

    def _check(self) -> None:
        """Rules between keys; raises MalformedError."""

    @property
    def topic(self) -> str:
        """`tc1/<instrument>/<stream>/<type>`."""
        return f"tc1/{self.instrument}/{self.stream}/{self.TYPE}"

    def header(self) -> dict[str, Any]:
        """The header as a dict of plain msgpack values; keys that would say nothing are left out."""
        header: dict[str, Any] = {"v": VERSION, "type": self.TYPE}
        for row in self._KEYS:
            value = getattr(self, row.attr)
            if value is not None and value != row.default:
                header[row.key] = value if row.plain is None else row.plain(value)
        header.update(self.extra)
        return header

    @classmethod
    def from_header(cls, topic: Topic, header: Mapping[str, Any], parts: Sequence[Buffer] = ()) -> Self:
        """A message from its unpacked header; raises MalformedError."""
        values: dict[str, Any] = {}
        for row in cls._KEYS:
            value = header.get(row.key)
            if value is not None:
                values[row.attr] = value
            elif row.required:
                raise MalformedError(f"{cls.TYPE}: the key {row.key} is missing")
        extra = {key: value for key, value in header.items() if key not in cls._KNOWN}
        return cls(instrument=topic.instrument, stream=topic.stream, extra=extra, parts=tuple(parts), **values)
