"""Writing image-sized payloads straight to the disk, past the page cache (O_DIRECT).

Copying a frame into the page cache costs far more than the disk does: pages have to be found, filled, and written out
later. Past the cache an aligned payload costs next to nothing, any other one copy into memory that is. Measured with
frames of 5.5 MB: 5 to 11 ms of CPU through the cache, 0.5 ms and 1 ms past it. In exchange the writer waits for the
disk, and what is soon read back comes from there.

The rule that keeps both ways of writing one file apart: a block that is written here is never written through the cache
by the same writer, unless its file system refuses half-way. So payloads begin and end at block boundaries, with padding
in front and behind that belongs to their record (`tilecast_protocol.journal_format`); everything else goes through the
cache, as all reading does. Written past the cache is not durable: the drive has a cache too, and the length of the file
is yet to be written. `Journal.sync` is needed as ever.

This module knows a file, buffers and offsets; not what a record is. Where a file system does not take such writes,
nothing is lost but speed: `takes` says so, and the journal goes on through the cache.

Tried, and no better on ext4: room for the file set aside beforehand (fallocate); the front of a record in the same
write as its payload. Pieces of 1 MiB were slower.

    direct = DirectWriter()
    if direct.takes(path, nbytes):
        done = direct.write([payload], at)  # `at` is a multiple of ALIGNMENT; so is what is written, with zeros behind
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = max(4096, mmap.PAGESIZE)
"""Bytes: of offsets, lengths and addresses in memory. Whole pages, so that the cache never holds parts of both ways."""

WORTHWHILE_BYTES = 256 << 10
"""From this length on, waiting for the disk costs less CPU than the copy into the cache (measured: 0.2 to 0.4 MB)."""

_ROOM_BYTES = 8 << 20
_SHORT_BYTES = 512 << 10  # copied in less than 0.1 ms


class DirectWriter:
    """Writes to one file at a time past the page cache. One thread uses it.

    Parameters
    ----------
    wanted : bool
        False: never does, as if every file system refused.
    """

    def __init__(self, *, wanted: bool = True) -> None:
        self._wanted = wanted
        self._path: Path | None = None
        self._fd = -1
        self._room: NDArray[np.uint8] | None = None

    def takes(self, path: Path, nbytes: int) -> bool:
        """True if a payload of `nbytes` is to be written to the file at `path` by this.

        Asked of another file than before, it gives up the last one. Whether a file system can do this is found out once
        for every file.
        """
        if not self._wanted or nbytes < WORTHWHILE_BYTES:
            return False
        if path != self._path:
            self.close()
            self._path = path
            try:
                self._fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
            except OSError:
                return False
        return self._fd >= 0

    def write(self, views: Sequence[memoryview], offset: int) -> int:
        """Write the bytes of all views, and zeros up to a whole block.

        Parameters
        ----------
        views : sequence of memoryview
            Flat bytes. Written from where they lie if there is one, and it begins at a multiple of `ALIGNMENT`.
        offset : int
            A multiple of `ALIGNMENT`.

        Returns
        -------
        int
            How many bytes were written, the zeros included. If these are not all, the kernel has stopped there, and may
            say why when the rest is written in another way.

        Raises
        ------
        OSError
            The disk refuses. That writes of this kind are refused is none: then 0 is returned, from now on `takes` says
            no, and it did not happen.
        """
        done = 0
        for blocks in self._blocks([view for view in views if view.nbytes]):
            nbytes = sum(block.nbytes for block in blocks)
            try:
                written = os.pwritev(self._fd, blocks, offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._give_up()
                written = 0
            done += written
            if written < nbytes:
                break
        return done

    def _blocks(self, views: Sequence[memoryview]) -> Iterator[list[memoryview]]:
        """The bytes of all views in whole, aligned blocks, and what is to be written in one call."""
        room = self._aligned_room()
        whole = 0
        if len(views) == 1 and np.frombuffer(views[0], np.uint8).ctypes.data % ALIGNMENT == 0:
            whole = views[0].nbytes - views[0].nbytes % ALIGNMENT
        blocks = [views[0][:whole]] if whole else []
        at = 0
        for data in [views[0][whole:]] if whole else views:
            taken = 0
            while taken < data.nbytes:
                n = min(data.nbytes - taken, room.size - at)
                _copy(room, at, data[taken : taken + n])
                at, taken = at + n, taken + n
                if at == room.size:
                    yield [room.data]
                    at = 0
        if at:
            end = at + -at % ALIGNMENT
            room[at:end] = 0
            blocks.append(room[:end].data)
        if blocks:
            yield blocks

    def _aligned_room(self) -> NDArray[np.uint8]:
        """Memory to put together what does not lie at a page boundary; as far as it is not used it costs nothing."""
        if self._room is None:
            pages = mmap.mmap(-1, _ROOM_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._room = np.frombuffer(pages, np.uint8)
        return self._room

    def _give_up(self) -> None:
        """Write no more to this file; `takes` then says no for it."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def close(self) -> None:
        """Close the file. It, or another, may be asked for again."""
        self._give_up()
        self._path = None


def _copy(room: NDArray[np.uint8], at: int, data: memoryview) -> None:
    """Copy bytes. NumPy lets go of the GIL for that, and to get it back may take longer than to copy a tile."""
    if data.nbytes < _SHORT_BYTES:
        room.data[at : at + data.nbytes] = data
    else:
        room[at : at + data.nbytes] = np.frombuffer(data, np.uint8)
