"""A real daemon and what it tells its service manager, of which only the socket is played here."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faults.nursery import ForkedDaemon
from integration.talking import PX_UM, SHAPE, centre_um, picture
from recordings import record
from tilecast.process import DaemonProcess
from tilecast_protocol.publisher import Publisher

PATIENCE_S = 60.0

Said = dict[str, str]


class Manager:
    """Hears what a daemon says, as fast as it says it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def hear(self, wanted: Callable[[Said], bool]) -> Said:
        """The next message of that kind."""
        while True:
            said = self._said.get(timeout=PATIENCE_S)
            if wanted(said):
                return said

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while data := self._socket.recv(65536):
            self._said.put(dict(line.split("=", 1) for line in data.decode().splitlines()))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(f"{tmp_path}/notify")
    yield found
    found.close()


def started(manager: Manager, tmp_path: Path, config: str = "") -> DaemonProcess:
    (tmp_path / "tilecast.toml").write_text(config)
    return ForkedDaemon(
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
            with_rate = re.compile(r"; \d+\.\d images/s, \d+ MB/s; run: liver, slice 12; .* GiB free")
            manager.hear(lambda said: with_rate.search(said.get("STATUS", "")) is not None)
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
    daemon = ForkedDaemon(tmp_path / "runs", settings=ends, environ={"NOTIFY_SOCKET": manager.address})
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


def test_who_hears_that_it_is_ready_finds_what_was_torn_cut_off(manager: Manager, tmp_path: Path) -> None:
    """Journals are verified before it is ready, those of all runs that were open; not some time later."""
    torn = {}
    for number in range(20):
        made = record(tmp_path / "runs", run_id=f"0190a5a8-0000-7000-8000-{number:012}")
        (made.folder / "active").touch()
        last = max(made.folder.glob("journal/*.tcj"))
        torn[last] = last.stat().st_size
        with last.open("ab") as file:
            file.write(b"tc1/ half a record, of which the power failed")
    daemon = ForkedDaemon(tmp_path / "runs", environ={"NOTIFY_SOCKET": manager.address})
    with daemon:
        assert manager.hear(lambda said: "READY" in said)["STATUS"].split(";")[0] in ("catching-up", "ready")
        assert {path: path.stat().st_size for path in torn} == torn
    assert len(torn) == 20


#: Asks for more time much oftener, and for any work at all: what takes minutes on a poor disk is over in a moment here.
HASTY = """
from tilecast.service import notify
notify.Patience.__init__.__kwdefaults__["pulse_s"] = 0.002
notify._WORKING_CPU_S = 0.0
"""


def test_more_time_is_asked_for_whatever_takes_long(manager: Manager, tmp_path: Path) -> None:
    for number in range(20):
        made = record(tmp_path / "runs", run_id=f"0190a5a8-0000-7000-8000-{number:012}")
        (made.folder / "active").touch()
    (tmp_path / "hasty").mkdir()
    (tmp_path / "hasty" / "sitecustomize.py").write_text(HASTY)
    environ = {"NOTIFY_SOCKET": manager.address, "PYTHONPATH": f"{tmp_path}/hasty"}
    with DaemonProcess(tmp_path / "runs", environ=environ) as daemon:  # a new interpreter, which reads that file

        def hear_work(what: str) -> None:
            manager.hear(lambda said: "EXTEND_TIMEOUT_USEC" in said and said["STATUS"].startswith(what))

        hear_work("loading kernels")
        hear_work("opening the journals of open runs")
        manager.hear(lambda said: "READY" in said)
        assert daemon.stop() == 0
        hear_work("stopping")
