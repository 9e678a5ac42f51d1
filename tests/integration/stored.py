"""What lies in a run's folder, as plain arrays, for comparison with the reference and with each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference import mosaic_reference
from tilecast.store.coverage import coverage_unpack
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_protocol import pzf
from tilecast_protocol.journal import Journal


def stored_mosaic(folder: Path) -> mosaic_reference.Mosaic:
    """Every tile of a run's store with its coverage."""
    found: mosaic_reference.Mosaic = {}
    with SqliteReader(folder) as reader:
        size = reader.info().settings["tile_size"]
        for stamp in reader.stamps():
            tile = reader.tile(stamp.plane, stamp.key)
            assert tile is not None
            pixels = pzf.decode_image(tile.pzf)
            mask = coverage_unpack(tile.coverage, size)
            if mask is None:
                mask = np.isfinite(pixels) if pixels.dtype.kind == "f" else np.ones(pixels.shape, np.bool_)
            found[tuple(stamp.plane), tuple(stamp.key)] = (pixels, mask)
    return found


def journalled_frames(folder: Path) -> dict[int, NDArray[Any]]:
    """Pixels of every journalled image, by frame number."""
    with Journal.open(folder / "journal", readonly=True) as journal:
        records = [journal.image(index) for index in range(journal.n_images)]
        return {int(record.frame): pzf.decode_image(record.parts[0]) for record in records if record.frame is not None}


def reference_mosaic(
    folder: Path, pixels: dict[int, NDArray[Any]], corners: dict[int, tuple[int, int]] | None = None
) -> mosaic_reference.Mosaic:
    """What a run's store must hold: the reference over its frames, at `corners`, or where its store says they lie."""
    with SqliteReader(folder) as reader:
        info = reader.info()
        rows = [row.placement for row in reader.placements()]
    frames = [
        mosaic_reference.Frame(
            row.frame,
            row.view,
            row.index,
            tuple(row.plane),
            *((row.row, row.col) if corners is None else corners[row.frame]),
            pixels[row.frame],
        )
        for row in rows
    ]
    return mosaic_reference.mosaic(frames, info.settings["mode"], info.header["dtype"], info.settings["tile_size"])


def assert_same(found: mosaic_reference.Mosaic, expected: mosaic_reference.Mosaic) -> None:
    """Values and coverage of all tiles, bit for bit."""
    problems = mosaic_reference.differences(found, expected)
    assert not problems, problems[:5]
