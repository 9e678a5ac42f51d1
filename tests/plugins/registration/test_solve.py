"""All positions from all shifts."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilecast_plugins.registration.solve import Edges, solve, without


def grid(rows: int, cols: int, seed: int, jitter_px: int = 4) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Nominal and true positions, and which are neighbours."""
    nominal = np.array([[900 * i, 900 * j] for i in range(rows) for j in range(cols)])
    true = nominal + np.random.default_rng(seed).integers(-jitter_px, jitter_px + 1, nominal.shape)
    pairs = [(n, n + 1) for n in range(rows * cols) if (n + 1) % cols]
    return nominal, true, pairs + [(n, n + cols) for n in range(rows * cols - cols)]


def edges_of(true: np.ndarray, pairs: list[tuple[int, int]]) -> Edges:
    return Edges.of([(i, j, *(true[j] - true[i]), 50.0, 0.9) for i, j in pairs])


def errors(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    off = found - true
    return np.asarray(np.abs(off - np.median(off, axis=0)).max(axis=1))


@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 1000))
def test_whole_shifts_that_agree_are_met_exactly(rows: int, cols: int, seed: int) -> None:
    nominal, true, pairs = grid(rows, cols, seed)
    for method in ("lsq", "tree"):
        found = solve(nominal, range(len(nominal)), edges_of(true, pairs), method=method)
        assert not np.ptp(found.positions - true, axis=0).any()
        assert found.n_components == 1
        assert not found.left_px.any()


@given(st.integers(3, 6), st.integers(3, 6), st.integers(0, 1000))
def test_the_order_of_the_frames_does_not_matter(rows: int, cols: int, seed: int) -> None:
    nominal, true, pairs = grid(rows, cols, seed)
    order = np.random.default_rng(seed).permutation(len(nominal))
    back = np.argsort(order)
    edges = edges_of(true, pairs)
    first = solve(nominal, range(len(nominal)), edges)
    turned = Edges(back[edges.pairs], edges.shifts, edges.quality, edges.ncc)
    second = solve(nominal[order], order, turned)
    np.testing.assert_array_equal(first.positions, second.positions[back])


@settings(max_examples=25)
@given(st.integers(0, 1000))
def test_shifts_that_the_others_contradict_are_left_out(seed: int) -> None:
    nominal, true, pairs = grid(6, 6, seed)
    edges = edges_of(true, pairs)
    rng = np.random.default_rng(seed)
    # One in twelve, no two of them at one frame: more could not be told from the truth.
    wrong: list[int] = []
    for number in rng.permutation(len(pairs)):
        if len(wrong) < len(pairs) // 12 and not {n for w in wrong for n in pairs[w]} & set(pairs[number]):
            wrong.append(int(number))
    edges.shifts[wrong] += rng.choice([-1, 1], (len(wrong), 2)) * rng.integers(25, 60, (len(wrong), 2))
    found = solve(nominal, range(len(nominal)), edges)
    assert errors(found.positions, true).max() <= 1
    assert not found.used[wrong].any()
    assert found.used.sum() >= len(pairs) - len(wrong) - 2


def test_groups_lie_where_the_stage_has_them_and_single_frames_where_the_model_says() -> None:
    nominal, true, pairs = grid(4, 8, 3)
    skewed = true + (nominal * 0.005).round().astype(int)
    apart = [(i, j) for i, j in pairs if not (i % 8 < 4 <= j % 8) and 31 not in (i, j)]
    found = solve(nominal, range(len(nominal)), edges_of(skewed, apart))
    assert found.n_components == 3
    left, right = nominal[:, 1] < 3600, nominal[:, 1] >= 3600
    right[31] = False
    for group in (left, right):
        assert not np.ptp((found.positions - skewed)[group], axis=0).any()
    # What the model knows of the skew places the groups against each other, and the frame that is alone.
    between = (found.positions - skewed)[right][0] - (found.positions - skewed)[left][0]
    assert np.abs(between).max() <= 5
    assert np.abs((found.positions - skewed)[31] - (found.positions - skewed)[right][0]).max() <= 8


def test_one_frame_far_off_does_not_carry_the_others_along() -> None:
    nominal, true, pairs = grid(5, 5, 0, jitter_px=0)
    nominal[12] += 400
    found = solve(nominal, range(25), edges_of(true, pairs))
    np.testing.assert_array_equal(found.positions, true)


def test_a_fixed_frame_lies_where_the_stage_says() -> None:
    nominal, true, pairs = grid(4, 4, 1)
    found = solve(nominal, range(16), edges_of(true, pairs), fixed=5)
    assert found.positions[5].tolist() == nominal[5].tolist()
    assert not np.ptp(found.positions - true, axis=0).any()


def test_shifts_of_low_quality_take_no_part() -> None:
    nominal, true, pairs = grid(3, 3, 2)
    edges = edges_of(true, pairs)
    edges.quality[:] = 20
    edges.quality[0] = 5
    edges.shifts[0] += 100
    assert solve(nominal, range(9), edges, min_quality=8).used.sum() == len(pairs) - 1
    assert not solve(nominal, range(9), edges, min_quality=30).used.any()
    np.testing.assert_array_equal(solve(nominal, range(9), edges, min_quality=30).positions, nominal)


def test_the_tree_takes_the_best_shifts() -> None:
    nominal, true, pairs = grid(2, 2, 0)
    edges = edges_of(true, pairs)
    edges.quality[:] = [50, 40, 30, 20]
    edges.shifts[3] += 9
    found = solve(nominal, range(4), edges, method="tree")
    assert found.used.tolist() == [True, True, True, False]
    assert errors(found.positions, true).max() == 0


def test_the_fraction_that_all_have_in_common_is_taken_off_before_rounding() -> None:
    nominal = np.array([[0.5, 0.5], [0.5, 90.5], [0.5, 180.5]])
    found = solve(nominal, range(3), Edges.of([(0, 1, 0, 91, 50, 0.9), (1, 2, 0, 91, 50, 0.9)]))
    assert np.diff(found.positions[:, 1]).tolist() == [91, 91]


def test_nothing_at_all() -> None:
    found = solve(np.empty((0, 2)), [], Edges.of([]))
    assert found.positions.shape == (0, 2)
    alone = solve(np.array([[3, 4]]), [0], Edges.of([]))
    assert alone.positions.tolist() == [[3, 4]]
    assert alone.n_components == 1


def test_frames_that_are_left_out_have_no_edges() -> None:
    _, true, pairs = grid(3, 3, 0)
    assert not (without(edges_of(true, pairs), [4]).pairs == 4).any()
    assert len(without(edges_of(true, pairs), [4])) == len(pairs) - 4


def test_ten_thousand_frames_are_solved_in_seconds() -> None:
    nominal, true, pairs = grid(100, 100, 0)
    edges = edges_of(true, pairs)
    edges.shifts[::97] += 25  # so that outliers must be found, too
    began = time.process_time()
    found = solve(nominal, range(len(nominal)), edges)
    took_s = time.process_time() - began
    assert errors(found.positions, true).max() <= 1
    assert not found.used[::97].any()
    assert took_s < 5, f"{took_s:.1f} s of processor time"
    again = solve(nominal, range(len(nominal)), edges)
    np.testing.assert_array_equal(found.positions, again.positions)
    np.testing.assert_array_equal(found.exact, again.exact)
    assert found.model.as_dict() == again.model.as_dict()


def test_shifts_of_half_pixels_end_between() -> None:
    # As a real stage has it: the errors of rounding do not add up along a row.
    rng = np.random.default_rng(0)
    nominal, _, pairs = grid(10, 10, 0)
    true = nominal + rng.normal(0, 3, nominal.shape)
    rounded = Edges.of([(i, j, *np.rint(true[j] - true[i]), 50.0, 0.9) for i, j in pairs])
    found = solve(nominal, range(100), rounded)
    assert errors(found.exact, true).max() < 1.2
    assert found.left_px.max() == pytest.approx(1, abs=1)
