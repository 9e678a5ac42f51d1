"""Watches the disk of the runs, and keeps a little of it back for closing them when it is full.

How short room is, is decided in `ingest.room`; here it is measured, ten times a second at most, by whoever asks.
Beside the runs lies a file of 64 MiB, `reserve`, which holds nothing: when a journal cannot be written for want of
room it is deleted, and what it held is there for the last commits: states, reports, logs. It is made again when there
is room.

Numbers can say that there is room where there is none (quotas, inodes): a failed write is believed for some seconds,
and for longer each time it happens again.

A write that failed for another reason (a bad disk, a file system that was made read-only) changes no step: it is kept
as `trouble`, and tried now and then whether it is over, by writing a small file.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from tilecast.ingest.room import Reserves, Room, is_full, next_room
from tilecast.options import format_size
from tilecast.service.config import Config

log = structlog.get_logger()

RESERVE_NAME = "reserve"
RESERVE_NBYTES = 64 << 20
_PROBE_NAME = "probe"
_MEASURE_EVERY_S = 0.1
_PROBE_EVERY_S = 10.0
_BELIEVE_S = 10.0
_MOST_BELIEVED_S = 320.0
_NO_SUCH_CALL = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def reserves_of(config: Config) -> Reserves:
    """The reserves that are configured."""
    disk = config.disk
    return Reserves(
        warn_bytes=disk.warn_bytes,
        warn_percent=disk.warn_percent,
        stop_bytes=disk.stop_bytes,
        stop_percent=disk.stop_percent,
    )


def total_and_free(folder: Path) -> tuple[int, int]:
    """Bytes of the disk that a folder lies on, and how many of them are free; OSError if there is none."""
    usage = shutil.disk_usage(folder)
    return usage.total, usage.free


class DiskWatch:
    """The disk of the runs (`ingest.room.Disk`). Safe between threads.

    Parameters
    ----------
    root : Path
        The folder of the runs.
    reserves : Reserves
    reserve_nbytes : int
        Size of the file that is kept back, or a tenth of the disk if that is less; 0 for none.
    usage : callable
        (total, free) bytes of the disk with a folder; may raise OSError.
    clock_s : callable
        A time that never goes back.
    """

    def __init__(
        self,
        root: Path,
        reserves: Reserves,
        *,
        reserve_nbytes: int = RESERVE_NBYTES,
        usage: Callable[[Path], tuple[int, int]] = total_and_free,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._reserves = reserves
        self._reserve_nbytes = reserve_nbytes
        self._usage = usage
        self._clock_s = clock_s
        self._lock = threading.RLock()
        self._room = Room.OK
        self._total = self._free = 0
        self._measured_s = -_MEASURE_EVERY_S
        self._believe_until_s = -math.inf
        self._believe_s = _BELIEVE_S
        self._has_reserve = False
        self._may_reserve = True
        self._reserve_again_s = -math.inf
        self._trouble = ""
        self._probe_s = 0.0
        self._measure(clock_s())

    def reserve(self, reserves: Reserves) -> None:
        """Keep other reserves from now on."""
        with self._lock:
            self._reserves = reserves

    @property
    def free_bytes(self) -> int:
        """Free room, as the system says; 0 if it cannot."""
        with self._lock:
            self.room()
            return self._free

    def room(self) -> Room:
        """How short room is."""
        with self._lock:
            now_s = self._clock_s()
            if now_s - self._measured_s >= _MEASURE_EVERY_S:
                self._measure(now_s)
            return self._room

    def ran_out(self, room: Room) -> None:
        """A write has failed for want of room: at least this step holds, and at `full` the reserve is given up."""
        with self._lock:
            now_s = self._clock_s()
            if room > self._room or now_s >= self._believe_until_s:
                # Again soon after it was believed to be over: then for longer.
                again = now_s - self._believe_until_s < self._believe_s
                self._believe_s = min(2 * self._believe_s, _MOST_BELIEVED_S) if again else _BELIEVE_S
                self._believe_until_s = now_s + self._believe_s
            self._room = max(room, self._room)
            if room is Room.FULL:
                self._give_up_reserve()
            self._measure(now_s)

    def failed(self, why: str) -> None:
        """A write has failed for another reason; it is trouble until a small file can be written."""
        with self._lock:
            self._trouble = why
            self._probe_s = self._clock_s() + _PROBE_EVERY_S

    @property
    def sentence(self) -> str:
        """What is so, with numbers, and what to do; empty while there is room."""
        with self._lock:
            room = self.room()
            if room is Room.OK:
                return ""
            has = f"{_short(self._free)} of {_short(self._total)} are free on the disk of {self._root}"
            if room is Room.WARN:
                below = _short(self._reserves.stop(self._total))
                return f"{has}: make room; below {below} no run is begun and mosaics are not written (disk.stop_bytes)"
            if room is Room.STOP:
                below = _short(self._reserves.stop(self._total))
                return (
                    f"{has}, and {below} are to stay free (disk.stop_bytes, disk.stop_percent): no run is begun and "
                    "mosaics are not written, images are still recorded; make room and everything goes on by itself"
                )
            return (
                f"{has}, which was not enough for what had to be written: no image is recorded; make room and "
                "everything goes on by itself"
            )

    @property
    def trouble(self) -> str:
        """The write that failed last, for another reason than want of room, if that is not over."""
        with self._lock:
            if self._trouble and self._clock_s() >= self._probe_s:
                self._probe()
            return self._trouble

    def stats(self) -> dict[str, Any]:
        """Numbers for `stats`."""
        with self._lock:
            return {
                "room": self.room().word,
                "free_bytes": self._free,
                "total_bytes": self._total,
                "warn_below_bytes": self._reserves.warn(self._total),
                "stop_below_bytes": self._reserves.stop(self._total),
                "reserve_bytes": self._nbytes_to_reserve if self._has_reserve else 0,
                "trouble": self.trouble,
            }

    def close(self) -> None:
        """Give the reserve back: the daemon ends."""
        with self._lock:
            self._may_reserve = False
            self._give_up_reserve()

    @property
    def _reserve_path(self) -> Path:
        return self._root / RESERVE_NAME

    @property
    def _nbytes_to_reserve(self) -> int:
        return min(self._reserve_nbytes, self._total // 10)

    def _measure(self, now_s: float) -> None:
        self._measured_s = now_s
        try:
            self._total, self._free = self._usage(self._root)
        except OSError:
            self._total, self._free = max(1, self._total), 0  # the folder, or its disk, is gone: there is no room
        if self._room >= Room.STOP and now_s < self._believe_until_s:
            return
        # What the reserve will take again is not free.
        owed = 0 if self._has_reserve or not self._may_reserve else self._nbytes_to_reserve
        self._room = next_room(self._room, self._free - owed, self._total, self._reserves)
        if not self._free:
            self._room = max(self._room, Room.STOP)
        if self._room < Room.STOP:
            self._make_reserve()

    def _make_reserve(self) -> None:
        """Take the reserve: a file that a daemon left that was killed, or a new one."""
        nbytes = self._nbytes_to_reserve
        if self._has_reserve or not self._may_reserve or not nbytes or self._measured_s < self._reserve_again_s:
            return
        try:
            fd = os.open(self._reserve_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.posix_fallocate(fd, 0, nbytes)
            finally:
                os.close(fd)
        except OSError as error:
            self._may_reserve = error.errno not in _NO_SUCH_CALL
            self._reserve_again_s = self._measured_s + _PROBE_EVERY_S
            log.warning("no room could be kept back for closing runs", store=str(self._root), why=error.strerror)
            with contextlib.suppress(OSError):
                self._reserve_path.unlink(missing_ok=True)
            return
        self._has_reserve = True

    def _give_up_reserve(self) -> None:
        if self._has_reserve:
            with contextlib.suppress(OSError):  # of a disk that can only be read
                self._reserve_path.unlink(missing_ok=True)
                self._has_reserve = False

    def _probe(self) -> None:
        path = self._root / _PROBE_NAME
        try:
            with path.open("wb") as file:
                file.write(b"tilecast")
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
        except OSError as error:
            if is_full(error):
                self._trouble = ""  # that is another matter
            self._probe_s = self._clock_s() + _PROBE_EVERY_S
        else:
            log.info("the disk can be written again", store=str(self._root))
            self._trouble = ""


def _short(nbytes: int) -> str:
    """A size for a sentence."""
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return format_size(nbytes) + " bytes"
