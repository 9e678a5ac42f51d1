"""The daemon, put together: the only place that builds concrete things.

    sockets ─▶ Ingester ─▶ blend queue ─▶ Blender ─▶ store queue ─▶ Committer ─▶ Notifier ─▶ viewers
                  └▶ journals ◀─ Syncer                                 └▶ tiles.sqlite ◀─ QueryServer ◀─ viewers

The main thread runs one asyncio loop: signals, the notify and query sockets, the heartbeat. It computes nothing. Every
other thread owns what it works on, and they meet in two queues that are bounded in bytes.

Shutdown goes with the stream: stop reading, make durable, acknowledge; blend what was read; commit it; tell viewers.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import psutil
import structlog
import zmq
import zmq.asyncio
from numpy.typing import NDArray

from tilecast.errors import ConfigError
from tilecast.geometry import Placement
from tilecast.ingest.ingester import Ingester, IngesterOptions
from tilecast.ingest.machine import IngestMachine
from tilecast.ingest.settings import IngestSettings
from tilecast.ingest.verdicts import IngestPath
from tilecast.plugins import CommitTeller, Plugins, SourceThreads
from tilecast.publish.notifier import Notifier
from tilecast.publish.query_server import QueryServer
from tilecast.queues import ByteQueue
from tilecast.service.blender import Blender, BlendItem, Placed, Rebuild, Unload
from tilecast.service.committer import Committer, Marked, Opened, StoreItem
from tilecast.service.config import Config
from tilecast.service.curve import Doors
from tilecast.service.keeper import Keeper
from tilecast.service.logging import summarise_floods
from tilecast.service.rebuild import rebuild_run
from tilecast.service.runs import Run
from tilecast_protocol.errors import QueryError
from tilecast_protocol.messages import DaemonHeartbeat, Limits, RunNotice, RunRev, Tiles

log = structlog.get_logger()
T = TypeVar("T")

_HEARTBEAT_S = 1.0
_MARK_NBYTES = 4096
_PLACED_NBYTES = 512
_CLOSE_S = 600.0
_STORE_S = 10.0
_TYPICAL_NOTIFICATION_NBYTES = 16 * 1024
_TYPICAL_FRAME_NBYTES = 8 << 20


class Daemon:
    """One daemon. Built from a configuration, run once by `serve`.

    Parameters
    ----------
    config : Config
    plugins : Plugins
    reload_config : callable, optional
        Reads the configuration again, for the query `reload`.

    Attributes
    ----------
    endpoints : dict
        Where each socket is bound, once `ready` is set: with a wildcard port, the port it became.
    ready : threading.Event
        Set when all sockets are bound.
    """

    def __init__(self, config: Config, plugins: Plugins, *, reload_config: Callable[[], Config] | None = None) -> None:
        self._config = config
        self._plugins = plugins
        self._reload_config = reload_config
        self._root = Path(config.store.path)
        self.endpoints: dict[str, str] = {}
        self.ready = threading.Event()
        self._stop = asyncio.Event()
        self._state = "starting"
        self._failure: tuple[str, BaseException] | None = None
        self._started_at = time.time()
        self._process = psutil.Process()
        self._busy_rebuilds: set[str] = set()

    # ---- life --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, in the main thread.

        Raises
        ------
        ConfigError
            If a socket cannot be bound, or the store's folder cannot be used.
        RuntimeError
            If a thread failed; the log names it. What was acknowledged is in the journals.
        """
        asyncio.run(self.serve())

    async def serve(self) -> None:
        """Serve until stopped; see `run`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"store.path = {self._root} cannot be made: {error}") from error
        with contextlib.ExitStack() as stack:
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            stack.callback(context.destroy, 0)
            doors = Doors(self._config, context)
            stack.callback(doors.close)
            sockets = self._ingest_sockets(context, doors)
            notify = self._bound(context, doors, zmq.PUB, "notify")
            query = self._bound(context, doors, zmq.ROUTER, "query")
            self._build(loop, sockets, notify)
            self._start()
            self.ready.set()
            log.info("ready", store=str(self._root), **self.endpoints)
            await self._serve_viewers(query, doors)
            await self._shut_down(loop)
            for socket in (notify, query):
                if socket is not None:
                    socket.close(linger=1000)
        if self._failure is not None:
            name, failure = self._failure
            raise RuntimeError(f"the {name} thread failed: {failure}") from failure

    def stop(self) -> None:
        """Make `serve` end in good order; from the loop's thread."""
        self._stop.set()

    def _build(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: dict[IngestPath, list[zmq.Socket[bytes]]],
        notify: zmq.Socket[bytes] | None,
    ) -> None:
        config = self._config
        self._keeper = Keeper(config, self._plugins)
        self._blend_queue: ByteQueue[BlendItem] = ByteQueue("blend", config.blend.queue_bytes)
        self._store_queue: ByteQueue[StoreItem] = ByteQueue("store", config.store.queue_bytes)

        def wake_loop() -> None:
            # The loop may be closed while a thread of a failing daemon still speaks.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._notifier.flush)

        def failed(name: str, error: BaseException) -> None:
            log.critical("thread failed; the daemon stops", thread=name, error=repr(error), exc_info=error)
            self._failure = self._failure or (name, error)
            self._state = "failed"
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._stop.set)

        self._notifier = Notifier(notify, wake_loop)
        self._teller = CommitTeller(self._plugins)
        self._blender = Blender(
            self._blend_queue,
            self._store_queue,
            budget_bytes=config.blend.budget_bytes,
            commit_interval_s=config.store.commit_interval_ms / 1e3,
            batch_bytes=config.store.queue_bytes // 4,
            on_failure=failed,
        )
        self._machine = IngestMachine(ingest_settings(config), self._keeper.lookup)
        self._ingester = Ingester(
            sockets,
            machine=self._machine,
            keeper=self._keeper,
            sink=_Pipeline(self._blend_queue, self._notifier),
            options=IngesterOptions(
                limits=Limits(max_frame_bytes=config.ingest.max_frame_bytes),
                credit_bytes=config.ingest.credit_bytes,
                recent_bytes=config.blend.queue_bytes,
                durability=config.journal.durability,
            ),
            fsync_interval_s=config.journal.fsync_interval_ms / 1e3,
            free_bytes=self._free_bytes,
            state=lambda: self._state,
            on_failure=failed,
            recover=self._keeper.left_active(),
            on_recovered=self._recovered,
        )
        self._committer = Committer(
            self._store_queue,
            syncer=self._ingester.syncer,
            announcer=self._notifier,
            on_committed=self._blender.committed,
            tell_plugins=self._teller.tell,
            on_failure=failed,
            wal_limit_bytes=config.store.wal_limit_bytes,
        )

    def _start(self) -> None:
        self._state = "catching-up"
        self._committer.start()
        self._blender.start()
        self._ingester.start()
        self._sources = SourceThreads(self._plugins.message_sources(self._config.instrument), self._ingester.emit)

    def _recovered(self) -> None:
        if self._state == "catching-up":
            self._state = "ready"

    async def _serve_viewers(self, query: zmq.Socket[bytes] | None, doors: Doors) -> None:
        tasks = [asyncio.ensure_future(self._heartbeat())]
        if query is not None:
            server = QueryServer(
                zmq.asyncio.Socket(query),
                root=self._root,
                operations=self,
                is_operator=doors.is_operator,
                threads=self._config.viewers.threads,
                max_region_pixels=self._config.viewers.max_region_pixels,
                max_tiles=self._config.viewers.max_snapshot_tiles,
            )
            self._query_server = server
            tasks.append(asyncio.ensure_future(server.serve()))
        stopping = asyncio.ensure_future(self._stop.wait())
        done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in [stopping, *tasks]:
            task.cancel()
        await asyncio.gather(*tasks, stopping, return_exceptions=True)
        for task in done - {stopping}:
            self._failure = self._failure or ("main", task.exception() or RuntimeError("a task ended"))

    async def _shut_down(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._state != "failed":
            self._state = "stopping"
        log.info("stopping", queued=self._blend_queue.stats().depth)
        await loop.run_in_executor(None, self._drain)
        self._notifier.announce(self._hb_message())
        self._notifier.flush()
        summarise_floods(final=True)
        log.info("stopped", uptime_s=round(time.time() - self._started_at))

    def _drain(self) -> None:
        """Let everything that was read go its way to the end; in a thread, because it waits."""
        self._sources.close()
        self._ingester.stop()
        self._ingester.join()
        if self._failure is None:
            self._ingester.close_runs(_CLOSE_S)
        else:
            self._committer.abandon()
        self._blend_queue.close()
        self._blender.join()
        self._store_queue.close()
        self._committer.join()
        self._teller.close()

    async def _heartbeat(self) -> None:
        while True:
            self._notifier.announce(self._hb_message())
            summarise_floods()
            await asyncio.sleep(_HEARTBEAT_S)

    def _hb_message(self) -> DaemonHeartbeat:
        return DaemonHeartbeat(
            instrument=self._config.instrument,
            t_ns=time.time_ns(),
            state=self._state,
            runs=tuple(RunRev(run, epoch, rev) for run, (epoch, rev) in self._committer.revs().items()),
            wal_bytes=self._committer.wal_bytes(),
            free_bytes=self._free_bytes(),
        )

    # ---- sockets -----------------------------------------------------------------------------------------------------

    def _ingest_sockets(
        self, context: zmq.Context[zmq.Socket[bytes]], doors: Doors
    ) -> dict[IngestPath, list[zmq.Socket[bytes]]]:
        sockets: dict[IngestPath, list[zmq.Socket[bytes]]] = {path: [] for path in IngestPath}
        for path, kind in ((IngestPath.ACK, zmq.ROUTER), (IngestPath.PULL, zmq.PULL)):
            socket = self._bound(context, doors, kind, f"ingest.{path}")
            if socket is not None:
                sockets[path].append(socket)
        for endpoint in self._config.endpoints("ingest.sub"):
            socket = context.socket(zmq.SUB)
            socket.rcvhwm = self._frames_in(self._config.ingest.queue_bytes)
            socket.linger = 0
            doors.connect_security(socket, "ingest.sub")
            socket.subscribe(b"tc1/")
            socket.connect(endpoint)
            sockets[IngestPath.SUB].append(socket)
        return sockets

    def _bound(
        self, context: zmq.Context[zmq.Socket[bytes]], doors: Doors, kind: int, name: str
    ) -> zmq.Socket[bytes] | None:
        for endpoint in self._config.endpoints(name):
            socket = context.socket(kind)
            # Counted, not weighed: the budget in bytes becomes a number of messages of the usual size.
            if name.startswith("ingest"):
                socket.rcvhwm = self._frames_in(self._config.ingest.queue_bytes)
                socket.maxmsgsize = self._config.ingest.max_frame_bytes + (1 << 20)
            else:
                socket.sndhwm = max(100, self._config.viewers.queue_bytes // _TYPICAL_NOTIFICATION_NBYTES)
                socket.maxmsgsize = 1 << 20
            socket.linger = 0
            if kind == zmq.ROUTER:
                socket.router_mandatory = name == "ingest.ack"
            doors.bind_security(socket, name)
            try:
                socket.bind(endpoint)
            except zmq.ZMQError as error:
                raise ConfigError(
                    f"{name} = {endpoint} cannot be bound: {error.strerror}; is another tilecast running? "
                    f"Choose another endpoint with --set {name}=…"
                ) from error
            self.endpoints[name] = str(socket.get_string(zmq.LAST_ENDPOINT)).rstrip("\0")
            return socket
        return None

    @staticmethod
    def _frames_in(nbytes: int) -> int:
        return max(2, math.ceil(nbytes / _TYPICAL_FRAME_NBYTES))

    # ---- what queries ask of the daemon (query_server.Operations) ----------------------------------------------------

    def hello(self) -> dict[str, Any]:
        """Version, instrument, limits."""
        viewers = self._config.viewers
        return {
            "version": version("tilecast"),
            "protocol": 1,
            "instrument": self._config.instrument,
            "endpoints": dict(self.endpoints),
            "store": str(self._root),
            "limits": {
                "max_region_pixels": viewers.max_region_pixels,
                "max_tiles": viewers.max_snapshot_tiles,
                "max_frame_bytes": self._config.ingest.max_frame_bytes,
            },
        }

    def stats(self) -> dict[str, Any]:
        """Queues, rates, latencies, counters, disk, write-ahead log."""
        committed = self._committer.stats
        latencies = sorted(committed.latency_s)
        return {
            "state": self._state,
            "uptime_s": time.time() - self._started_at,
            "rss_bytes": self._process.memory_info().rss,
            "cpu_s": sum(self._process.cpu_times()[:2]),
            "queues": {
                queue.name: {slot: getattr(stats, slot) for slot in stats.__slots__}
                for queue in (self._blend_queue, self._store_queue)
                for stats in (queue.stats(),)
            },
            "ingest": self._ingester.stats() | self._in_ingest(self._machine.stats),
            "blend": self._blender.stats(),
            "store": {
                "n_commits": committed.n_commits,
                "n_tiles": committed.n_tiles,
                "n_bytes": committed.n_bytes,
                "encode_s": committed.encode_s,
                "commit_s": committed.commit_s,
                "wait_durable_s": committed.wait_durable_s,
                "n_retries": committed.n_retries,
                "wal_bytes": self._committer.wal_bytes(),
                "free_bytes": self._free_bytes(),
            },
            "latency_ms": {
                "n": len(latencies),
                "p50": _percentile_ms(latencies, 0.5),
                "p99": _percentile_ms(latencies, 0.99),
                "max": _percentile_ms(latencies, 1.0),
            },
            "notify": {slot: getattr(found, slot) for found in (self._notifier.stats(),) for slot in found.__slots__},
            "plugins": {"names": self._plugins.names, "failed": self._plugins.failed, "errors": self._plugins.errors},
        }

    def health(self) -> dict[str, Any]:
        """State, and why not ready."""
        problems = []
        if self._state != "ready":
            problems.append(f"the daemon is {self._state}")
        if not self._blend_queue.has_room:
            problems.append("frames come faster than they can be blended; publishers are slowed")
        return {
            "state": self._state,
            "ready": self._state == "ready",
            "problems": problems,
            "free_bytes": self._free_bytes(),
            "runs": self._ingester.loaded(),
        }

    def unplaced(self, run: str) -> list[dict[str, Any]]:
        """Frames of a run that have no place yet, and why."""
        if self._ingester.run_loaded(run) is None:
            return []
        found = self._in_ingest(lambda: self._machine.unplaced(run) if run in self._machine.loaded() else {})
        return [{"why": why, "frames": [list(pair) for pair in ranges]} for why, ranges in found.items()]

    def live_report(self, run: str) -> dict[str, Any] | None:
        """The report of a loaded run as it would be written now."""
        if self._ingester.run_loaded(run) is None:
            return None
        return self._in_ingest(lambda: self._machine.report(run) if run in self._machine.loaded() else None)

    def await_store(self, run: str) -> None:
        """Wait until the store of a run that has just begun is there."""
        loaded = self._ingester.run_loaded(run)
        if isinstance(loaded, Run):
            loaded.store_ready.wait(_STORE_S)

    def operate(self, query: dict[str, Any]) -> dict[str, Any]:
        """Carry out an operator's order."""
        log.info("operator", **{key: value for key, value in query.items() if key not in ("v", "id")})
        match query["cmd"]:
            case "end":
                return self._end(query["run"])
            case "rename":
                return self._mark(query["run"], renamed=query["name"])
            case "note":
                return self._mark(query["run"], note=query["text"])
            case "rebuild":
                return self._rebuild(query)
            case "delete":
                return self._delete(query["run"])
            case "reload":
                return self._reload()
        raise QueryError("unknown-command", f"no operator command {query['cmd']}")

    def _end(self, run: str) -> dict[str, Any]:
        def end() -> None:
            if run not in self._machine.loaded():
                raise QueryError("conflict", f"run {run} is not open: it has ended, or is not known here")
            self._ingester._do(self._machine.end_run(run, "abort", time.time_ns()))

        self._in_ingest(end)
        return {"run": run}

    def _mark(self, run: str, **what: Any) -> dict[str, Any]:
        """Write something into a run's store: through the store thread if the run is loaded, else directly."""
        loaded = self._ingester.run_loaded(run)
        if isinstance(loaded, Run):
            done = threading.Event()
            self._blend_queue.put(Marked(loaded, on_done=done.set, **what), _MARK_NBYTES)
            if not done.wait(60):
                raise QueryError("busy", "the store did not get to it within a minute; look whether it was done")
            return {"run": run}
        self._known(run)
        self._keeper.write_closed(run, **what)
        return {"run": run}

    def _rebuild(self, query: dict[str, Any]) -> dict[str, Any]:
        run, options = query["run"], {"mode": query["blend"], "rejoin": query["rejoin"]}
        self._known(run)
        if run in self._busy_rebuilds:
            raise QueryError("conflict", f"run {run} is being rebuilt already")
        self._busy_rebuilds.add(run)
        done: Future[None] = Future()
        loaded = self._ingester.run_loaded(run)

        def finished(error: Exception | None) -> None:
            self._busy_rebuilds.discard(run)
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        def work() -> None:
            lock = loaded.lock if isinstance(loaded, Run) else None
            rebuilt = rebuild_run(self._root / run, lock=lock, **options)
            start = rebuilt.start
            self._notifier.announce(
                Tiles(
                    instrument=start.instrument,
                    stream=start.stream,
                    run=run,
                    epoch=rebuilt.commit.epoch,
                    rev=rebuilt.commit.rev,
                    truncated=True,
                    t_commit_ns=rebuilt.commit.t_commit_ns,
                )
            )

        if isinstance(loaded, Run):
            self._blend_queue.put(Rebuild(loaded, work, finished), _MARK_NBYTES)
            done.result()
        else:
            try:
                work()
            finally:
                self._busy_rebuilds.discard(run)
        return {"run": run}

    def _delete(self, run: str) -> dict[str, Any]:
        self._known(run)
        if self._ingester.run_loaded(run) is not None:
            raise QueryError("conflict", f"run {run} is in use; it can be deleted a minute after it has ended")
        self._query_server.forget(run)
        self._keeper.delete(run)
        return {"run": run}

    def _reload(self) -> dict[str, Any]:
        if self._reload_config is None:
            raise QueryError("failed", "this daemon was not started from a configuration that can be read again")
        fresh = self._reload_config()
        changed = [name for name in fresh.provenance if fresh.value(name) != self._config.value(name)]
        return {"changed": changed, "needs_restart": changed}

    def _known(self, run: str) -> None:
        if not (self._root / run).is_dir():
            raise QueryError("unknown-run", f"there is no run {run} here; `runs` lists those that are")

    def _in_ingest(self, question: Callable[[], T]) -> T:
        """Ask the thread that owns the answer."""
        answer: Future[T] = Future()

        def ask() -> None:
            try:
                answer.set_result(question())
            except Exception as error:  # noqa: BLE001 - handed to whoever asked; the thread goes on
                answer.set_exception(error)

        self._ingester.order(ask)
        return answer.result(timeout=30)

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._root).free


class _Pipeline:
    """What ingest hands on, put into the queue of the blender (`ingester.Sink`)."""

    def __init__(self, queue: ByteQueue[BlendItem], notifier: Notifier) -> None:
        self._queue = queue
        self._notifier = notifier

    @property
    def has_room(self) -> bool:
        """Whether the blender keeps up."""
        return self._queue.has_room

    def opened(self, run: Run) -> None:
        """A run was made or loaded."""
        self._queue.put(Opened(run), _MARK_NBYTES)

    def placed(
        self, run: Run, placement: Placement, pixels: NDArray[Any] | None, t_recv_ns: int | None, ticket: int
    ) -> None:
        """A journalled frame has a place."""
        nbytes = _PLACED_NBYTES if pixels is None else pixels.nbytes
        self._queue.put(Placed(run, placement, pixels, t_recv_ns, ticket), nbytes)

    def marked(
        self, run: Run, state: str | None, report: tuple[int, dict[str, Any]] | None, notices: Sequence[RunNotice]
    ) -> None:
        """The state of a run, or its report."""
        self._queue.put(Marked(run, state, report, notices), _MARK_NBYTES)

    def noticed(self, run: Run | None, notice: RunNotice) -> None:
        """Something to publish at once, and to keep in the run's log when its turn comes."""
        self._notifier.announce(notice)
        if run is not None:
            self._queue.put(Marked(run, events=[(notice.kind, notice.detail)]), _MARK_NBYTES)

    def unload(self, run: Run, on_done: Callable[[], None]) -> None:
        """Finish everything of a run and close its store."""
        self._queue.put(Unload(run, on_done), _MARK_NBYTES)


def ingest_settings(config: Config) -> IngestSettings:
    """The options of the ingest machine."""
    return IngestSettings(
        idle_end_s=config.ingest.idle_end_s,
        reorder_tolerance_ms=config.ingest.reorder_tolerance_ms,
        gap_report_ms=config.ingest.gap_report_ms,
        hold_bytes=config.ingest.hold_bytes,
        hold_s=config.ingest.hold_s,
        join_max_gap_ms=config.join.max_gap_ms,
        join_timeout_ms=config.join.timeout_ms,
        allow_moving=config.join.allow_moving,
        blend_status=frozenset(config.ingest.blend_status),
    )


def _percentile_ms(ordered: list[float], share: float) -> float | None:
    if not ordered:
        return None
    return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]
