"""Histograms: every duration in its bucket, and quantiles that lie where the durations do."""

from __future__ import annotations

import random

import pytest

from tilecast.histogram import BOUNDS_S, Histogram, quantile_s


def test_bounds_are_inclusive_and_rise() -> None:
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S))
    histogram = Histogram()
    for bound in BOUNDS_S:
        histogram.add(bound)
    assert histogram.as_dict()["counts"] == [1] * len(BOUNDS_S) + [0]


def test_a_clock_that_was_set_back_counts_as_nothing() -> None:
    histogram = Histogram()
    histogram.add(-3600.0)
    assert histogram.as_dict()["counts"][0] == 1
    assert histogram.as_dict()["sum_s"] == 0.0


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_quantiles_lie_in_the_bucket_of_the_true_one(share: float) -> None:
    durations = sorted(random.Random(7).expovariate(20.0) for _ in range(2000))
    histogram = Histogram()
    for seconds in durations:
        histogram.add(seconds)
    true_s = durations[int(share * len(durations)) - 1]
    found_s = quantile_s(histogram.as_dict(), share)
    assert found_s is not None
    lower = max((bound for bound in BOUNDS_S if bound < true_s), default=0.0)
    assert lower <= found_s <= min(bound for bound in BOUNDS_S if bound >= true_s)


def test_what_is_beyond_the_last_bound_is_at_least_that() -> None:
    histogram = Histogram((1.0,))
    assert quantile_s(histogram.as_dict(), 0.5) is None
    histogram.add(100.0)
    assert quantile_s(histogram.as_dict(), 0.5) == 1.0
