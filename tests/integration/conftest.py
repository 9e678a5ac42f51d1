"""A real daemon in a process of its own for each test that asks, and the mosaic that its store holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tilecast.process import DaemonProcess

StartDaemon = Callable[..., DaemonProcess]


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[StartDaemon]:
    """Start daemons whose stores lie in the test's folder; `start_daemon("name", **{"option": "value"})`."""
    started: list[DaemonProcess] = []

    def start(name: str = "runs", **settings: str) -> DaemonProcess:
        daemon = DaemonProcess(tmp_path / name, settings=settings, log_file=tmp_path / f"{name}.log")
        started.append(daemon)
        return daemon.start()

    yield start
    for daemon in started:
        if daemon.running:
            daemon.kill()
