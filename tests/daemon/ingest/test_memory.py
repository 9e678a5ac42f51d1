"""What is remembered beside the runs themselves is bounded: strangers cannot make the daemon grow."""

from __future__ import annotations

import tracemalloc

import pytest

from ingest_harness import ACK, MS, SUB, T0, Camera, StageSource, Thread
from tilecast.ingest import holding, sequences, stage_history
from tilecast.ingest.machine import IngestMachine, IngestSettings
from tilecast.ingest.stage_history import StageHistory
from tilecast.ingest.verdicts import Accept


def run_of(number: int) -> str:
    return f"{number:08x}-2222-4333-8444-555555555555"


def test_stage_messages_of_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_history, "MAX_MESSAGES", 50)
    history, stage = StageHistory(window_ns=10**18), StageSource()
    for k in range(200):
        history.add(stage.at(T0 + k, 0), T0, keep_all=True)
        assert len(history.recent("scope")) <= 50
    assert history.recent("scope")[-1].seq == 199


def test_stage_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_history, "MAX_STREAMS", 5)
    history = StageHistory(window_ns=10**9)
    for k in range(20):
        history.add(StageSource(f"stage{k}").at(T0, 0), T0)
    assert history.streams("scope", T0, 10**9) == [f"stage{k}" for k in range(15, 20)]


def test_runs_that_never_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "MAX_RUNS", 10)
    thread = Thread(IngestSettings(hold_s=0.1))
    for k in range(50):
        thread.send(Camera(run=run_of(k)).image(0), SUB)
        thread.send(Camera(run=run_of(k)).image(0), ACK)
        thread.tick(200)
    assert len(thread.machine._held._early) <= 10
    assert thread.machine.stats()["held"] == {"n": 0, "nbytes": 0, "n_lost": 50}


def test_starts_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilecast.ingest.machine.MAX_RUNS", 10)
    thread = Thread()
    for name in ("xy", "piezo"):
        thread.send(StageSource(name).at(T0, 0))
    for k in range(50):
        thread.send(Camera(run=run_of(k)).start(), SUB)
    thread.tick()
    assert len(thread.said("warning")) == 10


def test_publishers_on_one_way_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilecast.ingest.machine.MAX_SOURCES", 10)
    thread = Thread()
    for k in range(50):
        thread.send(StageSource(boot=k).at(T0, 0), SUB)
    assert len(thread.machine.stats()["one_way_sources"]) == 10
    assert sequences.MAX_SOURCES > 10


def test_a_long_run_takes_no_more_than_a_short_one() -> None:
    """Joined frames of a stage at ten samples a frame: what is kept of a placed frame is nothing."""
    machine, camera, stage = IngestMachine(IngestSettings(max_stage_samples=500)), Camera(), StageSource()
    start = machine.screen(camera.start(), ACK, T0)
    assert isinstance(start, Accept)
    machine.accepted(start)

    def scan(first: int, stop: int) -> None:
        for frame in range(first, stop):
            now_ns = T0 + frame * 10 * MS
            messages = [stage.at(now_ns + k * MS, frame) for k in range(10)]
            for message in (*messages[:5], camera.image(frame, now_ns + 4 * MS + 7), *messages[5:]):
                verdict = machine.screen(message, ACK, now_ns)
                assert isinstance(verdict, Accept)
                machine.accepted(verdict, frame)
            machine.tick(now_ns)

    tracemalloc.start()
    scan(0, 400)
    before, _ = tracemalloc.get_traced_memory()
    scan(400, 1200)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert machine.report(start.targets[0].run)["placed"] == 1200
    assert after - before < 10_000
