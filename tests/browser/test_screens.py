"""The page at the sizes of a small laptop and of a large monitor: everything is there, nothing is cut off.

`SCREENSHOTS=FOLDER` keeps pictures of both, to be looked at.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from browser.conftest import settle, show
from browser.station import Scan

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

SIZES = [(1366, 768), (2560, 1440)]


@pytest.mark.parametrize("page", SIZES, indirect=True, ids=["1366x768", "2560x1440"])
def test_everything_has_its_place(page: Page, finished: Scan, tmp_path: Path) -> None:
    show(page, finished)
    settle(page)
    page.wait_for_selector("#strip [data-item=Disk]")
    size = page.viewport_size
    assert size is not None
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    page.screenshot(path=folder / f"page-{size['width']}x{size['height']}.png")
    boxes = page.evaluate(
        """() => Object.fromEntries(['top', 'tools', 'view', 'panel', 'contrast', 'status', 'strip'].map((id) => {
          const { left, top, right, bottom } = document.getElementById(id).getBoundingClientRect();
          return [id, [left, top, right, bottom]];
        }))"""
    )
    for name, (left, top, right, bottom) in boxes.items():
        assert left >= 0, name
        assert top >= 0, name
        assert right <= size["width"], name
        if name != "panel":
            assert bottom <= size["height"], name
    view = boxes["view"]
    assert (view[2] - view[0]) * (view[3] - view[1]) > 0.65 * size["width"] * size["height"]
    # No letter is cut off at the right, in the strip, the head or the panel.
    cut = page.evaluate(
        """() => ['top', 'strip', 'panel'].filter((id) => {
          const element = document.getElementById(id);
          return element.scrollWidth > element.clientWidth + 1;
        })"""
    )
    assert cut == []
    assert page.evaluate("document.documentElement.scrollHeight <= window.innerHeight")
    # The mosaic fills the view as far as its shape allows.
    row0, col0, row1, col1 = page.evaluate("tilecast.mosaic.viewRect()")
    planned = page.evaluate("tilecast.state.run.planned")
    filled = max((planned[2] - planned[0]) / (row1 - row0), (planned[3] - planned[1]) / (col1 - col0))
    assert 0.8 < filled <= 1


def test_panels_make_room_and_themes_change(page: Page, finished: Scan) -> None:
    show(page, finished)
    settle(page)
    width = page.evaluate("document.getElementById('view').clientWidth")
    page.keyboard.press("b")
    page.wait_for_function("width => document.getElementById('view').clientWidth > width + 200", arg=width)
    settle(page)  # the whole mosaic is shown again, in the room that there is now
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(11, 13, 16)"
    page.keyboard.press("d")
    page.keyboard.press("d")
    assert page.evaluate("getComputedStyle(document.body).colorScheme") in ("light", "normal")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.reload()
    show(page, finished)
    assert page.evaluate("document.documentElement.dataset.theme") == "light"  # it is kept
    page.keyboard.press("?")
    assert "Follow the stage" in page.locator("dialog").inner_text()
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="hidden")


def test_a_finger_moves_the_map_and_two_magnify_it(page: Page, finished: Scan) -> None:
    show(page, finished)
    settle(page)
    session = page.context.new_cdp_session(page)
    scale = page.evaluate("tilecast.mosaic.scale()")
    row, col = page.evaluate("tilecast.mosaic.centre()")

    def touch(kind: str, *points: tuple[float, float]) -> None:
        at = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    touch("touchStart", (400, 400))
    for x in range(405, 505, 5):
        touch("touchMove", (x, 400))
    page.wait_for_timeout(300)  # a finger that stands still before it lifts throws nothing
    touch("touchMove", (500, 400))
    touch("touchEnd")
    settle(page)
    moved = (col - page.evaluate("tilecast.mosaic.centre()")[1]) * scale
    assert moved == pytest.approx(100, abs=60)
    touch("touchStart", (400, 400), (500, 400))
    for by in range(0, 80, 5):
        touch("touchMove", (400 - by, 400), (500 + by, 400))
    touch("touchEnd")
    settle(page)
    assert page.evaluate("tilecast.mosaic.scale()") > 1.4 * scale
    assert abs(page.evaluate("tilecast.mosaic.centre()")[0] - row) * scale < 120
