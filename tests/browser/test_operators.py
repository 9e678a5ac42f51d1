"""What operators do on the page: rename, note, end and delete, each seen at the daemon, and in the list at once."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from browser.conftest import show
from browser.station import Scan, Station

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

#: The list of runs is asked for every five seconds while it is on screen; here it may learn only from what it is told.
NO_POLLING = """(() => {
  const before = window.setInterval;
  window.setInterval = (call, ms, ...rest) => (ms === 5000 ? 0 : before(call, ms, ...rest));
})()"""


@pytest.fixture
def scan(station: Station) -> Scan:
    """A run that is open."""
    scan = Scan(station, "to be looked after", (1, 3))
    scan.send(0)
    scan.flush()
    return scan


def choose(page: Page, scan: Scan, entry: str) -> None:
    """Open the menu of a run, and take an entry."""
    page.locator(f"#runs li[data-run='{scan.run}'] button").click()
    page.locator(".menu button", has_text=entry).click()


def agree(page: Page, method: str) -> None:
    """Say yes in the dialog, and wait until the order has been carried out."""
    with page.expect_response(lambda response: response.request.method == method) as answer:
        page.locator("dialog button[type=submit]").click()
    assert answer.value.status == 200, answer.value.text()


def open_list(page: Page, scan: Scan) -> None:
    page.add_init_script(NO_POLLING)
    show(page, scan)
    page.keyboard.press("r")
    page.locator(f"#runs li[data-run='{scan.run}']").wait_for()


def item_says(page: Page, scan: Scan, text: str) -> None:
    page.wait_for_function(
        "([run, text]) => document.querySelector(`#runs li[data-run='${run}']`)?.textContent.includes(text)",
        arg=[scan.run, text],
    )


def test_a_run_is_renamed(page: Page, station: Station, scan: Scan) -> None:
    open_list(page, scan)
    choose(page, scan, "Rename")
    page.locator("#new-name").fill("liver, slice 12")
    agree(page, "PATCH")
    item_says(page, scan, "liver, slice 12")
    page.wait_for_function("() => document.getElementById('run-name').textContent === 'liver, slice 12'")
    with station.client() as client:
        assert client.run(scan.run)["name"] == "liver, slice 12"
    scan.end()


def test_a_note_is_kept_with_the_run(page: Page, scan: Scan) -> None:
    open_list(page, scan)
    choose(page, scan, "Note")
    page.locator("#new-note").fill("the lamp flickers")
    agree(page, "POST")
    page.wait_for_function("() => document.getElementById('toast').textContent.startsWith('The note is kept')")
    log = json.loads(page.request.get(f"/api/v1/runs/{scan.run}/log").text())["log"]
    assert any("the lamp flickers" in json.dumps(entry) for entry in log)
    scan.end()


def test_a_run_is_ended_and_the_list_says_so_at_once(page: Page, station: Station, scan: Scan) -> None:
    open_list(page, scan)
    item_says(page, scan, "scanning")
    choose(page, scan, "End")
    page.keyboard.press("Escape")  # nothing is done that was not agreed to
    page.wait_for_selector("dialog", state="hidden")
    with station.client() as client:
        assert client.run(scan.run)["state"] == "open"
    choose(page, scan, "End")
    agree(page, "POST")
    item_says(page, scan, "ended")
    page.wait_for_function("() => document.getElementById('run-state').textContent.startsWith('ended')")
    text = page.locator("#report").inner_text()
    assert re.search(r"Received\s+1 of 3 frames", text)
    assert re.search(r"Ended\s+abort", text)
    with station.client() as client:
        assert client.run(scan.run)["state"] in ("ended", "sealed")


def test_another_run_that_ends_is_not_said_to_be_scanning(page: Page, scan: Scan, finished: Scan) -> None:
    page.add_init_script(NO_POLLING)
    show(page, finished)
    page.keyboard.press("r")
    item_says(page, scan, "scanning")
    scan.end()
    item_says(page, scan, "ended")


def test_a_run_is_deleted_after_a_question(page: Page, station: Station, scan: Scan) -> None:
    scan.end()
    open_list(page, scan)
    item_says(page, scan, "ended")
    choose(page, scan, "Delete")
    assert "cannot be undone" in page.locator("dialog").inner_text()
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="hidden")
    assert (station.store / scan.run).is_dir()
    choose(page, scan, "Delete")
    agree(page, "DELETE")
    page.locator(f"#runs li[data-run='{scan.run}']").wait_for(state="detached")
    page.wait_for_function("() => document.getElementById('run-state').textContent === 'deleted'")
    assert not (station.store / scan.run).exists()


def test_what_the_daemon_refuses_is_said(page: Page, scan: Scan) -> None:
    open_list(page, scan)
    choose(page, scan, "Delete")
    with page.expect_response(lambda response: response.request.method == "DELETE") as answer:
        page.locator("dialog button[type=submit]").click()
    assert answer.value.status == 409
    page.wait_for_function("() => document.getElementById('toast').textContent.startsWith('Not done')")
    assert "is open" in page.locator("#toast").inner_text()
    scan.end()
