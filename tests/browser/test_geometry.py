"""Pixels that are not square, and cameras that lie askew: what is drawn, measured and said of it."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from browser.conftest import settle, show
from browser.station import FRAME, STEP, Scan, Station
from browser.test_page import at_pixel, drag, saved, shown_at

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("px_um", [(0.5, 1.25), (1.0, 0.25)], ids=["tall", "wide"])
def test_micrometres_are_as_long_in_both_directions(page: Page, station: Station, px_um: tuple[float, float]) -> None:
    scan = Scan(station, f"not square {px_um}", (2, 3), px_um=px_um)
    for frame in range(6):
        scan.send(frame)
    scan.end()
    show(page, scan)
    settle(page)
    rows, cols = STEP + FRAME, 2 * STEP + FRAME
    # What is painted is as tall and as wide as the scan is on the stage.
    high, wide = page.evaluate(
        """() => {
          const { canvas } = tilecast.mosaic;
          const { data, width, height } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
          const rows = new Set(), cols = new Set();
          for (let i = 0; i < width * height; i++) if (data[4 * i + 3]) {
            rows.add(Math.floor(i / width));
            cols.add(i % width);
          }
          return [rows.size, cols.size];
        }"""
    )
    assert high / wide == pytest.approx(rows * px_um[1] / (cols * px_um[0]), rel=0.02)
    assert page.locator("#report").inner_text().count("drawn") == 0
    # No seam: everything of the scan is covered, the values are where they belong.
    for row, col in ((5, 5), (STEP + 3, STEP + 3), (rows - 5, cols - 5), (rows // 2, 5)):
        assert shown_at(page, row, col)[3] == 255, (row, col)
    # The cursor: µm, pixel and value.
    x, y = at_pixel(page, 150.5, 300.5)
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    row, col = page.evaluate("tilecast.state.hover")
    assert (row, col) == pytest.approx((150.5, 300.5), abs=4)
    value = 1000 + int(row) + 2 * int(col)
    page.wait_for_function(
        "value => document.getElementById('cursor').textContent.trim().endsWith(' ' + value)", arg=value
    )
    found = re.search(r"x (-?[\d.]+) µm\s+y (-?[\d.]+) µm", page.locator("#cursor").inner_text())
    assert found is not None
    assert (float(found[1]), float(found[2])) == pytest.approx((col * px_um[0], row * px_um[1]), abs=0.01)
    # A profile down a column is as long as it is on the stage.
    page.keyboard.press("l")
    drag(page, at_pixel(page, 40, 200), at_pixel(page, 240, 200))
    page.wait_for_function("() => document.querySelector('#profile header span').textContent.startsWith('Profile')")
    with page.expect_download() as download:
        page.locator("#profile button", has_text="CSV").click()
    table = np.array(
        [[float(cell) for cell in line.split(",")] for line in saved(download.value).decode().splitlines()[1:]]
    )
    assert table[-1, 0] == pytest.approx(200 * px_um[1], rel=0.05)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    # The bar measures both directions: one of them is enough.
    with page.expect_download() as download:
        page.keyboard.press("s")
    picture = np.asarray(Image.open(io.BytesIO(saved(download.value))).convert("RGB"))
    height, width = picture.shape[:2]
    white = (picture[height - 17 : height - 12, width // 2 :].min(-1) == 255).any(0)
    length_um = white.sum() / page.evaluate("tilecast.mosaic.scale()") * px_um[0]
    leading = length_um / 10 ** np.floor(np.log10(length_um))
    assert min(abs(leading - nice) / nice for nice in (1, 2, 5, 10)) < 0.03
    assert not (picture[height - 120 : height - 56, width - 19 : width - 16].min(-1) == 255).any()


def test_pixels_of_an_absurd_shape_are_drawn_square_with_a_bar_for_each_direction(page: Page, station: Station) -> None:
    px_um = (0.05, 5.0)
    scan = Scan(station, "a line scanner", (1, 1), px_um=px_um)
    scan.send(0)
    scan.end()
    show(page, scan)
    settle(page)
    assert page.evaluate("tilecast.mosaic.aspect") == 1
    assert "drawn with square pixels" in page.locator("#report").inner_text()
    with page.expect_download() as download:
        page.keyboard.press("s")
    picture = np.asarray(Image.open(io.BytesIO(saved(download.value))).convert("RGB"))
    height, width = picture.shape[:2]
    scale = page.evaluate("tilecast.mosaic.scale()")
    across = (picture[height - 16 : height - 13, width // 2 :].min(-1) == 255).all(0).sum() / scale * px_um[0]
    upright = (picture[: height - 50, width - 19 : width - 16].min(-1) == 255).all(1).sum() / scale * px_um[1]
    for length_um in (across, upright):
        leading = length_um / 10 ** np.floor(np.log10(length_um))
        assert min(abs(leading - nice) / nice for nice in (1, 2, 5, 10)) < 0.05, (across, upright)


def test_shear_and_rotation_are_said(page: Page, station: Station) -> None:
    """Columns run to the right on screen whatever their direction on the stage; lengths along both axes are right."""
    affine = [[0.5, 0.1], [0.0, 0.5]]
    scan = Scan(station, "sheared", (1, 1), affine=affine, extent_um=None, n_expected=1)
    scan.send(0)
    scan.end()
    show(page, scan)
    settle(page)
    text = page.locator("#report").inner_text()
    assert "drawn without their shear of 11.3°" in text
    high = np.hypot(0.1, 0.5)
    assert page.evaluate("tilecast.mosaic.aspect") == pytest.approx(high / 0.5)
    rect = page.evaluate("tilecast.state.run.bboxes[0][1]")
    x, y = at_pixel(page, rect[0] + 100, rect[1] + 50)
    page.mouse.move(x - 2, y)
    page.mouse.move(x, y)
    row, col = page.evaluate("tilecast.state.hover")
    page.wait_for_function("() => document.getElementById('cursor').textContent.includes('µm')")
    found = re.search(r"x (-?[\d.]+) µm\s+y (-?[\d.]+) µm", page.locator("#cursor").inner_text())
    assert found is not None
    assert (float(found[1]), float(found[2])) == pytest.approx((0.5 * col + 0.1 * row, 0.5 * row), abs=0.01)
