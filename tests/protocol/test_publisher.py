"""Publisher against a scripted daemon over real sockets: what it sends, keeps, sends again, and says when it cannot."""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import zmq

from scripted_peers import PATIENCE_S, ScriptedDaemon, Seen, wait_until
from tilecast_protocol import pzf
from tilecast_protocol.errors import DisconnectedError, MalformedError
from tilecast_protocol.messages import (
    End,
    Event,
    Heartbeat,
    Image,
    Stage,
    Start,
    check_payload,
    new_run,
    parse,
    same_start,
)
from tilecast_protocol.publisher import Publisher, RejectedError
from tilecast_protocol.sockets import CurveKeys

SHAPE = (3, 4)
RUN: dict[str, Any] = {"shape": SHAPE, "dtype": "uint16", "px_um": (0.5, 0.5)}
MOMENT_S = 0.05
"""How long a test lets a publisher wait for what cannot come."""


def frame(number: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """A frame that carries its number."""
    return np.full(SHAPE, number, np.uint16)


def pixels(image: Image) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """What came."""
    return np.frombuffer(image.parts[0], "<u2").reshape(SHAPE)


@contextmanager
def publishing(endpoint: str, **options: Any) -> Iterator[Publisher]:
    """A publisher that is patient, and whose heartbeats stay out of the way."""
    options = {"timeout_s": PATIENCE_S, "heartbeat_s": 3600.0, "silence_s": 3600.0} | options
    with Publisher(endpoint, instrument="scope", stream="cam", **options) as publisher:
        yield publisher


@pytest.fixture
def daemon() -> Iterator[ScriptedDaemon]:
    with ScriptedDaemon() as daemon:
        yield daemon


@pytest.fixture
def publisher(daemon: ScriptedDaemon) -> Iterator[Publisher]:
    with publishing(daemon.endpoint) as publisher:
        yield publisher


def conversation(seen: list[Seen]) -> list[tuple[Any, ...]]:
    """(seq, type, frame) of everything but heartbeats."""
    return [(s.message.seq, s.message.TYPE, getattr(s.message, "frame", None)) for s in seen if s.message.TYPE != "hb"]


# ---- what is sent ---------------------------------------------------------------------------------------------------


def test_a_scan_arrives_as_it_was_given(daemon: ScriptedDaemon) -> None:
    with publishing(daemon.endpoint, src="orca-flash") as publisher:
        run = publisher.start("liver", affine=((0.5, 0), (0, -0.5)), n_expected=2, user={"operator": "Ada"}, **RUN)
        assert publisher.image(frame(7), pos_um=(1, 2), t0_ns=10, t1_ns=30, tcz=(0, 1, 2), user={"gain": 2}) == 0
        publisher.stage(np.array([3.0, 4.0, 5.0]), t_ns=123, moving=True)
        publisher.event("shutter", run=run)
        assert publisher.image(frame(8), pos_um=np.float64([3, 4]), set_um=[3, 4.5], moving=False, status=3) == 1
        publisher.end("abort", n_camera_dropped=5)
    start, first, stage, event, second, end = daemon.kept()
    assert [m.seq for m in daemon.kept()] == list(range(6))
    assert {(m.instrument, m.stream, m.src, m.boot) for m in daemon.kept()} == {
        ("scope", "cam", "orca-flash", publisher.boot)
    }
    assert (start.run, start.name, start.shape, start.dtype, start.px_um) == (run, "liver", SHAPE, "<u2", (0.5, 0.5))
    assert (start.affine, start.n_expected, start.user) == (((0.5, 0), (0, -0.5)), 2, {"operator": "Ada"})
    for image, number in ((first, 7), (second, 8)):
        check_payload(image, start)
        assert image.crc32 is not None
        np.testing.assert_array_equal(pixels(image), frame(number))
    assert (first.run, first.frame, first.pos_um, first.t0_ns, first.t1_ns) == (run, 0, (1, 2), 10, 30)
    assert (first.tcz, first.user) == ((0, 1, 2), {"gain": 2})
    assert (second.frame, second.pos_um, second.set_um, second.moving, second.status) == (1, (3, 4), (3, 4.5), False, 3)
    assert (stage.pos_um, stage.t_ns, stage.moving) == ((3, 4, 5), 123, True)
    assert (event.name, event.run) == ("shutter", run)
    assert (end.run, end.reason, end.n_sent, end.n_camera_dropped) == (run, "abort", 2, 5)


def test_the_camera_may_overwrite_its_buffer_at_once(daemon: ScriptedDaemon, publisher: Publisher) -> None:
    publisher.start("liver", **RUN)
    daemon.stop()  # so that nothing can have gone out before the buffer changes
    buffer = frame(1)
    publisher.image(buffer)
    buffer[:] = 2
    publisher.image(buffer[::-1])
    buffer[:] = 3
    daemon.start()
    publisher.flush()
    assert [int(pixels(image)[0, 0]) for image in daemon.of_type(Image)] == [1, 2]


@pytest.mark.parametrize("dtype", ["|u1", "<u2", ">u2", "<f4", ">f4"])
def test_every_pixel_type_and_byte_order_goes_out_little_endian(
    daemon: ScriptedDaemon, publisher: Publisher, dtype: str
) -> None:
    given = (np.arange(12).reshape(SHAPE) * 20).astype(dtype)
    publisher.start("liver", shape=SHAPE, dtype=given.dtype, px_um=(1, 1))
    publisher.image(np.asfortranarray(given))
    publisher.flush()
    (start,), (image,) = daemon.of_type(Start), daemon.of_type(Image)
    assert start.dtype == dtype.replace(">", "<")
    np.testing.assert_array_equal(np.frombuffer(image.parts[0], start.dtype).reshape(SHAPE), given)


def test_pzf_payloads_decode_to_the_frame(daemon: ScriptedDaemon) -> None:
    with publishing(daemon.endpoint, codec="pzf") as publisher:
        publisher.start("liver", shape=(64, 64), dtype="uint16", px_um=(1, 1))
        given = np.random.default_rng(1).poisson(50, (64, 64)).astype(np.uint16)
        publisher.image(given)
    (start,), (image,) = daemon.of_type(Start), daemon.of_type(Image)
    check_payload(image, start)
    assert image.codec == "pzf"
    assert image.nbytes < given.nbytes
    np.testing.assert_array_equal(pzf.decode_image(image.parts[0]), given)


def test_calibrations_travel_with_the_start_and_their_digest(daemon: ScriptedDaemon, publisher: Publisher) -> None:
    publisher.start("liver", dark="part:0", flat="part:1", parts=(b"dark", b"flat-field"), **RUN)
    (start,) = daemon.of_type(Start)
    assert (start.nbytes, [bytes(part) for part in start.parts]) == ((4, 10), [b"dark", b"flat-field"])
    assert start.sha256 == tuple(hashlib.sha256(part).hexdigest() for part in start.parts)


def test_several_runs_may_be_open(daemon: ScriptedDaemon, publisher: Publisher) -> None:
    first = publisher.start("left", **RUN)
    second = publisher.start("right", **RUN)
    assert [publisher.image(frame(0)), publisher.image(frame(1), run=first), publisher.image(frame(2))] == [0, 0, 1]
    publisher.end(run=first)
    publisher.end()
    publisher.flush()
    assert [(image.run, image.frame) for image in daemon.of_type(Image)] == [(second, 0), (first, 0), (second, 1)]
    assert [(end.run, end.n_sent) for end in daemon.of_type(End)] == [(first, 1), (second, 2)]


def test_a_recorded_message_keeps_all_but_its_sender(daemon: ScriptedDaemon, publisher: Publisher) -> None:
    who = {"instrument": "elsewhere", "stream": "other", "src": "old", "boot": new_run(), "seq": 77}
    run = new_run()
    start = Start(**who, t_ns=5, run=run, name="old", shape=(1, 2), dtype="|u1", px_um=(1, 1), extra={"new_key": 1})
    image = Image(**who, t_ns=6, run=run, frame=4, codec="raw", nbytes=2, parts=(b"ab",))
    for message in (
        start,
        image,
        Stage(**who, t_ns=7, pos_um=(1, 2)),
        End(**who, t_ns=8, run=run, reason="done", n_sent=5),
    ):
        publisher.send(message)
    publisher.flush()
    assert [m.seq for m in daemon.kept()] == [0, 1, 2, 3]
    assert [m.t_ns for m in daemon.kept()] == [5, 6, 7, 8]
    assert {(m.instrument, m.src, m.boot) for m in daemon.kept()} == {("scope", "cam", publisher.boot)}
    assert [m.stream for m in daemon.kept()] == ["cam", "cam", "other", "cam"], "a stage keeps its stream"
    assert daemon.of_type(Start)[0].extra == {"new_key": 1}
    assert daemon.of_type(Image)[0].crc32 is not None
    with pytest.raises(ValueError, match="no run is open"):
        publisher.image(frame(0))


def test_threads_may_share_a_publisher(daemon: ScriptedDaemon, publisher: Publisher) -> None:
    publisher.start("liver", **RUN)

    def camera(first: int) -> None:
        for number in range(first, first + 20):
            publisher.image(frame(number))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(camera, first) for first in range(0, 80, 20)]:
            done.result()
    publisher.flush()
    images = daemon.of_type(Image)
    assert sorted(image.frame for image in images) == list(range(80))
    assert sorted(int(pixels(image)[0, 0]) for image in images) == list(range(80))
    assert daemon.most_unacknowledged <= daemon.credit


# ---- what is refused before it is sent ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.zeros((4, 3), np.uint16), r"3 × 4 <u2; got 4 × 3 <u2"),
        (np.zeros(SHAPE, np.uint8), r"3 × 4 <u2; got 3 × 4 \|u1"),
        (np.zeros(SHAPE, np.int32), "uint8, uint16 or float32; int32"),
        (np.zeros((3, 4, 3), np.uint16), "rows and columns"),
    ],
)
def test_a_frame_that_is_not_of_its_run_is_refused(publisher: Publisher, bad: np.ndarray[Any, Any], says: str) -> None:
    publisher.start("liver", **RUN)
    with pytest.raises(ValueError, match=says):
        publisher.image(bad)
    assert publisher.image(frame(0)) == 0, "a refused frame takes no number"


def test_a_bad_value_is_refused_where_it_is_given(daemon: ScriptedDaemon, publisher: Publisher) -> None:
    with pytest.raises(ValueError, match="no run is open: call start"):
        publisher.image(frame(0))
    with pytest.raises(ValueError, match="no run is open"):
        publisher.end()
    with pytest.raises(MalformedError, match="px_um"):
        publisher.start("liver", shape=SHAPE, dtype="uint16", px_um=(0, 1))
    publisher.start("liver", **RUN)
    with pytest.raises(ValueError, match="is not open here"):
        publisher.image(frame(0), run=new_run())
    for position in ((math.nan, 0), (1,), (1, 2, 3, 4)):
        with pytest.raises(MalformedError, match="pos_um"):
            publisher.image(frame(0), pos_um=position)
    with pytest.raises(MalformedError, match="header"):
        publisher.event("note", user={"too long": "x" * 70_000})
    with pytest.raises(MalformedError, match="header"):
        publisher.event("note", user={"what": object()})
    for number in range(2 * daemon.credit):  # none of those has taken room
        assert publisher.image(frame(number)) == number


@pytest.mark.parametrize("endpoint", ["127.0.0.1:5570", "tcp://127.0.0.1", "udp://127.0.0.1:5570"])
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="an endpoint looks like tcp://"):
        Publisher(endpoint, instrument="scope", stream="cam")


def test_what_is_no_name_or_mode_is_refused() -> None:
    with pytest.raises(MalformedError, match="instrument"):
        Publisher("tcp://127.0.0.1:1", instrument="my scope", stream="cam")
    with pytest.raises(MalformedError, match="daemon is reserved"):
        Publisher("tcp://127.0.0.1:1", instrument="scope", stream="daemon")
    with pytest.raises(ValueError, match="mode must be"):
        Publisher("tcp://127.0.0.1:1", instrument="scope", stream="cam", mode="req")


# ---- credit ---------------------------------------------------------------------------------------------------------


def test_image_waits_while_the_window_is_full(daemon: ScriptedDaemon, publisher: Publisher) -> None:
    publisher.start("liver", **RUN)
    daemon.set(acking=False)
    for number in range(daemon.credit):
        publisher.image(frame(number))
    with pytest.raises(DisconnectedError, match=r"takes nothing more at present; it says: state ready, 1\.0 GB free"):
        publisher.image(frame(99), timeout_s=MOMENT_S)
    publisher.stage((1, 2))  # which needs no credit
    daemon.wait_for(daemon.has(1, Stage))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(publisher.image, frame(daemon.credit))
        assert not waiting.done()
        daemon.set(acking=True)
        assert waiting.result(PATIENCE_S) == daemon.credit
    publisher.flush()
    assert [int(pixels(image)[0, 0]) for image in daemon.of_type(Image)] == list(range(daemon.credit + 1))
    assert daemon.most_unacknowledged == daemon.credit


def test_nothing_goes_out_while_the_credit_is_nought(daemon: ScriptedDaemon, publisher: Publisher) -> None:
    publisher.start("liver", **RUN)
    daemon.set(credit=0)
    wait_until(lambda: not publisher._outbox.has_room(for_image=True))
    with pytest.raises(DisconnectedError, match="takes nothing more"):
        publisher.image(frame(0), timeout_s=MOMENT_S)
    daemon.set(credit=1)
    publisher.image(frame(0))
    publisher.image(frame(1))
    publisher.flush()
    assert daemon.most_unacknowledged == 1


def test_flush_returns_when_all_is_acknowledged_and_not_before(daemon: ScriptedDaemon, publisher: Publisher) -> None:
    publisher.start("liver", **RUN)
    daemon.set(acking=False)
    publisher.image(frame(0))
    daemon.wait_for(daemon.has(1))
    with pytest.raises(DisconnectedError, match="1 messages, 1 of them images, are not settled, though the daemon"):
        publisher.flush(MOMENT_S)
    assert publisher.n_unsettled == 1
    daemon.set(acking=True)
    publisher.flush()
    assert publisher.n_unsettled == 0


# ---- lost connections -----------------------------------------------------------------------------------------------


def test_what_was_not_acknowledged_comes_again_byte_for_byte(daemon: ScriptedDaemon, publisher: Publisher) -> None:
    run = publisher.start("liver", **RUN)
    publisher.image(frame(0))
    publisher.flush()
    daemon.set(acking=False)
    for number in (1, 2, 3):
        publisher.image(frame(number))
    publisher.stage((1, 2))
    daemon.wait_for(daemon.has(1, Stage))
    before = daemon.seen[2:]
    daemon.stop()
    # Of the first one, the acknowledgement was lost and nothing else.
    daemon.memory.upto_seq[publisher.boot] = 2
    daemon.memory.frames[run].add(1)
    publisher.image(frame(4))  # there is room for one, and it waits
    publisher.end()
    daemon.acking = True
    daemon.start()
    publisher.flush()
    after = daemon.seen[2 + len(before) :]
    assert [seen.parts for seen in after[:3]] == [seen.parts for seen in before[1:]]
    assert after[0].connection != before[0].connection
    assert conversation(after) == [
        (3, "image", 2),
        (4, "image", 3),
        (5, "stage", None),
        (6, "image", 4),
        (7, "end", None),
    ]
    assert [hello.next_seq for hello in daemon.hellos] == [0, 2]
    assert daemon.memory.frames[run] == set(range(5))


def test_a_daemon_that_falls_silent_is_greeted_anew(daemon: ScriptedDaemon) -> None:
    # Its socket stays open, so that nothing but the silence tells.
    with publishing(daemon.endpoint, silence_s=0.2) as publisher:
        publisher.start("liver", **RUN)
        daemon.set(acking=False)
        publisher.image(frame(0))
        daemon.wait_for(lambda: len(daemon.hellos) >= 2)
        daemon.set(acking=True)
        publisher.flush()
        first, *others = daemon.of_type(Image)
        assert others
        assert all(other == first for other in others)
        assert publisher.rejected == []


def test_a_daemon_that_comes_late_is_found(daemon: ScriptedDaemon) -> None:
    daemon.stop()
    with publishing(daemon.endpoint) as publisher, ThreadPoolExecutor(1) as pool:
        starting = pool.submit(publisher.start, "liver", **RUN)
        assert not publisher.connected
        daemon.start()
        starting.result(PATIENCE_S)
        assert publisher.connected
        assert publisher.welcome is not None
        assert publisher.welcome.durability == "fsync"


def test_a_daemon_that_restarts_again_and_again_gets_every_frame_once(daemon: ScriptedDaemon) -> None:
    stopping = threading.Event()

    def restart() -> None:
        while not stopping.is_set():
            n = len(daemon.seen)
            daemon.wait_for(lambda n=n: len(daemon.seen) > n + 5 or stopping.is_set())
            daemon.stop()
            daemon.start()

    with publishing(daemon.endpoint) as publisher:
        run = publisher.start("liver", **RUN)
        chaos = threading.Thread(target=restart)
        chaos.start()
        try:
            for number in range(60):
                publisher.image(frame(number))
            publisher.end()
            publisher.flush()
        finally:
            stopping.set()
            with daemon.changed:
                daemon.changed.notify_all()
            chaos.join()
    assert daemon.memory.frames[run] == set(range(60))
    assert len(daemon.hellos) > 2
    parts_of: dict[int, tuple[bytes, ...]] = {}
    for seen in daemon.seen:
        assert parts_of.setdefault(seen.message.seq, seen.parts) == seen.parts


def test_what_does_not_parse_is_passed_over(
    daemon: ScriptedDaemon, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    publisher.start("liver", **RUN)
    daemon.say([b"tc1/scope/cam/ack", b"\xc1"])
    daemon.say([b"nonsense"])
    publisher.image(frame(0))
    publisher.flush()
    wait_until(lambda: caplog.text.count("passed over a message") == 2)


# ---- rejections -----------------------------------------------------------------------------------------------------


def test_a_run_that_the_daemon_does_not_know_is_told_it(daemon: ScriptedDaemon, publisher: Publisher) -> None:
    run = publisher.start("liver", **RUN)
    daemon.set(acking=False)
    for number in range(3):
        publisher.image(frame(number))
    daemon.wait_for(daemon.has(3))
    del daemon.memory.frames[run]
    daemon.set(acking=True)
    publisher.end()
    publisher.flush()
    assert daemon.memory.frames[run] == {0, 1, 2}
    assert publisher.rejected == []
    assert publisher.n_rejected == 0
    first, second = daemon.of_type(Start)
    assert same_start(first, second)
    assert daemon.of_type(End)[-1].n_sent == 3
    assert [message.seq for message in daemon.kept()] == list(range(len(daemon.kept())))


def test_a_refused_start_raises(daemon: ScriptedDaemon, publisher: Publisher) -> None:
    daemon.judge = lambda message: ("run-conflict", "the run was started as 5 × 5") if message.TYPE == "start" else None
    with pytest.raises(RejectedError, match=r"start was rejected \(run-conflict\): the run was") as caught:
        publisher.start("liver", **RUN)
    assert caught.value.rejected[0].reason == "run-conflict"
    with pytest.raises(ValueError, match="no run is open"):
        publisher.image(frame(0))
    publisher.flush()  # it has been told


def refuse_odd_frames(message: Any) -> tuple[str, str] | None:
    return ("disk-reserve", "free 3 GB on /data") if getattr(message, "frame", 0) % 2 else None


def test_flush_raises_what_was_refused_once(
    daemon: ScriptedDaemon, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    run = publisher.start("liver", **RUN)
    daemon.judge = refuse_odd_frames
    for number in range(6):
        publisher.image(frame(number))
    with pytest.raises(
        RejectedError, match=r"image 1 was rejected \(disk-reserve\): free 3 GB on /data \(and 2 more"
    ) as caught:
        publisher.flush()
    assert [rejected.frame for rejected in caught.value.rejected] == [1, 3, 5]
    assert {rejected.run for rejected in publisher.rejected} == {run}
    assert publisher.n_rejected == 3
    publisher.flush()
    assert caplog.text.count("disk-reserve") == 1, "a flood is told once"
    daemon.judge = None
    publisher.image(frame(7))
    publisher.flush()


def test_leaving_the_with_raises_what_was_refused(daemon: ScriptedDaemon) -> None:
    daemon.judge = refuse_odd_frames

    def scan() -> None:
        with publishing(daemon.endpoint) as publisher:
            publisher.start("liver", **RUN)
            publisher.image(frame(0))
            publisher.image(frame(1))

    with pytest.raises(RejectedError, match="image 1"):
        scan()


def test_a_callback_hears_of_rejections_instead(daemon: ScriptedDaemon, caplog: pytest.LogCaptureFixture) -> None:
    daemon.judge = refuse_odd_frames
    heard: list[Any] = []

    def on_rejected(rejected: Any) -> None:
        heard.append(rejected.frame)
        raise RuntimeError("the script's own mistake")

    with publishing(daemon.endpoint, on_rejected=on_rejected) as publisher:
        publisher.start("liver", **RUN)
        for number in range(4):
            publisher.image(frame(number))
        publisher.flush()
        assert heard == [1, 3]
    assert caplog.text.count("on_rejected, which was given to the publisher, raised") == 2


# ---- heartbeats -----------------------------------------------------------------------------------------------------


def test_heartbeats_tell_the_run_and_how_far_it_is(daemon: ScriptedDaemon) -> None:
    with publishing(daemon.endpoint, heartbeat_s=0.01) as publisher:
        daemon.wait_for(daemon.has(2, Heartbeat))
        assert {(beat.state, beat.run) for beat in daemon.of_type(Heartbeat)} == {("idle", None)}
        run = publisher.start("liver", **RUN)
        publisher.image(frame(0))
        publisher.image(frame(1))
        publisher.flush()
        n = len(daemon.of_type(Heartbeat))
        daemon.wait_for(daemon.has(n + 2, Heartbeat))
        beat = daemon.of_type(Heartbeat)[-1]
        assert (beat.state, beat.run, beat.n_sent) == ("acquiring", run, 2)
        assert set(beat.queues) == {"images", "messages"}
        publisher.end()
        publisher.flush()
        n = len(daemon.of_type(Heartbeat))
        daemon.wait_for(daemon.has(n + 2, Heartbeat))
        assert daemon.of_type(Heartbeat)[-1].state == "idle"
    assert [seen.message.seq for seen in daemon.seen] == list(range(len(daemon.seen)))
    assert len(daemon.of_type(Start)) == 1, "the start is repeated on one-way sockets only"


def test_heartbeats_go_on_while_an_image_waits(daemon: ScriptedDaemon) -> None:
    with publishing(daemon.endpoint, heartbeat_s=0.01) as publisher:
        publisher.start("liver", **RUN)
        daemon.set(acking=False)
        for number in range(daemon.credit):
            publisher.image(frame(number))
        daemon.wait_for(daemon.has(daemon.credit))
        n = len(daemon.of_type(Heartbeat))
        daemon.wait_for(daemon.has(n + 3, Heartbeat))
        daemon.set(acking=True)


# ---- a publisher that died and came back ----------------------------------------------------------------------------


def test_a_publisher_that_came_back_goes_on_with_its_run(daemon: ScriptedDaemon) -> None:
    with publishing(daemon.endpoint) as first:
        run = first.start("liver", **RUN)
        for number in range(3):
            first.image(frame(number))
    with publishing(daemon.endpoint) as second:
        assert second.start("liver", run=run, **RUN) == run
        assert second.image(frame(3)) == 3
        second.end()
    assert second.boot != first.boot
    assert same_start(*daemon.of_type(Start))
    assert daemon.of_type(End)[-1].n_sent == 4
    with publishing(daemon.endpoint) as third:
        state = third.resume(run.upper())
        assert (state.run, state.next_frame, state.received[-1]) == (run, 4, (3, 3))
        assert third.image(frame(4)) == 4
        assert third.image(frame(1), frame=1) == 1, "a frame that was lost may be sent again"
        assert third.image(frame(5)) == 5
    assert daemon.memory.frames[run] == set(range(6))


def test_resume_says_which_runs_there_are(publisher: Publisher) -> None:
    with pytest.raises(ValueError, match=r"knows no run .* of scope/cam; it knows: none"):
        publisher.resume(new_run())
    with publishing("tcp://127.0.0.1:*", mode="pub") as one_way, pytest.raises(ValueError, match="needs mode='ack'"):
        one_way.resume(new_run())


# ---- the daemon is not there ----------------------------------------------------------------------------------------


def test_nobody_there_says_what_to_do(daemon: ScriptedDaemon) -> None:
    daemon.stop()
    with publishing(daemon.endpoint, timeout_s=PATIENCE_S) as publisher:
        wait_until(lambda: bool(publisher._outbox.trouble))
        with pytest.raises(DisconnectedError) as caught:
            publisher.wait_connected(MOMENT_S)
        assert isinstance(caught.value, ConnectionError)
        for said in (daemon.endpoint, "nobody listens there", "tilecast run", "ingest.ack", "waited 0.05 s"):
            assert said in str(caught.value)


def test_somebody_else_there_is_told_apart() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as stranger:
        stranger.bind("tcp://127.0.0.1:*")
        endpoint = stranger.getsockopt_string(zmq.LAST_ENDPOINT)
        with publishing(endpoint, silence_s=0.1) as publisher:
            wait_until(lambda: "does not answer" in publisher._outbox.trouble)
            with pytest.raises(DisconnectedError, match="takes the connection and does not answer"):
                publisher.wait_connected(MOMENT_S)


def test_leaving_by_an_error_raises_that_error_and_notes_what_is_unsettled(daemon: ScriptedDaemon) -> None:
    def scan() -> None:
        with publishing(daemon.endpoint, timeout_s=MOMENT_S) as publisher:
            publisher.wait_connected(PATIENCE_S)
            daemon.set(acking=False)
            publisher.event("fire")
            raise RuntimeError("the camera caught fire")

    with pytest.raises(RuntimeError, match="the camera caught fire") as caught:
        scan()
    assert "Also, while the publisher was closed: 1 messages" in caught.value.__notes__[0]


def test_closing_tells_what_is_lost(daemon: ScriptedDaemon) -> None:
    publisher = Publisher(daemon.endpoint, instrument="scope", stream="cam")
    publisher.start("liver", **RUN)
    daemon.stop()
    publisher.image(frame(0))
    with pytest.raises(DisconnectedError, match="1 messages, 1 of them images, are not settled: no tilecast daemon"):
        publisher.close(MOMENT_S)
    publisher.close()
    with pytest.raises(DisconnectedError, match="sends no more: it was closed"):
        publisher.stage((1, 2))


def test_a_publisher_whose_thread_dies_says_so(
    daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(daemon.endpoint, instrument="scope", stream="cam")
    publisher.wait_connected()
    monkeypatch.setattr(publisher._courier, "_send", lambda: 1 / 0)
    publisher.event("ready")
    with pytest.raises(DisconnectedError, match="sends no more: division by zero"):
        publisher.flush()
    with pytest.raises(DisconnectedError):
        publisher.close()
    assert "the publisher's thread has died" in caplog.text
    assert caplog.records[-1].levelno == logging.ERROR


# ---- keys -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys() -> Callable[[], CurveKeys]:
    return lambda: CurveKeys(*zmq.curve_keypair())


def test_curve_keys(keys: Callable[[], CurveKeys]) -> None:
    servers, mine, other = keys(), keys(), keys()
    with ScriptedDaemon(keys=servers) as daemon:
        with publishing(daemon.endpoint, curve=mine._replace(server=servers.public)) as publisher:
            publisher.start("liver", **RUN)
        for wrong in (mine._replace(server=other.public), None):
            with publishing(daemon.endpoint, curve=wrong, silence_s=0.2) as publisher:
                wait_until(lambda publisher=publisher: "CURVE" in publisher._outbox.trouble)
                with pytest.raises(DisconnectedError, match="CURVE"):
                    publisher.wait_connected(MOMENT_S)
        with pytest.raises(ValueError, match="needs the daemon's public key"):
            Publisher(daemon.endpoint, instrument="scope", stream="cam", curve=mine)


# ---- one-way sockets ------------------------------------------------------------------------------------------------


@contextmanager
def receiving(kind: int, endpoint: str, *, connect: bool, subscribe: str = "tc1/scope/") -> Iterator[Any]:
    """A PULL or SUB socket and its address; `receive()` gives the next message."""

    class Receiver:
        def __init__(self, socket: Any) -> None:
            self.socket = socket
            self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)

        def receive(self) -> Any:
            assert self.socket.poll(PATIENCE_S * 1000), "nothing came"
            return parse(self.socket.recv_multipart())

        def until(self, kind: type[Any]) -> Any:
            while not isinstance(message := self.receive(), kind):
                pass
            return message

    with zmq.Context() as context, context.socket(kind) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, 1)
        if kind == zmq.SUB:
            socket.setsockopt_string(zmq.SUBSCRIBE, subscribe)
        (socket.connect if connect else socket.bind)(endpoint)
        yield Receiver(socket)


def test_push_arrives_in_order_and_the_start_is_repeated() -> None:
    with (
        receiving(zmq.PULL, "tcp://127.0.0.1:*", connect=False) as daemon,
        publishing(daemon.endpoint, mode="push", heartbeat_s=0.01) as publisher,
    ):
        run = publisher.start("liver", dark="part:0", parts=(b"dark",), **RUN)
        for number in range(3):
            publisher.image(frame(number), pos_um=(number, 0))
        start = daemon.until(Start)
        assert start.sha256 == (hashlib.sha256(b"dark").hexdigest(),)
        assert [bytes(part) for part in start.parts] == [b"dark"]
        images = [daemon.until(Image) for _ in range(3)]
        assert [image.frame for image in images] == [0, 1, 2]
        np.testing.assert_array_equal(pixels(images[2]), frame(2))
        repeat = daemon.until(Start)
        assert (repeat.run, repeat.parts, repeat.nbytes) == (run, (), None)
        assert same_start(start, repeat)
        assert repeat.seq > images[2].seq
        beat = daemon.until(Heartbeat)
        assert (beat.run, beat.n_sent) == (run, 3)
        publisher.end()
        assert daemon.until(End).n_sent == 3
        assert daemon.until(Heartbeat).state == "idle"


def test_push_numbers_have_no_holes() -> None:
    with (
        receiving(zmq.PULL, "tcp://127.0.0.1:*", connect=False) as daemon,
        publishing(daemon.endpoint, mode="push", heartbeat_s=0.001) as publisher,
    ):
        publisher.start("liver", **RUN)
        for number in range(20):
            publisher.image(frame(number))
        seqs = [daemon.receive().seq for _ in range(40)]
        assert seqs == list(range(40))


def test_push_waits_while_the_daemon_is_behind() -> None:
    big = (512, 512)
    with (
        receiving(zmq.PULL, "tcp://127.0.0.1:*", connect=False) as daemon,
        publishing(daemon.endpoint, mode="push", queue_bytes=1 << 20, frame_bytes=1 << 19) as publisher,
    ):
        publisher.start("liver", shape=big, dtype="uint16", px_um=(1, 1))
        taken = []
        with pytest.raises(DisconnectedError, match="takes nothing more at present"):
            taken.extend(publisher.image(np.zeros(big, np.uint16), timeout_s=4 * MOMENT_S) for _ in range(1000))
        n_taken = publisher._runs[publisher._current or ""].next_frame
        for number in range(n_taken):
            assert daemon.until(Image).frame == number
        assert publisher.image(np.zeros(big, np.uint16)) == n_taken


def test_push_to_nobody_says_so(daemon: ScriptedDaemon) -> None:
    daemon.stop()
    with publishing(daemon.endpoint, mode="push") as publisher:
        wait_until(lambda: bool(publisher._outbox.trouble))
        with pytest.raises(DisconnectedError, match=r"nobody listens there.*ingest\.pull"):
            publisher.wait_connected(MOMENT_S)


def test_closing_a_push_delivers_what_it_took() -> None:
    big = (1024, 1024)
    with (
        receiving(zmq.PULL, "tcp://127.0.0.1:*", connect=False) as daemon,
        ThreadPoolExecutor(1) as pool,
        publishing(daemon.endpoint, mode="push") as publisher,
    ):
        publisher.start("liver", shape=big, dtype="uint16", px_um=(1, 1))
        for _ in range(10):  # 20 MB: more than fits into the buffers on the way
            publisher.image(np.zeros(big, np.uint16))
        publisher.end()
        publisher.flush()
        closing = pool.submit(publisher.close)
        assert [daemon.receive().TYPE for _ in range(12)] == ["start", *["image"] * 10, "end"]
        closing.result()


def test_pub_binds_and_cures_the_late_joiner() -> None:
    with publishing("tcp://127.0.0.1:*", mode="pub", heartbeat_s=0.02) as publisher:
        assert not publisher.endpoint.endswith("*")
        with pytest.raises(DisconnectedError, match=r"nobody has subscribed.*ingest\.sub"):
            publisher.wait_connected(MOMENT_S)
        run = publisher.start("liver", dark="part:0", parts=(b"dark",), **RUN)
        publisher.image(frame(0))  # which nobody hears
        publisher.flush()
        with receiving(zmq.SUB, publisher.endpoint, connect=True) as daemon:
            publisher.wait_connected()
            start = daemon.until(Start)
            assert (start.run, start.parts, len(start.sha256)) == (run, (), 1)
            assert daemon.until(Heartbeat).n_sent == 1
            publisher.image(frame(1))
            assert daemon.until(Image).frame == 1
        wait_until(lambda: not publisher.connected)


def test_pub_with_keys(keys: Callable[[], CurveKeys]) -> None:
    servers, mine = keys(), keys()
    with (
        publishing("tcp://127.0.0.1:*", mode="pub", curve=servers) as publisher,
        zmq.Context() as context,
        context.socket(zmq.SUB) as socket,
    ):
        socket.setsockopt(zmq.CURVE_SERVERKEY, servers.public)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, mine.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, mine.secret)
        socket.setsockopt_string(zmq.SUBSCRIBE, "tc1/")
        socket.connect(publisher.endpoint)
        publisher.wait_connected()
        publisher.event("hello")
        assert socket.poll(PATIENCE_S * 1000)
        assert isinstance(parse(socket.recv_multipart()), Event)


def test_ipc_works_as_tcp_does(tmp_path: Any) -> None:
    daemon = ScriptedDaemon()
    daemon.endpoint = f"ipc://{tmp_path}/ack"
    with daemon, publishing(daemon.endpoint) as publisher:
        publisher.start("liver", **RUN)
        publisher.image(frame(0))
        publisher.flush()
        assert daemon.has(1)()


def test_messages_are_replaced_not_changed(publisher: Publisher) -> None:
    given = Stage(instrument="a", stream="b", src="c", boot=new_run(), seq=1, t_ns=2, pos_um=(1, 2))
    before = replace(given)
    publisher.send(given)
    publisher.flush()
    assert given == before
