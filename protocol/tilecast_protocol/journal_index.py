"""How one image of a journal is found without a scan: a table in memory, and its copy beside each segment.

The table costs 40 bytes per image, in arrays of machine integers. Its copy `000000.tci` is derived: it may be deleted
at any time, and is believed only as far as it agrees with the segment (`Journal` decides that). It lists only what was
durable when it was written, so it never vouches for bytes that a power failure took.

An index file is a copy of the 64 bytes at the head of its segment (which also makes good for them if they decay), then
blocks: magic `TCJX`, u4 number of entries, u8 offset in the segment up to which this block and those before it speak,
u8 offset of the last record before that, u4 CRC-32 of these 24 bytes and the entries. An entry is four u8:
image_index, offset in the segment, bytes of the record, frame. All integers are little-endian.
"""

from __future__ import annotations

import itertools
import os
import struct
from array import array
from bisect import bisect_left
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from tilecast_protocol.journal_format import SEGMENT_HEAD_BYTES
from tilecast_protocol.ranges import UINT64_MAX, RangeSet

ENTRY = np.dtype([("image_index", "<u8"), ("offset", "<u8"), ("nbytes", "<u8"), ("frame", "<u8")])
"""One image of a segment; `offset` and `nbytes` are those of its whole record."""

_BLOCK = struct.Struct("<4sIQQ")
_CRC = struct.Struct("<I")
_BLOCK_BYTES = _BLOCK.size + _CRC.size
_MAGIC = b"TCJX"
_LOST = UINT64_MAX


class FrameTable:
    """Which image has which frame number: two sorted arrays, and the few that came late until they are merged in.

    Frames nearly always come in ascending order; then adding one is an append and finding one a binary search. What
    comes out of order waits in a dict, which is merged before it outgrows a fraction of the arrays. One thread adds,
    any thread finds: a merge replaces the whole state in one assignment.
    """

    def __init__(self) -> None:
        self._state: tuple[array[int], array[int], dict[int, int]] = (array("Q"), array("Q"), {})

    def add(self, frame: int, image_index: int) -> None:
        """Note an image."""
        frames, indices, late = self._state
        if not frames or frame > frames[-1]:
            indices.append(image_index)  # first, so that a frame that is found has its index
            frames.append(frame)
            return
        late[frame] = image_index
        if len(late) > max(1024, len(frames) // 8):
            all_frames = np.concatenate([np.array(frames), np.fromiter(late, np.uint64, len(late))])
            all_indices = np.concatenate([np.array(indices), np.fromiter(late.values(), np.uint64, len(late))])
            order = np.argsort(all_frames, kind="stable")
            self._state = (array("Q", all_frames[order].tobytes()), array("Q", all_indices[order].tobytes()), {})

    def add_stretch(self, frame: int, image_index: int, n_images: int) -> None:
        """Note images whose frame numbers and ordinals both go up by one."""
        frames, indices, _ = self._state
        if frames and frame <= frames[-1]:
            for i in range(n_images):
                self.add(frame + i, image_index + i)
            return
        indices.extend(range(image_index, image_index + n_images))
        frames.extend(range(frame, frame + n_images))

    def find(self, frame: int) -> int | None:
        """The image's ordinal, or None."""
        frames, indices, late = self._state
        i = bisect_left(frames, frame)
        if i < len(frames) and frames[i] == frame:
            return indices[i]
        return late.get(frame)


class ImageTable:
    """Where the record of each image begins, how long it is, and its frame number.

    One thread adds, any thread looks up. Ordinals may have holes, left by images that damage has taken.
    """

    def __init__(self) -> None:
        self._begins = array("Q")
        self._lengths = array("Q")
        self._frame_numbers = array("Q")
        self._by_frame = FrameTable()
        self.frames = RangeSet()
        """Frame numbers that are there. To be read by the adding thread only."""

    def __len__(self) -> int:
        """The ordinal of the next image."""
        return len(self._begins)

    def add(self, lsn: int, nbytes: int, frame: int) -> int:
        """Note the next image, whose record of `nbytes` begins at `lsn`; return its ordinal."""
        image_index = len(self._begins)
        self._lengths.append(nbytes)
        self._frame_numbers.append(frame)
        self._begins.append(lsn)  # last: it is what makes the image visible to other threads
        self._by_frame.add(frame, image_index)
        self.frames.add(frame)
        return image_index

    def leave_out(self, upto: int) -> None:
        """Leave holes for the ordinals below `upto` that were never added."""
        hole = array("Q", (_LOST,)) * max(0, upto - len(self._begins))
        self._lengths.extend(hole)
        self._frame_numbers.extend(hole)
        self._begins.extend(hole)

    def add_entries(self, entries: NDArray[Any], base_lsn: int) -> None:
        """Note images of an index file; the ordinals must ascend from at least `len(self)`."""
        steps = (np.diff(entries["image_index"]) == 1) & (np.diff(entries["frame"]) == 1)
        cuts = [0, *(np.flatnonzero(~steps) + 1).tolist(), len(entries)]
        for first, stop in itertools.pairwise(cuts if len(entries) else ()):
            # Images in order: nearly always one stretch, so that a long journal opens at once.
            stretch = entries[first:stop]
            image_index, frame = int(stretch["image_index"][0]), int(stretch["frame"][0])
            self.leave_out(image_index)
            self._lengths.frombytes(stretch["nbytes"].tobytes())
            self._frame_numbers.frombytes(stretch["frame"].tobytes())
            self._begins.frombytes((stretch["offset"] + np.uint64(base_lsn)).tobytes())
            self._by_frame.add_stretch(frame, image_index, len(stretch))
            self.frames.add_range(frame, frame + len(stretch) - 1)

    def find(self, frame: int) -> int | None:
        """Ordinal of the image with this frame number, or None."""
        return self._by_frame.find(frame)

    def locate(self, image_index: int) -> tuple[int, int, int] | None:
        """(lsn, bytes, frame) of an image's record, or None for a hole."""
        lsn = self._begins[image_index]
        if lsn == _LOST:
            return None
        return lsn, self._lengths[image_index], self._frame_numbers[image_index]

    def entries(self, first: int, stop: int, base_lsn: int) -> NDArray[Any]:
        """The images `first` ≤ ordinal < `stop` as index entries of the segment that begins at `base_lsn`."""
        begins = np.array(self._begins[first:stop], np.uint64)
        entries = np.empty(len(begins), ENTRY)
        entries["image_index"] = np.arange(first, first + len(begins))
        entries["offset"] = begins - np.uint64(base_lsn)
        entries["nbytes"] = np.array(self._lengths[first:stop], np.uint64)
        entries["frame"] = np.array(self._frame_numbers[first:stop], np.uint64)
        there: NDArray[Any] = entries[begins != _LOST]
        return there

    def frames_between(self, begin_lsn: int, end_lsn: int) -> list[int]:
        """Frame numbers of the images whose records begin in a stretch of the journal."""
        begins = np.array(self._begins[:], np.uint64)
        inside = (begins >= begin_lsn) & (begins < min(end_lsn, _LOST))
        numbers: list[int] = np.array(self._frame_numbers[: len(begins)], np.uint64)[inside].tolist()
        return numbers


class Index(NamedTuple):
    """What an index file says: images, up to which offset it speaks, the last record before that, its own length."""

    entries: NDArray[Any]
    upto: int
    last_record: int
    nbytes: int


NO_INDEX = Index(np.empty(0, ENTRY), SEGMENT_HEAD_BYTES, -1, 0)


def read_index(path: Path, head: bytes) -> Index:
    """Read an index file as far as its checksums hold.

    Parameters
    ----------
    head : bytes
        The first bytes that the segment has, or ought to have: those of another segment's index differ.

    Returns
    -------
    Index
        `NO_INDEX` if there is nothing to be believed.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return NO_INDEX
    if data[: len(head)] != head:
        return NO_INDEX
    at, upto, last_record = len(head), SEGMENT_HEAD_BYTES, -1
    pieces = []
    while at + _BLOCK_BYTES <= len(data):
        magic, n_entries, block_upto, block_last = _BLOCK.unpack_from(data, at)
        end = at + _BLOCK_BYTES + n_entries * ENTRY.itemsize
        if magic != _MAGIC or end > len(data):
            break
        entries = data[at + _BLOCK_BYTES : end]
        if crc32(entries, crc32(data[at : at + _BLOCK.size])) != _CRC.unpack_from(data, at + _BLOCK.size)[0]:
            break
        if not upto < block_upto or not upto <= block_last < block_upto:
            break
        pieces.append(entries)
        at, upto, last_record = end, block_upto, block_last
    if last_record < 0:
        return NO_INDEX
    return Index(np.frombuffer(b"".join(pieces), ENTRY), upto, last_record, at)


def index_flaw(path: Path, head: bytes) -> str | None:
    """What is wrong with an index file by itself, whatever is in its segment; None if it is sound, or not there.

    Parameters
    ----------
    head : bytes
        As for `read_index`.
    """
    try:
        nbytes = path.stat().st_size
    except FileNotFoundError:
        return None
    sound = read_index(path, head).nbytes
    if nbytes <= sound:
        return None
    return (
        f"the index is damaged from its byte {sound} on" if sound else "the index is damaged, or not that of this file"
    )


def is_plausible(index: Index, first_image: int, most_images: int) -> bool:
    """True if the entries ascend, do not overlap, lie within what the index speaks of, and skip few enough ordinals.

    Parameters
    ----------
    first_image : int
        Lowest ordinal that may come.
    most_images : int
        How many images, lost ones included, the bytes have room for: bounds what may be allocated.
    """
    entries = index.entries
    if not len(entries):
        return True
    begins, ordinals = entries["offset"], entries["image_index"]
    ends = begins + entries["nbytes"]
    return bool(
        ordinals[0] >= first_image
        and int(ordinals[-1]) - first_image < most_images
        and begins[0] >= SEGMENT_HEAD_BYTES
        and (ends > begins).all()
        and ends[-1] <= index.upto
        and (ordinals[1:] > ordinals[:-1]).all()
        and (begins[1:] >= ends[:-1]).all()
    )


class IndexWriter:
    """Adds blocks to the index file of the segment that begins at `base_lsn`.

    An index can always be made anew, so a disk that refuses one is no reason to stop a scan: the writer then gives up,
    and the next `Journal.open` scans what is not listed.
    """

    def __init__(self, path: Path, head: bytes, base_lsn: int, nbytes: int) -> None:
        self.base_lsn = base_lsn
        self._path = path
        self._head = head
        self._nbytes = nbytes
        self._gave_up = False

    def add(self, entries: NDArray[Any], upto: int, last_record: int) -> None:
        """Write one block; see the module's text for its fields."""
        if self._gave_up:
            return
        body = entries.tobytes()
        fields = _BLOCK.pack(_MAGIC, len(entries), upto, last_record)
        data = fields + _CRC.pack(crc32(body, crc32(fields))) + body
        if not self._nbytes:
            data = self._head + data
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.ftruncate(fd, self._nbytes)
                self._gave_up = os.pwrite(fd, data, self._nbytes) < len(data)
                self._nbytes += len(data)
            finally:
                os.close(fd)
        except OSError:
            self._gave_up = True
