"""How changes are noticed, and where by looking only."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from structlog.testing import capture_logs

from tilecast_plugins.watch_folder import source
from tilecast_plugins.watch_folder.source import Alarm, needs_polling

PATIENCE_S = 30.0


@pytest.mark.parametrize(
    ("kind", "polls"), [("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("ext4", False), ("tmpfs", False)]
)
def test_network_shares_are_polled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, polls: bool) -> None:
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(tmp_path), fstype=kind)]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    (tmp_path / "in").mkdir()
    assert needs_polling(tmp_path / "in") is polls
    assert needs_polling(tmp_path.parent) is False


@pytest.mark.parametrize("how", ["native", "polling"])
def test_a_new_file_rings(tmp_path: Path, how: str) -> None:
    alarm, never = Alarm(how, 0.05, subfolders=False), threading.Event()  # type: ignore[arg-type]
    try:
        alarm.watch(tmp_path)
        alarm.wait(PATIENCE_S, never)  # it has begun
        assert alarm.kind == how
        rang = threading.Event()

        def wait() -> None:
            alarm.wait(PATIENCE_S, never)
            rang.set()

        thread = threading.Thread(target=wait)
        thread.start()
        (tmp_path / "a.tif").touch()
        assert rang.wait(PATIENCE_S / 2)
        thread.join()
        with pytest.raises(FileNotFoundError):
            alarm.watch(tmp_path / "gone")
    finally:
        alarm.close()


def test_without_native_watches_it_polls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_more() -> object:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(source, "Observer", no_more)
    alarm = Alarm("auto", 0.05, subfolders=False)
    with capture_logs() as logs:
        alarm.watch(tmp_path)
    assert alarm.kind == "polling"
    assert "inotify watch limit" in logs[0]["why"]
    alarm.close()
