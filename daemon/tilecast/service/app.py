"""The daemon, put together: the only place that builds concrete things.

    sockets ─▶ Ingester ─▶ blend queue ─▶ Blender ─▶ store queue ─▶ Committer ─▶ Notifier ─▶ viewers
                  └▶ journals ◀─ Syncer                                 └▶ tiles.sqlite ◀─ QueryServer ◀─ viewers

The main thread runs one asyncio loop: signals, the notify and query sockets, the heartbeat. It computes nothing. Every
other thread owns what it works on, and they meet in two queues that are bounded in bytes.

Shutdown goes with the stream: stop reading, make durable, acknowledge; blend what was read; commit it; tell viewers.
What cannot be finished then (a rebuild, tiles for which the disk has no room) is left as it is, and taken up again.

When a thread fails, the daemon ends, and leaves its runs to be recovered: a new process is the surest way to a sound
state. The thread closes the queue that it read from, so that nobody waits for it for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import structlog
import zmq
import zmq.asyncio
from numpy.typing import NDArray

from tilecast.errors import ConfigError, StoreError
from tilecast.geometry import Placement
from tilecast.hookspecs import Committed, RunEnded
from tilecast.ingest.ingester import Ingester
from tilecast.ingest.machine import IngestMachine
from tilecast.ingest.room import Room
from tilecast.ingest.verdicts import NO_LONGER, IngestPath
from tilecast.plugins import Plugins, SourceThreads, Teller
from tilecast.publish.notifier import Notifier
from tilecast.publish.query_server import QueryServer
from tilecast.queues import ByteQueue
from tilecast.service.blender import Blender, BlendItem, Placed, Rebuild, Unload
from tilecast.service.committer import MAX_ANNOUNCED_TILES, Committer, Marked, Opened, StoreItem, rect_um
from tilecast.service.config import Config
from tilecast.service.cpu import StageCpu
from tilecast.service.disk import DiskWatch, reserves_of
from tilecast.service.forecast import Forecast, sentence
from tilecast.service.fsck import describe
from tilecast.service.keeper import Keeper
from tilecast.service.logging import configure, summarise_floods
from tilecast.service.mender import Mender, make_room
from tilecast.service.notify import Manager, Patience
from tilecast.service.rates import Rates
from tilecast.service.rebuild import Refreeze, Source, rebuild_run
from tilecast.service.registrations import take_pending
from tilecast.service.reload import reloaded
from tilecast.service.repair import Change, Repaired, repair_run
from tilecast.service.retention import Policy, Retention
from tilecast.service.runs import Run
from tilecast.service.settings import ingest_settings, ingester_options
from tilecast.service.sockets import Socket, Sockets
from tilecast.service.status import status_line
from tilecast.service.watch import Stage, Watch
from tilecast.store.folders import bring_up_to_date, look_into, run_folder
from tilecast.store.tile_store import RunInfo
from tilecast_protocol.errors import QueryError, TilecastError
from tilecast_protocol.messages import DaemonHeartbeat, RunNotice, RunRev, Tiles

log = structlog.get_logger()

_HEARTBEAT_S = 1.0
_MARK_NBYTES = 4096
_PLACED_NBYTES = 512
_CLOSE_S = 600.0
_STORE_S = 10.0
_MARK_S = 60.0
_STATS_S = 1.0
_LAST_WORDS_MS = 1000
_STILL_S = 30.0
_PATIENCE_S = 60.0  # with a stage that does not move, where no watchdog says otherwise


class Daemon:
    """One daemon. Built from a configuration, run once by `serve`.

    Parameters
    ----------
    config : Config
    plugins : Plugins
    reload_config : callable, optional
        Reads the configuration again, for the query `reload` and for SIGHUP.
    manager : Manager, optional
        The service manager, which is told how the daemon is doing.

    Attributes
    ----------
    endpoints : dict
        Where each socket is bound, once `ready` is set: with a wildcard port, the port it became.
    ready : threading.Event
        Set when all sockets are bound.
    """

    def __init__(
        self,
        config: Config,
        plugins: Plugins,
        *,
        reload_config: Callable[[], Config] | None = None,
        manager: Manager | None = None,
    ) -> None:
        self._config = config
        self._plugins = plugins
        self._reload_config = reload_config
        self._reload_lock = threading.Lock()
        self._config_trouble = ""
        self._manager = manager or Manager({})
        self._watch = Watch((self._manager.watchdog_s or 2 * _PATIENCE_S) / 2)
        self._hanging: list[str] = []
        self._root = Path(config.store.path)
        self.endpoints: dict[str, str] = {}
        self.ready = threading.Event()
        self._stop = asyncio.Event()
        self._state = "starting"
        self._failure: tuple[str, BaseException] | None = None
        self._started_at = time.time()
        self._process = psutil.Process()
        self._stage_cpu = StageCpu()
        self._rates = Rates()
        self._forecast = Forecast()
        self._beat_s = time.monotonic()
        self._rebuilds: set[str] = set()
        self._rebuilds_lock = threading.Lock()
        self._no_more_rebuilds = False

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
        # In a terminal it means that the terminal was closed.
        hang_up = self._stop.set if os.isatty(0) else lambda: loop.run_in_executor(None, self._reload_told)
        loop.add_signal_handler(signal.SIGHUP, hang_up)
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"store.path = {self._root} cannot be made: {error}") from error
        with (
            Patience(self._manager, lambda: "opening the journals of open runs") as patience,
            contextlib.closing(Sockets(self._config, with_feed=self._has_sources())) as sockets,
        ):
            self._patience = patience
            ingest, notify, query = sockets.ingest(IngestPath), sockets.notify(), sockets.query()
            self.endpoints = sockets.endpoints
            self._feed = sockets.feed
            self._build(loop, ingest, notify)
            with self._monitoring():
                self._start()
                self.ready.set()
                log.info("ready", store=str(self._root), **self.endpoints)
                await self._serve_viewers(query, sockets.is_operator)
                await self._shut_down(loop)
            for socket in (notify, query):
                if socket is not None:
                    socket.close(linger=_LAST_WORDS_MS)
        if self._failure is not None:
            name, failure = self._failure
            raise RuntimeError(f"the {name} thread failed: {failure}") from failure

    def stop(self) -> None:
        """Make `serve` end in good order; from the loop's thread."""
        self._stop.set()

    def _build(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: dict[IngestPath, list[Socket]],
        notify: Socket | None,
    ) -> None:
        config = self._config
        self._disk = DiskWatch(self._root, reserves_of(config))
        self._keeper = Keeper(config, self._plugins)
        self._retention = Retention(
            self._root,
            Policy.of(config),
            let_go=lambda run: self._ingester.let_go(run),
            on_sealed=self._tell_sealed,
            may_check=lambda: self._disk.room() < Room.STOP,
        )
        self._keeper.give_way = self._retention.give_way
        for run, error in bring_up_to_date(self._root):
            if error is None:
                log.info("run brought up to date: an older tilecast wrote it", run=run)
            else:
                log.error("run cannot be brought up to date; the others go on", run=run, why=str(error))
        left_active = self._keeper.left_active()
        make_room(self._root, left_active)
        self._mender = Mender(self._root, self._mend)
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
        self._teller = Teller(self._plugins)
        self._blender = Blender(
            self._blend_queue,
            self._store_queue,
            budget_bytes=config.blend.budget_bytes,
            commit_interval_s=config.store.commit_interval_ms / 1e3,
            batch_bytes=config.store.queue_bytes // 2,
            on_failure=failed,
        )
        self._ingester = Ingester(
            sockets,
            machine=IngestMachine(ingest_settings(config), self._keeper.lookup),
            keeper=self._keeper,
            sink=_Pipeline(self._blend_queue, self._notifier),
            options=ingester_options(config, recent_bytes=config.blend.queue_bytes),
            disk=self._disk,
            state=lambda: self._state,
            on_failure=failed,
            recover=left_active,
            on_verified=self._verified,
            on_recovered=self._recovered,
        )
        self._committer = Committer(
            self._store_queue,
            syncer=self._ingester.syncer,
            disk=self._disk,
            announcer=self._notifier,
            on_committed=self._blender.committed,
            tell_plugins=self._tell_plugins,
            on_failure=failed,
            wal_limit_bytes=config.store.wal_limit_bytes,
        )

    def _tell_plugins(self, news: Committed | RunEnded) -> None:
        """Tell plugins; of a run that has ended also where to ask about it."""
        if isinstance(news, RunEnded):
            news = replace(news, query=self.endpoints.get("query", ""))
        self._teller.tell(news)

    @contextlib.contextmanager
    def _monitoring(self) -> Iterator[None]:
        """Serve the port for monitoring, if it is configured, until all is finished."""
        listen = self._config.metrics.listen
        if not listen:
            yield
            return
        # Where nobody monitors, nobody waits for the library.
        from tilecast.service.metrics import StatsCollector
        from tilecast.service.metrics_server import MetricsServer

        server = MetricsServer(
            listen,
            StatsCollector(self._config.instrument, version("tilecast"), stats=self.stats, health=self.health),
            why_not_alive=self._why_not_alive,
            why_no_start=self._why_no_start,
        )
        self.endpoints["metrics"] = server.url
        try:
            yield
        finally:
            server.close()

    def _start(self) -> None:
        self._beat_s = time.monotonic()
        self._state = "catching-up"
        self._committer.start()
        self._blender.start()
        self._ingester.start()
        self._sources.start(self._feed)

    def _has_sources(self) -> bool:
        self._sources = SourceThreads(self._plugins, self._config.instrument, self._root)
        return len(self._sources) > 0

    def _verified(self) -> None:
        """Sockets are bound, and what was acknowledged is known to be there: whoever waits for us may go on."""
        self._patience.end()
        self._manager.tell("READY=1", f"STATUS={self._status()}")

    def _recovered(self) -> None:
        if self._state == "catching-up":
            self._state = "ready"
        self._retention.start()
        self._mender.start()

    async def _serve_viewers(self, query: Socket | None, is_operator: Callable[[zmq.Frame], bool]) -> None:
        tasks = [asyncio.ensure_future(self._heartbeat())]
        if query is not None:
            server = QueryServer(
                zmq.asyncio.Socket(query),
                root=self._root,
                operations=self,
                is_operator=is_operator,
                threads=self._config.viewers.threads,
                max_region_pixels=self._config.viewers.max_region_pixels,
                max_tiles=self._config.viewers.max_snapshot_tiles,
                max_in_flight=self._config.viewers.max_in_flight,
                max_per_s=self._config.viewers.max_request_rate,
                max_unread_nbytes=self._config.viewers.unread_bytes,
                max_unread_nbytes_of_all=self._config.viewers.unread_bytes_of_all,
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
        self._manager.tell("STOPPING=1", f"STATUS={self._status()}")
        draining = loop.run_in_executor(None, self._drain)
        with Patience(self._manager, self._status):
            while not draining.done():
                self._feed_watchdog()
                await asyncio.wait([draining], timeout=_HEARTBEAT_S)
        await draining
        self._beat()
        self._notifier.flush()
        summarise_floods(final=True)
        log.info("stopped", uptime_s=round(time.time() - self._started_at))

    def _drain(self) -> None:
        """Let everything that was read go its way to the end; in a thread, because it waits."""
        self._no_more_rebuilds = True
        self._mender.stop()
        self._retention.stop()
        self._committer.abandon()
        self._sources.close()
        self._ingester.stop()
        self._ingester.join()
        if self._failure is None:
            self._ingester.close_runs(_CLOSE_S)
        self._blend_queue.close()
        self._blender.join()
        self._committer.join()
        self._ingester.close_runs(finish=False)  # those of a daemon that has failed
        self._teller.close()
        self._disk.close()

    async def _heartbeat(self) -> None:
        while True:
            now_s = time.monotonic()
            self._rates.sample(now_s, self._counters())
            self._forecast.sample(now_s, self._disk.free_bytes)
            self._beat()
            self._plugins.watch()
            summarise_floods()
            self._have_mended()
            self._feed_watchdog()
            await asyncio.sleep(_HEARTBEAT_S)

    def _feed_watchdog(self) -> None:
        self._beat_s = time.monotonic()
        hanging = self._watch.hanging(self._stages(), self._beat_s)
        if hanging and hanging != self._hanging:
            log.critical("threads hang; a watchdog, where there is one, will start the daemon anew", threads=hanging)
        self._hanging = hanging
        # Before the journals are verified `Patience` speaks, and says what for.
        status = [] if self._state == "starting" else [f"STATUS={self._status()}"]
        self._manager.tell(*([] if hanging else ["WATCHDOG=1"]), *status)

    def _stages(self) -> list[Stage]:
        """The threads that frames pass through; one that waits for the next is judged by that."""
        ingester, blender, committer = self._ingester, self._blender, self._committer
        sync = ingester.syncer.stats()
        blend_waits = self._store_queue.n_waiting > 0 or blender.waits_for_store
        return [
            Stage("ingest", ingester.n_turns, waits=ingester.ended or self._blend_queue.n_waiting > 0),
            Stage("sync", sync["n_syncs"], waits=sync["waiting"] == 0),
            Stage("blend", blender.n_turns, waits=blender.ended or blend_waits),
            Stage("store", committer.n_turns, waits=committer.ended),
        ]

    def _status(self) -> str:
        names = [run.start.name or run.run[:8] for run in self._loaded_runs()]
        trouble = [f"{', '.join(self._hanging)}: hanging"] if self._hanging else []
        trouble += [self._config_trouble] if self._config_trouble else []
        return status_line(self._state, names, self._rates.per_second(), self._disk.free_bytes, "; ".join(trouble))

    def _have_mended(self) -> None:
        """Have what cannot be loaded, or is stuck, repaired; each once."""
        # Nothing can be repaired without room, and what lacks only that goes on by itself.
        if self._state == "ready" and self._disk.room() < Room.STOP and not self._disk.trouble:
            stuck = (run.run for run in self._stuck() if not run.shed)
            for run in (*self._ingester.not_loadable(), *stuck):
                self._mender.mend(run)

    def _stuck(self) -> list[Run]:
        """Loaded runs whose mosaic does not go on."""
        return [run for run in self._loaded_runs() if run.stuck]

    def _loaded_runs(self) -> list[Run]:
        loaded = [self._ingester.run_loaded(name) for name in self._ingester.loaded()]
        return [run for run in loaded if isinstance(run, Run)]

    def _counters(self) -> dict[str, float]:
        """What `stats` tells the rates of."""
        return {
            "images": self._ingester.counters["images"],
            "image_bytes": self._ingester.counters["image_bytes"],
            "blended": self._blender.n_frames,
            "commits": self._committer.stats.n_commits,
        }

    def _beat(self) -> None:
        """Tell how the daemon is: under its own instrument with all runs, and under each run's with those of it.

        Who follows one instrument hears nothing of another's topics.
        """
        revs = [RunRev(run, epoch, rev) for run, (epoch, rev) in self._committer.revs().items()]
        by_instrument: dict[str, list[RunRev]] = {}
        for one in revs:
            loaded = self._ingester.run_loaded(one.run)
            if loaded is not None:
                by_instrument.setdefault(loaded.start.instrument, []).append(one)
        by_instrument[self._config.instrument] = revs
        beat = DaemonHeartbeat(
            instrument=self._config.instrument,
            t_ns=time.time_ns(),
            state=self._state,
            wal_bytes=self._committer.wal_bytes(),
            free_bytes=self._disk.free_bytes,
        )
        for instrument, runs in by_instrument.items():
            self._notifier.announce(replace(beat, instrument=instrument, runs=tuple(runs)))

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
        machine = self._machine_stats()
        progress = machine.pop("progress", {})
        return {
            "state": self._state,
            "uptime_s": time.time() - self._started_at,
            "rss_bytes": self._process.memory_info().rss,
            "cpu_s": sum(self._process.cpu_times()[:2]),
            "cpu_s_by_stage": self._stage_cpu.seconds(),
            "queues": {
                queue.name: {slot: getattr(stats, slot) for slot in stats.__slots__}
                for queue in (self._blend_queue, self._store_queue)
                for stats in (queue.stats(),)
            },
            "rates": self._rates.per_second(),
            "ingest": self._ingester.stats() | machine,
            "runs": progress,
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
                "free_bytes": self._disk.free_bytes,
            },
            "disk": self._disk.stats()
            | {"lost_bytes_per_s": self._forecast.lost_bytes_per_s, "full_in_s": self._full_in_s()},
            "retention": self._retention.stats(),
            "latency_ms": {
                "n": len(latencies),
                "p50": _percentile_ms(latencies, 0.5),
                "p99": _percentile_ms(latencies, 0.99),
                "max": _percentile_ms(latencies, 1.0),
            },
            "latency_s_by_stage": {
                stage: histogram.as_dict()
                for stage, histogram in (
                    ("journal", self._ingester.latency),
                    ("sync", self._ingester.syncer.latency),
                    ("blend", self._blender.latency),
                    ("commit", self._committer.latency),
                    ("notify", self._notifier.latency),
                )
            },
            "notify": {slot: getattr(found, slot) for found in (self._notifier.stats(),) for slot in found.__slots__},
            "plugins": self._plugins.stats()
            | {
                "sources": self._sources.stats(),
                "n_missed_commits": self._teller.n_missed,
            },
        }

    def health(self) -> dict[str, Any]:
        """State, and why not ready."""
        problems = []
        if self._state != "ready":
            problems.append(f"the daemon is {self._state}")
        not_alive = self._why_not_alive()
        problems += not_alive
        if not self._ingester.has_room:
            problems.append("frames come faster than they can be blended; publishers are slowed")
        if self._disk.room() is not Room.OK:
            problems.append(self._disk.sentence)
        if self._disk.trouble:
            problems.append(f"the disk does not take what is written: {self._disk.trouble}")
        problems += [f"run {run} cannot be loaded: {why}" for run, why in self._ingester.not_loadable().items()]
        loaded = self._ingester.loaded()
        full_in_s = self._full_in_s()
        problems += [f"the mosaic of run {run.run} is stuck: {run.stuck}" for run in self._stuck()]
        problems += [f"run {run} is damaged: {why}" for run, why in self._mender.beyond().items()]
        problems += [f"run {run} is left alone: {why}" for run, why in self._mender.newer().items()]
        problems += [self._config_trouble] if self._config_trouble else []
        return {
            "state": self._state,
            "ready": self._state == "ready" and not not_alive,
            "problems": problems,
            "free_bytes": self._disk.free_bytes,
            "disk": self._disk.room().word,
            "runs": loaded,
            "no_start": self._why_no_start(),
            "full_in_s": full_in_s,
            "forecast": sentence(full_in_s),
        }

    def _full_in_s(self) -> float | None:
        """How long there is room for mosaics, if it goes on like this."""
        disk = self._disk.stats()
        return self._forecast.full_in_s(disk["free_bytes"], disk["stop_below_bytes"])

    def _why_no_start(self) -> list[str]:
        """Why no run can be begun now; nothing if one can."""
        reasons = []
        if self._state != "ready":
            reasons.append(f"the daemon is {self._state}")
        reasons += self._why_not_alive()
        if self._disk.room() >= Room.STOP:
            reasons.append(self._disk.sentence)
        if self._disk.trouble:
            reasons.append(f"the disk does not take what is written: {self._disk.trouble}")
        return reasons

    def _why_not_alive(self) -> list[str]:
        """Why this process should be replaced; nothing while it lives: every stage moves or is idle."""
        reasons = []
        if self._failure is not None:
            reasons.append(f"the {self._failure[0]} thread failed: {self._failure[1]}")
        # As the watchdog has it, which is fed by the main thread: one that stands still tells nothing of the others.
        still_s = time.monotonic() - self._beat_s
        if self._state in ("catching-up", "ready", "stopping") and still_s > _STILL_S:
            reasons.append(f"the main thread has not moved for {still_s:.0f} s")
        reasons += [f"the {name} thread hangs: it has work, and does not move" for name in self._hanging]
        return reasons

    def damaged(self) -> dict[str, str]:
        """Runs of which something is wrong that could not be repaired, and what."""
        return self._mender.beyond() | self._mender.newer()

    def unplaced(self, run: str) -> dict[str, Any] | None:
        """Frames of a loaded run that have no place yet, as ranges by the reason."""
        if self._ingester.run_loaded(run) is None:
            return None
        return self._ingester.ask(lambda machine: machine.unplaced(run) if run in machine.loaded() else None)

    def live_report(self, run: str) -> dict[str, Any] | None:
        """The report of a loaded run as it would be written now."""
        if self._ingester.run_loaded(run) is None:
            return None
        return self._ingester.ask(lambda machine: machine.report(run) if run in machine.loaded() else None)

    def await_store(self, run: str) -> bool:
        """Wait for the store of a run that has just begun."""
        loaded = self._ingester.run_loaded(run)
        if isinstance(loaded, Run) and not loaded.store_ready.wait(_STORE_S):
            raise QueryError("busy", "the store of this run is still being made; ask again in a moment")
        if loaded is None and self._state == "catching-up":
            raise QueryError("busy", "the daemon is still loading the runs that were open; ask again in a moment")
        return isinstance(loaded, Run)

    def operate(self, query: dict[str, Any]) -> dict[str, Any]:
        """Carry out an operator's order."""
        log.info("operator", **{key: value for key, value in query.items() if key not in ("v", "id")})
        match query["cmd"]:
            case "end":
                return self._end(query["run"])
            case "rename":
                return self._mark(query["run"], "renamed", {"name": query["name"]}, renamed=query["name"])
            case "note":
                return self._mark(query["run"], "noted", {"text": query["text"]}, note=query["text"])
            case "rebuild":
                return self._rebuild(query)
            case "repair":
                return self._repair(query["run"])
            case "delete":
                return self._delete(query["run"], query["if_seen"], query["why"] or "operator")
            case "seal":
                return self._seal(query["run"], force=query["force"])
            case "reload":
                return self._reload()
        raise QueryError("unknown-command", f"no operator command {query['cmd']}")

    def _end(self, run: str) -> dict[str, Any]:
        self._ingester.end_run(run)
        return {"run": run}

    def _mark(self, run: str, kind: str, detail: dict[str, Any], **what: Any) -> dict[str, Any]:
        """Write something into a run's store, and tell viewers.

        Through the store thread if the run is loaded, else directly.
        """
        loaded = self._ingester.run_loaded(run)
        if isinstance(loaded, Run):
            done = _Done()
            self._to_blend(Marked(loaded, on_done=done, **what))
            try:
                done.result(_MARK_S)
            except TimeoutError as error:
                raise QueryError("busy", "the store did not get to it yet; look later whether it was done") from error
            self._notifier.announce(loaded.notice(kind, detail))
            return {"run": run}
        self._known(run)
        self._keeper.write_closed(run, **what)
        found = look_into(run_folder(self._root, run)).info
        if found is not None:
            self._tell(found, kind, detail)
        return {"run": run}

    def _to_blend(self, item: Marked | Rebuild) -> None:
        if not self._blend_queue.put(item, _MARK_NBYTES):
            raise QueryError("busy", "the daemon is stopping; ask again when it has started")

    def _rebuild(self, query: dict[str, Any]) -> dict[str, Any]:
        self._while_closed(query["run"], lambda loaded: self._make_anew(query, loaded))
        return {"run": query["run"]}

    def _repair(self, run: str) -> dict[str, Any]:
        repaired: list[Repaired] = []
        self._while_closed(run, lambda loaded: repaired.append(self._make_good(run, loaded)))
        [found] = repaired
        return {"run": run, "done": list(found.done), "left": [describe(finding) for finding in found.left]}

    def _while_closed(self, run: str, work: Callable[[Run | None], None]) -> None:
        """Do `work` on a run while nobody has its store open, and its images, if it is loaded, are still journalled."""
        self._known(run)
        with self._rebuilds_lock:
            if run in self._rebuilds:
                raise QueryError("conflict", f"run {run} is being rebuilt already")
            self._rebuilds.add(run)
        try:
            loaded = self._ingester.run_loaded(run)
            if isinstance(loaded, Run):
                done = _Done()
                self._to_blend(Rebuild(loaded, lambda: work(loaded), done))
                done.result()
            else:
                work(None)
        finally:
            self._rebuilds.discard(run)

    def _look_up(self, *_: object) -> None:
        """Called now and then during a rebuild, which must not keep the daemon from ending."""
        if self._no_more_rebuilds:
            raise QueryError("busy", "the daemon stops, and this rebuild with it; the old mosaic stays")

    def _make_anew(self, query: dict[str, Any], loaded: Run | None) -> None:
        """Rebuild a run whose store nobody has open, and tell viewers."""
        folder = self._config.calibration.path
        sources = {
            role: None if name is None else Source() if name == "none" else Source(folder, name)
            for role in ("dark", "flat")
            for name in (query[role],)
        }
        is_another = query["steps"] or any(source is not None for source in sources.values())
        rebuilt = rebuild_run(
            self._root / query["run"],
            mode=query["blend"],
            rejoin=query["rejoin"],
            refreeze=Refreeze(self._plugins, folder, **sources, steps=query["steps"]) if is_another else None,
            lock=None if loaded is None else loaded.lock,
            journal=None if loaded is None else loaded.journal,
            budget_bytes=self._config.blend.budget_bytes,
            progress=self._look_up,
            registration=take_pending(self._root / query["run"]) if query["registration"] else None,
            layout=query["layout"],
        )
        if loaded is not None and is_another:
            loaded.frozen, loaded.images = rebuilt.frozen, rebuilt.images
        self._tell_change(Change(rebuilt.start, rebuilt.commit, rebuilt.bbox))

    def _make_good(self, run: str, loaded: Run | None) -> Repaired:
        """Repair a run whose store nobody has open, and tell viewers."""
        repaired = repair_run(
            self._root / run,
            lock=None if loaded is None else loaded.lock,
            journal=None if loaded is None else loaded.journal,
            # One that was stuck has left out what came since.
            frames_may_wait=loaded is not None and not loaded.stuck,
            budget_bytes=self._config.blend.budget_bytes,
            progress=self._look_up,
        )
        for what in repaired.done:
            log.warning("repaired", run=run, what=what)
        for finding in repaired.left:
            log.error("damaged", run=run, what=describe(finding))
        if repaired.change is not None:
            self._tell_change(repaired.change)
        return repaired

    def _mend(self, run: str) -> None:
        """As the query `repair`, for the mender: what is left is an error."""
        left = self._repair(run)["left"]
        if left:
            raise StoreError("; ".join(left))

    def _tell_change(self, change: Change) -> None:
        """What has changed without a commit of the store thread."""
        start = change.start
        tiles, gone = change.tiles, change.gone
        many = tiles is None or len(tiles) + len(gone) > MAX_ANNOUNCED_TILES
        self._notifier.announce(
            Tiles(
                instrument=start.instrument,
                stream=start.stream,
                run=start.run,
                epoch=change.commit.epoch,
                rev=change.commit.rev,
                tiles=None if many or tiles is None else tuple((*plane, *key) for plane, key in tiles),
                gone=() if many else tuple((*plane, *key) for plane, key in gone),
                truncated=many,
                t_commit_ns=change.commit.t_commit_ns,
                bbox_um=None if change.bbox.empty else rect_um(change.bbox, start.effective_affine),
            )
        )

    def _delete(self, run: str, if_seen: tuple[int, int] | None, why: str) -> dict[str, Any]:
        self._known(run)
        self._ingester.let_go(run)
        info = look_into(run_folder(self._root, run)).info
        entry = self._keeper.delete(run, why, if_seen=if_seen)
        # Only now: a question that came meanwhile would have opened it again.
        self._query_server.forget(run)
        log.warning("a run was deleted", run=run, name=entry.get("name"), freed_bytes=entry["nbytes"], why=why)
        if info is not None:
            self._tell(info, "deleted", {"name": info.name, "freed_bytes": entry["nbytes"]})
        return {"run": run, "freed_bytes": entry["nbytes"]}

    def _seal(self, run: str, *, force: bool) -> dict[str, Any]:
        self._known(run)
        self.await_store(run)
        return {"run": run, "freed_bytes": self._retention.seal(run, force=force)}

    def _tell_sealed(self, info: RunInfo, freed_bytes: int) -> None:
        self._tell(info, "sealed", {"freed_bytes": freed_bytes, "no_longer": list(NO_LONGER)})

    def _tell(self, info: RunInfo, kind: str, detail: dict[str, Any]) -> None:
        """Tell viewers of a run that is not loaded."""
        self._notifier.announce(
            RunNotice(instrument=info.instrument, stream=info.stream, run=info.run, kind=kind, detail=detail)
        )

    def _reload(self) -> dict[str, Any]:
        if self._reload_config is None:
            raise QueryError("failed", "this daemon was not started from a configuration that can be read again")
        with self._reload_lock:
            try:
                fresh = self._reload_config()
            except TilecastError as error:
                self._config_trouble = f"the configuration was not reloaded, the old one holds: {error}"
                raise
            found = reloaded(self._config, fresh)
            self._apply(found.config)
            self._config_trouble = ""
        log.info("configuration reloaded", applied=found.applied, needs_restart=found.needs_restart)
        return {
            "changed": found.applied + found.needs_restart,
            "applied": found.applied,
            "needs_restart": found.needs_restart,
        }

    def _apply(self, config: Config) -> None:
        """Hand on what may change while runs go on (`service/reload.py` lists it)."""
        self._config = config
        self._plugins.trace = config.plugins.trace
        configure(config.log.level, config.log.format, flood_s=config.log.flood_s)
        self._disk.reserve(reserves_of(config))
        self._retention.follow(Policy.of(config))
        self._keeper.follow(config)
        self._ingester.follow(ingest_settings(config))

    def _reload_told(self) -> None:
        """As the query `reload`, when a signal asks."""
        self._manager.reloading()
        try:
            self._reload()
        except TilecastError as error:
            log.error("configuration not reloaded; the old one holds", why=str(error))
        finally:
            self._manager.tell("READY=1", f"STATUS={self._status()}")

    def _known(self, run: str) -> None:
        if not (self._root / run).is_dir():
            raise QueryError("unknown-run", f"there is no run {run} here; `runs` lists those that are")
        self._retention.give_way(run)

    def _machine_stats(self) -> dict[str, Any]:
        try:
            return self._ingester.ask(lambda machine: machine.stats(), _STATS_S)
        except QueryError:
            return {}  # it is loading runs; the other numbers are worth having


class _Done(Future[None]):
    """What a thread that waits for another is told: called with what went wrong, or None."""

    def __call__(self, error: Exception | None) -> None:
        if error is None:
            self.set_result(None)
        else:
            self.set_exception(error)


class _Pipeline:
    """What ingest hands on, put into the queue of the blender (`ingester.Sink`)."""

    def __init__(self, queue: ByteQueue[BlendItem], notifier: Notifier) -> None:
        self._queue = queue
        self._notifier = notifier

    def has_room_for(self, nbytes: int) -> bool:
        """Whether the blender keeps up."""
        return self._queue.has_room_for(nbytes)

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
        if not self._queue.put(Unload(run, on_done), _MARK_NBYTES):
            on_done()


def _percentile_ms(ordered: list[float], share: float) -> float | None:
    if not ordered:
        return None
    return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]
