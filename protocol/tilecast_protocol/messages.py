"""Every message of the wire protocol: from bytes, to bytes, checked in one place.

A message object is valid or it does not exist: its constructor runs the same checks for a message that came over a
socket as for one that a program builds. The classes are in `publisher_messages` and `daemon_messages`, with all that
each key must be in one table per class; they are used from here. `protocol/README.md` is the contract,
`protocol/vectors` its golden messages.

Not known here: sockets, clocks, which runs are open, what becomes of a message.

Examples
--------
>>> message = Image(instrument="scope", stream="cam", src="cam", boot=new_boot(), seq=1, t_ns=1_700_000_000_000_000_000,
...                 run="01234567-89ab-4cde-8f01-23456789abcd", frame=0, codec="raw", nbytes=4, parts=(bytes(4),))
>>> message.topic
'tc1/scope/cam/image'
>>> parse(encode(message)) == message
True
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from . import checks
from .daemon_messages import Ack, DaemonHeartbeat, DaemonMessage, Rejection, RunNotice, RunRev, RunState, Tiles, Welcome
from .errors import MalformedError
from .headers import MAX_DAEMON_DEPTH, MAX_DAEMON_HEADER_BYTES, pack_header, salvage, unpack_header
from .message_base import DAEMON_LIMITS, DEFAULT_LIMITS, Buffer, Limits, Message, Part, as_part, nbytes_of
from .publisher_messages import (
    End,
    Event,
    Heartbeat,
    Hello,
    Image,
    PublisherMessage,
    Stage,
    Start,
    check_payload,
    crc32,
    same_start,
)
from .topics import (
    DAEMON_STREAM,
    Topic,
    daemon_topic,
    make_topic,
    parse_topic,
    run_topic,
    subscription,
    tiles_topic,
)
from .vocabulary import (
    BLEND_MODES,
    CODECS,
    DTYPES,
    DURABILITIES,
    END_REASONS,
    ITEMSIZE,
    MAX_NOTIFIED_TILES,
    NOTICE_KINDS,
    POSITION_SOURCES,
    REJECT_REASONS,
    STATUS_GOOD,
    STATUS_INCOMPLETE,
    STATUS_REPEATED,
    STATUS_SATURATED,
    VERSION,
)

__all__ = [
    "BLEND_MODES",
    "CODECS",
    "DAEMON_LIMITS",
    "DAEMON_STREAM",
    "DEFAULT_LIMITS",
    "DTYPES",
    "DURABILITIES",
    "END_REASONS",
    "ITEMSIZE",
    "MAX_NOTIFIED_TILES",
    "NOTICE_KINDS",
    "POSITION_SOURCES",
    "REJECT_REASONS",
    "STATUS_GOOD",
    "STATUS_INCOMPLETE",
    "STATUS_REPEATED",
    "STATUS_SATURATED",
    "VERSION",
    "Ack",
    "Buffer",
    "DaemonHeartbeat",
    "DaemonMessage",
    "End",
    "Event",
    "FromDaemon",
    "Heartbeat",
    "Hello",
    "Image",
    "Limits",
    "Message",
    "Part",
    "PublisherMessage",
    "Rejection",
    "RunNotice",
    "RunRev",
    "RunState",
    "Stage",
    "Start",
    "Tiles",
    "ToDaemon",
    "Topic",
    "Welcome",
    "check_payload",
    "crc32",
    "daemon_topic",
    "encode",
    "make_topic",
    "new_boot",
    "new_run",
    "pack_header",
    "parse",
    "parse_from_daemon",
    "parse_header",
    "parse_topic",
    "run_topic",
    "same_start",
    "subscription",
    "tiles_topic",
    "unpack_header",
]

ToDaemon: TypeAlias = Start | Image | Stage | Event | End | Heartbeat | Hello
"""What a daemon receives."""

FromDaemon: TypeAlias = Welcome | Ack | Tiles | RunNotice | DaemonHeartbeat
"""What publishers and viewers receive."""

_TO_DAEMON: Final[Mapping[str, type[ToDaemon]]] = {
    cls.TYPE: cls for cls in (Start, Image, Stage, Event, End, Heartbeat, Hello)
}
_FROM_DAEMON: Final[Mapping[str, type[FromDaemon]]] = {
    cls.TYPE: cls for cls in (Welcome, Ack, Tiles, RunNotice, DaemonHeartbeat)
}
_IDENTITY: Final[Mapping[str, checks.Check]] = {"src": checks.label, "boot": checks.uuid, "seq": checks.unsigned}


def new_boot() -> str:
    """A new `boot`: one for each publisher process."""
    return str(uuid.uuid4())


def new_run() -> str:
    """A new `run`."""
    return str(uuid.uuid4())


def _identify(error: MalformedError, topic: str | None, header: memoryview | None) -> None:
    """Write on the error what can still be read of who sent the message, so that the sender can be answered."""
    error.topic = topic
    if header is None:
        return
    found = salvage(header, frozenset(_IDENTITY))
    for key, check in _IDENTITY.items():
        try:
            setattr(error, key, check(found.get(key), key))
        except MalformedError:
            setattr(error, key, None)


def _check_kind(topic: Topic, header: Mapping[str, Any], classes: Mapping[str, type[Any]]) -> type[Any]:
    """The class of a message by its topic and header."""
    version = header.get("v")
    if type(version) is not int or version != VERSION:
        raise checks.refuse("v", f"{VERSION}, the version of the protocol spoken here", version)
    cls = classes.get(topic.type)
    if cls is None:
        raise MalformedError(f"no message of type {topic.type} is received here; known: {', '.join(classes)}")
    if header.get("type") != topic.type:
        raise checks.refuse("type", f"{topic.type}, as in the topic", header.get("type"))
    return cls


def _check_sizes(payload: Sequence[bytes | memoryview], limits: Limits) -> None:
    if len(payload) > limits.max_parts:
        raise MalformedError(f"{len(payload)} payload parts came; at most {limits.max_parts} are allowed")
    for number, part in enumerate(payload):
        if nbytes_of(part) > limits.max_part_bytes:
            raise MalformedError(
                f"payload part {number} has {nbytes_of(part)} bytes; a frame may have {limits.max_frame_bytes}",
                reason="too-large",
            )


def _parse(
    parts: Sequence[Part], classes: Mapping[str, type[Any]], limits: Limits, *, header_only: bool = False
) -> Any:
    topic_text: str | None = None
    header_bytes: memoryview | None = None
    try:
        if len(parts) < 2:
            raise MalformedError(f"a message has a topic and a header; {len(parts)} parts came")
        header_bytes = memoryview(as_part(parts[1], "header"))
        topic = parse_topic(as_part(parts[0], "topic"))
        topic_text = make_topic(*topic)
        raw_header = bytes(header_bytes[: limits.max_header_bytes + 1])  # one more than allowed is refused below
        header = unpack_header(raw_header, max_bytes=limits.max_header_bytes, max_depth=limits.max_depth)
        cls = _check_kind(topic, header, classes)
        payload = [as_part(part, "payload") for part in parts[2:]]
        _check_sizes(payload, limits)
        message = cls.from_header(topic, header, payload)
        if isinstance(message, PublisherMessage) and not header_only:
            message.check_complete()
        if isinstance(message, Start) and message.frame_nbytes > limits.max_frame_bytes:
            raise MalformedError(
                f"start: a frame of {message.shape[0]} × {message.shape[1]} {message.dtype} has {message.frame_nbytes} "
                f"bytes; at most {limits.max_frame_bytes} are allowed",
                reason="too-large",
            )
    except MalformedError as error:
        _identify(error, topic_text, header_bytes)
        raise
    object.__setattr__(message, "raw_header", raw_header)
    return message


def parse(parts: Sequence[Part], limits: Limits = DEFAULT_LIMITS) -> ToDaemon:
    """A message that came to the daemon (or was recorded), checked in full except for its pixels.

    Parameters
    ----------
    parts : sequence of bytes, memoryview or zmq.Frame
        Topic, header, payload. Payload is kept as views, never copied.
    limits : Limits
        What is taken at all; sizes are looked at before anything is built.

    Raises
    ------
    MalformedError
        `reason` is the word for the wire; `topic`, `src`, `boot`, `seq` are set as far as they could still be read.
    """
    message: ToDaemon = _parse(parts, _TO_DAEMON, limits)
    return message


def parse_header(topic: Part | str, header: Part, limits: Limits = DEFAULT_LIMITS) -> ToDaemon:
    """A message from its topic and header alone, as a journal gives them: `parts` is empty, whatever `nbytes` says.

    Raises
    ------
    MalformedError
        As `parse`.
    """
    first = topic.encode("ascii", "backslashreplace") if isinstance(topic, str) else topic
    message: ToDaemon = _parse((first, header), _TO_DAEMON, limits, header_only=True)
    return message


def parse_from_daemon(parts: Sequence[Part], limits: Limits = DAEMON_LIMITS) -> FromDaemon:
    """A message that came from a daemon: welcome, ack, tiles, run, or its heartbeat. As `parse` otherwise."""
    message: FromDaemon = _parse(parts, _FROM_DAEMON, limits)
    return message


def encode(message: Message) -> list[Buffer]:
    """Topic, header and payload, ready for `send_multipart(…, copy=False)`.

    The header of a message that was parsed is sent as it came, byte for byte.

    Raises
    ------
    MalformedError
        `user`, `extra` or `detail` hold something that msgpack cannot carry, or the header passes a limit.
    """
    header = message.raw_header
    if header is None:
        if isinstance(message, DaemonMessage):
            header = pack_header(message.header(), max_bytes=MAX_DAEMON_HEADER_BYTES, max_depth=MAX_DAEMON_DEPTH)
        else:
            header = pack_header(message.header())
    return [message.topic.encode("ascii"), header, *message.parts]
