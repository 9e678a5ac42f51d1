"""Estimates how unevenly a scan was lit, from its ordinary frames: a smooth flat field, without a picture of one.

Two things are known of the field. Where frames overlap, the same specimen was seen at two places of the camera: the
difference of the logarithms is that of the field there (D. B. Goldman, "Vignette and Exposure Calibration and
Compensation", IEEE TPAMI 32(12), 2276-2288, 2010). And over many frames the specimen has no preferred side, so that the
mean of the logarithms of all frames has the field's form. The first is exact where positions are, but says little of
some forms if overlaps are narrow; the second is rough, and says a little of every form. Both are fitted with the same
2-D Legendre polynomials, and put together by the errors that their own scatter shows: from one overlap to the next, and
from one frame to the next.

Differences are taken of means over blocks of 16 × 16 pixels, which positions that are off by a pixel or two change
little, or of smaller ones where frames are small or overlap little, for a few blocks do not tell the polynomials apart;
the more the specimen varies from block to block, the less a block counts, and what does not fit (a bubble,
something that moved) counts less in each round. Frames may bleach: then the dose between the two frames of an overlap
is fitted as well, one number for the scan.

Not known here: files, runs, what frames are shown with.

Examples
--------
>>> corners = [(row * 48, col * 48) for row in range(4) for col in range(4)]
>>> rows, cols = np.indices((64, 64))
>>> light = 1 - 0.3 * ((rows - 32) ** 2 + (cols - 32) ** 2) / 2048
>>> found = estimate(((1000 * light).astype("<u2") for _ in corners), corners, (64, 64))
>>> bool(abs(found.field / (light / light.mean()) - 1).max() < 0.01), found.n_overlaps
(True, 42)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.polynomial.legendre import legvander
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DEGREE: Final = 4
"""Total degree of the polynomials: an ordinary vignette, off its centre, and a tilt."""
BLOCK: Final = 16
"""Edge of a block, pixels; less in small frames and narrow overlaps, see `block_edge`."""

_LEAST_OVERLAP: Final = 2  # blocks, in either direction
_LEAST_EDGE: Final = 3
_LEAST_SIGNAL: Final = 0.05  # of the median block; of what is darker the logarithm is noise
_ROUNDS: Final = 30
_PRIOR: Final = 0.5  # how large a coefficient of log(field) may well be, where nothing is known
_MOST_OVERLAPS: Final = 2000
_FEWEST_FRAMES: Final = 9


class EstimateError(ValueError):
    """The frames do not tell the field; the message says why, and what would."""


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A field, and how much better overlaps agree with it.

    Attributes
    ----------
    field : ndarray, float32, shape of the frames
        Relative illumination, mean 1: frames are divided by it.
    scatter : float
        Relative error of the field, root mean square, that the scatter among overlaps and frames lets expect. What the
        polynomials cannot follow is not in it: with good overlaps that is the larger part.
    bleaching : float
        What is left of the light from one frame to the next; 1 if that was not asked for.
    before, after : float
        Mean absolute difference of the blocks in the overlaps, grey levels; NaN without overlaps. Bleaching is made
        good in both.
    n_frames, n_overlaps : int
    """

    field: NDArray[np.float32]
    scatter: float
    bleaching: float
    before: float
    after: float
    n_frames: int
    n_overlaps: int

    @property
    def improvement(self) -> float:
        """How many times smaller the differences became."""
        return self.before / self.after if self.after else float("inf")


@dataclass(slots=True)
class _Blocks:
    """The blocks of all overlaps: values in both frames, where they lie in either, and of which overlap they are."""

    values: list[Floats] = field(default_factory=list)  # (n, 2)
    places: list[Floats] = field(default_factory=list)  # (n, 2, 2): frame, (row, col)
    texture: list[Floats] = field(default_factory=list)
    frames: list[tuple[int, int]] = field(default_factory=list)


def estimate(
    frames: Iterable[NDArray[Any]],
    corners: Sequence[tuple[int, int]],
    shape: tuple[int, int],
    *,
    dark: NDArray[Any] | float = 0.0,
    bleaching: bool = False,
    degree: int = DEGREE,
) -> Estimate:
    """Estimate the field from the frames of one plane.

    Parameters
    ----------
    frames : iterable of ndarray
        As the camera sent them, in the order in which they were taken; each is looked at once, and kept only while
        overlaps with later ones wait.
    corners : sequence of (row, col)
        The upper left pixel of each frame in the mosaic; nominal positions will do.
    shape : tuple of int
        Of each frame.
    dark : ndarray or float
        What the camera shows without light; with an offset left in, the field comes out flatter than it is.
    bleaching : bool
        Whether light is lost from frame to frame.
    degree : int
        Total degree of the polynomials.

    Raises
    ------
    EstimateError
        If there are too few frames, or too little light in them.
    """
    if min(shape) < 2 * BLOCK:
        raise EstimateError(f"frames of {shape[0]} × {shape[1]} pixels are too small: at least {2 * BLOCK} either way")
    places = np.asarray(corners, np.int64).reshape(-1, 2)
    least_overlap = _LEAST_OVERLAP * block_edge(min(shape), degree)
    pairs = _overlapping(places, shape, least_overlap)
    shared = np.asarray(shape) - np.abs([places[first] - places[second] for first, second in pairs]).reshape(-1, 2)
    edge = _edge_in_overlaps(shared.astype(np.int64), block_edge(min(shape), degree), degree)
    blocks, profiles = _look(frames, corners, shape, pairs, dark, edge)
    n_frames = len(profiles)
    if n_frames < _FEWEST_FRAMES and not blocks.frames:
        raise EstimateError(
            f"{n_frames} frames without overlaps do not tell how a scan was lit: at least {_FEWEST_FRAMES}, or frames "
            f"that overlap by {least_overlap} pixels"
        )
    rows, cols = (np.arange(size // edge) * edge + (edge - 1) / 2 for size in shape)
    grid = np.stack(np.meshgrid(rows, cols, indexing="ij"), -1)
    stack = np.stack(profiles)
    least = _LEAST_SIGNAL * float(np.median(stack))
    if not least > 0:
        raise EstimateError("the frames are dark: half of their pixels are not above the dark image; is it theirs?")
    by_frames = _from_frames(stack, _basis(grid.reshape(-1, 2), shape, degree), least)
    precision, weighted = np.eye(by_frames[0].size) / _PRIOR**2, np.zeros(by_frames[0].size)
    rate = 0.0
    if by_frames[1] is not None:
        precision += np.diag(1 / by_frames[1])
        weighted += by_frames[0] / by_frames[1]
    told = _told_by_overlaps(blocks, least)
    if told is not None:
        by_overlaps, covariance, rate = _from_overlaps(told, shape, degree, bleaching)
        inverse = np.linalg.inv(covariance)
        precision += inverse
        weighted += inverse @ by_overlaps
    coefficients: Floats = np.linalg.solve(precision, weighted).astype(np.float64)
    logarithm = _surface(coefficients, shape, degree)
    found = np.exp(logarithm - logarithm.mean())
    found /= found.mean()
    before = after = float("nan")
    if told is not None:
        before, after = _differences(told, coefficients, shape, degree, rate)
    forms = _basis(grid.reshape(-1, 2), shape, degree)
    scatter = float(np.sqrt(np.trace(np.linalg.inv(precision) @ np.cov(forms.T))))
    return Estimate(found.astype(np.float32), scatter, float(np.exp(rate)), before, after, n_frames, len(blocks.frames))


def block_edge(across: int, degree: int = DEGREE) -> int:
    """Edge of the blocks of frames that are so many pixels across.

    There must be clearly more blocks across than a polynomial of the degree has terms: on 4 blocks one of degree 4 is
    a sum of those below it, and any field fits.
    """
    return max(_LEAST_EDGE, min(BLOCK, across // (3 * max(degree, 1))))


def _edge_in_overlaps(shared: NDArray[np.int64], edge: int, degree: int) -> int:
    """Edge of the blocks by which narrow overlaps, too, tell all polynomials: as many blocks as there are, across."""
    return max(_LEAST_EDGE, min(edge, int(np.median(shared.min(1))) // max(degree, 1))) if len(shared) else edge


def overlap_difference(
    frames: Sequence[NDArray[Any]], corners: Sequence[tuple[int, int]], field: NDArray[Any] | None = None
) -> float:
    """Mean absolute difference of the blocks in all overlaps, after the frames were divided by a field, grey levels."""
    shape = frames[0].shape[0], frames[0].shape[1]
    edge = block_edge(min(shape))
    gain = 1.0 if field is None else float(field.mean()) / field.astype(np.float64)
    corrected = [frame.astype(np.float64) * gain for frame in frames]
    found = []
    for first, second in _overlapping(np.asarray(corners, np.int64), shape, _LEAST_OVERLAP * edge):
        cut = _cut(corners[first], corners[second], shape, edge)
        one, two = (_block_means(corrected[n][part], edge) for n, part in zip((first, second), cut, strict=True))
        found.append(np.abs(one - two).ravel())
    return float(np.concatenate(found).mean())


def _overlapping(corners: NDArray[np.int64], shape: tuple[int, int], least: int) -> list[tuple[int, int]]:
    """Pairs of frames that share enough, the earlier one first; of very many, some from everywhere."""
    found: list[tuple[int, int]] = []
    for first in range(len(corners) - 1):
        shared = np.asarray(shape) - np.abs(corners[first + 1 :] - corners[first])
        # Of one that was taken again at the same place nothing can be learned of the field.
        useful = (shared.min(1) >= least) & (shared < np.asarray(shape) - least // 2).any(1)
        found += [(first, first + 1 + int(offset)) for offset in np.flatnonzero(useful)]
    step = -(-len(found) // _MOST_OVERLAPS)
    return found[:: max(1, step)]


def _cut(
    first: tuple[int, int], second: tuple[int, int], shape: tuple[int, int], edge: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """What two frames share, in whole blocks, as parts of either."""
    top, left = max(first[0], second[0]), max(first[1], second[1])
    height = (min(first[0], second[0]) + shape[0] - top) // edge * edge
    width = (min(first[1], second[1]) + shape[1] - left) // edge * edge
    one, two = (
        (slice(top - row, top - row + height), slice(left - col, left - col + width)) for row, col in (first, second)
    )
    return one, two


def _block_means(image: NDArray[Any], edge: int) -> Floats:
    height, width = (size // edge for size in image.shape)
    whole = image[: height * edge, : width * edge].reshape(height, edge, width, edge)
    means: Floats = whole.mean((1, 3), dtype=np.float64)
    return means


def _look(
    frames: Iterable[NDArray[Any]],
    corners: Sequence[tuple[int, int]],
    shape: tuple[int, int],
    pairs: list[tuple[int, int]],
    dark: NDArray[Any] | float,
    edge: int,
) -> tuple[_Blocks, list[Floats]]:
    """Take from each frame what is needed of it."""
    partners: dict[int, list[int]] = {}
    last_use: dict[int, int] = {}
    for first, second in pairs:
        partners.setdefault(second, []).append(first)
        last_use[first] = max(last_use.get(first, 0), second)
    kept: dict[int, NDArray[np.float32]] = {}
    blocks, profiles = _Blocks(), []
    for number, frame in enumerate(frames):
        if number >= len(corners):
            break
        if frame.shape != tuple(shape):
            raise EstimateError(f"frame {number} is {frame.shape}, the others are {tuple(shape)}")
        light = frame.astype(np.float32) - np.asarray(dark, np.float32)
        profiles.append(_block_means(light, edge))
        for other in partners.get(number, ()):
            if other not in kept:
                continue
            cut = _cut(corners[other], corners[number], shape, edge)
            _compare(blocks, (other, number), (kept[other], light), cut, edge)
        if number in last_use:
            kept[number] = light
        for done in [one for one in kept if last_use[one] <= number]:
            del kept[done]
    return blocks, profiles


def _compare(
    blocks: _Blocks,
    pair: tuple[int, int],
    frames: tuple[NDArray[np.float32], NDArray[np.float32]],
    cut: tuple[tuple[slice, slice], tuple[slice, slice]],
    edge: int,
) -> None:
    values = [_block_means(frame[part], edge) for frame, part in zip(frames, cut, strict=True)]
    height, width = values[0].shape
    offsets = np.moveaxis(np.indices((height, width)), 0, -1) * edge + (edge - 1) / 2
    places = [offsets + np.array([part[0].start, part[1].start]) for part in cut]
    middle = np.log(np.maximum(np.mean(values, 0), 1e-6))
    slope_row, slope_col = np.gradient(middle) if min(height, width) > 1 else (np.zeros_like(middle),) * 2
    blocks.values.append(np.stack([one.ravel() for one in values], -1))
    blocks.places.append(np.stack([one.reshape(-1, 2) for one in places], 1))
    blocks.texture.append((slope_row**2 + slope_col**2).ravel())
    blocks.frames.append(pair)


@dataclass(frozen=True, slots=True)
class _Told:
    """What overlaps say: of each usable block the logarithms' difference, its places, weight and overlap."""

    difference: Floats
    values: Floats
    places: Floats
    weight: Floats
    overlap: NDArray[np.int64]
    n_overlaps: int
    elapsed: Floats  # frames between the two


def _told_by_overlaps(blocks: _Blocks, least: float) -> _Told | None:
    if not blocks.frames:
        return None
    values = np.concatenate(blocks.values)
    usable = np.isfinite(values).all(1) & (values > least).all(1)
    if not usable.any():
        return None
    counts = [len(one) for one in blocks.values]
    overlap = np.repeat(np.arange(len(counts)), counts)[usable]
    pairs = np.asarray(blocks.frames)
    texture = np.concatenate(blocks.texture)[usable]
    values = values[usable]
    return _Told(
        difference=np.log(values[:, 0] / values[:, 1]),
        values=values,
        places=np.concatenate(blocks.places)[usable],
        weight=1 / (1 + texture / max(float(np.median(texture)), 1e-12)),
        overlap=overlap,
        n_overlaps=len(counts),
        elapsed=(pairs[:, 0] - pairs[:, 1])[overlap].astype(np.float64),
    )


def _from_overlaps(told: _Told, shape: tuple[int, int], degree: int, bleaching: bool) -> tuple[Floats, Floats, float]:
    """Coefficients of log(field), their covariance, and the logarithm of what is left from frame to frame."""
    design = _basis(told.places[:, 0], shape, degree) - _basis(told.places[:, 1], shape, degree)
    n_forms = design.shape[1]
    if bleaching:
        design = np.column_stack([design, told.elapsed])
    prior = np.eye(design.shape[1]) / _PRIOR**2
    robust = np.ones(len(design))
    scale = 1.0
    for _ in range(_ROUNDS):
        weight = robust * told.weight
        normal = (design * weight[:, None]).T @ design / scale**2 + prior
        found = _solved(normal, (design * weight[:, None]).T @ told.difference / scale**2)
        rest = (told.difference - design @ found) * np.sqrt(told.weight)
        scale = 1.4826 * float(np.median(np.abs(rest))) + 1e-6
        robust = 1 / (1 + (rest / scale) ** 2)
    weight = robust * told.weight
    normal = (design * weight[:, None]).T @ design / scale**2 + prior
    inverse = _solved(normal, np.eye(len(normal)))
    # Blocks of one overlap share its error of position: the scatter counts from overlap to overlap, not block to block.
    scores = np.zeros((told.n_overlaps, design.shape[1]))
    np.add.at(scores, told.overlap, design * (weight * (told.difference - design @ found) / scale**2)[:, None])
    covariance = inverse @ (scores.T @ scores) @ inverse + inverse
    rate = float(found[n_forms]) if bleaching else 0.0
    return found[:n_forms], covariance[:n_forms, :n_forms], rate


def _solved(matrix: Floats, right: Floats) -> Floats:
    solution: Floats = np.linalg.solve(matrix, right).astype(np.float64)
    return solution


def _from_frames(stack: Floats, design: Floats, least: float) -> tuple[Floats, Floats | None]:
    """Mean of the coefficients of the logarithms of all frames, and its variance; None if there are too few."""
    n_frames, n_forms = len(stack), design.shape[1]
    logarithms = np.log(np.maximum(np.nan_to_num(stack.reshape(n_frames, -1)), least))
    with_level = np.column_stack([np.ones(len(design)), design])
    of_each = np.linalg.lstsq(with_level, logarithms.T, rcond=None)[0][1:].T
    if n_frames < _FEWEST_FRAMES:
        return np.zeros(n_forms), None
    middle = np.median(of_each, 0)
    spread = 1.4826 * np.median(np.abs(of_each - middle), 0)
    # Of a median; few frames are known to scatter more than they show.
    variance = np.maximum(1.57 * spread**2 / n_frames * (n_frames - 1) / (n_frames - 3), 1e-8)
    return middle, variance


def _basis(places: Floats, shape: tuple[int, int], degree: int) -> Floats:
    """Values of the polynomials, but for the constant, at (row, col): shape (n, number of forms)."""
    down, right = (legvander(2 * (places[:, axis] + 0.5) / shape[axis] - 1, degree) for axis in (0, 1))
    return np.stack([down[:, row] * right[:, col] for row, col in _forms(degree)], -1)


def _surface(coefficients: Floats, shape: tuple[int, int], degree: int) -> Floats:
    """The sum of the polynomials at every pixel."""
    down, right = (legvander(2 * (np.arange(size) + 0.5) / size - 1, degree) for size in shape)
    table = np.zeros((degree + 1, degree + 1))
    for value, place in zip(coefficients, _forms(degree), strict=True):
        table[place] = value
    surface: Floats = down @ table @ right.T
    return surface


def _forms(degree: int) -> list[tuple[int, int]]:
    return [(row, col) for row in range(degree + 1) for col in range(degree + 1 - row) if row + col]


def _differences(
    told: _Told, coefficients: Floats, shape: tuple[int, int], degree: int, rate: float
) -> tuple[float, float]:
    """Mean absolute difference of the blocks before and after."""
    # Light that the earlier frame had more, half of it on either side.
    fading = np.exp(rate * told.elapsed / 2)
    values = told.values * np.stack([1 / fading, fading], -1)
    level = _surface(coefficients, shape, degree)
    gains = [np.exp(level.mean() - _basis(told.places[:, side], shape, degree) @ coefficients) for side in (0, 1)]
    before = np.abs(values[:, 0] - values[:, 1]).mean()
    after = np.abs(values[:, 0] * gains[0] - values[:, 1] * gains[1]).mean()
    return float(before), float(after)
