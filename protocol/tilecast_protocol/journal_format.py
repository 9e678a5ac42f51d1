"""What a journal looks like on disk: segments of records, byte by byte, and how to read bytes that cannot be trusted.

Functions of bytes and file descriptors only; what is written when, what is synced and what is cut is the business of
`tilecast_protocol.journal`, and the index beside each segment that of `tilecast_protocol.journal_index`.

A journal is a folder of segments `000000.tcj`, `000001.tcj`, … All integers are little-endian.

=======  ==========================================================================================================
segment  64 bytes: magic `TCJS`, u2 version 1, u2 zero, u8 nonce, 16 bytes run uuid, u8 number of the segment, u8 lsn of
         its first byte, u8 zero, u4 zero, u4 CRC-32 of the 60 bytes before. Then records without a gap.
record   96 bytes: magic `TCJR`, u1 version 1, u1 kind, u2 flags (1 frame given, 2 acked_seq given, 4 payload encoded as
         PZF by whoever wrote the journal), u8 nonce, u8 lsn of its first byte, u8 lsn known durable when it was
         written, i8 t_recv_ns, u8 acked_seq, u8 frame, u8 image_index (number of images before it), u8 bytes of
         payload, u2 bytes of topic, u2 number of parts, u2 bytes of padding in front of the parts, u2 behind them, u4
         bytes of header, u4 CRC-32 of the meta, u4 CRC-32 of the payload, u4 CRC-32 of the 92 bytes before. Then the
         meta (u8 length of each part, topic, header as it came), padding, the parts, padding.
=======  ==========================================================================================================

An *lsn* counts the bytes since the journal began, segment headers included; a record's offset is its lsn minus that of
its segment. The nonce is drawn when a journal is created. Together they make a record recognisable wherever a scan
stands: bytes that merely look like one (a journal sent as pixels, a segment of another run copied into the folder) have
another nonce or another lsn.

Padding is written as zeros, belongs to its record, and is covered by no checksum. It lets a large payload begin and end
where the blocks of the file do, so that it can be written past the page cache (`tilecast_protocol.journal_direct`); a
reader only has to skip it.

Kind 0 is filler: a whole record, of which only the fixed part means anything, put where a crash has left a hole in
front of sound records, so that the hole is not taken for decay ever after.

The fixed part of a record has a CRC of its own, so when its meta or payload is bad its length is still known and the
scan goes on behind it. When the fixed part is bad, the scan looks for the next magic whose CRC, nonce and lsn fit.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from isal.isal_zlib import crc32

VERSION = 1
HAS_FRAME, HAS_ACKED_SEQ, IS_PZF = 1, 2, 4

_SEGMENT_HEAD = struct.Struct("<4sHHQ16sQQQI")
_RECORD_HEAD = struct.Struct("<4sBBHQQQqQQQQHHHHIII")
_CRC = struct.Struct("<I")
_SEGMENT_MAGIC, _RECORD_MAGIC = b"TCJS", b"TCJR"
SEGMENT_HEAD_BYTES = _SEGMENT_HEAD.size + _CRC.size
RECORD_HEAD_BYTES = _RECORD_HEAD.size + _CRC.size

# How much a scan reads at once: enough for a hundred stage messages, little beside one image.
_WINDOW_BYTES = 64 << 10
_CHUNK_BYTES = 4 << 20


class RecordKind(IntEnum):
    """Which message a record holds. A new kind needs a new version of the segment: a reader must not cut it off."""

    START = 1
    IMAGE = 2
    STAGE = 3
    EVENT = 4
    END = 5


FILLER = 0
_KINDS = frozenset(RecordKind)


@dataclass(frozen=True, slots=True)
class Record:
    """One message as it was appended.

    Attributes
    ----------
    kind : RecordKind
    topic : str
    header : bytes
        The msgpack map exactly as it came.
    parts : tuple of memoryview
        The payload, read-only bytes that belong to this record; empty if it was not asked for.
    part_nbytes : tuple of int
        Length of every payload part, whether asked for or not.
    t_recv_ns : int
        When it was received, UTC ns.
    frame : int or None
        Frame number of an image, None for other kinds.
    image_index : int or None
        Ordinal among the image records of the run, from 0; None for other kinds.
    acked_seq : int
        What the writer had settled of this publisher when it appended this, −1 if nothing.
    pzf : bool
        The writer of the journal encoded the payload as PZF; `header` still describes it as it was sent.
    lsn : int
        Bytes of the journal up to the end of this record.
    """

    kind: RecordKind
    topic: str
    header: bytes
    parts: tuple[memoryview, ...]
    part_nbytes: tuple[int, ...]
    t_recv_ns: int
    frame: int | None
    image_index: int | None
    acked_seq: int
    pzf: bool
    lsn: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Something in a journal that is not as it was written.

    Attributes
    ----------
    segment : int
        Number of the segment file.
    offset, nbytes : int
        Which bytes of it.
    what : str
        A clause that says what is wrong.
    frames : tuple of int
        Frames known to be lost by it. Bytes that say nothing about themselves may have held others.
    durable : bool
        True if the journal had called these bytes durable: then a disk or a person has changed them. False if they
        were lost in a crash before anything was promised about them.
    derived : bool
        True if nothing is lost: what is wrong can be made anew from what is there (`journal_repair`).
    """

    segment: int
    offset: int
    nbytes: int
    what: str
    frames: tuple[int, ...] = ()
    durable: bool = True
    derived: bool = False


class Segment(NamedTuple):
    """One file of a journal: its number, the lsn of its first byte, and where it lies."""

    number: int
    base_lsn: int
    path: Path


class SegmentHead(NamedTuple):
    """What a segment says of itself: the nonce and run (16 bytes) of its journal, its number, the lsn of its begin."""

    version: int
    nonce: int
    run: bytes
    number: int
    base_lsn: int


class RecordHead(NamedTuple):
    """The fixed part of a record, field by field as on disk."""

    magic: bytes
    version: int
    kind: int
    flags: int
    nonce: int
    lsn: int
    synced_lsn: int
    t_recv_ns: int
    acked_seq: int
    frame: int
    image_index: int
    payload_nbytes: int
    topic_nbytes: int
    n_parts: int
    padding_before: int
    padding_behind: int
    header_nbytes: int
    meta_crc: int
    payload_crc: int

    @property
    def meta_nbytes(self) -> int:
        """Bytes of the meta."""
        return 8 * self.n_parts + self.topic_nbytes + self.header_nbytes

    @property
    def payload_at(self) -> int:
        """Where the payload begins, in bytes from the begin of the record."""
        return RECORD_HEAD_BYTES + self.meta_nbytes + self.padding_before

    @property
    def nbytes(self) -> int:
        """Bytes of the whole record."""
        return self.payload_at + self.payload_nbytes + self.padding_behind

    @property
    def frames(self) -> tuple[int, ...]:
        """The frame number, as a tuple that is empty if there is none."""
        return (self.frame,) if self.flags & HAS_FRAME else ()


class Found(NamedTuple):
    """A sound record at `offset` of its segment; `payload` only if it was asked for."""

    offset: int
    head: RecordHead
    meta: bytes
    payload: memoryview | None


def pack_segment_head(nonce: int, run: bytes, number: int, base_lsn: int) -> bytes:
    """The first bytes of a segment."""
    fields = _SEGMENT_HEAD.pack(_SEGMENT_MAGIC, VERSION, 0, nonce, run, number, base_lsn, 0, 0)
    return fields + _CRC.pack(crc32(fields))


def parse_segment_head(data: bytes) -> SegmentHead | None:
    """What the first bytes of a segment say, of whatever version; None if they are not sound."""
    if len(data) < SEGMENT_HEAD_BYTES or data[:4] != _SEGMENT_MAGIC:
        return None
    if crc32(data[: _SEGMENT_HEAD.size]) != _CRC.unpack_from(data, _SEGMENT_HEAD.size)[0]:
        return None
    _, version, _, nonce, run, number, base_lsn, _, _ = _SEGMENT_HEAD.unpack_from(data)
    return SegmentHead(version, nonce, run, number, base_lsn)


def pack_record_head(
    *,
    kind: int,
    flags: int,
    nonce: int,
    lsn: int,
    synced_lsn: int,
    t_recv_ns: int,
    acked_seq: int,
    frame: int,
    image_index: int,
    payload_nbytes: int,
    topic_nbytes: int,
    n_parts: int,
    padding_before: int,
    padding_behind: int,
    header_nbytes: int,
    meta_crc: int,
    payload_crc: int,
) -> bytes:
    """The fixed part of a record."""
    fields = _RECORD_HEAD.pack(
        _RECORD_MAGIC,
        VERSION,
        kind,
        flags,
        nonce,
        lsn,
        synced_lsn,
        t_recv_ns,
        acked_seq,
        frame,
        image_index,
        payload_nbytes,
        topic_nbytes,
        n_parts,
        padding_before,
        padding_behind,
        header_nbytes,
        meta_crc,
        payload_crc,
    )
    return fields + _CRC.pack(crc32(fields))


def pack_filler(nonce: int, lsn: int, nbytes: int) -> bytes:
    """The fixed part of a filler that stretches over `nbytes` from `lsn` on."""
    return pack_record_head(
        kind=FILLER,
        flags=0,
        nonce=nonce,
        lsn=lsn,
        synced_lsn=0,
        t_recv_ns=0,
        acked_seq=0,
        frame=0,
        image_index=0,
        payload_nbytes=nbytes - RECORD_HEAD_BYTES,
        topic_nbytes=0,
        n_parts=0,
        padding_before=0,
        padding_behind=0,
        header_nbytes=0,
        meta_crc=0,
        payload_crc=0,
    )


def parse_record_head(data: bytes | memoryview, nonce: int, lsn: int) -> RecordHead | None:
    """The fixed part of the record that begins at `lsn`, or None if these bytes are no record of this journal."""
    if len(data) < RECORD_HEAD_BYTES or data[:4] != _RECORD_MAGIC:
        return None
    if crc32(data[: _RECORD_HEAD.size]) != _CRC.unpack_from(data, _RECORD_HEAD.size)[0]:
        return None
    head = RecordHead(*_RECORD_HEAD.unpack_from(data))
    sound = head.version == VERSION and head.nonce == nonce and head.lsn == lsn and head.synced_lsn <= lsn
    return head if sound else None


def part_nbytes(head: RecordHead, meta: bytes) -> tuple[int, ...]:
    """Length of each payload part."""
    return struct.unpack_from(f"<{head.n_parts}Q", meta)


def flaw_of(head: RecordHead, meta: bytes, payload_crc: int | None) -> str | None:
    """What is wrong with a record whose fixed part is sound; `payload_crc` None leaves the payload unchecked."""
    name = f"frame {head.frame}" if head.flags & HAS_FRAME else "a record"
    if len(meta) != head.meta_nbytes or crc32(meta) != head.meta_crc:
        return f"the header of {name} fails its checksum"
    if head.kind not in _KINDS or sum(part_nbytes(head, meta)) != head.payload_nbytes:
        return f"{name} is of a form that this version does not know (kind {head.kind})"
    if payload_crc is not None and payload_crc != head.payload_crc:
        return f"the payload of {name} fails its checksum"
    return None


def parse_record(data: bytes, nonce: int, lsn: int, offset: int) -> tuple[Found | None, str | None]:
    """The record that begins at `lsn` and fills `data` exactly, or what is wrong with it; checks every CRC."""
    view = memoryview(data)
    head = parse_record_head(view, nonce, lsn)
    if head is None or head.nbytes != len(data):
        return None, "these bytes are no sound record"
    payload = view[head.payload_at : head.payload_at + head.payload_nbytes]
    meta = bytes(view[RECORD_HEAD_BYTES : RECORD_HEAD_BYTES + head.meta_nbytes])
    flaw = flaw_of(head, meta, crc32(payload))
    return (None, flaw) if flaw else (Found(offset, head, meta, payload), None)


def to_record(found: Found, base_lsn: int) -> Record:
    """The message that a sound record holds."""
    head, meta = found.head, found.meta
    lengths = part_nbytes(head, meta)
    parts: list[memoryview] = []
    if found.payload is not None:
        at = 0
        for nbytes in lengths:
            parts.append(found.payload[at : at + nbytes])
            at += nbytes
    topic_at = 8 * head.n_parts
    header_at = topic_at + head.topic_nbytes
    return Record(
        kind=RecordKind(head.kind),
        topic=meta[topic_at:header_at].decode("ascii"),
        header=meta[header_at:],
        parts=tuple(parts),
        part_nbytes=lengths,
        t_recv_ns=head.t_recv_ns,
        frame=head.frame if head.flags & HAS_FRAME else None,
        image_index=head.image_index if head.kind == RecordKind.IMAGE else None,
        acked_seq=head.acked_seq if head.flags & HAS_ACKED_SEQ else -1,
        pzf=bool(head.flags & IS_PZF),
        lsn=base_lsn + found.offset + head.nbytes,
    )


def pread(fd: int, nbytes: int, offset: int) -> bytes:
    """Read up to `nbytes` at `offset`; fewer only at the end of the file. No copy where one read suffices."""
    data = os.pread(fd, nbytes, offset)
    if not data or len(data) == nbytes:
        return data
    pieces = [data]
    got = len(data)
    while got < nbytes and (data := os.pread(fd, nbytes - got, offset + got)):
        pieces.append(data)
        got += len(data)
    return b"".join(pieces)


class _Window:
    """Reads a file from front to back with few system calls, and no more memory than is asked for."""

    def __init__(self, fd: int, end: int) -> None:
        self._fd = fd
        self._end = end
        self._data = b""
        self._offset = 0

    def take(self, offset: int, nbytes: int) -> memoryview:
        """The bytes from `offset`; fewer than `nbytes` only at the end."""
        nbytes = max(0, min(nbytes, self._end - offset))
        begin = offset - self._offset
        if begin < 0 or begin + nbytes > len(self._data):
            if nbytes > _WINDOW_BYTES:
                return memoryview(pread(self._fd, nbytes, offset))
            self._data = pread(self._fd, min(_WINDOW_BYTES, self._end - offset), offset)
            self._offset, begin = offset, 0
        return memoryview(self._data)[begin : begin + nbytes]

    def crc(self, offset: int, nbytes: int) -> int:
        """CRC-32 of a stretch, in pieces."""
        value = 0
        while nbytes > 0 and (piece := self.take(offset, min(nbytes, _CHUNK_BYTES))):
            value = crc32(piece, value)
            offset += len(piece)
            nbytes -= len(piece)
        return value


def walk(
    fd: int, segment: Segment, nonce: int, begin: int, end: int, *, with_payload: bool, check_payload: bool
) -> Iterator[Found | Damage]:
    """All sound records between two offsets of a segment, and what lies between them, in order.

    Parameters
    ----------
    begin, end : int
        Offsets; `begin` is where a record is expected.
    with_payload : bool
        Read payloads, check them and hand them out.
    check_payload : bool
        Check payloads even if they are not handed out.
    """
    window = _Window(fd, end)
    at = begin
    while at < end:
        offset = at
        head = parse_record_head(window.take(at, RECORD_HEAD_BYTES), nonce, segment.base_lsn + at)
        if head is None or at + head.nbytes > end:
            at = search(fd, segment, nonce, at + 1, end)
            what = "are no sound record" if head is None else "are a record that is cut short"
            yield Damage(
                segment.number, offset, at - offset, f"{at - offset} bytes {what}", head.frames if head else ()
            )
            continue
        at += head.nbytes
        if head.kind == FILLER:
            continue
        payload_at = offset + head.payload_at
        meta = bytes(window.take(offset + RECORD_HEAD_BYTES, head.meta_nbytes))
        payload = window.take(payload_at, head.payload_nbytes) if with_payload else None
        payload_crc = None
        if payload is not None:
            payload_crc = crc32(payload)
        elif check_payload:
            payload_crc = window.crc(payload_at, head.payload_nbytes)
        flaw = flaw_of(head, meta, payload_crc)
        if flaw:
            yield Damage(segment.number, offset, head.nbytes, flaw, head.frames)
        else:
            yield Found(offset, head, meta, payload)


def search(fd: int, segment: Segment, nonce: int, begin: int, end: int) -> int:
    """Offset of the next record whose fixed part is sound, or `end`."""
    while end - begin >= RECORD_HEAD_BYTES:
        data = pread(fd, min(_CHUNK_BYTES, end - begin), begin)
        hit = data.find(_RECORD_MAGIC)
        while 0 <= hit <= len(data) - RECORD_HEAD_BYTES:
            head = data[hit : hit + RECORD_HEAD_BYTES]
            if parse_record_head(head, nonce, segment.base_lsn + begin + hit) is not None:
                return begin + hit
            hit = data.find(_RECORD_MAGIC, hit + 1)
        if len(data) < RECORD_HEAD_BYTES:
            break
        # What begins in the last bytes of this piece is seen whole in the next.
        begin += len(data) - RECORD_HEAD_BYTES + 1
    return end
