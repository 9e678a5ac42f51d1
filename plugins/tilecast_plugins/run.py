"""A run at one instant, and a tile as stored: what everything that shows or exports mosaics speaks of.

It does not know where runs come from (a store, a daemon), or how they are shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

import numpy as np

from tilecast.reading import RunFacts, RunInfo
from tilecast_protocol.mosaic.facts import affine_of

#: Colours of channels that have none of their own: the one of a single channel, and those of several.
_GREY, _COLORS = "FFFFFF", ("00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF", "FFFFFF")

MAX_CHANNELS: Final = 256
"""Most channels that a viewer is told of: as many as a `start` may name."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel for people: its name, and its colour as six hexadecimal digits."""

    label: str
    color: str


class Blob(NamedTuple):
    """A tile as stored.

    Attributes
    ----------
    pzf : bytes
    rev : int
        The commit that last wrote it.
    bits : bytes or None
        Which pixels are covered: a bit each, row-major, packed; None where all are.
    """

    pzf: bytes
    rev: int
    bits: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(RunFacts):
    """What is known of a run at one instant.

    Attributes
    ----------
    tile_size : int
        Edge of a tile, pixels.
    dtype : dtype
    start : dict
        The `start` message.
    n_frames : int
        Frames in the mosaic.
    """

    tile_size: int
    dtype: np.dtype[Any]
    start: dict[str, Any]
    n_frames: int

    @classmethod
    def of(cls, info: RunInfo) -> Run:
        """The same, of what a store says of itself."""
        start = info.header
        return cls(
            **{one.name: getattr(info, one.name) for one in fields(RunFacts)},
            tile_size=int(info.settings["tile_size"]),
            dtype=np.dtype(start["dtype"]),
            start=start,
            n_frames=info.n_placements,
        )

    @property
    def pixel_size_um(self) -> tuple[float, float]:
        """Edges of a pixel, x and y, µm."""
        x_um, y_um = self.start.get("px_um") or (1.0, 1.0)
        return float(x_um), float(y_um)

    @property
    def affine(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Carries (col, row) in level-0 pixel edges to stage (x, y) in µm; pixel (0, 0) lies at stage (0, 0)."""
        return affine_of(self.start)

    def stage_um(self, row: float, col: float) -> tuple[float, float]:
        """The stage position (x, y) in µm of a point in level-0 pixel edges."""
        (a, b), (c, d) = self.affine
        return a * col + b * row, c * col + d * row

    def pixel_at(self, x_um: float, y_um: float) -> tuple[float, float]:
        """The point (row, col) in level-0 pixel edges that lies at a stage position."""
        (a, b), (c, d) = self.affine
        determinant = a * d - b * c
        return (a * y_um - c * x_um) / determinant, (d * x_um - b * y_um) / determinant

    @property
    def n_channels(self) -> int:
        """Channels: as planned, and as seen."""
        return self._count("c", 1)

    @property
    def n_times(self) -> int:
        """Points in time: as planned, and as seen."""
        return self._count("t", 0)

    @property
    def n_slices(self) -> int:
        """Positions in z: as planned, and as seen."""
        return self._count("z", 2)

    def _count(self, axis: str, number: int) -> int:
        planned = (self.start.get("planes") or {}).get(axis, 1)
        return max([int(planned), *(plane[number] + 1 for plane in self.bboxes)])

    @property
    def channels(self) -> list[dict[str, Any]]:
        """The channels that there are, or that `start` named or planned: number `c`, `name`, and what `start` said.

        At most `MAX_CHANNELS`, the first ones: neither one frame with a huge number nor thousands of channels make a
        long list.
        """
        given = list(self.start.get("channels") or [])[:MAX_CHANNELS]
        planned = int((self.start.get("planes") or {}).get("c", 1))
        numbers = {0, *range(max(len(given), min(planned, MAX_CHANNELS))), *(plane.c for plane in self.bboxes)}
        return [
            {"name": f"channel {c}"} | (given[c] if c < len(given) else {}) | {"c": c}
            for c in sorted(numbers)[:MAX_CHANNELS]
        ]

    def channel(self, c: int) -> Channel:
        """Name and colour of a channel: as `start` says, else its number and a colour of its own."""
        told = self.start.get("channels") or ()
        one = told[c] if c < len(told) else {}
        color = str(one.get("color") or "").lstrip("#").upper()
        if len(color) != 6 or not set(color) <= set("0123456789ABCDEF"):
            color = _GREY if self.n_channels == 1 else _COLORS[c % len(_COLORS)]
        return Channel(str(one.get("name") or c), color)

    @property
    def steps_um(self) -> tuple[float, float]:
        """Micrometres from one pixel to the next, down (y) and right (x).

        Signed where the camera's axes are the stage's; else the lengths of the steps, whatever their directions.
        """
        (a, b), (c, d) = self.affine
        if b == 0 and c == 0:
            return d, a
        return math.hypot(b, d), math.hypot(a, c)
