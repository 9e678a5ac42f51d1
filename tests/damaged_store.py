"""Ways to damage the store of a run behind everybody's back."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from tilecast.geometry import TileKey
from tilecast.store.sqlite_connection import TILES_NAME
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_file import blob_crc32


def spoil_tiles(folder: Path, keys: Iterable[TileKey] | None = None) -> None:
    """Let the bytes of tiles (None: of all) decay on the disk, even while a daemon has the run open."""
    with closing(sqlite3.connect(folder / TILES_NAME, timeout=30)) as connection:
        (name,) = connection.execute("SELECT tile_file FROM run").fetchone()
        rows = connection.execute("SELECT level, row, col, offset, nbytes FROM tiles").fetchall()
    wanted = None if keys is None else set(keys)
    fd = os.open(folder / name, os.O_RDWR)
    for *key, offset, nbytes in rows:
        if wanted is None or TileKey(*key) in wanted:
            whole = os.pread(fd, nbytes, offset)
            os.pwrite(fd, bytes(byte ^ 8 for byte in whole[:16]) + whole[16:60] + bytes([whole[60] ^ 1]), offset)
    os.close(fd)


def change_bits(folder: Path, key: TileKey) -> None:
    """Change two bits in the middle of a tile's bytes."""
    with SqliteReader(folder) as reader:
        path, (offset, nbytes) = reader.tile_file_path(), place_of(reader, key)
    with path.open("r+b") as file:
        for at in (offset + nbytes // 3, offset + nbytes // 2):
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 8]))


def place_of(reader: SqliteReader, key: TileKey) -> tuple[int, int]:
    """Where the bytes of a tile lie: offset and length."""
    [place] = reader._rows("SELECT offset, nbytes FROM tiles WHERE level = ? AND row = ? AND col = ?", key)
    return place[0], place[1]


def write_tile(folder: Path, key: TileKey, blob: bytes, coverage: bytes | None) -> None:
    """Put other pixels into a tile, or a tile where there is none, as a bug would: its checksum is right."""
    with SqliteStore.open(folder) as store:
        parts = [blob] if coverage is None else [blob, coverage]
        offset = store._tile_file.append(parts)
        store._tile_file.keep()
        store._open_connection().execute(
            "INSERT INTO tiles (plane, level, row, col, rev, offset, nbytes, coverage_nbytes, crc32)"
            " SELECT planes.id, ?, ?, ?, run.rev, ?, ?, ?, ? FROM planes, run LIMIT 1"
            " ON CONFLICT DO UPDATE SET offset = excluded.offset, nbytes = excluded.nbytes, crc32 = excluded.crc32,"
            " coverage_nbytes = excluded.coverage_nbytes",
            (
                *key,
                offset,
                sum(map(len, parts)),
                None if coverage is None else len(coverage),
                blob_crc32(*parts),
            ),
        )
        store._open_connection().execute("UPDATE run SET n_tiles = (SELECT count(*) FROM tiles)")


def drop_tile(folder: Path, key: TileKey) -> None:
    """Remove a tile as a bug would: the counts agree."""
    with SqliteStore.open(folder) as store:
        connection = store._open_connection()
        connection.execute("DELETE FROM tiles WHERE level = ? AND row = ? AND col = ?", key)
        connection.execute("UPDATE run SET n_tiles = (SELECT count(*) FROM tiles)")
