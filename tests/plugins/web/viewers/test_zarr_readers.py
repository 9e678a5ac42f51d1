"""zarr-python, tensorstore, ome-zarr-py and ome-zarr-models on both versions of OME-Zarr; also while frames arrive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from integration.talking import PX_UM, centre_um, picture
from reference import mosaic_reference
from viewer_scans import SHAPE, TILE, Scan, Show

zarr = pytest.importorskip("zarr", reason="zarr is not installed: uv sync --group viewers")
pytest.importorskip("aiohttp", reason="aiohttp is not installed: uv sync --group viewers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

VERSIONS = ("0.4", "0.5")
Plane = tuple[int, int, int]


def address_of(stage: Show, run: str, version: str) -> str:
    epoch = httpx.get(f"{stage.address}/api/v1/runs/{run}").json()["epoch"]
    return f"{stage.address}/zarr/{version}/{run}/{epoch}.zarr"


def group_of(address: str) -> Any:
    return zarr.open_group(address, mode="r", zarr_format=2 if "/0.4/" in address else 3)


def described(group: Any) -> dict[str, Any]:
    """The image's own description, of either version."""
    attributes = dict(group.attrs)
    return attributes.get("ome", attributes)


def bounds_of(group: Any) -> tuple[int, int, int, int]:
    """The canvas, signed pixels, from where the first pixel's centre lies in micrometres."""
    dataset = described(group)["multiscales"][0]["datasets"][0]
    scale, translation = (one[one["type"]] for one in dataset["coordinateTransformations"])
    assert scale[3:] == [PX_UM[1], PX_UM[0]]
    row0, col0 = (round(at / px - 0.5) for at, px in zip(translation[3:], scale[3:], strict=True))
    height, width = group["0"].shape[3:]
    return row0, col0, row0 + height, col0 + width


def read_tensorstore(address: str, level: int) -> Any:
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore is not installed: uv sync --group viewers")
    driver = "zarr" if "/0.4/" in address else "zarr3"
    spec = {"driver": driver, "kvstore": {"driver": "http", "base_url": f"{address}/{level}/"}}
    return tensorstore.open(spec, open=True, read=True).result()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_level_is_the_mosaic(stage: Show, colour: Scan, version: str) -> None:
    address = address_of(stage, colour.run, version)
    group = group_of(address)
    bounds = bounds_of(group)
    datasets = described(group)["multiscales"][0]["datasets"]
    assert len(datasets) >= 4
    for dataset in datasets:
        level = int(dataset["path"])
        array = group[dataset["path"]]
        if level == 0:
            # The part where frames are.
            row0, col0 = -bounds[0] - 50, -bounds[1] - 40
            part = np.s_[row0 : row0 + 150, col0 : col0 + 150]
        else:
            part = np.s_[:, :]
        for plane in ((0, 0, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1)):
            expected = colour.canvas(bounds, level, plane).values
            assert array.shape[3:] == expected.shape
            np.testing.assert_array_equal(array[(*plane, *part)], expected[part])
            found = read_tensorstore(address, level)[(*plane, *part)].read().result()
            np.testing.assert_array_equal(found, expected[part])


@pytest.mark.parametrize("version", VERSIONS)
def test_floats_are_nan_where_nothing_is(stage: Show, floats: Scan, version: str) -> None:
    address = address_of(stage, floats.run, version)
    group = group_of(address)
    expected = floats.canvas(bounds_of(group), 2).values
    assert np.isnan(expected).any()
    np.testing.assert_array_equal(group["2"][0, 0, 0], expected)
    np.testing.assert_array_equal(read_tensorstore(address, 2)[0, 0, 0].read().result(), expected)


def image_of_models(address: str) -> Any:
    """The image as ome-zarr-models checks it."""
    pytest.importorskip(
        "ome_zarr_models",
        minversion="1.7",
        reason="ome-zarr-models has an environment of its own: uv sync --group models",
    )
    if "/0.4/" in address:
        from ome_zarr_models.v04 import Image
    else:
        from ome_zarr_models.v05 import Image
    return Image.from_zarr(group_of(address))


@pytest.mark.parametrize("version", VERSIONS)
def test_ome_zarr_models_accept_it(stage: Show, colour: Scan, grey: Scan, floats: Scan, version: str) -> None:
    for scan in (colour, grey, floats):
        image = image_of_models(address_of(stage, scan.run, version))
        attributes = image.attributes if version == "0.4" else image.ome_attributes
        assert [axis.name for axis in attributes.multiscales[0].axes] == list("tczyx")
        assert len(attributes.multiscales[0].datasets) >= 4


@pytest.mark.parametrize("version", VERSIONS)
def test_ome_zarr_py_reads_it(stage: Show, colour: Scan, version: str) -> None:
    io = pytest.importorskip("ome_zarr.io", reason="ome-zarr is not installed: uv sync --group viewers")
    from ome_zarr.reader import Reader

    address = address_of(stage, colour.run, version)
    location = io.parse_url(address, mode="r")
    assert location is not None
    assert location.fmt.version == version
    (node,) = list(Reader(location)())
    assert [axis["name"] for axis in node.metadata["axes"]] == list("tczyx")
    assert node.metadata["channel_names"] == ["DAPI", "GFP"]
    windows = node.metadata["contrast_limits"]
    assert all(low < high for low, high in windows)
    bounds = bounds_of(group_of(address))
    for level in (1, 3):
        expected = colour.canvas(bounds, level, (0, 1, 1)).values
        np.testing.assert_array_equal(node.data[level][0, 1, 1].compute(), expected)


def growing(stage: Show, name: str) -> Iterator[Scan]:
    """A run with a planned canvas of 256 × 256, after each of its frames, and what its mosaic must be then."""
    corners = [(60, 60), (60, 95), (100, 60), (20, 25), (130, 130)]
    frames: list[mosaic_reference.Frame] = []
    with stage.publisher(name) as publisher:
        run = publisher.start(
            name, shape=SHAPE, dtype="<u2", px_um=PX_UM, pos_src="frame",
            extent_um=[[0.0, 0.0], [250 * PX_UM[0], 250 * PX_UM[1]]],
        )  # fmt: skip
        for number, corner in enumerate(corners):
            pixels = picture(900 + number, SHAPE)
            publisher.image(pixels, pos_um=centre_um(*corner, SHAPE))
            stage.watch.placed(run, number + 1)
            frames.append(mosaic_reference.Frame(number, 0, number, (0, 0, 0), *corner, pixels))
            yield Scan(run, "<u2", mosaic_reference.mosaic(frames, "feather", "<u2", TILE))
        publisher.end(run=run)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_reader_that_stays_open_sees_frames_arrive(stage: Show, version: str) -> None:
    """Opened once, with the plan's canvas; after each commit it reads the mosaic of that commit, every level of it."""
    group: Any = None
    for so_far in growing(stage, f"live-{version}"):
        if group is None:
            address = address_of(stage, so_far.run, version)
            group = group_of(address)
            bounds = bounds_of(group)
            assert bounds == (0, 0, 256, 256)
            stores = [read_tensorstore(address, level) for level in range(3)]
        for level in range(3):
            expected = so_far.canvas(bounds, level).values
            np.testing.assert_array_equal(group[str(level)][0, 0, 0], expected)
            np.testing.assert_array_equal(stores[level][0, 0, 0].read().result(), expected)


@pytest.mark.parametrize("version", VERSIONS)
def test_ome_zarr_py_sees_frames_arrive(stage: Show, version: str) -> None:
    """The same through its nodes, which are opened once."""
    io = pytest.importorskip("ome_zarr.io", reason="ome-zarr is not installed: uv sync --group viewers")
    from ome_zarr.reader import Reader

    node: Any = None
    for so_far in growing(stage, f"live-py-{version}"):
        if node is None:
            (node,) = list(Reader(io.parse_url(address_of(stage, so_far.run, version), mode="r"))())
        for level in range(3):
            expected = so_far.canvas((0, 0, 256, 256), level).values
            np.testing.assert_array_equal(node.data[level][0, 0, 0].compute(), expected)


@pytest.mark.parametrize("version", VERSIONS)
def test_ome_zarr_models_accept_a_run_while_frames_arrive(stage: Show, version: str) -> None:
    for so_far in growing(stage, f"live-models-{version}"):
        image = image_of_models(address_of(stage, so_far.run, version))
        multiscale = (image.attributes if version == "0.4" else image.ome_attributes).multiscales[0]
        assert len(multiscale.datasets) >= 3
        scale, translation = (one for one in multiscale.datasets[0].coordinateTransformations)
        assert list(scale.scale[3:]) == [PX_UM[1], PX_UM[0]]
        assert list(translation.translation[3:]) == [PX_UM[1] / 2, PX_UM[0] / 2]


def test_documents_are_the_same_for_all_who_ask(stage: Show, grey: Scan) -> None:
    """Readers probe; what is not there is a plain 404, also for those that ask for a part."""
    address = address_of(stage, grey.run, "0.5")
    whole = httpx.get(f"{address}/zarr.json")
    assert json.loads(whole.content)["node_type"] == "group"
    assert httpx.get(f"{address}/labels/zarr.json").status_code == 404
    assert httpx.head(f"{address}/zarr.json").headers["content-length"] == str(len(whole.content))
