"""Messages of stream 2: what is read, what is refused and with what words, and that no bytes do harm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.streams import detectors
from tilecast_plugins.streams.pixels import StreamError

cbor2 = pytest.importorskip("cbor2", reason="uv sync --group microscopes")
pytest.importorskip("imagecodecs", reason="uv sync --group microscopes")
pytest.importorskip("hdf5plugin", reason="uv sync --group microscopes")

from tilecast_plugins.streams.dectris import SeriesEnd, SeriesImage, SeriesStart, decompress, parse  # noqa: E402


def image(dims: Any = (2, 3), tag: int = 69, raw: Any = bytes(12), **changes: Any) -> list[bytes]:
    data = {"a": cbor2.CBORTag(40, [list(dims), cbor2.CBORTag(tag, raw)])}
    header = {"type": "image", "series_id": 1, "image_id": 0, "data": data} | changes
    return [cbor2.dumps({key: value for key, value in header.items() if value is not ...})]


def test_a_series_is_read() -> None:
    start, first, end = (parse(parts, position_keys=("x", "y")) for parts in detectors.series_messages([4]))
    assert isinstance(start, SeriesStart)
    assert (start.n_images, start.channels, start.px_um) == (9, ("threshold_1",), (75.0, 75.0))
    assert isinstance(first, SeriesImage)
    np.testing.assert_array_equal(first.channels["threshold_1"], detectors.frame(4))
    assert (first.image_id, first.pos_um) == (4, detectors.centre_um(4))
    assert first.t0_ns == 1_767_323_047_000_000_000
    assert first.t1_ns == first.t0_ns + 250_000_000
    assert isinstance(end, SeriesEnd)
    assert start.series == first.series == end.series


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4"])
@pytest.mark.parametrize("shape", [(64, 96), (33, 35), (2, 3), (257, 259)])
@pytest.mark.parametrize("algorithm", ["lz4", "bslz4"])
@pytest.mark.parametrize("block", [0, 64])
def test_compression_is_that_of_the_filters_of_hdf5(
    dtype: str, shape: tuple[int, int], algorithm: str, block: int
) -> None:
    import io

    h5py = pytest.importorskip("h5py")
    hdf5plugin = pytest.importorskip("hdf5plugin")
    pixels = np.random.default_rng(1).poisson(3, shape).astype(dtype)
    filters = hdf5plugin.LZ4(block * 10) if algorithm == "lz4" else hdf5plugin.Bitshuffle(block, cname="lz4")
    with h5py.File(io.BytesIO(), "w") as file:
        dataset = file.create_dataset("a", data=pixels, chunks=shape, **filters)
        raw = bytes(dataset.id.read_direct_chunk((0, 0))[1])
    assert decompress([algorithm, pixels.itemsize, raw], pixels.nbytes, pixels.itemsize) == pixels.tobytes()


def test_a_compressed_series_is_read() -> None:
    pytest.importorskip("hdf5plugin")
    found = parse(detectors.series_messages([0], compressed=True)[1])
    assert isinstance(found, SeriesImage)
    np.testing.assert_array_equal(found.channels["threshold_1"], detectors.frame(0))


def test_pixels_of_32_bits_become_floats_and_those_without_a_value_are_not_covered() -> None:
    values = np.array([[0, 5, 2**32 - 1], [7, 8, 9]], "<u4")
    found = parse(image(tag=70, raw=values.tobytes()))
    assert isinstance(found, SeriesImage)
    np.testing.assert_array_equal(found.channels["a"], np.array([[0, 5, np.nan], [7, 8, 9]], "<f4"))
    assert found.exact


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([b"", b""], "legacy stream"),
        ([b"\xff"], "not CBOR"),
        ([b"\x81" * 5000], "not CBOR"),
        ([cbor2.dumps([1])], "CBOR map"),
        (image(type="picture"), "start, image or end"),
        (image(series_id=...), "series_id must be"),
        (image(image_id=-1), "image_id must be"),
        (image(data={}), "1 to 64 channels"),
        (image(data={"a": [1]}), "tag 40; got list"),
        (image(data={"a": cbor2.CBORTag(1040, [[2, 3], b""])}), "column-major"),
        (image(dims=(2, 3, 4)), "two dimensions"),
        (image(dims=(2**20, 2**20)), "at most"),
        (image(dims=(2, 0)), "a dimension must be"),
        (image(tag=71), "typed array of RFC 8746"),
        (image(raw=bytes(11)), "are 12 bytes; got 11 bytes"),
        (image(raw=cbor2.CBORTag(56500, ["zstd", 0, b""])), "lz4, bslz4 or none"),
        (image(raw=cbor2.CBORTag(56500, ["bslz4", 4, bytes(20)])), "element size"),
        (image(raw=cbor2.CBORTag(56500, ["lz4", 0, (2**40).to_bytes(8, "big") + bytes(9)])), "announce 1099511627776"),
        (image(raw=cbor2.CBORTag(56500, ["lz4", 0, b""])), "cut off"),
        (image(start_time=[1, 0], stop_time=[1, 1], series_date=cbor2.CBORTag(0, "x")), "not CBOR"),
    ],
)
def test_what_is_wrong_is_named(parts: list[bytes], words: str) -> None:
    with pytest.raises(StreamError, match=words):
        parse(parts)


def test_a_missing_position_is_named() -> None:
    with pytest.raises(StreamError, match="image_appendix"):
        parse(image(), position_keys=("x", "y"))
    with pytest.raises(StreamError, match="has no y; it has"):
        parse(image(user_data={"x": 1}), position_keys=("x", "y"))


def harmless(parts: list[bytes]) -> None:
    """Either it is read, or it is a StreamError."""
    try:
        found: object = parse(parts, position_keys=("x", "y"), max_frame_bytes=1 << 20)
    except StreamError as error:
        found = str(error)
    assert isinstance(found, SeriesStart | SeriesImage | SeriesEnd) or 10 < len(str(found)) < 1000


@given(st.binary(max_size=300))
def test_any_bytes_do_no_harm(raw: bytes) -> None:
    harmless([raw])


@given(st.data())
def test_damaged_messages_do_no_harm(data: st.DataObject) -> None:
    compressed = data.draw(st.booleans())
    damaged = bytearray(data.draw(st.sampled_from(_SERIES[compressed]))[0])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, min(len(damaged) - 1, 700)))
        damaged[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4)) or b"0"
    harmless([bytes(damaged)])


_SERIES = [detectors.series_messages([0]), detectors.series_messages([0], compressed=True)]
