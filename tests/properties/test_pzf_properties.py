"""What holds for every frame, and for every string of bytes, that the PZF codec is given."""

from __future__ import annotations

import contextlib
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reference import pzf_reference
from tilecast_protocol import pzf
from tilecast_protocol.errors import PZFError

HUFFMAN = pzf.DATA_COMP_HUFFCODE

compressions = st.sampled_from([pzf.DATA_COMP_RAW, pzf.DATA_COMP_HUFFCODE, pzf.DATA_COMP_HUFFCODE_CHUNKS])
dtypes = st.sampled_from(["|u1", "<u2", "<f4", ">u2", ">f4"]).map(np.dtype)


@st.composite
def frames(draw: st.DrawFn, min_dims: int = 2, max_dims: int = 3) -> npt.NDArray[Any]:
    """Frames of any bits, in any order in memory, some with steps between their pixels."""
    dtype = draw(dtypes)
    shape = draw(hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=0, max_side=24))
    few = draw(hnp.arrays(np.uint8, draw(st.integers(1, 40))))
    seed = draw(st.integers(0, 2**32 - 1))
    size = int(np.prod(shape)) * dtype.itemsize
    pixels = np.random.default_rng(seed).choice(few, size).view(dtype).reshape(shape)
    match draw(st.sampled_from(["C", "F", "steps", "backwards"])):
        case "F":
            pixels = np.asfortranarray(pixels)
        case "steps":
            pixels = pixels[::2, ::3]
        case "backwards":
            pixels = pixels[::-1, ::-1]
    return pixels


def little(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))


@given(
    frames(),
    compressions,
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
)
def test_what_is_written_is_read(
    pixels: npt.NDArray[Any], compression: int, sequence_id: int, frame_num: int, timestamp: int
) -> None:
    record = pzf.dumps(pixels, sequence_id, frame_num, timestamp, compression)
    decoded, header = pzf.loads(record)
    assert decoded.shape == (*pixels.shape, 1)[:3]
    assert decoded.dtype == pixels.dtype.newbyteorder("<")
    assert np.ascontiguousarray(decoded).tobytes() == little(pixels).tobytes()
    assert int(header["SequenceID"]) == sequence_id
    assert int(header["FrameNum"]) == frame_num
    assert int(header["FrameTimestamp"]) == timestamp
    # Written again it is the same; but for DimOrder, which of a single row may be either.
    again = pzf.dumps(decoded, sequence_id, frame_num, timestamp, compression)
    assert again[:6] + again[7:] == record[:6] + record[7:]


@given(frames(max_dims=2))
def test_an_image_comes_back_in_no_more_than_its_own_bytes(pixels: npt.NDArray[Any]) -> None:
    record = pzf.encode_image(pixels)
    assert len(record) <= 64 + pixels.nbytes
    decoded = pzf.decode_image(record, shape=pixels.shape, dtype=pixels.dtype.newbyteorder("<"))
    assert decoded.tobytes() == little(pixels).tobytes()


@given(frames(min_dims=3))
def test_a_stack_is_its_images(stack: npt.NDArray[Any]) -> None:
    assert pzf.encode_images(stack) == [bytes(pzf.encode_image(image)) for image in stack]


@given(st.binary(min_size=1, max_size=600))
@example(b"\x00\x01" * 300 + bytes(range(256)))
def test_streams_are_the_references(data: bytes) -> None:
    stream = pzf.dumps(np.frombuffer(data, np.uint8).reshape(1, -1), compression=HUFFMAN)[64:]
    assert stream == pzf_reference.encode(data)


@given(st.binary(max_size=80), st.integers(0, 700))
@example(b"\x80\x00", 8)
@example(b"\x80\x00\x00", 8)
def test_any_stream_is_decoded_as_the_reference_does_or_refused_as_it_does(stream: bytes, n: int) -> None:
    header = pzf.dumps(np.empty((n, 1), np.uint8), compression=HUFFMAN)[:64]
    try:
        expected = pzf_reference.decode(stream, n) if n else b""
        genuine = n > 0 or not stream
    except ValueError:
        genuine = False
    if genuine:
        assert pzf.decode_image(header + stream).tobytes() == expected
    else:
        with pytest.raises(PZFError):
            pzf.decode_image(header + stream)


@given(frames(), compressions, st.data())
def test_a_damaged_record_is_refused_or_decoded(
    pixels: npt.NDArray[Any], compression: int, data: st.DataObject
) -> None:
    record = bytearray(pzf.dumps(pixels, compression=compression))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(record) - 1))
        record[at] = data.draw(st.integers(0, 255))
    del record[data.draw(st.integers(0, len(record))) :]
    try:
        decoded, header = pzf.loads(record, max_bytes=1 << 20)
    except PZFError:
        return
    assert decoded.shape == tuple(int(header[side]) for side in ("Width", "Height", "Depth"))


@given(st.binary(max_size=300))
@example(b"BD\x03\x01\x01\x00C" + b"\x00" * 57)
def test_any_bytes_are_refused_or_decoded(record: bytes) -> None:
    for read in (pzf.loads, pzf.decode_image, pzf.load_header, pzf.read_header):
        with contextlib.suppress(PZFError):
            read(record)


@given(
    hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)),
    st.floats(-1000, 60000, width=32),
    st.floats(0.0625, 100, width=32),
)
def test_quantization_errs_by_half_a_step_at_most(pixels: npt.NDArray[Any], offset: float, scale: float) -> None:
    record = pzf.dumps(pixels, 0, 0, 0, HUFFMAN, pzf.DATA_QUANT_SQRT, offset, scale)
    decoded = pzf.decode_image(record)
    root = np.sqrt(np.maximum(pixels - np.float64(offset), 0))
    back = np.sqrt(np.maximum(decoded - np.float64(offset), 0))
    # Cutting to integers moves a value down by less than 1, and float32 by a few parts in ten million.
    slack = np.sqrt(back**2 + 1 + 1e-6 * (back**2 + abs(offset))) - back
    held = (root / scale < 255.5) & (pixels > offset) & (decoded < 65535)
    assert (np.abs(back - root) <= scale / 2 + slack + 1e-3)[held].all()
