"""For tests that need a disk which fails."""

from __future__ import annotations

import pytest

from faults.nursery import Nursery


@pytest.fixture
def shimmed(nursery: Nursery) -> Nursery:
    """A nursery whose children can have a disk that fails."""
    if not nursery.has_shim:
        pytest.skip("needs Linux and a C compiler (cc), to stand between a process and its disk")
    return nursery
