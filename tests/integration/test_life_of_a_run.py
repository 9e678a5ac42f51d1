"""The life of a run, with everything that may interrupt it: every frame is there once, and every report is exact."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from integration.conftest import IMPATIENT, StartDaemon, Station
from integration.scanning import Pixels, assert_holds, endpoints, exactly, numbers, pictures, serpentine
from integration.talking import PATIENCE_S, PX_UM, SHAPE, RawPublisher, Watcher, centre_um, new_uuid
from tilecast import calibration
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_protocol.client import Client
from tilecast_protocol.journal import Journal, RecordKind
from tilecast_protocol.messages import Tiles
from tilecast_protocol.publisher import Publisher, RejectedError

CAMERA: dict[str, Any] = {"shape": SHAPE, "dtype": "<u2", "px_um": PX_UM}


@pytest.fixture
def fixed() -> Iterator[dict[str, str]]:
    """Endpoints that outlive a daemon."""
    with endpoints() as found:
        yield found


def send(publisher: Publisher, sent: Pixels, frames: range, run: str | None = None) -> None:
    """Send these frames, each at its place."""
    for frame in frames:
        publisher.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)), run=run)


def raw_image(publisher: RawPublisher, run: str, sent: Pixels, frame: int) -> list[bytes]:
    """The parts of an image at its place."""
    payload = sent[frame].tobytes()
    fields = {"run": run, "frame": frame, "codec": "raw", "nbytes": len(payload)}
    return publisher.message("image", payload, **fields, pos_um=list(centre_um(*serpentine(frame))))


def closed_report(folder: Path) -> tuple[str, int, dict[str, Any]]:
    """State, revision and report in a run's folder."""
    with SqliteReader(folder) as reader:
        found = reader.info()
    assert found.report is not None
    return found.state, found.revision, found.report


def wait_placed(station: Station, run: str, n: int) -> int:
    """Wait until so many frames have a place; the revision in which the last of them got it."""
    for message in station.watch.messages():
        if isinstance(message, Tiles) and message.run == run:
            found = station.client.placements(run)
            if len(found.placed) == n:
                return found.rev
    raise AssertionError(f"{n} frames of {run} are not placed")


# ---- the daemon goes, and comes back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_two_scans_go_on_when_the_daemon_comes_back(
    start_daemon: StartDaemon, fixed: dict[str, str], tmp_path: Path, how: str
) -> None:
    """Two cameras of one instrument; one is calibrated by its own parts, one by names of files that then change."""
    rng = np.random.default_rng(5)
    dark, flat = rng.integers(0, 900, SHAPE).astype(np.uint16), rng.uniform(0.5, 2.0, SHAPE).astype(np.float32)
    (tmp_path / "calibrations").mkdir()
    np.save(tmp_path / "calibrations" / "tuesday.npy", dark)
    settings = IMPATIENT | fixed | {"calibration.path": str(tmp_path / "calibrations")}
    daemon = start_daemon(**settings)
    n = 60
    sent = {"left": pictures(1, n), "right": pictures(2, n)}
    ack = fixed["ingest.ack"]
    with (
        Publisher(ack, instrument="scope", stream="left") as left,
        Publisher(ack, instrument="scope", stream="right") as right,
    ):
        parts = [calibration.dump_npy(dark), calibration.dump_npy(flat)]
        runs = {
            "left": left.start("left", **CAMERA, dark="part:0", flat="part:1", parts=parts, blend="newest"),
            "right": right.start("right", **CAMERA, dark="tuesday"),
        }
        both = ((left, sent["left"]), (right, sent["right"]))
        for publisher, frames in both:
            send(publisher, frames, range(20))
        left.flush()
        for publisher, frames in both:
            send(publisher, frames, range(20, 40))  # nobody waits for these
        daemon.stop() if how == "stop" else daemon.kill()
        np.save(tmp_path / "calibrations" / "tuesday.npy", dark + 1)
        for publisher, frames in both:
            send(publisher, frames, range(40, 45))  # while nobody is there
        daemon = start_daemon(**settings)
        for publisher, frames in both:
            send(publisher, frames, range(45, n))
            publisher.end()
            publisher.flush()
            assert publisher.rejected == []
    for run in runs.values():
        daemon.wait_logged("run report", run=run)
    assert daemon.stop() == 0

    fixes = {
        "left": calibration.freeze(dark=dark, flat=flat, shape=SHAPE),
        "right": calibration.freeze(dark=dark, shape=SHAPE),
    }
    for side, run in runs.items():
        folder = tmp_path / "runs" / run
        blended = {frame: calibration.apply(pixels, fixes[side]).pixels for frame, pixels in sent[side].items()}
        assert_holds(folder, sent[side], blended=blended)
        state, _, report = closed_report(folder)
        assert state == "ended"
        # The publisher sends again what was not acknowledged; only what the journal had already counts as resent.
        assert numbers(report) == exactly(n, resent=report["resent"])
        assert report["resent"] <= 20
        assert (report["placed"], report["reason"]) == (n, "done")


def test_what_is_sent_again_after_a_crash_is_counted_exactly(
    start_daemon: StartDaemon, fixed: dict[str, str], tmp_path: Path
) -> None:
    """The very same messages are resent; the same frames under new numbers are duplicates; neither is blended twice."""
    settings = IMPATIENT | fixed
    daemon = start_daemon(**settings)
    run, sent, messages = new_uuid(), pictures(3, 30), []
    with RawPublisher(fixed["ingest.ack"]) as camera:
        camera.hello()
        camera.wait_settled(camera.start(run))
        for frame in range(20):
            messages.append(raw_image(camera, run, sent, frame))
            camera.send_parts(messages[-1])
        camera.wait_settled(camera.seq - 1)  # what is acknowledged is durable
        boot = camera.boot
    daemon.kill()
    daemon = start_daemon(**settings)
    with RawPublisher(fixed["ingest.ack"], boot=boot) as camera:
        welcome = camera.hello()
        assert welcome.upto_seq == 20
        [state] = welcome.runs
        assert (state.run, state.state, state.next_frame, state.received) == (run, "open", 20, ((0, 19),))
        for parts in messages[5:]:
            camera.send_parts(parts)  # it did not hear the acknowledgements
        camera.seq = 21
        for frame in (3, 7, 19, *range(20, 30)):
            camera.send_parts(raw_image(camera, run, sent, frame))
        camera.wait_settled(camera.send("end", run=run, reason="done", n_sent=30))
        assert camera.rejections == {}
    daemon.wait_logged("run report", run=run)
    assert daemon.stop() == 0
    assert_holds(tmp_path / "runs" / run, sent)
    state, revision, report = closed_report(tmp_path / "runs" / run)
    assert (state, revision) == ("ended", 1)
    assert numbers(report) == exactly(30, resent=15, duplicate=3)


def test_a_restarted_daemon_knows_open_runs_and_one_that_was_lost_is_told_again(
    start_daemon: StartDaemon, fixed: dict[str, str], tmp_path: Path
) -> None:
    settings = IMPATIENT | fixed
    daemon = start_daemon(**settings)
    ack, sent, lost = fixed["ingest.ack"], pictures(4, 16), pictures(5, 16)
    with Publisher(ack, instrument="scope", stream="unlucky") as unlucky:
        with Publisher(ack, instrument="scope", stream="cam") as first:
            run = first.start("resumed", **CAMERA)
            send(first, sent, range(10))
        lost_run = unlucky.start("lost", **CAMERA)
        send(unlucky, lost, range(10))
        unlucky.flush()
        daemon.stop()
        shutil.rmtree(tmp_path / "runs" / lost_run)
        daemon = start_daemon(**settings)
        with Publisher(ack, instrument="scope", stream="cam") as second:
            state = second.resume(run)
            assert (state.state, state.next_frame, state.received) == ("open", 10, ((0, 9),))
            send(second, sent, range(10, 16))
            second.end()
        send(unlucky, lost, range(10, 16))
        unlucky.flush()  # an end that overtakes what is sent again would make late images of it
        unlucky.end()
        unlucky.flush()
        assert unlucky.rejected == []
    for known in (run, lost_run):
        daemon.wait_logged("run report", run=known)
    assert daemon.stop() == 0
    assert_holds(tmp_path / "runs" / run, sent)
    assert numbers(closed_report(tmp_path / "runs" / run)[2]) == exactly(16)
    # Acknowledged frames of a folder that somebody deleted are gone, and the report says which.
    assert_holds(tmp_path / "runs" / lost_run, {frame: lost[frame] for frame in range(10, 16)})
    report = numbers(closed_report(tmp_path / "runs" / lost_run)[2])
    assert report["rejected"].keys() <= {"unknown-run"}
    assert report | {"rejected": {}} == exactly(16, received=6, missing=[[0, 9]])


# ---- the publisher goes, and comes back ------------------------------------------------------------------------------


def test_a_publisher_that_died_goes_on_with_its_run(station: Station) -> None:
    sent = pictures(6, 24)
    run = new_uuid()
    with RawPublisher(station.ack, stream="mortal") as camera:
        camera.hello()
        camera.wait_settled(camera.start(run))
        for frame in range(12):
            if frame != 4:
                camera.send_parts(raw_image(camera, run, sent, frame))
        camera.wait_settled(camera.seq - 1)
    assert station.watch.notice(run, "gap")["missing"] == [[4, 4]]
    with station.publisher("mortal") as publisher:
        with pytest.raises(ValueError, match="knows no run"):
            publisher.resume(new_uuid())
        state = publisher.resume(run)
        assert (state.next_frame, state.received) == (12, ((0, 3), (5, 11)))
        send(publisher, sent, range(4, 5))
        assert publisher.image(sent[12], pos_um=centre_um(*serpentine(12))) == 12
        send(publisher, sent, range(13, 24))
        publisher.end("abort")
    report = station.watch.report(run)
    assert (report["reason"], report["state"]) == ("abort", "ended")
    assert numbers(report) == exactly(24)
    assert station.watch.notice(run, "gap", lambda detail: "healed" in detail)["healed"] == [[4, 4]]
    assert_holds(station.folder(run), sent)


def test_late_images_are_blended_and_reported_again(station: Station) -> None:
    sent = pictures(7, 12)
    with station.publisher("tardy") as publisher:
        run = publisher.start("late", **CAMERA)
        send(publisher, sent, range(8))
        publisher.end()
        publisher.flush()
        assert numbers(station.watch.report(run)) == exactly(8)
        assert publisher.start("late", **CAMERA, run=run) == run  # says nothing new: the run has ended
        send(publisher, sent, range(8, 12), run)
        publisher.flush()
    assert station.watch.notice(run, "late")["frames"][0][0] == 8
    revision = 2  # they may have been gathered into several reports; the last says it all
    while (report := station.watch.report(run, revision))["late"] < 4:
        revision += 1
    assert numbers(report) == exactly(12, late=4)
    assert (report["revision"], report["state"]) == (revision, "ended")
    placed = wait_placed(station, run, 12)
    assert station.watch.placed(run, placed).rev == placed
    assert station.client.run(run)["state"] == "ended"
    assert_holds(station.folder(run), sent)


def test_a_silent_run_goes_idle_and_takes_late_images(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon(**IMPATIENT | {"ingest.idle_end_s": "0.3"})
    sent, run = pictures(8, 10), new_uuid()
    with Watcher(daemon.endpoints["notify"]) as watch, RawPublisher(daemon.endpoints["ingest.ack"]) as camera:
        camera.hello()
        camera.wait_settled(camera.start(run, n_expected=10))
        for frame in range(6):
            camera.send_parts(raw_image(camera, run, sent, frame))
        watch.notice(run, "idle")
        report = watch.report(run)
        assert (report["state"], report["reason"], report["planned"]) == ("idle", None, 10)
        assert numbers(report) == exactly(6)
        for frame in range(6, 10):
            camera.send_parts(raw_image(camera, run, sent, frame))
        camera.wait_settled(camera.seq - 1)
        revision = 2
        while (report := watch.report(run, revision))["late"] < 4:
            revision += 1
        assert (report["state"], numbers(report)) == ("idle", exactly(10, late=4))
        camera.wait_settled(camera.send("end", run=run, reason="done", n_sent=10))
        watch.notice(run, "ended")
        report = watch.report(run, revision + 1)
        assert (report["state"], report["reason"]) == ("ended", "done")
        assert numbers(report) == exactly(10, late=4)
        # A start that is repeated never reopens a run.
        camera.wait_settled(camera.start(run, n_expected=10))
        with Client(None, daemon.endpoints["query"]) as client:
            assert client.run(run)["state"] == "ended"
    assert daemon.stop() == 0
    assert_holds(tmp_path / "runs" / run, sent)
    assert closed_report(tmp_path / "runs" / run)[2] == report


# ---- what begins it --------------------------------------------------------------------------------------------------


def test_an_image_before_its_start_is_refused_where_that_can_be_said(station: Station) -> None:
    sent, run = pictures(9, 4), new_uuid()
    with RawPublisher(station.ack, stream="early-ack") as camera:
        camera.hello()
        for frame in range(4):
            camera.send_parts(raw_image(camera, run, sent, frame))
        assert [camera.wait_rejected(seq).reason for seq in range(4)] == ["unknown-run"] * 4
        camera.start(run)
        for frame in range(4):
            camera.send_parts(raw_image(camera, run, sent, frame))
        camera.wait_settled(camera.send("end", run=run, reason="done", n_sent=4))
        assert set(camera.rejections) == set(range(4))
    assert numbers(station.watch.report(run)) == exactly(4, rejected={"unknown-run": 4})
    assert_holds(station.folder(run), sent)


def test_images_before_their_start_are_held_where_nobody_can_be_told(station: Station) -> None:
    sent, run = pictures(10, 8), new_uuid()
    with RawPublisher(station.pull, zmq.PUSH, stream="early-pull") as camera:
        for frame in range(5):
            camera.send_parts(raw_image(camera, run, sent, frame))
        wait_held(station, 5)
        assert not station.folder(run).exists()
        camera.start(run)
        for frame in range(5, 8):
            camera.send_parts(raw_image(camera, run, sent, frame))
        camera.send("end", run=run, reason="done", n_sent=8)
        assert numbers(station.watch.report(run)) == exactly(8)
    assert station.watch.notices(run)[0].kind == "started"
    assert_holds(station.folder(run), sent)


def wait_held(station: Station, n: int) -> None:
    """Wait until the daemon holds so many images."""
    for _ in station.watch.messages():  # it beats every second
        if station.client.stats()["ingest"]["held"]["n"] >= n:
            return
    raise AssertionError("the daemon does not hold them")


def test_a_calibration_that_nobody_knows_is_refused_and_leaves_nothing(station: Station) -> None:
    with station.publisher("uncalibrated") as publisher:
        run = new_uuid()
        with pytest.raises(RejectedError, match="nobody-made-this") as refusal:
            publisher.start("dark", **CAMERA, run=run, dark="nobody-made-this")
        assert [one.reason for one in refusal.value.rejected] == ["calibration-missing"]
        assert not station.folder(run).exists()
        # Without it the very same run can be started.
        assert publisher.start("dark", **CAMERA, run=run) == run
        publisher.end()
    assert numbers(station.watch.report(run))["received"] == 0


def test_images_wait_for_the_parts_of_a_start_that_was_missed(station: Station) -> None:
    """One way, and the daemon heard only a repeat of the start, which leaves the parts out: held, then calibrated."""
    sent, run = pictures(11, 6), new_uuid()
    flat = np.random.default_rng(1).uniform(0.5, 2.0, SHAPE)
    part = calibration.dump_npy(flat)
    digest = [hashlib.sha256(part).hexdigest()]
    with RawPublisher(station.pull, zmq.PUSH, stream="partial") as camera:
        camera.start(run, flat="part:0", sha256=digest)
        for frame in range(4):
            camera.send_parts(raw_image(camera, run, sent, frame))
        station.watch.notice(run, "calibration-missing")
        fields = {"name": "raw", "shape": list(SHAPE), "dtype": "<u2", "px_um": list(PX_UM)}
        camera.send("start", part, run=run, flat="part:0", sha256=digest, nbytes=[len(part)], **fields)
        for frame in range(4, 6):
            camera.send_parts(raw_image(camera, run, sent, frame))
        camera.send("end", run=run, reason="done", n_sent=6)
        assert numbers(station.watch.report(run)) == exactly(6)
    fixed = calibration.freeze(flat=flat, shape=SHAPE)
    wait_placed(station, run, 6)
    assert_holds(
        station.folder(run), sent, blended={n: calibration.apply(pixels, fixed).pixels for n, pixels in sent.items()}
    )


# ---- what people do --------------------------------------------------------------------------------------------------


def test_events_and_notes_are_kept_and_an_operator_can_end_a_run(station: Station) -> None:
    sent = pictures(12, 5)
    with station.publisher("watched") as publisher, station.publisher("autofocus") as autofocus:
        run = publisher.start("watched", **CAMERA)
        send(publisher, sent, range(5))
        publisher.event("shutter", user={"open": True})
        publisher.flush()
        autofocus.event("focus-lost", run=run, user={"z_um": 3.5})
        autofocus.flush()
        station.client.note(run, "a bubble at the left")
        station.client.rename(run, "slide 7")
        station.client.end(run)
        report = station.watch.report(run)
        assert (report["state"], report["reason"]) == ("ended", "abort")
        assert numbers(report) == exactly(5)
    details = station.client.run(run)
    assert (details["name"], details["state"]) == ("slide 7", "ended")
    with SqliteReader(station.folder(run)) as reader:
        assert [row.detail["text"] for row in reader.events() if row.name == "note"] == ["a bubble at the left"]
    with Journal.open(station.folder(run) / "journal", readonly=True) as journal:
        topics = [record.topic for record in journal.records() if record.kind is RecordKind.EVENT]
    assert topics == ["tc1/scope/watched/event", "tc1/scope/autofocus/event"]
    assert_holds(station.folder(run), sent)


def test_another_publisher_goes_on_with_a_run_that_a_restarted_daemon_knows(start_daemon: StartDaemon) -> None:
    """Its `start` repeats one that is on the disk already, and nothing else is written that would have to be synced."""
    sent = pictures(12, 4)
    with endpoints() as fixed:
        daemon = start_daemon(**(IMPATIENT | fixed))
        first = Publisher(fixed["ingest.ack"], instrument="scope", stream="cam", timeout_s=PATIENCE_S)
        run = first.start("goes on", shape=SHAPE, dtype="<u2", px_um=PX_UM)
        for frame in range(2):
            first.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))
        first.flush()
        daemon.kill()
        daemon.start()
        with Watcher(fixed["notify"]) as watch:
            with Publisher(fixed["ingest.ack"], instrument="scope", stream="cam", timeout_s=PATIENCE_S) as second:
                second.start("goes on", run=run, shape=SHAPE, dtype="<u2", px_um=PX_UM)
                second.image(sent[1], frame=1, pos_um=centre_um(*serpentine(1)))  # it is there: settled, not kept again
                second.flush()
                for frame in range(2, 4):
                    second.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))
                second.end()
            assert numbers(watch.report(run)) == exactly(4, duplicate=1)
        first.close()
        assert daemon.stop() == 0
