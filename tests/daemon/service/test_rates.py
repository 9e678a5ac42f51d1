"""Rates: what was gained over the window, and nothing of what was before it."""

from __future__ import annotations

from tilecast.service.rates import Rates


def test_nothing_is_known_before_there_are_two_samples() -> None:
    rates = Rates()
    assert rates.per_second() == {}
    rates.sample(100.0, {"images": 7})
    assert rates.per_second() == {"images_per_s": 0.0}


def test_a_rate_is_taken_over_the_window_and_forgets_what_was_before() -> None:
    rates = Rates(window_s=4.0)
    for second in range(10):
        rates.sample(float(second), {"images": 20.0 * second, "bytes": 0.0})
    assert rates.per_second() == {"images_per_s": 20.0, "bytes_per_s": 0.0}
    for second in range(10, 15):
        rates.sample(float(second), {"images": 180.0, "bytes": 8.0 * (second - 10)})
    assert rates.per_second() == {"images_per_s": 0.0, "bytes_per_s": 8.0}


def test_a_counter_that_appears_later_counts_from_zero() -> None:
    rates = Rates()
    rates.sample(0.0, {})
    rates.sample(2.0, {"images": 3})
    assert rates.per_second() == {"images_per_s": 1.5}


def test_samples_far_apart_still_make_a_rate_and_few_are_kept() -> None:
    rates = Rates(window_s=1.0)
    for minute in range(1000):
        rates.sample(60.0 * minute, {"images": 120.0 * minute})
    assert rates.per_second() == {"images_per_s": 2.0}
    assert len(rates._samples) == 2
