"""Tiles set aside on disk while an export is made, so that memory does not grow with the mosaic.

A spool is a database in a temporary file that belongs to one export: nothing in it outlives that, so nothing is ever
synced, and a spool that a killed export left behind is worth nothing to anybody. It holds tiles as stored (PZF and the
bits of the coverage) under plane, level, row and column.
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tilecast.reading import PlaneKey, TileKey
from tilecast_plugins.run import Blob

_CACHE_KIB = 4096


class Spool:
    """Tiles by plane and key."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "page_size=65536", f"cache_size=-{_CACHE_KIB}"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute(
            "CREATE TABLE tiles (id INTEGER PRIMARY KEY, t, c, z, level, row, col, rev, bits, pzf,"
            " UNIQUE (t, c, z, level, row, col))"
        )

    def put(self, plane: PlaneKey, key: TileKey, blob: Blob) -> None:
        """Keep a tile, instead of one that is there."""
        self._database.execute(
            "INSERT OR REPLACE INTO tiles (t, c, z, level, row, col, rev, bits, pzf)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*plane, *key, blob.rev, blob.bits, blob.pzf),
        )

    def drop(self, plane: PlaneKey, key: TileKey) -> None:
        """Forget a tile."""
        self._database.execute(f"DELETE FROM tiles WHERE {_WHERE}", (*plane, *key))

    def get(self, plane: PlaneKey, key: TileKey) -> Blob | None:
        """A tile, or None."""
        found = self._database.execute(f"SELECT pzf, rev, bits FROM tiles WHERE {_WHERE}", (*plane, *key)).fetchone()
        return None if found is None else Blob(*found)

    def rev(self, plane: PlaneKey, key: TileKey) -> int | None:
        """The rev of a tile, or None."""
        found = self._database.execute(f"SELECT rev FROM tiles WHERE {_WHERE}", (*plane, *key)).fetchone()
        return None if found is None else int(found[0])

    def clear(self) -> None:
        """Forget all."""
        self._database.execute("DELETE FROM tiles")

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()


_WHERE = "t = ? AND c = ? AND z = ? AND level = ? AND row = ? AND col = ?"


@contextlib.contextmanager
def spooled(folder: Path) -> Iterator[Spool]:
    """An empty spool in a file below `folder`, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=".tilecast-spool-", dir=folder) as made:
        spool = Spool(Path(made) / "tiles.sqlite")
        try:
            yield spool
        finally:
            spool.close()
