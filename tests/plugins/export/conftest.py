"""A real daemon with runs that the tests know by heart, to be exported; and `tilecast export` as a person runs it."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from faults.nursery import ForkedDaemon
from integration.conftest import IMPATIENT
from integration.talking import Watcher
from tilecast import cli
from viewer_scans import TILE, Scan, Show

CHANNELS = [
    {"name": "DAPI", "color": "0000ff", "emission_nm": 461},
    {"name": "GFP", "color": "00ff00", "emission_nm": 509},
]


@dataclass(frozen=True)
class Bench:
    """A daemon, and the folder of its runs."""

    show: Show
    root: Path

    def export(self, run: str, target: Path | str, *options: str, code: int = 0) -> str:
        """What `tilecast export` says."""
        arguments = ["export", run, str(target), "--tile-size", "64", *options, "--set", f"store.path={self.root}"]
        done = CliRunner().invoke(cli.main, arguments)
        assert done.exit_code == code, done.output + "".join(traceback.format_exception(done.exception))
        return done.output


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    """One daemon for all."""
    with tempfile.TemporaryDirectory(prefix="tilecast-") as name:
        folder = Path(name)
        settings = IMPATIENT | {"blend.tile_size": str(TILE)}
        daemon = ForkedDaemon(folder / "runs", settings=settings, log_file=folder / "log").start()
        try:
            with Watcher(daemon.endpoints["notify"]) as watch:
                yield Bench(Show(daemon, None, watch), folder / "runs")
        finally:
            daemon.kill()


@pytest.fixture(scope="session")
def grey(bench: Bench) -> Scan:
    """A run of one plane, u1."""
    return bench.show.scan("grey", "|u1")


@pytest.fixture(scope="session")
def colour(bench: Bench) -> Scan:
    """A run of two channels and two positions in z, u2; three planes of the four."""
    return bench.show.scan("colour", "<u2", ((0, 0, 0), (0, 1, 0), (0, 1, 1)), channels=CHANNELS)


@pytest.fixture(scope="session")
def floats(bench: Bench) -> Scan:
    """A run of floats."""
    return bench.show.scan("floats", "<f4")
