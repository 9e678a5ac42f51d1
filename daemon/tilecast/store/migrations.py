"""The schema of ``tiles.sqlite``, as the history of steps that made it.

Each step runs in one transaction together with the note that it ran (sqlite-utils' `Migrations`), so a process killed
in the middle leaves the file as it was before the step. The number of steps taken is kept in ``user_version`` as
well: to see that a file is up to date, or newer than this program, takes one page and not an import of sqlite-utils,
which costs half a second.

The tables, for a person with `sqlite-utils` at hand:

============== =====================================================================================================
run            one row: names, state, epoch and rev, what `start` said (`start_json`) and what it was resolved to
planes         one row per (t, c, z), with the box of what is covered so far, in level-0 pixels
placements     where each frame lies, how that is known, and the rev that last changed it
placements_box its R*Tree: which placements meet a rectangle of a plane (upper bounds inclusive)
tiles          which tiles there are, the rev that last wrote each, and where its bytes lie in the file `run.tile_file`:
               `nbytes` from `offset` on, of which the last `coverage_nbytes` say which pixels are covered (NULL: all)
               and the others are the pixels as PZF
gone           tiles that vanished, with the rev that removed them
commits        one row per rev
events         log of the run: notes, events, changes of epoch; details as JSON
report         run reports as JSON, by revision
registration   one row, if the run was registered: how, and how it went, as JSON
positions      where frames lie by the stage, and by registration, whichever of the two `placements` are made by
edges          shifts between frames that overlap, as registration found them
============== =====================================================================================================

This module does not know what the rows mean to the rest of tilecast, only their shapes. A published step is never
edited: a change of the schema is another step at the end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tilecast.store.tile_file import TileFile, new_name

if TYPE_CHECKING:
    from sqlite_utils.db import Database

#: Marks the file as tilecast's in its header ("tile" in ASCII).
APPLICATION_ID = 0x74696C65

_FIRST = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    run TEXT NOT NULL, name TEXT NOT NULL, instrument TEXT NOT NULL, stream TEXT NOT NULL, state TEXT NOT NULL,
    epoch INTEGER NOT NULL, rev INTEGER NOT NULL, epoch_rev INTEGER NOT NULL, levels INTEGER NOT NULL,
    n_tiles INTEGER NOT NULL, n_placements INTEGER NOT NULL,
    created_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL,
    canvas TEXT, settings TEXT NOT NULL, start_json TEXT NOT NULL, start BLOB NOT NULL,
    boot_id TEXT  -- of the kernel under which it is, or was when it broke off, open for writing; NULL once closed
) STRICT;
CREATE TABLE planes (
    id INTEGER PRIMARY KEY,
    t INTEGER NOT NULL, c INTEGER NOT NULL, z INTEGER NOT NULL,
    row0 INTEGER, col0 INTEGER, row1 INTEGER, col1 INTEGER,
    UNIQUE (t, c, z)
) STRICT;
CREATE TABLE placements (
    id INTEGER PRIMARY KEY,
    frame INTEGER NOT NULL, view INTEGER NOT NULL, plane INTEGER NOT NULL REFERENCES planes (id),
    row INTEGER NOT NULL, col INTEGER NOT NULL, height INTEGER NOT NULL, width INTEGER NOT NULL,
    source TEXT NOT NULL, image_index INTEGER NOT NULL, rev INTEGER NOT NULL,
    UNIQUE (frame, view)
) STRICT;
CREATE INDEX placements_rev ON placements (rev);
CREATE VIRTUAL TABLE placements_box USING rtree_i32 (id, plane0, plane1, row0, row1, col0, col1);
CREATE TABLE tiles (
    plane INTEGER NOT NULL REFERENCES planes (id),
    level INTEGER NOT NULL, row INTEGER NOT NULL, col INTEGER NOT NULL,
    rev INTEGER NOT NULL, data INTEGER NOT NULL REFERENCES tile_data (id),
    PRIMARY KEY (plane, level, row, col)
) STRICT, WITHOUT ROWID;
CREATE INDEX tiles_rev ON tiles (rev);
CREATE TABLE tile_data (
    id INTEGER PRIMARY KEY,
    crc32 INTEGER NOT NULL,  -- of the pzf, carried on over the coverage; SQLite would not notice a flipped bit
    coverage BLOB, pzf BLOB NOT NULL
) STRICT;
CREATE TABLE gone (
    plane INTEGER NOT NULL REFERENCES planes (id),
    level INTEGER NOT NULL, row INTEGER NOT NULL, col INTEGER NOT NULL, rev INTEGER NOT NULL,
    PRIMARY KEY (plane, level, row, col)
) STRICT, WITHOUT ROWID;
CREATE INDEX gone_rev ON gone (rev);
CREATE TABLE commits (
    rev INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, t_recv_ns INTEGER, t_commit_ns INTEGER NOT NULL,
    n_tiles INTEGER NOT NULL, n_gone INTEGER NOT NULL, n_placements INTEGER NOT NULL
) STRICT;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, t_ns INTEGER NOT NULL, name TEXT NOT NULL, detail TEXT NOT NULL
) STRICT;
CREATE TABLE report (revision INTEGER PRIMARY KEY, t_ns INTEGER NOT NULL, report TEXT NOT NULL) STRICT
"""

# The bytes of tiles leave the database for a file of their own.
_TILE_FILE = """
-- The name of that file, in this folder:
ALTER TABLE run ADD COLUMN tile_file TEXT NOT NULL DEFAULT '';
CREATE TABLE tiles_in_file (
    plane INTEGER NOT NULL REFERENCES planes (id),
    level INTEGER NOT NULL, row INTEGER NOT NULL, col INTEGER NOT NULL,
    rev INTEGER NOT NULL,
    offset INTEGER NOT NULL, nbytes INTEGER NOT NULL, coverage_nbytes INTEGER,
    crc32 INTEGER NOT NULL,  -- of the bytes; nobody else would notice a flipped bit
    PRIMARY KEY (plane, level, row, col)
) STRICT, WITHOUT ROWID
"""
_TILE_FILE_END = """
DROP TABLE tiles;
DROP TABLE tile_data;
ALTER TABLE tiles_in_file RENAME TO tiles;
CREATE INDEX tiles_rev ON tiles (rev)
"""
# How many pixels of frames were clipped by calibration, below and above what their type holds.
_CLIPPED = """
ALTER TABLE run ADD COLUMN clipped_low INTEGER NOT NULL DEFAULT 0;
ALTER TABLE run ADD COLUMN clipped_high INTEGER NOT NULL DEFAULT 0
"""
# What registration found.
_REGISTRATION = """
CREATE TABLE registration (id INTEGER PRIMARY KEY CHECK (id = 1), t_ns INTEGER NOT NULL, facts TEXT NOT NULL) STRICT;
CREATE TABLE positions (
    layout TEXT NOT NULL CHECK (layout IN ('stage', 'registered')),
    frame INTEGER NOT NULL, view INTEGER NOT NULL,
    row INTEGER NOT NULL, col INTEGER NOT NULL, source TEXT NOT NULL,
    PRIMARY KEY (layout, frame, view)
) STRICT, WITHOUT ROWID;
CREATE TABLE edges (
    first INTEGER NOT NULL, second INTEGER NOT NULL, view INTEGER NOT NULL,
    row INTEGER NOT NULL, col INTEGER NOT NULL,
    quality REAL NOT NULL, ncc REAL NOT NULL, left_px REAL NOT NULL, used INTEGER NOT NULL,
    PRIMARY KEY (first, second, view)
) STRICT, WITHOUT ROWID
"""
_ROWS_AT_A_TIME = 500


def schema_version(connection: sqlite3.Connection) -> int:
    """How many steps a file has behind it; 0 for an empty one."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def migrate(connection: sqlite3.Connection) -> None:
    """Take the steps that a file still lacks.

    Parameters
    ----------
    connection : sqlite3.Connection
        Writable, in autocommit mode (`isolation_level=None`), with no transaction open.
    """
    # Here, not above: half a second that only a new or an outdated file has to pay.
    import sqlite_utils
    from sqlite_utils.migrations import Migrations

    migrations = Migrations("tilecast")
    for number, (name, step) in enumerate(_STEPS, 1):
        migrations(name=name)(_counted(number, step))
    before = schema_version(connection)
    migrations.apply(sqlite_utils.Database(connection, execute_plugins=False))
    if 0 < before < _TILE_FILE_VERSION:
        connection.execute("VACUUM")  # the room that the bytes of tiles took


def _counted(number: int, step: Callable[[Database], None]) -> Callable[[Database], None]:
    """A step that notes in `user_version`, within its transaction, that it was taken."""

    def counted(db: Database) -> None:
        step(db)
        db.execute(f"PRAGMA user_version = {number}")

    return counted


def _all(db: Database, statements: str) -> None:
    # One by one: executescript would commit first, and take the step out of its transaction.
    for statement in statements.split(";\n"):
        db.execute(statement)


def _first(db: Database) -> None:
    _all(db, _FIRST)
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _tile_file(db: Database) -> None:
    _all(db, _TILE_FILE)
    if db.execute("SELECT EXISTS (SELECT 1 FROM run)").fetchone() == (1,):
        folder = Path(db.execute("SELECT file FROM pragma_database_list WHERE name = 'main'").fetchone()[0]).parent
        name = new_name()
        file = TileFile(folder / name, create=True)
        try:
            _move_tiles(db, file)
        finally:
            file.close()
        db.execute("UPDATE run SET tile_file = ?", [name])
    _all(db, _TILE_FILE_END)


def _move_tiles(db: Database, file: TileFile) -> None:
    cursor = db.execute(
        "SELECT plane, level, row, col, rev, crc32, coverage, pzf FROM tiles JOIN tile_data ON tile_data.id = data"
    )
    while rows := cursor.fetchmany(_ROWS_AT_A_TIME):
        offset = file.append([blob for row in rows for blob in (row[7], row[6] or b"")])
        file.keep()
        moved = []
        for *place, crc32, coverage, pzf in rows:
            coverage_nbytes = None if coverage is None else len(coverage)
            nbytes = len(pzf) + (coverage_nbytes or 0)
            moved.append((*place, offset, nbytes, coverage_nbytes, crc32))
            offset += nbytes
        db.conn.executemany("INSERT INTO tiles_in_file VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", moved)


_STEPS: tuple[tuple[str, Callable[[Database], None]], ...] = (
    ("0001 first", _first),
    ("0002 tile file", _tile_file),
    ("0003 clipped", lambda db: _all(db, _CLIPPED)),
    ("0004 registration", lambda db: _all(db, _REGISTRATION)),
)
_TILE_FILE_VERSION = 2

#: The `user_version` of a file that is up to date.
SCHEMA_VERSION = len(_STEPS)
