"""Kernels are compiled once, by two processes, and who waits is told for what."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from terminal import Terminal

WARM_UP = [sys.executable, "-m", "tilecast.service.warmup"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_first_time_everything_is_compiled_and_the_second_time_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    terminal = Terminal(WARM_UP)
    said = terminal.read_all()
    assert terminal.process.returncode == 0
    assert "Compiling kernels, once: up to a minute" in said
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    widest = max(len(line) for line in re.split(r"[\r\n]+", plain))
    assert widest <= 80
    assert re.search(r"[━╸╺]\s+\d+%\s+0:\d\d:\d\d", plain), "nothing of it is cut off"
    compiled = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "numba").rglob("*.nbc")}
    assert {name.partition(".")[0] for name in compiled} >= {"kernels", "_pzf_kernels"}

    subprocess.run(WARM_UP, check=True, timeout=300, capture_output=True)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "numba").rglob("*.nbc")}
    assert after == compiled, "nothing was compiled again"


def test_a_source_that_has_changed_since_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from tilecast import kernels
    from tilecast.service import warmup

    warmup.warm_up()
    assert warmup._is_compiled()
    [folder, *_] = warmup._folders(kernels)
    newest = max(path.stat().st_mtime for path in folder.glob("kernels.*.nbi"))
    stat = Path.stat

    def later(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = stat(self, follow_symlinks=follow_symlinks)
        if self == Path(str(kernels.__file__)):
            values = list(found)
            values[8] = int(newest) + 10
            return os.stat_result(values)
        return found

    monkeypatch.setattr(Path, "stat", later)
    assert not warmup._is_compiled()
