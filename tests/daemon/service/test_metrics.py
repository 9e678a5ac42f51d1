"""Metrics: a translation of `stats` that loses nothing, with names that Prometheus accepts."""

from __future__ import annotations

from tilecast.histogram import Histogram
from tilecast.service.metrics import drops, latency, runs


def test_buckets_are_added_up_as_prometheus_wants_them() -> None:
    histogram = Histogram((0.01, 0.1))
    for seconds in (0.005, 0.05, 0.06, 7.0):
        histogram.add(seconds)
    samples = {
        (sample.name, sample.labels.get("le")): sample.value
        for sample in latency({"blend": histogram.as_dict()}).samples
    }
    assert samples[("tilecast_latency_seconds_bucket", "0.01")] == 1
    assert samples[("tilecast_latency_seconds_bucket", "0.1")] == 3
    assert samples[("tilecast_latency_seconds_bucket", "+Inf")] == 4
    assert samples[("tilecast_latency_seconds_count", None)] == 4
    assert abs(samples[("tilecast_latency_seconds_sum", None)] - 7.115) < 1e-9


def test_drops_have_their_causes() -> None:
    ingest = {
        "images": 9,
        "malformed": 2,
        "rejected_disk-reserve": 3,
        "dropped_repeated": 4,
        "held": {"n": 0, "nbytes": 0, "n_lost": 5},
    }
    assert drops(ingest) == {"malformed": 2, "disk-reserve": 3, "repeated": 4, "lost-before-start": 5}
    assert drops({})["malformed"] == 0, "a daemon that is loading runs tells the rest all the same"


def test_a_run_without_a_plan_has_no_planned_frames() -> None:
    values = {"name": 'liver "12"\n', "stream": "cam", "state": "open", "received": 3, "placed": 2, "missing": 1}
    found = {
        sample.name: sample.value for family in runs({"r1": values | {"planned": None}}) for sample in family.samples
    }
    assert found == {
        "tilecast_run_open": 1,
        "tilecast_run_received_frames": 3,
        "tilecast_run_placed_frames": 2,
        "tilecast_run_missing_frames": 1,
    }
