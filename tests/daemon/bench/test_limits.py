"""The machine's limits: plausible, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from tilecast.bench.limits import FileSystem, copy_ms, encode_gb_s, file_system_of, this_machine, write_mb_s


def test_figures_are_positive_and_the_folder_is_left_as_it_was(tmp_path: Path) -> None:
    frame = np.random.default_rng(0).poisson(2000, (256, 256)).astype("<u2")
    assert 0 < copy_ms(frame) < 100
    assert 0 < encode_gb_s([frame, frame]) < 100
    assert 0 < write_mb_s(tmp_path, 16 << 20) < 1e6
    assert list(tmp_path.iterdir()) == []


def test_this_machine() -> None:
    machine = this_machine()
    assert machine.cpu
    assert 1 <= machine.cores <= (psutil.cpu_count() or 1)
    assert machine.memory_gib > 0


def test_the_file_system_is_that_of_the_nearest_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mounted(point: Path | str, kind: str) -> SimpleNamespace:
        return SimpleNamespace(mountpoint=str(point), fstype=kind, device=f"dev-{kind}")

    mounts = [mounted("/", "ext4"), mounted(tmp_path, "xfs"), mounted(tmp_path / "ram", "tmpfs")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts if all else [])  # noqa: A006
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / "ram").mkdir()
    (tmp_path / "rampart").mkdir()
    assert file_system_of(below) == FileSystem(kind="xfs", device="dev-xfs")
    assert str(file_system_of(tmp_path / "rampart")) == "xfs on dev-xfs"
    assert file_system_of(tmp_path.parent).kind == "ext4"
    assert file_system_of(tmp_path / "ram").in_memory
    assert not file_system_of(below).in_memory
