"""What a stage does to all frames alike."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecast_plugins.registration.model import StageModel, fit

GRID = np.array([[900.0 * row, 900.0 * (col if row % 2 == 0 else 9 - col)] for row in range(8) for col in range(10)])
INDEX = np.arange(len(GRID))
PAIRS = np.array(
    [
        (i, j)
        for i in range(len(GRID))
        for j in range(i + 1, len(GRID))
        if sorted(np.abs(GRID[i] - GRID[j]).tolist()) == [0, 900]
    ]
)


def shifts_of(matrix: np.ndarray, scatter_px: float, seed: int) -> np.ndarray:
    true = GRID + np.column_stack([GRID, INDEX]) @ matrix.T
    true += np.random.default_rng(seed).normal(0, scatter_px, true.shape)
    return np.asarray(true[PAIRS[:, 1]] - true[PAIRS[:, 0]])


@given(
    st.lists(st.floats(-0.015, 0.015), min_size=4, max_size=4),
    st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    st.integers(0, 99),
)
def test_an_affine_map_with_drift_is_found_also_if_some_shifts_are_wrong(
    affine: list[float], drift: tuple[float, float], seed: int
) -> None:
    matrix = np.array([[affine[0], affine[1], drift[0]], [affine[2], affine[3], drift[1]]])
    shifts = shifts_of(matrix, 1.0, seed)
    wrong = np.random.default_rng(seed + 1).choice(len(shifts), len(shifts) // 12, replace=False)
    shifts[wrong] += np.random.default_rng(seed + 2).choice([-30, 30], (len(wrong), 2))
    found = fit(GRID, INDEX, PAIRS, shifts, np.ones(len(PAIRS)))
    # What matters is where it says that neighbours lie.
    change = np.column_stack([GRID, INDEX])[PAIRS[:, 1]] - np.column_stack([GRID, INDEX])[PAIRS[:, 0]]
    assert np.abs(change @ (found.matrix - matrix).T).max() < 2.5


def test_without_shifts_the_stage_is_believed() -> None:
    found = fit(GRID, INDEX, np.empty((0, 2), int), np.empty((0, 2)), np.empty(0))
    assert found.n_edges == 0
    assert not found.correction(GRID, INDEX).any()


def test_few_shifts_do_not_make_wild_models() -> None:
    found = fit(GRID, INDEX, PAIRS[:1], shifts_of(np.zeros((2, 3)), 0, 0)[:1] + 3, np.ones(1))
    neighbours = [abs(b - a).max() for a, b in pairwise(found.correction(GRID, INDEX))]
    assert max(neighbours) < 10


def test_what_is_kept_of_it_is_plain() -> None:
    assert StageModel().as_dict() == {"matrix": [[0.0] * 3] * 2, "scatter_px": 0.0, "n_edges": 0}
    found = fit(GRID, INDEX, PAIRS, shifts_of(np.zeros((2, 3)), 2.0, 0), np.ones(len(PAIRS)))
    assert found.scatter_px == pytest.approx(2.0 * 2**0.5 * 1.06, rel=0.3)  # the median of the longer of two axes
