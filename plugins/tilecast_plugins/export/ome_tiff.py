"""A mosaic as a pyramidal OME-TIFF: BigTIFF, tiled, the upper levels as SubIFDs, with sizes, positions and channels.

A TIFF is written from front to back, all of level 0 before level 1. So the levels are made once and set aside
compressed (`spool`), and level 0, which is most of it, is made again while it is written; memory holds a few tiles.

What OME-XML has no word for (the affine, where pixel (0, 0) of the stage lies, what was uncovered) stands in a
MapAnnotation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from tilecast.reading import PlaneKey, TileKey
from tilecast_plugins.export.levels import LevelTile
from tilecast_plugins.export.picture import Picture
from tilecast_plugins.export.spool import Spool
from tilecast_plugins.pixels import Tile, decode
from tilecast_plugins.run import Blob
from tilecast_protocol import pzf

Progress = Callable[[str, int, int], None]

COMPRESSIONS = ("zlib", "none")
SOFTWARE = "tilecast"


def write_ome_tiff(picture: Picture, path: Path, spool: Spool, progress: Progress, *, compression: str) -> None:
    """Write a picture.

    Parameters
    ----------
    path : Path
        The file.
    spool : Spool
        For the upper levels; empty.
    compression : str
        ``zlib``, or ``none``.
    """
    levels = picture.levels
    total = picture.n_planes * levels.n_tiles
    for number, (plane, tile) in enumerate(_made(picture), 1):
        progress("making levels", number, total)
        if tile.level:
            spool.put(plane, TileKey(tile.level, tile.row, tile.col), _packed(tile))
    size, n_done = levels.tile_size, 0

    def tiles(level: int) -> Iterator[NDArray[Any]]:
        nonlocal n_done
        rows, cols = levels.grid(level)
        for _, plane in picture.planes:
            for row in range(rows):
                for col in range(cols):
                    n_done += 1
                    progress("writing", n_done, total)
                    made: LevelTile | Tile | None
                    if level == 0:
                        made = levels.base(plane, row, col)
                    else:
                        blob = spool.get(plane, TileKey(level, row, col))
                        made = None if blob is None else decode(picture.run, blob, size)
                    yield picture.blank() if made is None else picture.written(made.pixels, made.coverage)

    step_y_um, step_x_um = (abs(step) for step in picture.run.steps_um)
    common: dict[str, Any] = {
        "dtype": picture.run.dtype,
        "tile": (size, size),
        "photometric": "minisblack",
        "compression": None if compression == "none" else compression,
        "predictor": compression != "none" and picture.run.dtype.kind != "f",
        "maxworkers": 1,
        "software": SOFTWARE,
    }
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as tiff:
        for level in range(levels.n_levels):
            height, width = levels.size(level)
            per_cm = 1e4 / (step_x_um * 2**level), 1e4 / (step_y_um * 2**level)
            first: dict[str, Any] = {"metadata": metadata_of(picture), "subifds": levels.n_levels - 1}
            tiff.write(
                tiles(level),
                shape=(*picture.planes.shape, height, width),
                resolution=per_cm,
                resolutionunit="CENTIMETER",
                **(first if level == 0 else {"metadata": None, "subfiletype": 1}),
                **common,
            )


def metadata_of(picture: Picture) -> dict[str, Any]:
    """What tifffile makes OME-XML of."""
    run, rect = picture.run, picture.levels.rect
    step_y_um, step_x_um = (abs(step) for step in run.steps_um)
    x_um, y_um = picture.centre_um
    told = run.start.get("channels") or ()
    waves = [told[c].get("emission_nm") if c < len(told) else None for c in picture.planes.c]
    channel: dict[str, Any] = {
        "Name": [one.label for one in picture.channels],
        "Color": [ome_color(one.color) for one in picture.channels],
    }
    if all(wave for wave in waves):
        channel |= {"EmissionWavelength": waves, "EmissionWavelengthUnit": ["nm"] * len(waves)}
    (a, b), (c, d) = run.affine
    return {
        "axes": "TCZYX",
        "Name": run.name or run.run,
        "PhysicalSizeX": step_x_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": step_y_um,
        "PhysicalSizeYUnit": "µm",
        "Channel": channel,
        "Plane": {
            "PositionX": [x_um] * picture.n_planes,
            "PositionXUnit": ["µm"] * picture.n_planes,
            "PositionY": [y_um] * picture.n_planes,
            "PositionYUnit": ["µm"] * picture.n_planes,
        },
        "MapAnnotation": {
            "Namespace": "tilecast",
            "run": run.run,
            "epoch": str(run.epoch),
            "rev": str(run.rev),
            "affine_um": f"[[{a!r}, {b!r}], [{c!r}, {d!r}]]",
            "first_row_px": str(rect.row0),
            "first_col_px": str(rect.col0),
            "fill": str(picture.blank()[0, 0]),
        },
    }


def ome_color(color: str) -> int:
    """Six hexadecimal digits as OME-XML has colours: RGBA in one signed number of 32 bits."""
    value = int(color, 16) << 8 | 0xFF
    return value - (1 << 32) if value >= 1 << 31 else value


def _made(picture: Picture) -> Iterator[tuple[PlaneKey, LevelTile]]:
    for _, plane in picture.planes:
        for tile in picture.levels.walk(plane):
            yield plane, tile


def _packed(tile: LevelTile) -> Blob:
    bits = None if tile.coverage is None else np.packbits(tile.coverage).tobytes()
    return Blob(bytes(pzf.encode_image(tile.pixels)), 0, bits)
