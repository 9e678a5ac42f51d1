"""Self-describing frames: found wherever they were cut, and not where they are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecast.testing.frames import STAMP, describe, read


@given(
    frame=st.integers(0, (1 << 24) - 1),
    top=st.integers(0, 80),
    left=st.integers(0, 80),
    dtype=st.sampled_from(["|u1", "<u2", "<f4"]),
)
def test_any_piece_tells_where_it_was_cut(frame: int, top: int, left: int, dtype: str) -> None:
    pixels = describe(frame, (100, 120), dtype)
    assert pixels.dtype == np.dtype(dtype)
    piece = pixels[top : top + 2 * STAMP - 1, left : left + 2 * STAMP - 1]
    (sighting,) = read(piece)
    assert (sighting.frame, sighting.corner) == (frame, (-top, -left))


def test_a_mosaic_of_frames_is_read() -> None:
    mosaic = np.zeros((200, 300), "<u2")
    mosaic[3:103, 5:125] = describe(7, (100, 120))
    mosaic[90:190, 111:231] = describe(8, (100, 120))
    seen = {(sighting.frame, sighting.corner) for sighting in read(mosaic)}
    assert seen == {(7, (3, 5)), (8, (90, 111))}
    assert sum(sighting.frame == 8 for sighting in read(mosaic)) == (100 // STAMP) * (120 // STAMP)


def test_nothing_is_read_where_frames_are_mixed_or_absent() -> None:
    mixed = describe(7, (64, 64)) // 2 + describe(8, (64, 64)) // 2
    assert not any(sighting.frame not in (7, 8) for sighting in read(mixed))
    assert read(np.random.default_rng(0).choice(np.array([1000, 50000], "<u2"), (400, 400))) == []
    assert read(np.zeros((4, 100), "<u2")) == []


@pytest.mark.parametrize("shape", [(5, 3), (8, 8), (9, 31), (183, 245)])
def test_any_shape(shape: tuple[int, int]) -> None:
    assert describe(3, shape).shape == shape
    assert len(read(describe(3, shape))) == (shape[0] // STAMP) * (shape[1] // STAMP)
