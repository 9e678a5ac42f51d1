"""Copies a run while it goes on: what the copy shows is one moment of it, and its recording holds at least that.

No lock is needed and nobody waits. The order makes the copy consistent:

1. Tiles, in rounds. The bytes of a tile never change where they lie; they are only given back as holes once no row
   names them. So what a later row does not name may be copied as zeros, and what it names is there. Each round copies
   what has been added since the one before, until that is little.
2. The database, and the last of the tiles, within one read transaction: the moment that the copy shows. While it is
   open SQLite's log cannot be reset, and so no tile that it names can become a hole; that is why it is short.
3. The recording, afterwards. Frames are recorded before they are shown, so it holds all that the database names. First
   the indices, then the segments up to the length that they have by then: an index must not promise what is not there.

In the copy the torn end of the recording is cut off, and what no row names is a hole. A run that is open is idle there,
and marked to be loaded by the next daemon, which blends the frames that were recorded and not shown at that moment.

It is made as `<run>.partial` and gets its name when everything is on the disk; what is left by one that was killed is
removed by the next, or by the daemon (`service.deletion.finish_begun`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tilecast.errors import RunLockedError, StoreError
from tilecast.service.deletion import NOTE_NAME, partial_folder
from tilecast.service.retention import CHECKED_NAME
from tilecast.service.runs import ACTIVE_NAME, JOURNAL_NAME
from tilecast.store.folders import REBUILD_NAME
from tilecast.store.lock import LOCK_NAME, RunLock
from tilecast.store.sqlite_connection import (
    TILES_NAME,
    StoreConnection,
    explained,
    open_for_reading,
    sync_folder,
    tile_file_path,
    wal_path,
)
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_file import Extent
from tilecast.store.tile_store import StoreDamagedError
from tilecast_protocol.journal import Journal

Progress = Callable[[str, int, int], None]

_CACHE_KIB = 8 * 1024
_CHUNK_NBYTES = 8 << 20
_LITTLE_NBYTES = 64 << 20  # what may be left for the time of the transaction
_MOST_ROUNDS = 8
_NEAR_NBYTES = 64 << 10  # stretches that lie closer together are copied as one
_NICE = 10
_ATTEMPTS = 3


class ChangedError(StoreError):
    """The run was loaded, sealed or swapped while it was read: begin anew."""


class Store(NamedTuple):
    """A run's database and the file of its tiles, open for reading."""

    connection: StoreConnection
    tile_file: Path
    tile_fd: int


def copy_run(folder: Path, into: Path, *, progress: Progress = lambda *_: None) -> Path:
    """Copy a run, open or not, into another folder of runs.

    Parameters
    ----------
    folder : Path
        Of the run.
    into : Path
        The folder that will hold the copy; made if need be.
    progress : callable
        Told how far it is: stage, bytes done, bytes in all.

    Returns
    -------
    Path
        The folder of the copy.

    Raises
    ------
    StoreError
        If there is such a run already, or it cannot be read or written.
    RunLockedError
        If somebody else makes this very copy.
    """
    target, partial = into / folder.name, partial_folder(into, folder.name)
    with explained(into, "copy the run"):
        into.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise StoreError(f"there is a run {folder.name} in {into} already; choose another folder")
        for _ in range(_ATTEMPTS):
            partial.mkdir(exist_ok=True)
            try:
                with RunLock(partial) as lock:
                    empty(partial)
                    _copy_into(folder, partial, progress)
                    settle(partial, lock, "copied", {"from": str(folder)})
                    sync_tree(partial)
                    partial.rename(target)
                    sync_folder(into)
                    return target
            except ChangedError:
                continue
            except RunLockedError:
                raise  # another process makes it
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    shutil.rmtree(partial, ignore_errors=True)
    raise _changed(folder)


def settle(folder: Path, lock: RunLock, event: str, detail: dict[str, Any]) -> None:
    """Make a fresh copy of a run sound: its recording ends with a whole record, its store is closed in good order.

    A run that was open is idle there: whoever sends it sends it elsewhere.

    Raises
    ------
    StoreError, JournalError
        If it is damaged.
    """
    if (folder / JOURNAL_NAME).is_dir():
        Journal.open(folder / JOURNAL_NAME).close()
    if (folder / TILES_NAME).exists():
        with SqliteStore.open(folder, lock=lock) as store:
            was_open = store.info().state == "open"
            if was_open:
                store.set_state("idle")
            store.add_event(event, detail)
        if was_open and (folder / JOURNAL_NAME).is_dir():
            # As after a crash: a daemon that finds it here blends what was recorded and not shown yet.
            (folder / ACTIVE_NAME).touch()


@contextlib.contextmanager
def reading_store(folder: Path) -> Iterator[Store | None]:
    """A run's store, open for reading, whoever writes it; None if it has none.

    Raises
    ------
    ChangedError
        At the end, if somebody has begun to write it, and what was read may be of two moments.
    StoreError
        If it cannot be read.
    """
    path = folder / TILES_NAME
    if not path.exists():
        yield None
        return
    before = _as_it_lies(path)
    with contextlib.ExitStack() as last, explained(path, "read it"):
        is_closed = before is not None
        connection = open_for_reading(path, as_it_lies=is_closed, cache_kib=_CACHE_KIB)
        last.callback(connection.close)
        tile_file = tile_file_path(connection, folder)
        try:
            tile_fd = os.open(tile_file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise StoreDamagedError(f"the tiles of the run, {tile_file}, are missing; see `tilecast fsck`") from error
        last.callback(os.close, tile_fd)
        yield Store(connection, tile_file, tile_fd)
        if is_closed and _as_it_lies(path) != before:
            raise _changed(folder)


def _as_it_lies(path: Path) -> tuple[int, int, int] | None:
    """What tells whether a closed database has been written to; None if it is open."""
    if wal_path(path).exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _changed(folder: Path) -> ChangedError:
    return ChangedError(f"the run in {folder} was changed while it was read; try again")


def named_extents(connection: sqlite3.Connection, since: int = 0) -> Iterator[Extent]:
    """The stretches of the file of tiles that rows name from an offset on, near ones as one, by rising offset."""
    first = last = -1
    for offset, nbytes in connection.execute(
        "SELECT offset, nbytes FROM tiles WHERE offset >= ? ORDER BY offset", (since,)
    ):
        if first >= 0 and offset - last > _NEAR_NBYTES:
            yield Extent(first, last - first)
            first = offset
        elif first < 0:
            first = offset
        last = max(last, offset + nbytes)
    if first >= 0:
        yield Extent(first, last - first)


def back_up(connection: sqlite3.Connection, path: Path) -> None:
    """Write what a connection sees as a database of its own; within a transaction, that of the transaction."""
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as copy:
        connection.backup(copy)


def recording_files(folder: Path) -> list[tuple[Path, int]]:
    """The files of a run's recording and how much of each to read, in the order in which to open them.

    Raises
    ------
    OSError
        If it vanishes meanwhile.
    """
    journal = folder / JOURNAL_NAME
    if not journal.is_dir():
        return []
    segments = sorted(journal.glob("*.tcj"))
    indices = [path for segment in segments if (path := segment.with_suffix(".tci")).exists()]
    return [(path, path.stat().st_size) for path in (*indices, *segments)]


def other_files(folder: Path) -> list[Path]:
    """What lies in a run's folder beside its store and its recording: what was frozen, and what people put there."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).parts[0]
        is_ours = name in (LOCK_NAME, ACTIVE_NAME, CHECKED_NAME, NOTE_NAME, JOURNAL_NAME) or name.startswith(
            (TILES_NAME, "journal.", "tiles-", REBUILD_NAME)
        )
        if not is_ours and path.suffix != ".new" and path.is_file() and not path.is_symlink():
            found.append(path)
    return found


def _copy_into(folder: Path, partial: Path, progress: Progress) -> None:
    with reading_store(folder) as store:
        state = "" if store is None else _copy_store(store, partial, progress)
        try:
            _copy_recording(folder, partial, progress)
        except FileNotFoundError:
            raise _changed(folder) from None
        if state not in ("", "sealed") and not (partial / JOURNAL_NAME).is_dir():
            raise _changed(folder)  # sealed since
    if not state and not (partial / JOURNAL_NAME).is_dir():
        raise StoreError(f"there is nothing of a run in {folder}")
    for path in other_files(folder):
        target = partial / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def _copy_store(store: Store, partial: Path, progress: Progress) -> str:
    """The tiles and the database, as they are at one moment; the state of the run then."""
    connection, tile_file, tile_fd = store
    fd = os.open(partial / tile_file.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        upto = 0
        for _ in range(_MOST_ROUNDS):
            copied, upto = _copy_tiles(list(named_extents(connection, upto)), upto, tile_fd, fd, progress)
            if copied < _LITTLE_NBYTES:
                break
        connection.execute("BEGIN")
        try:
            (state,) = connection.execute("SELECT state FROM run").fetchone()
            _copy_tiles(list(named_extents(connection, upto)), upto, tile_fd, fd, progress)
            back_up(connection, partial / TILES_NAME)
        finally:
            connection.execute("ROLLBACK")
        os.fsync(fd)
    finally:
        os.close(fd)
    return str(state)


def _copy_tiles(extents: list[Extent], upto: int, source: int, target: int, progress: Progress) -> tuple[int, int]:
    """Copy stretches of tiles; how many bytes that were, and where the last ends."""
    total, done = sum(extent.nbytes for extent in extents), 0
    for offset, nbytes in extents:
        for first, count in chunks_of(Extent(offset, nbytes)):
            copy_bytes(source, target, first, count)
            done += count
            progress("tiles", done, total)
        upto = max(upto, offset + nbytes)
    return total, upto


def _copy_recording(folder: Path, partial: Path, progress: Progress) -> None:
    with contextlib.ExitStack() as last:
        files = []
        for path, _ in recording_files(folder):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # all before the first is read: they may be deleted soon
            last.callback(os.close, fd)
            files.append((path.name, fd, os.fstat(fd).st_size))
        if not files:
            return
        (partial / JOURNAL_NAME).mkdir()
        total, done = sum(size for _, _, size in files), 0
        for name, fd, size in files:
            target = os.open(partial / JOURNAL_NAME / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                for first, count in chunks_of(Extent(0, size)):
                    copy_bytes(fd, target, first, count)
                    done += count
                    progress("recording", done, total)
                os.fsync(target)
            finally:
                os.close(target)


def chunks_of(extent: Extent) -> Iterator[Extent]:
    """A stretch in pieces that are not too large."""
    end = extent.offset + extent.nbytes
    for offset in range(extent.offset, end, _CHUNK_NBYTES):
        yield Extent(offset, min(_CHUNK_NBYTES, end - offset))


def copy_bytes(source: int, target: int, offset: int, nbytes: int) -> None:
    """Copy a stretch from one open file to the same place in another; StoreError if there is less."""
    done = 0
    while done < nbytes:
        data = os.pread(source, nbytes - done, offset + done)
        if not data:
            raise StoreError(f"a file of the run became shorter while it was copied, at {offset + done}; try again")
        written = 0
        while written < len(data):
            written += os.pwrite(target, data[written:] if written else data, offset + done + written)
        done += len(data)
    # What is read once shall not push out what viewers look at.
    os.posix_fadvise(source, offset, nbytes, os.POSIX_FADV_DONTNEED)


def empty(folder: Path) -> None:
    """Remove everything in a folder but its lock."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_NAME:
            path.unlink()


def sync_tree(folder: Path) -> None:
    """Have everything in a folder survive a power failure."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    sync_folder(folder)


def step_back() -> None:
    """Let everything else on this machine go first: the acquisition does not wait for a copy."""
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    with contextlib.suppress(psutil.Error, OSError, AttributeError):
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
