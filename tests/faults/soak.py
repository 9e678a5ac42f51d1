"""An hour at half of what the machine can do: nothing may grow but the disk's content.

    uv run python tests/faults/soak.py --folder /data
    uv run python tests/faults/soak.py --folder /data --seconds 60

First it finds out for a while how many frames per second are acknowledged and put into the mosaic at most; then it
sends half of that by the clock. A table shows, interval by interval, the frames, the daemon's memory, its open
descriptors and threads, and how long a viewer waited for the tiles of a frame. At the end the last third is compared
with the second (the first warms up), and the exit code is 1 if memory, descriptors or latency have drifted.

What is recorded is about twice the frames' bytes at most, and is deleted at the end; it says at the beginning how much
that is, and does not begin if the disk has not that much room. `--fps` makes it less.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.daemon_load import (
    MIB,
    Progress,
    add_common_options,
    make_publisher,
    send_paced,
    start_daemon,
    start_run,
)
from tilecast.bench.scan import FramePool, Scan
from tilecast.process import DaemonProcess
from tilecast_protocol.client import Client, TileUpdate

MAX_RSS_GROWTH = 0.10
MAX_LATENCY_GROWTH = 0.50
LATENCY_SLACK_MS = 20.0
N_FRAMES = 10**7
COLUMNS = 40


@dataclass(frozen=True)
class Interval:
    """What was seen in one interval; latencies are from arrival to commit, of the notifications in it."""

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
    """Soak a daemon; 0 if nothing has drifted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, shape="1024x1024")
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long (3600)")
    parser.add_argument("--intervals", type=int, default=30, help="rows of the table, at least 6 (30)")
    parser.add_argument("--fps", type=float, help="frames per second (half of what is measured first)")
    args = parser.parse_args()
    scan = Scan(shape=args.shape, dtype=args.dtype, overlap=0.1, n_frames=N_FRAMES, columns=COLUMNS)
    pool = FramePool(scan)
    with tempfile.TemporaryDirectory(prefix="tilecast-soak-", dir=args.folder) as folder:
        fps = args.fps or 0.5 * sustained_fps(Path(folder) / "rate", dict(args.set), scan, pool, args.seconds / 10)
        print(f"{fps:.1f} frames of {scan.frame_nbytes / 1e6:.1f} MB per second, for {args.seconds:g} s", flush=True)
        needed, free = 2 * fps * args.seconds * scan.frame_nbytes, shutil.disk_usage(folder).free
        print(f"up to {needed / 1e9:.0f} GB of {free / 1e9:.0f} GB that are free on {args.folder}", flush=True)
        if needed > free:
            parser.error(f"not enough room: name another --folder, or at most --fps {fps * free / needed:.1f}")
        with start_daemon(Path(folder) / "soak", dict(args.set)) as daemon:
            found = soak(daemon, scan, pool, fps, args.seconds / max(6, args.intervals), max(6, args.intervals))
    drifts = drift(found)
    print("\n" + ("\n".join(drifts) or "nothing has drifted"))
    return 1 if drifts else 0


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


def soak(
    daemon: DaemonProcess, scan: Scan, pool: FramePool, fps: float, interval_s: float, n_intervals: int
) -> list[Interval]:
    """Send by the clock, and print what is seen after each interval."""
    process = psutil.Process(daemon.pid)
    per_interval = max(1, round(fps * interval_s))
    found = []
    print("\n  time   frames      RSS  fds  threads  latency p50     p99")
    with make_publisher(daemon) as publisher:
        listener = Listener(daemon, start_run(publisher, scan, "soak"))
        listener.start()
        began_s = interval_began_s = time.monotonic()
        for number in range(n_intervals):
            frames = range(number * per_interval, (number + 1) * per_interval)
            send_paced(publisher, scan, pool, frames, fps=fps)
            now_s = time.monotonic()
            latencies_ms = sorted(listener.take()) or [float("nan")]
            seen = Interval(
                frames.stop,
                now_s - interval_began_s,
                process.memory_info().rss / MIB,
                process.num_fds(),
                process.num_threads(),
                statistics.median(latencies_ms),
                latencies_ms[round(0.99 * (len(latencies_ms) - 1))],
            )
            interval_began_s = now_s
            found.append(seen)
            print(
                f"{now_s - began_s:5.0f} s {seen.n_frames:8} {seen.rss_mib:5.0f} MiB {seen.n_fds:4} {seen.n_threads:8}"
                f" {seen.p50_ms:9.0f} ms {seen.p99_ms:5.0f} ms",
                flush=True,
            )
        publisher.end()
        publisher.flush()
        listener.stop()
    return found


def drift(found: list[Interval]) -> list[str]:
    """What is not as it was: the last third of the intervals against the second."""
    third = len(found) // 3
    before, after = found[third : 2 * third], found[2 * third :]
    said = []
    rss = [statistics.median(one.rss_mib for one in part) for part in (before, after)]
    if rss[1] > rss[0] * (1 + MAX_RSS_GROWTH):
        said.append(f"memory has grown from {rss[0]:.0f} to {rss[1]:.0f} MiB")
    fds = [max(one.n_fds for one in part) for part in (before, after)]
    if fds[1] > fds[0]:
        said.append(f"descriptors have grown from {fds[0]} to {fds[1]}")
    p50 = [statistics.median(one.p50_ms for one in part) for part in (before, after)]
    if p50[1] > p50[0] * (1 + MAX_LATENCY_GROWTH) + LATENCY_SLACK_MS:
        said.append(f"the median latency has grown from {p50[0]:.0f} to {p50[1]:.0f} ms")
    return said


if __name__ == "__main__":
    sys.exit(main())
