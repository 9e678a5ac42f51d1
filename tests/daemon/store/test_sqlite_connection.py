"""Connections: what is carried to the disk, and what a lock survives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tilecast.store.sqlite_connection import connect, write_back

MIB = 2**20

_INTRUDE = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 512, 0x40000002)
    except OSError:
        print("locked")
    else:
        print("free")
"""


def cached_kib(path: Path) -> int:
    """How much of a file is in the page cache, as `fincore` tells."""
    done = subprocess.run(["fincore", "-b", "-n", "-o", "RES", str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout) // 1024


def test_only_the_end_of_the_file_stays_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "tiles.sqlite"
    connection = connect(path, "rwc", cache_kib=1024)
    connection.execute("CREATE TABLE noise (bytes BLOB)")
    connection.executemany("INSERT INTO noise VALUES (randomblob(?))", [(MIB,)] * 16)
    assert cached_kib(path) > 15 * 1024
    write_back(path, 4 * MIB)
    assert 3 * 1024 < cached_kib(path) < 6 * 1024
    assert connection.execute("SELECT sum(length(bytes)) FROM noise").fetchone() == (16 * MIB,)
    connection.close()


def test_the_locks_on_the_file_are_kept(tmp_path: Path) -> None:
    """Closing any descriptor of a file drops all locks of the process on it: so none may be opened and closed."""
    path = tmp_path / "tiles.sqlite"
    connection = connect(path, "rwc", cache_kib=1024)
    connection.execute("CREATE TABLE t (n INTEGER)")
    connection.execute("BEGIN")
    connection.execute("SELECT * FROM t").fetchall()  # SQLite's shared lock, for as long as the transaction lasts

    def intruder() -> str:
        done = subprocess.run([sys.executable, "-c", _INTRUDE, str(path)], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert intruder() == "locked"
    write_back(path, 0)
    assert intruder() == "locked"
    connection.execute("ROLLBACK")
    assert intruder() == "free"
    connection.close()


def test_a_file_that_nobody_has_open_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "tiles.sqlite"
    path.write_bytes(b"x")
    write_back(path, 0)
