"""Frames joined to the stage stream by time: a real daemon, a stage and a camera that each have a socket of their own.

The stage never stops, and both clocks are wrong by up to a millisecond, if the test says so. All times are made up, so
nothing here takes as long as the scan would; the truth is a formula.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from faults.nursery import ForkedDaemon
from integration.conftest import IMPATIENT, StartDaemon
from integration.scanning import assert_holds, exactly, numbers, pictures, stored_corners, tilecast
from integration.talking import SHAPE, Watcher, new_uuid
from tilecast.process import DaemonProcess
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_protocol.client import Client
from tilecast_protocol.publisher import Publisher

PX_UM = 0.5
SPEED_UM_S = 1000.0
STAGE_MS, FRAME_MS, EXPOSURE_MS = 20.0, 37.0, 4.0
MS = 1_000_000

#: When each test begins: the stage that all of them share must not seem to be in two places at once.
BEGINNINGS_NS = itertools.count(1_700_000_000 * 10**9, 1000 * 10**9)

Path2D = Callable[[float], tuple[float, float]]
"""Where the stage is, µm, at a time in seconds."""


def circle(t_s: float) -> tuple[float, float]:
    """Round and round at 1 mm/s, on a circle of 2 mm."""
    angle = t_s * SPEED_UM_S / 1000.0
    return 1000.0 * math.cos(angle), 1000.0 * math.sin(angle)


def stop_and_go(t_s: float) -> tuple[float, float]:
    """Steps of 50 µm in 50 ms: half of the time it stands, half of it it moves at 2 mm/s."""
    step, rest = divmod(t_s, 0.05)
    return 50.0 * (step + min(1.0, rest / 0.025)), 0.0


class Scan(NamedTuple):
    """What the two programs say. Times in ns: of each stage message, and of each frame's middle of exposure."""

    stage_ns: NDArray[np.int64]
    stage_um: NDArray[np.float64]
    mid_ns: NDArray[np.int64]
    true_um: NDArray[np.float64]


def scan(path: Path2D, seconds: float, jitter_ms: float = 0.0, seed: int = 0) -> Scan:
    """A scan along a path, with clocks that are wrong by up to `jitter_ms`."""
    rng = np.random.default_rng(seed)
    t0_ns = next(BEGINNINGS_NS)
    stage_s = np.arange(0.0, seconds + 1e-9, STAGE_MS / 1e3)
    mid_s = np.arange(0.0113, seconds - 0.021, FRAME_MS / 1e3)

    def clock(times_s: NDArray[np.float64]) -> NDArray[np.int64]:
        wrong_ms = rng.uniform(-jitter_ms, jitter_ms, times_s.size)
        return t0_ns + np.rint(times_s * 1e9 + wrong_ms * MS).astype(np.int64)

    return Scan(
        clock(stage_s),
        np.array([path(t) for t in stage_s]),
        clock(mid_s),
        np.array([path(t) for t in mid_s]),
    )


class Pair:
    """A camera and a stage that speak to one daemon, and someone who listens."""

    def __init__(self, daemon: DaemonProcess, root: Path) -> None:
        self.root = root
        endpoint = daemon.endpoints["ingest.ack"]
        self.watch = Watcher(daemon.endpoints["notify"])
        self.client = Client(None, daemon.endpoints["query"])
        self.camera = Publisher(endpoint, instrument="scope", stream=f"cam-{new_uuid()[:8]}")
        self.stages = Publisher(endpoint, instrument="scope", stream="stage")

    def close(self) -> None:
        for one in (self.camera, self.stages, self.client, self.watch):
            one.close()

    def start(self, **fields: Any) -> str:
        return self.camera.start(
            "moving", shape=SHAPE, dtype="<u2", px_um=(PX_UM, PX_UM), pos_src="stage", stage_stream="stage", **fields
        )

    def stage(self, t_ns: int, pos_um: Any) -> None:
        self.stages.stage(pos_um, t_ns=int(t_ns), moving=True)

    def frame(self, mid_ns: int, pixels: NDArray[Any]) -> int:
        half = round(EXPOSURE_MS * MS / 2)
        return self.camera.image(pixels, t0_ns=int(mid_ns) - half, t1_ns=int(mid_ns) + half)

    def unplaced(self, run: str) -> dict[str, list[list[int]]]:
        """What the query `placements` lists as without a place."""
        return {one["why"]: [list(pair) for pair in one["frames"]] for one in self.client.placements(run).unplaced}

    def wait_placed(self, run: str, n: int) -> None:
        """Wait until so many frames have a place, told by notifications."""
        if len(self.client.placements(run).placed) >= n:
            return
        for message in self.watch.messages():
            if getattr(message, "run", None) == run and len(self.client.placements(run).placed) >= n:
                return
        raise AssertionError(f"{n} frames of {run} are not placed")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("joining")


@pytest.fixture(scope="module")
def daemon(root: Path) -> Iterator[DaemonProcess]:
    """A daemon that takes frames of a moving stage."""
    settings = IMPATIENT | {"join.allow_moving": "true", "join.max_gap_ms": "100"}
    process = ForkedDaemon(root / "runs", settings=settings, log_file=root / "log").start()
    try:
        yield process
        assert process.stop() == 0
    finally:
        process.kill()


@pytest.fixture
def pair(daemon: DaemonProcess, root: Path) -> Iterator[Pair]:
    """The two programs."""
    found = Pair(daemon, root / "runs")
    yield found
    found.close()


def send(pair: Pair, what: Scan) -> tuple[str, dict[int, NDArray[Any]]]:
    """Send a scan, both streams as they come in time; the run, and its frames."""
    sent = pictures(1, len(what.mid_ns))
    run = pair.start()
    for _, kind, number in sorted(
        [(t, "stage", i) for i, t in enumerate(what.stage_ns)] + [(t, "frame", i) for i, t in enumerate(what.mid_ns)]
    ):
        if kind == "stage":
            pair.stage(what.stage_ns[number], what.stage_um[number])
        else:
            pair.frame(what.mid_ns[number], sent[number])
    pair.stages.flush()
    pair.camera.end()
    pair.camera.flush()
    return run, sent


def errors_um(folder: Path, what: Scan) -> NDArray[np.float64]:
    """How far each frame's centre lies from where the stage really was, µm."""
    corners = stored_corners(folder)
    assert sorted(corners) == list(range(len(what.mid_ns)))
    centres = np.array([(corners[n][1] + SHAPE[1] / 2, corners[n][0] + SHAPE[0] / 2) for n in sorted(corners)]) * PX_UM
    return np.hypot(*(centres - what.true_um).T)


def brackets(what: Scan) -> tuple[NDArray[np.float64], float]:
    """Width of each frame's bracket, ms, and the position bound, µm: from the messages alone."""
    after = np.searchsorted(what.stage_ns, what.mid_ns)
    width = what.stage_ns[after] - what.stage_ns[after - 1]
    share = (what.mid_ns - what.stage_ns[after - 1]) / width
    went = np.hypot(*(what.stage_um[after] - what.stage_um[after - 1]).T)
    return width / MS, float(np.max(went * np.maximum(share, 1 - share)))


@pytest.mark.parametrize(("jitter_ms", "allowed_um"), [(0.0, PX_UM), (1.0, 2.0 + PX_UM)], ids=["exact", "jitter"])
def test_every_frame_lies_where_the_stage_was(pair: Pair, jitter_ms: float, allowed_um: float) -> None:
    what = scan(circle, 3.0, jitter_ms, seed=11)
    run, sent = send(pair, what)
    pair.wait_placed(run, len(sent))
    report = pair.watch.report(run)
    assert numbers(report) == exactly(len(sent))

    errors = errors_um(pair.root / run, what)
    assert errors.max() <= allowed_um
    if jitter_ms:
        assert errors.max() > PX_UM, "the clocks were not wrong"
    widths_ms, bound_um = brackets(what)
    joined = report["joined"]
    assert joined["n"] == len(sent)
    assert joined["bracket_ms"]["max"] == pytest.approx(widths_ms.max())
    assert joined["bracket_ms"]["median"] == pytest.approx(np.median(widths_ms), rel=0.011)
    assert joined["position_bound_um"] == pytest.approx(bound_um, rel=1e-6)
    assert_holds(pair.root / run, sent, stored_corners(pair.root / run))


def test_the_bound_of_the_report_holds_for_a_stage_that_stops_and_goes(pair: Pair) -> None:
    what = scan(stop_and_go, 2.0)
    run, sent = send(pair, what)
    pair.wait_placed(run, len(sent))
    report = pair.watch.report(run)
    bound_um = report["joined"]["position_bound_um"]
    errors = errors_um(pair.root / run, what)
    assert bound_um == pytest.approx(brackets(what)[1], rel=1e-6)
    assert errors.max() <= bound_um + PX_UM
    assert errors.max() > 2 * PX_UM, "this stage is one for which the bound matters"


def test_a_frame_waits_for_the_next_stage_message_and_is_then_placed_at_once(pair: Pair) -> None:
    sent, t0_ns = pictures(2, 4), next(BEGINNINGS_NS)
    # The stage speaks before the run begins: its last word is in the run's journal all the same.
    pair.stage(t0_ns, (100.0, 50.0))
    pair.stages.flush()
    run = pair.start()
    for number in range(3):
        pair.frame(t0_ns + (5 + 2 * number) * MS, sent[number])
    pair.camera.flush()
    assert pair.unplaced(run) == {"no-later-stage": [[0, 2]]}
    warning = pair.watch.notice(run, "warning", lambda detail: detail["what"] == "unplaced")
    assert (warning["why"], warning["frames"][0][0]) == ("no-later-stage", 0)
    assert pair.client.report(run)["report"]["n_unplaced"] == 3

    pair.stage(t0_ns + 20 * MS, (120.0, 50.0))
    pair.stages.flush()
    pair.wait_placed(run, 3)
    assert pair.unplaced(run) == {}
    # The run ends before the stage has spoken again: the last frame is placed even so.
    pair.frame(t0_ns + 30 * MS, sent[3])
    pair.camera.end()
    pair.camera.flush()
    assert pair.unplaced(run) == {"no-later-stage": [[3, 3]]}
    pair.stage(t0_ns + 40 * MS, (140.0, 50.0))
    pair.stages.flush()
    pair.wait_placed(run, 4)
    revision = 1
    while (report := pair.watch.report(run, revision))["n_unplaced"]:
        revision += 1
    assert numbers(report) == exactly(4)

    x_um = [105.0, 107.0, 109.0, 130.0]
    corners = {
        n: (math.floor(50 / PX_UM - SHAPE[0] / 2 + 0.5), math.floor(x / PX_UM - SHAPE[1] / 2 + 0.5))
        for n, x in enumerate(x_um)
    }
    assert_holds(pair.root / run, sent, corners)


def test_frames_in_a_gap_stay_unplaced_until_a_stage_message_fills_it(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    settings = IMPATIENT | {"join.allow_moving": "true", "join.max_gap_ms": "100"}
    daemon = start_daemon(**settings)
    pair = Pair(daemon, tmp_path / "runs")
    try:
        sent, t0_ns = pictures(3, 6), next(BEGINNINGS_NS)
        run = pair.start()
        for ms in (0, 20, 40, 200, 220):  # it said nothing for 160 ms
            pair.stage(t0_ns + ms * MS, (float(ms), 0.0))
        pair.stages.flush()
        for number, ms in enumerate((10, 30, 60, 100, 140, 210)):
            pair.frame(t0_ns + ms * MS, sent[number])
        pair.camera.flush()
        pair.wait_placed(run, 3)
        assert pair.unplaced(run) == {"stage-gap": [[2, 4]]}
        # A message that comes late makes two brackets of one, and the first of them is narrow enough.
        pair.stage(t0_ns + 80 * MS, (80.0, 0.0))
        pair.stages.flush()
        pair.wait_placed(run, 4)
        assert pair.unplaced(run) == {"stage-gap": [[3, 4]]}
        pair.camera.end()
        pair.camera.flush()
        report = pair.watch.report(run)
        assert (numbers(report), report["unplaced"]) == (exactly(6, n_unplaced=2), {"stage-gap": [[3, 4]]})
        assert report["joined"]["bracket_ms"]["max"] == pytest.approx(40.0)
    finally:
        pair.close()
    assert daemon.stop() == 0
    folder = tmp_path / "runs" / run
    corners = {
        n: (math.floor(-SHAPE[0] / 2 + 0.5), math.floor(x / PX_UM - SHAPE[1] / 2 + 0.5))
        for n, x in enumerate((10, 30, 60, 100, 140, 210))
    }
    placed = {n: corners[n] for n in (0, 1, 2, 5)}
    assert stored_corners(folder) == placed
    # By the same rules a rebuild comes to the same.
    for arguments in ([], ["--rejoin"]):
        assert "frames 3-4 have no place" in tilecast("rebuild", run, *arguments, store=tmp_path / "runs")
        assert stored_corners(folder) == placed
    with SqliteReader(folder) as reader:
        kept = reader.info().report
    assert kept is not None
    assert kept["unplaced"] == {"stage-gap": [[3, 4]]}
    assert "clean" in tilecast("fsck", run, store=tmp_path / "runs")
