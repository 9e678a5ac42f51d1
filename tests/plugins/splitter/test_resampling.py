"""Sampling between pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecast_plugins.splitter.resampling import Grid, Interpolation

SHAPE = (24, 30)
KINDS: list[Interpolation] = ["bilinear", "cubic"]
transforms = st.tuples(
    st.floats(-0.05, 0.05), st.floats(-0.05, 0.05), st.floats(-0.05, 0.05), st.floats(-0.05, 0.05),
    st.floats(-3, 3), st.floats(-3, 3),
)  # fmt: skip


def grid_of(numbers: tuple[float, ...], kind: Interpolation) -> Grid:
    matrix = np.eye(2) + np.array(numbers[:4]).reshape(2, 2)
    return Grid.of(SHAPE, matrix, np.array(numbers[4:]), kind)


@pytest.mark.parametrize("kind", KINDS)
@given(numbers=transforms, plane=st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.floats(-99, 99)))
def test_a_plane_stays_a_plane(kind: Interpolation, numbers: tuple[float, ...], plane: tuple[float, ...]) -> None:
    grid = grid_of(numbers, kind)
    rows, cols = np.indices(SHAPE).astype(float)
    image = plane[0] * rows + plane[1] * cols + plane[2]
    at = np.stack(np.indices(grid.shape), -1) + np.array([grid.row0, grid.col0])
    places = at @ grid.matrix.T + grid.shift_px
    expected = plane[0] * places[..., 0] + plane[1] * places[..., 1] + plane[2]
    np.testing.assert_allclose(grid.sample(image), expected, atol=1e-9 * (1 + np.abs(image).max()))


@given(numbers=transforms)
def test_cubic_keeps_parabolas(numbers: tuple[float, ...]) -> None:
    grid = grid_of(numbers, "cubic")
    rows, cols = np.indices(SHAPE).astype(float)
    at = np.stack(np.indices(grid.shape), -1) + np.array([grid.row0, grid.col0])
    places = at @ grid.matrix.T + grid.shift_px
    found = grid.sample(rows**2 - 2 * cols**2)
    np.testing.assert_allclose(found, places[..., 0] ** 2 - 2 * places[..., 1] ** 2, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@given(shift=st.tuples(st.integers(-5, 5), st.integers(-5, 5)), seed=st.integers(0, 99))
def test_whole_pixels_are_moved_exactly(kind: Interpolation, shift: tuple[int, int], seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 65536, SHAPE).astype(float)
    grid = Grid.of(SHAPE, np.eye(2), np.array(shift, float), kind)
    row, col = grid.row0 + shift[0], grid.col0 + shift[1]
    np.testing.assert_array_equal(grid.sample(image), image[row : row + grid.shape[0], col : col + grid.shape[1]])
    lost = 0 if kind == "bilinear" else 2
    assert grid.shape[0] >= SHAPE[0] - abs(shift[0]) - lost
    assert grid.shape[1] >= SHAPE[1] - abs(shift[1]) - lost


@given(numbers=transforms, seed=st.integers(0, 99))
def test_bilinear_makes_up_no_value(numbers: tuple[float, ...], seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 65536, SHAPE).astype(float)
    found = grid_of(numbers, "bilinear").sample(image)
    assert found.min() >= image.min() - 1e-6
    assert found.max() <= image.max() + 1e-6


def test_a_transform_that_leaves_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="share less than half"):
        Grid.of(SHAPE, np.eye(2), np.array([0.0, 20.0]), "bilinear")
