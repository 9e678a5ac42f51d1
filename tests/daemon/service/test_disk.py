"""The disk of the runs: steps with hysteresis, a reserve for closing runs, and a failed write is believed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from ingest_harness import OTHER_RUN
from recordings import config
from tilecast.ingest.room import Reserves, Room, is_broken, is_full, next_room, tell
from tilecast.service import disk as disk_module
from tilecast.service.disk import RESERVE_NAME, DiskWatch, reserves_of, total_and_free
from tilecast_protocol.errors import JournalError

MIB = 1 << 20
RESERVES = Reserves(warn_bytes=100 * MIB, warn_percent=50, stop_bytes=20 * MIB, stop_percent=10)


class Meter:
    """A disk of 1000 MiB whose free room, and time, a test decides; the reserve counts as taken."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.free = 900 * MIB
        self.now_s = 0.0
        self.error: OSError | None = None

    def usage(self, _root: Path) -> tuple[int, int]:
        if self.error is not None:
            raise self.error
        reserve = self.root / RESERVE_NAME
        return 1000 * MIB, max(0, self.free - (reserve.stat().st_size if reserve.exists() else 0))

    def watch(self, reserve_nbytes: int = 4 * MIB) -> DiskWatch:
        return DiskWatch(
            self.root, RESERVES, reserve_nbytes=reserve_nbytes, usage=self.usage, clock_s=lambda: self.now_s
        )

    def at(self, free_mib: float, after_s: float = 1.0) -> None:
        self.free = round(free_mib * MIB)
        self.now_s += after_s


@pytest.fixture
def meter(tmp_path: Path) -> Meter:
    return Meter(tmp_path)


def test_a_step_is_taken_back_only_when_there_is_a_tenth_more() -> None:
    rooms, room = [], Room.OK
    for free_mib in (110, 100, 99, 109, 110, 50, 19, 21, 22, 109, 110):
        room = next_room(room, free_mib * MIB, 1000 * MIB, RESERVES)
        rooms.append(room.word)
    assert rooms == ["ok", "ok", "warn", "warn", "ok", "warn", "stop", "stop", "warn", "warn", "ok"]


def test_bytes_or_percent_whichever_is_less() -> None:
    assert (RESERVES.warn(1000 * MIB), RESERVES.stop(1000 * MIB)) == (100 * MIB, 20 * MIB)
    assert (RESERVES.warn(100 * MIB), RESERVES.stop(100 * MIB)) == (50 * MIB, 10 * MIB)
    odd = Reserves(warn_bytes=1, warn_percent=100, stop_bytes=20, stop_percent=100)
    assert odd.warn(1000) == odd.stop(1000) == 20, "it never warns after it has stopped"


def test_the_configured_reserves(tmp_path: Path) -> None:
    found = reserves_of(config(tmp_path, "disk.stop_bytes=3MiB", "disk.warn_percent=7"))
    assert (found.stop_bytes, found.warn_percent) == (3 * MIB, 7.0)


def test_measured_at_most_ten_times_a_second(meter: Meter) -> None:
    watch = meter.watch()
    meter.at(10, after_s=0.06)
    assert watch.room() is Room.OK
    meter.at(10, after_s=0.06)
    assert watch.room() is Room.STOP
    assert watch.free_bytes == 6 * MIB, "the reserve is not free"


def test_sentences_say_how_much_and_what_to_do(meter: Meter) -> None:
    watch = meter.watch()
    assert watch.sentence == ""
    meter.at(94)
    assert "90.0 MiB of 1000.0 MiB are free" in watch.sentence
    assert "below 20.0 MiB no run is begun" in watch.sentence
    meter.at(14)
    assert "20.0 MiB are to stay free" in watch.sentence
    watch.ran_out(Room.FULL)
    assert "no image is recorded" in watch.sentence


def test_the_reserve_is_given_up_when_the_disk_is_full_and_made_again(meter: Meter) -> None:
    watch = meter.watch()
    reserve = meter.root / RESERVE_NAME
    assert reserve.stat().st_size == 4 * MIB
    assert reserve.stat().st_blocks * 512 >= 4 * MIB, "it takes its room"
    meter.at(4)
    assert watch.room() is Room.STOP
    assert reserve.exists(), "mosaics are not written, and images still are"
    watch.ran_out(Room.FULL)
    assert not reserve.exists()
    assert watch.stats()["reserve_bytes"] == 0
    meter.at(4, after_s=60)
    assert watch.room() is Room.FULL, "what the reserve had is not free"
    meter.at(25, after_s=60)
    assert watch.room() is Room.FULL, "25 MiB less the reserve are less than a tenth above 20"
    meter.at(26.5)
    assert watch.room() is Room.WARN
    assert reserve.exists()
    watch.close()
    assert not reserve.exists()


def test_a_reserve_that_a_killed_daemon_left_is_taken_over(meter: Meter) -> None:
    meter.watch()
    again = meter.watch()
    assert again.stats()["reserve_bytes"] == 4 * MIB
    again.close()
    assert list(meter.root.iterdir()) == []


def test_64_mib_are_kept_back(meter: Meter) -> None:
    watch = DiskWatch(meter.root, RESERVES, usage=meter.usage, clock_s=lambda: meter.now_s)
    status = (meter.root / RESERVE_NAME).stat()
    assert (watch.stats()["reserve_bytes"], status.st_size) == (64 * MIB, 64 * MIB)
    assert status.st_blocks * 512 >= 64 * MIB, "room that is taken, not only a length"
    watch.close()


def test_a_small_disk_has_a_small_reserve(meter: Meter) -> None:
    assert meter.watch(reserve_nbytes=10**12).stats()["reserve_bytes"] == 100 * MIB


@pytest.mark.parametrize(("number", "tried"), [(errno.EROFS, True), (errno.EOPNOTSUPP, False)])
def test_a_reserve_that_cannot_be_made(meter: Meter, monkeypatch: pytest.MonkeyPatch, number: int, tried: bool) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", refuse)
        watch = meter.watch()
        assert watch.stats()["reserve_bytes"] == 0
        assert list(meter.root.iterdir()) == []
    meter.at(900)
    assert watch.room() is Room.OK
    assert list(meter.root.iterdir()) == [], "it is not tried all the time"
    meter.at(900, after_s=10)
    assert watch.room() is Room.OK
    assert (meter.root / RESERVE_NAME).exists() is tried, "where there is no way there is no second try"


def test_a_write_that_failed_is_believed_for_longer_each_time(meter: Meter) -> None:
    """A quota that is used up: the numbers say that there is room."""
    watch = meter.watch()
    for believed_s in (10, 20, 40):
        watch.ran_out(Room.FULL)
        meter.at(900, after_s=believed_s - 0.1)
        assert watch.room() is Room.FULL
        meter.at(900, after_s=0.6)
        assert watch.room() is Room.OK
    meter.at(900, after_s=1000)
    watch.ran_out(Room.STOP)
    assert watch.room() is Room.STOP
    meter.at(900, after_s=11)
    assert watch.room() is Room.OK


def test_a_disk_that_is_gone_has_no_room(meter: Meter) -> None:
    watch = meter.watch()
    meter.error = OSError(errno.ENOENT, "No such file or directory")
    meter.at(900)
    assert (watch.room(), watch.free_bytes) == (Room.STOP, 0)


def test_trouble_lasts_until_a_small_file_can_be_written(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = meter.watch()
    tell(watch, OSError(errno.EROFS, "Read-only file system"))
    assert "Read-only" in watch.trouble
    assert watch.stats()["trouble"] == watch.trouble
    assert watch.room() is Room.OK
    with monkeypatch.context() as patch:
        patch.setattr(disk_module, "_PROBE_NAME", f"{OTHER_RUN}/cannot")
        meter.at(900, after_s=11)
        assert watch.trouble
    meter.at(900, after_s=9)
    assert watch.trouble, "it is not tried all the time"
    meter.at(900, after_s=2)
    assert watch.trouble == ""
    assert [path.name for path in meter.root.iterdir()] == [RESERVE_NAME]


def test_what_an_error_says_of_the_disk() -> None:
    full, broken = OSError(errno.ENOSPC, "No space left"), OSError(errno.EIO, "Input/output error")
    wrapped = JournalError("cannot write")
    wrapped.__cause__ = full
    assert [is_full(error) for error in (full, broken, wrapped, ValueError())] == [True, False, True, False]
    assert [is_broken(error) for error in (full, broken, wrapped, ValueError())] == [False, True, False, False]


def test_the_numbers_of_a_real_disk(tmp_path: Path) -> None:
    total, free = total_and_free(tmp_path)
    assert total > free > 0
    watch = DiskWatch(tmp_path, RESERVES, reserve_nbytes=0)
    assert abs(watch.free_bytes - free) < total // 10
