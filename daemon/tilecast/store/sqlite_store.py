"""The tile store, an SQLite database and a file of tiles beside it: the writer, for one thread.

The queries are in `tilecast.store.sqlite_reader`, the schema in `tilecast.store.migrations`; here is what writes. It
does not know pixels, PZF, the journal, or when to commit.

How it is used, and why it is as it is:

* `SqliteStore` holds the one writing connection of a run. The thread that opened it is the only one that may call it
  (SQLite's binding checks this); `checkpointer` and `path` are the exceptions, usable from anywhere. A commit is one
  transaction. It reads ``rev`` and ``epoch`` from the file each time and keeps nothing in memory that a failed commit
  would have to take back.
* WAL mode with ``synchronous = NORMAL``: a commit does not wait for the disk, and survives the death of the process. A
  power failure may take the last commits with it; they are rebuilt from the journal, but viewers may have been told of
  them. So opening a run that was not closed, under another boot of the kernel than it was opened under, raises the
  epoch. The note of that boot is itself synced to disk before the first commit.
* The database keeps where tiles are, not their bytes: those lie in `tilecast.store.tile_file`, and are on the disk
  before the transaction that names them.

>>> import tempfile
>>> from tilecast.geometry import PlaneKey, TileKey
>>> from tilecast.store.sqlite_reader import SqliteReader
>>> from tilecast.store.tile_store import Commit, NewRun, TileRow
>>> new = NewRun(run="0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55", name="liver 3", instrument="scope", stream="cam0",
...              start=b"", settings={"tile_size": 256})
>>> with tempfile.TemporaryDirectory() as folder:
...     with SqliteStore.create(folder, new) as store:
...         result = store.commit(Commit(tiles=[TileRow(PlaneKey(), TileKey(0, -1, 4), b"PZF bytes")], levels=1))
...     with SqliteReader(folder) as reader:
...         result.rev, reader.tile(PlaneKey(), TileKey(0, -1, 4)).pzf
(1, b'PZF bytes')
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from tilecast.errors import StoreError
from tilecast.geometry import Canvas, PlaneKey
from tilecast.store.checkpointer import WAL_LIMIT_BYTES, Checkpointer
from tilecast.store.lock import RunLock
from tilecast.store.migrations import SCHEMA_VERSION, migrate, schema_version
from tilecast.store.sqlite_connection import (
    TILES_NAME,
    StoreConnection,
    check_version,
    connect,
    database_uri,
    explained,
    has_run,
    sync_folder,
    tile_file_path,
    unfinished,
)
from tilecast.store.sqlite_reader import SqliteReads, heads, plane_number
from tilecast.store.tile_file import Extent, TileFile, blob_crc32, new_name
from tilecast.store.tile_store import (
    Commit,
    CommitResult,
    NewRun,
    Registration,
    StoreDamagedError,
    TileRow,
    TileStore,
    check_commit,
    check_new_run,
    unpack_start,
)

_CACHE_KIB = 8 * 1024
_CHECKPOINTER_CACHE_KIB = 1024
_CLOSING_MS = 1000  # how long closing waits for readers
# What a commit writes to the log, about: per tile its share of the pages of two indices, and the pages that all touch.
_LOG_NBYTES_PER_TILE = 2048
_LOG_NBYTES_PER_COMMIT = 64 * 1024

_T = TypeVar("_T")


class SqliteStore(SqliteReads, TileStore):
    """The writer of one run; made by `create` or `open`, used by the thread that called them.

    Attributes
    ----------
    checkpointer : Checkpointer
        Keeps the log short meanwhile; may be asked for its `stats`, or to `settle`, from any thread.
    """

    def __init__(
        self,
        path: Path,
        connection: StoreConnection,
        tile_file: TileFile,
        lock: RunLock,
        *,
        is_tidy: bool,
        owns_lock: bool,
        wal_limit_bytes: int,
        clock_ns: Callable[[], int],
    ) -> None:
        self._path = path
        self._connection: StoreConnection | None = connection
        self._tile_file = tile_file
        self._is_tidy = is_tidy
        self._lock = lock
        self._owns_lock = owns_lock
        self._clock_ns = clock_ns
        self._thread = threading.get_ident()
        self.checkpointer = Checkpointer(
            lambda: connect(path, "rw", cache_kib=_CHECKPOINTER_CACHE_KIB),
            page_nbytes=connection.execute("PRAGMA page_size").fetchone()[0],
            superseded=tile_file,
            limit_bytes=wal_limit_bytes,
            name=f"checkpointer {path.parent.name[:8]}",
        )

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        new: NewRun,
        *,
        file_name: str = TILES_NAME,
        lock: RunLock | None = None,
        wal_limit_bytes: int = WAL_LIMIT_BYTES,
        clock_ns: Callable[[], int] = time.time_ns,
        boot_id: str | None = None,
    ) -> Self:
        """Make the store of a new run; one whose making was cut short is finished.

        Parameters
        ----------
        folder : path
            The run's folder; made if need be.
        new : NewRun
            What the run is.
        file_name : str
            `tiles.sqlite`, or another name to build beside it (`tilecast.store.folders.swap_in`).
        lock : RunLock, optional
            The right to write the folder, where the caller has it already, and keeps it; else the store takes it,
            and gives it back when closed.
        wal_limit_bytes : int
            How long the write-ahead log may become before commits wait for it.
        clock_ns : callable
            UTC in nanoseconds.
        boot_id : str, optional
            Tells one boot of the kernel from the next; asked of the kernel by default.

        Raises
        ------
        StoreError
            If there is a store already, or it cannot be made.
        RunLockedError
            If another process writes the run.
        """
        check_new_run(new)
        with explained(Path(folder), "make the run's folder"):
            Path(folder).mkdir(parents=True, exist_ok=True)
        return cls._open(folder, new, file_name, lock, wal_limit_bytes, clock_ns, boot_id)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        file_name: str = TILES_NAME,
        lock: RunLock | None = None,
        wal_limit_bytes: int = WAL_LIMIT_BYTES,
        clock_ns: Callable[[], int] = time.time_ns,
        boot_id: str | None = None,
    ) -> Self:
        """Open the store of a known run for writing; brings an older schema up to date.

        The parameters are those of `create`.

        Raises
        ------
        StoreError
            If there is none, or it is damaged.
        StoreTooNewError
            If a newer tilecast wrote it.
        RunLockedError
            If another process writes the run.
        """
        return cls._open(folder, None, file_name, lock, wal_limit_bytes, clock_ns, boot_id)

    @classmethod
    def _open(
        cls,
        folder: str | os.PathLike[str],
        new: NewRun | None,
        file_name: str,
        lock: RunLock | None,
        wal_limit_bytes: int,
        clock_ns: Callable[[], int],
        boot_id: str | None,
    ) -> Self:
        path = Path(folder) / file_name
        with contextlib.ExitStack() as undo:
            held = lock
            if held is None:
                if not path.parent.is_dir():
                    raise StoreError(f"there is no run folder {path.parent}")
                held = RunLock(folder)
                undo.callback(held.release)
            if new is None and not path.exists():
                raise StoreDamagedError(f"there is no {path}; `tilecast rebuild` makes it anew from the run's journal")
            with explained(path, "open it for writing"):
                connection = connect(path, "rw" if new is None else "rwc", cache_kib=_CACHE_KIB)
                undo.callback(connection.close)
                check_version(connection, path)
                if new is not None and has_run(connection):
                    raise StoreError(f"{path} exists and holds a run already; open it instead")
                (journal_mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
                if journal_mode != "wal":
                    raise StoreError(f"{path} lies on a file system without shared memory; keep runs on a local disk")
                if schema_version(connection) < SCHEMA_VERSION:
                    migrate(connection)
                if new is None and not has_run(connection):
                    raise unfinished(path)
                if new is not None:
                    tile_file = TileFile(path.with_name(new_name()), create=True)
                    sync_folder(path.parent)
                else:
                    tile_file = _existing_tile_file(connection, path)
                undo.callback(tile_file.close)
                now_ns = clock_ns()
                boot = _kernel_boot_id() if boot_id is None else boot_id
                # The one write that is synced: were it lost together with the commits that follow it, the next
                # opening could not know that there had been any.
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN IMMEDIATE")
                if new is not None:
                    _insert_run(connection, new, tile_file.path.name, now_ns)
                (last_boot,) = connection.execute("SELECT boot_id FROM run").fetchone()
                if last_boot is not None and (last_boot != boot or not boot):
                    _raise_epoch(connection, "reopened after a power failure: the last commits may be missing", now_ns)
                connection.execute("UPDATE run SET boot_id = ?", (boot,))
                connection.execute("COMMIT")
                connection.execute("PRAGMA synchronous = NORMAL")
                if new is not None:
                    sync_folder(path.parent)
                    sync_folder(path.parent.parent)
                store = cls(
                    path,
                    connection,
                    tile_file,
                    held,
                    is_tidy=last_boot is None,
                    owns_lock=lock is None,
                    wal_limit_bytes=wal_limit_bytes,
                    clock_ns=clock_ns,
                )
            undo.pop_all()
            return store

    def append(self, tiles: Sequence[TileRow]) -> int:
        """Put the bytes of tiles on the disk before their commit, which is told where they are.

        Another thread than the store's may do this for the next commit, one call at a time, while one is made.

        Returns
        -------
        int
            What `commit` takes.

        Raises
        ------
        StoreFullError
            If there is no room.
        StoreError
            If the disk refuses for another reason. Nothing has changed.
        """
        with explained(self._path, "write tiles"):
            return self._tile_file.append([part for tile in tiles for part in _parts(tile)])

    def commit(self, commit: Commit, offset: int | None = None) -> CommitResult:
        """Write a commit; see `TileStore.commit`.

        Parameters
        ----------
        offset : int, optional
            Where `append` has put its tiles; if it is not given, that is done now.
        """
        check_commit(commit)
        self._open_connection()
        if offset is not None:
            return self._commit(commit, offset)
        offset = self.append(commit.tiles)
        try:
            return self._commit(commit, offset)
        except BaseException:
            self._tile_file.forget()
            raise

    def _commit(self, commit: Commit, offset: int) -> CommitResult:
        n_placements = len(commit.placements) + len(commit.removed_placements)
        with self._write("commit tiles", _LOG_NBYTES_PER_TILE * len(commit.tiles)) as connection:
            cursor = connection.cursor()
            epoch, rev, _ = heads(connection)
            rev += 1
            t_commit_ns = self._clock_ns()
            connection.execute("UPDATE run SET rev = ?, updated_ns = ?", (rev, t_commit_ns))
            if commit.new_epoch is not None:
                epoch = _raise_epoch(connection, commit.new_epoch, t_commit_ns)
            planes = _PlaneNumbers(connection)
            superseded = _write_tiles(cursor, planes, commit, rev, offset)
            n_new_placements = _write_placements(cursor, planes, commit, rev)
            for plane, box in commit.bboxes.items():
                connection.execute(
                    "UPDATE planes SET row0 = ?, col0 = ?, row1 = ?, col1 = ? WHERE id = ?", (*box, planes[plane])
                )
            for name, detail in commit.events:
                _add_event(connection, name, detail, t_commit_ns)
            connection.execute(
                "UPDATE run SET n_tiles = n_tiles + ?, n_placements = n_placements + ?,"
                " levels = coalesce(?, levels), canvas = coalesce(?, canvas),"
                " clipped_low = clipped_low + ?, clipped_high = clipped_high + ?",
                (
                    *(len(commit.tiles) - len(superseded), n_new_placements),
                    *(commit.levels, _canvas_json(commit.canvas), *commit.clipped),
                ),
            )
            connection.execute(
                "INSERT INTO commits (rev, epoch, t_recv_ns, t_commit_ns, n_tiles, n_gone, n_placements)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (rev, epoch, commit.t_recv_ns, t_commit_ns, len(commit.tiles), len(commit.gone), n_placements),
            )
            # Last of all, and whatever SQLite says next: a COMMIT that fails may be in the log all the same, and a
            # crash would bring its rows back.
            self._tile_file.keep()
            was_tidy, self._is_tidy = self._is_tidy, False
        self._is_tidy = was_tidy
        self._tile_file.supersede(superseded)
        return CommitResult(rev, epoch, t_commit_ns)

    def bump_epoch(self, reason: str) -> int:
        with self._write("raise the epoch") as connection:
            return _raise_epoch(connection, reason, self._clock_ns())

    def set_state(self, state: str) -> None:
        with self._write("note the run's state") as connection:
            connection.execute("UPDATE run SET state = ?, updated_ns = ?", (state, self._clock_ns()))

    def set_report(self, revision: int, report: Mapping[str, Any]) -> None:
        if revision < 1:
            raise StoreError(f"run reports are numbered from 1; got {revision}")
        with self._write("keep the run report") as connection:
            now_ns = self._clock_ns()
            connection.execute(
                "INSERT INTO report (revision, t_ns, report) VALUES (?, ?, ?)"
                " ON CONFLICT DO UPDATE SET t_ns = excluded.t_ns, report = excluded.report",
                (revision, now_ns, _json(report)),
            )
            connection.execute("UPDATE run SET updated_ns = ?", (now_ns,))

    def keep_registration(self, registration: Registration | None) -> None:
        with self._write("keep the registration") as connection:
            now_ns = self._clock_ns()
            for table in ("registration", "positions", "edges"):
                connection.execute(f"DELETE FROM {table}")
            connection.execute("UPDATE run SET updated_ns = ?", (now_ns,))
            if registration is None:
                return
            connection.execute(
                "INSERT INTO registration (id, t_ns, facts) VALUES (1, ?, ?)", (now_ns, _json(registration.facts))
            )
            for layout, positions in (("stage", registration.stage), ("registered", registration.registered)):
                connection.executemany(
                    "INSERT INTO positions (layout, frame, view, row, col, source) VALUES (?, ?, ?, ?, ?, ?)",
                    ((layout, *position) for position in positions),
                )
            connection.executemany(
                "INSERT INTO edges (first, second, view, row, col, quality, ncc, left_px, used)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ((*edge[:-1], int(edge.used)) for edge in registration.edges),
            )

    def rename(self, name: str) -> None:
        with self._write("rename the run") as connection:
            now_ns = self._clock_ns()
            (old,) = connection.execute("SELECT name FROM run").fetchone()
            connection.execute("UPDATE run SET name = ?, updated_ns = ?", (name, now_ns))
            _add_event(connection, "rename", {"from": old, "to": name}, now_ns)

    def add_event(self, name: str, detail: Mapping[str, Any], *, t_ns: int | None = None) -> int:
        with self._write("add to the run's log") as connection:
            return _add_event(connection, name, detail, self._clock_ns() if t_ns is None else t_ns)

    def succeed(self, old: Path | None, reason: str) -> CommitResult:
        """Make this store, built apart, the continuation of another one: see `tilecast.store.folders.swap_in`.

        Parameters
        ----------
        old : path or None
            The closed store before it, with the present schema; None if nothing is left of it.
        reason : str
            For the run's log.
        """
        connection = self._open_connection()
        now_ns = self._clock_ns()
        with explained(self._path, "take over from the old store"):
            # Immutable: it is closed and locked, and nothing shall be left behind beside it.
            connection.execute("ATTACH ? AS old", (":memory:" if old is None else database_uri(old, "ro&immutable=1"),))
        try:
            with self._write("take over from the old store") as connection:
                (run,) = connection.execute("SELECT run FROM run").fetchone()
                if old is None:
                    _, rev, _ = heads(connection)
                    epoch = now_ns // 10**9
                    connection.execute("DELETE FROM commits")
                else:
                    (old_run, old_epoch, old_rev) = connection.execute("SELECT run, epoch, rev FROM old.run").fetchone()
                    if old_run != run:
                        raise StoreError(f"the rebuilt store is of run {run}, the old one of run {old_run}")
                    epoch, rev = old_epoch + 1, old_rev + 1
                    connection.execute(
                        "UPDATE run SET (name, state, created_ns) = (SELECT name, state, created_ns FROM old.run)"
                    )
                    _inherit(connection)
                rev = max(rev, 1)
                connection.execute(
                    "UPDATE run SET epoch = ?, rev = ?, epoch_rev = ?, updated_ns = ?", (epoch, rev, rev, now_ns)
                )
                connection.execute("UPDATE tiles SET rev = ?", (rev,))
                connection.execute("UPDATE placements SET rev = ?", (rev,))
                connection.execute("DELETE FROM gone")
                connection.execute(
                    "INSERT INTO commits (rev, epoch, t_commit_ns, n_tiles, n_gone, n_placements)"
                    " SELECT rev, epoch, ?, n_tiles, 0, n_placements FROM run",
                    (now_ns,),
                )
                _add_event(connection, "epoch", {"epoch": epoch, "reason": reason}, now_ns)
        finally:
            connection.execute("DETACH old")
        return CommitResult(rev, epoch, now_ns)

    def close(self) -> None:
        """Carry everything over into the database file, sync it, and give back the lock if it was taken here.

        Raises
        ------
        StoreError
            If that fails, for instance for want of room; the store is closed all the same, and what was committed
            stays in its log.
        """
        if self._connection is None:
            return
        connection = self._open_connection()
        with explained(self._path, "close it"), contextlib.ExitStack() as last:
            if self._owns_lock:
                last.callback(self._lock.release)
            last.callback(connection.close)
            last.callback(self._tile_file.close)
            self._connection = None
            self.checkpointer.close()
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("UPDATE run SET boot_id = NULL")
            # A reader in the way is no harm: the log is synced, and the next opening goes on with it.
            connection.execute(f"PRAGMA busy_timeout = {_CLOSING_MS}")
            (blocked, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if blocked:
                return
            if self._is_tidy:
                self._tile_file.give_back(len(self._tile_file))
            else:
                used = connection.execute("SELECT offset, nbytes FROM tiles ORDER BY offset")
                self._tile_file.give_back_rest(Extent(*row) for row in used)

    def _read(self, query: Callable[[StoreConnection], _T], *, one_statement: bool = False) -> _T:
        del one_statement  # whoever writes sees one instant anyway
        with explained(self._path, "read it"):
            return query(self._open_connection())

    def tile_file_path(self) -> Path:
        return self._tile_file.path

    def _open_connection(self) -> StoreConnection:
        if self._connection is None:
            raise StoreError(f"{self._path} was closed; open it again")
        if threading.get_ident() != self._thread:
            raise StoreError(f"{self._path} may be used by the thread that opened it only; read it with SqliteReader")
        return self._connection

    @contextlib.contextmanager
    def _write(self, doing: str, nbytes: int = 0) -> Iterator[StoreConnection]:
        """One transaction, in turn with the checkpointer; `nbytes` go to the log besides the usual."""
        with explained(self._path, doing):
            connection = self._open_connection()
            with self.checkpointer.commit(_LOG_NBYTES_PER_COMMIT + nbytes):
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    # SQLite has already rolled back after some errors, such as a full disk.
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise


# A row `t` of a table, and a JSON array that begins with a tile's place.
_SAME_PLACE = "t.plane = value ->> 0 AND t.level = value ->> 1 AND t.row = value ->> 2 AND t.col = value ->> 3"


class _PlaneNumbers:
    """The numbers by which the rows of one commit name their planes; a plane not seen before gets one."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._known: dict[PlaneKey, int] = {}

    def __getitem__(self, plane: PlaneKey) -> int:
        number = self._known.get(plane)
        if number is None:
            number = plane_number(self._connection, plane)
            if not number:
                cursor = self._connection.execute("INSERT INTO planes (t, c, z) VALUES (?, ?, ?)", plane)
                number = cursor.lastrowid or 0
            self._known[plane] = number
        return number


def _parts(tile: TileRow) -> tuple[bytes | bytearray | memoryview, ...]:
    """The bytes of a tile, in the order in which they lie in the file."""
    return (tile.pzf,) if tile.coverage is None else (tile.pzf, tile.coverage)


def _write_tiles(cursor: sqlite3.Cursor, planes: _PlaneNumbers, commit: Commit, rev: int, offset: int) -> list[Extent]:
    """Tiles, whose bytes lie in the file from `offset` on, and tombstones of a commit; what they were before."""
    rows = []
    for tile in commit.tiles:
        parts = _parts(tile)
        nbytes = sum(map(len, parts))
        coverage_nbytes = None if tile.coverage is None else len(tile.coverage)
        rows.append((planes[tile.plane], *tile.key, offset, nbytes, coverage_nbytes, blob_crc32(*parts)))
        offset += nbytes
    gone = [(planes[plane], *key) for plane, key in commit.gone]
    # One statement for all: each costs as much as its row does, and a hand-over of the interpreter's lock.
    written, vanished = json.dumps(rows), json.dumps(gone)
    superseded = [
        Extent(*row)
        for places in ([written, vanished] if gone else [written])
        for row in cursor.execute(
            f"SELECT t.offset, t.nbytes FROM json_each(?) JOIN tiles t ON {_SAME_PLACE}", (places,)
        )
    ]
    cursor.execute(
        "INSERT INTO tiles (plane, level, row, col, offset, nbytes, coverage_nbytes, crc32, rev)"
        f" SELECT {', '.join(f'value ->> {n}' for n in range(8))}, ? FROM json_each(?) WHERE TRUE"
        " ON CONFLICT DO UPDATE SET offset = excluded.offset, nbytes = excluded.nbytes,"
        " coverage_nbytes = excluded.coverage_nbytes, crc32 = excluded.crc32, rev = excluded.rev",
        (rev, written),
    )
    if cursor.execute("SELECT EXISTS (SELECT 1 FROM gone)").fetchone() != (0,):
        cursor.execute(
            f"DELETE FROM gone AS t WHERE EXISTS (SELECT 1 FROM json_each(?) WHERE {_SAME_PLACE})", (written,)
        )
    if gone:
        cursor.executemany("DELETE FROM tiles WHERE plane = ? AND level = ? AND row = ? AND col = ?", gone)
        cursor.execute(
            "INSERT INTO gone (plane, level, row, col, rev)"
            " SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, ? FROM json_each(?) WHERE TRUE"
            " ON CONFLICT DO UPDATE SET rev = excluded.rev",
            (rev, vanished),
        )
    return superseded


def _write_placements(cursor: sqlite3.Cursor, planes: _PlaneNumbers, commit: Commit, rev: int) -> int:
    """Placements of a commit, and their boxes; how many there are more than before."""
    n_new = 0
    for identity in commit.removed_placements:
        numbers = cursor.execute(
            "DELETE FROM placements WHERE frame = ? AND view = ? RETURNING id", identity
        ).fetchall()
        cursor.executemany("DELETE FROM placements_box WHERE id = ?", numbers)
        n_new -= len(numbers)
    (last,) = cursor.execute("SELECT coalesce(max(id), 0) FROM placements").fetchone()
    boxes = []
    for placement in commit.placements:
        plane = planes[placement.plane]
        rect = placement.rect
        [(number,)] = cursor.execute(
            "INSERT INTO placements (frame, view, plane, row, col, height, width, source, image_index, rev)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET plane = excluded.plane, row = excluded.row, col = excluded.col,"
            " height = excluded.height, width = excluded.width, source = excluded.source,"
            " image_index = excluded.image_index, rev = excluded.rev RETURNING id",
            (
                placement.frame,
                placement.view,
                plane,
                placement.row,
                placement.col,
                placement.height,
                placement.width,
                placement.source,
                placement.index,
                rev,
            ),
        ).fetchall()
        n_new += number > last
        boxes.append((number, plane, plane, rect.row0, rect.row1 - 1, rect.col0, rect.col1 - 1))
    cursor.executemany(
        "INSERT OR REPLACE INTO placements_box (id, plane0, plane1, row0, row1, col0, col1)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        boxes,
    )
    return n_new


def _existing_tile_file(connection: sqlite3.Connection, path: Path) -> TileFile:
    """The tiles of a store that is there already."""
    tiles = tile_file_path(connection, path.parent)
    # Each commit goes behind the one before, so those that wrote last lie last: no need to look at all rows.
    (used_end,) = connection.execute(
        "SELECT max(offset + nbytes) FROM tiles WHERE rev = (SELECT max(rev) FROM tiles)"
    ).fetchone()
    try:
        return TileFile(tiles, used_end=used_end or 0)
    except FileNotFoundError as error:
        raise StoreDamagedError(
            f"the tiles of the run, {tiles}, are missing; `tilecast rebuild` makes them anew from the run's journal"
        ) from error


def _insert_run(connection: sqlite3.Connection, new: NewRun, tile_file: str, now_ns: int) -> None:
    connection.execute(
        "INSERT INTO run (id, run, name, instrument, stream, state, epoch, rev, epoch_rev, levels, n_tiles,"
        " n_placements, created_ns, updated_ns, settings, start_json, start, tile_file)"
        " VALUES (1, ?, ?, ?, ?, 'open', 1, 0, 0, 0, 0, 0, ?, ?, ?, ?, ?, ?)",
        (
            new.run,
            new.name,
            new.instrument,
            new.stream,
            now_ns,
            now_ns,
            _json(new.settings),
            json.dumps(unpack_start(new.start), default=repr),  # for people only: bytes need not come back
            new.start,
            tile_file,
        ),
    )


def _raise_epoch(connection: sqlite3.Connection, reason: str, now_ns: int) -> int:
    """A new history from the present rev on; everyone starts anew, so tombstones have served."""
    [(epoch,)] = connection.execute(
        "UPDATE run SET epoch = epoch + 1, epoch_rev = rev, updated_ns = ? RETURNING epoch", (now_ns,)
    ).fetchall()
    connection.execute("DELETE FROM gone")
    _add_event(connection, "epoch", {"epoch": epoch, "reason": reason}, now_ns)
    return int(epoch)


def _add_event(connection: sqlite3.Connection, name: str, detail: Mapping[str, Any], t_ns: int) -> int:
    cursor = connection.execute("INSERT INTO events (t_ns, name, detail) VALUES (?, ?, ?)", (t_ns, name, _json(detail)))
    return cursor.lastrowid or 0


def _inherit(connection: sqlite3.Connection) -> None:
    """Put the history of the attached store `old` before the rebuilt store's own log."""
    # Not again what an attempt that failed after this step has copied already.
    own = connection.execute(
        "SELECT t_ns, name, detail FROM events"
        " WHERE (t_ns, name, detail) NOT IN (SELECT t_ns, name, detail FROM old.events) ORDER BY id"
    ).fetchall()
    connection.execute("DELETE FROM events")
    connection.execute("INSERT INTO events SELECT * FROM old.events")
    connection.executemany("INSERT INTO events (t_ns, name, detail) VALUES (?, ?, ?)", own)
    connection.execute("DELETE FROM commits")
    connection.execute("INSERT INTO commits SELECT * FROM old.commits")
    connection.execute("INSERT OR IGNORE INTO report SELECT * FROM old.report")


def _json(value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"cannot keep this as JSON: {error}") from error


def _canvas_json(canvas: Canvas | None) -> str | None:
    if canvas is None:
        return None
    return _json({"rect": canvas.rect, "levels": canvas.levels, "tile_size": canvas.tile_size, "fixed": canvas.fixed})


def _kernel_boot_id() -> str:
    """Differs from one boot to the next; empty where the system has none, which then counts as another boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
