"""How four tiles become one of the next level: the exact mean of what is covered.

Each pixel of an upper level is the mean of the covered pixels among its four children, ties to even (half-up would
brighten a dim field by a grey level in eight levels), and it is covered if any of the four is. For float images the
sum is taken in float64, row by row over the covered pixels, divided by their number and rounded once to float32; a
pixel is covered if it is finite, and an uncovered one is NaN. So coverage of float tiles is read off their pixels,
and of integer tiles it is a mask that travels beside them, or None where every pixel is covered, which is nearly
everywhere and takes a plain kernel.

Works on one child at a time, since that is what changes: :func:`reduce_into` rewrites one quadrant of the parent and
leaves the other three alone. It does not know which child that is in the mosaic, nor where tiles are kept.

>>> child, mask = np.zeros((8, 8), np.uint16), np.zeros((8, 8), np.bool_)
>>> child[:2, :4], mask[:2, :4] = [[1, 2, 0, 3], [2, 1, 0, 0]], [[1, 1, 0, 1], [1, 1, 0, 0]]
>>> parent, parent_mask = np.zeros((8, 8), np.uint16), np.zeros((8, 8), np.bool_)
>>> parent_mask = reduce_into(child, mask, parent, parent_mask, 0, 1)
>>> parent[0].tolist(), parent_mask[0].astype(int).tolist()
([0, 0, 0, 0, 2, 3, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecast import kernels

Pixels = NDArray[Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Child:
    """A tile that has changed, as its parent sees it.

    Attributes
    ----------
    row_half, col_half : 0 or 1
        Its quadrant of the parent.
    pixels : (T, T) array or None
        None if the tile is gone.
    mask : (T, T) bool array or None
        Its covered pixels, None if all are; None for float images.
    """

    row_half: int
    col_half: int
    pixels: Pixels | None
    mask: Mask | None


@dataclass(slots=True, eq=False)
class Family:
    """A tile of an upper level and those of its children that have changed.

    Attributes
    ----------
    old : (T, T) array or None
        Its pixels before; None if there was no such tile.
    old_mask : (T, T) bool array or None
        Its covered pixels before, None if all were; None for float images.
    children : list of Child
        At least one.
    pixels, mask
        Those after, made by :func:`reduce_families`; `pixels` is None if nothing of the tile is covered any more.
    """

    old: Pixels | None
    old_mask: Mask | None
    children: list[Child]
    pixels: Pixels | None = None
    mask: Mask | None = None


def reduce_families(families: Sequence[Family], dtype: np.dtype[Any], tile_size: int) -> None:
    """Reduce changed tiles into new versions of the tiles above them; the other quadrants stay as they were.

    Parameters
    ----------
    families : sequence of Family
        Any number; their `pixels` and `mask` are set.
    dtype : dtype
        Of the tiles.
    tile_size : int
        Edge of a tile, pixels; a multiple of 8.
    """
    if dtype.kind == "f":
        for family in families:
            _reduce_float_family(family, dtype, tile_size)
        return
    n, shape = len(families), (tile_size, tile_size)
    kinds = np.full((n, 4), kernels.KEPT, np.int64)
    children, parents = np.zeros((n, 4, 2), np.int64), np.zeros((n, 4), np.int64)
    for i, family in enumerate(families):
        family.pixels = np.empty(shape, dtype)
        whole = (family.old is not None or len(family.children) == 4) and family.old_mask is None
        for child in family.children:
            at = 2 * child.row_half + child.col_half
            if child.pixels is None:
                kinds[i, at] = kernels.GONE
            else:
                kinds[i, at] = kernels.FULL if child.mask is None else kernels.MASKED
                children[i, at] = kernels.address(child.pixels), kernels.address(child.mask)
            whole = whole and child.pixels is not None and child.mask is None
        family.mask = None if whole else np.empty(shape, np.bool_)
        arrays = family.old, family.old_mask, family.pixels, family.mask
        parents[i] = [kernels.address(array) for array in arrays]
    is_full = np.empty(n, np.bool_)
    kernels.reduce_tiles(kinds, children, parents, np.empty((1, 1), dtype), tile_size, is_full)
    for family, full in zip(families, is_full.tolist(), strict=True):
        if full:
            family.mask = None
        elif any(child.pixels is None for child in family.children) and not (family.mask is None or family.mask.any()):
            family.pixels = family.mask = None


def _reduce_float_family(family: Family, dtype: np.dtype[Any], tile_size: int) -> None:
    """The same for one family of float tiles, whose NaN tell what is covered."""
    family.pixels = blank_tile(dtype, tile_size) if family.old is None else family.old.copy()
    for child in family.children:
        if child.pixels is None:
            clear_quadrant(family.pixels, None, child.row_half, child.col_half)
        else:
            reduce_into(child.pixels, None, family.pixels, None, child.row_half, child.col_half)


def blank_tile(dtype: np.dtype[Any], tile_size: int) -> Pixels:
    """A tile of which nothing is covered: zeros, or NaN for float images."""
    if dtype.kind == "f":
        return np.full((tile_size, tile_size), np.nan, dtype)
    return np.zeros((tile_size, tile_size), dtype)


def float_coverage(pixels: Pixels) -> Mask | None:
    """Which pixels of a float tile are covered; None if all are."""
    mask: Mask = np.isfinite(pixels)
    return None if mask.all() else mask


def quadrant(row_half: int, col_half: int, tile_size: int) -> tuple[slice, slice]:
    """The part of a parent that the child of these parities is reduced into."""
    half = tile_size // 2
    return slice(row_half * half, (row_half + 1) * half), slice(col_half * half, (col_half + 1) * half)


def reduce_into(
    child: Pixels, child_mask: Mask | None, parent: Pixels, parent_mask: Mask | None, row_half: int, col_half: int
) -> Mask | None:
    """Reduce a tile into one quadrant of its parent, in place.

    Parameters
    ----------
    child : (T, T) array
        Pixels of the child; T is a multiple of 8, and uncovered pixels of integer tiles are 0.
    child_mask : (T, T) bool array or None
        Its covered pixels, None if all are; ignored for float images.
    parent : (T, T) array
        Rewritten in the quadrant, else left alone.
    parent_mask : (T, T) bool array or None
        As `child_mask`; rewritten in the quadrant.
    row_half, col_half : 0 or 1
        Which quadrant: the parities of the child's tile row and column.

    Returns
    -------
    (T, T) bool array or None
        The parent's mask: the one given, or a new one where a full parent has ceased to be full. It may be all True.
    """
    if parent.dtype.kind == "f":
        kernels.reduce_float(child, parent, row_half, col_half)
        return None
    if child_mask is None:
        kernels.reduce_full(child, parent, row_half, col_half)
        if parent_mask is not None:
            parent_mask[quadrant(row_half, col_half, len(parent))] = True
        return parent_mask
    if parent_mask is None:
        parent_mask = np.ones(parent.shape, np.bool_)
    kernels.reduce_masked(child, child_mask, parent, parent_mask, row_half, col_half)
    return parent_mask


def clear_quadrant(parent: Pixels, parent_mask: Mask | None, row_half: int, col_half: int) -> Mask | None:
    """Make one quadrant uncovered, in place, because the child it came from is gone; returns the parent's mask."""
    part = quadrant(row_half, col_half, len(parent))
    if parent.dtype.kind == "f":
        parent[part] = np.nan
        return None
    if parent_mask is None:
        parent_mask = np.ones(parent.shape, np.bool_)
    parent[part] = 0
    parent_mask[part] = False
    return parent_mask
