"""`--frames`: the images as they came, and a table that stitchers, and `tilecast send`, put them back with."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile

from integration.talking import PX_UM, centre_um, picture
from plugins.export.conftest import Bench
from plugins.export.test_moment import P0, new_store, numbered
from tilecast.geometry import Placement, Rect, TileKey
from tilecast.inputs import open_scan
from tilecast.store.tile_store import Commit, TileRow
from tilecast_plugins.export.writing import Request, write
from tilecast_protocol.errors import TilecastError
from viewer_scans import CORNERS, SHAPE, Scan


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "positions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_images_and_table_are_what_was_sent(bench: Bench, colour: Scan, tmp_path: Path) -> None:
    said = bench.export(colour.run, tmp_path / "frames", "--frames")
    assert "21 frames, as recorded" in said
    rows = table_of(tmp_path / "frames")
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == sorted(
        [*(row["file"] for row in rows), "positions.csv"]
    )
    planes = [(0, 0, 0), (0, 1, 0), (0, 1, 1)]
    for number, row in enumerate(rows):
        plane, corner = planes[number // len(CORNERS)], CORNERS[number % len(CORNERS)]
        assert int(row["frame"]) == number
        assert (int(row["t"]), int(row["c"]), int(row["z"])) == plane
        assert (int(row["y_px"]), int(row["x_px"])) == corner
        assert (float(row["x_um"]), float(row["y_um"])) == pytest.approx(centre_um(*corner, SHAPE))
        with tifffile.TiffFile(tmp_path / "frames" / row["file"]) as tiff:
            np.testing.assert_array_equal(tiff.asarray(), picture(700 + number, SHAPE))
            pixels = ElementTree.fromstring(tiff.ome_metadata or "").find("{*}Image/{*}Pixels")
        assert pixels is not None
        assert (float(pixels.get("PhysicalSizeX", 0)), pixels.get("PhysicalSizeXUnit")) == (PX_UM[0], "µm")
        at = pixels.find("{*}Plane")
        assert at is not None
        assert float(at.get("PositionX", "")) == float(row["x_um"])
        assert float(at.get("PositionY", "")) == float(row["y_um"])


def test_send_reads_it_back(bench: Bench, grey: Scan, tmp_path: Path) -> None:
    bench.export(grey.run, tmp_path / "frames", "--frames")
    scan = open_scan(tmp_path / "frames")
    assert list(scan.corners) == list(CORNERS)
    for frame in scan.frames():
        np.testing.assert_array_equal(frame.pixels, picture(700 + frame.frame, SHAPE, "|u1"))


def test_frames_that_touch_a_region_in_chosen_planes(bench: Bench, colour: Scan, tmp_path: Path) -> None:
    # The second frame begins at column 30: half-open, so a region that ends there does not touch it.
    bench.export(colour.run, tmp_path / "one", "--frames", "--region=15,15,40,30", "--channels=1", "--slices=0")
    assert [int(row["frame"]) for row in table_of(tmp_path / "one")] == [7]
    bench.export(colour.run, tmp_path / "two", "--frames", "--region=15,15,41,31", "--channels=GFP", "--slices=0")
    assert [int(row["frame"]) for row in table_of(tmp_path / "two")] == [7, 8, 9, 10]


def test_calibrated_or_as_recorded(bench: Bench, tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.full(SHAPE, 100, "<f4"))
    pixels = picture(5, SHAPE) // 2 + 200
    with bench.show.publisher("dark") as publisher:
        run = publisher.start(
            "dark", shape=SHAPE, dtype="<u2", px_um=PX_UM, pos_src="frame", dark="part:0", parts=[file.getvalue()]
        )
        publisher.image(pixels, pos_um=centre_um(0, 0, SHAPE))
        publisher.end(run=run)
        publisher.flush()
    bench.show.watch.report(run)
    said = bench.export(run, tmp_path / "calibrated", "--frames")
    assert "1 frames, calibrated" in said
    bench.export(run, tmp_path / "recorded", "--frames", "--as-recorded")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "calibrated" / "frame_0000.ome.tif"), pixels - 100)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "recorded" / "frame_0000.ome.tif"), pixels)


@pytest.mark.parametrize(
    ("width", "state", "hint"),
    [
        (64, "sealed", "is sealed since"),
        (32, "ended", "frame 0 was split into views"),
        (0, "ended", "no placed frames"),
    ],
)
def test_runs_that_have_no_such_frames(tmp_path: Path, width: int, state: str, hint: str) -> None:
    with new_store(tmp_path / "run") as store:
        placed = [Placement(0, 0, P0, 0, 0, 64, width, "stage", 0)] if width else []
        tile = TileRow(P0, TileKey(0, 0, 0), numbered(1))
        store.commit(Commit(tiles=[tile], placements=placed, levels=1, bboxes={P0: Rect(0, 0, 64, 64)}))
        store.set_state(state)
    with pytest.raises(TilecastError, match=hint):
        write(Request(folder=tmp_path / "run", target=tmp_path / "made", frames=True), lambda *_: None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
