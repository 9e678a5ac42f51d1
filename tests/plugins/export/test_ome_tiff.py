"""OME-TIFF as tifffile and bioio open it: every level pixel for pixel, positions, sizes, channels."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile

from integration.talking import PX_UM
from plugins.export.conftest import Bench
from plugins.export.expected import BOX, levels, region
from viewer_scans import Scan

PLANES = ((0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1))


def pixels_of(tiff: tifffile.TiffFile) -> ElementTree.Element:
    found = ElementTree.fromstring(tiff.ome_metadata or "").find("{*}Image/{*}Pixels")
    assert found is not None
    return found


def corner_of(tiff: tifffile.TiffFile) -> tuple[int, int]:
    """Row and column of the first pixel, from the stage position that the file tells of its centre."""
    pixels = pixels_of(tiff)
    plane = pixels.find("{*}Plane")
    assert plane is not None
    assert plane.get("PositionXUnit") == plane.get("PositionYUnit") == "µm"
    height, width = int(pixels.get("SizeY", 0)), int(pixels.get("SizeX", 0))
    row = float(plane.get("PositionY", "")) / PX_UM[1] - height / 2
    col = float(plane.get("PositionX", "")) / PX_UM[0] - width / 2
    assert row == pytest.approx(round(row), abs=1e-6)
    assert col == pytest.approx(round(col), abs=1e-6)
    return round(row), round(col)


@pytest.mark.parametrize("compression", ["zlib", "none"])
def test_every_level_is_the_runs(bench: Bench, colour: Scan, tmp_path: Path, compression: str) -> None:
    path = tmp_path / "made.ome.tif"
    said = bench.export(colour.run, path, "--compression", compression)
    assert said.startswith(f"{path}: ")
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff
        assert tiff.is_ome
        assert tiff.pages.first.is_tiled
        (series,) = tiff.series
        assert series.get_axes(squeeze=False).startswith("TCZYX")
        row0, col0 = corner_of(tiff)
        height, width = series.levels[0].shape[-2:]
        bounds = (row0, col0, row0 + height, col0 + width)
        # It holds all that is covered, and its levels are the run's: it begins at a pixel of the top one.
        assert row0 <= BOX[0]
        assert col0 <= BOX[1]
        assert bounds[2:] == BOX[2:]
        assert len(series.levels) == 4
        assert row0 % 8 == col0 % 8 == 0
        arrays = [level.asarray().reshape(2, 2, *level.shape[-2:]) for level in series.levels]
        for plane in PLANES:
            for level, expected in enumerate(levels(colour, bounds, len(arrays), plane)):
                found = arrays[level][plane[1], plane[2]]
                np.testing.assert_array_equal(found, expected.values, f"level {level} of {plane}")
        assert arrays[0].any()


def test_it_tells_sizes_and_channels(bench: Bench, colour: Scan, tmp_path: Path) -> None:
    bench.export(colour.run, tmp_path / "made.ome.tif")
    with tifffile.TiffFile(tmp_path / "made.ome.tif") as tiff:
        pixels = pixels_of(tiff)
        assert (float(pixels.get("PhysicalSizeX", "")), pixels.get("PhysicalSizeXUnit")) == (PX_UM[0], "µm")
        assert (float(pixels.get("PhysicalSizeY", "")), pixels.get("PhysicalSizeYUnit")) == (PX_UM[1], "µm")
        told = [
            (one.get("Name"), int(one.get("Color", 0)), one.get("EmissionWavelength"))
            for one in pixels.iterfind("{*}Channel")
        ]
        assert [(name, float(wave or 0)) for name, _, wave in told] == [("DAPI", 461.0), ("GFP", 509.0)]
        # RGBA, as OME has it: blue and green, opaque.
        assert [color & 0xFFFFFFFF for _, color, _ in told] == [0x0000FFFF, 0x00FF00FF]
        assert len(list(pixels.iterfind("{*}Plane"))) == 4
        tags = tiff.pages.first.tags
        per_cm = tags["XResolution"].value
        assert per_cm[0] / per_cm[1] == pytest.approx(1e4 / PX_UM[0])
        xml = tiff.ome_metadata or ""
        assert colour.run in xml
        assert "first_row_px" in xml


@pytest.mark.parametrize("bounds", [(-30, -20, 71, 80), (3, 5, 4, 6), (-35, -25, 198, 230)])
def test_a_region_is_exactly_that(bench: Bench, grey: Scan, tmp_path: Path, bounds: tuple[int, int, int, int]) -> None:
    """Half-open, wherever it begins; its levels show nothing from outside of it."""
    bench.export(grey.run, tmp_path / "made.ome.tif", "--region=" + ",".join(map(str, bounds)))
    with tifffile.TiffFile(tmp_path / "made.ome.tif") as tiff:
        assert corner_of(tiff) == bounds[:2]
        found = [level.asarray() for level in tiff.series[0].levels]
    assert found[0].shape == (bounds[2] - bounds[0], bounds[3] - bounds[1])
    for level, expected in enumerate(levels(grey, bounds, len(found))):
        np.testing.assert_array_equal(found[level], expected.values)


def test_a_region_in_micrometres(bench: Bench, grey: Scan, tmp_path: Path) -> None:
    edges = (-20 * PX_UM[0], -30 * PX_UM[1], 80 * PX_UM[0], 71 * PX_UM[1])
    bench.export(grey.run, tmp_path / "made.ome.tif", "--region-um=" + ",".join(map(str, edges)))
    with tifffile.TiffFile(tmp_path / "made.ome.tif") as tiff:
        assert corner_of(tiff) == (-30, -20)
        np.testing.assert_array_equal(tiff.asarray(), region(grey, (-30, -20, 71, 80)).values)


def test_chosen_planes(bench: Bench, colour: Scan, tmp_path: Path) -> None:
    bench.export(colour.run, tmp_path / "made.ome.tif", "--channels", "GFP", "--slices", "1", "--region=0,0,60,50")
    with tifffile.TiffFile(tmp_path / "made.ome.tif") as tiff:
        (channel,) = pixels_of(tiff).iterfind("{*}Channel")
        assert channel.get("Name") == "GFP"
        np.testing.assert_array_equal(tiff.asarray(), region(colour, (0, 0, 60, 50), (0, 1, 1)).values)


def test_uncovered_pixels_get_what_was_asked_for(bench: Bench, grey: Scan, floats: Scan, tmp_path: Path) -> None:
    bounds = (100, 100, 198, 230)
    asked = "--region=100,100,198,230"
    bench.export(grey.run, tmp_path / "grey.ome.tif", asked, "--fill", "7")
    bench.export(floats.run, tmp_path / "floats.ome.tif", asked)
    bench.export(floats.run, tmp_path / "filled.ome.tif", asked, "--fill=-1.5")
    for scan, name, fill in ((grey, "grey", 7), (floats, "floats", np.nan), (floats, "filled", -1.5)):
        with tifffile.TiffFile(tmp_path / f"{name}.ome.tif") as tiff:
            found = [level.asarray() for level in tiff.series[0].levels]
        for level, expected in enumerate(levels(scan, bounds, len(found))):
            assert not expected.covered.all()
            np.testing.assert_array_equal(found[level], np.where(expected.covered, expected.values, fill))


@pytest.mark.filterwarnings("ignore")
def test_bioio_opens_it(bench: Bench, colour: Scan, tmp_path: Path) -> None:
    bioio = pytest.importorskip("bioio", reason="bioio is not installed: uv sync --group exports")
    reader: Any = pytest.importorskip("bioio_ome_tiff", reason="bioio-ome-tiff is not installed").Reader
    bounds = (-30, -20, 71, 80)
    bench.export(colour.run, tmp_path / "made.ome.tif", "--region=-30,-20,71,80")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = bioio.BioImage(tmp_path / "made.ome.tif", reader=reader)
        assert image.dims.order == "TCZYX"
        assert image.channel_names == ["DAPI", "GFP"]
        assert (PX_UM[1], PX_UM[0]) == (image.physical_pixel_sizes.Y, image.physical_pixel_sizes.X)
        for plane in PLANES:
            found = image.get_image_data("YX", T=plane[0], C=plane[1], Z=plane[2])
            np.testing.assert_array_equal(found, region(colour, bounds, plane).values)
        plane_told = image.metadata.images[0].pixels.planes[0]
        assert plane_told.position_x == pytest.approx(30 * PX_UM[0])
        assert plane_told.position_y == pytest.approx(20.5 * PX_UM[1])
