"""Messages of Dectris's stream 2: one CBOR map each, for the start of a series, its images, and its end.

Pixels are typed arrays (RFC 8746) in multi-dimensional ones, compressed by tag 56500 or not. cbor2 leaves these tags
alone; sizes are compared with what `dims` say before anything is decompressed.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, Final

import cbor2
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from .pixels import StreamError, frame_nbytes, number, whole, wire_pixels
from .series import SeriesEnd, SeriesImage, SeriesMessage, SeriesStart

_MULTI_DIM: Final = 40
_COLUMN_MAJOR: Final = 1040
_COMPRESSED: Final = 56500
_DTYPES: Final = {
    **{64: "|u1", 65: ">u2", 66: ">u4", 68: "|u1", 69: "<u2", 70: "<u4"},
    **{72: "|i1", 73: ">i2", 74: ">i4", 77: "<i2", 78: "<i4"},
    **{80: ">f2", 81: ">f4", 82: ">f8", 84: "<f2", 85: "<f4", 86: "<f8"},
}
_MAX_EDGE: Final = 2**20
_MAX_CHANNELS: Final = 64
_DEFAULT_BLOCK_BYTES: Final = 8192


def parse(
    parts: Sequence[bytes | memoryview],
    *,
    position_keys: Sequence[str] = (),
    unit_um: float = 1.0,
    max_frame_bytes: int = 256 * 1024 * 1024,
) -> SeriesMessage:
    """Read one message.

    Parameters
    ----------
    parts : sequence of bytes
        One part.
    position_keys : sequence of str
        Keys in the images' `user_data` of x, y (and z); none: images carry no position.
    unit_um : float
        How many µm one unit of them is.
    max_frame_bytes : int
        Of the message, and of each channel's image.

    Raises
    ------
    StreamError
        It is not such a message, or one that cannot be taken; says why, and what to do.
    """
    if len(parts) != 1:
        raise StreamError(
            f"a message of stream 2 has one part; got {len(parts)}. Is the detector set to the legacy stream? Set its "
            'stream parameter format to "cbor"'
        )
    raw = bytes(parts[0])
    if len(raw) > max_frame_bytes:
        raise StreamError(f"the message has {len(raw)} bytes; at most {max_frame_bytes} are taken")
    try:
        message = cbor2.loads(raw, max_depth=32, allow_duplicate_keys=False, strict_hashable_types=True)
    except Exception as error:  # a decoder of others, and bytes of anybody
        raise StreamError(f"the message is not CBOR: {str(error)[:100]}") from error
    if not isinstance(message, dict):
        raise StreamError(f"the message must be a CBOR map; got {type(message).__name__}")
    kind = message.get("type")
    series_id = whole(message.get("series_id"), "series_id")
    unique = message.get("series_unique_id", "")
    series = f"{series_id} {unique}".strip() if isinstance(unique, str) else str(series_id)
    if kind == "start":
        return _start(message, series, series_id)
    if kind == "image":
        return _image(message, series, series_id, position_keys, unit_um, max_frame_bytes)
    if kind == "end":
        return SeriesEnd(series, series_id)
    raise StreamError(f"type must be start, image or end; got {kind!r:.80}")


def _start(message: Mapping[str, Any], series: str, series_id: int) -> SeriesStart:
    channels = message.get("channels", [])
    if not isinstance(channels, list) or not all(isinstance(name, str) for name in channels):
        raise StreamError(f"channels must be a list of names; got {channels!r:.80}")
    if len(channels) > _MAX_CHANNELS:
        raise StreamError(f"at most {_MAX_CHANNELS} channels are taken; got {len(channels)}")
    n_images = message.get("number_of_images")
    sizes_m = [message.get(f"pixel_size_{axis}") for axis in "xy"]
    px_um = None
    if None not in sizes_m:
        x_um, y_um = (number(size, "pixel_size") * 1e6 for size in sizes_m)
        px_um = (x_um, y_um) if x_um > 0 and y_um > 0 else None
    kept = ("detector_description", "detector_serial_number", "count_time", "frame_time", "saturation_value")
    user = {key: message[key] for key in kept if isinstance(message.get(key), (str, int, float))}
    return SeriesStart(
        series,
        series_id,
        None if n_images is None else whole(n_images, "number_of_images", maximum=2**48),
        px_um,
        tuple(name[:100] for name in channels),
        {key: value[:200] if isinstance(value, str) else value for key, value in user.items()},
    )


def _image(
    message: Mapping[str, Any],
    series: str,
    series_id: int,
    position_keys: Sequence[str],
    unit_um: float,
    max_frame_bytes: int,
) -> SeriesImage:
    data = message.get("data")
    if not isinstance(data, dict) or not 0 < len(data) <= _MAX_CHANNELS:
        raise StreamError(
            f"data must be a map of 1 to {_MAX_CHANNELS} channels; got {type(data).__name__}. Detectors older than "
            "release 2022.1 send another form: update theirs"
        )
    channels: dict[str, NDArray[Any]] = {}
    exact = True
    for name, item in data.items():
        if not isinstance(name, str):
            raise StreamError(f"names of channels must be text; got {name!r:.80}")
        array = _multi_dim(item, max_frame_bytes)
        no_data = int(np.iinfo(array.dtype).max) if array.dtype.kind == "u" else None
        channels[name[:100]], one_exact = wire_pixels(array, no_data)
        exact &= one_exact
    image_id = whole(message.get("image_id"), "image_id", maximum=2**53)
    t0_ns, t1_ns = _exposure_ns(message)
    pos_um = _position_um(message.get("user_data"), position_keys, unit_um)
    return SeriesImage(series, series_id, image_id, channels, exact, pos_um, t0_ns, t1_ns)


def _multi_dim(item: Any, max_frame_bytes: int) -> NDArray[Any]:
    """A two-dimensional typed array, tag 40."""
    if not isinstance(item, cbor2.CBORTag) or item.tag != _MULTI_DIM:
        what = f"tag {item.tag}" if isinstance(item, cbor2.CBORTag) else type(item).__name__
        more = " (column-major arrays are not taken)" if what == f"tag {_COLUMN_MAJOR}" else ""
        raise StreamError(f"an image must be a multi-dimensional array, tag {_MULTI_DIM}; got {what}{more}")
    if not isinstance(item.value, (list, tuple)) or len(item.value) != 2:
        raise StreamError("a multi-dimensional array has its dimensions and its contents")
    dims, contents = item.value
    if not isinstance(dims, (list, tuple)) or len(dims) != 2:
        raise StreamError(f"an image must have two dimensions; got {dims!r:.80}")
    shape = tuple(whole(size, "a dimension", 1, _MAX_EDGE) for size in dims)
    if not isinstance(contents, cbor2.CBORTag) or contents.tag not in _DTYPES:
        what = f"tag {contents.tag}" if isinstance(contents, cbor2.CBORTag) else type(contents).__name__
        raise StreamError(f"pixels must be a typed array of RFC 8746 with 8 to 32 bits, or double; got {what}")
    dtype = np.dtype(_DTYPES[contents.tag])
    nbytes = frame_nbytes(shape, dtype, max_frame_bytes)
    raw = contents.value
    if isinstance(raw, cbor2.CBORTag) and raw.tag == _COMPRESSED:
        raw = decompress(raw.value, nbytes, dtype.itemsize)
    if not isinstance(raw, (bytes, memoryview)) or len(raw) != nbytes:
        got = f"{len(raw)} bytes" if isinstance(raw, (bytes, memoryview)) else type(raw).__name__
        raise StreamError(f"{shape[0]} rows of {shape[1]} {dtype.name} are {nbytes} bytes; got {got}")
    return np.frombuffer(raw, dtype).reshape(shape)


def decompress(item: Any, nbytes: int, itemsize: int) -> bytes:
    """The bytes that tag 56500 stands for: `[algorithm, element size, bytes]`, in the framing of HDF5's filters.

    Parameters
    ----------
    item : list
        The tag's content.
    nbytes : int
        How many it must be.
    itemsize : int
        Bytes of a pixel.

    Raises
    ------
    StreamError
        They are not, or it is damaged, or another algorithm.
    """
    if not isinstance(item, (list, tuple)) or len(item) != 3 or not isinstance(item[2], bytes):
        raise StreamError("compressed bytes (tag 56500) are an algorithm, an element size and a byte string")
    algorithm, element, raw = item
    if algorithm not in ("lz4", "bslz4"):
        raise StreamError(f"compression must be lz4, bslz4 or none; got {algorithm!r:.40}")
    if algorithm == "bslz4" and element != itemsize:
        raise StreamError(f"bslz4 must have the element size of the pixels, {itemsize}; got {element!r:.40}")
    if len(raw) < 12:
        raise StreamError("the compressed bytes are cut off")
    total = int.from_bytes(raw[:8], "big")
    if total != nbytes:
        raise StreamError(f"the image has {nbytes} bytes; the compressed bytes announce {total}")
    block = int.from_bytes(raw[8:12], "big")
    if algorithm == "lz4":
        return _blocks(raw, nbytes, min(block, nbytes), 0)
    unit = 8 * itemsize  # bits are shuffled among eight elements
    block = block or max(_DEFAULT_BLOCK_BYTES // unit, 16) * unit
    if block % unit:
        raise StreamError(f"blocks of bslz4 must be multiples of {unit} bytes; got {block}")
    return _blocks(raw, nbytes, min(block, nbytes - nbytes % unit), itemsize)


def _blocks(raw: bytes, nbytes: int, block: int, itemsize: int) -> bytes:
    """Block by block: its compressed size (4 bytes), then itself; with `itemsize`, bit-shuffled, the rest plain."""
    unit = 8 * itemsize or 1
    result = bytearray()
    position = 12
    while (left := nbytes - len(result)) >= unit and left:
        if not block:
            raise StreamError("the compressed bytes have blocks of no size")
        size = min(block, left - left % unit)
        stored = int.from_bytes(raw[position : position + 4], "big")
        piece = raw[position + 4 : position + 4 + stored]
        if not stored or len(piece) != stored:
            raise StreamError("the compressed bytes are cut off")
        position += 4 + stored
        try:
            plain = piece if not itemsize and stored == size else bytes(imagecodecs.lz4_decode(piece, out=size))
            if itemsize:
                plain = bytes(imagecodecs.bitshuffle_decode(plain, itemsize=itemsize, blocksize=size // itemsize))
        except Exception as error:  # a decoder of others, and bytes of anybody
            raise StreamError(f"the compressed bytes are damaged: {str(error)[:100]}") from error
        if len(plain) != size:
            raise StreamError(f"a block should have {size} bytes; it has {len(plain)}")
        result += plain
    result += raw[position : position + nbytes - len(result)]  # fewer than eight elements are not shuffled
    return bytes(result)


def _position_um(user_data: Any, keys: Sequence[str], unit_um: float) -> tuple[float, ...] | None:
    if not keys:
        return None
    if not isinstance(user_data, dict):
        raise StreamError(
            f"user_data of the image must be a map with {', '.join(keys)}; got {type(user_data).__name__}. Set the "
            "detector's stream parameter image_appendix, or take positions from a stage stream"
        )
    missing = [key for key in keys if user_data.get(key) is None]
    if missing:
        raise StreamError(f"user_data of the image has no {', '.join(missing)}; it has {sorted(map(str, user_data))}")
    return tuple(number(user_data[key], f"user_data.{key}") * unit_um for key in keys)


def _exposure_ns(message: Mapping[str, Any]) -> tuple[int | None, int | None]:
    date = message.get("series_date")
    if not isinstance(date, datetime.datetime) or date.tzinfo is None:
        return None, None
    times = [_seconds(message.get(key), key) for key in ("start_time", "stop_time")]
    if times[0] is None or times[1] is None or times[1] < times[0]:
        return None, None
    begin_ns = round(date.timestamp() * 1e6) * 1000
    return begin_ns + round(times[0] * 1e9), begin_ns + round(times[1] * 1e9)


def _seconds(value: Any, what: str) -> float | None:
    """A rational: numerator and denominator."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise StreamError(f"{what} must be a numerator and a denominator; got {value!r:.80}")
    seconds = whole(value[0], what) / whole(value[1], what, 1)
    return seconds if seconds < 2**32 else None
