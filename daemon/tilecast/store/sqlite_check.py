"""What `fsck` asks of a run's SQLite file: is it whole, and do its tables agree with one another?

Whether tiles agree with the journal, or upper levels with lower ones, is not known here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from isal import isal_zlib

from tilecast.geometry import PlaneKey, TileKey

_TICK_STEPS = 1_000_000  # of SQLite's virtual machine, between two ticks: some hundredths of a second

# What finds anything wrong: a query for one number, and the sentence that tells it.
_CONTRADICTIONS = (
    (
        "SELECT count(*) FROM tiles t LEFT JOIN tile_data d ON d.id = t.data WHERE d.id IS NULL",
        "{} tiles have lost their pixels; rebuild the run",
    ),
    (
        "SELECT count(*) FROM tile_data WHERE id NOT IN (SELECT data FROM tiles)",
        "{} blobs of pixels belong to no tile; they only waste room, and a rebuild drops them",
    ),
    (
        "SELECT count(*) - count(DISTINCT data) FROM tiles",
        "{} tiles share the pixels of another; rebuild the run",
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
    SELECT k.t, k.c, k.z, t.level, t.row, t.col, t.data FROM tiles t JOIN planes k ON k.id = t.plane
    ORDER BY t.plane, t.level, t.row, t.col
"""


class BadTile(NamedTuple):
    """A tile whose pixels cannot be had: its checksum is `wrong`, or it is `lost`: its row or page is not there."""

    plane: PlaneKey
    key: TileKey
    lost: bool


def blob_crc32(pzf: bytes | memoryview | bytearray, coverage: bytes | None) -> int:
    """The checksum that lies beside a tile's blobs."""
    crc: int = isal_zlib.crc32(coverage or b"", isal_zlib.crc32(pzf))
    return crc


def contradictions(connection: sqlite3.Connection, on_tick: Callable[[], None] = lambda: None) -> list[str]:
    """One sentence per finding; `on_tick` is called before each step, and now and then during one."""
    findings = structure(connection, on_tick)
    for bad in damaged_tiles(connection, on_tick):
        if not bad.lost:  # else it has been said
            findings.append(f"the pixels of {bad.key} in {bad.plane} are damaged (wrong checksum); rebuild the run")
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


def damaged_tiles(connection: sqlite3.Connection, on_tick: Callable[[], None] = lambda: None) -> list[BadTile]:
    """Tiles whose checksum is wrong, or whose pixels cannot be read, as far as tiles can be listed at all."""
    bad = []
    with _ticking(connection, on_tick):
        try:
            for t, c, z, level, row, col, data in connection.execute(_TILES):
                found = _blob_flaw(connection, data)
                if found is not None:
                    bad.append(BadTile(PlaneKey(t, c, z), TileKey(level, row, col), found))
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


def _blob_flaw(connection: sqlite3.Connection, data: int) -> bool | None:
    """Whether the pixels of a tile are lost (True) or damaged (False); None if they are as they were written."""
    try:
        row = connection.execute("SELECT crc32, coverage, pzf FROM tile_data WHERE id = ?", (data,)).fetchone()
    except sqlite3.DatabaseError:
        return True
    if row is None:
        return True
    crc32, coverage, pzf = row
    return None if blob_crc32(pzf, coverage) == crc32 else False


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
