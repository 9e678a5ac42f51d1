"""Tells the C library to keep freed memory: frames and tiles come and go by the thousand, and pages cost time.

glibc gives large blocks back to the kernel as soon as they are freed, and gets fresh, zeroed pages for the next one. A
page that is touched for the first time costs about 10 µs on a virtual machine: for a frame of 8 MiB and its tiles three
times what blending them takes. So freed blocks are kept for the next frame. How much memory is in use is bounded by the
budgets of the configuration, not here.

On systems without glibc nothing is done.
"""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Make the C library reuse freed blocks of any size; whether it could be told so."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))
