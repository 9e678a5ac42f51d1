"""How much room is left on the disk of the runs, in steps, and what each step means for what comes in.

    ok ──▶ warn ──▶ stop ──▶ full

At `warn` people are told. At `stop` no run is begun, and what can be made again, the mosaic, is not written any more;
images still go into their journals. A disk is `full` when a journal could not be written for want of room: then the
runs that are open are ended, with their reports. Nothing here measures anything; `service.disk` does.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol


class Room(IntEnum):
    """How short room is."""

    OK = 0
    WARN = 1
    STOP = 2
    FULL = 3

    @property
    def word(self) -> str:
        """For people and messages."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserves:
    """The room that is to stay free, on a disk of `total_bytes`: bytes or a share, whichever is less.

    >>> reserves = Reserves(warn_bytes=100, warn_percent=5, stop_bytes=20, stop_percent=1)
    >>> reserves.warn(1000), reserves.stop(1000), reserves.warn(10_000)
    (50, 10, 100)
    """

    warn_bytes: int
    warn_percent: float
    stop_bytes: int
    stop_percent: float

    def warn(self, total_bytes: int) -> int:
        """Below so much free room it is `warn`; never less than the other reserve."""
        return max(self.stop(total_bytes), min(self.warn_bytes, int(total_bytes * self.warn_percent / 100)))

    def stop(self, total_bytes: int) -> int:
        """Below so much it is `stop`."""
        return min(self.stop_bytes, int(total_bytes * self.stop_percent / 100))


def next_room(before: Room, free_bytes: int, total_bytes: int, reserves: Reserves) -> Room:
    """What it is now, given what it was: a step is taken back only when there is a tenth more than its reserve.

    `full` is never said here, since only a write can tell; it lasts until `stop` would be over.

    >>> reserves = Reserves(warn_bytes=100, warn_percent=100, stop_bytes=10, stop_percent=100)
    >>> [next_room(before, 105, 1000, reserves).word for before in (Room.OK, Room.WARN, Room.FULL)]
    ['ok', 'warn', 'warn']
    >>> next_room(Room.FULL, 10, 1000, reserves).word, next_room(Room.WARN, 110, 1000, reserves).word
    ('full', 'ok')
    """
    stop, warn = reserves.stop(total_bytes), reserves.warn(total_bytes)
    if free_bytes < stop or (before >= Room.STOP and free_bytes < stop + stop // 10):
        return max(before, Room.STOP)
    if free_bytes < warn or (before >= Room.WARN and free_bytes < warn + warn // 10):
        return Room.WARN
    return Room.OK


def is_full(error: BaseException) -> bool:
    """Whether a write failed for want of room, as far as the error or its cause says."""
    return _number(error) in (errno.ENOSPC, errno.EDQUOT)


def is_broken(error: BaseException) -> bool:
    """Whether it failed because the disk did, or can only be read."""
    return _number(error) in (errno.EIO, errno.EROFS)


def _number(error: BaseException) -> int | None:
    own = getattr(error, "errno", None)
    return own if own is not None else getattr(error.__cause__, "errno", None)


class Disk(Protocol):
    """What threads ask of the disk of the runs, and tell of it; from any thread."""

    @property
    def free_bytes(self) -> int:
        """Free room."""
        ...

    def room(self) -> Room:
        """How short room is now."""
        ...

    def ran_out(self, room: Room) -> None:
        """A write has failed for want of room, so it is `stop` or `full` now, whatever the numbers say."""
        ...

    def failed(self, why: str) -> None:
        """A write has failed for another reason."""
        ...

    @property
    def sentence(self) -> str:
        """What is so, with numbers, and what to do; empty while there is room."""
        ...

    @property
    def trouble(self) -> str:
        """The write that failed last for another reason than want of room, while that is not over."""
        ...


def tell(disk: Disk, error: BaseException) -> None:
    """Tell a disk of a write that failed, whatever the reason."""
    if is_full(error):
        disk.ran_out(Room.FULL)
    elif is_broken(error):
        disk.failed(str(error))
