"""All instruments on one page, in a real browser: pictures that follow the scan, and one that falls silent."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from browser.station import Scan, Station
from tilecast.process import DaemonProcess

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

CARD = "#instruments li[data-name='{}']"


@pytest.fixture
def hall(station: Station, tmp_path: Path) -> Iterator[tuple[str, DaemonProcess]]:
    """The address of a gateway of two instruments, and the daemon of the second."""
    other = DaemonProcess(tmp_path / "other", log_file=tmp_path / "log").start()
    command = [sys.executable, "-m", "tilecast", "web", "--listen", "127.0.0.1:0"]
    for name, store, daemon in (("left", str(station.store), station.daemon), ("right", "-", other)):
        command += ["--instrument", name, store, daemon.endpoints["notify"], daemon.endpoints["query"]]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://[\d.]+:\d+/", process.stdout.readline())
        assert found is not None
        yield found[0], other
    finally:
        process.terminate()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()
        other.kill()


def test_instruments_side_by_side(page: Page, station: Station, hall: tuple[str, DaemonProcess]) -> None:
    url, other = hall
    page.goto(url)
    left, right = (page.locator(CARD.format(name)) for name in ("left", "right"))
    right.get_by_text("no runs yet").wait_for()
    left.get_by_text("ready", exact=True).wait_for()
    scan = Scan(station, "seen from afar", (1, 3))
    scan.send(0)
    left.get_by_text("scanning, 1 frames").wait_for()
    left.locator("img[src*='thumbnail']").wait_for()
    first = left.locator("img").get_attribute("src")
    scan.send(1)
    left.get_by_text("scanning, 2 frames").wait_for()
    page.wait_for_function(
        "([card, before]) => document.querySelector(`${card} img`).src !== before", arg=[CARD.format("left"), first]
    )
    other.kill()
    page.wait_for_selector(f"{CARD.format('right')}[data-state='silent']")
    scan.send(2)
    left.get_by_text("scanning, 3 frames").wait_for()
    scan.end()
    left.locator("a").click()
    page.wait_for_function("() => globalThis.tilecast?.state.run?.name === 'seen from afar'")
    assert "/at/left/" in page.url
