"""The bytes of a run's tiles: one file beside the database, which says what lies where.

A camera makes tiles of noise faster than a database can take them: each byte would be copied into a record, onto
pages, into the write-ahead log with a checksum, and from there into the database file, and cost twice as much processor
time as all the blending. Here it is written once, past the page cache, and the database keeps a row of some fifty bytes
for each tile.

What keeps the two in step:

* The bytes of a commit are on the disk before its transaction begins; those of the next may be written meanwhile,
  behind them. A transaction that fails before its COMMIT leaves bytes that no row names, and what comes next is written
  over them. Where it is the COMMIT that fails, nobody writes there again: its rows may have reached the write-ahead log
  before the error, and then a crash brings them back.
* A tile is never written over. Its new bytes go to the end of the file, and the old ones are *superseded*: given back
  to the file system as a hole once nobody can want them any more. That is when the whole write-ahead log has been
  carried over: then the new rows are in the database file for good, and no reader looks at a state before them (SQLite
  carries nothing over that one may still want to see as it was).
* The database names the file, and a rebuilt database names another: to swap the one swaps both.

What was superseded in the last moments before a crash stays in the file until the run is closed in good order
(`TileFile.give_back_rest`). On a file system without holes all of it stays, and a rebuild drops it.

This module knows neither SQLite nor what a blob holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from isal import isal_zlib

from tilecast.errors import StoreError
from tilecast.store.tile_store import StoreDamagedError
from tilecast_protocol.journal_direct import ALIGNMENT, DirectWriter

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02  # of fallocate(2)


class Extent(NamedTuple):
    """A stretch of the file: where it begins, and its length in bytes."""

    offset: int
    nbytes: int


def new_name() -> str:
    """A name that no other tiles' file of the run has."""
    return f"tiles-{secrets.token_hex(4)}.bin"


def is_name(name: str) -> bool:
    """Whether a database may name its tiles' file so: nothing that leads out of the run's folder."""
    return name.startswith("tiles-") and name.endswith(".bin") and Path(name).name == name


def blob_crc32(*parts: bytes | memoryview | bytearray) -> int:
    """The checksum that the database keeps of a tile's bytes."""
    crc = 0
    for part in parts:
        crc = isal_zlib.crc32(part, crc)
    return crc


def disk_nbytes(path: Path) -> int:
    """How much room a file takes, without its holes.

    Raises
    ------
    OSError
        If it is not there.
    """
    status = path.lstat()
    return min(status.st_size, status.st_blocks * 512) if stat.S_ISREG(status.st_mode) else status.st_size


class TileFile:
    """The file, open for writing; for one thread, but for `give_back` and `len`, which any may call, and `append`.

    `append` may be called by another thread than the rest, one call at a time.

    Attributes
    ----------
    path : Path

    Parameters
    ----------
    path : Path
    create : bool
        It must not be there yet; else it must.
    used_end : int
        Where the last of the extents ends that the database names. In a file that somebody cut off it lies beyond the
        end: what is appended goes behind it all the same, because the extents there are given back one day.

    Raises
    ------
    OSError
        If it cannot be made, or opened.
    """

    def __init__(self, path: Path, *, create: bool = False, used_end: int = 0) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        self.path = path
        self._fd = os.open(path, flags, 0o666)
        self._direct = DirectWriter()
        self._end = _aligned(max(os.fstat(self._fd).st_size, used_end))
        self._appended = self._end
        self._superseded: deque[Extent] = deque()
        self._guard = threading.Lock()

    def append(self, blobs: Sequence[bytes | bytearray | memoryview]) -> int:
        """Write bytes behind everything that was written before, and have them on the disk.

        They are not kept until `keep` is called: after `forget` the next call writes over them.

        Parameters
        ----------
        blobs : sequence of bytes-like
            Written without a gap between them.

        Returns
        -------
        int
            Offset of the first.

        Raises
        ------
        OSError
            The disk refuses; nothing changes.
        """
        views = [memoryview(blob).cast("B") for blob in blobs if len(blob)]
        total = sum(view.nbytes for view in views)
        start = self._appended
        try:
            done = 0
            if self._direct.takes(self.path, total):
                done = min(total, self._direct.write(views, start))
            while done < total:
                done += os.pwritev(self._fd, _rest(views, done), start + done)
            os.fdatasync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):  # give back what was taken
                os.ftruncate(self._fd, start)
            raise
        self._appended = start + _aligned(total)
        return start

    def keep(self) -> None:
        """The transaction that names what was appended is about to be committed: from now on it may be there."""
        self._end = self._appended

    def forget(self) -> None:
        """What was appended since `keep` is not wanted. Nothing may be appended meanwhile."""
        self._appended = self._end

    def supersede(self, extents: Iterable[Extent]) -> None:
        """Nobody who looks from now on will want these bytes."""
        self._superseded.extend(extents)

    def __len__(self) -> int:
        """How many extents wait to be given back."""
        return len(self._superseded)

    def give_back(self, count: int) -> None:
        """Make holes of the oldest `count` superseded extents, which no reader can want any more.

        Raises
        ------
        OSError
            If the disk fails. A file system that knows no holes is not an error: the room is lost.
        """
        with self._guard:
            if self._fd >= 0:
                self._punch(sorted(self._superseded.popleft() for _ in range(count)))

    def give_back_rest(self, used: Iterable[Extent]) -> None:
        """Make holes of everything but what is used, given by rising offset; for when nobody reads.

        Raises
        ------
        OSError
            If the disk fails.
        """
        with self._guard:
            unused, at = [], 0
            for extent in used:
                if extent.offset > at:
                    unused.append(Extent(at, extent.offset - at))
                at = max(at, extent.offset + extent.nbytes)
            if self._end > at:
                unused.append(Extent(at, self._end - at))
            self._superseded.clear()
            self._punch(unused)
            if os.fstat(self._fd).st_size > self._end:  # of a transaction that failed
                os.ftruncate(self._fd, self._end)

    def _punch(self, extents: Sequence[Extent]) -> None:
        """Make holes of the whole blocks within extents, which are sorted."""
        start, end = 0, 0
        for offset, nbytes in [*extents, Extent(1 << 62, 0)]:
            if offset > end:  # else it goes on where the last one ended
                first, last = _aligned(start), end - end % ALIGNMENT
                if first < last and not _make_hole(self._fd, first, last - first):
                    return
                start = offset
            end = offset + nbytes

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._direct.close()
        with self._guard:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1


class TileFileReader:
    """The file, open for reading; for any number of threads.

    Parameters
    ----------
    path : Path

    Raises
    ------
    StoreDamagedError
        If it is not there.
    OSError
        If it cannot be opened for another reason.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise StoreDamagedError(
                f"the tiles of the run, {path}, are missing; `tilecast rebuild` makes them anew from the run's journal"
            ) from error

    def read(self, extent: Extent) -> bytes:
        """The bytes of an extent.

        Raises
        ------
        StoreDamagedError
            If the file is too short.
        OSError
            If the disk fails.
        """
        if not extent.nbytes:
            return b""
        if extent.offset < 0 or extent.nbytes < 0 or extent.offset + extent.nbytes > self.nbytes:
            raise StoreDamagedError(
                f"{self._path} is damaged: it should hold {extent.nbytes} bytes at {extent.offset}, and has "
                f"{self.nbytes} in all; `tilecast rebuild` makes it anew from the run's journal"
            )
        blob = os.pread(self._fd, extent.nbytes, extent.offset)
        while len(blob) < extent.nbytes:  # a call gives 2 GiB at most
            more = os.pread(self._fd, extent.nbytes - len(blob), extent.offset + len(blob))
            if not more:
                raise StoreError(f"{self._path} became shorter while it was read; read it again")
            blob += more
        return blob

    @property
    def nbytes(self) -> int:
        """Length of the file."""
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _aligned(nbytes: int) -> int:
    return nbytes + -nbytes % ALIGNMENT


def _rest(views: Sequence[memoryview], done: int) -> list[memoryview]:
    """What is still to be written, as much as one call takes."""
    rest = []
    for view in views:
        if done < view.nbytes:
            rest.append(view[done:])
        done = max(0, done - view.nbytes)
        if len(rest) == os.sysconf("SC_IOV_MAX"):
            break
    return rest


def _make_hole(fd: int, offset: int, nbytes: int) -> bool:
    """Give a stretch of a file back to the file system; False if it, or the system, knows no holes."""
    if _fallocate is None:
        return False
    if _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, nbytes) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number))


def _find_fallocate() -> ctypes._NamedFuncPointer | None:
    # Python has only posix_fallocate, which makes no holes.
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)
    return function


_fallocate = _find_fallocate()
