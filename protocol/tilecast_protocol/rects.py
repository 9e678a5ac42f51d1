"""Rectangles of pixels, half-open, rows before columns, signed: the one word for them on both ends of the wire.

The daemon's geometry and whoever reads mosaics (`tilecast_protocol.mosaic`) speak of the same rectangles, so they lie
here, below both. It does not know tiles, planes or files.

>>> Rect(-3, 0, 5, 8).intersect(Rect(0, 4, 9, 9))
Rect(row0=0, col0=4, row1=5, col1=8)
>>> rect_at_level(Rect(-3, 0, 5, 8), 1)
Rect(row0=-2, col0=0, row1=3, col1=4)
"""

from __future__ import annotations

from typing import NamedTuple


class Rect(NamedTuple):
    """Half-open rectangle of pixels: rows [row0, row1), columns [col0, col1)."""

    row0: int
    col0: int
    row1: int
    col1: int

    @property
    def height(self) -> int:
        """Number of rows; negative sizes count as 0."""
        return max(0, self.row1 - self.row0)

    @property
    def width(self) -> int:
        """Number of columns; negative sizes count as 0."""
        return max(0, self.col1 - self.col0)

    @property
    def empty(self) -> bool:
        """Whether it holds no pixel."""
        return self.row1 <= self.row0 or self.col1 <= self.col0

    def union(self, other: Rect) -> Rect:
        """The smallest rectangle that holds both; an empty one adds nothing."""
        if self.empty:
            return other
        if other.empty:
            return self
        return Rect(
            min(self.row0, other.row0),
            min(self.col0, other.col0),
            max(self.row1, other.row1),
            max(self.col1, other.col1),
        )

    def intersect(self, other: Rect) -> Rect:
        """What both hold; `empty` where they do not meet (edges that only touch do not)."""
        return Rect(
            max(self.row0, other.row0),
            max(self.col0, other.col0),
            min(self.row1, other.row1),
            min(self.col1, other.col1),
        )

    def contains(self, other: Rect) -> bool:
        """Whether `other` lies wholly inside; an empty rectangle lies inside any."""
        return other.empty or (
            self.row0 <= other.row0 and self.col0 <= other.col0 and other.row1 <= self.row1 and other.col1 <= self.col1
        )

    def shifted(self, rows: int, cols: int) -> Rect:
        """The same rectangle moved down by `rows` and right by `cols`."""
        return Rect(self.row0 + rows, self.col0 + cols, self.row1 + rows, self.col1 + cols)


def rect_at_level(rect: Rect, level: int) -> Rect:
    """The pixels of a level that a rectangle of level 0 reaches: floor of its start, ceiling of its end."""
    if rect.empty:
        return Rect(0, 0, 0, 0)
    return Rect(rect.row0 >> level, rect.col0 >> level, -(-rect.row1 >> level), -(-rect.col1 >> level))
