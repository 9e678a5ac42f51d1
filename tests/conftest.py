"""What every test may use: where the shared scans lie, one profile for hypothesis, and how many tests run at once."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from faults.nursery import Nursery, end_shared, shared

pytest_plugins = ["tilecast.testing.fixtures"]

# Kernels are compiled inside the first example, and the machines are noisy: a deadline would test the machine.
settings.register_profile("tilecast", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tilecast")

# Where Python is told not to keep what it has compiled, every daemon that a test starts would compile all it imports:
# four seconds each. Then it is kept in a folder of this session.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None) and not os.environ.get("PYTHONPYCACHEPREFIX"):
    _COMPILED = tempfile.mkdtemp(prefix="tilecast-compiled-")
    os.environ["PYTHONPYCACHEPREFIX"] = _COMPILED
    atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)

# Kernels are compiled before there are workers, by two processes: else each worker and each daemon that it starts would
# compile them all for itself. Where they lie in the cache already this takes a second.
_COMPILE = (
    "from tilecast_protocol import pzf; [compile_it() for _, compile_it in pzf.KERNELS]",
    "from tilecast.kernels import kernels_for; [compile_it() for dtype in ('|u1', '<u2', '<f4') "
    "for _, compile_it in kernels_for(dtype, 'feather')]",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker more than processors: now and then all the others wait."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Compile the kernels before the workers start."""
    _compile()


def pytest_collection_finish(session: pytest.Session) -> None:
    """The same where there are no workers (-n0), if they never were compiled: a test's time is too short for that."""
    without_workers = not hasattr(session.config, "workerinput") and not session.config.getoption("numprocesses", None)
    if without_workers and session.items and not session.config.option.collectonly and not _is_compiled():
        _compile()


def _compile() -> None:
    for process in [subprocess.Popen([sys.executable, "-c", code]) for code in _COMPILE]:
        process.wait()


def _is_compiled() -> bool:
    """Whether numba has compiled both modules since they changed; told from its files: importing it takes a second."""
    kept = os.environ.get("NUMBA_CACHE_DIR")
    root = Path(__file__).parents[1]
    for source in (root / "daemon/tilecast/kernels.py", root / "protocol/tilecast_protocol/_pzf_kernels.py"):
        folder = Path(kept) if kept else source.parent / "__pycache__"
        newest = max((path.stat().st_mtime for path in folder.rglob(f"{source.stem}.*.nbi")), default=0.0)
        if newest < source.stat().st_mtime:
            return False
    return True


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real scans and the PZF vectors; the test is skipped, by name, where they are absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared scans are not beside this checkout (../shared/data)")
    return SHARED_DATA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's time begins when the nursery is there: where kernels are not in the cache yet, it compiles them."""
    for item in items:
        if "nursery" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(func_only=True))


@pytest.fixture(scope="session")
def nursery() -> Nursery:
    """Forks processes; ended after the last test."""
    return shared()


def pytest_unconfigure() -> None:
    """End the nursery."""
    end_shared()
