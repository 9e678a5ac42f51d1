"""The compiled loops: exact division, and one compilation per kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from reference.live_mosaic import TINY, LiveMosaic, noise, placed
from reference.scans import SCANS
from tilecast import kernels
from tilecast.blending import BLEND_MODES

SHAPE = (128, 128)
WHOLE = (0, 128, 0, 128, 0, 0)


def extremes(seed: int, top_weight: int) -> tuple[Any, Any, Any, Any]:
    """Sums and weights after a frame, many exactly at a step of the quotient or one off; the frame and its weights."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 255, SHAPE, np.uint8, endpoint=True)
    weight = rng.integers(weights, top_weight, SHAPE, np.int64, endpoint=True)
    near_top = rng.random(SHAPE) < 0.2
    weight[near_top] = top_weight - rng.integers(0, 3, int(near_top.sum()))
    value = rng.integers(0, 65535, SHAPE, np.int64, endpoint=True)
    value[rng.random(SHAPE) < 0.2] = 65535
    # (S + W div 2) div W steps up where S + W div 2 is a multiple of W.
    total = np.clip(value * weight - weight // 2 + rng.integers(-1, 1, SHAPE, np.int64, True), 0, 65535 * weight)
    frame = np.minimum(total // weights, rng.choice([0, 255, 65535], SHAPE)).astype(np.uint16)
    return total, weight, frame, weights


@pytest.mark.parametrize("seed", range(20))
def test_the_narrow_quotient_is_exact(seed: int) -> None:
    total, weight, frame, weights = extremes(seed, 65535)
    product = frame.astype(np.int64) * weights
    s, w, tile = (total - product).astype(np.uint32), (weight - weights).astype(np.uint16), np.zeros(SHAPE, np.uint16)
    kernels.add_sum(s, w, tile, tile, kernels.read_only(frame), weights, *WHOLE)
    assert np.array_equal(s, total)
    assert np.array_equal(w, weight)
    assert np.array_equal(tile, (total + weight // 2) // weight)


@pytest.mark.parametrize("top_weight", [300, 65535, 2**32, 2**46])
def test_the_wide_quotient_is_exact(top_weight: int) -> None:
    for seed in range(5):
        total, weight, frame, weights = extremes(seed, top_weight)
        product = frame.astype(np.int64) * weights
        s, w, tile = (total - product).astype(np.uint64), (weight - weights).astype(np.uint64), np.zeros(SHAPE, "u2")
        kernels.add_wide_sum(s, w, tile, tile, kernels.read_only(frame), weights, *WHOLE)
        assert np.array_equal(s, total)
        assert np.array_equal(w, weight)
        assert np.array_equal(tile, (total + weight // 2) // weight)


def test_the_narrow_state_holds_its_visits_exactly() -> None:
    """257 visits of the brightest pixel at full weight, the most that fits."""
    s, w = np.zeros((2, 2), np.uint32), np.zeros((2, 2), np.uint16)
    tile = np.zeros((2, 2), np.uint16)
    frame = kernels.read_only(np.full((2, 2), 65535, np.uint16))
    for _ in range(kernels.MAX_NARROW_VISITS):
        kernels.add_sum(s, w, tile, tile, frame, np.full((2, 2), 255, np.uint8), 0, 2, 0, 2, 0, 0)
        assert (tile == 65535).all()
    assert (w == 65535).all()
    assert (s == 65535 * 65535).all()
    assert 65535 * 65535 + 65535 // 2 < 2**32


def test_frames_are_seen_read_only_and_aligned() -> None:
    raw = bytes(range(17))
    unaligned = np.frombuffer(raw, np.uint16, 8, offset=1)
    view = kernels.read_only(unaligned.reshape(2, 4))
    assert view.flags.aligned
    assert not view.flags.writeable
    assert np.array_equal(view.ravel(), unaligned)
    own = np.zeros((2, 2), np.uint16)
    assert kernels.read_only(own).base is own
    assert own.flags.writeable


def test_the_list_of_kernels_leaves_nothing_to_compile() -> None:
    """After the thunks of a run have been called, blending compiles no more: it would stall the first frames."""
    compiled = [value for value in vars(kernels).values() if hasattr(value, "signatures")]
    for dtype in ("|u1", "<u2", "<f4"):
        for mode in BLEND_MODES:
            for _, thunk in kernels.kernels_for(dtype, mode):
                thunk()

    def count() -> int:
        return sum(len(cast(Any, kernel).signatures) for kernel in compiled)

    before = count()
    assert before > 0
    shape, corners = SCANS["scattered"]
    for dtype in ("|u1", "<u2", "<f4"):
        for mode in BLEND_MODES:
            mosaic = LiveMosaic(dtype, mode, budget_bytes=TINY)
            for i, (row, col) in enumerate(corners[:6]):
                frame = np.frombuffer(noise(i, shape, dtype).tobytes(), dtype).reshape(shape)
                mosaic.add(placed(i, row, col, shape), frame)
                mosaic.flush()
    assert count() == before


def test_names_tell_kernels_apart() -> None:
    names = [name for name, _ in kernels.KERNELS]
    assert len(set(names)) == len(names)
    thunks: dict[str, Callable[[], None]] = dict(kernels.KERNELS)
    for dtype in ("|u1", "<u2", "<f4"):
        for mode in BLEND_MODES:
            assert {name for name, _ in kernels.kernels_for(dtype, mode)} <= thunks.keys()
