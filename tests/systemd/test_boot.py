"""The service on a real systemd: installed, streamed into, killed, frozen, reloaded, starved of disk, ended; and what
browsers see of it meanwhile.

Boots a systemd of its own (`machine.py`): root on Linux with systemd; elsewhere it says why it is left out. The frames
come from a process outside, over TCP. In the end nothing that was acknowledged is missing, and the mosaic is the
reference's, bit for bit. A second machine is bare: tilecast comes as a wheel, is upgraded to a newer one in mid-scan,
taken away, and installed by a user without root.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from built_wheel import wheel
from integration.scanning import Pixels, assert_holds, pictures
from systemd.machine import PATIENCE_S, PYTHON, ROOT, SITE, JournalReader, Machine, compile_ahead, why_not
from tilecast.service.fsck import check_run

pytestmark = [pytest.mark.systemd, pytest.mark.slow, pytest.mark.timeout(600)]

TILECAST = "/opt/tilecast/bin/tilecast"
RUNS = "/var/lib/tilecast/runs"
CONFIG = "/etc/tilecast/tilecast.toml"
MIB = 1 << 20
WEB = "http://127.0.0.1:8750/api/v1"
#: Rows and columns of the first frame of a scan that no other frame covers.
OF_FIRST_FRAME = (4, 24, 5, 30)


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
def camera(machine: Machine, seed: int, port: int = 5570) -> Iterator[Camera]:
    script = Path(__file__).with_name("camera.py")
    process = subprocess.Popen(
        [*machine.entering("net"), sys.executable, str(script), f"tcp://127.0.0.1:{port}", str(seed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Camera(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def caches(request: pytest.FixtureRequest) -> Path:
    """What machines keep from one boot to the next."""
    if reason := why_not():
        pytest.skip(f"no systemd can be booted here: {reason}")
    assert request.config.cache is not None
    compile_ahead()
    return Path(request.config.cache.mkdir("systemd-caches"))


@pytest.fixture
def machine(caches: Path) -> Iterator[Machine]:
    with Machine(caches, disk_nbytes=512 * MIB) as booted:
        yield booted


@pytest.fixture
def bare(caches: Path) -> Iterator[Machine]:
    with Machine(caches, is_bare=True) as booted:
        yield booted


def main_pid(machine: Machine, unit: str = "tilecast.service") -> int:
    return int(machine.show(unit, "MainPID"))


def wait_for_restart(machine: Machine, journal: JournalReader, after: int, n_restarts: int) -> None:
    """Until systemd says that it runs again, the `n_restarts`th time."""
    again = f"tilecast.service: Scheduled restart job, restart counter is at {n_restarts}."
    scheduled = journal.wait(again, after=after)
    journal.wait("Started tilecast.service", after=journal.entries.index(scheduled))
    assert machine.show("tilecast.service", "NRestarts") == str(n_restarts)
    assert machine.show("tilecast.service", "ActiveState") == "active"


def until(look: Callable[[], Any], wanted: Callable[[Any], bool], patience_s: float = PATIENCE_S) -> Any:
    """Look at what changes and tells nobody, until it is as wanted."""
    waiting, deadline = threading.Event(), time.monotonic() + patience_s
    while not wanted(found := look()):
        assert time.monotonic() < deadline, found
        waiting.wait(0.1)
    return found


def wait_for_status(machine: Machine, text: str) -> None:
    """Until `systemctl status` shows this; it is told once a second."""
    until(lambda: machine.show("tilecast.service", "StatusText"), lambda status: text in status)


def fetch(machine: Machine, address: str) -> tuple[int, bytes]:
    """What a browser on the machine is answered: status and body; 0 if nobody answers."""
    asking = (
        "import sys, urllib.error, urllib.request\n"
        "ask = lambda: urllib.request.urlopen(sys.argv[1], timeout=20)\n"
        "try: status, body = (lambda answer: (answer.status, answer.read()))(ask())\n"
        "except urllib.error.HTTPError as error: status, body = error.code, error.read()\n"
        "except OSError as error: status, body = 0, str(error).encode()\n"
        "sys.stdout.buffer.write(b'%d\\n' % status + body)"
    )
    command = [*machine.entering("net"), sys.executable, "-c", asking, address]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=PATIENCE_S, check=True)
    status, _, body = done.stdout.partition(b"\n")
    return int(status), body


def wait_for_page(machine: Machine) -> None:
    """Until the server of pages answers; when it is new here it compiles first."""
    until(lambda: fetch(machine, f"{WEB}/runs"), lambda found: found[0] == 200, 4 * PATIENCE_S)


def see_run(machine: Machine, run: str, sent: Pixels) -> dict[str, Any]:
    """A run through the server of pages: a tile, a picture, and the pixels of its first frame as they were sent."""
    status, body = fetch(machine, f"{WEB}/runs/{run}")
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    row0, row1, col0, col1 = OF_FIRST_FRAME
    where = f"{WEB}/runs/{run}/region.raw?level=0&row0={row0}&row1={row1}&col0={col0}&col1={col1}"
    status, body = fetch(machine, where)
    assert status == 200, body
    pixels = np.frombuffer(body, "<u2").reshape(row1 - row0, col1 - col0)
    np.testing.assert_array_equal(pixels, sent[0][row0:row1, col0:col1])

    def tile() -> tuple[int, bytes]:  # addresses change while the canvas grows
        epoch = json.loads(fetch(machine, f"{WEB}/runs/{run}")[1])["epoch"]
        return fetch(machine, f"{WEB}/runs/{run}/tiles/{epoch}/0/0/0/0/0/0.png")

    assert until(tile, lambda answer: answer[0] == 200)[1].startswith(b"\x89PNG")
    return found


def install(machine: Machine) -> None:
    shown = machine.run(TILECAST, "install", "--web")
    assert "would: write /etc/systemd/system/tilecast.service" in shown
    assert not machine.path("/etc/systemd/system/tilecast.service").exists()
    machine.run(TILECAST, "install", "--web", "--apply")
    assert "Nothing to do" in machine.run(TILECAST, "install", "--web")
    for unit in ("tilecast", "tilecast-web"):
        assert machine.show(f"{unit}.service", "ActiveState") == "active"
        assert machine.run("systemctl", "is-enabled", unit).strip() == "enabled"
    wait_for_status(machine, "ready")
    wait_for_page(machine)


def install_another(machine: Machine, folder: Path) -> None:
    """A second microscope, which other machines reach with keys: its secret is the service manager's to keep."""
    before = main_pid(machine)
    machine.run(TILECAST, "install", "--instance", "scope-2", "--port", "5590", "--apply")
    with camera(machine, 9, port=5590) as scope:
        scope.send(40)
        assert scope.end() == {"frames": 40, "rejected": 0}
    machine.run("systemctl", "stop", "tilecast@scope-2")
    runs = "/var/lib/tilecast/scope-2/runs"
    assert_holds(Path(shutil.copytree(machine.path(f"{runs}/{scope.run}"), folder / scope.run)), pictures(9, 40))
    machine.run(TILECAST, "keys", "new", "tilecast", "/etc/credstore")
    file = machine.path("/etc/tilecast/scope-2.toml")
    keys = "secret_key = '/run/credentials/tilecast@scope-2.service/tilecast.key_secret'"
    text = file.read_text().replace("[curve]\n", f"[curve]\n{keys}\nclients = '/etc/tilecast/clients'\n")
    file.write_text(text.replace("tcp://127.0.0.1:5593", "tcp://0.0.0.0:5593"))
    machine.run(TILECAST, "install", "--instance", "scope-2", "--apply")
    assert machine.show("tilecast@scope-2.service", "ActiveState") == "active"
    assert machine.show("tilecast@scope-2.service", "IPAddressAllow") in ("::/0 0.0.0.0/0", "0.0.0.0/0 ::/0")
    assert main_pid(machine) == before, "the other one was not disturbed"
    machine.run(TILECAST, "keys", "new", "viewer", "/etc/viewer-keys")
    machine.run("cp", "/etc/viewer-keys/viewer.key", "/etc/tilecast/clients")
    machine.run("systemctl", "restart", "tilecast@scope-2")
    keys = ("--key", "/etc/viewer-keys/viewer.key_secret", "--server-key", "/etc/credstore/tilecast.key")
    said = machine.run(TILECAST, "top", "--once", "--endpoint", "tcp://127.0.0.1:5593", *keys)
    assert "ready: takes a start" in said


def check_units(machine: Machine) -> None:
    units = ["tilecast.service", "tilecast@scope-2.service", "tilecast-web.service", "tilecast-kernels.service"]
    assert machine.run("systemd-analyze", "verify", *units) == ""
    for unit, most in (("tilecast.service", 1.5), ("tilecast@scope-2.service", 1.5), ("tilecast-web.service", 2.0)):
        said = machine.run("systemd-analyze", "security", "--no-pager", unit, code=None)
        found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
        assert found, said
        assert float(found[1]) <= most, said


def check_hardening(machine: Machine, unit: str = "tilecast.service") -> None:
    """What the unit says is in force, of this very process."""
    said = machine.run("cat", f"/proc/{main_pid(machine, unit)}/status")
    status = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert int(status["CapBnd"], 16) == 0
    assert "0" not in status["Uid"].split()


def check_priorities(machine: Machine) -> None:
    """Acquisition goes before viewing, if memory is short as well as at the disk, in these very processes."""
    # A host that is a container itself may let nobody be spared; the daemon comes before the pages all the same.
    lower = ["sh", "-c", "echo -500 > /proc/self/oom_score_adj"]
    spared = "-500" if subprocess.run(lower, check=False, capture_output=True).returncode == 0 else "0"
    for unit, adjustment, priority in (("tilecast", spared, "prio 0"), ("tilecast-web", "500", "prio 7")):
        pid = main_pid(machine, f"{unit}.service")
        assert machine.run("cat", f"/proc/{pid}/oom_score_adj").strip() == adjustment
        assert machine.run("ionice", "-p", str(pid)).strip() == f"best-effort: {priority}"


def check_kernels_are_compiled_ahead(machine: Machine) -> None:
    """They lie in the folder of caches, and the daemon, whose first frame would wait for them, has compiled none."""
    kernels = machine.path("/var/cache/tilecast/numba").rglob("*.nbc")
    assert {path.name.partition(".")[0] for path in kernels} == {"kernels", "_pzf_kernels"}
    assert "Compiling" not in machine.run("journalctl", "--output=cat", "-u", "tilecast")


def check_web_shares_the_group(machine: Machine, run: str) -> None:
    """The pages' user is another one, who reads all that a run is written into, by its group, and can write nothing."""
    said = machine.run("cat", f"/proc/{main_pid(machine, 'tilecast-web.service')}/status")
    status = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    files = [*machine.path(f"{RUNS}/{run}").glob("tiles*")]
    assert {path.name.partition("-")[2] or path.suffix for path in files} >= {"wal", "shm"}, files
    for file in files:
        about = file.stat()
        assert about.st_mode & 0o777 == 0o640, file
        assert about.st_uid != int(status["Uid"].split()[0])
        assert str(about.st_gid) in status["Groups"].split()
    assert any(file.suffix == ".bin" for file in files), "the tiles themselves"


def taken_out(machine: Machine, run: str, folder: Path) -> Path:
    """A copy of a run that nobody writes: SQLite does not open files of another mount namespace."""
    return Path(shutil.copytree(machine.path(f"{RUNS}/{run}"), folder / run))


def test_a_life_of_the_service(machine: Machine, tmp_path: Path) -> None:
    install(machine)
    check_units(machine)
    check_hardening(machine)
    check_hardening(machine, "tilecast-web.service")
    check_priorities(machine)
    check_kernels_are_compiled_ahead(machine)
    sent = pictures(7, 500)
    with (
        JournalReader(machine, "-u", "tilecast") as journal,
        camera(machine, 7) as scope,
    ):
        journal.wait("run started", RUN=scope.run)

        # Looked at in mid-scan; the pages die, and acquisition does not notice.
        scope.send(30)
        until(lambda: fetch(machine, f"{WEB}/runs/{scope.run}")[0], lambda status: status == 200)
        until(lambda: json.loads(fetch(machine, f"{WEB}/runs/{scope.run}")[1])["rev"], lambda rev: rev > 0)
        see_run(machine, scope.run, sent)
        check_web_shares_the_group(machine, scope.run)
        before, web = main_pid(machine), main_pid(machine, "tilecast-web.service")
        n_said = sum(entry.get("PRIORITY", "6") < "6" for entry in journal.entries)
        scope.begin(30)
        machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "tilecast-web")
        scope.sent()
        until(lambda: main_pid(machine, "tilecast-web.service"), lambda pid: pid not in (0, web))
        wait_for_page(machine)
        see_run(machine, scope.run, sent)
        assert main_pid(machine) == before
        assert sum(entry.get("PRIORITY", "6") < "6" for entry in journal.entries) == n_said, "not a word of it"

        # Killed in mid-scan.
        after = len(journal.entries)
        scope.begin(200)
        machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "tilecast")
        wait_for_restart(machine, journal, after, 1)
        scope.sent()
        scope.send(20)
        journal.wait("run loaded", after=after, RUN=scope.run)
        see_run(machine, scope.run, sent)

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
        assert see_run(machine, scope.run, sent)["state"] == "ended", "it is shown without a daemon, too"
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
    install_another(machine, tmp_path)
    machine.run(TILECAST, "uninstall", "--apply")
    for unit in ("tilecast.service", "tilecast@scope-2.service", "tilecast-web.service"):
        assert machine.show(unit, "ActiveState") == "inactive"
    assert not machine.path("/etc/systemd/system/tilecast.service").exists()
    assert machine.path(CONFIG).exists()
    again = pictures(8, 60)
    assert_holds(taken_out(machine, scope.run, tmp_path), again)


# ---- a bare machine --------------------------------------------------------------------------------------------------


def pip_install(machine: Machine, file: Path, *options: str) -> None:
    """As a technician would; what tilecast needs is there already, because this machine reaches no index."""
    shutil.copy(file, machine.path(f"/etc/{file.name}"))
    without = ("--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check")
    machine.run("/opt/tilecast/bin/pip", "install", *without, *options, f"/etc/{file.name}")
    machine.path(f"/etc/{file.name}").unlink()
    for package in ("daemon/tilecast", "protocol/tilecast_protocol", "plugins/tilecast_plugins"):
        for source in (ROOT / package).rglob("*.py"):  # as old as they are: what they were compiled into still holds
            installed = machine.path(f"/opt/tilecast/{SITE}/{source.relative_to((ROOT / package).parent)}")
            os.utime(installed, ns=(source.stat().st_mtime_ns,) * 2)
    packages = (f"/opt/tilecast/{SITE}/{package}" for package in ("tilecast", "tilecast_protocol", "tilecast_plugins"))
    machine.run("/opt/tilecast/bin/python", "-m", "compileall", "-q", *packages)  # which pip was told to leave


# ---- the page for technicians, as it is printed ----------------------------------------------------------------------

PAGE = re.sub(r" \\\n +", " ", (ROOT / "systemd/README.md").read_text())


def printed(command: str) -> tuple[str, ...]:
    """The words of a command that technicians are told to type, letter by letter."""
    assert re.search(rf"(^|`|&& ){re.escape(command)}( *#|$|`| &&)", PAGE, re.M), f"systemd/README.md has no {command}"
    return tuple(command.split())


def script(language: str) -> str:
    """The first block of this language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)
    assert found is not None
    return found[1]


def walk_from_nothing_to_a_first_scan(machine: Machine, file: Path) -> None:
    """What the page says, from a bare machine to a camera script and a look at all of it, in its order."""
    pip, said = "/opt/tilecast/bin/pip install tilecast          # or the path of a checkout, or of a wheel", ""
    lines = [line.partition("#")[0].strip() for line in script("sh").splitlines() if line != pip]
    assert lines.pop(0) == "apt-get install python3-venv", "the host has it"
    assert lines.pop(0) == "python3 -m venv /opt/tilecast"
    machine.run(str(PYTHON), "-m", "venv", "/opt/tilecast")
    machine.write(f"/opt/tilecast/{SITE}/libraries.pth", "/opt/site\n")
    pip_install(machine, file)
    machine.put_kernels("/var/cache/tilecast/numba")  # compiled once for all: that they can be is shown above
    assert lines == [f"{TILECAST} install", f"{TILECAST} install --apply"]
    for line in lines:
        said += machine.run(*line.split())
    assert "would: write /etc/systemd/system/tilecast.service" in said
    assert "active (running)" in machine.run(*printed("systemctl status tilecast"))
    printed("journalctl -u tilecast -f")
    assert " ready " in machine.run("journalctl", "-u", "tilecast")

    machine.write("/etc/camera.py", script("python"))
    machine.run("/opt/tilecast/bin/python", "/etc/camera.py")
    listing = printed(f"{TILECAST} runs --config {CONFIG}")
    until(lambda: machine.run(*listing), lambda said: re.search(r"first light +ended .* 20 ", said))
    about = machine.run(*printed(f"{TILECAST} info last --config {CONFIG}"))
    run = re.search(r"^run +(\S+)$", about, re.M)
    assert run is not None, about
    printed("journalctl -o cat RUN=0190a1b2-…")
    told = ("journalctl", "-o", "cat", f"RUN={run[1]}")
    until(lambda: machine.run(*told), lambda said: "run started" in said and "run report" in said)
    checked = machine.run(*printed(DOCTOR), code=None)
    assert re.search(r"ok +daemon .*is ready", checked), checked
    assert "State" in machine.run(*printed(f"{TILECAST} top --config {CONFIG}"))


DOCTOR = (
    "setpriv --reuid=tilecast --regid=tilecast --init-groups env NUMBA_CACHE_DIR=/var/cache/tilecast/numba "
    f"{TILECAST} doctor --config {CONFIG} --shape 2048x2048 --dtype u2 --fps 20"
)


def as_scientist(machine: Machine, *command: str) -> str:
    """Run a command as a user without rights, with a service manager of their own."""
    who = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--")
    return machine.run(*who, "env", "HOME=/home/scientist", "XDG_RUNTIME_DIR=/run/user/1000", *command)


def start_manager_of_scientist(machine: Machine) -> None:
    """As their first login does."""
    machine.run("install", "-d", "-o", "1000", "-g", "1000", "/var/cache/scientist")
    machine.run("ln", "-s", "/var/cache/scientist", "/home/scientist/.cache")
    whose = ("--unit=scientist", "--uid=1000", "--gid=1000", "--setenv=HOME=/home/scientist")
    where = ("-p", "RuntimeDirectory=user/1000", "-p", "RuntimeDirectoryMode=0700")
    kind = ("-p", "Type=notify", "-p", "Delegate=yes", "--setenv=XDG_RUNTIME_DIR=/run/user/1000")
    machine.run("systemd-run", *whose, *where, *kind, "/lib/systemd/systemd", "--user")


@pytest.mark.timeout(900)
def test_a_wheel_its_upgrade_and_a_user_without_root(bare: Machine, tmp_path: Path) -> None:
    machine = bare
    walk_from_nothing_to_a_first_scan(machine, wheel(tmp_path, "0.1.90"))
    assert "0.1.90" in machine.run(TILECAST, "--version")
    assert "Nothing to do" in machine.run(TILECAST, "install")
    unit = machine.path("/etc/systemd/system/tilecast.service")
    assert "(tilecast 0.1.90)" in unit.read_text()

    # A newer one, in mid-scan.
    sent = pictures(10, 60)
    with camera(machine, 10) as scope:
        scope.send(30)
        before = main_pid(machine)
        pip_install(machine, wheel(tmp_path, "0.1.91"), "--upgrade")
        assert main_pid(machine) == before, "the old one goes on meanwhile"
        scope.begin(20)
        machine.run(*printed(f"{TILECAST} install --restart --apply"))
        scope.sent()
        assert "(tilecast 0.1.91)" in unit.read_text()
        assert main_pid(machine) not in (0, before)
        scope.send(10)
        assert scope.end() == {"frames": 60, "rejected": 0}
    assert "Nothing to do" in machine.run(TILECAST, "install")

    # Taken away: what is left is the configuration, the runs, and the users.
    machine.run(*printed(f"{TILECAST} uninstall --apply"))
    assert "Nothing to do" in machine.run(TILECAST, "uninstall")
    left = machine.run("find", "/etc", "-name", "*tilecast*").split()
    assert sorted(left) == ["/etc/tilecast", CONFIG]
    assert machine.show("tilecast.service", "LoadState") == "not-found"
    assert_holds(taken_out(machine, scope.run, tmp_path), sent)

    # For one user.
    start_manager_of_scientist(machine)
    machine.put_kernels("/var/cache/scientist/tilecast/numba")
    as_scientist(machine, TILECAST, "install", "--user")
    as_scientist(machine, *printed(f"{TILECAST} install --user --apply"))
    assert "Nothing to do" in as_scientist(machine, TILECAST, "install", "--user")
    assert as_scientist(machine, "systemctl", "--user", "is-active", "tilecast").strip() == "active"
    as_scientist(machine, *printed("systemctl --user status tilecast"))
    assert as_scientist(machine, "systemd-analyze", "--user", "verify", "tilecast.service") == ""
    with camera(machine, 11) as scope:
        scope.send(40)
        as_scientist(machine, "systemctl", "--user", "reload", "tilecast")
        as_scientist(machine, "systemctl", "--user", "kill", "--kill-whom=main", "--signal=KILL", "tilecast")
        scope.send(20)
        assert scope.end() == {"frames": 60, "rejected": 0}
    as_scientist(machine, TILECAST, "uninstall", "--user", "--apply")
    runs = machine.path("/home/scientist/.local/share/tilecast/runs")
    assert_holds(Path(shutil.copytree(runs / scope.run, tmp_path / scope.run)), pictures(11, 60))
