"""`tilecast export-png`: a picture of the mosaic that any program can open."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from tilecast.commands.common import Invocation, find_run, number_list, progress, tilecast_command
from tilecast.errors import StoreError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tilecast.geometry import PlaneKey, Rect
    from tilecast.store.tile_store import RunInfo, TileReader

# Without --level, the picture is the finest that is at most this wide and high.
OVERVIEW_PX = 2048

# A PNG is made in memory; this is a page of a poster, and 1 GiB.
MAX_PIXELS = 1 << 30


@tilecast_command("export-png")
@click.argument("run")
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--level",
    type=click.IntRange(min=0),
    help="0 is full resolution; each further level is half as large. If not given: the finest that is at most "
    f"{OVERVIEW_PX} pixels wide and high.",
)
@click.option(
    "--region",
    metavar="TOP,LEFT,BOTTOM,RIGHT",
    callback=number_list(int),
    help="Only this part, in pixels of full resolution, whatever the level; pixel 0,0 is stage position 0,0. If not "
    "given: all of it.",
)
@click.option(
    "--region-um", metavar="X0,Y0,X1,Y1", callback=number_list(float), help="Only this part, in stage micrometres."
)
@click.option(
    "--plane",
    metavar="T,C,Z",
    callback=number_list(int),
    default="0,0,0",
    show_default=True,
    help="Time point, channel and plane, counted from 0.",
)
@click.option(
    "--range",
    "grey_range",
    metavar="LOW,HIGH",
    callback=number_list(float),
    help="Grey levels shown as black and white. If not given: so that 0.1 % of the pixels are black and 0.1 % white.",
)
def command(
    invocation: Invocation,
    run: str,
    file: Path | None,
    level: int | None,
    region: tuple[int, int, int, int] | None,
    region_um: tuple[float, float, float, float] | None,
    plane: tuple[int, int, int],
    grey_range: tuple[float, float] | None,
) -> None:
    """Save a picture of a RUN's mosaic, or of a part of it, as an 8-bit PNG.

    RUN is the beginning of its id, its name, its folder, or `last`. FILE is overview-<run>.png if not given. What no
    frame covers is black. The run may still be going on.

    \b
    Examples:
        tilecast export-png last
        tilecast export-png last detail.png --level 0 --region 0,0,1000,1500
    """
    from tilecast.geometry import PlaneKey, Rect, extent_rect
    from tilecast.store.sqlite_reader import SqliteReader

    if grey_range and not grey_range[0] < grey_range[1]:
        raise click.UsageError("--range is LOW,HIGH, and LOW must be the smaller")
    if region and region_um:
        raise click.UsageError("--region and --region-um say the same in two ways: give one of them")
    found = find_run(invocation.config.store.path, run)
    path = file or Path(f"overview-{found.run[:8]}.png")
    with SqliteReader(found.folder) as reader:
        wanted = Rect(*region) if region else None
        if region_um:
            start = reader.info().header
            affine = start.get("affine") or ((start["px_um"][0], 0.0), (0.0, start["px_um"][1]))
            wanted = extent_rect((region_um[:2], region_um[2:]), affine)
        picture = save_png(reader, path, plane=PlaneKey(*plane), level=level, region=wanted, grey_range=grey_range)
    click.echo(
        f"{path}: {picture.width} × {picture.height} pixels of level {picture.level}, grey levels {picture.low:g} "
        f"(black) to {picture.high:g} (white)"
    )


class Picture(NamedTuple):
    """What was saved: its size in pixels, the level it is of, and the grey levels shown as black and white."""

    width: int
    height: int
    level: int
    low: float
    high: float


def save_png(
    reader: TileReader,
    path: Path,
    *,
    plane: PlaneKey | None = None,
    level: int | None = None,
    region: Rect | None = None,
    grey_range: tuple[float, float] | None = None,
) -> Picture:
    """Write a part of a run's mosaic as an 8-bit PNG, with a progress bar where there is a terminal.

    Parameters
    ----------
    reader : TileReader
    path : Path
        The file; one that is there is replaced.
    plane : PlaneKey
        The first one if not given.
    level : int, optional
        The finest that is at most `OVERVIEW_PX` wide and high if not given.
    region : Rect, optional
        In level-0 pixels; all that is covered if not given.
    grey_range : (float, float), optional
        Shown as black and white; found from the pixels if not given.

    Raises
    ------
    StoreError
        If there is nothing to show, or too much.
    """
    from PIL import Image

    from tilecast.geometry import PlaneKey, rect_at_level

    info = reader.info()
    plane = plane or PlaneKey()
    wanted = region or info.bboxes.get(plane)
    if plane not in info.bboxes or wanted is None:
        there = ", ".join("{},{},{}".format(*known) for known in sorted(info.bboxes)) or "none yet"
        asked = "{},{},{}".format(*plane)
        raise StoreError(f"the run {info.run[:8]} has no frames in plane {asked}; it has: {there}")
    if wanted.empty:
        raise StoreError("the region is empty: give top,left,bottom,right, with bottom and right the larger ones")
    if level is None:
        level = next((n for n in range(info.levels) if _longest_edge(wanted, n) <= OVERVIEW_PX), info.levels - 1)
    if level >= info.levels:
        raise StoreError(f"the run {info.run[:8]} has levels 0 to {info.levels - 1}, not {level}")
    rect = rect_at_level(wanted, level)
    if rect.height * rect.width > MAX_PIXELS:
        raise StoreError(
            f"that picture would have {rect.height * rect.width:,} pixels, more than {MAX_PIXELS:,}: use a higher "
            "--level or a smaller --region"
        )
    low, high = grey_range or _auto_range(reader, info, plane, level, wanted)
    Image.fromarray(_eight_bits(reader, info, plane, level, rect, low, high)).save(path, "PNG")
    return Picture(rect.width, rect.height, level, low, high)


def _longest_edge(rect: Rect, level: int) -> int:
    return max(rect.height, rect.width) >> level


def _auto_range(reader: TileReader, info: RunInfo, plane: PlaneKey, level: int, wanted: Rect) -> tuple[float, float]:
    """Grey levels that 0.1 % of the covered pixels are below and above, at a level that is quick to read."""
    import numpy as np

    from tilecast.geometry import rect_at_level
    from tilecast.publish.answers import read_region

    while level < info.levels - 1 and _longest_edge(wanted, level) > OVERVIEW_PX:
        level += 1
    seen = read_region(reader, info, plane, level, rect_at_level(wanted, level))
    values = seen.pixels[seen.coverage]
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, (0.1, 99.9)))
    return low, high if high > low else low + 1


def _eight_bits(
    reader: TileReader, info: RunInfo, plane: PlaneKey, level: int, rect: Rect, low: float, high: float
) -> NDArray[np.uint8]:
    """The region in 8 bits, read a row of tiles at a time, so that only the picture itself is in memory."""
    import numpy as np

    from tilecast.geometry import Rect
    from tilecast.publish.answers import read_region

    tile_size = int(info.settings["tile_size"])
    picture = np.zeros((rect.height, rect.width), np.uint8)
    edges = [rect.row0, *range((rect.row0 // tile_size + 1) * tile_size, rect.row1, tile_size), rect.row1]
    with progress("Reading rows of tiles", len(edges) - 1) as step:
        for row0, row1 in itertools.pairwise(edges):
            band = read_region(reader, info, plane, level, Rect(row0, rect.col0, row1, rect.col1))
            grey = (band.pixels.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
            grey[~band.coverage] = 0
            picture[row0 - rect.row0 : row1 - rect.row0] = np.rint(np.clip(grey, 0, 255))
            step()
    return picture
