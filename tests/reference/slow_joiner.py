"""Joining the slow and obvious way: after every call all that is known is looked through from the beginning."""

from __future__ import annotations

from typing import NamedTuple


class Sample(NamedTuple):
    """A stage position."""

    t_ns: int
    x_um: float
    y_um: float
    moving: bool | None


class Exposure(NamedTuple):
    """A frame that needs a position."""

    frame: int
    t_mid_ns: int
    moving: bool | None


class SlowJoiner:
    """The rules of PROTOCOL, "Joining", without any thought of speed or memory.

    Attributes
    ----------
    placed : dict of int to (x, y)
        Every placement by frame, in the order in which they were made.
    """

    def __init__(self, max_gap_ns: int, allow_moving: bool) -> None:
        self.max_gap_ns = max_gap_ns
        self.allow_moving = allow_moving
        self.samples: list[Sample] = []
        self.waiting: list[Exposure] = []
        self.placed: dict[int, tuple[float, float]] = {}

    def add(self, item: Sample | Exposure) -> None:
        """Take a sample or an exposure."""
        if isinstance(item, Exposure):
            self.waiting.append(item)
        elif all(item.t_ns != sample.t_ns for sample in self.samples):
            self.samples.append(item)
        for exposure in self.waiting.copy():
            position = self._position(exposure)
            if position is not None:
                self.placed[exposure.frame] = position
                self.waiting.remove(exposure)

    def _position(self, exposure: Exposure) -> tuple[float, float] | None:
        t = exposure.t_mid_ns
        before = max((sample for sample in self.samples if sample.t_ns <= t), default=None, key=lambda one: one.t_ns)
        after = min((sample for sample in self.samples if sample.t_ns >= t), default=None, key=lambda one: one.t_ns)
        if before is None or after is None or after.t_ns - before.t_ns > self.max_gap_ns:
            return None
        moving = bool(before.moving or after.moving) if exposure.moving is None else exposure.moving
        if moving and not self.allow_moving:
            return None
        share = (t - before.t_ns) / (after.t_ns - before.t_ns) if after.t_ns > before.t_ns else 0.0
        return (
            before.x_um + share * (after.x_um - before.x_um),
            before.y_um + share * (after.y_um - before.y_um),
        )
