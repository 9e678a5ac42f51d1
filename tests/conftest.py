"""What every test may use: where the shared scans lie, and one profile for hypothesis."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Kernels are compiled inside the first example, and the machines are noisy: a deadline would test the machine.
settings.register_profile("tilecast", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tilecast")

# Where Python is told not to keep what it has compiled, every daemon that a test starts would compile all it imports:
# four seconds each. Then it is kept in a folder of this session.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None) and not os.environ.get("PYTHONPYCACHEPREFIX"):
    _COMPILED = tempfile.mkdtemp(prefix="tilecast-compiled-")
    os.environ["PYTHONPYCACHEPREFIX"] = _COMPILED
    atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real scans and the PZF vectors; the test is skipped, by name, where they are absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared scans are not beside this checkout (../shared/data)")
    return SHARED_DATA
