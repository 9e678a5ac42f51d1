"""Run folders: how they are named and found, and how a rebuilt tiles' file takes the place of the old one.

A run lives in ``<store.path>/<run>/``, its UUID in lower case, so that nothing that comes in a message can become a
path. In it lie ``tiles.sqlite`` (and, while it is open, ``tiles.sqlite-wal`` and ``-shm``), the bytes of its tiles in
``tiles-….bin``, which it names, the journal, and ``lock``.

A rebuild writes another database, ``tiles.sqlite.rebuild``, with the same `SqliteStore` and a file of tiles of its own,
and `swap_in` puts it in place by one rename: at every instant there is one complete ``tiles.sqlite``, and a rebuild
that is killed leaves the old one as it was. To viewers the whole rebuild is one commit: the epoch rises by 1, the rev
too, and every tile carries it.

This module does not know what is in a journal, or how tiles are computed.

>>> from tilecast.store.folders import list_runs
>>> list_runs("/nonexistent")
[]
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tilecast.errors import StoreError, StoreOutdatedError
from tilecast.store.lock import RunLock, holder
from tilecast.store.sqlite_connection import TILES_NAME, explained, sync_folder, wal_path
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_file import disk_nbytes
from tilecast.store.tile_store import CommitResult, RunInfo, StoreDamagedError, StoreUnfinishedError, check_run_id

#: Name under which a rebuild builds.
REBUILD_NAME = "tiles.sqlite.rebuild"

_SIDES = ("-wal", "-shm")  # what SQLite keeps beside a database
_STATES = frozenset({"open", "idle", "ended", "sealed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRun:
    """A run's folder, as `list_runs` found it.

    Attributes
    ----------
    run : str
        Its UUID, from the folder's name.
    folder : Path
    info : RunInfo or None
        Its metadata, unless the store cannot be read.
    error : str
        Why it cannot, and what to do; empty if it can.
    making : bool
        It cannot be read because it is being made this moment.
    outdated : bool
        It cannot be read until it has been brought up to date: an older tilecast wrote it.
    """

    run: str
    folder: Path
    info: RunInfo | None
    error: str
    making: bool = False
    outdated: bool = False


def run_folder(root: str | os.PathLike[str], run: str) -> Path:
    """Where a run lives, or will.

    Raises
    ------
    StoreError
        If `run` is not a UUID in lower case.
    """
    check_run_id(run)
    return Path(root) / run


def list_runs(root: str | os.PathLike[str]) -> list[FoundRun]:
    """All runs of a store, oldest first; ruined ones, which have no date, at the end.

    Reads one row or two per run, whatever its size. What cannot be read is reported in its place and keeps nobody
    from reading the others. Folders that are not named by a UUID are none of ours, and passed over.
    """
    return RunList(root).runs()


class RunList:
    """The runs of a store, for a program that asks for them again and again: a run is read anew only when it changed.

    Whether it did is seen from its files, without opening them. Files that were written a moment ago are not trusted:
    they may be written again within the same tick of the file system's clock.

    Safe between threads.

    Parameters
    ----------
    root : path
        The folder of the runs.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = Path(root)
        self._known: dict[str, tuple[_Stamp, FoundRun]] = {}

    def runs(self) -> list[FoundRun]:
        """As `list_runs` finds them at this moment."""
        found, known = [], {}
        with explained(self._root, "list the runs"):
            folders = sorted(self._root.iterdir()) if self._root.exists() else []
        for folder in folders:
            try:
                check_run_id(folder.name)
            except StoreError:
                continue
            stamp = _stamp_of(folder)
            before = self._known.get(folder.name)
            one = before[1] if before is not None and before[0] == stamp else look_into(folder)
            # One that cannot be read may be readable the next time though none of its files has changed.
            if one.info is not None and time.time_ns() - max(written_ns for *_, written_ns in stamp) > _SETTLED_NS:
                known[folder.name] = stamp, one
            found.append(one)
        self._known = known
        return sorted(found, key=lambda entry: (entry.info is None, 0 if entry.info is None else entry.info.created_ns))


_Stamp = tuple[tuple[int, int, int], ...]
_SETTLED_NS = 1_000_000_000  # clocks of file systems tick at least as often


def _stamp_of(folder: Path) -> _Stamp:
    """What differs once a run's database has been written: inode, size and time of it and of its log."""
    stamp = []
    for path in (folder / TILES_NAME, wal_path(folder / TILES_NAME)):
        try:
            status = path.stat()
        except OSError:
            stamp.append((0, 0, 0))
        else:
            stamp.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(stamp)


def look_into(folder: Path) -> FoundRun:
    """What the folder of a run says of itself, whatever state it is in."""
    try:
        with SqliteReader(folder) as reader:
            info = reader.info()
    except StoreDamagedError as error:
        if writer := holder(folder):
            text = f"its mosaic is being made, by {writer}; look again in a moment"
            return FoundRun(run=folder.name, folder=folder, info=None, error=text, making=True)
        return FoundRun(run=folder.name, folder=folder, info=None, error=str(error))
    except StoreError as error:
        outdated = isinstance(error, StoreOutdatedError)
        return FoundRun(run=folder.name, folder=folder, info=None, error=str(error), outdated=outdated)
    misnamed = "" if info.run == folder.name else f"{folder} holds the run {info.run}; rename it to that"
    return FoundRun(run=folder.name, folder=folder, info=info, error=misnamed)


def bring_up_to_date(root: str | os.PathLike[str]) -> Iterator[tuple[str, StoreError | None]]:
    """Open every run that an older tilecast wrote for writing once, which takes the steps that its schema lacks.

    A program that is killed meanwhile leaves each of them as it was, or up to date.

    Yields
    ------
    (str, StoreError or None)
        The run, and what kept it from being brought up to date.
    """
    for found in list_runs(root):
        if found.outdated:
            try:
                with RunLock(found.folder) as lock:
                    SqliteStore.open(found.folder, lock=lock).close()
                    discard(found.folder, lock=lock)  # and what an attempt that was killed has left behind
            except StoreError as error:
                yield found.run, error
            else:
                yield found.run, None


def folder_nbytes(folder: str | os.PathLike[str]) -> int:
    """Room that a run takes: tiles, journal, and what else lies there; files that vanish meanwhile count 0."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += disk_nbytes(Path(parent, name))
    return total


def discard(folder: str | os.PathLike[str], file_name: str = REBUILD_NAME, *, lock: RunLock) -> None:
    """Delete a tiles' file that nobody has open, such as what a killed rebuild left behind.

    Raises
    ------
    StoreError
        If it cannot be deleted, or `lock` is not of this folder.
    """
    _check_lock(folder, lock)
    with explained(Path(folder) / file_name, "delete it"):
        for suffix in ("", *_SIDES):
            Path(folder, file_name + suffix).unlink(missing_ok=True)
        for stray in stray_tile_files(folder):
            stray.unlink(missing_ok=True)


def stray_tile_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Files of tiles that no database of the folder names: left behind where a program was killed.

    While a database of the folder cannot be read there are none: it may be that one's.
    """
    named = set()
    for path in Path(folder).glob(f"{TILES_NAME}*"):
        if not path.name.endswith(_SIDES):
            name = _tile_file_of(path)
            if name is None and ".damaged-" not in path.name:
                return []
            named.add(name)
    return [path for path in sorted(Path(folder).glob("tiles-*.bin")) if path.name not in named]


def _tile_file_of(path: Path) -> str | None:
    """The name of the file with the tiles of a database; None if it does not say, or cannot be read."""
    try:
        with SqliteReader(path.parent, file_name=path.name) as reader:
            return reader.tile_file_path().name
    except StoreUnfinishedError:
        return ""
    except StoreError:
        return None


def swap_in(
    folder: str | os.PathLike[str],
    new_name: str = REBUILD_NAME,
    *,
    lock: RunLock,
    reason: str = "rebuilt",
    old_is_damaged: bool = False,
    clock_ns: Callable[[], int] = time.time_ns,
) -> CommitResult:
    """Put a rebuilt store in the place of the old one, atomically.

    The new store takes over what the old one knows of the run's life (name, state, log, reports, history of commits,
    age), and gives all its tiles and placements the rev after the old store's last, under the next epoch. If the old
    store is missing or ruined, its epoch cannot be known; then the new one is the time in seconds, which is larger
    than any that was counted, and the ruined file is set aside (`set_aside`).

    Parameters
    ----------
    folder : path
        The run's folder.
    new_name : str
        The file to be put in place, closed.
    lock : RunLock
        The right to write the folder. Both stores must be closed; readers may go on reading: their next call sees
        the new store. No other program may have the old file open for *writing* (SQLite would not notice the swap).
    reason : str
        For the run's log.
    old_is_damaged : bool
        The old store can be opened and is damaged all the same: it is not written to, what can be read of the run's
        life (name, log, reports) is carried over piece by piece, and it is set aside.

    Returns
    -------
    CommitResult
        What to announce.

    Raises
    ------
    StoreError
        If either file is in use, or the swap fails; the old store then stays in place.
    StoreTooNewError
        If a newer tilecast wrote the old store.
    """
    _check_lock(folder, lock)
    path, new_path = Path(folder) / TILES_NAME, Path(folder) / new_name
    old: Path | None = None if old_is_damaged else path
    if old is not None:
        try:
            # Brings an older schema up to date, raises the epoch if need be, and carries the log over into the file.
            SqliteStore.open(folder, lock=lock, clock_ns=clock_ns).close()
            _drop_log(path)
        except StoreDamagedError:
            old = None
    with SqliteStore.open(folder, file_name=new_name, lock=lock, clock_ns=clock_ns) as store:
        result = store.succeed(old, reason)
        if old_is_damaged:
            _carry_over(Path(folder), store)
    _drop_log(new_path)
    if old is not None:
        _drop_log(path)
    with explained(path, "put the rebuilt store in its place"):
        if old is None:
            set_aside(folder, lock=lock, clock_ns=clock_ns)
        new_path.rename(path)
        sync_folder(Path(folder))
        for stray in stray_tile_files(folder):
            stray.unlink(missing_ok=True)
    return result


def set_aside(
    folder: str | os.PathLike[str], *, lock: RunLock, clock_ns: Callable[[], int] = time.time_ns
) -> Path | None:
    """Rename a ruined store to `tiles.sqlite.damaged-<UTC>`: it may yet tell somebody something.

    Returns
    -------
    Path or None
        Where it is now; None if there was none.

    Raises
    ------
    StoreError
        If it cannot be renamed, or `lock` is not of this folder.
    """
    _check_lock(folder, lock)
    path = Path(folder) / TILES_NAME
    moment = datetime.datetime.fromtimestamp(clock_ns() / 1e9, datetime.UTC)
    name = f"{TILES_NAME}.damaged-{moment:%Y%m%dT%H%M%S}"
    number = sum(other.name.startswith(name) and not other.name.endswith(_SIDES) for other in Path(folder).iterdir())
    aside = path.with_name(f"{name}-{number}" if number else name)
    found = None
    with explained(path, "set it aside"):
        for suffix in (*_SIDES, ""):
            with contextlib.suppress(FileNotFoundError):
                found = path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
        for stray in stray_tile_files(folder):
            stray.rename(stray.with_name(aside.name.replace(TILES_NAME, stray.name, 1)))
        sync_folder(Path(folder))
    return found if found == aside else None


def _carry_over(folder: Path, store: SqliteStore) -> None:
    """Take what can still be read of a run's life from its damaged store into the one that follows it."""
    with contextlib.suppress(StoreError, ValueError), SqliteReader(folder) as reader:
        info = reader.info()
        if info.name != store.info().name:
            store.rename(info.name)
        if info.state in _STATES:
            store.set_state(info.state)
        with contextlib.suppress(StoreError, ValueError):
            for revision, report in reader.reports().items():
                store.set_report(revision, report)
        for event in reader.events():
            store.add_event(event.name, event.detail, t_ns=event.t_ns)


def _drop_log(path: Path) -> None:
    """Delete the log of a closed database, which must be empty: it would be taken for that of the file renamed here."""
    with explained(path, "put the rebuilt store in its place"):
        wal = wal_path(path)
        if wal.exists() and wal.stat().st_size > 0:
            raise StoreError(f"{path} is still being read; close what reads it, or try again in a moment")
        wal.unlink(missing_ok=True)
        path.with_name(path.name + "-shm").unlink(missing_ok=True)


def _check_lock(folder: str | os.PathLike[str], lock: RunLock) -> None:
    if not lock.held or not lock.folder.samefile(folder):
        raise StoreError(f"writing in {folder} needs the lock of that folder, held")
