"""Do viewers slow the daemon down? The same scan without any, and with fifty.

Not a test: run it by hand, on the machine and the disk that are to be judged.

    uv run python tests/benchmarks/bench_viewers.py --folder /data --fps 20

`--fps` should be 70 % of the sustained maximum; left out, that is measured first. Of the fifty viewers one is stuck: it
has subscribed, and never reads. Five fetch 20 tiles per second each, of those that were announced last; the others read
what they are sent. They are one process, whose processor time is told apart, since here they share the machine with the
daemon. In both runs one more process notes when notifications arrive. Latency is that of every single frame: from its
arrival in the daemon, as its journal has it, to the arrival of the notification of the commit that placed it.

The targets: no backlog grows; the 99th percentile with viewers at most 1.5 times that without. The exit status is 1 if
one is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import zmq
from daemon_load import (
    PATIENCE_S,
    Progress,
    add_common_options,
    cpu_s,
    make_publisher,
    send_paced,
    start_daemon,
    start_run,
)

from tilecast.bench.scan import FramePool, Scan
from tilecast.process import DaemonProcess
from tilecast_protocol.client import Client, TileRef, TileUpdate
from tilecast_protocol.journal import Journal
from tilecast_protocol.messages import Tiles, parse_from_daemon
from tilecast_protocol.publisher import Publisher

LATENCY_TARGET = 1.5
SHARE_OF_MAXIMUM = 0.7
FETCHES_PER_S = 20.0
RECENT_TILES = 200
COLUMNS = 25
MANY = 10**9  # frames in a scan that ends by the clock
_POLL_MS = 100
_BACKLOG_EVERY_S = 0.5
_BACKLOG_FRAMES = 3.0
"""Growth that is no growth yet: commits gather frames, so the backlog goes up and down by a few."""

_processes = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Watch:
    """What the viewers' processes need to know: where to listen, and which run."""

    notify: str
    query: str
    run: str


# What runs in processes of its own ------------------------------------------------------------------------------------


def note_arrivals(watch: Watch, parent: Connection) -> None:
    """Note when the notification of each revision arrives (UTC ns), until the parent says something."""
    arrived_ns: dict[int, int] = {}
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = subscriber(context, watch)
    socket.recv_multipart()  # a heartbeat: the subscription holds
    parent.send(None)
    while not parent.poll(0) or socket.poll(_POLL_MS):
        if socket.poll(_POLL_MS):
            parts = socket.recv_multipart()
            now_ns = time.time_ns()
            message = parse_from_daemon(parts)
            if isinstance(message, Tiles) and message.run == watch.run:
                arrived_ns[message.rev] = now_ns
    parent.send(arrived_ns)
    context.destroy(linger=0)


def view(watch: Watch, n_viewers: int, n_fetching: int, parent: Connection) -> None:
    """Be so many viewers, until the parent says something; tells it then what they saw and what it cost."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stuck = subscriber(context, watch, receive_hwm=1, receive_bytes=4096)
    readers = [subscriber(context, watch) for _ in range(n_viewers - n_fetching - 1)]
    done = threading.Event()
    fetchers = [Fetcher(watch, seed, done) for seed in range(n_fetching)]
    for reader in readers:
        reader.recv_multipart()  # a heartbeat
    parent.send(None)
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    for fetcher in fetchers:
        fetcher.start()
    n_read = read_all(readers, parent)
    done.set()
    for fetcher in fetchers:
        fetcher.join()
    seconds = time.monotonic() - began_s
    parent.send(
        {
            "cores": (time.process_time() - began_cpu_s) / seconds,
            "notifications": (min(n_read, default=0), max(n_read, default=0)),
            "fetches_per_s": sum(len(fetcher.took_ms) for fetcher in fetchers) / seconds,
            "fetch_ms": sorted(ms for fetcher in fetchers for ms in fetcher.took_ms),
            "failures": [failure for fetcher in fetchers for failure in fetcher.failures],
        }
    )
    stuck.close()
    context.destroy(linger=0)


def subscriber(
    context: zmq.Context[zmq.Socket[bytes]], watch: Watch, *, receive_hwm: int = 1000, receive_bytes: int = -1
) -> zmq.Socket[bytes]:
    """A viewer's socket, subscribed to everything."""
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, receive_hwm)
    socket.setsockopt(zmq.RCVBUF, receive_bytes)
    socket.setsockopt(zmq.LINGER, 0)
    socket.subscribe(b"tc1/")
    socket.connect(watch.notify)
    return socket


def read_all(sockets: list[zmq.Socket[bytes]], parent: Connection) -> list[int]:
    """Read what comes on any of these until the parent says something; how much each had."""
    n_read = dict.fromkeys(sockets, 0)
    poller = zmq.Poller()
    for socket in sockets:
        poller.register(socket, zmq.POLLIN)
    while not parent.poll(0):
        for socket, _ in poller.poll(_POLL_MS):
            socket.recv_multipart()
            n_read[socket] += 1
    return list(n_read.values())


class Fetcher(threading.Thread):
    """A viewer that follows a run and fetches tiles that have changed lately, by the clock."""

    def __init__(self, watch: Watch, seed: int, done: threading.Event) -> None:
        super().__init__(daemon=True)
        self._watch = watch
        self._random = random.Random(seed)
        self._done = done
        self.took_ms: list[float] = []
        self.failures: list[str] = []

    def run(self) -> None:
        """Follow and fetch until it is done."""
        try:
            with Client(self._watch.notify, self._watch.query, run=self._watch.run) as client:
                self._follow(client)
        except Exception as error:  # noqa: BLE001 - the end of a thread: what it died of is part of the result
            self.failures.append(repr(error))

    def _follow(self, client: Client) -> None:
        recent: deque[TileRef] = deque(maxlen=RECENT_TILES)
        next_s = time.monotonic() + self._random.random() / FETCHES_PER_S
        while not self._done.is_set():
            update = client.next_update(max(0.0, next_s - time.monotonic()))
            if update is not None:
                recent.extend(update.tiles if isinstance(update, TileUpdate) else ())
            elif recent:
                next_s += 1 / FETCHES_PER_S
                self._fetch(client, self._random.choice(recent))
            else:
                next_s = time.monotonic() + 1 / FETCHES_PER_S

    def _fetch(self, client: Client, tile: TileRef) -> None:
        began = time.perf_counter()
        reply = client.ask("tile", run=self._watch.run, tcz=tile.tcz, level=tile.level, row=tile.row, col=tile.col)
        self.took_ms.append((time.perf_counter() - began) * 1e3)
        if not reply.payload:
            self.failures.append(f"{tile} was announced, and is not there")


class Child:
    """A process that says when it is ready, works until it is told to stop, and then gives its result."""

    def __init__(self, target: Any, *arguments: Any) -> None:
        self._ours, theirs = _processes.Pipe()
        self._process = _processes.Process(target=target, args=(*arguments, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._hear()

    def _hear(self) -> Any:
        if not self._ours.poll(PATIENCE_S):
            raise TimeoutError("a viewers' process says nothing")
        return self._ours.recv()

    def finish(self) -> Any:
        """Stop it; its result."""
        self._ours.send(None)
        result = self._hear()
        self._process.join()
        return result


# Measuring ------------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What one scan showed.

    Attributes
    ----------
    latency_ms : list of float
        Of each frame, in order of size.
    backlog : list of int
        Frames that were sent and not committed, again and again.
    queues : dict
        How many items waited in the daemon's queues when the last frame had been sent, by queue.
    n_unheard : int
        Frames of which the notification did not arrive.
    viewers : dict or None
        What `view` tells.
    """

    fps: float = 0.0
    daemon_ms: float = 0.0
    latency_ms: list[float] = field(default_factory=list)
    backlog: list[int] = field(default_factory=list)
    queues: dict[str, int] = field(default_factory=dict)
    n_unheard: int = 0
    viewers: dict[str, Any] | None = None

    def percentile_ms(self, share: float) -> float:
        """Latency that this share of the frames did not pass."""
        return self.latency_ms[min(len(self.latency_ms) - 1, int(share * len(self.latency_ms)))]

    def backlog_thirds(self) -> tuple[float, float]:
        """Its mean in the first third of the time, and in the last."""
        third = max(1, len(self.backlog) // 3)
        return statistics.mean(self.backlog[:third]), statistics.mean(self.backlog[-third:])


class Backlog(threading.Thread):
    """Asks the daemon now and then how many frames it has committed, and compares with what was sent."""

    def __init__(self, daemon: DaemonProcess, publisher: Publisher, run: str) -> None:
        super().__init__(daemon=True)
        self._client = Client(None, daemon.endpoints["query"], timeout_s=PATIENCE_S)
        self._publisher, self._run_id = publisher, run
        self._done = threading.Event()
        self.n_sent = 0
        self.seen: list[int] = []

    def run(self) -> None:
        """Look until it is stopped."""
        while not self._done.wait(_BACKLOG_EVERY_S):
            n_sent = self.n_sent
            self.seen.append(max(0, n_sent - self._client.run(self._run_id)["frames"]))

    def stop(self) -> list[int]:
        """What was seen."""
        self._done.set()
        self.join()
        self._client.close()
        return self.seen


def scan_once(
    folder: Path,
    scan: Scan,
    pool: FramePool,
    *,
    fps: float | None,
    seconds: float,
    skip_s: float,
    viewers: int,
    settings: Mapping[str, str],
) -> Outcome:
    """Send frames for some seconds after some that do not count, and see how the daemon does."""
    outcome = Outcome()
    with start_daemon(folder, settings) as daemon, make_publisher(daemon) as publisher:
        run = start_run(publisher, scan, "viewers")
        watch = Watch(daemon.endpoints["notify"], daemon.endpoints["query"], run)
        progress = Progress(daemon, run)
        arrivals = Child(note_arrivals, watch)
        crowd = Child(view, watch, viewers, min(5, viewers - 1)) if viewers else None
        process = psutil.Process(daemon.pid)
        n_skipped = send_for(publisher, scan, pool, 0, fps, skip_s)
        if fps is None:
            progress.wait_committed(n_skipped)
        backlog = Backlog(daemon, publisher, run)
        backlog.n_sent = n_skipped
        backlog.start()
        began_s, began_cpu_s = time.monotonic(), cpu_s(process)
        n_sent = send_for(publisher, scan, pool, n_skipped, fps, seconds, backlog)
        outcome.backlog = backlog.stop()
        outcome.queues = {name: queue["depth"] for name, queue in progress.stats()["queues"].items()}
        progress.wait_committed(n_sent)
        outcome.fps = (n_sent - n_skipped) / (time.monotonic() - began_s)
        outcome.daemon_ms = (cpu_s(process) - began_cpu_s) / (n_sent - n_skipped) * 1e3
        if crowd is not None:
            outcome.viewers = crowd.finish()
        arrived_ns = arrivals.finish()
        with Client(None, watch.query, timeout_s=PATIENCE_S) as client:
            rev_of = {placed.frame: placed.rev for placed in client.placements(run).placed}
        progress.close()
    with Journal.open(folder / "runs" / run / "journal", readonly=True) as journal:
        for record in journal.records(with_parts=False):
            if record.frame is None or record.frame < n_skipped:
                continue
            seen_ns = arrived_ns.get(rev_of[record.frame])
            if seen_ns is None:
                outcome.n_unheard += 1
            else:
                outcome.latency_ms.append((seen_ns - record.t_recv_ns) / 1e6)
    outcome.latency_ms.sort()
    return outcome


def send_for(
    publisher: Publisher,
    scan: Scan,
    pool: FramePool,
    first: int,
    fps: float | None,
    seconds: float,
    backlog: Backlog | None = None,
) -> int:
    """Send frames from this number on for some seconds; the number of the next."""
    until_s = time.monotonic() + seconds

    def count(n_sent: int) -> None:
        if backlog is not None:
            backlog.n_sent = first + n_sent

    frames = range(first, MANY)
    return first + send_paced(publisher, scan, pool, frames, fps=fps, until_s=until_s, on_sent=count)


def describe(name: str, outcome: Outcome) -> None:
    """Print what one scan showed."""
    first, last = outcome.backlog_thirds()
    print(
        f"{name:>16}: {outcome.fps:.1f} frames/s; frame → notification p50 {outcome.percentile_ms(0.5):.1f}, "
        f"p99 {outcome.percentile_ms(0.99):.1f}, longest {outcome.latency_ms[-1]:.1f} ms of {len(outcome.latency_ms)} "
        f"frames ({outcome.n_unheard} not heard of); daemon {outcome.daemon_ms:.1f} ms CPU per frame"
    )
    waiting = ", ".join(f"{name} {depth}" for name, depth in outcome.queues.items())
    print(f"{'':>16}  frames sent and not committed: {first:.1f} at first, {last:.1f} at last; queues then: {waiting}")
    if outcome.viewers is not None:
        found = outcome.viewers
        times = found["fetch_ms"] or [float("nan")]
        print(
            f"{'':>16}  viewers: {found['cores']:.2f} cores; {found['notifications'][0]} to "
            f"{found['notifications'][1]} messages read by each; {found['fetches_per_s']:.1f} tiles/s, p50 "
            f"{statistics.median(times):.1f}, p99 {times[int(0.99 * len(times))]:.1f} ms; "
            f"{len(found['failures'])} failures {found['failures'][:2] or ''}"
        )


def main() -> int:
    """Read the command line, measure, and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, shape="2048x2048")
    parser.add_argument("--fps", type=float, help="frames per second; left out, 70 %% of what is measured first")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each scan")
    parser.add_argument("--skip", type=float, default=3.0, help="seconds before it that do not count")
    parser.add_argument("--viewers", type=int, default=50, help="how many; one is stuck, five fetch tiles")
    args = parser.parse_args()
    if args.viewers < 2:
        parser.error(f"--viewers must be at least 2: one that is stuck and one that is not; got {args.viewers}")
    scan = Scan(shape=args.shape, dtype=args.dtype, overlap=0.1, n_frames=MANY, columns=COLUMNS)
    pool = FramePool(scan)

    def run(fps: float | None, viewers: int) -> Outcome:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            return scan_once(
                Path(name),
                scan,
                pool,
                fps=fps,
                seconds=args.seconds,
                skip_s=args.skip,
                viewers=viewers,
                settings=dict(args.set),
            )

    fps = args.fps
    if fps is None:
        flat_out = run(None, 0)
        describe("flat out", flat_out)
        fps = SHARE_OF_MAXIMUM * flat_out.fps
    alone, seen = run(fps, 0), run(fps, args.viewers)
    describe("without viewers", alone)
    describe(f"with {args.viewers}", seen)
    ratio = seen.percentile_ms(0.99) / alone.percentile_ms(0.99)
    first, last = seen.backlog_thirds()
    calm = last <= first + max(_BACKLOG_FRAMES, 0.5 * first)
    complete = not (seen.viewers and seen.viewers["failures"]) and not seen.n_unheard
    print(
        f"{'ratio of the p99':>16}: {ratio:.2f}   target {LATENCY_TARGET:g}: "
        f"{'met' if ratio <= LATENCY_TARGET else 'MISSED'}; backlog {'does not grow' if calm else 'GROWS'}"
    )
    return 0 if ratio <= LATENCY_TARGET and calm and complete else 1


if __name__ == "__main__":
    sys.exit(main())
