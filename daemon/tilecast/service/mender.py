"""Has ruined runs made good while the daemon serves the others: at its start, and when a mosaic gets stuck.

A run that the last daemon had open is put right before it is loaded: a store that cannot be opened is set aside, an
empty one takes its place, and what is in the journal goes into it the usual way. All others are repaired one after the
other in a thread, as `tilecast fsck --repair` does it. What cannot be repaired is remembered, for `health`.

Not known here: how a repair is done, who has a run open, what is told to viewers.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from tilecast.errors import RunLockedError, StoreError, StoreTooNewError
from tilecast.service import runs
from tilecast.service.committer import as_new_run
from tilecast.store.folders import REBUILD_NAME, FoundRun, discard, list_runs, swap_in
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import StoreDamagedError, StoreUnfinishedError
from tilecast_protocol.errors import JournalTooNewError, TilecastError
from tilecast_protocol.journal import Journal

log = structlog.get_logger()


class Mender:
    """The thread that has runs repaired.

    Parameters
    ----------
    root : Path
        The folder of the runs.
    repair : callable
        Repairs a run, loaded or not; may take long, and raise.
    """

    def __init__(self, root: Path, repair: Callable[[str], object]) -> None:
        self._root = root
        self._repair = repair
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._seen: set[str] = set()
        self._beyond: dict[str, str] = {}
        self._newer: dict[str, str] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="tilecast-mender", daemon=True)

    def start(self) -> None:
        """Look for ruined runs, and have them repaired; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no other repair; one that goes on is ended by whoever carries it out."""
        self._stopping = True
        self._queue.put(None)

    def mend(self, run: str) -> None:
        """Have a run repaired, if that was not tried before."""
        if run not in self._seen:
            self._seen.add(run)
            self._queue.put(run)

    def beyond(self) -> dict[str, str]:
        """Runs that could not be repaired, and why."""
        return dict(self._beyond)

    def newer(self) -> dict[str, str]:
        """Runs that a newer tilecast wrote, and what to do about each."""
        return dict(self._newer)

    def _run(self) -> None:
        for found in list_runs(self._root):
            if self._stopping:
                return
            try:
                self._look_at(found)
            except (StoreTooNewError, JournalTooNewError) as error:
                text = "a newer tilecast wrote this run; it is left alone, the others go on"
                log.error(text, run=found.run, why=str(error))
                self._newer[found.run] = str(error)
        while (run := self._queue.get()) is not None and not self._stopping:
            self._mend(run)

    def _look_at(self, found: FoundRun) -> None:
        """Note what is wrong with a run, and have it repaired; StoreTooNewError or JournalTooNewError if nothing is."""
        for look in (lambda: SqliteReader(found.folder).close(), lambda: runs.read_frozen(found.folder)):
            try:
                look()
            except StoreTooNewError:
                raise
            except (StoreError, ValueError):
                pass  # damaged, or not there yet: that is for the repair
        if (found.folder / runs.JOURNAL_NAME).is_dir():
            self._look_at_journal(found)
            if found.info is None and not found.making:
                self.mend(found.run)

    def _look_at_journal(self, found: FoundRun) -> None:
        """Note a recording that is damaged, as far as opening it tells."""
        try:
            with Journal.open(found.folder / runs.JOURNAL_NAME, readonly=True) as journal:
                damage = [item.what for item in journal.damage if item.durable and not item.derived]
        except JournalTooNewError:
            raise
        except TilecastError as error:
            damage = [str(error)]
        if damage:
            why = f"{'; '.join(damage[:3])}: `tilecast fsck` tells what is lost"
            log.error("a recording is damaged; the other runs go on", run=found.run, why=why)
            self._beyond[found.run] = why

    def _mend(self, run: str) -> None:
        if run in self._newer:
            return
        log.warning("run is damaged; it is being repaired, the others go on", run=run)
        try:
            self._repair(run)
        except RunLockedError:
            log.info("a damaged run is in use elsewhere; left alone", run=run)
        except Exception as error:  # noqa: BLE001 - one run, whatever it is: the others must not suffer
            if not self._stopping:
                log.error("run cannot be repaired; the others go on", run=run, why=str(error))
                self._beyond[run] = str(error)
        else:
            self._beyond.pop(run, None)


def make_room(root: Path, active: Iterable[str]) -> None:
    """Put an empty store in the place of a ruined one, for runs that are about to be loaded.

    What fails is logged: such a run cannot be loaded, and the others can.
    """
    for run in active:
        folder = root / run
        try:
            if _is_ruined(folder):
                _replace(folder)
                log.warning("the store was ruined; the mosaic is made anew from the journal", run=run)
        except (TilecastError, OSError) as error:
            log.error("run cannot be repaired; the others go on", run=run, why=str(error))


def _is_ruined(folder: Path) -> bool:
    """Whether a run's store cannot be opened; one that was never made is not ruined."""
    try:
        with SqliteReader(folder) as reader:
            reader.info()
    except (StoreUnfinishedError, StoreTooNewError):
        return False
    except (StoreDamagedError, ValueError):
        return True
    return False


def _replace(folder: Path) -> None:
    """Set a ruined store aside, and begin another under an epoch of its own."""
    frozen = runs.read_frozen(folder)
    with RunLock(folder) as lock:
        with Journal.open(folder / runs.JOURNAL_NAME, readonly=True) as journal:
            start = runs.first_start(journal)
        discard(folder, lock=lock)
        SqliteStore.create(folder, as_new_run(start, frozen.as_dict()), file_name=REBUILD_NAME, lock=lock).close()
        swap_in(folder, lock=lock, reason="made anew: the old store was ruined")
