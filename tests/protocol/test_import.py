"""What importing the protocol costs: cameras must not wait for a compiler, or install what they do not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

ALLOWED = {"numpy", "msgpack", "zmq", "isal", "tilecast_protocol"}
"""Besides what Python itself brings, and what belongs to those."""

PARTS_OF_THE_ALLOWED = ("_cython_", "cython_runtime", "_cffi_backend", "_distutils_hack", "__main__")

LIST_MODULES = """
import sys
before = set(sys.modules)
{statement}
print(*sorted({{name.partition(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names))
"""

EVERYTHING = """
import importlib, pkgutil, tilecast_protocol
for module in pkgutil.iter_modules(tilecast_protocol.__path__):
    if module.name not in ("_pzf_kernels", "_addresses"):
        importlib.import_module(f"tilecast_protocol.{module.name}")
for name in tilecast_protocol.__all__:
    getattr(tilecast_protocol, name)
"""


def modules_after(statement: str) -> set[str]:
    """Top-level modules from outside Python that a fresh interpreter has loaded after a statement."""
    program = LIST_MODULES.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return {name for name in done.stdout.split() if not name.startswith(PARTS_OF_THE_ALLOWED)}


@pytest.mark.parametrize(
    "statement",
    [
        "import tilecast_protocol",
        "from tilecast_protocol.publisher import Publisher",
        "from tilecast_protocol.client import Client",
        "from tilecast_protocol import Mosaic",
        "import tilecast_protocol.pzf",
        EVERYTHING,
    ],
    ids=["package", "publisher", "client", "mosaic", "pzf", "everything"],
)
def test_importing_pulls_in_nothing_heavy(statement: str) -> None:
    assert modules_after(statement) <= ALLOWED


def test_the_package_alone_loads_nothing_but_itself() -> None:
    assert modules_after("import tilecast_protocol") == {"tilecast_protocol"}


def test_a_source_brings_along_only_what_it_needs() -> None:
    """Those who read a daemon or a folder do not wait for what speaks HTTP and reads pictures."""
    assert modules_after("import tilecast_protocol.mosaic.query") <= ALLOWED
    assert modules_after("import tilecast_protocol.mosaic.web") <= ALLOWED | {"urllib3"}
    assert modules_after("import tilecast_protocol.mosaic.catmaid") <= ALLOWED | {"urllib3"}
    assert not modules_after("import tilecast.mosaic_folder") & {"numba", "pydantic", "click", "rich", "structlog"}


def test_the_check_would_notice_the_compiler() -> None:
    assert "numba" in modules_after("import tilecast_protocol._pzf_kernels")
