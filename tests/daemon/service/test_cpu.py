"""Processor time by stage: every thread where it belongs, nothing lost when threads end, all of it the process's."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import psutil
import pytest

from tilecast.service import cpu
from tilecast.service.cpu import STAGES, StageCpu, stage_of


@dataclass
class FakeThread:
    id: int
    user_time: float
    system_time: float


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("tilecast-ingest", "ingest"),
        ("tilecast-encode-2", "encode"),
        ("tilecast-write_0", "store"),
        ("tilecast-blend", "blend"),
        ("tilecast-store", "store"),
        ("checkpointer 0190a5a8", "checkpoint"),
        ("tilecast-sync", "fsync"),
        ("MainThread", "main"),
        ("ZMQbg/Reaper\n", "zmq"),
        ("tilecast-read_0", "other"),
        ("", "other"),
    ],
)
def test_stages_are_known_by_the_names_of_threads(name: str, stage: str) -> None:
    assert stage_of(name) == stage
    assert stage in STAGES


def test_a_thread_that_works_is_counted_where_it_belongs() -> None:
    stages, stop, working = StageCpu(), threading.Event(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            if time.thread_time() > 0.05:  # the system counts in hundredths of a second
                working.set()

    before = stages.seconds()
    thread = threading.Thread(target=work, name="tilecast-blend")
    thread.start()
    assert working.wait(30)
    during = stages.seconds()
    stop.set()
    thread.join()
    after = stages.seconds()
    assert before["blend"] == 0.0
    assert during["blend"] >= 0.04
    assert after["blend"] >= during["blend"], "what an ended thread has used is not forgotten"


def test_the_stages_add_up_to_the_process() -> None:
    process = psutil.Process()
    least = sum(process.cpu_times()[:2])
    total = sum(StageCpu().seconds().values())
    assert least <= total + 1e-9
    assert total <= sum(process.cpu_times()[:2]) + 0.1


def test_ended_threads_and_numbers_that_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = StageCpu()
    names = {1: "tilecast-store", 2: "checkpointer a"}
    threads: list[FakeThread] = []
    monkeypatch.setattr(cpu, "_native_name", lambda number: names[number])
    monkeypatch.setattr(stages._process, "threads", lambda: threads)
    monkeypatch.setattr(stages._process, "cpu_times", lambda: (10.0, 1.0))

    def seconds(*now: FakeThread) -> dict[str, float]:
        threads[:] = now
        return {stage: used_s for stage, used_s in stages.seconds().items() if used_s}

    assert seconds(FakeThread(1, 2.0, 1.0), FakeThread(2, 0.5, 0.0)) == {"store": 3.0, "checkpoint": 0.5, "other": 7.5}
    assert seconds(FakeThread(1, 2.5, 1.0)) == {"store": 3.5, "checkpoint": 0.5, "other": 7.0}
    assert seconds(FakeThread(1, 2.5, 1.0), FakeThread(2, 0.25, 0.0))["checkpoint"] == 0.75
    assert seconds(FakeThread(1, 2.5, 1.0), FakeThread(2, 0.125, 0.0))["checkpoint"] == 0.875
    names[2] = "tilecast-encode-0"
    assert seconds(FakeThread(2, 0.25, 0.0)) == {"store": 3.5, "checkpoint": 0.875, "encode": 0.25, "other": 6.375}
