"""Keeps what others publish, without making a mosaic of it: a daemon that stops after the journal.

It takes in messages exactly as the daemon does (the same sockets, checks, journals and run reports), and hands nothing
on. A recording is the folder of a run without tiles: `tilecast rebuild` makes its mosaic, `tilecast replay` plays it
into a daemon.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from tilecast.errors import ConfigError
from tilecast.ingest.ingester import Ingester
from tilecast.ingest.machine import IngestMachine
from tilecast.ingest.verdicts import IngestPath
from tilecast.service.config import Config
from tilecast.service.disk import DiskWatch, reserves_of
from tilecast.service.keeper import Keeper
from tilecast.service.settings import ingest_settings, ingester_options, load_plugins
from tilecast.service.sockets import Sockets
from tilecast_protocol.messages import RunNotice

log = structlog.get_logger()

_CLOSE_S = 10.0


class Recorder:
    """Records from sockets until it is closed; a context manager.

    Parameters
    ----------
    config : Config
        What to listen to (`ingest.sub` and `ingest.pull`), where runs lie, the options of ingest and journal.
    on_ended : callable, optional
        Called with the report when a run has ended or gone idle.

    Attributes
    ----------
    endpoints : dict of str to str
        Where the PULL socket is bound, if it is.
    failure : exception or None
        What ended it, if it was not closed.
    stopped : threading.Event
        Set then.

    Raises
    ------
    ConfigError
        If an endpoint cannot be used.
    """

    def __init__(self, config: Config, *, on_ended: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        root = Path(config.store.path)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"store.path = {root} cannot be made: {error.strerror}") from error
        self.failure: BaseException | None = None
        self.stopped = threading.Event()
        self._sockets = Sockets(config)
        try:
            sockets = self._sockets.ingest([IngestPath.SUB, IngestPath.PULL])
        except ConfigError:
            self._sockets.close()
            raise
        self.endpoints = self._sockets.endpoints
        plugins = load_plugins(config)
        keeper = Keeper(config, plugins)
        self._ingester = Ingester(
            sockets,
            machine=IngestMachine(ingest_settings(config), keeper.lookup),
            keeper=keeper,
            sink=_Ended(on_ended),
            options=ingester_options(config, recent_bytes=0),
            disk=DiskWatch(root, reserves_of(config), reserve_nbytes=0),
            state=lambda: "recording",
            on_failure=self._failed,
        )
        self._ingester.start()

    def _failed(self, name: str, error: BaseException) -> None:
        log.critical("thread failed; recording stops", thread=name, error=repr(error), exc_info=error)
        self.failure = error
        self.stopped.set()

    def stats(self) -> dict[str, Any]:
        """Counters since the start."""
        return self._ingester.stats()

    def close(self) -> None:
        """Make everything durable, and end."""
        self._ingester.stop()
        self._ingester.join()
        self._ingester.close_runs(_CLOSE_S, finish=self.failure is None)
        self._sockets.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Ended:
    """The sink of a recorder: nothing goes on, but reports are told."""

    def __init__(self, on_ended: Callable[[dict[str, Any]], None]) -> None:
        self._on_ended = on_ended

    def has_room_for(self, _nbytes: int) -> bool:
        """As ever."""
        return True

    def opened(self, _run: Any) -> None:
        """Nothing to do."""

    def placed(self, *_: Any) -> None:
        """Nothing to do."""

    def marked(
        self, _run: Any, _state: str | None, report: tuple[int, dict[str, Any]] | None, _notices: Sequence[RunNotice]
    ) -> None:
        """Tell of reports."""
        if report is not None:
            self._on_ended(report[1])

    def noticed(self, *_: Any) -> None:
        """The log has it already."""

    def unload(self, _run: Any, on_done: Callable[[], None]) -> None:
        """Nothing is open but the journal, which ingest closes."""
        on_done()
