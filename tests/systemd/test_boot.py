"""The service on a real systemd: installed, streamed into, killed, frozen, reloaded, starved of disk, ended.

Boots a systemd of its own (`machine.py`): root on Linux with systemd; elsewhere it says why it is left out. The frames
come from a process outside, over TCP. In the end nothing that was acknowledged is missing, and the mosaic is the
reference's, bit for bit.

    uv run pytest -n0 -m systemd tests/systemd
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from integration.scanning import assert_holds, pictures
from systemd.machine import PATIENCE_S, JournalReader, Machine, why_not
from tilecast.service.fsck import check_run

pytestmark = [pytest.mark.systemd, pytest.mark.slow, pytest.mark.timeout(600)]

TILECAST = "/opt/tilecast/bin/tilecast"
RUNS = "/var/lib/tilecast/runs"
CONFIG = "/etc/tilecast/tilecast.toml"
MIB = 1 << 20


class Camera:
    """The process of `camera.py`, in the network of a machine and in nothing else of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._to: IO[str] = process.stdin
        self._from: IO[str] = process.stdout
        self.run: str = self._heard()["run"]

    def send(self, n: int) -> None:
        """Send so many more frames; returns when they are on their way."""
        self.begin(n)
        self._heard()

    def begin(self, n: int) -> None:
        """Have it send so many more frames."""
        self._to.write(f"{n}\n")
        self._to.flush()

    def sent(self) -> None:
        """Wait for what was begun."""
        self._heard()

    def end(self) -> dict[str, Any]:
        """End the run, and wait until all is acknowledged."""
        self._to.close()
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        line = self._from.readline()
        assert line, f"the camera has ended: {self._process.wait()}"
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def camera(machine: Machine, seed: int) -> Iterator[Camera]:
    script = Path(__file__).with_name("camera.py")
    process = subprocess.Popen(
        [*machine.entering("net"), sys.executable, str(script), "tcp://127.0.0.1:5570", str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Camera(process)
        finally:
            process.kill()


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    if reason := why_not():
        pytest.skip(f"no systemd can be booted here: {reason}")
    assert request.config.cache is not None
    kernels = Path(request.config.cache.mkdir("systemd-kernels"))
    with Machine(kernels, disk_nbytes=512 * MIB) as booted:
        yield booted


def main_pid(machine: Machine) -> int:
    return int(machine.show("tilecast.service", "MainPID"))


def wait_for_restart(machine: Machine, journal: JournalReader, after: int, n_restarts: int) -> None:
    """Until systemd says that it runs again, the `n_restarts`th time."""
    again = f"tilecast.service: Scheduled restart job, restart counter is at {n_restarts}."
    scheduled = journal.wait(again, after=after)
    journal.wait("Started tilecast.service", after=journal.entries.index(scheduled))
    assert machine.show("tilecast.service", "NRestarts") == str(n_restarts)
    assert machine.show("tilecast.service", "ActiveState") == "active"


def wait_for_status(machine: Machine, text: str) -> None:
    """Until `systemctl status` shows this; it is told once a second, and tells nobody."""
    waiting, deadline = threading.Event(), time.monotonic() + PATIENCE_S
    while text not in (status := machine.show("tilecast.service", "StatusText")):
        assert time.monotonic() < deadline, status
        waiting.wait(0.1)


def install(machine: Machine) -> None:
    shown = machine.run(TILECAST, "install")
    assert "would: write /etc/systemd/system/tilecast.service" in shown
    assert not machine.path("/etc/systemd/system/tilecast.service").exists()
    machine.run(TILECAST, "install", "--apply")
    assert "Nothing to do" in machine.run(TILECAST, "install")
    assert machine.show("tilecast.service", "ActiveState") == "active"
    wait_for_status(machine, "ready")
    assert machine.run("systemctl", "is-enabled", "tilecast").strip() == "enabled"


def install_another(machine: Machine) -> None:
    """A second microscope, which other machines reach with keys: its secret is the service manager's to keep."""
    before = main_pid(machine)
    machine.run(TILECAST, "install", "--instance", "scope-2", "--port", "5590", "--apply")
    machine.run(TILECAST, "keys", "new", "tilecast", "/etc/credstore")
    file = machine.path("/etc/tilecast/scope-2.toml")
    keys = "secret_key = '/run/credentials/tilecast@scope-2.service/tilecast.key_secret'"
    text = file.read_text().replace("[curve]\n", f"[curve]\n{keys}\nclients = '/etc/tilecast/clients'\n")
    file.write_text(text.replace("tcp://127.0.0.1:5593", "tcp://0.0.0.0:5593"))
    machine.run(TILECAST, "install", "--instance", "scope-2", "--apply")
    assert machine.show("tilecast@scope-2.service", "ActiveState") == "active"
    assert machine.show("tilecast@scope-2.service", "IPAddressAllow") in ("::/0 0.0.0.0/0", "0.0.0.0/0 ::/0")
    assert main_pid(machine) == before, "the other one was not disturbed"


def check_units(machine: Machine) -> None:
    units = ["tilecast.service", "tilecast@scope-2.service", "tilecast-web.service", "tilecast-kernels.service"]
    assert machine.run("systemd-analyze", "verify", *units) == ""
    for unit, most in (("tilecast.service", 1.5), ("tilecast@scope-2.service", 1.5), ("tilecast-web.service", 2.0)):
        said = machine.run("systemd-analyze", "security", "--no-pager", unit, code=None)
        found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
        assert found, said
        assert float(found[1]) <= most, said


def check_hardening(machine: Machine) -> None:
    """What the unit says is in force, of this very process."""
    said = machine.run("cat", f"/proc/{main_pid(machine)}/status")
    status = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert int(status["CapBnd"], 16) == 0
    assert "0" not in status["Uid"].split()


def read_as_web(machine: Machine, run: str) -> dict[str, Any]:
    """What the user of the web unit reads of a run that is being written."""
    said = machine.run(
        "systemd-run",
        *("--wait", "--pipe", "--quiet"),
        *("-p", "User=tilecast-web", "-p", "SupplementaryGroups=tilecast", "-p", "ProtectSystem=strict"),
        *("-p", "PrivateUsers=yes", "-p", "PrivateTmp=yes", "-p", "UMask=0077"),
        *(TILECAST, "info", run, "--json", "--set", f"store.path={RUNS}"),
    )
    found: dict[str, Any] = json.loads(said)
    return found


def taken_out(machine: Machine, run: str, folder: Path) -> Path:
    """A copy of a run that nobody writes: SQLite does not open files of another mount namespace."""
    return Path(shutil.copytree(machine.path(f"{RUNS}/{run}"), folder / run))


def test_a_life_of_the_service(machine: Machine, tmp_path: Path) -> None:
    install(machine)
    check_units(machine)
    check_hardening(machine)
    sent = pictures(7, 500)
    with (
        JournalReader(machine, "-u", "tilecast") as journal,
        camera(machine, 7) as scope,
    ):
        journal.wait("run started", RUN=scope.run)

        # Killed in mid-scan.
        scope.send(60)
        after = len(journal.entries)
        scope.begin(200)
        machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "tilecast")
        wait_for_restart(machine, journal, after, 1)
        scope.sent()
        scope.send(20)
        journal.wait("run loaded", after=after, RUN=scope.run)
        assert read_as_web(machine, scope.run)["run"] == scope.run

        # Reloaded: what is wrong is refused, what is right holds.
        after = len(journal.entries)
        right = machine.path(CONFIG).read_text()
        machine.path(CONFIG).write_text(right.replace("[disk]\n", "[disk]\nstop_bites = 1\n"))
        machine.run("systemctl", "reload", "tilecast")
        refused = journal.wait("configuration not reloaded", after=after, PRIORITY="3")
        assert "stop_bytes" in refused["WHY"]
        wait_for_status(machine, "the old one holds")
        limits = "[disk]\nstop_bytes = '100MiB'\nstop_percent = 100\nwarn_bytes = '120MiB'\nwarn_percent = 100\n"
        changed = right.replace("[disk]\n", limits)
        assert changed != right
        machine.path(CONFIG).write_text(changed)
        machine.run("systemctl", "reload", "tilecast")
        taken = journal.wait("configuration reloaded", after=after)
        assert "disk.stop_bytes" in taken["APPLIED"]
        assert taken["NEEDS_RESTART"] == "[]"
        assert machine.show("tilecast.service", "ActiveState") == "active"

        # Starved of disk: images are recorded, and the mosaic catches up when there is room again.
        after = len(journal.entries)
        filler = machine.path("/var/lib/tilecast/filler")
        disk = os.statvfs(machine.path("/var/lib/tilecast"))
        machine.run("fallocate", "-l", str(disk.f_bavail * disk.f_frsize - 50 * MIB), "/var/lib/tilecast/filler")
        journal.wait("room on the disk", after=after, ROOM="stop")
        scope.send(60)
        filler.unlink()
        journal.wait("room on the disk", after=after, ROOM="ok")
        scope.send(20)

        # Frozen: the watchdog notices.
        machine.write("/etc/systemd/system/tilecast.service.d/50-test.conf", "[Service]\nWatchdogSec=5\n")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "tilecast")
        journal.wait("stopped", after=after)
        scope.send(20)
        after = len(journal.entries)
        machine.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "tilecast")
        scope.begin(20)
        journal.wait("tilecast.service: Watchdog timeout", after=after)
        wait_for_restart(machine, journal, after, 1)
        scope.sent()

        ended = scope.end()
        assert ended == {"frames": 400, "rejected": 0}
        report = journal.wait("run report", RUN=scope.run)
        assert report["PRIORITY"] == "6"
        machine.run("systemctl", "stop", "tilecast")
        journal.wait("stopped", after=after)
    assert machine.show("tilecast.service", "Result") == "success"
    assert machine.show("tilecast.service", "ExecMainStatus") == "0"
    said = machine.run("journalctl", "--output=cat", f"RUN={scope.run}")
    assert "run started" in said
    assert "run report" in said
    folder = taken_out(machine, scope.run, tmp_path)
    assert_holds(folder, {frame: sent[frame] for frame in range(400)})
    assert check_run(folder) == []

    # Installed again over a run that is open: it goes on; and taken away: it stays.
    machine.run(TILECAST, "install", "--apply")
    with camera(machine, 8) as scope:
        scope.send(30)
        machine.run(TILECAST, "install", "--apply", "--restart")
        scope.send(30)
        assert scope.end() == {"frames": 60, "rejected": 0}
    install_another(machine)
    machine.run(TILECAST, "uninstall", "--apply")
    assert machine.show("tilecast@scope-2.service", "ActiveState") == "inactive"
    assert not machine.path("/etc/systemd/system/tilecast.service").exists()
    assert machine.path(CONFIG).exists()
    again = pictures(8, 60)
    assert_holds(taken_out(machine, scope.run, tmp_path), again)
