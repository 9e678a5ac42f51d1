"""How much memory the daemon may need: the budgets of its configuration, and what they do not cover.

One account, for the limits in the units (`service/install.py`) and for `tilecast doctor`. It is of the worst moment, in
which every queue is full and every viewer slow; a daemon that works flat out takes a quarter of it.
"""

from __future__ import annotations

from typing import Final

from tilecast.options import GIB, MIB
from tilecast.service.config import Config

_PIXEL_NBYTES: Final = 4  # at most
#: The interpreter, libraries and kernels take 200 MiB, SQLite 25 MiB for each open run, ZeroMQ's own buffers a few.
_PROGRAM_BYTES: Final = 512 * MIB
#: What plugins take the daemon cannot bound.
_PLUGINS_BYTES: Final = GIB // 2


def memory_needs(config: Config) -> dict[str, int]:
    """Bytes at most, by who needs them.

    Returns
    -------
    dict of str to int
        Their sum is what the daemon may need.
    """
    ingest, blend, store, viewers = config.ingest, config.blend, config.store, config.viewers
    return {
        # In the sockets of both kinds; frames that are sent again, and those that wait for their run.
        "ingest": 2 * ingest.queue_bytes + ingest.credit_bytes + ingest.hold_bytes,
        # On their way to the blender, or waiting for a position; and those of message sources.
        "frames": 3 * blend.queue_bytes,
        "blending": blend.budget_bytes,
        # In the queue; and as much again in what two threads encode while the batch before is committed.
        "tiles": 2 * store.queue_bytes,
        "viewers": viewers.unread_bytes_of_all
        + viewers.queue_bytes
        + viewers.threads * viewers.max_region_pixels * _PIXEL_NBYTES,
        "program": _PROGRAM_BYTES,
        "plugins": _PLUGINS_BYTES,
    }
