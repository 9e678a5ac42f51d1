"""The soak's verdict: what has drifted is said, what has not is not."""

from __future__ import annotations

from dataclasses import replace

from faults.soak import Interval, drift, summary

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
