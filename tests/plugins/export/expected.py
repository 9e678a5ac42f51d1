"""What an export must show, worked out from the reference mosaic alone."""

from __future__ import annotations

import numpy as np

from reference import mosaic_reference
from viewer_scans import CORNERS, SHAPE, TILE, Canvas, Plane, Scan

#: What the frames cover together.
BOX = (
    min(row for row, _ in CORNERS),
    min(col for _, col in CORNERS),
    max(row for row, _ in CORNERS) + SHAPE[0],
    max(col for _, col in CORNERS) + SHAPE[1],
)


def region(scan: Scan, bounds: tuple[int, int, int, int], plane: Plane = (0, 0, 0)) -> Canvas:
    """Any rectangle of level 0."""
    row0, col0, row1, col1 = bounds
    outer = (row0 // TILE * TILE, col0 // TILE * TILE, -(-row1 // TILE) * TILE, -(-col1 // TILE) * TILE)
    whole = scan.canvas(outer, 0, plane)
    part = np.s_[row0 - outer[0] : row1 - outer[0], col0 - outer[1] : col1 - outer[1]]
    return Canvas(whole.values[part], whole.covered[part])


def levels(scan: Scan, bounds: tuple[int, int, int, int], n_levels: int, plane: Plane = (0, 0, 0)) -> list[Canvas]:
    """The rectangle at each level, reduced from its own pixels and no others."""
    found = [region(scan, bounds, plane)]
    while len(found) < n_levels:
        values, covered = found[-1].values, found[-1].covered
        odd = [(0, size % 2) for size in values.shape]
        fill = np.nan if values.dtype.kind == "f" else 0
        found.append(Canvas(*mosaic_reference.reduce(np.pad(values, odd, constant_values=fill), np.pad(covered, odd))))
    return found
