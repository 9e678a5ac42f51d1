"""What `tilecast doctor` looks at: one function for each part of an installation, each with findings and advice.

A check measures, compares with what the configuration and a camera need, and says what to do. It changes nothing but
files of its own, which it removes. Nothing here prints.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import numpy as np

from tilecast.bench.limits import file_system_of, write_mb_s
from tilecast.commands.common import format_bytes
from tilecast.errors import ConfigError
from tilecast.ingest.room import Room, next_room
from tilecast.process import DaemonProcess
from tilecast.service.budgets import memory_needs
from tilecast.service.config import SOCKETS, Config
from tilecast.service.disk import reserves_of, total_and_free
from tilecast.service.forecast import sentence
from tilecast.service.sockets import Sockets
from tilecast.service.warmup import ON_FIRST_USE, cache_folders
from tilecast_protocol.client import Client
from tilecast_protocol.errors import DisconnectedError, TilecastError
from tilecast_protocol.publisher import Publisher

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WRITE_BYTES: Final = 256 << 20
# A frame is written about twice: its recording, and the tiles that it touches, some of which are written again.
_WRITTEN_PER_BYTE: Final = 2.0
_KEPT_PER_BYTE: Final = 1.5
_SPARE: Final = 1.5
_TYPICAL_FRAME_NBYTES: Final = 2 * 2048 * 2048
_TCP_BUFFER_BYTES: Final = 4 << 20
_FILES: Final = 1024
_TOO_FEW_FILES: Final = 256
_MAX_CLOCK_ERROR_S: Final = 0.1
_ANSWER_S: Final = 3.0
_DAEMON_S: Final = 120.0
_NETWORK: Final = (
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs", "ncpfs",
    "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone", "davfs", "fuse.davfs2",
)  # fmt: skip


class Verdict(StrEnum):
    """How it stands with one thing."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found out about one thing.

    Attributes
    ----------
    check : str
        What was looked at, in a word or two.
    verdict : Verdict
    found : str
        With numbers.
    advice : str
        What to do; empty if there is nothing to do.
    """

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """What is to be kept up with: bytes of one frame, and frames per second."""

    frame_nbytes: int
    fps: float

    @property
    def bytes_per_s(self) -> float:
        """Bytes of pixels per second."""
        return self.frame_nbytes * self.fps


Check = Callable[[Config, Camera | None], Iterator[Finding]]


def examine(config: Config, camera: Camera | None) -> Iterator[Finding]:
    """All checks, one after the other; one that cannot be done is a finding, too."""
    for name, check in CHECKS.items():
        try:
            yield from check(config, camera)
        except (OSError, TilecastError, ValueError, RuntimeError) as error:
            yield Finding(check=name, verdict=Verdict.FAIL, found=f"could not be checked: {error}")


# ---- this program ----------------------------------------------------------------------------------------------------


def check_python(_config: Config, _camera: Camera | None) -> Iterator[Finding]:
    """The interpreter."""
    found = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"
    wide = sys.maxsize > 1 << 32
    right = sys.version_info >= (3, 11) and platform.python_implementation() == "CPython" and wide
    advice = "" if right else "install tilecast with a 64-bit CPython of version 3.11 or later"
    yield Finding(check="Python", verdict=Verdict.OK if right else Verdict.FAIL, found=found, advice=advice)


def check_kernels(_config: Config, _camera: Camera | None) -> Iterator[Finding]:
    """Whether compiled kernels can be kept."""
    advice = "set NUMBA_CACHE_DIR to a folder that the daemon may write"
    try:
        folders = cache_folders()
    except RuntimeError as error:
        yield Finding(check="numba cache", verdict=Verdict.FAIL, found=str(error), advice=advice)
        return
    shown = " and ".join(map(str, folders))
    closed = [path for path in folders if not _can_write(path)]
    if closed:
        found = f"{' and '.join(map(str, closed))} cannot be written: kernels are compiled anew at each start"
        yield Finding(check="numba cache", verdict=Verdict.WARN, found=f"{found}, {ON_FIRST_USE}", advice=advice)
    else:
        compiled = sum(len(list(path.glob("*.nbc"))) for path in folders if path.is_dir())
        what = f"{compiled} compiled kernels in it" if compiled else f"empty: the first start takes {ON_FIRST_USE}"
        yield Finding(check="numba cache", verdict=Verdict.OK, found=f"{shown} can be written; {what}")


# ---- disks -----------------------------------------------------------------------------------------------------------


def check_file_system(config: Config, _camera: Camera | None) -> Iterator[Finding]:
    """Where the runs lie: SQLite's log needs a file system of this machine."""
    folder = _existing(config.store.path)
    system = file_system_of(folder)
    found = f"{config.store.path} lies on {system}"
    if system.kind in _NETWORK:
        yield Finding(
            check="file system",
            verdict=Verdict.FAIL,
            found=f"{found}, which is another machine's: SQLite's log and locks do not work there",
            advice="set store.path to a disk of this machine, and copy runs that have ended",
        )
    elif system.in_memory:
        yield Finding(
            check="file system",
            verdict=Verdict.WARN,
            found=f"{found}, which is memory: nothing survives a power failure",
            advice="set store.path to a disk",
        )
    else:
        yield Finding(check="file system", verdict=Verdict.OK, found=found)


def check_permissions(config: Config, _camera: Camera | None) -> Iterator[Finding]:
    """Who may write the runs, and whether we may."""
    path, folder = config.store.path, _existing(config.store.path)
    if not _can_write(folder):
        yield Finding(
            check="permissions",
            verdict=Verdict.FAIL,
            found=f"{folder} cannot be written by {_user()}",
            advice=f"run this as the user of the daemon, or give the folder to it: chown {_user()} {folder}",
        )
        return
    if path.is_dir() and path.stat().st_mode & stat.S_IWOTH:
        yield Finding(
            check="permissions",
            verdict=Verdict.WARN,
            found=f"every user of this machine may change runs in {path}",
            advice=f"chmod o-w {path}",
        )
        return
    word = "can be written" if path.is_dir() else "does not exist yet, and can be made"
    yield Finding(check="permissions", verdict=Verdict.OK, found=f"{path} {word} by {_user()}")


def check_free_disk(config: Config, camera: Camera | None) -> Iterator[Finding]:
    """Room, against the reserves."""
    total, free = total_and_free(_existing(config.store.path))
    reserves = reserves_of(config)
    room = next_room(Room.OK, free, total, reserves)
    found = f"{format_bytes(free)} of {format_bytes(total)} free"
    if camera is not None and room < Room.STOP:
        left_bytes = free - reserves.stop(total)
        # What is recorded, and the mosaic of it, stay; both are compressed.
        found += "; by this camera, without a pause, " + sentence(left_bytes / (_KEPT_PER_BYTE * camera.bytes_per_s))
    elif room < Room.STOP:
        warn, stop = reserves.warn(total), reserves.stop(total)
        found += f"; warnings below {format_bytes(warn)}, no run below {format_bytes(stop)}"
    verdict = Verdict.OK if room is Room.OK else Verdict.WARN if room is Room.WARN else Verdict.FAIL
    advice = "make room: `tilecast runs` lists what there is, `tilecast seal` drops recordings"
    yield Finding(check="free disk", verdict=verdict, found=found, advice="" if room is Room.OK else advice)


def check_disk_speed(config: Config, camera: Camera | None) -> Iterator[Finding]:
    """Whether the disk takes what a camera sends."""
    folder = _existing(config.store.path)
    mb_s = write_mb_s(folder, _WRITE_BYTES)
    found = f"{mb_s:.0f} MB/s written one after the other and durable"
    if camera is None:
        fps = mb_s * 1e6 / _WRITTEN_PER_BYTE / _SPARE / _TYPICAL_FRAME_NBYTES
        yield Finding(
            check="disk speed",
            verdict=Verdict.OK,
            found=f"{found}: enough for {fps:.2g} frames/s of 2048 × 2048 × 16 bit; --fps compares with your camera",
        )
        return
    needed_mb_s = _WRITTEN_PER_BYTE * camera.bytes_per_s / 1e6
    verdict = Verdict.OK if mb_s >= _SPARE * needed_mb_s else Verdict.WARN if mb_s >= needed_mb_s else Verdict.FAIL
    advice = ""
    if verdict is not Verdict.OK:
        advice = "use a faster disk for store.path, or fewer frames; `tilecast bench --fps` measures the whole daemon"
    yield Finding(
        check="disk speed",
        verdict=verdict,
        found=f"{found}; this camera needs {needed_mb_s:.0f} MB/s (recording and tiles)",
        advice=advice,
    )


# ---- this machine ----------------------------------------------------------------------------------------------------


def check_memory(config: Config, _camera: Camera | None) -> Iterator[Finding]:
    """The budgets, against what the machine has."""
    import psutil

    total = int(psutil.virtual_memory().total)
    needed = sum(memory_needs(config).values())
    found = f"{format_bytes(total)}; the daemon may take {format_bytes(needed)} when all its budgets are used up"
    if needed > total:
        advice = "make blend.budget_bytes, blend.queue_bytes and viewers.unread_bytes_of_all smaller"
        yield Finding(check="memory", verdict=Verdict.WARN, found=found, advice=advice)
    else:
        yield Finding(check="memory", verdict=Verdict.OK, found=found)


def check_clock(_config: Config, _camera: Camera | None) -> Iterator[Finding]:
    """Whether the kernel's clock is kept right: frames and stage positions are joined by time."""
    advice = "frames are joined to stage positions by time: start a time service, `timedatectl set-ntp true` or chrony"
    try:
        synchronised, error_s = clock_state()
    except OSError as error:
        found = f"the kernel does not tell whether the clock is synchronised: {error.strerror}"
        yield Finding(check="clock", verdict=Verdict.WARN, found=found, advice=advice)
        return
    if not synchronised:
        found = "the clock is not synchronised with any other"
        yield Finding(check="clock", verdict=Verdict.WARN, found=found, advice=advice)
    elif error_s > _MAX_CLOCK_ERROR_S:
        found = f"the clock is synchronised, and may be wrong by {1e3 * error_s:.0f} ms"
        yield Finding(check="clock", verdict=Verdict.WARN, found=found, advice="use a time server that is nearer")
    else:
        found = f"the clock is synchronised, to {1e3 * error_s:.1f} ms or better"
        yield Finding(check="clock", verdict=Verdict.OK, found=found)


def clock_state() -> tuple[bool, float]:
    """Whether a time service keeps the kernel's clock, and how wrong it may be at most, s; OSError if none tells."""
    # struct timex of 64-bit Linux, which has room to spare: modes 0 asks and changes nothing.
    timex = (ctypes.c_long * 64)()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    if state < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return state != 5, timex[3] / 1e6


def check_socket_buffers(_config: Config, _camera: Camera | None) -> Iterator[Finding]:
    """How much the kernel lets a TCP connection have in flight."""
    small = {}
    for name in ("tcp_rmem", "tcp_wmem"):
        most = int(Path(f"/proc/sys/net/ipv4/{name}").read_text().split()[2])
        if most < _TCP_BUFFER_BYTES:
            small[f"net.ipv4.{name}"] = most
    if small:
        found = ", ".join(f"{name} allows {format_bytes(most)}" for name, most in small.items())
        settings = "; ".join(f"sysctl -w {name}='4096 131072 {_TCP_BUFFER_BYTES}'" for name in small)
        advice = f"frames that come over a network wait for it: {settings}"
        yield Finding(check="socket buffers", verdict=Verdict.WARN, found=found, advice=advice)
    else:
        found = f"TCP connections may have {format_bytes(_TCP_BUFFER_BYTES)} and more in flight"
        yield Finding(check="socket buffers", verdict=Verdict.OK, found=found)


def check_open_files(_config: Config, _camera: Camera | None) -> Iterator[Finding]:
    """How many files and connections the daemon may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} may be open (at most {hard})"
    advice = "ulimit -n 4096, or LimitNOFILE=4096 in the unit: each run takes about 15, each viewer one or two"
    verdict = Verdict.FAIL if soft < _TOO_FEW_FILES else Verdict.WARN if soft < _FILES else Verdict.OK
    yield Finding(check="open files", verdict=verdict, found=found, advice="" if verdict is Verdict.OK else advice)


# ---- the daemon ------------------------------------------------------------------------------------------------------


def check_keys(config: Config, _camera: Camera | None) -> Iterator[Finding]:
    """Keys of sockets that other machines can reach."""
    needing = [name for name in SOCKETS if config.needs_curve(name)]
    try:
        with closing(Sockets(config)):  # reads all key files; binds nothing
            pass
    except ConfigError as error:
        advice = "`tilecast keys` makes keys, and shows who may connect"
        yield Finding(check="keys", verdict=Verdict.FAIL, found=str(error), advice=advice)
        return
    if config.allow_plaintext:
        yield Finding(
            check="keys",
            verdict=Verdict.WARN,
            found=f"without keys and encryption, by allow_plaintext: {', '.join(config.allow_plaintext)}",
            advice="on a network that others use, too, take allow_plaintext out and make keys with `tilecast keys`",
        )
    elif needing:
        yield Finding(check="keys", verdict=Verdict.OK, found=f"the keys for {', '.join(needing)} are in order")
    else:
        yield Finding(check="keys", verdict=Verdict.OK, found="no socket can be reached from other machines")


def check_daemon(config: Config, _camera: Camera | None) -> Iterator[Finding]:
    """A round trip: through the running daemon if there is one, else through one of our own."""
    running = _ask_running(config)
    if running is not None:
        yield running
        return
    taken = [f"{name} = {endpoint}" for name, endpoint in _endpoints(config) if not _is_free(endpoint)]
    if taken and config.needs_curve("query"):
        yield Finding(
            check="daemon",
            verdict=Verdict.WARN,
            found=f"its sockets are taken ({', '.join(taken)}): it probably runs, and answers only who has a key",
            advice="ask it with a viewer's key: `tilecast top --once --key … --server-key …`",
        )
        return
    if taken:
        yield Finding(
            check="daemon",
            verdict=Verdict.FAIL,
            found=f"no daemon answers on {config.query or 'no query socket'}, but these are taken: {', '.join(taken)}",
            advice="end the program that has them (`ss -ltnp` names it), or choose other endpoints",
        )
    yield _round_trip(_existing(config.store.path))


def _ask_running(config: Config) -> Finding | None:
    """How the configured daemon is; None if none answers. It may want keys that only viewers have: then none does."""
    if not config.query or config.query.endswith(":*") or config.needs_curve("query"):
        return None
    endpoint = config.query.replace("*", "127.0.0.1")
    with Client(None, endpoint, timeout_s=_ANSWER_S) as client, suppress(DisconnectedError):
        began_s = time.monotonic()
        hello = client.hello()
        took_ms = 1e3 * (time.monotonic() - began_s)
        health = client.health()
        found = f"tilecast {hello['version']} answers on {config.query} in {took_ms:.0f} ms and is {health['state']}"
        if Path(hello["store"]).resolve() != config.store.path.resolve():
            advice = "give `tilecast doctor` the configuration of that daemon with --config"
            found += f"; its runs are in {hello['store']}, not in {config.store.path}"
            return Finding(check="daemon", verdict=Verdict.WARN, found=found, advice=advice)
        wrong = health["problems"] or health.get("no_start", [])
        if wrong:
            return Finding(check="daemon", verdict=Verdict.WARN, found=f"{found}: {'; '.join(wrong)}",
                           advice="`tilecast top` shows more, and the daemon's log tells what happened")  # fmt: skip
        return Finding(check="daemon", verdict=Verdict.OK, found=f"{found}; it takes a start")
    return None


def _round_trip(folder: Path) -> Finding:
    """Start a daemon in a folder of its own, send it a scan, and read the mosaic."""
    with tempfile.TemporaryDirectory(prefix=".tilecast-doctor-", dir=folder) as place:
        try:
            with DaemonProcess(Path(place), settings={"disk.stop_bytes": "0", "disk.warn_bytes": "0"}) as daemon:
                began_s = time.monotonic()
                same = _send_and_look(daemon)
                took_ms = 1e3 * (time.monotonic() - began_s)
        except (DisconnectedError, TilecastError, OSError) as error:
            found = f"none was running, and one that was started here failed: {error}"
            advice = "`tilecast run` shows what it says; other findings of this list may be the cause"
            return Finding(check="daemon", verdict=Verdict.FAIL, found=found, advice=advice)
    if not same:
        found = "a daemon that was started here showed other pixels than were sent to it"
        advice = "report this, with the output of `tilecast doctor --json`"
        return Finding(check="daemon", verdict=Verdict.FAIL, found=found, advice=advice)
    found = f"none is running; one that was started here showed 4 frames as they were sent, in {took_ms:.0f} ms"
    return Finding(check="daemon", verdict=Verdict.OK, found=found)


def _send_and_look(daemon: DaemonProcess) -> bool:
    """Whether four frames side by side come back as they were."""
    frames = np.random.default_rng(1).integers(0, 4096, (4, 64, 64)).astype("<u2")
    with Publisher(daemon.endpoints["ingest.ack"], instrument="doctor", stream="frames") as publisher:
        run = publisher.start("doctor", shape=(64, 64), dtype="<u2", px_um=(1.0, 1.0), n_expected=4)
        for number, frame in enumerate(frames):
            publisher.image(frame, pos_um=(64.0 * number + 32.0, 32.0))
        publisher.end()
        publisher.flush(_DAEMON_S)
    expected: NDArray[np.uint16] = np.hstack(list(frames))
    deadline_s = time.monotonic() + _DAEMON_S
    with Client(None, daemon.endpoints["query"]) as client:
        while client.run(run)["frames"] < len(frames) and time.monotonic() < deadline_s:
            time.sleep(0.02)  # somebody who checks an installation has this patience; it is over in a moment
        row0, col0, row1, col1 = client.run(run)["bbox"]
        seen = client.region(run, 0, (row0, col0, row1, col1))
    return seen.pixels.shape == expected.shape and bool((seen.pixels == expected).all())


# ---- small things ----------------------------------------------------------------------------------------------------


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))


def _can_write(folder: Path) -> bool:
    """Whether a file can be made there: tried, because mounts and ACLs know more than permission bits."""
    try:
        with tempfile.TemporaryFile(prefix=".tilecast-doctor-", dir=_existing(folder)):
            return True
    except OSError:
        return False


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _endpoints(config: Config) -> Iterator[tuple[str, str]]:
    """What the daemon would bind."""
    for name in ("ingest.ack", "ingest.pull", "notify", "query"):
        for endpoint in config.endpoints(name):
            yield name, endpoint
    if config.metrics.listen:
        yield "metrics.listen", f"tcp://{config.metrics.listen}"


def _is_free(endpoint: str) -> bool:
    """Whether a daemon could bind this now; yes where that cannot be told."""
    if not endpoint.startswith("tcp://") or endpoint.endswith((":*", ":0")):
        return True
    where = urlsplit(endpoint)
    host = "" if where.hostname in (None, "*") else str(where.hostname)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, where.port or 0), family=family).close()
    except OSError:
        return False
    return True


CHECKS: Final[dict[str, Check]] = {
    "Python": check_python,
    "numba cache": check_kernels,
    "memory": check_memory,
    "clock": check_clock,
    "socket buffers": check_socket_buffers,
    "open files": check_open_files,
    "file system": check_file_system,
    "permissions": check_permissions,
    "free disk": check_free_disk,
    "disk speed": check_disk_speed,
    "keys": check_keys,
    "daemon": check_daemon,
}
"""By what it looks at, in the order shown."""
