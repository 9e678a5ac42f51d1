"""The PZF codec: records that others wrote, records that nobody should have written, and our own."""

from __future__ import annotations

import dataclasses
import doctest
import json
import math
import mmap
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from reference import pzf_reference
from tilecast_protocol import _pzf_kernels, pzf
from tilecast_protocol.errors import PZFError

HUFFMAN = pzf.DATA_COMP_HUFFCODE
CHUNKS = pzf.DATA_COMP_HUFFCODE_CHUNKS
RAW = pzf.DATA_COMP_RAW
SQRT = pzf.DATA_QUANT_SQRT
ENTRY = dict[str, Any]


def manifest(folder: Path) -> list[ENTRY]:
    entries: list[ENTRY] = json.loads((folder / "manifest.json").read_text())["entries"]
    return entries


def same(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Equal in type, shape and every bit, NaN included."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def fibonacci_bytes(n_symbols: int) -> npt.NDArray[np.uint8]:
    """Bytes whose code has a longest length of n_symbols - 1: each symbol as frequent as the two rarer together."""
    counts = [1, 1]
    while len(counts) < n_symbols:
        counts.append(counts[-1] + counts[-2])
    return np.repeat(np.arange(n_symbols, dtype=np.uint8), counts)


def frame(mean: float = 500, shape: tuple[int, ...] = (61, 47), dtype: str = "u2", seed: int = 0) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).poisson(mean, shape).astype(dtype)


def record_with(payload: bytes, shape: tuple[int, int, int] = (40, 30, 1), **changes: Any) -> bytes:
    """A version 3 record of u2 pixels around `payload`, with some header fields changed."""
    fields: dict[str, Any] = {
        "ID": b"BD",
        "Version": 3,
        "DataFormat": 1,
        "DataCompression": HUFFMAN,
        "DimOrder": b"C",
        "Width": shape[0],
        "Height": shape[1],
        "Depth": shape[2],
        "DataOffset": 64,
    }
    header = np.zeros(1, pzf.load_header(pzf.dumps(np.zeros((1, 1), "u1"))).dtype)
    for name, value in (fields | changes).items():
        header[name] = value
    return header.tobytes() + payload


# ------------------------------------------------------------------------------------------------------ golden vectors


@pytest.mark.shared_data
def test_golden_records_decode_to_the_arrays_given(shared_data: Path) -> None:
    folder = shared_data / "pzf" / "golden"
    wrong = []
    compared = 0
    for entry in manifest(folder):
        if entry.get("strict_may_reject") or entry.get("bug") or entry.get("ub_cast"):
            continue
        pixels, header = pzf.loads((folder / entry["file"]).read_bytes())
        expected = np.load(folder / (entry["name"] + ".npy"))
        compared += 1
        if not same(pixels, expected):
            wrong.append(entry["name"])
        for field, value in entry["header"].items():
            got = header[field][0]
            if field.startswith("RESERVED"):
                continue
            if (got.decode() if isinstance(got, bytes) else got) != value:
                wrong.append(f"{entry['name']}.{field}")
    assert not wrong
    assert compared == 89


@pytest.mark.shared_data
def test_golden_records_that_a_strict_reader_may_refuse_are_refused_or_right(shared_data: Path) -> None:
    folder = shared_data / "pzf" / "golden"
    entries = [entry for entry in manifest(folder) if entry.get("strict_may_reject") or entry.get("bug")]
    assert entries
    for entry in entries:
        record = (folder / entry["file"]).read_bytes()
        if entry.get("bug"):  # its cast is undefined, so any pixels will do
            assert pzf.loads(record)[0].shape == tuple(entry["decoded_shape"])
            continue
        with pytest.raises(PZFError):
            pzf.loads(record)


@pytest.mark.shared_data
def test_lossless_golden_records_are_written_again_byte_for_byte(shared_data: Path) -> None:
    folder = shared_data / "pzf" / "golden"
    rewritten = 0
    for entry in manifest(folder):
        if not entry.get("lossless") or entry.get("strict_may_reject"):
            continue
        record = (folder / entry["file"]).read_bytes()
        pixels, header = pzf.loads(record)
        if int(header["DataCompression"]) == CHUNKS:
            continue  # PYME's writer of chunks is broken; these were put together by hand
        again = pzf.dumps(
            pixels,
            sequenceID=int(header["SequenceID"]),
            frameNum=int(header["FrameNum"]),
            frameTimestamp=int(header["FrameTimestamp"]),
            compression=int(header["DataCompression"]),
        )
        rewritten += 1
        offset = pzf.read_header(record).data_offset
        assert again[64:] == record[offset:], entry["name"]
        if entry["made_by"] == "PYME.IO.PZFFormat.dumps":
            # A record of our own making has the same header too, with the fields that PYME leaves alone.
            assert again[:64] == record[:64], entry["name"]
    assert rewritten == 57


@pytest.mark.shared_data
def test_quantizing_the_golden_sources_stays_within_half_a_step(shared_data: Path) -> None:
    folder = shared_data / "pzf" / "golden"
    quantized = 0
    for entry in manifest(folder):
        if not entry.get("lossy") or entry["name"] == "u2_quant_bright_huff":
            continue
        source = np.load(folder / entry["source"])
        offset, scale = entry["header"]["QuantOffset"], entry["header"]["QuantScale"]
        record = pzf.dumps(
            source, compression=HUFFMAN, quantization=SQRT, quantizationOffset=offset, quantizationScale=scale
        )
        assert_within_half_a_step(source, pzf.loads(record)[0].reshape(source.shape), offset, scale)
        quantized += 1
    assert quantized == 13


# --------------------------------------------------------------------------------------------------- malformed records


@pytest.mark.shared_data
def test_malformed_records_are_refused_or_decoded_in_bounded_memory_and_time(shared_data: Path) -> None:
    folder = shared_data / "pzf" / "malformed"
    pzf.loads(pzf.dumps(frame(), compression=HUFFMAN))  # compiled before the clock starts
    entries = manifest(folder)
    assert len(entries) == 94
    accepted = []
    tracemalloc.start()
    try:
        for entry in entries:
            record = (folder / entry["file"]).read_bytes()
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            start = time.thread_time()
            try:
                pixels, header = pzf.loads(record)
            except PZFError:
                pass
            else:
                accepted.append(entry)
                assert pixels.shape == tuple(int(header[side]) for side in ("Width", "Height", "Depth"))
            assert time.thread_time() - start < 1, entry["name"]
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < 1 << 20, entry["name"]
    finally:
        tracemalloc.stop()
    assert not [entry["name"] for entry in accepted if entry["expect"] == "reject"]
    assert len(accepted) >= 8  # flipped bits and such: without a checksum nobody can tell


def test_a_tree_with_codes_of_255_bits_is_decoded() -> None:
    comb = "0" * 255  # each inner node's child A is the next one; the deepest holds two leaves
    leaves = "".join("1" + format(symbol, "08b") for symbol in range(256))
    codes = {0: "0" * 255, 255: "1"}
    codes |= {symbol: "0" * (255 - symbol) + "1" for symbol in range(1, 255)}
    symbols = [0, 0, 255, 1, 128, 254, 3, 0] * 12
    bits = comb + leaves + "".join(codes[symbol] for symbol in symbols)
    bits += "0" * (-len(bits) % 8)
    stream = int(bits, 2).to_bytes(len(bits) // 8, "big")
    record = record_with(stream, (8, 12, 1), DataFormat=0)
    assert pzf.loads(record)[0].tobytes() == bytes(symbols)
    assert pzf_reference.decode(stream, len(symbols)) == bytes(symbols)


@pytest.mark.parametrize("n_bytes", [0, 1, 2, 63, 64, 511, 600, 60_000])
def test_a_tree_that_never_closes_is_refused(n_bytes: int) -> None:
    with pytest.raises(PZFError):
        pzf.loads(record_with(b"\0" * n_bytes))


@pytest.mark.parametrize("cut", [1, 2, 3, 8, 9, 40, 500])
def test_a_stream_that_is_cut_is_refused(cut: int) -> None:
    record = pzf.dumps(frame(), compression=HUFFMAN)
    with pytest.raises(PZFError):
        pzf.loads(record[:-cut])


@pytest.mark.parametrize("compression", [RAW, HUFFMAN, CHUNKS])
def test_bytes_behind_the_end_are_refused(compression: int) -> None:
    with pytest.raises(PZFError, match=r"follow|uncompressed"):
        pzf.loads(pzf.dumps(frame(), compression=compression) + b"\0")


def test_a_small_record_cannot_claim_a_large_frame() -> None:
    single_symbol_tree = bytes([0b10000000, 0])
    tracemalloc.start()
    try:
        for changes in (
            {"Width": 30_000, "Height": 30_000},
            {"Width": 1 << 31, "Height": 1 << 31, "Depth": 4},
            {"Width": 30_000, "Height": 30_000, "DataQuantization": SQRT, "QuantScale": 1, "DataFormat": 2},
        ):
            with pytest.raises(PZFError, match="claim"):
                pzf.loads(record_with(single_symbol_tree, **changes), max_bytes=1 << 40)
            chunk = struct.pack("<HII", 1, 2, (1 << 32) - 1) + single_symbol_tree
            with pytest.raises(PZFError, match="claim"):
                pzf.loads(record_with(chunk, DataCompression=CHUNKS, **changes), max_bytes=1 << 40)
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 1 << 18
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", [RAW, HUFFMAN, CHUNKS])
def test_a_frame_larger_than_allowed_is_refused(compression: int) -> None:
    record = pzf.dumps(frame(shape=(10, 10)), compression=compression)
    assert pzf.loads(record, max_bytes=200)[0].nbytes == 200
    with pytest.raises(PZFError, match="199"):
        pzf.loads(record, max_bytes=199)
    with pytest.raises(PZFError, match="199"):
        pzf.decode_image(record, max_bytes=199)


def test_the_limit_is_on_the_pixels_not_on_their_levels() -> None:
    record = pzf.dumps(frame(shape=(10, 10)), compression=HUFFMAN, quantization=SQRT)
    assert pzf.loads(record, max_bytes=200)[0].nbytes == 200
    with pytest.raises(PZFError, match="199"):
        pzf.loads(record, max_bytes=199)


@pytest.mark.parametrize(
    ("offset", "scale"), [(math.nan, 1), (math.inf, 1), (0, math.nan), (0, math.inf), (0, 0), (0, -1)]
)
def test_a_quantization_that_cannot_be_undone_is_refused(offset: float, scale: float) -> None:
    with pytest.raises(PZFError, match="scale"):
        pzf.loads(
            record_with(b"\0" * 1200, DataQuantization=1, DataCompression=0, QuantOffset=offset, QuantScale=scale)
        )
    with pytest.raises(PZFError, match="scale"):
        pzf.dumps(frame(), quantization=SQRT, quantizationOffset=offset, quantizationScale=scale)


def test_levels_outside_the_pixel_type_come_back_as_its_nearest_value() -> None:
    levels = bytes([0, 1, 10, 255])
    fields = {"DataQuantization": 1, "DataCompression": RAW, "QuantOffset": -50, "QuantScale": 2}
    assert pzf.loads(record_with(levels, (2, 2, 1), DataFormat=0, **fields))[0].ravel().tolist() == [0, 0, 255, 255]
    assert pzf.loads(record_with(levels, (2, 2, 1), DataFormat=1, **fields))[0].ravel().tolist() == [0, 0, 350, 65535]
    huge = fields | {"QuantScale": 3e38, "QuantOffset": -3e38}
    assert pzf.loads(record_with(levels, (2, 2, 1), DataFormat=1, **huge))[0].ravel().tolist() == [0, *[65535] * 3]


@pytest.mark.parametrize("value", [b"", bytearray(), memoryview(b""), b"BD", b"BD\3" + b"\0" * 45, b"\0" * 64])
def test_what_is_no_header_is_refused(value: bytes) -> None:
    for read in (pzf.loads, pzf.load_header, pzf.read_header, pzf.decode_image):
        with pytest.raises(PZFError):
            read(value)


@pytest.mark.parametrize("value", ["BD", 5, None, memoryview(bytes(200))[::2]])
def test_what_is_no_buffer_is_refused(value: Any) -> None:
    with pytest.raises(PZFError, match="buffer"):
        pzf.loads(value)


# --------------------------------------------------------------------------------------------------------- round trips

SHAPES = [(1, 1), (1, 7), (7, 1), (37, 23), (64, 64), (11, 9, 4), (1, 1, 1), (0, 5), (5, 0), (3, 0, 2)]


@pytest.mark.parametrize("compression", [RAW, HUFFMAN, CHUNKS])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_trip(shape: tuple[int, ...], dtype: str, compression: int) -> None:
    pixels = frame(90, shape, dtype)
    if dtype == "f4" and pixels.size:
        pixels.flat[0], pixels.flat[-1] = np.nan, -np.inf
    for array in (pixels, np.asfortranarray(pixels), pixels[::-1, ::2], pixels.swapaxes(0, 1)):
        record = pzf.dumps(array, 12345678901234, 17, 1 << 63, compression)
        decoded, header = pzf.loads(record)
        expected = array.reshape(array.shape if array.ndim == 3 else (*array.shape, 1))
        assert same(np.ascontiguousarray(decoded), np.ascontiguousarray(expected))
        assert decoded.flags.writeable
        assert (int(header["SequenceID"]), int(header["FrameNum"]), int(header["FrameTimestamp"])) == (
            12345678901234,
            17,
            1 << 63,
        )
        assert header["DimOrder"][0] == (b"F" if array.flags.f_contiguous else b"C")


@pytest.mark.parametrize(
    "data",
    [
        bytes(7),
        bytes(range(256)),
        bytes(range(255, -1, -1)) * 3,
        bytes([5] * 1000 + [9]),
        bytes([i % 7 for i in range(999)]),
        np.random.default_rng(0).integers(0, 256, 5001, dtype=np.uint8).tobytes(),
        np.random.default_rng(1).poisson(2000, 3000).astype("<u2").tobytes(),
        np.random.default_rng(2).geometric(0.5, 20_001).astype("u1").tobytes(),
        fibonacci_bytes(15).tobytes(),
    ],
)
def test_the_stream_is_the_reference_encoders(data: bytes) -> None:
    pixels = np.frombuffer(data, np.uint8).reshape(1, -1)
    stream = pzf.dumps(pixels, compression=HUFFMAN)[64:]
    assert stream == pzf_reference.encode(data)
    assert pzf_reference.decode(stream, len(data)) == data


@pytest.mark.parametrize("arrangement", ["sorted", "shuffled", "rarest together"])
@pytest.mark.parametrize("n_symbols", [14, 28, 33])
def test_codes_longer_than_any_table(n_symbols: int, arrangement: str) -> None:
    # 33 symbols: codes of up to 32 bits. Two of them do not fit into one entry of a pair's two codes.
    data = fibonacci_bytes(n_symbols)
    if arrangement == "shuffled":
        data = np.random.default_rng(3).permutation(data)
    elif arrangement == "rarest together":
        data = np.concatenate([data[40:], data[:40], data[:0]])
    data = data[: data.size & ~1]
    for pixels in (data.reshape(2, -1), data.view("<u2").reshape(1, -1)):
        record = pzf.dumps(pixels, compression=HUFFMAN)
        assert same(pzf.loads(record)[0][:, :, 0], pixels)
    if n_symbols == 14:
        assert record[64:] == pzf_reference.encode(data.tobytes())


def test_pairs_and_single_bytes_give_the_same_stream() -> None:
    # The same bytes, once in a range of words that gets a table, once among words over the whole range.
    narrow = np.random.default_rng(0).integers(1000, 1300, 4000).astype("<u2")
    wide = np.concatenate([narrow, np.array([0, 65535], "<u2")])
    for words in (narrow, wide):
        stream = pzf.dumps(words.reshape(1, -1), compression=HUFFMAN)[64:]
        assert stream == pzf_reference.encode(words.tobytes())


def test_versions_1_and_2_are_read() -> None:
    pixels = frame(shape=(5, 4))
    record = pzf.dumps(pixels, frameNum=3, compression=HUFFMAN)
    for version in (1, 2):
        order = b"?" if version == 1 else b"F"
        old = b"BD" + bytes([version]) + record[3:6] + order + record[7:48] + record[64:]
        decoded, header = pzf.loads(old)
        assert int(header["FrameNum"]) == 3
        assert "DataOffset" not in (header.dtype.names or ())
        expected = pixels if version == 1 else pixels.reshape(-1).reshape(5, 4, order="F")
        assert (decoded[:, :, 0] == expected).all()


def test_padding_before_the_payload_is_skipped() -> None:
    record = pzf.dumps(frame(), compression=HUFFMAN)
    padded = record[:48] + struct.pack("<I", 200) + record[52:64] + b"?" * 136 + record[64:]
    assert (pzf.decode_image(padded) == frame()).all()


def assert_within_half_a_step(source: npt.NDArray[Any], decoded: npt.NDArray[Any], offset: float, scale: float) -> None:
    """The square roots of the signals differ by half a step at most, as far as 255 levels reach.

    Some room for float32, and for the cut to integers.
    """
    signal = np.maximum(source.astype(float) - offset, 0)
    reach = np.sqrt(signal) / scale < 255.5
    low = np.maximum(np.sqrt(signal) - scale / 2, 0) ** 2 + offset
    high = (np.sqrt(signal) + scale / 2) ** 2 + offset
    slack = 1 + 1e-5 * np.abs(high)
    assert (decoded >= low - slack)[reach].all()
    assert (decoded <= high + slack)[reach].all()
    assert (decoded >= (255 * scale) ** 2 + offset - slack)[~reach].all()


@pytest.mark.parametrize("compression", [RAW, HUFFMAN, CHUNKS])
@pytest.mark.parametrize(("dtype", "top"), [("u1", 256), ("u2", 65536), ("f4", 65536)])
@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (100, 0.5), (90.5, 1.25), (-7, 0.2)])
def test_square_root_quantization(dtype: str, top: int, offset: float, scale: float, compression: int) -> None:
    pixels = np.arange(top, dtype=dtype).reshape(16, -1)
    record = pzf.dumps(pixels, 0, 0, 0, compression, SQRT, offset, scale)
    assert compression != RAW or len(record) == 64 + pixels.size  # one byte per pixel
    decoded, header = pzf.loads(record)
    assert decoded.dtype == pixels.dtype
    assert float(header["QuantOffset"]) == offset
    assert float(header["QuantScale"]) == np.float32(scale)
    assert_within_half_a_step(pixels, decoded[:, :, 0], offset, float(np.float32(scale)))


def test_quantizing_clips_bright_and_refuses_nan() -> None:
    bright = np.array([[np.inf, 1e30, 0, -5]], "f4")
    levels = pzf.dumps(bright, quantization=SQRT)[64:]
    assert levels == bytes([255, 255, 0, 0])
    with pytest.raises(PZFError, match="NaN"):
        pzf.dumps(np.array([[np.nan]], "f4"), quantization=SQRT)


# ------------------------------------------------------------------------------------------------- what dumps refuses


@pytest.mark.parametrize("dtype", ["i1", "i2", "u4", "f8", "?", "c8"])
def test_pixel_types_that_pzf_lacks_are_refused(dtype: str) -> None:
    with pytest.raises(PZFError, match="uint8, uint16 and float32"):
        pzf.dumps(np.zeros((3, 3), dtype))
    with pytest.raises(PZFError, match="uint8, uint16 and float32"):
        pzf.encode_image(np.zeros((3, 3), dtype))
    with pytest.raises(PZFError, match="uint8, uint16 and float32"):
        pzf.encode_images(np.zeros((1, 3, 3), dtype))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"data": np.zeros(3, "u1")}, "dimensions"),
        ({"data": np.zeros((1, 1, 1, 1), "u1")}, "dimensions"),
        ({"compression": 3}, "compression"),
        ({"quantization": 2}, "quantization"),
        ({"engine": "zip"}, "engine"),
        ({"frameNum": -1}, "frame number"),
        ({"frameNum": 1 << 32}, "frame number"),
        ({"frameTimestamp": -1}, "timestamp"),
        ({"frameTimestamp": 1 << 64}, "timestamp"),
        ({"sequenceID": 1 << 63}, "sequence ID"),
        ({"frameTimestamp": math.nan}, "whole numbers"),
        ({"frameNum": "first"}, "whole numbers"),
        ({"data": np.empty((1 << 32, 0), "u1")}, "side"),
    ],
)
def test_what_does_not_fit_a_record_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(PZFError, match=said):
        pzf.dumps(**({"data": np.zeros((2, 2), "u1")} | arguments))


# -------------------------------------------------------------------------------------------------- images, for speed


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (33, 31), (64, 64), (0, 4)], ids=str)
def test_images_are_what_dumps_writes_or_raw_if_that_is_shorter(shape: tuple[int, int], dtype: str) -> None:
    for mean in (0, 90):
        pixels = frame(mean, shape, dtype)
        record = pzf.encode_image(pixels, frame_num=5, timestamp=6, sequence_id=-7)
        assert record.readonly
        # In C order, also where dumps, as PYME does, prefers to say F (a single row or column is both).
        by_compression = [bytearray(pzf.dumps(pixels, -7, 5, 6, compression)) for compression in (RAW, HUFFMAN)]
        for candidate in by_compression:
            candidate[6:7] = b"C"
        assert record == min(by_compression, key=len)
        assert pzf.encode_images(pixels[np.newaxis], frame_num=5, timestamp=6, sequence_id=-7) == [bytes(record)]
        decoded = pzf.decode_image(record, shape=shape, dtype=dtype)
        assert same(decoded, pixels)
        assert decoded.flags.c_contiguous
        assert decoded.flags.writeable


def test_noise_is_stored_raw() -> None:
    noise = np.random.default_rng(0).integers(0, 65536, (64, 64), dtype=np.uint16)
    record = pzf.encode_image(noise)
    assert len(record) == 64 + noise.nbytes
    assert record[64:] == noise.tobytes()


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("shape", [(7, 9, 11), (5, 16, 16), (0, 8, 8), (3, 0, 8)], ids=str)
def test_a_stack_is_encoded_as_its_images_are(shape: tuple[int, int, int], dtype: str) -> None:
    stack = frame(30, shape, dtype)
    stack[::3] = 0
    expected = [bytes(pzf.encode_image(image, frame_num=9)) for image in stack]
    assert pzf.encode_images(stack, frame_num=9) == expected
    assert pzf.encode_images(stack[:, ::-1, ::-1], frame_num=9) == [
        bytes(pzf.encode_image(image[::-1, ::-1], frame_num=9)) for image in stack
    ]


def test_a_stack_that_may_not_share_its_memory_is_encoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = frame(300, (11, 32, 32))
    expected = pzf.encode_images(stack)
    for limit in (1, 5000):  # less than one image; a few
        monkeypatch.setattr(pzf, "_MAX_SHARED_BYTES", limit)
        assert pzf.encode_images(stack) == expected


def test_any_memory_layout_is_encoded() -> None:
    pixels = frame(shape=(20, 30))
    unaligned = np.frombuffer(b"\0" + pixels.tobytes(), np.uint8)[1:].view("<u2").reshape(20, 30)
    assert not unaligned.flags.aligned
    for array in (pixels.astype(">u2"), np.asfortranarray(pixels), unaligned, np.repeat(pixels, 2, 1)[:, ::2]):
        assert pzf.encode_image(array) == pzf.encode_image(pixels)
        assert pzf.encode_images(array[np.newaxis]) == [bytes(pzf.encode_image(pixels))]
        assert pzf.loads(pzf.dumps(array, compression=HUFFMAN))[0].tobytes() == pixels.tobytes()


def test_the_kernels_are_compiled_once_for_everything() -> None:
    test_any_memory_layout_is_encoded()
    for dtype in ("u1", "u2", "f4"):
        record = pzf.encode_image(frame(shape=(9, 9), dtype=dtype))
        for buffer in (
            record,
            bytearray(record),
            memoryview(bytearray(b"?") + record)[1:],
            np.frombuffer(record, "u1"),
        ):
            pzf.decode_image(buffer)
    for kernel in ("huffman_plan", "huffman_emit", "encode_records", "huffman_decode"):
        assert len(getattr(_pzf_kernels, kernel).signatures) == 1, kernel


@pytest.mark.parametrize("compression", [HUFFMAN, RAW])
def test_a_large_record_begins_at_a_page_boundary(compression: int) -> None:
    """Then it can be written to a disk from where it lies."""
    pixels = np.random.default_rng(0).integers(0, 200 if compression == HUFFMAN else 65536, (600, 700), np.uint16)
    record = pzf.encode_image(pixels)
    assert record[4] == compression
    assert record.readonly
    assert np.frombuffer(record, "u1").ctypes.data % mmap.PAGESIZE == 0
    assert same(pzf.decode_image(record), pixels)


def test_expectations_are_checked_before_anything_is_decoded() -> None:
    record = bytes(pzf.encode_image(frame(shape=(20, 30))))
    broken = record[:70]
    with pytest.raises(PZFError, match=r"30 × 20 .* expected; the record has 20 × 30"):
        pzf.decode_image(broken, shape=(30, 20))
    with pytest.raises(PZFError, match="<f4 are expected; the record has <u2"):
        pzf.decode_image(broken, dtype="<f4")
    with pytest.raises(PZFError, match="depth"):
        pzf.decode_image(pzf.dumps(frame(shape=(4, 4, 2))))
    with pytest.raises(PZFError, match="compressed"):
        pzf.decode_image(broken, shape=(20, 30), dtype="u2")


def test_fortran_order_becomes_c_order() -> None:
    pixels = frame(shape=(20, 30))
    decoded = pzf.decode_image(pzf.dumps(np.asfortranarray(pixels), compression=HUFFMAN))
    assert same(decoded, pixels)
    assert decoded.flags.c_contiguous


@pytest.mark.parametrize("array", [np.zeros(4, "u1"), np.zeros((2, 2, 2), "u1")])
def test_an_image_has_two_dimensions(array: npt.NDArray[Any]) -> None:
    with pytest.raises(PZFError, match="2 dimensions"):
        pzf.encode_image(array)


def test_a_stack_has_three_dimensions() -> None:
    with pytest.raises(PZFError, match="3 dimensions"):
        pzf.encode_images(np.zeros((4, 4), "u1"))


def test_threads_do_not_share_scratch() -> None:
    frames = [frame(mean, (128, 128), seed=mean) for mean in (10, 300, 2000, 30000)]
    expected = [bytes(pzf.encode_image(image)) for image in frames]
    together = [pzf.encode_images([image] * 3) for image in frames]
    wrong: list[str] = []

    def work(n: int) -> None:
        for _ in range(30):
            if pzf.encode_image(frames[n]) != expected[n]:
                wrong.append(f"image {n}")
            if pzf.encode_images(np.stack([frames[n]] * 3)) != together[n]:
                wrong.append(f"stack {n}")
            if not same(pzf.decode_image(expected[n]), frames[n]):
                wrong.append(f"decoded {n}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(frames))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -------------------------------------------------------------------------------------------------------------- header


def test_a_header_reads_as_pyme_and_as_numbers() -> None:
    record = pzf.dumps(frame(shape=(6, 5)), -3, 4, 5, HUFFMAN, SQRT, 10.5, 0.25)
    header = pzf.load_header(record[:64])
    assert header.shape == (1,)
    assert header["Width"][0] == 6
    assert int(header["Height"]) == 5
    assert list(range(header["Depth"])) == [0]
    assert float(header["QuantOffset"]) == 10.5
    assert header["ID"] == b"BD"
    assert dataclasses.asdict(pzf.read_header(record[:64])) == {
        "version": 3,
        "shape": (6, 5, 1),
        "dtype": np.dtype("<u2"),
        "compression": HUFFMAN,
        "quantization": SQRT,
        "order": "C",
        "sequence_id": -3,
        "frame_num": 4,
        "timestamp": 5,
        "quant_offset": 10.5,
        "quant_scale": 0.25,
        "data_offset": 64,
    }
    assert pzf.read_header(record).nbytes == 60
    assert pzf.read_header(record).nbytes_coded == 30


def test_the_examples_in_the_docstrings_are_true() -> None:
    results = doctest.testmod(pzf)
    assert results.attempted > 3
    assert not results.failed


def test_numba_is_loaded_at_the_first_use_of_the_codec_only() -> None:
    script = (
        "import sys, numpy as np; from tilecast_protocol import pzf\n"
        "record = pzf.dumps(np.zeros((2, 2), 'u2')); pzf.loads(record); pzf.load_header(record)\n"
        "assert 'numba' not in sys.modules and 'llvmlite' not in sys.modules\n"
        "pzf.encode_image(np.zeros((2, 2), 'u2')); assert 'numba' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_every_kernel_can_be_compiled_ahead() -> None:
    script = (
        "from tilecast_protocol import pzf, _pzf_kernels as kernels\n"
        "for name, compile in pzf.KERNELS: compile(); assert name\n"
        "counts = lambda: [len(k.signatures) for k in vars(kernels).values() if hasattr(k, 'signatures')]\n"
        "before = counts(); assert sum(before) >= 4, before\n"
        "import numpy as np\n"
        "for dtype in ('u1', 'u2', 'f4'):\n"
        "    image = np.arange(64).reshape(8, 8).astype(dtype)\n"
        "    pzf.decode_image(pzf.encode_image(image)); pzf.encode_images(image[None])\n"
        "    pzf.loads(pzf.dumps(image, compression=2))\n"
        "assert counts() == before, (before, counts())"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("seed", range(2))
def test_codes_that_fill_the_accumulator_to_the_last_bit(seed: int) -> None:
    """Rare bytes lie together, so that six of their codes have 57 bits now and then, while seven others wait.

    Found by a tile of a real scan: the accumulator was then full, and the bits in it were written twice.
    """
    rng = np.random.default_rng(seed)
    image = np.zeros((512, 512), "<u2")
    image[460:] = rng.integers(0, 40_000, (52, 512))
    assert np.array_equal(pzf.decode_image(pzf.encode_image(image)), image)
