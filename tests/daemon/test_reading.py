"""The door for programs that show runs: reductions equal the daemon's, readers are shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from reference.mosaic_reference import reduce
from tilecast.reading import StoreError, list_runs, open_run, reduce_tiles, shared_readers

SIZE = 16


def test_there_is_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    assert list_runs(tmp_path) == []
    with pytest.raises(StoreError):
        open_run(tmp_path, "0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55")
    with pytest.raises(StoreError):
        open_run(tmp_path, "../elsewhere")
    assert len(shared_readers(tmp_path)) == 0


@given(
    present=st.lists(st.booleans(), min_size=4, max_size=4),
    dtype=st.sampled_from(["|u1", "<u2", "<f4"]),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_four_tiles_are_reduced_as_the_reference_does(
    present: list[bool], dtype: str, density: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 200, (2 * SIZE, 2 * SIZE)).astype(dtype)
    covered = rng.random(values.shape) < density
    nothing = np.nan if dtype == "<f4" else 0
    children: list[tuple[NDArray[Any], NDArray[np.bool_] | None] | None] = []
    for number, there in enumerate(present):
        row, col = (SIZE * part for part in divmod(number, 2))
        part = np.s_[row : row + SIZE, col : col + SIZE]
        if not there:
            covered[part] = False
            children.append(None)
            continue
        values[part] = np.where(covered[part], values[part], nothing)
        mask = covered[part].copy()
        children.append((values[part].copy(), None if mask.all() else mask))
    values[~covered] = nothing
    pixels, coverage = reduce_tiles(children, np.dtype(dtype), SIZE)
    expected, expected_covered = reduce(values, covered)
    found = np.ones((SIZE, SIZE), np.bool_) if coverage is None else coverage
    np.testing.assert_array_equal(found, expected_covered)
    np.testing.assert_array_equal(pixels[found], expected[expected_covered])
