"""A disk that turns read-only under a daemon at work, as ext4 does after an error.

A small ext4 file system lies in a file and is mounted through a loop device. It is told that it has aborted, which is
what becomes of it when its device fails: every write is refused from then on, whoever has files open. It can only be
written again after it was unmounted, so the daemon has to be stopped. A disk that refuses writes for a while, and then
takes them again, is in `tests/faults/test_failing_disk.py`.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.conftest import IMPATIENT, StartDaemon
from integration.scanning import assert_holds, pictures, serpentine
from integration.talking import RawPublisher, Watcher, centre_um, new_uuid
from tilecast.service.fsck import Kind, check_run
from tilecast_protocol.client import Client

SETTINGS = IMPATIENT | {"disk.warn_bytes": "2MiB", "disk.stop_bytes": "1MiB"}
N_BEFORE, N = 6, 12


class Disk:
    """An ext4 file system of 128 MiB of its own.

    Attributes
    ----------
    path : Path
        Where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self._image = folder / "disk.img"
        self.path = folder / "disk"
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(128 << 20)

    def make(self) -> str:
        """Format and mount it; why not, where that cannot be done."""
        for command in (["mkfs.ext4", "-q", "-F", str(self._image)], self._mount):
            try:
                made = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                return str(error)
            if made.returncode:
                return made.stderr.strip()
        return ""

    def abort(self) -> None:
        """Let it refuse every write from here on."""
        subprocess.run(["mount", "-o", "remount,abort", str(self.path)], check=True, capture_output=True)

    def mend(self) -> None:
        """Check it and mount it again, as an operator would; nothing in it may be open."""
        subprocess.run(["umount", str(self.path)], check=True)
        checked = subprocess.run(["e2fsck", "-p", str(self._image)], check=False, capture_output=True, text=True)
        assert checked.returncode < 4, checked.stdout
        subprocess.run(self._mount, check=True)

    def umount(self) -> None:
        """Take it out of the tree."""
        subprocess.run(["umount", "-l", str(self.path)], check=True)

    @property
    def _mount(self) -> list[str]:
        return ["mount", "-t", "ext4", "-o", "loop", str(self._image), str(self.path)]


@pytest.fixture
def disk() -> Iterator[Disk]:
    """Skipped where none can be mounted."""
    with tempfile.TemporaryDirectory(prefix="tilecast-disk-") as folder:
        made = Disk(Path(folder))
        trouble = made.make()
        if trouble:
            pytest.skip(f"no disk can be mounted here: {trouble}")
        yield made
        made.umount()


def test_a_disk_turns_read_only_under_a_daemon(start_daemon: StartDaemon, disk: Disk) -> None:
    root, sent, run = disk.path / "runs", pictures(11, N), new_uuid()
    daemon = start_daemon(**SETTINGS, **{"store.path": str(root)})
    pid = daemon.pid

    def send(frame: int) -> int:
        return camera.image(run, frame, sent[frame], pos_um=list(centre_um(*serpentine(frame))))

    with (
        Watcher(daemon.endpoints["notify"]) as watch,
        Client(None, daemon.endpoints["query"]) as client,
        RawPublisher(daemon.endpoints["ingest.ack"]) as camera,
    ):
        camera.hello()
        camera.start(run)
        for frame in range(N_BEFORE):
            camera.wait_settled(send(frame))
        watch.until(lambda _: client.run(run)["frames"] == N_BEFORE, "all are in the mosaic")
        tiles = client.snapshot(run).tiles

        disk.abort()
        for frame in range(N_BEFORE, N):
            refused = camera.wait_rejected(send(frame))
            assert "Read-only file system" in refused.message, refused
        other = camera.wait_rejected(camera.start(new_uuid()))
        assert (other.reason, "Read-only file system" in other.message) == ("disk-reserve", True)
        health = client.health()
        assert health["state"] == "ready", "the daemon stays up"
        assert any("the disk does not take what is written" in problem for problem in health["problems"])
        assert client.stats()["disk"]["trouble"]
        assert client.snapshot(run).tiles == tiles, "what it has is served"

        assert daemon.pid == pid
    assert daemon.running
    daemon.stop()
    events = [str(line.get("event")) for line in daemon.log]
    assert "thread failed; the daemon stops" not in events
    assert len(events) < 50, "it says what is wrong, and does not say it all the time"

    disk.mend()
    # What was committed last may be in the page cache of a disk that is no more; the journal has it.
    assert [found for found in check_run(root / run) if found.kind is not Kind.PLACES] == [], "nothing is corrupt"
    daemon.start()
    with Watcher(daemon.endpoints["notify"]) as watch, RawPublisher(daemon.endpoints["ingest.ack"]) as camera:
        camera.hello()
        for frame in range(N_BEFORE, N):
            seq = send(frame)
            camera.wait_settled(seq)
            assert seq not in camera.rejections, camera.rejections[seq]
        camera.send("end", run=run, reason="done", n_sent=N)
        report = watch.notice(run, "report", lambda detail: detail["report"]["reason"] == "done")["report"]
        assert (report["received"], report["n_missing"]) == (N, 0)
    assert daemon.stop() == 0, list(daemon.log)[-10:]
    assert check_run(root / run) == []
    assert_holds(root / run, sent)
