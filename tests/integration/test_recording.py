"""What comes from PUB sockets: kept by `tilecast record`, or shown live with exact holes where the network lost it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgpack
import numpy as np
import pytest
import zmq

from integration.conftest import Station
from integration.scanning import assert_holds, exactly, info, numbers, pictures, tilecast
from integration.talking import PX_UM, SHAPE, centre_um
from tilecast_protocol.messages import RunNotice
from tilecast_protocol.publisher import Publisher

MS = 1_000_000


@pytest.fixture
def sockets() -> Iterator[str]:
    """A folder for ipc sockets, whose paths may have about a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="tilecast-") as folder:
        yield f"ipc://{folder}"


class LossyNetwork:
    """Carries what a PUB socket sends to those who subscribe at another endpoint, and loses some of it.

    Parameters
    ----------
    source, target : str
        Endpoints: connected to, and bound.
    loses : callable
        Given the type and the header of a message, whether it is lost.

    Attributes
    ----------
    lost : list of int
        The `seq` of what was lost.
    """

    def __init__(self, source: str, target: str, loses: Callable[[str, dict[str, object]], bool]) -> None:
        self.lost: list[int] = []
        self._loses = loses
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._source, self._target = self._context.socket(zmq.XSUB), self._context.socket(zmq.XPUB)
        for socket in (self._source, self._target):
            socket.linger = 0
            socket.rcvhwm = socket.sndhwm = 0
        self._source.connect(source)
        self._target.bind(target)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._source, zmq.POLLIN)
        poller.register(self._target, zmq.POLLIN)
        while not self._stopping.is_set():
            ready = dict(poller.poll(50))
            if self._target in ready:
                self._source.send_multipart(self._target.recv_multipart())
            if self._source in ready:
                parts = self._source.recv_multipart()
                header = msgpack.unpackb(parts[1])
                if self._loses(header["type"], header):
                    self.lost.append(header["seq"])
                else:
                    self._target.send_multipart(parts)
        self._source.close()
        self._target.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self._context.term()


def side_by_side(frame: int) -> tuple[int, int]:
    """Upper left pixel of a frame of a scan without overlap, five to a row."""
    row, col = divmod(frame, 5)
    return row * SHAPE[0], col * SHAPE[1]


def test_a_recording_of_two_published_streams_gives_the_same_mosaic(sockets: str, tmp_path: Path) -> None:
    sent = pictures(1, 20)
    camera_at, stage_at = f"{sockets}/camera", f"{sockets}/stage"
    runs = tmp_path / "recordings"
    command = [sys.executable, "-m", "tilecast", "record", camera_at, stage_at, "--runs", "1"]
    recorder = subprocess.Popen(
        [*command, "--set", f"store.path={runs}", "--set", "blend.tile_size=32"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with (
            Publisher(camera_at, instrument="scope", stream="cam", mode="pub", timeout_s=60) as camera,
            Publisher(stage_at, instrument="scope", stream="stage", mode="pub", timeout_s=60) as stage,
        ):
            camera.wait_connected()
            stage.wait_connected()
            # Less than join.max_gap_ms altogether, so that it does not matter which of the two is heard first.
            t0_ns = time.time_ns()
            for frame in range(20):
                stage.stage(centre_um(*side_by_side(frame)), t_ns=t0_ns + 10 * frame * MS, moving=False)
            run = camera.start("recorded", shape=SHAPE, dtype="<u2", px_um=PX_UM, pos_src="stage", stage_stream="stage")
            for frame in range(20):
                t_ns = t0_ns + 10 * frame * MS
                camera.image(sent[frame], t0_ns=t_ns - MS, t1_ns=t_ns + MS)
            camera.end(n_camera_dropped=2)
            said, complaints = recorder.communicate(timeout=60)  # it ends by itself
    finally:
        recorder.kill()
    assert recorder.returncode == 0, complaints
    assert f"run {run} ended: 20 of 20 frames" in said
    assert not (runs / run / "tiles.sqlite").exists()

    assert "20 frames" in tilecast("rebuild", run, store=runs)
    assert_holds(runs / run, sent, {frame: side_by_side(frame) for frame in sent})
    facts = info(run, runs)
    assert (facts["state"], facts["name"]) == ("ended", "recorded")
    assert numbers(facts["report"]) == exactly(20)
    assert (facts["report"]["camera_dropped"], facts["report"]["placed"]) == (2, 20)
    assert "clean" in tilecast("fsck", run, store=runs)


@pytest.mark.parametrize("end_is_lost", [False, True], ids=["end comes", "end is lost"])
def test_what_a_pub_socket_lost_is_reported_exactly_and_is_a_hole(
    station: Station, sockets: str, end_is_lost: bool
) -> None:
    sent = pictures(2, 20)
    lost = {5, 6, 7, 11, 17, 18, 19}

    def loses(kind: str, header: dict[str, object]) -> bool:
        return (kind == "image" and header["frame"] in lost) or (kind == "end" and end_is_lost)

    stream = f"lossy-{int(end_is_lost)}"
    source = f"{sockets}/camera"
    with (
        Publisher(source, instrument="scope", stream=stream, mode="pub", heartbeat_s=0.2) as camera,
        LossyNetwork(source, station.pub[2 + end_is_lost], loses) as network,
    ):
        camera.wait_connected()
        run = camera.start("lossy", shape=SHAPE, dtype="<u2", px_um=PX_UM)
        for frame in range(20):
            camera.image(sent[frame], pos_um=centre_um(*side_by_side(frame)))
        # Of the tail only the heartbeats know, which say how many were sent.
        gaps: set[int] = set()
        for message in station.watch.messages():
            if isinstance(message, RunNotice) and (message.run, message.kind) == (run, "gap"):
                if message.detail["what"] == "frames":
                    gaps |= {n for first, last in message.detail["missing"] for n in range(first, last + 1)}
                if gaps >= lost:
                    break
        assert gaps == lost
        camera.end()
        if end_is_lost:
            camera.flush()
            station.client.end(run)
        report = station.watch.report(run)
        holes = [[5, 7], [11, 11], [17, 19]]
        assert numbers(report) == exactly(20, received=13, missing=holes)
        assert (report["n_missing"], report["expected_from"]) == (7, "heartbeat" if end_is_lost else "end")
        assert report["reason"] == ("abort" if end_is_lost else "done")
        notices = [one.detail for one in station.watch.notices(run) if one.kind == "gap"]
        ranges = [pair for one in notices if one["what"] == "messages" for pair in one["missing"]]
        numbered = {n for first, last in ranges for n in range(first, last + 1)}
        assert numbered == set(network.lost[: len(lost)])

    came = {frame: pixels for frame, pixels in sent.items() if frame not in lost}
    found = station.client.region(run, 0, (0, 0, 4 * SHAPE[0], 5 * SHAPE[1]))
    for frame in sent:
        row, col = side_by_side(frame)
        part = np.s_[row : row + SHAPE[0], col : col + SHAPE[1]]
        if frame in lost:
            assert not found.coverage[part].any()
            assert not found.pixels[part].any()
        else:
            assert found.coverage[part].all()
            np.testing.assert_array_equal(found.pixels[part], sent[frame])
    assert_holds(station.folder(run), came, {frame: side_by_side(frame) for frame in came})
    said = info(run, station.root)["report"]
    assert (said["missing"], said["expected"], said["received"]) == (holes, 20, 13)
