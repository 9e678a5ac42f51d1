"""Topics: `tc1/<instrument>/<stream>/<type>`, made and read in one place.

Examples
--------
>>> parse_topic(b"tc1/scope/cam/image")
Topic(instrument='scope', stream='cam', type='image')
>>> subscription("scope")
'tc1/scope/'
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from . import checks
from .errors import MalformedError

PREFIX: Final = "tc1"
"""First part of every topic of this version of the protocol."""

DAEMON_STREAM: Final = "daemon"
"""The reserved stream on which the daemon speaks of itself."""

MAX_TOPIC_BYTES: Final = 256

_TOPIC: Final = re.compile(r"tc1/([^/]*)/([^/]*)/([a-z0-9-]{1,32})", re.ASCII)


class Topic(NamedTuple):
    """The three names in a topic."""

    instrument: str
    stream: str
    type: str


def parse_topic(topic: bytes | memoryview | str) -> Topic:
    """The names in a topic.

    Raises
    ------
    MalformedError
        Not ASCII, another version, a name that does not match the pattern.
    """
    if len(topic) > MAX_TOPIC_BYTES:
        raise MalformedError(f"the topic has {len(topic)} bytes; at most {MAX_TOPIC_BYTES} are allowed")
    text = topic if isinstance(topic, str) else bytes(topic).decode("ascii", "backslashreplace")
    match = _TOPIC.fullmatch(text)
    if match is None:
        raise MalformedError(f"the topic must be tc1/<instrument>/<stream>/<type>; got {checks.show(text)}")
    instrument, stream, kind = match.groups()
    return Topic(checks.name(instrument, "the topic's instrument"), checks.name(stream, "the topic's stream"), kind)


def make_topic(instrument: str, stream: str, kind: str) -> str:
    """The topic of a message of type `kind`; raises MalformedError for names that do not match the pattern."""
    return "/".join((PREFIX, checks.name(instrument, "instrument"), checks.name(stream, "stream"), kind))


def subscription(instrument: str | None = None, stream: str | None = None) -> str:
    """The prefix that subscribes to everything, to one instrument, or to one stream of it."""
    if instrument is None:
        if stream is not None:
            raise ValueError(f"a subscription to the stream {stream!r} needs its instrument")
        return f"{PREFIX}/"
    if stream is None:
        return f"{PREFIX}/{checks.name(instrument, 'instrument')}/"
    return make_topic(instrument, stream, "")


def tiles_topic(instrument: str, stream: str) -> str:
    """Topic of the notifications of commits."""
    return make_topic(instrument, stream, "tiles")


def run_topic(instrument: str, stream: str) -> str:
    """Topic of the notices about runs."""
    return make_topic(instrument, stream, "run")


def daemon_topic(instrument: str) -> str:
    """Topic of the daemon's own heartbeat."""
    return make_topic(instrument, DAEMON_STREAM, "hb")
