"""What the ingest thread asks of run folders: make one, find one, load one, keep a note in one.

What lies in such a folder, and how it is written, is the business of `runs`; here is what it means for the life of a
run. Where a run is in its life, and its reports, are read from its store: what stands there has happened.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from tilecast import calibration as cal
from tilecast.errors import StartRefusedError
from tilecast.ingest.ingester import OpenRun
from tilecast.ingest.verdicts import RunPhase, RunRecord
from tilecast.plugins import Plugins
from tilecast.service import runs
from tilecast.service.config import Config
from tilecast.service.deletion import delete_run
from tilecast.service.frame_images import FrameImages
from tilecast.service.runs import Run
from tilecast.store.folders import run_folder
from tilecast.store.sqlite_connection import TILES_NAME
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import RunInfo, StoreUnfinishedError
from tilecast_protocol.errors import TilecastError
from tilecast_protocol.journal import Journal
from tilecast_protocol.messages import Start
from tilecast_protocol.ranges import RangeSet
from tilecast_protocol.topics import parse_topic

log = structlog.get_logger()


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
        self.give_way: Callable[[str], None] = lambda _: None
        """Called with a run that is about to be loaded, so that whoever only looks at it lets go of it."""

    def follow(self, config: Config) -> None:
        """Make runs by another configuration from now on; from any thread."""
        self._config = config

    def create(self, record: RunRecord, *, may_lack_calibration: bool) -> tuple[Run, bool]:
        """Make the folder of a new run and freeze what its start means; see `ingester.RunKeeper`."""
        held = False
        try:
            frozen, images = runs.resolve(record.start, record.rules, self._config, self._plugins)
        except StartRefusedError:
            if not may_lack_calibration:
                raise
            held = True
            images = FrameImages(cal.freeze(shape=record.start.shape))
            frozen = runs.frozen_with(record.start, record.rules, self._config, images)
        run = runs.create_run(
            self._root, record.start, frozen, images, segment_bytes=self._config.journal.segment_bytes
        )
        return run, held

    def discard(self, run: OpenRun) -> None:
        """Take back what `create` made: the start could not be journalled."""
        run.release(finished=False)
        shutil.rmtree(run_folder(self._root, run.run))

    def lookup(self, run: str) -> RunRecord | None:
        """What is kept of a run beside its journal; None if there is no such run.

        Raises
        ------
        TilecastError
            If there is one that cannot be read.
        """
        folder = run_folder(self._root, run)
        if not folder.is_dir() or runs.is_stillborn(folder):
            return None
        info = _store_info(folder)
        phase, revision = (RunPhase.OPEN, 0) if info is None else (RunPhase(info.state), info.revision)
        if not (folder / runs.JOURNAL_NAME).is_dir():
            return None if info is None else _sealed(info)
        with Journal.open(folder / runs.JOURNAL_NAME, readonly=True) as journal:
            start = runs.first_start(journal)
        return runs.read_record(folder, start, runs.read_frozen(folder), phase, revision)

    def load(self, record: RunRecord) -> tuple[Run, bool]:
        """Open a run that exists, for writing; whether it still lacks a calibration.

        If it lacked one, every `start` that was journalled since is tried, the latest first; what it brings is frozen.
        """
        folder = run_folder(self._root, record.run)
        self.give_way(record.run)
        loaded = runs.load_run(folder, segment_bytes=self._config.journal.segment_bytes, plugins=self._plugins)
        if not record.held:
            return loaded, False
        try:
            for start in list(runs.starts_of(loaded.journal))[::-1]:
                try:
                    fresh, images = runs.resolve(start, loaded.frozen.rules, self._config, self._plugins)
                except StartRefusedError as error:
                    log.warning("calibration still missing", run=record.run, why=str(error))
                    continue
                # Its mode and tile size were frozen at the start, whatever the configuration says now.
                frozen = replace(loaded.frozen, calibration=fresh.calibration, steps=fresh.steps)
                runs.freeze_in(folder, frozen, images)
                loaded.frozen, loaded.images = frozen, images
                return loaded, False
        except BaseException:
            loaded.release(finished=False)
            raise
        return loaded, True

    def placed_frames(self, run: OpenRun) -> RangeSet:
        """Frames that have a place in the run's store.

        Raises
        ------
        StoreError
            If it cannot be read.
        """
        placed = RangeSet()
        folder = run_folder(self._root, run.run)
        if _store_info(folder) is not None:
            with SqliteReader(folder) as reader:
                for row in reader.placements():
                    placed.add(row.placement.frame)
        return placed

    def keep(self, run: OpenRun, record: RunRecord) -> None:
        """Keep what the journal cannot tell."""
        try:
            runs.keep_record(run_folder(self._root, run.run), record)
        except OSError as error:
            log.warning("cannot keep the counts of a run", run=run.run, why=str(error))

    def keep_counts(self, run: OpenRun, counts: Mapping[str, Any]) -> None:
        """Keep the last counts of a run that is about to be given back."""
        try:
            runs.keep_counts(run_folder(self._root, run.run), counts)
        except OSError as error:
            log.warning("cannot keep the counts of a run", run=run.run, why=str(error))

    def left_active(self, loaded: Collection[str] = ()) -> list[str]:
        """Runs, beside those that are loaded, that somebody had loaded and did not give back.

        What is left of a `start` that was never journalled, and so never acknowledged, is removed.
        """
        left = []
        for folder in runs.active_runs(self._root):
            if folder.name in loaded:
                continue
            try:
                if runs.is_stillborn(folder):
                    shutil.rmtree(folder)
                else:
                    left.append(folder.name)
            except (TilecastError, OSError) as error:
                log.error("run cannot be recovered; the others go on", run=folder.name, why=str(error))
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

    def delete(self, run: str, why: str, *, if_seen: tuple[int, int] | None = None) -> dict[str, Any]:
        """Delete everything of a run that nobody has open; see `deletion.delete_run`."""
        return delete_run(run_folder(self._root, run), why, if_seen=if_seen)


def _store_info(folder: Path) -> RunInfo | None:
    """What the store of a run says of it; None if it has none, or the making of it was cut short."""
    if not (folder / TILES_NAME).exists():
        return None
    try:
        with SqliteReader(folder) as reader:
            return reader.info()
    except StoreUnfinishedError:
        return None


def _sealed(info: RunInfo) -> RunRecord:
    """A run whose journal has been dropped: all that is left to say of it is that it takes no more."""
    topic = parse_topic(f"tc1/{info.instrument}/{info.stream}/start")
    header = info.header | ({"nbytes": 0} if info.header.get("nbytes") is not None else {})
    return RunRecord(start=Start.from_header(topic, header), phase=RunPhase.SEALED, revision=info.revision)
