"""What a pixel shows that several frames cover: the six blend modes, one tile at a time.

| mode | a pixel's value | kept per pixel beside the tile, once a second frame comes | order of frames |
|---|---|---|---|
| feather | (Σ w·v + Σ w div 2) div Σ w, w falling off to the frame's edges | Σ w·v, Σ w | free |
| mean | the same with w = 1 | Σ v, number | free |
| max, min | the largest, the smallest | nothing: the tile is its own state | free |
| newest | of the frame recorded last (highest journal index, then view) | nothing | journal |
| nearest | of the frame whose centre is nearest; ties to the higher frame number, then view | distance, owner | free |

*Order free* means that the frames of a tile may be blended in any order, to the same bits. *Journal* means in rising
order (:attr:`Placement.order`): when an earlier one comes late, the caller rebuilds the tile. Sums of float frames are
of the second kind in every case, since float64 addition is not associative.

Of a tile that one frame covers alone every mode shows that frame's pixels, unchanged, and gets the state back from
them when a second frame comes. So such a tile needs no state, whatever the mode.

Float images: a pixel that is not finite is not covered, takes part in nothing, and is NaN in the tile. A float32 pixel
times a weight is exact in float64, so one frame alone gives back its own bits, -0.0 included. For max and min, +0.0 is
larger than -0.0.

It does not know where tiles are kept, what else they hold, or that there are levels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilecast import kernels
from tilecast.geometry import Placement, TileKey

Pixels = NDArray[Any]
Mask = NDArray[np.bool_]

#: Pixels from the edge of a frame at which feathering reaches full weight; a quarter of the frame if that is less.
FEATHER_PX = 100
#: `nearest` packs frame and view into one rank of 63 bits.
MAX_VIEWS = 256
MAX_FRAME = 2**55 - 1
#: Weight maps (one per shape of frame) that are kept.
_KEPT_WEIGHTS = 4


class Window(NamedTuple):
    """The part of a tile that a frame covers, in the tile's pixels; plus (drow, dcol) they are the frame's."""

    row0: int
    row1: int
    col0: int
    col1: int
    drow: int
    dcol: int

    @property
    def in_tile(self) -> tuple[slice, slice]:
        """Index of this part of the tile."""
        return slice(self.row0, self.row1), slice(self.col0, self.col1)

    @property
    def in_frame(self) -> tuple[slice, slice]:
        """Index of the same pixels in the frame."""
        return (
            slice(self.row0 + self.drow, self.row1 + self.drow),
            slice(self.col0 + self.dcol, self.col1 + self.dcol),
        )


class Placed(NamedTuple):
    """A frame as one tile sees it."""

    placement: Placement
    window: Window


def window_of(placement: Placement, key: TileKey, tile_size: int) -> Window:
    """Where a frame meets a tile of level 0 that it touches."""
    drow, dcol = key.row * tile_size - placement.row, key.col * tile_size - placement.col
    return Window(
        max(0, -drow),
        min(tile_size, placement.height - drow),
        max(0, -dcol),
        min(tile_size, placement.width - dcol),
        drow,
        dcol,
    )


def feather_weights(shape: tuple[int, int], feather_px: int = FEATHER_PX) -> NDArray[np.uint8]:
    """The weight of each pixel of a frame: w = max(1, floor(255 · r_row · r_col + 0.5)), in float64.

    Along each axis, of `size` pixels, r(i) = min(1, (min(i, size − 1 − i) + 1) / (n + 1)) with
    n = max(1, min(feather_px, size // 4)).

    Parameters
    ----------
    shape : (height, width), pixels
    feather_px : int
        Widest ramp, pixels.

    Returns
    -------
    (height, width) array of uint8, 1 to 255
    """

    def ramp(size: int) -> NDArray[np.float64]:
        n = max(1, min(feather_px, size // 4))
        i = np.arange(size)
        return np.minimum(1.0, (np.minimum(i, size - 1 - i) + 1) / (n + 1))

    rows, cols = 255.0 * ramp(shape[0]), ramp(shape[1])
    weights = np.empty(shape, np.uint8)
    for i, row in enumerate(rows):  # row by row: a float64 map of a large frame would be eight times the size
        weights[i] = np.maximum(1.0, np.floor(row * cols + 0.5))
    return weights


def paste(tile: Pixels, frame: Pixels, window: Window) -> None:
    """Write a frame over a part of a tile; of a float frame only what is finite."""
    source = frame[window.in_frame]
    if tile.dtype.kind == "f":
        np.copyto(tile[window.in_tile], source, where=np.isfinite(source))
    else:
        tile[window.in_tile] = source


def _begin(job: Job, frame: Pixels) -> None:
    """The pixels and the mask of a tile of which a frame is the first: that frame's, unchanged."""
    is_float = frame.dtype.kind == "f"
    job.out[...] = np.nan if is_float else 0
    paste(job.out, frame, job.window)
    if job.mask is not None:
        job.mask[...] = False
        job.mask[job.window.in_tile] = True


@dataclass(slots=True)
class SumState:
    """Σ w·v and Σ w of each pixel of a tile, and how many frames have been added; (T, T) arrays."""

    total: Pixels
    weight: Pixels
    visits: int

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        return self.total.nbytes + self.weight.nbytes


@dataclass(slots=True)
class NearestState:
    """Squared distance (doubled pixels) to the centre of each pixel's owner, and the owner's rank; (T, T) arrays."""

    distance: NDArray[np.int64]
    rank: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        return self.distance.nbytes + self.rank.nbytes


State = SumState | NearestState


@dataclass(slots=True, eq=False)
class Job:
    """A tile into which a frame is to be blended; afterwards, what became of it.

    Attributes
    ----------
    window : Window
        Where the frame meets it.
    old : (T, T) array or None
        Pixels before; None if nothing covers the tile yet.
    out : (T, T) array
        Pixels after; may be `old`, and need not be initialized.
    mask : (T, T) bool array or None
        Covered pixels before, which becomes those after; None if all are. Not kept for float images. Need not be
        initialized where `old` is None.
    state : State or None
        What belongs to the pixels.
    solo : Placed or None
        The frame before, if it is only one.
    is_last : bool
        Whether no other frame is expected. Then the state need not be made; without it, the tile has to be blended
        anew if one comes all the same.
    """

    window: Window
    old: Pixels | None
    out: Pixels
    mask: Mask | None
    state: State | None
    solo: Placed | None
    is_last: bool


class Blender(ABC):
    """One blend mode for one pixel type.

    Attributes
    ----------
    state_bytes : int
        What the state of a tile takes per pixel, before it is promoted; 0 if the tile is its own state.
    ordered : bool
        Whether the frames of a tile must be added in journal order.
    """

    state_bytes: int = 0
    ordered: bool = False

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype

    @property
    def needs_state(self) -> bool:
        """Whether a tile that two or more frames cover needs a state beside its pixels."""
        return self.state_bytes > 0

    @property
    def nbytes(self) -> int:
        """Memory held for all tiles together."""
        return 0

    def check(self, placement: Placement) -> None:  # noqa: B027 (most modes take any placement)
        """Raise ValueError if this mode cannot blend such a placement."""

    def blend(self, jobs: Sequence[Job], frame: Pixels, placement: Placement) -> None:
        """Blend a frame into tiles.

        Parameters
        ----------
        jobs : sequence of Job
            The tiles.
        frame : (h, w) array, read-only
            Pixels of the frame.
        placement : Placement
            Where it lies.
        """
        for job in jobs:
            if job.old is None:
                _begin(job, frame)
            else:
                here = Placed(placement, job.window)
                job.state = self.add(job.state, job.solo, job.old, job.out, job.mask, frame, here)
                if job.mask is not None:
                    job.mask[job.window.in_tile] = True
            if job.mask is not None and job.mask.all():
                job.mask = None

    @abstractmethod
    def add(
        self,
        state: State | None,
        solo: Placed | None,
        old: Pixels,
        out: Pixels,
        mask: Mask | None,
        frame: Pixels,
        here: Placed,
    ) -> State | None:
        """Blend a frame into a tile that others cover already.

        Parameters
        ----------
        state : State or None
            What the call before returned, for the frames so far.
        solo : Placed or None
            The frame so far, if it is only one: then there is no state yet, and the tile's pixels are that frame's.
        old : (T, T) array
            Pixels of the tile before this frame.
        out : (T, T) array
            Pixels after it; may be `old` itself.
        mask : (T, T) bool array or None
            Covered pixels before this frame, None if all; not kept for float images, whose NaN tell.
        frame : (h, w) array, read-only
            Pixels of the frame.
        here : Placed
            Where it lies.

        Returns
        -------
        State or None
            For the next frame; often the object given. None where the tile is its own state.
        """


class _Sum(Blender):
    """Feather and mean: sums of weighted pixels and of weights."""

    def __init__(self, dtype: np.dtype[Any], feather_px: int | None) -> None:
        super().__init__(dtype)
        self._feather_px = feather_px
        self._weights: dict[tuple[int, int], NDArray[np.uint8]] = {}

    @property
    def nbytes(self) -> int:
        return sum(weights.nbytes for weights in self._weights.values())

    def weights(self, placement: Placement) -> NDArray[np.uint8]:
        """The weights of a frame's pixels; 1 everywhere for the plain mean."""
        shape = placement.height, placement.width
        weights = self._weights.get(shape)
        if weights is None:
            while len(self._weights) >= _KEPT_WEIGHTS:
                del self._weights[next(iter(self._weights))]
            weights = np.ones(shape, np.uint8) if self._feather_px is None else feather_weights(shape, self._feather_px)
            self._weights[shape] = weights
        return weights


class _IntegerSum(_Sum):
    """Sums of integer frames: exact, so that neither order nor promotion to wider integers is seen in the result."""

    state_bytes = 6

    def blend(self, jobs: Sequence[Job], frame: Pixels, placement: Placement) -> None:
        together, one_by_one, kinds = list[Job](), list[Job](), list[int]()
        shape = placement.height, placement.width
        for job in jobs:
            state, solo = job.state, job.solo
            if job.old is None:
                kinds.append(kernels.ALONE)
            elif solo is not None and (solo.placement.height, solo.placement.width) == shape:
                kinds.append(kernels.SECOND_AND_LAST if job.is_last else kernels.SECOND)
                if not job.is_last:
                    job.state = SumState(np.empty(job.out.shape, np.uint32), np.empty(job.out.shape, np.uint16), 2)
            elif isinstance(state, SumState) and state.visits < kernels.MAX_NARROW_VISITS:
                kinds.append(kernels.FURTHER)
                state.visits += 1
            else:
                one_by_one.append(job)
                continue
            together.append(job)
        super().blend(one_by_one, frame, placement)
        if together:
            self._blend_together(together, kinds, frame, self.weights(placement))

    @staticmethod
    def _blend_together(jobs: list[Job], kinds: list[int], frame: Pixels, weights: NDArray[np.uint8]) -> None:
        """Those tiles that one call of a kernel can do."""
        addresses, windows = list[int](), list[int]()
        for job in jobs:
            state, solo = job.state, job.solo
            sums = (state.total, state.weight) if isinstance(state, SumState) else (None, None)
            addresses += (kernels.address(array) for array in (*sums, job.old, job.out, job.mask))
            windows += job.window
            windows += job.window if solo is None else solo.window
        is_full = np.zeros(len(jobs), np.bool_)
        kernels.blend_tiles(
            np.array(kinds, np.int64),
            np.array(addresses, np.int64).reshape(-1, 5),
            np.array(windows, np.int64).reshape(-1, 12),
            frame,
            weights,
            len(jobs[0].out),
            is_full,
        )
        for job, full in zip(jobs, is_full.tolist(), strict=True):
            if full:
                job.mask = None

    def add(
        self,
        state: State | None,
        solo: Placed | None,
        old: Pixels,
        out: Pixels,
        mask: Mask | None,
        frame: Pixels,
        here: Placed,
    ) -> SumState:
        del mask
        weights = self.weights(here.placement)
        if solo is not None:
            solo_weights = self.weights(solo.placement)
            first = SumState(np.empty(old.shape, np.uint32), np.empty(old.shape, np.uint16), visits=2)
            kernels.add_second_sum(
                first.total, first.weight, old, out, frame, weights, *here.window, solo_weights, *solo.window
            )
            return first
        assert isinstance(state, SumState)
        if state.visits == kernels.MAX_NARROW_VISITS:
            # 64 bits for both: a small camera parked at 1 kHz would pass 2**32 of weight within five hours.
            state.total, state.weight = state.total.astype(np.uint64), state.weight.astype(np.uint64)
        state.visits += 1
        add = kernels.add_sum if state.visits <= kernels.MAX_NARROW_VISITS else kernels.add_wide_sum
        add(state.total, state.weight, old, out, frame, weights, *here.window)
        return state


class _FloatSum(_Sum):
    """Sums of float frames, in float64 and in journal order."""

    state_bytes = 16
    ordered = True

    def _open(self, tile: Pixels, solo: Placed) -> SumState:
        """The sums of the first frame, from the tile's own pixels."""
        total, weight = np.zeros(tile.shape, np.float64), np.zeros(tile.shape, np.float64)
        part = solo.window.in_tile
        weights = self.weights(solo.placement)[solo.window.in_frame].astype(np.float64)
        covered = np.isfinite(tile[part])
        np.copyto(total[part], weights * tile[part], where=covered)
        np.copyto(weight[part], weights, where=covered)
        return SumState(total, weight, visits=1)

    def add(
        self,
        state: State | None,
        solo: Placed | None,
        old: Pixels,
        out: Pixels,
        mask: Mask | None,
        frame: Pixels,
        here: Placed,
    ) -> SumState:
        del mask
        if solo is not None:
            state = self._open(old, solo)
        assert isinstance(state, SumState)
        _copy(old, out)
        kernels.add_float_sum(state.total, state.weight, out, frame, self.weights(here.placement), *here.window)
        state.visits += 1
        return state


class _Extreme(Blender):
    """The largest or the smallest value; the tile is its own state."""

    def __init__(self, dtype: np.dtype[Any], *, largest: bool) -> None:
        super().__init__(dtype)
        self._largest = largest

    def add(
        self,
        state: State | None,
        solo: Placed | None,
        old: Pixels,
        out: Pixels,
        mask: Mask | None,
        frame: Pixels,
        here: Placed,
    ) -> None:
        del state, solo
        _copy(old, out)
        best, new = out[here.window.in_tile], frame[here.window.in_frame]
        if self.dtype.kind == "f":
            high, low = (new, best) if self._largest else (best, new)
            beats = (high > low) | ((high == low) & np.signbit(low) & ~np.signbit(high))
            np.copyto(best, new, where=np.isfinite(new) & (np.isnan(best) | beats))
        elif self._largest:
            np.maximum(best, new, out=best)  # an uncovered pixel is 0, which never wins
        elif mask is None:
            np.minimum(best, new, out=best)
        else:
            np.copyto(best, new, where=(new < best) | ~mask[here.window.in_tile])


class _Newest(Blender):
    """The frame recorded last; the tile is its own state, as long as frames come in order."""

    ordered = True

    def add(
        self,
        state: State | None,
        solo: Placed | None,
        old: Pixels,
        out: Pixels,
        mask: Mask | None,
        frame: Pixels,
        here: Placed,
    ) -> None:
        del state, solo, mask
        _copy(old, out)
        paste(out, frame, here.window)


class _Nearest(Blender):
    """The frame whose centre is nearest: no ghosts, whatever the order."""

    state_bytes = 16

    def check(self, placement: Placement) -> None:
        if not (0 <= placement.frame <= MAX_FRAME and 0 <= placement.view < MAX_VIEWS):
            raise ValueError(
                f"blend mode nearest takes frame numbers up to {MAX_FRAME} and fewer than {MAX_VIEWS} views; "
                f"got frame {placement.frame}, view {placement.view}"
            )

    def _open(self, tile: Pixels, solo: Placed) -> NearestState:
        """Distance and rank of the first frame, where the tile shows it."""
        distance = np.full(tile.shape, np.iinfo(np.int64).max, np.int64)
        rank = np.full(tile.shape, -1, np.int64)
        window, part = solo.window, solo.window.in_tile
        dy = 2 * (np.arange(window.row0, window.row1) + window.drow) + 1 - solo.placement.height
        dx = 2 * (np.arange(window.col0, window.col1) + window.dcol) + 1 - solo.placement.width
        covered = np.isfinite(tile[part])
        np.copyto(distance[part], dy[:, None] ** 2 + dx**2, where=covered)
        np.copyto(rank[part], _rank(solo.placement), where=covered)
        return NearestState(distance, rank)

    def add(
        self,
        state: State | None,
        solo: Placed | None,
        old: Pixels,
        out: Pixels,
        mask: Mask | None,
        frame: Pixels,
        here: Placed,
    ) -> NearestState:
        del mask
        if solo is not None:
            state = self._open(old, solo)
        assert isinstance(state, NearestState)
        _copy(old, out)
        kernels.add_nearest(state.distance, state.rank, out, frame, _rank(here.placement), *here.window)
        return state


def _copy(old: Pixels, out: Pixels) -> None:
    if out is not old:
        out[...] = old


def _rank(placement: Placement) -> int:
    """A number that sorts as (frame, view) does."""
    return placement.frame * MAX_VIEWS + placement.view


#: The blend modes by the names that `start` and the configuration use.
BLEND_MODES = ("feather", "mean", "max", "min", "newest", "nearest")


def make_blender(mode: str, dtype: np.dtype[Any], feather_px: int = FEATHER_PX) -> Blender:
    """The blender of a mode for a pixel type.

    Parameters
    ----------
    mode : str
        One of `BLEND_MODES`.
    dtype : numpy dtype
        uint8, uint16 or float32.
    feather_px : int
        For feather: the widest ramp of weights, pixels.

    Raises
    ------
    ValueError
        For a mode that does not exist.
    """
    match mode:
        case "feather" | "mean":
            ramp = feather_px if mode == "feather" else None
            return _FloatSum(dtype, ramp) if dtype.kind == "f" else _IntegerSum(dtype, ramp)
        case "max" | "min":
            return _Extreme(dtype, largest=mode == "max")
        case "newest":
            return _Newest(dtype)
        case "nearest":
            return _Nearest(dtype)
        case _:
            raise ValueError(f"there is no blend mode {mode!r}; choose one of {', '.join(BLEND_MODES)}")
