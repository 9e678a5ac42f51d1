"""Connections to a run's SQLite file: how they are opened, and what their errors mean to a person.

Shared by the writer, the readers and the folder functions; it knows no table but the one that tells whether a file is
a finished store at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from tilecast.errors import StoreError, StoreOutdatedError, StoreTooNewError
from tilecast.store.migrations import APPLICATION_ID, SCHEMA_VERSION, schema_version
from tilecast.store.tile_file import TileFileReader, is_name
from tilecast.store.tile_store import StoreBusyError, StoreDamagedError, StoreFullError, StoreUnfinishedError

#: Name of the tiles' file in a run's folder.
TILES_NAME = "tiles.sqlite"

# The operator ->>; STRICT tables are older.
_OLDEST_SQLITE = (3, 38, 0)
_DISK_FAILED = "the disk failed; look at the kernel's log (dmesg), then run `tilecast fsck`"
_READ_ONLY = "it may not be written; look at its permissions and its file system"
_BUSY_S = 5.0  # how long to wait for a person's own tool that writes to the file


def database_uri(path: Path, mode: str) -> str:
    """The name by which SQLite opens a file in a mode: `ro`, `rw`, `rwc`, or `ro&immutable=1`."""
    return f"file:{urllib.parse.quote(str(path.absolute()))}?mode={mode}"


class StoreConnection(sqlite3.Connection):
    """A connection, and with it the file of tiles that its database names, opened when first read."""

    folder: Path
    _tile_file: TileFileReader | None = None

    @property
    def tile_file(self) -> TileFileReader:
        """The file of tiles.

        Raises
        ------
        StoreDamagedError
            If it is not there.
        """
        if self._tile_file is None:
            self._tile_file = TileFileReader(tile_file_path(self, self.folder))
        return self._tile_file

    def close(self) -> None:
        if self._tile_file is not None:
            self._tile_file.close()
        super().close()


def connect(path: Path, mode: str, *, cache_kib: int, shared: bool = False) -> StoreConnection:
    """A connection in autocommit mode; `shared` ones may move between threads, one user at a time."""
    connection = sqlite3.connect(
        database_uri(path, mode),
        uri=True,
        timeout=_BUSY_S,
        isolation_level=None,
        check_same_thread=not shared,
        factory=StoreConnection,
    )
    connection.folder = path.parent
    try:
        connection.execute(f"PRAGMA cache_size = {-cache_kib}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        # Some distributions build SQLite to overwrite freed pages with zeros: writes for nothing here.
        connection.execute("PRAGMA secure_delete = OFF")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def open_for_reading(path: Path, *, as_it_lies: bool, cache_kib: int, shared: bool = False) -> StoreConnection:
    """A connection to a finished store, which cannot write.

    Parameters
    ----------
    path : Path
    as_it_lies : bool
        Nobody writes it, and there is no log beside it: SQLite need not make one to read it.
    cache_kib, shared
        As of `connect`.

    Raises
    ------
    StoreUnfinishedError
        If it is being made, or the making of it was cut short.
    StoreError
        If this program cannot read it.
    """
    connection = connect(path, "ro&immutable=1" if as_it_lies else "ro", cache_kib=cache_kib, shared=shared)
    try:
        check_version(connection, path, for_reading=True)
        if not has_run(connection):
            raise unfinished(path)
    except BaseException:
        connection.close()
        raise
    return connection


def unfinished(path: Path) -> StoreUnfinishedError:
    """What to say of a store without its run."""
    return StoreUnfinishedError(
        f"{path} holds no run: it is being made, or its making was cut short; `tilecast rebuild` makes it anew"
    )


def tile_file_path(connection: sqlite3.Connection, folder: Path) -> Path:
    """Where the tiles of a database are.

    Raises
    ------
    StoreDamagedError
        If it names no such file.
    """
    name: str = connection.execute("SELECT tile_file FROM run").fetchone()[0]
    if not is_name(name):
        raise StoreDamagedError(f"the store in {folder} is damaged: it says that its tiles lie in {name!r}")
    return folder / name


def has_run(connection: sqlite3.Connection) -> bool:
    """Whether a file is a finished store; its schema comes first, the run's row last."""
    tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'run'").fetchone()[0]
    return bool(tables and connection.execute("SELECT count(*) FROM run").fetchone()[0])


def check_version(connection: sqlite3.Connection, path: Path, *, for_reading: bool = False) -> None:
    """Refuse what this program cannot read, or cannot bring up to date."""
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StoreError(
            f"tilecast needs SQLite {'.'.join(map(str, _OLDEST_SQLITE))} or newer; this Python has "
            f"{sqlite3.sqlite_version}. A Python from `uv python install` brings its own"
        )
    # All from one state of the file: another process may be making it, step by step.
    begins = not connection.in_transaction
    if begins:
        connection.execute("BEGIN")
    try:
        version, n_steps = schema_version(connection), _n_steps(connection)
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        is_outdated = for_reading and 0 < version < SCHEMA_VERSION and has_run(connection)
    finally:
        if begins and connection.in_transaction:
            connection.execute("COMMIT")
    if version > SCHEMA_VERSION:
        raise StoreTooNewError(
            f"{path} has schema {version} and this tilecast knows up to {SCHEMA_VERSION}: a newer tilecast wrote it; "
            "use that one, or upgrade this one"
        )
    if version and application != APPLICATION_ID and not n_steps:
        raise StoreError(f"{path} is an SQLite database, but not of tilecast")
    if n_steps and (version != n_steps or application != APPLICATION_ID):
        raise StoreDamagedError(
            f"{path} is damaged: its header says schema {version} of application {application:#x}, its log of steps "
            f"says {n_steps}; `tilecast fsck --repair` makes it anew from the run's journal"
        )
    if is_outdated:
        raise StoreOutdatedError(
            f"an older tilecast wrote {path} (schema {version} of {SCHEMA_VERSION}); `tilecast run` brings all runs of "
            "its store up to date when it starts"
        )


def _n_steps(connection: sqlite3.Connection) -> int:
    """How many steps of the schema the file's own log lists; 0 if there is no such log."""
    if not connection.execute("SELECT count(*) FROM sqlite_master WHERE name = '_sqlite_migrations'").fetchone()[0]:
        return 0
    return int(connection.execute("SELECT count(*) FROM _sqlite_migrations").fetchone()[0])


def wal_path(path: Path) -> Path:
    """The write-ahead log of a database: there while someone has it open for writing, or died while doing so."""
    return path.with_name(f"{path.name}-wal")


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power failure.

    Raises
    ------
    OSError
        If the system cannot.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn SQLite's and the system's errors into ones that say what to do."""
    try:
        yield
    except sqlite3.Error as error:
        primary = _sqlite_code(error)
        if primary == sqlite3.SQLITE_FULL:
            raise StoreFullError(_full(path, doing)) from error
        if primary == sqlite3.SQLITE_BUSY:
            raise StoreBusyError(
                f"could not {doing} ({path}): {error}; another program keeps a write lock on the file; close it and "
                "try again"
            ) from error
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise StoreDamagedError(
                f"could not {doing}: {path} is damaged ({error}); run `tilecast fsck` to see how badly, and "
                "`tilecast rebuild` to make it anew from the run's journal"
            ) from error
        advice = {
            sqlite3.SQLITE_IOERR: _DISK_FAILED,
            sqlite3.SQLITE_READONLY: _READ_ONLY,
            sqlite3.SQLITE_CANTOPEN: "it cannot be opened; look at the permissions of the file and its folder",
            sqlite3.SQLITE_PERM: "permission was denied; look at the permissions of the file and its folder",
        }.get(primary, "run `tilecast fsck`, and if that finds nothing, report this")
        raise StoreError(f"could not {doing} ({path}): {error}; {advice}") from error
    except OverflowError as error:
        raise StoreError(f"could not {doing} ({path}): a number does not fit into 64 bits") from error
    except StoreError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFullError(_full(path, doing)) from error
        advice = {
            errno.EIO: _DISK_FAILED,
            errno.EROFS: _READ_ONLY,
        }.get(error.errno or 0, "look at the disk")
        raise StoreError(f"could not {doing} ({path}): {error.strerror or error}; {advice}") from error


def _full(path: Path, doing: str) -> str:
    return (
        f"could not {doing}: the disk of {path} is full; nothing of this write was kept. Free some room on it and try "
        "again"
    )


def failed_disk(error: BaseException) -> bool:
    """Whether an error of this package came from a disk that fails."""
    cause = error.__cause__
    return _sqlite_code(cause) == sqlite3.SQLITE_IOERR or getattr(cause, "errno", None) == errno.EIO


def read_only_disk(error: BaseException) -> bool:
    """Whether an error of this package came from a file system that may not be written."""
    cause = error.__cause__
    return _sqlite_code(cause) == sqlite3.SQLITE_READONLY or getattr(cause, "errno", None) == errno.EROFS


def _sqlite_code(error: BaseException | None) -> int:
    """What SQLite calls an error; 0 if it is another."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
