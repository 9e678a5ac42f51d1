"""One nursery for all tests that end processes before their time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.nursery import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Forks processes; ended after the last test."""
    with tempfile.TemporaryDirectory(prefix="tilecast-") as folder, Nursery(Path(folder)) as made:
        yield made


@pytest.fixture
def shimmed(nursery: Nursery) -> Nursery:
    """A nursery whose children can have a disk that fails."""
    if not nursery.has_shim:
        pytest.skip("needs Linux and a C compiler (cc), to stand between a process and its disk")
    return nursery
