"""One daemon and one gateway for all viewers, and runs of each kind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from viewer_scans import Scan, Show, show


@pytest.fixture(scope="session")
def stage() -> Iterator[Show]:
    """Daemon and gateway."""
    with tempfile.TemporaryDirectory(prefix="tilecast-") as folder, show(Path(folder), "--cors", "*") as running:
        yield running


@pytest.fixture(scope="session")
def grey(stage: Show) -> Scan:
    """A run of one plane, u1."""
    return stage.scan("grey", "|u1")


@pytest.fixture(scope="session")
def colour(stage: Show) -> Scan:
    """A run of two channels and two positions in z, u2."""
    channels = [{"name": "DAPI", "color": "0000ff"}, {"name": "GFP", "color": "00ff00"}]
    return stage.scan("colour", "<u2", ((0, 0, 0), (0, 1, 0), (0, 1, 1)), channels=channels)


@pytest.fixture(scope="session")
def floats(stage: Show) -> Scan:
    """A run of floats."""
    return stage.scan("floats", "<f4")
