"""Large payloads go past the page cache, and nothing the journal promises depends on whether they can."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tilecast_protocol import journal_direct
from tilecast_protocol.errors import JournalError
from tilecast_protocol.journal import Journal, Position, Record, RecordKind
from tilecast_protocol.journal_direct import ALIGNMENT, WORTHWHILE_BYTES, DirectWriter
from tilecast_protocol.journal_format import RECORD_HEAD_BYTES, SEGMENT_HEAD_BYTES

RUN = "7b0e8a52-5b57-4c38-9f1e-2d0b4f9b6a11"
TOPIC = "tc1/scope/cam/image"
LARGE = WORTHWHILE_BYTES + 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file on a file system that can be written to past the page cache."""
    path = tmp_path / "target"
    path.touch()
    writer = DirectWriter()
    able = writer.takes(path, LARGE) and writer.write([memoryview(b"x")], 0) == ALIGNMENT
    writer.close()
    if not able:
        pytest.skip("the temporary folder's file system has no O_DIRECT")
    return path


class Writes:
    """Which bytes of which file were written, in which way, and from where in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.direct: list[tuple[str, int, int]] = []
        self.cached: list[tuple[str, int, int]] = []
        self.addresses: list[int] = []
        self.before: Callable[[int, Sequence[memoryview]], Sequence[memoryview]] = lambda _, buffers: buffers
        real = os.pwritev

        def pwritev(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
            if is_direct(fd):
                buffers = self.before(offset, buffers)
            done = real(fd, buffers, offset)
            name = Path(f"/proc/self/fd/{fd}").readlink().stem
            (self.direct if is_direct(fd) else self.cached).append((name, offset, offset + done))
            self.addresses += [np.frombuffer(buffer, np.uint8).ctypes.data for buffer in buffers]
            return done

        monkeypatch.setattr(os, "pwritev", pwritev)


@pytest.fixture
def writes(target: Path, monkeypatch: pytest.MonkeyPatch) -> Writes:
    assert target.exists()
    return Writes(monkeypatch)


def is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def at_page(nbytes: int, beside: int = 0) -> NDArray[np.uint8]:
    """Random bytes that begin `beside` bytes behind a page boundary."""
    memory = np.empty(nbytes + 2 * ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT + beside
    memory[:] = np.random.default_rng(nbytes).integers(0, 256, memory.size, np.uint8)
    return memory[start : start + nbytes]


def add_image(journal: Journal, frame: int, nbytes: int = LARGE) -> Position:
    return journal.append(
        RecordKind.IMAGE,
        topic=TOPIC,
        header=b"header of %d" % frame,
        parts=[payload_of(frame, nbytes)],
        t_recv_ns=frame,
        frame=frame,
    )


def add_stage(journal: Journal, nbytes: int = 30) -> Position:
    return journal.append(RecordKind.STAGE, topic="tc1/scope/xy/stage", header=bytes(nbytes), t_recv_ns=0)


def payload_of(frame: int, nbytes: int = LARGE) -> bytes:
    return np.random.default_rng(frame).bytes(nbytes)


def n_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def payloads(records: Iterable[Record]) -> list[bytes]:
    return [b"".join(record.parts) for record in records]


def refuse_direct_files(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Be a file system that does not know O_DIRECT; returns what was asked of it."""
    real = os.open
    asked: list[object] = []

    def open_(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_DIRECT == os.O_DIRECT:
            asked.append(path)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", open_)
    return asked


# The writer by itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [ALIGNMENT, 4 * ALIGNMENT, 1 << 20])
@pytest.mark.parametrize(
    "views",
    [
        [at_page(1)],
        [at_page(ALIGNMENT)],
        [at_page(3 * ALIGNMENT)],
        [at_page(4 * ALIGNMENT + 17)],
        [at_page(4 * ALIGNMENT + 17, beside=1)],
        [at_page(8 * ALIGNMENT, beside=512)],
        [at_page(ALIGNMENT), at_page(ALIGNMENT)],
        [at_page(5), at_page(0), at_page(9 * ALIGNMENT - 5, beside=3)],
        [at_page(n) for n in range(200)],
        [at_page(0)],
        [],
    ],
)
def test_what_is_written_is_there_with_zeros_up_to_a_whole_block(
    target: Path, views: list[NDArray[np.uint8]], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_direct, "_ROOM_BYTES", room)
    writer = DirectWriter()
    assert writer.takes(target, LARGE)
    for offset in (ALIGNMENT, 0):  # the second one from the same memory, which is not clean any more
        target.write_bytes(b"\xff" * 3 * ALIGNMENT)
        expected = b"".join(view.tobytes() for view in views)
        expected += bytes(-len(expected) % ALIGNMENT)
        assert writer.write([view.data for view in views], offset) == len(expected)
        assert target.read_bytes()[offset : offset + len(expected)] == expected
    writer.close()


def test_an_aligned_payload_is_written_from_where_it_lies(target: Path, writes: Writes) -> None:
    writer = DirectWriter()
    assert writer.takes(target, LARGE)
    payload = at_page(10 * ALIGNMENT + 5)
    writer.write([payload.data], 0)
    assert writes.addresses[0] == payload.ctypes.data
    assert len(writes.addresses) == 2, "and what is behind the last whole block from elsewhere"
    assert target.read_bytes()[: payload.size] == payload.tobytes()
    writer.close()


def test_small_payloads_are_left_to_the_page_cache(target: Path) -> None:
    writer = DirectWriter()
    assert not writer.takes(target, WORTHWHILE_BYTES - 1)
    assert writer.takes(target, WORTHWHILE_BYTES)
    assert not DirectWriter(wanted=False).takes(target, WORTHWHILE_BYTES)
    writer.close()


def test_a_file_system_that_cannot_is_asked_once_for_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = refuse_direct_files(monkeypatch)
    writer = DirectWriter()
    paths = [tmp_path / "a", tmp_path / "a", tmp_path / "b", tmp_path / "b"]
    assert [writer.takes(path, LARGE) for path in paths] == [False] * 4
    assert asked == [tmp_path / "a", tmp_path / "b"]


def test_no_descriptor_is_left_open(target: Path, tmp_path: Path) -> None:
    before = n_descriptors()
    writer = DirectWriter()
    (tmp_path / "other").touch()
    for path in (target, tmp_path / "other", target):
        assert writer.takes(path, LARGE)
        assert n_descriptors() == before + 1
    writer.close()
    writer.close()
    assert n_descriptors() == before


# In a journal --------------------------------------------------------------------------------------------------------


def sizes() -> Iterator[tuple[int, int]]:
    """Lengths of payloads and of headers: below, around and above what is worthwhile, and at the seams of blocks."""
    for i, nbytes in enumerate(
        [0, 100, LARGE, LARGE, 5000, WORTHWHILE_BYTES - 1, WORTHWHILE_BYTES, 100, WORTHWHILE_BYTES + ALIGNMENT - 1]
    ):
        yield nbytes, 30 + i
    for header_nbytes in range(ALIGNMENT - RECORD_HEAD_BYTES - 60, ALIGNMENT - RECORD_HEAD_BYTES, 20):
        yield LARGE, header_nbytes  # the stage messages in between move the begin through the end of a block


@pytest.mark.parametrize("direct", [True, False])
def test_images_of_every_size_come_back_in_between_small_records(folder: Path, direct: bool) -> None:
    with Journal.create(folder, RUN, segment_bytes=4 * LARGE, direct=direct) as journal:
        for frame, (nbytes, header_nbytes) in enumerate(sizes()):
            add_image(journal, frame, nbytes)
            add_stage(journal, header_nbytes)
        journal.sync()
        whole = list(journal.records())
        ends = [record.lsn for record in whole]
    for readonly, other_way in ((True, direct), (False, not direct)):
        with Journal.open(folder, readonly=readonly, direct=other_way) as journal:
            assert journal.damage == ()
            assert journal.verify() == []
            assert list(journal.records()) == whole
            assert list(journal.records(ends[4])) == whole[5:]
            for frame, (nbytes, _) in enumerate(sizes()):
                assert payloads([journal.image_of_frame(frame)]) == [payload_of(frame, nbytes)]
            if not readonly:
                add_image(journal, 999)
                assert journal.verify() == []
    for path in folder.glob("*.tci"):
        path.unlink()
    with Journal.open(folder, readonly=True) as journal:
        assert [*journal.records()][:-1] == whole


def test_no_block_is_written_both_ways(folder: Path, writes: Writes) -> None:
    """What would be lost if it were: the kernel keeps the two in agreement only as a favour."""
    for frame, (nbytes, header_nbytes) in enumerate(sizes()):
        if frame == 0:
            journal = Journal.create(folder, RUN, segment_bytes=4 * LARGE)
        elif frame == 6:
            journal.close()
            journal = Journal.open(folder, segment_bytes=4 * LARGE)
        add_image(journal, frame, nbytes)
        add_stage(journal, header_nbytes)
    journal.close()
    assert {begin % ALIGNMENT for _, begin, _ in writes.direct} == {0}
    assert {end % ALIGNMENT for _, _, end in writes.direct} == {0}
    blocks = [
        {(name, block) for name, begin, end in spans for block in range(begin // ALIGNMENT, -(-end // ALIGNMENT))}
        for spans in (writes.direct, writes.cached)
    ]
    assert len(blocks[0]) > 5 * LARGE // ALIGNMENT
    assert len(blocks[1]) < WORTHWHILE_BYTES // ALIGNMENT + 100
    assert not blocks[0] & blocks[1]


def test_padding_on_disk_is_what_the_text_says(folder: Path, target: Path) -> None:
    assert target.exists()
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 0)
    data = (folder / "000000.tcj").read_bytes()
    meta_nbytes = 8 + len(TOPIC) + len(b"header of 0")
    before, behind = struct.unpack_from("<HH", data, SEGMENT_HEAD_BYTES + 76)
    payload_at = SEGMENT_HEAD_BYTES + RECORD_HEAD_BYTES + meta_nbytes + before
    assert payload_at == ALIGNMENT
    assert data[payload_at : payload_at + LARGE] == payload_of(0)
    assert len(data) == payload_at + LARGE + behind == payload_at + LARGE + -LARGE % ALIGNMENT
    assert not any(data[payload_at - before : payload_at])
    assert not any(data[payload_at + LARGE :])


def test_a_flipped_bit_costs_a_record_only_where_it_says_something(folder: Path, target: Path) -> None:
    assert target.exists()
    with Journal.create(folder, RUN) as journal:
        ends = [SEGMENT_HEAD_BYTES, *(add_image(journal, frame).lsn for frame in range(3))]
        behind = -LARGE % ALIGNMENT
        payload_at = ends[2] - behind - LARGE
        damaging = {ends[1]: True, payload_at - 1: False, payload_at: True, ends[2] - behind - 1: True}
        for offset, costs in {**damaging, ends[2] - behind: False, ends[2] - 1: False}.items():
            flip(folder / "000000.tcj", offset)
            assert [item.frames for item in journal.verify()] == [(1,)] * costs
            assert [record.frame for record in journal.records()] == ([0, 2] if costs else [0, 1, 2])
            if costs:
                with pytest.raises(JournalError, match="cannot be read"):
                    journal.image(1)
            else:
                assert payloads([journal.image(1)]) == [payload_of(1)]
            flip(folder / "000000.tcj", offset)
        assert journal.verify() == []


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file; a second time, change it back."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def test_written_past_the_cache_is_not_called_durable(
    folder: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drive's own cache, and the file's length: they take an fsync as much as a page does."""
    assert target.exists()
    synced: list[int] = []
    with Journal.create(folder, RUN) as journal:
        monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_size))
        end = add_image(journal, 0).lsn
        assert journal.synced_lsn < journal.written_lsn == end
        assert synced == []
        assert journal.sync() == end == journal.synced_lsn
        assert synced == [end]


def test_a_closed_journal_holds_no_file(folder: Path, target: Path) -> None:
    assert target.exists()
    before = n_descriptors()
    with Journal.create(folder, RUN, segment_bytes=3 * LARGE) as journal:
        for frame in range(5):
            add_image(journal, frame)
        assert n_descriptors() == before + 3, "folder, segment, and the segment for large payloads"
    assert n_descriptors() == before


# Refusals ------------------------------------------------------------------------------------------------------------


def test_where_files_cannot_be_opened_for_it_the_page_cache_is_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = refuse_direct_files(monkeypatch)
    with Journal.create(folder, RUN, segment_bytes=3 * LARGE) as journal:
        for frame in range(5):
            add_image(journal, frame)
        assert [record.frame for record in journal.records()] == [0, 1, 2, 3, 4]
        assert journal.verify() == []
    assert asked == sorted(folder.glob("*.tcj")), "asked once for each segment"
    assert (folder / "000000.tcj").stat().st_size < 2 * LARGE + 1000, "nothing is padded"


def test_where_writes_are_refused_the_page_cache_takes_over(folder: Path, writes: Writes) -> None:
    """Some file systems let such a file be opened, and refuse only then."""

    refused: list[int] = []

    def refuse(offset: int, _buffers: Sequence[memoryview]) -> Sequence[memoryview]:
        refused.append(offset)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with Journal.create(folder, RUN, segment_bytes=3 * LARGE) as journal:
        writes.before = refuse
        for frame in range(2):
            add_image(journal, frame)
        assert writes.direct == []
        assert refused == [ALIGNMENT], "asked once"
        writes.before = lambda _, buffers: buffers
        add_image(journal, 2)
        assert [name for name, _, _ in writes.direct] == ["000001"], "a new segment is tried anew"
        assert payloads(journal.records()) == [payload_of(frame) for frame in range(3)]
        assert journal.verify() == []


@pytest.mark.parametrize("aligned", [True, False])
def test_a_write_that_stops_early_is_completed(
    folder: Path, writes: Writes, monkeypatch: pytest.MonkeyPatch, aligned: bool
) -> None:
    monkeypatch.setattr(journal_direct, "_ROOM_BYTES", 8 * ALIGNMENT)
    payload = at_page(LARGE, beside=0 if aligned else 8)
    with Journal.create(folder, RUN) as journal:
        writes.before = lambda _, buffers: [buffers[0][: 3 * ALIGNMENT]]
        journal.append(RecordKind.IMAGE, topic=TOPIC, header=b"", parts=[payload.data], t_recv_ns=0, frame=0)
        assert writes.direct == [("000000", ALIGNMENT, 4 * ALIGNMENT)]
        assert writes.cached[-1] == ("000000", 4 * ALIGNMENT, journal.written_lsn), "and nothing twice"
        assert payloads([journal.image(0)]) == [payload.tobytes()]
        writes.before = lambda _, buffers: buffers
        add_image(journal, 1)
    with Journal.open(folder, readonly=True) as journal:
        assert journal.verify() == []
        assert payloads([journal.image(1)]) == [payload_of(1)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("n_calls", [0, 1])
def test_a_disk_that_refuses_in_the_middle_leaves_the_journal_as_it_was(
    folder: Path, writes: Writes, monkeypatch: pytest.MonkeyPatch, code: int, n_calls: int
) -> None:
    monkeypatch.setattr(journal_direct, "_ROOM_BYTES", 8 * ALIGNMENT)
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 0)
        before = add_stage(journal)

        def refuse(offset: int, buffers: Sequence[memoryview]) -> Sequence[memoryview]:
            if offset >= before.lsn + n_calls * 8 * ALIGNMENT:
                raise OSError(code, os.strerror(code))
            return buffers

        writes.before = refuse
        with pytest.raises(JournalError, match="cannot write to") as caught:
            add_image(journal, 1)
        assert caught.value.errno == code
        assert (folder / "000000.tcj").stat().st_size == journal.written_lsn == before.lsn
        assert journal.n_images == 1
        writes.before = lambda _, buffers: buffers
        n_direct = len(writes.direct)
        add_image(journal, 1)
        assert len(writes.direct) > n_direct, "such a disk can still be written to past the cache"
    with Journal.open(folder) as journal:
        assert journal.damage == ()
        assert journal.verify() == []
        assert payloads([journal.image(1)]) == [payload_of(1)]


@pytest.mark.parametrize("room", [0, 1, 100, 4096, 5000, 8192, 8192 + 512, 100_000, LARGE, LARGE + 4096])
def test_a_file_that_may_not_grow_is_cut_back(folder: Path, target: Path, room: int) -> None:
    """The kernel itself cuts the write short, at whatever byte."""
    assert target.exists()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 0)
        before = add_stage(journal)
        resource.setrlimit(resource.RLIMIT_FSIZE, (before.lsn + room, hard))
        try:
            with pytest.raises(JournalError, match="cannot write to") as caught:
                add_image(journal, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.errno == errno.EFBIG
        assert (folder / "000000.tcj").stat().st_size == journal.written_lsn == before.lsn
        assert add_image(journal, 1).image_index == 1
        assert journal.verify() == []
        assert payloads([journal.image(1)]) == [payload_of(1)]
