from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tilecast.service.notify import Manager, Patience

PATIENCE_S = 30.0


class Listener:
    """A service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(PATIENCE_S)

    def hear(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())

    def heard_nothing(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(PATIENCE_S)
        return False


@pytest.fixture(params=["/notify", "@tilecast-test-{pid}"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name: str = request.param
    return name.format(pid=os.getpid()) if name.startswith("@") else f"{tmp_path}{name}"


@pytest.fixture
def listener(address: str) -> Iterator[Listener]:
    found = Listener(address)
    yield found
    found.socket.close()


def test_assignments_arrive_in_one_message(listener: Listener, address: str) -> None:
    assert Manager({"NOTIFY_SOCKET": address}).tell("READY=1", "STATUS=ready; one\nline")
    assert listener.hear() == {"READY": "1", "STATUS": "ready; one line"}


def test_a_reload_says_when_it_began(listener: Listener, address: str) -> None:
    Manager({"NOTIFY_SOCKET": address}).reloading()
    said = listener.hear()
    assert said["RELOADING"] == "1"
    assert int(said["MONOTONIC_USEC"]) > 0


def test_nobody_is_told_where_nobody_listens(tmp_path: Path) -> None:
    assert not Manager({}).listens
    assert not Manager({}).tell("READY=1")
    assert not Manager({"NOTIFY_SOCKET": f"{tmp_path}/nobody"}).tell("READY=1")
    assert not Manager({"NOTIFY_SOCKET": "vsock:2:1234"}).listens


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "5000000"}, 5.0),
        ({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": str(os.getpid())}, 5.0),
        ({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_that_of_this_process(environ: dict[str, str], watchdog_s: float | None) -> None:
    assert Manager(environ).watchdog_s == watchdog_s


def test_who_works_gets_more_time(tmp_path: Path) -> None:
    listener = Listener(f"{tmp_path}/notify")
    manager = Manager({"NOTIFY_SOCKET": f"{tmp_path}/notify"})
    working = True
    with Patience(manager, lambda: "counting", pulse_s=0.1):
        listener.socket.setblocking(False)
        while working:
            sum(range(10_000))
            try:
                said = listener.socket.recv(4096).decode()
                working = False
            except BlockingIOError:
                pass
    listener.socket.close()
    assert said == "EXTEND_TIMEOUT_USEC=20000000\nSTATUS=counting"


def test_who_hangs_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener(f"{tmp_path}/notify")
    looks = 0

    def still(_process: object) -> tuple[float, int]:
        nonlocal looks
        looks += 1
        if looks == 5:
            patience._over.set()
        return (1.0, 1)

    monkeypatch.setattr("tilecast.service.notify._work", still)
    patience = Patience(Manager({"NOTIFY_SOCKET": f"{tmp_path}/notify"}), lambda: "hanging", pulse_s=0.01)
    with patience:
        patience._thread.join(PATIENCE_S)
    assert looks == 5
    assert listener.heard_nothing()
    listener.socket.close()
