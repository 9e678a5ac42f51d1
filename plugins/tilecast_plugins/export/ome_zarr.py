"""A mosaic as a folder of OME-Zarr, 0.4 or 0.5: what the live gateway serves, as files.

The documents are those of the gateway (`tilecast_plugins.ngff`). Chunks are compressed with gzip, which every reader
has. Where nothing is covered there is no chunk, which readers take as the fill value.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip
from numpy.typing import NDArray

from tilecast_plugins import ngff
from tilecast_plugins.export.picture import Picture
from tilecast_plugins.pixels import percentile_window

Progress = Callable[[str, int, int], None]

_GZIP_LEVEL = 2  # ISA-L knows 0 to 3; readers do not care


def write_ome_zarr(picture: Picture, folder: Path, version: str, progress: Progress, *, compression: str) -> None:
    """Write a picture.

    Parameters
    ----------
    folder : Path
        To be made.
    version : str
        One of `ngff.VERSIONS`.
    compression : str
        ``zlib`` (as gzip), or ``none``.
    """
    levels = picture.levels
    image = ngff.Image(
        run=picture.run,
        rect=levels.rect,
        levels=levels.n_levels,
        chunk_size=levels.tile_size,
        shape=picture.planes.shape,
        channels=picture.channels if len(picture.channels) <= ngff.MAX_OMERO_CHANNELS else (),
        fill=picture.fill,
        gzip_level=None if compression == "none" else _GZIP_LEVEL,
    )
    folder.mkdir()
    for level in range(levels.n_levels):
        name, document = ngff.array_file(image, version, level)
        (folder / str(level)).mkdir()
        _write_json(folder / str(level) / name, document)
    done, total = 0, picture.n_planes * levels.n_tiles
    overviews: dict[int, list[NDArray[Any]]] = {c: [] for c in range(len(picture.channels))}
    for (t, c, z), plane in picture.planes:
        for tile in levels.walk(plane):
            done += 1
            progress("writing", done, total)
            data = np.ascontiguousarray(picture.written(tile.pixels, tile.coverage), image.dtype).tobytes()
            path = folder / ngff.chunk_path(version, tile.level, t, c, z, tile.row, tile.col)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if image.gzip_level is None else igzip.compress(data, image.gzip_level))
            if tile.level == levels.n_levels - 1:
                seen = tile.pixels if tile.coverage is None else tile.pixels[tile.coverage]
                overviews[c].append(seen[np.isfinite(seen)])
    windows = [
        percentile_window(np.concatenate([np.ravel(part) for part in overviews[c]]) if overviews[c] else np.empty(0))
        for c in range(len(image.channels))
    ]
    for name, document in ngff.group_files(image, version, windows).items():
        _write_json(folder / name, document)


def _write_json(path: Path, document: ngff.Document) -> None:
    path.write_text(json.dumps(document, indent=2))
