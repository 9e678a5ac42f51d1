"""Memory as the daemon wants it: the C library keeps what is freed, the collector looks only at what is new.

Frames and tiles come and go by the thousand, and pages cost time.

glibc gives large blocks back to the kernel as soon as they are freed, and gets fresh, zeroed pages for the next one. A
page that is touched for the first time costs about 10 µs on a virtual machine: for a frame of 8 MiB and its tiles three
times what blending them takes. So freed blocks are kept for the next frame. How much memory is in use is bounded by the
budgets of the configuration, not here.

On systems without glibc nothing is done.

Python's collector of reference cycles holds the interpreter's lock while it looks at every object there is: 0.1 s for
those of a program that has just loaded its modules, while all threads wait, and frames with them. What has been loaded
stays to the end, so it need not be looked at again (`collector_spared`).
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
#: So many more objects than before, about what the tiles of ten frames are made of, and the collector looks at them.
_NEW_OBJECTS: Final = 10_000
#: While modules are loaded: kernels that have to be compiled leave much behind, which is to go before all is kept.
_NEW_OBJECTS_LOADING: Final = 50_000


def keep_freed_memory() -> bool:
    """Make the C library reuse freed blocks of any size; whether it could be told so."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


@contextmanager
def collector_spared() -> Iterator[None]:
    """Around the loading of modules: no full collection meanwhile, and none of what was loaded ever after."""
    of_young, n_young, n_old = gc.get_threshold()
    gc.set_threshold(_NEW_OBJECTS_LOADING, n_young, 1_000_000)
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(max(of_young, _NEW_OBJECTS), n_young, n_old)
