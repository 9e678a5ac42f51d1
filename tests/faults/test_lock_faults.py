"""A disk that takes nothing any more must not keep a run from being given back, nor hide what went wrong."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tilecast.store.lock import RunLock


def test_a_lock_is_given_back_on_a_disk_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = RunLock(tmp_path)

    def fails(_fd: int, _length: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "ftruncate", fails)
    with pytest.raises(ValueError, match="the cause"), lock:
        raise ValueError("the cause")
    assert not lock.held
    RunLock(tmp_path)
