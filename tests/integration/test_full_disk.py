"""A real disk that gets full: frames are kept to the last, the daemon stays, and goes on when there is room."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.nursery import shared
from integration.conftest import StartDaemon
from integration.scanning import assert_holds, info, tilecast
from integration.talking import RawPublisher, Watcher, centre_um, new_uuid, picture
from tilecast.service.fsck import check_run
from tilecast.store.lock import holder
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_protocol.client import Client
from tilecast_protocol.errors import QueryError
from tilecast_protocol.messages import RunNotice, Tiles

SHAPE = (512, 512)
SETTINGS = {
    "disk.warn_bytes": "30MiB",
    "disk.warn_percent": "100",
    "disk.stop_bytes": "20MiB",
    "disk.stop_percent": "100",
    "blend.tile_size": "256",
    "ingest.gap_report_ms": "50",
    "ingest.idle_end_s": "600",
    "store.commit_interval_ms": "20",
    "store.wal_limit_bytes": "8MiB",
    "log.flood_s": "0",
}

Mount = Callable[[str], Path]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mount small disks in memory; `mount("size=100m")`."""
    with tempfile.TemporaryDirectory(prefix="tilecast-disk-") as folder:
        mounted: list[Path] = []

        def make(options: str) -> Path:
            path = Path(folder) / str(len(mounted))
            path.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")
            mounted.append(path)
            return path

        yield make
        for path in mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


def corner(frame: int) -> tuple[int, int]:
    row, col = divmod(frame, 6)
    return 480 * row, 480 * col


def send(publisher: RawPublisher, run: str, frame: int) -> int:
    return publisher.image(run, frame, picture(frame, SHAPE), pos_um=list(centre_um(*corner(frame), SHAPE)))


def wait_room(watch: Watcher, run: str, room: str) -> dict[str, Any]:
    return watch.notice(run, "warning", lambda detail: detail.get("what") == "disk" and detail["room"] == room)


def start_fails(publisher: RawPublisher, **options: Any) -> str:
    refused = publisher.wait_rejected(publisher.start(new_uuid(), shape=list(SHAPE), **options))
    assert refused.reason == "disk-reserve"
    return refused.message


@pytest.mark.slow
def test_a_disk_gets_full_and_has_room_again(start_daemon: StartDaemon, mount: Mount) -> None:
    disk = mount("size=240m")
    root = disk / "runs"
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 150 << 20)
    daemon = start_daemon(**SETTINGS, **{"store.path": str(root)})
    run = new_uuid()
    with (
        Watcher(daemon.endpoints["notify"]) as watch,
        Client(None, daemon.endpoints["query"]) as client,
        RawPublisher(daemon.endpoints["ingest.ack"]) as camera,
    ):
        assert (root / "reserve").stat().st_size == 24 << 20
        camera.hello()
        camera.wait_settled(camera.start(run, shape=list(SHAPE)))
        frame = 0
        while not camera.rejections:
            camera.wait_settled(send(camera, run, frame))
            frame += 1
        n = frame - 1  # the last was refused
        wait_room(watch, run, "stop")
        shed_at = client.run(run)
        assert 0 < shed_at["frames"] < n, "mosaics are shed first, and images are kept as long as they can be"
        assert "catches up by itself" in watch.notice(run, "warning", lambda d: d.get("what") == "stuck")["message"]
        report = watch.notice(run, "report")["report"]
        assert (report["reason"], report["received"], report["n_missing"]) == ("disk-reserve", n, 0)
        why = start_fails(camera)
        assert all(words in why for words in ("not enough for what had to be written", str(root), "make room")), why
        assert not (root / "reserve").exists(), "the closing commits need it"
        health = client.health()
        assert (health["state"], health["ready"], health["disk"]) == ("ready", True, "full")
        assert any("make room" in problem for problem in health["problems"])
        assert len(client.snapshot(run).tiles) > 0, "what is there is served"
        with SqliteReader(root / run) as reader:
            assert reader.info().state == "ended"

        ballast.unlink()
        late = send(camera, run, n)
        camera.wait_settled(late)
        while late in camera.rejections:  # until the daemon has seen that there is room
            camera.wait_settled(late := send(camera, run, n))
        watch.until(
            lambda message: isinstance(message, Tiles) and message.run == run and client.run(run)["frames"] == n + 1,
            "the mosaic has caught up",
        )
        other = new_uuid()
        camera.wait_settled(seq := camera.start(other, shape=list(SHAPE)))
        assert seq not in camera.rejections
        assert client.health()["problems"] == []
        assert client.stats()["disk"]["room"] == "ok"
        assert (root / "reserve").exists()
    assert daemon.stop() == 0
    assert not (root / "reserve").exists()
    assert check_run(root / run) == []
    assert_holds(root / run, {k: picture(k, SHAPE) for k in range(n + 1)}, {k: corner(k) for k in range(n + 1)})


@pytest.mark.slow
def test_a_daemon_starts_on_a_disk_that_can_only_be_read(start_daemon: StartDaemon, mount: Mount) -> None:
    disk = mount("size=300m")
    root = disk / "runs"
    run = new_uuid()
    daemon = start_daemon(**SETTINGS, **{"store.path": str(root)})
    with RawPublisher(daemon.endpoints["ingest.ack"]) as camera, Watcher(daemon.endpoints["notify"]) as watch:
        camera.hello()
        camera.start(run, shape=list(SHAPE))
        camera.wait_settled(send(camera, run, 0))
        watch.placed(run, 1)
    daemon.kill()
    remount(disk, "ro")
    daemon = start_daemon(**SETTINGS, **{"store.path": str(root)})
    with (
        Client(None, daemon.endpoints["query"]) as client,
        RawPublisher(daemon.endpoints["ingest.ack"]) as camera,
        Watcher(daemon.endpoints["notify"]) as watch,
    ):
        camera.hello()
        health = client.health()
        assert health["ready"]
        assert any("Read-only file system" in problem for problem in health["problems"])
        assert "Read-only file system" in start_fails(camera)
        refused = camera.wait_rejected(send(camera, run, 1))
        assert (refused.reason, "cannot be loaded" in refused.message) == ("busy", True)
        remount(disk, "rw")
        watch.until(
            lambda message: not isinstance(message, RunNotice) and run in client.health()["runs"],
            "the run is loaded again",
        )
        camera.wait_settled(seq := send(camera, run, 1))
        assert seq not in camera.rejections
        watch.placed(run, 2)
    assert daemon.stop() == 0
    assert check_run(root / run) == []


def test_a_run_is_sealed_by_the_daemon_that_has_it(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon(**SETTINGS)
    run = new_uuid()
    with (
        Watcher(daemon.endpoints["notify"]) as watch,
        Client(None, daemon.endpoints["query"]) as client,
        RawPublisher(daemon.endpoints["ingest.ack"]) as camera,
    ):
        camera.hello()
        camera.start(run, shape=list(SHAPE))
        camera.wait_settled(send(camera, run, 0))
        with pytest.raises(QueryError, match="end it first"):
            client.seal(run)
        watch.placed(run, 1)
        camera.send("end", run=run, reason="done", n_sent=1)
        watch.report(run)
        tiles = client.snapshot(run).tiles
        assert client.seal(run) > 100_000
        assert watch.notice(run, "sealed")["no_longer"][0] == "rebuild"
        assert client.run(run)["state"] == "sealed"
        assert client.snapshot(run).tiles == tiles
        refused = camera.wait_rejected(send(camera, run, 1))
        assert refused.reason == "run-sealed"
        with pytest.raises(QueryError, match="sealed already"):
            client.seal(run)
        assert client.stats()["retention"]["n_sealed"] == 1
    assert not (tmp_path / "runs" / run / "journal").exists()
    assert daemon.stop() == 0
    assert check_run(tmp_path / "runs" / run) == []


def test_a_disk_that_gets_short_of_room_is_said_everywhere(start_daemon: StartDaemon, mount: Mount) -> None:
    """At `warn` everything goes on; people are told, and told when it is over."""
    disk = mount("size=200m")
    ballast = disk / "ballast"
    settings = SETTINGS | {"disk.warn_bytes": "120MiB", "disk.stop_bytes": "10MiB"}
    daemon = start_daemon(**settings, **{"store.path": str(disk / "runs")})
    run, other = new_uuid(), new_uuid()
    with (
        Watcher(daemon.endpoints["notify"]) as watch,
        Client(None, daemon.endpoints["query"]) as client,
        RawPublisher(daemon.endpoints["ingest.ack"]) as camera,
    ):
        camera.hello()
        camera.start(run, shape=list(SHAPE))
        camera.wait_settled(send(camera, run, 0))
        assert (client.health()["disk"], client.health()["problems"]) == ("ok", [])
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 100 << 20)
        told = wait_room(watch, run, "warn")
        assert "make room" in told["message"]
        line = daemon.wait_logged("room on the disk", room="warn", before="ok")
        assert (line["level"], line["message"]) == ("warning", told["message"])
        health, stats = client.health(), client.stats()["disk"]
        assert (health["ready"], health["disk"], len(health["problems"])) == (True, "warn", 1)
        assert "make room; below" in health["problems"][0]
        assert (stats["room"], stats["warn_below_bytes"]) == ("warn", 120 << 20)
        assert 10 << 20 < stats["free_bytes"] < 120 << 20
        # Everything goes on.
        camera.wait_settled(send(camera, run, 1))
        camera.wait_settled(camera.start(other, shape=list(SHAPE)))
        watch.until(lambda _: client.run(run)["frames"] == 2, "mosaics are written")
        assert camera.rejections == {}
        ballast.unlink()
        wait_room(watch, run, "ok")
        daemon.wait_logged("room on the disk", room="ok", before="warn")
        assert (client.health()["disk"], client.health()["problems"]) == ("ok", [])
    assert daemon.stop() == 0
    assert check_run(disk / "runs" / run) == []


def test_the_daemon_drops_the_journal_of_a_run_that_is_over_and_checked(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    root, over, still = tmp_path / "runs", new_uuid(), new_uuid()
    daemon = start_daemon(**SETTINGS)
    with Watcher(daemon.endpoints["notify"]) as watch, RawPublisher(daemon.endpoints["ingest.ack"]) as camera:
        camera.hello()
        for run in (over, still):
            camera.start(run, shape=list(SHAPE))
            camera.wait_settled(send(camera, run, 0))
        camera.send("end", run=over, reason="done", n_sent=1)
        watch.report(over)
    assert daemon.stop() == 0
    daemon = start_daemon(**SETTINGS, **{"retention.journals": "drop-checked"})
    line = daemon.wait_logged("a journal was dropped; its run is sealed", run=over)
    assert (line["level"], line["freed_bytes"] > 100_000) == ("warning", True)
    assert not (root / over / "journal").exists()
    assert (root / still / "journal").exists(), "it is open"
    with (
        Client(None, daemon.endpoints["query"]) as client,
        RawPublisher(daemon.endpoints["ingest.ack"]) as camera,
    ):
        assert client.stats()["retention"] == {"n_sealed": 1, "freed_bytes": line["freed_bytes"]}
        assert (client.run(over)["state"], client.run(still)["state"]) == ("sealed", "open")
        assert len(client.snapshot(over).tiles) > 0
        camera.hello()
        refused = camera.wait_rejected(send(camera, over, 1))
        assert (refused.reason, "start a new run" in refused.message) == ("run-sealed", True)
        camera.wait_settled(seq := send(camera, still, 1))
        assert seq not in camera.rejections
        said = info(over, root)
        assert (said["state"], said["sealed because of"]) == ("sealed", "retention.journals")
        assert "late frames" in said["no longer possible"]
        assert "rebuild, replay, late frames" in tilecast("info", over, store=root)
        for command in ("rebuild", "replay"):
            failed = fails(command, over, store=root)
            assert f"run {over} is sealed since 2" in failed
    assert daemon.stop() == 0
    assert check_run(root / over) == []


def test_the_command_has_the_daemon_seal_a_run_that_it_holds(start_daemon: StartDaemon, tmp_path: Path) -> None:
    root, run = tmp_path / "runs", new_uuid()
    daemon = start_daemon(**SETTINGS)
    arguments = ("seal", run, "--yes", "--set", f"query={daemon.endpoints['query']}")
    with Watcher(daemon.endpoints["notify"]) as watch, RawPublisher(daemon.endpoints["ingest.ack"]) as camera:
        camera.hello()
        camera.start(run, shape=list(SHAPE))
        camera.wait_settled(send(camera, run, 0))
        with Client(None, daemon.endpoints["query"]) as client:
            client.run(run)  # waits for its store
        assert "end it first" in fails(*arguments, store=root)
        camera.send("end", run=run, reason="done", n_sent=1)
        watch.report(run)
        assert f"process {daemon.pid}" in holder(root / run), "it has it loaded still"
        assert f"sealed {run}: " in tilecast(*arguments, store=root)
        assert watch.notice(run, "sealed")["no_longer"][0] == "rebuild"
        assert not (root / run / "journal").exists()
    assert daemon.stop() == 0
    assert check_run(root / run) == []


def fails(*arguments: str, store: Path) -> str:
    """Run a command that must fail; gives what it says on standard error."""
    done = shared().run(*arguments, "--set", f"store.path={store}")
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr
