"""A moment of the soak, and its verdict: what has drifted is said, what has not is not; what is not whole is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.daemon_load import start_daemon
from faults.soak import PARTS, Checker, Interval, drift, one_run, summary
from tilecast.bench.scan import FramePool, Scan

STEADY = Interval(n_frames=100, seconds=10, rss_mib=500, n_fds=30, n_threads=12, p50_ms=50, p99_ms=90)


def test_what_stays_as_it_is_has_not_drifted() -> None:
    warming_up = [replace(STEADY, rss_mib=300), replace(STEADY, n_fds=25)]
    assert drift([*warming_up, STEADY, STEADY, replace(STEADY, rss_mib=510), replace(STEADY, p50_ms=60)]) == []


def test_what_grows_is_named() -> None:
    grown = [replace(STEADY, rss_mib=600, n_fds=31, n_threads=13, p50_ms=150, p99_ms=400)] * 2
    memory, descriptors, threads, latency, tail = drift([STEADY] * 4 + grown)
    assert "500 to 600 MiB" in memory
    assert "30 to 31" in descriptors
    assert "12 to 13" in threads
    assert "50 to 150 ms" in latency
    assert "90 to 400 ms" in tail


def test_a_run_without_any_latency_is_no_good_sign() -> None:
    silent = [replace(STEADY, p50_ms=float("nan"), p99_ms=float("nan"))] * 2
    assert len(drift([STEADY] * 4 + silent)) == 2


def test_a_run_is_judged_by_its_worst_moment_of_memory() -> None:
    found = summary([STEADY, replace(STEADY, rss_mib=700, p50_ms=60), replace(STEADY, p50_ms=70)])
    assert (found.n_frames, found.rss_mib, found.p50_ms) == (300, 700, 60)


def test_a_moment_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three runs by the clock to one daemon; the next, which has let go of them, has each checked and deletes it."""
    n, fps = 12, 40.0
    scan = Scan(shape=(96, 96), dtype="<u2", overlap=0.1, n_frames=n, columns=4)
    pool, settings = FramePool(scan), {"blend.tile_size": "64"}
    root = tmp_path / "runs"
    with start_daemon(tmp_path, settings) as daemon:
        made = [one_run(daemon, scan, pool, fps, n, number) for number in range(3)]
    for _, parts in made:
        assert [part.n_frames for part in parts] == [n // PARTS] * PARTS
        seen = summary(parts)
        assert (seen.n_frames, seen.rss_mib > 50, seen.n_fds > 10, seen.n_threads > 5) == (n, True, True, True)
        assert n / fps / 2 < seen.seconds < 60
        assert seen.p50_ms > 0, "tiles were announced, and it was heard"
    runs = [run for run, _ in made]
    for journal in (root / runs[2] / "journal").iterdir():
        journal.unlink()
    with start_daemon(tmp_path, settings) as daemon:
        checker = Checker(daemon, root, n, quick=True)
        checker.begin(runs[0])
        checker.wait()
        assert checker.wrong == []
        assert not (root / runs[0]).exists()
        strict = Checker(daemon, root, n + 1, quick=True)
        strict.begin(runs[1])
        strict.begin(runs[2])
        strict.wait()
        assert any("its report says" in what for what in strict.wrong)
        assert any("its journal holds the frames" in what for what in strict.wrong)
        assert any(what.startswith(f"run {runs[2]}: ") for what in strict.wrong)
    said = capsys.readouterr().out
    assert all(what in said for what in strict.wrong), "it is told at once"
