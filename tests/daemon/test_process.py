"""A daemon that a program starts does not outlive it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from tilecast.process import DaemonProcess
from tilecast.service.fsck import check_run
from tilecast_protocol.publisher import Publisher

_PARENT = """
import signal
import sys
from pathlib import Path
from tilecast.process import DaemonProcess
daemon = DaemonProcess(Path(sys.argv[1]), log_file=Path(sys.argv[2])).start()
print(daemon.pid, daemon.endpoints["ingest.ack"], flush=True)
signal.pause()
"""


def test_it_ends_in_good_order_when_its_parent_is_killed(tmp_path: Path) -> None:
    root, log = tmp_path / "runs", tmp_path / "log"
    command = [sys.executable, "-c", _PARENT, str(root), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, endpoint = parent.stdout.readline().split()
        daemon = psutil.Process(int(pid))
        with Publisher(endpoint, instrument="scope", stream="cam") as camera:
            run = camera.start("abandoned", shape=(8, 8), dtype="|u1", px_um=(1.0, 1.0))
            camera.end()
            camera.flush()
        parent.kill()
    # Somebody else's child now: there is nothing to wait for but its end.
    gone, _ = psutil.wait_procs([daemon], timeout=30)
    assert gone == [daemon]
    assert check_run(root / run) == []
    assert not (root / run / "active").exists()


def test_it_goes_on_while_its_parent_lives_and_ends_when_told(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "runs") as daemon:
        assert daemon.running
    assert not daemon.running
