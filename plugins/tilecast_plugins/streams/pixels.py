"""Pixels of other software in a type that tilecast takes: u1 and u2 as they are, everything else as f4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tilecast_protocol.errors import TilecastError

EXACT_F4: Final = 2**24
"""Above it not every whole number is one of float32."""

_KEPT: Final = ("|u1", "<u2", "<f4")


class StreamError(TilecastError, ValueError):
    """A message of other software is not what it should be."""


def whole(value: Any, what: str, minimum: int = 0, maximum: int = 2**63 - 1) -> int:
    """A whole number in minimum..maximum; raises StreamError for others, booleans too."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        shown = repr(value) if not isinstance(value, int) or value.bit_length() < 128 else "a huge one"
        raise StreamError(f"{what} must be a whole number from {minimum} to {maximum}; got {shown[:80]}")
    return value


def number(value: Any, what: str) -> float:
    """A finite number; raises StreamError for others."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise StreamError(f"{what} must be a number; got {value!r:.80}")
    try:
        result = float(value)
    except OverflowError:
        raise StreamError(f"{what} must be a finite number; got a huge one") from None
    if not np.isfinite(result):
        raise StreamError(f"{what} must be a finite number; got {result}")
    return result


def frame_nbytes(shape: Sequence[int], dtype: np.dtype[Any], max_nbytes: int) -> int:
    """Bytes of a frame of this shape, before anything is allocated; raises StreamError above the limit."""
    nbytes = int(np.dtype(dtype).itemsize)
    for size in shape:
        nbytes *= size
    if nbytes > max_nbytes:
        raise StreamError(
            f"a frame of {' × '.join(map(str, shape))} {dtype} has {nbytes} bytes; at most {max_nbytes} are taken"
        )
    return nbytes


def wire_pixels(array: NDArray[Any], no_data: int | None = None) -> tuple[NDArray[Any], bool]:
    """Pixels as a run can have them, and whether that is exact.

    Parameters
    ----------
    array : ndarray
        Any integer or floating type.
    no_data : int, optional
        A value that stands for no value; it becomes NaN (not covered) where the result is float32.
    """
    kept = array.dtype.newbyteorder("<")
    if kept.str in _KEPT:
        return array.astype(kept, copy=False), True
    with np.errstate(over="ignore", invalid="ignore"):
        result = array.astype(np.float32)
    if array.dtype.kind == "f":
        return result, array.dtype.itemsize <= 4
    valid = np.ones(array.shape, bool) if no_data is None else array != no_data
    result[~valid] = np.nan
    values = array[valid]
    exact = not values.size or (int(values.max()) <= EXACT_F4 and int(values.min()) >= -EXACT_F4)
    return result, exact
