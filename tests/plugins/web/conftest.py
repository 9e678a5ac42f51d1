"""A real daemon with some scans in it, and a real `tilecast web` beside it, for all tests of the gateway."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from faults.nursery import Forked, ForkedDaemon, shared
from integration.stored import stored_mosaic
from integration.talking import PATIENCE_S, PX_UM, Watcher, centre_um, picture
from reference.mosaic_reference import Mosaic
from tilecast.process import DaemonProcess
from tilecast_protocol.client import Client
from tilecast_protocol.publisher import Publisher

TILE = 32
SHAPE = (40, 50)

#: Upper left pixels of the frames of the scan that most tests look at: they overlap, but for the last; none is at 0.
CORNERS = [(-70, -30), (-70, 10), (-40, -30), (-40, 10), (60, 90)]


@dataclass(frozen=True)
class WebProcess:
    """A `tilecast web` that runs: its address without the slash at the end, and its process."""

    url: str
    process: Forked

    def stop(self) -> int:
        """Have it end, as a service manager would; its exit status."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)


@contextmanager
def running_web(*options: str) -> Iterator[WebProcess]:
    """`tilecast web` on a free port."""
    shared().learn("tilecast_plugins.web.app")
    process = shared().start("web", "--listen", "127.0.0.1:0", *options)
    reaper = threading.Timer(PATIENCE_S, process.kill)
    reaper.start()
    try:
        line = process.stdout.readline()
        reaper.cancel()
        assert line, f"it ended with {process.wait()} before it was ready"
        yield WebProcess(line.split()[-1].rstrip("/"), process)
    finally:
        reaper.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


@dataclass(frozen=True)
class WebStation:
    """A daemon, its runs, and a gateway.

    Attributes
    ----------
    scan, channels, floats : str
        Runs: of u2 frames at `CORNERS`; of two channels of u1; of f4.
    """

    daemon: DaemonProcess
    root: Path
    watch: Watcher
    client: Client
    web: WebProcess
    scan: str
    channels: str
    floats: str

    @property
    def endpoints(self) -> tuple[str, str]:
        """For `--daemon`."""
        return self.daemon.endpoints["notify"], self.daemon.endpoints["query"]

    def publisher(self, stream: str = "cam") -> Publisher:
        """A camera."""
        return Publisher(self.daemon.endpoints["ingest.ack"], instrument="scope", stream=stream)

    def mosaic(self, run: str) -> Mosaic:
        """What lies in a run's store."""
        return stored_mosaic(self.root / run)

    def open_run(self, name: str, *, stream: str) -> tuple[Publisher, str]:
        """A run of the test's own."""
        publisher = self.publisher(stream)
        return publisher, publisher.start(name, shape=SHAPE, dtype="<u2", px_um=PX_UM)


@pytest.fixture(scope="session")
def web_station() -> Iterator[WebStation]:
    """One daemon and one gateway for all tests that change nothing that others look at."""
    # Not below pytest's own folder: the path of an ipc socket may have about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="tilecast-") as folder:
        root = Path(folder) / "runs"
        settings = {"blend.tile_size": str(TILE), "store.commit_interval_ms": "20", "ingest.idle_end_s": "600"}
        daemon = ForkedDaemon(root, settings=settings, log_file=Path(folder) / "log").start()
        try:
            notify, query = daemon.endpoints["notify"], daemon.endpoints["query"]
            with (
                Watcher(notify) as watch,
                Client(None, query) as client,
                Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="made") as publisher,
            ):
                runs = [_scan(publisher, watch), _channels(publisher, watch), _floats(publisher, watch)]
                with running_web("--store", str(root), "--daemon", notify, query) as web:
                    yield WebStation(daemon, root, watch, client, web, *runs)
                    assert web.stop() == 0
            assert daemon.stop() == 0, "\n".join(str(line) for line in list(daemon.log)[-20:])
        finally:
            daemon.kill()


@pytest.fixture
def http(web_station: WebStation) -> Iterator[httpx.Client]:
    """A client of the gateway."""
    with httpx.Client(base_url=web_station.web.url, timeout=PATIENCE_S) as client:
        yield client


def _scan(publisher: Publisher, watch: Watcher) -> str:
    run = publisher.start("scan", shape=SHAPE, dtype="<u2", px_um=PX_UM)
    for number, (row, col) in enumerate(CORNERS):
        publisher.image(picture(number, SHAPE), pos_um=centre_um(row, col, SHAPE))
    publisher.end()
    watch.report(run)
    return run


def _channels(publisher: Publisher, watch: Watcher) -> str:
    run = publisher.start(
        "two channels",
        shape=SHAPE,
        dtype="|u1",
        px_um=PX_UM,
        planes={"t": 1, "c": 2, "z": 1},
        channels=[{"name": "DAPI", "color": "0000ff"}, {"name": "GFP", "color": "00ff00"}],
    )
    for c in range(2):
        publisher.image(picture(50 + c, SHAPE, "|u1"), pos_um=centre_um(0, 0, SHAPE), tcz=(0, c, 0))
    publisher.end()
    watch.report(run)
    return run


def _floats(publisher: Publisher, watch: Watcher) -> str:
    run = publisher.start("floats", shape=SHAPE, dtype="<f4", px_um=PX_UM)
    pixels = picture(60, SHAPE, "<f4")
    pixels[3, 4] = np.nan
    publisher.image(pixels, pos_um=centre_um(0, 0, SHAPE))
    publisher.end()
    watch.report(run)
    return run
