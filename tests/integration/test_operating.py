"""What a technician does to the runs of a daemon, from the command line, and what viewers hear of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.nursery import shared
from integration.conftest import IMPATIENT, StartDaemon, Station
from integration.scanning import Pixels, assert_holds, pictures, serpentine
from integration.stored import assert_same, journalled_frames, reference_mosaic, stored_mosaic
from integration.talking import PATIENCE_S, PX_UM, SHAPE, Watcher, centre_um
from tilecast.process import DaemonProcess
from tilecast.service.copying import copy_run
from tilecast.service.deletion import deletions, seen
from tilecast.service.fsck import check_run
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_protocol.client import Client
from tilecast_protocol.errors import QueryError
from tilecast_protocol.publisher import Publisher


def tilecast(daemon: DaemonProcess, store: Path, *arguments: str, code: int = 0) -> str:
    """Run a command as a person would, beside a daemon; what it says on both outputs."""
    options = ["--set", f"store.path={store}", "--set", f"query={daemon.endpoints['query']}"]
    done = shared().run(*arguments, *options)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def scan(publisher: Publisher, sent: Pixels, frames: range) -> None:
    """Send these frames, each at its place."""
    for frame in frames:
        publisher.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))
    publisher.flush()


def test_a_run_is_renamed_noted_ended_and_deleted_and_viewers_hear_of_it(station: Station) -> None:
    sent = pictures(31, 5)
    with station.publisher("operated") as publisher:
        run = publisher.start("operated", shape=SHAPE, dtype="<u2", px_um=PX_UM)
        scan(publisher, sent, range(5))

        def command(*arguments: str, code: int = 0) -> str:
            return tilecast(station.daemon, station.root, *arguments, code=code)

        command("rename", run, "slide 7")
        assert station.watch.notice(run, "renamed") == {"name": "slide 7"}
        command("note", run, "a bubble")
        assert station.watch.notice(run, "noted") == {"text": "a bubble"}
        assert "is open; end it first" in command("delete", run, "--yes", code=2)
        assert "end it first, or copy it" in command("archive", run, str(station.root / "x.tar"), code=2)
        assert "Aborted" in command("delete", run, code=1)  # nobody answers
        command("end", run)
        station.watch.notice(run, "ended")
        assert station.watch.report(run)["reason"] == "abort"
        assert "has ended already" in command("end", run, code=2)
    assert_holds(station.folder(run), sent)
    details = station.client.run(run)
    assert (details["name"], details["state"]) == ("slide 7", "ended")
    # At once, though the daemon has it loaded still; and not with what one has not seen.
    with pytest.raises(QueryError) as refused:
        station.client.delete(run, if_seen=(1, 2))
    assert refused.value.code == "conflict"
    assert "deleted" in command("delete", run, "--yes")
    assert station.watch.notice(run, "deleted")["name"] == "slide 7"
    assert not station.folder(run).exists()
    with pytest.raises(QueryError) as unknown:
        station.client.run(run)
    assert unknown.value.code == "unknown-run"
    gone = [json.loads(line) for line in command("runs", "--deleted", "--json").splitlines()]
    assert [entry["name"] for entry in gone if entry["run"] == run] == ["slide 7"]


def test_a_run_that_is_not_loaded_is_renamed_and_noted_and_viewers_hear_of_it(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon = start_daemon(**IMPATIENT)
    sent = pictures(32, 4)
    with Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam") as publisher:
        run = publisher.start("once", shape=SHAPE, dtype="<u2", px_um=PX_UM)
        scan(publisher, sent, range(4))
        publisher.end()
    daemon.wait_logged("run report", run=run)
    assert daemon.stop() == 0
    daemon.start()
    with Watcher(daemon.endpoints["notify"]) as watch, Client(None, daemon.endpoints["query"]) as client:
        client.rename(run, "twice")
        client.note(run, "hm")
        assert watch.notice(run, "renamed") == {"name": "twice"}
        assert watch.notice(run, "noted") == {"text": "hm"}
        client.delete(run, if_seen=seen(tmp_path / "runs" / run))
        assert watch.notice(run, "deleted")["name"] == "twice"
    assert daemon.stop() == 0
    assert not (tmp_path / "runs" / run).exists()


@pytest.fixture
def scanning(start_daemon: StartDaemon, tmp_path: Path) -> Iterator[tuple[DaemonProcess, str, Pixels]]:
    """A daemon into which a scan comes as fast as it takes it, until the test is over."""
    # A short log is reset often, and what was replaced becomes a hole at once.
    daemon = start_daemon(**IMPATIENT, **{"store.wal_limit_bytes": "1MiB"})
    sent = pictures(33, 400)
    stopping = threading.Event()
    with (
        Watcher(daemon.endpoints["notify"]) as watch,
        Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam") as publisher,
    ):
        run = publisher.start("live", shape=SHAPE, dtype="<u2", px_um=PX_UM)

        def send() -> None:
            for n in range(20_000):
                if stopping.wait(0.002):
                    return
                frame = n % 400
                publisher.image(sent[frame], frame=n, pos_um=centre_um(*serpentine(frame)))

        thread = threading.Thread(target=send)
        thread.start()
        try:
            watch.placed(run, 5)
            yield daemon, run, sent
        finally:
            stopping.set()
            thread.join(PATIENCE_S)
        publisher.end()
        publisher.flush()
    daemon.wait_logged("run report", run=run)
    assert daemon.stop() == 0
    assert check_run(tmp_path / "runs" / run) == []


def test_an_open_run_is_copied_as_it_was_at_one_moment(
    scanning: tuple[DaemonProcess, str, Pixels], start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon, run, sent = scanning
    n_before = 0
    for number in range(3):
        copy = copy_run(tmp_path / "runs" / run, tmp_path / f"copies {number}")
        frames = journalled_frames(copy)
        with SqliteReader(copy) as reader:
            assert reader.check() == []
            assert reader.info().state == "idle"
            placed = [row.placement.frame for row in reader.placements()]
        assert n_before < len(placed) <= len(frames)
        assert set(placed) <= set(frames)
        assert_same(stored_mosaic(copy), reference_mosaic(copy, {n: sent[n % 400] for n in placed}))
        n_before = len(placed)
    # A daemon that finds such a copy shows what was recorded and not shown yet.
    other = start_daemon("copies 2", **IMPATIENT)
    other.wait_logged("run loaded", run=run)
    with Client(None, other.endpoints["query"]) as client:
        assert client.run(run)["state"] == "idle"
    assert other.stop() == 0
    assert check_run(copy) == []
    with SqliteReader(copy) as reader:
        assert {row.placement.frame for row in reader.placements()} == set(frames)
    said = tilecast(daemon, tmp_path / "runs", "copy", "last", str(tmp_path / "by command"))
    assert f"copied {run}" in said
    assert (tmp_path / "by command" / run / "tiles.sqlite").exists()


def test_a_run_is_archived_removed_and_brought_back_beside_a_daemon(station: Station, tmp_path: Path) -> None:
    sent = pictures(34, 6)
    with station.publisher("archived") as publisher:
        run = publisher.start("archived", shape=SHAPE, dtype="<u2", px_um=PX_UM)
        scan(publisher, sent, range(6))
        publisher.end()
        station.watch.report(run)
    path = tmp_path / "scan.tar"
    said = tilecast(station.daemon, station.root, "archive", run, str(path), "--remove", "--yes")
    assert "read again and checked" in said
    assert station.watch.notice(run, "deleted")["name"] == "archived"
    assert not station.folder(run).exists()
    assert [entry["why"] for entry in deletions(station.root) if entry["run"] == run] == [f"archived as {path}"]
    tilecast(station.daemon, station.root, "unarchive", str(path))
    assert station.client.run(run)["frames"] == 6
    assert_holds(station.folder(run), sent)


def test_a_deletion_that_was_killed_is_finished_by_the_next_daemon(start_daemon: StartDaemon, tmp_path: Path) -> None:
    run = "0190a5a8-1111-7000-8000-000000000001"
    for name in (f"{run}.deleted", f"{run}.partial"):
        (tmp_path / "runs" / name / "journal").mkdir(parents=True)
    (tmp_path / "runs" / f"{run}.deleted" / "deletion.json").write_text(json.dumps({"run": run, "t_ns": 1}))
    daemon = start_daemon(**IMPATIENT)
    for what in (f"the deletion of run {run}", f"an unfinished copy of run {run}"):
        daemon.wait_logged("what a program that was killed had begun is finished", what=what)
    assert daemon.stop() == 0
    assert [path for path in (tmp_path / "runs").iterdir() if run in path.name] == []
    assert json.loads((tmp_path / "runs" / "deletions.jsonl").read_text()) == {"run": run, "t_ns": 1}
