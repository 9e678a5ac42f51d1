"""Sends a scan to a daemon over its sockets, and gathers what happens: when what came, and what it cost.

The daemon is a process of its own and is asked as anybody may ask it: notifications, queries, what the system counts of
its process, and, when it has ended, what lies in the run's folder.

The clock runs from the first frame until all frames are acknowledged, committed and announced, and the write-ahead log
has been carried over into the database. Then the run is ended. The pause that the checkpointer makes before it cuts
the log is taken off, because in it nobody does anything. Nothing else is left out: every frame of the run counts in
every figure. (What is compiled is compiled before: a daemon that is ready has loaded its kernels.)
"""

from __future__ import annotations

import bisect
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil

from tilecast.bench.figures import Outcome
from tilecast.bench.scan import PX_UM, FramePool, Scan
from tilecast.process import DaemonProcess
from tilecast.service.runs import JOURNAL_NAME
from tilecast.store.checkpointer import IDLE_S
from tilecast.store.folders import folder_nbytes
from tilecast.store.sqlite_connection import TILES_NAME, wal_path
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_protocol.client import Client, Resync, TileUpdate
from tilecast_protocol.errors import DisconnectedError, QueryError
from tilecast_protocol.journal import Journal
from tilecast_protocol.publisher import Publisher

_SAMPLE_S: Final = 0.5
_LISTEN_S: Final = 0.1
_LOOK_S: Final = 0.005
_STILL_S: Final = 5.0
_TIMEOUT_S: Final = 60.0
_FULL: Final = 0.9


def measure(
    daemon: DaemonProcess,
    store_path: Path,
    scan: Scan,
    pool: FramePool,
    *,
    fps: float | None,
    check: Callable[[], None] = lambda: None,
    on_frame: Callable[[], None] = lambda: None,
) -> Outcome:
    """Send a scan, wait until all of it is in the mosaic, and stop the daemon.

    Parameters
    ----------
    daemon : DaemonProcess
        Started, and used by nobody else.
    store_path : Path
        Where its runs are.
    scan : Scan
    pool : FramePool
        The frames of this scan.
    fps : float or None
        Send by a clock, so many frames per second; None: as fast as frames are acknowledged.
    check : callable
        Called often; what it raises ends the measurement.
    on_frame : callable
        Called for each frame that was handed over.

    Raises
    ------
    RejectedError, DisconnectedError, QueryError
        The daemon refuses frames, or does not answer any more.
    """
    process = psutil.Process(daemon.pid)
    with (
        Publisher(
            daemon.endpoints["ingest.ack"], instrument="bench", stream="camera", timeout_s=_TIMEOUT_S
        ) as publisher,
        Client(None, daemon.endpoints["query"]) as client,
    ):
        run = publisher.start(
            "tilecast bench",
            shape=scan.shape,
            dtype=scan.dtype,
            px_um=(PX_UM, PX_UM),
            n_expected=scan.n_frames,
            pos_src="frame",
        )
        client.run(run)  # its store has been made when this is answered
        with _Listener(daemon.endpoints["notify"], run) as listener, _Sampler(daemon.endpoints["query"]) as sampler:
            before, written_before = client.stats(), _written_bytes(process)
            load = _MachineLoad()
            sender_s, began_s = time.process_time(), time.monotonic()
            behind_s = _send(publisher, scan, pool, fps, check, on_frame)
            publisher.flush()
            acked_s = time.monotonic() - began_s
            _wait_committed(client, run, scan.n_frames, listener, check)
            settled_s = _wait_settled(store_path / run, process, check) - began_s
            sender_s = time.process_time() - sender_s
            busy_share, disk_wait_share = load.shares()
            after, written_after = client.stats(), _written_bytes(process)
        publisher.end()
    if code := daemon.stop():
        raise DisconnectedError(f"the daemon did not end in good order (exit code {code}); see its log with --keep")
    folder = store_path / run
    t_recv_ns, latency_ns = _latencies(folder, listener)
    with SqliteReader(folder) as reader:
        store_bytes = reader.size().nbytes
    return Outcome(
        acked_s=acked_s,
        seconds=settled_s,
        behind_s=behind_s,
        t_s=[(t_ns - t_recv_ns[0]) / 1e9 for t_ns in t_recv_ns],
        latency_ms=[ns / 1e6 for ns in latency_ns],
        cpu_s=after["cpu_s"] - before["cpu_s"],
        sender_cpu_s=sender_s,
        cpu_s_by_stage={
            stage: used_s - before["cpu_s_by_stage"].get(stage, 0.0)
            for stage, used_s in after["cpu_s_by_stage"].items()
        },
        rss_bytes=max(sampler.rss_bytes, before["rss_bytes"], after["rss_bytes"]),
        written_bytes=None if written_before is None or written_after is None else written_after - written_before,
        journal_bytes=folder_nbytes(folder / JOURNAL_NAME),
        store_bytes=store_bytes,
        full_share=sampler.full_share(),
        queues=after["queues"],
        busy_share=busy_share,
        disk_wait_share=disk_wait_share,
    )


def _send(
    publisher: Publisher,
    scan: Scan,
    pool: FramePool,
    fps: float | None,
    check: Callable[[], None],
    on_frame: Callable[[], None],
) -> float:
    """Send all frames; gives how many seconds a frame was sent after it was due, at most."""
    behind_s, began_s = 0.0, time.monotonic()
    for frame in range(scan.n_frames):
        check()
        if fps:
            early_s = began_s + frame / fps - time.monotonic()
            if early_s > 0:
                time.sleep(early_s)
            behind_s = max(behind_s, -early_s)
        publisher.image(pool.frame(frame), frame=frame, pos_um=scan.pos_um(frame))
        on_frame()
    return behind_s


def _wait_committed(client: Client, run: str, n_frames: int, listener: _Listener, check: Callable[[], None]) -> None:
    """Wait until all frames are in the mosaic, and viewers have been told."""
    n_placed, news_s = -1, time.monotonic()
    while True:
        check()
        info = client.run(run)
        complete = info["frames"] == n_frames
        if info["frames"] > n_placed:
            n_placed, news_s = info["frames"], time.monotonic()
        if listener.wait_heard(info["rev"] + (not complete), _LISTEN_S) and complete:
            return
        if time.monotonic() - news_s > _TIMEOUT_S:
            raise DisconnectedError(
                f"{n_placed} of {n_frames} frames are in the mosaic, and for {_TIMEOUT_S:g} s no other came; "
                "with --keep the daemon's log stays, which may say why"
            )


def _wait_settled(folder: Path, process: psutil.Process, check: Callable[[], None]) -> float:
    """Wait until the write-ahead log is cut to nothing; gives the time (monotonic, s) of that, without the pause.

    A log that was carried over completely by the last commit itself is not cut; then nothing is written any more, and
    the time is when that began.
    """
    log = wal_path(folder / TILES_NAME)
    began_s = changed_s = time.monotonic()
    state: tuple[int, int | None] | None = None
    while True:
        check()
        now_s = time.monotonic()
        log_nbytes = log.stat().st_size if log.exists() else 0
        if log_nbytes == 0:
            return max(began_s, now_s - IDLE_S)
        if state != (state := (log_nbytes, _written_bytes(process))):
            changed_s = now_s
        if now_s - changed_s > _STILL_S:
            return changed_s
        time.sleep(_LOOK_S)


def _latencies(folder: Path, listener: _Listener) -> tuple[list[int], list[int]]:
    """When each frame was received, and how long after that a viewer was told of it, in ns, in the order of arrival."""
    with Journal.open(folder / JOURNAL_NAME, readonly=True) as journal:
        received = {record.frame: record.t_recv_ns for record in journal.records(with_parts=False)}
    with SqliteReader(folder) as reader:
        found = sorted((received[row.placement.frame], listener.heard_ns(row.rev)) for row in reader.placements())
    return [t_ns for t_ns, _ in found], [heard_ns - t_ns for t_ns, heard_ns in found]


def _written_bytes(process: psutil.Process) -> int | None:
    """What a process has had the system write to disks; None where the system does not tell."""
    try:
        return int(process.io_counters().write_bytes) if psutil.LINUX else None
    except (psutil.Error, OSError, NotImplementedError):
        return None


class _MachineLoad:
    """How busy the whole machine is, whoever keeps it busy, from when this is made."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._times = psutil.cpu_times()
        self._disk_wait_us = _disk_wait_us()

    def shares(self) -> tuple[float, float | None]:
        """Share of all cores' time in which they were busy; and of the time in which everything waited for disks.

        The second is None where the system does not tell.
        """
        spent = [now - then for now, then in zip(psutil.cpu_times(), self._times, strict=True)]
        # Linux counts the time for guests twice, once as user time.
        by_name = {name: s for name, s in zip(self._times._fields, spent, strict=True) if not name.startswith("guest")}
        idle_s = by_name["idle"] + by_name.get("iowait", 0.0)
        total_s = sum(by_name.values())
        waited_us = _disk_wait_us()
        disk_wait = None
        if waited_us is not None and self._disk_wait_us is not None:
            disk_wait = (waited_us - self._disk_wait_us) / 1e6 / (time.monotonic() - self._began_s)
        return (1 - idle_s / total_s if total_s else 0.0), disk_wait


def _disk_wait_us() -> int | None:
    """How long everything on this machine that had work waited for disks, in µs since it was started."""
    try:
        lines = Path("/proc/pressure/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.rpartition("total=")[2]) for line in lines if line.startswith("full")), None)


class _Thread:
    """A thread for as long as the `with` lasts; what it raises is raised at the end."""

    def __init__(self, name: str) -> None:
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._guarded, name=name, daemon=True)

    def _guarded(self) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - the end of a thread: raised again in the one that waits for it
            self._error = error

    def _work(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error


class _Listener(_Thread):
    """A viewer that notes when it was told of which commit."""

    def __init__(self, endpoint: str, run: str) -> None:
        super().__init__("tilecast-bench-viewer")
        self._endpoint = endpoint
        self._run = run
        self._ready = threading.Event()
        self._changed = threading.Condition()
        self._revs: list[int] = []
        self._times_ns: list[int] = []

    def _work(self) -> None:
        with Client(self._endpoint, None, run=self._run, queue_messages=100_000) as client:
            client.wait_connected()
            self._ready.set()
            while not self._stopping.is_set():
                update = client.next_update(_LISTEN_S)
                if isinstance(update, TileUpdate | Resync):
                    with self._changed:
                        self._times_ns.append(time.time_ns())
                        self._revs.append(update.rev)
                        self._changed.notify_all()

    def __enter__(self) -> Self:
        super().__enter__()
        self._ready.wait(_LISTEN_S * 100)
        return self

    def wait_heard(self, rev: int, timeout_s: float) -> bool:
        """Wait until a commit was heard of; False if it was not."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._revs) and self._revs[-1] >= rev, timeout_s)

    def heard_ns(self, rev: int) -> int:
        """When (UTC, ns) it was heard that the run has come to `rev`; if that was lost, by a later notification."""
        return self._times_ns[bisect.bisect_left(self._revs, rev)]


class _Sampler(_Thread):
    """Looks at the daemon twice a second: memory, and how full its queues are."""

    def __init__(self, endpoint: str) -> None:
        super().__init__("tilecast-bench-sampler")
        self._endpoint = endpoint
        self._n = 0
        self._n_full: Counter[str] = Counter()
        self.rss_bytes = 0

    def _work(self) -> None:
        with Client(None, self._endpoint) as client:
            while not self._stopping.wait(_SAMPLE_S):
                try:
                    stats = client.stats()
                except (DisconnectedError, QueryError):
                    continue  # it is busy: the next time
                self.rss_bytes = max(self.rss_bytes, stats["rss_bytes"])
                self._n += 1
                self._n_full.update(name for name, queue in stats["queues"].items() if _is_full(queue))

    def full_share(self) -> dict[str, float]:
        """Of each queue, the share of the looks in which it was full."""
        return {name: self._n_full[name] / max(1, self._n) for name in ("blend", "store")}


def _is_full(queue: Mapping[str, Any]) -> bool:
    return bool(queue["nbytes"] >= _FULL * queue["max_bytes"])
