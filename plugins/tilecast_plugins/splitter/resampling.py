"""Samples an image at places between its pixels, the same way to the last bit on every machine.

A mosaic is made anew from recorded frames at any time, and must come out the same. So this is plain arithmetic of
doubles, one operation per pixel in a fixed order: no library that chooses its instructions by the machine.

`Grid` holds where an affine transform puts the pixels of a view; only whole rows and columns are kept in the view of
which every pixel has all the neighbours that it needs, so that nothing has to be made up at the edges.

Examples
--------
>>> grid = Grid.of((4, 6), np.eye(2), np.array([0.0, 0.5]), "bilinear")
>>> (grid.row0, grid.col0, *grid.shape)
(0, 0, 4, 5)
>>> grid.sample(np.arange(24.0).reshape(4, 6))[0].tolist()
[0.5, 1.5, 2.5, 3.5, 4.5]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interpolation = Literal["bilinear", "cubic"]

_BLOCK_PIXELS: Final = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The pixels of a view, and where they lie in the image that is sampled.

    Attributes
    ----------
    row0, col0 : int
        The view's upper left pixel, in the whole half.
    shape : tuple of int
        Of the view.
    matrix, shift_px
        place = matrix @ (row, col) + shift, pixel centres at whole numbers.
    interpolation : {"bilinear", "cubic"}
    """

    row0: int
    col0: int
    shape: tuple[int, int]
    matrix: Floats
    shift_px: Floats
    interpolation: Interpolation

    @classmethod
    def of(cls, shape: tuple[int, int], matrix: Floats, shift_px: Floats, interpolation: Interpolation) -> Self:
        """The largest view that comes of cutting away, side by side, what the image does not tell.

        Parameters
        ----------
        shape : tuple of int
            Of the half, and of the image that is sampled.

        Raises
        ------
        ValueError
            If less than half of the rows or columns would be left: the transform is of another camera, or wrong.
        """
        margin = 0 if interpolation == "bilinear" else 1
        rows, cols = np.arange(shape[0], dtype=np.float64)[:, None], np.arange(shape[1], dtype=np.float64)[None, :]
        down, right = _places(rows, cols, matrix, shift_px)
        inside = (down >= margin) & (down <= shape[0] - 1 - margin)
        inside &= (right >= margin) & (right <= shape[1] - 1 - margin)
        top, left, bottom, end = 0, 0, *shape
        while not (part := inside[top:bottom, left:end]).all():
            missing = [(~side).mean() if side.size else 1.0 for side in (part[0], part[-1], part[:, 0], part[:, -1])]
            worst = int(np.argmax(missing))
            top, bottom = top + (worst == 0), bottom - (worst == 1)
            left, end = left + (worst == 2), end - (worst == 3)
            if 2 * (bottom - top) < shape[0] or 2 * (end - left) < shape[1]:
                raise ValueError(
                    "under this transform the halves share less than half of their rows or columns: was it made for "
                    "this camera, and for halves of this size?"
                )
        return cls(top, left, (bottom - top, end - left), matrix, shift_px, interpolation)

    def sample(self, image: NDArray[Any]) -> Floats:
        """The values of an image at the places of this view."""
        out = np.empty(self.shape)
        height, width = image.shape
        cols = np.arange(self.col0, self.col0 + self.shape[1], dtype=np.float64)[None, :]
        block = max(1, _BLOCK_PIXELS // self.shape[1])
        flat = np.ascontiguousarray(image).ravel()
        taps = _linear if self.interpolation == "bilinear" else _cubic
        for first in range(0, self.shape[0], block):
            last = min(first + block, self.shape[0])
            rows = np.arange(self.row0 + first, self.row0 + last, dtype=np.float64)[:, None]
            down, right = _places(rows, cols, self.matrix, self.shift_px)
            total = np.zeros((last - first, self.shape[1]))
            for row, row_weight in taps(down, height):
                line = np.zeros_like(total)
                for col, col_weight in taps(right, width):
                    line += flat[row * width + col] * col_weight
                total += line * row_weight
            out[first:last] = total
        return out


def _places(rows: Floats, cols: Floats, matrix: Floats, shift_px: Floats) -> tuple[Floats, Floats]:
    down = (rows * float(matrix[0, 0]) + cols * float(matrix[0, 1])) + float(shift_px[0])
    right = (rows * float(matrix[1, 0]) + cols * float(matrix[1, 1])) + float(shift_px[1])
    return down, right


_Taps = Iterator[tuple[NDArray[np.int64], Floats]]


def _linear(places: Floats, size: int) -> _Taps:
    """The two pixels around each place along one axis, and their weights."""
    base = np.minimum(np.floor(places), size - 2).astype(np.int64)
    share = places - base
    yield base, 1.0 - share
    yield base + 1, share


def _cubic(places: Floats, size: int) -> _Taps:
    """The four around each place; R. G. Keys' cubic convolution (a = -1/2), exact for parabolas."""
    base = np.minimum(np.floor(places), size - 3).astype(np.int64)
    s = places - base
    weights: tuple[Callable[[], Floats], ...] = (
        lambda: ((2.0 - s) * s - 1.0) * s * 0.5,
        lambda: ((3.0 * s - 5.0) * s * s + 2.0) * 0.5,
        lambda: ((4.0 - 3.0 * s) * s + 1.0) * s * 0.5,
        lambda: (s - 1.0) * s * s * 0.5,
    )
    for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
        yield base + offset, weight()
