"""Drops journals that are not needed any more, and so seals their runs: they can be viewed, and nothing else.

Journals are kept for ever unless the configuration says otherwise. What may be dropped is decided by `choose`, a pure
function of what lies on disk. A run that is open, or went idle a short while ago, is never touched; and before any
journal is dropped, its run is checked whole (`service.fsck`), and every frame in it must have its place in the mosaic.
What was found is kept beside the run (`checked.json`), so that it is not looked for again every hour.

Sealing has two steps, so that a run is whole or sealed whenever this is killed: first its store says so, durably; then
the journal gets another name and is deleted. What was begun is finished at the next start.

While a run is checked it is locked. Whoever needs it meanwhile says `give_way`: the check is broken off, and tried
again later.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from tilecast.errors import RunLockedError, StoreError
from tilecast.ingest.live_run import UNPLACED_BECAUSE
from tilecast.ingest.verdicts import NO_LONGER
from tilecast.service import runs
from tilecast.service.config import Config
from tilecast.service.deletion import finish_begun
from tilecast.service.fsck import check_run, describe
from tilecast.store.folders import folder_nbytes, list_runs
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_connection import sync_folder
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import RunInfo
from tilecast_protocol.errors import QueryError, TilecastError
from tilecast_protocol.journal import Journal
from tilecast_protocol.ranges import RangeSet

log = structlog.get_logger()

CHECKED_NAME = "checked.json"
_DROPPED_NAME = "journal.dropped"
_INTERVAL_S = 3600.0
_DAY_NS = 86_400 * 10**9
_NICE = 19
_GIVE_WAY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The options `retention.*`, in the units of this module."""

    drop_checked: bool = False
    max_bytes: int = 0
    max_age_ns: int = 0
    seal_after_ns: int = 7 * _DAY_NS

    @classmethod
    def of(cls, config: Config) -> Policy:
        """What is configured."""
        options = config.retention
        return cls(
            drop_checked=options.journals == "drop-checked",
            max_bytes=options.max_bytes,
            max_age_ns=round(options.max_age_days * _DAY_NS),
            seal_after_ns=round(options.seal_after_days * _DAY_NS),
        )

    @property
    def drops(self) -> bool:
        """Whether anything is ever dropped."""
        return self.drop_checked or self.max_bytes > 0 or self.max_age_ns > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A run that has its journal.

    Attributes
    ----------
    state : str
        `open`, `idle` or `ended`.
    updated_ns : int
        When its store was last written.
    nbytes : int
        Of its journal.
    is_active : bool
        Whether somebody has it loaded, or died while having it.
    """

    run: str
    state: str
    updated_ns: int
    nbytes: int
    is_active: bool = False


def why_not(found: Recorded, policy: Policy, now_ns: int) -> str:
    """Why the journal of a run may not be dropped, whatever anybody wants; empty if it may."""
    if found.state == "open":
        return f"run {found.run} is open; end it first"
    left_ns = found.updated_ns + policy.seal_after_ns - now_ns
    if found.state == "idle" and left_ns > 0:
        return (
            f"run {found.run} went idle, its publisher may come back, and its journal is kept for another "
            f"{left_ns / _DAY_NS:.1f} days (retention.seal_after_days); end it first if it is over"
        )
    if found.state == "ended" and found.is_active:
        return f"run {found.run} was not closed in good order; start the daemon, which makes it whole"
    return ""


def choose(recorded: Iterable[Recorded], policy: Policy, now_ns: int) -> list[tuple[Recorded, str]]:
    """Which journals are to be dropped, in this order, and why: the oldest first.

    >>> day = 86_400 * 10**9
    >>> old, new = (Recorded(run=run, state="ended", updated_ns=n * day, nbytes=100) for n, run in enumerate("ab"))
    >>> [(one.run, why) for one, why in choose([new, old], Policy(max_bytes=150), 2 * day)]
    [('a', 'retention.max_bytes')]
    """
    everything = sorted(recorded, key=lambda one: one.updated_ns)
    excess = sum(one.nbytes for one in everything) - policy.max_bytes if policy.max_bytes else 0
    chosen = []
    for one in everything:
        if why_not(one, policy, now_ns):
            continue
        if policy.max_age_ns and now_ns - one.updated_ns > policy.max_age_ns:
            why = "retention.max_age_days"
        elif policy.drop_checked:
            why = "retention.journals"
        elif excess > 0:
            why = "retention.max_bytes"
        else:
            continue
        excess -= one.nbytes
        chosen.append((one, why))
    return chosen


# ---- what lies on disk -----------------------------------------------------------------------------------------------


def look(folder: Path, info: RunInfo) -> Recorded | None:
    """What there is to know of a run for `choose`; None if it has no journal, or is sealed."""
    journal = folder / runs.JOURNAL_NAME
    if info.state == "sealed" or not journal.is_dir():
        return None
    return Recorded(
        run=info.run,
        state=info.state,
        updated_ns=info.updated_ns,
        nbytes=folder_nbytes(journal),
        is_active=(folder / runs.ACTIVE_NAME).exists(),
    )


def objections(folder: Path, progress: Callable[[str, int, int], None] = lambda *_: None) -> list[str]:
    """What speaks against dropping a run's journal: whatever a whole check finds, and frames without a place.

    Raises
    ------
    RunLockedError
        If it is being written.
    TilecastError
        If it cannot be checked.
    """
    found = [describe(finding) for finding in check_run(folder, progress=progress)]
    placed = RangeSet()
    with SqliteReader(folder) as reader:
        report = reader.info().report or {}
        for row in reader.placements():
            placed.add(row.placement.frame)
    with Journal.open(folder / runs.JOURNAL_NAME, readonly=True) as journal:
        frames = journal.frames().ranges()
    bare = [hole for first, last in frames for hole in placed.missing(last + 1, first)]
    if bare:
        n_bare = sum(last - first + 1 for first, last in bare)
        reasons = "; ".join(UNPLACED_BECAUSE.get(why, why) for why in report.get("unplaced", {}))
        found.append(
            f"{n_bare} frames have no place in the mosaic and would be lost with the journal, the first is {bare[0][0]}"
            + (f" ({reasons})" if reasons else "")
        )
    return found


def seal(folder: Path, reason: str, *, clock_ns: Callable[[], int] = time.time_ns, seen: Recorded | None = None) -> int:
    """Drop the journal of a run for good; what was freed, in bytes.

    Whether that may be done is for the caller to know.

    Parameters
    ----------
    reason : str
        For the run's log.
    seen : Recorded, optional
        What the decision rests on: if the run has changed since, nothing is done.

    Raises
    ------
    RunLockedError
        If it is being written.
    StoreError
        If it has changed, or cannot be written.
    """
    with RunLock(folder) as lock:
        with SqliteReader(folder) as reader:
            found = look(folder, reader.info())
        if found is None or (seen is not None and found != seen):
            raise StoreError(f"the run in {folder} has changed meanwhile; look at it again")
        with SqliteStore.open(folder, lock=lock, clock_ns=clock_ns) as store:
            store.add_event("sealed", {"reason": reason, "journal_bytes": found.nbytes, "no_longer": list(NO_LONGER)})
            store.set_state("sealed")
        # From here on the run is sealed, whatever happens: closing the store has synced it.
        _remove_journal(folder)
    return found.nbytes


def _remove_journal(folder: Path) -> None:
    """Delete the journal of a sealed run; StoreError if that fails: it is finished at the next start."""
    dropped = folder / _DROPPED_NAME
    try:
        with suppress(FileNotFoundError):
            (folder / runs.JOURNAL_NAME).rename(dropped)
        sync_folder(folder)
        if dropped.exists():
            shutil.rmtree(dropped)
        for name in (runs.ACTIVE_NAME, CHECKED_NAME):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"the journal in {folder} could not be deleted: {error.strerror}; it is tried again"
        ) from error


def finish(folder: Path, info: RunInfo) -> bool:
    """Delete what is left of the journal of a sealed run; whether there was anything. StoreError if that fails."""
    left = (folder / runs.JOURNAL_NAME, folder / _DROPPED_NAME)
    if info.state != "sealed" or not any(path.exists() for path in left):
        return False
    with RunLock(folder):
        _remove_journal(folder)
    return True


def _known_objections(folder: Path, seen: Recorded) -> list[str] | None:
    """What the last check of this very run found; None if it has changed since, or was never checked."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads((folder / CHECKED_NAME).read_text())
        if (kept["updated_ns"], kept["journal_bytes"]) == (seen.updated_ns, seen.nbytes):
            return [str(what) for what in kept["objections"]]
    return None


def _keep_objections(folder: Path, seen: Recorded, found: list[str]) -> None:
    kept = {"updated_ns": seen.updated_ns, "journal_bytes": seen.nbytes, "objections": found}
    with suppress(OSError):  # then it is checked again
        runs.write_durably(folder / CHECKED_NAME, json.dumps(kept, ensure_ascii=False).encode())


# ---- the thread ------------------------------------------------------------------------------------------------------


class _BrokenOff(Exception):  # noqa: N818 - no error
    """Somebody else needs the run that is being checked, or the daemon stops."""


class Retention:
    """Looks every hour whether journals are to be dropped, in a thread of its own at the lowest priority.

    Parameters
    ----------
    root : Path
        The folder of the runs.
    policy : Policy
    let_go : callable
        Has a run that the daemon has loaded closed; raises QueryError if it is open.
    on_sealed : callable
        Called with what a run's store says, and how many bytes were freed.
    may_check : callable
        Whether there is room on the disk for a check, which makes the mosaic anew beside the old one.
    clock_ns : callable
        UTC.
    interval_s : float
    """

    def __init__(
        self,
        root: Path,
        policy: Policy,
        *,
        let_go: Callable[[str], None] = lambda _: None,
        on_sealed: Callable[[RunInfo, int], None] = lambda *_: None,
        may_check: Callable[[], bool] = lambda: True,
        clock_ns: Callable[[], int] = time.time_ns,
        interval_s: float = _INTERVAL_S,
    ) -> None:
        self._root = root
        self._policy = policy
        self._let_go = let_go
        self._on_sealed = on_sealed
        self._may_check = may_check
        self._clock_ns = clock_ns
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._checking: str | None = None
        self._unwanted = False
        self.n_sealed = 0
        self.freed_bytes = 0
        self._thread = threading.Thread(target=self._run, name="tilecast-retain", daemon=True)

    def follow(self, policy: Policy) -> None:
        """Drop journals by another policy from now on; from any thread."""
        self._policy = policy

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Break off what is being checked, and end the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def give_way(self, run: str) -> None:
        """Have a run that is being checked set free; returns when it is. From any thread."""
        with self._changed:
            if self._checking == run:
                self._unwanted = True
                self._changed.wait_for(lambda: self._checking != run, _GIVE_WAY_S)

    def stats(self) -> dict[str, int]:
        """Runs sealed since the start, and bytes freed by that."""
        return {"n_sealed": self.n_sealed, "freed_bytes": self.freed_bytes}

    def seal(self, run: str, *, force: bool = False) -> int:
        """Seal a run because an operator says so; bytes freed.

        Parameters
        ----------
        force : bool
            Without a check, whatever would be lost.

        Raises
        ------
        QueryError
            `conflict`, with the reason, if it may not be sealed.
        TilecastError
            If it cannot be.
        """
        return seal_by_hand(
            self._root / run, self._policy, force=force, clock_ns=self._clock_ns, let_go=self._let_go, done=self._sealed
        )

    def pass_once(self) -> None:
        """Finish what was begun, then drop what is to be dropped."""
        for what, error in finish_begun(self._root):
            if error is None:
                log.warning("what a program that was killed had begun is finished", what=what)
            else:
                log.error("what a program that was killed had begun cannot be finished", what=what, why=str(error))
        found: dict[str, Recorded] = {}
        for one in list_runs(self._root):
            if one.info is None or self._stopping.is_set():
                continue
            try:
                if finish(one.folder, one.info):
                    log.info("the journal of a sealed run was still there, and is deleted now", run=one.run)
            except StoreError as error:
                log.warning("the journal of a sealed run cannot be deleted", run=one.run, why=str(error))
            recorded = look(one.folder, one.info)
            if recorded is not None:
                found[one.run] = recorded
        if not self._policy.drops:
            return
        for chosen, why in choose(found.values(), self._policy, self._clock_ns()):
            if self._stopping.is_set() or not self._may_check():
                return
            try:
                self._drop(chosen, why)
            except (_BrokenOff, RunLockedError, QueryError):
                continue  # somebody needs it: next time
            except (TilecastError, OSError) as error:
                log.warning("a journal cannot be dropped", run=chosen.run, why=str(error))

    def _drop(self, chosen: Recorded, why: str) -> None:
        folder = self._root / chosen.run
        found = _known_objections(folder, chosen)
        if found is None:
            self._let_go(chosen.run)
            chosen = _look_again(folder)
            if why_not(chosen, self._policy, self._clock_ns()):
                return
            with self._alone_with(chosen.run):
                found = objections(folder, self._look_up)
            _keep_objections(folder, chosen, found)
            for what in found:
                log.warning("a journal is kept, whatever the options say", run=chosen.run, option=why, because=what)
        if found:
            return
        self._let_go(chosen.run)
        with SqliteReader(folder) as reader:
            info = reader.info()
        self._sealed(info, seal(folder, why, clock_ns=self._clock_ns, seen=chosen))

    def _sealed(self, info: RunInfo, freed_bytes: int) -> None:
        self.n_sealed += 1
        self.freed_bytes += freed_bytes
        log.warning("a journal was dropped; its run is sealed", run=info.run, name=info.name, freed_bytes=freed_bytes)
        self._on_sealed(info, freed_bytes)

    @contextlib.contextmanager
    def _alone_with(self, run: str) -> Iterator[None]:
        with self._changed:
            self._checking, self._unwanted = run, False
        try:
            yield
        finally:
            with self._changed:
                self._checking = None
                self._changed.notify_all()

    def _look_up(self, *_: Any) -> None:
        if self._unwanted or self._stopping.is_set():
            raise _BrokenOff

    def _run(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # of this thread only, on Linux
        while not self._stopping.is_set():
            try:
                self.pass_once()
            except Exception as error:
                log.error("journals could not be looked through", error=repr(error), exc_info=error)
            self._stopping.wait(self._interval_s)


def seal_by_hand(
    folder: Path,
    policy: Policy,
    *,
    force: bool,
    clock_ns: Callable[[], int] = time.time_ns,
    let_go: Callable[[str], None] = lambda _: None,
    done: Callable[[RunInfo, int], None] = lambda *_: None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> int:
    """Seal one run; see `Retention.seal`."""
    with SqliteReader(folder) as reader:
        info = reader.info()
    if finish(folder, info):
        return 0
    found = look(folder, info)
    if found is None:
        raise QueryError("conflict", f"run {folder.name} is sealed already")
    let_go(found.run)
    with RunLock(folder):  # of what somebody else writes nothing can be said
        found = _look_again(folder)
    forbidden = why_not(found, policy, clock_ns())
    if forbidden:
        raise QueryError("conflict", forbidden)
    if not force:
        against = objections(folder, progress)
        if against:
            raise QueryError("conflict", f"the journal of run {found.run} is kept: {'; '.join(against)}")
    freed_bytes = seal(folder, "operator", clock_ns=clock_ns, seen=found)
    done(info, freed_bytes)
    return freed_bytes


def _look_again(folder: Path) -> Recorded:
    """What there is to know of a run that has just been closed; StoreError if it has no journal any more."""
    with SqliteReader(folder) as reader:
        found = look(folder, reader.info())
    if found is None:
        raise StoreError(f"the run in {folder} has no journal any more")
    return found
