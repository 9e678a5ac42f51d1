"""Whatever comes over the wire gives a message or a MalformedError; whatever is sent is read as it was meant."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import msgpack
from hypothesis import assume, given
from hypothesis import strategies as st

from tilecast_protocol import messages, queries
from tilecast_protocol.errors import MalformedError, QueryError
from tilecast_protocol.headers import salvage, unpack_header
from wire_messages import PUBLISHER_TYPES, header, multipart

unsigned = st.integers(0, 2**63 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
uuids = st.uuids().map(str)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True).filter(lambda name: name != "daemon")
printable = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=60)
positions = st.one_of(st.tuples(finite, finite), st.tuples(finite, finite, finite))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(), st.binary()
)
users = st.dictionaries(st.text(max_size=20), scalars | st.lists(scalars, max_size=3), max_size=4)
wire_values = st.recursive(
    scalars | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(-5, 300), inner, max_size=4)
    ),
    max_leaves=12,
)

envelope: dict[str, Any] = {
    "instrument": names,
    "stream": names,
    "src": printable,
    "boot": uuids,
    "seq": unsigned,
    "t_ns": unsigned,
    "user": users,
}


def _or_none(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


starts = st.builds(
    messages.Start,
    **envelope,
    run=uuids,
    name=printable,
    shape=st.tuples(st.integers(1, 8000), st.integers(1, 8000)),
    dtype=st.sampled_from(messages.DTYPES),
    px_um=st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)),
    affine=st.none() | st.just(((0.0, 0.65), (-0.65, 0.0))),
    n_expected=_or_none(unsigned),
    planes=_or_none(st.fixed_dictionaries({axis: st.integers(1, 1000) for axis in "tcz"})),
    extent_um=_or_none(st.just(((-1.5, 0.0), (20.0, 3.25)))),
    pos_src=_or_none(st.sampled_from(messages.POSITION_SOURCES)),
    stage_stream=_or_none(names),
    dark=_or_none(names),
    blend=_or_none(st.sampled_from(messages.BLEND_MODES)),
    group=_or_none(printable),
    replay_of=_or_none(uuids),
)


@st.composite
def images(draw: st.DrawFn) -> messages.Image:
    payload = draw(st.binary(min_size=1, max_size=50))
    t0_ns, t1_ns = sorted((draw(unsigned), draw(unsigned)))
    values = {key: draw(strategy) for key, strategy in envelope.items()}
    return messages.Image(
        **values,
        parts=(payload,),
        nbytes=len(payload),
        run=draw(uuids),
        frame=draw(unsigned),
        codec=draw(st.sampled_from(messages.CODECS)),
        tcz=draw(st.tuples(*[st.integers(0, 2**31 - 1)] * 3)),
        t0_ns=t0_ns,
        t1_ns=t1_ns,
        pos_um=draw(_or_none(positions)),
        set_um=draw(_or_none(positions)),
        moving=draw(_or_none(st.booleans())),
        status=draw(st.integers(0, 3)),
        crc32=messages.crc32(payload),
    )


valid_messages: st.SearchStrategy[Any] = st.one_of(
    starts,
    images(),
    st.builds(messages.Stage, **envelope, pos_um=positions, moving=_or_none(st.booleans()), set_um=_or_none(positions)),
    st.builds(messages.Event, **envelope, name=printable, run=_or_none(uuids)),
    st.builds(
        messages.End,
        **envelope,
        run=uuids,
        reason=st.sampled_from(messages.END_REASONS),
        n_sent=unsigned,
        n_camera_dropped=_or_none(unsigned),
    ),
    st.builds(
        messages.Heartbeat,
        **envelope,
        state=printable,
        run=_or_none(uuids),
        n_sent=_or_none(unsigned),
        queues=_or_none(st.dictionaries(st.text(max_size=10), unsigned, max_size=3)),
    ),
)


@given(valid_messages)
def test_what_is_sent_is_read_as_what_was_meant(message: messages.PublisherMessage) -> None:
    wire = messages.encode(message)
    received = messages.parse(wire)
    assert received == message
    assert type(received) is type(message)
    assert messages.encode(received) == wire
    resent = dataclasses.replace(received)
    assert messages.encode(resent) == wire


@given(starts)
def test_a_start_says_the_same_as_itself_after_the_journey(start: messages.Start) -> None:
    repeat = dataclasses.replace(start, seq=start.seq // 2, t_ns=start.t_ns // 3)
    received = messages.parse(messages.encode(repeat))
    assert isinstance(received, messages.Start)
    assert messages.same_start(start, received)
    assert messages.same_start(received, start)


def outcome(read: Callable[[Any], Any], wire: Any) -> Any:
    """What comes of it: a message, or the error that may come; any other exception fails the test."""
    try:
        return read(wire)
    except (MalformedError, QueryError) as error:
        return error


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_arbitrary_bytes_are_refused(parts: list[bytes]) -> None:
    for read in (messages.parse, messages.parse_from_daemon):
        error = outcome(read, parts)
        assert isinstance(error, MalformedError)
        assert error.reason in messages.REJECT_REASONS


@given(st.sampled_from(PUBLISHER_TYPES), st.binary(max_size=400), st.binary(max_size=40))
def test_arbitrary_headers_are_refused(kind: str, packed: bytes, payload: bytes) -> None:
    for read in (messages.parse, messages.parse_from_daemon):
        assert isinstance(outcome(read, [f"tc1/scope/cam/{kind}".encode(), packed, payload]), MalformedError)


@given(st.sampled_from(PUBLISHER_TYPES), wire_values)
def test_arbitrary_msgpack_is_refused(kind: str, value: Any) -> None:
    parts = [f"tc1/scope/cam/{kind}".encode(), msgpack.packb(value)]
    assert isinstance(outcome(messages.parse, parts), MalformedError)


def _assert_sound(message: Any) -> None:
    """Every number that has a meaning is finite and every index is an index, whatever the message looked like."""
    for position in (getattr(message, "pos_um", None), getattr(message, "set_um", None)):
        assert position is None or (len(position) in (2, 3) and all(map(math.isfinite, position)))
    for key in ("seq", "t_ns", "frame", "n_sent", "n_expected", "t0_ns", "t1_ns", "crc32"):
        value = getattr(message, key, None)
        assert value is None or (type(value) is int and 0 <= value < 2**63)
    assert isinstance(message.user, dict)
    if isinstance(message, messages.Start):
        assert message.frame_nbytes <= messages.DEFAULT_LIMITS.max_frame_bytes


@given(st.sampled_from(PUBLISHER_TYPES[:-1]), st.data())
def test_one_key_changed_gives_a_sound_message_or_is_refused(kind: str, data: st.DataObject) -> None:
    keys = sorted({row.key for row in type(messages.parse(multipart(kind)))._KEYS} | {"v", "type"})
    key = data.draw(st.sampled_from(keys))
    changed = header(kind) | {key: data.draw(wire_values)}
    parts = multipart(kind)
    parts[1] = msgpack.packb(changed)
    result = outcome(messages.parse, parts)
    if isinstance(result, MalformedError):
        assert result.reason in ("malformed", "bad-payload", "too-large")
        if key not in ("src", "boot", "seq"):
            assert (result.src, result.boot, result.seq) == ("orca", header(kind)["boot"], 3)
    else:
        _assert_sound(result)
        assert result.raw_header == parts[1]


@given(st.sampled_from(PUBLISHER_TYPES[:-1]), st.data())
def test_bytes_changed_give_a_sound_message_or_are_refused(kind: str, data: st.DataObject) -> None:
    parts = multipart(kind)
    packed = bytearray(parts[1])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(packed) - 1))
        packed[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(packed)) | st.just(len(packed)))
    parts[1] = bytes(packed[:cut])
    result = outcome(messages.parse, parts)
    if not isinstance(result, MalformedError):
        _assert_sound(result)


@given(st.binary(max_size=300) | wire_values.map(msgpack.packb))
def test_whatever_passes_the_walk_is_decoded(packed: bytes) -> None:
    """The walk and the decoder agree: what the walk lets through is a map, and anything else is refused by the walk."""
    value = outcome(unpack_header, packed)
    if not isinstance(value, MalformedError):
        assert isinstance(value, dict)
        assert repr(value) == repr(msgpack.unpackb(packed, raw=False))


@given(st.dictionaries(st.text(max_size=8), wire_values, max_size=6))
def test_the_walk_lets_through_all_that_it_should(value: dict[str, Any]) -> None:
    def depth(item: Any) -> int:
        if isinstance(item, dict):
            return 1 + max(map(depth, item.values()), default=0)
        return 1 + max(map(depth, item), default=0) if isinstance(item, list) else 0

    def keys_are_text(item: Any) -> bool:
        if isinstance(item, dict):
            return all(isinstance(key, str) for key in item) and all(map(keys_are_text, item.values()))
        return all(map(keys_are_text, item)) if isinstance(item, list) else True

    assume(keys_are_text(value))
    result = outcome(unpack_header, msgpack.packb(value))
    if depth(value) <= 4:
        assert repr(result) == repr(value)
    else:
        assert isinstance(result, MalformedError)
        assert "nested" in str(result)


@given(st.binary(max_size=300))
def test_salvage_never_fails(packed: bytes) -> None:
    salvage(packed, frozenset({"seq", "src", "boot"}))


@given(st.binary(max_size=200) | wire_values.map(msgpack.packb))
def test_arbitrary_queries_are_refused_and_can_be_answered(part: bytes) -> None:
    error = outcome(queries.parse_query, part)
    assert isinstance(error, QueryError)
    assert error.code in queries.ERROR_CODES
    assert queries.make_error(queries.query_id(part), error)


@given(
    st.sampled_from(sorted(queries.COMMANDS)), st.dictionaries(st.text(max_size=8), wire_values, max_size=3), st.data()
)
def test_queries_with_changed_arguments_are_sound_or_refused(
    cmd: str, others: dict[str, Any], data: st.DataObject
) -> None:
    arguments = {argument.name: data.draw(wire_values) for argument in queries.COMMANDS[cmd].arguments}
    part = msgpack.packb({"v": 1, "id": 5, "cmd": cmd} | others | arguments)
    result = outcome(queries.parse_query, part)
    if isinstance(result, QueryError):
        assert result.code in queries.ERROR_CODES
    else:
        assert result["cmd"] in queries.COMMANDS
