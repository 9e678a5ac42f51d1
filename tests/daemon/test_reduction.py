"""Reduction of one tile into a quadrant of its parent."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from reference import mosaic_reference
from reference.live_mosaic import noise
from tilecast.reduction import (
    Child,
    Family,
    blank_tile,
    clear_quadrant,
    float_coverage,
    reduce_families,
    reduce_into,
)

SIZE = 16


@pytest.mark.parametrize("dtype", ["|u1", "<u2"])
def test_every_tie_of_every_number_of_pixels_goes_to_even(dtype: str) -> None:
    """All four-pixel groups of the values 0 to 4 and of the highest ones, with every mask."""
    top = np.iinfo(dtype).max
    groups = np.array(
        [*itertools.product(range(5), repeat=4), *itertools.product(range(top - 4, top + 1), repeat=4)], dtype
    )
    for mask in itertools.product((False, True), repeat=4):
        side = 36  # 36² groups ≥ 1250
        child = np.zeros((2 * side, 2 * side), dtype)
        covered = np.zeros(child.shape, np.bool_)
        for i, group in enumerate(groups):
            row, col = 2 * (i // side), 2 * (i % side)
            covered[row : row + 2, col : col + 2] = np.reshape(mask, (2, 2))
            child[row : row + 2, col : col + 2] = np.where(np.reshape(mask, (2, 2)), group.reshape(2, 2), 0)
        parent, parent_mask = np.zeros(child.shape, dtype), np.zeros(child.shape, np.bool_)
        result = reduce_into(child, covered, parent, parent_mask, 0, 0)
        values, right_mask = mosaic_reference.reduce(child, covered)
        assert result is parent_mask
        assert np.array_equal(parent[:side, :side], values)
        assert np.array_equal(parent_mask[:side, :side], right_mask)


@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<f4"])
@pytest.mark.parametrize("half", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_only_its_own_quadrant_is_written(dtype: str, half: tuple[int, int]) -> None:
    child, parent = noise(1, (SIZE, SIZE), dtype), noise(2, (SIZE, SIZE), dtype)
    before = parent.copy()
    child_mask = np.ones(child.shape, np.bool_) if dtype != "<f4" else np.isfinite(child)
    values, _ = mosaic_reference.reduce(np.where(child_mask, child, 0).astype(dtype), child_mask)
    reduce_into(child, None, parent, None, *half)
    part = slice(half[0] * 8, half[0] * 8 + 8), slice(half[1] * 8, half[1] * 8 + 8)
    assert parent[part].tobytes() == values.tobytes()
    rest = np.ones(parent.shape, bool)
    rest[part] = False
    assert parent[rest].tobytes() == before[rest].tobytes()


@pytest.mark.parametrize("dtype", ["|u1", "<u2"])
def test_a_full_child_and_a_mask_of_ones_are_the_same(dtype: str) -> None:
    child = noise(3, (SIZE, SIZE), dtype)
    plain, masked = np.zeros_like(child), np.zeros_like(child)
    reduce_into(child, None, plain, None, 1, 0)
    reduce_into(child, np.ones(child.shape, np.bool_), masked, np.zeros(child.shape, np.bool_), 1, 0)
    assert np.array_equal(plain, masked)


def test_masks_are_made_only_where_something_is_uncovered() -> None:
    child = noise(4, (SIZE, SIZE))
    assert reduce_into(child, None, child.copy(), None, 0, 0) is None
    some = np.zeros(child.shape, np.bool_)
    some[3, 3] = True
    mask = reduce_into(np.where(some, child, 0).astype("<u2"), some, child.copy(), None, 1, 1)
    assert mask is not None
    assert mask[:8].all()
    assert mask[8:, :8].all()
    assert np.argwhere(mask[8:, 8:]).tolist() == [[1, 1]]


def test_a_full_child_covers_its_quadrant() -> None:
    mask = reduce_into(noise(4, (SIZE, SIZE)), None, noise(5, (SIZE, SIZE)), np.zeros((SIZE, SIZE), np.bool_), 0, 1)
    assert mask is not None
    assert mask[:8, 8:].all()
    assert mask.sum() == 64


@pytest.mark.parametrize("dtype", ["|u1", "<f4"])
def test_a_child_that_is_gone_leaves_nothing(dtype: str) -> None:
    parent = np.ones((SIZE, SIZE), dtype)
    mask = clear_quadrant(parent, None, 0, 1)
    if dtype == "<f4":
        mask = float_coverage(parent)
    assert mask is not None
    assert not mask[:8, 8:].any()
    assert mask.sum() == 3 * 64
    assert parent[:8, 8:].tobytes() == blank_tile(np.dtype(dtype), SIZE)[:8, 8:].tobytes()


def test_the_mean_of_minus_zeros_is_minus_zero() -> None:
    parent = blank_tile(np.dtype("<f4"), SIZE)
    reduce_into(np.full((SIZE, SIZE), -0.0, np.float32), None, parent, None, 0, 0)
    assert np.signbit(parent[:8, :8]).all()


def test_huge_floats_do_not_overflow() -> None:
    parent = blank_tile(np.dtype("<f4"), SIZE)
    top = np.finfo(np.float32).max
    reduce_into(np.full((SIZE, SIZE), top, np.float32), None, parent, None, 0, 0)
    assert (parent[:8, :8] == top).all()


@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<f4"])
def test_many_families_at_once_are_each_child_by_child(dtype: str) -> None:
    """Every mixture of children that are full, masked, gone or unchanged, under every kind of parent."""
    rng = np.random.default_rng(5)
    families, expected = [], []

    def tile(seed: int, masked: bool) -> tuple[np.ndarray, np.ndarray | None]:
        pixels = noise(seed, (SIZE, SIZE), dtype)
        if dtype == "<f4":
            return np.where(rng.random(pixels.shape) < (0.4 if masked else 0), np.nan, pixels).astype("<f4"), None
        mask = rng.random(pixels.shape) < 0.6 if masked else None
        return pixels if mask is None else np.where(mask, pixels, 0).astype(dtype), mask

    states = ["unchanged", "full", "masked", "gone"]
    for number, (parent, *children) in enumerate(itertools.product(["none", "full", "masked"], *[states] * 4)):
        if all(child == "unchanged" for child in children):
            continue
        old, old_mask = (None, None) if parent == "none" else tile(number, parent == "masked")
        family = Family(old, old_mask, [])
        pixels = blank_tile(np.dtype(dtype), SIZE) if old is None else old.copy()
        mask = old_mask
        if old is None and dtype != "<f4":
            mask = np.zeros(pixels.shape, np.bool_)
        mask = None if mask is None else mask.copy()
        for at, state in enumerate(children):
            half = divmod(at, 2)
            if state == "gone":
                family.children.append(Child(*half, None, None))
                mask = clear_quadrant(pixels, mask, *half)
            elif state != "unchanged":
                child, child_mask = tile(10 * number + at, state == "masked")
                family.children.append(Child(*half, child, child_mask))
                mask = reduce_into(child, child_mask, pixels, mask, *half)
        families.append(family)
        expected.append((pixels, mask))
    reduce_families(families, np.dtype(dtype), SIZE)
    for family, (pixels, mask) in zip(families, expected, strict=True):
        if mask is not None and not mask.any():
            assert family.pixels is None or (family.mask is not None and not family.mask.any())
            assert family.pixels is None or not any(child.pixels is None for child in family.children)
            continue
        assert family.pixels is not None
        assert family.pixels.tobytes() == pixels.tobytes()
        if mask is None or mask.all():
            assert family.mask is None
        else:
            assert family.mask is not None
            assert np.array_equal(family.mask, mask)
