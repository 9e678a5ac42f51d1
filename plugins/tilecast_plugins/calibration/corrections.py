"""Corrects frames of one camera and channel: dark, flat field, gain of each pixel, hot pixels.

    corrected = (frame − dark) / gain · mean(flat) / flat,   then hot pixels from their neighbours

A hot pixel becomes the median of those of its eight neighbours that are not hot. Integer frames stay integers of their
type: rounded to the nearest, ties to even, clipped and counted. Every step is one float32 operation per pixel in a
fixed order, so that the same frame gives the same bits on every machine.

Examples
--------
>>> correct = corrector({"dark": 10.0, "gain": 2.0}, (2, 2), "|u1")
>>> image, low, high = correct(np.array([[8, 12], [30, 250]], np.uint8))
>>> image.tolist(), low, high
([[0, 1], [10, 120]], 1, 0)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tilecast.hookspecs import FrameStep

Value = float | NDArray[Any]
Correct = Callable[[NDArray[Any]], tuple[NDArray[Any], int, int]]

KINDS: Final = ("dark", "flat", "gain", "hot")
"""What a correction may consist of; `hot` is an image, above 0 where a pixel is hot."""

OTHERS: Final = "others"
"""In what is frozen: channels that are not named."""

_BLOCK_PIXELS: Final = 1 << 16
_MOST_HOT: Final = 0.05


def check(kind: str, value: Value) -> Value:
    """Check one part of a correction.

    Parameters
    ----------
    kind : {"dark", "flat", "gain", "hot"}
    value : float or ndarray

    Returns
    -------
    float or ndarray
        A number, float32, or, for hot pixels, bool.

    Raises
    ------
    ValueError
        If it cannot be used; the message says why.
    """
    if isinstance(value, int | float):
        if kind in ("flat", "hot"):
            raise ValueError(f"{kind} is an image, not a number: a {kind} of one value would change nothing")
        if not math.isfinite(value) or (kind == "gain" and value <= 0):
            raise ValueError(f"{kind} {value:g}: expected a finite number{' above 0' if kind == 'gain' else ''}")
        return float(value)
    if kind == "hot":
        hot = np.asarray(value > 0)
        if hot.mean() > _MOST_HOT:
            raise ValueError(
                f"{hot.mean():.0%} of the pixels are marked as hot, at most {_MOST_HOT:.0%} can be: it should be 0 "
                "where a pixel is good"
            )
        good = _neighbours(np.zeros(hot.shape, np.float32), hot)[1]
        if not good.any(axis=1).all():
            row, col = np.argwhere(hot)[int(np.argmin(good.any(axis=1)))]
            raise ValueError(f"the hot pixel at row {row}, column {col} has only hot neighbours: it cannot be mended")
        return hot
    with np.errstate(over="ignore"):
        image = np.array(value, np.float32, order="C")
    if not np.isfinite(image).all():
        raise ValueError("it has pixels that are not finite numbers: mend them first")
    if kind in ("flat", "gain") and image.min() <= 0:
        raise ValueError(f"it has a pixel of {image.min():g}: every pixel must be above 0, as frames are divided by it")
    return image


def frozen_parts(step: FrameStep, channel: int | None) -> dict[str, Value]:
    """What is corrected in a channel, from what was frozen in a run; None: in those that are not named."""
    parts = step.settings.get(str(channel), step.settings[OTHERS])
    return {kind: step.arrays[value] if isinstance(value, str) else value for kind, value in parts.items()}


def left_after(parts: Mapping[str, Value], applied: Mapping[str, NDArray[Any]]) -> dict[str, Value]:
    """What is left to do with frames of which the daemon has corrected some: nothing is done twice.

    Where it has applied a flat field, and no dark image before, what the camera shows without light was divided by the
    field, too; so what is subtracted then is.

    >>> left = left_after({"dark": 10.0, "flat": 1.0, "gain": 2.0}, {"flat": np.array([[0.5, 1.5]])})
    >>> left["gain"], left["dark"].round(3).tolist()
    (2.0, [[20.0, 6.667]])
    """
    left = {kind: value for kind, value in parts.items() if kind not in applied}
    if "dark" in left and "flat" in applied:
        left["dark"] = np.asarray(left["dark"], np.float32) * np.asarray(_gain(applied["flat"], None))
    return left


def corrector(parts: Mapping[str, Value], shape: tuple[int, int], dtype: str) -> Correct:
    """The function that corrects frames.

    Parameters
    ----------
    parts : mapping
        Of `KINDS`, as `check` gave them.
    shape : tuple of int
        Of the frames.
    dtype : str
        Of the frames, in and out.
    """
    dark, hot = parts.get("dark"), parts.get("hot")
    gain = _gain(parts.get("flat"), parts.get("gain"))
    kind = np.dtype(dtype)
    limit = np.float32(0 if kind.kind == "f" else np.iinfo(kind).max)
    rows = max(1, _BLOCK_PIXELS // max(1, shape[1]))
    bad = None if hot is None else np.asarray(hot)

    def part(value: Value, block: slice) -> Any:
        return value[block] if isinstance(value, np.ndarray) else np.float32(value)

    def correct(frame: NDArray[Any]) -> tuple[NDArray[Any], int, int]:
        value = frame.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for row in range(0, shape[0], rows):
                block = slice(row, row + rows)
                if dark is not None:
                    np.subtract(value[block], part(dark, block), out=value[block])
                if gain is not None:
                    np.multiply(value[block], part(gain, block), out=value[block])
        if bad is not None and bad.any():
            value[bad] = _median_of_good(*_neighbours(value, bad))
        if kind.kind == "f":
            return value.astype(kind, copy=False), 0, 0
        np.rint(value, out=value)
        low, high = int(np.count_nonzero(value < 0)), int(np.count_nonzero(value > limit))
        return np.clip(value, np.float32(0), limit).astype(kind), low, high

    return correct


def _gain(flat: Value | None, gain: Value | None) -> Value | None:
    """What a frame is multiplied with."""
    factor: Any = None
    if flat is not None:
        image = np.asarray(flat)
        # fsum rounds once, so the mean is the same whatever order NumPy would have added in.
        factor = math.fsum(image.ravel().tolist()) / image.size / image.astype(np.float64)
    if gain is not None:
        divisor = gain.astype(np.float64) if isinstance(gain, np.ndarray) else gain
        factor = (1.0 if factor is None else factor) / divisor
    if factor is None:
        return None
    return factor.astype(np.float32) if isinstance(factor, np.ndarray) else float(factor)


def _neighbours(value: NDArray[np.float32], hot: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Values of the eight neighbours of each hot pixel, and which of them are there and good: shape (n, 8)."""
    rows, cols = np.nonzero(hot)
    offsets = np.array([(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if (down, right) != (0, 0)])
    down, right = rows[:, None] + offsets[:, 0], cols[:, None] + offsets[:, 1]
    there = (down >= 0) & (down < hot.shape[0]) & (right >= 0) & (right < hot.shape[1])
    down, right = np.where(there, down, 0), np.where(there, right, 0)
    return value[down, right], there & ~hot[down, right]


def _median_of_good(values: NDArray[np.float32], good: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Median of the good values of each row; of an even number the mean of the two in the middle."""
    ordered = np.sort(np.where(good, values, np.float32(np.inf)), axis=1)
    count = good.sum(axis=1)
    each = np.arange(len(values))
    low, high = ordered[each, (count - 1) // 2], ordered[each, count // 2]
    middle: NDArray[np.float32] = (low + high) * np.float32(0.5)
    return middle
