"""A station with a daemon and a gateway, and a headless Chromium, for all tests here; skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from browser.station import Gateway, Scan, Station
from tilecast.process import DaemonProcess

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium of the system, without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is absent: uv sync --group browser")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # Inside containers Chromium's own sandbox has no rights; what it loads here is only ours.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def station(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    """A daemon and a gateway that look at the same folder; not started where there is no browser."""
    assert browser.is_connected()
    folder = tmp_path_factory.mktemp("station")
    settings = {"store.commit_interval_ms": "50", "ingest.gap_report_ms": "50", "ingest.reorder_tolerance_ms": "50"}
    daemon = DaemonProcess(folder / "runs", settings=settings, log_file=folder / "daemon.log").start()
    gateway = Gateway(folder / "runs", daemon, folder / "web.log")
    try:
        gateway.start()
        yield Station(daemon, gateway, folder / "runs")
    finally:
        gateway.stop()
        daemon.stop()


@pytest.fixture(scope="session")
def finished(station: Station) -> Scan:
    """A run of 3 × 4 frames of the ramp that has ended; frame 5 never came."""
    scan = Scan(station, "a ramp", (3, 4))
    for frame in range(12):
        if frame != 5:
            scan.send(frame)
    scan.end()
    return scan


class PageProblems(list[str]):
    """What a page complained about."""


@pytest.fixture
def problems() -> PageProblems:
    """Errors of the page's scripts and of its content policy; a test fails if there are any at its end."""
    return PageProblems()


@pytest.fixture
def page(browser: Browser, station: Station, problems: PageProblems, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A window of 1366 × 768 that shows nothing yet; `indirect` parameters choose another size."""
    width, height = getattr(request, "param", (1366, 768))
    context = browser.new_context(viewport={"width": width, "height": height}, base_url=station.gateway.url)
    window = context.new_page()
    window.on("pageerror", lambda error: problems.append(str(error)))

    def said(message: Any) -> None:
        # Tiles where no frame lies are 404, and a gateway that is away does not answer: both are expected.
        if message.type == "error" and "Failed to load resource" not in message.text:
            problems.append(message.text)

    window.on("console", said)
    window.set_default_timeout(20_000)
    yield window
    context.close()
    assert not problems


def show(page: Page, scan: Scan, *, more: str = "") -> None:
    """Open a run and wait until it is painted."""
    page.goto(f"/#run={scan.run}{more}")
    page.wait_for_function(
        "run => globalThis.tilecast?.state.run?.run === run && tilecast.mosaic.drawn.length > 0"
        " && tilecast.state.live === 'live'",
        arg=scan.run,
    )


def settle(page: Page) -> None:
    """Wait until the view stands still and every tile in it is up to date."""
    try:
        page.wait_for_function(f"() => Object.values(({STATE})()).every(Boolean)", polling=100, timeout=60_000)
    except Exception as error:
        raise AssertionError(f"the page does not come to rest: {page.evaluate(STATE)}") from error


#: What has to be true of a page at rest.
STATE = """() => {
  const { mosaic, tiles } = tilecast;
  const [now, then] = [true, false].map((current) => JSON.stringify(mosaic.viewport.getBounds(current)));
  return {
    still: now === then,
    fetched: tiles.nFetching === 0,
    loaded: mosaic.image.getFullyLoaded(),
    current: mosaic.drawn.every((tile) => tiles.isCurrent(tile)),
    painted: mosaic.drawn.every((tile) => tile.painted.startsWith(`${tile.version} ${mosaic.lookStamp} `)),
  };
}"""
