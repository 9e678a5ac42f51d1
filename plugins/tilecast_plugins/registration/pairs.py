"""The shift between two frames that overlap, from what both show there; or that nothing can be said of it.

Phase correlation (Kuglin and Hines, Proc. IEEE Int. Conf. Cybernetics and Society, 1975) of the two strips that may
overlap, and normalized cross-correlation of its leading peaks, as Preibisch, Saalfeld and Tomancak do it
(Bioinformatics 25, 2009). What is compared is band-passed, so that shading, which every frame of a microscope shares,
takes no part.

Told apart from luck
--------------------
Over n pixels that have nothing in common, the correlation ρ of band-passed strips, as artanh ρ · √n, is about a
standard normal number, and the best of all shifts reaches 4 or a little more (`kernels.significance`). So the *quality*
of a shift is that number, less the same of the next best shift elsewhere, or less 4 where there is none as good. Strips
without texture have low numbers everywhere. A texture that repeats has two high ones, and no edge either. On real
scans, frames that have nothing in common reach 5, and those that overlap have 10 to 300.

Not known here: where frames come from, and what is made of shifts.

>>> rng = np.random.default_rng(0)
>>> scene = rng.normal(1000, 100, (64, 120)).round().astype(np.uint16)
>>> found = match(scene[:, :70], scene[2:, 50:], (0, 46), PairOptions(max_shift_px=8))
>>> found.row, found.col
(2, 50)
>>> match(scene[:, :70], rng.normal(1000, 100, (64, 70)), (0, 46), PairOptions(max_shift_px=8)) is None
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from tilecast_plugins.registration import kernels

MIN_QUALITY = 8.0
#: Strips that are narrower tell nothing.
MIN_OVERLAP_PX = 4

Vector = Sequence[float] | NDArray[Any]
"""Rows and columns."""

_MOST_PIXELS = 1 << 16  # of a strip as it is transformed; larger ones are binned
_MOST_SAMPLES = 1 << 17  # of an overlap as it is refined; of larger ones that part is taken which shows most
_N_PEAKS = 4  # of the phase correlation, and of the correlation
_APART_PX = 4  # peaks that are nearer to each other are one
_TAPER_PX = 6
_BLUR_PX = 0.7  # of the peaks: a shift that is not of whole pixels has its peak between them
_BY_CHANCE = 4.0  # what the best of many shifts reaches where there is nothing in common
_REPEATS = 0.8  # a second shift that correlates so much of the best one: the texture repeats
_LEAST_SIGNAL = 0.01  # part of a strip that must be above the background
_MOST_STEPS = 16  # of the refinement
_SPREAD_PX = 31  # over which the spread is taken for `normalize`


@dataclass(frozen=True, slots=True)
class PairOptions:
    """How frames are compared.

    Attributes
    ----------
    max_shift_px : int
        How far the shift may be from the expected one along either axis, pixels.
    min_quality : float
        Least quality of a shift that counts.
    background : float, optional
        Grey level at and below which a pixel shows nothing. Strips that hardly have others are not compared.
    clip : float, optional
        Grey level to which brighter pixels are taken down, so that a few do not decide.
    normalize : bool
        Divide by the spread of the pixels around, so that dim structures count as much as bright ones.
    """

    max_shift_px: int = 40
    min_quality: float = MIN_QUALITY
    background: float | None = None
    clip: float | None = None
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.max_shift_px < 1:
            raise ValueError(f"max_shift_px must be 1 or more; got {self.max_shift_px}")


class Match(NamedTuple):
    """Where the second of two frames lies.

    Attributes
    ----------
    row, col : int
        Its upper left pixel less that of the first, pixels.
    quality : float
        How far the shift stands out from chance and from all others, in standard deviations of chance.
    ncc : float
        Normalized cross-correlation of the overlap, as it is.
    """

    row: int
    col: int
    quality: float
    ncc: float


def overlap_of(shape: Sequence[int], shift: Vector) -> tuple[float, float]:
    """Rows and columns that two frames of one shape have in common at a shift; negative for none."""
    return shape[0] - abs(shift[0]), shape[1] - abs(shift[1])


def is_pair(shape: Sequence[int], shift: Vector) -> bool:
    """Whether two frames overlap along a side, and not only at a corner, so that it is worth looking.

    >>> is_pair((512, 512), (2, 435)), is_pair((512, 512), (435, 435))
    (True, False)
    """
    rows, cols = overlap_of(shape, shift)
    return min(rows, cols) >= MIN_OVERLAP_PX and (2 * rows >= shape[0] or 2 * cols >= shape[1])


def match(a: NDArray[Any], b: NDArray[Any], expected: Vector, options: PairOptions) -> Match | None:
    """Where frame `b` lies from frame `a`.

    Parameters
    ----------
    a, b : (rows, columns) arrays of one shape
    expected : (rows, columns)
        Where it should lie, pixels.
    options : PairOptions

    Returns
    -------
    Match or None
        None if nothing can be said: no overlap, no signal, no texture, one that repeats, or too low a quality.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    found = measure(a, b, expected, options)
    return found if found is not None and found.quality >= options.min_quality else None


def measure(a: NDArray[Any], b: NDArray[Any], expected: Vector, options: PairOptions) -> Match | None:
    """As `match`, whatever the quality; None if there is nothing to compare."""
    if a.shape != b.shape:
        raise ValueError(f"frames that are compared have one shape; got {a.shape} and {b.shape}")
    centre = np.rint(expected).astype(int)
    most = options.max_shift_px
    strips = _Strips.between(a.shape, centre, most)
    if strips is None:
        return None
    x, y = strips.cut(a, b)
    if options.background is not None:
        for strip in (x, y):
            if np.count_nonzero(strip > options.background) < _LEAST_SIGNAL * strip.size:
                return None
    x, y = _filtered(x, options), _filtered(y, options)
    scored = sorted(
        ((*kernels.significance(x, y, row, col), row, col) for row, col in _peaks(x, y, strips, centre, most)),
        reverse=True,
    )
    if not scored:
        return None
    best, alike, row, col = scored[0]
    others = [other for other in scored if max(abs(other[2] - row), abs(other[3] - col)) > _APART_PX]
    quality = best - max([_BY_CHANCE, *(other[0] for other in others)])
    # By how much, not by how surely: at another shift more of the same texture may overlap.
    if any(other > 2 * _BY_CHANCE and also > _REPEATS * alike for other, also, _, _ in others):
        quality = min(quality, 0.0)
    factor = strips.factor
    shift = np.array([row, col]) * factor + strips.offset
    if quality >= options.min_quality:
        part = _telling_part(x, y, row, col, factor)
        shift = _refined(a, b, shift, centre, most, options, factor, part)
    step = _step_of(a.shape, shift)
    ncc, _ = kernels.correlation(a, b, int(shift[0]), int(shift[1]), step)
    return Match(int(shift[0]), int(shift[1]), float(quality), float(ncc))


class _Strips(NamedTuple):
    """Those parts of two frames that may overlap, and by how much they are binned."""

    corner_a: tuple[int, int]
    corner_b: tuple[int, int]
    shape_a: tuple[int, int]
    shape_b: tuple[int, int]
    factor: int

    @classmethod
    def between(cls, shape: Sequence[int], shift: NDArray[Any], most: int) -> _Strips | None:
        """For frames of one shape, the second of which lies at `shift`, or up to `most` from there."""
        size = np.asarray(shape)
        low_a, high_a = np.maximum(0, shift - most), np.minimum(size, shift + size + most)
        low_b, high_b = np.maximum(0, -shift - most), np.minimum(size, size - shift + most)
        if min((high_a - low_a).min(), (high_b - low_b).min()) < MIN_OVERLAP_PX:
            return None
        area = max(int(np.prod(high_a - low_a)), int(np.prod(high_b - low_b)))
        factor = 1
        while area > _MOST_PIXELS * factor**2:
            factor += 1
        return cls(
            (int(low_a[0]), int(low_a[1])),
            (int(low_b[0]), int(low_b[1])),
            (int(high_a[0] - low_a[0]) // factor, int(high_a[1] - low_a[1]) // factor),
            (int(high_b[0] - low_b[0]) // factor, int(high_b[1] - low_b[1]) // factor),
            factor,
        )

    def part(self, begin: float, end: float) -> _Strips:
        """Of unbinned strips what lies between two fractions of their longer side."""
        axis = int(self.shape_a[1] > self.shape_a[0])
        size = min(self.shape_a[axis], self.shape_b[axis])
        first, last = int(begin * size), int(end * size)

        def cut(corner: tuple[int, int], shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
            if axis:
                return (corner[0], corner[1] + first), (shape[0], last - first)
            return (corner[0] + first, corner[1]), (last - first, shape[1])

        (corner_a, shape_a), (corner_b, shape_b) = cut(self.corner_a, self.shape_a), cut(self.corner_b, self.shape_b)
        return _Strips(corner_a, corner_b, shape_a, shape_b, self.factor)

    @property
    def offset(self) -> NDArray[np.int_]:
        """What is added to a shift between strips to have that between frames."""
        return np.subtract(self.corner_a, self.corner_b)

    def cut(self, a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The strips."""
        return (
            kernels.binned(a, *self.corner_a, *self.shape_a, self.factor),
            kernels.binned(b, *self.corner_b, *self.shape_b, self.factor),
        )


def _filtered(strip: NDArray[np.float32], options: PairOptions) -> NDArray[np.float32]:
    if options.clip is not None:
        strip = np.minimum(strip, np.float32(options.clip))
    if options.background is not None:
        strip = np.maximum(strip, np.float32(options.background))
    strip = kernels.band_passed(strip)
    if options.normalize:
        spread = np.sqrt(ndimage.uniform_filter(strip * strip, _SPREAD_PX, mode="nearest"))
        strip = strip / np.maximum(spread, np.float32(1e-6) + spread.mean() * np.float32(0.01))
    return strip


def _peaks(
    x: NDArray[np.float32], y: NDArray[np.float32], strips: _Strips, centre: NDArray[Any], most: int
) -> list[tuple[int, int]]:
    """The leading peaks of two strips' phase correlation, and of their correlation: where the second lies in the first.

    The true shift is among the former. The latter has peaks, too, where a texture repeats.
    """
    factor = strips.factor
    reach = -(-most // factor)
    around = np.rint((centre - strips.offset) / factor).astype(int)
    shape = tuple(fft.next_fast_len(max(x.shape[axis], y.shape[axis]) + reach + 1, real=axis == 1) for axis in (0, 1))
    cross = fft.rfft2(x * _taper(x.shape), shape)
    cross *= np.conj(fft.rfft2(y * _taper(y.shape), shape))
    rows, cols = (np.arange(-reach, reach + 1) + around[axis] for axis in (0, 1))
    # Only where enough of both is left to overlap.
    wide = [
        (np.minimum(x.shape[axis], places + y.shape[axis]) - np.maximum(0, places)) * factor >= MIN_OVERLAP_PX
        for axis, places in enumerate((rows, cols))
    ]
    size = np.abs(cross)
    # Where there is next to nothing, there is no phase either.
    phases = cross * (_low_pass(shape) / (size + (np.float32(1e-4) * size.mean() + np.float32(1e-30))))
    found: list[tuple[int, int]] = []
    for spectrum in (phases, cross):
        surface = fft.irfft2(spectrum, shape)
        part = surface[np.ix_(rows % shape[0], cols % shape[1])]
        part[~np.logical_and.outer(*wide)] = -np.inf
        for _ in range(_N_PEAKS):
            i, j = (int(place) for place in np.unravel_index(int(part.argmax()), part.shape))
            if not np.isfinite(part[i, j]):
                break
            found.append((int(rows[i]), int(cols[j])))
            part[max(0, i - _APART_PX) : i + _APART_PX + 1, max(0, j - _APART_PX) : j + _APART_PX + 1] = -np.inf
    return found


@lru_cache(maxsize=16)
def _taper(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Weights that fall off towards the edges, which would otherwise correlate with each other."""
    ramps = []
    for size in shape:
        place = np.arange(size)
        ramps.append(np.minimum(1.0, (np.minimum(place, size - 1 - place) + 1) / (_TAPER_PX + 1)))
    return np.outer(*ramps).astype(np.float32)


@lru_cache(maxsize=16)
def _low_pass(shape: tuple[int, int]) -> NDArray[np.float32]:
    across, along = fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])[None]
    return np.asarray(np.exp(-2 * np.pi**2 * _BLUR_PX**2 * (across**2 + along**2)), np.float32)


def _telling_part(
    x: NDArray[np.float32], y: NDArray[np.float32], row: int, col: int, factor: int
) -> tuple[float, float]:
    """Of a large overlap of two strips the part of its longer side, as fractions, in which most of both is seen."""
    top, left = max(0, row), max(0, col)
    bottom, right = min(x.shape[0], row + y.shape[0]), min(x.shape[1], col + y.shape[1])
    n_parts = -(-(bottom - top) * (right - left) * factor**2 // _MOST_SAMPLES)
    if n_parts < 2:
        return 0.0, 1.0
    product = np.abs(x[top:bottom, left:right] * y[top - row : bottom - row, left - col : right - col])
    parts = np.array_split(product, n_parts, axis=int(product.shape[1] > product.shape[0]))
    best = int(np.argmax([part.sum() for part in parts]))
    return best / n_parts, (best + 1) / n_parts


def _step_of(shape: Sequence[int], shift: Vector) -> int:
    rows, cols = overlap_of(shape, shift)
    return max(1, int(rows * cols) // _MOST_SAMPLES)


def _refined(
    a: NDArray[Any],
    b: NDArray[Any],
    shift: NDArray[np.int_],
    centre: NDArray[Any],
    most: int,
    options: PairOptions,
    factor: int,
    part: tuple[float, float],
) -> NDArray[np.int_]:
    """The shift nearby at which the band-passed frames, unbinned, correlate most: uphill, step by step.

    Only a part of the strips is looked at, from one fraction of their longer side to another.
    """
    margin = factor + 2
    strips = _Strips.between(a.shape, shift, margin)
    if strips is None:
        return shift
    strips = strips._replace(
        shape_a=(strips.shape_a[0] * strips.factor, strips.shape_a[1] * strips.factor),
        shape_b=(strips.shape_b[0] * strips.factor, strips.shape_b[1] * strips.factor),
        factor=1,
    )
    strips = strips.part(*part)
    x, y = (_filtered(strip, options) for strip in strips.cut(a, b))
    offset = strips.offset
    known: dict[tuple[int, int], float] = {}

    def height(row: int, col: int) -> float:
        if max(abs(row - centre[0]), abs(col - centre[1])) > most:
            return -2.0
        if (row, col) not in known:
            known[row, col], _ = kernels.correlation(x, y, row - int(offset[0]), col - int(offset[1]), 1)
        return known[row, col]

    row, col = int(shift[0]), int(shift[1])
    for _ in range(_MOST_STEPS):
        best = max(
            (height(row + i, col + j), -abs(i) - abs(j), row + i, col + j) for i in (-1, 0, 1) for j in (-1, 0, 1)
        )
        if best[2:] == (row, col):
            break
        row, col = best[2:]
    return np.array([row, col])
