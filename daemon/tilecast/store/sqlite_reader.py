"""Reading a run's SQLite file: the queries, and a reader that any number of threads may share.

`SqliteReads` holds every query, for the writer (`tilecast.store.sqlite_store`) and for `SqliteReader` alike. Each call
of a reader borrows a read-only connection, reads in one short transaction, and gives it back: an open read transaction
would keep the write-ahead log from being reset. Before and after each call it looks which file it is:

* if a rebuild has put another in its place (another inode), it opens that one;
* if nobody has the file open for writing (no ``-wal`` beside it), it reads it as immutable: this works on read-only
  media, and leaves nothing behind in the folder of a closed run. If someone opens it meanwhile, it reads again.

The bytes of a tile are read while the transaction lasts that says where they lie (`tilecast.store.tile_file`). It does
not write, and does not know what the blobs hold.
"""

from __future__ import annotations

import abc
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tilecast.errors import StoreError
from tilecast.geometry import Canvas, Placement, PlaneKey, Rect, TileKey
from tilecast.store.sqlite_check import BadTile, contradictions, damaged_tiles, misplaced, structure
from tilecast.store.sqlite_connection import (
    TILES_NAME,
    StoreConnection,
    explained,
    open_for_reading,
    tile_file_path,
    wal_path,
)
from tilecast.store.tile_file import Extent, blob_crc32, disk_nbytes
from tilecast.store.tile_store import (
    PAGE_ITEMS,
    Changes,
    CommitRow,
    EdgeRow,
    EventRow,
    PlacementRow,
    Position,
    Registration,
    RunInfo,
    Snapshot,
    StoreDamagedError,
    StoredTile,
    StoreSize,
    StoreUnfinishedError,
    TileReader,
    TileStamp,
    check_page,
    cut_changes,
)

_CACHE_KIB = 4 * 1024
_IDLE_CONNECTIONS = 4  # kept for the next call
_ITERATOR_ROWS = 10_000  # rows per short transaction of an iterator

_FIRST_KEY = TileKey(-1, -(2**62), -(2**62))  # before every tile's

_T = TypeVar("_T")

_PLACEMENT = """
    SELECT p.frame, p.view, k.t, k.c, k.z, p.row, p.col, p.height, p.width, p.source, p.image_index, p.rev, p.id
    FROM placements p JOIN planes k ON k.id = p.plane
"""


class SqliteReads(TileReader):
    """The reading half, in SQL; how to come by a connection is left to the two classes below."""

    _path: Path

    @abc.abstractmethod
    def _read(self, query: Callable[[StoreConnection], _T], *, one_statement: bool = False) -> _T:
        """The result of `query` on a connection that sees one instant of the store.

        One statement that is read to its end sees one instant by itself; then the two that begin and end a transaction
        are saved, each of which may wait for the interpreter's lock.
        """

    @abc.abstractmethod
    def tile_file_path(self) -> Path:
        """The file with the bytes of the tiles."""

    @property
    def path(self) -> Path:
        """The database file."""
        return self._path

    def info(self) -> RunInfo:
        try:
            return self._read(_info)
        except (TypeError, ValueError, KeyError) as error:
            raise StoreDamagedError(
                f"{self._path} is damaged: what it says of its run cannot be read ({error!r}); run `tilecast fsck` to "
                "see how badly, and `tilecast rebuild` to make it anew from the run's journal"
            ) from error

    def tile(self, plane: PlaneKey, key: TileKey) -> StoredTile | None:
        def query(connection: StoreConnection) -> StoredTile | None:
            row = connection.execute(
                "SELECT t.offset, t.nbytes, t.coverage_nbytes, t.crc32, t.rev"
                " FROM planes k JOIN tiles t ON t.plane = k.id"
                " WHERE k.t = ? AND k.c = ? AND k.z = ? AND t.level = ? AND t.row = ? AND t.col = ?",
                (*plane, *key),
            ).fetchone()
            if row is None:
                return None
            offset, nbytes, coverage_nbytes, crc32, rev = row
            # Within the transaction: as long as it lasts these bytes stay where they are.
            blob = connection.tile_file.read(Extent(offset, nbytes))
            # Else nobody would notice before the next fsck, and the tiles above would take it over.
            if blob_crc32(blob) != crc32:
                raise StoreDamagedError(
                    f"the pixels of {key} in {plane} are damaged (wrong checksum); `tilecast fsck --repair` makes them "
                    "anew from the frames that cover them"
                )
            if coverage_nbytes is None:
                return StoredTile(blob, rev, None)
            return StoredTile(blob[: nbytes - coverage_nbytes], rev, blob[nbytes - coverage_nbytes :])

        return self._read(query)

    def tile_rev(self, plane: PlaneKey, key: TileKey) -> int | None:
        def query(connection: sqlite3.Connection) -> int | None:
            row = connection.execute(
                "SELECT t.rev FROM planes k JOIN tiles t ON t.plane = k.id"
                " WHERE k.t = ? AND k.c = ? AND k.z = ? AND t.level = ? AND t.row = ? AND t.col = ?",
                (*plane, *key),
            ).fetchone()
            return None if row is None else int(row[0])

        return self._read(query, one_statement=True)

    def snapshot(
        self,
        plane: PlaneKey | None = None,
        level: int | None = None,
        *,
        after: tuple[PlaneKey, TileKey] | None = None,
        limit: int = PAGE_ITEMS,
    ) -> Snapshot:
        check_page(limit)

        def query(connection: sqlite3.Connection) -> Snapshot:
            planes = _planes(connection)
            first = 0 if after is None else plane_number(connection, after[0])
            rows: list[tuple[int, ...]] = []
            # Plane by plane, so that each query is one stretch of the primary key, also when a level is asked for.
            for number in planes if plane is None else [plane_number(connection, plane)]:
                if number < first or len(rows) > limit:
                    continue
                start = after[1] if after is not None and number == first else _FIRST_KEY
                if level is None:
                    where, values = "(level, row, col) > (?, ?, ?)", list(start)
                elif start.level <= level:
                    row, col = start[1:] if start.level == level else _FIRST_KEY[1:]
                    where, values = "level = ? AND (row, col) > (?, ?)", [level, row, col]
                else:
                    continue
                rows += connection.execute(
                    f"SELECT plane, level, row, col, rev FROM tiles WHERE plane = ? AND {where}"
                    " ORDER BY level, row, col LIMIT ?",
                    (number, *values, limit + 1 - len(rows)),
                ).fetchall()
            epoch, rev, _ = heads(connection)
            return Snapshot(epoch=epoch, rev=rev, tiles=_stamps(planes, rows[:limit]), more=len(rows) > limit)

        return self._read(query)

    def changes(self, since: int, *, epoch: int | None = None, limit: int = PAGE_ITEMS) -> Changes:
        check_page(limit)

        def query(connection: sqlite3.Connection) -> Changes:
            now_epoch, rev, epoch_rev = heads(connection)
            if (epoch is not None and epoch != now_epoch) or not epoch_rev <= since <= rev:
                return Changes(epoch=now_epoch, resync=True, tiles=(), gone=(), upto=rev, more=False)
            planes = _planes(connection)
            tiles = _changed(connection, "tiles", planes, since, rev, limit + 1)
            gone = _changed(connection, "gone", planes, since, rev, limit + 1)
            upto = cut_changes(tiles, gone, limit)
            if upto is not None:
                # Without a limit: a commit that is larger than the page comes whole.
                tiles = _changed(connection, "tiles", planes, since, upto, -1)
                gone = _changed(connection, "gone", planes, since, upto, -1)
            return Changes(
                epoch=now_epoch,
                resync=False,
                tiles=tiles,
                gone=gone,
                upto=rev if upto is None else upto,
                more=upto is not None and upto < rev,
            )

        return self._read(query)

    def covering(self, plane: PlaneKey, rect: Rect) -> list[Placement]:
        def query(connection: sqlite3.Connection) -> list[Placement]:
            rows = connection.execute(
                f"{_PLACEMENT} JOIN placements_box b ON b.id = p.id"
                " WHERE k.t = ? AND k.c = ? AND k.z = ? AND b.plane0 <= k.id AND b.plane1 >= k.id"
                " AND b.row0 < ? AND b.row1 >= ? AND b.col0 < ? AND b.col1 >= ? ORDER BY p.image_index, p.view",
                (*plane, rect.row1, rect.row0, rect.col1, rect.col0),
            ).fetchall()
            return [_placement(row).placement for row in rows]

        return [] if rect.empty else self._read(query, one_statement=True)

    def placement(self, frame: int, view: int = 0) -> PlacementRow | None:
        def query(connection: sqlite3.Connection) -> PlacementRow | None:
            row = connection.execute(f"{_PLACEMENT} WHERE p.frame = ? AND p.view = ?", (frame, view)).fetchone()
            return None if row is None else _placement(row)

        return self._read(query, one_statement=True)

    def placements(self, since: int = 0, *, after: tuple[int, int, int] | None = None) -> Iterator[PlacementRow]:
        last = (since, 2**63 - 1)  # past every row of the commit `since`
        if after is not None:
            rev, *frame_and_view = after
            found = self._rows("SELECT id FROM placements WHERE frame = ? AND view = ?", frame_and_view)
            last = max(last, (rev, found[0][0] if found else -1))
        sql = f"{_PLACEMENT} WHERE (p.rev, p.id) > (?, ?) ORDER BY p.rev, p.id LIMIT {_ITERATOR_ROWS}"
        while rows := self._rows(sql, last):
            yield from map(_placement, rows)
            last = (rows[-1][11], rows[-1][12])

    def placed_indices(self) -> Iterator[int]:
        last = 0
        sql = f"SELECT id, image_index FROM placements WHERE id > ? ORDER BY id LIMIT {_ITERATOR_ROWS}"
        while rows := self._rows(sql, (last,)):
            yield from (index for _, index in rows)
            last = rows[-1][0]

    def commits(self, after: int = 0) -> Iterator[CommitRow]:
        sql = (
            "SELECT rev, epoch, t_recv_ns, t_commit_ns, n_tiles, n_gone, n_placements FROM commits"
            f" WHERE rev > ? ORDER BY rev LIMIT {_ITERATOR_ROWS}"
        )
        while rows := self._rows(sql, (after,)):
            yield from (CommitRow(*row) for row in rows)
            after = rows[-1][0]

    def events(self, after: int = 0) -> Iterator[EventRow]:
        sql = f"SELECT id, t_ns, name, detail FROM events WHERE id > ? ORDER BY id LIMIT {_ITERATOR_ROWS}"
        while rows := self._rows(sql, (after,)):
            yield from (EventRow(number, t_ns, name, json.loads(detail)) for number, t_ns, name, detail in rows)
            after = rows[-1][0]

    def reports(self) -> dict[int, dict[str, Any]]:
        rows = self._rows("SELECT revision, report FROM report ORDER BY revision", ())
        return {revision: json.loads(report) for revision, report in rows}

    def registration(self) -> Registration | None:
        def query(connection: sqlite3.Connection) -> Registration | None:
            found = connection.execute("SELECT facts FROM registration").fetchone()
            if found is None:
                return None
            layouts: dict[str, list[Position]] = {"stage": [], "registered": []}
            for layout, *row in connection.execute(
                "SELECT layout, frame, view, row, col, source FROM positions ORDER BY layout, frame, view"
            ):
                layouts[layout].append(Position(*row))
            edges = connection.execute(
                "SELECT first, second, view, row, col, quality, ncc, left_px, used FROM edges"
                " ORDER BY first, second, view"
            )
            return Registration(
                facts=json.loads(found[0]),
                edges=tuple(EdgeRow._make((*row[:-1], bool(row[-1]))) for row in edges),
                stage=tuple(layouts["stage"]),
                registered=tuple(layouts["registered"]),
            )

        return self._read(query)

    def size(self) -> StoreSize:
        try:
            file_nbytes = self._path.stat().st_size + disk_nbytes(self.tile_file_path())
        except OSError as error:
            raise StoreError(f"cannot look at {self._path}: {error.strerror}") from error
        try:
            return StoreSize(file_nbytes, wal_path(self._path).stat().st_size)
        except OSError:
            return StoreSize(file_nbytes, 0)  # closed: everything is in the file

    def check(self, on_tick: Callable[[], None] | None = None) -> list[str]:
        return self._read(lambda connection: contradictions(connection, on_tick or (lambda: None)))

    def structure(self, on_tick: Callable[[], None] | None = None) -> list[str]:
        """What `check` says but for the contents of tiles."""
        return self._read(lambda connection: structure(connection, on_tick or (lambda: None)))

    def damaged_tiles(self, on_tick: Callable[[], None] | None = None) -> list[BadTile]:
        """Tiles whose pixels or coverage are not what was written."""
        return self._read(lambda connection: damaged_tiles(connection, on_tick or (lambda: None)))

    def misplaced(self) -> set[int]:
        """Frames of which placements and their spatial index do not say the same."""
        return self._read(misplaced)

    def _rows(self, sql: str, values: Sequence[int]) -> list[tuple[Any, ...]]:
        return self._read(lambda connection: connection.execute(sql, values).fetchall(), one_statement=True)


class _Identity(NamedTuple):
    """Which file a reader's connection was opened on, and, where nobody writes it, in which state."""

    device: int
    inode: int
    mtime_ns: int  # 0 while someone has it open for writing: then it changes all the time
    nbytes: int  # likewise

    @property
    def immutable(self) -> bool:
        return self.mtime_ns != 0


_OWN = _Identity(0, 0, 0, 0)


class SqliteReader(SqliteReads):
    """Reading a run, from any number of threads, in the daemon or in another process, while it is being written.

    Parameters
    ----------
    folder : path
        The run's folder.
    file_name : str
        Name of the tiles' file in it.
    own : bool
        Whether this process has the store open for writing as long as this object lives: then nobody can put another
        file in its place, and it need not be looked for.

    Raises
    ------
    StoreError
        If there is no store, or it is damaged.
    StoreTooNewError
        If a newer tilecast wrote it.
    """

    def __init__(self, folder: str | os.PathLike[str], *, file_name: str = TILES_NAME, own: bool = False) -> None:
        self._path = Path(folder) / file_name
        self._own = own
        self._guard = threading.Lock()
        self._idle: list[tuple[_Identity, StoreConnection]] = []
        self._closed = False
        self._read(heads)

    def close(self) -> None:
        with self._guard:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def _read(self, query: Callable[[StoreConnection], _T], *, one_statement: bool = False) -> _T:
        with explained(self._path, "read it"):
            while True:
                identity = self._identity()
                connection = self._borrow(identity)
                keep = False
                try:
                    if connection is None:
                        connection = self._connect(identity)
                    if one_statement:
                        result = query(connection)
                    else:
                        connection.execute("BEGIN")
                        try:
                            result = query(connection)
                        finally:
                            if connection.in_transaction:  # some errors end it themselves
                                connection.execute("ROLLBACK")
                    # Looked at again afterwards: if the file was swapped or opened for writing in between, what was
                    # read may mix two files, and is read anew.
                    keep = self._own or self._identity() == identity
                    if keep:
                        return result
                except (sqlite3.Error, StoreError):
                    if self._identity() == identity:
                        raise
                finally:
                    if connection is not None:
                        self._give_back(identity, connection, keep)

    def tile_file_path(self) -> Path:
        return self._read(lambda connection: tile_file_path(connection, self._path.parent))

    def _identity(self) -> _Identity:
        if self._own:
            return _OWN
        try:
            status = self._path.stat()
        except OSError as error:
            kind = StoreUnfinishedError if isinstance(error, FileNotFoundError) else StoreDamagedError
            raise kind(
                f"cannot open {self._path}: {error.strerror}; `tilecast rebuild` makes it anew from the run's journal"
            ) from error
        if wal_path(self._path).exists():
            return _Identity(status.st_dev, status.st_ino, 0, 0)
        return _Identity(status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)

    def _connect(self, identity: _Identity) -> StoreConnection:
        return open_for_reading(self._path, as_it_lies=identity.immutable, cache_kib=_CACHE_KIB, shared=True)

    def _borrow(self, identity: _Identity) -> StoreConnection | None:
        stale = []
        found = None
        with self._guard:
            if self._closed:
                raise StoreError(f"the reader of {self._path} was closed; make another")
            while self._idle and found is None:
                opened_on, connection = self._idle.pop()
                if opened_on == identity:
                    found = connection
                else:
                    stale.append(connection)
        for connection in stale:
            connection.close()
        return found

    def _give_back(self, identity: _Identity, connection: StoreConnection, keep: bool) -> None:
        with self._guard:
            if keep and not self._closed and len(self._idle) < _IDLE_CONNECTIONS:
                self._idle.append((identity, connection))
                return
        connection.close()


def heads(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """(epoch, rev, epoch_rev) of the run."""
    epoch, rev, epoch_rev = connection.execute("SELECT epoch, rev, epoch_rev FROM run").fetchone()
    return epoch, rev, epoch_rev


def _info(connection: sqlite3.Connection) -> RunInfo:
    cursor = connection.execute(
        "SELECT run, name, instrument, stream, start, settings, state, epoch, rev, epoch_rev, levels, canvas,"
        " created_ns, updated_ns, n_tiles, n_placements, clipped_low, clipped_high FROM run"
    )
    values = dict(zip((column[0] for column in cursor.description), cursor.fetchone(), strict=True))
    values["settings"] = json.loads(values["settings"])
    values["canvas"] = _canvas(values["canvas"])
    values["clipped"] = values.pop("clipped_low"), values.pop("clipped_high")
    boxes = connection.execute("SELECT t, c, z, row0, col0, row1, col1 FROM planes WHERE row0 IS NOT NULL ORDER BY id")
    values["bboxes"] = {PlaneKey(*row[:3]): Rect(*row[3:]) for row in boxes}
    last = connection.execute("SELECT revision, report FROM report ORDER BY revision DESC LIMIT 1").fetchone()
    values["revision"], values["report"] = (0, None) if last is None else (last[0], json.loads(last[1]))
    return RunInfo(**values)


def _planes(connection: sqlite3.Connection) -> dict[int, PlaneKey]:
    """All planes of the run by number."""
    return {row[0]: PlaneKey(*row[1:]) for row in connection.execute("SELECT id, t, c, z FROM planes ORDER BY id")}


def plane_number(connection: sqlite3.Connection, plane: PlaneKey) -> int:
    """The number of a plane; 0, which none has, for an unknown one."""
    row = connection.execute("SELECT id FROM planes WHERE t = ? AND c = ? AND z = ?", plane).fetchone()
    return 0 if row is None else int(row[0])


def _stamps(planes: Mapping[int, PlaneKey], rows: Sequence[tuple[int, ...]]) -> tuple[TileStamp, ...]:
    return tuple(TileStamp(planes[plane], TileKey(level, row, col), rev) for plane, level, row, col, rev in rows)


def _changed(
    connection: sqlite3.Connection, table: str, planes: Mapping[int, PlaneKey], since: int, upto: int, limit: int
) -> tuple[TileStamp, ...]:
    """Rows of `tiles` or `gone` after one rev and up to another, oldest first; a limit of -1 is none."""
    rows = connection.execute(
        f"SELECT plane, level, row, col, rev FROM {table} WHERE rev > ? AND rev <= ?"
        " ORDER BY rev, plane, level, row, col LIMIT ?",
        (since, upto, limit),
    ).fetchall()
    return _stamps(planes, rows)


def _placement(row: tuple[Any, ...]) -> PlacementRow:
    frame, view, t, c, z, top, left, height, width, source, index, rev, _ = row
    return PlacementRow(Placement(frame, view, PlaneKey(t, c, z), top, left, height, width, source, index), rev)


def _canvas(text: str | None) -> Canvas | None:
    if text is None:
        return None
    values = json.loads(text)
    return Canvas(Rect(*values["rect"]), values["levels"], values["tile_size"], values["fixed"])
