"""The mosaic, from scratch, the slow and obvious way: what every faster way must equal, bit for bit.

Written from the design's words alone: whole planes as one array each, no tiles until the very end, nothing kept between
two calls, and nothing imported from the project. Coordinates are shifted by a multiple of the largest tile, so that
halving a shifted array halves the true one.

    value of a pixel   feather, mean: (Σ w·v + Σ w div 2) div Σ w     float: float32(Σ w·v / Σ w), in journal order
                       max, min, newest, nearest: the value of one frame
    upper levels       mean of the covered pixels among four, ties to even; covered if any is
    uncovered          0, or NaN in float; a float pixel that is not finite is not covered
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
#: (t, c, z)
Plane = tuple[int, int, int]
#: (level, row, col)
Key = tuple[int, int, int]
#: (first row, first column, last row, last column)
Box = tuple[int, int, int, int]
#: Pixels and coverage of each tile that has a covered pixel.
Mosaic = dict[tuple[Plane, Key], tuple[Array, Array]]


@dataclass(frozen=True, eq=False)
class Frame:
    """A placed frame: its number and view, its place in the journal, its plane, its upper left pixel, its pixels."""

    number: int
    view: int
    index: int
    plane: Plane
    row: int
    col: int
    pixels: Array


def mosaic(
    frames: Sequence[Frame], mode: str, dtype: str, tile_size: int, feather_px: int = 100, left: Sequence[Box] = ()
) -> Mosaic:
    """All tiles, of all planes and levels, that these frames make; `left` is where frames used to lie."""
    if not frames:
        return {}
    levels = level_count([*left, *map(box_of, frames)], tile_size)
    tiles: Mosaic = {}
    for plane in sorted({frame.plane for frame in frames}):
        its_frames = [frame for frame in frames if frame.plane == plane]
        top_tile = tile_size * 2 ** (levels - 1)
        row0 = math.floor(min(frame.row for frame in its_frames) / top_tile) * top_tile
        col0 = math.floor(min(frame.col for frame in its_frames) / top_tile) * top_tile
        row1 = math.ceil(max(frame.row + frame.pixels.shape[0] for frame in its_frames) / top_tile) * top_tile
        col1 = math.ceil(max(frame.col + frame.pixels.shape[1] for frame in its_frames) / top_tile) * top_tile
        shape = row1 - row0, col1 - col0
        values, covered = blend(its_frames, mode, dtype, shape, row0, col0, feather_px)
        for level in range(levels):
            first_row, first_col = row0 // 2**level // tile_size, col0 // 2**level // tile_size
            for i in range(values.shape[0] // tile_size):
                for j in range(values.shape[1] // tile_size):
                    part = (
                        slice(i * tile_size, (i + 1) * tile_size),
                        slice(j * tile_size, (j + 1) * tile_size),
                    )
                    if covered[part].any():
                        key = (level, first_row + i, first_col + j)
                        tiles[plane, key] = values[part].copy(), covered[part].copy()
            if level < levels - 1:
                values, covered = reduce(values, covered)
    return tiles


def box_of(frame: Frame) -> Box:
    """The first and the last row and column of a frame."""
    return frame.row, frame.col, frame.row + frame.pixels.shape[0] - 1, frame.col + frame.pixels.shape[1] - 1


def level_count(boxes: Sequence[Box], tile_size: int) -> int:
    """One more than the first level on which the box around all these boxes touches at most 2 × 2 tiles.

    Boxes of all planes, and also of places that frames have left: a mosaic never loses a level.
    """
    top, left = min(box[0] for box in boxes), min(box[1] for box in boxes)
    bottom, right = max(box[2] for box in boxes), max(box[3] for box in boxes)
    level = 0
    while True:
        size = tile_size * 2**level
        tall = math.floor(bottom / size) - math.floor(top / size) + 1
        wide = math.floor(right / size) - math.floor(left / size) + 1
        if tall <= 2 and wide <= 2:
            return level + 1
        level += 1


@lru_cache(maxsize=64)
def weights(height: int, width: int, feather_px: int = 100) -> Array:
    """w = max(1, floor(255 · r_row · r_col + 0.5)), pixel by pixel."""

    def r(size: int) -> Array:
        n = max(1, min(feather_px, size // 4))
        return np.array([min(1.0, (min(i, size - 1 - i) + 1) / (n + 1)) for i in range(size)])

    product = 255 * r(height)[:, None] * r(width)[None, :]
    return np.maximum(1, np.floor(product + 0.5).astype(np.int64))


def blend(
    frames: Sequence[Frame], mode: str, dtype: str, shape: tuple[int, int], row0: int, col0: int, feather_px: int
) -> tuple[Array, Array]:
    """One plane at full resolution: its values and its coverage."""
    is_float = np.dtype(dtype).kind == "f"
    covered = np.zeros(shape, bool)
    values = np.full(shape, np.nan, dtype) if is_float else np.zeros(shape, dtype)
    sum_type = np.float64 if is_float else np.int64
    sum_wv, sum_w = np.zeros(shape, sum_type), np.zeros(shape, sum_type)
    nearest = np.zeros(shape, np.int64)

    order = {"nearest": lambda f: (f.number, f.view)}.get(mode, lambda f: (f.index, f.view))
    for frame in sorted(frames, key=order):
        height, width = frame.pixels.shape
        part = (slice(frame.row - row0, frame.row - row0 + height), slice(frame.col - col0, frame.col - col0 + width))
        new = frame.pixels
        valid = np.isfinite(new)
        fresh = valid & ~covered[part]
        again = valid & covered[part]
        old = values[part]
        if mode in ("feather", "mean"):
            w = weights(height, width, feather_px) if mode == "feather" else np.ones((height, width), np.int64)
            product = np.where(valid, w * np.where(valid, new, 0).astype(sum_type), 0)
            sum_wv[part] = np.where(fresh, product, np.where(again, sum_wv[part] + product, sum_wv[part]))
            sum_w[part] += np.where(valid, w, 0)
        elif mode == "max":
            larger = (new > old) | ((new == old) & np.signbit(old) & ~np.signbit(new))
            values[part] = np.where(fresh | (again & larger), new, old)
        elif mode == "min":
            smaller = (new < old) | ((new == old) & np.signbit(new) & ~np.signbit(old))
            values[part] = np.where(fresh | (again & smaller), new, old)
        elif mode == "newest":
            values[part] = np.where(valid, new, old)
        elif mode == "nearest":
            # Doubled coordinates from the centre: those of 4 pixels are -3, -1, 1, 3.
            dy = np.arange(-(height - 1), height, 2)[:, None]
            dx = np.arange(-(width - 1), width, 2)[None, :]
            distance = dy * dy + dx * dx
            take = fresh | (again & (distance <= nearest[part]))
            values[part] = np.where(take, new, old)
            nearest[part] = np.where(take, distance, nearest[part])
        else:
            raise ValueError(mode)
        covered[part] |= valid
    if mode in ("feather", "mean"):
        if is_float:
            values[covered] = (sum_wv[covered] / sum_w[covered]).astype(np.float32)
        else:
            values[covered] = (sum_wv[covered] + sum_w[covered] // 2) // sum_w[covered]
    return values, covered


def reduce(values: Array, covered: Array) -> tuple[Array, Array]:
    """Half the size: the mean of the covered pixels of each 2 × 2, ties to even; covered if any is."""
    is_float = values.dtype.kind == "f"
    half = (values.shape[0] // 2, values.shape[1] // 2)
    total = np.zeros(half, np.float64 if is_float else np.int64)
    number = np.zeros(half, np.int64)
    for i in (0, 1):
        for j in (0, 1):
            value, valid = values[i::2, j::2].astype(total.dtype), covered[i::2, j::2]
            total = np.where(valid, np.where(number == 0, value, total + value), total)
            number += valid
    result_covered = number > 0
    mean = total / np.maximum(number, 1)
    if is_float:
        result = np.where(result_covered, mean, np.nan).astype(np.float32)
    else:
        result = np.rint(mean).astype(values.dtype)  # exact: a mean of 1, 2 or 4 is, and that of 3 is never a tie
    return result, result_covered


def differences(found: Mosaic, expected: Mosaic) -> list[str]:
    """How two mosaics differ, in words; empty if they are the same, bit for bit."""
    problems = [f"missing tile {address}" for address in sorted(expected.keys() - found.keys())]
    problems += [f"tile {address} should not exist" for address in sorted(found.keys() - expected.keys())]
    for address in sorted(found.keys() & expected.keys()):
        (pixels, covered), (right_pixels, right_covered) = found[address], expected[address]
        if pixels.dtype != right_pixels.dtype or pixels.shape != right_pixels.shape:
            problems.append(f"tile {address} is {pixels.shape} of {pixels.dtype}")
            continue
        if not np.array_equal(covered, right_covered):
            problems.append(f"tile {address}: coverage differs in {np.sum(covered != right_covered)} pixels")
        bits = f"u{pixels.dtype.itemsize}"
        wrong = np.argwhere(pixels.view(bits) != right_pixels.view(bits))
        if len(wrong):
            i, j = wrong[0]
            problems.append(
                f"tile {address}: {len(wrong)} pixels differ, first at ({i}, {j}): "
                f"{pixels[i, j]} instead of {right_pixels[i, j]}"
            )
    return problems
