"""The ingest machine, rule by rule of PROTOCOL sections 1 and 2, with a thread that has no sockets and no clock."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ingest_harness import ACK, MS, OTHER_RUN, PULL, RUN, SUB, T0, Camera, S, StageSource, Thread
from tilecast.geometry import PlaneKey
from tilecast.ingest import joining, live_run
from tilecast.ingest.machine import IngestMachine
from tilecast.ingest.settings import IngestSettings
from tilecast.ingest.verdicts import Accept, Drop, DropReason, Hold, IngestPath, NeedsRun, Reject, Reload, RunPhase
from tilecast_protocol.errors import MalformedError
from tilecast_protocol.messages import Image, Start

REPEATED = Drop(DropReason.REPEATED_START, RUN)
RESENT = Drop(DropReason.RESENT, RUN)
DUPLICATE = Drop(DropReason.DUPLICATE, RUN)


def placed_image(camera: Camera, frame: int, **changes: Any) -> Image:
    return camera.image(frame, pos_um=(4.0 + 8 * frame, 4.0), **changes)


def opened(path: IngestPath = ACK, settings: IngestSettings | None = None, **start: Any) -> tuple[Thread, Camera]:
    """A thread with one open run, and its camera."""
    thread, camera = Thread(settings), Camera()
    verdict = thread.send(camera.start(**start), path)
    assert isinstance(verdict, Accept)
    return thread, camera


def reason_of(verdict: object) -> str:
    assert isinstance(verdict, Reject), verdict
    assert verdict.message
    return verdict.reason


class TestStart:
    def test_it_opens_a_run(self) -> None:
        thread, _ = opened()
        assert thread.phases == [(RUN, RunPhase.OPEN)]
        assert thread.kinds() == ["start"]

    def test_a_repeat_changes_nothing_also_by_another_process_at_another_time(self) -> None:
        thread, camera = opened()
        assert thread.send(camera.start()) == REPEATED
        assert thread.send(Camera(boot=9).start(t_ns=T0 + S)) == REPEATED
        assert thread.kinds() == ["start"]

    @pytest.mark.parametrize(
        "change", [{"name": "other"}, {"px_um": (1.0, 2.0)}, {"user": {"a": 1}}, {"n_expected": 3}]
    )
    def test_one_that_says_anything_else_is_a_conflict_and_the_first_stands(self, change: dict[str, Any]) -> None:
        thread, camera = opened()
        assert reason_of(thread.send(camera.start(**change))) == "run-conflict"
        assert thread.send(camera.start()) == REPEATED

    def test_the_run_of_another_stream_is_elsewhere(self) -> None:
        thread, _ = opened()
        assert reason_of(thread.send(Camera("cam2").start())) == "run-elsewhere"
        assert reason_of(thread.send(Camera(instrument="scope2").start())) == "run-elsewhere"
        assert reason_of(thread.send(Camera("cam2").image(0))) == "run-elsewhere"
        assert reason_of(thread.send(Camera("cam2").end(1))) == "run-elsewhere"
        assert thread.machine.report(RUN)["rejected"] == {"run-elsewhere": 4}

    def test_a_repeat_never_reopens(self) -> None:
        thread, camera = opened()
        thread.send(camera.end(0))
        assert thread.send(camera.start()) == REPEATED
        assert thread.records[RUN].phase is RunPhase.ENDED

    def test_a_run_that_is_not_loaded_is_known_all_the_same(self) -> None:
        thread, camera = opened()
        thread.send(camera.end(0))
        thread.machine.forget(RUN)
        assert thread.send(camera.start()) == REPEATED
        assert reason_of(thread.send(camera.start(name="other"))) == "run-conflict"
        assert RUN not in thread.machine.loaded()

    def test_a_sealed_run_takes_nothing(self) -> None:
        thread, camera = opened()
        thread.send(camera.end(0))
        thread.machine.forget(RUN)
        thread.records[RUN] = replace(thread.records[RUN], phase=RunPhase.SEALED)
        for message in (camera.start(), camera.image(0), camera.end(1), camera.event(run=RUN)):
            for path in (ACK, SUB):
                assert reason_of(thread.send(message, path)) == "run-sealed"

    @pytest.mark.parametrize("pos_src", [None, "stage"])
    def test_with_several_stage_streams_it_must_name_one(self, pos_src: str | None) -> None:
        thread = Thread()
        for name in ("xy", "piezo"):
            thread.send(StageSource(name).at(T0, 0))
        verdict = thread.send(Camera().start(pos_src=pos_src))
        assert reason_of(verdict) == "malformed"
        assert "piezo, xy" in verdict.message  # type: ignore[union-attr]
        assert isinstance(thread.send(Camera().start(pos_src=pos_src, stage_stream="xy")), Accept)

    def test_frames_that_carry_their_position_need_no_stage_stream(self) -> None:
        thread = Thread()
        for name in ("xy", "piezo"):
            thread.send(StageSource(name).at(T0, 0))
        assert isinstance(thread.send(Camera().start(pos_src="frame")), Accept)

    def test_a_stage_stream_of_another_instrument_or_of_yesterday_does_not_count(self) -> None:
        thread = Thread()
        thread.send(StageSource("old").at(T0, 0))
        thread.tick(1e3 * 60 * 60)
        thread.send(StageSource("xy").at(T0, 0))
        thread.send(StageSource("theirs", instrument="scope2").at(T0, 0))
        assert isinstance(thread.send(Camera().start()), Accept)
        assert thread.records[RUN].stage_stream == "xy"

    def test_two_silent_stage_streams_are_still_two(self) -> None:
        thread = Thread()
        for name in ("xy", "piezo"):
            thread.send(StageSource(name).at(T0, 0))
        thread.tick(1e3 * 60 * 60)
        assert reason_of(thread.send(Camera().start())) == "malformed"

    def test_one_that_is_refused_on_a_one_way_socket_is_announced(self) -> None:
        thread = Thread()
        for name in ("xy", "piezo"):
            thread.send(StageSource(name).at(T0, 0), SUB)
        camera = Camera()
        for _ in range(5):
            thread.send(camera.start(), SUB)
        thread.tick()
        [said] = thread.said("warning")
        assert said["reasons"] == {"malformed": 1}
        thread.tick(10)
        assert len(thread.said("warning")) == 1


class TestCalibration:
    PARTS: dict[str, Any] = {"dark": "part:0", "sha256": ("0" * 64,)}  # noqa: RUF012 - never changed

    def test_a_start_that_left_its_parts_out_is_refused_where_that_can_be_told(self) -> None:
        thread = Thread()
        camera = Camera()
        assert reason_of(thread.send(camera.start(**self.PARTS))) == "calibration-missing"
        assert isinstance(thread.send(camera.start(**self.PARTS, parts=(b"dark",))), Accept)
        assert thread.send(camera.start(**self.PARTS)) == REPEATED

    def test_elsewhere_its_images_are_kept_and_placed_when_the_parts_come(self) -> None:
        thread, camera = opened(SUB, **self.PARTS)
        assert thread.said("calibration-missing")
        for frame in range(3):
            thread.send(placed_image(camera, frame), SUB)
        assert thread.corners() == {}
        assert thread.machine.unplaced(RUN) == {live_run.CALIBRATION: [(0, 2)]}
        thread.send(camera.start(**self.PARTS), SUB)
        assert thread.corners() == {}
        thread.send(camera.start(**self.PARTS, parts=(b"dark",)), SUB)
        assert thread.corners() == {0: (0, 0), 1: (0, 8), 2: (0, 16)}
        thread.send(placed_image(camera, 3), SUB)
        assert thread.corners()[3] == (0, 24)
        assert thread.kinds() == ["start", "image", "image", "image", "start", "image"]
        assert thread.send(camera.start(**self.PARTS, parts=(b"dark",)), SUB) == REPEATED

    def test_a_calibration_that_is_known_by_name_only_can_come_later_too(self) -> None:
        thread, camera = Thread(), Camera()
        verdict = thread.machine.screen(camera.start(flat="flat-10x"), SUB, T0)
        assert isinstance(verdict, Accept)
        thread.machine.accepted(verdict, held=True)
        assert thread.machine.record(RUN).held
        assert thread.machine.calibrated(RUN) == [Reload(RUN)]

    def test_parts_that_came_once_are_not_journalled_again_while_something_else_is_missing(self) -> None:
        thread, camera = opened(SUB, **self.PARTS)
        whole = camera.start(**self.PARTS, parts=(b"dark",))
        verdict = thread.machine.screen(whole, SUB, T0)
        assert isinstance(verdict, Accept)
        assert thread.machine.accepted(verdict) == [Reload(RUN)]
        assert thread.machine.screen(whole, SUB, T0) == REPEATED

    def test_a_calibration_that_is_not_there_can_be_a_refusal(self) -> None:
        thread, camera = Thread(), Camera()
        verdict = thread.machine.screen(camera.start(flat="flat-10x"), SUB, T0)
        assert isinstance(verdict, Accept)
        thread.machine.refused(verdict, "calibration-missing", "there is no flat-10x")
        thread.tick()
        assert thread.said("calibration-missing")[0]["message"] == "there is no flat-10x"
        assert thread.machine.loaded() == ()


class TestUnknownRun:
    def test_it_is_refused_where_the_publisher_can_be_told(self) -> None:
        thread, camera = Thread(), Camera()
        for message in (camera.image(0), camera.end(1), camera.event(run=RUN)):
            assert reason_of(thread.send(message, ACK)) == "unknown-run"
        thread.send(camera.start())
        assert isinstance(thread.send(placed_image(camera, 0)), Accept)
        assert thread.machine.report(RUN)["rejected"] == {"unknown-run": 3}

    @pytest.mark.parametrize("path", [PULL, SUB])
    def test_elsewhere_its_messages_wait_for_the_start_in_their_order(self, path: IngestPath) -> None:
        thread, camera = Thread(), Camera()
        for frame in (1, 0, 2):
            assert thread.send(placed_image(camera, frame), path) == Hold()
        assert thread.send(camera.end(3), path) == Hold()
        thread.send(camera.start(), path)
        assert thread.kinds() == ["start", "image", "image", "image", "end"]
        assert list(thread.corners()) == [1, 0, 2]
        thread.settle()
        assert thread.report()["received"] == 3
        assert thread.report()["late"] == 0
        assert thread.machine.stats()["held"] == {"n": 0, "nbytes": 0, "n_lost": 0}

    def test_stage_messages_wait_with_them(self) -> None:
        """Longer than join_max_gap_ms before the start: the frames that are held need them."""
        thread, camera, stage = Thread(), Camera(), StageSource()
        for k in range(40):
            thread.send(stage.at(T0 + k * 50 * MS, k * 50.0), SUB)
            thread.tick(25)
            thread.send(camera.image(k, T0 + (k * 50 + 25) * MS), SUB)
            thread.tick(25)
        thread.send(stage.at(T0 + 2000 * MS, 2000), SUB)
        thread.send(camera.start(T0 + 2000 * MS), SUB)
        assert thread.corners() == {k: (-4, k * 50 + 25 - 4) for k in range(40)}

    def test_what_waits_in_vain_is_lost_and_announced(self) -> None:
        thread, camera = Thread(IngestSettings(hold_s=1.0)), Camera()
        for frame in range(3):
            thread.send(camera.image(frame), SUB)
            thread.tick(10)
        thread.tick(989)
        assert thread.said("warning")[-1]["frames"] == [[0, 1]]
        thread.send(camera.start(), SUB)
        assert thread.machine.report(RUN)["lost_before_start"] == 2
        assert thread.machine.report(RUN)["missing"] == [[0, 1]]
        assert thread.machine.report(RUN)["received"] == 1

    def test_the_budget_is_in_bytes_and_the_oldest_give_way(self) -> None:
        thread, camera = Thread(IngestSettings(hold_bytes=100_000)), Camera()
        for frame in range(10):
            payload = bytes(30_000)
            thread.send(camera.image(frame, parts=(payload,), nbytes=len(payload)), SUB)
            assert thread.machine.stats()["held"]["nbytes"] <= 100_000
        thread.send(camera.start(), SUB)
        assert thread.kinds() == ["start", "image", "image", "image"]
        assert thread.machine.report(RUN)["lost_before_start"] == 7
        assert thread.machine.report(RUN)["missing"] == [[0, 6]]

    def test_one_that_is_larger_than_the_budget_is_lost_at_once(self) -> None:
        thread, camera = Thread(IngestSettings(hold_bytes=3000)), Camera()
        thread.send(camera.image(0), SUB)
        thread.send(camera.image(1, parts=(bytes(5000),), nbytes=5000), SUB)
        thread.send(camera.start(), SUB)
        assert thread.machine.report(RUN)["missing"] == []
        assert thread.machine.report(RUN)["received"] == 1
        assert thread.machine.report(RUN)["lost_before_start"] == 1

    def test_what_is_held_when_the_daemon_stops_is_lost(self) -> None:
        thread, camera = Thread(), Camera()
        thread.send(camera.image(5), SUB)
        [notice] = thread.machine.close(thread.now_ns)
        assert notice.detail["frames"] == [[5, 5]]  # type: ignore[union-attr]

    def test_heartbeats_of_an_unknown_run_are_nothing(self) -> None:
        thread, camera = Thread(), Camera()
        for path in (ACK, SUB):
            assert thread.send(camera.heartbeat(n_sent=5), path) == Drop(DropReason.NOT_KEPT)


class TestImages:
    def test_a_frame_lies_where_its_own_position_says(self) -> None:
        thread, camera = opened(shape=(6, 10), px_um=(0.5, 2.0), affine=((-0.5, 0.0), (0.0, 2.0)))
        thread.send(camera.image(0, pos_um=(-20.0, 10.0, 3.0), tcz=(1, 2, 3)))
        placement = thread.placed[RUN][0]
        assert (placement.row, placement.col) == (2, 35)
        assert (placement.height, placement.width) == (6, 10)
        assert (placement.plane, placement.source, placement.index) == (PlaneKey(1, 2, 3), "stage", 0)

    def test_the_journal_index_counts_images_only(self) -> None:
        thread, camera = opened()
        thread.send(camera.event(run=RUN))
        for frame in (3, 1):
            thread.send(placed_image(camera, frame))
        assert {frame: placement.index for frame, placement in thread.placed[RUN].items()} == {3: 0, 1: 1}

    def test_the_same_message_again_is_resent_the_same_frame_again_a_duplicate(self) -> None:
        thread, camera = opened()
        first = placed_image(camera, 0)
        thread.send(first)
        assert thread.send(first) == RESENT
        assert thread.send(placed_image(camera, 0)) == DUPLICATE
        assert thread.send(placed_image(Camera(boot=1), 0)) == DUPLICATE
        report = thread.machine.report(RUN)
        assert (report["received"], report["resent"], report["duplicate"]) == (1, 1, 2)
        assert thread.kinds() == ["start", "image"]

    def test_one_that_failed_its_checks_was_not_seen(self) -> None:
        thread, camera = opened()
        message = placed_image(camera, 0)
        thread.send(message, damaged=True)
        assert thread.machine.report(RUN)["rejected"] == {"bad-payload": 1}
        assert thread.machine.report(RUN)["received"] == 0
        assert isinstance(thread.send(message), Accept)
        assert thread.machine.report(RUN)["received"] == 1

    @pytest.mark.parametrize("pos_src", [None, "frame", "stage"])
    def test_a_position_beyond_all_pixels_is_malformed(self, pos_src: str | None) -> None:
        thread, camera = opened(pos_src=pos_src)
        assert reason_of(thread.send(camera.image(0, pos_um=(2.0**30 + 10, 0)))) == "malformed"
        assert reason_of(thread.send(camera.image(0, pos_um=(0, -1e300)))) == "malformed"
        assert thread.machine.report(RUN)["malformed"] == 2
        assert thread.machine.report(RUN)["rejected"] == {}
        assert isinstance(thread.send(camera.image(0, pos_um=(2.0**30 - 10, 0))), Accept)

    def test_incomplete_and_repeated_images_are_kept_and_listed(self) -> None:
        thread, camera = opened()
        for frame in range(4):
            thread.send(placed_image(camera, frame, status=frame))
        assert list(thread.corners()) == [0, 3]
        report = thread.machine.report(RUN)
        assert report["by_status"] == {"good": 1, "incomplete": 1, "repeated": 1, "saturated": 1}
        assert report["unplaced"] == {live_run.BAD_STATUS: [[1, 2]]}
        assert (report["received"], report["placed"], report["n_unplaced"]) == (4, 2, 2)

    def test_an_option_blends_them_and_is_frozen_in_the_run(self) -> None:
        thread, camera = opened(settings=IngestSettings(blend_status=frozenset({0, 1})))
        thread.settings = IngestSettings()
        again = thread.killed()
        for frame in range(4):
            again.send(placed_image(camera, frame, status=frame))
        assert list(again.corners()) == [0, 1]

    def test_pos_src_frame_never_joins(self) -> None:
        thread, camera = opened(pos_src="frame")
        stage = StageSource()
        thread.send(stage.at(T0 - MS, 0))
        thread.send(camera.image(0))
        thread.send(stage.at(T0 + MS, 0))
        assert thread.corners() == {}
        assert thread.machine.unplaced(RUN) == {live_run.NO_POSITION: [(0, 0)]}

    def test_pos_src_stage_never_uses_the_frames_own(self) -> None:
        thread, camera = opened(pos_src="stage")
        stage = StageSource()
        thread.send(stage.at(T0 - MS, 100))
        thread.send(camera.image(0, pos_um=(0, 0)))
        thread.send(stage.at(T0 + MS, 100))
        assert thread.corners() == {0: (-4, 96)}
        assert thread.placed[RUN][0].source == "joined"

    def test_without_pos_src_the_frames_own_position_goes_first(self) -> None:
        thread, camera = opened()
        stage = StageSource()
        thread.send(stage.at(T0 - MS, 100))
        thread.send(stage.at(T0 + MS, 100))
        thread.send(camera.image(0, pos_um=(0, 0)))
        thread.send(camera.image(1))
        assert thread.corners() == {0: (-4, -4), 1: (-4, 96)}

    def test_mid_exposure_is_between_t0_and_t1(self) -> None:
        thread, camera = opened()
        stage = StageSource()
        thread.send(stage.at(T0, 0))
        thread.send(camera.image(0, t_ns=T0 + 900 * MS, t0_ns=T0 + 10 * MS, t1_ns=T0 + 30 * MS))
        thread.send(stage.at(T0 + 100 * MS, 100))
        assert thread.corners() == {0: (-4, 16)}


class TestStage:
    def test_it_goes_into_every_open_run_of_its_instrument(self) -> None:
        thread, _ = opened()
        other = Camera("cam2", run=OTHER_RUN)
        thread.send(other.start())
        theirs = Camera(instrument="scope2", run="22222222-2222-4333-8444-555555555555")
        thread.send(theirs.start())
        thread.send(StageSource().at(T0, 0))
        assert thread.kinds(RUN) == thread.kinds(OTHER_RUN) == ["start", "stage"]
        assert thread.kinds(theirs.run) == ["start"]

    def test_a_repeat_is_dropped_with_and_without_a_run(self) -> None:
        thread, stage = Thread(), StageSource()
        first = stage.at(T0, 0)
        thread.send(first)
        assert thread.send(first) == Drop(DropReason.RESENT, None)
        thread.send(Camera().start())
        assert thread.send(first) == RESENT
        assert thread.kinds() == ["stage", "start"]

    def test_a_run_that_opens_begins_with_the_last_stage_messages(self) -> None:
        thread, stage = Thread(IngestSettings(join_max_gap_ms=100)), StageSource()
        for k in range(20):
            thread.send(stage.at(T0 + k * 30 * MS, k))
        thread.send(Camera().start(T0 + S))
        times = [(item.message.t_ns - T0) // MS for item in thread.journals[RUN][:-1]]
        assert times == [480, 510, 540, 570]
        assert thread.kinds()[-1] == "start"

    def test_a_stage_of_another_time_is_not_its_own(self) -> None:
        """A scan of yesterday is replayed beside a stage that is read now."""
        thread = Thread()
        thread.send(StageSource().at(T0, 0))
        thread.send(Camera().start(T0 - 86_400 * S))
        assert thread.kinds() == ["start"]

    def test_a_stage_stream_that_goes_on_at_an_earlier_time_begins_anew(self) -> None:
        thread = Thread()
        for k in range(5):
            thread.send(StageSource(boot=1).at(T0 + k * MS, 0))
        replayed, yesterday = StageSource(boot=2), T0 - 86_400 * S
        for k in range(3):
            thread.send(replayed.at(yesterday + k * MS, 0))
        thread.send(Camera().start(yesterday + 3 * MS))
        assert [item.message.t_ns - yesterday for item in thread.journals[RUN][:-1]] == [0, MS, 2 * MS]

    def test_frames_that_are_held_bring_their_time_with_them(self) -> None:
        """The start itself was overtaken by a second of the scan."""
        thread, camera, stage = Thread(), Camera(), StageSource()
        start = camera.start(T0)
        for k in range(20):
            thread.send(stage.at(T0 + k * 50 * MS, 0), SUB)
            thread.send(camera.image(k, T0 + (k * 50 + 25) * MS), SUB)
        thread.send(stage.at(T0 + 1000 * MS, 0), SUB)
        thread.send(start, SUB)
        assert list(thread.corners()) == list(range(20))

    def test_what_is_out_of_date_is_left_out_wherever_it_lies(self) -> None:
        thread, stage = Thread(IngestSettings(join_max_gap_ms=100)), StageSource()
        for t_ms in (500, 300, 480, 350):
            thread.send(stage.at(T0 + t_ms * MS, 0))
        thread.send(Camera().start(T0 + S))
        assert [(item.message.t_ns - T0) // MS for item in thread.journals[RUN][:-1]] == [500, 480]

    def test_at_least_the_latest_of_each_stream(self) -> None:
        thread = Thread(IngestSettings(join_max_gap_ms=100))
        for name, n in (("xy", 5), ("piezo", 3)):
            stage = StageSource(name)
            for k in range(n):
                thread.send(stage.at(T0 + k * S, k))
        thread.send(Camera().start(T0 + 10 * S, stage_stream="xy"))
        assert [(item.message.stream, item.message.t_ns - T0) for item in thread.journals[RUN][:-1]] == [
            ("xy", 4 * S),
            ("piezo", 2 * S),
        ]

    def test_the_first_frames_are_joined_to_what_came_before_the_start(self) -> None:
        thread, camera, stage = Thread(), Camera(), StageSource()
        thread.send(stage.at(T0 - 10 * MS, 0))
        thread.send(camera.start())
        thread.send(camera.image(0))
        thread.send(stage.at(T0 + 10 * MS, 20))
        assert thread.corners() == {0: (-4, 6)}

    def test_a_run_with_a_wrong_pixel_size_keeps_the_stage_from_no_other(self) -> None:
        thread, camera = opened()
        other = Camera("cam-2", OTHER_RUN)
        thread.send(other.start(px_um=(1e-9, 1e-9)))
        stage = StageSource()
        message = stage.at(T0, 100.0)
        assert isinstance(thread.send(message), Accept)
        assert thread.kinds() == ["start", "stage"]
        assert thread.kinds(OTHER_RUN) == ["start"]
        assert thread.machine.report(OTHER_RUN)["malformed"] == 1
        assert thread.machine.report(RUN)["malformed"] == 0
        assert thread.send(message) == RESENT
        assert reason_of(thread.send(stage.at(T0, 1e300))) == "malformed"
        assert [thread.machine.report(run)["malformed"] for run in (RUN, OTHER_RUN)] == [1, 2]
        thread.send(camera.end(0))
        assert reason_of(thread.send(stage.at(T0, 100.0))) == "malformed"

    def test_only_its_own_stage_stream_places(self) -> None:
        thread, camera = opened(stage_stream="xy")
        piezo, xy = StageSource("piezo"), StageSource("xy")
        thread.send(piezo.at(T0 - MS, 500))
        thread.send(xy.at(T0 - MS, 100))
        thread.send(camera.image(0))
        thread.send(piezo.at(T0 + MS, 500))
        assert thread.corners() == {}
        thread.send(xy.at(T0 + MS, 100))
        assert thread.corners() == {0: (-4, 96)}
        assert thread.kinds().count("stage") == 4

    def test_the_first_stream_that_comes_is_the_one_if_none_was_known(self) -> None:
        thread, camera = opened()
        xy, piezo = StageSource("xy"), StageSource("piezo")
        thread.send(xy.at(T0 - MS, 100))
        thread.send(piezo.at(T0 - MS, 500))
        thread.send(piezo.at(T0 + MS, 500))
        thread.send(camera.image(0))
        assert thread.corners() == {}
        thread.send(xy.at(T0 + MS, 100))
        assert thread.corners() == {0: (-4, 96)}
        again = thread.killed(n_placed=0)
        assert again.corners() == thread.corners()
        assert again.records[RUN].stage_stream == "xy"

    def test_a_position_that_no_frame_can_have_is_malformed(self) -> None:
        thread, camera = opened()
        stage = StageSource()
        assert reason_of(thread.send(stage.at(T0, 1e15))) == "malformed"
        assert thread.machine.report(RUN)["malformed"] == 1
        assert thread.kinds() == ["start"]
        thread.send(camera.end(0))
        assert isinstance(thread.send(stage.at(T0, 1e15)), Accept)  # no run that could tell

    def test_one_that_came_before_the_start_and_cannot_be_is_never_joined_to(self) -> None:
        thread, camera, stage = Thread(), Camera(), StageSource()
        thread.send(stage.at(T0 - MS, 1e15))
        thread.send(camera.start())
        thread.send(camera.image(0))
        thread.send(stage.at(T0 + MS, 0))
        assert thread.corners() == {}
        assert thread.machine.unplaced(RUN) == {joining.NO_EARLIER: [(0, 0)]}

    def test_without_a_run_it_is_kept_nowhere(self) -> None:
        thread = Thread()
        verdict = thread.send(StageSource().at(T0, 0))
        assert isinstance(verdict, Accept)
        assert verdict.targets == ()

    @pytest.mark.parametrize("joins", [False, True])
    def test_frames_after_a_move_are_left_out_and_named(self, joins: bool) -> None:
        settings = IngestSettings(skip_after_move=2)
        thread, camera = opened(settings=settings)
        stage = StageSource()
        for frame in range(8):
            x_um = 0.0 if frame < 3 else 500.0
            t_ns = T0 + 10 * frame * MS
            if joins:
                thread.send(stage.at(t_ns - MS, x_um))
                thread.send(camera.image(frame, t0_ns=t_ns, t1_ns=t_ns))
                thread.send(stage.at(t_ns + MS, x_um))
            else:
                thread.send(camera.image(frame, t0_ns=t_ns, t1_ns=t_ns, pos_um=(x_um, 0.0)))
        assert list(thread.corners()) == [0, 1, 2, 5, 6, 7]
        assert thread.machine.unplaced(RUN) == {joining.AFTER_MOVE: [(3, 4)]}
        report = thread.machine.report(RUN)
        assert (report["n_unplaced"], report["unplaced"]) == (2, {"after-move": [[3, 4]]})

    @pytest.mark.parametrize("allow_moving", [False, True])
    def test_a_moving_stage_places_if_it_is_allowed(self, allow_moving: bool) -> None:
        thread, camera = opened(settings=IngestSettings(allow_moving=allow_moving))
        stage = StageSource()
        thread.send(stage.at(T0 - MS, 0, moving=True))
        thread.send(camera.image(0))
        thread.send(camera.image(1, moving=False))
        thread.send(stage.at(T0 + MS, 0, moving=False))
        assert list(thread.corners()) == ([0, 1] if allow_moving else [1])
        assert thread.machine.unplaced(RUN) == ({} if allow_moving else {joining.MOVING: [(0, 0)]})

    def test_unplaced_frames_are_reported_after_the_timeout_and_placed_later_all_the_same(self) -> None:
        thread, camera = opened(settings=IngestSettings(join_timeout_ms=500))
        stage = StageSource()
        thread.send(stage.at(T0 - 10 * MS, 0))
        for frame in range(3):
            thread.send(camera.image(frame, T0 + frame * MS))
        thread.tick(499)
        assert thread.said("warning") == []
        thread.tick(1)
        [said] = thread.said("warning")
        assert (said["what"], said["why"], said["frames"]) == ("unplaced", joining.NO_LATER, [[0, 2]])
        thread.tick(5000)
        assert len(thread.said("warning")) == 1
        thread.send(stage.at(T0 + 10 * MS, 0))
        assert list(thread.corners()) == [0, 1, 2]
        assert thread.machine.report(RUN)["n_unplaced"] == 0

    def test_a_bracket_too_wide_is_named(self) -> None:
        thread, camera = opened(settings=IngestSettings(join_max_gap_ms=100))
        stage = StageSource()
        thread.send(stage.at(T0 - 60 * MS, 0))
        thread.send(camera.image(0))
        thread.send(stage.at(T0 + 60 * MS, 0))
        assert thread.machine.report(RUN)["unplaced"] == {joining.GAP: [[0, 0]]}
        thread.send(stage.at(T0 - 20 * MS, 0))
        assert list(thread.corners()) == [0]

    def test_the_report_states_brackets_and_bound(self) -> None:
        thread, camera = opened()
        stage = StageSource()
        for k in range(11):
            thread.send(stage.at(T0 + k * 20 * MS, 20.0 * k))
        thread.send(stage.at(T0 + 240 * MS, 240.0))
        for frame in range(20):
            thread.send(camera.image(frame, T0 + (frame * 10 + 5) * MS))
        thread.send(camera.image(20, T0 + 210 * MS))
        joined = thread.machine.report(RUN)["joined"]
        assert joined["n"] == 21
        assert joined["bracket_ms"] == {"median": 20.0, "max": 40.0}
        assert joined["max_speed_um_s"] == pytest.approx(1000)
        assert joined["position_bound_um"] == pytest.approx(30)

    def test_a_run_with_no_joined_frame_states_none(self) -> None:
        thread, camera = opened()
        thread.send(placed_image(camera, 0))
        assert thread.machine.report(RUN)["joined"] is None


class TestEvents:
    def test_one_for_a_run_goes_there_from_any_stream_of_the_instrument(self) -> None:
        thread, _ = opened()
        thread.send(Camera("cam2", run=OTHER_RUN).start())
        note = Camera("notes").event(run=RUN)
        assert isinstance(thread.send(note), Accept)
        assert thread.send(note) == RESENT
        assert thread.kinds(RUN) == ["start", "event"]
        assert thread.kinds(OTHER_RUN) == ["start"]
        assert reason_of(thread.send(Camera(instrument="scope2").event(run=RUN))) == "run-elsewhere"

    def test_one_without_a_run_goes_into_all_that_are_open(self) -> None:
        thread, camera = opened()
        other = Camera("cam2", run=OTHER_RUN)
        thread.send(other.start())
        note = Camera("notes").event()
        thread.send(note)
        assert thread.send(note) == RESENT
        thread.send(camera.end(0))
        thread.send(Camera("notes", boot=1).event())
        assert thread.kinds(RUN) == ["start", "event", "end"]
        assert thread.kinds(OTHER_RUN) == ["start", "event", "event"]

    def test_with_no_run_it_is_settled_and_not_kept(self) -> None:
        verdict = Thread().send(Camera().event())
        assert isinstance(verdict, Accept)
        assert verdict.targets == ()


class TestLife:
    def test_silence_makes_a_run_idle_with_a_report(self) -> None:
        thread, camera = opened(settings=IngestSettings(idle_end_s=5))
        thread.send(placed_image(camera, 0))
        thread.tick(5000)
        assert thread.phases == [(RUN, RunPhase.OPEN)]
        thread.tick(1)
        assert thread.phases[-1] == (RUN, RunPhase.IDLE)
        assert thread.report()["state"] == "idle"
        assert thread.report()["expected_from"] == "frames"

    @pytest.mark.parametrize("kind", ["hb", "hb without run", "start", "event", "duplicate"])
    def test_whatever_its_publisher_says_keeps_it_open(self, kind: str) -> None:
        thread, camera = opened(settings=IngestSettings(idle_end_s=5))
        thread.send(placed_image(camera, 0))
        for _ in range(5):
            thread.tick(4000)
            thread.send(
                {
                    "hb": lambda: camera.heartbeat(n_sent=1),
                    "hb without run": lambda: camera.heartbeat(run=None),
                    "start": camera.start,
                    "event": lambda: camera.event(run=RUN),
                    "duplicate": lambda: placed_image(camera, 0),
                }[kind]()
            )
        assert thread.phases == [(RUN, RunPhase.OPEN)]

    def test_others_do_not(self) -> None:
        thread, _ = opened(settings=IngestSettings(idle_end_s=5))
        stage, other = StageSource(), Camera("cam2")
        for k in range(3):
            thread.tick(2000)
            thread.send(stage.at(T0 + k, 0))
            thread.send(other.heartbeat(run=None))
        assert thread.phases[-1] == (RUN, RunPhase.IDLE)

    def test_an_image_for_an_idle_run_is_late_and_the_run_stays_idle(self) -> None:
        thread, camera = opened(settings=IngestSettings(idle_end_s=5))
        thread.tick(5001)
        thread.send(placed_image(camera, 0))
        thread.send(camera.heartbeat())
        assert list(thread.corners()) == [0]
        thread.settle()
        assert (thread.report()["revision"], thread.report()["late"], thread.report()["state"]) == (2, 1, "idle")
        assert thread.said("late") == [{"frames": [[0, 0]], "n": 1}]

    def test_end_makes_it_ended_with_a_report_at_once(self) -> None:
        thread, camera = opened()
        for frame in range(3):
            thread.send(placed_image(camera, frame))
        thread.send(camera.end(5, reason="abort", n_camera_dropped=2))
        report = thread.report()
        assert report["state"] == "ended"
        assert report["reason"] == "abort"
        assert (report["expected"], report["expected_from"], report["received"]) == (5, "end", 3)
        assert (report["missing"], report["n_missing"]) == ([[3, 4]], 2)
        assert report["camera_dropped"] == 2

    def test_the_tail_that_comes_after_the_end_is_late_and_heals(self) -> None:
        thread, camera = opened()
        thread.send(placed_image(camera, 0))
        thread.send(camera.end(3))
        thread.settle()
        assert thread.said("gap") == [{"what": "frames", "missing": [[1, 2]], "n_missing": 2}]
        for frame in (2, 1):
            thread.send(placed_image(camera, frame))
        assert len(thread.reports[RUN]) == 1
        thread.settle()
        assert thread.said("gap")[1:] == [{"what": "frames", "healed": [[1, 2]], "n_healed": 2}]
        assert [report["revision"] for report in thread.reports[RUN]] == [1, 2]
        assert (thread.report()["late"], thread.report()["missing"]) == (2, [])
        assert list(thread.corners()) == [0, 2, 1]

    def test_many_late_images_do_not_make_a_report_each(self) -> None:
        thread, camera = opened(settings=IngestSettings(gap_report_ms=100))
        thread.send(camera.end(0))
        for frame in range(600):
            thread.send(placed_image(camera, frame))
            thread.tick(100)
        assert len(thread.reports[RUN]) < 60
        thread.tick(3000)
        assert thread.report()["late"] == 600

    def test_a_second_end_has_the_last_word(self) -> None:
        thread, camera = opened()
        first = camera.end(5)
        thread.send(first)
        assert thread.send(first) == RESENT
        thread.send(camera.end(7, reason="error"))
        assert (thread.report()["expected"], thread.report()["reason"]) == (7, "error")
        assert thread.phases == [(RUN, RunPhase.OPEN), (RUN, RunPhase.ENDED)]

    def test_an_idle_run_can_end_and_an_ended_one_is_never_idle(self) -> None:
        thread, camera = opened(settings=IngestSettings(idle_end_s=1, unload_after_s=1e6))
        thread.tick(1001)
        thread.send(camera.end(0))
        thread.tick(10_000)
        assert [phase for _, phase in thread.phases] == [RunPhase.OPEN, RunPhase.IDLE, RunPhase.ENDED]

    def test_the_report_waits_a_moment_for_the_bracket_of_the_last_frame(self) -> None:
        thread, camera = opened()
        stage = StageSource()
        thread.send(stage.at(T0 - MS, 0))
        thread.send(camera.image(0))
        thread.send(camera.end(1))
        assert thread.reports == {}
        thread.tick(20)
        thread.send(stage.at(T0 + MS, 0))
        thread.tick()
        assert thread.report()["placed"] == 1
        assert thread.kinds() == ["start", "stage", "image", "end", "stage"]
        thread.send(stage.at(T0 + 2 * MS, 0))
        assert thread.kinds()[-1] == "stage"
        assert len(thread.kinds()) == 5  # nothing waits any more

    def test_it_does_not_wait_for_ever(self) -> None:
        thread, camera = opened(settings=IngestSettings(join_timeout_ms=500))
        thread.send(StageSource().at(T0 - MS, 0))
        thread.send(camera.image(0))
        thread.send(camera.end(1))
        thread.tick(500)
        assert thread.report()["unplaced"] == {joining.NO_LATER: [[0, 0]]}

    def test_a_late_image_is_joined_too(self) -> None:
        thread, camera = opened()
        stage = StageSource()
        thread.send(camera.end(1))
        thread.settle()
        thread.send(stage.at(T0 - MS, 0))
        assert "stage" not in thread.kinds()
        thread.send(camera.image(0))
        assert thread.kinds() == ["start", "end", "stage", "image"]
        thread.send(stage.at(T0 + MS, 0))
        assert thread.corners() == {0: (-4, -4)}
        thread.settle()
        assert (thread.report()["late"], thread.report()["placed"]) == (1, 1)

    def test_a_run_that_waits_for_a_stage_waits_no_longer_than_until_it_would_be_idle(self) -> None:
        thread, camera = opened(settings=IngestSettings(idle_end_s=10, unload_after_s=1))
        stage = StageSource()
        thread.send(stage.at(T0 - MS, 0))
        thread.send(camera.image(0))
        thread.send(camera.end(1))
        thread.tick(9_999)
        assert thread.unloaded == []
        thread.tick(1)
        assert thread.unloaded == [RUN]
        thread.send(stage.at(T0 + MS, 0))
        assert thread.kinds() == ["start", "stage", "image", "end"]

    def test_a_late_bracket_is_taken_until_then(self) -> None:
        thread, camera = opened(settings=IngestSettings(idle_end_s=10, unload_after_s=1))
        stage = StageSource()
        thread.send(stage.at(T0 - MS, 0))
        thread.send(camera.image(0))
        thread.send(camera.end(1))
        for _ in range(9):
            thread.tick(1000)
        thread.send(stage.at(T0 + MS, 0))
        assert list(thread.corners()) == [0]
        thread.settle()
        assert [report["placed"] for report in thread.reports[RUN]] == [0, 1]
        assert thread.unloaded == [RUN]

    def test_a_reason_that_changes_after_the_report_issues_another(self) -> None:
        thread, camera = opened()
        stage = StageSource()
        thread.send(stage.at(T0 - MS, 0))
        thread.send(camera.image(0))
        thread.send(camera.end(1))
        thread.tick(2000)
        thread.send(stage.at(T0 + MS, 0, moving=True))
        thread.settle()
        assert [list(report["unplaced"]) for report in thread.reports[RUN]] == [[joining.NO_LATER], [joining.MOVING]]

    def test_an_operator_can_end_a_run(self) -> None:
        thread, camera = opened()
        thread.send(placed_image(camera, 1))
        thread._do(thread.machine.end_run(RUN, "abort", thread.now_ns))
        thread.keep()
        assert (thread.report()["state"], thread.report()["reason"]) == ("ended", "abort")
        assert thread.report()["expected"] == 2
        again = thread.killed()
        again._load(RUN)
        assert again.machine.report(RUN)["reason"] == "abort"
        assert again.machine.report(RUN)["state"] == "ended"

    def test_a_quiet_run_is_unloaded_and_loaded_again_for_a_late_image(self) -> None:
        thread, camera = opened(settings=IngestSettings(unload_after_s=10))
        thread.send(placed_image(camera, 0))
        thread.send(placed_image(camera, 0))
        thread.send(camera.end(3))
        thread.tick(9_000)
        assert thread.unloaded == []
        thread.tick(2_000)
        assert thread.unloaded == [RUN]
        assert isinstance(thread.machine.screen(camera.image(0), ACK, thread.now_ns), NeedsRun)
        thread.send(placed_image(camera, 1))
        assert list(thread.corners()) == [0, 1]
        thread.settle()
        report = thread.report()
        assert (report["revision"], report["late"], report["duplicate"]) == (2, 1, 1)
        assert report["missing"] == [[2, 2]]

    def test_idle_runs_stay_loaded_up_to_a_number(self) -> None:
        thread = Thread(IngestSettings(idle_end_s=1, max_idle_loaded=2))
        runs = [f"{n:08d}-2222-4333-8444-555555555555" for n in range(4)]
        for run in runs:
            thread.send(Camera(run=run).start())
            thread.tick(10)
        thread.tick(2000)
        assert thread.unloaded == runs[:2]
        assert thread.machine.loaded() == tuple(runs[2:])

    def test_a_run_with_a_report_to_come_is_not_unloaded(self) -> None:
        thread, camera = opened(settings=IngestSettings(unload_after_s=0, gap_report_ms=1000))
        thread.send(camera.end(0))
        thread.send(placed_image(camera, 0))
        thread.tick(10)
        assert thread.unloaded == []
        thread.tick(1000)
        assert thread.report()["late"] == 1
        thread.tick(10)
        assert thread.unloaded == [RUN]


class TestLoss:
    def test_a_gap_is_announced_when_it_is_seen_and_when_it_heals(self) -> None:
        thread, camera = opened(settings=IngestSettings(reorder_tolerance_ms=100, gap_report_ms=1))
        for frame in (0, 3, 2):
            thread.send(placed_image(camera, frame))
        thread.tick(99)
        assert thread.said("gap") == []
        thread.tick(1)
        assert thread.said("gap") == [{"what": "frames", "missing": [[1, 1]], "n_missing": 1}]
        thread.send(placed_image(camera, 1))
        thread.tick(10)
        assert thread.said("gap")[1:] == [{"what": "frames", "healed": [[1, 1]], "n_healed": 1}]

    def test_gaps_are_gathered(self) -> None:
        thread, camera = opened(settings=IngestSettings(reorder_tolerance_ms=0, gap_report_ms=1000))
        for frame in range(0, 100, 2):
            thread.send(placed_image(camera, frame))
            thread.tick(20)
        assert len(thread.said("gap")) == 1
        thread.tick(100)
        assert [said["n_missing"] for said in thread.said("gap")] == [1, 48]

    def test_a_lost_tail_shows_by_the_heartbeat(self) -> None:
        thread, camera = opened(SUB, settings=IngestSettings(reorder_tolerance_ms=100, idle_end_s=5))
        thread.send(placed_image(camera, 0), SUB)
        thread.send(camera.heartbeat(n_sent=4), SUB)
        thread.tick(100)
        assert {"what": "frames", "missing": [[1, 3]], "n_missing": 3} in thread.said("gap")
        thread.tick(5000)
        assert (thread.report()["expected"], thread.report()["expected_from"]) == (4, "heartbeat")
        assert thread.report()["missing"] == [[1, 3]]

    def test_the_end_knows_better_than_a_heartbeat(self) -> None:
        thread, camera = opened()
        thread.send(camera.heartbeat(n_sent=10))
        thread.send(camera.end(8))
        assert (thread.report()["expected"], thread.report()["expected_from"]) == (8, "end")

    def test_an_end_that_says_less_than_came_is_not_believed(self) -> None:
        thread, camera = opened()
        thread.send(placed_image(camera, 4))
        thread.send(camera.end(2))
        assert (thread.report()["expected"], thread.report()["expected_from"]) == (5, "frames")
        assert thread.report()["missing"] == [[0, 3]]

    @pytest.mark.parametrize("path", [PULL, SUB])
    def test_lost_messages_of_a_stage_are_announced_in_the_open_runs(self, path: IngestPath) -> None:
        thread, _ = opened(settings=IngestSettings(reorder_tolerance_ms=100))
        stage = StageSource()
        for k in range(10):
            message = stage.at(T0 + k * MS, 0)
            if k not in (4, 5):
                thread.send(message, path)
        thread.tick(100)
        assert thread.said("gap") == [
            {"what": "messages", "src": "stage", "stream": "stage", "missing": [[4, 5]], "n_missing": 2}
        ]
        assert thread.machine.stats()["one_way_sources"][0]["missing"] == 2

    def test_where_each_stage_was_last_is_known(self) -> None:
        thread, _ = opened()
        assert thread.machine.stats()["stages"] == []
        first, second = StageSource("xy"), StageSource("focus")
        for message in (first.at(T0, 1.0, 2.0), second.at(T0 + MS, 5.0), first.at(T0 + 2 * MS, 3.5, -4.0, moving=True)):
            thread.send(message)
        assert thread.machine.stats()["stages"] == [
            {"instrument": "scope", "stream": "focus", "pos_um": [5.0, 0.0], "t_ns": T0 + MS, "moving": None},
            {"instrument": "scope", "stream": "xy", "pos_um": [3.5, -4.0], "t_ns": T0 + 2 * MS, "moving": True},
        ]

    def test_the_acknowledged_path_needs_no_such_watch(self) -> None:
        thread, _ = opened()
        stage = StageSource()
        for k in range(10):
            message = stage.at(T0 + k * MS, 0)
            if k != 4:
                thread.send(message, ACK)
        thread.settle()
        assert thread.said("gap") == []

    def test_bad_bytes_count_for_the_run_of_their_stream(self) -> None:
        thread, _ = opened()
        thread.machine.malformed(MalformedError("no", topic="tc1/scope/cam/image"), thread.now_ns)
        thread.machine.malformed(MalformedError("no", topic="tc1/scope/cam2/image"), thread.now_ns)
        thread.machine.malformed(MalformedError("no", topic=None), thread.now_ns)
        thread.machine.malformed(MalformedError("no", topic="rubbish"), thread.now_ns)
        thread.machine.malformed(MalformedError("big", topic="tc1/scope/cam/image", reason="too-large"), thread.now_ns)
        report = thread.machine.report(RUN)
        assert (report["malformed"], report["rejected"]) == (1, {"too-large": 1})
        assert thread.machine.stats()["refused"] == {"malformed": 4, "too-large": 1}
        thread.tick()
        assert thread.said("warning")[0]["reasons"] == {"malformed": 1, "too-large": 1}

    def test_of_several_runs_of_a_stream_the_open_one_counts_bad_bytes(self) -> None:
        thread, camera = opened()
        thread.send(camera.end(0))
        second = Camera(run=OTHER_RUN)
        thread.send(second.start())
        thread.machine.malformed(MalformedError("no", topic="tc1/scope/cam/image"), thread.now_ns)
        assert thread.machine.report(OTHER_RUN)["malformed"] == 1
        assert thread.machine.report(RUN)["malformed"] == 0

    def test_what_is_counted_after_the_report_issues_another(self) -> None:
        thread, camera = opened()
        first = placed_image(camera, 0)
        thread.send(first)
        thread.send(camera.end(1))
        thread.send(first)
        thread.settle()
        assert [report["resent"] for report in thread.reports[RUN]] == [0, 1]

    def test_a_report_is_plain_data(self) -> None:
        thread, camera = opened(n_expected=9)
        stage = StageSource()
        thread.send(stage.at(T0 - MS, 0))
        thread.send(stage.at(T0 + MS, 9))
        for frame in (0, 2, 5):
            thread.send(camera.image(frame, status=frame % 2))
        thread.send(camera.end(8))
        report = thread.report()
        assert json.loads(json.dumps(report)) == report
        assert report["planned"] == 9
        counts = thread.records[RUN].counts
        assert json.loads(json.dumps(counts)) == counts


class TestWelcome:
    def test_it_tells_a_publisher_where_to_go_on(self) -> None:
        thread, camera = opened()
        for frame in (0, 1, 4):
            thread.send(placed_image(camera, frame))
        thread.send(Camera("cam2", run=OTHER_RUN).start())
        [run] = thread.machine.welcome("scope", "cam")
        assert run == (RUN, "open", 5, ((0, 1), (4, 4)))
        [other] = thread.machine.welcome("scope", "cam2")
        assert other == (OTHER_RUN, "open", 0, ())

    def test_a_publisher_that_came_back_goes_on_with_the_same_run(self) -> None:
        thread, camera = opened()
        thread.send(placed_image(camera, 0))
        again = Camera(boot=1)
        assert thread.send(again.start()) == REPEATED
        assert isinstance(thread.send(placed_image(again, 1)), Accept)
        assert thread.machine.report(RUN)["received"] == 2


class TestRecovery:
    def interrupted(self) -> tuple[Thread, Camera, StageSource]:
        thread, camera = opened()
        stage = StageSource()
        for k in range(6):
            thread.send(stage.at(T0 + k * 20 * MS, 20 * k))
            thread.send(camera.image(k, T0 + (k * 20 + 5) * MS))
        return thread, camera, stage

    def test_what_has_no_place_in_the_store_is_placed(self) -> None:
        thread, _, _ = self.interrupted()
        assert list(thread.corners()) == [0, 1, 2, 3, 4]
        again = thread.killed(n_placed=2)
        assert again.placed == thread.placed

    def test_joins_duplicates_and_gaps_go_on(self) -> None:
        thread, camera, stage = self.interrupted()
        thread.send(camera.image(9, T0 + 100 * MS))
        again = thread.killed()
        again.send(stage.at(T0 + 120 * MS, 120))
        assert set(again.corners()) == {0, 1, 2, 3, 4, 5, 9}
        assert again.send(camera.image(2)) == DUPLICATE
        again.settle()
        assert again.said("gap")[0] == {"what": "frames", "missing": [[6, 8]], "n_missing": 3, "all": True}
        again.send(camera.image(7, T0 + 110 * MS))
        again.settle()
        assert again.said("gap")[1:] == [{"what": "frames", "healed": [[7, 7]], "n_healed": 1}]

    def test_messages_of_the_old_process_are_known(self) -> None:
        thread, camera, stage = self.interrupted()
        image, sample, note = camera.image(6), stage.at(T0 + 500 * MS, 0), camera.event(run=RUN)
        for message in (image, sample, note):
            thread.send(message)
        again = thread.killed()
        for message in (image, sample, note):
            assert again.send(message) == RESENT
        assert again.kinds() == thread.kinds()

    def test_the_stage_is_remembered(self) -> None:
        thread, _, _ = self.interrupted()
        again = thread.killed()
        again.send(Camera("cam2", run=OTHER_RUN).start(T0 + 100 * MS))
        assert again.records[OTHER_RUN].stage_stream == "stage"
        assert again.kinds(OTHER_RUN) == ["stage"] * 6 + ["start"]

    def test_a_run_of_long_ago_does_not_make_the_stage_forgotten(self) -> None:
        thread, _, _ = self.interrupted()
        old = Camera("cam2", run=OTHER_RUN)
        long_ago = T0 - 86_400 * S
        thread.records[OTHER_RUN] = replace(thread.records[RUN], start=old.start(long_ago))
        thread.journals[OTHER_RUN] = [
            thread.journals[RUN][1]._replace(message=StageSource(boot=9).at(long_ago + k, 0), t_recv_ns=long_ago)
            for k in range(3)
        ]
        for records in (thread.records, dict(reversed(thread.records.items()))):
            thread.records = records
            again = thread.killed()
            again.send(Camera("cam3", run="33333333-2222-4333-8444-555555555555").start(T0 + 100 * MS))
            assert again.kinds("33333333-2222-4333-8444-555555555555") == ["stage"] * 6 + ["start"]

    def test_brackets_are_counted_once(self) -> None:
        thread, _, _ = self.interrupted()
        assert thread.killed().machine.report(RUN)["joined"] == thread.machine.report(RUN)["joined"]

    def test_an_end_whose_report_was_not_written_is_reported(self) -> None:
        thread, camera, _ = self.interrupted()
        before = thread.records[RUN]
        thread.send(camera.end(9))
        thread.records[RUN] = before
        thread.reports.clear()
        again = thread.killed()
        assert again.phases == [(RUN, RunPhase.ENDED)]
        again.settle()
        assert (again.report()["expected"], again.report()["missing"]) == (9, [[6, 8]])

    def test_a_report_that_was_written_is_not_written_again(self) -> None:
        thread, camera, _ = self.interrupted()
        thread.send(camera.end(6))
        thread.settle()
        again = thread.killed()
        again._load(RUN)
        again.settle()
        assert len(again.reports[RUN]) == len(thread.reports[RUN]) == 1

    def test_late_images_are_counted_once(self) -> None:
        thread, camera, _ = self.interrupted()
        thread.send(camera.end(9))
        thread.send(camera.image(6))
        again = thread.killed()
        again._load(RUN)
        assert again.machine.report(RUN)["late"] == 1
        again.send(camera.image(7))
        assert again.machine.report(RUN)["late"] == 2

    def test_late_images_of_an_idle_run_are_counted_though_nothing_was_kept_since(self) -> None:
        thread, camera, _ = self.interrupted()
        thread.tick(31_000)
        kept = thread.records[RUN]
        thread.send(camera.image(6))
        thread.records[RUN] = kept
        again = thread.killed()
        assert again.machine.report(RUN)["late"] == 1
        again.settle()
        assert again.report()["late"] == 1

    @pytest.mark.parametrize("is_joined", [False, True])
    def test_what_came_after_the_last_report_is_reported_though_nothing_was_kept_since(self, is_joined: bool) -> None:
        thread, camera = opened()
        stage = StageSource()
        thread.send(stage.at(T0 - MS, 0))
        thread.send(camera.image(0) if is_joined else placed_image(camera, 0))
        thread.send(camera.end(1))
        thread.tick(2000)
        kept = thread.records[RUN]
        thread.send(stage.at(T0 + MS, 0) if is_joined else placed_image(camera, 1))
        thread.records[RUN] = kept
        again = thread.killed(n_placed=0)
        again._load(RUN)
        again.settle()
        assert [report["placed"] for report in again.reports[RUN]] == ([0, 1] if is_joined else [1, 2])

    def test_a_place_that_the_store_has_and_the_journal_does_not_give_stands(self) -> None:
        """A registration, or a rebuild that joined anew, has placed it."""
        thread, _, _ = self.interrupted()
        thread.placed[RUN][5] = replace(thread.placed[RUN][0], frame=5)
        again = thread.killed()
        assert again.machine.unplaced(RUN) == {}
        assert again.machine.report(RUN)["placed"] == 6

    def test_what_was_held_for_a_run_is_released_when_it_is_loaded(self) -> None:
        thread, camera, _ = self.interrupted()
        again = Thread()
        again.journals, again.placed = thread.journals, thread.placed
        assert again.send(camera.image(6), SUB) == Hold()
        again.records = thread.records
        again._load(RUN)
        assert again.machine.report(RUN)["received"] == 7


def test_an_image_needs_its_place_in_the_journal() -> None:
    machine = IngestMachine(IngestSettings())
    camera = Camera()
    start = machine.screen(camera.start(), ACK, T0)
    assert isinstance(start, Accept)
    machine.accepted(start)
    verdict = machine.screen(camera.image(0), ACK, T0)
    assert isinstance(verdict, Accept)
    with pytest.raises(ValueError, match="image_index"):
        machine.accepted(verdict)


def test_an_image_comes_with_the_start_of_its_run_to_be_checked_against() -> None:
    thread, camera = opened()
    verdict = thread.send(camera.image(0))
    assert isinstance(verdict, Accept)
    assert isinstance(verdict.start, Start)
    assert verdict.start.shape == (8, 8)


def test_a_run_whose_journal_failed_is_passed_over() -> None:
    thread, _ = opened()
    other = Camera("cam2", run=OTHER_RUN)
    thread.send(other.start())
    verdict = thread.machine.screen(StageSource().at(T0, 0), ACK, T0)
    assert isinstance(verdict, Accept)
    assert [target.run for target in verdict.targets] == [RUN, OTHER_RUN]
    thread.machine.forget(RUN)
    assert thread.machine.accepted(verdict) == []


def test_reasons_all_have_a_sentence() -> None:
    reasons = {joining.NO_LATER, joining.NO_EARLIER, joining.GAP, joining.MOVING, joining.AFTER_MOVE, joining.NOT_KEPT}
    assert reasons | {live_run.BAD_STATUS, live_run.NO_POSITION, live_run.CALIBRATION} == set(live_run.UNPLACED_BECAUSE)
