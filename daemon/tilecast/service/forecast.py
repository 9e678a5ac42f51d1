"""When the disk will be full if it goes on like this: what an operator has to know before a scan of a night.

What counts is not what was written but what the disk lost by it: tiles that are replaced give their room back, and
other programs take some. So free room is sampled about once a second, and the faster of two rates holds: that of the
last minute, which bursts do not shake, and that of the last ten seconds, which notices that a scan has begun. Full
means that no more mosaics are written (`disk.stop_bytes`), not the last byte.

>>> forecast = Forecast()
>>> for second in range(8):
...     forecast.sample(float(second), 10_000_000_000 - 100_000_000 * second)
>>> forecast.full_in_s(free_bytes=9_200_000_000, stop_below_bytes=1_400_000_000)
78.0
>>> sentence(7800.0)
'full in 2 h 10 min at this rate'
"""

from __future__ import annotations

from tilecast.service.rates import Rates

_SHORT_S = 10.0
_LONG_S = 60.0
_FARTHEST_S = 30 * 24 * 3600.0


class Forecast:
    """Samples of the free room of a disk."""

    def __init__(self) -> None:
        self._windows = (Rates(_SHORT_S), Rates(_LONG_S))

    def sample(self, now_s: float, free_bytes: int) -> None:
        """Take the free room at a time of a clock that never goes back."""
        for window in self._windows:
            window.sample(now_s, {"free": free_bytes})

    @property
    def lost_bytes_per_s(self) -> float:
        """How fast the disk fills; 0 if it does not."""
        return max(0.0, *(-window.per_second().get("free_per_s", 0.0) for window in self._windows))

    def full_in_s(self, free_bytes: int, stop_below_bytes: int) -> float | None:
        """How long until only the reserve is free; 0 if it is so, None if that is more than 30 days away."""
        left_bytes = free_bytes - stop_below_bytes
        if left_bytes <= 0:
            return 0.0
        per_s = self.lost_bytes_per_s
        return left_bytes / per_s if per_s * _FARTHEST_S > left_bytes else None


def sentence(full_in_s: float | None) -> str:
    """A forecast for people; nothing if there is none.

    >>> sentence(0.0), sentence(40.0), sentence(300_000.0), sentence(None)
    ('full', 'full in less than a minute at this rate', 'full in 3 d 11 h at this rate', '')
    """
    if full_in_s is None:
        return ""
    if full_in_s <= 0:
        return "full"
    minutes = int(full_in_s // 60)
    hours, days = minutes // 60, minutes // 1440
    if not minutes:
        span = "less than a minute"
    elif not hours:
        span = f"{minutes} min"
    elif not days:
        span = f"{hours} h {minutes % 60} min"
    else:
        span = f"{days} d {hours % 24} h"
    return f"full in {span} at this rate"
