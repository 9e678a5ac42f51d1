"""What has become of every file of a watched folder; kept on disk, so that a restart takes nothing twice.

Before a file is sent, it is written down here (and synced) which frames of which run it becomes; the daemon drops a
frame that it has already. So whenever the power fails, what was begun is sent again as the same frame, and is there
once. Files are known by their names in the folder; size, time and checksum tell whether one was written anew.

One thread uses a record.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

State: TypeAlias = Literal["sending", "taken", "rejected", "skipped"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    run TEXT PRIMARY KEY, subject TEXT NOT NULL, start TEXT NOT NULL, next_frame INTEGER NOT NULL,
    ended INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS files (
    name TEXT PRIMARY KEY, nbytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, state TEXT NOT NULL,
    run TEXT, frame INTEGER, planes TEXT, crc32 INTEGER, why TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sending ON files (name) WHERE state = 'sending';
"""


class Stamp(NamedTuple):
    """What differs once a file has been written again: its size and its time."""

    nbytes: int
    mtime_ns: int


class Plane(NamedTuple):
    """Where a frame lies: stage position of its centre in µm, and its plane (t, c, z)."""

    pos_um: tuple[float, float]
    tcz: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file that something has become of.

    Attributes
    ----------
    name : str
        In the watched folder, with the folder within it, if any.
    stamp : Stamp
    state : str
        `sending`: it may be in the run or not; `taken`: it is; `rejected`; `skipped`: it lay there before.
    run : str
        Uuid; empty for a file that is in none.
    frame : int
        The first of its frames.
    planes : tuple of Plane
        Its frames.
    crc32 : int
        Of its pixels.
    """

    name: str
    stamp: Stamp
    state: State
    run: str = ""
    frame: int = 0
    planes: tuple[Plane, ...] = ()
    crc32: int = 0


@dataclass(slots=True)
class KnownRun:
    """A run that was begun for a folder, or for a group of its files.

    Attributes
    ----------
    run : str
        Its uuid.
    subject : str
        The folder within the watched one, and the field `run` of the names; what the run is of.
    start : dict
        What `Publisher.start` was given.
    next_frame : int
    """

    run: str
    subject: str
    start: dict[str, Any]
    next_frame: int = 0


class Record:
    """The record of one watched folder; made if there is none.

    Parameters
    ----------
    path : Path
        A SQLite file.
    """

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(_SCHEMA)

    @property
    def is_new(self) -> bool:
        """Whether `looked` was never called."""
        return not self._database.execute("PRAGMA user_version").fetchone()[0]

    def looked(self) -> None:
        """Note that the folder was looked at for the first time."""
        self._database.execute("PRAGMA user_version = 1")

    def close(self) -> None:
        """Close the file; nothing is lost without it."""
        self._database.close()

    def file(self, name: str) -> KnownFile | None:
        """What became of a file; None if nothing did."""
        return next(self._files("name = ?", name), None)

    def sending(self) -> list[KnownFile]:
        """Files that were being sent when the daemon ended."""
        return list(self._files("state = 'sending'"))

    def open_runs(self) -> list[KnownRun]:
        """Runs that have not ended, oldest first."""
        rows = self._database.execute(
            "SELECT run, subject, start, next_frame FROM runs WHERE NOT ended ORDER BY rowid"
        ).fetchall()
        return [KnownRun(run, subject, json.loads(start), frame) for run, subject, start, frame in rows]

    def is_open(self, run: str) -> bool:
        """Whether a run has not ended."""
        row = self._database.execute("SELECT ended FROM runs WHERE run = ?", (run,)).fetchone()
        return row is not None and not row[0]

    def begin(self, run: KnownRun) -> None:
        """Note a run that is about to be started."""
        values = (run.run, run.subject, json.dumps(run.start), run.next_frame)
        with self._database:
            self._database.execute("INSERT INTO runs VALUES (?, ?, ?, ?, 0)", values)

    def end(self, run: str) -> None:
        """Note that a run has ended, or is to be forgotten; what was being sent into it may be taken again."""
        with self._database:
            self._database.execute("BEGIN")
            self._database.execute("DELETE FROM files WHERE state = 'sending' AND run = ?", (run,))
            self._database.execute("UPDATE runs SET ended = 1 WHERE run = ?", (run,))

    def note(self, files: Iterable[KnownFile], why: Mapping[str, str] | None = None) -> None:
        """Note what became of some files, all at once, durably; in place of what was known of them.

        Parameters
        ----------
        files : iterable of KnownFile
        why : mapping, optional
            By name, why they were rejected.
        """
        with self._database:
            self._database.execute("BEGIN")
            for file in files:
                self._database.execute(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        file.name, *file.stamp, file.state, file.run, file.frame, json.dumps(file.planes), file.crc32,
                        (why or {}).get(file.name, ""),
                    ),
                )  # fmt: skip
                if file.run:
                    self._database.execute(
                        "UPDATE runs SET next_frame = max(next_frame, ?) WHERE run = ?",
                        (file.frame + len(file.planes), file.run),
                    )

    def forget_rejected(self) -> None:
        """Have files that were set aside be looked at again."""
        self._database.execute("DELETE FROM files WHERE state = 'rejected'")

    def counts(self) -> dict[str, int]:
        """How many files there are in each state."""
        return dict(self._database.execute("SELECT state, count(*) FROM files GROUP BY state").fetchall())

    def _files(self, where: str, *arguments: str) -> Iterator[KnownFile]:
        query = f"SELECT name, nbytes, mtime_ns, state, run, frame, planes, crc32 FROM files WHERE {where}"
        with closing(self._database.execute(query, arguments)) as rows:
            for name, nbytes, mtime_ns, state, run, frame, planes, crc32 in rows:
                found = tuple(Plane((x, y), (t, c, z)) for (x, y), (t, c, z) in json.loads(planes))
                yield KnownFile(name, Stamp(nbytes, mtime_ns), state, run, frame, found, crc32)
