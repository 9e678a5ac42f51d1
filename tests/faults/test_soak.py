"""The soak's verdict: what has drifted is said, what has not is not."""

from __future__ import annotations

from dataclasses import replace

from faults.soak import Interval, drift

STEADY = Interval(n_frames=100, seconds=10, rss_mib=500, n_fds=30, n_threads=12, p50_ms=50, p99_ms=90)


def test_what_stays_as_it_is_has_not_drifted() -> None:
    warming_up = [replace(STEADY, rss_mib=300), replace(STEADY, n_fds=25)]
    assert drift([*warming_up, STEADY, STEADY, replace(STEADY, rss_mib=510), replace(STEADY, p50_ms=60)]) == []


def test_what_grows_is_named() -> None:
    grown = [replace(STEADY, rss_mib=600, n_fds=31, p50_ms=150)] * 2
    memory, descriptors, latency = drift([STEADY] * 4 + grown)
    assert "500 to 600 MiB" in memory
    assert "30 to 31" in descriptors
    assert "50 to 150 ms" in latency
