"""Finds how the second half of a dual-view camera lies on the first, from a picture of beads seen in both.

Beads are bright points: maxima of the smoothed half that stand out of its noise, each placed to a fraction of a pixel
by its centre of mass. The halves are brought together roughly by the shift at which they correlate best; then each
bead is matched with the nearest one of the other half, and an affine transform is fitted to the pairs, again and
again, without those that lie far off. Its residual says what to believe of it.

Coordinates are (row, col) in pixels, of pixel centres: the centre of the first pixel is (0, 0). The transform leads
from a pixel of the first half to the place of the same specimen in the second: `place = matrix @ (row, col) + shift`.

Examples
--------
>>> rng = np.random.default_rng(1)
>>> at = rng.uniform(20, 180, (40, 2))
>>> rows, cols = np.indices((200, 200))
>>> def picture(places):
...     spots = sum(np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / 4) for row, col in places)
...     return 100 + 1000 * spots
>>> found = register(picture(at), picture(at * 1.01 + (3.5, -2.25)))
>>> bool(np.abs(found.place(np.array([[100.0, 50.0]])) - (104.5, 48.25)).max() < 0.1), found.n_beads > 20
(True, True)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SMOOTH_PX: Final = 1.0
_REACH: Final = 3  # pixels around a maximum that belong to its bead
_LOUD: Final = 8.0  # standard deviations of the noise
_FEWEST_BEADS: Final = 6
_ROUNDS: Final = 10


class RegistrationError(ValueError):
    """The picture does not tell how the halves lie on each other; the message says why, and what would."""


@dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """Where pixels of the first half are found in the second.

    Attributes
    ----------
    matrix : ndarray, shape (2, 2)
    shift_px : ndarray, shape (2,)
    n_beads : int
        Pairs that it was fitted to.
    residual_px : float
        Root of the mean squared distance of these.
    """

    matrix: Floats
    shift_px: Floats
    n_beads: int
    residual_px: float

    def place(self, places: Floats) -> Floats:
        """Where places (n, 2) of the first half lie in the second."""
        return places @ self.matrix.T + self.shift_px


def register(first: NDArray[Any], second: NDArray[Any], *, max_distance_px: float = 8.0) -> Registration:
    """Fit the transform to the beads in both halves.

    Parameters
    ----------
    first, second : ndarray, 2-D
        The halves, of one shape; the second mirrored back already if the optics mirror it.
    max_distance_px : float
        How far from where the rough shift says a bead may lie.

    Raises
    ------
    RegistrationError
        If there are too few beads, or they do not lie alike.
    """
    ours, theirs = beads(first), beads(second)
    for name, found in (("first", ours), ("second", theirs)):
        if len(found) < _FEWEST_BEADS:
            raise RegistrationError(
                f"{len(found)} beads were found in the {name} half, and {_FEWEST_BEADS} are needed: take a picture "
                "with more of them, in focus and not saturated, all over the field"
            )
    matrix, shift = np.eye(2), _rough_shift(ours, theirs, first.shape)
    allowed = max_distance_px
    pairs = np.empty((0, 2), np.int64)
    for _ in range(_ROUNDS):
        pairs = _nearest(ours @ matrix.T + shift, theirs, allowed)
        if len(pairs) < _FEWEST_BEADS:
            raise RegistrationError(
                f"only {len(pairs)} of {len(ours)} beads have a partner in the other half within {allowed:.1f} pixels: "
                "is the picture split where it should be, and is a half mirrored (--mirror)?"
            )
        matrix, shift = _fit(ours[pairs[:, 0]], theirs[pairs[:, 1]])
        rest = np.linalg.norm(ours[pairs[:, 0]] @ matrix.T + shift - theirs[pairs[:, 1]], axis=1)
        allowed = float(np.clip(4 * np.median(rest), 0.5, allowed))
    rest = np.linalg.norm(ours[pairs[:, 0]] @ matrix.T + shift - theirs[pairs[:, 1]], axis=1)
    if abs(np.linalg.det(matrix)) < 0.25 or not np.isfinite(matrix).all():
        raise RegistrationError("the beads lie on a line: take a picture in which they lie all over the field")
    return Registration(matrix, shift, len(pairs), float(np.sqrt((rest**2).mean())))


def beads(image: NDArray[Any]) -> Floats:
    """Places of the beads in an image, (row, col) to a fraction of a pixel, shape (n, 2)."""
    smooth = _smoothed(image.astype(np.float64))
    level = float(np.median(smooth))
    noise = 1.4826 * float(np.median(np.abs(smooth - level))) or float(smooth.std()) / _LOUD or 1.0
    reach = _REACH
    inner = smooth[reach:-reach, reach:-reach]
    is_peak = inner > level + _LOUD * noise
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if (down, right) != (0, 0):
                height, width = smooth.shape
                other = smooth[reach + down : height - reach + down, reach + right : width - reach + right]
                # Of neighbours that are equal the last one is taken.
                is_peak &= inner > other if (down, right) > (0, 0) else inner >= other
    offsets = np.arange(-reach, reach + 1)
    found = []
    for row, col in np.argwhere(is_peak) + reach:
        part = smooth[row - reach : row + reach + 1, col - reach : col + reach + 1]
        light = np.maximum(part - part.min(), 0)
        total = light.sum()
        found.append((row + (light.sum(1) @ offsets) / total, col + (light.sum(0) @ offsets) / total))
    return np.asarray(found, np.float64).reshape(-1, 2)


def _smoothed(image: Floats) -> Floats:
    reach = np.arange(-3, 4)
    kernel = np.exp(-(reach**2) / (2 * _SMOOTH_PX**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(image, [(3, 3) if axis == other else (0, 0) for other in (0, 1)], mode="edge")
        size = image.shape[axis]
        image = sum(weight * np.take(padded, np.arange(at, at + size), axis=axis) for at, weight in enumerate(kernel))
    return image


def _rough_shift(ours: Floats, theirs: Floats, shape: tuple[int, ...]) -> Floats:
    """The shift at which most beads of the halves meet: pictures of dots, correlated."""
    spectra = []
    size = [2 * length for length in shape]
    for found in (ours, theirs):
        dots = np.zeros(size)
        for row, col in np.rint(found).astype(int):
            dots[max(0, row - 1) : row + 2, max(0, col - 1) : col + 2] += 1
        spectra.append(np.fft.rfft2(_smoothed(dots)))
    match = np.fft.irfft2(np.conj(spectra[0]) * spectra[1], s=size)
    peak = np.array(np.unravel_index(int(match.argmax()), match.shape), np.float64)
    return np.where(peak > np.array(size) / 2, peak - size, peak)


def _nearest(ours: Floats, theirs: Floats, within: float) -> NDArray[np.int64]:
    """Pairs that are each other's nearest."""
    distances = np.linalg.norm(ours[:, None] - theirs[None], axis=2)
    to_theirs, to_ours = distances.argmin(1), distances.argmin(0)
    mutual = to_ours[to_theirs] == np.arange(len(ours))
    near = distances[np.arange(len(ours)), to_theirs] <= within
    first = np.flatnonzero(mutual & near)
    return np.stack([first, to_theirs[first]], 1)


def _fit(ours: Floats, theirs: Floats) -> tuple[Floats, Floats]:
    design = np.column_stack([ours, np.ones(len(ours))])
    solution: Floats = np.linalg.lstsq(design, theirs, rcond=None)[0].astype(np.float64)
    return solution[:2].T, solution[2]
