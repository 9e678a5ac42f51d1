"""How fast the PZF codec is, against pymecompress, in one run and on the same frames.

Not a test: run it by hand, `python tests/benchmarks/bench_pzf.py`. Times are the best of several, on one thread unless
it says otherwise; GB/s are bytes of pixels. Without pymecompress the ratios are left out.

The targets (2048 × 2048 u2 Poisson frames): at least 4 times pymecompress's encoding speed, 6 times its decoding
speed. The exit status is 1 if a frame misses one.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tilecast_protocol import pzf

ENCODE_TARGET = 4.0
DECODE_TARGET = 6.0
MEANS = (20, 200, 2000, 20000)


def best_s(call: Callable[[], object], repeats: int) -> float:
    """Shortest of `repeats` runs in seconds, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def together(call: Callable[[], object], n_threads: int) -> None:
    """Run `call` in so many threads at once."""
    threads = [threading.Thread(target=call) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> int:
    """Print the table; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, help="side of the frames, in pixels")
    parser.add_argument("--repeats", type=int, default=9)
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
        encode_s = best_s(lambda frame=frame: pzf.encode_image(frame), options.repeats)
        decode_s = best_s(lambda record=record: pzf.decode_image(record), options.repeats)
        line = f"mean {mean:>6}    {len(record) / frame.nbytes:8.3f}"
        line += f" | {gigabytes / encode_s:7.2f} {gigabytes / decode_s:7.2f}"
        if bcl is not None:
            stream = bcl.HuffmanCompress(frame)
            assert bytes(record[64:]) == stream.tobytes()
            their_encode_s = best_s(lambda frame=frame: bcl.HuffmanCompress(frame), 3)
            their_decode_s = best_s(lambda stream=stream, frame=frame: bcl.HuffmanDecompress(stream, frame.nbytes), 3)
            encode_ratio, decode_ratio = their_encode_s / encode_s, their_decode_s / decode_s
            missed |= encode_ratio < ENCODE_TARGET or decode_ratio < DECODE_TARGET
            line += f"      |  {gigabytes / their_encode_s:7.3f} {gigabytes / their_decode_s:7.3f}     |"
            line += f"  {encode_ratio:9.1f}× {decode_ratio:5.1f}×"
        print(line)

    tiles = rng.poisson(2000, (96, 256, 256)).astype(np.uint16)
    gigabytes = tiles.nbytes / 1e9
    half = tiles[:48]
    records = pzf.encode_images(half)
    one_s = best_s(lambda: pzf.encode_images(half), options.repeats)
    two_s = best_s(lambda: together(lambda: pzf.encode_images(half), 2), options.repeats)
    print(f"256² u2 tiles, encoded in one call: {gigabytes / 2 / one_s:.2f} GB/s;", end=" ")
    print(f"by two threads: {gigabytes / two_s:.2f} GB/s")
    one_s = best_s(lambda: [pzf.decode_image(record) for record in records], options.repeats)
    two_s = best_s(lambda: together(lambda: [pzf.decode_image(record) for record in records], 2), options.repeats)
    print(f"256² u2 tiles, decoded one by one:  {gigabytes / 2 / one_s:.2f} GB/s;", end=" ")
    print(f"by two threads: {gigabytes / two_s:.2f} GB/s")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
