"""Our PZF codec and the C library of PYME: the same bytes, and each reads what the other wrote.

Only streams that a correct encoder wrote are given to the C library's decoder here; others would crash this process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tilecast_protocol import pzf
from tilecast_protocol.errors import PZFError

pymecompress = pytest.importorskip("pymecompress", reason="the reference codec is not installed (group interop)")
pytestmark = pytest.mark.interop

HUFFMAN = pzf.DATA_COMP_HUFFCODE


def frames() -> list[npt.NDArray[Any]]:
    rng = np.random.default_rng(0)
    made: list[npt.NDArray[Any]] = [
        rng.poisson(mean, (rows, columns)).astype(dtype)
        for mean in (0, 0.01, 2, 30, 200)
        for dtype in ("u1", "u2", "f4")
        for rows, columns in ((32, 64), (113, 97))
    ]
    made += [rng.poisson(mean, (256, 200)).astype("u2") for mean in (2000, 30000)]
    made += [rng.integers(0, top, (64, 64)).astype("u2") for top in (3, 257, 4096, 65536)]
    made += [np.asfortranarray(made[4]), made[4][::2, ::-1], rng.poisson(9, (9, 30, 7)).astype("u2")]
    return made


def long_codes(n_symbols: int) -> npt.NDArray[np.uint8]:
    """A frame whose rarest bytes have codes of n_symbols - 1 bits."""
    counts = [1, 1]
    while len(counts) < n_symbols:
        counts.append(counts[-1] + counts[-2])
    data = np.random.default_rng(1).permutation(np.repeat(np.arange(n_symbols, dtype=np.uint8), counts))
    return data[: data.size // 4 * 4].reshape(4, -1)


@pytest.mark.parametrize("pixels", frames(), ids=lambda pixels: f"{pixels.dtype.str}-{pixels.shape}")
def test_both_write_the_same_bytes_and_read_each_other(pixels: npt.NDArray[Any]) -> None:
    ours = pzf.dumps(pixels, compression=HUFFMAN)
    theirs = pzf.dumps(pixels, compression=HUFFMAN, engine="pymecompress")
    assert ours == theirs
    stream = np.frombuffer(ours, np.uint8)[64:].copy()
    memory = pixels if pixels.flags.forc else np.ascontiguousarray(pixels)
    assert pymecompress.HuffmanCompress(memory).tobytes() == stream.tobytes()
    assert pymecompress.HuffmanDecompress(stream, pixels.nbytes).tobytes() == memory.tobytes("A")
    assert np.array_equal(pzf.loads(theirs)[0].reshape(pixels.shape, order="A"), pixels)


def test_the_batch_writes_what_the_c_library_writes() -> None:
    stack = np.random.default_rng(2).poisson(2000, (5, 64, 64)).astype("u2")
    assert [record[64:] for record in pzf.encode_images(stack)] == [
        pymecompress.HuffmanCompress(image).tobytes() for image in stack
    ]


def test_the_c_library_reads_what_is_written_with_a_shared_code() -> None:
    rng = np.random.default_rng(2)
    stack = np.concatenate([rng.poisson(mean, (3, 192, 192)) for mean in (200, 2000)]).astype("u2")
    for image, record in zip(stack, pzf.encode_images(stack), strict=True):
        stream = np.frombuffer(record, np.uint8)[64:].copy()
        assert stream.tobytes() != pymecompress.HuffmanCompress(image).tobytes()
        assert pymecompress.HuffmanDecompress(stream, image.nbytes).tobytes() == image.tobytes()


@pytest.mark.parametrize("n_symbols", [26, 27, 30, 33])
def test_the_c_library_reads_our_codes_of_more_than_25_bits(n_symbols: int) -> None:
    pixels = long_codes(n_symbols)
    stream = np.frombuffer(pzf.dumps(pixels, compression=HUFFMAN), np.uint8)[64:].copy()
    assert pymecompress.HuffmanDecompress(stream, pixels.nbytes).tobytes() == pixels.tobytes()


def test_what_the_c_library_corrupts_is_noticed() -> None:
    fine, corrupted = long_codes(26), long_codes(30)
    assert pzf.dumps(fine, compression=HUFFMAN, engine="pymecompress") == pzf.dumps(fine, compression=HUFFMAN)
    # What the test is about: the library does write other bytes here, and says nothing.
    assert pymecompress.HuffmanCompress(corrupted).tobytes() != pzf.dumps(corrupted, compression=HUFFMAN)[64:]
    with pytest.raises(PZFError, match="engine='tilecast'"):
        pzf.dumps(corrupted, compression=HUFFMAN, engine="pymecompress")


def test_a_wrong_stream_of_the_right_length_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(5).poisson(40, (64, 64)).astype("u1")
    compress = pymecompress.HuffmanCompress
    # Backwards, the bytes have the same code, so the stream is as long, and decodes without an error.
    monkeypatch.setattr(pymecompress, "HuffmanCompress", lambda data: compress(data[::-1].copy()))
    with pytest.raises(PZFError, match="engine='tilecast'"):
        pzf.dumps(pixels, compression=HUFFMAN, engine="pymecompress")


@pytest.mark.parametrize("n_bytes", [1, 2, 255, 257, 280, 299, 511, 512, 513])
def test_sizes_at_which_the_c_library_writes_behind_its_buffer_are_safe(n_bytes: int) -> None:
    pixels = np.random.default_rng(n_bytes).permutation(np.arange(n_bytes) % 256).astype("u1").reshape(1, -1)
    record = pzf.dumps(pixels, compression=HUFFMAN, engine="pymecompress")
    assert record == pzf.dumps(pixels, compression=HUFFMAN)


def test_quantized_frames_and_chunks_by_the_c_library(capfd: pytest.CaptureFixture[str]) -> None:
    # Unaligned, so that its own quantizer would crash; ours feeds it levels instead, and nothing is printed.
    pixels = np.random.default_rng(3).poisson(900, (64, 65)).astype("u2")
    unaligned = np.frombuffer(b"?" + pixels.tobytes(), np.uint8)[1:].view("<u2").reshape(pixels.shape)
    for compression in (HUFFMAN, pzf.DATA_COMP_HUFFCODE_CHUNKS):
        arguments = (0, 0, 0, compression, pzf.DATA_QUANT_SQRT, 100, 0.5)
        assert pzf.dumps(unaligned, *arguments, engine="pymecompress") == pzf.dumps(pixels, *arguments)
    assert capfd.readouterr().out == ""


def test_our_reader_takes_what_the_quantizing_c_encoder_wrote(capfd: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(4).poisson(900, (64, 64)).astype("u2")
    header = pzf.dumps(pixels, 0, 0, 0, HUFFMAN, pzf.DATA_QUANT_SQRT, 100, 0.5)[:64]
    decoded = pzf.decode_image(header + pymecompress.HuffmanCompressQuant(pixels, 100, 0.5).tobytes())
    # It cuts, or rounds, depending on the processor: one level is (2 · sqrt(900 - 100) + 0.5) · 0.5, about 30.
    assert np.abs(decoded.astype(int) - pixels).max() < 45
    capfd.readouterr()
