"""The single images of a run, a file each, and a table of where they lie: what stitchers begin with.

Each frame is an OME-TIFF with its pixel size and the stage position of its centre, which is what BigStitcher reads.
`positions.csv` says the same for everybody else: the upper left pixel of each frame in the mosaic (x_px, y_px), and the
stage position of its centre (x_um, y_um). Files are numbered as the frames are, with leading zeros, as MIST wants
them.

A centre is what the stage told, where the frame was placed by that and nothing else; of a frame whose place was joined
from a stage's stream or registered, and of a view of one that was split, it is the centre of the pixels it was given.

Images are as they went into the mosaic: calibrated, passed through the steps of plugins that are frozen in the run, and
where frames were split (dual-view cameras) each view is an image of its own.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from tilecast.reading import Placement, RecordedFrames, Rect, TileReader
from tilecast_plugins.export.errors import ExportError
from tilecast_plugins.export.ome_tiff import SOFTWARE, ome_color
from tilecast_plugins.export.picture import Planes
from tilecast_plugins.run import Run

Progress = Callable[[str, int, int], None]

COLUMNS = ("file", "frame", "view", "t", "c", "z", "x_px", "y_px", "x_um", "y_um", "source")


def wanted_frames(reader: TileReader, run: Run, planes: Planes, region: Rect | None) -> list[Placement]:
    """The placements to export, in order of frames and views.

    Raises
    ------
    ExportError
        If there are none.
    """
    there = {plane for _, plane in planes}
    found: dict[tuple[int, int], Placement] = {}
    for placement, _ in reader.placements():  # one that is moved meanwhile comes again, and the last time counts
        found.pop(placement.id, None)
        if placement.plane in there and (region is None or not placement.rect.intersect(region).empty):
            found[placement.id] = placement
    if not found:
        raise ExportError(f"the run {run.run[:8]} has no placed frames there: nothing to export")
    return sorted(found.values(), key=lambda one: one.id)


def whole_frames(placements: list[Placement], frames: RecordedFrames) -> list[Placement]:
    """Where the frames lie of which these are views, each once."""
    return list({one.frame: frames.whole(one) for one in placements}.values())


def write_frames(
    folder: Path, run: Run, placements: list[Placement], frames: RecordedFrames, progress: Progress, *, calibrated: bool
) -> None:
    """Write the images and their table into a new folder.

    Parameters
    ----------
    placements : list of Placement
        Of views where frames were split and are `calibrated`, else of whole frames.
    calibrated : bool
        As they went into the mosaic; else as the camera sent them.
    """
    folder.mkdir()
    n_digits = max(4, len(str(placements[-1].frame)))
    in_views = calibrated and bool(frames.views)
    with (folder / "positions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for number, placement in enumerate(placements, 1):
            pixels = frames.calibrated(placement) if calibrated else frames.recorded(placement)
            view = f"_view_{placement.view}" if in_views else ""
            name = f"frame_{placement.frame:0{n_digits}d}{view}.ome.tif"
            x_um, y_um = centre_um(run, placement, {} if in_views else frames.header(placement))
            _write_frame(folder / name, run, placement, pixels, (x_um, y_um))
            where = placement.col, placement.row, x_um, y_um, placement.source
            table.writerow([name, placement.frame, placement.view, *placement.plane, *where])
            progress("writing frames", number, len(placements))


def centre_um(run: Run, placement: Placement, header: dict[str, Any]) -> tuple[float, float]:
    """Stage position (x, y) of a frame's centre: as told, or where it was put."""
    told = header.get("pos_um")
    if placement.source == "stage" and told is not None:
        return float(told[0]), float(told[1])
    return run.stage_um(placement.row + placement.height / 2, placement.col + placement.width / 2)


def frames_nbytes(run: Run, placements: list[Placement]) -> int:
    """Most bytes that the files have."""
    return sum(one.height * one.width * run.dtype.itemsize + 8192 for one in placements)


def _write_frame(path: Path, run: Run, placement: Placement, pixels: NDArray[Any], at_um: tuple[float, float]) -> None:
    step_y_um, step_x_um = (abs(step) for step in run.steps_um)
    channel = run.channel(placement.plane.c)
    tifffile.imwrite(
        path,
        np.ascontiguousarray(pixels),
        ome=True,
        photometric="minisblack",
        software=SOFTWARE,
        resolution=(1e4 / step_x_um, 1e4 / step_y_um),
        resolutionunit="CENTIMETER",
        metadata={
            "axes": "YX",
            "Name": f"{run.name or run.run}, frame {placement.frame}",
            "PhysicalSizeX": step_x_um,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": step_y_um,
            "PhysicalSizeYUnit": "µm",
            "Channel": {"Name": [channel.label], "Color": [ome_color(channel.color)]},
            "Plane": {
                "PositionX": [at_um[0]],
                "PositionXUnit": ["µm"],
                "PositionY": [at_um[1]],
                "PositionYUnit": ["µm"],
            },
        },
    )
