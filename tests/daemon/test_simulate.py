"""The simulated microscope: that what it says about its frames is the truth."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zmq

from tilecast.geometry import Rect, place_centre
from tilecast.simulate import FrameEvent, Microscope, Order, Specimen, StageEvent, run_scan
from tilecast_protocol.messages import End, Heartbeat, Image, Stage, Start, parse
from tilecast_protocol.publisher import Publisher


def small(**changes: Any) -> Microscope:
    return Microscope(**{"shape": (48, 64), "grid": (3, 4), "overlap": 0.25, "stage_hz": 200.0} | changes)


def frames_of(scope: Microscope, fps: float = 10) -> list[FrameEvent]:
    return [event for event in scope.events(fps) if isinstance(event, FrameEvent)]


def stages_of(scope: Microscope, fps: float = 10) -> list[StageEvent]:
    return [event for event in scope.events(fps) if isinstance(event, StageEvent)]


class TestSpecimen:
    def test_is_the_same_however_it_is_asked_for(self) -> None:
        whole = Specimen(3).region(Rect(-600, -700, 700, 800))
        forgetful = Specimen(3, cache_bytes=0)
        for rect in (Rect(500, -700, 700, 800), Rect(-600, -700, 700, -699), Rect(-5, -5, 5, 5)):
            piece = forgetful.region(rect)
            assert np.array_equal(piece, whole[rect.row0 + 600 : rect.row1 + 600, rect.col0 + 700 : rect.col1 + 700])

    def test_has_something_to_see_everywhere_and_no_seams(self) -> None:
        image = Specimen(0).region(Rect(-512, -512, 1536, 1536))
        assert image.min() >= 0
        assert 0.8 < np.percentile(image, 99.9) < 3
        tiles = image.reshape(16, 128, 16, 128)
        assert tiles.std(axis=(1, 3)).min() > 0.004
        steps = np.abs(np.diff(image, axis=0)).mean(axis=1)
        seams = steps[[511, 1023, 1535]]
        assert seams.max() < 2 * np.median(steps)

    def test_another_seed_is_another_specimen(self) -> None:
        rect = Rect(0, 0, 200, 200)
        assert not np.array_equal(Specimen(0).region(rect), Specimen(1).region(rect))

    def test_what_is_handed_out_belongs_to_the_caller(self) -> None:
        specimen = Specimen(0)
        before = specimen.region(Rect(0, 0, 50, 50))
        specimen.region(Rect(0, 0, 50, 50))[:] = 9
        assert np.array_equal(specimen.region(Rect(0, 0, 50, 50)), before)


class TestScan:
    @pytest.mark.parametrize("order", ["serpentine", "raster", "spiral", "random"])
    @pytest.mark.parametrize("grid", [(3, 4), (1, 5), (5, 2), (1, 1)])
    def test_every_position_is_visited_once(self, order: Order, grid: tuple[int, int]) -> None:
        scope = small(order=order, grid=grid, jitter_um=0)
        events = frames_of(scope)
        assert [event.frame for event in events] == list(range(grid[0] * grid[1]))
        corners = {(event.row, event.col) for event in events}
        assert len(corners) == scope.n_frames
        assert sorted({row for row, _ in corners}) == [min(r for r, _ in corners) + 36 * n for n in range(grid[0])]
        assert sorted({col for _, col in corners}) == [min(c for _, c in corners) + 48 * n for n in range(grid[1])]

    def test_serpentine_turns_at_the_end_of_each_row(self) -> None:
        cols = [event.col for event in frames_of(small(jitter_um=0))]
        assert cols[:4] == cols[11:7:-1] or cols[:4] == cols[8:12]
        assert cols[4:8] == cols[:4][::-1]

    @pytest.mark.parametrize("affine", [None, ((0.5, 0.0), (0.0, -0.5)), ((0.0, 0.65), (-0.65, 0.0))])
    def test_the_reported_position_is_where_the_pixels_come_from(self, affine: Any) -> None:
        scope = small(affine=affine, centre_um=(1000, -3000), dtype="<f4", noise=False, vignetting=0, offset=0)
        for event in frames_of(scope):
            assert event.pos_um == event.true_um
            assert (event.row, event.col) == place_centre(event.pos_um, scope.camera_affine, scope.shape)
            specimen = scope.specimen.region(Rect(event.row, event.col, event.row + 48, event.col + 64))
            assert np.array_equal(scope.image(event), specimen * np.float32(scope.photons))
        (x0, y0), (x1, y1) = scope.extent_um()
        assert x0 < event.set_um[0] < x1
        assert y0 < event.set_um[1] < y1

    def test_the_extent_is_the_outer_edge(self) -> None:
        scope = small(jitter_um=0, centre_um=(0, 0), px_um=(0.5, 0.25))
        events = frames_of(scope)
        (x0, y0), (x1, y1) = scope.extent_um()
        assert (x0 / 0.5, y0 / 0.25) == (min(e.col for e in events), min(e.row for e in events))
        assert (x1 / 0.5, y1 / 0.25) == (max(e.col for e in events) + 64, max(e.row for e in events) + 48)

    def test_jitter_and_readout_are_as_large_as_was_said(self) -> None:
        events = frames_of(small(grid=(20, 20), jitter_um=2.0, readout_um=0.1))
        stops = np.array([np.subtract(event.true_um, event.set_um) for event in events])
        reads = np.array([np.subtract(event.pos_um, event.true_um) for event in events])
        assert 1.8 < stops.std() < 2.2
        assert 0.09 < reads.std() < 0.11

    def test_the_same_again(self) -> None:
        first, second = small(readout_um=0.1, clock_jitter_ms=1), small(readout_um=0.1, clock_jitter_ms=1)
        events = list(first.events(10))
        assert events == list(second.events(10)) == list(first.events(10))
        frame = frames_of(first)[3]
        assert np.array_equal(first.image(frame), second.image(frame))
        assert not np.array_equal(first.image(frame), first.image(frames_of(first)[4]))


class TestTime:
    @pytest.mark.parametrize("sweep", [False, True])
    def test_events_are_in_order_and_every_frame_is_bracketed(self, sweep: bool) -> None:
        events = list(small(sweep=sweep).events(10, t_start_ns=1_000_000))
        assert [event.t_ns for event in events] == sorted(event.t_ns for event in events)
        times = [event.t_ns for event in events if isinstance(event, StageEvent)]
        assert times[0] == 1_000_000
        assert {late - early for early, late in itertools.pairwise(times)} == {5_000_000}
        for frame in (event for event in events if isinstance(event, FrameEvent)):
            assert times[0] <= frame.t0_ns < frame.t1_ns < times[-1]
            assert frame.t1_ns - frame.t0_ns == 10_000_000
            assert frame.t_ns == frame.t1_ns == 1_000_000 + (frame.frame + 1) * 100_000_000

    def test_it_stands_still_for_a_frame_and_moves_between(self) -> None:
        scope = small()
        for frame in frames_of(scope):
            assert not frame.moving
            during = [s for s in stages_of(scope) if frame.t0_ns <= s.t_ns <= frame.t1_ns]
            assert during
            assert {(s.true_um, s.moving) for s in during} == {(frame.true_um, False)}
        between = [s for s in stages_of(scope) if 110e6 < s.t_ns < 180e6]
        assert all(s.moving for s in between)
        assert len({s.true_um for s in between}) == len(between)
        first = [s for s in stages_of(scope) if s.t_ns <= 100e6]
        assert not any(s.moving for s in first)
        assert len({s.true_um for s in first}) == 1

    def test_a_sweep_at_1_mm_per_s_passes_frames_where_the_stage_says(self) -> None:
        scope = small(sweep=True, jitter_um=0, grid=(1, 20), px_um=(1.0, 1.0), stage_hz=50.0)
        fps = 1000 / 48  # 48 px of 1 µm from frame to frame
        stages = stages_of(scope, fps)
        times = np.array([s.t_ns for s in stages])
        xs = np.array([s.pos_um[0] for s in stages])
        assert np.allclose(np.diff(xs) / np.diff(times) * 1e9, 1000)
        for frame in frames_of(scope, fps):
            assert frame.moving
            x = np.interp((frame.t0_ns + frame.t1_ns) / 2, times, xs)
            assert x == pytest.approx(frame.true_um[0], abs=0.01)
            assert frame.true_um == pytest.approx(frame.set_um, abs=0.01)

    def test_clocks_are_wrong_by_as_much_as_was_said(self) -> None:
        exact, wrong = small(grid=(10, 10)), small(grid=(10, 10), clock_jitter_ms=1.0)
        errors = np.array([b.t0_ns - a.t0_ns for a, b in zip(frames_of(exact), frames_of(wrong), strict=True)]) / 1e6
        assert -1 <= errors.min() < -0.8
        assert 0.8 < errors.max() <= 1
        assert [f.true_um for f in frames_of(exact)] == [f.true_um for f in frames_of(wrong)]
        stage = np.array([b.t_ns - a.t_ns for a, b in zip(stages_of(exact), stages_of(wrong), strict=True)]) / 1e6
        assert 0.9 < np.abs(stage).max() <= 1


class TestCamera:
    @pytest.mark.parametrize("dtype", ["|u1", "<u2", "<f4"])
    def test_delivers_its_type(self, dtype: Any) -> None:
        scope = small(dtype=dtype)
        image = scope.image(frames_of(scope)[0])
        assert image.dtype == np.dtype(dtype)
        assert image.shape == (48, 64)
        assert image.max() > image.min()

    def test_noise_is_that_of_photons(self) -> None:
        scope = Microscope(shape=(400, 400), grid=(1, 1), read_noise=5, dtype="<f4")
        quiet = Microscope(shape=(400, 400), grid=(1, 1), noise=False, dtype="<f4")
        (event,) = frames_of(scope)
        light = quiet.image(event) - 100
        residue = (scope.image(event) - quiet.image(event)) / np.sqrt(light + 25)
        assert abs(residue.mean()) < 0.01
        assert 0.99 < residue.std() < 1.01
        bright = light > np.median(light)
        assert 0.98 < residue[bright].std() < 1.02

    def test_grey_levels_are_rounded_light(self) -> None:
        exact, whole = (small(noise=False, dtype=dtype) for dtype in ("<f4", "<u2"))
        event = frames_of(exact)[5]
        assert np.array_equal(whole.image(event), np.rint(exact.image(event)))

    def test_the_flat_field_is_the_truth(self) -> None:
        dim, even = (small(noise=False, dtype="<f4", offset=0, vignetting=v) for v in (0.3, 0.0))
        event = frames_of(dim)[0]
        assert np.allclose(dim.image(event) / even.image(event), dim.flat, rtol=1e-5)
        assert dim.flat.max() == pytest.approx(1, abs=0.001)
        assert dim.flat.min() == pytest.approx(0.7, abs=0.02)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"overlap": 1.0}, "10 % is 0.1"),
            ({"overlap": 10}, "10 % is 0.1"),
            ({"dtype": "<i4"}, "delivers"),
            ({"grid": (0, 3)}, "at least one"),
            ({"order": "zigzag"}, "serpentine"),
        ],
    )
    def test_nonsense_is_refused(self, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            small(**wrong)


class Wire:
    """A PULL socket, two real publishers that push to it, and what came."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.rcvhwm = 0
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        camera, stage = (
            Publisher(f"tcp://127.0.0.1:{port}", instrument="scope", stream=stream, mode="push")
            for stream in ("camera", "stage")
        )
        self.camera, self.stage = camera, stage

    def close(self) -> None:
        for publisher in (self.camera, self.stage):
            publisher.close()
        self._socket.close(0)
        self._context.term()

    def received(self) -> tuple[list[Any], list[Any]]:
        """All messages of the camera and of the stage, without heartbeats and the starts that they repeat."""
        self.camera.flush()
        self.stage.flush()
        messages: list[Any] = []
        while not any(isinstance(message, End) for message in messages) or self._socket.poll(200):
            assert self._socket.poll(10_000), "the end of the run did not come"
            message = parse(self._socket.recv_multipart(copy=False))
            if not isinstance(message, Heartbeat) and not (
                isinstance(message, Start) and any(isinstance(known, Start) for known in messages)
            ):
                messages.append(message)
        return [m for m in messages if m.stream == "camera"], [m for m in messages if m.stream == "stage"]


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


class TestRunScan:
    def test_tells_the_whole_story(self, wire: Wire) -> None:
        scope, seen = small(), []
        run = run_scan(
            wire.camera,
            wire.stage,
            scope,
            fps=50,
            paced=False,
            name="liver",
            start_fields={"blend": "mean"},
            on_frame=seen.append,
        )
        (start, *images, end), stages = wire.received()
        assert (start.run, start.name, start.shape, start.dtype, start.n_expected, start.pos_src, start.blend) == (
            run, "liver", (48, 64), "<u2", 12, "frame", "mean",
        )  # fmt: skip
        assert start.extent_um == scope.extent_um()
        assert (end.reason, end.n_sent) == ("done", 12)
        assert seen == list(range(1, 13))
        assert {type(message) for message in stages} == {Stage}
        for event, image in zip(frames_of(scope), images, strict=True):
            assert (image.frame, image.pos_um, image.set_um, image.moving) == (
                event.frame, event.pos_um, event.set_um, False,
            )  # fmt: skip
            assert np.array_equal(np.frombuffer(image.parts[0], "<u2").reshape(48, 64), scope.image(event))

    def test_frames_that_are_to_be_joined_bring_no_position(self, wire: Wire) -> None:
        run_scan(wire.camera, wire.stage, small(), fps=50, paced=False, pos_src="stage")
        (start, *images, _), stages = wire.received()
        assert start.pos_src == "stage"
        assert {image.pos_um for image in images} == {None}
        assert stages[0].t_ns < images[0].t0_ns
        assert stages[-1].t_ns > images[-1].t1_ns

    def test_joining_needs_a_stage(self, wire: Wire) -> None:
        with pytest.raises(ValueError, match="need a stage publisher"):
            run_scan(wire.camera, None, small(), fps=50, pos_src="stage")

    def test_keeps_to_its_clock(self, wire: Wire) -> None:
        started_s = time.monotonic()
        run_scan(wire.camera, None, small(grid=(1, 4)), fps=10)
        assert time.monotonic() - started_s >= 0.4

    def test_can_be_stopped(self, wire: Wire) -> None:
        stop = threading.Event()
        run_scan(
            wire.camera,
            None,
            small(),
            fps=50,
            paced=False,
            on_frame=lambda n: stop.set() if n == 5 else None,
            stop=stop,
        )
        camera, stages = wire.received()
        assert [type(message) for message in camera] == [Start, *[Image] * 5, End]
        assert (camera[-1].reason, camera[-1].n_sent) == ("abort", 5)
        assert stages == []
