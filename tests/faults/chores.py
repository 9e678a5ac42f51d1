"""What a process does that is about to be killed, or whose disk fails: each function runs in a child of the nursery.

They say what they have been promised in a file of their own, outside the folder whose disk fails.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from faults.nursery import n_calls
from tilecast.geometry import Placement, PlaneKey, Rect, TileKey
from tilecast.service.archive import archive_run, unarchive_run
from tilecast.service.copying import copy_run
from tilecast.service.deletion import delete_run
from tilecast.service.rebuild import rebuild_run
from tilecast.service.retention import seal
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import Commit, NewRun, TileRow
from tilecast_protocol.errors import TilecastError
from tilecast_protocol.journal import Journal, RecordKind

RUN = "7b0e8a52-5b57-4c38-9f1e-2d0b4f9b6a11"
N_STEPS = 5
SEGMENT_BYTES = 9_000


def new_run() -> NewRun:
    """The run whose store `write_store` makes."""
    return NewRun(run=RUN, name="faults", instrument="scope", stream="cam", start=b"", settings={"tile_size": 64})


def payload(step: int) -> bytes:
    """What is written in a step; not the same twice."""
    return bytes([step + 1]) * 3000


def commit(step: int) -> Commit:
    """The commit of a step: a tile of its own, one that all write, one that the next takes back, a placement."""
    plane = PlaneKey()
    return Commit(
        tiles=[
            TileRow(plane, TileKey(0, step, 0), payload(step)),
            TileRow(plane, TileKey(1, 0, 0), payload(step)),
            TileRow(plane, TileKey(0, -1 - step, 5), payload(step)),
        ],
        gone=[(plane, TileKey(0, -step, 5))] if step else [],
        placements=[Placement(step, 0, plane, 64 * step, 0, 64, 64, "stage", step)],
        levels=2,
        bboxes={plane: Rect(0, 0, 64 * (step + 1), 64)},
        events=[("step", {"step": step})],
    )


class Promises:
    """Lines that outlive the process: what it was told is safe, what went wrong, and how often it used the disk."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def say(self, what: str, detail: object) -> None:
        """Add a line."""
        os.write(self._fd, f"{what} {detail}\n".encode())


def write_journal(folder: str, promises: str) -> None:
    """Append, sync and close: five images in two segments or more."""
    said = Promises(promises)
    try:
        with Journal.create(Path(folder) / "journal", RUN, segment_bytes=SEGMENT_BYTES) as journal:
            for step in range(N_STEPS):
                parts = [payload(step)]
                journal.append(RecordKind.IMAGE, topic="tc1/a/b", header=b"", parts=parts, t_recv_ns=1, frame=step)
                if step != 2:
                    journal.sync()
                    said.say("safe", step)
    except TilecastError as error:
        said.say("error", error)
    said.say("calls", n_calls())


def write_store(folder: str, promises: str) -> None:
    """Create, commit, carry over in between, and close."""
    said = Promises(promises)
    try:
        with SqliteStore.create(Path(folder), new_run()) as store:
            for step in range(N_STEPS):
                store.commit(commit(step))
                said.say("safe", step)
                if step == 2:
                    store.checkpointer.settle()
    except TilecastError as error:
        said.say("error", error)
    said.say("calls", n_calls())


def die_after_a_commit(folder: str, promises: str) -> None:
    """Make a second commit, which may fail; and die in the third, whose tiles are written already."""
    said = Promises(promises)
    dies = False

    def clock_ns() -> int:
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return time.time_ns()

    store = SqliteStore.open(Path(folder), clock_ns=clock_ns)
    said.say("calls", n_calls())
    try:
        store.commit(commit(1))
    except TilecastError as error:
        said.say("error", error)
    said.say("calls", n_calls())
    dies = True
    store.commit(commit(2))


def open_store(folder: str, promises: str) -> None:
    """Open a store, which may have to be brought up to date, and close it."""
    said = Promises(promises)
    try:
        SqliteStore.open(Path(folder)).close()
    except TilecastError as error:
        said.say("error", error)
    said.say("calls", n_calls())


def rebuild(folder: str, promises: str) -> None:
    """Make a run's tiles anew."""
    said = Promises(promises)
    try:
        rebuild_run(Path(folder))
    except TilecastError as error:
        said.say("error", error)
    said.say("calls", n_calls())


def drop_journal(folder: str, promises: str) -> None:
    """Seal a run."""
    said = Promises(promises)
    try:
        seal(Path(folder), "operator")
    except TilecastError as error:
        said.say("error", error)
    said.say("calls", n_calls())


def _runs(folder: str) -> Path:
    """The one run in a folder of runs."""
    [run] = [path.parent for path in Path(folder).glob("*-*/frozen.json") if not path.parent.suffix]
    return run


def copy_live(folder: str, promises: str) -> None:
    """Copy a run beside it."""
    said = Promises(promises)
    try:
        copy_run(_runs(folder), Path(folder) / "copies")
        said.say("safe", 1)
    except TilecastError as error:
        said.say("error", error)
    said.say("calls", n_calls())


def delete(folder: str, promises: str) -> None:
    """Delete a run."""
    said = Promises(promises)
    try:
        delete_run(_runs(folder), "operator")
        said.say("safe", 1)
    except TilecastError as error:
        said.say("error", error)
    said.say("calls", n_calls())


def archive(folder: str, promises: str) -> None:
    """Archive a run, and delete it if nothing has come since."""
    said = Promises(promises)
    try:
        seen = archive_run(_runs(folder), Path(folder) / "scan.tar")
        said.say("safe", 1)
        delete_run(_runs(folder), "archived", if_seen=seen)
    except TilecastError as error:
        said.say("error", error)
    said.say("calls", n_calls())


def unarchive(folder: str, promises: str) -> None:
    """Bring a run back."""
    said = Promises(promises)
    try:
        unarchive_run(Path(folder) / "scan.tar", Path(folder))
        said.say("safe", 1)
    except TilecastError as error:
        said.say("error", error)
    said.say("calls", n_calls())
