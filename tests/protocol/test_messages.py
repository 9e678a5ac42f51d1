"""Messages as Python objects: built, frozen, parsed without copying, refused with a sentence that helps."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from tilecast_protocol import headers, messages
from tilecast_protocol.errors import MalformedError, TilecastError
from wire_messages import BOOT, PIXELS, PUBLISHER_TYPES, RUN, T_NS, header, multipart, read

README = Path(__file__).resolve().parents[2] / "protocol" / "README.md"
ENVELOPE: dict[str, Any] = {
    "instrument": "scope",
    "stream": "cam",
    "src": "orca",
    "boot": BOOT,
    "seq": 3,
    "t_ns": T_NS,
}
CLASSES = {
    cls.TYPE: cls
    for cls in (
        messages.Start,
        messages.Image,
        messages.Stage,
        messages.Event,
        messages.End,
        messages.Heartbeat,
        messages.Hello,
    )
}


def contract_keys(kind: str) -> tuple[set[str], set[str]]:
    """Required and optional keys of a message type, as the contract's own table in section 1 names them."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    required, optional = next((required, optional) for name, required, optional in rows if name == kind)

    def keys(cell: str) -> set[str]:
        outside_brackets = re.sub(r"\([^)]*\)|\[[^\]]*\]|\{[^}]*\}", "", cell.partition(";")[0])
        found = [re.match(r"\s*`([a-z0-9_]+)`", item) for item in outside_brackets.split(",")]
        return {match[1] for match in found if match}

    return keys(required), keys(optional)


@pytest.mark.parametrize("kind", ["start", "image", "stage", "event", "end", "hb"])
def test_the_keys_of_each_class_are_those_of_the_contract(kind: str) -> None:
    required, optional = contract_keys(kind)
    envelope = {"src", "boot", "seq", "t"}
    rows = CLASSES[kind]._KEYS
    assert {row.key for row in rows if row.required} == required | envelope
    # `nbytes` goes with any payload; `sha256` and the queue depths stand in the table in words
    added = {"start": {"nbytes", "sha256"}, "image": set[str](), "hb": {"nbytes", "user", "queues"}}
    assert {row.key for row in rows if not row.required} == optional | added.get(kind, {"nbytes"})


@pytest.mark.parametrize("kind", PUBLISHER_TYPES)
def test_every_required_key_is_needed_and_named(kind: str) -> None:
    for row in CLASSES[kind]._KEYS:
        if row.required:
            parts = multipart(kind)
            parts[1] = msgpack.packb({key: value for key, value in header(kind).items() if key != row.key})
            with pytest.raises(MalformedError, match=rf"\b{row.key}\b"):
                messages.parse(parts)


@pytest.mark.parametrize("kind", PUBLISHER_TYPES)
def test_no_key_accepts_a_value_of_the_wrong_kind(kind: str) -> None:
    """Whatever a key is, one of these is not it, and the error names the key."""
    for row in CLASSES[kind]._KEYS:
        wrong: Any
        for wrong in ([[]], b"bytes", {"\x00": "a map"}):
            if row.key in ("user", "planes") and isinstance(wrong, dict):
                continue  # any map will do
            changes: dict[str, Any] = {row.key: wrong}
            with pytest.raises(MalformedError, match=rf"{kind}: {row.key}"):
                read(kind, **changes)


@pytest.mark.parametrize("kind", PUBLISHER_TYPES)
def test_a_message_built_here_is_a_message_parsed(kind: str) -> None:
    parsed = read(kind)
    values = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(parsed) if field.init}
    built = CLASSES[kind](**values)
    assert built == parsed
    assert built.raw_header is None
    assert messages.parse(messages.encode(built)) == parsed
    assert messages.encode(built)[1] == parsed.raw_header  # the same keys in the same order


def test_a_message_cannot_be_changed_and_a_changed_copy_has_a_header_of_its_own() -> None:
    image = read("image")
    with pytest.raises(dataclasses.FrozenInstanceError):
        image.frame = 5
    with pytest.raises(AttributeError):
        object.__setattr__(image, "colour", "red")
    later = dataclasses.replace(image, seq=99)
    assert later.raw_header is None
    sent_on = messages.parse(messages.encode(later))
    assert isinstance(sent_on, messages.Image)
    assert sent_on.seq == 99
    with pytest.raises(MalformedError):
        dataclasses.replace(image, status=7)


def test_numbers_of_numpy_are_numbers() -> None:
    position = np.array([1.5, -2.5], dtype=np.float32)
    image = messages.Image(
        **ENVELOPE,
        run=RUN,
        frame=np.uint32(4),  # type: ignore[arg-type]
        codec="raw",
        nbytes=np.int64(24),  # type: ignore[arg-type]
        parts=(PIXELS,),
        pos_um=tuple(position),
        moving=None,
    )
    assert (type(image.frame), type(image.nbytes)) == (int, int)
    assert image.pos_um == (1.5, -2.5)
    assert messages.parse(messages.encode(image)) == image
    with pytest.raises(MalformedError, match="frame"):
        messages.Image(**ENVELOPE, run=RUN, frame=np.bool_(True), codec="raw", nbytes=24)  # type: ignore[arg-type]


def test_a_message_that_msgpack_cannot_carry_is_refused_by_the_sender() -> None:
    user: Any
    for user in ({"gain": object()}, {"n": 2**70}, {"a": {"b": {"c": {}}}}, {"a": "\ud800"}):
        with pytest.raises(MalformedError):
            messages.encode(messages.Stage(**ENVELOPE, pos_um=(0, 0), user=user))
    with pytest.raises(MalformedError) as caught:
        messages.encode(messages.Stage(**ENVELOPE, pos_um=(0, 0), user={"pad": "x" * 70_000}))
    assert caught.value.reason == "too-large"


def test_extra_may_not_shadow_a_key() -> None:
    for key in ("pos_um", "seq", "v", "type"):
        with pytest.raises(MalformedError, match=key):
            messages.Stage(**ENVELOPE, pos_um=(0, 0), extra={key: 1})
    assert messages.Stage(**ENVELOPE, pos_um=(0, 0), extra={"lamp": "on"}).header()["lamp"] == "on"


@pytest.mark.parametrize("name", ["", "a/b", "-a", ".", "..", "ä", "a b", "a\n", "x" * 65, 5])
def test_names_that_could_be_paths_are_refused(name: Any) -> None:
    for key in ("instrument", "stream"):
        with pytest.raises(MalformedError, match=key):
            messages.Stage(**ENVELOPE | {key: name}, pos_um=(0, 0))
    if isinstance(name, str):
        with pytest.raises(MalformedError):
            messages.parse_topic(f"tc1/scope/{name}/stage".encode())
        with pytest.raises(MalformedError):
            messages.make_topic(name, "cam", "stage")


def test_the_stream_of_the_daemon_is_reserved() -> None:
    with pytest.raises(MalformedError, match="reserved"):
        messages.Stage(**ENVELOPE | {"stream": "daemon"}, pos_um=(0, 0))
    with pytest.raises(MalformedError, match="reserved"):
        messages.Hello(instrument="scope", stream="daemon", src="x", boot=BOOT, next_seq=0)


def test_topics() -> None:
    assert messages.parse_topic("tc1/scope/cam/tiles") == ("scope", "cam", "tiles")
    assert messages.tiles_topic("scope", "cam") == "tc1/scope/cam/tiles"
    assert messages.run_topic("scope", "cam") == "tc1/scope/cam/run"
    assert messages.daemon_topic("scope") == "tc1/scope/daemon/hb"
    assert messages.subscription() == "tc1/"
    assert messages.subscription("scope") == "tc1/scope/"
    assert messages.subscription("scope", "cam") == "tc1/scope/cam/"
    with pytest.raises(ValueError, match="instrument"):
        messages.subscription(stream="cam")
    for wrong in (b"", b"tc1", b"tc2/scope/cam/image", b"\xff" * 10, b"x" * 100_000):
        with pytest.raises(MalformedError, match="topic"):
            messages.parse_topic(wrong)


def test_new_boots_and_runs_are_new_and_canonical() -> None:
    made = [messages.new_boot(), messages.new_boot(), messages.new_run(), messages.new_run()]
    assert len(set(made)) == 4
    for text in made:
        assert read("image", run=text).run == text


def test_a_payload_is_looked_at_not_copied() -> None:
    pixels = bytearray(PIXELS)
    topic, packed, _ = multipart("image")
    image = messages.parse([topic, packed, memoryview(pixels)])
    pixels[0] ^= 0xFF
    assert image.parts[0][0] == pixels[0]


def test_frames_of_zmq_and_arrays_are_payload() -> None:
    frames = [zmq.Frame(part) for part in multipart("image")]
    assert messages.parse(frames) == read("image")
    array = np.frombuffer(PIXELS, "<u2").reshape(3, 4)
    image = messages.Image(**ENVELOPE, run=RUN, frame=0, codec="raw", nbytes=24, parts=(array.data,))
    assert image == read("image")
    assert messages.Event(**ENVELOPE, name="x", parts=(np.empty((0, 4)).data,)).parts == (b"",)
    with pytest.raises(MalformedError, match="contiguous"):
        messages.Image(**ENVELOPE, run=RUN, frame=0, codec="raw", nbytes=12, parts=(array.T[:2].data,))
    with pytest.raises(MalformedError, match="payload"):
        messages.Event(**ENVELOPE, name="x", parts=("text",))  # type: ignore[arg-type]


def test_a_header_alone_is_read_without_its_payload() -> None:
    topic, packed, _ = multipart("image")
    image = messages.parse_header(topic, packed)
    assert isinstance(image, messages.Image)
    assert (image.parts, image.nbytes, image.raw_header) == ((), 24, packed)
    assert messages.parse_header(topic.decode(), packed) == image
    with pytest.raises(MalformedError, match="no payload came"):
        messages.parse([topic, packed])
    with pytest.raises(MalformedError):
        messages.parse_header("tc1/scöpe/cam/image", packed)


def test_pixels_are_checked_against_their_run() -> None:
    start = read("start")
    messages.check_payload(read("image"), start)
    with pytest.raises(MalformedError, match=r"24 bytes; 23 came") as caught:
        messages.check_payload(read("image", PIXELS[:-1], nbytes=23), start)
    assert caught.value.reason == "bad-payload"
    with pytest.raises(MalformedError) as caught:
        messages.check_payload(read("image"), start, messages.Limits(max_frame_bytes=23))
    assert caught.value.reason == "too-large"
    with pytest.raises(MalformedError) as caught:
        messages.check_payload(read("image"), read("start", dtype="<f4"))
    assert caught.value.reason == "bad-payload"
    assert (start.itemsize, start.frame_nbytes) == (2, 24)


def test_too_few_parts_are_refused() -> None:
    for parts in ([], [b"tc1/scope/cam/stage"], multipart("stage")[1:]):
        with pytest.raises(MalformedError):
            messages.parse(parts)


def test_the_daemon_takes_no_message_of_a_daemon_and_the_reverse() -> None:
    ack = messages.Ack(instrument="scope", stream="cam", upto_seq=-1, credit=4, state="ready", free_bytes=0)
    with pytest.raises(MalformedError, match="type ack"):
        messages.parse(messages.encode(ack))
    assert messages.parse_from_daemon(messages.encode(ack)) == ack
    with pytest.raises(MalformedError, match="type stage"):
        messages.parse_from_daemon(multipart("stage"))


def test_what_the_daemon_sends_goes_round() -> None:
    names: dict[str, Any] = {"instrument": "scope", "stream": "cam"}
    ack = messages.Ack(
        **names,
        upto_seq=9,
        credit=4,
        state="ready",
        free_bytes=10,
        rejected=(messages.Rejection(8, "bad-payload", "send it again\nunder a new seq"),),
    )
    welcome = messages.Welcome(
        **names,
        credit=4,
        upto_seq=-1,
        max_frame_bytes=2**28,
        durability="os",
        state="ready",
        runs=(messages.RunState(RUN, "open", 12, ((0, 8), (10, 11))),),
    )
    for message in (ack, welcome):
        again = messages.parse_from_daemon(messages.encode(message))
        assert again == message
    assert welcome.header()["runs"] == [{"run": RUN, "state": "open", "next_frame": 12, "received": ((0, 8), (10, 11))}]
    with pytest.raises(MalformedError, match=r"rejected\[0\].message is|rejected\[0\]: the key message is missing"):
        messages.Ack(**names, upto_seq=9, credit=4, state="ready", free_bytes=1, rejected=({"seq": 1, "reason": "x"},))  # type: ignore[arg-type]


def test_a_long_list_of_tiles_is_announced_and_read() -> None:
    tiles = tuple((0, 0, 0, 0, row, -col) for row in range(50) for col in range(80))
    commit = messages.Tiles(instrument="s", stream="c", run=RUN, epoch=0, rev=1, tiles=tiles, t_commit_ns=T_NS)
    assert messages.parse_from_daemon(messages.encode(commit)) == commit


def test_a_header_that_announces_more_than_it_brings_reserves_nothing() -> None:
    topic, packed, _ = multipart("image")
    bomb = bytes([packed[0] + 1]) + packed[1:] + msgpack.packb("user") + b"\xdd\x00\x00\xf0\x00" * 13_000
    tracemalloc.start()
    try:
        with pytest.raises(MalformedError, match="nested"):
            messages.parse([topic, bomb, PIXELS])
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_list_that_announces_more_than_is_left_is_refused_at_once() -> None:
    for announced in (b"\x81\xa1x\xdd\x00\x00\xf0\x00\x01", b"\x81\xa1x\xdf\x00\x00\x78\x00\xa1y"):
        with pytest.raises(MalformedError, match="announces 61440 values where"):
            headers.unpack_header(announced)


def test_errors_are_short_and_say_what_was_expected() -> None:
    with pytest.raises(MalformedError) as caught:
        read("start", name=["x" * 50_000] * 2)
    assert len(str(caught.value)) < 300
    with pytest.raises(MalformedError, match=r"dtype must be one of \|u1, <u2, <f4; got 'uint16'") as caught:
        read("start", dtype="uint16")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TilecastError)
    with pytest.raises(MalformedError, match="bits"):
        messages.Stage(**ENVELOPE | {"seq": 10**5000}, pos_um=(0, 0))


def test_what_packs_is_what_unpacks() -> None:
    good = {"a": None, "b": [True, 1.5, -(2**63), 2**64 - 1], "c": {"d": b"\x00", "e": "µ" * 70_000}}
    packed = headers.pack_header(good, max_bytes=200_000)
    assert headers.unpack_header(packed, max_bytes=200_000) == good
    assert headers.unpack_header(memoryview(packed), max_bytes=200_000) == good
    with pytest.raises(MalformedError):
        headers.pack_header({"a": {1: 2}})
    with pytest.raises(MalformedError):
        headers.pack_header([1])  # type: ignore[arg-type]


def test_salvage_finds_what_can_be_found() -> None:
    keys = frozenset({"seq", "src"})
    plain = {"list": [1, [2]], "map": {"seq": 9}, "bin": b"\x01" * 300, "f": 1.5, "seq": 5, "src": "a"}
    assert headers.salvage(msgpack.packb(plain), keys) == {"seq": 5, "src": "a"}
    extensions = {str(size): msgpack.ExtType(1, bytes(size)) for size in (1, 2, 3, 4, 8, 16, 300, 70_000)} | {"seq": 5}
    assert headers.salvage(msgpack.packb(extensions), keys, max_bytes=100_000) == {"seq": 5}
    assert headers.salvage(msgpack.packb({"seq": [5], "src": {"a": 1}}), keys) == {}
    twice = b"\x82" + (msgpack.packb("seq") + msgpack.packb(1)) * 2
    assert headers.salvage(twice, keys) == {}
    for useless in (b"", b"\xc1", b"\x93\x01", b"\x81\xa3seq", b"\xdf\xff\xff\xff\xff\xa3seq"):
        assert headers.salvage(useless, keys) == {}


HEAVY = ("numba", "numpy", "zmq", "asyncio", "scipy", "tilecast_protocol.pzf")


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import tilecast_protocol", (*HEAVY, "msgpack", "isal", "tilecast_protocol.messages")),
        ("from tilecast_protocol import Stage, parse, encode", HEAVY),
        ("from tilecast_protocol import make_query, parse_reply", HEAVY),
    ],
)
def test_importing_is_light(statement: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys\n{statement}\nprint(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_everything_public_can_be_had_from_the_package() -> None:
    import tilecast_protocol

    for name in tilecast_protocol.__all__:
        assert getattr(tilecast_protocol, name) is not None
    assert set(tilecast_protocol.__all__) == set(tilecast_protocol._MODULE_OF)
    assert set(tilecast_protocol.__all__) <= set(dir(tilecast_protocol))
    with pytest.raises(AttributeError, match="no attribute 'Camera'"):
        tilecast_protocol.Camera  # noqa: B018  (the access is what is tested)


def test_a_message_gets_its_number_without_being_checked_again() -> None:
    image = messages.Image(**ENVELOPE, run=RUN, frame=3, codec="raw", nbytes=4, parts=(b"abcd",))
    numbered = image.numbered(17)
    assert numbered == dataclasses.replace(image, seq=17)
    assert messages.encode(numbered) == messages.encode(dataclasses.replace(image, seq=17))
    assert image.seq == ENVELOPE["seq"]
    with pytest.raises(MalformedError, match="seq"):
        image.numbered(-1)
