"""The run report as a function of what is known."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tilecast.ingest.joining import BracketStats
from tilecast.ingest.runreport import RunCounts, make_report
from tilecast_protocol.ranges import RangeSet


def report_of(**changes: Any) -> dict[str, Any]:
    what: dict[str, Any] = {
        "run": "r",
        "revision": 1,
        "phase": "ended",
        "reason": "done",
        "planned": None,
        "n_sent": None,
        "received": RangeSet([0, 1, 4]),
        "placed": RangeSet([0]),
        "outside_extent": RangeSet(),
        "by_status": (3, 0, 0, 0),
        "unplaced": {"stage-gap": [(1, 1), (4, 4)]},
        "camera_dropped": None,
        "counts": RunCounts(),
        "brackets": None,
    }
    return make_report(**(what | changes))


@pytest.mark.parametrize(
    ("n_sent", "said_by_heartbeat", "expected", "by"),
    [
        (None, 0, 5, "frames"),
        (None, 5, 5, "heartbeat"),
        (None, 9, 9, "heartbeat"),
        (None, 3, 5, "frames"),
        (8, 0, 8, "end"),
        (8, 9, 8, "end"),
        (5, 0, 5, "end"),
        (2, 9, 5, "frames"),
        (0, 0, 5, "frames"),
    ],
)
def test_how_many_were_expected_and_who_said_so(
    n_sent: int | None, said_by_heartbeat: int, expected: int, by: str
) -> None:
    report = report_of(n_sent=n_sent, counts=RunCounts(n_sent=said_by_heartbeat))
    assert (report["expected"], report["expected_from"]) == (expected, by)
    assert report["n_missing"] == expected - 3
    assert report["missing"] == [[2, 3]] + ([[5, expected - 1]] if expected > 5 else [])


def test_a_run_of_nothing() -> None:
    report = report_of(received=RangeSet(), placed=RangeSet(), unplaced={}, by_status=(0, 0, 0, 0), n_sent=0)
    assert (report["expected"], report["missing"], report["expected_from"]) == (0, [], "end")


def test_an_absurd_number_of_images_is_a_short_report() -> None:
    report = report_of(n_sent=2**63 - 1)
    assert report["missing"] == [[2, 3], [5, 2**63 - 2]]
    assert report["n_missing"] == 2**63 - 1 - 3


def test_infinity_has_no_place_in_a_report() -> None:
    brackets = BracketStats()
    brackets.add(1, 0.5, 1e305)
    report = report_of(brackets=brackets)
    assert report["joined"]["max_speed_um_s"] is None
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_counts_survive_being_stored() -> None:
    counts = RunCounts(duplicate=1, resent=2, malformed=3, late=4, lost_before_start=5, n_sent=6)
    counts.refuse("malformed")
    counts.refuse("busy", 7)
    stored = json.loads(json.dumps(counts.to_dict()))
    assert RunCounts.from_dict(stored) == counts
    assert counts.malformed == 4
    assert counts.rejected == {"busy": 7}
    assert RunCounts.from_dict({}) == RunCounts()
