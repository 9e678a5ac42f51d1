"""Freed memory is kept: the second time the same memory is touched no page is faulted in.

The collector looks no more at what was loaded, and still finds what comes later.
"""

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


COLLECTOR_SCRIPT = """
import gc, weakref
from tilecast.service.allocator import collector_spared

class Node:
    pass

before = gc.get_stats()[2]["collections"]
with collector_spared():
    import asyncio, email.message, json, logging, sqlite3, unittest.mock, xml.dom.minidom
    loaded = [[] for _ in range(50_000)]
    collected_while_loading = gc.get_stats()[2]["collections"] - before
watched = len(gc.get_objects())

node = Node()
node.itself, gone = node, weakref.ref(node)
del node
kept = []
while gone() is not None and len(kept) < 1_000_000:
    kept.append([])
print(collected_while_loading, watched, len(kept))
"""


def test_the_collector_looks_only_at_what_comes_after_loading() -> None:
    done = subprocess.run([sys.executable, "-c", COLLECTOR_SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    n_collections, n_watched, n_until_found = map(int, done.stdout.split())
    assert n_collections == 0, "modules and 50,000 lists came, and not once was everything looked at"
    assert n_watched < 1000, "what was loaded is not looked at any more"
    assert n_until_found < 50_000, "a cycle that was made later is still found, and soon"
