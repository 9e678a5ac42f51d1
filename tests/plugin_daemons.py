"""The daemon that tests of plugins get from `tilecast.testing`, forked: `faults/nursery.py` says why.

A `conftest.py` imports the fixture; it is then used in place of the published one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from faults.nursery import Nursery, forked_daemon
from tilecast.testing.fixtures import DaemonUnderTest, StartDaemon


class ForkedUnderTest(DaemonUnderTest):
    """A `DaemonUnderTest` that the nursery forks."""

    def _spawn(self) -> Any:
        return forked_daemon(self._command, self._environ)


@pytest.fixture
def tilecast_daemon(nursery: Nursery, tmp_path: Path) -> Iterator[StartDaemon]:  # noqa: ARG001
    """Start a real daemon: `tilecast_daemon(environ={…}, **{"option": "value"})`; several have a store in common.

    The nursery is asked for so that it is there before the time of a test begins.
    """
    started: list[DaemonUnderTest] = []

    def start(environ: Mapping[str, str] | None = None, **options: str) -> DaemonUnderTest:
        daemon = ForkedUnderTest(tmp_path / "runs", options, environ or {})
        started.append(daemon)
        daemon.start()
        return daemon

    yield start
    for daemon in started:
        if daemon.running:
            daemon.kill()
