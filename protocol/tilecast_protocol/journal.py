"""The journal of one run: every accepted message, in order, in files that only grow. The truth, and the recording.

The mosaic can be made again from the journal; the journal from nothing. So this module has one concern: what was called
durable is found again after any crash, and what is lost is named. It knows bytes, positions and frame numbers; it does
not know what a header means, what a pixel is, or who is connected. What the files look like is in
`tilecast_protocol.journal_format`, how one image is found in `tilecast_protocol.journal_index`.

    with Journal.create(folder, run) as journal:
        journal.append(RecordKind.IMAGE, topic=topic, header=header, parts=[pzf], t_recv_ns=now_ns, frame=0)
        journal.sync()                     # what was written before this line is on the disk now
        journal.image_of_frame(0).parts    # found without a scan

What happens when
-----------------
*A large payload* is written past the page cache where the file system can do that (`journal_direct`), padded to whole
blocks. That costs little CPU, but `append` waits for the disk; and before `sync` it is as little durable as any other.

*A write fails half-way* (the disk is full): the segment is cut back to where it ended, `append` raises, and the journal
is as if nothing had been asked. Should even the cut fail, the next record is written over the remains.

*An fsync fails*: the kernel may have dropped the pages and marked them clean, so a second fsync that succeeds proves
nothing. From then on this object refuses `append` and `sync` and never again calls anything durable. The next writable
`open` writes every byte that was not yet known durable a second time, so that its pages are dirty again, and only then
syncs and calls it durable.

*A new segment* is begun after the old one has been synced: written under a temporary name, synced, renamed, its folder
synced. So only the last segment can end torn, and a segment with a proper name has a whole head.

*A torn tail*: a writable `open` cuts the last segment after its last sound record. Unless the index, which lists only
what was durable, says that these bytes were: then a disk has decayed, the bytes are left for whoever wants to try, and
the journal goes on in a new segment.

*A bad record in the middle* is reported as `Damage` and skipped; the ordinals of images are stored, so those behind it
keep theirs. After a power failure this can also be a record that was never durable, where the file system has put what
came after it on the disk first. Every record tells what was durable when it was written, so the two are told apart
(`Damage.durable`); a hole of the second kind is reported by the `open` that finds it, and made filler.

*The index* of a segment is believed if its copy of the segment's head, its checksums, the size of the file and the last
record that it lists all agree; else it is made anew. What lies behind it is scanned. An image that is read through it
has every checksum verified.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import struct
import threading
import uuid
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from isal.isal_zlib import crc32

from tilecast_protocol.errors import JournalError, JournalTooNewError
from tilecast_protocol.journal_direct import ALIGNMENT, DirectWriter
from tilecast_protocol.journal_format import (
    HAS_ACKED_SEQ,
    HAS_FRAME,
    IS_PZF,
    RECORD_HEAD_BYTES,
    SEGMENT_HEAD_BYTES,
    VERSION,
    Damage,
    Found,
    Record,
    RecordHead,
    RecordKind,
    Segment,
    SegmentHead,
    pack_filler,
    pack_record_head,
    pack_segment_head,
    parse_record,
    parse_record_head,
    parse_segment_head,
    pread,
    to_record,
    walk,
)
from tilecast_protocol.journal_index import (
    ENTRY,
    NO_INDEX,
    ImageTable,
    Index,
    IndexWriter,
    index_flaw,
    is_plausible,
    read_index,
)
from tilecast_protocol.ranges import RangeSet

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["Damage", "Journal", "Position", "Record", "RecordKind"]

DEFAULT_SEGMENT_BYTES = 1 << 30
MAX_TOPIC_BYTES = 1024
MAX_HEADER_BYTES = 1 << 20
"""Generous: what the daemon receives is at most 64 KiB."""
MAX_PARTS = 1024
MAX_PAYLOAD_BYTES = 1 << 32

# A block of the index is due after so much: bounds what the next `open` has to scan to a fraction of a second.
_BLOCK_DUE_RECORDS = 1024
_BLOCK_DUE_BYTES = 32 << 20
_CHUNK_BYTES = 4 << 20
_MAX_WRITE_BUFFERS = 512  # below every system's IOV_MAX
_MAX_MISSING = 100_000  # segments that are looked for: a file may have any number for a name
_SEGMENT_NAME = re.compile(r"[0-9]{6,9}\.tcj")
_INDEX_NAME = re.compile(r"[0-9]{6,9}\.tci")


class Position(NamedTuple):
    """Where a record was appended: the `lsn` at its end, and which image it is (None for other kinds)."""

    lsn: int
    image_index: int | None


class _End(NamedTuple):
    """The end of what has been written, taken together: lsn there and of the last record, number of images, records."""

    lsn: int
    last_record: int
    n_images: int
    n_records: int


class Journal:
    """The journal of one run. Made by `create` or `open`; a context manager.

    One thread appends and closes. Any thread may call `sync`, read records, or ask for the properties, at any time.

    Attributes
    ----------
    folder : Path
    run : str
        Canonical uuid text of the run.
    readonly : bool
    damage : tuple of Damage
        What `open` met and how it dealt with it. `verify` looks at everything.
    """

    def __init__(
        self, folder: Path, run: uuid.UUID, nonce: int, *, readonly: bool, segment_bytes: int, direct: bool
    ) -> None:
        """Use `create` or `open`."""
        self.folder = folder
        self.run = str(run)
        self.readonly = readonly
        self.damage: tuple[Damage, ...] = ()
        self._run_bytes = run.bytes
        self._nonce = nonce
        self._segment_bytes = segment_bytes
        self._segments: list[Segment] = []
        self._layout_damage: tuple[Damage, ...] = ()
        self._images = ImageTable()
        self._lock = threading.Lock()  # held for a few assignments, never during input or output
        self._sync_lock = threading.Lock()  # held through an fsync: one at a time, and none while segments change
        self._folder_fd = -1
        self._fd = -1
        self._direct = DirectWriter(wanted=direct)
        self._closed = False
        self._broken: str | None = None
        self._end = _End(0, -1, 0, 0)
        self._sound_lsn = 0  # end of the last sound record that was found, in whatever segment
        self._synced = 0
        self._listed = self._end
        self._index_writer: IndexWriter | None = None

    # Making and opening ----------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, folder: Path, run: str, *, segment_bytes: int = DEFAULT_SEGMENT_BYTES, direct: bool = True
    ) -> Journal:
        """Begin the journal of a run. It is durable, though empty, when this returns.

        Parameters
        ----------
        folder : Path
            Holds this journal and nothing else; made if need be.
        run : str
            uuid of the run.
        segment_bytes : int
            A new file is begun before a record would make the present one longer than this.
        direct : bool
            Write large payloads past the page cache where the file system can.

        Raises
        ------
        JournalError
            There is a journal in the folder already, or the disk refuses.
        """
        folder = Path(folder).absolute()
        try:
            run_id = uuid.UUID(run)
        except ValueError as cause:
            raise JournalError(f"a run is named by a uuid, got {run!r}") from cause
        nonce = secrets.randbits(64)
        journal = cls(folder, run_id, nonce, readonly=False, segment_bytes=segment_bytes, direct=direct)
        try:
            with _as_journal_error(f"cannot begin a journal in {folder}"):
                _make_folder(folder)
                journal._lock_folder()
                if _segment_files(folder):
                    raise JournalError(f"{folder} holds a journal already; open it, or choose another folder")
                journal._fd = journal._make_segment(0, 0)
        except JournalError:
            journal._release()
            raise
        journal._end = journal._listed = _End(SEGMENT_HEAD_BYTES, -1, 0, 0)
        journal._synced = SEGMENT_HEAD_BYTES
        return journal

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        readonly: bool = False,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        direct: bool = True,
    ) -> Journal:
        """Open the journal in a folder; for `segment_bytes` and `direct` see `create`.

        A writable one is made sound first: a torn tail is cut off, and everything in it is durable when this returns. A
        read-only one changes nothing; it may be opened while another process appends, and then shows what was there.

        Raises
        ------
        JournalError
            There is no journal, another writer has it open, a newer version wrote it, or the disk refuses.
        """
        folder = Path(folder).absolute()
        with _as_journal_error(f"cannot open the journal in {folder}"):
            head = _identify(folder)
            run_id = uuid.UUID(bytes=head.run)
            journal = cls(folder, run_id, head.nonce, readonly=readonly, segment_bytes=segment_bytes, direct=direct)
            try:
                if not readonly:
                    journal._lock_folder()
                journal._load()
            except OSError:
                journal._release()
                raise
        return journal

    def _lock_folder(self) -> None:
        """Become the folder's only writer."""
        self._folder_fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._folder_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise JournalError(f"the journal in {self.folder} is open for writing elsewhere; close it there") from cause

    def _make_segment(self, number: int, base_lsn: int) -> int:
        """Make a segment that is durable with its head and its name; return its descriptor."""
        segment = Segment(number, base_lsn, self.folder / f"{number:06d}.tcj")
        head = self._head_of(segment)
        unborn = segment.path.with_suffix(".new")
        fd = os.open(unborn, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            _pwrite(fd, [head], 0)
            self._fsync(os.fsync, fd)
            unborn.rename(segment.path)
            self._fsync(os.fsync, self._folder_fd)
        except OSError:
            os.close(fd)
            with suppress(OSError):
                unborn.unlink()
            raise
        self._index_writer = IndexWriter(_index_path(segment), head, base_lsn, 0)
        self._segments.append(segment)
        return fd

    def _head_of(self, segment: Segment) -> bytes:
        return pack_segment_head(self._nonce, self._run_bytes, segment.number, segment.base_lsn)

    # Finding everything again ----------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Find every record: through the indices as far as they can be believed, by a scan behind them."""
        self._segments, damage = self._lay_out()
        self._layout_damage = tuple(damage)
        for segment, after in zip(self._segments, [*self._segments[1:], None], strict=True):
            writable = after is None and not self.readonly
            fd = os.open(segment.path, os.O_RDWR if writable else os.O_RDONLY)
            if writable:
                self._fd = fd  # to be closed by _release, whatever happens below
            try:
                damage += self._load_segment(fd, segment, after)
            finally:
                if not writable:
                    os.close(fd)
        if not self.readonly:
            self._settle(damage)
        self.damage = tuple(damage)

    def _lay_out(self) -> tuple[list[Segment], list[Damage]]:
        """Where each segment begins, and what is wrong with the files as such."""
        segments: list[Segment] = []
        damage: list[Damage] = []
        end_lsn = 0
        for number, path in _segment_files(self.folder):
            expected = segments[-1].number + 1 if segments else 0
            if number > expected:
                what = f"{number - expected} segment(s) before {path.name} are missing"
                damage.append(Damage(expected, 0, 0, what, self._listed_frames(expected, number)))
            head, copy = _read_head(path), _read_head(path.with_suffix(".tci"))
            if head is not None and head[1:4] != (self._nonce, self._run_bytes, number):
                what = f"{path.name} is segment {head.number} of the journal of run {uuid.UUID(bytes=head.run)}"
                if not self.readonly:
                    raise JournalError(f"{what}; this is that of run {self.run}: move it away from {self.folder}")
                damage.append(Damage(number, 0, path.stat().st_size, what))
                continue
            if head is None:
                what = f"the head of {path.name} is damaged"
                damage.append(Damage(number, 0, SEGMENT_HEAD_BYTES, what, derived=True))
                if copy is not None and copy[1:4] == (self._nonce, self._run_bytes, number):
                    head = copy
            base_lsn = end_lsn if head is None else head.base_lsn
            if segments and base_lsn < segments[-1].base_lsn + SEGMENT_HEAD_BYTES:
                raise JournalError(f"{path} begins before the segment in front of it ends: not written by a tilecast")
            segments.append(Segment(number, base_lsn, path))
            end_lsn = base_lsn + path.stat().st_size
        next_number = segments[-1].number + 1 if segments else 0
        lost = [number for number, _ in _numbered_files(self.folder, _INDEX_NAME) if number >= next_number]
        if lost:
            what = f"{lost[-1] + 1 - next_number} segment(s) at the end are missing"
            damage.append(Damage(next_number, 0, 0, what, self._listed_frames(next_number, lost[-1] + 1)))
        return segments, damage

    def _listed_frames(self, first: int, stop: int) -> tuple[int, ...]:
        """Frames of segments that are missing, `first` ≤ number < `stop`, as far as their indices are still there."""
        frames: list[int] = []
        for number in range(first, min(stop, first + _MAX_MISSING)):
            path = self.folder / f"{number:06d}.tci"
            head = _read_head(path)
            if head is not None and head[1:4] == (self._nonce, self._run_bytes, number):
                copy = pack_segment_head(self._nonce, self._run_bytes, number, head.base_lsn)
                frames += read_index(path, copy).entries["frame"].tolist()
        return tuple(frames)

    def _load_segment(self, fd: int, segment: Segment, after: Segment | None) -> list[Damage]:
        """Take in the records of one segment; `self._end` then lies behind its last sound one."""
        base_lsn = segment.base_lsn
        size = os.fstat(fd).st_size
        end = size if after is None else min(size, after.base_lsn - base_lsn)
        head = self._head_of(segment)
        index = read_index(_index_path(segment), head)
        plausible = is_plausible(index, len(self._images), self._most_images(base_lsn + index.upto))
        last = self._last_listed(fd, segment, index, end) if plausible else None
        if last is None:
            self._end = _End(base_lsn + SEGMENT_HEAD_BYTES, -1, len(self._images), self._end.n_records)
            if not self.readonly:
                # It must not be met again when other records have grown where those it lists were.
                _index_path(segment).unlink(missing_ok=True)
        else:
            self._images.add_entries(index.entries, base_lsn)
            self._images.leave_out(_n_images_after(last))
            n_records = self._end.n_records + 1
            self._end = _End(base_lsn + index.upto, base_lsn + index.last_record, len(self._images), n_records)
            self._sound_lsn = self._end.lsn
        self._listed = self._end
        self._index_writer = IndexWriter(_index_path(segment), head, base_lsn, index.nbytes if last is not None else 0)
        # What the index lists was durable, whether or not it is still there; so was all of a segment that has a next.
        self._synced = max(self._synced, base_lsn + index.upto if index.nbytes else 0)
        damage = self._scan(fd, segment, end)
        if after is not None:
            self._synced = after.base_lsn
            if not self.readonly:
                self._list_in_index(self._end)
            return damage + _length_damage(segment, size, after)
        return self._judge_tail(segment, size, damage, index if plausible else NO_INDEX)

    def _judge_tail(self, segment: Segment, size: int, damage: list[Damage], index: Index) -> list[Damage]:
        """Sum up what is wrong behind the last sound record of the last segment: torn by a crash, or decayed."""
        sound = self._end.lsn - segment.base_lsn
        promised = self._synced - segment.base_lsn
        if max(size, promised) <= sound:
            return damage
        frames = [frame for item in damage if item.offset >= sound for frame in item.frames]
        if promised > sound:
            gone = index.entries[index.entries["offset"] >= sound]
            frames += gone["frame"].tolist()
            if len(gone):
                # They keep their ordinals: somebody may have noted them.
                self._images.leave_out(int(gone["image_index"][-1]) + 1)
            what = f"{promised - sound} bytes at the end, once durable, are damaged or missing"
        else:
            what = f"the last {size - sound} bytes were torn by a crash"
            what += "" if self.readonly else " and have been cut off"
        tail = Damage(
            segment.number, sound, max(size, promised) - sound, what, tuple(sorted(set(frames))), promised > sound
        )
        if self.readonly:
            self._layout_damage += (tail,)  # `verify` reads up to the last sound record only
        return [*(item for item in damage if item.offset < sound), tail]

    def _last_listed(self, fd: int, segment: Segment, index: Index, end: int) -> RecordHead | None:
        """The last record that an index lists, or None if the segment does not agree with the index."""
        if not index.nbytes or index.upto > end:
            return None
        data = pread(fd, RECORD_HEAD_BYTES, index.last_record)
        head = parse_record_head(data, self._nonce, segment.base_lsn + index.last_record)
        if head is None or index.last_record + head.nbytes != index.upto:
            return None
        if len(index.entries) and int(index.entries["image_index"][-1]) >= _n_images_after(head):
            return None
        return head

    def _scan(self, fd: int, segment: Segment, end: int) -> list[Damage]:
        """Take in the records from `self._end` on; return what is not sound."""
        damage: list[Damage] = []
        begin = self._end.lsn - segment.base_lsn
        for item in walk(fd, segment, self._nonce, begin, end, with_payload=False, check_payload=True):
            if isinstance(item, Damage):
                damage.append(item)
            elif self._adopt(segment.base_lsn + item.offset, item.head):
                self._synced = max(self._synced, item.head.synced_lsn)
            else:
                what = "the number of an image does not follow on those before"
                damage.append(Damage(segment.number, item.offset, item.head.nbytes, what, item.head.frames))
        return [replace(item, durable=segment.base_lsn + item.offset < self._synced) for item in damage]

    def _adopt(self, lsn: int, head: RecordHead) -> bool:
        """Take in a sound record; False if it counts images in a way that cannot be."""
        if not 0 <= head.image_index - len(self._images) <= self._most_images(lsn):
            return False
        self._images.leave_out(head.image_index)
        if head.kind == RecordKind.IMAGE:
            self._images.add(lsn, head.nbytes, head.frame)
        self._end = _End(lsn + head.nbytes, lsn, len(self._images), self._end.n_records + 1)
        self._sound_lsn = self._end.lsn
        return True

    def _most_images(self, upto_lsn: int) -> int:
        """How many images there can be between the last sound record and `upto_lsn`: bounds what is allocated."""
        return max(0, upto_lsn - self._sound_lsn) // RECORD_HEAD_BYTES + 1

    def _is_decayed(self, size: int) -> bool:
        """True if the last segment, `size` bytes long, ends in bytes that were durable and are no sound record now."""
        return self._end.lsn < min(self._synced, self._segments[-1].base_lsn + size)

    def _settle(self, damage: list[Damage]) -> None:
        """Make what a crash left in the last segment sound, and all that was found durable."""
        segment = self._segments[-1]
        size = os.fstat(self._fd).st_size
        sound = self._end.lsn - segment.base_lsn
        decayed = self._is_decayed(size)
        head = self._head_of(segment)
        if pread(self._fd, len(head), 0) != head:
            _pwrite(self._fd, [head], 0)
        if not decayed and size > sound:
            os.ftruncate(self._fd, sound)
        holes = (item for item in damage if item.segment == segment.number and item.offset < sound)
        for hole in holes:
            if not hole.durable and hole.nbytes >= RECORD_HEAD_BYTES:
                filler = pack_filler(self._nonce, segment.base_lsn + hole.offset, hole.nbytes)
                _pwrite(self._fd, [filler], hole.offset)
        # These may be in the page cache only, marked clean by an fsync that failed in the last process.
        at = min(self._synced - segment.base_lsn, sound)
        while at < sound:
            data = pread(self._fd, min(_CHUNK_BYTES, sound - at), at)
            _pwrite(self._fd, [data], at)
            at += len(data)
        self._fsync(os.fsync, self._fd)
        self._fsync(os.fsync, self._folder_fd)
        self._synced = self._end.lsn
        self._list_in_index(self._end)
        if decayed:
            self._begin_segment(segment.base_lsn + size)

    # Appending -------------------------------------------------------------------------------------------------------

    def append(
        self,
        kind: RecordKind,
        *,
        topic: str,
        header: bytes,
        parts: Sequence[ReadableBuffer] = (),
        t_recv_ns: int,
        frame: int | None = None,
        acked_seq: int = -1,
        pzf: bool = False,
    ) -> Position:
        """Write one message behind the others. It is durable after the next `sync`.

        Parameters
        ----------
        kind : RecordKind
        topic : str
            ASCII, at most 1024 bytes.
        header : bytes
            As it came, at most 1 MiB.
        parts : sequence of buffers
            The payload; each C-contiguous. Never copied as a whole, and not at all if it is one large part that begins
            at a multiple of `journal_direct.ALIGNMENT` in memory.
        t_recv_ns : int
            When the message was received, UTC ns.
        frame : int, optional
            Frame number: of every image, and of nothing else.
        acked_seq : int
            What is settled of this publisher by now; −1 if nothing.
        pzf : bool
            The payload has been encoded as PZF on the way here, and `header` still says what it was before.

        Raises
        ------
        JournalError
            The message breaks a limit, its frame is there already, or the disk refuses (`errno` says how). The journal
            is as it was before. Or an fsync has failed earlier; see the module's text.
        """
        self._check_writable()
        if (kind is RecordKind.IMAGE) != (frame is not None):
            raise JournalError(f"images, and only they, have a frame number; got {kind.name} with frame={frame}")
        if frame is not None and frame in self._images.frames:
            raise JournalError(f"frame {frame} is in the journal of run {self.run} already; drop the duplicate")
        topic_bytes, views = _checked(topic, header, parts)
        meta = struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views)) + topic_bytes + header
        payload_crc = 0
        for view in views:
            payload_crc = crc32(view, payload_crc)
        payload_nbytes = sum(view.nbytes for view in views)
        unpadded = RECORD_HEAD_BYTES + len(meta) + payload_nbytes
        offset = self._end.lsn - self._segments[-1].base_lsn
        before, behind = self._padding(offset + unpadded - payload_nbytes, payload_nbytes)
        if offset > SEGMENT_HEAD_BYTES and offset + before + unpadded + behind > self._segment_bytes:
            with self._sync_lock:
                self._list_in_index(self._sync_written())
                with _as_journal_error(f"cannot begin a new segment in {self.folder}"):
                    self._begin_segment(self._end.lsn)
            offset = SEGMENT_HEAD_BYTES
            before, behind = self._padding(offset + unpadded - payload_nbytes, payload_nbytes)
        nbytes = before + unpadded + behind
        lsn = self._end.lsn
        flags = (frame is not None) * HAS_FRAME | (acked_seq >= 0) * HAS_ACKED_SEQ | pzf * IS_PZF
        try:
            head = pack_record_head(
                kind=kind,
                flags=flags,
                nonce=self._nonce,
                lsn=lsn,
                synced_lsn=self._synced,
                t_recv_ns=t_recv_ns,
                acked_seq=max(0, acked_seq),
                frame=frame or 0,
                image_index=len(self._images),
                payload_nbytes=payload_nbytes,
                topic_nbytes=len(topic_bytes),
                n_parts=len(views),
                padding_before=before,
                padding_behind=behind,
                header_nbytes=len(header),
                meta_crc=crc32(meta),
                payload_crc=payload_crc,
            )
        except struct.error as cause:
            said = f"got frame={frame}, acked_seq={acked_seq}, t_recv_ns={t_recv_ns}"
            raise JournalError(f"numbers of a record are 64-bit, {said}") from cause
        try:
            with _as_journal_error(f"cannot write to {self._segments[-1].path}"):
                self._write(head + meta, views, before, behind, offset)
        except JournalError:
            # Where even this fails, the next record is written over the remains.
            with suppress(OSError):
                os.ftruncate(self._fd, offset)
            raise
        with self._lock:
            image_index = self._images.add(lsn, nbytes, frame) if frame is not None else None
            self._end = _End(lsn + nbytes, lsn, len(self._images), self._end.n_records + 1)
        return Position(lsn + nbytes, image_index)

    def _padding(self, begin: int, nbytes: int) -> tuple[int, int]:
        """Bytes of padding in front of and behind a payload that could begin at `begin` of the last segment."""
        if not self._direct.takes(self._segments[-1].path, nbytes):
            return 0, 0
        return -begin % ALIGNMENT, -nbytes % ALIGNMENT

    def _write(self, front: bytes, views: Sequence[memoryview], before: int, behind: int, offset: int) -> None:
        """Write a record at `offset`: its payload past the page cache if it is one for that, else all of it through."""
        segment, payload_nbytes = self._segments[-1], sum(view.nbytes for view in views)
        if not self._direct.takes(segment.path, payload_nbytes):
            _pwrite(self._fd, [front, bytes(before), *views, bytes(behind)], offset)
            return
        _pwrite(self._fd, [front, bytes(before)], offset)
        at = offset + len(front) + before
        done = self._direct.write(views, at)
        if done < payload_nbytes + behind:
            _pwrite(self._fd, _without([*views, bytes(behind)], done), at + done)

    def _begin_segment(self, base_lsn: int) -> None:
        """Go on in a new segment; all that was written is durable."""
        fd = self._make_segment(self._segments[-1].number + 1, base_lsn)
        with self._lock:
            old, self._fd = self._fd, fd
            self._end = self._listed = self._end._replace(
                lsn=base_lsn + SEGMENT_HEAD_BYTES, last_record=-1, n_images=len(self._images)
            )
            self._synced = self._end.lsn
        os.close(old)

    def sync(self) -> int:
        """Make durable whatever was written when this was called, in whatever segment; return the lsn up to there.

        May be called from any thread, also while another appends. Calls wait for each other. One that comes when the
        journal has just been closed finds everything durable.

        Raises
        ------
        JournalError
            The disk refused, now or earlier: nothing more is durable than `synced_lsn` says, and never will be through
            this object.
        """
        with self._sync_lock:
            if self._closed and not self._broken and not self.readonly:
                return self._synced
            self._check_writable()
            end = self._sync_written()
            due = end.n_records - self._listed.n_records >= _BLOCK_DUE_RECORDS
            if due or end.lsn - self._listed.lsn >= _BLOCK_DUE_BYTES:
                self._list_in_index(end)
            return end.lsn

    def _sync_written(self) -> _End:
        """Sync the last segment (those before it were, when it was begun). The caller holds the sync lock."""
        with self._lock:
            end = self._end
        if end.lsn > self._synced:
            self._fsync(os.fdatasync, self._fd)
            self._synced = end.lsn
        return end

    def _fsync(self, how: Callable[[int], None], fd: int) -> None:
        """Sync, and never trust this journal again if that fails."""
        try:
            how(fd)
        except OSError as cause:
            self._broken = (
                f"the disk refused to make the journal in {self.folder} durable ({cause.strerror}); "
                f"what was written after lsn {self._synced} may be lost: see to the disk, then open the journal anew"
            )
            error = JournalError(self._broken)
            error.errno = cause.errno
            raise error from cause

    def _list_in_index(self, end: _End) -> None:
        """Bring the index of the last loaded segment up to `end`, which is durable."""
        if end.lsn > self._listed.lsn and self._index_writer is not None:
            base_lsn = self._index_writer.base_lsn
            entries = self._images.entries(self._listed.n_images, end.n_images, base_lsn)
            self._index_writer.add(entries, end.lsn - base_lsn, end.last_record - base_lsn)
            self._listed = end

    def _check_writable(self) -> None:
        if self._broken:
            raise JournalError(self._broken)
        if self.readonly:
            raise JournalError(f"the journal in {self.folder} was opened read-only; open it without readonly to write")
        if self._closed:
            raise JournalError(f"the journal in {self.folder} has been closed; open it again to write")

    def close(self) -> None:
        """Sync, complete the index, and give the folder free. Reading goes on working. Closing twice does nothing.

        Raises
        ------
        JournalError
            The last sync failed; the journal is closed all the same.
        """
        with self._sync_lock:
            if self._closed:
                return
            self._closed = True
            try:
                if not self.readonly and not self._broken:
                    self._list_in_index(self._sync_written())
            finally:
                self._release()

    def _release(self) -> None:
        """Close the descriptors, and so give up the lock."""
        self._direct.close()
        for fd in (self._fd, self._folder_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._folder_fd = -1
        self._closed = True

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Reading ---------------------------------------------------------------------------------------------------------

    @property
    def written_lsn(self) -> int:
        """How far the journal has been written."""
        return self._end.lsn

    @property
    def synced_lsn(self) -> int:
        """How far it is known to be durable."""
        return min(self._synced, self._end.lsn)

    @property
    def n_bytes(self) -> int:
        """Bytes of all its segments."""
        return self._end.lsn

    @property
    def n_images(self) -> int:
        """The ordinal of the next image: how many there are, with those that damage has taken."""
        return len(self._images)

    def frames(self) -> RangeSet:
        """The frame numbers of the images that are there."""
        with self._lock:
            return self._images.frames.copy()

    def image(self, image_index: int) -> Record:
        """Read one image by its ordinal; every checksum is verified.

        Raises
        ------
        JournalError
            There is no such image, or damage has taken it.
        """
        if not 0 <= image_index < len(self._images):
            raise JournalError(f"the journal of run {self.run} has {len(self._images)} images, asked for {image_index}")
        place = self._images.locate(image_index)
        if place is None:
            raise JournalError(f"image {image_index} of run {self.run} was lost when its journal was damaged")
        lsn, nbytes, frame = place
        segment = self._segment_at(lsn)
        with _as_journal_error(f"cannot read frame {frame} of run {self.run}"):
            fd = os.open(segment.path, os.O_RDONLY)
            try:
                data = pread(fd, nbytes, lsn - segment.base_lsn)
            finally:
                os.close(fd)
        found, flaw = parse_record(data, self._nonce, lsn, lsn - segment.base_lsn)
        if found is None or found.head.kind != RecordKind.IMAGE or found.head.image_index != image_index:
            raise JournalError(
                f"frame {frame} of run {self.run} cannot be read from {segment.path}: "
                f"{flaw or 'another record lies in its place'}; `tilecast fsck` tells how much is damaged"
            )
        return to_record(found, segment.base_lsn)

    def image_of_frame(self, frame: int) -> Record:
        """Read one image by its frame number; see `image`."""
        image_index = self._images.find(frame)
        if image_index is None:
            raise JournalError(f"frame {frame} is not in the journal of run {self.run}")
        return self.image(image_index)

    def records(
        self, start: int = 0, *, with_parts: bool = True, on_damage: Callable[[Damage], object] | None = None
    ) -> Iterator[Record]:
        """All sound records in order, up to what was written when the iteration began.

        Parameters
        ----------
        start : int
            Where to begin: 0, or the `lsn` of the last record that is not wanted any more.
        with_parts : bool
            Read and check payloads; without them a long journal is walked through quickly.
        on_damage : callable, optional
            Told of everything that had to be skipped.

        Raises
        ------
        JournalError
            A file cannot be read.
        """
        for item, base_lsn in self._items(start, with_payload=with_parts, check_payload=with_parts):
            if isinstance(item, Found):
                yield to_record(item, base_lsn)
            elif on_damage is not None:
                on_damage(item)

    def verify(self, progress: Callable[[int, int], object] | None = None) -> list[Damage]:
        """Read everything, check every checksum, and compare the index with what is there.

        Parameters
        ----------
        progress : callable, optional
            Called with the bytes done and the bytes in all.

        Returns
        -------
        list of Damage
            Empty if the journal is as it was written.
        """
        damage = list(self._layout_damage)
        total = self._end.lsn
        told = 0
        walked: dict[int, list[tuple[int, int, int, int]]] = {segment.number: [] for segment in self._segments}
        for item, base_lsn in self._items(0, with_payload=False, check_payload=True):
            lsn = base_lsn + item.offset
            if isinstance(item, Damage):
                frames = {*item.frames, *self._images.frames_between(lsn, lsn + item.nbytes)}
                damage.append(replace(item, frames=tuple(sorted(frames)), durable=lsn < self._synced))
            elif item.head.kind == RecordKind.IMAGE:
                head = item.head
                number = self._segment_at(lsn).number
                walked[number].append((head.image_index, item.offset, head.nbytes, head.frame))
                known = self._images.locate(head.image_index) if head.image_index < len(self._images) else None
                if known != (lsn, head.nbytes, head.frame):
                    what = f"the index does not lead to frame {head.frame}; delete {number:06d}.tci, it is made anew"
                    damage.append(Damage(number, item.offset, head.nbytes, what, head.frames, derived=True))
            if progress is not None and lsn - told >= _CHUNK_BYTES:
                progress(lsn, total)
                told = lsn
        if progress is not None:
            progress(total, total)
        if self.readonly:  # else somebody adds to it meanwhile; and what was wrong was put right by `open`
            damage += self._index_damage(walked, {item.segment for item in damage})
        return damage

    def _index_damage(self, walked: dict[int, list[tuple[int, int, int, int]]], spoilt: set[int]) -> Iterator[Damage]:
        """What is wrong with index files, given the images that were found in the segments.

        Parameters
        ----------
        walked : dict of int to list of (image_index, offset, nbytes, frame)
            By the number of the segment.
        spoilt : set of int
            Segments of which something has been told: what their indices should list cannot be known.
        """
        for segment, head in self.layout():
            path = _index_path(segment)
            what = index_flaw(path, head)
            if what is None and segment.number not in spoilt:
                index = read_index(path, head)
                there = np.array(walked[segment.number], ENTRY)
                if not np.array_equal(there[there["offset"] < index.upto], index.entries):
                    what = "the index does not list what is in its file"
            if what is not None:
                yield Damage(segment.number, 0, 0, f"{what}; delete {path.name}, it is made anew", derived=True)

    def layout(self) -> tuple[tuple[Segment, bytes], ...]:
        """The segments, each with the bytes that it ought to begin with."""
        return tuple((segment, self._head_of(segment)) for segment in self._segments)

    def _segment_at(self, lsn: int) -> Segment:
        return self._segments[bisect_right(self._segments, lsn, key=lambda segment: segment.base_lsn) - 1]

    def _items(self, start: int, *, with_payload: bool, check_payload: bool) -> Iterator[tuple[Found | Damage, int]]:
        """All records and all damage between `start` and what is written now, each with the lsn of its segment."""
        end_lsn = self._end.lsn
        segments = tuple(self._segments)
        for segment, after in zip(segments, [*segments[1:], None], strict=True):
            base_lsn = segment.base_lsn
            stop = end_lsn if after is None else min(end_lsn, after.base_lsn)
            if stop <= max(start, base_lsn):
                continue
            with _as_journal_error(f"cannot read {segment.path}"):
                fd = os.open(segment.path, os.O_RDONLY)
                try:
                    size = os.fstat(fd).st_size
                    begin = max(SEGMENT_HEAD_BYTES, start - base_lsn)
                    for item in walk(
                        fd,
                        segment,
                        self._nonce,
                        begin,
                        min(size, stop - base_lsn),
                        with_payload=with_payload,
                        check_payload=check_payload,
                    ):
                        yield item, base_lsn
                finally:
                    os.close(fd)
            if after is not None and stop == after.base_lsn:
                for damage in _length_damage(segment, size, after):
                    yield damage, base_lsn


@contextmanager
def _as_journal_error(doing: str) -> Iterator[None]:
    """Turn what the system says into a JournalError that keeps its errno: a full disk is not a broken one."""
    try:
        yield
    except JournalError:
        raise
    except OSError as cause:
        error = JournalError(f"{doing}: {cause.strerror or cause}")
        error.errno = cause.errno
        raise error from cause


def _pwrite(fd: int, buffers: Sequence[bytes | memoryview], offset: int) -> None:
    """Write all buffers at `offset` without joining them, however the kernel divides the work."""
    rest = _without(buffers, 0)
    while rest:
        done = os.pwritev(fd, rest[:_MAX_WRITE_BUFFERS], offset)
        if done == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        offset += done
        rest = _without(rest, done)


def _without(buffers: Sequence[bytes | memoryview], nbytes: int) -> list[memoryview]:
    """What is left of buffers, empty ones dropped, when the first `nbytes` are taken away."""
    left = []
    for buffer in buffers:
        if nbytes < len(buffer):
            left.append(memoryview(buffer)[nbytes:])
        nbytes = max(0, nbytes - len(buffer))
    return left


def _checked(topic: str, header: bytes, parts: Sequence[ReadableBuffer]) -> tuple[bytes, list[memoryview]]:
    """Topic and payload as bytes, or a JournalError if they break a limit."""
    if not topic.isascii() or len(topic) > MAX_TOPIC_BYTES:
        raise JournalError(f"a topic is ASCII of at most {MAX_TOPIC_BYTES} bytes, got {topic[:80]!r}")
    if len(header) > MAX_HEADER_BYTES:
        raise JournalError(f"a header has at most {MAX_HEADER_BYTES} bytes, got {len(header)}")
    if len(parts) > MAX_PARTS:
        raise JournalError(f"a message has at most {MAX_PARTS} payload parts, got {len(parts)}")
    views = []
    for part in parts:
        view = memoryview(part)
        if not view.c_contiguous:
            raise JournalError("payload parts are C-contiguous; pass numpy.ascontiguousarray(part)")
        views.append(view.cast("B") if view.nbytes else memoryview(b""))
    if sum(view.nbytes for view in views) > MAX_PAYLOAD_BYTES:
        raise JournalError(f"a payload has at most {MAX_PAYLOAD_BYTES} bytes, got {sum(view.nbytes for view in views)}")
    return topic.encode("ascii"), views


def _make_folder(folder: Path) -> None:
    """Make a folder whose name survives a crash, and those above it that are not there."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in absent:
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _segment_files(folder: Path) -> list[tuple[int, Path]]:
    """(number, path) of the segments in a folder, in order."""
    return _numbered_files(folder, _SEGMENT_NAME)


def _numbered_files(folder: Path, name: re.Pattern[str]) -> list[tuple[int, Path]]:
    """(number, path) of the files in a folder whose names are of this form, in order."""
    if not folder.is_dir():
        return []
    return sorted((int(path.stem), path) for path in folder.iterdir() if name.fullmatch(path.name))


def _index_path(segment: Segment) -> Path:
    return segment.path.with_suffix(".tci")


def _read_head(path: Path) -> SegmentHead | None:
    """What a segment, or the copy in its index, says of itself; None if that is not sound."""
    try:
        with path.open("rb") as file:
            return parse_segment_head(file.read(SEGMENT_HEAD_BYTES))
    except FileNotFoundError:
        return None


def _identify(folder: Path) -> SegmentHead:
    """A head of the journal that lies in a folder: the one that most of its files agree with."""
    files = _segment_files(folder)
    if not files:
        raise JournalError(f"there is no journal in {folder}: expected files like 000000.tcj")
    heads = [_read_head(name) for _, path in files for name in (path, path.with_suffix(".tci"))]
    votes = Counter((head.nonce, head.run) for head in heads if head is not None)
    if not votes:
        raise JournalError(f"no segment in {folder} has a sound head, nor an index that could stand in for it")
    own = votes.most_common(1)[0][0]
    chosen = next(head for head in heads if head is not None and (head.nonce, head.run) == own)
    newest = max(head.version for head in heads if head is not None)
    if newest > VERSION:
        raise JournalTooNewError(
            f"the journal in {folder} has format {newest}, and this version reads up to {VERSION}: a newer tilecast "
            "wrote it; use that one, or upgrade this one"
        )
    return chosen


def _length_damage(segment: Segment, size: int, after: Segment) -> list[Damage]:
    """What is wrong with the length of a segment that another follows."""
    whole = after.base_lsn - segment.base_lsn
    if size < whole and after.number == segment.number + 1:
        return [Damage(segment.number, size, whole - size, f"the last {whole - size} bytes are missing")]
    if size > whole:
        return [Damage(segment.number, whole, size - whole, f"{size - whole} bytes at the end do not belong here")]
    return []


def _n_images_after(head: RecordHead) -> int:
    """Number of images up to and with this record."""
    return head.image_index + (head.kind == RecordKind.IMAGE)
