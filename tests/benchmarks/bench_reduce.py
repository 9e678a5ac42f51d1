"""How fast is one tile reduced into its parent, and how long does it take to compile what a run needs?

Not a test: run it by hand, on the machine that is to be judged.

    uv run python tests/benchmarks/bench_reduce.py

Tiles come from a ring that is larger than the caches, as those of a scan do. `full` is the kernel of fully covered
tiles, `edges` that of tiles at the border of the mosaic. Compile times need a fresh cache:
``NUMBA_CACHE_DIR=$(mktemp -d)``; else they show how long it takes to find the kernels on disk.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from tilecast.kernels import kernels_for
from tilecast.reduction import reduce_into

RING = 64


def best(reduce: Callable[[int], object], rounds: int) -> float:
    """Microseconds per tile, in the best of some rounds through the ring."""
    reduce(0)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for i in range(RING):
            reduce(i)
        times.append((time.perf_counter() - start) / RING)
    return min(times) * 1e6


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tile", type=int, default=256, help="edge of a tile, pixels")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = args.tile, args.tile
    for dtype in ("|u1", "<u2", "<f4"):
        for mode in ("feather", "nearest"):
            start = time.perf_counter()
            for _, compile_kernel in kernels_for(dtype, mode):
                compile_kernel()
            print(f"{dtype} {mode}: kernels ready in {time.perf_counter() - start:.2f} s")
        tiles = [rng.integers(0, 256, shape).astype(dtype) for _ in range(RING)]
        parents = [np.zeros(shape, dtype) for _ in range(RING)]
        masks = [np.ones(shape, np.bool_) for _ in range(RING)]
        full = best(lambda i: reduce_into(tiles[i], None, parents[i // 4], None, i >> 1 & 1, i & 1), args.rounds)
        line = f"{dtype} full  {full:6.1f} µs/tile, {tiles[0].nbytes / full / 1e3:5.1f} GB/s"
        if dtype != "<f4":
            edge = best(
                lambda i: reduce_into(tiles[i], masks[i], parents[i // 4], masks[-1 - i], i >> 1 & 1, i & 1),
                args.rounds,
            )
            line += f"; edges {edge:6.1f} µs/tile, {tiles[0].nbytes / edge / 1e3:5.1f} GB/s"
        print(line)


if __name__ == "__main__":
    main()
