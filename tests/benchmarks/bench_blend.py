"""How long does the mosaic take per frame, on one thread? And does it take longer as the run goes on?

Not a test: run it by hand, on the machine that is to be judged.

    uv run python tests/benchmarks/bench_blend.py --mode feather --dtype "<u2"
    uv run python tests/benchmarks/bench_blend.py --long

*Per frame*: a serpentine scan of 2048² frames at 10 % overlap, each frame flushed and committed on its own, as a live
run does that has time to. `blend` is `Pyramid.add` (base tiles blended and rendered), `reduce` is `Pyramid.flush` (all
upper levels), beside a plain copy of the frame into memory that is already there. The scan is made several times and
of each frame the best time counts, since memory that a process touches for the first time is slow on any machine and
very slow on some; that is the state of a daemon that has been running for a while. `--cold` shows the first scan.

*Long*: 10,000 small frames with a small budget: the time of a frame, and what is held, around frame 500 and at the end.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import time

import numpy as np

from tilecast.blending import BLEND_MODES
from tilecast.geometry import Placement, PlaneKey
from tilecast.kernels import kernels_for
from tilecast.pyramid import Pyramid, PyramidSettings
from tilecast.testing.memory_sources import MemorySources

MIB = 2**20


def keep_freed_memory() -> None:
    """Tell glibc not to give freed memory back, so that a second scan finds its memory already there."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def scan(args: argparse.Namespace, frames: list[np.ndarray]) -> np.ndarray:
    """One scan; milliseconds of blend, reduce, commit and copy for each frame, as an array (4, frames)."""
    sources = MemorySources()
    mosaic = Pyramid(
        PyramidSettings(args.dtype, args.mode, args.tile),
        budget_bytes=args.budget_mib * MIB,
        placements=sources,
        frames=sources,
        tiles=sources,
    )
    step = round(args.size * (1 - args.overlap))
    spare = frames[0].copy()
    times = []
    for number in range(args.rows * args.cols):
        row, col = divmod(number, args.cols)
        col = args.cols - 1 - col if row % 2 else col
        frame = frames[number % len(frames)]
        place = Placement(number, 0, PlaneKey(), row * step, col * step, args.size, args.size, "stage", number)
        clock = [time.perf_counter()]
        mosaic.add(place, frame)
        clock.append(time.perf_counter())
        batch = mosaic.flush()
        clock.append(time.perf_counter())
        assert batch is not None
        sources.commit(batch)
        committed = time.perf_counter()
        mosaic.committed(batch.number)
        times.append([clock[1] - clock[0], clock[2] - clock[1], time.perf_counter() - committed])
        copied = time.perf_counter()
        np.copyto(spare, frame)
        times[-1].append(time.perf_counter() - copied)
    return np.array(times).T * 1e3


def per_frame(args: argparse.Namespace) -> None:
    """The main figure."""
    rng = np.random.default_rng(0)
    frames = [rng.poisson(300, (args.size, args.size)).astype(args.dtype) for _ in range(4)]
    if args.cold:
        blend, reduce, commit, copy = scan(args, frames)
    else:
        keep_freed_memory()
        scans = []
        for _ in range(args.scans):
            scans.append(scan(args, frames))
            gc.collect()
        blend, reduce, commit, copy = np.min(scans[1:], axis=0)
    typical = slice(args.cols, None)  # frames with a neighbour above
    total = blend + reduce + commit
    print(
        f"{args.mode:8s} {args.dtype} {args.size}², {args.overlap:.0%} overlap, tiles of {args.tile}: "
        f"blend {np.median(blend[typical]):.2f} + reduce {np.median(reduce[typical]):.2f} "
        f"+ commit {np.median(commit[typical]):.2f} = {np.median(total[typical]):.2f} ms "
        f"(slowest {total[typical].max():.2f}), {np.median(total[typical]) / np.median(copy):.1f} copies of the frame"
    )


def long_run(args: argparse.Namespace) -> None:
    """Whether frame 10,000 costs what frame 500 did."""
    rng = np.random.default_rng(0)
    size, tile, cols, count = 128, 32, 40, 10_000
    frames = [rng.poisson(30, (size, size)).astype("|u1") for _ in range(8)]
    sources = MemorySources()
    mosaic = Pyramid(
        PyramidSettings("|u1", args.mode, tile), budget_bytes=4 * MIB, placements=sources, frames=sources, tiles=sources
    )
    times, held, asked = np.zeros(count), np.zeros(count), np.zeros(count)
    for number in range(count):
        row, col = divmod(number, cols)
        col = cols - 1 - col if row % 2 else col
        place = Placement(number, 0, PlaneKey(), row * 115, col * 115, size, size, "stage", number)
        sources.frames[place.id] = frames[number % 8]
        before = sources.loads + sources.reads + sources.queries
        start = time.perf_counter()
        mosaic.add(place, frames[number % 8])
        batch = mosaic.flush()
        times[number] = time.perf_counter() - start
        assert batch is not None
        sources.commit(batch)
        mosaic.committed(batch.number)
        held[number] = mosaic.stats().nbytes
        asked[number] = sources.loads + sources.reads + sources.queries - before
    for around in (500, 2_000, count - 200):
        part = slice(around - 200, around + 200)
        print(
            f"frame {around:6d}: {np.median(times[part]) * 1e3:.2f} ms, {held[part].max() / MIB:.2f} MiB held, "
            f"{np.mean(asked[part]):.1f} questions to the store and the journal, {len(sources.tiles)} tiles in the end"
        )


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", default="feather", choices=BLEND_MODES)
    parser.add_argument("--dtype", default="<u2", choices=["|u1", "<u2", "<f4"])
    parser.add_argument("--size", type=int, default=2048, help="edge of a frame, pixels")
    parser.add_argument("--tile", type=int, default=256, help="edge of a tile, pixels")
    parser.add_argument("--overlap", type=float, default=0.1, help="overlap of neighbours, as a part of the frame")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--cols", type=int, default=5)
    parser.add_argument("--scans", type=int, default=7)
    parser.add_argument("--budget-mib", type=int, default=1024)
    parser.add_argument("--cold", action="store_true", help="the first scan of a fresh process")
    parser.add_argument("--long", action="store_true", help="10,000 small frames instead")
    args = parser.parse_args()
    for _, compile_kernel in kernels_for(args.dtype, args.mode) + kernels_for("|u1", args.mode):
        compile_kernel()
    if args.long:
        long_run(args)
    else:
        per_frame(args)


if __name__ == "__main__":
    main()
