"""Metrics: a translation of `stats` that loses nothing, with names that Prometheus accepts."""

from __future__ import annotations

from tilecast.histogram import Histogram
from tilecast.service.metrics import drops, latency, runs
from tilecast_protocol.messages import REJECT_REASONS


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
        "rejected_malformed": 1,
        "rejected_disk-reserve": 3,
        "dropped_duplicate": 4,
        "dropped_not-kept": 90,  # heartbeats
        "held": {"n": 0, "nbytes": 0, "n_lost": 5},
    }
    told = {cause: count for cause, count in drops(ingest).items() if count}
    assert told == {"malformed": 3, "disk-reserve": 3, "duplicate": 4, "lost-before-start": 5}


def test_every_cause_is_told_before_it_happens() -> None:
    quiet = drops({})  # as of a daemon that is loading runs
    assert set(quiet.values()) == {0.0}
    assert {*REJECT_REASONS, "resent", "duplicate", "lost-before-start"} <= quiet.keys()


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
