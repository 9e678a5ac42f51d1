"""The compiled inner loops of blending and reduction, and the list that compiles them ahead of the first frame.

Each kernel works on one tile and says nothing about planes, budgets or files; `blending` and `reduction` call them and
say what they mean. Three rules make them exact and the same on every machine:

* no ``fastmath``: a reciprocal instead of a division misrounds about one product in twenty;
* integers are cast at every step, because numba widens ``uint32 + uint32`` to 64 bits, which halves the speed;
* a quotient of integers is taken in floating point, where it may come out one too large or too small, and then put
  right by its remainder, in integers.

Arrays are C-contiguous. Tiles and states are written in place and belong to the caller; frames come as read-only views
(:func:`read_only`), so that each kernel is compiled once, whoever owns the frame. A *window* (row0, row1, col0, col1)
is the part of the tile to work on; (drow, dcol) added to a tile's pixel gives the frame's.

>>> frame = read_only(np.full((4, 4), 7, np.uint16))
>>> total, weight, tile = np.zeros((4, 4), np.uint32), np.zeros((4, 4), np.uint16), np.zeros((4, 4), np.uint16)
>>> add_sum(total, weight, tile, tile, frame, np.full((4, 4), 9, np.uint8), 1, 4, 0, 4, -1, 0)
>>> tile.tolist()
[[0, 0, 0, 0], [7, 7, 7, 7], [7, 7, 7, 7], [7, 7, 7, 7]]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]
from numpy.typing import NDArray

from tilecast_protocol._addresses import pointer

Pixels = NDArray[Any]
Mask = NDArray[np.bool_]
Kernel = TypeVar("Kernel", bound=Callable[..., Any])

#: Weights are at most this.
MAX_WEIGHT = 255
#: So many visits fit the narrow state: 257 · 255 = 65535 (u16), and 257 · 255 · 65535 + 65535 // 2 < 2**32 (u32).
MAX_NARROW_VISITS = 257

#: Unsigned indices: of signed ones numba tests each for being counted from the end, which costs more than the pixel.
_index = np.uintp
_u16 = np.uint16
_u32 = np.uint32
_u64 = np.uint64
_i64 = np.int64
_f64 = np.float64


def _compiled(function: Kernel) -> Kernel:
    """Compile for the argument types of the first call, kept on disk, without the GIL while it runs."""
    return cast(Kernel, njit(nogil=True, cache=True, error_model="numpy")(function))


def read_only(frame: Pixels) -> Pixels:
    """A read-only view of a frame, the one type that kernels take frames in; copied only if memory is not aligned."""
    view = frame.view() if frame.flags.aligned else frame.copy()
    view.flags.writeable = False
    return view


def address(array: NDArray[Any] | None) -> int:
    """Where an array's elements are, for kernels that work on many arrays in one call; 0 for None.

    The caller keeps the array alive and C-contiguous.
    """
    return 0 if array is None else int(array.__array_interface__["data"][0])


@_compiled
def _copy_row(
    source: Pixels, source_row: np.uintp, source_col: np.uintp, out: Pixels, row: np.uintp, col: np.uintp, n: np.uintp
) -> None:
    """Copy `n` pixels of a row."""
    for i in range(n):
        out[row, col + i] = source[source_row, source_col + i]


@_compiled
def copy_around(old: Pixels, out: Pixels, row0: int, row1: int, col0: int, col1: int) -> None:
    """Copy a tile except for a window, which the caller is about to write."""
    size = old.shape[0]
    for r in range(size):
        row, inside = _index(r), row0 <= r < row1
        _copy_row(old, row, _index(0), out, row, _index(0), _index(col0 if inside else size))
        if inside:
            _copy_row(old, row, _index(col1), out, row, _index(col1), _index(size - col1))


@_compiled
def copy_part(old: Pixels, out: Pixels, row0: int, col0: int, size: int) -> None:
    """Copy a square part of a tile."""
    for r in range(row0, row0 + size):
        _copy_row(old, _index(r), _index(col0), out, _index(r), _index(col0), _index(size))


@_compiled
def _quotient(total: np.uint32, weight: np.uint16) -> np.uint32:
    """(S + W div 2) div W, of a pixel whose W is not 0."""
    numerator, divisor = _u32(total + _u32(weight >> _u16(1))), _u32(weight)
    # The quotient is a pixel value, below 2**16, and float32 errs by less than 2**-22 of it: so the floor errs by 1 at
    # the most, and then the remainder is negative, or not below the divisor. Faster than an exact float64 division.
    quotient = np.int32(np.float32(numerator) / np.float32(divisor))
    remainder = np.int32(_u32(numerator - _u32(_u32(quotient) * divisor)))
    return _u32(quotient + np.int32(remainder >= np.int32(divisor)) - np.int32(remainder < 0))


@_compiled
def add_sum(
    total: NDArray[np.uint32],
    weight: NDArray[np.uint16],
    old: Pixels,
    out: Pixels,
    frame: Pixels,
    weights: NDArray[np.uint8],
    row0: int,
    row1: int,
    col0: int,
    col1: int,
    drow: int,
    dcol: int,
) -> None:
    """Blend a window of an integer frame and render it: v = (S + W div 2) div W, exactly; at most 257 visits.

    Around the window `out` becomes a copy of `old`; they may be one array.
    """
    copy_around(old, out, row0, row1, col0, col1)
    n, left, frame_left = _index(col1 - col0), _index(col0), _index(col0 + dcol)
    for r in range(row0, row1):
        row, frame_row = _index(r), _index(r + drow)
        for i in range(n):
            k = _u32(weights[frame_row, frame_left + i])
            wv = _u32(_u32(frame[frame_row, frame_left + i]) * k)
            total[row, left + i] = _u32(total[row, left + i] + wv)
            weight[row, left + i] = _u16(_u32(weight[row, left + i]) + k)
        for i in range(n):
            out[row, left + i] = _quotient(total[row, left + i], weight[row, left + i])


@_compiled
def add_second_sum(
    total: NDArray[np.uint32],
    weight: NDArray[np.uint16],
    old: Pixels,
    out: Pixels,
    frame: Pixels,
    weights: NDArray[np.uint8],
    row0: int,
    row1: int,
    col0: int,
    col1: int,
    drow: int,
    dcol: int,
    solo_weights: NDArray[np.uint8],
    solo_row0: int,
    solo_row1: int,
    solo_col0: int,
    solo_col1: int,
    solo_drow: int,
    solo_dcol: int,
) -> None:
    """Blend a second frame into a tile of which one frame's own pixels are there, and make the sums of both.

    As :func:`add_sum` after filling Σ w·v and Σ w from the tile and the first frame's weights, but row by row while
    they are in the cache. `total` and `weight` need not be initialized.
    """
    copy_around(old, out, row0, row1, col0, col1)
    size = _index(old.shape[0])
    n, left, frame_left = _index(col1 - col0), _index(col0), _index(col0 + dcol)
    n_solo, solo_left, solo_frame_left = _index(solo_col1 - solo_col0), _index(solo_col0), _index(solo_col0 + solo_dcol)
    n_both, both_left = _index(max(0, min(col1, solo_col1) - max(col0, solo_col0))), _index(max(col0, solo_col0))
    for r in range(old.shape[0]):
        row, is_solo, is_new = _index(r), solo_row0 <= r < solo_row1, row0 <= r < row1
        for i in range(size):
            total[row, i] = 0
            weight[row, i] = 0
        if is_solo:
            frame_row = _index(r + solo_drow)
            for i in range(n_solo):
                k = _u32(solo_weights[frame_row, solo_frame_left + i])
                total[row, solo_left + i] = _u32(_u32(old[row, solo_left + i]) * k)
                weight[row, solo_left + i] = _u16(k)
        if is_new:
            frame_row = _index(r + drow)
            for i in range(n):
                v, k = frame[frame_row, frame_left + i], _u32(weights[frame_row, frame_left + i])
                total[row, left + i] = _u32(total[row, left + i] + _u32(_u32(v) * k))
                weight[row, left + i] = _u16(_u32(weight[row, left + i]) + k)
                out[row, left + i] = v
        if is_solo and is_new:
            for i in range(n_both):
                out[row, both_left + i] = _quotient(total[row, both_left + i], weight[row, both_left + i])


@_compiled
def blend_two(
    old: Pixels,
    out: Pixels,
    frame: Pixels,
    weights: NDArray[np.uint8],
    row0: int,
    row1: int,
    col0: int,
    col1: int,
    drow: int,
    dcol: int,
    solo_weights: NDArray[np.uint8],
    solo_row0: int,
    solo_row1: int,
    solo_col0: int,
    solo_col1: int,
    solo_drow: int,
    solo_dcol: int,
) -> None:
    """As :func:`add_second_sum`, to the same pixels, where nobody will need the sums."""
    copy_around(old, out, row0, row1, col0, col1)
    both0, both1 = max(col0, solo_col0), min(col1, solo_col1)
    if both0 >= both1:  # the columns of both; if there are none, all are the frame's alone
        both0 = both1 = col1
    n_both, left = _index(both1 - both0), _index(both0)
    frame_left, solo_left = _index(both0 + dcol), _index(both0 + solo_dcol)
    for r in range(row0, row1):
        row, frame_row = _index(r), _index(r + drow)
        if not solo_row0 <= r < solo_row1:
            _copy_row(frame, frame_row, _index(col0 + dcol), out, row, _index(col0), _index(col1 - col0))
            continue
        solo_row = _index(r + solo_drow)
        # `old` may be `out`: what both cover is read before it is written.
        for i in range(n_both):
            k, solo_k = _u32(weights[frame_row, frame_left + i]), _u32(solo_weights[solo_row, solo_left + i])
            total = _u32(_u32(_u32(old[row, left + i]) * solo_k) + _u32(_u32(frame[frame_row, frame_left + i]) * k))
            out[row, left + i] = _quotient(total, _u16(k + solo_k))
        _copy_row(frame, frame_row, _index(col0 + dcol), out, row, _index(col0), _index(both0 - col0))
        _copy_row(frame, frame_row, _index(both1 + dcol), out, row, _index(both1), _index(col1 - both1))


#: What is to be done with a tile (`blend_tiles`): it is the frame's alone; it gets its second frame, and no other is
#: expected; its second, with sums for more to come; a further one.
ALONE, SECOND_AND_LAST, SECOND, FURTHER = range(4)


@_compiled
def blend_tiles(
    kinds: NDArray[np.int64],
    addresses: NDArray[np.int64],
    windows: NDArray[np.int64],
    frame: Pixels,
    weights: NDArray[np.uint8],
    size: int,
    is_full: Mask,
) -> None:
    """Blend an integer frame into many tiles of `size` pixels square, and note what of them is covered.

    Parameters
    ----------
    kinds : (n,) array
        What is to be done with each tile.
    addresses : (n, 5) array
        Of Σ w·v, Σ w, the pixels before and after, and the mask of each tile, as :func:`add_second_sum` and
        :func:`add_sum` take them; 0 where there is none. The mask of a tile that is the frame's alone is made here.
    windows : (n, 12) array
        The windows of the frame, and of the frame before it, in the tile.
    weights : (h, w) array
        Those of the frame, and of the frames before, which have its shape.
    is_full : (n,) bool array
        Receives whether each tile is covered everywhere, where it has a mask.
    """
    shape = (size, size)
    for t in range(kinds.size):
        total, weight = carray(pointer(addresses[t, 0]), shape, _u32), carray(pointer(addresses[t, 1]), shape, _u16)
        old = carray(pointer(addresses[t, 2]), shape, frame.dtype)
        out = carray(pointer(addresses[t, 3]), shape, frame.dtype)
        r0, r1, c0, c1, dr, dc = (
            windows[t, 0],
            windows[t, 1],
            windows[t, 2],
            windows[t, 3],
            windows[t, 4],
            windows[t, 5],
        )
        q0, q1, p0, p1 = windows[t, 6], windows[t, 7], windows[t, 8], windows[t, 9]
        qr, pc = windows[t, 10], windows[t, 11]
        if kinds[t] == ALONE:
            if r1 - r0 < size or c1 - c0 < size:
                out[:] = 0
            for r in range(r0, r1):
                _copy_row(frame, _index(r + dr), _index(c0 + dc), out, _index(r), _index(c0), _index(c1 - c0))
        elif kinds[t] == SECOND_AND_LAST:
            blend_two(old, out, frame, weights, r0, r1, c0, c1, dr, dc, weights, q0, q1, p0, p1, qr, pc)
        elif kinds[t] == SECOND:
            add_second_sum(
                total, weight, old, out, frame, weights, r0, r1, c0, c1, dr, dc, weights, q0, q1, p0, p1, qr, pc
            )
        else:
            add_sum(total, weight, old, out, frame, weights, r0, r1, c0, c1, dr, dc)
        if addresses[t, 4] != 0:
            mask = carray(pointer(addresses[t, 4]), shape, np.uint8)
            if kinds[t] == ALONE:
                mask[:] = 0
            mask[r0:r1, c0:c1] = 1
            is_full[t] = _all_ones(mask)


@_compiled
def _all_ones(mask: NDArray[np.uint8]) -> bool:
    """Whether a tile is covered everywhere, row by row: most are not, and show it early."""
    for row in mask:
        missing = np.uint8(0)
        for covered in row:
            missing |= covered ^ np.uint8(1)
        if missing:
            return False
    return True


@_compiled
def add_wide_sum(
    total: NDArray[np.uint64],
    weight: NDArray[np.uint64],
    old: Pixels,
    out: Pixels,
    frame: Pixels,
    weights: NDArray[np.uint8],
    row0: int,
    row1: int,
    col0: int,
    col1: int,
    drow: int,
    dcol: int,
) -> None:
    """As :func:`add_sum` for any number of visits, to the same values."""
    n = col1 - col0
    copy_around(old, out, row0, row1, col0, col1)
    for row in range(row0, row1):
        s, w, rendered = total[row, col0:col1], weight[row, col0:col1], out[row, col0:col1]
        v = frame[row + drow, col0 + dcol : col1 + dcol]
        k = weights[row + drow, col0 + dcol : col1 + dcol]
        for i in range(n):
            s_new = s[i] + _u64(v[i]) * _u64(k[i])
            w_new = w[i] + _u64(k[i])
            s[i] = s_new
            w[i] = w_new
            # As in `_quotient`; float64, because the sums are wider than a float32 can tell apart.
            numerator, divisor = _i64(s_new + (w_new >> _u64(1))), _i64(w_new)
            quotient = _i64(_f64(numerator) / _f64(divisor))
            remainder = numerator - quotient * divisor
            rendered[i] = quotient + _i64(remainder >= divisor) - _i64(remainder < 0)


@_compiled
def add_float_sum(
    total: NDArray[np.float64],
    weight: NDArray[np.float64],
    tile: Pixels,
    frame: Pixels,
    weights: NDArray[np.uint8],
    row0: int,
    row1: int,
    col0: int,
    col1: int,
    drow: int,
    dcol: int,
) -> None:
    """Blend the finite pixels of a window of a float frame and render them: f4(S / W), sums in float64."""
    for row in range(row0, row1):
        for col in range(col0, col1):
            v = frame[row + drow, col + dcol]
            if not np.isfinite(v):
                continue
            k = _f64(weights[row + drow, col + dcol])
            # Assigned, not added to 0, so that a pixel of -0.0 stays one; w·v is exact: 8 + 24 bits.
            s = k * _f64(v) if weight[row, col] == 0.0 else total[row, col] + k * _f64(v)
            w = weight[row, col] + k
            total[row, col] = s
            weight[row, col] = w
            tile[row, col] = np.float32(s / w)


@_compiled
def add_nearest(
    distance: NDArray[np.int64],
    rank: NDArray[np.int64],
    tile: Pixels,
    frame: Pixels,
    frame_rank: int,
    row0: int,
    row1: int,
    col0: int,
    col1: int,
    drow: int,
    dcol: int,
) -> None:
    """Take each finite pixel whose frame's centre is nearer than its owner's so far, or as near and of higher rank.

    Squared distances in doubled coordinates: pixel i of a frame of n lies 2·i + 1 − n from its centre.
    """
    height, width = frame.shape
    for row in range(row0, row1):
        dy = 2 * (row + drow) + 1 - height
        for col in range(col0, col1):
            v = frame[row + drow, col + dcol]
            if not np.isfinite(v):
                continue
            dx = 2 * (col + dcol) + 1 - width
            d = dy * dy + dx * dx
            if d < distance[row, col] or (d == distance[row, col] and frame_rank > rank[row, col]):
                distance[row, col] = d
                rank[row, col] = frame_rank
                tile[row, col] = v


@_compiled
def reduce_full(child: Pixels, parent: Pixels, row_half: int, col_half: int) -> None:
    """Reduce a fully covered integer tile into a quadrant of its parent: mean of four, ties to even."""
    half = child.shape[0] // 2
    for row in range(half):
        upper, lower = child[2 * row], child[2 * row + 1]
        out = parent[row_half * half + row, col_half * half : (col_half + 1) * half]
        for col in range(half):
            s = _u32(
                _u32(_u32(upper[2 * col]) + _u32(upper[2 * col + 1]))
                + _u32(_u32(lower[2 * col]) + _u32(lower[2 * col + 1]))
            )
            out[col] = _u32(_u32(s + _u32(1)) + _u32(_u32(s >> _u32(2)) & _u32(1))) >> _u32(2)


@_compiled
def reduce_masked(
    child: Pixels, child_mask: Mask, parent: Pixels, parent_mask: Mask, row_half: int, col_half: int
) -> None:
    """Reduce an integer tile of which only some pixels are covered: mean of the covered ones, ties to even.

    Uncovered pixels of the child must be 0. Then :func:`reduce_full` is right wherever all four pixels are covered or
    none is; the rest, mostly a line along the edge of a frame, is found eight pixels of the mask at a time and put
    right. The edge of a tile is a multiple of 8.
    """
    half = child.shape[0] // 2
    all_covered = _u64(0x0101010101010101)
    words, bytes_ = child_mask.view(np.uint64), child_mask.view(np.uint8)
    reduce_full(child, parent, row_half, col_half)
    for row in range(half):
        columns = slice(col_half * half, (col_half + 1) * half)
        out, out_mask = parent[row_half * half + row, columns], parent_mask[row_half * half + row, columns]
        for word in range(words.shape[1]):
            upper, lower = words[2 * row, word], words[2 * row + 1, word]
            if upper & lower == all_covered or upper | lower == _u64(0):
                out_mask[4 * word : 4 * word + 4] = upper != _u64(0)
                continue
            for col in range(4 * word, 4 * word + 4):
                s, n = _u32(0), 0
                for r in range(2 * row, 2 * row + 2):
                    for c in range(2 * col, 2 * col + 2):
                        s = _u32(s + _u32(child[r, c]))
                        n += bytes_[r, c]
                if n == 1:
                    out[col] = s
                elif n == 2:
                    out[col] = _u32(s + _u32(_u32(s >> _u32(1)) & _u32(1))) >> _u32(1)
                elif n == 3:
                    out[col] = _u32(s + _u32(1)) // _u32(3)  # thirds never tie
                out_mask[col] = n > 0


#: What becomes of a quadrant of a parent (`reduce_tiles`): it stays; its child is gone; its child is covered
#: everywhere; in part.
KEPT, GONE, FULL, MASKED = range(4)


@_compiled
def reduce_tiles(
    kinds: NDArray[np.int64],
    children: NDArray[np.int64],
    parents: NDArray[np.int64],
    like: Pixels,
    size: int,
    is_full: Mask,
) -> None:
    """Reduce many integer tiles of `size` pixels square into the tiles above them.

    Parameters
    ----------
    kinds : (n, 4) array
        What becomes of each quadrant of each parent, row by row.
    children : (n, 4, 2) array
        Addresses of pixels and mask of what is in each quadrant.
    parents : (n, 4) array
        Addresses of each parent's pixels before, mask before, pixels after, mask after. Before: 0 if there was no such
        tile, or it was covered everywhere. After: the arrays need not be initialized; the mask is 0 if no quadrant can
        be other than covered.
    like : array
        Of the tiles' type.
    is_full : (n,) bool array
        Receives whether each parent is covered everywhere.
    """
    shape, half = (size, size), size // 2
    for t in range(kinds.shape[0]):
        old = carray(pointer(parents[t, 0]), shape, like.dtype)
        old_mask = carray(pointer(parents[t, 1]), shape, np.bool_)
        out = carray(pointer(parents[t, 2]), shape, like.dtype)
        mask = carray(pointer(parents[t, 3]), shape, np.bool_)
        has_mask = parents[t, 3] != 0
        for quadrant in range(4):
            row_half, col_half = quadrant >> 1, quadrant & 1
            row0, col0 = row_half * half, col_half * half
            kind = kinds[t, quadrant]
            child = carray(pointer(children[t, quadrant, 0]), shape, like.dtype)
            child_mask = carray(pointer(children[t, quadrant, 1]), shape, np.bool_)
            if kind == MASKED:
                reduce_masked(child, child_mask, out, mask, row_half, col_half)
                continue
            if kind == FULL:
                reduce_full(child, out, row_half, col_half)
            elif kind == KEPT and parents[t, 0] != 0:
                copy_part(old, out, row0, col0, half)
            else:
                out[row0 : row0 + half, col0 : col0 + half] = 0
            if has_mask:
                if kind == KEPT and parents[t, 1] != 0:
                    copy_part(old_mask, mask, row0, col0, half)
                else:
                    covered = kind == FULL or (kind == KEPT and parents[t, 0] != 0)
                    mask[row0 : row0 + half, col0 : col0 + half] = covered
        is_full[t] = not has_mask or _all_ones(mask.view(np.uint8))


@_compiled
def reduce_float(child: Pixels, parent: Pixels, row_half: int, col_half: int) -> None:
    """Reduce a float tile: float64 sum of the finite pixels of each group, row by row, over their number; else NaN."""
    half = child.shape[0] // 2
    for row in range(half):
        for col in range(half):
            s, n = 0.0, 0
            for r in range(2 * row, 2 * row + 2):
                for c in range(2 * col, 2 * col + 2):
                    v = child[r, c]
                    if np.isfinite(v):
                        # Assigned, not added to 0, so that a mean of -0.0 stays one.
                        s = _f64(v) if n == 0 else s + _f64(v)
                        n += 1
            parent[row_half * half + row, col_half * half + col] = np.float32(s / n) if n else np.float32(np.nan)


def kernels_for(dtype: str, mode: str) -> tuple[tuple[str, Callable[[], None]], ...]:
    """What a run of this pixel type and blend mode will need compiled.

    Parameters
    ----------
    dtype : str
        ``|u1``, ``<u2`` or ``<f4``, or any name numpy has for them.
    mode : str
        One of `tilecast.blending.BLEND_MODES`.

    Returns
    -------
    tuple of (name, thunk)
        Calling a thunk compiles its kernel, or finds it on disk; the name is for a progress bar.
    """
    pixel = np.dtype(dtype)
    is_float = pixel.kind == "f"
    shape = 8, 8
    tile: Pixels = np.zeros(shape, pixel)
    frame = read_only(tile.copy())
    weights = np.ones(shape, np.uint8)
    mask = np.ones(shape, np.bool_)
    window = (0, 8, 0, 8, 0, 0)
    chosen: list[tuple[str, Callable[[], None]]] = []

    def need(name: str, kernel: Callable[..., None], *args: Any) -> None:
        chosen.append((f"{name} {pixel.str}", partial(kernel, *args)))

    def state(state_dtype: type[np.generic]) -> Pixels:
        return np.zeros(shape, state_dtype)

    if mode in ("feather", "mean") and is_float:
        need("blend", add_float_sum, state(_f64), state(_f64), tile, frame, weights, *window)
    elif mode in ("feather", "mean"):
        second = (state(_u32), state(_u16), tile, tile, frame, weights, *window, weights, *window)
        need("blend second", add_second_sum, *second)
        need("blend two", blend_two, *second[2:])
        rows = np.empty((0, 5), np.int64), np.empty((0, 12), np.int64)
        need("blend tiles", blend_tiles, np.empty(0, np.int64), *rows, frame, weights, 8, np.empty(0, np.bool_))
        need("blend", add_sum, state(_u32), state(_u16), tile, tile, frame, weights, *window)
        need("blend many", add_wide_sum, state(_u64), state(_u64), tile, tile, frame, weights, *window)
    elif mode == "nearest":
        need("blend nearest", add_nearest, state(_i64), state(_i64), tile, frame, 0, *window)
    if is_float:
        need("reduce", reduce_float, tile, tile.copy(), 0, 0)
    else:
        need("reduce", reduce_full, tile, tile.copy(), 0, 0)
        need("reduce edges", reduce_masked, tile, mask, tile.copy(), mask.copy(), 0, 0)
        families = np.empty((0, 4), np.int64), np.empty((0, 4, 2), np.int64), np.empty((0, 4), np.int64)
        need("reduce tiles", reduce_tiles, *families, tile, 8, np.empty(0, np.bool_))
    return tuple(chosen)


def _all_kernels() -> tuple[tuple[str, Callable[[], None]], ...]:
    found: dict[str, Callable[[], None]] = {}
    for dtype in ("|u1", "<u2", "<f4"):
        for mode in ("feather", "nearest"):
            found.update(kernels_for(dtype, mode))
    return tuple(found.items())


#: Every kernel for every pixel type, as (name, thunk); a run needs only `kernels_for` its own.
KERNELS = _all_kernels()
