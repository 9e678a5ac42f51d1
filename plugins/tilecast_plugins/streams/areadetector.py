"""Messages of areaDetector's NDPluginZMQ (`array-1.0`): a JSON header, and the pixels.

What the plugin writes is not always JSON: numbers that are none (`nan`, `inf`) stand bare, and an attribute without a
value leaves nothing but its comma. Both are read. `shape` is in areaDetector's order, columns before rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from .pixels import StreamError, frame_nbytes, number, whole, wire_pixels

MAX_HEADER_BYTES: Final = 256 * 1024
EPICS_EPOCH_S: Final = 631_152_000
"""1990-01-01 in seconds of Unix time: EPICS counts from there."""

_DTYPES: Final = {
    **{name: name for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")},
    "float": "float32",
    "double": "float64",
}
_NOT_JSON: Final = re.compile(r'"(?:[^"\\]|\\.)*"|-?\b(?:nan|inf(?:inity)?)\b|,(?=\s*[,}])|(?<=\{)\s*,', re.IGNORECASE)
_MAX_EDGE: Final = 2**20


@dataclass(frozen=True, slots=True)
class ArrayKeys:
    """Where in `ndattr` to look for what; an empty name: nowhere.

    Attributes
    ----------
    x, y, z : str
        Stage position; without `x` and `y`, frames are joined to a stage stream by their time.
    unit_um : float
        How many µm one unit of them is.
    exposure : str
        Exposure time, s.
    t_index, c_index, z_index : str
        The plane.
    run : str
        Another value begins another run.
    """

    x: str = ""
    y: str = ""
    z: str = ""
    unit_um: float = 1.0
    exposure: str = ""
    t_index: str = ""
    c_index: str = ""
    z_index: str = ""
    run: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class ArrayFrame:
    """One frame.

    Attributes
    ----------
    pixels : ndarray
        u1, u2 or f4, rows and columns.
    exact : bool
        Whether they are the detector's numbers, or were rounded to float32.
    unique_id : int
        areaDetector's number of it.
    pos_um : tuple of float or None
    t0_ns, t1_ns : int or None
        Exposure, UTC, by the clock of the IOC.
    tcz : (int, int, int)
    run_key : str
        What `ArrayKeys.run` says.
    attributes : dict
        All of `ndattr`.
    """

    pixels: NDArray[Any]
    exact: bool
    unique_id: int
    pos_um: tuple[float, ...] | None
    t0_ns: int | None
    t1_ns: int | None
    tcz: tuple[int, int, int]
    run_key: str
    attributes: dict[str, Any]


def parse(
    parts: Sequence[bytes | memoryview],
    keys: ArrayKeys,
    *,
    shape_order: Literal["columns-first", "rows-first"] = "columns-first",
    max_frame_bytes: int = 256 * 1024 * 1024,
) -> ArrayFrame:
    """Read one message.

    Parameters
    ----------
    parts : sequence of bytes
    keys : ArrayKeys
    shape_order : {"columns-first", "rows-first"}
        How `shape` is meant; areaDetector itself writes columns first, some other programs that send `array-1.0` rows.
    max_frame_bytes : int

    Raises
    ------
    StreamError
        It is not such a message, or one that cannot be taken; says why, and what to do.
    """
    if len(parts) != 2:
        raise StreamError(f"an array-1.0 message has two parts, the header and the pixels; got {len(parts)}")
    header = _header(parts[0])
    dtype, shape = _layout(header, shape_order)
    nbytes = frame_nbytes(shape, dtype, max_frame_bytes)
    payload = memoryview(parts[1]).cast("B")
    if payload.nbytes != nbytes:
        raise StreamError(
            f"{shape[0]} rows of {shape[1]} {dtype.name} are {nbytes} bytes; the second part has {payload.nbytes}"
        )
    attributes = header.get("ndattr") or {}
    if not isinstance(attributes, dict):
        raise StreamError(f"ndattr must be a map; got {attributes!r:.80}")
    unique_id = whole(header.get("frame"), "frame", maximum=2**53)
    t0_ns, t1_ns = _exposure_ns(header, attributes, keys)
    tcz = tuple(
        0 if not key else whole(_attribute(attributes, key), f"ndattr.{key}", 0, 2**31 - 1)
        for key in (keys.t_index, keys.c_index, keys.z_index)
    )
    pos_um = _position_um(attributes, keys)
    run_key = "" if not keys.run else str(_attribute(attributes, keys.run))[:200]
    pixels, exact = wire_pixels(np.frombuffer(payload, dtype).reshape(shape))
    return ArrayFrame(
        pixels, exact, unique_id, pos_um, t0_ns, t1_ns, (tcz[0], tcz[1], tcz[2]), run_key, dict(attributes)
    )


def _header(part: bytes | memoryview) -> dict[str, Any]:
    raw = memoryview(part).cast("B")
    if raw.nbytes > MAX_HEADER_BYTES:
        raise StreamError(f"the header has {raw.nbytes} bytes; at most {MAX_HEADER_BYTES} are taken")
    try:
        text = str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise StreamError(f"the header is not UTF-8: {error.reason} at byte {error.start}") from error
    try:
        header = _loads(text)
    except (ValueError, RecursionError) as error:
        raise StreamError(
            f"the header is not JSON ({str(error)[:100]}); NDPluginZMQ does not escape quotes and backslashes in text "
            "attributes: leave such attributes out of its XML file"
        ) from error
    if not isinstance(header, dict):
        raise StreamError(f"the header must be a JSON map; got {header!r:.80}")
    kinds = header.get("htype")
    if kinds != "array-1.0" and not (isinstance(kinds, list) and "array-1.0" in kinds):
        raise StreamError(f"htype must be array-1.0; got {kinds!r:.80}: is this areaDetector's NDPluginZMQ?")
    return header


def _loads(text: str) -> Any:
    """JSON, or what NDPluginZMQ takes for it."""
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return json.loads(_NOT_JSON.sub(_mended, text), strict=False)


def _mended(match: re.Match[str]) -> str:
    found = match[0]
    if found.startswith('"'):
        return found
    return "" if found.strip() == "," else "null"


def _layout(header: Mapping[str, Any], shape_order: str) -> tuple[np.dtype[Any], tuple[int, int]]:
    kind = header.get("type")
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise StreamError(f"type must be one of {', '.join(_DTYPES)}; got {kind!r:.80}")
    encoding = header.get("encoding") or "none"
    if not isinstance(encoding, str) or encoding.lower() != "none":
        raise StreamError(
            f"the pixels are compressed ({encoding!r:.40}): set Compressor of the NDCodec plugin to None, or have "
            "NDPluginZMQ take its arrays from before it"
        )
    endianness = header.get("endianness", header.get("endianess", "little"))
    if endianness not in ("little", "big"):
        raise StreamError(f"endianness must be little or big; got {endianness!r:.80}")
    shape = header.get("shape")
    if not isinstance(shape, list) or len(shape) != 2:
        raise StreamError(
            f"shape must have two numbers; got {shape!r:.80}. Colour and stacks cannot be taken: convert to Mono with "
            "NDPluginColorConvert"
        )
    sizes = [whole(size, "shape", 1, _MAX_EDGE) for size in shape]
    rows, columns = (sizes[0], sizes[1]) if shape_order == "rows-first" else (sizes[1], sizes[0])
    dtype = np.dtype(_DTYPES[kind]).newbyteorder("<" if endianness == "little" else ">")
    return dtype, (rows, columns)


def _attribute(attributes: Mapping[str, Any], key: str) -> Any:
    if attributes.get(key) is None:
        known = ", ".join(map(repr, sorted(attributes)[:20])) or "none"
        raise StreamError(
            f"ndattr has no value for {key!r}; it has: {known[:300]}. Add it to the XML file of attributes of the "
            "driver or of NDPluginZMQ"
        )
    return attributes[key]


def _position_um(attributes: Mapping[str, Any], keys: ArrayKeys) -> tuple[float, ...] | None:
    if not keys.x:
        return None
    names = [keys.x, keys.y, *([keys.z] if keys.z else [])]
    return tuple(number(_attribute(attributes, name), f"ndattr.{name}") * keys.unit_um for name in names)


def _exposure_ns(
    header: Mapping[str, Any], attributes: Mapping[str, Any], keys: ArrayKeys
) -> tuple[int | None, int | None]:
    """From `timeStamp`, seconds since 1990, and the attribute with the exposure time."""
    stamp_s = header.get("timeStamp")
    exposure_s = 0.0 if not keys.exposure else number(_attribute(attributes, keys.exposure), f"ndattr.{keys.exposure}")
    if stamp_s is None:
        return None, None
    stamp_s = number(stamp_s, "timeStamp")
    if not 0 < stamp_s < 2**32 or not 0 <= exposure_s < 2**32:  # a driver that does not set it
        return None, None
    t0_ns = (EPICS_EPOCH_S * 10**9) + round(stamp_s * 1e9)
    return t0_ns, t0_ns + round(exposure_s * 1e9)
