"""Stores as earlier versions made them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tilecast.store import migrations
from tilecast.store.tile_file import blob_crc32
from tilecast.store.tile_store import StoredTile


def old_store(folder: Path, run: str, n_tiles: int) -> None:
    """A store as the first version made it: the bytes of tiles in the database, 64 KiB pages."""
    folder.mkdir()
    with sqlite3.connect(folder / "tiles.sqlite", isolation_level=None) as connection:
        connection.execute("PRAGMA page_size = 65536")
        connection.execute("PRAGMA journal_mode = WAL")
        steps, version = migrations._STEPS, migrations.SCHEMA_VERSION
        try:
            migrations._STEPS, migrations.SCHEMA_VERSION = steps[:1], 1
            migrations.migrate(connection)
        finally:
            migrations._STEPS, migrations.SCHEMA_VERSION = steps, version
        connection.execute(
            "INSERT INTO run (id, run, name, instrument, stream, state, epoch, rev, epoch_rev, levels, n_tiles,"
            " n_placements, created_ns, updated_ns, settings, start_json, start)"
            " VALUES (1, ?, 'old', 'scope', 'cam', 'ended', 1, 1, 0, 1, ?, 0, 5, 5, '{}', '{}', x'')",
            (run, n_tiles),
        )
        connection.execute("INSERT INTO planes (t, c, z) VALUES (0, 0, 0)")
        connection.execute("INSERT INTO commits VALUES (1, 1, 0, 5, ?, 0, 0)", (n_tiles,))
        for col in range(n_tiles):
            tile = old_tile(col)
            connection.execute(
                "INSERT INTO tile_data VALUES (?, ?, ?, ?)",
                (col + 1, blob_crc32(tile.pzf, tile.coverage or b""), tile.coverage, tile.pzf),
            )
            connection.execute("INSERT INTO tiles VALUES (1, 0, 0, ?, 1, ?)", (col, col + 1))
    connection.close()


def downgrade(folder: Path) -> None:
    """Put the store of a closed run back to what the first version would have made of it."""
    path = folder / "tiles.sqlite"
    now = path.rename(folder / "tiles.sqlite.now")
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("PRAGMA page_size = 65536")
        connection.execute("PRAGMA journal_mode = WAL")
        steps, version = migrations._STEPS, migrations.SCHEMA_VERSION
        try:
            migrations._STEPS, migrations.SCHEMA_VERSION = steps[:1], 1
            migrations.migrate(connection)
        finally:
            migrations._STEPS, migrations.SCHEMA_VERSION = steps, version
        connection.execute("ATTACH ? AS now", (str(now),))
        [(name,)] = connection.execute("SELECT tile_file FROM now.run").fetchall()
        for table in ("run", "planes", "placements", "placements_box", "gone", "commits", "events", "report"):
            columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA main.table_info({table})"))
            connection.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM now.{table}")
        blobs = (folder / name).read_bytes()
        rows = connection.execute(
            "SELECT plane, level, row, col, rev, offset, nbytes, coverage_nbytes, crc32 FROM now.tiles"
        ).fetchall()
        for number, (*place, rev, offset, nbytes, coverage_nbytes, crc32) in enumerate(rows, 1):
            blob = blobs[offset : offset + nbytes]
            end = nbytes - (coverage_nbytes or 0)
            coverage = None if coverage_nbytes is None else blob[end:]
            connection.execute("INSERT INTO tile_data VALUES (?, ?, ?, ?)", (number, crc32, coverage, blob[:end]))
            connection.execute("INSERT INTO tiles VALUES (?, ?, ?, ?, ?, ?)", (*place, rev, number))
        connection.execute("DETACH now")
    connection.close()
    for path in (now, folder / name):
        path.unlink()


def old_tile(col: int) -> StoredTile:
    """The tile of a column in it."""
    return StoredTile(bytes([col % 250]) * (1000 + col), 1, None if col % 3 else b"%d" % col)
