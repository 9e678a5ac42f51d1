"""catpy, CATMAID's client in Python: both fetchers, all types it knows, against the reference mosaic."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from tilecast_protocol import Client, Mosaic
from viewer_scans import TILE, Scan, Show

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what catpy imports is old
    catpy_image = pytest.importorskip("catpy.image", reason="catpy is not installed: uv sync --group viewers")
    from catpy.stacks import ProjectStack

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore::ResourceWarning")

FETCHERS = {"plain": catpy_image.ImageFetcher, "threaded": catpy_image.ThreadedImageFetcher}
LEVELS = (0, 1, 3)


def stack_of(stage: Show, scan: Scan, sid: str = "0.0", query: str = "min=0&max=255") -> Any:
    import httpx

    info = httpx.get(f"{stage.address}/catmaid/{scan.run}/stack/{sid}/info?{query}").json()
    return ProjectStack.from_stack_info(info)


def bounds_of(stack: Any) -> tuple[int, int, int, int]:
    """The canvas, signed pixels."""
    row0, col0 = (round(stack.translation[axis] / stack.resolution[axis]) for axis in "yx")
    return row0, col0, row0 + stack.dimension["y"], col0 + stack.dimension["x"]


@pytest.mark.parametrize("source_type", [1, 4, 5, 7, 9])
@pytest.mark.parametrize("fetcher", FETCHERS)
def test_what_catpy_fetches_is_the_mosaic(stage: Show, grey: Scan, fetcher: str, source_type: int) -> None:
    stack = stack_of(stage, grey)
    assert sorted(int(mirror.tile_source_type) for mirror in stack.mirrors) == [1, 4, 5, 7, 9]
    (mirror,) = [mirror for mirror in stack.mirrors if mirror.tile_source_type == source_type]
    fetch = FETCHERS[fetcher](stack, preferred_mirror=mirror, timeout=10)
    bounds = bounds_of(stack)
    for level in LEVELS:
        expected = grey.canvas(bounds, level).values
        height, width = expected.shape
        # Of the full resolution the part where frames are; no edge of it at a tile's.
        row0, row1 = (0, height) if level else (-bounds[0] - 45, -bounds[0] + 107)
        col0, col1 = (0, width) if level else (-bounds[1] - 33, -bounds[1] + 131)
        found = fetch.get(
            np.array([[0, row0, col0], [1, row1, col1]]), roi_mode=catpy_image.ROIMode.SCALED, zoom_level=level
        )
        np.testing.assert_array_equal(found[0], expected[row0:row1, col0:col1])


def test_dozens_of_connections_at_once(stage: Show, grey: Scan) -> None:
    stack = stack_of(stage, grey)
    fetch = catpy_image.ThreadedImageFetcher(stack, preferred_mirror=0, timeout=30, threads=100)
    level = 0
    bounds = bounds_of(stack)
    expected = grey.canvas(bounds, level).values
    side = 16 * TILE
    found = fetch.get(
        np.array([[0, 0, 0], [1, side, side]]), roi_mode=catpy_image.ROIMode.SCALED, zoom_level=level
    )  # 256 tiles
    np.testing.assert_array_equal(found[0], expected[:side, :side])


def test_project_space_is_the_stage_in_nanometres(stage: Show, grey: Scan) -> None:
    """A rectangle given in nanometres of the stage comes back as the pixels there."""
    stack = stack_of(stage, grey)
    fetch = catpy_image.ImageFetcher(stack, preferred_mirror=0, timeout=10)
    # Frame 0 lies at pixel (0, 0), which is stage (0, 0); pixels are 0.5 µm wide and 0.25 µm high.
    found = fetch.get(np.array([[0, 0, 0], [1, 20 * 250, 25 * 500]]), roi_mode=catpy_image.ROIMode.PROJECT)
    np.testing.assert_array_equal(found[0], grey.canvas((0, 0, TILE, TILE), 0).values[:20, :25])


def test_channels_and_slices(stage: Show, colour: Scan) -> None:
    stack = stack_of(stage, colour, "0.1", "min=0&max=65535&types=4")
    fetch = catpy_image.ImageFetcher(stack, preferred_mirror=0, timeout=10)
    level = 2
    for z in (0, 1):
        expected = colour.canvas(bounds_of(stack), level, (0, 1, z)).values
        found = fetch.get(
            np.array([[z, 0, 0], [z + 1, *expected.shape]]), roi_mode=catpy_image.ROIMode.SCALED, zoom_level=level
        )
        assert np.abs(found[0] - expected / 257.0).max() <= 0.51


def test_the_fastest_mirror_is_found(stage: Show, grey: Scan) -> None:
    fetch = catpy_image.ImageFetcher(stack_of(stage, grey), timeout=10)
    fetch.set_fastest_mirror()
    assert fetch.mirror in fetch.stack.mirrors


@pytest.mark.parametrize("kind", ["catmaid", "web", "query", "folder"])
def test_what_our_reader_reads_is_what_catpy_fetches(stage: Show, grey: Scan, kind: str) -> None:
    """The same region of the same gateway: in pixels of the stack, of a level, and of the project space."""
    info = f"{stage.address}/catmaid/{grey.run}/stack/0.0/info?min=0&max=255"
    endpoints = stage.daemon.endpoints
    with Client(None, endpoints["query"]) as client:
        store = client.hello()["store"]
    address = {
        "catmaid": info,
        "web": stage.address,
        "query": endpoints["query"],
        "folder": f"{store}/{grey.run}",
    }[kind]
    stack = stack_of(stage, grey)
    fetch = catpy_image.ImageFetcher(stack, preferred_mirror=0, timeout=10)
    left_nm, top_nm = stack.translation["x"], stack.translation["y"]
    row0, col0, *_ = bounds_of(stack)
    with Mosaic.open(address, None if kind == "catmaid" else grey.run) as mosaic:
        for rows, cols in (((-47, 51), (-13, 98)), ((3, 4), (7, 64))):
            counted = (rows[0] - row0, cols[0] - col0, rows[1] - row0, cols[1] - col0)
            roi = np.array([[0, *counted[:2]], [1, *counted[2:]]])
            theirs = fetch.get(roi)[0]
            assert theirs.any()
            np.testing.assert_array_equal(mosaic.read(counted, origin="canvas"), theirs)
            np.testing.assert_array_equal(mosaic.read((rows[0], cols[0], rows[1], cols[1])), theirs)
            np.testing.assert_array_equal(
                mosaic.level(0)[counted[0] : counted[2], counted[1] : counted[3]],
                fetch.get(roi, roi_mode=catpy_image.ROIMode.SCALED)[0],
            )
            # Pixels are 500 nm wide and 250 nm high.
            nm = np.array([[0, rows[0] * 250, cols[0] * 500], [1, rows[1] * 250, cols[1] * 500]])
            um = ((cols[0] * 0.5, rows[0] * 0.25), (cols[1] * 0.5, rows[1] * 0.25))
            np.testing.assert_array_equal(
                mosaic.read(um, space="um"), fetch.get(nm, roi_mode=catpy_image.ROIMode.PROJECT)[0]
            )
            assert mosaic.to_um(row0, col0) == pytest.approx((left_nm / 1000, top_nm / 1000))
            # Of whole numbers catpy cuts off the half, at both ends; of others it takes in all that the region touches.
            halved = fetch.get(roi.astype(float), zoom_level=1)[0]
            np.testing.assert_array_equal(mosaic.read(counted, origin="canvas", level=1), halved)
