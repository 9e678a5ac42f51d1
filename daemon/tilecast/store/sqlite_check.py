"""What `fsck` asks of a run's store: is it whole, and do its tables and the file of tiles agree with one another?

Whether tiles agree with the journal, or upper levels with lower ones, is not known here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tilecast.errors import StoreError
from tilecast.geometry import PlaneKey, TileKey
from tilecast.store.sqlite_connection import StoreConnection
from tilecast.store.tile_file import Extent, blob_crc32

_TICK_STEPS = 1_000_000  # of SQLite's virtual machine, between two ticks: some hundredths of a second

# What finds anything wrong: a query for one number, and the sentence that tells it.
_CONTRADICTIONS = (
    (
        "SELECT count(*) FROM (SELECT offset < lag(offset + nbytes) OVER (ORDER BY offset) AS shares"
        " FROM tiles) WHERE shares",
        "{} tiles share the bytes of another; rebuild the run",
    ),
    (
        "SELECT count(*) FROM (SELECT plane FROM tiles UNION ALL SELECT plane FROM gone UNION ALL"
        " SELECT plane FROM placements) WHERE plane NOT IN (SELECT id FROM planes)",
        "{} rows name a plane that does not exist; rebuild the run",
    ),
    (
        "SELECT count(*) FROM tiles JOIN gone USING (plane, level, row, col)",
        "{} tiles are both there and gone; rebuild the run",
    ),
    (
        "SELECT count(*) FROM tiles WHERE level >= (SELECT levels FROM run)",
        "{} tiles lie above the highest level of the run; rebuild the run",
    ),
    (
        "SELECT count(*) FROM (SELECT rev FROM tiles UNION ALL SELECT rev FROM gone UNION ALL"
        " SELECT rev FROM placements) WHERE rev NOT BETWEEN 1 AND (SELECT rev FROM run)",
        "{} rows carry a rev that no commit of this run had; rebuild the run",
    ),
    (
        "SELECT abs(n_tiles - (SELECT count(*) FROM tiles)) FROM run",
        "the run's count of tiles is wrong by {}; rebuild the run",
    ),
    (
        "SELECT abs(n_placements - (SELECT count(*) FROM placements)) FROM run",
        "the run's count of placements is wrong by {}; rebuild the run",
    ),
    (
        "SELECT count(*) FROM placements p LEFT JOIN placements_box b ON b.id = p.id"
        " WHERE b.id IS NULL OR (b.plane0, b.plane1, b.row0, b.row1, b.col0, b.col1) IS NOT"
        " (p.plane, p.plane, p.row, p.row + p.height - 1, p.col, p.col + p.width - 1)",
        "the spatial index misplaces or lacks {} placements; rebuild the run",
    ),
    (
        "SELECT count(*) FROM placements_box WHERE id NOT IN (SELECT id FROM placements)",
        "the spatial index has {} entries without a placement; rebuild the run",
    ),
    (
        "SELECT coalesce(max(rev), 0) IS NOT (SELECT rev FROM run)"
        " OR count(*) IS NOT coalesce(max(rev) - min(rev) + 1, 0) FROM commits",
        "the history of commits has holes, or does not end with the run's rev; rebuild the run",
    ),
)


_TILES = """
    SELECT k.t, k.c, k.z, t.level, t.row, t.col, t.offset, t.nbytes, t.crc32
    FROM tiles t JOIN planes k ON k.id = t.plane
    ORDER BY t.plane, t.level, t.row, t.col
"""


class BadTile(NamedTuple):
    """A tile whose pixels cannot be had: its checksum is wrong, or it is `lost`: its bytes are not there."""

    plane: PlaneKey
    key: TileKey
    lost: bool


def contradictions(connection: StoreConnection, on_tick: Callable[[], None] = lambda: None) -> list[str]:
    """One sentence per finding; `on_tick` is called before each step, and now and then during one."""
    findings = structure(connection, on_tick)
    for bad in damaged_tiles(connection, on_tick):
        flaw = "lost" if bad.lost else "damaged (wrong checksum)"
        findings.append(f"the pixels of {bad.key} in {bad.plane} are {flaw}; rebuild the run")
    return findings


def structure(connection: sqlite3.Connection, on_tick: Callable[[], None] = lambda: None) -> list[str]:
    """As `contradictions`, but for what the blobs hold."""
    findings = []
    with _ticking(connection, on_tick):
        try:
            for (line,) in connection.execute("PRAGMA integrity_check").fetchall():
                if line != "ok":
                    findings.append(f"the database file is damaged ({line}); rebuild the run")
            (boxes,) = connection.execute("SELECT rtreecheck('placements_box')").fetchone()
            if boxes != "ok":
                findings.append(f"the spatial index of placements is damaged ({boxes}); rebuild the run")
            for query, sentence in _CONTRADICTIONS:
                on_tick()
                (n_wrong,) = connection.execute(query).fetchone()
                if n_wrong:
                    findings.append(sentence.format(n_wrong))
        except sqlite3.DatabaseError as error:
            findings.append(f"the database file is damaged ({error}); rebuild the run")
    return findings


def damaged_tiles(connection: StoreConnection, on_tick: Callable[[], None] = lambda: None) -> list[BadTile]:
    """Tiles whose checksum is wrong, or whose bytes cannot be read, as far as tiles can be listed at all."""
    bad = []
    with _ticking(connection, on_tick):
        try:
            for t, c, z, level, row, col, offset, nbytes, crc32 in connection.execute(_TILES):
                on_tick()
                lost, right = False, False
                try:
                    right = blob_crc32(connection.tile_file.read(Extent(offset, nbytes))) == crc32
                except (StoreError, OSError):
                    lost = True
                if not right:
                    bad.append(BadTile(PlaneKey(t, c, z), TileKey(level, row, col), lost))
        except sqlite3.DatabaseError:
            pass  # `structure` says so
    return bad


def misplaced(connection: sqlite3.Connection) -> set[int]:
    """Frames whose placement is not that of the spatial index: one of the two is damaged, who knows which."""
    query = (
        "SELECT p.frame FROM placements p LEFT JOIN placements_box b ON b.id = p.id"
        " WHERE b.id IS NULL OR (b.plane0, b.plane1, b.row0, b.row1, b.col0, b.col1) IS NOT"
        " (p.plane, p.plane, p.row, p.row + p.height - 1, p.col, p.col + p.width - 1)"
    )
    return {frame for (frame,) in connection.execute(query)}


@contextmanager
def _ticking(connection: sqlite3.Connection, on_tick: Callable[[], None]) -> Iterator[None]:
    """Call `on_tick` now, and now and then while queries run."""

    def tick() -> int:
        on_tick()
        return 0  # anything else would end the query

    connection.set_progress_handler(tick, _TICK_STEPS)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)
