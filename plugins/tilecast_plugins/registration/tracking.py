"""Frames one after the other: each is compared with those beside it, and placed by what they show and by a model.

This is what happens while a scan goes on, and the first half of a finish: both find the same shifts, since both take
the frames in the order of the recording. The stage's model grows with the shifts, and is taken off before the next
frame is looked for, so a stage that drifts does not leave the range that is searched.

Where frames come in no order, many have no neighbour yet. Groups that hang together are kept as such, and one of them,
the one in which the first shift was found, is that to which the others are joined as whole groups when a frame connects
them. A frame is *settled* once it belongs to that group, and not moved again: so each is corrected once.

What a frame costs does not grow with the mosaic: its neighbours are found on a grid, it is compared with few of them,
and the model is fitted to the last shifts. Pixels of neighbours are kept while there is room, else asked for again.

Not known here: where pixels come from, and what becomes of positions.

>>> rng = np.random.default_rng(0)
>>> scene = rng.normal(1000, 100, (64, 200)).round().astype(np.uint16)
>>> frames = {0: scene[2:62, :70], 1: scene[:60, 50:120]}
>>> tracker = Tracker((60, 70), PairOptions(max_shift_px=8), frames.__getitem__)
>>> tracker.add(0, (0, 0)).settled
{}
>>> tracker.add(1, (0, 46)).settled
{0: (0, 0), 1: (-2, 4)}
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilecast_plugins.registration.model import StageModel, fit
from tilecast_plugins.registration.pairs import PairOptions, is_pair, match, overlap_of
from tilecast_plugins.registration.solve import Edges

_MOST_PAIRS = 6  # a frame is compared with; on a stage that stays where it is, there are any number
_MODEL_EDGES = 400  # the last shifts that the model follows
_AGREE_PX = 3.0  # shifts of one frame that say the same
_STAGE_WEIGHT = 1e-2  # of the model's word beside that of shifts
CACHE_BYTES = 256 << 20


class Tracked(NamedTuple):
    """What is known when a frame has been compared; what is to be added to nominal rows and columns, whole pixels.

    Attributes
    ----------
    predicted : (int, int)
        For this frame, by the stage's model alone, before it was compared.
    settled : dict of int to (int, int)
        For frames that are settled from now on, by their numbers here.
    n_edges : int
        Shifts that were found.
    """

    predicted: tuple[int, int]
    settled: dict[int, tuple[int, int]]
    n_edges: int


class Tracker:
    """Frames of one plane, one after the other. One thread at a time.

    Parameters
    ----------
    shape : (rows, columns)
        Of each frame.
    options : PairOptions
    load : callable
        Gives the pixels of a frame that was added, by its number here.
    cache_bytes : int
        Memory for pixels of neighbours.

    Attributes
    ----------
    model : StageModel
        As of now.
    n_compared : int
        Pairs that were looked at.
    """

    def __init__(
        self,
        shape: Sequence[int],
        options: PairOptions,
        load: Callable[[int], NDArray[Any]],
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._shape = int(shape[0]), int(shape[1])
        self._options = options
        self._load = load
        self._cache_bytes = cache_bytes
        self.model = StageModel()
        self.n_compared = 0
        self._nominal: list[tuple[float, float]] = []
        self._index: list[int] = []
        self._found: list[tuple[float, float]] = []  # where each lies, as far as is known
        self._group: list[int] = []  # of each; the number of one of its frames
        self._members: dict[int, list[int]] = {}
        self._main = -1  # the group to which the others are joined
        self._cells: dict[tuple[int, int], list[int]] = defaultdict(list)
        self._edges: list[tuple[float, ...]] = []
        self._pixels: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self._nominal)

    @property
    def nominal(self) -> NDArray[np.float64]:
        """Positions by the stage, (n, 2)."""
        return np.array(self._nominal, float).reshape(-1, 2)

    @property
    def index(self) -> NDArray[np.int64]:
        """Of the frames, in the order of the recording."""
        return np.array(self._index, np.int64)

    def edges(self) -> Edges:
        """All shifts found so far."""
        return Edges.of(self._edges)

    def add(self, index: int, nominal: Sequence[float], pixels: NDArray[Any] | None = None) -> Tracked:
        """Compare the next frame with those beside it.

        Parameters
        ----------
        index : int
            Its place in the order of the recording.
        nominal : (row, col)
            Where the stage says that it lies.
        pixels : (rows, columns) array, optional
            Its pixels; loaded if need be. Not changed; kept.
        """
        number = len(self._nominal)
        row, col = float(nominal[0]), float(nominal[1])
        neighbours = self._neighbours(row, col)
        self._nominal.append((row, col))
        self._index.append(index)
        predicted = self._predicted(number, neighbours)
        self._found.append((float(predicted[0]), float(predicted[1])))
        self._cells[self._cell(row, col)].append(number)
        if pixels is not None:
            self._keep(number, pixels)
        self._group.append(number)
        self._members[number] = [number]
        edges = []
        for other in neighbours:
            expected = self._expected(other, number)
            if not is_pair(self._shape, expected):
                continue
            self.n_compared += 1
            found = match(self._of(other), self._of(number), expected, self._options)
            if found is not None:
                edges.append((other, number, *found))
        settled = {}
        if edges:
            self._edges += edges
            self._refit()
            settled = {one: self._shift(one) for one in self._join(number, edges, predicted)}
        return Tracked((round(predicted[0] - row), round(predicted[1] - col)), settled, len(edges))

    def _shift(self, number: int) -> tuple[int, int]:
        (row, col), (found_row, found_col) = self._nominal[number], self._found[number]
        return round(found_row - row), round(found_col - col)

    def _join(self, number: int, edges: Sequence[tuple[float, ...]], predicted: NDArray[np.float64]) -> list[int]:
        """Place a frame by its shifts, and join the groups that it connects; the frames that are settled by that."""
        by_group: dict[int, list[tuple[float, ...]]] = defaultdict(list)
        for edge in edges:
            by_group[self._group[int(edge[0])]].append(edge)
        best = max(by_group, key=lambda group: (group == self._main, sum(edge[4] for edge in by_group[group]), -group))
        self._found[number] = self._compromise(by_group[best], predicted)
        self._unite(number, best)
        if self._main < 0:
            self._main = best
            return sorted(self._members[best])
        settled = [number] if best == self._main else []
        for group, own in by_group.items():
            if group == best:
                continue
            # Where the frame lies by this group's word; the group moves by the difference.
            told = self._compromise(own, np.array(self._found[number]))
            off = np.subtract(self._found[number], told)
            for member in self._members[group]:
                self._found[member] = (self._found[member][0] + off[0], self._found[member][1] + off[1])
            if best == self._main:
                settled += self._members[group]
            self._unite(group, best)
        return sorted(settled)

    def _unite(self, group: int, into: int) -> None:
        for member in self._members[group]:
            self._group[member] = into
        self._members[into] += self._members.pop(group)

    def _cell(self, row: float, col: float) -> tuple[int, int]:
        return int(row // self._shape[0]), int(col // self._shape[1])

    def _neighbours(self, row: float, col: float) -> list[int]:
        """Those frames that a frame at this nominal position is compared with, the one it shares most with first."""
        down, right = self._cell(row, col)
        near: list[int] = []
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                # Of a stage that stays where it is, the last ones will do.
                near += self._cells.get((down + i, right + j), ())[-4 * _MOST_PAIRS :]
        common = []
        most = self._options.max_shift_px
        for other in near:
            there = self._nominal[other]
            rows, cols = overlap_of(self._shape, (row - there[0], col - there[1]))
            if rows > -most and cols > -most:
                common.append((-max(rows, 0) * max(cols, 0), -other))
        return [-other for _, other in sorted(common)[:_MOST_PAIRS]]

    def _terms(self, number: int) -> NDArray[np.float64]:
        row, col = self._nominal[number]
        return np.asarray(self.model.matrix @ np.array([row, col, self._index[number]]), float)

    def _expected(self, first: int, second: int) -> NDArray[np.float64]:
        """The shift between two frames, by the stage and its model."""
        nominal = np.subtract(self._nominal[second], self._nominal[first])
        return np.asarray(nominal + self._terms(second) - self._terms(first))

    def _predicted(self, number: int, neighbours: Sequence[int]) -> NDArray[np.float64]:
        """Where a frame should lie, by the model, and by where those around it, or the last ones, were found."""
        near = list(neighbours) or list(range(max(0, number - _MOST_PAIRS), number))
        if not near:
            return np.array(self._nominal[number])
        said = [np.add(self._found[other], self._expected(other, number)) for other in near]
        return np.asarray(np.median(said, axis=0))

    def _compromise(self, edges: Sequence[tuple[float, ...]], predicted: NDArray[np.float64]) -> tuple[float, float]:
        """Where a frame lies by its shifts, each with its weight; those that the better ones contradict left out."""
        said = [(np.add(self._found[int(first)], (row, col)), quality) for first, _, row, col, quality, _ in edges]
        best = max(said, key=lambda one: sum(q for place, q in said if np.abs(place - one[0]).max() <= _AGREE_PX))[0]
        total, weights = predicted * _STAGE_WEIGHT, _STAGE_WEIGHT
        for place, quality in said:
            if np.abs(place - best).max() <= _AGREE_PX:
                weight = quality / (quality + self._options.min_quality)
                total, weights = total + weight * place, weights + weight
        row, col = total / weights
        return float(row), float(col)

    def _refit(self) -> None:
        recent = Edges.of(self._edges[-_MODEL_EDGES:])
        numbers, pairs = np.unique(recent.pairs, return_inverse=True)
        nominal = np.array([self._nominal[number] for number in numbers])
        index = np.array([self._index[number] for number in numbers])
        self.model = fit(nominal, index, pairs.reshape(-1, 2), recent.shifts, recent.weights(self._options.min_quality))

    def _of(self, number: int) -> NDArray[Any]:
        if number not in self._pixels:
            self._keep(number, self._load(number))
        self._pixels.move_to_end(number)
        return self._pixels[number]

    def _keep(self, number: int, pixels: NDArray[Any]) -> None:
        self._pixels[number] = pixels
        self._held_bytes += pixels.nbytes
        while self._held_bytes > self._cache_bytes and len(self._pixels) > 2:
            _, dropped = self._pixels.popitem(last=False)
            self._held_bytes -= dropped.nbytes
