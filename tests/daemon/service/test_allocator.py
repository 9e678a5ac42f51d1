"""Freed memory is kept: the second time the same memory is touched no page is faulted in."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
from tilecast.service.allocator import keep_freed_memory

def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

assert keep_freed_memory()
np.ones(8 << 20, np.uint8)
before = faults()
for _ in range(10):
    np.ones(8 << 20, np.uint8)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_blocks_are_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 2048, "8 MiB are 2048 pages; each of ten frames would have faulted them in again"
