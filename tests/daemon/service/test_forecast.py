"""The forecast of the disk: what is told when it fills, when it does not, and when that changes."""

from __future__ import annotations

from tilecast.service.forecast import Forecast, sentence

GB = 10**9


def fill(forecast: Forecast, *, start_s: int, seconds: int, free_bytes: int, per_s: int) -> int:
    for second in range(seconds):
        forecast.sample(float(start_s + second), free_bytes - per_s * second)
    return free_bytes - per_s * (seconds - 1)


def test_without_samples_and_on_a_disk_that_rests_there_is_none() -> None:
    forecast = Forecast()
    assert forecast.full_in_s(100 * GB, GB) is None
    fill(forecast, start_s=0, seconds=100, free_bytes=100 * GB, per_s=0)
    assert forecast.full_in_s(100 * GB, GB) is None


def test_the_reserve_counts_as_full() -> None:
    forecast = Forecast()
    free = fill(forecast, start_s=0, seconds=100, free_bytes=100 * GB, per_s=GB // 10)
    found = forecast.full_in_s(free, free - 50 * GB)
    assert found is not None
    assert abs(found - 500) < 1
    assert forecast.full_in_s(free, free) == 0.0


def test_a_scan_that_begins_is_noticed_within_seconds() -> None:
    forecast = Forecast()
    fill(forecast, start_s=0, seconds=60, free_bytes=100 * GB, per_s=0)
    fill(forecast, start_s=60, seconds=12, free_bytes=100 * GB, per_s=GB)
    assert 0.9 * GB < forecast.lost_bytes_per_s < 1.1 * GB


def test_a_scan_that_is_over_is_forgotten_within_a_minute() -> None:
    forecast = Forecast()
    free = fill(forecast, start_s=0, seconds=60, free_bytes=100 * GB, per_s=GB)
    fill(forecast, start_s=60, seconds=62, free_bytes=free, per_s=0)
    assert forecast.full_in_s(free, GB) is None


def test_room_that_is_made_is_no_negative_time() -> None:
    forecast = Forecast()
    fill(forecast, start_s=0, seconds=60, free_bytes=10 * GB, per_s=-GB)
    assert forecast.lost_bytes_per_s == 0.0
    assert forecast.full_in_s(70 * GB, GB) is None


def test_log_files_that_grow_are_no_forecast() -> None:
    forecast = Forecast()
    fill(forecast, start_s=0, seconds=60, free_bytes=100 * GB, per_s=1000)
    assert forecast.full_in_s(100 * GB, GB) is None


def test_it_is_said_as_people_say_it() -> None:
    assert sentence(2 * 3600 + 10 * 60 + 59) == "full in 2 h 10 min at this rate"
    assert sentence(59 * 60) == "full in 59 min at this rate"
