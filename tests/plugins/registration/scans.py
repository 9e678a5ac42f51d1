"""The real scans for the tests of registration, and frames cut from a scene."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tilecast_plugins.registration.pairs import PairOptions
from tilecast_plugins.registration.solve import Edges
from tilecast_plugins.registration.tracking import Tracked, Tracker

SCANS = Path(__file__).resolve().parents[4] / "shared/data/scans"
needs_scans = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not SCANS.is_dir(), reason="the real scans are not beside the checkout"),
]


@dataclass(frozen=True)
class Scan:
    """Frames, where the stage says that they lie, and where they do, as (row, col)."""

    frames: NDArray[Any]
    nominal: NDArray[np.int64]
    true: NDArray[np.int64]

    def track(self, options: PairOptions) -> tuple[Tracker, list[Tracked]]:
        """All frames, one after the other."""
        tracker = Tracker(self.frames.shape[1:], options, self.frames.__getitem__)
        found = [tracker.add(n, self.nominal[n], self.frames[n]) for n in range(len(self.frames))]
        return tracker, found

    def errors(self, positions: NDArray[Any]) -> NDArray[np.float64]:
        """How far each lies off, after one shift of all is taken off; pixels, of the longer axis."""
        off = positions - self.true
        return np.asarray(np.abs(off - np.median(off, axis=0)).max(axis=1))

    def wrong(self, edges: Edges, more_than_px: float = 1.0) -> list[tuple[int, ...]]:
        """The edges that are not true."""
        true = self.true[edges.pairs[:, 1]] - self.true[edges.pairs[:, 0]]
        off = np.abs(edges.shifts - true).max(axis=1)
        return [tuple(pair) for pair in edges.pairs[off > more_than_px].tolist()]


def _read(name: str) -> tuple[NDArray[Any], list[dict[str, str]]]:
    with np.load(SCANS / name / "frames.npz") as archive:
        frames = archive["frames"]
    with (SCANS / name / "positions.csv").open() as file:
        return frames, list(csv.DictReader(file))


def _column(rows: list[dict[str, str]], down: str, right: str) -> NDArray[np.int64]:
    return np.array([[round(float(row[down])), round(float(row[right]))] for row in rows])


@cache
def cut_lscm() -> Scan:
    frames, rows = _read("cut_lscm_int_6x6")
    return Scan(frames, _column(rows, "y_px", "x_px"), _column(rows, "true_y_px", "true_x_px"))


@cache
def lscm() -> Scan:
    frames, rows = _read("lscm_tensile_ref")
    return Scan(frames, _column(rows, "nominal_y", "nominal_x"), _column(rows, "y_px", "x_px"))


@cache
def czi() -> Scan:
    frames, rows = _read("czi_mosaic_test")
    given = _column(rows, "y_px", "x_px")
    return Scan(frames, given, given + np.array([[0, 0], [-2, -7]]))


@cache
def mist() -> Scan:
    """Its true positions are those at which overlaps are equal to the last bit: three of the given ones are not."""
    frames, rows = _read("mist_5x5")
    given = _column(rows, "y_px", "x_px")
    true = {0: (0, 0)}
    while len(true) < len(frames):
        known = len(true)
        for i, j in combinations(range(len(frames)), 2):
            if (i in true) != (j in true):
                shift = _equal_at(frames[i], frames[j], given[j] - given[i])
                if shift is not None:
                    first, second, sign = (i, j, 1) if i in true else (j, i, -1)
                    true[second] = (true[first][0] + sign * shift[0], true[first][1] + sign * shift[1])
        assert len(true) > known, "frames hang together"
    shaken = np.random.default_rng(0).integers(-3, 4, given.shape)
    found = np.array([true[n] for n in range(len(frames))])
    return Scan(frames, found + shaken, found)


def _equal_at(a: NDArray[Any], b: NDArray[Any], around: NDArray[Any]) -> tuple[int, int] | None:
    height, width = a.shape
    for down in range(int(around[0]) - 5, int(around[0]) + 6):
        for right in range(int(around[1]) - 5, int(around[1]) + 6):
            if min(height - abs(down), width - abs(right)) < 4:
                continue
            top, left = max(0, down), max(0, right)
            one = a[top : down + height, left : right + width]
            other = b[top - down : top - down + one.shape[0], left - right : left - right + one.shape[1]]
            one = one[: other.shape[0], : other.shape[1]]
            if np.array_equal(one, other):
                return down, right
    return None
