"""`--frames`: the images as they came, and a table that stitchers, and `tilecast send`, put them back with."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from integration.talking import PX_UM, centre_um, picture
from plugins.export.conftest import Bench
from plugins.export.test_moment import P0, new_store, numbered
from tilecast import cli
from tilecast.geometry import Placement, Rect, TileKey
from tilecast.inputs import open_scan
from tilecast.store.tile_store import Commit, TileRow
from tilecast.testing.fixtures import StartDaemon
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


def test_frames_are_what_plugins_made_of_them(tilecast_daemon: StartDaemon, tmp_path: Path) -> None:
    """A dual-view camera with an offset, one half mirrored: each view is an image, the same as in the mosaic."""
    folder = tmp_path / "calibrations"
    folder.mkdir()
    (folder / "cameras.toml").write_text("[[camera]]\ndark = 100\n")
    options = {"plugins.splitter.streams": "dual", "plugins.splitter.mirror": "columns"}
    daemon = tilecast_daemon(**options, **{"calibration.path": str(folder), "plugins.splitter.second_channel": "2"})
    shape = (64, 96)
    frames = [picture(number, shape) // 2 + 50 for number in range(2)]
    with daemon.publisher("dual") as publisher:
        run = publisher.start("dual", shape=shape, dtype="<u2", px_um=(0.5, 0.5))
        for number, frame in enumerate(frames):
            publisher.image(frame, pos_um=(100.0 * number + 0.1, 50.0))
        publisher.end()
        publisher.flush()
    daemon.finish()

    def exported(name: str, *options: str) -> list[dict[str, str]]:
        arguments = ["export", run, str(tmp_path / name), "--frames", *options, "--set", f"store.path={daemon.root}"]
        done = CliRunner().invoke(cli.main, arguments)
        assert done.exit_code == 0, done.output
        assert done.output.splitlines()[-1].endswith(said), done.output
        return table_of(tmp_path / name)

    said = "4 views of frames, calibrated, and positions.csv"
    rows = exported("views")
    assert [row["file"] for row in rows] == [f"frame_000{n}_view_{view}.ome.tif" for n in (0, 1) for view in (0, 1)]
    mosaics = {channel: daemon.mosaic(run, channel=channel) for channel in (0, 2)}
    for number, row in enumerate(rows):
        frame, view = divmod(number, 2)
        assert (int(row["frame"]), int(row["view"]), int(row["c"])) == (frame, view, 2 * view)
        pixels = tifffile.imread(tmp_path / "views" / row["file"])
        dark = np.maximum(frames[frame].astype(int) - 100, 0)
        np.testing.assert_array_equal(pixels, dark[:, :48] if view == 0 else dark[:, :47:-1])
        mosaic, (top, left) = mosaics[2 * view]
        at_row, at_col = int(row["y_px"]) - top, int(row["x_px"]) - left
        np.testing.assert_array_equal(pixels, mosaic[at_row : at_row + 64, at_col : at_col + 48])
        # The centre of these pixels, where the stage said 0.1 µm more than a whole pixel.
        assert (float(row["x_um"]), float(row["y_um"])) == (100.0 * frame, 50.0)
    assert list(open_scan(tmp_path / "views").corners) == [(int(row["y_px"]), int(row["x_px"])) for row in rows]
    with pytest.raises(AssertionError, match="no placed frames there"):
        exported("none", "--region=0,0,1,1")
    said = "1 frames, as recorded, and positions.csv"
    [row] = exported("whole", "--as-recorded", "--region=60,200,100,210")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "whole" / row["file"]), frames[1])
    assert (row["view"], row["c"], row["x_px"], row["y_px"]) == ("0", "0", "152", "68")
    assert (float(row["x_um"]), float(row["y_um"])) == (100.1, 50.0)


@pytest.mark.parametrize(
    ("width", "state", "hint"),
    [
        (64, "sealed", "is sealed since"),
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
