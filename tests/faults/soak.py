"""A facility's day in an hour: scans of a few minutes at half of what the machine can do, one after the other.

    uv run python tests/faults/soak.py --folder /data
    uv run python tests/faults/soak.py --folder /data --fps 8
    uv run python tests/faults/soak.py --folder /data --seconds 60 --run-seconds 10 --shape 512x512

First, unless `--fps` says it, it finds out for a while how many frames per second are acknowledged and put into the
mosaic at most; then it sends half of that by the clock for `--seconds` in all, in runs of `--run-seconds`, each by a
publisher of its own to one daemon. While the next run comes in, the last one is checked as a facility would, at the
lowest priority: its report tells of every frame, its journal holds every frame, and `tilecast fsck` (in full; `--quick`
leaves out blending all anew) is clean. Then the daemon is asked to `delete` it, so the disk need hold two or three runs
and not an hour of them; how much that is is said at the beginning, and it does not begin without that room. Between two
runs there is a pause until the daemon has let go of the last, half a minute or so, which counts as no time of the soak.

A table shows, part by part of each run, the frames, the daemon's memory, its open descriptors and threads, and how long
a viewer waited for the tiles of a frame. In the end the last third of the runs is compared with the second; the first
is shown and not judged, since caches fill and kernels are loaded in it. The exit code is 1 if memory, descriptors,
threads or latency have drifted, or if a run was not whole.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.daemon_load import (
    MIB,
    PATIENCE_S,
    Progress,
    add_common_options,
    make_publisher,
    send_paced,
    start_daemon,
    start_run,
)
from tilecast.bench.scan import FramePool, Scan
from tilecast.errors import RunLockedError
from tilecast.process import DaemonProcess
from tilecast.store.lock import RunLock
from tilecast_protocol.client import Client, TileUpdate
from tilecast_protocol.journal import Journal

MAX_RSS_GROWTH = 0.10
MAX_LATENCY_GROWTH = 0.50
LATENCY_SLACK_MS = 20.0
N_FRAMES = 10**7
COLUMNS = 40
PARTS = 3
"""Rows of the table for each run."""
MIN_RUNS = 6
RATE_S = 60.0
"""To find out the rate, at most: at full speed a disk fills quickly."""
ROOM_PER_BYTE = 5.0
"""On the disk, for each byte of a run's frames: the run that comes in, the one that is checked, and what that takes."""
LET_GO_S = 300.0


@dataclass(frozen=True)
class Interval:
    """What was seen in a part of a run, or in a run; latencies are from arrival to commit."""

    n_frames: int
    seconds: float
    rss_mib: float
    n_fds: int
    n_threads: int
    p50_ms: float
    p99_ms: float


class Listener(threading.Thread):
    """Gathers how long commits took after their oldest frame came in."""

    def __init__(self, daemon: DaemonProcess, run: str) -> None:
        super().__init__(daemon=True)
        self._client = Client(daemon.endpoints["notify"], daemon.endpoints["query"], run=run)
        self._client.wait_connected()
        self._lock = threading.Lock()
        self._latencies_ms: list[float] = []
        self._stopping = threading.Event()

    def run(self) -> None:
        with self._client:
            while not self._stopping.is_set():
                update = self._client.next_update(0.2)
                if isinstance(update, TileUpdate) and update.t_recv_ns and update.t_commit_ns:
                    with self._lock:
                        self._latencies_ms.append((update.t_commit_ns - update.t_recv_ns) / 1e6)

    def take(self) -> list[float]:
        """Those since it was asked last."""
        with self._lock:
            taken, self._latencies_ms = self._latencies_ms, []
        return taken

    def stop(self) -> None:
        """End it."""
        self._stopping.set()
        self.join()


def main() -> int:
    """Soak a daemon; 0 if every run was whole and nothing has drifted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, shape="2048x2048")
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long, pauses not counted (3600)")
    parser.add_argument("--run-seconds", type=float, default=180.0, help="length of a run (180)")
    parser.add_argument("--fps", type=float, help="frames per second (half of what is measured first)")
    parser.add_argument("--quick", action="store_true", help="check runs as `tilecast fsck --quick` does")
    args = parser.parse_args()
    scan = Scan(shape=args.shape, dtype=args.dtype, overlap=0.1, n_frames=N_FRAMES, columns=COLUMNS)
    pool = FramePool(scan)
    settings = dict(args.set)
    with tempfile.TemporaryDirectory(prefix="tilecast-soak-", dir=args.folder) as folder:
        rate_s = min(RATE_S, args.seconds / 10)
        fps = args.fps or 0.5 * sustained_fps(Path(folder) / "rate", settings, scan, pool, rate_s)
        shutil.rmtree(Path(folder) / "rate", ignore_errors=True)
        n_runs = max(MIN_RUNS, round(args.seconds / args.run_seconds))
        per_run = max(PARTS, round(fps * args.seconds / n_runs))
        print(
            f"{fps:.1f} frames of {scan.frame_nbytes / 1e6:.1f} MB per second, {n_runs} runs of {per_run} frames: "
            f"{n_runs * per_run / fps:.0f} s of scanning",
            flush=True,
        )
        needed, free = ROOM_PER_BYTE * per_run * scan.frame_nbytes, shutil.disk_usage(folder).free
        print(f"up to {needed / 1e9:.0f} GB of {free / 1e9:.0f} GB that are free on {args.folder}", flush=True)
        if needed > free:
            parser.error(f"not enough room: name another --folder, or fewer --run-seconds than {args.run_seconds:g}")
        root = Path(folder) / "soak" / "runs"
        began_s = time.monotonic()
        with start_daemon(root.parent, settings) as daemon:
            checker = Checker(daemon, root, per_run, quick=args.quick)
            found = []
            print("\nrun   time  frames      RSS  fds  threads  latency p50     p99", flush=True)
            for number in range(n_runs):
                run, parts = one_run(daemon, scan, pool, fps, per_run, number)
                found.append(summary(parts))
                checker.begin(run)
            checker.wait()
            wrong = checker.wrong
        print(f"\n{sum(one.n_frames for one in found)} frames in {time.monotonic() - began_s:.0f} s, pauses included")
    judged = found[len(found) // 3 :]
    print(f"memory from run {len(found) // 3 + 1} on: {slope([one.rss_mib for one in judged]):+.1f} MiB a run")
    said = [*wrong, *drift(found)]
    print("\n".join(said) or f"all {n_runs} runs were whole, and nothing has drifted")
    return 1 if said else 0


def summary(parts: list[Interval]) -> Interval:
    """A run: its most memory, and what descriptors, threads and latencies usually were."""
    return Interval(
        sum(one.n_frames for one in parts),
        sum(one.seconds for one in parts),
        max(one.rss_mib for one in parts),
        max(one.n_fds for one in parts),
        max(one.n_threads for one in parts),
        statistics.median(one.p50_ms for one in parts),
        statistics.median(one.p99_ms for one in parts),
    )


def slope(values: list[float]) -> float:
    """By how much they rise from one to the next, by least squares."""
    return statistics.linear_regression(range(len(values)), values).slope


class Checker:
    """Looks at the runs that have ended, one after the other beside the next one, and has the daemon delete them.

    Attributes
    ----------
    wrong : list of str
        What was found.
    """

    def __init__(self, daemon: DaemonProcess, root: Path, n_frames: int, *, quick: bool) -> None:
        self._query = daemon.endpoints["query"]
        self._root = root
        self._n_frames = n_frames
        self._quick = quick
        self._thread: threading.Thread | None = None
        self.wrong: list[str] = []

    def begin(self, run: str) -> None:
        """Look at a run as soon as the one before is done with; returns when the daemon has let go of it."""
        self.wait()
        until_s = time.monotonic() + LET_GO_S
        while not self._is_free(run):
            if time.monotonic() > until_s:
                self._say(f"run {run}: the daemon has not let go of it within {LET_GO_S:g} s")
                return
            time.sleep(0.5)  # a lock tells nobody that it was given back
        self._thread = threading.Thread(target=self._look, args=(run,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the run that is being looked at."""
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def _is_free(self, run: str) -> bool:
        try:
            RunLock(self._root / run).release()
        except RunLockedError:
            return False
        return True

    def _look(self, run: str) -> None:
        try:
            for what in self._flaws(run):
                self._say(f"run {run}: {what}")
            with Client(None, self._query, timeout_s=PATIENCE_S) as client:
                client.delete(run)
            if (self._root / run).exists():
                self._say(f"run {run}: it was deleted and is there")
        except Exception as error:  # noqa: BLE001  (a thread's: it is told)
            self._say(f"run {run}: could not be looked at: {error!r}")

    def _say(self, what: str) -> None:
        """At once, too: nobody wants to hear of it after an hour."""
        print(what, flush=True)
        self.wrong.append(what)

    def _flaws(self, run: str) -> Iterator[str]:
        with Client(None, self._query, timeout_s=PATIENCE_S) as client:
            report = client.report(run)["report"]
        if (report["received"], report["placed"], report["missing"]) != (self._n_frames, self._n_frames, []):
            yield f"its report says {report}"
        with Journal.open(self._root / run / "journal", readonly=True) as journal:
            if (there := journal.frames().ranges()) != [(0, self._n_frames - 1)]:
                yield f"its journal holds the frames {there}"
        command = ["nice", "-n", "19", sys.executable, "-m", "tilecast", "fsck", run]
        command += ["--quick"] * self._quick + ["--set", f"store.path={self._root}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            yield f"fsck: {done.stdout} {done.stderr}"


def sustained_fps(folder: Path, settings: dict[str, str], scan: Scan, pool: FramePool, seconds: float) -> float:
    """Frames per second that are acknowledged and in the mosaic, sent as fast as they are taken."""
    with start_daemon(folder, settings) as daemon, make_publisher(daemon) as publisher:
        run = start_run(publisher, scan, "rate")
        progress = Progress(daemon, run)
        began_s = time.monotonic()
        n = send_paced(publisher, scan, pool, range(N_FRAMES), until_s=began_s + max(5.0, seconds))
        publisher.flush()
        progress.wait_committed(n)
        progress.close()
        fps = n / (time.monotonic() - began_s)
        publisher.end()
    return fps


def one_run(
    daemon: DaemonProcess, scan: Scan, pool: FramePool, fps: float, n_frames: int, number: int
) -> tuple[str, list[Interval]]:
    """Send one run by the clock, and print what is seen after each part; its uuid, and that."""
    process = psutil.Process(daemon.pid)
    found: list[Interval] = []
    bounds = [part * n_frames // PARTS for part in range(PARTS + 1)]
    with make_publisher(daemon) as publisher:
        run = start_run(publisher, scan, f"soak {number + 1}")
        listener = Listener(daemon, run)
        listener.start()
        began_s = part_began_s = time.monotonic()

        def note(n_sent: int) -> None:
            nonlocal part_began_s
            if n_sent not in bounds:
                return
            now_s = time.monotonic()
            latencies_ms = sorted(listener.take()) or [float("nan")]
            seen = Interval(
                n_sent - bounds[len(found)],
                now_s - part_began_s,
                process.memory_info().rss / MIB,
                process.num_fds(),
                process.num_threads(),
                statistics.median(latencies_ms),
                latencies_ms[round(0.99 * (len(latencies_ms) - 1))],
            )
            part_began_s = now_s
            found.append(seen)
            print(
                f"{number + 1:3} {now_s - began_s:4.0f} s {n_sent:7} {seen.rss_mib:5.0f} MiB {seen.n_fds:4}"
                f" {seen.n_threads:8} {seen.p50_ms:9.0f} ms {seen.p99_ms:5.0f} ms",
                flush=True,
            )

        send_paced(publisher, scan, pool, range(n_frames), fps=fps, on_sent=note)
        publisher.end()
        publisher.flush()
        listener.stop()
    return run, found


def drift(found: list[Interval]) -> list[str]:
    """What is not as it was: the last third of the runs against the second."""
    third = len(found) // 3
    before, after = found[third : 2 * third], found[2 * third :]
    said = []
    rss = [statistics.median(one.rss_mib for one in part) for part in (before, after)]
    if rss[1] > rss[0] * (1 + MAX_RSS_GROWTH):
        said.append(f"memory has grown from {rss[0]:.0f} to {rss[1]:.0f} MiB")
    fds = [max(one.n_fds for one in part) for part in (before, after)]
    if fds[1] > fds[0]:
        said.append(f"descriptors have grown from {fds[0]} to {fds[1]}")
    threads = [max(one.n_threads for one in part) for part in (before, after)]
    if threads[1] > threads[0]:
        said.append(f"threads have grown from {threads[0]} to {threads[1]}")
    for name, of in (("median", lambda one: one.p50_ms), ("99th percentile of the", lambda one: one.p99_ms)):
        was_ms, is_ms = (statistics.median(map(of, part)) for part in (before, after))
        # Not to be known is no good sign: then no tile was announced.
        if not is_ms <= was_ms * (1 + MAX_LATENCY_GROWTH) + LATENCY_SLACK_MS:
            said.append(f"the {name} latency has grown from {was_ms:.0f} to {is_ms:.0f} ms")
    return said


if __name__ == "__main__":
    sys.exit(main())
