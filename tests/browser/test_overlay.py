"""What is drawn over and under the mosaic: the stage, the frame that came last, what is missing; and following."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from browser.conftest import settle, show
from browser.station import FRAME, PIXEL_UM, STEP, Scan, Station
from browser.test_page import centre_of, drag, shown_at

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

# Is there a pixel of this colour of the theme on a canvas, so near a level-0 position (CSS pixels)?
IS_DRAWN = """([canvas, name, row, col, reach]) => {
  const [r0, c0] = tilecast.mosaic.viewRect();
  const element = document.getElementById(canvas);
  const ratio = element.width / element.clientWidth;
  const scale = tilecast.mosaic.scale();
  const side = Math.round((2 * reach + 1) * ratio);
  const [x, y] = [(col - c0) * scale - reach, (row - r0) * scale - reach].map((at) => Math.round(at * ratio));
  const { data } = element.getContext('2d').getImageData(x, y, side, side);
  const color = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const rgb = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] > 200 && rgb.every((value, n) => Math.abs(value - data[i + n]) < 25)) return true;
  }
  return false;
}"""


def drawn(page: Page, name: str, row: float, col: float, *, reach: int = 4, canvas: str = "overlay") -> None:
    """Wait until it is."""
    page.wait_for_function(IS_DRAWN, arg=[canvas, name, row, col, reach])


def not_drawn(page: Page, name: str, row: float, col: float, *, reach: int = 4, canvas: str = "overlay") -> None:
    """Wait until it is not."""
    page.wait_for_function(f"(arg) => !({IS_DRAWN})(arg)", arg=[canvas, name, row, col, reach])


def test_the_stage_and_the_frame_that_came_last_are_shown_while_it_scans(page: Page, station: Station) -> None:
    scan = Scan(station, "a stage", (2, 3))
    scan.send(0)
    scan.flush()
    show(page, scan)
    settle(page)
    for frame in (1, 2, 3):
        scan.send(frame)
        row, col = scan.corner(frame)
        for corner in ((row, col), (row + FRAME, col + FRAME), (row + FRAME, col)):
            drawn(page, "accent", *corner)
        drawn(page, "mark", row + FRAME / 2, col + FRAME / 2, reach=14)
        assert page.evaluate("[tilecast.state.stage.x_um, tilecast.state.stage.y_um]") == pytest.approx(
            [(col + FRAME / 2) * PIXEL_UM, (row + FRAME / 2) * PIXEL_UM]
        )
    not_drawn(page, "accent", *scan.corner(1), reach=2)  # only the newest has an outline
    not_drawn(page, "mark", FRAME / 2, FRAME / 2, reach=14)
    for box, place, name in (("last", scan.corner(3), "accent"), ("stage", (row + FRAME / 2, col + FRAME / 2), "mark")):
        page.locator(f"#layer-{box}").uncheck()
        not_drawn(page, name, *place, reach=14)
        page.locator(f"#layer-{box}").check()
        drawn(page, name, *place, reach=14)
    scan.end()
    not_drawn(page, "mark", row + FRAME / 2, col + FRAME / 2, reach=14)  # nothing moves any more


def test_a_stage_out_of_sight_is_pointed_at(page: Page, station: Station) -> None:
    scan = Scan(station, "far to the right", (1, 6))
    scan.send(0)
    scan.flush()
    show(page, scan, more="&at=128,128&s=4")
    scan.send(5)
    page.wait_for_function("() => tilecast.state.stage?.x_um > 500")
    row0, _, row1, col1 = page.evaluate("tilecast.mosaic.viewRect()")
    drawn(page, "mark", 128, col1 - 14 / 4, reach=10)
    not_drawn(page, "mark", (row0 + row1) / 2, 300, reach=10)
    scan.end()


def test_the_view_follows_the_stage_until_somebody_drags_it(page: Page, station: Station) -> None:
    scan = Scan(station, "followed", (2, 5))
    scan.send(0)
    scan.flush()
    show(page, scan, more="&at=40,40&s=1.5")
    page.keyboard.press("f")
    for frame in (1, 4, 7):
        scan.send(frame)
        row, col = (corner + FRAME / 2 for corner in scan.corner(frame))
        page.wait_for_function(
            "([row, col]) => Math.hypot(...tilecast.mosaic.centre().map((at, n) => at - [row, col][n])) < 2",
            arg=[row, col],
        )
    settle(page)
    assert shown_at(page, row, col)[3] == 255
    x, y = centre_of(page)
    drag(page, (x, y), (x - 150, y))
    assert page.locator("#tool-follow").get_attribute("aria-pressed") == "false"
    settle(page)
    before = page.evaluate("tilecast.mosaic.centre()")
    scan.send(9)
    page.wait_for_function("() => tilecast.frames.last?.frame === 9")
    scan.end()
    settle(page)
    assert page.evaluate("tilecast.mosaic.centre()") == before


def test_what_was_not_scanned_is_hatched_and_missing_frames_are_outlined(page: Page, finished: Scan) -> None:
    show(page, finished)
    settle(page)
    row, col = finished.corner(5)
    for corner in ((row, col), (row + FRAME, col + FRAME)):
        drawn(page, "bad", *corner, reach=6)
    middle = row + STEP / 2 + 13, col + STEP / 2 + 13
    drawn(page, "hatch", *middle, reach=12, canvas="underlay")
    page.keyboard.press("h")
    for corner in ((row, col), (row + FRAME, col + FRAME)):
        not_drawn(page, "bad", *corner, reach=6)
    page.keyboard.press("h")
    drawn(page, "bad", row, col, reach=6)


def test_a_frame_without_a_position_is_shown_where_it_should_lie(page: Page, station: Station) -> None:
    scan = Scan(station, "one has no place", (1, 3))
    scan.send(0)
    scan.send_nowhere(1)
    scan.send(2)
    scan.end()
    show(page, scan)
    page.wait_for_function("() => tilecast.frames.holes.length === 1")
    settle(page)
    row, col = scan.corner(1)
    drawn(page, "bad", row, col, reach=6)
    drawn(page, "bad", row + FRAME, col + FRAME, reach=6)
    assert "no-position" in page.evaluate("tilecast.frames.holes[0].label")
    assert re.search(r"No place\s+1 \(no-position: 1\)", page.locator("#report").inner_text())


def test_frames_are_counted_alike_wherever_their_number_stands(page: Page, station: Station) -> None:
    scan = Scan(station, "counted", (2, 3), n_expected=9)
    scan.send(0)
    scan.flush()
    show(page, scan)
    # At every change of either: what the layers say, and what the facts of the run say.
    page.evaluate(
        """() => {
          const facts = () => [...document.querySelectorAll('#report dt')].find((one) => one.textContent === 'Frames');
          globalThis.counts = [];
          const look = () => counts.push([
            document.querySelector('label:has(#layer-frames) small').textContent,
            facts()?.nextElementSibling.textContent,
          ]);
          const observer = new MutationObserver(look);
          for (const id of ['layers', 'report']) {
            observer.observe(document.getElementById(id), { subtree: true, childList: true, characterData: true });
          }
        }"""
    )
    for frame in range(1, 6):
        scan.send(frame)
        page.wait_for_function("(n) => tilecast.frames.placed.size > n", arg=frame)
    page.wait_for_function("() => counts.at(-1)?.[0] === '6'")
    scan.end()
    counts = page.evaluate("counts")
    assert counts[-1] == ["6", "6 of 9"]
    assert all(of_run == f"{of_layers} of 9" for of_layers, of_run in counts), counts
