"""A machine with a systemd of its own: namespaces, the host's /usr read-only, fresh /etc, /var and /run.

It boots in about a second, enforces what units say, and is gone without a trace when it is closed. What it cannot do
is what needs cgroup controllers (limits of memory and processor time), where the host keeps those for itself.

tilecast is there as somebody would install it: an environment in /opt/tilecast, made of what the tests run with. A
machine that is bare has none yet: only the libraries that tilecast needs, as an index of packages would have them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE_S = 60.0
ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = Path("/lib/systemd/systemd")
_NEEDED = ("unshare", "nsenter", "systemctl", "systemd-analyze", "ldconfig", "pivot_root", "ip", "setpriv")

# Of the host's devices and kernel nothing may be changed from inside: /sys and /proc/sys are read-only, which systemd
# understands as being in a container; then it leaves it to us to share mounts, without which nobody sees credentials.
_BOOT = """
root=$1; site=$2; source=$3; python=$4; caches=$5; disk_nbytes=$6
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir -p usr etc/systemd/system var/lib/tilecast var/log/journal var/cache run proc sys dev tmp root home
mkdir -p opt/site opt/source opt/python old
for link in bin sbin lib lib64; do [ ! -L "/$link" ] || cp -d "/$link" "$link"; done
bind() { mount --bind "$1" "$2"; mount -o remount,bind,ro "$2"; }
bind /usr usr
bind "$site" opt/site
bind "$source" opt/source
bind "$python" opt/python
mount --bind "$caches" var/cache
mount -t tmpfs -o "size=$disk_nbytes,mode=755" tmpfs var/lib/tilecast
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t proc proc proc
mount --bind proc/sys proc/sys; mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do touch "dev/$device"; mount --bind "/dev/$device" "dev/$device"; done
mkdir dev/shm dev/pts
mount -t tmpfs tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=755 tmpfs run
cp -r "$7"/. .
chmod -R u=rwX,go=rX etc opt/tilecast
chmod 755 opt home
chown -R 1000:1000 home/scientist
echo /opt/python/lib > etc/ld.so.conf
pivot_root . old
umount -l /old
rmdir /old
mount --make-rshared /
ldconfig
exec env -i container=tilecast-test PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --system --unit=multi-user.target
"""


def why_not() -> str:
    """Why no such machine can be had here; empty if it can."""
    if sys.platform != "linux":
        return "this is not Linux"
    if os.geteuid() != 0:
        return "this is not root"
    if not SYSTEMD.exists():
        return f"there is no {SYSTEMD} (apt-get install systemd)"
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        return f"there is no {', '.join(missing)}"
    if _cgroups() is None:
        return "no cgroup2 is mounted"
    done = subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return "" if done.returncode == 0 else f"namespaces cannot be made: {done.stderr.decode().strip()}"


class Machine:
    """One machine; a context manager that boots it and ends it.

    Parameters
    ----------
    caches : Path
        A folder that becomes /var/cache: kernels that are compiled into it are there at the next boot.
    disk_nbytes : int
        Size of the disk of the runs.
    is_bare : bool
        tilecast is not installed.
    """

    def __init__(self, caches: Path, *, disk_nbytes: int = 512 << 20, is_bare: bool = False) -> None:
        self._caches = caches
        self._disk_nbytes = disk_nbytes
        self._is_bare = is_bare
        self._work = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def path(self, inside: str) -> Path:
        """Where a path of the machine is found from outside."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def run(self, *command: str, code: int | None = 0) -> str:
        """Run a command inside; what it said on both streams. Fails if it ends otherwise than with `code`."""
        done = subprocess.run(
            [*self.entering("pid", "mount", "cgroup", "net", "ipc", "uts"), *_CLEAN, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=10 * PATIENCE_S,
            check=False,
        )
        assert code is None or done.returncode == code, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def entering(self, *namespaces: str) -> list[str]:
        """The beginning of a command line that runs in some of its namespaces."""
        return ["nsenter", "--target", str(self.pid), *(f"--{name}" for name in namespaces), "--"]

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", unit, "--property", name, "--value").strip()

    def write(self, inside: str, text: str) -> None:
        """Write a file."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def close(self) -> None:
        """End everything in it, at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)  # its child, the machine's first process, goes with it
            self._process.wait()
            self._process = None
        self._work.close()

    def _boot(self) -> None:
        folder = Path(self._work.enter_context(tempfile.TemporaryDirectory(prefix="tilecast-machine-")))
        (folder / "root").mkdir()
        _lay_out(folder / "files")
        if not self._is_bare:
            _put_tilecast_into(folder / "files/opt/tilecast")
        cgroups = _cgroups()
        assert cgroups is not None
        cgroup = cgroups / f"tilecast-test-{os.getpid()}"
        cgroup.mkdir()
        self._work.callback(_remove_cgroup, cgroup)
        base = Path(sys.base_prefix)
        arguments = [
            folder / "root",
            sysconfig.get_path("purelib"),
            ROOT,
            folder / "files" if base == Path("/usr") else base,
            self._caches,
            self._disk_nbytes,
            folder / "files",
        ]
        # It ends with the test, however that ends.
        unshare = "setpriv --pdeathsig KILL -- unshare --fork --kill-child --propagation private"
        unshare += " --pid --mount --cgroup --net --ipc --uts"
        script = f'echo 0 > "$0/cgroup.procs"; exec {unshare} -- sh -euc \'{_BOOT}\' boot "$@"'
        with (folder / "boot.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["sh", "-euc", script, str(cgroup), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        parent = self._process.pid
        waiting = threading.Event()
        for _ in range(round(PATIENCE_S / 0.1)):
            children = Path(f"/proc/{parent}/task/{parent}/children")
            found = children.read_text().split() if children.exists() else []
            if found and Path(f"/proc/{found[0]}/comm").read_text().strip() == "systemd":
                self.pid = int(found[0])
                if self.path("/run/systemd/private").exists():
                    break
            assert self._process.poll() is None, (folder / "boot.log").read_text()
            waiting.wait(0.1)  # a process that becomes another tells nobody
        state = self.run("systemctl", "is-system-running", "--wait", code=None).strip()
        assert state == "running", self.run("systemctl", "--failed", code=None)
        self.run("ip", "link", "set", "lo", "up")


class JournalReader:
    """What a unit says in the machine's journal, as it says it; a context manager.

    Attributes
    ----------
    entries : list of dict
        So far.
    """

    def __init__(self, machine: Machine, *matches: str) -> None:
        command = ["journalctl", "--follow", "--no-tail", "--output=json", "--all", *matches]
        self._process = subprocess.Popen(
            [*machine.entering("pid", "mount", "cgroup", "net", "ipc", "uts"), *_CLEAN, *command],
            process_group=0,  # nsenter stays between, and is killed with the reader
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._changed = threading.Condition()
        self.entries: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self, text: str, *, after: int = 0, patience_s: float = PATIENCE_S, **fields: str) -> dict[str, Any]:
        """The first entry from the `after`th on whose message begins with `text`, with these fields."""

        def find() -> dict[str, Any] | None:
            for entry in self.entries[after:]:
                if str(entry.get("MESSAGE", "")).startswith(text) and fields.items() <= entry.items():
                    return entry
            return None

        with self._changed:
            self._changed.wait_for(lambda: find() is not None, patience_s)
            found = find()
        last = [entry.get("MESSAGE") for entry in self.entries[-15:]]
        assert found is not None, f"nobody said {text!r} {fields}, but:\n" + "\n".join(map(str, last))
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(PATIENCE_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if line.startswith("{"):
                    with self._changed:
                        self.entries.append(json.loads(line))
                        self._changed.notify_all()


_MINOR = f"python{sys.version_info.major}.{sys.version_info.minor}"
#: The interpreter, inside; and where an environment has its packages.
PYTHON = Path("/usr/bin" if Path(sys.base_prefix) == Path("/usr") else "/opt/python/bin") / _MINOR
SITE = Path("lib") / _MINOR / "site-packages"

_CLEAN = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "SYSTEMD_PAGER="]


def _lay_out(files: Path) -> None:
    """What the machine has on its disk before it is booted: users, and tilecast in an environment of its own."""
    (files / "etc").mkdir(parents=True)
    (files / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        "scientist:x:1000:1000::/home/scientist:/bin/sh\n"
    )
    (files / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\nscientist:x:1000:\n")
    (files / "home/scientist").mkdir(parents=True)
    (files / "opt/tilecast").mkdir(parents=True)
    (files / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (files / "etc/hostname").write_text("microscope\n")
    if Path("/etc/alternatives").is_dir():
        shutil.copytree("/etc/alternatives", files / "etc/alternatives", symlinks=True)


def _put_tilecast_into(environment: Path) -> None:
    """Into an environment as `python3 -m venv` makes them."""
    bin_, site = environment / "bin", environment / SITE
    bin_.mkdir(parents=True)
    site.mkdir(parents=True)
    (bin_ / "python").symlink_to(PYTHON)
    (environment / "pyvenv.cfg").write_text(f"home = {PYTHON.parent}\ninclude-system-site-packages = false\n")
    sources = [f"/opt/source/{name}" for name in ("daemon", "protocol", "plugins")]
    (site / "tilecast-here.pth").write_text("\n".join(["/opt/site", *sources, ""]))
    program = bin_ / "tilecast"
    program.write_text("#!/opt/tilecast/bin/python\nfrom tilecast.cli import main\n\nmain(prog_name='tilecast')\n")
    program.chmod(0o755)


def _cgroups() -> Path | None:
    """Where the one hierarchy of cgroups of version 2 is mounted."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, where, kind, *_ = line.split()
            if kind == "cgroup2":
                return Path(where)
    return None


def _remove_cgroup(cgroup: Path) -> None:
    """Remove a group with those inside it; they are empty when their last process has been buried."""
    waiting = threading.Event()
    for _ in range(100):
        with contextlib.suppress(OSError):
            for folder in sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True):
                folder.rmdir()
            cgroup.rmdir()
            return
        waiting.wait(0.05)
