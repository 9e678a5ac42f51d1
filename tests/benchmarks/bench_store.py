"""How fast is the SQLite store here? Commits of whole frames, the length of its log, and looking into a large store.

Not a test: run it by hand, on the disk that is to be judged.

    uv run python tests/benchmarks/bench_store.py --folder /data --seconds 20
    uv run python tests/benchmarks/bench_store.py --folder /data --part large

*Commits*: a serpentine scan of 2048² frames at 10 % overlap, as far as the store sees one: each commit holds the tiles
of all levels under one frame, as random bytes of the size that PZF makes of Poisson noise (about 90 kB a tile), and a
placement. First as fast as it goes, then at fixed rates, which shows how long single commits wait for checkpoints.

*Large store*: 1,000 × 1,000 base tiles of a few bytes and all levels above: what opening it, `info`, one tile, one page
of changes and one of the snapshot cost. The target: opening, `info` and one tile in 50 ms each, also the first time;
the exit status is 1 if one is missed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tilecast.geometry import Placement, PlaneKey, Rect, TileKey, level_count, tiles_in
from tilecast.store.checkpointer import WAL_LIMIT_BYTES
from tilecast.store.folders import run_folder
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import Commit, NewRun, TileRow

RUN = "0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55"
TILE_SIZE = 256
FRAME_SIZE = 2048
STEP = FRAME_SIZE - FRAME_SIZE // 10
MIB = 2**20
LOOK_TARGET_MS = 50.0
NOISE = random.Random(1).randbytes(4 * MIB)


def new_run(name: str) -> NewRun:
    """A run to measure with."""
    return NewRun(run=RUN, name=name, instrument="bench", stream="cam0", start=b"", settings={"tile_size": TILE_SIZE})


def frames(cols: int) -> Iterator[Commit]:
    """Commits of one frame each, without end."""
    rng = random.Random(2)
    bbox = Rect(0, 0, 0, 0)
    for frame in range(10**9):
        row, col = divmod(frame, cols)
        col = cols - 1 - col if row % 2 else col
        rect = Rect(row * STEP, col * STEP, row * STEP + FRAME_SIZE, col * STEP + FRAME_SIZE)
        bbox = bbox.union(rect)
        levels = level_count(bbox, TILE_SIZE)
        tiles = []
        for level in range(levels):
            for key in tiles_in(rect, level, TILE_SIZE):
                first, nbytes = rng.randrange(3 * MIB), rng.randint(84_000, 96_000)
                tiles.append(TileRow(PlaneKey(), key, memoryview(NOISE)[first : first + nbytes]))
        placement = Placement(frame, 0, PlaneKey(), rect.row0, rect.col0, FRAME_SIZE, FRAME_SIZE, "stage", frame)
        yield Commit(tiles=tiles, placements=[placement], levels=levels, bboxes={PlaneKey(): bbox}, t_recv_ns=0)


def bench_commits(folder: Path, seconds: float, rate: float | None, wal_limit_bytes: int) -> None:
    """Commit for some seconds, at a rate or as fast as it goes, and print what was seen."""
    took_ms, longest_wal, n_tiles, nbytes = list[float](), 0, 0, 0
    with SqliteStore.create(run_folder(folder, RUN), new_run("commits"), wal_limit_bytes=wal_limit_bytes) as store:
        begun, cpu = time.perf_counter(), time.process_time()
        for number, commit in enumerate(frames(12)):
            if rate is not None:
                time.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            before = time.perf_counter()
            if before - begun > seconds:
                break
            store.commit(commit)
            took_ms.append((time.perf_counter() - before) * 1e3)
            longest_wal = max(longest_wal, store.size().wal_nbytes)
            n_tiles += len(commit.tiles)
            nbytes += sum(len(tile.pzf) for tile in commit.tiles)
        commits_s = len(took_ms) / (time.perf_counter() - begun)
        store.checkpointer.settle(600)
        settled_s = len(took_ms) / (time.perf_counter() - begun)
        cpu_ms = (time.process_time() - cpu) * 1e3 / len(took_ms)
        stats = store.checkpointer.stats()
    took_ms.sort()
    print(
        f"{'flat out' if rate is None else f'{rate:g} commits/s':>14}: {commits_s:6.1f} commits/s "
        f"({settled_s:.1f} with everything carried over and synced), "
        f"{n_tiles / len(took_ms):.0f} tiles and {nbytes / len(took_ms) / 1e6:.1f} MB each; "
        f"a commit takes {statistics.median(took_ms):.1f} ms, p99 {took_ms[int(len(took_ms) * 0.99)]:.1f}, "
        f"longest {took_ms[-1]:.1f}; {cpu_ms:.1f} ms CPU; log at most {longest_wal / MIB:.0f} MiB, "
        f"{stats.n_passes} passes, {stats.n_resets} resets, longest wait for it {stats.longest_wait_ns / 1e6:.1f} ms"
    )
    shutil.rmtree(run_folder(folder, RUN))


def timed(name: str, call: Callable[[], object], target_ms: float | None = None) -> bool:
    """Print what one call costs, the first time and then usually; whether the first was within the target."""
    took_ms = []
    for _ in range(10):
        begun = time.perf_counter()
        call()
        took_ms.append((time.perf_counter() - begun) * 1e3)
    good = target_ms is None or took_ms[0] <= target_ms
    judged = "" if target_ms is None else f"   target {target_ms:g} ms: {'met' if good else 'MISSED'}"
    print(f"{name:>34}: {took_ms[0]:8.2f} ms first, {statistics.median(took_ms[1:]):8.2f} ms then{judged}")
    return good


def bench_large(folder: Path, side: int) -> bool:
    """Build a store of side × side base tiles, and time looking into it; whether all targets are met."""
    home = run_folder(folder, RUN)
    bbox = Rect(0, 0, side * TILE_SIZE, side * TILE_SIZE)
    levels = level_count(bbox, TILE_SIZE)
    begun = time.perf_counter()
    with SqliteStore.create(home, new_run("large")) as store:
        for level in range(levels):
            n = -(-side >> level)
            for row in range(n):
                tiles = [TileRow(PlaneKey(), TileKey(level, row, col), b"tiny") for col in range(n)]
                placements = [
                    Placement(col + row * n, 0, PlaneKey(), row * 256, col * 256, 300, 300, "stage", col + row * n)
                    for col in range(0, n if level == 0 else 0, 7)
                ]
                store.commit(Commit(tiles=tiles, placements=placements, levels=levels, bboxes={PlaneKey(): bbox}))
        info = store.info()
    print(
        f"{info.n_tiles} tiles and {info.n_placements} placements in {info.rev} commits, built in "
        f"{time.perf_counter() - begun:.0f} s, {store.path.stat().st_size / MIB:.0f} MiB"
    )
    middle = TileKey(0, side // 2, side // 2)

    def open_close() -> None:
        SqliteReader(home).close()

    good = timed("open for reading, close", open_close, LOOK_TARGET_MS)
    timed("open for writing, close", lambda: SqliteStore.open(home).close())
    with SqliteReader(home) as reader:
        good &= timed("info", reader.info, LOOK_TARGET_MS)
        good &= timed("one tile", lambda: reader.tile(PlaneKey(), middle), LOOK_TARGET_MS)
        timed("covering, one tile", lambda: reader.covering(PlaneKey(), middle.rect(TILE_SIZE)))
        timed("changes, 1,000 tiles", lambda: reader.changes(side // 2, limit=1000))
        timed("snapshot, first 4,000 tiles", reader.snapshot)
        timed("snapshot, 4,000 in the middle", lambda: reader.snapshot(after=(PlaneKey(), middle)))
        timed("snapshot of the top level", lambda: reader.snapshot(level=levels - 1))
        begun = time.perf_counter()
        findings = reader.check()
        print(f"{'check':>34}: {time.perf_counter() - begun:8.2f} s, {len(findings)} findings")
    shutil.rmtree(home)
    return good


def main() -> int:
    """Measure, and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be judged")
    parser.add_argument("--part", choices=["commits", "large", "all"], default="all", help="what to measure")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measurement")
    parser.add_argument("--rates", type=float, nargs="*", default=[10.0, 20.0], help="commits/s besides flat out")
    parser.add_argument(
        "--wal-limit-mib", type=int, default=WAL_LIMIT_BYTES // MIB, help="limit of the write-ahead log (%(default)s)"
    )
    parser.add_argument("--side", type=int, default=1000, help="tiles along each side of the large store")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        print(f"{name} ({psutil.disk_usage(name).free / 1e9:.0f} GB free), {psutil.cpu_count()} cores")
        for rate in (None, *arguments.rates) if arguments.part != "large" else ():
            bench_commits(Path(name), arguments.seconds, rate, arguments.wal_limit_mib * MIB)
        good = arguments.part == "commits" or bench_large(Path(name), arguments.side)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
