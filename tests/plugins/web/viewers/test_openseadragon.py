"""OpenSeadragon, as npm has it, in a headless Chromium: what it shows of DeepZoom and of IIP is the mosaic.

It is opened in a page of another origin, as a person's own viewer would be, and what it has drawn is read back.
"""

from __future__ import annotations

import base64
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from viewer_scans import Canvas, Scan, Show

pytestmark = pytest.mark.browser

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: uv sync --group viewers")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: The file of the npm package, unchanged, which the page uses too.
OPENSEADRAGON = (
    Path(__file__).parents[4]
    / "plugins/tilecast_plugins/web/static/vendor/openseadragon/openseadragon.min.js"
)  # fmt: skip
SIDE = 256
PAGE = f"""<!doctype html><body style="margin:0"><div id="v" style="width:{SIDE}px;height:{SIDE}px"></div>
<script src="/openseadragon.js"></script></body>"""

#: Opens a source, and resolves with height, width, and the highest level. Each tile is kept as it was decoded, with the
#: place in the image where OpenSeadragon puts it.
OPEN = """source => new Promise((resolve, reject) => {
    // Numbers one by one would take the driver a minute.
    window.packed = data => btoa(Array.from(data, value => String.fromCharCode(value)).join(''));
    window.tiles = [];
    window.failed = [];
    window.viewer = OpenSeadragon({
        id: 'v', drawer: 'canvas', showNavigationControl: false, immediateRender: true, animationTime: 0,
        crossOriginPolicy: 'Anonymous', maxZoomPixelRatio: 8, visibilityRatio: 0, minZoomImageRatio: 0.01,
    });
    viewer.addHandler('open-failed', event => reject(new Error(event.message)));
    viewer.addHandler('tile-load-failed', event => failed.push(event.message));
    viewer.addHandler('tile-loaded', event => {
        const picture = event.data || event.image, tile = event.tile;
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [picture.width, picture.height];
        const context = canvas.getContext('2d');
        context.drawImage(picture, 0, 0);
        const item = event.tiledImage, width = item.getContentSize().x;
        const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
        const place = [tile.bounds.y * width, tile.bounds.x * width];
        tiles.push([tile.level, ...place, canvas.height, canvas.width, packed(data)]);
    });
    viewer.addHandler('open', () => {
        const item = viewer.world.getItemAt(0);
        resolve([item.getContentSize().y, item.getContentSize().x, item.source.maxLevel]);
    });
    viewer.open(source);
})"""

#: Goes to a square of the image, and resolves when all of it is there: with what is on the screen, and the tiles.
SHOW = """([row, col, side]) => new Promise((resolve, reject) => {
    const item = viewer.world.getItemAt(0);
    viewer.viewport.fitBounds(item.imageToViewportRectangle(col, row, side, side), true);
    const look = () => {
        if (failed.length) { reject(new Error(failed[0])); return; }
        if (!item.getFullyLoaded()) { item.addOnceHandler('fully-loaded-change', look); return; }
        requestAnimationFrame(() => requestAnimationFrame(() => {
            const canvas = viewer.drawer.canvas;
            const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            resolve([canvas.height, canvas.width, packed(data), tiles]);
        }));
    };
    // Whether it is loaded is known once it has been drawn at the new place.
    viewer.addOnceHandler('update-viewport', look);
    viewer.forceRedraw();
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # Inside containers Chromium's own sandbox has no rights; what it loads here is only ours.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class _Elsewhere(http.server.BaseHTTPRequestHandler):
    """A web server of a person's own, with a page that has OpenSeadragon in it."""

    def do_GET(self) -> None:  # the library's name
        is_page = self.path == "/"
        body = PAGE.encode() if is_page else OPENSEADRAGON.read_bytes() if self.path == "/openseadragon.js" else b""
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if is_page else "text/javascript")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """Address of another web server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def page(browser: Any, elsewhere: str) -> Iterator[Any]:
    """A page of another origin with OpenSeadragon in it; fails if its scripts fail."""
    problems: list[str] = []
    window = browser.new_context(viewport={"width": SIDE, "height": SIDE}).new_page()
    window.set_default_timeout(100_000)  # within pytest's own limit: a machine with other work is slow, not broken
    window.on("pageerror", lambda error: problems.append(str(error)))
    window.goto(elsewhere)
    yield window
    window.context.close()
    assert not problems


class Seen(NamedTuple):
    """What OpenSeadragon has: a tile, the level by its count, and its upper left pixel in the full image."""

    level: int
    row: float
    col: float
    pixels: NDArray[np.uint8]


def unpacked(data: str, rows: int, cols: int) -> NDArray[np.uint8]:
    """Pixels of a canvas."""
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(rows, cols, 4)


def seen_at(page: Any, row: int, col: int, side: int) -> tuple[NDArray[np.uint8], list[Seen]]:
    """The screen, and all tiles so far, when a square of the image is shown; red, green, blue, alpha."""
    height, width, data, tiles = page.evaluate(SHOW, [row, col, side])
    screen = unpacked(data, height, width)
    return screen, [
        Seen(level, top, left, unpacked(values, rows, cols)) for level, top, left, rows, cols, values in tiles
    ]


def geometry(stage: Show, scan: Scan) -> tuple[int, tuple[int, int, int, int], int]:
    """Epoch, canvas, and number of levels."""
    epoch = httpx.get(f"{stage.address}/api/v1/runs/{scan.run}").json()["epoch"]
    array = httpx.get(f"{stage.address}/zarr/0.5/{scan.run}/{epoch}.zarr/zarr.json").json()
    ours, levels = array["attributes"]["tilecast"], array["attributes"]["ome"]["multiscales"][0]["datasets"]
    return epoch, tuple(ours["canvas"]), len(levels)


def top_of(bounds: tuple[int, int, int, int]) -> int:
    """DeepZoom's number of the full resolution."""
    return (max(bounds[2] - bounds[0], bounds[3] - bounds[1]) - 1).bit_length()


def expected_at(scan: Scan, bounds: tuple[int, int, int, int], seen: Seen, level: int, c: int = 0) -> Canvas:
    """The mosaic where OpenSeadragon puts a tile."""
    whole = scan.canvas(bounds, level, (0, c, 0))
    row, col = round(seen.row / 2**level), round(seen.col / 2**level)
    assert (seen.row / 2**level, seen.col / 2**level) == pytest.approx((row, col), abs=0.01)
    part = np.s_[row : row + seen.pixels.shape[0], col : col + seen.pixels.shape[1]]
    return Canvas(whole.values[part], whole.covered[part])


def level_of_all(bounds: tuple[int, int, int, int]) -> int:
    """The level at which the whole image fits the screen; above 0, whatever room the canvas had to make."""
    level = ((bounds[2] - bounds[0]) // SIDE).bit_length() - 1
    assert level > 0
    return level


def look_around(page: Any, bounds: tuple[int, int, int, int]) -> list[Seen]:
    """See the whole image, then the frames from near; the screen is not empty."""
    height = bounds[2] - bounds[0]
    whole, _ = seen_at(page, 0, 0, height)
    near, tiles = seen_at(page, -bounds[0] - 40, -bounds[1] - 30, 128)
    for screen in (whole, near):
        assert (screen[..., :3].max(axis=2) > 0).any()
    assert near[95:165, 75:185, 3].min() == 255  # in the middle of the frames there is no hole
    return tiles


def test_deepzoom(stage: Show, grey: Scan, page: Any) -> None:
    epoch, bounds, n_levels = geometry(stage, grey)
    opened = page.evaluate(OPEN, f"{stage.address}/deepzoom/{grey.run}/{epoch}/0/0/0/mosaic.dzi?min=0&max=255")
    top = top_of(bounds)
    assert opened == [bounds[2] - bounds[0], bounds[3] - bounds[1], top]
    levels = set()
    for seen in look_around(page, bounds):
        level = top - seen.level
        if level < n_levels:
            expected = expected_at(grey, bounds, seen, level)
            np.testing.assert_array_equal(seen.pixels[..., 3] == 255, expected.covered)
            for color in range(3):
                np.testing.assert_array_equal(seen.pixels[..., color], expected.values)
        levels.add(level)
    assert {0, level_of_all(bounds)} <= levels


def test_deepzoom_with_the_look_in_the_address(stage: Show, colour: Scan, page: Any) -> None:
    epoch, bounds, n_levels = geometry(stage, colour)
    look = "min=0&max=65535&color=ff0000,0000ff"
    page.evaluate(OPEN, f"{stage.address}/deepzoom/{colour.run}/{epoch}/0/0,1/0/mosaic.dzi?{look}")
    top = top_of(bounds)
    checked = 0
    for seen in look_around(page, bounds):
        level = top - seen.level
        if level < n_levels:
            red, blue = (expected_at(colour, bounds, seen, level, c).values / 257.0 for c in (0, 1))
            assert np.abs(seen.pixels[..., 0] - red).max() <= 1
            assert np.abs(seen.pixels[..., 2] - blue).max() <= 1
            assert (seen.pixels[..., 1] == 0).all()
            checked += 1
    assert checked > 10


@pytest.mark.parametrize(
    ("path", "first", "format_name"),
    [("iip", 1, "jpg"), ("iip", 1, "png"), ("iip", 1, "webp"), ("iipsrv", 0, "jpg"), ("iipsrv", 0, "png")],
)
def test_iip(stage: Show, grey: Scan, page: Any, path: str, first: int, format_name: str) -> None:
    """In VisiOmatic's dialect and in iipsrv's, which counts channels from 0."""
    epoch, bounds, n_levels = geometry(stage, grey)
    transform = {"minmax": f"{first}:0,255", "quality": 100}
    source = {
        "iipsrv": f"{stage.address}/{path}",
        "image": f"{grey.run}/{epoch}",
        "format": format_name,
        "transform": transform,
    }
    opened = page.evaluate(OPEN, source)
    assert opened == [bounds[2] - bounds[0], bounds[3] - bounds[1], n_levels - 1]
    levels = set()
    for seen in look_around(page, bounds):
        level = n_levels - 1 - seen.level
        expected = expected_at(grey, bounds, seen, level)
        if format_name == "jpg":
            assert (seen.pixels[..., 3] == 255).all()
            # The edge of the mosaic within a block of JPEG is the worst there is.
            assert np.abs(seen.pixels[..., 0].astype(int) - expected.values).mean() < 2
        else:
            np.testing.assert_array_equal(seen.pixels[..., 3] == 255, expected.covered)
            difference = np.abs(seen.pixels[..., 0].astype(int) - expected.values)[expected.covered]
            assert difference.size == 0 or difference.mean() <= {"png": 0, "webp": 20}[format_name]
        levels.add(level)
    assert {0, level_of_all(bounds)} <= levels


def test_iip_settings(stage: Show, grey: Scan, page: Any) -> None:
    epoch, bounds, n_levels = geometry(stage, grey)
    transform = {"contrast": 1.5, "gamma": 0.8, "invert": True, "minmax": "1:20,250", "quality": 90}
    source = {"iipsrv": f"{stage.address}/iip", "image": f"{grey.run}/{epoch}", "format": "png", "transform": transform}
    page.evaluate(OPEN, source)
    for seen in look_around(page, bounds):
        expected = expected_at(grey, bounds, seen, n_levels - 1 - seen.level)
        v = 1 - np.clip((expected.values - 20.0) * 1.5 / 230, 0, 1) ** 0.8
        assert np.abs(seen.pixels[..., 0] - np.where(expected.covered, v * 255, 0)).max() <= 1
