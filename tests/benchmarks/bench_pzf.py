"""How fast the PZF codec is, against pymecompress, in one run and on the same frames.

Not a test: run it by hand, `python tests/benchmarks/bench_pzf.py`. Times are the best of several, on one thread unless
it says otherwise; GB/s are bytes of pixels. Without pymecompress the ratios are left out.

The targets (2048 × 2048 u2 Poisson frames): at least 4 times pymecompress's encoding speed, 6 times its decoding
speed. The exit status is 1 if a frame misses one.

Then tiles of 256 × 256: each with its own code against codes that they share, by turns in one run, and what sharing
adds to their size. With `--scans`, the folder of the real scans, tiles of those too.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecast_protocol import pzf

ENCODE_TARGET = 4.0
DECODE_TARGET = 6.0
MEANS = (20, 200, 2000, 20000)
TILE = 256
TILES_AT_ONCE = 32
MOST_TILES = 128


def best_s(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Shortest of `repeats` runs of each in seconds, after one that does not count.

    They take turns, so that a machine that slows down for a while slows down all of them.
    """
    best = [float("inf")] * len(calls)
    for call in calls:
        call()
    for _ in range(repeats):
        for n, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[n] = min(best[n], time.perf_counter() - start)
    return best


def together(call: Callable[[], object], n_threads: int) -> None:
    """Run `call` in so many threads at once."""
    threads = [threading.Thread(target=call) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def tiles_of(frames: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """The whole tiles of some frames, (..., rows, columns), C-contiguous; MOST_TILES at most."""
    rows, columns = frames.shape[-2:]
    return [
        np.ascontiguousarray(frame[row : row + TILE, column : column + TILE])
        for frame in frames.reshape(-1, rows, columns)
        for row in range(0, rows - TILE + 1, TILE)
        for column in range(0, columns - TILE + 1, TILE)
    ][:MOST_TILES]


def shared_against_own(name: str, tiles: list[npt.NDArray[Any]], repeats: int) -> None:
    """Print how long both take for each tile, and how much longer shared codes make the records."""

    def shared() -> list[bytes]:
        parts = range(0, len(tiles), TILES_AT_ONCE)
        return [record for first in parts for record in pzf.encode_images(tiles[first : first + TILES_AT_ONCE])]

    def own() -> list[memoryview]:
        return [pzf.encode_image(tile) for tile in tiles]

    longer = [len(a) / len(b) - 1 for a, b in zip(shared(), own(), strict=True)]
    shared_s, own_s = best_s([shared, own], repeats)
    print(
        f"{name:<32} {own_s / len(tiles) * 1e6:6.1f} {shared_s / len(tiles) * 1e6:8.1f} µs  {shared_s / own_s:6.2f}  |"
        f"  {100 * np.mean(longer):5.2f} % {100 * max(longer):6.2f} %"
    )


def main() -> int:
    """Print the table; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, help="side of the frames, in pixels")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--scans", type=Path, help="folder of scans, each a folder with a frames.npz")
    options = parser.parse_args()
    try:
        from pymecompress import bcl
    except ImportError:
        bcl = None
        print("pymecompress is not installed: no ratios")

    rng = np.random.default_rng(2)
    missed = False
    print(f"{options.size}² u2 Poisson     size |  encode  decode GB/s |  pymecompress  GB/s |  ratio encode decode")
    for mean in MEANS:
        frame: npt.NDArray[Any] = rng.poisson(mean, (options.size, options.size)).astype(np.uint16)
        gigabytes = frame.nbytes / 1e9
        record = pzf.encode_image(frame)
        assert (pzf.decode_image(record) == frame).all()
        ours = [partial(pzf.encode_image, frame), partial(pzf.decode_image, record)]
        theirs = []
        if bcl is not None:
            stream = bcl.HuffmanCompress(frame)
            assert bytes(record[64:]) == stream.tobytes()
            theirs = [partial(bcl.HuffmanCompress, frame), partial(bcl.HuffmanDecompress, stream, frame.nbytes)]
        seconds = best_s([*ours, *theirs], options.repeats)
        line = f"mean {mean:>6}    {len(record) / frame.nbytes:8.3f} |"
        line += "".join(f" {gigabytes / s:7.2f}" for s in seconds[:2]) + "      |"
        if theirs:
            encode_ratio, decode_ratio = seconds[2] / seconds[0], seconds[3] / seconds[1]
            missed |= encode_ratio < ENCODE_TARGET or decode_ratio < DECODE_TARGET
            line += "".join(f" {gigabytes / s:8.3f}" for s in seconds[2:]) + "     |"
            line += f"  {encode_ratio:9.1f}× {decode_ratio:5.1f}×"
        print(line)

    tiles = rng.poisson(2000, (96, 256, 256)).astype(np.uint16)
    gigabytes = tiles.nbytes / 1e9
    half = tiles[:48]
    records = pzf.encode_images(half)
    for name, call in (
        ("encoded in one call", lambda: pzf.encode_images(half)),
        ("decoded one by one", lambda: [pzf.decode_image(record) for record in records]),
    ):
        one_s, two_s = best_s([call, partial(together, call, 2)], options.repeats)
        print(f"256² u2 tiles, {name}: {gigabytes / 2 / one_s:.2f} GB/s; by two threads: {gigabytes / two_s:.2f} GB/s")

    print(f"\n{TILE}² tiles, each                   own   shared     ratio  |  longer: mean, most")
    for dtype, means in (("u1", (4, 60)), ("u2", MEANS), ("f4", (2000,))):
        for mean in means:
            noise = rng.poisson(mean, (TILES_AT_ONCE, TILE, TILE)).astype(dtype)
            shared_against_own(f"Poisson {dtype} {mean}", list(noise), options.repeats)
    shared_against_own("blank u2", list(np.zeros((TILES_AT_ONCE, TILE, TILE), np.uint16)), options.repeats)
    for path in sorted(options.scans.glob("*/frames.npz")) if options.scans else ():
        with np.load(path) as arrays:
            scan = tiles_of(arrays[arrays.files[0]])
        if scan:
            shared_against_own(path.parent.name, scan, options.repeats)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
