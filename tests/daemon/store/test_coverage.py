"""Coverage masks come back exactly, and damaged ones are refused without using memory."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tilecast.errors import StoreError
from tilecast.store.coverage import coverage_bits, coverage_pack, coverage_unpack

sizes = st.integers(1, 40)


@given(sizes.flatmap(lambda size: hnp.arrays(np.bool_, (size, size))))
def test_a_mask_comes_back(mask: NDArray[np.bool_]) -> None:
    blob = coverage_pack(mask)
    assert (blob is None) == mask.all()
    again = coverage_unpack(blob, mask.shape[0])
    if again is None:
        assert mask.all()
    else:
        assert again.dtype == np.bool_
        assert (again == mask).all()
        again[0, 0] = True  # the caller's own


def test_full_costs_nothing() -> None:
    assert coverage_pack(None) is None
    assert coverage_pack(np.ones((256, 256), np.bool_)) is None
    assert coverage_unpack(None, 256) is None
    assert coverage_bits(None, 256) is None


def test_the_first_pixel_is_the_highest_bit_and_rows_follow_one_another() -> None:
    mask = np.zeros((3, 3), np.bool_)
    mask[0, 0] = mask[1, 0] = mask[2, 2] = True
    assert coverage_bits(coverage_pack(mask), 3) == bytes([0b10010000, 0b10000000])


def test_a_view_that_is_not_contiguous_is_packed_as_it_looks() -> None:
    mask = np.zeros((6, 6), np.bool_)
    mask[:, 0] = True
    view = mask.T[::-1]
    again = coverage_unpack(coverage_pack(view), 6)
    assert again is not None
    assert (again == view).all()


def test_a_ragged_edge_is_small() -> None:
    mask = np.zeros((256, 256), np.bool_)
    mask[:100, 37:] = True
    blob = coverage_pack(mask)
    assert blob is not None
    assert len(blob) < 200


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"rubbish",
        zlib.compress(bytes(31)),
        zlib.compress(bytes(33)),
        zlib.compress(bytes(32))[:-1],
        zlib.compress(bytes(2**24)),
    ],
    ids=["empty", "rubbish", "short", "long", "cut off", "bomb"],
)
def test_damage_is_refused(blob: bytes) -> None:
    with pytest.raises(StoreError, match="coverage of a tile"):
        coverage_unpack(blob, 16)
