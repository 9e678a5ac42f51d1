"""The loops of registration over pixels, compiled: each once over a window, without the interpreter's lock.

Not known here: what the numbers mean, and which windows are compared.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

_REORDER = {"reassoc", "contract", "nsz"}  # the compiler may add in an order of its own, the same each time

_OF_NORMAL = 4 / np.pi**2  # (mean |ab|)² / mean (ab)² of independent normal numbers
_MOST_RHO = 0.999  # frames without noise correlate fully


@numba.njit(nogil=True, cache=True)
def binned(pixels: NDArray[Any], row: int, col: int, height: int, width: int, factor: int) -> NDArray[np.float32]:
    """The mean of each factor × factor block of a window; what does not fill a block is left out.

    Parameters
    ----------
    pixels : (rows, columns) array
    row, col : int
        Upper left pixel of the window.
    height, width : int
        Of the result.
    """
    out = np.empty((height, width), np.float32)
    scale = np.float32(1.0 / (factor * factor))
    for i in range(height):
        for j in range(width):
            total = np.float32(0)
            for k in range(factor):
                for m in range(factor):
                    total += np.float32(pixels[row + i * factor + k, col + j * factor + m])
            out[i, j] = total * scale
    return out


@numba.njit(nogil=True, cache=True, fastmath=_REORDER)
def band_passed(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is between one pixel and five: smoothed by (1 2 1)/4 along both axes, less its mean over 5 × 5 pixels.

    The pixels of the edge are repeated beyond it.
    """
    height, width = x.shape
    fine = np.empty_like(x)
    coarse = np.empty_like(x)
    for i in range(height):
        r0, r1, r2 = max(i - 3, 0), max(i - 2, 0), max(i - 1, 0)
        r4, r5, r6 = min(i + 1, height - 1), min(i + 2, height - 1), min(i + 3, height - 1)
        for j in range(width):
            near = x[r2, j] + x[r4, j]
            fine[i, j] = np.float32(0.25) * (near + x[i, j] + x[i, j])
            far = x[r0, j] + x[r6, j] + np.float32(3) * (x[r1, j] + x[r5, j]) + np.float32(4) * (near + x[i, j])
            coarse[i, j] = np.float32(0.05) * far
    out = np.empty_like(x)
    for i in range(height):
        for j in range(width):
            if 3 <= j < width - 3:
                near = fine[i, j - 1] + fine[i, j + 1]
                far = coarse[i, j - 3] + coarse[i, j + 3] + np.float32(3) * (coarse[i, j - 2] + coarse[i, j + 2])
                far += np.float32(4) * (coarse[i, j - 1] + coarse[i, j + 1])
            else:
                last = width - 1
                near = fine[i, max(j - 1, 0)] + fine[i, min(j + 1, last)]
                far = coarse[i, max(j - 3, 0)] + coarse[i, min(j + 3, last)]
                far += np.float32(3) * (coarse[i, max(j - 2, 0)] + coarse[i, min(j + 2, last)])
                far += np.float32(4) * (coarse[i, max(j - 1, 0)] + coarse[i, min(j + 1, last)])
            far = np.float32(0.05) * (far + np.float32(4) * coarse[i, j])
            out[i, j] = np.float32(0.25) * (near + fine[i, j] + fine[i, j]) - far
    return out


@numba.njit(nogil=True, cache=True, fastmath=_REORDER)
def correlation(a: NDArray[Any], b: NDArray[Any], row: int, col: int, step: int) -> tuple[float, int]:
    """The normalized cross-correlation of two arrays where they overlap, and of how many pixels it is.

    Parameters
    ----------
    a, b : (rows, columns) arrays
    row, col : int
        Where the upper left pixel of `b` lies in `a`.
    step : int
        Look at every so many-th row only.

    Returns
    -------
    float
        Between -1 and 1; 0 if either is flat, or they do not overlap.
    int
    """
    row0, row1 = max(0, row), min(a.shape[0], row + b.shape[0])
    col0, col1 = max(0, col), min(a.shape[1], col + b.shape[1])
    if row1 <= row0 or col1 <= col0:
        return 0.0, 0
    n = 0
    base_a, base_b = np.float64(a[row0, col0]), np.float64(b[row0 - row, col0 - col])
    sum_a = sum_b = sum_aa = sum_bb = sum_ab = 0.0
    for i in range(row0, row1, step):
        line_a, line_b = a[i], b[i - row]
        for j in range(col0, col1):
            p = np.float64(line_a[j]) - base_a
            q = np.float64(line_b[j - col]) - base_b
            sum_a += p
            sum_b += q
            sum_aa += p * p
            sum_bb += q * q
            sum_ab += p * q
        n += col1 - col0
    var_a, var_b = sum_aa - sum_a * sum_a / n, sum_bb - sum_b * sum_b / n
    if var_a <= 1e-12 * sum_aa or var_b <= 1e-12 * sum_bb or var_a <= 0 or var_b <= 0:
        return 0.0, n
    return (sum_ab - sum_a * sum_b / n) / np.sqrt(var_a * var_b), n


@numba.njit(nogil=True, cache=True, fastmath=_REORDER)
def significance(a: NDArray[np.float32], b: NDArray[np.float32], row: int, col: int) -> tuple[float, float]:
    """How many standard deviations of chance two band-passed arrays correlate where they overlap; and how much at all.

    Fisher's artanh ρ of their correlation, times √n, where n is not the number of pixels but of those that bring it
    about: (Σ|ab|)² / Σ(ab)², in units of what that is for normal numbers. So one bright thing that resembles another
    one counts as one.

    Parameters
    ----------
    a, b : (rows, columns) arrays
        With means of about zero.
    row, col : int
        Where the upper left pixel of `b` lies in `a`.

    Returns
    -------
    float
        artanh ρ · √n.
    float
        artanh ρ.
    """
    row0, row1 = max(0, row), min(a.shape[0], row + b.shape[0])
    col0, col1 = max(0, col), min(a.shape[1], col + b.shape[1])
    sum_aa = sum_bb = sum_ab = sum_size = sum_square = 0.0
    for i in range(row0, row1):
        line_a, line_b = a[i], b[i - row]
        for j in range(col0, col1):
            p, q = np.float64(line_a[j]), np.float64(line_b[j - col])
            product = p * q
            sum_aa += p * p
            sum_bb += q * q
            sum_ab += product
            sum_size += abs(product)
            sum_square += product * product
    if sum_square <= 0:
        return 0.0, 0.0
    n = sum_size * sum_size / sum_square / _OF_NORMAL
    rho = min(_MOST_RHO, max(-_MOST_RHO, sum_ab / np.sqrt(sum_aa * sum_bb)))
    found = np.arctanh(rho)
    return found * np.sqrt(n), found


@numba.njit(nogil=True, cache=True)
def difference(a: NDArray[Any], b: NDArray[Any], row: int, col: int) -> tuple[float, float, int]:
    """How much two arrays differ where they overlap: Σ |a − b|, Σ |pixel − mean| of both, halved, and their number.

    Parameters
    ----------
    a, b : (rows, columns) arrays
    row, col : int
        Where the upper left pixel of `b` lies in `a`.
    """
    row0, row1 = max(0, row), min(a.shape[0], row + b.shape[0])
    col0, col1 = max(0, col), min(a.shape[1], col + b.shape[1])
    if row1 <= row0 or col1 <= col0:
        return 0.0, 0.0, 0
    n = (row1 - row0) * (col1 - col0)
    total = apart = 0.0
    for i in range(row0, row1):
        for j in range(col0, col1):
            p, q = np.float64(a[i, j]), np.float64(b[i - row, j - col])
            total += p + q
            apart += abs(p - q)
    mean = total / (2 * n)
    spread = 0.0
    for i in range(row0, row1):
        for j in range(col0, col1):
            spread += abs(np.float64(a[i, j]) - mean) + abs(np.float64(b[i - row, j - col]) - mean)
    return apart, spread / 2, n
