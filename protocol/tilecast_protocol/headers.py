"""Strict msgpack: the one place where bytes from outside become a header, and a header becomes bytes.

A msgpack decoder builds what the bytes announce before it knows whether they keep the promise: five bytes can announce
a list of a thousand million items, and a few kilobytes of such lists inside one another make the C decoder reserve
hundreds of megabytes. So the bytes are walked first, without building anything, and only a header that keeps the
contract (size, depth, text keys, no key twice, no extension types, nothing behind the end) is handed to the decoder.

This module does not know what the keys of a header mean (`messages`, `queries`).

Examples
--------
>>> unpack_header(pack_header({"v": 1, "type": "hb"}))
{'v': 1, 'type': 'hb'}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgpack

from .errors import MalformedError

MAX_HEADER_BYTES: Final = 64 * 1024
"""The longest header that the daemon receives, in bytes."""

MAX_DEPTH: Final = 4
"""The deepest nesting that the daemon receives; the header's own map is level 1."""

MAX_DAEMON_HEADER_BYTES: Final = 16 * 1024 * 1024
"""The longest header that publishers and viewers take from a daemon (a page of a snapshot is long)."""

MAX_DAEMON_DEPTH: Final = 12
"""The deepest nesting that publishers and viewers take from a daemon."""


def _scalar_sizes() -> bytes:
    """Bytes taken by a value of known size, by its first byte; 0 where the size must be read, or is not allowed."""
    sizes = bytearray(256)
    sizes[0x00:0x80] = b"\x01" * 0x80  # positive fixint
    sizes[0xE0:0x100] = b"\x01" * 0x20  # negative fixint
    for length in range(32):
        sizes[0xA0 + length] = 1 + length  # fixstr
    for first, size in {
        0xC0: 1,  # nil
        0xC2: 1,  # false
        0xC3: 1,  # true
        0xCA: 5,  # float 32
        0xCB: 9,  # float 64
        0xCC: 2,  # uint 8, 16, 32, 64
        0xCD: 3,
        0xCE: 5,
        0xCF: 9,
        0xD0: 2,  # int 8, 16, 32, 64
        0xD1: 3,
        0xD2: 5,
        0xD3: 9,
    }.items():
        sizes[first] = size
    return bytes(sizes)


_SCALAR_SIZE: Final = _scalar_sizes()
_TEXT_LENGTH_BYTES: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_BINARY_LENGTH_BYTES: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_BLOB_LENGTH_BYTES: Final = _TEXT_LENGTH_BYTES | _BINARY_LENGTH_BYTES
_LIST_COUNT_BYTES: Final = {0xDC: 2, 0xDD: 4}
_MAP_COUNT_BYTES: Final = {0xDE: 2, 0xDF: 4}
_FIXED_EXTENSION_SIZE: Final = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_EXTENSION_LENGTH_BYTES: Final = {0xC7: 1, 0xC8: 2, 0xC9: 4}


def _container(data: bytes, at: int) -> tuple[bool, int, int] | None:
    """(is it a map, number of items, where they begin) if a list or map begins at `at`, else None."""
    first = data[at]
    if 0x80 <= first <= 0x8F:
        return True, first & 0x0F, at + 1
    if 0x90 <= first <= 0x9F:
        return False, first & 0x0F, at + 1
    is_map = first in _MAP_COUNT_BYTES
    if not is_map and first not in _LIST_COUNT_BYTES:
        return None
    width = _MAP_COUNT_BYTES[first] if is_map else _LIST_COUNT_BYTES[first]
    return is_map, int.from_bytes(data[at + 1 : at + 1 + width], "big"), at + 1 + width


def _text_span(data: bytes, at: int) -> tuple[int, int] | None:
    """(begin, end) of the UTF-8 bytes if a text begins at `at`, else None."""
    first = data[at]
    if 0xA0 <= first <= 0xBF:
        return at + 1, at + 1 + (first & 0x1F)
    width = _TEXT_LENGTH_BYTES.get(first)
    if width is None:
        return None
    begin = at + 1 + width
    return begin, begin + int.from_bytes(data[at + 1 : begin], "big")


def check_header_bytes(
    data: bytes, *, max_bytes: int = MAX_HEADER_BYTES, max_depth: int = MAX_DEPTH, what: str = "header"
) -> None:
    """Walk msgpack bytes without building anything and refuse what the contract does not allow.

    Parameters
    ----------
    data : bytes
        One msgpack value.
    max_bytes, max_depth : int
        Limits; the outermost map is depth 1.
    what : str
        What the bytes are, for the error.

    Raises
    ------
    MalformedError
        `too-large` above `max_bytes`; else `malformed`: not a map, cut short, bytes behind the end, a key that is not
        text or comes twice, an extension type, nested too deep.
    """
    length = len(data)
    if length > max_bytes:
        raise MalformedError(f"the {what} has {length} bytes; at most {max_bytes} are allowed", reason="too-large")
    if not length or _container(data, 0) is None or not _container(data, 0)[0]:  # type: ignore[index]
        raise MalformedError(f"the {what} must be one msgpack map; it is {'something else' if length else 'empty'}")
    at = 0
    left = 1  # values still to come in the container we are in; a map counts keys and values
    keys: set[bytes] | None = None  # of the map we are in; None in a list
    outer: list[tuple[int, set[bytes] | None]] = []
    while True:
        while not left:
            if not outer:
                if at != length:
                    raise MalformedError(f"the {what} is cut short or has bytes behind its end ({length} bytes came)")
                return
            left, keys = outer.pop()
        if at >= length:
            raise MalformedError(f"the {what} is cut short: {length} bytes came and more were announced")
        if keys is not None and not left & 1:
            span = _text_span(data, at)
            if span is None:
                raise MalformedError(f"the {what} has a key at byte {at} that is not text; every key must be text")
            key = data[span[0] : span[1]]
            if key in keys:
                raise MalformedError(f"the {what} has the key {key[:40]!r} twice; each may come once")
            keys.add(key)
            at = span[1]
            left -= 1
            continue
        left -= 1
        size = _SCALAR_SIZE[data[at]]
        if size:
            at += size
            continue
        width = _BLOB_LENGTH_BYTES.get(data[at])
        if width is not None:
            at += 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "big")
            continue
        container = _container(data, at)
        if container is None:
            raise MalformedError(
                f"the {what} holds a msgpack extension type or an unused code (0x{data[at]:02x} at byte {at}); "
                "only nil, booleans, numbers, text, binary, lists and maps are allowed"
            )
        is_map, count, at = container
        outer.append((left, keys))
        if len(outer) > max_depth:
            raise MalformedError(f"the {what} is nested deeper than {max_depth} levels")
        left = 2 * count if is_map else count
        keys = set() if is_map else None
        if left > length - at:
            raise MalformedError(f"the {what} announces {left} values where only {max(0, length - at)} bytes are left")


def unpack_header(
    data: bytes | memoryview, *, max_bytes: int = MAX_HEADER_BYTES, max_depth: int = MAX_DEPTH, what: str = "header"
) -> dict[str, Any]:
    """One msgpack map from outside, as a dict with text keys.

    Parameters
    ----------
    data : bytes or memoryview
        The header as it came.
    max_bytes, max_depth : int
        Limits, checked before anything is built; the header's own map is depth 1.
    what : str
        What the bytes are, for the error.

    Raises
    ------
    MalformedError
        See `check_header_bytes`; also for text that is not UTF-8.
    """
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    if size > max_bytes:
        raise MalformedError(f"the {what} has {size} bytes; at most {max_bytes} are allowed", reason="too-large")
    data = bytes(data)
    check_header_bytes(data, max_bytes=max_bytes, max_depth=max_depth, what=what)
    try:
        header: dict[str, Any] = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except UnicodeDecodeError as error:
        raise MalformedError(f"the {what} holds text that is not UTF-8; all text must be") from error
    return header


def pack_header(header: Mapping[str, Any], *, max_bytes: int = MAX_HEADER_BYTES, max_depth: int = MAX_DEPTH) -> bytes:
    """A dict as msgpack bytes that `unpack_header` with the same limits accepts.

    Raises
    ------
    MalformedError
        A value that msgpack cannot carry, or a limit passed: better here, by the sender, than there.
    """
    try:
        data: bytes = msgpack.packb(header, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise MalformedError(
            f"a header may hold None, booleans, numbers of 64 bits, text, bytes, lists, dicts with text keys: {error}"
        ) from error
    check_header_bytes(data, max_bytes=max_bytes, max_depth=max_depth)
    return data


def _skip(data: bytes, at: int) -> int:
    """Where the value that begins at `at` ends, extension types included; raises IndexError where data is cut short."""
    pending = 1
    while pending:
        pending -= 1
        first = data[at]
        size = _SCALAR_SIZE[first]
        container = None if size else _container(data, at)
        if container is not None:
            is_map, count, at = container
            pending += 2 * count if is_map else count
            continue
        if not size:
            width = _BLOB_LENGTH_BYTES.get(first) or _EXTENSION_LENGTH_BYTES.get(first)
            if width is not None:
                size = 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "big")
                size += first in _EXTENSION_LENGTH_BYTES
            else:
                size = 2 + _FIXED_EXTENSION_SIZE.get(first, -1)
        at += size
    return at


def salvage(data: bytes | memoryview, keys: frozenset[str], *, max_bytes: int = MAX_HEADER_BYTES) -> dict[str, Any]:
    """What can still be read of some keys in the outermost map of a header that was refused.

    So that its sender can be answered. Only the first `max_bytes` are looked at, nothing but single values is built,
    and nothing is promised about them. A key that comes twice says nothing and is left out.

    Parameters
    ----------
    data : bytes or memoryview
        The refused header.
    keys : frozenset of str
        The keys asked for.

    Returns
    -------
    dict
        Those that were found, with a number, text, bytes, boolean or None each.
    """
    head = bytes(data[:max_bytes])
    found: dict[str, Any] = {}
    twice: set[str] = set()
    try:
        container = _container(head, 0)
        if container is None or not container[0]:
            return {}
        _, count, at = container
        for _ in range(count):
            span = _text_span(head, at)
            value_at = span[1] if span else _skip(head, at)
            end = _skip(head, value_at)
            if span is not None and end <= len(head) and _container(head, value_at) is None:
                key = head[span[0] : span[1]].decode("utf-8", "replace")
                if key in keys:
                    if key in found:
                        twice.add(key)
                    found[key] = msgpack.unpackb(head[value_at:end], raw=False)
            at = end
    except (IndexError, ValueError):
        pass  # cut short, or text that is not UTF-8: what was found until here is all there is
    return {key: value for key, value in found.items() if key not in twice}
