"""Where all frames lie, from the shifts between them: all at once, each shift with its weight, wrong ones left out.

The positions that contradict all shifts least, in the sense of least squares, are the solution of one sparse system of
linear equations. The stage (as its model corrects it) takes part with next to no weight: it decides where each group of
frames that hang together lies as a whole, and where frames lie that hang together with none. Shifts that the others
contradict are found by graduated non-convexity (Blake and Zisserman, *Visual Reconstruction*, 1987): their weights fall
with what is left of them, at first mildly. In place of all this, the shifts of the best spanning tree alone may be
taken, which are then met exactly.

Frames lie at whole pixels. If what is shifted by fractions of a pixel is a whole group, it is shifted back first, so
that shifts of whole pixels that agree are met exactly.

Not known here: pixels, files, what a frame is.

>>> nominal = np.array([[0.0, 0], [0, 90], [0, 180]])
>>> edges = Edges.of([(0, 1, 2, 91, 50.0, 0.9), (1, 2, -1, 90, 50.0, 0.9)])
>>> solve(nominal, [0, 1, 2], edges).positions.tolist()
[[-1, 0], [1, 91], [0, 181]]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

from tilecast_plugins.registration.model import StageModel, fit
from tilecast_plugins.registration.pairs import MIN_QUALITY

Method = Literal["lsq", "tree"]

_PRIOR = 1e-6  # the weight of the stage
_OUTLIER_PX = 3.0  # a shift of which more is left is wrong
_LIKELY_PX = 5.0  # what the stage may be off by, between two frames, and be believed
_SCALES_PX = (64.0, 32.0, 16.0, 8.0, 4.0, 2.0, 1.0)
_REJECTIONS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Edges:
    """Shifts between pairs of frames.

    Attributes
    ----------
    pairs : (m, 2) array of int
        Numbers of the two frames.
    shifts : (m, 2) array of float
        Position of the second less that of the first: rows, columns, pixels.
    quality, ncc : (m,) arrays
        As `pairs.Match` has them.
    """

    pairs: NDArray[np.int64]
    shifts: NDArray[np.float64]
    quality: NDArray[np.float64]
    ncc: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Iterable[Sequence[float]]) -> Self:
        """From rows (first, second, row, col, quality, ncc)."""
        table = np.array(list(rows), float).reshape(-1, 6)
        return cls(table[:, :2].astype(np.int64), table[:, 2:4], table[:, 4], table[:, 5])

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, chosen: NDArray[Any]) -> Edges:
        return Edges(self.pairs[chosen], self.shifts[chosen], self.quality[chosen], self.ncc[chosen])

    def weights(self, min_quality: float) -> NDArray[np.float64]:
        """What each counts: more with its quality, and never more than 1."""
        return self.quality / (self.quality + max(min_quality, 1.0))

    def left(self, positions: NDArray[Any]) -> NDArray[np.float64]:
        """What is left of each at given positions, along the axis where it is more; pixels."""
        found = positions[self.pairs[:, 1]] - positions[self.pairs[:, 0]]
        return np.asarray(np.abs(self.shifts - found).max(axis=1, initial=0.0), float)


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """Where all frames lie.

    Attributes
    ----------
    positions : (n, 2) array of int
        Rows and columns, whole pixels.
    exact : (n, 2) array of float
        Before they were rounded.
    component : (n,) array of int
        The group that each frame hangs together with, from 0.
    used : (m,) array of bool
        Shifts that took part; the others are of too low a quality, or are contradicted.
    left_px : (m,) array
        What is left of each shift.
    model : StageModel
    """

    positions: NDArray[np.int64]
    exact: NDArray[np.float64]
    component: NDArray[np.int64]
    used: NDArray[np.bool_]
    left_px: NDArray[np.float64]
    model: StageModel

    @property
    def n_components(self) -> int:
        """Groups of frames that hang together, single frames included."""
        return int(self.component.max(initial=-1)) + 1


def solve(
    nominal: NDArray[Any],
    index: Sequence[int] | NDArray[Any],
    edges: Edges,
    *,
    method: Method = "lsq",
    min_quality: float = MIN_QUALITY,
    fixed: int | None = None,
) -> Solution:
    """Place all frames.

    Parameters
    ----------
    nominal : (n, 2) array
        Where the stage says that they lie: rows, columns, pixels.
    index : n numbers
        Of the frames, in the order of the recording.
    edges : Edges
    method : 'lsq' or 'tree'
        All shifts, or those of the best spanning tree.
    min_quality : float
        Shifts of lower quality take no part.
    fixed : int, optional
        A frame that is to lie where the stage says; its group follows.
    """
    nominal = np.asarray(nominal, float).reshape(-1, 2)
    weights = edges.weights(min_quality)
    good = edges.quality >= min_quality
    model = fit(nominal, index, edges.pairs[good], edges.shifts[good], weights[good])
    stage = nominal + model.correction(nominal, index)
    used = _agreeing(stage, edges, weights, good)
    # What was wrong may have misled the model, too.
    model = fit(nominal, index, edges.pairs[used], edges.shifts[used], weights[used])
    stage = nominal + model.correction(nominal, index)
    if method == "tree":
        used = _spanning_tree(len(nominal), edges, used)
    exact = _least_squares(stage, edges.pairs[used], edges.shifts[used], weights[used])
    component = _components(len(nominal), edges.pairs[used])
    exact = _anchored(exact, nominal, stage, component)
    positions = _whole(exact, component)
    if fixed is not None:
        together = component == component[fixed]
        positions[together] += np.rint(nominal[fixed]).astype(np.int64) - positions[fixed]
    return Solution(positions, exact, component, used, edges.left(positions), model)


def _agreeing(stage: NDArray[Any], edges: Edges, weights: NDArray[Any], good: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the good edges are not contradicted by the others."""
    used = good.copy()
    if not used.any():
        return used
    pairs, shifts = edges.pairs[good], edges.shifts[good]
    # Of two that contradict each other the one that the stage finds likelier; where nothing does, that is no matter.
    off = np.abs(edges.left(stage)[good])
    some = weights[good] / (1 + (off / max(_LIKELY_PX, 3 * float(np.median(off)))) ** 2)
    trust = some
    left = np.zeros(len(some))
    for scale in _SCALES_PX:
        exact = _least_squares(stage, pairs, shifts, trust)
        left = np.abs(shifts - (exact[pairs[:, 1]] - exact[pairs[:, 0]])).max(axis=1)
        if left.max() <= _OUTLIER_PX / 2 and trust is some:
            return used  # no contradiction
        trust = some / (1 + (left / scale) ** 2) ** 2
    exact = _least_squares(stage, pairs, shifts, trust)
    for _ in range(_REJECTIONS):
        left = edges.left(exact)
        now = good & (left <= _OUTLIER_PX)
        if (now == used).all():
            break
        used = now
        exact = _least_squares(stage, edges.pairs[used], edges.shifts[used], weights[used])
    return used


def _least_squares(
    stage: NDArray[Any], pairs: NDArray[Any], shifts: NDArray[Any], weights: NDArray[Any]
) -> NDArray[np.float64]:
    """Positions that contradict the shifts least, each with its weight."""
    n, m = len(stage), len(pairs)
    if not m:
        return np.array(stage, float)
    rows = np.repeat(np.arange(m), 2)
    signs = np.tile([-1.0, 1.0], m)
    difference = sparse.csr_matrix((signs, (rows, pairs.ravel())), shape=(m, n))
    weighted = sparse.diags_array(weights) @ difference
    normal = (difference.T @ weighted + _PRIOR * sparse.eye_array(n)).tocsc()
    # Of the difference to the stage, so that no precision is lost in large numbers.
    off = shifts - (stage[pairs[:, 1]] - stage[pairs[:, 0]])
    moved = splu(normal, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}).solve(
        np.ascontiguousarray(weighted.T @ off)
    )
    return np.asarray(stage + moved, float)


def _components(n: int, pairs: NDArray[Any]) -> NDArray[np.int64]:
    graph = sparse.coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, labels = connected_components(graph, directed=False)
    return np.asarray(labels, np.int64)


def _spanning_tree(n: int, edges: Edges, used: NDArray[Any]) -> NDArray[np.bool_]:
    """Of the edges in use, those of the tree with the highest quality (Kruskal's algorithm)."""
    parent = list(range(n))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    chosen = np.zeros(len(edges), bool)
    numbers = np.flatnonzero(used)
    order = np.lexsort((edges.pairs[numbers, 1], edges.pairs[numbers, 0], -edges.quality[numbers]))
    for number in numbers[order]:
        first, second = (root(int(node)) for node in edges.pairs[number])
        if first != second:
            parent[second] = first
            chosen[number] = True
    return chosen


def _anchored(
    exact: NDArray[Any], nominal: NDArray[Any], stage: NDArray[Any], component: NDArray[Any]
) -> NDArray[np.float64]:
    """Each group shifted as a whole to where the stage has it, by the median, so that one frame far off is no matter.

    The model says nothing of one shift of all frames: it is such that the largest group lies where the stage says.
    """
    anchored = exact.copy()
    if not len(exact):
        return anchored
    sizes = np.bincount(component)
    largest = component == int(sizes.argmax())
    common = np.median((nominal - stage)[largest], axis=0)
    order = np.argsort(component, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    for number in range(len(sizes)):
        members = order[bounds[number] : bounds[number + 1]]
        anchored[members] += np.median((stage - exact)[members], axis=0) + common
    return anchored


def _whole(exact: NDArray[Any], component: NDArray[Any]) -> NDArray[np.int64]:
    """Whole pixels, after the fraction that a group has in common is taken off."""
    angle = np.exp(2j * np.pi * exact)
    sums = np.zeros((int(component.max(initial=-1)) + 1, 2), complex)
    np.add.at(sums, component, angle)
    # Where fractions are spread evenly there is none in common.
    common = np.where(np.abs(sums) > 1e-6, np.angle(sums) / (2 * np.pi), 0.0)
    return np.asarray(np.rint(exact - common[component]), np.int64)


def without(edges: Edges, frames: Iterable[int]) -> Edges:
    """The edges that touch none of some frames."""
    touched = np.isin(edges.pairs, np.fromiter(frames, np.int64))
    return edges[~(touched[:, 0] | touched[:, 1])]
