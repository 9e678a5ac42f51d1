"""What the page says of the daemon: that it has fallen silent, that it is back, and when the disk will be full."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from browser.conftest import settle, show
from browser.station import Scan, Station, in_background
from browser.test_page import shown_at

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

_MIB = 1 << 20


def test_a_daemon_that_falls_silent_and_comes_back(page: Page, station: Station) -> None:
    scan = Scan(station, "silence", (1, 2))
    scan.send(0)
    scan.flush()
    show(page, scan)
    settle(page)
    assert page.locator("#old").is_hidden()
    os.kill(station.daemon.pid, signal.SIGSTOP)
    try:
        page.wait_for_selector("#old:not([hidden])", timeout=30_000)
        said = page.locator("#old").inner_text()
        assert "The daemon has said nothing" in said
        assert "may be old" in said
        assert "daemon silent" in page.locator("#live").inner_text()
        page.wait_for_function(
            "() => document.getElementById('strip').textContent.includes('not there')", timeout=30_000
        )
        assert shown_at(page, 100, 100)[3] == 255  # what was there stays
    finally:
        os.kill(station.daemon.pid, signal.SIGCONT)
    page.wait_for_selector("#old", state="hidden", timeout=30_000)
    page.wait_for_function("() => document.getElementById('live').textContent === 'live'", timeout=30_000)
    page.wait_for_function(
        "() => document.querySelector('[data-item=Daemon]')?.textContent.includes('ready')", timeout=30_000
    )
    scan.send(1)
    scan.flush()
    page.wait_for_function("() => tilecast.frames.placed.size === 2")
    settle(page)
    row, col = scan.corner(1)
    assert shown_at(page, row + 100, col + 100)[3] == 255
    scan.end()


def test_the_strip_tells_rate_latency_queues_disk_and_state(page: Page, station: Station) -> None:
    scan = Scan(station, "told of", (2, 4))
    scan.send(0)
    scan.flush()
    show(page, scan)
    settle(page)
    for frame in range(1, 8):
        scan.send(frame)
    scan.flush()
    said = """() => Object.fromEntries([...document.querySelectorAll('#strip [data-item]')]
      .map((item) => [item.dataset.item, item.textContent.slice(item.dataset.item.length)]))"""
    page.wait_for_function(f"() => parseFloat(({said})()['Rate']) > 0 && 'To screen' in ({said})()")
    items = page.evaluate(said)
    assert re.fullmatch(r"[\d.]+ /s", items["Rate"])
    assert re.fullmatch(r"\d+ ms, p99 \d+", items["To screen"])
    assert re.match(r"\d+( \(\d+ % full\))?$", items["Queues"])
    waiting = page.locator("[data-item=Queues]").get_attribute("title")
    assert waiting is not None
    assert re.fullmatch(r"(blend|store): \d+ waiting, .+ of .+\n(blend|store): \d+ waiting, .+ of .+", waiting)
    assert re.match(r"[\d.]+ [kMGTP]?B free", items["Disk"])
    assert items["Daemon"] == "ready"
    scan.end()


def test_the_page_says_when_the_disk_will_be_full(page: Page, station: Station, finished: Scan) -> None:
    """Room is taken from the disk, without writing to it, until the forecast appears; then it is given back."""
    show(page, finished)
    taken = Path(station.store).parent / "taken"

    def take(stop: threading.Event) -> None:
        with taken.open("wb") as file:
            for n in range(200):
                if stop.wait(0.2):
                    return
                os.posix_fallocate(file.fileno(), n * 32 * _MIB, 32 * _MIB)

    try:
        with in_background(take):
            page.wait_for_function(
                "() => /full in .*(min|h|d).* at this rate/.test("
                "document.querySelector('[data-item=Disk]')?.textContent)",
                timeout=60_000,
            )
            said = page.evaluate("[document.querySelector('[data-item=Disk]').textContent, tilecast.status.daemon]")
    finally:
        taken.unlink()
    assert "free" in said[0]
    assert said[1]["forecast"] in said[0]
    assert said[1]["full_in_s"] < 24 * 3600
    # It does not push anything off the strip of the smallest screen.
    assert page.evaluate(
        "(() => { const e = document.getElementById('status'); return e.scrollWidth <= e.clientWidth + 1; })()"
    )
