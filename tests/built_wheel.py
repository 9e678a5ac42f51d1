"""A wheel of this checkout, for tests of what people install."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_LONGEST_S = 120


def wheel(folder: Path, version: str) -> Path:
    """A wheel of this checkout, as if it were of that version, in a folder that it may fill."""
    source = folder / f"source-{version}"
    for name in ("daemon", "protocol", "plugins", "systemd"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source / name)
    project = re.sub(r'^version = ".*"$', f'version = "{version}"', (ROOT / "pyproject.toml").read_text(), flags=re.M)
    (source / "pyproject.toml").write_text(project)
    command = ["uv", "build", "--quiet", "--wheel", "--out-dir", str(folder), str(source)]
    subprocess.run(command, check=True, timeout=_LONGEST_S)
    return folder / f"tilecast-{version}-py3-none-any.whl"
