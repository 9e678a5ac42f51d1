"""What a single value in a message may be: one small function for each kind of value.

Each takes the value and the name to use for it in an error, and returns the value in the one form that the program uses
(tuples for lists, floats for numbers that may have a fraction, canonical text for a uuid) or raises `MalformedError`.
They do not know messages; `messages` and `queries` say which key is checked by which.

A boolean is never a number here, although Python and some encoders think so. A whole number is accepted where a
fraction is allowed; a fraction is never accepted where a whole number is needed, not even 3.0.

Examples
--------
>>> position([1, 2.5], "pos_um")
(1.0, 2.5)
"""

from __future__ import annotations

import math
import re
import uuid as _uuid
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Final

from .errors import MalformedError

Check = Callable[[Any, str], Any]

MAX_UNSIGNED: Final = 2**63 - 1
"""Largest whole number in a header: what SQLite, Java and .NET can hold in their 64-bit integers."""

MAX_INDEX: Final = 2**31 - 1
"""Largest plane, tile or pixel index."""

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
"""Instruments, streams, and other names that a program compares."""

_UUID_PATTERN: Final = re.compile(
    r"[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE
)
_CANONICAL_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_SHA256_PATTERN: Final = re.compile(r"[0-9a-f]{64}", re.ASCII | re.IGNORECASE)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LINE_BREAKS: Final = dict.fromkeys(map(ord, "\n\r\t"), " ")
_CALIBRATION_PART: Final = re.compile(r"part:(0|[1-9][0-9]{0,2})", re.ASCII)


def show(value: object) -> str:
    """A value for an error message, never long, never a surprise."""
    if isinstance(value, int) and value.bit_length() > 128:  # its decimal form may be refused by Python itself
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, (str, bytes, bytearray)):
        value = value[:60]
    text = repr(value) if not isinstance(value, (dict, list, tuple, memoryview)) else _show_container(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _show_container(value: dict[Any, Any] | list[Any] | tuple[Any, ...] | memoryview) -> str:
    if isinstance(value, (list, tuple)) and len(value) <= 8:
        return "[" + ", ".join(show(item) for item in value) + "]"
    kind = {dict: "a map", list: "a list", tuple: "a list", memoryview: "bytes"}[type(value)]
    return f"{kind} of {len(value)}"


def refuse(what: str, expected: str, value: object) -> MalformedError:
    """The error for a value that is not what it must be."""
    return MalformedError(f"{what} must be {expected}; got {show(value)}")


def whole(minimum: int, maximum: int) -> Check:
    """Check for a whole number in minimum..maximum, both included."""

    def check(value: Any, what: str) -> int:
        # Integral lets in numpy's integers, when a caller builds a message, and bool, which is not a number for us
        if type(value) is not int and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise refuse(what, "a whole number", value)
        result = int(value)
        if not minimum <= result <= maximum:
            raise refuse(what, f"a whole number from {minimum} to {maximum}", result)
        return result

    return check


unsigned: Final = whole(0, MAX_UNSIGNED)
unsigned_or_none_yet: Final = whole(-1, MAX_UNSIGNED)
count: Final = whole(1, MAX_INDEX)
index: Final = whole(0, MAX_INDEX)
signed_index: Final = whole(-MAX_INDEX - 1, MAX_INDEX)
level: Final = whole(0, 31)
crc32: Final = whole(0, 2**32 - 1)


def number(value: Any, what: str) -> float:
    """A finite number, as float."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise refuse(what, "a number", value)
    try:
        result = float(value)
    except OverflowError:
        raise refuse(what, "a finite number", value) from None
    if not math.isfinite(result):
        raise refuse(what, "a finite number", value)
    return result


def positive(value: Any, what: str) -> float:
    """A finite number above 0."""
    result = number(value, what)
    if result <= 0:
        raise refuse(what, "above 0", value)
    return result


def boolean(value: Any, what: str) -> bool:
    """True or False, nothing that resembles them."""
    if not isinstance(value, bool):
        raise refuse(what, "true or false", value)
    return value


def text(minimum: int, maximum: int) -> Check:
    """Check for text of minimum..maximum characters without control characters (it ends up in terminals and logs)."""

    def check(value: Any, what: str) -> str:
        if not isinstance(value, str):
            raise refuse(what, "text", value)
        if not minimum <= len(value) <= maximum:
            raise refuse(what, f"text of {minimum} to {maximum} characters (it has {len(value)})", value)
        if _CONTROL.search(value):
            raise refuse(what, "text without control characters or line breaks", value)
        return str(value)

    return check


def prose(value: Any, what: str) -> str:
    """Text of any length for people, line breaks allowed."""
    if not isinstance(value, str) or _CONTROL.search(value.translate(_LINE_BREAKS)):
        raise refuse(what, "text without control characters other than line breaks", value)
    return str(value)


label: Final = text(1, 200)


def name(value: Any, what: str) -> str:
    """A name that programs compare: letters, digits, `_`, `.`, `-`."""
    if not isinstance(value, str) or not NAME_PATTERN.fullmatch(value):
        raise refuse(what, f"a name that matches {NAME_PATTERN.pattern}", value)
    return str(value)


def one_of(*choices: str) -> Check:
    """Check for one of a few words."""
    expected = "one of " + ", ".join(choices)

    def check(value: Any, what: str) -> str:
        if not isinstance(value, str) or value not in choices:
            raise refuse(what, expected, value)
        return str(value)

    return check


def uuid(value: Any, what: str) -> str:
    """A uuid as text; the canonical form (lower case, with hyphens) is returned whichever form came."""
    if isinstance(value, _uuid.UUID):
        return str(value)
    if not isinstance(value, str) or not _UUID_PATTERN.fullmatch(value):
        raise refuse(what, "a uuid as text, such as 01234567-89ab-4cde-8f01-23456789abcd", value)
    return value if _CANONICAL_UUID.fullmatch(value) else str(_uuid.UUID(value))


def _items(value: Any, what: str, minimum: int, maximum: int) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise refuse(what, "a list", value)
    if not minimum <= len(value) <= maximum:
        expected = f"{minimum}" if minimum == maximum else f"{minimum} to {maximum}"
        raise refuse(what, f"a list of {expected} values (it has {len(value)})", value)
    return value


def list_of(check_item: Check, minimum: int, maximum: int) -> Check:
    """Check for a list of minimum..maximum values that each pass `check_item`; returns a tuple."""

    def check(value: Any, what: str) -> tuple[Any, ...]:
        items = _items(value, what, minimum, maximum)
        return tuple([check_item(item, f"{what}[{i}]") for i, item in enumerate(items)])

    return check


position: Final = list_of(number, 2, 3)
pair: Final = list_of(number, 2, 2)
plane_index: Final = list_of(index, 3, 3)
shape: Final = list_of(count, 2, 2)
pixel_size: Final = list_of(positive, 2, 2)
tile_indices: Final = list_of(list_of(signed_index, 6, 6), 0, 1 << 20)


def affine(value: Any, what: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """[[a, b], [c, d]] with an inverse that is finite."""
    rows = _items(value, what, 2, 2)
    (a, b), (c, d) = (pair(row, f"{what}[{i}]") for i, row in enumerate(rows))
    determinant = a * d - b * c
    # Columns that point nearly the same way: no pixel position follows from a stage position any more.
    smallest = 1e-9 * math.hypot(a, c) * math.hypot(b, d)
    if not math.isfinite(determinant) or abs(determinant) <= smallest:
        raise refuse(what, "a matrix that can be inverted", value)
    if not all(math.isfinite(entry / determinant) for entry in (a, b, c, d)):
        raise refuse(what, "a matrix whose inverse is finite", value)
    return (a, b), (c, d)


def extent(value: Any, what: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """[[x0, y0], [x1, y1]] with x0 < x1 and y0 < y1."""
    corners = _items(value, what, 2, 2)
    (x0, y0), (x1, y1) = (pair(corner, f"{what}[{i}]") for i, corner in enumerate(corners))
    if not (x0 < x1 and y0 < y1):
        raise refuse(what, "[[x0, y0], [x1, y1]] with x0 < x1 and y0 < y1", value)
    return (x0, y0), (x1, y1)


def mapping(value: Any, what: str) -> dict[str, Any]:
    """A map with text keys; what lies in it is the sender's own affair."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise refuse(what, "a map with text keys", value)
    return dict(value)


def counts(value: Any, what: str) -> dict[str, int]:
    """A map of text to whole numbers from 0."""
    return {key: unsigned(item, f"{what}.{key}") for key, item in mapping(value, what).items()}


def planes(value: Any, what: str) -> dict[str, Any]:
    """{t, c, z}: how many planes there will be along each; one that is left out is 1."""
    result = mapping(value, what)
    return result | {axis: count(result.get(axis, 1), f"{what}.{axis}") for axis in "tcz"}


def channel(value: Any, what: str) -> dict[str, Any]:
    """{name, color, emission_nm}, each of them optional."""
    result = mapping(value, what)
    for key, check in (("name", label), ("color", label), ("emission_nm", positive)):
        if result.get(key) is not None:
            result[key] = check(result[key], f"{what}.{key}")
    return result


channels: Final = list_of(channel, 1, 256)


def byte_counts(value: Any, what: str) -> int | tuple[int, ...]:
    """Sizes of the payload parts: a whole number for one part, or a list with one for each."""
    if isinstance(value, (list, tuple)):
        result: tuple[int, ...] = list_of(unsigned, 0, 64)(value, what)
        return result[0] if len(result) == 1 else result
    size: int = unsigned(value, what)
    return size


def sha256(value: Any, what: str) -> str:
    """64 hexadecimal digits, returned in lower case."""
    if not isinstance(value, str) or not _SHA256_PATTERN.fullmatch(value):
        raise refuse(what, "a SHA-256 as 64 hexadecimal digits", value)
    return value.lower()


def sha256_of_parts(value: Any, what: str) -> tuple[str, ...]:
    """The SHA-256 of each payload part in order; plain text stands for a list of one."""
    if isinstance(value, str):
        return (sha256(value, what),)
    result: tuple[str, ...] = list_of(sha256, 1, 64)(value, what)
    return result


def calibration(value: Any, what: str) -> str:
    """The name of a calibration, or `part:<n>` for payload part n, counted from 0."""
    result: str = label(value, what)
    if result.startswith("part:"):
        if not _CALIBRATION_PART.fullmatch(result):
            raise refuse(what, "part:<n> with a whole number n counted from 0", value)
    elif result.startswith(".") or "/" in result or "\\" in result:
        raise refuse(what, "a name without / or \\ that does not begin with a full stop", value)
    return result


def calibration_part(value: str | None) -> int | None:
    """The n of `part:<n>`; None for a name or for None."""
    return int(value[5:]) if value is not None and value.startswith("part:") else None
