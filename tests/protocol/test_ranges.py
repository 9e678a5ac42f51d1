"""A RangeSet is a set of integers: compared with Python's own, whatever is added."""

from __future__ import annotations

import doctest
import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilecast_protocol.ranges
from tilecast_protocol.ranges import UINT64_MAX, RangeSet

NUMBERS = st.one_of(st.integers(0, 30), st.integers(UINT64_MAX - 5, UINT64_MAX))
PAIRS = st.tuples(st.integers(0, 40), st.integers(0, 6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(NUMBERS))
def test_is_the_set_of_what_was_added(numbers: list[int]) -> None:
    ours, plain = RangeSet(), set[int]()
    for number in numbers:
        assert ours.add(number) == (number not in plain)
        plain.add(number)
        assert len(ours) == len(plain)
    assert list(ours) == sorted(plain)
    assert all((number in ours) == (number in plain) for number in range(-1, 33))
    assert ours == RangeSet(sorted(plain)) == RangeSet.from_ranges(reversed(ours.ranges()))
    assert ours.last == (max(plain) if plain else None)


@given(st.lists(NUMBERS))
def test_ranges_neither_overlap_nor_touch(numbers: list[int]) -> None:
    ranges = RangeSet(numbers).ranges()
    assert all(first <= last for first, last in ranges)
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(ranges))


@given(st.lists(PAIRS))
def test_ranges_add_up(pairs: list[tuple[int, int]]) -> None:
    ours, plain = RangeSet(), set[int]()
    for first, last in pairs:
        fresh = set(range(first, last + 1)) - plain
        assert ours.add_range(first, last) == len(fresh)
        plain |= fresh
    assert list(ours) == sorted(plain)


@given(st.lists(NUMBERS), st.integers(0, 35), st.integers(0, 10))
def test_missing_is_the_rest(numbers: list[int], stop: int, start: int) -> None:
    holes = RangeSet(numbers).missing(stop, start)
    spelled = [number for first, last in holes for number in range(first, last + 1)]
    assert spelled == [number for number in range(start, stop) if number not in numbers]


def test_missing_at_the_upper_end() -> None:
    assert RangeSet([UINT64_MAX]).missing(2**64, start=UINT64_MAX - 2) == [(UINT64_MAX - 2, UINT64_MAX - 1)]


@pytest.mark.parametrize(("first", "last"), [(-1, 3), (5, 4), (0, 2**64)])
def test_refuses_what_is_no_range_of_unsigned_numbers(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="expected a range"):
        RangeSet().add_range(first, last)


def test_a_copy_goes_its_own_way() -> None:
    seen = RangeSet([1, 2])
    other = seen.copy()
    other.add(9)
    assert seen.ranges() == [(1, 2)]
    assert other.ranges() == [(1, 2), (9, 9)]
    assert len(other) == 3


def test_whatever_is_no_unsigned_number_is_not_in_it() -> None:
    assert "1" not in RangeSet([1])
    assert 2**64 not in RangeSet([UINT64_MAX])


def test_repr_is_short_however_many_holes() -> None:
    assert repr(RangeSet([0, 1, 2, 5])) == "RangeSet(0-2, 5)"
    assert len(repr(RangeSet(range(0, 10_000, 2)))) < 60


def test_a_scan_sent_in_bad_order_stays_cheap() -> None:
    """Every second frame first, then the others backwards: the most holes that so many frames can have."""
    begin = time.process_time()
    seen = RangeSet(range(0, 40_000, 2))
    for frame in range(39_999, 0, -2):
        seen.add(frame)
    assert seen.ranges() == [(0, 39_999)]
    assert time.process_time() - begin < 5


def test_the_example_in_the_module_runs() -> None:
    assert doctest.testmod(tilecast_protocol.ranges).failed == 0
