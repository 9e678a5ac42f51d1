"""Where the stage was when a frame was exposed: joins images to a stage stream by time.

Images and stage positions come from two programs that do not know of each other. The position of an image is the
stage's at mid-exposure, interpolated between the two samples that bracket it in time; the later of the two often comes
after the image, and sometimes long after, or out of order. A `Joiner` holds the samples of one stage stream and the
images of one run that have no bracket yet, and says which image can be placed as soon as it can.

It does not know messages, runs, pixels or clocks: times are numbers of nanoseconds that its caller gives, and what the
joins depend on is only the order of the calls. So a journal that is read again joins as it did the first time.

>>> joiner = Joiner(max_gap_ms=100.0)
>>> joiner.add_stage(0, (0.0, 0.0))
[]
>>> joiner.add_image(Unjoined(frame=0, image_index=0, t_mid_ns=10_000_000))    # no later sample yet
>>> [(joined.image.frame, joined.pos_um) for joined in joiner.add_stage(40_000_000, (8.0, 0.0))]
[(0, (2.0, 0.0))]

Memory
------
Samples and waiting images lie in machine arrays: 25 bytes a sample, at most `max_samples` of them (6.5 MB at the
default, 87 minutes of a stage at 50 Hz); 46 bytes a waiting image, at most twice `max_waiting` of them. The oldest
samples make room for new ones. An image that would need them, or finds no room to wait, stays unplaced; a rebuild
from the journal, which has all samples, can still place it. A placed image leaves nothing behind but a count.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from tilecast.geometry import PlaneKey
from tilecast_protocol.messages import STATUS_GOOD, STATUS_SATURATED
from tilecast_protocol.ranges import RangeSet

NO_LATER: Final = "no-later-stage"
"""No stage message from after the exposure has come."""
NO_EARLIER: Final = "no-earlier-stage"
"""No stage message from before the exposure is known."""
GAP: Final = "stage-gap"
"""The two stage messages around the exposure are too far apart in time."""
MOVING: Final = "stage-moving"
"""The stage was moving, and frames of a moving stage are not wanted."""
NOT_KEPT: Final = "too-many-waiting"
"""There was no room to wait in; a rebuild can place it."""

AFTER_MOVE: Final = "after-move"
"""It is one of the first frames after a move, which are left out."""

_WHYS: Final = (NO_LATER, NO_EARLIER, GAP, MOVING)
_IS_NO_LATER, _IS_NO_EARLIER, _IS_GAP, _IS_MOVING = range(len(_WHYS))
_IS_GONE: Final = len(_WHYS)
_NOT_SAID: Final = 2  # `moving` as a byte: 0 no, 1 yes
_SWEEP_AT: Final = 64

MAX_SAMPLES: Final = 1 << 18
MAX_WAITING: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class PlacingRules:
    """The options that decide whether a frame is placed, and where: frozen when a run is opened.

    Attributes
    ----------
    join_max_gap_ms : float
        A frame is placed only between two stage messages that are at most this far apart.
    allow_moving : bool
        Whether frames are placed that were exposed while the stage moved.
    blend_status : frozenset of int
        Frames of these status values are placed; others are kept and listed.
    skip_after_move : int
        How many frames after each move are not placed.
    """

    join_max_gap_ms: float = 250.0
    allow_moving: bool = False
    blend_status: frozenset[int] = frozenset({STATUS_GOOD, STATUS_SATURATED})
    skip_after_move: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain values, to be stored with the run."""
        return {
            "join_max_gap_ms": self.join_max_gap_ms,
            "allow_moving": self.allow_moving,
            "blend_status": sorted(self.blend_status),
        } | ({"skip_after_move": self.skip_after_move} if self.skip_after_move else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PlacingRules:
        """From what `to_dict` gave."""
        return cls(
            float(values["join_max_gap_ms"]),
            bool(values["allow_moving"]),
            frozenset(map(int, values["blend_status"])),
            int(values.get("skip_after_move", 0)),
        )


class Unjoined(NamedTuple):
    """An image that needs a position.

    Attributes
    ----------
    frame, image_index : int
        Its number in the run, and among the images of the journal.
    t_mid_ns : int
        Middle of the exposure.
    plane : PlaneKey
    moving : bool or None
        What the camera's program said of the stage, if it said anything.
    t_recv_ns : int
        When it was received.
    """

    frame: int
    image_index: int
    t_mid_ns: int
    plane: PlaneKey = PlaneKey()
    moving: bool | None = None
    t_recv_ns: int = 0


class Joined(NamedTuple):
    """An image with its position.

    Attributes
    ----------
    image : Unjoined
    pos_um : (x, y)
        The stage at mid-exposure, µm.
    bracket_ns : int
        Time between the two samples; 0 for a sample exactly at mid-exposure.
    """

    image: Unjoined
    pos_um: tuple[float, float]
    bracket_ns: int


class StageTrack:
    """The positions of one stage, sorted by time, in a bounded amount of memory.

    Two samples of the same time cannot both be right; the first stands, because images may already lie by it.

    Parameters
    ----------
    max_samples : int
        At most so many are kept; the oldest make room.
    """

    __slots__ = ("_columns", "_max_samples", "_shortened", "moving", "t_ns", "x_um", "y_um")

    def __init__(self, max_samples: int = MAX_SAMPLES) -> None:
        self.t_ns = array("q")
        self.x_um = array("d")
        self.y_um = array("d")
        self.moving = array("b")
        self._columns: tuple[array[Any], ...] = (self.t_ns, self.x_um, self.y_um, self.moving)
        self._max_samples = max(2, max_samples)
        self._shortened = False

    def __len__(self) -> int:
        return len(self.t_ns)

    def add(self, t_ns: int, pos_um: Sequence[float], moving: bool | None = None) -> int | None:
        """Add a sample; return where it lies now, or None if it was not taken (its time is known, or long past)."""
        times = self.t_ns
        at = len(times)
        if at and t_ns <= times[-1]:
            at = bisect_left(times, t_ns)
            # What comes before the oldest that is left may have lost its neighbour: it would make a false bracket.
            if times[at] == t_ns or (at == 0 and self._shortened):
                return None
        row = (t_ns, float(pos_um[0]), float(pos_um[1]), bool(moving))
        for column, value in zip(self._columns, row, strict=True):
            column.insert(at, value)
        if len(times) > self._max_samples:
            # A share at a time, so that moving the rest down costs little per sample.
            n_dropped = max(1, self._max_samples // 8)
            for column in self._columns:
                del column[:n_dropped]
            self._shortened = True
            at -= n_dropped
        return at if at >= 0 else None

    def was_moving(self, after_ns: int, upto_ns: int) -> bool:
        """Whether the stage said in this time that it was moving."""
        times = self.t_ns
        return any(self.moving[bisect_right(times, after_ns) : bisect_right(times, upto_ns)])


class MoveWatch:
    """Which frames are the first ones after a move, in the order in which they are placed.

    The stage has moved if a frame lies elsewhere than the one before it, by more than readings of a stage that rests
    differ, or if the stage said between the two that it was moving. The first frame of a run is after no move.

    Parameters
    ----------
    n_skipped : int
        How many frames after each move are left out.

    Examples
    --------
    >>> watch = MoveWatch(1)
    >>> [watch.skips((row, 0), t_ns) for t_ns, row in enumerate((0, 0, 60, 61, 60, 0, 0))]
    [False, False, True, False, False, True, False]
    """

    RESTS_PX: Final = 2
    """Frames that are no further apart, in rows and in columns, lie at the same place."""

    __slots__ = ("_last", "_left", "_moved_ns", "_n_skipped")

    def __init__(self, n_skipped: int) -> None:
        self._n_skipped = n_skipped
        self._left = 0
        self._last: tuple[int, tuple[int, int]] | None = None
        self._moved_ns: int | None = None

    def moving(self, t_ns: int) -> None:
        """A frame was exposed while the stage moved."""
        self._moved_ns = t_ns if self._moved_ns is None else max(self._moved_ns, t_ns)

    def skips(self, corner: tuple[int, int], t_ns: int, track: StageTrack | None = None) -> bool:
        """Whether a frame that lies at `corner`, exposed at `t_ns`, is to be left out; call it once for each frame."""
        if not self._n_skipped:
            return False
        if self._last is not None:
            last_ns, (row, col) = self._last
            moved = max(abs(corner[0] - row), abs(corner[1] - col)) > self.RESTS_PX
            moved |= self._moved_ns is not None and last_ns < self._moved_ns <= t_ns
            moved |= track is not None and track.was_moving(last_ns, t_ns)
            if moved:
                self._left = self._n_skipped
        elif self._moved_ns is not None and self._moved_ns <= t_ns:
            self._left = self._n_skipped
        self._last = t_ns, corner
        if self._left:
            self._left -= 1
            return True
        return False


class BracketStats:
    """Widths of the brackets that images were placed by, and what they say about the positions.

    The widths go into a histogram of 64 steps per factor of two, which keeps the sum of each step: the median is the
    mean of its step, exact where a stage is read at a steady rate and never off by more than 1.1 %. Memory does not
    grow with the run.

    The bound: within its bracket the stage covered a distance d. However unevenly it moved, as long as it stayed on the
    way from one sample to the other, it was never further from the interpolated position than the longer part of that
    way: d · max(s, 1 − s), with s the share of the bracket that had passed at mid-exposure. Errors of the clocks come
    on top, speed × clock error.
    """

    _STEPS: Final = 64

    __slots__ = ("_count", "_sum_ns", "max_bound_um", "max_ns", "max_speed_um_s", "n")

    def __init__(self) -> None:
        self.n = 0
        self.max_ns = 0
        self.max_speed_um_s = 0.0
        self.max_bound_um = 0.0
        self._count: dict[int, int] = {}
        self._sum_ns: dict[int, int] = {}

    def add(self, width_ns: int, share: float, distance_um: float) -> None:
        """Count one placed image: the width of its bracket, where in it, and how far the stage went meanwhile."""
        self.n += 1
        step = 0
        if width_ns:
            self.max_ns = max(self.max_ns, width_ns)
            self.max_speed_um_s = max(self.max_speed_um_s, distance_um / (width_ns * 1e-9))
            self.max_bound_um = max(self.max_bound_um, distance_um * max(share, 1.0 - share))
            step = 1 + int(math.log2(width_ns) * self._STEPS)
        self._count[step] = self._count.get(step, 0) + 1
        self._sum_ns[step] = self._sum_ns.get(step, 0) + width_ns

    @property
    def median_ns(self) -> float:
        """Median width, ns; 0 if nothing was joined."""
        if not self.n:
            return 0.0
        return 0.5 * (self._at_rank((self.n - 1) // 2) + self._at_rank(self.n // 2))

    def _at_rank(self, rank: int) -> float:
        before = 0
        for step in sorted(self._count):
            before += self._count[step]
            if rank < before:
                return self._sum_ns[step] / self._count[step]
        raise IndexError(f"rank {rank} of {self.n} widths")


class Joiner:
    """Joins the images of one run to one stage stream.

    Parameters
    ----------
    max_gap_ms : float
        A bracket that is wider places nothing.
    allow_moving : bool
        Whether an image is placed that was exposed while the stage moved: by the image's own word if it has one, else
        if either sample of its bracket says so.
    max_samples, max_waiting : int
        Bounds of memory; see the module.

    Attributes
    ----------
    track : StageTrack
    brackets : BracketStats
        Of all images that were placed.
    n_waiting_for_later : int
        Images for which no later sample has come.
    n_news : int
        How often a sample has placed an image that waited, or changed the reason why it has no place.
    """

    def __init__(
        self,
        max_gap_ms: float,
        allow_moving: bool = False,
        *,
        max_samples: int = MAX_SAMPLES,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self.track = StageTrack(max_samples)
        self.brackets = BracketStats()
        self.n_waiting_for_later = 0
        self.n_news = 0
        self._max_gap_ns = round(max_gap_ms * 1e6)
        self._allow_moving = allow_moving
        self._max_waiting = max_waiting
        self._not_kept = RangeSet()
        # Images without a position, sorted by mid-exposure. One that has been placed is marked _IS_GONE and swept out
        # later: taking each out at once would move all the others.
        self._t_mid = array("q")
        self._frame = array("q")
        self._index = array("q")
        self._t_recv = array("q")
        self._t, self._c, self._z = array("i"), array("i"), array("i")
        self._moving = array("b")
        self._why = array("b")
        self._n_gone = 0
        self._columns: tuple[array[Any], ...] = (
            self._t_mid,
            self._frame,
            self._index,
            self._t_recv,
            self._t,
            self._c,
            self._z,
            self._moving,
            self._why,
        )

    def __len__(self) -> int:
        """How many images wait or are unplaced."""
        return len(self._t_mid) - self._n_gone + len(self._not_kept)

    def add_stage(self, t_ns: int, pos_um: Sequence[float], moving: bool | None = None) -> list[Joined]:
        """Take a sample of the stage, in any order; return the images that it places."""
        at = self.track.add(t_ns, pos_um, moving)
        if at is None:
            return []
        times, t_mid = self.track.t_ns, self._t_mid
        # Only the images between its neighbours can be affected.
        begin = bisect_right(t_mid, times[at - 1]) if at else 0
        end = bisect_left(t_mid, times[at + 1]) if at + 1 < len(times) else bisect_right(t_mid, t_ns)
        placed = []
        for i in range(begin, end):
            if self._why[i] == _IS_GONE:
                continue
            image = Unjoined(
                self._frame[i],
                self._index[i],
                t_mid[i],
                PlaneKey(self._t[i], self._c[i], self._z[i]),
                None if self._moving[i] == _NOT_SAID else bool(self._moving[i]),
                self._t_recv[i],
            )
            found = self._find(image)
            self.n_news += found != self._why[i]
            self.n_waiting_for_later -= self._why[i] == _IS_NO_LATER
            if isinstance(found, Joined):
                placed.append(found)
                self._why[i] = _IS_GONE
                self._n_gone += 1
            else:
                self._why[i] = found
                self.n_waiting_for_later += found == _IS_NO_LATER
        self._sweep()
        return placed

    def add_image(self, image: Unjoined) -> Joined | None:
        """Take an image; return its position if its bracket is there, else keep it until it is."""
        found = self._find(image)
        if isinstance(found, Joined):
            return found
        if len(self._t_mid) - self._n_gone >= self._max_waiting:
            self._not_kept.add(image.frame)
            return None
        at = len(self._t_mid)
        if at and image.t_mid_ns < self._t_mid[-1]:
            at = bisect_right(self._t_mid, image.t_mid_ns)
        moving = _NOT_SAID if image.moving is None else int(image.moving)
        row = (image.t_mid_ns, image.frame, image.image_index, image.t_recv_ns, *image.plane, moving, found)
        for column, value in zip(self._columns, row, strict=True):
            column.insert(at, value)
        self.n_waiting_for_later += found == _IS_NO_LATER
        return None

    def why(self, frame: int, t_mid_ns: int) -> str | None:
        """Why an image is not placed yet; None if it is (or was never given)."""
        for i in range(bisect_left(self._t_mid, t_mid_ns), bisect_right(self._t_mid, t_mid_ns)):
            if self._frame[i] == frame and self._why[i] != _IS_GONE:
                return _WHYS[self._why[i]]
        return NOT_KEPT if frame in self._not_kept else None

    def unplaced(self) -> dict[str, list[tuple[int, int]]]:
        """The frames without a position, as ranges (first, last), by the reason."""
        frames, whys = np.array(self._frame, dtype=np.int64), np.array(self._why, dtype=np.int8)
        found = {}
        for number, why in enumerate(_WHYS):
            of_this = np.sort(frames[whys == number])
            if of_this.size:
                breaks = np.flatnonzero(np.diff(of_this) > 1)
                first, last = of_this[np.r_[0, breaks + 1]], of_this[np.r_[breaks, of_this.size - 1]]
                found[why] = list(zip(first.tolist(), last.tolist(), strict=True))
        if self._not_kept:
            found[NOT_KEPT] = self._not_kept.ranges()
        return found

    def _find(self, image: Unjoined) -> Joined | int:
        """The position of an image, or the number of the reason why it has none."""
        track, t_mid_ns = self.track, image.t_mid_ns
        after = bisect_left(track.t_ns, t_mid_ns)
        if after == len(track):
            return _IS_NO_LATER
        if track.t_ns[after] == t_mid_ns:
            before, width_ns, share = after, 0, 0.0
        elif after == 0:
            return _IS_NO_EARLIER
        else:
            before = after - 1
            width_ns = track.t_ns[after] - track.t_ns[before]
            if width_ns > self._max_gap_ns:
                return _IS_GAP
            share = (t_mid_ns - track.t_ns[before]) / width_ns
        moving = image.moving
        if moving is None:
            moving = bool(track.moving[before] or track.moving[after])
        if moving and not self._allow_moving:
            return _IS_MOVING
        x_um, y_um = track.x_um[before], track.y_um[before]
        dx_um, dy_um = track.x_um[after] - x_um, track.y_um[after] - y_um
        self.brackets.add(width_ns, share, math.hypot(dx_um, dy_um))
        return Joined(image, (x_um + share * dx_um, y_um + share * dy_um), width_ns)

    def _sweep(self) -> None:
        """Forget the images that were placed, once they are the larger part."""
        n_rows = len(self._t_mid)
        if self._n_gone == n_rows:
            for column in self._columns:
                del column[:]
            self._n_gone = 0
        if self._n_gone < _SWEEP_AT or 2 * self._n_gone < n_rows:
            return
        keep = np.flatnonzero(np.array(self._why, dtype=np.int8) != _IS_GONE)
        for column in self._columns:
            kept = np.array(column)[keep]
            del column[:]
            column.frombytes(kept.tobytes())
        self._n_gone = 0
