"""What does it cost that an acknowledged frame survives a power failure (`journal.durability`: fsync against os)?

Not a test: run it by hand, on the machine and the disk that are to be judged.

    uv run python tests/benchmarks durability --folder /data

Daemons with the one and the other take turns, several times, so that both meet the same machine. Each is asked three
things: how long a single frame waits for its acknowledgement; how many frames per second are acknowledged when they are
sent as fast as they are taken; and the daemon's processor time per frame meanwhile. Shown are the medians of all turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.daemon_load import (
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

COLUMNS = 25
N_WARM = 10
WAYS = {
    "fsync": {"journal.durability": "fsync"},
    "fsync, each by itself": {"journal.durability": "fsync", "journal.fsync_interval_ms": "0"},
    "os": {"journal.durability": "os"},
}


@dataclass
class Seen:
    """What was measured of one way, turn by turn."""

    acked_ms: list[float] = field(default_factory=list)
    fps: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def main() -> None:
    """Measure all ways in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, shape="2048x2048")
    parser.add_argument("--turns", type=int, default=3, help="of each way (3)")
    parser.add_argument("--frames", type=int, default=100, help="one by one, and again as fast as they are taken (100)")
    args = parser.parse_args()
    scan = Scan(shape=args.shape, dtype=args.dtype, overlap=0.1, n_frames=N_WARM + 2 * args.frames, columns=COLUMNS)
    pool = FramePool(scan)
    seen = {name: Seen() for name in WAYS}
    for _ in range(args.turns):
        for name, settings in WAYS.items():
            with tempfile.TemporaryDirectory(prefix="tilecast-bench-", dir=args.folder) as folder:
                measure(Path(folder), dict(args.set) | settings, scan, pool, args.frames, seen[name])
    print(f"{'':>22}   acknowledged p50     p99   frames/s   processor time of a frame")
    for name, one in seen.items():
        waits = sorted(one.acked_ms)
        print(
            f"{name:>22} {statistics.median(waits):13.1f} ms {waits[round(0.99 * (len(waits) - 1))]:5.1f} ms"
            f" {statistics.median(one.fps):10.1f} {statistics.median(one.cpu_ms):16.1f} ms"
        )


def measure(folder: Path, settings: dict[str, str], scan: Scan, pool: FramePool, n_frames: int, seen: Seen) -> None:
    """One turn of one way."""
    with start_daemon(folder, settings) as daemon, make_publisher(daemon) as publisher:
        process = psutil.Process(daemon.pid)
        run = start_run(publisher, scan, "durability")
        progress = Progress(daemon, run)
        send_paced(publisher, scan, pool, range(N_WARM))
        publisher.flush(PATIENCE_S)
        progress.wait_committed(N_WARM)
        for frame in range(N_WARM, N_WARM + n_frames):
            began_s = time.perf_counter()
            publisher.image(pool.frame(frame), frame=frame, pos_um=scan.pos_um(frame))
            publisher.flush(PATIENCE_S)
            seen.acked_ms.append(1e3 * (time.perf_counter() - began_s))
        progress.wait_committed(N_WARM + n_frames)  # or the next would wait for the mosaic of these
        began_s, cpu_before_s = time.perf_counter(), cpu_s(process)
        send_paced(publisher, scan, pool, range(N_WARM + n_frames, scan.n_frames))
        publisher.flush(PATIENCE_S)
        seen.fps.append(n_frames / (time.perf_counter() - began_s))
        progress.wait_committed(scan.n_frames)
        seen.cpu_ms.append(1e3 * (cpu_s(process) - cpu_before_s) / n_frames)
        progress.close()
        publisher.end()


if __name__ == "__main__":
    main()
