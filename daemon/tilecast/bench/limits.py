"""What this machine could do at best, so that the daemon's figures become ratios that mean something anywhere.

Measured in the same minute as the daemon, on the same disk, with the same frames, one thing at a time: a copy of one
frame in memory, PZF encoding on one thread, and writing to the disk one block after the other. Nothing here knows the
daemon.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray

from tilecast_protocol import pzf

_COPIES: Final = 15
_BLOCK_BYTES: Final = 8 << 20
_MIN_WRITE_BYTES: Final = 128 << 20
_MAX_WRITE_BYTES: Final = 1536 << 20
_MAX_WRITE_S: Final = 3.0
_IN_MEMORY: Final = ("tmpfs", "ramfs", "devtmpfs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the machine could do at best.

    Attributes
    ----------
    memcpy_ms : float
        One copy of a frame into memory that is there already.
    pzf_encode_gb_s : float
        Pixels encoded by one thread, 10⁹ bytes per second.
    disk_write_mb_s : float
        Written sequentially and made durable, 10⁶ bytes per second.
    """

    memcpy_ms: float
    pzf_encode_gb_s: float
    disk_write_mb_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was measured on: the processor's name, its cores (as the system counts them) and memory in GiB."""

    cpu: str
    cores: int
    memory_gib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """Where the store lies: kind of file system, device, and whether that is memory and no disk at all."""

    kind: str
    device: str

    @property
    def in_memory(self) -> bool:
        """Whether nothing that is written there ever reaches a disk."""
        return self.kind in _IN_MEMORY

    def __str__(self) -> str:
        return f"{self.kind} on {self.device}"


def measure_limits(folder: Path, frames: Sequence[NDArray[Any]], n_frames: int) -> Limits:
    """Measure all of them, a few seconds altogether.

    Parameters
    ----------
    folder : Path
        On the disk that is to be measured; a file is made there, and removed.
    frames : sequence of ndarray
        A few frames as they will be sent.
    n_frames : int
        How many will be sent: a small benchmark writes little, so little is written here.

    Raises
    ------
    OSError
        The disk refuses.
    """
    n_bytes = min(max(n_frames * frames[0].nbytes, _MIN_WRITE_BYTES), _MAX_WRITE_BYTES)
    return Limits(
        memcpy_ms=copy_ms(frames[0]),
        pzf_encode_gb_s=encode_gb_s(frames),
        disk_write_mb_s=write_mb_s(folder, n_bytes),
    )


def copy_ms(frame: NDArray[Any]) -> float:
    """Time of one copy of a frame in memory, ms; the median of several."""
    copy = np.zeros_like(frame)
    return 1e3 * statistics.median(_seconds(lambda: np.copyto(copy, frame)) for _ in range(_COPIES))


def encode_gb_s(frames: Sequence[NDArray[Any]]) -> float:
    """How fast one thread encodes frames, 10⁹ bytes of pixels per second; the median over the frames."""
    pzf.encode_image(frames[0])  # compiled, and its memory there
    return statistics.median(
        frame.nbytes / 1e9 / _seconds(lambda frame=frame: pzf.encode_image(frame)) for frame in frames
    )


def write_mb_s(folder: Path, n_bytes: int) -> float:
    """How fast the disk takes one block after the other, 10⁶ bytes per second, until they are durable.

    Past the page cache, where the file system can do that. It stops after 3 s in any case.
    """
    # Noise, in memory at page boundaries: some disks compress, and writing past the cache wants it so.
    block = mmap.mmap(-1, _BLOCK_BYTES)
    block.write(np.random.default_rng(0).bytes(_BLOCK_BYTES))
    fd, path = tempfile.mkstemp(prefix=".tilecast-bench-", dir=folder)
    os.close(fd)
    try:
        fd = _open_direct(path)
        try:
            began_s, written = time.perf_counter(), 0
            while written < n_bytes and time.perf_counter() - began_s < _MAX_WRITE_S:
                written += os.pwrite(fd, block, written)
            os.fdatasync(fd)
            return written / 1e6 / (time.perf_counter() - began_s)
        finally:
            os.close(fd)
    finally:
        Path(path).unlink()
        block.close()


def _open_direct(path: str) -> int:
    with contextlib.suppress(OSError, AttributeError):  # not every file system, nor every system, can do this
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    return os.open(path, os.O_WRONLY)


def _seconds(call: Any) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


def this_machine() -> Machine:
    """The machine that this runs on."""
    return Machine(
        cpu=_cpu_name(),
        cores=len(psutil.Process().cpu_affinity()) if psutil.LINUX else os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / (1 << 30), 1),
    )


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def file_system_of(folder: Path) -> FileSystem:
    """The file system on which a folder lies: that of the nearest mount point above it."""
    folder = folder.resolve()
    mounts = {Path(part.mountpoint): part for part in psutil.disk_partitions(all=True)}  # the last mounted hides others
    found = next((mounts[path] for path in (folder, *folder.parents) if path in mounts), None)
    return FileSystem(kind=found.fstype, device=found.device) if found else FileSystem(kind="unknown", device="unknown")
