"""Deletes runs so that each is there whole or gone whole, and keeps a log of those that are gone.

A deletion has three steps. What it deletes is written into the run's folder (`deletion.json`); the folder gets another
name, `<run>.deleted`, and from then on the run is gone; a line is added to `deletions.jsonl` beside the runs, and the
folder is removed. A process that is killed before the second step has changed nothing; after it, `finish_begun` does
the rest, at the next start of the daemon. So it does with what a copy, or an archive that was being unpacked, left
behind half made (`<run>.partial`).

A run that is open is never deleted. Not known here: who may delete, and who is told.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tilecast.errors import RunLockedError, StoreError
from tilecast.service.runs import ACTIVE_NAME, JOURNAL_NAME, write_durably
from tilecast.store.folders import FoundRun, folder_nbytes, look_into
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_connection import explained, sync_folder
from tilecast.store.tile_store import check_run_id
from tilecast_protocol.errors import QueryError

LOG_NAME = "deletions.jsonl"
NOTE_NAME = "deletion.json"
_DELETED, _PARTIAL = ".deleted", ".partial"
_ATTEMPTS = 100


def seen(folder: Path) -> tuple[int, int]:
    """What tells whether anything has come into a run since: when its store was last written, bytes of its journal."""
    info = look_into(folder).info
    journal = folder / JOURNAL_NAME
    # Lengths, not blocks: what lies on the disk of a file that was just written changes by itself.
    nbytes = sum(path.stat().st_size for path in journal.glob("*.tcj")) if journal.is_dir() else 0
    return 0 if info is None else info.updated_ns, nbytes


def why_not(found: FoundRun) -> str:
    """Why a run may not be deleted, whoever wants it; empty if it may."""
    if found.info is not None and found.info.state == "open":
        return f"run {found.run} is open; end it first"
    if found.info is None and (found.folder / ACTIVE_NAME).exists():
        return (
            f"run {found.run} may be open: it cannot be read ({found.error}), and was not closed in good order; "
            "start the daemon, which repairs it"
        )
    return ""


def delete_run(
    folder: Path,
    why: str,
    *,
    if_seen: tuple[int, int] | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> dict[str, Any]:
    """Delete everything of a run that nobody has open.

    Parameters
    ----------
    folder : Path
        Of the run.
    why : str
        For the log.
    if_seen : tuple of int, optional
        What `seen` gave: if something has come since, nothing is done.
    clock_ns : callable
        UTC.

    Returns
    -------
    dict
        The line of the log.

    Raises
    ------
    QueryError
        `conflict`, if it is open, or something has come since.
    RunLockedError
        If somebody writes it.
    StoreError
        If it cannot be deleted; the message says whether it is gone all the same.
    """
    with RunLock(folder):
        found = look_into(folder)
        if because := why_not(found):
            raise QueryError("conflict", because)
        if if_seen is not None and seen(folder) != if_seen:
            raise QueryError("conflict", f"something has come into run {found.run} meanwhile; it is kept")
        entry = _entry(found, why, clock_ns())
        gone = folder.with_name(folder.name + _DELETED)
        with explained(folder, "delete it"):
            if gone.exists():  # of the same run, which was brought back since
                _finish_deleted(gone)
            write_durably(folder / NOTE_NAME, json.dumps(entry, ensure_ascii=False).encode())
            folder.rename(gone)
            sync_folder(folder.parent)
        with explained(gone, "remove what is left of a run that is deleted"):
            _finish_deleted(gone)
    return entry


def deletions(root: Path) -> list[dict[str, Any]]:
    """The log of deletions, oldest first; a line that a crash has cut short is passed over."""
    found = []
    with suppress(FileNotFoundError):
        for line in (root / LOG_NAME).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
    return found


def finish_begun(root: Path) -> Iterator[tuple[str, StoreError | None]]:
    """Finish deletions that were begun, and remove what is left of copies that were not finished.

    What a living process works on is left alone.

    Yields
    ------
    (str, StoreError or None)
        What is no more, in words; or what kept it from being removed.
    """
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        run, suffix = path.stem, path.suffix
        if not is_unfinished(path):
            continue
        try:
            with RunLock(path), explained(path, "remove it"):
                if suffix == _DELETED:
                    _finish_deleted(path)
                else:
                    _remove(path)
        except RunLockedError:
            continue
        except StoreError as error:
            if path.exists():
                yield path.name, error
        else:
            yield (f"the deletion of run {run}" if suffix == _DELETED else f"an unfinished copy of run {run}"), None


def partial_folder(root: Path, run: str) -> Path:
    """Where a copy of a run is made before it gets its name."""
    check_run_id(run)
    return root / (run + _PARTIAL)


def is_unfinished(path: Path) -> bool:
    """Whether this is what a deletion or a copy of a run works on."""
    try:
        check_run_id(path.stem)
    except StoreError:
        return False
    return path.suffix in (_DELETED, _PARTIAL) and path.is_dir()


def _entry(found: FoundRun, why: str, t_ns: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"t_ns": t_ns, "run": found.run, "why": why, "nbytes": folder_nbytes(found.folder)}
    if found.info is not None:
        info = found.info
        entry |= {
            "name": info.name,
            "instrument": info.instrument,
            "stream": info.stream,
            "state": info.state,
            "created_ns": info.created_ns,
            "n_frames": info.n_placements,
        }
    return entry


def _finish_deleted(gone: Path) -> None:
    """Note a deletion, unless that was done, and remove the folder."""
    note = gone / NOTE_NAME
    with suppress(FileNotFoundError, ValueError):  # it is the first file to go
        entry = json.loads(note.read_text())
        if entry not in deletions(gone.parent):
            _append(gone.parent / LOG_NAME, entry)
        note.unlink()
    _remove(gone)


def _append(log: Path, entry: dict[str, Any]) -> None:
    """Add a line, durably; one that was cut short before it is ended first."""
    is_new = not log.exists()
    with log.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(log.parent)


def _remove(folder: Path) -> None:
    """Remove a folder, whoever else removes it at the same time."""
    for _ in range(_ATTEMPTS):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            if folder.exists():
                continue
        return
