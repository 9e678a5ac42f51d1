"""Viewers that never read, ask without end, or send rubbish: a polite one is answered, and memory has a bound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgpack
import psutil
import pytest
import zmq

from faults.nursery import ForkedDaemon
from integration.talking import PATIENCE_S, PX_UM, Watcher, picture
from tilecast.process import DaemonProcess
from tilecast_protocol.client import Client
from tilecast_protocol.errors import QueryError
from tilecast_protocol.publisher import Publisher

SHAPE = (512, 512)
MIB = 1 << 20


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DaemonProcess, str]]:
    """A daemon with a run of one frame of noise; viewers may ask little."""
    folder: Path = tmp_path_factory.mktemp("rude")
    settings = {
        "viewers.max_in_flight": "8",
        "viewers.max_request_rate": "50",
        "viewers.max_snapshot_tiles": "100",
        "blend.tile_size": "32",
        "log.flood_s": "0",
    }
    daemon = ForkedDaemon(folder / "runs", settings=settings).start()
    try:
        with (
            Watcher(daemon.endpoints["notify"]) as watch,
            Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam") as camera,
        ):
            run = camera.start("noise", shape=SHAPE, dtype="<u2", px_um=PX_UM)
            camera.image(picture(1, SHAPE), pos_um=(SHAPE[1] / 2 * PX_UM[0], SHAPE[0] / 2 * PX_UM[1]))
            camera.flush()
            watch.placed(run, 1)
            camera.end()
            camera.flush()
        yield daemon, run
        assert daemon.stop() == 0, list(daemon.log)[-20:]
    finally:
        daemon.kill()


@pytest.fixture
def rude(scanned: tuple[DaemonProcess, str]) -> Iterator[zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger, socket.sndhwm, socket.rcvhwm, socket.rcvbuf = 0, 100_000, 1, 4096
    socket.connect(scanned[0].endpoints["query"])
    yield socket
    socket.close()
    context.term()


def ask(socket: zmq.Socket[bytes], number: int, cmd: str, **arguments: object) -> None:
    socket.send(msgpack.packb({"v": 1, "id": number, "cmd": cmd} | arguments))


def codes(socket: zmq.Socket[bytes], last: int) -> dict[int, str]:
    """What each question was answered with, until the last is."""
    found: dict[int, str] = {}
    while last not in found:
        assert socket.poll(PATIENCE_S * 1000)
        header = msgpack.unpackb(next(filter(None, socket.recv_multipart())))  # behind a REQ's empty part, or not
        found[header["id"]] = "ok" if header["ok"] else header["error"]["code"]
    return found


def test_who_asks_too_fast_is_told_and_who_goes_on_is_not_even_told(
    scanned: tuple[DaemonProcess, str], rude: zmq.Socket[bytes]
) -> None:
    daemon, _ = scanned
    for number in range(2000):
        ask(rude, number, "health")
    with Client(None, daemon.endpoints["query"]) as polite:
        assert polite.health()["ready"]
    line = daemon.wait_logged("viewer asks too much", why="you ask more than 50 questions per second")
    assert line["address"] == "127.0.0.1"
    found: list[str] = []
    while rude.poll(500):
        header = msgpack.unpackb(rude.recv_multipart()[0])
        found.append("ok" if header["ok"] else header["error"]["code"])
    assert set(found) == {"ok", "busy"}
    assert found.count("ok") < 500
    assert len(found) < 1000, "most were not worth an answer"


def test_who_never_reads_costs_little_memory_and_nobody_waits(
    scanned: tuple[DaemonProcess, str], rude: zmq.Socket[bytes]
) -> None:
    daemon, run = scanned
    process = psutil.Process(daemon.pid)
    region = {"run": run, "tcz": (0, 0, 0), "level": 0, "bounds": (0, 0, 320, 320)}
    before = process.memory_info().rss
    for number in range(400):
        ask(rude, number, "region", **region)
    with Client(None, daemon.endpoints["query"]) as polite:
        for _ in range(20):
            assert polite.health()["ready"]
        assert process.memory_info().rss - before < 64 * MIB


def test_absurd_regions_are_refused_before_anything_is_read(scanned: tuple[DaemonProcess, str]) -> None:
    daemon, run = scanned
    far = 1 << 30
    with Client(None, daemon.endpoints["query"]) as client:
        for bounds, what in {(-far, -far, far, far): "pixels", (0, 0, 1, 1 << 20): "tiles"}.items():
            with pytest.raises(QueryError, match=f"may (have|touch) .* {what}") as caught:
                client.ask("region", run=run, tcz=(0, 0, 0), level=0, bounds=bounds)
            assert caught.value.code == "too-large"


@pytest.mark.parametrize("rubbish", [[b""], [b"\xc1" * 100], [b"a", b"b", b"c"], [b"", b"", b""], [bytes(100_000)]])
def test_rubbish_is_answered_and_forgotten(rude: zmq.Socket[bytes], rubbish: list[bytes]) -> None:
    rude.send_multipart(rubbish)
    ask(rude, 7, "health")
    assert codes(rude, 7)[7] == "ok"


def test_a_request_beyond_all_measure_ends_the_connection(
    scanned: tuple[DaemonProcess, str], rude: zmq.Socket[bytes]
) -> None:
    events = rude.get_monitor_socket(zmq.Event.DISCONNECTED)
    rude.send(bytes(8 * MIB))
    assert events.poll(PATIENCE_S * 1000)
    rude.disable_monitor()
    events.close()
    with Client(None, scanned[0].endpoints["query"]) as polite:
        assert polite.health()["ready"]


def test_answers_that_nobody_reads_have_a_limit_for_each_viewer_and_for_all(tmp_path: Path) -> None:
    """Above it a viewer is told `busy`, until it has read; others are answered as ever."""
    settings = {"viewers.unread_bytes": "4MiB", "viewers.unread_bytes_of_all": "10MiB", "log.flood_s": "0"}
    with ForkedDaemon(tmp_path / "runs", settings=settings) as daemon:
        endpoint = daemon.endpoints["query"]
        with (
            Watcher(daemon.endpoints["notify"]) as watch,
            Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam") as camera,
        ):
            run = camera.start("noise", shape=SHAPE, dtype="<u2", px_um=PX_UM)
            camera.image(picture(1, SHAPE), pos_um=(SHAPE[1] / 2 * PX_UM[0], SHAPE[0] / 2 * PX_UM[1]))
            camera.flush()
            watch.placed(run, 1)
        region = {"run": run, "tcz": (0, 0, 0), "level": 0, "bounds": (0, 0, *SHAPE), "codec": "raw"}
        # 0.5 MB each, all of them more than ZeroMQ and the kernel hold between us.
        n, whys = 48, {"you have not read": 0, "viewers, you among them, have not read": 0}
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        rude = [context.socket(zmq.DEALER) for _ in range(5)]
        try:
            for number, socket in enumerate(rude):
                socket.linger, socket.rcvhwm, socket.rcvbuf = 0, 1, 4096
                socket.connect(endpoint)
                for question in range(n):
                    ask(socket, question, "region", **region)
                # The daemon has got to the last question of one before the next begins.
                daemon.wait_logged("viewer asks too much", timeout_s=PATIENCE_S)
                with Client(None, endpoint) as polite:
                    assert polite.health()["ready"], number
                    assert polite.region(run, level=0, bounds=(0, 0, 8, 8)).pixels.shape == (8, 8)
            for line in list(daemon.log):
                for why in whys:
                    whys[why] += line.get("event") == "viewer asks too much" and line["why"].startswith(why)
            assert all(whys.values()), whys
            for socket in rude:
                found = [codes_of(socket) for _ in range(n)]
                assert {"ok", "busy"} >= set(found)
                assert 4 * MIB // (SHAPE[0] * SHAPE[1] * 2) < found.count("ok") < n or socket is not rude[0]
            # Whoever has read is answered again.
            ask(rude[0], n, "region", **region)
            assert codes_of(rude[0]) == "ok"
        finally:
            context.destroy(0)


def codes_of(socket: zmq.Socket[bytes]) -> str:
    """What the next answer says."""
    assert socket.poll(PATIENCE_S * 1000)
    header = msgpack.unpackb(socket.recv_multipart()[0])
    return "ok" if header["ok"] else str(header["error"]["code"])
