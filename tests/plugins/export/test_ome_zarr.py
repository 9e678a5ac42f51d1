"""OME-Zarr as zarr, ome-zarr-models and bioio open it: both versions, every level, positions, windows."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from integration.talking import PX_UM
from plugins.export.conftest import Bench
from plugins.export.expected import BOX, levels, region
from viewer_scans import Scan

zarr = pytest.importorskip("zarr", reason="zarr is not installed: uv sync --group exports")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

VERSIONS = {"0.4": "ome-zarr-0.4", "0.5": "ome-zarr"}
PLANES = ((0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1))


def group_of(path: Path) -> Any:
    return zarr.open_group(path, mode="r")


def described(group: Any) -> dict[str, Any]:
    """The image's own description, of either version."""
    attributes = dict(group.attrs)
    return attributes.get("ome", attributes)


def edges_of(group: Any, level: int) -> tuple[float, float]:
    """Where level-0 pixel edges the first pixel of a level begins, from scale and translation of its centre."""
    dataset = described(group)["multiscales"][0]["datasets"][level]
    scale, translation = (one[one["type"]][3:] for one in dataset["coordinateTransformations"])
    assert scale == [PX_UM[1] * 2**level, PX_UM[0] * 2**level]
    return tuple((at - step / 2) / (step / 2**level) for at, step in zip(translation, scale, strict=True))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("compression", ["zlib", "none"])
def test_every_level_is_the_runs(bench: Bench, colour: Scan, tmp_path: Path, version: str, compression: str) -> None:
    path = tmp_path / "made.ome.zarr"
    bench.export(colour.run, path, "--format", VERSIONS[version], "--compression", compression)
    group = group_of(path)
    assert group.metadata.zarr_format == (2 if version == "0.4" else 3)
    row0, col0 = (round(edge) for edge in edges_of(group, 0))
    height, width = group["0"].shape[3:]
    bounds = (row0, col0, row0 + height, col0 + width)
    assert bounds[2:] == BOX[2:]
    datasets = described(group)["multiscales"][0]["datasets"]
    assert len(datasets) == 4
    assert group["0"].chunks == (1, 1, 1, 64, 64)
    for level in range(len(datasets)):
        assert edges_of(group, level) == pytest.approx((row0, col0))
    for plane in PLANES:
        for level, expected in enumerate(levels(colour, bounds, len(datasets), plane)):
            np.testing.assert_array_equal(group[str(level)][plane], expected.values, f"level {level} of {plane}")


@pytest.mark.parametrize("version", VERSIONS)
def test_ome_zarr_models_accept_it(bench: Bench, colour: Scan, floats: Scan, tmp_path: Path, version: str) -> None:
    # As with the gateway: older ones fail with the pydantic of today. CI runs this with the group.
    pytest.importorskip("ome_zarr_models", "1.7", reason="ome-zarr-models 1.7 is not installed: uv sync --group models")
    if version == "0.4":
        from ome_zarr_models.v04 import Image
    else:
        from ome_zarr_models.v05 import Image
    for scan in (colour, floats):
        bench.export(scan.run, tmp_path / f"{scan.run}.zarr", "--format", VERSIONS[version])
        image = Image.from_zarr(group_of(tmp_path / f"{scan.run}.zarr"))
        attributes = image.attributes if version == "0.4" else image.ome_attributes
        assert [axis.name for axis in attributes.multiscales[0].axes] == list("tczyx")
        assert attributes.omero is not None
    assert [one["label"] for one in described(group_of(tmp_path / f"{colour.run}.zarr"))["omero"]["channels"]] == [
        "DAPI",
        "GFP",
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_uncovered_pixels_get_what_was_asked_for(
    bench: Bench, grey: Scan, floats: Scan, tmp_path: Path, version: str
) -> None:
    """Also where there is no chunk at all."""
    bounds = (60, 60, 198, 230)
    options = ("--region=60,60,198,230", "--format", VERSIONS[version])
    bench.export(grey.run, tmp_path / "grey", *options, "--fill", "9")
    bench.export(floats.run, tmp_path / "floats", *options)
    for scan, name, fill in ((grey, "grey", 9), (floats, "floats", np.nan)):
        group = group_of(tmp_path / name)
        n_chunks = sum(path.is_file() and path.name.isdigit() for path in (tmp_path / name / "0").rglob("*"))
        assert n_chunks < 9  # 3 × 3: some are not there
        for level, expected in enumerate(levels(scan, bounds, 3)):
            np.testing.assert_array_equal(group[str(level)][0, 0, 0], np.where(expected.covered, expected.values, fill))


def test_windows_are_what_is_seen(bench: Bench, grey: Scan, tmp_path: Path) -> None:
    bench.export(grey.run, tmp_path / "made.zarr")
    window = described(group_of(tmp_path / "made.zarr"))["omero"]["channels"][0]["window"]
    assert window["min"] == 0
    assert window["max"] == 255
    assert 0 <= window["start"] < window["end"] <= 255


def test_both_versions_and_the_gateway_say_the_same(bench: Bench, colour: Scan, tmp_path: Path) -> None:
    """One code makes all documents; what differs is the frame around them."""
    for version, form in VERSIONS.items():
        bench.export(colour.run, tmp_path / version, "--format", form)
    old = json.loads((tmp_path / "0.4" / ".zattrs").read_text())
    new = json.loads((tmp_path / "0.5" / "zarr.json").read_text())["attributes"]
    assert (old["multiscales"][0].pop("version"), new["ome"].pop("version")) == ("0.4", "0.5")
    assert old["multiscales"] == new["ome"]["multiscales"]
    assert old["omero"] == new["ome"]["omero"]
    assert old["tilecast"] == new["tilecast"]


@pytest.mark.parametrize("version", VERSIONS)
def test_bioio_opens_it(bench: Bench, colour: Scan, tmp_path: Path, version: str) -> None:
    bioio = pytest.importorskip("bioio", reason="bioio is not installed: uv sync --group exports")
    reader: Any = pytest.importorskip("bioio_ome_zarr", reason="bioio-ome-zarr is not installed").Reader
    bounds = (-30, -20, 71, 80)
    bench.export(colour.run, tmp_path / "made.zarr", "--region=-30,-20,71,80", "--format", VERSIONS[version])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = bioio.BioImage(str(tmp_path / "made.zarr"), reader=reader)
        assert image.dims.order == "TCZYX"
        assert list(image.channel_names) == ["DAPI", "GFP"]
        assert (PX_UM[1], PX_UM[0]) == (image.physical_pixel_sizes.Y, image.physical_pixel_sizes.X)
        for plane in PLANES:
            found = image.get_image_data("YX", T=plane[0], C=plane[1], Z=plane[2])
            np.testing.assert_array_equal(found, region(colour, bounds, plane).values)
