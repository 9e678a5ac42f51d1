"""Does a frame cost more, and does the daemon hold more memory, as the mosaic grows?

Not a test: run it by hand, on the machine and the disk that are to be judged. It takes a few minutes.

    uv run python tests/benchmarks/bench_growth.py --folder /data
    uv run python tests/benchmarks/bench_growth.py --folder /data --stall 10

The real daemon with its default options, in one process from the first frame to the last; a publisher on the
acknowledged path sends a serpentine scan of small frames as fast as they are taken. Every 100 frames it waits until
they are committed, and looks at the processor time and the memory of the daemon's process; so a line of the table, 500
frames, has five values, of which the median counts. A viewer fetches a tile now and then.

`--stall` keeps SQLite's write lock for some seconds in the middle, as a disk that hangs would, while frames go on
coming: queues fill up to their budgets, and memory must go back to where it was.

The targets: processor time of frames 9,500 to 10,000 within 1.1 times that of frames 500 to 1,000; memory at most
1 GiB, and less than 1 MB more per 1,000 frames after the first 1,000. The exit status is 1 if one is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from daemon_load import (
    MIB,
    Progress,
    add_common_options,
    cpu_s,
    make_publisher,
    send_paced,
    start_daemon,
    start_run,
)

from tilecast.bench.scan import FramePool, Scan
from tilecast_protocol.publisher import Publisher

SAMPLE = 100
BLOCK = 500
WARM_UP = 1000
RATIO_TARGET = 1.1
SLOPE_TARGET_MB = 1.0
MEMORY_TARGET_MIB = 1024
RETURN_TOLERANCE_MIB = 16.0
_CLOSE_TO_S = 0.1


class Sample(NamedTuple):
    """The daemon when so many frames were committed: what each of the last frames cost it, and its memory."""

    n_frames: int
    cpu_ms: float
    frames_per_s: float
    rss: int


class Load:
    """A daemon that is sent frames, sampled whenever they are committed."""

    def __init__(self, process: psutil.Process, publisher: Publisher, progress: Progress, scan: Scan) -> None:
        self._process, self._publisher, self._progress, self._scan = process, publisher, progress, scan
        self._pool = FramePool(scan)
        self.samples: list[Sample] = []

    def send(self, frames: range) -> None:
        """Send these, wait until they are committed, and take a sample."""
        before_cpu_s, began_s = cpu_s(self._process), time.monotonic()
        send_paced(self._publisher, self._scan, self._pool, frames)
        self._publisher.flush()
        self._progress.wait_committed(frames.stop)
        took_cpu_s, took_s = cpu_s(self._process) - before_cpu_s, time.monotonic() - began_s
        rss = self._process.memory_info().rss
        self.samples.append(Sample(frames.stop, took_cpu_s / len(frames) * 1e3, len(frames) / took_s, rss))


@contextlib.contextmanager
def watched_rss(process: psutil.Process) -> Iterator[list[int]]:
    """The memory of a process, again and again as long as the `with`."""
    seen, done = [process.memory_info().rss], threading.Event()

    def watch() -> None:
        while not done.wait(_CLOSE_TO_S):
            seen.append(process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def stalled_store(path: Path, seconds: float) -> Iterator[None]:
    """Keep SQLite's write lock on a store for some seconds; the `with` ends when it has been given back."""

    locked = threading.Event()

    def keep() -> None:
        connection = sqlite3.connect(path, timeout=60.0, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            locked.set()
            time.sleep(seconds)
            connection.execute("ROLLBACK")
        finally:
            locked.set()
            connection.close()

    thread = threading.Thread(target=keep)
    thread.start()
    locked.wait()
    try:
        yield
    finally:
        thread.join()


def block_ms(samples: Sequence[Sample], n_frames: int) -> float:
    """Processor time per frame in the block that ends with this many frames: the median of its samples."""
    return statistics.median(s.cpu_ms for s in samples if n_frames - BLOCK < s.n_frames <= n_frames)


def slope_mb(samples: Sequence[Sample]) -> float:
    """By how many MB memory grows per 1,000 frames, by least squares."""
    frames, rss = np.array([(s.n_frames, s.rss) for s in samples], np.float64).T
    return float(np.polyfit(frames / 1e3, rss / 1e6, 1)[0])


def judge(what: str, text: str, good: bool, target: str) -> bool:
    """Print a figure beside its target."""
    print(f"{what:>34}: {text}   target {target}: {'met' if good else 'MISSED'}")
    return good


def report(samples: Sequence[Sample], n_frames: int) -> bool:
    """Print what came out; whether all targets are met."""
    print(f"{'frames':>15}  CPU ms/frame  frames/s  memory MiB")
    for end in range(BLOCK, n_frames + 1, BLOCK):
        block = [s for s in samples if end - BLOCK < s.n_frames <= end]
        per_s = statistics.median(s.frames_per_s for s in block)
        rss = max(s.rss for s in block) / MIB
        print(f"{end - BLOCK:>7}–{end:<7}  {block_ms(samples, end):12.2f}  {per_s:8.1f}  {rss:10.1f}")
    first, last = block_ms(samples, 2 * BLOCK), block_ms(samples, n_frames)
    good = judge(
        "CPU per frame, last ÷ second block",
        f"{last:.2f} ÷ {first:.2f} ms = {last / first:.3f}",
        last / first <= RATIO_TARGET,
        f"{RATIO_TARGET:g}",
    )
    late = [s for s in samples if s.n_frames >= WARM_UP]
    if len(late) > 2:
        slope = slope_mb(late)
        text = f"{slope:+.2f} MB per 1,000 frames"
        good &= judge("memory after warm-up", text, slope < SLOPE_TARGET_MB, f"< {SLOPE_TARGET_MB:g}")
    most = max(s.rss for s in samples) / MIB
    return good & judge("most memory", f"{most:.0f} MiB", most <= MEMORY_TARGET_MIB, f"{MEMORY_TARGET_MIB} MiB")


def report_stall(samples: Sequence[Sample], seen: Sequence[int], n_stalled: range, n_retries: int) -> bool:
    """Print what a stalled store did to memory; whether all targets are met."""
    around = BLOCK
    before = [s.rss for s in samples if n_stalled.start - around < s.n_frames <= n_stalled.start]
    after = [s.rss for s in samples if n_stalled.stop < s.n_frames <= n_stalled.stop + around]
    base, most = statistics.median(before) / MIB, max(seen) / MIB
    print(
        f"{'store stalled at frame':>34}: {n_stalled.start}, {n_stalled.stop - n_stalled.start} frames came meanwhile"
    )
    print(f"{'busy and tried again':>34}: {n_retries} times")
    good = judge("most memory meanwhile", f"{most:.0f} MiB", most <= MEMORY_TARGET_MIB, f"{MEMORY_TARGET_MIB} MiB")
    if not after:
        print(f"{'after it':>34}: too few frames to tell; the scan must be longer")
        return False
    back = statistics.median(after) / MIB
    text = f"{base:.1f} before, {back:.1f} MiB in the {around} frames after"
    return good & judge("memory goes back", text, back - base <= RETURN_TOLERANCE_MIB, f"+{RETURN_TOLERANCE_MIB:g} MiB")


def measure(folder: Path, args: argparse.Namespace) -> bool:
    """Run the scan, and print; whether all targets are met."""
    scan = Scan(shape=args.shape, dtype=args.dtype, overlap=0.1, n_frames=args.frames, columns=args.columns)
    middle = args.frames // 2 // BLOCK * BLOCK
    stalled, seen = range(middle, middle + args.stall_frames), list[int]()
    with start_daemon(folder, dict(args.set)) as daemon, make_publisher(daemon) as publisher:
        run = start_run(publisher, scan, "growth")
        progress = Progress(daemon, run)
        process = psutil.Process(daemon.pid)
        load = Load(process, publisher, progress, scan)
        sent = 0
        while sent < args.frames:
            if args.stall and sent == middle:
                store = folder / "runs" / run / "tiles.sqlite"
                with watched_rss(process) as seen, stalled_store(store, args.stall):
                    load.send(stalled)
                sent = stalled.stop
            else:
                load.send(range(sent, min(sent + SAMPLE, args.frames)))
                sent += SAMPLE
        n_retries = progress.stats()["store"]["n_retries"]
        progress.close()
    # What a stall makes of processor time and memory is shown apart.
    steady = [s for s in load.samples if not args.stall or s.n_frames != stalled.stop]
    good = report(steady, args.frames)
    return good if not args.stall else report_stall(steady, seen, stalled, n_retries) and good


def main() -> int:
    """Read the command line and measure; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, shape="512x512")
    parser.add_argument("--frames", type=int, default=10_000, help=f"a multiple of {BLOCK}, {2 * WARM_UP} or more")
    parser.add_argument("--columns", type=int, default=100, help="frames in a row of the scan")
    parser.add_argument("--stall", type=float, default=0.0, help="seconds for which the store is kept from writing")
    parser.add_argument("--stall-frames", type=int, default=BLOCK - SAMPLE, help="frames that come meanwhile")
    args = parser.parse_args()
    if args.frames % BLOCK or args.frames < 2 * WARM_UP:
        parser.error(f"--frames must be a multiple of {BLOCK}, and at least {2 * WARM_UP}; got {args.frames}")
    if not 0 < args.stall_frames < BLOCK or args.stall_frames % SAMPLE:
        parser.error(f"--stall-frames must be a multiple of {SAMPLE} below {BLOCK}; got {args.stall_frames}")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        return 0 if measure(Path(name), args) else 1


if __name__ == "__main__":
    sys.exit(main())
