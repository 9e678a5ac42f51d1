"""Whether every stage of the daemon moves or is idle: what the service manager's watchdog is fed for.

A stage counts what it does. One whose count stands still for too long hangs, unless it says that it has nothing to do,
or that it waits for the next one: then that one is looked at in its turn. Nothing is known here of what stages do.

>>> watch = Watch(patience_s=10)
>>> watch.hanging([Stage("blend", 7)], now_s=0), watch.hanging([Stage("blend", 7)], now_s=11)
([], ['blend'])
>>> watch.hanging([Stage("blend", 7, waits=True)], now_s=12), watch.hanging([Stage("blend", 8)], now_s=30)
([], [])
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Stage(NamedTuple):
    """What is seen of a stage from outside.

    Attributes
    ----------
    name : str
    moved : int or float
        A count that changes whenever it does something, also if that is to look whether there is something to do.
    waits : bool
        It has nothing to do, or waits for another stage.
    """

    name: str
    moved: float
    waits: bool = False


class Watch:
    """Remembers when each stage moved last.

    Parameters
    ----------
    patience_s : float
        So long may a stage stand still.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._last: dict[str, tuple[float, float]] = {}

    def hanging(self, stages: Iterable[Stage], now_s: float) -> list[str]:
        """The stages that hang, at a time of a clock that never goes back."""
        found = []
        for stage in stages:
            moved, since_s = self._last.get(stage.name, (None, now_s))
            if stage.waits or moved != stage.moved:
                self._last[stage.name] = (stage.moved, now_s)
            else:
                self._last[stage.name] = (stage.moved, since_s)
                if now_s - since_s > self._patience_s:
                    found.append(stage.name)
        return found
