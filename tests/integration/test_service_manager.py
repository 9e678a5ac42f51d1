"""A real daemon and what it tells its service manager, of which only the socket is played here."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.talking import PX_UM, SHAPE, centre_um, picture
from tilecast.process import DaemonProcess
from tilecast_protocol.publisher import Publisher

PATIENCE_S = 60.0

Said = dict[str, str]


class Manager:
    """Hears what a daemon says."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(PATIENCE_S)

    def hear(self, wanted: Callable[[Said], bool]) -> Said:
        """The next message of that kind."""
        while True:
            said = dict(line.split("=", 1) for line in self._socket.recv(65536).decode().splitlines())
            if wanted(said):
                return said

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(f"{tmp_path}/notify")
    yield found
    found.close()


def started(manager: Manager, tmp_path: Path, config: str = "") -> DaemonProcess:
    (tmp_path / "tilecast.toml").write_text(config)
    return DaemonProcess(
        tmp_path / "runs",
        environ={"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "60000000"},
        arguments=["--config", f"{tmp_path}/tilecast.toml"],
    )


def test_a_service_says_how_it_is(manager: Manager, tmp_path: Path) -> None:
    with started(manager, tmp_path) as daemon:
        assert manager.hear(lambda said: "READY" in said)["READY"] == "1"
        assert manager.hear(lambda said: said.get("STATUS", "").startswith("ready"))["WATCHDOG"] == "1"
        with Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam") as publisher:
            publisher.start("liver, slice 12", shape=SHAPE, dtype="<u2", px_um=PX_UM)
            publisher.image(picture(1), pos_um=centre_um(0, 0))
            status = manager.hear(lambda said: "liver, slice 12" in said.get("STATUS", ""))["STATUS"]
            assert "GiB free" in status
            publisher.end()
        os.kill(daemon.pid, signal.SIGTERM)
        assert manager.hear(lambda said: "STOPPING" in said)["STATUS"].startswith("stopping")


def test_a_hang_up_reloads(manager: Manager, tmp_path: Path) -> None:
    with started(manager, tmp_path) as daemon:
        manager.hear(lambda said: "READY" in said)
        config = tmp_path / "tilecast.toml"

        config.write_text("[blend]\ntile_sise = 7\n")
        os.kill(daemon.pid, signal.SIGHUP)
        assert int(manager.hear(lambda said: "RELOADING" in said)["MONOTONIC_USEC"]) > 0
        assert "blend.tile_size" in manager.hear(lambda said: "READY" in said)["STATUS"]
        assert "blend.tile_size" in daemon.wait_logged("configuration not reloaded; the old one holds")["why"]

        config.write_text("[blend]\nmode = 'mean'\nqueue_bytes = '1MiB'\n")
        os.kill(daemon.pid, signal.SIGHUP)
        manager.hear(lambda said: "RELOADING" in said)
        assert "not reloaded" not in manager.hear(lambda said: "READY" in said)["STATUS"]
        found = daemon.wait_logged("configuration reloaded")
        assert (found["applied"], found["needs_restart"]) == (["blend.mode"], ["blend.queue_bytes"])


def test_a_service_is_ready_again_with_the_runs_that_were_open(manager: Manager, tmp_path: Path) -> None:
    ends = {name: f"ipc://{tmp_path}/{name}" for name in ("ingest.ack", "query")}
    daemon = DaemonProcess(tmp_path / "runs", settings=ends, environ={"NOTIFY_SOCKET": manager.address})
    with daemon, Publisher(ends["ingest.ack"], instrument="scope", stream="cam", timeout_s=PATIENCE_S) as publisher:
        run = publisher.start("open", shape=SHAPE, dtype="<u2", px_um=PX_UM)
        publisher.image(picture(1), pos_um=centre_um(0, 0))
        publisher.flush()
        manager.hear(lambda said: "READY" in said)
        daemon.kill()
        daemon.start()
        manager.hear(lambda said: "READY" in said)
        daemon.wait_logged("run loaded", run=run, images=1)
        publisher.image(picture(2), pos_um=centre_um(0, 20))
        publisher.end()
        publisher.flush()
        assert daemon.wait_logged("run report", run=run)["received"] == 2
