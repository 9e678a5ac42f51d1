"""A real daemon for the tests of a plugin: a pytest plugin, which a project enables in its top `conftest.py`.

    pytest_plugins = ["tilecast.testing.fixtures"]

    def test_my_plugin(tilecast_daemon):
        daemon = tilecast_daemon(**{"plugins.my_plugin.colour": "red"})
        with daemon.publisher("camera") as publisher:
            run = TestScan().send(publisher)
        daemon.finish()
        pixels, corner = daemon.mosaic(run)

It is the daemon that people run, in a process of its own, on free ports, with a store in the folder of the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from tilecast.process import DaemonProcess
from tilecast.reading import PlaneKey, coverage_unpack, open_run, tiles_in
from tilecast_protocol import pzf
from tilecast_protocol.client import Client
from tilecast_protocol.publisher import Publisher


class DaemonUnderTest(DaemonProcess):
    """A daemon with what a test wants of it.

    Parameters
    ----------
    root : Path
        The folder of its runs.
    settings, environ : mapping
        As of `DaemonProcess`.

    Attributes
    ----------
    root : Path
    """

    def __init__(self, root: Path, settings: Mapping[str, str], environ: Mapping[str, str]) -> None:
        quick = {"blend.tile_size": "64", "store.commit_interval_ms": "0", "log.flood_s": "0"}
        super().__init__(root, settings=quick | dict(settings), environ=environ)
        self.root = root

    def publisher(self, stream: str = "camera", instrument: str = "scope") -> Publisher:
        """A publisher on the acknowledged path; for a `with`."""
        return Publisher(self.endpoints["ingest.ack"], instrument=instrument, stream=stream)

    def client(self) -> Client:
        """Somebody who asks; for a `with`."""
        return Client(None, self.endpoints["query"])

    def finish(self) -> None:
        """End it in good order: all that was sent is then in the mosaics, and all that plugins said in the log."""
        code = self.stop()
        assert code == 0, f"the daemon ended with {code}; it said last: {list(self.log)[-5:]}"

    def mosaic(self, run: str, *, t: int = 0, channel: int = 0, z: int = 0) -> tuple[NDArray[Any], tuple[int, int]]:
        """A plane of a run at full resolution, uncovered pixels 0, and (row, column) of its upper left pixel."""
        plane = PlaneKey(t, channel, z)
        with open_run(self.root, run) as reader:
            info = reader.info()
            rect, size = info.bboxes[plane], int(info.settings["tile_size"])
            pixels = np.zeros((rect.row1 - rect.row0, rect.col1 - rect.col0), info.header["dtype"])
            for key in tiles_in(rect, 0, size):
                stored = reader.tile(plane, key)
                if stored is None:
                    continue
                tile, covered = pzf.decode_image(stored.pzf), coverage_unpack(stored.coverage, size)
                tile = tile if covered is None else np.where(covered, tile, 0).astype(tile.dtype)
                part = key.rect(size).intersect(rect)
                pixels[part.row0 - rect.row0 : part.row1 - rect.row0, part.col0 - rect.col0 : part.col1 - rect.col0] = (
                    tile[
                        part.row0 - key.row * size : part.row1 - key.row * size,
                        part.col0 - key.col * size : part.col1 - key.col * size,
                    ]
                )
        return pixels, (rect.row0, rect.col0)


StartDaemon: TypeAlias = Callable[..., DaemonUnderTest]


@pytest.fixture
def tilecast_daemon(tmp_path: Path) -> Iterator[StartDaemon]:
    """Start a real daemon: `tilecast_daemon(environ={…}, **{"option": "value"})`; several have a store in common."""
    started: list[DaemonUnderTest] = []

    def start(environ: Mapping[str, str] | None = None, **options: str) -> DaemonUnderTest:
        daemon = DaemonUnderTest(tmp_path / "runs", options, environ or {})
        started.append(daemon)
        daemon.start()
        return daemon

    yield start
    for daemon in started:
        if daemon.running:
            daemon.kill()
