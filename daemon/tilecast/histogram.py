"""How long things took, counted in buckets: cheap enough to be kept for every frame, where the time passes.

A bucket is a number; adding a duration is one search in a short tuple and two additions. So the whole history is kept,
not a sample of it, and whoever reads two states of a histogram knows what happened between them.

>>> latency = Histogram((0.01, 0.1))
>>> for seconds in (0.004, 0.05, 0.06, 3.0):
...     latency.add(seconds)
>>> latency.as_dict()
{'le_s': [0.01, 0.1], 'counts': [1, 2, 1], 'sum_s': 3.114}
>>> quantile_s(latency.as_dict(), 0.75)
0.1
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Final

BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets, s: from an append to a file to a disk that is in trouble."""


class Histogram:
    """Durations in buckets. One thread adds; any thread may read.

    Parameters
    ----------
    bounds_s : tuple of float
        Upper bounds (inclusive), rising; above the last there is one more bucket.
    """

    def __init__(self, bounds_s: tuple[float, ...] = BOUNDS_S) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration; a clock that was set back gives 0."""
        seconds = max(0.0, seconds)
        self._counts[bisect_left(self._bounds_s, seconds)] += 1
        self._sum_s += seconds

    def as_dict(self) -> dict[str, Any]:
        """`le_s` (the bounds), `counts` (by bucket, not added up; one more than bounds) and `sum_s`."""
        return {"le_s": list(self._bounds_s), "counts": list(self._counts), "sum_s": self._sum_s}


def quantile_s(histogram: Mapping[str, Any], share: float) -> float | None:
    """Below which time a share of the durations lay, within the bucket by proportion; None without any.

    Above the last bound nothing is known but the bound, which is returned.
    """
    counts, bounds = histogram["counts"], histogram["le_s"]
    wanted = share * sum(counts)
    if not sum(counts):
        return None
    below = 0.0
    for number, bound in enumerate(bounds):
        if counts[number] and below + counts[number] >= wanted:
            lower = bounds[number - 1] if number else 0.0
            return float(lower + (bound - lower) * (wanted - below) / counts[number])
        below += counts[number]
    return float(bounds[-1])
