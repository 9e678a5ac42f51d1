"""How fast counters rise, for whoever asks how the daemon is doing.

Counters that only ever rise are sampled about once a second; a rate is what was gained over the window, so that it is
steady enough to be read and forgets a burst after a few seconds. Nothing else is known here, not even a clock.

>>> rates = Rates(window_s=10.0)
>>> rates.sample(0.0, {"images": 0}), rates.sample(2.0, {"images": 50})
(None, None)
>>> rates.per_second()
{'images_per_s': 25.0}
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping


class Rates:
    """The last samples of some counters.

    Parameters
    ----------
    window_s : float
        Over how long a rate is taken.
    """

    def __init__(self, window_s: float = 5.0) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, dict[str, float]]] = deque()

    def sample(self, now_s: float, counters: Mapping[str, float]) -> None:
        """Take the counters as they are at a time of a clock that never goes back."""
        self._samples.append((now_s, dict(counters)))
        while len(self._samples) > 2 and self._samples[1][0] <= now_s - self._window_s:
            self._samples.popleft()

    def per_second(self) -> dict[str, float]:
        """`<counter>_per_s` for each counter of the last sample; 0 while there is only one."""
        if not self._samples:
            return {}
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        seconds = last_s - first_s
        return {
            f"{name}_per_s": (value - first.get(name, 0)) / seconds if seconds > 0 else 0.0
            for name, value in last.items()
        }
