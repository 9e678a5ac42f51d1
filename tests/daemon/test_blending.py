"""Weights, windows and each blend mode on a single tile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reference import mosaic_reference
from reference.live_mosaic import noise, placed
from tilecast import kernels
from tilecast.blending import (
    BLEND_MODES,
    MAX_FRAME,
    Blender,
    Job,
    Placed,
    State,
    feather_weights,
    make_blender,
    paste,
    window_of,
)
from tilecast.geometry import Placement, PlaneKey, TileKey
from tilecast.reduction import blank_tile

SIZE = 16
ORIGIN = TileKey(0, 0, 0)


class TestWeights:
    @pytest.mark.parametrize("shape", [(1, 1), (3, 4), (4, 3), (8, 8), (5, 7), (37, 64), (401, 12), (420, 410)])
    def test_they_are_those_of_the_definition(self, shape: tuple[int, int]) -> None:
        assert np.array_equal(feather_weights(shape), mosaic_reference.weights(*shape))

    def test_they_never_vanish_and_are_full_inside(self) -> None:
        weights = feather_weights((2048, 1024))
        assert weights.min() == 1
        assert (weights[100:-100, 100:-100] == 255).all()
        assert weights[99, 500] < 255

    def test_the_ramp_is_an_option(self) -> None:
        assert np.array_equal(feather_weights((60, 80), 5), mosaic_reference.weights(60, 80, 5))

    def test_they_do_not_depend_on_the_way_one_looks(self) -> None:
        weights = feather_weights((90, 57))
        assert np.array_equal(weights, weights[::-1])
        assert np.array_equal(weights, weights[:, ::-1])
        assert np.array_equal(weights.T, feather_weights((57, 90)))


def test_a_window_is_where_frame_and_tile_meet() -> None:
    window = window_of(placed(0, -5, 20, (30, 10)), TileKey(0, 0, 1), SIZE)
    assert window == (0, 16, 4, 14, 5, -4)
    tile, frame = np.zeros((SIZE, SIZE), np.uint16), noise(0, (30, 10))
    paste(tile, frame, window)
    assert np.array_equal(tile[:, 4:14], frame[5:21])
    assert not tile[:, :4].any()
    assert not tile[:, 14:].any()


def blended(
    mode: str, dtype: str, frames: list[tuple[Placement, NDArray[Any]]], *, in_place: bool = False
) -> NDArray[Any]:
    """The tile at the origin under these frames, by the blender alone."""
    blender: Blender = make_blender(mode, np.dtype(dtype))
    state: State | None = None
    tile = blank_tile(np.dtype(dtype), SIZE)
    mask = np.zeros((SIZE, SIZE), np.bool_)
    for i, (placement, pixels) in enumerate(frames):
        here = Placed(placement, window_of(placement, ORIGIN, SIZE))
        if i == 0:
            paste(tile, pixels, here.window)
        else:
            solo = Placed(frames[0][0], window_of(frames[0][0], ORIGIN, SIZE)) if i == 1 else None
            old, tile = tile, tile if in_place else np.empty_like(tile)
            state = blender.add(state, solo, old, tile, mask, kernels.read_only(pixels), here)
            assert (state is not None) == blender.needs_state
        mask[here.window.in_tile] = True
    return tile


def expected(mode: str, dtype: str, frames: list[tuple[Placement, NDArray[Any]]]) -> NDArray[Any]:
    placed_frames = [
        mosaic_reference.Frame(each.frame, each.view, each.index, (0, 0, 0), each.row, each.col, pixels)
        for each, pixels in frames
    ]
    tiles = mosaic_reference.mosaic(placed_frames, mode, dtype, SIZE)
    return tiles[(0, 0, 0), (0, 0, 0)][0]


@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<f4"])
@pytest.mark.parametrize("mode", BLEND_MODES)
class TestModes:
    PLACES = ((0, 0), (-3, 5), (4, -2), (-6, -6), (2, 9))

    def frames(self, dtype: str) -> list[tuple[Placement, NDArray[Any]]]:
        shape = (14, 12)
        return [(placed(i, row, col, shape), noise(i, shape, dtype)) for i, (row, col) in enumerate(self.PLACES)]

    @pytest.mark.parametrize("in_place", [True, False])
    def test_a_tile_is_what_the_reference_says(self, mode: str, dtype: str, in_place: bool) -> None:
        frames = self.frames(dtype)
        for count in range(1, len(frames) + 1):
            tile = blended(mode, dtype, frames[:count], in_place=in_place)
            assert tile.tobytes() == expected(mode, dtype, frames[:count]).tobytes()

    def test_one_frame_alone_is_unchanged(self, mode: str, dtype: str) -> None:
        frame = noise(9, (SIZE, SIZE), dtype)
        tile = blended(mode, dtype, [(placed(0, 0, 0, (SIZE, SIZE)), frame)])
        valid = np.isfinite(frame)
        assert tile[valid].tobytes() == frame[valid].tobytes()
        assert not np.isfinite(tile[~valid]).any()

    def test_order_matters_only_where_it_is_said_to(self, mode: str, dtype: str) -> None:
        shape = (60, 60)
        frames = [(placed(i, -20 - i, -15 + i, shape), noise(i, shape, dtype)) for i in range(4)]
        forwards, backwards = blended(mode, dtype, frames), blended(mode, dtype, frames[::-1])
        if make_blender(mode, np.dtype(dtype)).ordered:
            assert forwards.tobytes() != backwards.tobytes()
        else:
            assert forwards.tobytes() == backwards.tobytes()


def test_sums_of_floats_and_newest_are_the_ordered_ones() -> None:
    ordered = {
        (mode, dtype) for mode in BLEND_MODES for dtype in ("|u1", "<f4") if make_blender(mode, np.dtype(dtype)).ordered
    }
    assert ordered == {("feather", "<f4"), ("mean", "<f4"), ("newest", "|u1"), ("newest", "<f4")}


def test_nearest_settles_ties_by_frame_then_view() -> None:
    shape = (SIZE, SIZE)
    same = [
        (placed(5, 0, 0, shape, index=0), np.full(shape, 1, np.uint16)),
        (placed(7, 0, 0, shape, index=1, view=1), np.full(shape, 2, np.uint16)),
        (placed(7, 0, 0, shape, index=1), np.full(shape, 3, np.uint16)),
        (placed(6, 0, 0, shape, index=2), np.full(shape, 4, np.uint16)),
    ]
    assert (blended("nearest", "<u2", same) == 2).all()


def test_nearest_draws_the_line_half_way() -> None:
    left = (placed(0, 0, 0, (16, 8)), np.full((16, 8), 1, np.uint16))
    right = (placed(1, 0, 4, (16, 8)), np.full((16, 8), 2, np.uint16))
    assert blended("nearest", "<u2", [left, right])[0, :12].tolist() == [1] * 6 + [2] * 6


def test_nearest_refuses_numbers_it_cannot_rank() -> None:
    blender = make_blender("nearest", np.dtype("<u2"))
    blender.check(placed(MAX_FRAME, 0, 0, (4, 4), view=255))
    for frame, view in ((MAX_FRAME + 1, 0), (0, 256)):
        with pytest.raises(ValueError, match="nearest"):
            blender.check(placed(frame, 0, 0, (4, 4), view=view))


def test_larger_and_smaller_zeros() -> None:
    shape = (SIZE, SIZE)
    plus = (placed(0, 0, 0, shape), np.full(shape, 0.0, np.float32))
    minus = (placed(1, 0, 0, shape), np.full(shape, -0.0, np.float32))
    for frames in ([plus, minus], [minus, plus]):
        assert not np.signbit(blended("max", "<f4", frames)).any()
        assert np.signbit(blended("min", "<f4", frames)).all()


def test_minus_zero_survives_a_sum() -> None:
    shape = (SIZE, SIZE)
    frames = [(placed(i, 0, 0, shape), np.full(shape, -0.0, np.float32)) for i in range(2)]
    assert np.signbit(blended("feather", "<f4", frames)).all()


def test_weights_of_few_shapes_are_kept() -> None:
    blender = make_blender("feather", np.dtype("|u1"))
    tile, mask = noise(0, (SIZE, SIZE), "|u1"), None
    for size in range(8, 18):
        placement = placed(0, 0, 0, (size, size))
        here = Placed(placement, window_of(placement, ORIGIN, SIZE))
        blender.add(None, here, tile, tile, mask, kernels.read_only(noise(1, (size, size), "|u1")), here)
    assert blender.nbytes == sum(size**2 for size in range(14, 18))


def test_an_unknown_mode_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="feather"):
        make_blender("median", np.dtype("|u1"))


@pytest.mark.parametrize("mode", BLEND_MODES)
@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<f4"])
def test_many_tiles_at_once_are_each_tile_by_tile(mode: str, dtype: str) -> None:
    """Frames at random places over nine tiles, a few of them said to be the last: pixels and masks as one by one."""
    size, shape = 16, (24, 40)
    rng = np.random.default_rng(3)
    keys = [TileKey(0, row, col) for row in range(3) for col in range(3)]
    for _ in range(20):
        blender, single = make_blender(mode, np.dtype(dtype), 5), make_blender(mode, np.dtype(dtype), 5)
        is_float = dtype == "<f4"
        jobs: dict[TileKey, Job] = {}
        alone: dict[TileKey, list[Any]] = {}
        seen: dict[TileKey, list[Placement]] = {}
        for number in range(4):
            row, col = int(rng.integers(-12, 30)), int(rng.integers(-20, 30))
            placement = Placement(number, 0, PlaneKey(), row, col, *shape, "stage", number)
            frame = kernels.read_only(noise(int(rng.integers(1000)), shape, dtype))
            work = []
            for key in keys:
                if placement.rect.intersect(key.rect(size)).empty:
                    continue
                window, before = window_of(placement, key, size), seen.setdefault(key, [])
                solo = Placed(before[0], window_of(before[0], key, size)) if len(before) == 1 else None
                job = jobs.get(key)
                if job is None:
                    mask = None if is_float or window[:4] == (0, size, 0, size) else np.empty((size, size), np.bool_)
                    job = Job(window, None, np.empty((size, size), dtype), mask, None, None, False)
                    pixels = np.full((size, size), np.nan, dtype) if is_float else np.zeros((size, size), dtype)
                    covered = None if mask is None else np.zeros((size, size), np.bool_)
                    paste(pixels, frame, window)
                    alone[key] = [pixels, covered, None]
                else:
                    in_place = bool(rng.integers(2))
                    out = job.out if in_place else np.empty_like(job.out)
                    is_last = number == 3
                    job = Job(window, job.out, out, job.mask, job.state, solo, is_last)
                    pixels, covered, state = alone[key]
                    here = Placed(placement, window)
                    alone[key][2] = single.add(state, solo, pixels, pixels, covered, frame, here)
                if alone[key][1] is not None:
                    alone[key][1][window.in_tile] = True
                    if alone[key][1].all():
                        alone[key][1] = None
                jobs[key] = job
                work.append(job)
                before.append(placement)
            blender.blend(work, frame, placement)
        assert jobs
        for key, job in jobs.items():
            pixels, covered, _ = alone[key]
            assert job.out.tobytes() == pixels.tobytes()
            assert (job.mask is None) == (covered is None)
            assert covered is None or np.array_equal(job.mask, covered)
