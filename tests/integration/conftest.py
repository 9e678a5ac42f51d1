"""A real daemon in a process of its own: one for all tests that need nothing special of it, or one for a test."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from faults.nursery import ForkedDaemon, Nursery
from integration.talking import Watcher
from plugin_daemons import tilecast_daemon as forked_tilecast_daemon
from tilecast.process import DaemonProcess
from tilecast_protocol.client import Client
from tilecast_protocol.publisher import Publisher

__all__ = ["forked_tilecast_daemon"]  # a fixture

StartDaemon = Callable[..., DaemonProcess]

#: What most tests want: small tiles, and to hear at once of what goes wrong.
IMPATIENT = {
    "blend.tile_size": "32",
    "ingest.gap_report_ms": "50",
    "ingest.reorder_tolerance_ms": "50",
    "ingest.hold_s": "2",
    "ingest.idle_end_s": "600",
    "ingest.max_frame_bytes": "1MiB",
    "join.timeout_ms": "300",
    "store.commit_interval_ms": "20",
    "log.flood_s": "0",
}


@pytest.fixture
def start_daemon(nursery: Nursery, tmp_path: Path) -> Iterator[StartDaemon]:  # noqa: ARG001
    """Start daemons whose stores lie in the test's folder; `start_daemon("name", **{"option": "value"})`.

    They are forked: to import a compiler and its kernels for each would be most of the time of these tests. The nursery
    is asked for so that it is there before the time of a test begins.
    """
    started: list[DaemonProcess] = []

    def start(name: str = "runs", **settings: str) -> DaemonProcess:
        daemon = ForkedDaemon(tmp_path / name, settings=settings, log_file=tmp_path / f"{name}.log")
        started.append(daemon)
        return daemon.start()

    yield start
    for daemon in started:
        if daemon.running:
            daemon.kill()


@dataclass(frozen=True)
class Station:
    """A daemon that many tests share, each with runs of its own.

    Attributes
    ----------
    daemon : DaemonProcess
    root : Path
        The folder of the runs.
    watch : Watcher
        Has heard everything it ever published.
    client : Client
        For queries.
    pub : list of str
        Endpoints at which it listens for PUB sources; each may be bound by one test.
    """

    daemon: DaemonProcess
    root: Path
    watch: Watcher
    client: Client
    pub: list[str]

    @property
    def ack(self) -> str:
        """Endpoint of the acknowledged path."""
        return self.daemon.endpoints["ingest.ack"]

    @property
    def pull(self) -> str:
        """Endpoint of the one-way path."""
        return self.daemon.endpoints["ingest.pull"]

    def publisher(self, stream: str, instrument: str = "scope") -> Publisher:
        """A well-behaved publisher on the acknowledged path."""
        return Publisher(self.ack, instrument=instrument, stream=stream)

    def folder(self, run: str) -> Path:
        """Where a run lies."""
        return self.root / run


@pytest.fixture(scope="session")
def station() -> Iterator[Station]:
    """The daemon for all tests that need nothing special of it. It must still live, and end well, after the last."""
    # Not below pytest's own folder: the path of an ipc socket may have about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="tilecast-") as folder:
        root = Path(folder) / "runs"
        pub = [f"ipc://{folder}/pub{number}" for number in range(4)]
        settings = IMPATIENT | {"ingest.sub": "[" + ", ".join(f'"{endpoint}"' for endpoint in pub) + "]"}
        daemon = ForkedDaemon(root, settings=settings, log_file=Path(folder) / "log").start()
        try:
            with (
                Watcher(daemon.endpoints["notify"]) as watch,
                Client(None, daemon.endpoints["query"]) as client,
            ):
                yield Station(daemon, root, watch, client, pub)
            assert daemon.stop() == 0, "\n".join(str(line) for line in list(daemon.log)[-20:])
        finally:
            daemon.kill()
