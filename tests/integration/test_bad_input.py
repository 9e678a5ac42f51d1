"""Bad input of every kind: counted, reported, answered where there is a way to answer, and nothing else happens.

Beside it a good run goes on, frame by frame with every test here, and ends with exactly the reference's mosaic.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
import pytest
import zmq
from numpy.typing import NDArray

from integration.conftest import Station
from integration.stored import assert_same, journalled_frames, reference_mosaic, stored_mosaic
from integration.talking import PX_UM, SHAPE, RawPublisher, centre_um, new_uuid, picture
from tilecast_protocol import pzf
from tilecast_protocol.messages import crc32
from tilecast_protocol.publisher import Publisher

PIXELS = picture(1)
RAW = PIXELS.tobytes()
PZF = bytes(pzf.encode_image(np.random.default_rng(2).poisson(20, SHAPE).astype("<u2")))
START = {"name": "bad", "shape": list(SHAPE), "dtype": "<u2", "px_um": list(PX_UM)}

Build = Callable[[RawPublisher, str], list[bytes]]
"""The parts of a bad message of this publisher, whose open run is given."""


class Bad(NamedTuple):
    """A bad message, why it is refused, and whether it can be told of which stream it is, whose run then counts it."""

    reason: str
    build: Build
    of_a_stream: bool = True


def image(reason: str, /, *payload: bytes, drop: str | None = None, **changes: Any) -> Bad:
    """An image with one thing wrong."""

    def build(camera: RawPublisher, run: str) -> list[bytes]:
        parts = payload or (RAW,)
        fields = {"run": run, "frame": 77, "codec": "raw", "nbytes": len(parts[0])} | changes
        if drop is not None:
            del fields[drop]
        return camera.message("image", *parts, **fields)

    return Bad(reason, build, of_a_stream=reason != "unknown-run")


def start(reason: str, /, *payload: bytes, **changes: Any) -> Bad:
    """A start of a new run with one thing wrong."""
    return Bad(reason, lambda camera, _: camera.message("start", *payload, **({"run": new_uuid()} | START | changes)))


def other(reason: str, kind: str, /, **fields: Any) -> Bad:
    """A message of another type with one thing wrong; `run` is the open one unless it says otherwise."""
    build: Build = lambda camera, run: camera.message(kind, **({"run": run} | fields))  # noqa: E731 - one of many
    return Bad(reason, build, of_a_stream=reason != "unknown-run")


def header(reason: str, pack: Callable[[dict[str, Any]], bytes]) -> Bad:
    """An image with its header written in another way."""

    def build(camera: RawPublisher, run: str) -> list[bytes]:
        fields = camera.header("image", run=run, frame=77, codec="raw", nbytes=len(RAW))
        return [f"tc1/{camera.instrument}/{camera.stream}/image".encode(), pack(fields), RAW]

    return Bad(reason, build)


def topic(text: bytes) -> Bad:
    """An image under another topic: nobody knows whose it is."""
    return Bad("malformed", lambda camera, run: [text, *image("").build(camera, run)[1:]], of_a_stream=False)


def pzf_header(**changes: int) -> bytes:
    """A good PZF record with some of its header overwritten."""
    at = {"width": (16, "<I"), "height": (20, "<I"), "depth": (24, "<I")}
    record = bytearray(PZF)
    for name, value in changes.items():
        offset, form = at[name]
        struct.pack_into(form, record, offset, value)
    return bytes(record)


BAD: dict[str, Bad] = {
    # sizes
    "too few bytes": image("bad-payload", RAW[:-2], nbytes=len(RAW)),
    "fewer pixels than the run's frames have": image("bad-payload", RAW[:-2]),
    "more pixels than the run's frames have": image("bad-payload", RAW + b"\0\0"),
    "no pixels": image("bad-payload", b""),
    "no payload": Bad("bad-payload", lambda camera, run: image("").build(camera, run)[:2]),
    "two payloads": image("bad-payload", RAW, RAW, nbytes=[len(RAW), len(RAW)]),
    "nine payloads": image("malformed", *[b"x"] * 9, nbytes=[1] * 9),
    "a frame larger than the limit": image("too-large", bytes((1 << 20) + 70_000)),
    # payloads
    "wrong checksum": image("bad-payload", crc32=crc32(RAW) ^ 1),
    "checksum that is no number": image("malformed", crc32="abc"),
    "PZF of garbage": image("bad-payload", bytes(range(256)), codec="pzf"),
    "PZF of nothing": image("bad-payload", b"", codec="pzf"),
    "PZF cut short": image("bad-payload", PZF[:-40], codec="pzf"),
    "PZF with a damaged table": image("bad-payload", PZF[:70] + bytes(40) + PZF[110:], codec="pzf"),
    "PZF of another shape": image("bad-payload", bytes(pzf.encode_image(PIXELS.T.copy())), codec="pzf"),
    "PZF of another type": image("bad-payload", bytes(pzf.encode_image(PIXELS.astype("<f4"))), codec="pzf"),
    "PZF that announces 4 GiB": image("bad-payload", pzf_header(width=1 << 16, height=1 << 15), codec="pzf"),
    "raw pixels that say they are PZF": image("bad-payload", RAW, codec="pzf"),
    "unknown codec": image("malformed", codec="jpeg"),
    # keys
    "position NaN": image("malformed", pos_um=[math.nan, 0.0]),
    "position infinite": image("malformed", pos_um=[0.0, -math.inf]),
    "position beyond 2**30 pixels": image("malformed", pos_um=[0.0, (2**30 + 100) * PX_UM[1]]),
    "position with one number": image("malformed", pos_um=[1.0]),
    "position of text": image("malformed", pos_um=["1", "2"]),
    "negative frame": image("malformed", frame=-1),
    "frame that is too large a number": image("malformed", frame=2**63),
    "frame with a fraction": image("malformed", frame=1.0),
    "no frame": image("malformed", drop="frame"),
    "no run": image("malformed", drop="run"),
    "run that is no uuid": image("malformed", run="../../etc/passwd"),
    "unknown status": image("malformed", status=4),
    "plane of two numbers": image("malformed", tcz=[0, 0]),
    "negative plane": image("malformed", tcz=[0, -1, 0]),
    "exposure that ends before it begins": image("malformed", t0=2, t1=1),
    "moving that is no boolean": image("malformed", moving="no"),
    "a run that nobody started": image("unknown-run", run="00000000-0000-4000-8000-000000000000"),
    # headers
    "header of a little more than 64 KiB": header("too-large", lambda fields: _padded(fields, 66_000)),
    "header of a megabyte": header("too-large", lambda fields: _padded(fields, 1_000_000)),
    "nested maps": header("malformed", lambda fields: msgpack.packb(fields | {"user": {"a": {"b": {"c": {}}}}})),
    "nested a thousand times": header("malformed", lambda fields: _with_raw(fields, b"\x91" * 1000 + b"\xc0")),
    "list of a thousand million items": header("malformed", lambda fields: _with_raw(fields, b"\xdd\x3b\x9a\xca\x00")),
    "extension type": header("malformed", lambda fields: _with_raw(fields, b"\xc7\x01\x05x")),
    "timestamp type": header("malformed", lambda fields: _with_raw(fields, b"\xd6\xff\0\0\0\0")),
    "key twice": header("malformed", lambda fields: _with_raw(fields, b"\x01", key=b"frame")),
    "key that is no text": header("malformed", lambda fields: msgpack.packb(fields | {5: 5})),
    "text that is not UTF-8": header("malformed", lambda fields: _with_raw(fields, b"\xa2\xff\xfe")),
    "bytes behind the header": header("malformed", lambda fields: msgpack.packb(fields) + b"\0"),
    "unknown version": header("malformed", lambda fields: msgpack.packb(fields | {"v": 2})),
    "version as text": header("malformed", lambda fields: msgpack.packb(fields | {"v": "1"})),
    "type that is not the topic's": header("malformed", lambda fields: msgpack.packb(fields | {"type": "stage"})),
    "header cut short": header("malformed", lambda fields: msgpack.packb(fields)[:-3]),
    "header that is a list": header("malformed", lambda fields: msgpack.packb(list(fields))),
    "header of nothing": header("malformed", lambda _: b""),
    "header of garbage": header("malformed", lambda _: bytes(range(255, 0, -1))),
    "header without src": header(
        "malformed", lambda fields: msgpack.packb({k: v for k, v in fields.items() if k != "src"})
    ),
    # envelopes
    "a single part": Bad("malformed", lambda *_: [b"hello?"], of_a_stream=False),
    "a single empty part": Bad("malformed", lambda *_: [b""], of_a_stream=False),
    "an HTTP request": Bad("malformed", lambda *_: [b"GET / HTTP/1.1\r\n\r\n"], of_a_stream=False),
    "topic of nothing": topic(b""),
    "topic of another version": topic(b"tc2/scope/cam/image"),
    "topic of the daemon": topic(b"tc1/scope/daemon/image"),
    "topic with a path": topic(b"tc1/../../image"),
    "topic that is not ASCII": topic("tc1/scope/caméra/image".encode()),
    "topic of 10 kB": topic(b"tc1/" + b"x" * 10_000 + b"/cam/image"),
    "unknown type": Bad("malformed", lambda camera, run: camera.message("frame", run=run)),
    "a message that daemons send": Bad(
        "malformed", lambda camera, _: camera.message("ack", upto_seq=9, credit=1, rejected=[], state="x", free_bytes=1)
    ),
    # other messages
    "stage without a position": other("malformed", "stage"),
    "stage at NaN": other("malformed", "stage", pos_um=[0, math.nan]),
    "end for an unknown reason": other("malformed", "end", reason="bored", n_sent=1),
    "end without a number": other("malformed", "end", reason="done"),
    "end of an unknown run": other("unknown-run", "end", run=new_uuid(), reason="done", n_sent=1),
    "event without a name": other("malformed", "event"),
    "event with a line break": other("malformed", "event", name="a\nb"),
    "heartbeat with a negative number": other("malformed", "hb", state="ok", n_sent=-4),
    # starts
    "start with no rows": start("malformed", shape=[0, 30]),
    "start with three dimensions": start("malformed", shape=[24, 30, 1]),
    "start of frames above the limit": start("too-large", shape=[4096, 4096]),
    "start of frames of 2**62 bytes": start("too-large", shape=[2**31 - 1, 2**31 - 1]),
    "start of big-endian pixels": start("malformed", dtype=">u2"),
    "start of objects": start("malformed", dtype="|O"),
    "start with pixels of no size": start("malformed", px_um=[0.0, 1.0]),
    "start with pixels of NaN": start("malformed", px_um=[math.nan, 1.0]),
    "start with an affine that cannot be inverted": start("malformed", affine=[[1, 2], [2, 4]]),
    "start whose channels contradict its planes": start(
        "malformed", channels=[{"name": "a"}, {"name": "b"}], planes={"t": 1, "c": 3, "z": 1}
    ),
    "start whose extent is inside out": start("malformed", extent_um=[[10, 0], [0, 10]]),
    "start with an extent beyond 2**30 pixels": start("malformed", extent_um=[[0, 0], [1e12, 1e12]]),
    "start with an unknown blend": start("malformed", blend="magic"),
    "start whose flat is not carried": start("malformed", flat="part:0"),
    "start whose part has another digest": start(
        "bad-payload", b"not it", flat="part:0", sha256=["ab" * 32], nbytes=[6]
    ),
    "start with a calibration in another folder": start("malformed", dark="../../secret"),
    "start with a name of two lines": start("malformed", name="a\nb"),
}


def _padded(fields: dict[str, Any], nbytes: int) -> bytes:
    """The header with a filling that makes it so long."""
    filling = bytes(
        nbytes - len(msgpack.packb(fields | {"user": {"x": b""}})) - 3
    )  # a longer length takes 3 bytes more
    return msgpack.packb(fields | {"user": {"x": filling}})


def _with_raw(fields: dict[str, Any], value: bytes, key: bytes = b"user") -> bytes:
    """The header with one more key, whose value is given as msgpack."""
    packed = msgpack.packb(fields)
    assert packed[0] & 0xF0 == 0x80, "a map of at most 15 keys"
    return bytes([packed[0] + 1]) + packed[1:] + bytes([0xA0 + len(key)]) + key + value


@pytest.fixture(scope="module")
def good_run(station: Station) -> Iterator[tuple[Publisher, str, dict[int, NDArray[Any]]]]:
    """A run on the same microscope that has nothing to do with it."""
    with station.publisher("good", instrument="bad-input") as publisher:
        run = publisher.start("good", shape=SHAPE, dtype="<u2", px_um=PX_UM, pos_src="frame")
        yield publisher, run, {}


def corner(frame: int) -> tuple[int, int]:
    """Where a frame of the good run lies: a serpentine to the upper left, with overlap."""
    row, col = divmod(frame, 8)
    return -20 * row, -25 * (col if row % 2 == 0 else 7 - col)


@pytest.fixture(autouse=True)
def _good_run_goes_on(good_run: tuple[Publisher, str, dict[int, NDArray[Any]]]) -> None:
    """One frame of it with every test."""
    publisher, _, sent = good_run
    frame = len(sent)
    sent[frame] = picture(100 + frame)
    publisher.image(sent[frame], pos_um=centre_um(*corner(frame)))


@pytest.fixture(scope="module")
def camera(station: Station) -> Iterator[tuple[RawPublisher, str]]:
    """A rude publisher on the acknowledged path, with an open run."""
    with RawPublisher(station.ack, instrument="bad-input", stream="rude") as publisher:
        publisher.hello()
        run = new_uuid()
        publisher.wait_settled(publisher.start(run))
        yield publisher, run


def refused(station: Station) -> Counter[str]:
    """How many messages the daemon has refused, by the reason."""
    return Counter(station.client.stats()["ingest"]["refused"])


def counted(station: Station, run: str) -> Counter[str]:
    """What a run's report says so far of what was refused."""
    report = station.client.report(run)["report"]
    return Counter(report["rejected"]) + Counter({"malformed": report["malformed"]})


@pytest.mark.parametrize("name", BAD)
def test_it_is_answered_and_counted(station: Station, camera: tuple[RawPublisher, str], name: str) -> None:
    publisher, run = camera
    bad = BAD[name]
    before, before_of_run = refused(station), counted(station, run)

    rejection = publisher.wait_rejected(publisher.send_parts(bad.build(publisher, run)))

    assert rejection.reason == bad.reason, rejection
    assert len(rejection.message) > 10
    assert "Traceback" not in rejection.message
    assert refused(station) - before == {bad.reason: 1}
    assert counted(station, run) - before_of_run == ({bad.reason: 1} if bad.of_a_stream else {})
    # Life goes on: what follows is taken, and what was refused has changed nothing.
    publisher.wait_settled(publisher.send("event", name="still here"))
    assert publisher.seq - 1 not in publisher.rejections
    assert station.client.report(run)["report"]["received"] == 0


@pytest.mark.parametrize("kind", ["image", "start", "end"])
def test_a_run_of_another_stream_is_refused(station: Station, camera: tuple[RawPublisher, str], kind: str) -> None:
    _, run = camera
    with RawPublisher(station.ack, instrument="bad-input", stream="elsewhere") as publisher:
        publisher.hello()
        parts = {
            "image": image("").build(publisher, run),
            "start": publisher.message("start", run=run, **START),
            "end": publisher.message("end", run=run, reason="done", n_sent=0),
        }[kind]
        rejection = publisher.wait_rejected(publisher.send_parts(parts))
        assert rejection.reason == "run-elsewhere"
        assert "bad-input/rude" in rejection.message
    assert counted(station, run)["run-elsewhere"] >= 1
    assert station.client.run(run)["state"] == "open"


@pytest.mark.parametrize(
    "changes",
    [{"shape": [30, 24]}, {"px_um": [1.0, 1.0]}, {"name": "other"}, {"dtype": "<f4"}, {"user": {"x": 1}}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_start_that_contradicts_an_earlier_one_is_refused(
    station: Station, camera: tuple[RawPublisher, str], changes: dict[str, Any]
) -> None:
    publisher, run = camera
    said = station.client.run(run)["start"]
    before = counted(station, run)
    rejection = publisher.wait_rejected(publisher.start(run, **changes))
    assert rejection.reason == "run-conflict"
    assert counted(station, run) - before == {"run-conflict": 1}
    assert station.client.run(run)["start"] == said
    publisher.wait_settled(publisher.start(run, name="raw"))  # the same start again is no contradiction
    assert publisher.seq - 1 not in publisher.rejections


def test_a_calibration_that_is_not_there_is_asked_for(station: Station, camera: tuple[RawPublisher, str]) -> None:
    publisher, _ = camera
    run = new_uuid()
    for changes in ({"flat": "no such flat"}, {"dark": "part:0", "sha256": ["ab" * 32]}):
        rejection = publisher.wait_rejected(publisher.start(run, **changes))
        assert rejection.reason == "calibration-missing"
    assert run not in [line["run"] for line in station.client.runs()]


def test_a_part_that_is_no_calibration_is_refused(station: Station, camera: tuple[RawPublisher, str]) -> None:
    import hashlib
    import io

    publisher, _ = camera
    wrong_shape = io.BytesIO()
    np.save(wrong_shape, np.ones((3, 3), np.float32))
    for part in (b"\x80\x04pickled", wrong_shape.getvalue()):
        run = new_uuid()
        digest = hashlib.sha256(part).hexdigest()
        fields = START | {"run": run, "flat": "part:0", "sha256": [digest], "nbytes": [len(part)]}
        rejection = publisher.wait_rejected(publisher.send("start", part, **fields))
        assert rejection.reason in ("bad-payload", "calibration-missing")
        assert run not in [line["run"] for line in station.client.runs()]


def test_an_ambiguous_stage_is_refused(station: Station) -> None:
    with (
        RawPublisher(station.ack, instrument="two-stages", stream="stage-a") as a,
        RawPublisher(station.ack, instrument="two-stages", stream="stage-b") as b,
        RawPublisher(station.ack, instrument="two-stages", stream="cam") as publisher,
    ):
        for stage in (a, b):
            stage.hello()
            stage.wait_settled(stage.send("stage", pos_um=[0.0, 0.0]))
        publisher.hello()
        rejection = publisher.wait_rejected(publisher.start(new_uuid()))
        assert rejection.reason == "malformed"
        assert "stage-a, stage-b" in rejection.message
        for clear in ({"pos_src": "frame"}, {"stage_stream": "stage-b"}):
            publisher.wait_settled(publisher.start(new_uuid(), **clear))
            assert publisher.seq - 1 not in publisher.rejections


def test_a_stage_is_kept_from_those_runs_only_that_it_is_too_far_for(station: Station) -> None:
    with (
        RawPublisher(station.ack, instrument="far", stream="stage") as stage,
        RawPublisher(station.ack, instrument="far", stream="in-metres") as wrong,
        RawPublisher(station.ack, instrument="far", stream="cam") as right,
    ):
        runs = {}
        for publisher, px_um in ((wrong, [5e-7, 5e-7]), (right, [0.5, 0.5])):
            publisher.hello()
            runs[publisher] = new_uuid()
            publisher.wait_settled(publisher.start(runs[publisher], px_um=px_um))
        stage.hello()
        seq = stage.send("stage", pos_um=[600.0, 0.0])
        stage.wait_settled(seq)
        assert seq not in stage.rejections
        assert counted(station, runs[wrong]) == {"malformed": 1}
        assert "check its unit" in station.watch.notice(runs[wrong], "warning")["message"]
        rejection = stage.wait_rejected(stage.send("stage", pos_um=[1e300, 0.0]))
        assert rejection.reason == "malformed"
        assert counted(station, runs[right]) == {"malformed": 1}


@pytest.mark.shared_data
def test_every_malformed_record_is_refused_or_is_a_picture(station: Station, shared_data: Path) -> None:
    folder = shared_data / "pzf" / "malformed"
    entries = json.loads((folder / "manifest.json").read_text())["entries"]
    assert len(entries) > 50
    n_refused = 0
    runs: dict[tuple[tuple[int, int], str], str] = {}
    with RawPublisher(station.ack, instrument="bad-input", stream="records") as publisher:
        publisher.hello()
        for frame, entry in enumerate(entries):
            record = (folder / entry["file"]).read_bytes()
            # As a frame of the very shape and type that it says it has, so that it is decoded if it can be.
            shape, dtype = said = _what_it_says(record)
            if said not in runs:
                runs[said] = new_uuid()
                publisher.start(runs[said], shape=list(shape), dtype=dtype, pos_src="frame")
            fields = {"run": runs[said], "frame": frame, "codec": "pzf", "nbytes": len(record), "pos_um": [0.0, 0.0]}
            seq = publisher.send("image", record, **fields)
            publisher.wait_settled(seq)
            if seq in publisher.rejections:
                n_refused += 1
                assert publisher.rejections[seq].reason == "bad-payload"
            else:
                assert entry["expect"] != "reject", entry
        for run in runs.values():
            publisher.wait_settled(publisher.send("end", run=run, reason="done", n_sent=0))
    assert n_refused > 40


def _what_it_says(record: bytes) -> tuple[tuple[int, int], str]:
    """Shape and type in the header of a PZF record; anything that a start may say where there is none."""
    try:
        said = pzf.load_header(record)
        shape, kind = (int(said["Width"]), int(said["Height"])), int(said["DataFormat"])
    except pzf.PZFError:
        return SHAPE, "<u2"
    if min(shape) < 1 or shape[0] * shape[1] * 4 > 1 << 20:
        return SHAPE, ("|u1", "<u2", "<f4")[kind]
    return shape, ("|u1", "<u2", "<f4")[kind]


@pytest.mark.parametrize("path", ["pull", "sub"])
def test_on_one_way_sockets_it_is_counted_and_reported(station: Station, path: str) -> None:
    kind, endpoint = (zmq.PUSH, station.pull) if path == "pull" else (zmq.XPUB, station.pub[0])
    run = new_uuid()
    with RawPublisher(endpoint, kind, instrument="bad-input", stream=f"rude-{path}") as publisher:
        publisher.start(run, name="bad")
        station.watch.notice(run, "started")
        before, before_of_run = refused(station), counted(station, run)
        expected, expected_of_run = Counter({"run-conflict": 1}), Counter({"run-conflict": 1})
        for bad in BAD.values():
            parts = bad.build(publisher, run)
            publisher.send_parts(parts)
            if bad.reason == "unknown-run" or (path == "sub" and not parts[0].startswith(b"tc1/")):
                continue  # held, for a start may yet come; or not even subscribed to
            expected[bad.reason] += 1
            expected_of_run[bad.reason] += bad.of_a_stream
        publisher.start(run, name="bad", user={"other": 1})
        publisher.image(run, 0, PIXELS, pos_um=[0.0, 0.0])
        publisher.send("end", run=run, reason="done", n_sent=1)

        report = station.watch.report(run)
        assert (report["received"], report["n_missing"], report["placed"]) == (1, 0, 1)
        assert refused(station) - before == expected
        of_the_run = counted(station, run) - before_of_run
        assert of_the_run == expected_of_run
        warned = [notice.detail for notice in station.watch.notices(run) if notice.kind == "warning"]
        told: Counter[str] = Counter()
        for detail in warned:
            assert (detail["what"], bool(detail["message"])) == ("rejected", True)
            told.update(detail["reasons"])
        assert told == of_the_run
        assert_same(stored_mosaic(station.folder(run)), reference_mosaic(station.folder(run), {0: PIXELS}))


def test_frames_of_an_unknown_run_are_reported_as_lost(station: Station) -> None:
    run = new_uuid()
    with RawPublisher(station.pull, zmq.PUSH, instrument="bad-input", stream="nobody") as publisher:
        publisher.image(run, 4, PIXELS)
        detail = station.watch.notice(run, "warning", lambda detail: detail["what"] == "unknown-run")
        assert detail["frames"] == [[4, 4]]
        # When the start comes after all, its report knows of them.
        publisher.start(run)
        publisher.send("end", run=run, reason="done", n_sent=5)
        report = station.watch.report(run)
        assert (report["lost_before_start"], report["missing"]) == (1, [[0, 4]])


def test_a_stranger_that_never_said_hello_is_answered(station: Station) -> None:
    with RawPublisher(station.ack, instrument="bad-input", stream="stranger") as publisher:
        rejection = publisher.wait_rejected(publisher.send("image", RAW, run="nonsense"))
        assert rejection.reason == "malformed"


def test_a_message_far_above_the_limit_ends_the_connection(station: Station) -> None:
    with RawPublisher(station.ack, instrument="bad-input", stream="flood") as publisher:
        publisher.hello()
        watched = publisher.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        publisher.send("image", bytes(3 << 20), run=new_uuid(), frame=0, codec="raw", nbytes=3 << 20)
        assert watched.poll(30_000), "the daemon took it in"
        publisher.socket.disable_monitor()
        watched.close()


def test_questions_may_be_bad_too(station: Station) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(station.daemon.endpoints["query"])
    run = new_uuid()
    cases: dict[str, list[bytes]] = {
        "malformed": [
            b"",
            b"\xc1",
            b"hello",
            msgpack.packb([1]),
            msgpack.packb({"v": 2, "cmd": "runs"}),
            msgpack.packb({"v": 1}),
            msgpack.packb({"v": 1, "cmd": "run"}),
            msgpack.packb({"v": 1, "cmd": "run", "run": "../.."}),
            msgpack.packb({"v": 1, "cmd": "tile", "run": run, "tcz": [0, 0], "level": 0, "row": 0, "col": 0}),
            msgpack.packb({"v": 1, "cmd": "snapshot", "run": run, "limit": 0}),
            msgpack.packb({"v": 1, "cmd": "region", "run": run, "tcz": [0, 0, 0], "level": 0, "bounds": [0, 0, 0, 9]}),
            b"\x91" * 60_000,
            bytes(70_000),
        ],
        "unknown-command": [msgpack.packb({"v": 1, "cmd": "drop table"}), msgpack.packb({"v": 1, "cmd": 5})],
        "unknown-run": [msgpack.packb({"v": 1, "cmd": "run", "run": run})],
    }
    try:
        for code, requests in cases.items():
            for request in requests:
                socket.send(request)
                assert socket.poll(30_000)
                reply = msgpack.unpackb(socket.recv())
                assert (reply["ok"], reply["error"]["code"]) == (False, code), request[:40]
                assert reply["error"]["message"]
        socket.send_multipart([b"two", b"parts"])
        assert socket.poll(30_000)
        assert msgpack.unpackb(socket.recv())["error"]["code"] == "malformed"
    finally:
        socket.close()
        context.term()


def test_the_good_run_is_whole(station: Station, good_run: tuple[Publisher, str, dict[int, NDArray[Any]]]) -> None:
    publisher, run, sent = good_run
    publisher.end()
    publisher.flush()
    report = station.watch.report(run)
    assert (report["received"], report["placed"], report["n_missing"]) == (len(sent), len(sent), 0)
    assert (report["malformed"], report["rejected"], report["duplicate"]) == (0, {}, 0)
    folder = station.folder(run)
    kept = journalled_frames(folder)
    assert all(np.array_equal(kept[frame], pixels) for frame, pixels in sent.items())
    corners = {frame: corner(frame) for frame in sent}
    assert_same(stored_mosaic(folder), reference_mosaic(folder, sent, corners))
