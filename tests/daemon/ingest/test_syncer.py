"""One thread makes journals durable: in groups, and nothing is called durable that is not."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tilecast.ingest.syncer import Syncer
from tilecast_protocol.journal import Journal, RecordKind

RUN = "0f8a2c1e-6f0b-4c53-9f5e-2a1d7c3b4e5f"
PATIENCE_S = 20.0
HOUR_S = 3600.0


class SlowDisk:
    """A journal whose fsync takes as long as the test wants: it can be held just before, and fail."""

    def __init__(self, run: str = RUN) -> None:
        self.run = run
        self.written_lsn = 0
        self.synced: list[int] = []
        self.error: Exception | None = None
        self.arrived = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.held = False

    def write(self, syncer: Syncer) -> int:
        """Append 100 bytes; returns the ticket."""
        self.written_lsn += 100
        return syncer.written(self)

    def sync(self) -> int:
        """As the real one: what was written before the call is durable after it."""
        lsn = self.written_lsn
        if self.held:
            self.arrived.release()
            assert self.go_on.acquire(timeout=PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.synced.append(lsn)
        return lsn


class Told:
    """What a syncer told."""

    def __init__(self) -> None:
        self.n_durable = 0
        self.refused: list[tuple[object, Exception]] = []
        self.failures: list[Exception] = []
        self.failed = threading.Event()

    def durable(self) -> None:
        self.n_durable += 1

    def refusal(self, journal: object, error: Exception) -> None:
        self.refused.append((journal, error))
        self.failed.set()

    def failure(self, error: Exception) -> None:
        self.failures.append(error)
        self.failed.set()


@pytest.fixture
def told() -> Told:
    return Told()


def a_syncer(told: Told, interval_s: float) -> Syncer:
    syncer = Syncer(interval_s=interval_s, on_durable=told.durable, on_refused=told.refusal, on_failure=told.failure)
    syncer.start()
    return syncer


@pytest.fixture
def syncer(told: Told) -> Iterator[Syncer]:
    """One that syncs at once."""
    made = a_syncer(told, 0.0)
    yield made
    made.close()


def test_nothing_is_durable_before_its_fsync_has_returned(syncer: Syncer, told: Told) -> None:
    disk = SlowDisk()
    disk.held = True
    ticket = disk.write(syncer)
    assert disk.arrived.acquire(timeout=PATIENCE_S)
    assert (syncer.written_ticket, syncer.durable_ticket) == (1, 0)
    assert not syncer.wait_durable(ticket, 0.0)
    assert syncer.take_durable() == []
    assert told.n_durable == 0
    disk.go_on.release()
    assert syncer.wait_durable(ticket, PATIENCE_S)
    assert syncer.take_durable() == [(RUN, 100)]
    assert syncer.take_durable() == []


def test_what_is_written_meanwhile_shares_the_next_fsync(syncer: Syncer) -> None:
    disk, other = SlowDisk(), SlowDisk("other")
    disk.held = True
    first = disk.write(syncer)
    assert disk.arrived.acquire(timeout=PATIENCE_S)
    later = [disk.write(syncer) for _ in range(50)]
    last = other.write(syncer)
    assert later == list(range(2, 52))
    disk.held = False
    disk.go_on.release()
    assert syncer.wait_durable(last, PATIENCE_S)
    assert first < last
    assert disk.synced == [100, 5100]
    assert other.synced == [100]
    stats = syncer.stats()
    assert (stats["n_syncs"], stats["waiting"]) == (2, 0)
    assert dict(syncer.take_durable()) == {RUN: 5100, "other": 100}


def test_a_write_waits_for_company_at_most_the_interval(told: Told) -> None:
    syncer, disk = a_syncer(told, HOUR_S), SlowDisk()
    tickets = [disk.write(syncer) for _ in range(5)]
    assert not syncer.wait_durable(tickets[0], 0.0)
    syncer.close()
    assert disk.synced == [500]
    assert syncer.durable_ticket == tickets[-1]
    assert told.n_durable == 1

    soon = a_syncer(told, 0.05)
    began = time.monotonic()
    assert soon.wait_durable(disk.write(soon), PATIENCE_S)
    assert time.monotonic() - began >= 0.05
    soon.close()


def test_closing_without_anything_written_ends_the_thread(told: Told) -> None:
    syncer = a_syncer(told, HOUR_S)
    syncer.close()
    assert not syncer._thread.is_alive()
    assert told.n_durable == 0


def test_a_bug_is_the_end(told: Told) -> None:
    syncer, disk = a_syncer(told, 0.0), SlowDisk()
    sound = disk.write(syncer)
    assert syncer.wait_durable(sound, PATIENCE_S)
    disk.error = error = ValueError("a bug")
    lost = disk.write(syncer)
    assert not syncer.wait_durable(lost, PATIENCE_S), "it returns at once: it never will be"
    assert told.failed.wait(PATIENCE_S)
    assert told.failures == [error]
    assert syncer.failure is syncer.refusal(disk) is error
    disk.error = None
    later = disk.write(syncer)
    assert not syncer.wait_durable(later, PATIENCE_S)
    syncer.close()
    assert (syncer.durable_ticket, disk.synced) == (sound, [100])
    assert syncer.take_durable() == [(RUN, 100)]
    assert told.failures == [error]


def test_a_journal_that_the_disk_refuses_is_never_synced_again_and_the_others_are(told: Told) -> None:
    syncer, good, bad = a_syncer(told, HOUR_S), SlowDisk("good"), SlowDisk("bad")
    bad.error = OSError(28, "No space left on device")
    bad.held = True
    good.write(syncer)
    bad.write(syncer)
    closer = threading.Thread(target=syncer.close)  # starts a round at once
    closer.start()
    assert bad.arrived.acquire(timeout=PATIENCE_S)
    bad.write(syncer)  # while it is being refused: this one must not be synced either
    ticket = good.write(syncer)
    bad.go_on.release()
    closer.join(PATIENCE_S)
    assert syncer.wait_durable(ticket, 0.0)
    assert syncer.take_durable() == [("good", 100), ("good", 200)]
    assert bad.synced == []
    assert told.refused == [(bad, bad.error)]
    assert told.failures == []
    assert syncer.refusal(bad) is bad.error
    assert syncer.refusal(good) is None
    syncer.forget(bad)
    assert syncer.refusal(bad) is None


def append(journal: Journal, frame: int) -> None:
    journal.append(
        RecordKind.IMAGE, topic="tc1/scope/cam/image", header=b"\x80", parts=[b"pixels"], t_recv_ns=1, frame=frame
    )


def test_a_real_journal_is_durable_when_it_is_said_to_be(
    syncer: Syncer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_syncs = 0
    fdatasync = os.fdatasync

    def counted(fd: int) -> None:
        nonlocal n_syncs
        n_syncs += 1
        fdatasync(fd)

    with Journal.create(tmp_path / "journal", RUN) as journal:
        monkeypatch.setattr(os, "fdatasync", counted)
        for frame in range(20):
            append(journal, frame)
            ticket = syncer.written(journal)
        assert syncer.wait_durable(ticket, PATIENCE_S)
        assert journal.synced_lsn == journal.written_lsn
        assert 1 <= n_syncs <= 20
        assert syncer.take_durable()[-1] == (RUN, journal.written_lsn)


def test_a_real_fsync_that_fails_is_never_made_good(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    syncer = a_syncer(told, 0.0)
    with Journal.create(tmp_path / "journal", RUN) as journal:
        with monkeypatch.context() as broken:
            broken.setattr(os, "fdatasync", fail)
            append(journal, 0)
            syncer.written(journal)
            assert told.failed.wait(PATIENCE_S)
        syncer.written(journal)  # also not when the disk is well again
        syncer.close()
        assert syncer.refusal(journal) is not None
        assert syncer.take_durable() == []
    assert [refused for refused, _ in told.refused] == [journal]


def test_a_journal_that_was_closed_meanwhile_is_no_failure(told: Told, tmp_path: Path) -> None:
    syncer = a_syncer(told, HOUR_S)
    with Journal.create(tmp_path / "journal", RUN) as journal:
        append(journal, 0)
        ticket = syncer.written(journal)
    syncer.close()
    assert syncer.durable_ticket == ticket
    assert told.failures == []
