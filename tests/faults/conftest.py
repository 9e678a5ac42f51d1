"""One nursery for all tests that end processes before their time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.nursery import Nursery


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's time begins when the nursery is there: where kernels are not in the cache yet, it compiles them."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(func_only=True))


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
