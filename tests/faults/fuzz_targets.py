"""What is handed bytes from outside, as functions of bytes: for the fuzzer (`fuzz.py`) and for the corpus's test.

Each swallows the errors that are documented for it and no other. What it allocates is bounded by `limit_nbytes`, which
the test measures.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from tilecast_protocol import messages, pzf, queries
from tilecast_protocol.errors import JournalError, MalformedError, PZFError, QueryError
from tilecast_protocol.headers import salvage, unpack_header
from tilecast_protocol.journal import Journal
from tilecast_protocol.journal_format import Segment, parse_segment_head, walk

MAX_PIXEL_BYTES: Final = 1 << 20
KINDS: Final = (b"start", b"image", b"stage", b"event", b"end", b"hb", b"hello")

_FOLDER = tempfile.TemporaryDirectory(prefix="tilecast-fuzz-")


def header(data: bytes) -> None:
    """A message from a publisher: which type, the header, and after a zero word the payload."""
    kind = KINDS[data[0] % len(KINDS)] if data else b"image"
    packed, _, payload = data[1:].partition(b"\0\0\0\0")
    parts = [b"tc1/scope/cam/" + kind, packed, *([payload] if payload else [])]
    for read in (messages.parse, messages.parse_from_daemon):
        try:
            read(parts)
        except MalformedError as error:
            _expect(error.reason, messages.REJECT_REASONS)
    try:
        unpack_header(packed)
    except MalformedError:
        salvage(packed, frozenset({"seq", "src", "boot"}))


def _expect(word: str, known: Collection[str]) -> None:
    if word not in known:
        raise AssertionError(f"{word!r} is none of {', '.join(known)}")


def image(data: bytes) -> None:
    """A PZF record."""
    for read in (pzf.read_header, lambda record: pzf.loads(record, max_bytes=MAX_PIXEL_BYTES), _decode_image):
        try:
            read(data)
        except PZFError:
            continue


def _decode_image(data: bytes) -> None:
    pzf.decode_image(data, max_bytes=MAX_PIXEL_BYTES)


def journal(data: bytes) -> None:
    """A segment, as it is; and what a reader makes of a folder with it."""
    path = Path(_FOLDER.name) / "000000.tcj"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        segment = Segment(0, 0, path)
        head = parse_segment_head(data[:64])
        nonce = 0 if head is None else head.nonce
        for _ in walk(fd, segment, nonce, 64, len(data), with_payload=True, check_payload=True):
            pass
    finally:
        os.close(fd)
    try:
        with Journal.open(path.parent, readonly=True) as found:
            found.verify()
            for record in found.records():
                bytes(record.header)
    except JournalError:
        return


def query(data: bytes) -> None:
    """A request; it can be answered, whatever it was."""
    try:
        queries.parse_query(data)
    except QueryError as error:
        _expect(error.code, queries.ERROR_CODES)
        queries.make_error(queries.query_id(data), error)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "header": header,
    "image": image,
    "journal": journal,
    "query": query,
}


def limit_nbytes(data: bytes) -> int:
    """The most that a target may have allocated at any time."""
    return 8 * MAX_PIXEL_BYTES + 64 * len(data)
