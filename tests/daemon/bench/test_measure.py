"""Parts of a measurement that a whole one does not show: lost notifications, logs that are not cut, failing threads."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tilecast.bench import measure
from tilecast.bench.measure import _Listener, _MachineLoad, _Thread, _wait_settled
from tilecast.store.sqlite_connection import TILES_NAME, wal_path

ME = psutil.Process()


def nothing() -> None:
    """What is checked while waiting."""


def test_a_lost_notification_is_made_good_by_the_next() -> None:
    listener = _Listener("tcp://127.0.0.1:1", "0190a5a8-1111-7000-8000-000000000001")
    listener._revs, listener._times_ns = [1, 2, 5], [100, 200, 500]
    assert [listener.heard_ns(rev) for rev in (1, 2, 3, 4, 5)] == [100, 200, 500, 500, 500]
    assert listener.wait_heard(5, 0)
    assert not listener.wait_heard(6, 0)


class TestSettled:
    def test_the_pause_before_a_log_is_cut_is_taken_off(self, tmp_path: Path) -> None:
        log = wal_path(tmp_path / TILES_NAME)
        log.write_bytes(b"x")
        began_s, looks = time.monotonic(), 0

        def check() -> None:
            nonlocal looks
            looks += 1
            if time.monotonic() - began_s > measure.IDLE_S + 0.1:
                log.write_bytes(b"")

        settled_s = _wait_settled(tmp_path, ME, check) - began_s
        assert looks > 5
        assert 0.1 <= settled_s < time.monotonic() - began_s - measure.IDLE_S + 0.05

    def test_a_log_that_is_gone_or_empty_needs_no_waiting(self, tmp_path: Path) -> None:
        began_s = time.monotonic()
        assert _wait_settled(tmp_path, ME, nothing) >= began_s
        wal_path(tmp_path / TILES_NAME).touch()
        assert _wait_settled(tmp_path, ME, nothing) >= began_s

    def test_a_log_that_is_not_cut_while_nothing_is_written_was_carried_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(measure, "_STILL_S", 0.1)
        monkeypatch.setattr(measure, "_written_bytes", lambda _: 7)
        wal_path(tmp_path / TILES_NAME).write_bytes(b"x")
        began_s = time.monotonic()
        settled_s = _wait_settled(tmp_path, ME, nothing)
        assert settled_s - began_s < 0.1 <= time.monotonic() - began_s


def test_the_machine_is_busy_while_we_are() -> None:
    load = _MachineLoad()
    began_s = time.process_time()
    while time.process_time() - began_s < 0.1:
        pass
    busy, disk_wait = load.shares()
    assert 0 < busy <= 1
    assert disk_wait is None or 0 <= disk_wait <= 1.5


def test_what_goes_wrong_in_a_thread_is_raised_at_its_end() -> None:
    class Failing(_Thread):
        def _work(self) -> None:
            raise OSError("no more")

    with pytest.raises(OSError, match="no more"), Failing("failing"):
        pass


def test_bytes_written_are_known_where_the_system_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Any) -> None:
        raise psutil.AccessDenied

    if psutil.LINUX:
        assert measure._written_bytes(ME) is not None
    monkeypatch.setattr(psutil.Process, "io_counters", refuse)
    assert measure._written_bytes(ME) is None
