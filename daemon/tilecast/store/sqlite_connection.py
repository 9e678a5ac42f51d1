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

from tilecast.errors import StoreError, StoreTooNewError
from tilecast.store.migrations import APPLICATION_ID, SCHEMA_VERSION, schema_version
from tilecast.store.tile_store import StoreBusyError, StoreDamagedError, StoreFullError

#: Name of the tiles' file in a run's folder.
TILES_NAME = "tiles.sqlite"

# STRICT tables; RETURNING and UPSERT are older.
_OLDEST_SQLITE = (3, 37, 0)
_BUSY_S = 5.0  # how long to wait for a person's own tool that writes to the file


def database_uri(path: Path, mode: str) -> str:
    """The name by which SQLite opens a file in a mode: `ro`, `rw`, `rwc`, or `ro&immutable=1`."""
    return f"file:{urllib.parse.quote(str(path.absolute()))}?mode={mode}"


def connect(path: Path, mode: str, *, cache_kib: int, shared: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode; `shared` ones may move between threads, one user at a time."""
    connection = sqlite3.connect(
        database_uri(path, mode),
        uri=True,
        timeout=_BUSY_S,
        isolation_level=None,
        check_same_thread=not shared,
    )
    try:
        connection.execute(f"PRAGMA cache_size = {-cache_kib}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        # Some distributions build SQLite to overwrite freed pages with zeros: writes for nothing here.
        connection.execute("PRAGMA secure_delete = OFF")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def has_run(connection: sqlite3.Connection) -> bool:
    """Whether a file is a finished store; its schema comes first, the run's row last."""
    tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'run'").fetchone()[0]
    return bool(tables and connection.execute("SELECT count(*) FROM run").fetchone()[0])


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse what this program cannot read."""
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StoreError(
            f"tilecast needs SQLite {'.'.join(map(str, _OLDEST_SQLITE))} or newer; this Python has "
            f"{sqlite3.sqlite_version}. A Python from `uv python install` brings its own"
        )
    version = schema_version(connection)
    if version > SCHEMA_VERSION:
        raise StoreTooNewError(
            f"{path} has schema {version} and this tilecast knows up to {SCHEMA_VERSION}: a newer tilecast wrote it; "
            "use that one, or upgrade this one"
        )
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    n_steps = _n_steps(connection)
    if version and application != APPLICATION_ID and not n_steps:
        raise StoreError(f"{path} is an SQLite database, but not of tilecast")
    if n_steps and (version != n_steps or application != APPLICATION_ID):
        raise StoreDamagedError(
            f"{path} is damaged: its header says schema {version} of application {application:#x}, its log of steps "
            f"says {n_steps}; `tilecast fsck --repair` makes it anew from the run's journal"
        )


def _n_steps(connection: sqlite3.Connection) -> int:
    """How many steps of the schema the file's own log lists; 0 if there is no such log."""
    if not connection.execute("SELECT count(*) FROM sqlite_master WHERE name = '_sqlite_migrations'").fetchone()[0]:
        return 0
    return int(connection.execute("SELECT count(*) FROM _sqlite_migrations").fetchone()[0])


def wal_path(path: Path) -> Path:
    """The write-ahead log of a database: there while someone has it open for writing, or died while doing so."""
    return path.with_name(f"{path.name}-wal")


def write_back(path: Path, keep_bytes: int) -> None:
    """Have a database file that this process has open carried to the disk, and dropped from the page cache.

    A run of terabytes would push everything else out of memory, and on a virtual machine a page that the kernel has to
    ask the host for costs ten times one that it has just got back. Does nothing where the system has no `/proc`.

    Parameters
    ----------
    path : Path
        Under the name by which it was opened.
    keep_bytes : int
        How much of its end stays in memory, for viewers who ask for the newest tiles.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    # Through a descriptor that SQLite has: closing one of our own would drop all locks of this process on the file.
    own, folder = path.resolve(), Path("/proc/self/fd")
    for entry in folder.iterdir() if folder.exists() else ():
        try:
            if entry.readlink() != own:
                continue
            fd = int(entry.name)
            os.fdatasync(fd)
            end = os.fstat(fd).st_size - keep_bytes
            if end > 0:
                os.posix_fadvise(fd, 0, end, os.POSIX_FADV_DONTNEED)
            return
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBADF):  # a descriptor that has been closed meanwhile
                raise


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
        code = getattr(error, "sqlite_errorcode", None) or 0
        primary = code & 0xFF
        if primary == sqlite3.SQLITE_FULL:
            raise StoreFullError(
                f"could not {doing}: the disk of {path} is full; nothing of this write was kept. Free some room on "
                "it and try again"
            ) from error
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
            sqlite3.SQLITE_IOERR: "the disk failed; look at the kernel's log (dmesg), then run `tilecast fsck`",
            sqlite3.SQLITE_READONLY: "it may not be written; look at its permissions and its file system",
            sqlite3.SQLITE_CANTOPEN: "it cannot be opened; look at the permissions of the file and its folder",
            sqlite3.SQLITE_PERM: "permission was denied; look at the permissions of the file and its folder",
        }.get(primary, "run `tilecast fsck`, and if that finds nothing, report this")
        raise StoreError(f"could not {doing} ({path}): {error}; {advice}") from error
    except OverflowError as error:
        raise StoreError(f"could not {doing} ({path}): a number does not fit into 64 bits") from error
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"could not {doing} ({path}): {error.strerror or error}; look at the disk") from error
