"""Each reading of section 6 of `protocol/README.md` has the test of its name here, and each test here its reading."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import uuid
import zlib
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tilecast_protocol import headers, messages, queries
from tilecast_protocol.errors import MalformedError, QueryError
from wire_messages import BOOT, PIXELS, RUN, T_NS, header, multipart, read

README = Path(__file__).resolve().parents[2] / "protocol" / "README.md"


def refused(message_type: str, /, *payload: bytes, reason: str = "malformed", **changes: Any) -> MalformedError:
    with pytest.raises(MalformedError) as caught:
        read(message_type, *payload, **changes)
    assert caught.value.reason == reason
    return caught.value


def test_every_reading_has_its_test_and_every_test_its_reading() -> None:
    section = README.read_text(encoding="utf-8").split("## 6. Readings we chose")[1]
    readings = re.findall(r"^\* \*\*([a-z0-9-]+)\.\*\*", section, re.MULTILINE)
    assert len(readings) > 20
    tests = {name.removeprefix("test_reading_") for name in globals() if name.startswith("test_reading_")}
    assert {reading.replace("-", "_") for reading in readings} == tests


def test_reading_uuid_text() -> None:
    assert read("image", run=RUN.upper()).run == RUN
    assert read("image", run=RUN.replace("-", "")).run == RUN
    assert read("image", boot=BOOT.upper()).boot == BOOT
    for wrong in (uuid.UUID(RUN).bytes, "{" + RUN + "}", "urn:uuid:" + RUN, RUN + "\n", RUN[:-1], RUN[:-1] + "g", 5):
        refused("image", run=wrong)


def test_reading_numbers() -> None:
    stage = read("stage", pos_um=[1, 2])
    assert stage.pos_um == (1.0, 2.0)
    assert all(type(value) is float for value in stage.pos_um)
    refused("stage", pos_um=[True, 2])
    for wrong in (True, 3.0, "3", None, [3]):
        refused("image", frame=wrong)
        refused("image", seq=wrong)


def test_reading_number_range() -> None:
    assert read("image", seq=2**63 - 1, frame=2**63 - 1, t=2**63 - 1).frame == 2**63 - 1
    for value in (2**63, -1):
        refused("image", seq=value)
        refused("image", frame=value)
        refused("image", t=value)
    assert read("image", tcz=[0, 2**31 - 1, 0]).tcz == (0, 2**31 - 1, 0)
    refused("image", tcz=[0, 2**31, 0])
    arguments: dict[str, Any] = {"run": RUN, "tcz": [0, 0, 0], "level": 31, "row": -(2**31), "col": 2**31 - 1}
    queries.make_query("tile", **arguments)
    for changes in ({"level": 32}, {"level": -1}, {"row": -(2**31) - 1}, {"col": 2**31}):
        with pytest.raises(QueryError):
            queries.make_query("tile", **arguments | changes)


def test_reading_finite() -> None:
    for value in (math.nan, math.inf, -math.inf):
        refused("stage", pos_um=[0, value])
        refused("image", set_um=[value, 0])
        refused("start", px_um=[value, 1])
        refused("start", extent_um=[[0, 0], [value, 1]])
        refused("start", affine=[[value, 0], [0, 1]])
        assert read("stage", user={"temperature": value}).user.keys() == {"temperature"}
        assert read("stage", temperature=value).extra.keys() == {"temperature"}


def test_reading_nil() -> None:
    assert read("start", affine=None, user=None) == read("start")
    assert read("image", tcz=None, status=None) == read("image")
    assert read("image", pos_um=None).pos_um is None
    for key in ("run", "name", "shape", "dtype", "px_um", "src", "boot", "seq", "t"):
        nothing: dict[str, Any] = {key: None}
        refused("start", **nothing)


def test_reading_text() -> None:
    for wrong in ("a\nb", "\x1b[31m", "tab\there", "\x85", "\u2028", "\x00"):
        refused("start", name=wrong)
        refused("start", group=wrong)
        refused("hb", state=wrong)
    assert read("start", name="").name == ""
    assert read("start", name="µ" * 500).name == "µ" * 500
    refused("start", name="µ" * 501)
    assert read("start", group="g" * 200).group == "g" * 200
    refused("start", group="g" * 201)
    refused("start", group="")


def test_reading_calibration_names() -> None:
    assert read("start", dark="dark 100 ms, 2026").dark == "dark 100 ms, 2026"
    for wrong in ("../dark", "/dark", "a\\b", ".dark", "", 5):
        refused("start", dark=wrong)
        refused("start", flat=wrong)


def test_reading_blend_words() -> None:
    for word in ("feather", "mean", "max", "min", "newest", "nearest"):
        assert read("start", blend=word).blend == word
    for wrong in ("Mean", "average", "", 1):
        refused("start", blend=wrong)


def test_reading_one_map() -> None:
    topic, packed = multipart("stage")
    for wrong in (packed + b"\xc0", packed[:-1], b"", b"\x90", msgpack.packb("stage")):
        with pytest.raises(MalformedError, match=r"map|cut short"):
            messages.parse([topic, wrong])
    inner_twice = b"\x82" + (msgpack.packb("x") + msgpack.packb(1)) * 2
    packed = bytes([packed[0] + 1]) + packed[1:] + msgpack.packb("user") + inner_twice
    with pytest.raises(MalformedError, match="'x' twice"):
        messages.parse([topic, packed])
    # The same key in two maps is two keys.
    assert read("stage", user={"a": {"x": 1}, "b": {"x": 2}}).user == {"a": {"x": 1}, "b": {"x": 2}}


def test_reading_depth() -> None:
    assert read("stage", user={"a": {"b": [1]}}).user == {"a": {"b": [1]}}
    assert "nested" in str(refused("stage", user={"a": {"b": [[]]}}))
    assert "nested" in str(refused("stage", user={"a": {"b": [{}]}}))
    received = {"run": RUN, "state": "open", "next_frame": 5, "received": [[0, 4]]}
    sent = {"credit": 1, "upto_seq": -1, "max_frame_bytes": 1, "durability": "os", "state": "ready", "runs": [received]}
    welcome = messages.parse_from_daemon([b"tc1/scope/cam/welcome", msgpack.packb({"v": 1, "type": "welcome"} | sent)])
    assert isinstance(welcome, messages.Welcome)
    assert welcome.runs[0].received == ((0, 4),)
    deep: Any = 1
    for _ in range(11):
        deep = [deep]
    assert headers.unpack_header(msgpack.packb({"x": deep}), max_bytes=100, max_depth=12) == {"x": deep}
    with pytest.raises(MalformedError):
        headers.unpack_header(msgpack.packb({"x": [deep]}), max_bytes=100, max_depth=12)
    assert messages.DAEMON_LIMITS.max_depth == 12
    assert messages.DAEMON_LIMITS.max_header_bytes == 16 * 1024 * 1024


def test_reading_limits() -> None:
    refused("stage", user={"pad": "x" * 65536}, reason="too-large")
    small = messages.Limits(max_frame_bytes=24)
    assert messages.parse(multipart("start"), small)
    with pytest.raises(MalformedError) as caught:
        messages.parse(multipart("start", shape=[5, 5]), small)
    assert caught.value.reason == "too-large"
    allowed = bytes(24 + 64 * 1024)
    assert messages.parse(multipart("image", allowed, nbytes=len(allowed)), small)
    with pytest.raises(MalformedError) as caught:
        messages.parse(multipart("image", allowed + b"x", nbytes=len(allowed) + 1), small)
    assert caught.value.reason == "too-large"
    assert len(read("event", *[b"x"] * 8).parts) == 8
    refused("event", *[b"x"] * 9)


def test_reading_type_and_topic() -> None:
    _, packed = multipart("stage")
    for wrong in (b"tc1/scope/cam/image", b"tc1/scope/cam/stage\n", b"tc1/scope/cam/stage/", b" tc1/scope/cam/stage"):
        with pytest.raises(MalformedError):
            messages.parse([wrong, packed])
    refused("stage", type="Stage")
    refused("stage", type=None)


def test_reading_unknown_keys() -> None:
    changes: dict[str, Any] = {
        "gain": 2,
        "planes": {"t": 2, "why": "drift"},
        "channels": [{"name": "GFP", "laser": 488}],
    }
    start = read("start", **changes)
    assert start.extra == {"gain": 2}
    assert start.planes["why"] == "drift"
    assert start.channels[0]["laser"] == 488
    assert start.raw_header == multipart("start", **changes)[1]
    assert messages.encode(start)[1] == start.raw_header


def test_reading_answerable() -> None:
    topic, packed, pixels = multipart("image", frame=-1, user={"x": msgpack.ExtType(1, b"")})
    with pytest.raises(MalformedError) as caught:
        messages.parse([topic, packed, pixels])
    error = caught.value
    assert (error.topic, error.src, error.boot, error.seq) == ("tc1/scope/cam/image", "orca", BOOT, 3)
    # the keys behind the fault, too, and in the form in which they are compared
    late = {"user": {"x": [[[[1]]]]}} | header("image", boot=BOOT.upper())
    with pytest.raises(MalformedError) as caught:
        messages.parse([topic, msgpack.packb(late), pixels])
    assert (caught.value.boot, caught.value.seq) == (BOOT, 3)
    hidden = {"user": "x" * 70_000} | header("image")
    with pytest.raises(MalformedError) as caught:
        messages.parse([topic, msgpack.packb(hidden), pixels])
    assert (caught.value.reason, caught.value.src, caught.value.seq) == ("too-large", None, None)


def test_reading_defaults_left_out() -> None:
    image = messages.Image(
        instrument="scope",
        stream="cam",
        src="orca",
        boot=BOOT,
        seq=3,
        t_ns=T_NS,
        run=RUN,
        frame=0,
        codec="raw",
        nbytes=24,
    )
    assert image.header() == header("image")
    said = dict.fromkeys(("tcz", "status", "user"))
    assert read("image", tcz=[0, 0, 1], status=1, user={"a": 1}).header().keys() - header("image").keys() == said.keys()


def test_reading_calibration_parts() -> None:
    dark, flat = b"dark" * 6, b"flat" * 6
    digests = [hashlib.sha256(part).hexdigest() for part in (dark, flat)]
    start = read("start", dark, flat, dark="part:0", flat="part:1", sha256=[digests[0], digests[1].upper()])
    assert start.sha256 == tuple(digests)
    single = read("start", dark, dark="part:0", sha256=digests[0])
    assert single.sha256 == (digests[0],)
    refused("start", dark, dark="part:0", sha256=digests[1], reason="bad-payload")
    refused("start", dark, dark, dark="part:0", sha256=digests, reason="bad-payload")
    refused("start", dark, dark="part:0")
    refused("start", dark, dark="part:1", sha256=[digests[0]])
    for wrong in ("part:", "part:-1", "part:01", "part:1.0", "part:0 "):
        refused("start", dark, dark=wrong, sha256=digests[0])
    refused("start", dark, dark="part:0", sha256=digests, reason="bad-payload")


def test_reading_repeat_without_parts() -> None:
    keys: dict[str, Any] = {"dark": "part:0", "nbytes": 24, "sha256": hashlib.sha256(bytes(24)).hexdigest()}
    assert messages.same_start(read("start", bytes(24), **keys), read("start", **keys))
    assert messages.same_start(read("start", bytes(24), **keys), read("start", **keys | {"nbytes": None}))
    refused("start", nbytes=24, reason="bad-payload")


def test_reading_same_start() -> None:
    first = read("start", user={"gain": math.nan}, lamp="on")
    same = {"user": {"gain": math.nan}, "lamp": "on"}
    assert messages.same_start(first, read("start", **same, seq=9, t=T_NS + 1, boot=str(uuid.uuid4())))
    for changes in (
        {"name": "kidney"},
        {"shape": [4, 3]},
        {"dtype": "|u1"},
        {"px_um": [0.5, 0.6]},
        {"affine": [[0.5, 0], [0, 0.5]]},
        {"src": "orca-2"},
        {"n_expected": 5},
        {"user": {"gain": 1}},
        {"lamp": "off"},
        {"more": 1},
        {"sha256": "0" * 64},
        {"replay_of": RUN},
    ):
        assert not messages.same_start(first, read("start", **same | changes)), changes
    elsewhere = messages.parse([b"tc1/scope/other/start", *multipart("start", **same)[1:]])
    assert isinstance(elsewhere, messages.Start)
    assert not messages.same_start(first, elsewhere)
    order = read("start", lamp="on", user={"gain": math.nan}, zebra=1)
    assert messages.same_start(order, read("start", zebra=1, user={"gain": math.nan}, lamp="on"))


def test_reading_affine() -> None:
    assert read("start", affine=[[0, 2], [-2, 0]]).effective_affine == ((0, 2), (-2, 0))
    assert read("start", px_um=[0.5, 2]).effective_affine == ((0.5, 0), (0, 2))
    assert read("start", affine=[[1e-3, 0], [0, 1e3]]).affine == ((1e-3, 0), (0, 1e3))
    for wrong in ([[1, 1], [1, 1]], [[1, 2], [2, 4.000000001]], [[0, 0], [0, 1]], [[1, 0, 0], [0, 1, 0]], [[1, 0]], []):
        refused("start", affine=wrong)
    refused("start", affine=[[10, 0], [0, 1e-309]])  # 1 / 1e-309 is not finite
    for wrong_size in ([0, 1], [1, -1], [1], 1, [1, 1, 1]):
        refused("start", px_um=wrong_size)


def test_reading_extent() -> None:
    assert read("start", extent_um=[[-1, -2], [3, 4.5]]).extent_um == ((-1, -2), (3, 4.5))
    for wrong in ([[0, 0], [0, 1]], [[0, 1], [1, 1]], [[0, 1], [1, 0]], [[0, 0]], [0, 0, 1, 1]):
        refused("start", extent_um=wrong)
    most = 2**30 * 0.5
    assert read("start", extent_um=[[-most, -most], [most, most]])
    refused("start", extent_um=[[-most, -most], [most + 1, most]])
    refused("start", extent_um=[[-most, -most - 1], [most, most]])
    # a sheared pixel grid: x - y/2 and y/2, or x/2 and y - x/2, are the pixels
    far = 2.0**30
    assert read("start", extent_um=[[far, 0.9 * far], [1.4 * far, far]], affine=[[1, 1], [0, 2]])
    assert read("start", extent_um=[[0.9 * far, far], [far, 1.4 * far]], affine=[[2, 0], [1, 1]])
    # all four corners count: here (x0, y1) is the one that lies too far
    refused("start", extent_um=[[-0.8 * far, -0.8 * far], [0.8 * far, 0.8 * far]], affine=[[1, 1], [0, 2]])
    assert read("start", extent_um=[[-0.6 * far, -0.6 * far], [0.6 * far, 0.6 * far]], affine=[[1, 1], [0, 2]])
    # with an affine that exchanges the axes, y is what px_um's x was
    exchanged: dict[str, Any] = {"affine": [[0, 1], [1000, 0]], "px_um": [1000, 1]}
    assert read("start", extent_um=[[0, 0], [1, 2**30 * 1000]], **exchanged)
    refused("start", extent_um=[[0, 0], [2**30 * 1000, 1]], **exchanged)


def test_reading_planes() -> None:
    assert read("start", planes={"z": 5}).planes == {"t": 1, "c": 1, "z": 5}
    two = [{"name": "DAPI"}, {}]
    assert len(read("start", channels=two, planes={"c": 2}).channels) == 2
    assert len(read("start", channels=two).channels) == 2
    assert "contradicts" in str(refused("start", channels=two, planes={"c": 3}))
    assert "contradicts" in str(refused("start", channels=two, planes={"z": 3}))
    for wrong in ({"t": 0}, {"t": 1.0}, {"c": -1}, [1, 2, 1], 3):
        refused("start", planes=wrong)


def test_reading_one_part() -> None:
    start = read("start")
    messages.check_payload(read("image"), start)
    messages.check_payload(read("image", nbytes=[24]), start)
    halves = read("image", PIXELS[:12], PIXELS[12:], nbytes=[12, 12])
    with pytest.raises(MalformedError) as caught:
        messages.check_payload(halves, start)
    assert caught.value.reason == "bad-payload"
    with pytest.raises(MalformedError) as caught:
        messages.parse(multipart("image")[:2])
    assert caught.value.reason == "bad-payload"
    none = messages.parse(multipart("image", nbytes=0)[:2])
    assert isinstance(none, messages.Image)
    with pytest.raises(MalformedError) as caught:
        messages.check_payload(none, start)
    assert caught.value.reason == "bad-payload"
    refused("image", nbytes=None)
    assert read("event", b"a", b"bc").parts == (b"a", b"bc")
    assert read("event", b"a", b"bc", nbytes=[1, 2]).nbytes == (1, 2)
    refused("event", b"a", b"bc", nbytes=[2, 1], reason="bad-payload")
    refused("event", b"a", b"bc", nbytes=3, reason="bad-payload")
    with pytest.raises(MalformedError):
        messages.parse(multipart("stage", nbytes=5))


def test_reading_half_exposure() -> None:
    assert read("image", t0=T_NS - 10).t_mid_ns == T_NS
    assert read("image", t1=T_NS - 10).t_mid_ns == T_NS
    assert read("image", t0=T_NS - 30, t1=T_NS - 10).t_mid_ns == T_NS - 20
    assert read("image", t0=T_NS, t1=T_NS).t_mid_ns == T_NS
    refused("image", t0=T_NS, t1=T_NS - 1)


def test_reading_crc32() -> None:
    start = read("start")
    messages.check_payload(read("image", crc32=zlib.crc32(PIXELS)), start)
    damaged = bytes([PIXELS[0] ^ 1]) + PIXELS[1:]
    with pytest.raises(MalformedError, match="checksum") as caught:
        messages.check_payload(read("image", damaged, crc32=zlib.crc32(PIXELS)), start)
    assert caught.value.reason == "bad-payload"
    assert messages.crc32(b"123456789") == 0xCBF43926
    refused("image", crc32=2**32)
    refused("image", crc32=-1)


def pzf_record(rows: int, columns: int, depth: int = 1, data_format: int = 1) -> bytes:
    size = rows * columns * depth * (1, 2, 4)[data_format]
    head = struct.pack(
        "<2s4B1s1xqIIIIQffI12x", b"BD", 3, data_format, 0, 0, b"C", 0, 0, rows, columns, depth, 0, 0, 1, 64
    )
    return head + bytes(size)


def test_reading_pzf_payload() -> None:
    start = read("start")

    def check(record: bytes) -> None:
        messages.check_payload(read("image", record, codec="pzf", nbytes=len(record), crc32=zlib.crc32(record)), start)

    check(pzf_record(3, 4))
    for wrong in (
        pzf_record(4, 3),
        pzf_record(3, 4, depth=2),
        pzf_record(3, 4, data_format=0),
        pzf_record(3, 8),
        b"BD",
    ):
        with pytest.raises(MalformedError) as caught:
            check(wrong)
        assert caught.value.reason == "bad-payload"


def test_reading_hello() -> None:
    assert read("hello", seq=5, t=T_NS).extra == {"seq": 5, "t": T_NS}
    assert read("hello").next_seq == 0


def test_reading_hb_queues() -> None:
    assert read("hb", queues={"images": 3}).queues == {"images": 3}
    refused("hb", queues=3)
    refused("hb", queues={"images": 0.5})


def from_daemon(message_type: str, /, topic: str = "", **keys: Any) -> Any:
    name = topic or f"tc1/scope/cam/{message_type}"
    return messages.parse_from_daemon([name.encode(), msgpack.packb({"v": 1, "type": message_type} | keys)])


COMMIT: dict[str, Any] = {
    "run": RUN,
    "epoch": 0,
    "rev": 1,
    "tiles": [[0, 0, 0, 0, -1, 2]],
    "gone": [],
    "t_commit": T_NS,
}


def test_reading_daemon_envelope() -> None:
    bare = from_daemon("tiles", **COMMIT)
    assert (bare.src, bare.boot, bare.t_ns, bare.seq) == (None, None, None, None)
    full = from_daemon("tiles", **COMMIT, src="tilecast", boot=BOOT, t=T_NS, seq=4)
    assert (full.src, full.boot, full.t_ns, full.seq) == ("tilecast", BOOT, T_NS, 4)


def test_reading_tiles() -> None:
    def commit(**keys: Any) -> messages.Tiles:
        values: dict[str, Any] = {"run": RUN, "epoch": 0, "rev": 1, "t_commit_ns": T_NS} | keys
        return messages.Tiles(instrument="scope", stream="cam", **values)

    tile = (0, 0, 0, 0, 0, 0)
    assert len(commit(tiles=(tile,) * 3999, gone=(tile,)).tiles or ()) == 3999
    for wrong in (
        {"tiles": (tile,) * 4000, "gone": (tile,)},
        {"tiles": None},
        {"tiles": None, "truncated": True, "gone": (tile,)},
        {"tiles": (tile,), "truncated": True},
        {"tiles": ((0, 0, 0, 0, 0),)},
        {"tiles": (tile,), "bbox_um": (0, 0, 1, 1)},
    ):
        with pytest.raises(MalformedError):
            commit(**wrong)
    truncated = commit(tiles=None, truncated=True, bbox_um=((0, 0), (1, 1))).header()
    assert truncated["tiles"] is None
    assert truncated["t_recv"] is None
    assert (truncated["gone"], truncated["truncated"], truncated["bbox_um"]) == ((), True, ((0, 0), (1, 1)))
    assert messages.parse_from_daemon(messages.encode(commit(tiles=None, truncated=True))) == commit(
        tiles=None, truncated=True
    )


def test_reading_run_notice() -> None:
    notice = from_daemon("run", run=RUN, kind="gap", detail={"missing": [[3, 4]]})
    assert (notice.kind, notice.detail) == ("gap", {"missing": [[3, 4]]})
    assert from_daemon("run", run=RUN, kind="a-later-word").detail == {}
    with pytest.raises(MalformedError):
        from_daemon("run", run=RUN)


def test_reading_daemon_hb() -> None:
    keys: dict[str, Any] = {
        "state": "ready",
        "runs": [{"run": RUN, "epoch": 1, "rev": 2}],
        "wal_bytes": 5,
        "free_bytes": 6,
    }
    heartbeat = from_daemon("hb", topic="tc1/scope/daemon/hb", **keys)
    assert heartbeat.runs == ((RUN, 1, 2),)
    assert (heartbeat.state, heartbeat.wal_bytes, heartbeat.free_bytes) == ("ready", 5, 6)
    assert heartbeat.topic == messages.daemon_topic("scope")
    with pytest.raises(MalformedError):
        from_daemon("hb", topic="tc1/scope/cam/hb", **keys)
    with pytest.raises(MalformedError):
        messages.parse([b"tc1/scope/daemon/hb", msgpack.packb(header("hb"))])


def test_reading_query_id() -> None:
    for good in (0, -5, 2**63, "a" * 200, None):
        part = queries.make_query("runs", good)
        assert queries.parse_query(part)["id"] == good
        assert queries.query_id(part) == good
        assert queries.parse_reply(queries.make_reply(good)).id == good
    for wrong in (1.5, True, [1], "a" * 201, b"x"):
        part = msgpack.packb({"v": 1, "id": wrong, "cmd": "runs"})
        with pytest.raises(QueryError, match="id must be"):
            queries.parse_query(part)
        assert queries.query_id(part) is None


def test_reading_query_errors() -> None:
    section = README.read_text(encoding="utf-8").split("**query-errors.**")[1].split("\n")[0]
    told = re.findall(r"`([a-z-]+)`", section.split("is one of")[1].split(".")[0])
    assert tuple(told) == queries.ERROR_CODES
    reply = queries.parse_reply(queries.make_error(4, QueryError("busy", "ask again in a second")))
    assert reply.header == {"v": 1, "id": 4, "ok": False, "error": {"code": "busy", "message": "ask again in a second"}}
    with pytest.raises(QueryError) as caught:
        reply.raise_for_error()
    assert (caught.value.code, caught.value.message) == ("busy", "ask again in a second")
    assert queries.parse_query(queries.make_query("runs", colour="red"))["colour"] == "red"


def test_reading_query_pages() -> None:
    changes = queries.parse_query(queries.make_query("changes", run=RUN, epoch=0, since=0))
    assert changes["limit"] == 4000
    page: dict[str, Any] = {"run": RUN, "after": [0, 0, 0, 3, -1, -1], "limit": 100_000}
    snapshot = queries.parse_query(queries.make_query("snapshot", **page))
    assert (snapshot["after"], snapshot["limit"]) == ((0, 0, 0, 3, -1, -1), 100_000)
    first = queries.parse_query(queries.make_query("snapshot", run=RUN))
    assert (first["after"], first["tcz"], first["level"], first["limit"]) == (None, None, None, 4000)
    for wrong in ({"limit": 0}, {"limit": 100_001}, {"after": [0, 0, 0]}):
        with pytest.raises(QueryError):
            queries.make_query("snapshot", **page | wrong)
    page = {"run": RUN, "after": [7, 12, 0], "limit": 100_000}
    placements = queries.parse_query(queries.make_query("placements", **page))
    assert (placements["since"], placements["after"], placements["limit"]) == (0, (7, 12, 0), 100_000)
    first = queries.parse_query(queries.make_query("placements", run=RUN))
    assert (first["after"], first["limit"]) == (None, 4000)
    for wrong in ({"limit": 0}, {"limit": 100_001}, {"after": [0, 0]}, {"after": [0, -1, 0]}):
        with pytest.raises(QueryError):
            queries.make_query("placements", **page | wrong)


def test_reading_query_region() -> None:
    ask: dict[str, Any] = {"run": RUN, "tcz": [0, 0, 0], "level": 0, "bounds": [-5, -5, 5, 5]}
    query = queries.parse_query(queries.make_query("region", **ask))
    assert (query["codec"], query["fill"], query["bounds"]) == ("raw", None, (-5, -5, 5, 5))
    assert math.isnan(queries.parse_query(queries.make_query("region", **ask, fill=math.nan))["fill"])
    for wrong in (
        {"fill": math.inf},
        {"bounds": [0, 0, 0, 5]},
        {"bounds": [0, 5, 5, 5]},
        {"codec": "png"},
        {"tcz": None},
    ):
        with pytest.raises(QueryError):
            queries.make_query("region", **ask | wrong)


def test_reading_query_operators() -> None:
    rebuild = queries.parse_query(queries.make_query("rebuild", run=RUN))
    assert (rebuild["blend"], rebuild["rejoin"]) == (None, False)
    assert queries.parse_query(queries.make_query("rebuild", run=RUN, blend="max", rejoin=True))["rejoin"] is True
    assert queries.parse_query(queries.make_query("rename", run=RUN, name="liver"))["name"] == "liver"
    assert queries.parse_query(queries.make_query("note", run=RUN, text="a\nb"))["text"] == "a\nb"
    for cmd, wrong in (
        ("rename", {}),
        ("rename", {"name": "a\nb"}),
        ("note", {"text": "\x1b[2J"}),
        ("note", {"text": 5}),
    ):
        with pytest.raises(QueryError):
            queries.make_query(cmd, run=RUN, **wrong)
    operators = {cmd for cmd, command in queries.COMMANDS.items() if command.operator}
    assert operators == {"end", "rebuild", "repair", "rename", "note", "delete", "seal", "reload"}
    assert queries.parse_query(queries.make_query("seal", run=RUN))["force"] is False
    assert queries.parse_query(queries.make_query("delete", run=RUN))["if_seen"] is None
    assert queries.parse_query(queries.make_query("delete", run=RUN, if_seen=[7, 8]))["if_seen"] == (7, 8)
    for wrong_seen in ([7], [7, -1], [7, 8, 9], 7):
        with pytest.raises(QueryError):
            queries.make_query("delete", run=RUN, if_seen=wrong_seen)


def test_the_manifest_speaks_of_this_version() -> None:
    manifest = json.loads((README.parent / "vectors" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["protocol"] == messages.VERSION
