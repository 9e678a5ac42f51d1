"""PYME itself, from its source distribution, for the tests: its pyramid and its events, in a process of its own.

The package needs a compiler, wxPython and much else to be installed; what is used here are modules in plain Python,
which run from the unpacked sources. Nothing of it is imported into the tests' own process, nor copied.

Say where the sources are with the variable PYME_SOURCES, a folder or the .tar.gz; to fetch them:

    pip download --no-deps --no-binary python-microscopy -d pyme-sdist python-microscopy==26.9.3
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "PYME_SOURCES"
WHY = f"PYME's sources are not here: set {VARIABLE} (tests/pyme_source.py says how)"


def pyme_sources(unpack_to: Path) -> Path:
    """The folder that holds the package PYME; skips the test if there is none."""
    told = os.environ.get(VARIABLE)
    if not told:
        pytest.skip(WHY)
    if find_spec("six") is None:
        pytest.skip("PYME's modules need six: uv sync --group exports")
    path = Path(told)
    if path.is_dir():
        found = [path] if (path / "PYME").is_dir() else sorted(path.glob("*/PYME/.."))
        assert found, f"{VARIABLE} is {path}, and there is no PYME in it"
        return found[0].resolve()
    with tarfile.open(path) as archive:
        wanted = [
            member
            for member in archive.getmembers()
            if (member.name.endswith(".py") and member.name.split("/", 1)[1].startswith(("PYME/IO", "PYME/Analysis")))
            or (member.name.count("/") == 2 and member.name.endswith(".py"))
        ]
        archive.extractall(unpack_to, wanted, filter="data")
    return next(unpack_to.iterdir())


def run_pyme(sources: Path, program: str, *arguments: str) -> Any:
    """What a program that may import PYME prints as JSON."""
    preamble = f"import sys; sys.path.insert(0, {str(sources)!r})\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", preamble + program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
