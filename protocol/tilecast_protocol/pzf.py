"""PZF, the frame format of python-microscopy (PYME): read safely, written fast.

Why it exists: frames travel, are journalled and are stored as PZF. The C library behind PYME's reader checks nothing,
so bytes from a socket must not reach it; this module is the only one that ever sees them. It refuses what is not a
record, before anything is allocated, and decodes the rest without touching memory that is not its own. Its lossless
output is byte for byte what the C library writes, where that is right; but for `encode_images`, which may give many
images one code, for speed.

What it does not know: messages, checksums (a PZF payload carries none; check one around it), files, runs. The bit
stream itself is in `_pzf_kernels`, which is compiled, and loaded with numba at the first use of the codec.

Two ways in. `dumps`, `loads` and `load_header` have PYME's argument names, constants and results: three dimensions,
header as a structured array. `encode_image`, `encode_images` and `decode_image` are for those who move many frames:
two dimensions, Huffman or raw, whichever is shorter, without needless copies. All may be called from any thread, and
let go of the GIL for the long part.

Examples
--------
>>> import numpy as np
>>> frame = np.arange(12, dtype=np.uint16).reshape(3, 4)
>>> record = dumps(frame, frameNum=7, compression=DATA_COMP_HUFFCODE)
>>> pixels, header = loads(record)
>>> pixels.shape, int(header["FrameNum"])
((3, 4, 1), 7)
>>> bool((decode_image(record, shape=(3, 4), dtype="<u2") == frame).all())
True

The record
----------
All integers little-endian, packed; version 3, as written here. Versions 1 and 2 end before `DataOffset`.

======  =====  ================  ==================================================================
offset  type   field             notes
======  =====  ================  ==================================================================
0       2 B    ID                ``BD``
2       u1     Version           3; 1 (always C order) and 2 are read
3       u1     DataFormat        0 = u1, 1 = u2, 2 = f4
4       u1     DataCompression   0 raw, 1 Huffman, 2 Huffman in chunks
5       u1     DataQuantization  0 none, 1 square root
6       1 B    DimOrder          ``C`` or ``F``
7       1 B    reserved
8       i8     SequenceID
16      u4     FrameNum
20      u4     Width             shape[0], the slow axis of a C array
24      u4     Height            shape[1]
28      u4     Depth             shape[2], or 1
32      u8     FrameTimestamp
40      f4     QuantOffset
44      f4     QuantScale
48      u4     DataOffset        from the start of the record; 64 as written
52      12 B   reserved
======  =====  ================  ==================================================================

Chunks (2): u2 number of chunks; for each, u4 length of its stream, u4 number of bytes it decodes to, and a Huffman
stream with its own tree. PYME at present neither writes nor reads them: they are for older files, and for older
readers. Square root: q = round(sqrt(max(x - offset, 0)) / scale), clipped to 0..255, stored as u1, and back
(q·scale)² + offset in float32, cut to the pixel type. Where that lies outside the pixel type, which the C cast leaves
undefined, it is the nearest value inside.

Stricter than PYME's reader, because a stricter reader notices damage: bytes behind the end of the data, versions above
3, a `DimOrder` in lower case and quantization scales that are not positive are refused.
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from .errors import PZFError

__all__ = [
    "DATA_COMP_HUFFCODE",
    "DATA_COMP_HUFFCODE_CHUNKS",
    "DATA_COMP_RAW",
    "DATA_FMT_FLOAT32",
    "DATA_FMT_UINT8",
    "DATA_FMT_UINT16",
    "DATA_QUANT_NONE",
    "DATA_QUANT_SQRT",
    "DEFAULT_MAX_BYTES",
    "KERNELS",
    "RecordHeader",
    "StructuredHeader",
    "decode_image",
    "dumps",
    "encode_image",
    "encode_images",
    "load_header",
    "loads",
    "read_header",
]

DATA_FMT_UINT8: Final = 0
DATA_FMT_UINT16: Final = 1
DATA_FMT_FLOAT32: Final = 2
DATA_COMP_RAW: Final = 0
DATA_COMP_HUFFCODE: Final = 1
DATA_COMP_HUFFCODE_CHUNKS: Final = 2
DATA_QUANT_NONE: Final = 0
DATA_QUANT_SQRT: Final = 1

DEFAULT_MAX_BYTES: Final = 1 << 30
"""The most pixel bytes that a record may decode to, unless the caller says otherwise."""

Readable: TypeAlias = "bytes | bytearray | memoryview | npt.NDArray[np.uint8]"
"""What records are read from; anything else with the buffer protocol (a `zmq.Frame`) does as well."""

Engine: TypeAlias = Literal["tilecast", "pymecompress"]
U8Array: TypeAlias = npt.NDArray[np.uint8]

_ID: Final = b"BD"
_VERSION: Final = 3
_FORMATS: Final = (np.dtype("u1"), np.dtype("<u2"), np.dtype("<f4"))
_BASE: Final = struct.Struct("<2sBBBBcsqIIIIQff")
_HEADER: Final = struct.Struct("<2sBBBBcsqIIIIQffI12s")
_DATA_OFFSET: Final = struct.Struct("<I")
_CHUNK_COUNT: Final = struct.Struct("<H")
_CHUNK: Final = struct.Struct("<II")
_COMPRESSION_AT: Final = 4
#: The decoder reads no bit that says so, but a genuine stream spends at least one bit on each byte.
_MOST_EXPANSION: Final = 8
_CHUNKS_WRITTEN: Final = 2
#: Counters of the encoder and the lengths in a chunk table are 32 bits wide.
_MAX_ENCODED_BYTES: Final = (1 << 32) - 1
#: Memory that the records of a call share at most.
_MAX_SHARED_BYTES: Final = 32 << 20
#: From here on a record is worth a page of memory to make it begin at one.
_LARGE_RECORD_BYTES: Final = 128 << 10

_FIELDS = [
    ("ID", "S2"),
    ("Version", "u1"),
    ("DataFormat", "u1"),
    ("DataCompression", "u1"),
    ("DataQuantization", "u1"),
    ("DimOrder", "S1"),
    ("RESERVED0", "S1"),
    ("SequenceID", "<i8"),
    ("FrameNum", "<u4"),
    ("Width", "<u4"),
    ("Height", "<u4"),
    ("Depth", "<u4"),
    ("FrameTimestamp", "<u8"),
    ("QuantOffset", "<f4"),
    ("QuantScale", "<f4"),
]
_DTYPE_V1: Final = np.dtype(_FIELDS)
_DTYPE_V3: Final = np.dtype([*_FIELDS, ("DataOffset", "<u4"), ("RESERVED1", "S12")])


# ------------------------------------------------------------------------------------------------------------- headers


class StructuredHeader(np.ndarray[tuple[int], np.dtype[np.void]]):
    """A header as PYME gives it: a structured array of one element, with PYME's field names.

    A field is an array of one element too. PYME's users write ``header["Width"][0]``; others will try
    ``int(header["Width"])``, which NumPy no longer allows for such arrays. Here both work.
    """

    def __int__(self) -> int:
        return int(cast("int", self.item()))

    def __index__(self) -> int:
        return int(cast("int", self.item()))

    def __float__(self) -> float:
        return float(cast("float", self.item()))


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordHeader:
    """What a record says about itself, checked.

    Attributes
    ----------
    version : int
        1, 2 or 3.
    shape : (int, int, int)
        Width, Height, Depth: shape[0], shape[1], shape[2].
    dtype : numpy.dtype
        uint8, uint16 or float32, little-endian.
    compression, quantization : int
        DATA_COMP_… and DATA_QUANT_….
    order : str
        ``C`` or ``F``: how the pixels follow each other.
    sequence_id, frame_num, timestamp : int
        As the writer gave them; the unit of the timestamp is the writer's.
    quant_offset, quant_scale : float
        Of the square-root quantization, in pixel values.
    data_offset : int
        Where the payload begins, in bytes from the start of the record.
    """

    version: int
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    compression: int
    quantization: int
    order: Literal["C", "F"]
    sequence_id: int
    frame_num: int
    timestamp: int
    quant_offset: float
    quant_scale: float
    data_offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded pixels."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def nbytes_coded(self) -> int:
        """Bytes before compression: one per pixel if they are quantized."""
        return math.prod(self.shape) if self.quantization else self.nbytes


def _as_bytes(buffer: Readable) -> U8Array:
    """The bytes of `buffer`, read-only, without a copy."""
    try:
        view = memoryview(cast("bytes", buffer)).cast("B")
    except TypeError as error:
        raise PZFError(f"a PZF record is bytes, or a contiguous buffer of them; {error}") from error
    data = np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)
    data.flags.writeable = False
    return data


def read_header(buffer: Readable) -> RecordHeader:
    """Read and check the header of a record; the payload may be missing.

    Parameters
    ----------
    buffer : bytes-like
        A record, or at least its header (48 bytes for versions 1 and 2, 64 for version 3).

    Returns
    -------
    RecordHeader

    Raises
    ------
    PZFError
        If it is no PZF header, or asks for something that PZF does not define.
    """
    return _parse_header(_as_bytes(buffer))


def _parse_header(data: U8Array) -> RecordHeader:
    if data.size < _BASE.size:
        raise PZFError(f"a PZF record begins with a header of 48 or 64 bytes; {data.size} bytes came")
    (
        magic, version, data_format, compression, quantization, dim_order, _,
        sequence_id, frame_num, width, height, depth, timestamp, quant_offset, quant_scale,
    ) = _BASE.unpack_from(data.data)  # fmt: skip
    if magic != _ID:
        raise PZFError(f"a PZF record begins with the bytes {_ID!r}; {magic!r} came, so this is something else")
    if not 1 <= version <= _VERSION:
        raise PZFError(
            f"PZF version {version} is not known (1 to {_VERSION} are); is the writer newer than this reader?"
        )
    if data_format >= len(_FORMATS):
        raise PZFError(f"DataFormat {data_format} is not defined; PZF has 0 (u1), 1 (u2) and 2 (f4)")
    if compression > DATA_COMP_HUFFCODE_CHUNKS:
        raise PZFError(f"DataCompression {compression} is not defined; PZF has 0 (raw), 1 (Huffman) and 2 (chunks)")
    if quantization > DATA_QUANT_SQRT:
        raise PZFError(f"DataQuantization {quantization} is not defined; PZF has 0 (none) and 1 (square root)")
    if version == 1:
        dim_order = b"C"
    elif dim_order not in (b"C", b"F"):
        raise PZFError(f"DimOrder {dim_order!r} is not defined; PZF has b'C' and b'F'")
    if quantization and not (math.isfinite(quant_offset) and math.isfinite(quant_scale) and quant_scale > 0):
        raise PZFError(
            f"quantized with offset {quant_offset} and scale {quant_scale}; both must be finite, and the scale positive"
        )
    data_offset = _BASE.size
    if version >= 3:
        if data.size < _HEADER.size:
            raise PZFError(f"the header of PZF version 3 has {_HEADER.size} bytes; {data.size} came")
        (data_offset,) = _DATA_OFFSET.unpack_from(data.data, _BASE.size)
        if data_offset < _HEADER.size:
            raise PZFError(f"DataOffset {data_offset} points into the header of {_HEADER.size} bytes")
    return RecordHeader(
        version=version,
        shape=(width, height, depth),
        dtype=_FORMATS[data_format],
        compression=compression,
        quantization=quantization,
        order="F" if dim_order == b"F" else "C",
        sequence_id=sequence_id,
        frame_num=frame_num,
        timestamp=timestamp,
        quant_offset=quant_offset,
        quant_scale=quant_scale,
        data_offset=data_offset,
    )


def load_header(datastring: Readable) -> StructuredHeader:
    """Read the header of a record, as PYME does.

    Parameters
    ----------
    datastring : bytes-like
        A record, or at least its header.

    Returns
    -------
    StructuredHeader
        One element, with the fields `ID`, `Version`, `DataFormat`, … of the module's table; without `DataOffset` for
        versions 1 and 2.

    Raises
    ------
    PZFError
        If it is no PZF header, or asks for something that PZF does not define.
    """
    data = _as_bytes(datastring)
    return _structured(data, _parse_header(data).version)


def _structured(data: U8Array, version: int) -> StructuredHeader:
    dtype = _DTYPE_V3 if version >= 3 else _DTYPE_V1
    return np.frombuffer(data, dtype, count=1).copy().view(StructuredHeader)


def _pack_header(
    dtype: np.dtype[Any],
    shape: tuple[int, int, int],
    *,
    sequence_id: int,
    frame_num: int,
    timestamp: int,
    compression: int,
    quantization: int = DATA_QUANT_NONE,
    order: bytes = b"C",
    quant_offset: float = 0.0,
    quant_scale: float = 0.0,
) -> bytes:
    for name, value, low, high in (
        ("sequence ID", sequence_id, -(1 << 63), (1 << 63) - 1),
        ("frame number", frame_num, 0, (1 << 32) - 1),
        ("timestamp", timestamp, 0, (1 << 64) - 1),
        ("longest side", max(shape), 0, (1 << 32) - 1),
    ):
        if not low <= value <= high:
            raise PZFError(f"the {name} of a PZF record lies between {low} and {high}; {value} came")
    return _HEADER.pack(
        _ID, _VERSION, _FORMATS.index(dtype), compression, quantization, order, b"\0",
        sequence_id, frame_num, *shape, timestamp, quant_offset, quant_scale, _HEADER.size, b"",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- scratch


@functools.cache
def _kernels() -> ModuleType:
    """The compiled part, and numba with it, loaded when there is something to code."""
    from . import _pzf_kernels

    return _pzf_kernels


class _Scratch(threading.local):
    """What one thread's encoder writes into, again and again: about 1.5 MiB."""

    def __init__(self) -> None:
        self.pair_counts = np.empty((2, 1 << 16), np.uint32)
        self.joined = np.empty(1 << 16, np.uint64)
        self.shared_joined = np.full(1 << 16, _kernels().NOT_JOINED, np.uint64)
        self.codes = np.empty(256, np.uint64)
        self.tree = np.empty(_kernels().TREE_BYTES, np.uint8)


@functools.cache
def _scratch() -> _Scratch:
    return _Scratch()


# ------------------------------------------------------------------------------------------------------------ encoding


def _pairs(data: U8Array) -> npt.NDArray[np.uint16]:
    """The whole 16-bit words of a flat array of bytes, read-only; none if they are not aligned in memory."""
    words = data[: data.size & ~1].view("<u2")
    return words if words.flags.aligned else words[:0].copy()


def _read_only(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = data.view()
    view.flags.writeable = False
    return view


def _at_page(nbytes: int) -> U8Array:
    """Memory for one record; that of a large one begins at a page boundary."""
    if nbytes < _LARGE_RECORD_BYTES:
        return np.empty(nbytes, np.uint8)
    memory = np.empty(nbytes + mmap.PAGESIZE, np.uint8)
    start = -memory.ctypes.data % mmap.PAGESIZE
    return memory[start : start + nbytes]


def _huffman(data: U8Array, *, before: bytes = b"", unless_nbytes: int | None = None) -> U8Array | None:
    """Encode one stream behind `before`, or return None if it would take `unless_nbytes` or more.

    Parameters
    ----------
    data : uint8, (n,), contiguous
    before : bytes
        Goes in front of the stream.
    unless_nbytes : int, optional
        Length at which the stream is not worth having.
    """
    if data.size > _MAX_ENCODED_BYTES:
        raise PZFError(f"a frame of {data.size} bytes is too large for one record; {_MAX_ENCODED_BYTES} are allowed")
    kernels = _kernels()
    scratch = _scratch()
    flat = _read_only(data)
    pairs = _read_only(_pairs(flat))
    nbytes, tree_bits, by_pairs = kernels.huffman_plan(
        flat, pairs, scratch.pair_counts, scratch.joined, scratch.codes, scratch.tree
    )
    if unless_nbytes is not None and nbytes >= unless_nbytes:
        return None
    start = len(before)
    out = _at_page(start + nbytes + kernels.SLACK_BYTES)
    out[:start] = np.frombuffer(before, np.uint8)
    end = kernels.huffman_emit(
        flat, pairs, scratch.joined, scratch.codes, scratch.tree, tree_bits, by_pairs, out, start
    )
    return out[:end]


def _own_stream(data: U8Array, before: bytes = b"") -> bytes:
    """The stream of `data`, behind `before`."""
    if not data.size:
        return before
    stream = _huffman(data, before=before)
    assert stream is not None  # without a limit there is always a stream
    return stream.tobytes()


#: Below this the C library's output buffer, of 1.01 n + 320 bytes, can be a byte too short.
_PYMECOMPRESS_FROM_NBYTES: Final = 512
#: It counts in C ints.
_PYMECOMPRESS_MAX_NBYTES: Final = 1 << 30


def _pymecompress_stream(data: U8Array, before: bytes = b"") -> bytes:
    """The same by the C library, decoded with our own to see that the bytes come back."""
    try:
        from pymecompress import HuffmanCompress
    except ImportError as error:
        raise PZFError(
            "engine='pymecompress' needs the package pymecompress, which is not installed; the engine 'tilecast' "
            "writes the same bytes"
        ) from error
    if data.size < _PYMECOMPRESS_FROM_NBYTES:
        return _own_stream(data, before)
    if data.size > _PYMECOMPRESS_MAX_NBYTES:
        raise PZFError(f"pymecompress takes {_PYMECOMPRESS_MAX_NBYTES} bytes at most; {data.size} came")
    stream = _read_only(np.asarray(HuffmanCompress(np.ascontiguousarray(data)), np.uint8))
    decoded = np.empty(data.size, np.uint8)
    try:
        _decode_stream(stream, decoded)
    except PZFError:
        intact = False
    else:
        intact = bool((decoded == data).all())
    if not intact:
        raise PZFError(
            "pymecompress encoded this frame wrongly, as it does when a code gets longer than 25 bits; "
            "use engine='tilecast'"
        )
    return before + stream.tobytes()


def _supported(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`data` in the byte order of PZF; refuses types that PZF does not have."""
    dtype = data.dtype.newbyteorder("<")
    if dtype not in _FORMATS:
        raise PZFError(f"PZF holds uint8, uint16 and float32 pixels; {data.dtype} came: convert, or scale, it first")
    return data.astype(dtype, copy=False)


def _quantize(data: npt.NDArray[Any], offset: float, scale: float) -> U8Array:
    """q = round(sqrt(max(x - offset, 0)) / scale), clipped to 0..255 (PZF, square-root quantization)."""
    if data.dtype == np.float32 and np.isnan(data).any():
        raise PZFError("NaN pixels cannot be quantized; replace them, or use quantization=DATA_QUANT_NONE")

    def quantized(values: npt.NDArray[Any]) -> U8Array:
        root = np.sqrt(np.maximum(values.astype(np.float64) - offset, 0.0)) / scale
        return np.clip(np.rint(root), 0, 255).astype(np.uint8)

    if data.dtype == np.float32:
        return quantized(data)
    table = quantized(np.arange(1 << (8 * data.itemsize)))
    levels: U8Array = table[data]
    return levels


def _dequantization_table(header: RecordHeader) -> npt.NDArray[Any]:
    """The pixel value of each of the 256 levels: (256,), in the record's type."""
    with np.errstate(over="ignore"):
        root = np.arange(256, dtype=np.float32) * np.float32(header.quant_scale)
        values = root * root + np.float32(header.quant_offset)
    if header.dtype == np.float32:
        return values
    # astype cuts towards zero, as the C cast does, which is defined only inside the type.
    return np.clip(values, 0, np.iinfo(header.dtype).max).astype(header.dtype)


def dumps(
    data: npt.ArrayLike,
    sequenceID: int = 0,  # noqa: N803  (PYME's names)
    frameNum: int = 0,  # noqa: N803  (as above)
    frameTimestamp: float = 0,  # noqa: N803  (as above)
    compression: int = DATA_COMP_RAW,
    quantization: int = DATA_QUANT_NONE,
    quantizationOffset: float = 0,  # noqa: N803  (as above)
    quantizationScale: float = 1,  # noqa: N803  (as above)
    *,
    engine: Engine = "tilecast",
) -> bytes:
    """Write a frame as a PZF record, as PYME does.

    Lossless records are byte for byte PYME's, header and payload, where the C library is right.

    Parameters
    ----------
    data : array_like of uint8, uint16 or float32, 2-D or 3-D
        The frame. What is contiguous in Fortran order is stored so, everything else in C order.
    sequenceID, frameNum, frameTimestamp : int
        Kept in the header; int64, uint32 and uint64.
    compression : int
        DATA_COMP_RAW, DATA_COMP_HUFFCODE, or DATA_COMP_HUFFCODE_CHUNKS (two chunks; PYME at present cannot read
        them). What is asked for is written, even where it is longer than the pixels.
    quantization : int
        DATA_QUANT_NONE, or DATA_QUANT_SQRT, which is lossy: one byte per pixel, in steps that grow with the square
        root of the signal, as photon noise does.
    quantizationOffset, quantizationScale : float
        Dark level in pixel values, and step in units of the square root of a pixel value.
    engine : {"tilecast", "pymecompress"}
        Who compresses. The second is the C library, if installed; what it writes is decoded and compared each time.

    Returns
    -------
    bytes

    Raises
    ------
    PZFError
        If the array or a number does not fit into a record, or if pymecompress encoded it wrongly.
    """
    pixels = _supported(np.asarray(data))
    if pixels.ndim not in (2, 3):
        raise PZFError(f"a PZF record holds a frame of 2 or 3 dimensions; the array has {pixels.ndim}")
    shape = (*pixels.shape, 1)[:3]
    if compression not in (DATA_COMP_RAW, DATA_COMP_HUFFCODE, DATA_COMP_HUFFCODE_CHUNKS):
        raise PZFError(
            f"compression is one of DATA_COMP_RAW, _HUFFCODE, _HUFFCODE_CHUNKS (0, 1, 2); {compression} came"
        )
    if quantization not in (DATA_QUANT_NONE, DATA_QUANT_SQRT):
        raise PZFError(f"quantization is DATA_QUANT_NONE or DATA_QUANT_SQRT (0, 1); {quantization} came")
    if engine not in ("tilecast", "pymecompress"):
        raise PZFError(f"engine is 'tilecast' or 'pymecompress'; {engine!r} came")
    try:
        numbers = int(sequenceID), int(frameNum), int(frameTimestamp)
    except (TypeError, ValueError, OverflowError) as error:
        raise PZFError(f"sequenceID, frameNum and frameTimestamp are whole numbers; {error}") from error
    dtype = pixels.dtype
    order = b"F" if pixels.flags.f_contiguous else b"C"
    flat = np.ascontiguousarray(pixels.reshape(-1, order="F" if order == b"F" else "C"))
    offset = scale = 0.0
    if quantization:
        # What the reader will find in the header, so that both sides use the same numbers.
        with np.errstate(over="ignore"):
            offset, scale = float(np.float32(quantizationOffset)), float(np.float32(quantizationScale))
        if not (math.isfinite(offset) and math.isfinite(scale) and scale > 0):
            raise PZFError(
                f"quantization needs a finite offset and a finite, positive scale, as float32; offset "
                f"{quantizationOffset} and scale {quantizationScale} came"
            )
        flat = _quantize(flat, offset, scale)
    header = _pack_header(
        dtype, shape, sequence_id=numbers[0], frame_num=numbers[1], timestamp=numbers[2],
        compression=compression, quantization=quantization, order=order, quant_offset=offset, quant_scale=scale,
    )  # fmt: skip
    raw = flat.view(np.uint8)
    if compression == DATA_COMP_RAW:
        return header + raw.tobytes()
    encode = _own_stream if engine == "tilecast" else _pymecompress_stream
    if compression == DATA_COMP_HUFFCODE:
        return encode(raw, header)
    parts = [header, _CHUNK_COUNT.pack(_CHUNKS_WRITTEN)]
    nbytes = -(-raw.size // _CHUNKS_WRITTEN)
    for n in range(_CHUNKS_WRITTEN):
        chunk = raw[n * nbytes : (n + 1) * nbytes]
        stream = encode(chunk)
        parts += [_CHUNK.pack(len(stream), chunk.size), stream]
    return b"".join(parts)


def encode_image(
    image: npt.NDArray[Any], *, frame_num: int = 0, timestamp: int = 0, sequence_id: int = 0
) -> memoryview:
    """Write one image as a record: Huffman, or raw where that is not shorter; C order, version 3.

    Parameters
    ----------
    image : ndarray of uint8, uint16 or float32, (rows, columns)
        Copied only if it is not C-contiguous.
    frame_num, timestamp, sequence_id : int
        Kept in the header; uint32, uint64, int64.

    Returns
    -------
    memoryview
        The record, read-only; the caller owns it. A large one begins at a page boundary, so that it can be written to
        a file past the page cache from where it lies.

    Raises
    ------
    PZFError
        If the array or a number does not fit into a record.
    """
    if image.ndim != 2:
        raise PZFError(f"an image has 2 dimensions, (rows, columns); the array has {image.ndim}")
    pixels = np.ascontiguousarray(_supported(image))

    def header(compression: int) -> bytes:
        return _pack_header(
            pixels.dtype, (*pixels.shape, 1), sequence_id=sequence_id, frame_num=frame_num, timestamp=timestamp,
            compression=compression,
        )  # fmt: skip

    raw = pixels.reshape(-1).view(np.uint8)
    if raw.size:
        record = _huffman(raw, before=header(DATA_COMP_HUFFCODE), unless_nbytes=raw.size)
        if record is not None:
            return record.data.toreadonly()
    start = np.frombuffer(header(DATA_COMP_RAW), np.uint8)
    record = _at_page(start.size + raw.size)
    record[: start.size] = start
    record[start.size :] = raw
    return record.data.toreadonly()


def encode_images(
    images: npt.NDArray[Any] | Sequence[npt.NDArray[Any]],
    *,
    frame_num: int = 0,
    timestamp: int = 0,
    sequence_id: int = 0,
) -> list[memoryview]:
    """Write images of one shape and type, each as its own record: Huffman, or raw where that is not shorter.

    For many small images, such as tiles: one call into the kernels for all, so the GIL is let go of and taken back
    once, not once per image. To use two cores, give half of the images to each of two threads.

    Images of 32 KiB or more need not get their own Huffman code, as `encode_image` makes it and the C library does:
    one that was made for an earlier image of the call, or from a sample of the image, is used where it makes the
    record no more than about 2 % longer, which takes about half the time. Any reader reads it. The records depend on
    the images of the call and on their order, on nothing else.

    Parameters
    ----------
    images : ndarray of uint8, uint16 or float32, (n, rows, columns), or a sequence of n such, (rows, columns)
        Copied only where they are not C-contiguous. Not to be changed meanwhile.
    frame_num, timestamp, sequence_id : int
        Kept in the header of every record.

    Returns
    -------
    list of memoryview
        n records, read-only; they share their memory, which is freed with the last of them. If they are large, the
        first begins at a page boundary, as that of `encode_image`.

    Raises
    ------
    PZFError
        If the images differ in shape or type, or if they or a number do not fit into a record.
    """
    stack = _as_stack(images)
    if not len(stack):
        return []
    rows, columns = stack[0].shape
    header = _pack_header(
        stack[0].dtype, (rows, columns, 1), sequence_id=sequence_id, frame_num=frame_num, timestamp=timestamp,
        compression=DATA_COMP_RAW,
    )  # fmt: skip
    nbytes = stack[0].nbytes
    if not nbytes:
        return [memoryview(header)] * len(stack)
    if nbytes > _MAX_ENCODED_BYTES:
        raise PZFError(f"an image of {nbytes} bytes is too large for one record; {_MAX_ENCODED_BYTES} are allowed")
    kernels = _kernels()
    scratch = _scratch()
    addresses = _addresses(stack)
    header_bytes = _read_only(np.frombuffer(header, np.uint8))
    # Room for the longest stream that a shared code could give for the last image; what is not written costs nothing.
    spare = (kernels.SHARED_LONGEST_BITS - 8) * nbytes // 8 + kernels.TREE_BYTES + kernels.SLACK_BYTES
    most = max(1, (_MAX_SHARED_BYTES - spare) // (len(header) + nbytes))
    ends = np.empty(most, np.int64)
    records: list[memoryview] = []
    for first in range(0, len(stack), most):
        part = addresses[first : first + most]
        out = _at_page(part.size * (len(header) + nbytes) + spare)
        kernels.encode_records(
            part, nbytes, header_bytes, _COMPRESSION_AT, DATA_COMP_HUFFCODE, out, ends,
            scratch.pair_counts, scratch.joined, scratch.codes, scratch.tree, scratch.shared_joined,
        )  # fmt: skip
        written, begin = _read_only(out).data, 0
        for end in ends[: part.size].tolist():
            records.append(written[begin:end])
            begin = end
    return records


def _as_stack(images: npt.NDArray[Any] | Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any] | list[npt.NDArray[Any]]:
    """Images of one shape and of a type that PZF has, each C-contiguous: as one array, or as a list of them."""
    if isinstance(images, np.ndarray):
        if images.ndim != 3:
            raise PZFError(f"a stack of images has 3 dimensions, (n, rows, columns); the array has {images.ndim}")
        return np.ascontiguousarray(_supported(images))
    for image in images:
        if image.ndim != 2:
            raise PZFError(f"an image has 2 dimensions, (rows, columns); the array has {image.ndim}")
        if image.shape != images[0].shape or image.dtype != images[0].dtype:
            raise PZFError(
                f"images that are encoded together have one shape and type; the first is {images[0].shape} of "
                f"{images[0].dtype.str}, another {image.shape} of {image.dtype.str}"
            )
    return [np.ascontiguousarray(_supported(image)) for image in images]


def _addresses(stack: npt.NDArray[Any] | list[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """Where in memory each image begins, read-only."""
    if isinstance(stack, np.ndarray):
        return _read_only(stack.ctypes.data + np.arange(len(stack)) * stack.strides[0])
    return _read_only(np.array([image.ctypes.data for image in stack], np.int64))


# ------------------------------------------------------------------------------------------------------------ decoding


def _decode_stream(stream: U8Array, out: U8Array) -> None:
    """Decode one Huffman stream into `out`; raises PZFError unless it is exactly what an encoder of `out` writes."""
    if not out.size:
        if stream.size:
            raise PZFError(f"no pixels, but {stream.size} bytes of compressed data")
        return
    if out.size > _MOST_EXPANSION * stream.size:
        raise PZFError(
            f"{stream.size} bytes of compressed data cannot hold the {out.size} bytes that the header claims; "
            "the record is cut short, or not genuine"
        )
    kernels = _kernels()
    status, n_bits = kernels.huffman_decode(stream, out)
    if status == kernels.TREE_CUT:
        raise PZFError("the compressed data end inside the code tree; the record is cut short, or damaged")
    if status == kernels.TREE_TOO_BIG:
        raise PZFError("the code tree has more nodes than 256 symbols need; the record is damaged")
    used = (n_bits + 7) // 8
    if status == kernels.BITS_EXHAUSTED or used > stream.size:
        raise PZFError("the compressed data end before the last pixel; the record is cut short, or damaged")
    if used < stream.size:
        raise PZFError(f"{stream.size - used} bytes follow the compressed data; the record is damaged")


def _decode_chunks(payload: U8Array, out: U8Array) -> None:
    """Decode a chunk table and its streams into `out`."""
    if payload.size < _CHUNK_COUNT.size:
        raise PZFError("chunks begin with their number, two bytes; the record is cut short")
    (n_chunks,) = _CHUNK_COUNT.unpack_from(payload.data)
    at = _CHUNK_COUNT.size
    done = 0
    for n in range(n_chunks):
        if at + _CHUNK.size > payload.size:
            raise PZFError(f"{n_chunks} chunks are announced; the record ends at chunk {n}")
        length, raw_length = _CHUNK.unpack_from(payload.data, at)
        at += _CHUNK.size
        if length > payload.size - at:
            raise PZFError(f"chunk {n} claims {length} bytes; {payload.size - at} are left")
        if raw_length > out.size - done:
            raise PZFError(f"chunk {n} claims to hold {raw_length} bytes; the frame has room for {out.size - done}")
        _decode_stream(payload[at : at + length], out[done : done + raw_length])
        at += length
        done += raw_length
    if done != out.size:
        raise PZFError(f"the chunks hold {done} bytes; the frame has {out.size}")
    if at != payload.size:
        raise PZFError(f"{payload.size - at} bytes follow the last chunk; the record is damaged")


def _decode(data: U8Array, header: RecordHeader, max_bytes: int) -> npt.NDArray[Any]:
    """The pixels of a record: (w, h, d), in the record's order, owned by the caller."""
    if not header.nbytes and max(header.shape) > max_bytes:
        raise PZFError(f"the record claims no pixels in a shape of {' × '.join(map(str, header.shape))}")
    if header.nbytes > max_bytes:
        raise PZFError(
            f"the record claims {' × '.join(map(str, header.shape))} pixels of {header.dtype.str}, {header.nbytes} "
            f"bytes; at most {max_bytes} are allowed here"
        )
    if header.data_offset > data.size:
        raise PZFError(f"DataOffset {header.data_offset} lies behind the end of a record of {data.size} bytes")
    payload = data[header.data_offset :]
    if header.compression == DATA_COMP_RAW:
        if payload.size != header.nbytes_coded:
            raise PZFError(f"uncompressed pixels take {header.nbytes_coded} bytes here; {payload.size} came")
        coded = payload.copy()
    else:
        # Before anything is allocated: what an encoder writes takes a bit per byte at least.
        if header.nbytes_coded > _MOST_EXPANSION * payload.size:
            raise PZFError(
                f"{payload.size} bytes of compressed data cannot hold the {header.nbytes_coded} bytes that the header "
                "claims; the record is cut short, or not genuine"
            )
        coded = np.empty(header.nbytes_coded, np.uint8)
        if header.compression == DATA_COMP_HUFFCODE:
            _decode_stream(payload, coded)
        else:
            _decode_chunks(payload, coded)
    pixels = _dequantization_table(header)[coded] if header.quantization else coded.view(header.dtype)
    return pixels.reshape(header.shape, order=header.order)


def loads(datastring: Readable, *, max_bytes: int = DEFAULT_MAX_BYTES) -> tuple[npt.NDArray[Any], StructuredHeader]:
    """Read a record, as PYME does.

    Parameters
    ----------
    datastring : bytes-like
        One whole record, nothing behind it.
    max_bytes : int
        The most pixel bytes that it may decode to. Memory stays below 1.25 times that.

    Returns
    -------
    data : ndarray of uint8, uint16 or float32, (w, h, d)
        The pixels, always in three dimensions, in the record's memory order; the caller owns them.
    header : StructuredHeader
        As `load_header` gives it.

    Raises
    ------
    PZFError
        If it is not a genuine record, or a larger one.
    """
    data = _as_bytes(datastring)
    header = _parse_header(data)
    return _decode(data, header, max_bytes), _structured(data, header.version)


def decode_image(
    buffer: Readable,
    *,
    shape: tuple[int, int] | None = None,
    dtype: npt.DTypeLike | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> npt.NDArray[Any]:
    """Read a record that holds one image.

    Parameters
    ----------
    buffer : bytes-like
        One whole record, nothing behind it.
    shape : (rows, columns), optional
        What is expected; checked before anything is decoded.
    dtype : dtype, optional
        What is expected; checked before anything is decoded.
    max_bytes : int
        The most pixel bytes that it may decode to.

    Returns
    -------
    ndarray of uint8, uint16 or float32, (rows, columns)
        C-contiguous, writable, owned by the caller.

    Raises
    ------
    PZFError
        If it is not a genuine record, not the one that is expected, or a larger one.
    """
    data = _as_bytes(buffer)
    header = _parse_header(data)
    rows, columns, depth = header.shape
    if depth != 1:
        raise PZFError(f"an image has a depth of 1; the record has {depth}")
    if shape is not None and (rows, columns) != tuple(shape):
        raise PZFError(f"an image of {shape[0]} × {shape[1]} pixels is expected; the record has {rows} × {columns}")
    if dtype is not None and header.dtype != np.dtype(dtype):
        raise PZFError(f"pixels of type {np.dtype(dtype).str} are expected; the record has {header.dtype.str}")
    return np.ascontiguousarray(_decode(data, header, max_bytes)[:, :, 0])


# -------------------------------------------------------------------------------------------------------- compile ahead


def _compile_encoder() -> None:
    encode_image(np.zeros((4, 4), np.uint8))


def _compile_batch_encoder() -> None:
    encode_images(np.zeros((1, 4, 4), np.uint8))


def _compile_decoder() -> None:
    _decode_stream(_read_only(np.array([0b10000000, 0], np.uint8)), np.empty(2, np.uint8))


KERNELS: Final[tuple[tuple[str, Callable[[], None]], ...]] = (
    ("PZF encoder", _compile_encoder),
    ("PZF encoder for tiles", _compile_batch_encoder),
    ("PZF decoder", _compile_decoder),
)
"""What there is to compile, or to load from numba's cache: a name to show, and a call that does it. The kernels see
bytes, whatever the pixels are, so there is one of each, not one per pixel type."""
