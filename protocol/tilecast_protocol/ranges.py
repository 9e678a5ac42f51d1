"""Which numbers have been seen: frames of a run, sequence numbers of a publisher.

Acquisition counts upwards with few holes, so a set of numbers is a handful of ranges whatever its size. A `RangeSet`
keeps just those, in two arrays of machine integers: a million frames in order cost 16 bytes. It knows nothing of
messages or journals; run reports, `welcome` and the journal speak its `[first, last]` pairs (both inclusive).

>>> seen = RangeSet()
>>> [seen.add(frame) for frame in (0, 1, 2, 5, 5)]
[True, True, True, True, False]
>>> seen.ranges()
[(0, 2), (5, 5)]
>>> seen.missing(8)
[(3, 4), (6, 7)]
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

UINT64_MAX = 2**64 - 1


class RangeSet:
    """A set of unsigned 64-bit integers, kept as sorted, disjoint, non-touching ranges.

    Adding a number costs a binary search, plus a shift of the ranges above it where it opens or closes a hole: nothing
    for numbers that come in order. Not thread-safe.
    """

    __slots__ = ("_first", "_last", "_size")

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._first = array("Q")
        self._last = array("Q")
        self._size = 0
        for number in numbers:
            self.add(number)

    @classmethod
    def from_ranges(cls, ranges: Iterable[tuple[int, int]]) -> RangeSet:
        """Make a set from (first, last) pairs, both inclusive, in any order; they may overlap or touch.

        Raises
        ------
        ValueError
            A pair is upside down, or a number is not an unsigned 64-bit integer.
        """
        made = cls()
        for first, last in ranges:
            made.add_range(first, last)
        return made

    def add(self, number: int) -> bool:
        """Add one number; True if it was not there before.

        Raises
        ------
        ValueError
            `number` is not an unsigned 64-bit integer.
        """
        return self.add_range(number, number) == 1

    def add_range(self, first: int, last: int) -> int:
        """Add all numbers from `first` to `last`, both inclusive; return how many were not there before.

        Raises
        ------
        ValueError
            The range is upside down, or a number is not an unsigned 64-bit integer.
        """
        if not 0 <= first <= last <= UINT64_MAX:
            raise ValueError(f"expected a range 0 <= first <= last < 2**64, got first={first}, last={last}")
        # Every range that overlaps or touches the new one melts into it: those numbered begin..end-1.
        begin = bisect_left(self._last, first - 1) if first else 0
        end = bisect_right(self._first, last + 1) if last < UINT64_MAX else len(self._first)
        there = sum(max(0, min(last, self._last[i]) - max(first, self._first[i]) + 1) for i in range(begin, end))
        new = last - first + 1 - there
        if new:
            if end - begin == 1:
                # The way of a counter: no range is made or removed.
                self._first[begin] = min(first, self._first[begin])
                self._last[begin] = max(last, self._last[begin])
            else:
                if begin < end:
                    first = min(first, self._first[begin])
                    last = max(last, self._last[end - 1])
                self._first[begin:end] = array("Q", (first,))
                self._last[begin:end] = array("Q", (last,))
            self._size += new
        return new

    def ranges(self) -> list[tuple[int, int]]:
        """All numbers as ascending (first, last) pairs, both inclusive."""
        return list(zip(self._first, self._last, strict=True))

    def missing(self, stop: int, start: int = 0) -> list[tuple[int, int]]:
        """The numbers n with start ≤ n < stop that are not in the set, as (first, last) pairs, both inclusive.

        So the frames lost of a run of `n_expected` are `missing(n_expected)`.
        """
        holes = []
        at = start
        for i in range(bisect_left(self._last, max(0, start)), len(self._first)):
            if self._first[i] >= stop:
                break
            if self._first[i] > at:
                holes.append((at, self._first[i] - 1))
            at = self._last[i] + 1
        if at < stop:
            holes.append((at, stop - 1))
        return holes

    @property
    def last(self) -> int | None:
        """The highest number, or None if there is none."""
        return self._last[-1] if self._last else None

    def copy(self) -> RangeSet:
        """An independent copy."""
        made = RangeSet()
        made._first = self._first[:]
        made._last = self._last[:]
        made._size = self._size
        return made

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, int) or not 0 <= number <= UINT64_MAX:
            return False
        i = bisect_left(self._last, number)
        return i < len(self._last) and self._first[i] <= number

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        for first, last in zip(self._first, self._last, strict=True):
            yield from range(first, last + 1)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangeSet):
            return NotImplemented
        return self._first == other._first and self._last == other._last

    __hash__ = None  # type: ignore[assignment]  # mutable: equal today, different tomorrow

    def __repr__(self) -> str:
        shown = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in self.ranges()[:8])
        return f"RangeSet({shown}{', …' if len(self._first) > 8 else ''})"
