"""A thread that hangs: its disk does not come back from a write. The watchdog goes hungry, and all say who hangs.

The threads of one stage stand still at a time, in a real daemon that otherwise goes on: the shim holds up what is
written to its files while a gate is there. When the gate is taken away, all is well again, and nothing is lost.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.nursery import compiled_shim
from integration.conftest import IMPATIENT
from integration.scanning import assert_holds, endpoints, pictures, serpentine
from integration.talking import PX_UM, SHAPE, centre_um
from tilecast.process import DaemonProcess
from tilecast_protocol.client import Client
from tilecast_protocol.publisher import Publisher

PATIENCE_S = 60.0
WATCHDOG_S = 6
"""It is called hanging after half of that."""


MONITORED = IMPATIENT | {"metrics.listen": "127.0.0.1:0"}


def held_up(folder: Path, gate: Path, call: str, held: str) -> dict[str, str]:
    """The environment of a daemon: while the gate is there its writes, or syncs, of some files do not come back."""
    shim = compiled_shim(folder)
    if shim is None:
        pytest.skip("needs Linux and a C compiler (cc), to stand between a process and its disk")
    environ = {"LD_PRELOAD": str(shim), "DISK_SHIM_GATE": str(gate)}
    return environ | {"DISK_SHIM_CALLS": call, "DISK_SHIM_HELD": held}


def ask(daemon: DaemonProcess, path: str) -> tuple[int, str]:
    """Status and text of a check."""
    try:
        with urllib.request.urlopen(daemon.endpoints["metrics"] + path, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """Where the daemon says how it is."""
    with tempfile.TemporaryDirectory(prefix="tilecast-") as folder:
        heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        heard.bind(f"{folder}/notify")
        heard.settimeout(PATIENCE_S)
        yield heard
        heard.close()


def hear(manager: socket.socket, text: str) -> str:
    """The next message in which this is said."""
    deadline_s = time.monotonic() + PATIENCE_S
    while text not in (said := manager.recv(1 << 16).decode()):
        assert time.monotonic() < deadline_s, f"nobody says {text}, but: {said}"
    return said


@pytest.mark.parametrize(
    ("stage", "call", "held"),
    [
        ("store", "write", "/tiles-"),
        pytest.param("ingest", "write", "/journal/", marks=pytest.mark.slow),
        pytest.param("sync", "sync", "/journal/", marks=pytest.mark.slow),
    ],
)
def test_who_hangs_is_named_and_the_watchdog_is_not_fed(
    manager: socket.socket, tmp_path: Path, stage: str, call: str, held: str
) -> None:
    gate = tmp_path / "gate"
    environ = held_up(tmp_path, gate, call, held) | {
        "NOTIFY_SOCKET": manager.getsockname(),
        "WATCHDOG_USEC": f"{WATCHDOG_S}000000",
    }
    sent = pictures(5, 12)
    with (
        DaemonProcess(tmp_path / "runs", settings=MONITORED, environ=environ) as daemon,
        Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam", timeout_s=PATIENCE_S) as publisher,
        Client(None, daemon.endpoints["query"], timeout_s=PATIENCE_S) as client,
    ):
        run = publisher.start("held up", shape=SHAPE, dtype="<u2", px_um=PX_UM)
        publisher.image(sent[0], frame=0, pos_um=centre_um(*serpentine(0)))
        publisher.flush()
        hear(manager, "WATCHDOG=1")
        assert (ask(daemon, "/healthz")[0], ask(daemon, "/readyz")[0]) == (200, 200)

        gate.touch()
        for frame in range(1, len(sent)):
            publisher.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))
        assert (
            stage
            in daemon.wait_logged("threads hang; a watchdog, where there is one, will start the daemon anew")["threads"]
        )
        assert "WATCHDOG=1" not in hear(manager, f"{stage}: hanging")
        for path in ("/healthz", "/readyz"):
            status, why = ask(daemon, path)
            assert status == 503
            assert f"the {stage} thread hangs" in why
        if stage != "ingest":  # which would have to answer
            health = client.health()
            assert any(f"the {stage} thread hangs" in problem for problem in health["problems"])
            assert not health["ready"]

        gate.unlink()
        assert "hanging" not in hear(manager, "WATCHDOG=1")
        assert (ask(daemon, "/healthz"), ask(daemon, "/readyz")[0]) == ((200, "ok\n"), 200)
        publisher.end()
        publisher.flush()
        assert daemon.wait_logged("run report", PATIENCE_S, run=run)["received"] == len(sent)
    assert_holds(tmp_path / "runs" / run, sent)


def test_who_asks_while_it_catches_up_or_stops_is_told(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    # What is written when a run is loaded, and when a tile is.
    loading, writing = (held_up(tmp_path, gate, "write", held) for held in ("/lock", "/tiles-"))
    sent = pictures(6, 8)
    with endpoints() as ends:
        daemon = DaemonProcess(tmp_path / "runs", settings=MONITORED | ends, environ=writing)
        with (
            daemon,
            Publisher(ends["ingest.ack"], instrument="scope", stream="cam", timeout_s=PATIENCE_S) as publisher,
            Client(None, ends["query"], timeout_s=PATIENCE_S) as client,
        ):
            run = publisher.start("interrupted", shape=SHAPE, dtype="<u2", px_um=PX_UM)
            gate.touch()
            for frame in range(4):
                publisher.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))
            publisher.flush()
            os.kill(daemon.pid, signal.SIGTERM)
            daemon.wait_logged("stopping")
            assert ask(daemon, "/readyz") == (503, "the daemon is stopping\n")
            assert ask(daemon, "/healthz")[0] == 200, "it is alive, and is given time"
            gate.unlink()
            assert daemon.stop() == 0, list(daemon.log)[-40:]

            gate.touch()
            again = DaemonProcess(tmp_path / "runs", settings=MONITORED | ends, environ=loading)
            with again:
                assert ask(again, "/readyz") == (503, "the daemon is catching-up\n")
                assert ask(again, "/healthz")[0] == 200
                health = client.health()
                assert (health["state"], health["ready"]) == ("catching-up", False)
                assert health["no_start"] == ["the daemon is catching-up"]
                gate.unlink()
                again.wait_logged("run loaded", PATIENCE_S, run=run)
                for frame in range(4, len(sent)):
                    publisher.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))
                publisher.end()
                publisher.flush()
                assert (ask(again, "/readyz")[0], client.health()["ready"]) == (200, True)
    assert_holds(tmp_path / "runs" / run, sent)
