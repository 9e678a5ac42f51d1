"""Bytes that nobody wrote, thrown at the PZF decoder: each is refused or decoded, and no index leaves its array.

The second half is shown by numba itself: `main` runs in a process of its own with NUMBA_BOUNDSCHECK=1, where every
index is checked and a wrong one raises IndexError, which nothing here catches. Kernels compiled that way must not meet
the others in one cache, so it has its own.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tilecast_protocol import pzf
from tilecast_protocol.errors import PZFError

MAX_BYTES = 1 << 20


def some_frame(rng: np.random.Generator) -> npt.NDArray[Any]:
    """Frames of every type, from a few pixels to a few thousand, from constant to noise."""
    rows, columns = rng.integers(0, 90, 2)
    mean = rng.choice([0, 0.3, 5, 100, 2000, 30000])
    pixels = rng.poisson(mean, (rows, columns)).astype(rng.choice(["u1", "u2", "f4"]))
    return pixels.T if rng.integers(2) else pixels


def random_tree(rng: np.random.Generator, n_leaves: int) -> str:
    """A complete tree of any shape with up to so many leaves, as bits."""
    bits = ""
    to_come = to_split = 1
    while to_come:
        inner = to_split < n_leaves and rng.random() < 0.7
        bits += "0" if inner else "1" + format(rng.integers(256), "08b")
        to_come += 1 if inner else -1
        to_split += inner
    return bits


def packed(bits: str) -> bytes:
    return int(bits + "0" * (-len(bits) % 8), 2).to_bytes(-(-len(bits) // 8), "big") if bits else b""


def header_for(rng: np.random.Generator, payload: bytes) -> bytes:
    """A header that claims about as much as the payload could hold."""
    data_format, quantization = int(rng.integers(3)), int(rng.integers(2))
    n_bytes = int(rng.integers(0, 9 * len(payload) + 2))
    width = int(rng.integers(1, 20))
    n_pixels = n_bytes if quantization else n_bytes >> data_format
    sides = (width, n_pixels // width, 1)
    return struct.pack(
        "<2sBBBBcsqIIIIQffI12s", b"BD", 3, data_format, int(rng.integers(3)), quantization, b"C", b"", 0, 0, *sides, 0,
        0.0, 1.0, 64, b"",
    )  # fmt: skip


def hostile_records(rng: np.random.Generator, n: int) -> Iterator[bytes]:
    """`n` records: mutilated ones, random bytes behind a plausible header, random trees, and plain noise."""
    for k in range(n):
        kind = k % 6
        if kind in (0, 1, 2):
            pixels = some_frame(rng)
            quantization = int(rng.integers(2))
            record = bytearray(pzf.dumps(pixels, 1, 2, 3, int(rng.integers(3)), quantization))
            for _ in range(rng.integers(1, 4)):
                at = int(rng.integers(len(record) if kind else min(len(record), 96)))
                match rng.integers(5):
                    case 0:
                        record[at] ^= 1 << int(rng.integers(8))
                    case 1:
                        record[at : at + 4] = rng.bytes(4)
                    case 2:
                        record = record[: at + 1]
                    case 3:
                        record[at:at] = rng.bytes(int(rng.integers(1, 40)))
                    case 4:
                        del record[at : at + int(rng.integers(1, 9))]
                if not record:
                    break
            yield bytes(record)
        elif kind == 3:
            payload = rng.bytes(int(rng.integers(0, 900)))
            yield header_for(rng, payload) + payload
        elif kind == 4:
            tree = random_tree(rng, int(rng.integers(1, 270)))
            bias = rng.random()
            codes = "".join("1" if bit < bias else "0" for bit in rng.random(rng.integers(0, 3000)))
            payload = packed(tree + codes)
            yield header_for(rng, payload) + payload
        else:
            yield rng.bytes(int(rng.integers(0, 200)))


def throw(n: int, seed: int) -> tuple[int, int]:
    """Decode `n` hostile records; how many were decoded, how many refused. Anything but PZFError gets out."""
    rng = np.random.default_rng(seed)
    decoded = refused = 0
    for record in hostile_records(rng, n):
        for read in (lambda record: pzf.loads(record, max_bytes=MAX_BYTES)[0], pzf.decode_image):
            try:
                pixels = read(record)
            except PZFError:
                refused += 1
            else:
                decoded += 1
                assert pixels.shape == pzf.read_header(record).shape[: pixels.ndim]
                assert pixels.nbytes <= MAX_BYTES
    return decoded, refused


def throw_streams(n: int, seed: int) -> int:
    """Decode `n` streams of a random tree and random codes to any number of symbols; how many had enough bits.

    Straight into the kernel, past the checks that keep most such streams from it.
    """
    from tilecast_protocol import _pzf_kernels as kernels

    rng = np.random.default_rng(seed)
    enough = 0
    for _ in range(n):
        tree = random_tree(rng, int(rng.integers(1, 258)))
        bias = rng.random()
        codes = "".join("1" if bit < bias else "0" for bit in rng.random(rng.integers(0, 4000)))
        stream = np.frombuffer(packed(tree + codes) + b"\0" * int(rng.integers(3)), np.uint8)
        if rng.integers(3) == 0:
            stream = stream[: int(rng.integers(1, 1 + min(stream.size, 400)))]
        out = np.empty(int(rng.integers(1, 2000)), np.uint8)
        status, n_bits = kernels.huffman_decode(stream, out)
        if status == kernels.OK:
            enough += 1
            assert n_bits <= stream.size * 8 or tree[0] == "1"
        else:
            assert status in (kernels.TREE_CUT, kernels.TREE_TOO_BIG, kernels.BITS_EXHAUSTED)
    return enough


def round_trips(n: int, seed: int) -> None:
    """Encode and decode `n` frames, each in every way."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        pixels = some_frame(rng)
        expected = np.ascontiguousarray(pixels)
        for compression in (pzf.DATA_COMP_HUFFCODE, pzf.DATA_COMP_HUFFCODE_CHUNKS):
            decoded, _ = pzf.loads(pzf.dumps(pixels, compression=compression))
            assert np.array_equal(decoded[:, :, 0], pixels)
        for record in (pzf.encode_image(pixels), *pzf.encode_images(np.stack([pixels] * 2))):
            assert pzf.decode_image(record).tobytes() == expected.tobytes()
    # Images that share codes: of a kind, of another, and one whose sample says nothing of the rest.
    large = [rng.poisson(mean, (128, 128)).astype("u2") for mean in (20, 20, 20_000, 20_000)]
    large += [np.where(np.arange(1 << 14) % 3 == 0, 7, rng.integers(0, 1 << 16, 1 << 14)).astype("u2").reshape(128, -1)]
    for image, record in zip(large, pzf.encode_images(large), strict=True):
        assert np.array_equal(pzf.decode_image(record), image)
    # Long codes, one behind the other: every way out of the fast loops.
    counts = [1, 1]
    while len(counts) < 30:
        counts.append(counts[-1] + counts[-2])
    long_codes = np.repeat(np.arange(30, dtype=np.uint8), counts)
    for data in (long_codes, long_codes[::-1].copy(), rng.permutation(long_codes)):
        words = data[: data.size & ~1].view("<u2").reshape(1, -1)
        assert np.array_equal(pzf.decode_image(pzf.encode_image(words)), words)


def main() -> None:
    """What the process with numba's bounds checks runs."""
    from tilecast_protocol import _pzf_kernels

    room = np.zeros(8, np.uint8)
    _pzf_kernels._store64(room, np.uint64(0), np.uint64(1))
    try:
        _pzf_kernels._store64(room, np.uint64(1), np.uint64(1))
    except IndexError:
        pass
    else:
        raise SystemExit("bounds are not checked: the run would show nothing")
    round_trips(60, seed=1)
    decoded, refused = throw(1500, seed=2)
    print(decoded, refused, throw_streams(600, seed=3))


def test_hostile_records_are_refused_or_decoded() -> None:
    decoded, refused = throw(1500, seed=0)
    # Both must happen a lot, or the records do not reach far into the decoder.
    assert decoded > 100
    assert refused > 1000
    assert 150 < throw_streams(500, seed=1) < 450


@pytest.mark.timeout(300)
@pytest.mark.parametrize("optimised", ["0", pytest.param("3", marks=pytest.mark.slow)])
def test_no_index_leaves_its_array(tmp_path: Path, optimised: str) -> None:
    """Which indices there are does not depend on how far the compiler optimises, only how long it takes."""
    environment = os.environ | {
        "NUMBA_BOUNDSCHECK": "1",
        "NUMBA_CACHE_DIR": str(tmp_path),
        "NUMBA_OPT": optimised,
    }
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:] + run.stdout
    decoded, refused, enough = map(int, run.stdout.split())
    assert decoded > 100
    assert refused > 1000
    assert enough > 150


if __name__ == "__main__":
    main()
