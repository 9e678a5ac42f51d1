"""A mosaic as a folder that PYME's `ImagePyramid.load_existing` opens.

What PYME wants, and this module translates: arrays are [x, y], and tiles are counted from (0, 0), which lies at
(x0, y0); that is the stage position in µm of the *corner* of the first pixel, and positions grow with the index along
both axes. So the mosaic is turned: its rows and columns become the stage's axes, mirrored where the camera was. That is
possible without resampling where the camera's axes are the stage's, whichever way round; a rotated camera is refused,
and so are pixels that are not square, since a pyramid has one pixel size.

The upper levels of a mirrored mosaic are still the run's: the image begins, on the side where PYME begins to count, at
a multiple of its top level's pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilecast.reading import Rect
from tilecast_plugins.export.errors import ExportError
from tilecast_plugins.export.picture import Picture, Planes
from tilecast_plugins.run import Run
from tilecast_protocol import pzf

Progress = Callable[[str, int, int], None]

#: How PYME of before 2026 named its tiles, too; newer ones read it from the metadata.
KEY_SCHEMA = "{level:d}/{x:03d}/{x:03d}_{y:03d}_{suff}{ext}"
BACKENDS = {"pzf": "PZFTileIO", "npy": "NumpyTileIO"}
_SQUARE = 1e-3


class Turn(NamedTuple):
    """How the mosaic's axes lie on the stage's.

    Attributes
    ----------
    exchanged : bool
        Rows run along x.
    rows_back, cols_back : bool
        Rows, or columns, run against the stage.
    pixel_um : float
    """

    exchanged: bool
    rows_back: bool
    cols_back: bool
    pixel_um: float

    def turned(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """(rows, columns) as PYME's [x, y]."""
        pixels = pixels[:: -1 if self.rows_back else 1, :: -1 if self.cols_back else 1]
        return np.ascontiguousarray(pixels if self.exchanged else pixels.T)


def turn_of(run: Run) -> Turn:
    """How a run is to be turned.

    Raises
    ------
    ExportError
        If that cannot be done without resampling.
    """
    (a, b), (c, d) = run.affine
    if b == 0 and c == 0:
        turn = Turn(False, d < 0, a < 0, abs(a))
    elif a == 0 and d == 0:
        turn = Turn(True, b < 0, c < 0, abs(b))
    else:
        raise ExportError(
            f"PYME's pyramids know no rotation, and the camera of this run is turned against the stage (affine "
            f"{run.affine}): export OME-TIFF or OME-Zarr, or --frames"
        )
    y_um, x_um = (abs(step) for step in run.steps_um)
    if abs(y_um - x_um) > _SQUARE * x_um:
        raise ExportError(
            f"PYME's pyramids have square pixels, and those of this run are {x_um:g} × {y_um:g} µm: export OME-TIFF or "
            "OME-Zarr"
        )
    return turn


def pyramid_rect(run: Run, planes: Planes, rect: Rect, tile_size: int) -> Rect:
    """What a pyramid that shows `rect` is made of: one tile of its top level, which holds it.

    Raises
    ------
    ExportError
        If it cannot be a pyramid of PYME.
    """
    n_t, n_c, n_z = planes.shape
    if n_t * n_c * n_z != 1:
        raise ExportError(
            f"PYME's pyramids hold one plane, and these are {n_t * n_c * n_z}: choose one with --times, --channels and "
            "--slices"
        )
    turn = turn_of(run)
    level = 0
    while True:
        step, edge = 1 << level, tile_size << level
        row0, row1 = _side(rect.row0, rect.row1, step, edge, turn.rows_back)
        col0, col1 = _side(rect.col0, rect.col1, step, edge, turn.cols_back)
        whole = Rect(row0, col0, row1, col1)
        if whole.contains(rect):
            return whole
        level += 1


def _side(start: int, end: int, step: int, edge: int, back: bool) -> tuple[int, int]:
    """Of one axis: `edge` pixels from where PYME begins to count, which is a multiple of `step`."""
    if back:
        last = -(-end // step) * step
        return last - edge, last
    first = start // step * step
    return first, first + edge


def write_pyramid(picture: Picture, folder: Path, progress: Progress, *, tiles: str) -> None:
    """Write a picture whose rectangle `pyramid_rect` made.

    Parameters
    ----------
    folder : Path
        To be made.
    tiles : str
        ``pzf`` or ``npy``.
    """
    levels, run = picture.levels, picture.run
    ((_, plane),) = picture.planes
    turn = turn_of(run)
    size, total = levels.tile_size, levels.n_tiles
    folder.mkdir()
    n_x = n_y = 0
    for number, tile in enumerate(levels.walk(plane), 1):
        progress("writing", min(number, total), total)
        last = (1 << (levels.n_levels - 1 - tile.level)) - 1
        row = last - tile.row if turn.rows_back else tile.row
        col = last - tile.col if turn.cols_back else tile.col
        x, y = (row, col) if turn.exchanged else (col, row)
        if tile.level == 0:
            n_x, n_y = max(n_x, x + 1), max(n_y, y + 1)
        written = picture.written(np.nan_to_num(tile.pixels) if picture.fill is None else tile.pixels, tile.coverage)
        path = folder / KEY_SCHEMA.format(level=tile.level, x=x, y=y, suff="img", ext=f".{tiles}")
        path.parent.mkdir(parents=True, exist_ok=True)
        turned = turn.turned(written)
        if tiles == "npy":
            np.save(path, turned)
        else:
            path.write_bytes(pzf.encode_image(turned))
    rect = levels.rect
    corners = [run.stage_um(row, col) for row in (rect.row0, rect.row1) for col in (rect.col0, rect.col1)]
    metadata = {
        "Pyramid.TileSize": size,
        "Pyramid.NTilesX": n_x,
        "Pyramid.NTilesY": n_y,
        "Pyramid.PixelsX": n_x * size,
        "Pyramid.PixelsY": n_y * size,
        "Pyramid.Depth": levels.n_levels - 1,
        "Pyramid.x0": min(x_um for x_um, _ in corners),
        "Pyramid.y0": min(y_um for _, y_um in corners),
        "Pyramid.PixelSize": turn.pixel_um,
        "Pyramid.Backend": BACKENDS[tiles],
        "Pyramid.KeySchema": KEY_SCHEMA,
        "voxelsize.x": turn.pixel_um,
        "voxelsize.y": turn.pixel_um,
        "voxelsize.units": "um",
        "Camera.ADOffset": 0,
        "Positioning.x": min(x_um for x_um, _ in corners),
        "Positioning.y": min(y_um for _, y_um in corners),
        "tilecast.run": run.run,
        "tilecast.name": run.name,
        "tilecast.plane_tcz": list(plane),
        "tilecast.rev": run.rev,
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2, sort_keys=True))
