"""What a stage does to all frames alike: an affine map with drift, found from the shifts between frames.

A stage whose axes are turned or scaled against the camera is off by an amount that grows with the position; one that
warms up is off by more with every frame. Both show in the shifts of neighbours long before all frames are there, so
that the next frame can be placed, and looked for, where it will really be. What is left of the shifts is the stage's
scatter, of which no model knows.

Not known here: pixels, and single frames.

>>> nominal = np.array([[0.0, 0], [0, 100], [0, 200]])
>>> shifts = np.array([[1.0, 100], [1, 100]])  # the camera is turned by a hundredth
>>> model = fit(nominal, [0, 1, 2], np.array([[0, 1], [1, 2]]), shifts, np.ones(2))
>>> model.correction(np.array([[0.0, 300.0]]), [3]).round(1).tolist()
[[3.0, 0.0]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SCATTER_PX = 3.0  # of a stage, to begin with
_SKEW = 0.02  # what to expect of an affine map: 2 pixels in 100
_DRIFT_PX = 1.0  # and of drift, per frame
_ROUNDS = 8


@dataclass(frozen=True, slots=True, eq=False)
class StageModel:
    """By how much the true position differs from the stage's, as a function of it and of time.

    Attributes
    ----------
    matrix : (2, 3) array
        Pixels (rows, columns) of correction per pixel of row, per pixel of column, and per frame.
    scatter_px : float
        What it leaves unexplained of a shift between neighbours, pixels (a median, of the longer axis).
    n_edges : int
        From how many shifts it was made.
    """

    matrix: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 3)))
    scatter_px: float = 0.0
    n_edges: int = 0

    def correction(self, nominal: NDArray[Any], index: Sequence[int] | NDArray[Any]) -> NDArray[np.float64]:
        """What to add to nominal positions, up to one shift of all.

        Parameters
        ----------
        nominal : (n, 2) array
            Rows and columns, pixels.
        index : n numbers
            Of the frames, in the order of the recording.
        """
        return _terms(nominal, index) @ self.matrix.T

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "matrix": [[float(value) for value in row] for row in self.matrix],
            "scatter_px": float(self.scatter_px),
            "n_edges": self.n_edges,
        }


def fit(
    nominal: NDArray[Any],
    index: Sequence[int] | NDArray[Any],
    pairs: NDArray[Any],
    shifts: NDArray[Any],
    weights: NDArray[Any],
) -> StageModel:
    """The model that explains shifts best, least squares weighted anew so that a few wrong shifts do not matter.

    Parameters
    ----------
    nominal : (n, 2) array
        Positions by the stage, pixels.
    index : n numbers
        Of the frames, in the order of the recording.
    pairs : (m, 2) array of int
        Which two frames each shift is between.
    shifts : (m, 2) array
        The second's position less the first's, pixels.
    weights : (m,) array
        Of the shifts.
    """
    if not len(pairs):
        return StageModel()
    terms = _terms(nominal, index)
    first, second = pairs[:, 0], pairs[:, 1]
    change = terms[second] - terms[first]
    off = shifts - (nominal[second] - nominal[first])
    prior = np.diag(_SCATTER_PX**2 / np.array([_SKEW, _SKEW, _DRIFT_PX]) ** 2)
    trust = np.array(weights, float)
    matrix = np.zeros((2, 3))
    left = np.abs(off).max(axis=1)
    for _ in range(_ROUNDS):
        weighted = change * trust[:, None]
        matrix = np.linalg.solve(weighted.T @ change + prior, weighted.T @ off).T
        left = np.abs(off - change @ matrix.T).max(axis=1)
        scale = max(1.0, 1.5 * float(np.median(left)))
        trust = weights / (1 + (left / scale) ** 2)
    return StageModel(matrix, float(np.median(left)), len(pairs))


def _terms(nominal: NDArray[Any], index: Sequence[int] | NDArray[Any]) -> NDArray[np.float64]:
    return np.column_stack([nominal[:, 0], nominal[:, 1], np.asarray(index)]).astype(float)
