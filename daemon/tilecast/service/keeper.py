"""What the ingest thread asks of run folders: make one, find one, load one, keep a note in one.

Beside what is frozen (`runs`), a run has `ingest.json`: what the ingest machine knows and the journal cannot tell, such
as how many messages were refused. It is written when the run changes its phase, issues a report, or is given back.
Where a run is in its life, and its reports, are read from its store: what stands there has happened.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import structlog

from tilecast import calibration as cal
from tilecast.errors import CalibrationError, StoreError
from tilecast.ingest.ingester import OpenRun
from tilecast.ingest.verdicts import RunPhase, RunRecord
from tilecast.plugins import Plugins
from tilecast.service import runs
from tilecast.service.config import Config
from tilecast.service.runs import Run
from tilecast.store.folders import run_folder
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_connection import TILES_NAME
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast_protocol.errors import JournalError
from tilecast_protocol.journal import Journal
from tilecast_protocol.ranges import RangeSet

log = structlog.get_logger()

INGEST_NAME = "ingest.json"


class Keeper:
    """Run folders below one root.

    Parameters
    ----------
    config : Config
    plugins : Plugins
        Asked for calibrations.
    """

    def __init__(self, config: Config, plugins: Plugins) -> None:
        self._config = config
        self._plugins = plugins
        self._root = Path(config.store.path)

    def create(self, record: RunRecord, *, may_lack_calibration: bool) -> tuple[Run, bool]:
        """Make the folder of a new run and freeze what its start means; see `ingester.RunKeeper`."""
        held = False
        try:
            frozen, calibration = runs.resolve(record.start, record.rules, self._config, self._plugins)
        except CalibrationError:
            if not may_lack_calibration:
                raise
            held = True
            bare = cal.freeze(shape=record.start.shape)
            frozen, calibration = runs.frozen_with(record.start, record.rules, self._config, bare), bare
        run = runs.create_run(
            self._root, record.start, frozen, calibration, segment_bytes=self._config.journal.segment_bytes
        )
        return run, held

    def lookup(self, run: str) -> RunRecord | None:
        """What is kept of a run beside its journal; None if there is no such run."""
        folder = run_folder(self._root, run)
        if not (folder / runs.JOURNAL_NAME).is_dir() and not (folder / TILES_NAME).exists():
            return None
        phase, revision = RunPhase.OPEN, 0
        if (folder / TILES_NAME).exists():
            with SqliteReader(folder) as reader:
                info = reader.info()
            phase, revision = RunPhase(info.state), info.revision
        with Journal.open(folder / runs.JOURNAL_NAME, readonly=True) as journal:
            start = runs.first_start(journal)
        frozen = runs.read_frozen(folder)
        kept: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            kept = json.loads((folder / INGEST_NAME).read_text())
        return RunRecord(
            start=start,
            phase=phase,
            revision=revision,
            rules=frozen.rules,
            stage_stream=kept.get("stage_stream"),
            held=bool(kept.get("held", False)),
            counts=kept.get("counts", {}),
        )

    def load(self, run: str, *, complete: bool = False) -> Run:
        """Open a run that exists, for writing; with `complete`, freeze the calibration that has come since."""
        folder = run_folder(self._root, run)
        loaded = runs.load_run(folder, segment_bytes=self._config.journal.segment_bytes)
        if not complete:
            return loaded
        for start in list(runs.starts_of(loaded.journal))[::-1]:
            try:
                frozen, calibration = runs.resolve(start, loaded.frozen.rules, self._config, self._plugins)
            except CalibrationError as error:
                log.warning("calibration still missing", run=run, why=str(error))
                continue
            runs.freeze_in(folder, frozen, calibration)
            loaded.frozen, loaded.calibration = frozen, calibration
            return loaded
        return loaded

    def placed_frames(self, run: OpenRun) -> RangeSet:
        """Frames that have a place in the run's store."""
        placed = RangeSet()
        folder = run_folder(self._root, run.run)
        if (folder / TILES_NAME).exists():
            with SqliteReader(folder) as reader:
                for row in reader.placements():
                    placed.add(row.placement.frame)
        return placed

    def keep(self, run: OpenRun, record: RunRecord) -> None:
        """Keep what the journal cannot tell."""
        kept = {"stage_stream": record.stage_stream, "held": record.held, "counts": dict(record.counts)}
        try:
            runs.write_durably(run_folder(self._root, run.run) / INGEST_NAME, json.dumps(kept).encode())
        except OSError as error:
            log.warning("cannot keep the counts of a run", run=run.run, why=str(error))

    def left_active(self) -> list[str]:
        """Runs that the last daemon had loaded and did not give back.

        A folder whose journal holds no record is what is left of a `start` that was never acknowledged; it is removed.
        """
        left = []
        for folder in runs.active_runs(self._root):
            try:
                with Journal.open(folder / runs.JOURNAL_NAME, readonly=True) as journal:
                    empty = next(iter(journal.records(with_parts=False)), None) is None
            except JournalError as error:
                log.error("run cannot be recovered; the others go on", run=folder.name, why=str(error))
                continue
            if empty:
                shutil.rmtree(folder)
            else:
                left.append(folder.name)
        return left

    def write_closed(self, run: str, *, renamed: str | None = None, note: str | None = None) -> None:
        """Rename a run that is not loaded, or add a note to it.

        Raises
        ------
        StoreError
            If somebody else writes it, or it cannot be written.
        """
        with SqliteStore.open(run_folder(self._root, run)) as store:
            if renamed is not None:
                store.rename(renamed)
            if note is not None:
                store.add_note(note)

    def delete(self, run: str) -> None:
        """Delete everything of a run that nobody has open.

        Raises
        ------
        StoreError
            If somebody writes it, or it cannot be deleted.
        """
        folder = run_folder(self._root, run)
        with RunLock(folder):
            try:
                shutil.rmtree(folder)
            except OSError as error:
                raise StoreError(f"cannot delete {folder}: {error}") from error
