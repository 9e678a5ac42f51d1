"""A recorded run registered as a whole: which frames are compared, what that says of the others, what is kept of it.

Frames of one channel are compared, at each point in time by themselves. If there are several slices at a place, it is
their brightest pixels that are compared. Every other frame (of another channel, another slice, the other half of a
split camera) is moved as the one of those that it was taken with, or else the nearest one.

Not known here: command lines, how what is found comes into the store, how it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilecast.reading import EdgeRow, Placement, Position, RecordedFrames, Registration, TileReader
from tilecast_plugins.registration import kernels
from tilecast_plugins.registration.pairs import MIN_OVERLAP_PX, PairOptions
from tilecast_plugins.registration.solve import Edges, Method, Solution, solve, without
from tilecast_plugins.registration.tracking import Tracker
from tilecast_protocol.errors import JournalError, PZFError, TilecastError

Progress = Callable[[str, int, int], None]

_MOST_SEAMS = 200  # that are looked at for the score
_KEPT_FRAMES = 16


class NothingToRegisterError(TilecastError):
    """There are no frames to compare."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How a run is to be registered.

    Attributes
    ----------
    options : PairOptions
    method : 'lsq' or 'tree'
    channel : int, optional
        Whose frames are compared; the first one that there is.
    fixed : int, optional
        A frame that stays where the stage has it.
    left_out : set of int
        Frames that take no part; they lie where the stage's model says.
    once : bool
        Compare the frames of the first point in time only, and move all others as these.
    """

    options: PairOptions = field(default_factory=PairOptions)
    method: Method = "lsq"
    channel: int | None = None
    fixed: int | None = None
    left_out: frozenset[int] = frozenset()
    once: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """Frames that lie at one place and are compared as one: the slices of a stack, or a single frame."""

    placements: tuple[Placement, ...]
    row: int
    col: int

    @property
    def frame(self) -> int:
        """The first of its frames."""
        return self.placements[0].frame


@dataclass(eq=False)
class Track:
    """The sites of one point in time, compared and solved; `lost` are frames that could not be read."""

    t: int
    sites: list[Site]
    edges: Edges
    solution: Solution
    lost: list[int]


@dataclass(eq=False)
class Finished:
    """A registered run.

    Attributes
    ----------
    registration : Registration
        What is to be kept.
    tracks : list of Track
    seams : list of Seam
        The seams that were looked at, the worst one first.
    """

    registration: Registration
    tracks: list[Track]
    seams: list[Seam] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Seam:
    """How well two frames agree where they overlap: mean absolute difference, divided by the mean spread of the pixels.

    Attributes
    ----------
    first, second : Site
    before, after : float
        By the stage, and registered.
    shift_before, shift_after : (int, int)
    """

    first: Site
    second: Site
    before: float
    after: float
    shift_before: tuple[int, int]
    shift_after: tuple[int, int]


def register(
    reader: TileReader, frames: RecordedFrames, asked: Asked, progress: Progress = lambda *_: None
) -> Finished:
    """Find where the frames of a run lie.

    Parameters
    ----------
    reader : TileReader
        The run: where its frames lie now, and, if it was registered, where the stage had them.
    frames : RecordedFrames
    asked : Asked
    progress : callable
        Called with what is being done, how much of it is done, and how much there is.

    Raises
    ------
    NothingToRegisterError
        If there is no frame to compare, or no such frame to fix.
    CalibrationError, PluginFailedError
        If frames cannot be made into what is blended.
    """
    nominal = by_the_stage(reader)
    sites = sites_of(nominal, asked)
    if not sites:
        raise NothingToRegisterError("the run has no placed frames of that channel to compare")
    if asked.fixed is not None and not any(asked.fixed == one.frame for site in sites for one in site.placements):
        raise NothingToRegisterError(f"frame {asked.fixed} is not one of those that are compared; it cannot be fixed")
    by_time: dict[int, list[Site]] = {}
    for site in sites:
        by_time.setdefault(site.placements[0].plane.t, []).append(site)
    done, tracks = 0, []
    for t, own in sorted(by_time.items()):
        tracks.append(_track(t, own, frames, asked, partial(_report, progress, done, len(sites))))
        done += len(own)
    moved = _moved(nominal, tracks)
    edges = _rows(tracks)
    seams = _seams(tracks, frames, progress)
    registration = Registration(
        facts=_facts(asked, tracks, seams, nominal, moved),
        edges=edges,
        stage=tuple(Position(*one.id, one.row, one.col, one.source) for one in nominal),
        registered=tuple(Position(*one.id, *place, "registered") for one, place in zip(nominal, moved, strict=True)),
    )
    return Finished(registration, tracks, seams)


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    progress("comparing frames", before + done, total)


def by_the_stage(reader: TileReader) -> list[Placement]:
    """All placements of a run as the stage had them, in the order of the journal."""
    registration = reader.registration()
    stage = {(one.frame, one.view): one for one in (registration.stage if registration else ())}
    found = []
    for row in reader.placements():
        one = row.placement
        there = stage.get(one.id)
        if there is not None and one.source == "registered":
            one = _placed(one, there.row, there.col, there.source)
        found.append(one)
    return sorted(found, key=lambda one: one.order)


def sites_of(placements: Sequence[Placement], asked: Asked) -> list[Site]:
    """What is compared: frames of one channel, those of a stack together, in the order of the journal."""
    channels = sorted({one.plane.c for one in placements})
    channel = asked.channel if asked.channel is not None else (channels[0] if channels else 0)
    chosen = [one for one in placements if one.plane.c == channel]
    if asked.once and chosen:
        first = min(one.plane.t for one in chosen)
        chosen = [one for one in chosen if one.plane.t == first]
    stacks: dict[tuple[int, ...], list[list[Placement]]] = {}
    for one in chosen:
        at = stacks.setdefault((one.plane.t, one.row, one.col, one.height, one.width), [])
        # A stage that comes to a place again begins another stack.
        if not at or any(one.plane.z == other.plane.z for other in at[-1]):
            at.append([])
        at[-1].append(one)
    sites = [Site(tuple(stack), stack[0].row, stack[0].col) for each in stacks.values() for stack in each]
    return sorted(sites, key=lambda site: site.placements[0].order)


def _placed(one: Placement, row: int, col: int, source: str) -> Placement:
    return Placement(one.frame, one.view, one.plane, row, col, one.height, one.width, source, one.index)


def pixels_of(site: Site, frames: RecordedFrames) -> NDArray[Any]:
    """What is compared of a site: of a stack the brightest pixels; those that are not finite as the mean of the others.

    Raises
    ------
    JournalError, PZFError
        If a frame cannot be read.
    """
    pixels = frames.calibrated(site.placements[0])
    for one in site.placements[1:]:
        pixels = np.fmax(pixels, frames.calibrated(one))
    if pixels.dtype.kind == "f":
        finite = np.isfinite(pixels)
        if not finite.all():
            pixels = np.where(finite, pixels, pixels[finite].mean() if finite.any() else 0).astype(pixels.dtype)
    return pixels


def _track(t: int, sites: list[Site], frames: RecordedFrames, asked: Asked, progress: Callable[[int], None]) -> Track:
    shape = sites[0].placements[0].height, sites[0].placements[0].width
    lost: list[int] = []

    def load(number: int) -> NDArray[Any]:
        try:
            return pixels_of(sites[number], frames)
        except (JournalError, PZFError):
            if sites[number].frame not in lost:
                lost.append(sites[number].frame)
            return np.zeros(shape, np.uint8)  # it shows nothing, so nothing is found

    tracker = Tracker(shape, asked.options, load)
    out = [n for n, site in enumerate(sites) if site.frame in asked.left_out]
    for number, site in enumerate(sites):
        tracker.add(site.placements[0].index, (site.row, site.col))
        progress(number + 1)
    edges = without(tracker.edges(), out)
    fixed = next((n for n, site in enumerate(sites) if asked.fixed in [one.frame for one in site.placements]), None)
    solution = solve(
        tracker.nominal, tracker.index, edges, method=asked.method, min_quality=asked.options.min_quality, fixed=fixed
    )
    return Track(t, sites, edges, solution, lost)


def _moved(nominal: Sequence[Placement], tracks: Sequence[Track]) -> list[tuple[int, int]]:
    """Where every frame lies: as the one that was compared and that it was taken with, or the nearest one."""
    by_frame: dict[int, NDArray[np.int64]] = {}
    nearest: dict[int, tuple[cKDTree, NDArray[np.int64]]] = {}
    for track in tracks:
        corners = np.array([(site.row, site.col) for site in track.sites])
        shifts = track.solution.positions - corners
        nearest[track.t] = cKDTree(corners), shifts
        for site, shift in zip(track.sites, shifts, strict=True):
            for one in site.placements:
                by_frame[one.frame] = shift
    found = []
    for one in nominal:
        shift = by_frame.get(one.frame)
        if shift is None:
            at = min(nearest, key=lambda t: (abs(t - one.plane.t), t))
            tree, shifts = nearest[at]
            shift = shifts[int(tree.query((one.row, one.col))[1])]
        found.append((one.row + int(shift[0]), one.col + int(shift[1])))
    return found


def _rows(tracks: Sequence[Track]) -> tuple[EdgeRow, ...]:
    rows = []
    for track in tracks:
        edges, solution = track.edges, track.solution
        for n in range(len(edges)):
            first, second = (track.sites[int(number)] for number in edges.pairs[n])
            rows.append(
                EdgeRow(
                    first.frame,
                    second.frame,
                    first.placements[0].view,
                    int(edges.shifts[n, 0]),
                    int(edges.shifts[n, 1]),
                    round(float(edges.quality[n]), 3),
                    round(float(edges.ncc[n]), 5),
                    float(solution.left_px[n]),
                    bool(solution.used[n]),
                )
            )
    return tuple(rows)


def _seams(tracks: Sequence[Track], frames: RecordedFrames, progress: Progress) -> list[Seam]:
    """Some of the seams, spread evenly over all; the worst one first."""
    all_seams = [(track, n) for track in tracks for n in range(len(track.edges)) if track.solution.used[n]]
    step = max(1, -(-len(all_seams) // _MOST_SEAMS))
    chosen = all_seams[::step]

    @lru_cache(maxsize=_KEPT_FRAMES)
    def pixels(site: Site) -> NDArray[Any]:
        return pixels_of(site, frames)

    found = []
    for done, (track, n) in enumerate(chosen):
        progress("looking at seams", done, len(chosen))
        i, j = (int(number) for number in track.edges.pairs[n])
        first, second = track.sites[i], track.sites[j]
        before = second.row - first.row, second.col - first.col
        row, col = (int(value) for value in track.solution.positions[j] - track.solution.positions[i])
        found.append(
            Seam(
                first,
                second,
                seam_score(pixels(first), pixels(second), before),
                seam_score(pixels(first), pixels(second), (row, col)),
                before,
                (row, col),
            )
        )
    return sorted(found, key=lambda seam: (-seam.after, seam.first.frame, seam.second.frame))


def seam_score(a: NDArray[Any], b: NDArray[Any], shift: tuple[int, int]) -> float:
    """Mean absolute difference of two frames where they overlap, divided by the mean spread of the pixels there.

    0 if they are equal, about 1.4 if they have nothing in common; NaN if they hardly overlap.
    """
    if min(a.shape[0] - abs(shift[0]), a.shape[1] - abs(shift[1])) < MIN_OVERLAP_PX:
        return float("nan")
    apart, spread, _ = kernels.difference(a, b, *shift)
    return apart / spread if spread > 0 else 0.0


def _facts(
    asked: Asked,
    tracks: Sequence[Track],
    seams: Sequence[Seam],
    nominal: Sequence[Placement],
    moved: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    options = asked.options
    before, after = [], []
    for track in tracks:
        corners = np.array([(site.row, site.col) for site in track.sites])
        used = track.edges[track.solution.used]
        before.append(used.left(corners))
        after.append(used.left(track.solution.positions))
    shifts = np.array([(row - one.row, col - one.col) for one, (row, col) in zip(nominal, moved, strict=True)])
    scored = [seam for seam in seams if np.isfinite(seam.before) and np.isfinite(seam.after)]
    n_edges = sum(len(track.edges) for track in tracks)
    return {
        "method": asked.method,
        "max_shift_px": options.max_shift_px,
        "min_quality": options.min_quality,
        "background": options.background,
        "clip": options.clip,
        "normalize": options.normalize,
        "channel": tracks[0].sites[0].placements[0].plane.c,
        "fixed frame": asked.fixed,
        "frames left out": sorted(asked.left_out),
        "frames that cannot be read": sorted(frame for track in tracks for frame in track.lost),
        "frames compared": sum(len(track.sites) for track in tracks),
        "shifts": n_edges,
        "shifts used": sum(int(track.solution.used.sum()) for track in tracks),
        "components": sum(track.solution.n_components for track in tracks),
        "frames alone": sum(int((np.bincount(track.solution.component) == 1).sum()) for track in tracks),
        "model": [{"t": track.t} | track.solution.model.as_dict() for track in tracks],
        "moved_px": _summary([np.abs(shifts).max(axis=1)]),
        "residual before_px": _summary(before),
        "residual after_px": _summary(after),
        "seams": {
            "looked at": len(scored),
            "before": round(float(np.mean([seam.before for seam in scored])), 4) if scored else None,
            "after": round(float(np.mean([seam.after for seam in scored])), 4) if scored else None,
        },
    }


def _summary(values: Sequence[NDArray[Any]]) -> dict[str, float] | None:
    joined = np.concatenate([np.asarray(value, float) for value in values]) if values else np.empty(0)
    if not len(joined):
        return None
    return {
        "median": round(float(np.median(joined)), 3),
        "p95": round(float(np.percentile(joined, 95)), 3),
        "most": round(float(joined.max()), 3),
    }
