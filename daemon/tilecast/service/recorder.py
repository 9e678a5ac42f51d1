"""Keeps what others publish, without making a mosaic of it: a daemon that stops after the journal.

It takes in messages exactly as the daemon does (the same checks, the same journals, the same run reports), and hands
nothing on. A recording is the folder of a run without tiles: `tilecast rebuild` makes its mosaic, `tilecast replay`
plays it into a daemon.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
import zmq

from tilecast.errors import ConfigError
from tilecast.ingest.ingester import Ingester, IngesterOptions
from tilecast.ingest.machine import IngestMachine
from tilecast.ingest.verdicts import IngestPath
from tilecast.plugins import Plugins
from tilecast.service.app import ingest_settings
from tilecast.service.config import Config
from tilecast.service.keeper import Keeper
from tilecast_protocol.messages import Limits, RunNotice

log = structlog.get_logger()

_TYPICAL_FRAME_NBYTES = 8 << 20


class Recorder:
    """Records from sockets until it is closed; a context manager.

    Parameters
    ----------
    config : Config
        Where runs lie, and the options of ingest and journal.
    sources : sequence of str
        Endpoints of PUB sockets to subscribe to.
    pull : str, optional
        Endpoint on which a PULL socket is bound, for PUSH sources.
    on_ended : callable, optional
        Called with the report when a run has ended or gone idle.

    Raises
    ------
    ConfigError
        If an endpoint cannot be used.
    """

    def __init__(
        self,
        config: Config,
        sources: Sequence[str],
        *,
        pull: str | None = None,
        on_ended: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        root = Path(config.store.path)
        root.mkdir(parents=True, exist_ok=True)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.failure: BaseException | None = None
        self.stopped = threading.Event()
        sockets: dict[IngestPath, list[zmq.Socket[bytes]]] = {IngestPath.SUB: [], IngestPath.PULL: []}
        hwm = max(2, config.ingest.queue_bytes // _TYPICAL_FRAME_NBYTES)
        try:
            for endpoint in sources:
                sub = self._socket(zmq.SUB, hwm)
                sub.subscribe(b"tc1/")
                sub.connect(endpoint)
                sockets[IngestPath.SUB].append(sub)
            if pull is not None:
                socket = self._socket(zmq.PULL, hwm)
                socket.bind(pull)
                sockets[IngestPath.PULL].append(socket)
        except zmq.ZMQError as error:
            self._context.destroy(0)
            raise ConfigError(f"cannot listen to {', '.join([*sources, pull or ''])}: {error.strerror}") from error
        keeper = Keeper(config, Plugins.load())
        self._ingester = Ingester(
            sockets,
            machine=IngestMachine(ingest_settings(config), keeper.lookup),
            keeper=keeper,
            sink=_Ended(on_ended),
            options=IngesterOptions(
                limits=Limits(max_frame_bytes=config.ingest.max_frame_bytes),
                credit_bytes=config.ingest.credit_bytes,
                recent_bytes=0,
                durability=config.journal.durability,
            ),
            fsync_interval_s=config.journal.fsync_interval_ms / 1e3,
            free_bytes=lambda: shutil.disk_usage(root).free,
            state=lambda: "recording",
            on_failure=self._failed,
        )
        self._ingester.start()

    def _socket(self, kind: int, hwm: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.rcvhwm = hwm
        socket.linger = 0
        return socket

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
        self._ingester.close_runs(10.0)
        self._context.destroy(0)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Ended:
    """The sink of a recorder: nothing goes on, but reports are told."""

    has_room = True

    def __init__(self, on_ended: Callable[[dict[str, Any]], None]) -> None:
        self._on_ended = on_ended

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
