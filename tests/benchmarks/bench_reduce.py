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

import numpy as np

from tilecast.kernels import kernels_for
from tilecast.reduction import reduce_into

RING = 64


def reduce_ring(dtype: str, tile_size: int, rounds: int, *, edges: bool) -> str:
    """Reduce all tiles of a ring, some times over; the best round, in words."""
    shape = tile_size, tile_size
    rng = np.random.default_rng(0)
    tiles = [rng.integers(0, 256, shape).astype(dtype) for _ in range(RING)]
    parents = [np.zeros(shape, dtype) for _ in range(RING // 4)]
    masks: list[np.ndarray | None] = [None] * RING
    if edges:
        for i, tile in enumerate(tiles):
            mask = np.ones(shape, np.bool_)
            mask[:, tile_size * 3 // 4 + 1 :] = False
            tile[~mask] = 0
            masks[i] = mask
    parent_masks = [None if mask is None else mask.copy() for mask in masks[: RING // 4]]
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for i in range(RING):
            reduce_into(tiles[i], masks[i], parents[i // 4], parent_masks[i // 4], i >> 1 & 1, i & 1)
        times.append((time.perf_counter() - start) / RING)
    return f"{min(times) * 1e6:6.1f} µs/tile, {tiles[0].nbytes / min(times) / 1e9:5.1f} GB/s"


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tile", type=int, default=256, help="edge of a tile, pixels")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    for dtype in ("|u1", "<u2", "<f4"):
        for mode in ("feather", "nearest"):
            start = time.perf_counter()
            for _, compile_kernel in kernels_for(dtype, mode):
                compile_kernel()
            print(f"{dtype} {mode}: kernels ready in {time.perf_counter() - start:.2f} s")
        print(f"{dtype} full  {reduce_ring(dtype, args.tile, args.rounds, edges=False)}")
        if dtype != "<f4":
            print(f"{dtype} edges {reduce_ring(dtype, args.tile, args.rounds, edges=True)}")


if __name__ == "__main__":
    main()
