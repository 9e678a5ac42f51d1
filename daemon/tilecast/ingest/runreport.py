"""The run report: what was sent, what came, what did not, and how well it could be placed.

The report of PROTOCOL ("Loss") as one function of what is known of a run, and the counts that only the living process
knows. What the journal can tell (received, by status, where the end lies) is counted from it again after a restart;
duplicates and refusals leave no record there, so `RunCounts` can be stored and given back.

Not known here: messages, time, how anything was counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tilecast_protocol.ranges import RangeSet

from .joining import BracketStats
from .sequences import Ranges

STATUS_NAMES: Final = ("good", "incomplete", "repeated", "saturated")


@dataclass(slots=True)
class RunCounts:
    """What happened to a run without leaving a record in its journal.

    Attributes
    ----------
    duplicate, resent : int
        Images that came again: under a new number, or the very same message.
    malformed : int
        Messages of the run's stream that broke the wire contract.
    rejected : dict
        Messages refused for another reason, by its word.
    late : int
        Images that came when the run was idle or had ended.
    lost_before_start : int
        Images that came before the run's start, on a socket that cannot be answered, and could not be held.
    n_sent : int
        The most that a heartbeat said had been sent.
    """

    duplicate: int = 0
    resent: int = 0
    malformed: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    late: int = 0
    lost_before_start: int = 0
    n_sent: int = 0

    def refuse(self, reason: str, n: int = 1) -> None:
        """Count refused messages."""
        if reason == "malformed":
            self.malformed += n
        else:
            self.rejected[reason] = self.rejected.get(reason, 0) + n

    def to_dict(self) -> dict[str, Any]:
        """As plain values, to be stored with the run."""
        return {
            "duplicate": self.duplicate,
            "resent": self.resent,
            "malformed": self.malformed,
            "rejected": dict(self.rejected),
            "late": self.late,
            "lost_before_start": self.lost_before_start,
            "n_sent": self.n_sent,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunCounts:
        """From what `to_dict` gave; what is missing counts from 0."""
        return cls(
            duplicate=values.get("duplicate", 0),
            resent=values.get("resent", 0),
            malformed=values.get("malformed", 0),
            rejected=dict(values.get("rejected", {})),
            late=values.get("late", 0),
            lost_before_start=values.get("lost_before_start", 0),
            n_sent=values.get("n_sent", 0),
        )


def n_in(ranges: Iterable[tuple[int, int]]) -> int:
    """How many numbers lie in (first, last) ranges."""
    return sum(last - first + 1 for first, last in ranges)


def make_report(
    *,
    run: str,
    revision: int,
    phase: str,
    reason: str | None,
    planned: int | None,
    n_sent: int | None,
    received: RangeSet,
    placed: RangeSet,
    outside_extent: RangeSet,
    by_status: tuple[int, int, int, int],
    unplaced: Mapping[str, Ranges],
    camera_dropped: int | None,
    counts: RunCounts,
    brackets: BracketStats | None,
) -> dict[str, Any]:
    """The report of one run, as plain values.

    Parameters
    ----------
    run, phase : str
    revision : int
        1 for the first report of a run.
    reason : str or None
        Why it ended, if it has.
    planned : int or None
        How many images `start` announced.
    n_sent : int or None
        How many images `end` says were sent; None without an `end`.
    received, placed : RangeSet
        Frames that are journalled; those of them that have a place.
    outside_extent : RangeSet
        Those of them whose centre does not lie where `extent_um` of `start` said.
    by_status : four int
        Images of status 0 to 3.
    unplaced : mapping
        Frames without a place, as ranges, by the reason.
    camera_dropped : int or None
        What the camera itself lost, by its own word.
    counts : RunCounts
    brackets : BracketStats or None
        For a run with joined frames.

    Returns
    -------
    dict
        `expected` is what `end` says was sent, without an `end` what the last heartbeat said, and never less than the
        highest frame that came; `expected_from` says which. Frames are numbered without holes, so `missing` is every
        frame below `expected` that has not come. Ranges are [first, last], both included.
    """
    seen = (received.last + 1) if received.last is not None else 0
    said = n_sent if n_sent is not None else counts.n_sent
    expected = max(said, seen)
    if seen > said:
        expected_from = "frames"
    else:
        expected_from = "end" if n_sent is not None else "heartbeat" if counts.n_sent else "frames"
    missing = received.missing(expected)
    return {
        "run": run,
        "revision": revision,
        "state": phase,
        "reason": reason,
        "planned": planned,
        "expected": expected,
        "expected_from": expected_from,
        "received": len(received),
        "n_missing": n_in(missing),
        "missing": [list(hole) for hole in missing],
        "duplicate": counts.duplicate,
        "resent": counts.resent,
        "malformed": counts.malformed,
        "rejected": dict(sorted(counts.rejected.items())),
        "lost_before_start": counts.lost_before_start,
        "late": counts.late,
        "by_status": dict(zip(STATUS_NAMES, by_status, strict=True)),
        "camera_dropped": camera_dropped,
        "placed": len(placed),
        "n_outside_extent": len(outside_extent),
        "outside_extent": [list(one) for one in outside_extent.ranges()],
        "n_unplaced": sum(n_in(ranges) for ranges in unplaced.values()),
        "unplaced": {why: [list(hole) for hole in ranges] for why, ranges in sorted(unplaced.items())},
        "joined": None if brackets is None or not brackets.n else _joined(brackets),
    }


def _joined(brackets: BracketStats) -> dict[str, Any]:
    return {
        "n": brackets.n,
        "bracket_ms": {"median": brackets.median_ns / 1e6, "max": brackets.max_ns / 1e6},
        "max_speed_um_s": _finite(brackets.max_speed_um_s),
        "position_bound_um": _finite(brackets.max_bound_um),
    }


def _finite(value: float) -> float | None:
    # Positions near the largest float have differences beyond it; infinity has no place in JSON.
    return value if math.isfinite(value) else None
