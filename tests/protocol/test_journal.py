"""The journal keeps what it promised, says what it lost, and stays usable when the disk does not play along."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilecast_protocol import journal_direct
from tilecast_protocol.errors import JournalError, TilecastError
from tilecast_protocol.journal import Damage, Journal, Position, Record, RecordKind
from tilecast_protocol.journal_format import RECORD_HEAD_BYTES, SEGMENT_HEAD_BYTES, pack_record_head
from tilecast_protocol.journal_index import ENTRY, IndexWriter

RUN = "7b0e8a52-5b57-4c38-9f1e-2d0b4f9b6a11"
OTHER_RUN = "11111111-2222-4333-8444-555555555555"
TOPIC = "tc1/scope/cam/image"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "journal"


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that open hundreds of journals and do not ask what survives a power failure."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)


@pytest.fixture(params=["cached", "direct"])
def way(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small payloads go through the page cache, as they do anyhow, or past it, as large ones do."""
    if request.param == "direct":
        monkeypatch.setattr(journal_direct, "WORTHWHILE_BYTES", 1)
        needs_direct(tmp_path)
    return str(request.param)


def needs_direct(folder: Path) -> None:
    """Skip where the file system cannot be written to past the page cache."""
    probe = folder / "probe"
    probe.touch()
    writer = journal_direct.DirectWriter()
    able = writer.takes(probe, 1 << 30) and writer.write([memoryview(b"x")], 0) > 0
    writer.close()
    probe.unlink()
    if not able:
        pytest.skip("the temporary folder's file system has no O_DIRECT")


def add_image(journal: Journal, frame: int, nbytes: int = 100) -> Position:
    """Append an image whose header and payload tell its frame number."""
    return journal.append(
        RecordKind.IMAGE,
        topic=TOPIC,
        header=b"header of %d" % frame,
        parts=[payload_of(frame, nbytes)],
        t_recv_ns=1_000 + frame,
        frame=frame,
        acked_seq=frame - 1,
    )


def add_stage(journal: Journal, number: int = 0) -> Position:
    return journal.append(RecordKind.STAGE, topic="tc1/scope/xy/stage", header=b"stage %d" % number, t_recv_ns=number)


def payload_of(frame: int, nbytes: int = 100) -> bytes:
    return np.random.default_rng(frame).bytes(nbytes)


def frames_of(records: Iterator[Record]) -> list[int | None]:
    return [record.frame for record in records if record.kind is RecordKind.IMAGE]


def segments_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tcj"))


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


# What goes in comes out ----------------------------------------------------------------------------------------------


def test_every_field_comes_back(folder: Path) -> None:
    pixels = np.arange(12, dtype="<u2").reshape(3, 4)
    with Journal.create(folder, RUN) as journal:
        journal.append(
            RecordKind.START, topic="tc1/a/b/start", header=b"\x81\x01", parts=[b"dark", b"flat!"], t_recv_ns=5
        )
        where = journal.append(
            RecordKind.IMAGE,
            topic=TOPIC,
            header=b"as it came",
            parts=[pixels, memoryview(b""), bytearray(b"xyz")],
            t_recv_ns=2**62,
            frame=2**64 - 1,
            acked_seq=2**64 - 1,
            pzf=True,
        )
        start, image = journal.records()
        assert start == Record(
            kind=RecordKind.START,
            topic="tc1/a/b/start",
            header=b"\x81\x01",
            parts=(memoryview(b"dark"), memoryview(b"flat!")),
            part_nbytes=(4, 5),
            t_recv_ns=5,
            frame=None,
            image_index=None,
            acked_seq=-1,
            pzf=False,
            lsn=start.lsn,
        )
        assert (image.kind, image.topic, image.header) == (RecordKind.IMAGE, TOPIC, b"as it came")
        assert image.parts == (pixels.tobytes(), b"", b"xyz")
        assert image.part_nbytes == (24, 0, 3)
        assert (image.t_recv_ns, image.frame, image.acked_seq) == (2**62, 2**64 - 1, 2**64 - 1)
        assert image.pzf
        assert (image.lsn, image.image_index) == where == (journal.written_lsn, 0)
        assert start.lsn < image.lsn
        assert journal.image(0) == image == journal.image_of_frame(2**64 - 1)
    with Journal.open(folder, readonly=True) as again:
        assert list(again.records()) == [start, image]
        assert again.run == RUN


def test_images_are_found_by_ordinal_and_by_frame_in_whatever_order_they_came(folder: Path) -> None:
    frames = np.random.default_rng(1).permutation(5000).tolist()
    with Journal.create(folder, RUN, segment_bytes=100_000) as journal:
        for frame in frames:
            add_image(journal, frame, 1)
            add_stage(journal)
    for readonly in (True, False):
        with Journal.open(folder, readonly=readonly) as journal:
            assert len(segments_of(folder)) > 10
            assert journal.n_images == 5000
            assert journal.frames().ranges() == [(0, 4999)]
            for image_index in range(0, 5000, 37):
                frame = frames[image_index]
                record = journal.image_of_frame(frame)
                assert (record.frame, record.image_index) == (frame, image_index)
                assert record == journal.image(image_index)
                assert record.parts == (payload_of(frame, 1),)


def test_records_without_payload_tell_their_lengths(folder: Path) -> None:
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 0, 100_000)
        add_stage(journal)
        image, stage = journal.records(with_parts=False)
    assert (image.parts, image.part_nbytes) == ((), (100_000,))
    assert image.header == b"header of 0"
    assert stage.header == b"stage 0"


def test_records_go_on_from_any_lsn_the_journal_gave(folder: Path) -> None:
    with Journal.create(folder, RUN, segment_bytes=600) as journal:
        ends = [add_image(journal, frame).lsn for frame in range(10)]
        everything = list(journal.records())
        for i, lsn in enumerate(ends):
            damage: list[Damage] = []
            assert list(journal.records(lsn, on_damage=damage.append)) == everything[i + 1 :]
            assert not damage


def test_an_iteration_ends_with_what_was_there_when_it_began(folder: Path) -> None:
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 0)
        records = journal.records()
        next(records)
        add_image(journal, 1)
        assert list(records) == []


def test_a_record_larger_than_a_segment_gets_one_of_its_own(folder: Path) -> None:
    with Journal.create(folder, RUN, segment_bytes=1000) as journal:
        add_stage(journal)
        add_image(journal, 0, 5000)
        add_stage(journal, 1)
        assert [path.stat().st_size > 1000 for path in segments_of(folder)] == [False, True, False]
        assert journal.n_bytes == sum(path.stat().st_size for path in segments_of(folder))
        assert [record.kind.name for record in journal.records()] == ["STAGE", "IMAGE", "STAGE"]


def test_many_parts_are_written_in_one_record(folder: Path) -> None:
    parts = [bytes([i % 256]) * (i % 5) for i in range(1024)]
    with Journal.create(folder, RUN) as journal:
        journal.append(RecordKind.EVENT, topic=TOPIC, header=b"", parts=parts, t_recv_ns=0)
        (record,) = journal.records()
        assert record.parts == tuple(parts)


def test_a_payload_is_not_copied_on_its_way_to_the_disk(folder: Path) -> None:
    pixels = np.zeros(32 << 20, np.uint8)
    with Journal.create(folder, RUN) as journal:
        tracemalloc.start()
        try:
            journal.append(RecordKind.IMAGE, topic=TOPIC, header=b"", parts=[pixels], t_recv_ns=0, frame=0)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"frame": None}, "have a frame number"),
        ({"kind": RecordKind.STAGE}, "have a frame number"),
        ({"frame": 7}, "frame 7 is in the journal"),
        ({"frame": -1}, "64-bit"),
        ({"frame": 2**64}, "64-bit"),
        ({"t_recv_ns": 2**63}, "64-bit"),
        ({"acked_seq": 2**64}, "64-bit"),
        ({"topic": "tc1/möbius/cam/image"}, "ASCII"),
        ({"topic": "t" * 1025}, "ASCII of at most 1024"),
        ({"header": bytes((1 << 20) + 1)}, "at most 1048576"),
        ({"parts": [b""] * 1025}, "at most 1024 payload parts"),
        ({"parts": [np.zeros((4, 4), np.uint8)[:, ::2]]}, "C-contiguous"),
        ({"parts": [memoryview(bytearray(1 << 20))] * 1024 * 5}, "payload parts"),
        ({"parts": [np.empty(5 << 20, np.uint8)] * 1000}, "payload has at most"),
    ],
)
def test_what_breaks_a_limit_is_refused_and_changes_nothing(folder: Path, change: dict[str, Any], says: str) -> None:
    good: dict[str, Any] = {"kind": RecordKind.IMAGE, "topic": TOPIC, "header": b"", "t_recv_ns": 0, "frame": 8}
    with Journal.create(folder, RUN) as journal:
        before = add_image(journal, 7)
        arguments = {**good, **change}
        with pytest.raises(JournalError, match=says):
            journal.append(arguments.pop("kind"), **arguments)
        assert journal.written_lsn == before.lsn
        assert add_image(journal, 8).image_index == 1
        assert journal.verify() == []


def test_a_journal_is_created_once(folder: Path) -> None:
    Journal.create(folder, RUN).close()
    with pytest.raises(JournalError, match="holds a journal already"):
        Journal.create(folder, RUN)


@pytest.mark.parametrize("make", [lambda folder: folder, lambda folder: folder.mkdir(parents=True)])
def test_there_must_be_a_journal_to_open(folder: Path, make: Callable[[Path], object]) -> None:
    make(folder)
    with pytest.raises(JournalError, match="there is no journal"):
        Journal.open(folder)


def test_a_run_is_named_by_a_uuid(folder: Path) -> None:
    with pytest.raises(JournalError, match="named by a uuid"):
        Journal.create(folder, "../../etc")


def test_there_is_one_writer_at_a_time(folder: Path) -> None:
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 0)
        with pytest.raises(JournalError, match="open for writing elsewhere"):
            Journal.open(folder)
        with Journal.open(folder, readonly=True) as reader:
            assert reader.n_images == 1
    Journal.open(folder).close()


def test_a_read_only_journal_changes_nothing(folder: Path) -> None:
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 0)
    (folder / "000000.tci").unlink()
    with segments_of(folder)[0].open("ab") as file:
        file.write(b"torn")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with Journal.open(folder, readonly=True) as reader:
        assert frames_of(reader.records()) == [0]
        assert [item.what for item in reader.verify()] == ["the last 4 bytes were torn by a crash"]
        for write in (lambda: add_image(reader, 1), reader.sync):
            with pytest.raises(JournalError, match="read-only"):
                write()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_closed_journal_can_be_read_but_not_written(folder: Path) -> None:
    journal = Journal.create(folder, RUN)
    add_image(journal, 0)
    journal.close()
    journal.close()
    assert journal.image(0).frame == 0
    with pytest.raises(JournalError, match="has been closed"):
        add_image(journal, 1)
    assert journal.sync() == journal.written_lsn, "a thread that syncs may be late; there is nothing left to do"


def test_asking_for_an_image_that_is_not_there(folder: Path) -> None:
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 5)
        for image_index in (-1, 1):
            with pytest.raises(JournalError, match="has 1 images"):
                journal.image(image_index)
        with pytest.raises(JournalError, match="frame 0 is not in the journal"):
            journal.image_of_frame(0)


def test_an_error_is_caught_as_what_it_is(folder: Path) -> None:
    with pytest.raises(OSError, match="there is no journal"):
        Journal.open(folder)
    with pytest.raises(TilecastError):
        Journal.open(folder)


def test_a_newer_format_is_refused_with_advice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tilecast_protocol.journal_format.VERSION", 2)
        Journal.create(folder, RUN).close()
    with pytest.raises(JournalError, match="a newer tilecast wrote it; use that one"):
        Journal.open(folder)


# Torn tails ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("garbage", [b"", b"\0" * 700, bytes(range(256)) * 3, b"TCJR" * 60])
def test_a_tail_torn_at_any_byte_costs_the_torn_record_only(
    folder: Path, tmp_path: Path, garbage: bytes, way: str
) -> None:
    with Journal.create(folder, RUN) as journal:
        ends = [SEGMENT_HEAD_BYTES]
        ends += [add_image(journal, frame, 20).lsn for frame in range(4)]
        ends.append(add_stage(journal).lsn)
        whole = list(journal.records())
        data = segments_of(folder)[0].read_bytes()  # no index has been written yet: as after a crash
    step = 1 if not garbage else 7
    cuts = {*range(SEGMENT_HEAD_BYTES, len(data), step)}
    contents = ends  # where the last byte of each record lies that says anything
    if way == "direct":  # records of whole blocks: what lies around their seams, the begins, and samples of the rest
        contents = [*ends[:1], *(end - journal_direct.ALIGNMENT + 20 for end in ends[1:-1]), ends[-1]]
        cuts = {*range(SEGMENT_HEAD_BYTES, len(data), 331)}
        cuts |= {at + i for at in (*ends, *contents, *range(0, len(data), 4096)) for i in range(-2, 3)}
        cuts |= {ends[2] + i for i in range(0, 170, step)}
        cuts &= {*range(SEGMENT_HEAD_BYTES, len(data))}
    for cut in sorted(cuts):
        copy = tmp_path / f"cut{cut}"
        copy.mkdir()
        (copy / "000000.tcj").write_bytes(data[:cut] + garbage)
        n_whole = sum(
            content <= cut and end <= cut + len(garbage) * (content < end)
            for content, end in zip(contents[1:], ends[1:], strict=True)
        )
        with Journal.open(copy) as journal:
            assert list(journal.records()) == whole[:n_whole]
            assert journal.written_lsn == journal.synced_lsn == ends[n_whole]
            torn = cut + len(garbage) - ends[n_whole]
            assert [(item.offset, item.nbytes) for item in journal.damage] == [(ends[n_whole], torn)] * (torn > 0)
            assert not any(item.durable for item in journal.damage)
            assert add_image(journal, 99).image_index == min(n_whole, 4)
            assert journal.verify() == []
        with Journal.open(copy, readonly=True) as journal:
            assert journal.damage == ()
            assert frames_of(journal.records()) == [*range(min(n_whole, 4)), 99]


def test_a_torn_record_names_its_frame_if_it_still_can(folder: Path) -> None:
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 3)
        add_image(journal, 4)
    (folder / "000000.tci").unlink()
    os.truncate(segments_of(folder)[0], segments_of(folder)[0].stat().st_size - 1)
    with Journal.open(folder) as journal:
        assert [item.frames for item in journal.damage] == [(4,)]
        assert journal.frames().ranges() == [(3, 3)]


def test_nothing_acknowledged_is_lost_when_the_process_is_killed(folder: Path, way: str) -> None:
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from tilecast_protocol import journal_direct\n"
        "from tilecast_protocol.journal import Journal, RecordKind\n"
        "journal_direct.WORTHWHILE_BYTES = int(sys.argv[3])\n"
        "journal = Journal.create(Path(sys.argv[1]), sys.argv[2], segment_bytes=20_000)\n"
        "frame = 0\n"
        "while True:\n"
        "    for _ in range(1 + frame % 7):\n"
        "        journal.append(RecordKind.IMAGE, topic='t', header=b'%d' % frame, parts=[bytes(999)],\n"
        "                       t_recv_ns=0, frame=frame)\n"
        "        frame += 1\n"
        "    journal.sync()\n"
        "    print(frame, flush=True)\n"
    )
    worthwhile = "1" if way == "direct" else "999999"
    writer = subprocess.Popen(
        [sys.executable, "-c", script, folder, RUN, worthwhile], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    with writer:
        acknowledged = [int(writer.stdout.readline()) for _ in range(40)][-1]
        writer.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, writer.stdout.read().split("\n")[:-1])])
    with Journal.open(folder) as journal:
        frames = frames_of(journal.records())
        assert frames == list(range(len(frames)))
        assert len(frames) >= acknowledged >= 40
        assert journal.image(0).parts == (bytes(999),)
        assert journal.verify() == []
        assert add_image(journal, len(frames)).image_index == len(frames)


# Damage in the middle ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("indexed", [True, False])
def test_a_flipped_bit_costs_one_record_wherever_it_is(folder: Path, tmp_path: Path, indexed: bool) -> None:
    with Journal.create(folder, RUN) as journal:
        ends = [SEGMENT_HEAD_BYTES, *(add_image(journal, frame, 20).lsn for frame in range(4))]
        whole = list(journal.records())
    for offset in range(SEGMENT_HEAD_BYTES, ends[3], 3):
        copy = tmp_path / f"flip{offset}"
        shutil.copytree(folder, copy)
        if not indexed:
            (copy / "000000.tci").unlink()
        flip(copy / "000000.tcj", offset)
        hit = sum(end <= offset for end in ends) - 1
        told: list[Damage] = []
        with Journal.open(copy) as journal:
            assert list(journal.records(on_damage=told.append)) == whole[:hit] + whole[hit + 1 :]
            if indexed:
                (damage,) = journal.verify()
                assert (damage.frames, damage.durable) == ((hit,), True)
                assert told
            else:
                # Nothing tells that this was durable: it is taken for a hole that a crash left, and closed.
                (damage,) = journal.damage
                assert not damage.durable
                assert journal.verify() == told == []
            for item in (*told, damage):
                assert (item.segment, item.offset, item.nbytes) == (0, ends[hit], ends[hit + 1] - ends[hit])
            with pytest.raises(JournalError):
                journal.image(hit)
            assert journal.image(3) == whole[3]
            assert add_image(journal, 77).image_index == 4


def test_an_image_that_cannot_be_read_says_which_and_what_to_do(folder: Path) -> None:
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 12)
        flip(segments_of(folder)[0], journal.written_lsn - 1)
        with pytest.raises(JournalError, match=r"frame 12 .* the payload of frame 12 fails its checksum.*fsck"):
            journal.image(0)


def test_damage_known_to_have_been_durable_is_not_cut_off(folder: Path) -> None:
    with Journal.create(folder, RUN) as journal:
        for frame in range(4):
            add_image(journal, frame)
    path = segments_of(folder)[0]
    size = path.stat().st_size
    flip(path, size - 240)  # in the payload of frame 2
    flip(path, size - 220)  # and in the fixed part of frame 3, the last: but for the index, a torn tail
    with Journal.open(folder, readonly=True) as reader:
        assert reader.n_images == 4
        assert [(item.frames, item.durable) for item in reader.verify()] == [((2, 3), True)]
    with Journal.open(folder) as journal:
        assert [(item.frames, item.durable) for item in journal.damage] == [((2, 3), True)]
        assert path.stat().st_size == size
        assert add_image(journal, 4).image_index == 4
    assert len(segments_of(folder)) == 2
    with Journal.open(folder) as journal:
        assert frames_of(journal.records()) == [0, 1, 4]
        assert [(item.frames, item.durable) for item in journal.verify()] == [((2,), True), ((), True)]
        assert journal.image_of_frame(4).image_index == 4
        with pytest.raises(JournalError, match="was lost"):
            journal.image(3)


def test_a_segment_that_is_gone_is_reported_and_the_others_are_read(folder: Path) -> None:
    with Journal.create(folder, RUN, segment_bytes=600) as journal:
        for frame in range(12):
            add_image(journal, frame)
    paths = segments_of(folder)
    assert len(paths) == 6
    paths[2].unlink()
    paths[3].with_suffix(".tci").unlink()
    with Journal.open(folder) as journal:
        assert [item.what for item in journal.damage] == ["1 segment(s) before 000003.tcj are missing"]
        assert [item.what for item in journal.verify()] == ["1 segment(s) before 000003.tcj are missing"]
        assert frames_of(journal.records()) == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]
        assert journal.image_of_frame(7).image_index == 7
        assert journal.n_images == 12


def test_segments_of_the_wrong_length_are_reported(folder: Path) -> None:
    with Journal.create(folder, RUN, segment_bytes=600) as journal:
        for frame in range(6):
            add_image(journal, frame)
    first, second, _ = segments_of(folder)
    with first.open("ab") as file:
        file.write(b"more")
    os.truncate(second, second.stat().st_size - 10)
    with Journal.open(folder) as journal:
        assert frames_of(journal.records()) == [0, 1, 2, 4, 5]
        assert {item.what for item in journal.verify()} >= {
            "4 bytes at the end do not belong here",
            "the last 10 bytes are missing",
        }
        assert {frame for item in journal.verify() for frame in item.frames} == {3}


def test_the_head_of_a_segment_can_be_lost(folder: Path) -> None:
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 0)
    for size in (SEGMENT_HEAD_BYTES, 10):
        flip(folder / "000000.tcj", 3)
        with Journal.open(folder, readonly=True) as reader:
            assert [item.what for item in reader.verify()] == ["the head of 000000.tcj is damaged"]
            assert frames_of(reader.records()) == [0]
        with Journal.open(folder) as journal:
            assert journal.damage
        with Journal.open(folder) as journal:
            assert not journal.damage, f"the writer mends it (damaged in the first {size} bytes)"
    flip(folder / "000000.tcj", 3)
    (folder / "000000.tci").unlink()
    with pytest.raises(JournalError, match=r"no segment .* has a sound head"):
        Journal.open(folder)


def test_files_of_another_journal_are_neither_read_nor_harmed(folder: Path, tmp_path: Path) -> None:
    with Journal.create(folder, RUN, segment_bytes=600) as journal:
        for frame in range(4):
            add_image(journal, frame)
    with Journal.create(tmp_path / "other", OTHER_RUN, segment_bytes=600) as other:
        for frame in range(40, 44):
            add_image(other, frame)
    for stray, says in ((tmp_path / "other" / "000001.tcj", OTHER_RUN), (folder / "000001.tcj", "segment 1")):
        shutil.copy(stray, folder / "000002.tcj")
        with pytest.raises(JournalError, match=f"000002.tcj is .*{says}.*move it away"):
            Journal.open(folder)
        with Journal.open(folder, readonly=True) as reader:
            assert reader.run == RUN
            assert frames_of(reader.records()) == [0, 1, 2, 3]
            assert says in reader.verify()[0].what
        assert (folder / "000002.tcj").read_bytes() == stray.read_bytes()


def test_a_journal_sent_as_pixels_is_not_taken_for_records(folder: Path, tmp_path: Path) -> None:
    """A scan that has lost its way looks for records; those inside a payload must not be among them."""
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 0, 5)
        add_image(journal, 1, 5)
    inner = segments_of(folder)[0].read_bytes()
    with Journal.create(tmp_path / "outer", RUN) as outer:
        outer.append(RecordKind.IMAGE, topic=TOPIC, header=b"", parts=[inner], t_recv_ns=0, frame=100)
        add_image(outer, 101)
    flip(tmp_path / "outer" / "000000.tcj", SEGMENT_HEAD_BYTES + 8)
    (tmp_path / "outer" / "000000.tci").unlink()
    with Journal.open(tmp_path / "outer") as outer:
        assert frames_of(outer.records()) == [101]


@pytest.mark.parametrize("wrong", ["nonce", "lsn"])
def test_a_forged_record_in_a_payload_is_found_out(folder: Path, wrong: str) -> None:
    """A publisher that knows the format, and even where its payload will lie, still cannot slip a record in."""
    payload_lsn = SEGMENT_HEAD_BYTES + RECORD_HEAD_BYTES + 8 + len(TOPIC)
    with Journal.create(folder, RUN) as journal:
        truth = {"nonce": journal._nonce, "lsn": payload_lsn}
        forged = pack_record_head(
            kind=RecordKind.STAGE,
            flags=0,
            synced_lsn=0,
            t_recv_ns=0,
            acked_seq=0,
            frame=0,
            image_index=1,
            payload_nbytes=0,
            topic_nbytes=0,
            n_parts=0,
            padding_before=0,
            padding_behind=0,
            header_nbytes=0,
            meta_crc=0,
            payload_crc=0,
            **(truth | {wrong: truth[wrong] ^ 1}),
        )
        journal.append(RecordKind.IMAGE, topic=TOPIC, header=b"", parts=[forged], t_recv_ns=0, frame=100)
        add_image(journal, 101)
    flip(folder / "000000.tcj", SEGMENT_HEAD_BYTES + 8)
    with Journal.open(folder, readonly=True) as reader:
        assert [(record.kind, record.frame) for record in reader.records()] == [(RecordKind.IMAGE, 101)]


def test_the_search_for_the_next_record_sees_one_on_the_seam_of_two_reads(folder: Path) -> None:
    chunk = 4 << 20
    with Journal.create(folder, RUN, direct=False) as journal:
        first = add_image(journal, 0, 0).lsn
        second = add_image(journal, 1, chunk - 40 - (first - SEGMENT_HEAD_BYTES) + 1).lsn
        assert second - first == 1 + chunk - 40, "the scan reads on from one byte behind the bad record's begin"
        add_image(journal, 2)
    flip(folder / "000000.tcj", first)
    with Journal.open(folder, readonly=True) as reader:
        assert frames_of(reader.records()) == [0, 2]


def test_a_file_shorter_than_what_was_durable(folder: Path) -> None:
    """As when an older copy was put back: the index knows better."""
    with Journal.create(folder, RUN) as journal:
        ends = [add_image(journal, frame).lsn for frame in range(4)]
    os.truncate(folder / "000000.tcj", ends[3] - 1)
    for readonly in (True, False):
        with Journal.open(folder, readonly=readonly) as journal:
            assert [(item.offset, item.frames, item.durable) for item in journal.damage] == [(ends[2], (3,), True)]
            assert journal.written_lsn >= journal.synced_lsn
            assert journal.n_images == 4
            assert frames_of(journal.records()) == [0, 1, 2]
            if not readonly:
                assert add_image(journal, 3).image_index == 4


def test_an_index_that_promises_too_many_images_is_not_believed_about_lost_ones(folder: Path) -> None:
    with Journal.create(folder, RUN) as journal:
        ends = [add_image(journal, frame).lsn for frame in range(2)]
    path = folder / "000000.tci"
    entries = np.array([(2**40, ends[0], ends[1] - ends[0], 1)], ENTRY)
    IndexWriter(path, path.read_bytes()[:SEGMENT_HEAD_BYTES], 0, 0).add(entries, ends[1], ends[0])
    os.truncate(folder / "000000.tcj", ends[1] - 1)
    with Journal.open(folder) as journal:
        assert journal.n_images == 1


def test_an_index_of_records_that_are_gone_is_not_met_again(folder: Path, tmp_path: Path) -> None:
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 0)
        add_image(journal, 1)
    os.truncate(folder / "000000.tcj", SEGMENT_HEAD_BYTES)
    with Journal.open(folder) as journal:
        assert journal.damage[0].durable
        add_image(journal, 2)
        shutil.copytree(folder, tmp_path / "crashed")
    path = tmp_path / "crashed" / "000000.tcj"
    os.truncate(path, path.stat().st_size - 1)
    with Journal.open(tmp_path / "crashed") as journal:
        assert [item.durable for item in journal.damage] == [False]


def test_images_behind_a_lost_one_keep_their_ordinals(folder: Path) -> None:
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 0)
        end = add_image(journal, 1).lsn
        add_stage(journal)
    flip(folder / "000000.tcj", end - 1)
    (folder / "000000.tci").unlink()
    for readonly in (True, False, True):
        with Journal.open(folder, readonly=readonly) as journal:
            assert journal.n_images == 2
            with pytest.raises(JournalError, match=r"image 1 .* was lost"):
                journal.image(1)
    with Journal.open(folder) as journal:
        assert add_image(journal, 1).image_index == 2


def test_lying_lengths_allocate_nothing(folder: Path) -> None:
    """A record whose fixed part is sound, by a writer that means ill: lengths and ordinals beyond the file."""
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 0)
        nonce = journal._nonce
        lsn = journal.written_lsn
    (folder / "000000.tci").unlink()
    common: dict[str, int] = {
        "flags": 1, "nonce": nonce, "lsn": lsn, "synced_lsn": 0, "t_recv_ns": 0, "acked_seq": 0, "frame": 1,
        "topic_nbytes": 0, "padding_before": 0, "padding_behind": 0, "header_nbytes": 0, "meta_crc": 0,
        "payload_crc": 0, "kind": 2,
    }  # fmt: skip
    lies = [
        {"image_index": 1, "payload_nbytes": 2**63, "n_parts": 0},
        {"image_index": 2**60, "payload_nbytes": 0, "n_parts": 0},
        {"image_index": 1, "payload_nbytes": 0, "n_parts": 65535},
        {"image_index": 1, "payload_nbytes": 0, "n_parts": 0, "padding_before": 65535},
        {"image_index": 1, "payload_nbytes": 0, "n_parts": 0, "padding_behind": 1},
        {"image_index": 0, "payload_nbytes": 0, "n_parts": 0},
    ]
    data = segments_of(folder)[0].read_bytes()
    for lie in lies:
        segments_of(folder)[0].write_bytes(data + pack_record_head(**(common | lie)))
        tracemalloc.start()
        try:
            with Journal.open(folder, readonly=True) as journal:
                assert journal.frames().ranges() == [(0, 0)]
                assert journal.n_images == 1
                assert len(journal.damage) == 1
                assert len(journal.verify()) == 1
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


# The index -----------------------------------------------------------------------------------------------------------


def test_an_index_that_is_gone_or_wrong_is_made_anew(folder: Path, tmp_path: Path) -> None:
    with Journal.create(folder, RUN, segment_bytes=2000) as journal:
        for frame in range(30):
            add_image(journal, frame)
    good = {path.name: path.read_bytes() for path in folder.glob("*.tci")}
    assert len(good) == 4
    spoil: list[Callable[[Path], object]] = [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: os.truncate(path, path.stat().st_size - 5),
        lambda path: flip(path, 30),
        lambda path: flip(path, path.stat().st_size - 3),
        lambda path: path.write_bytes(path.read_bytes() * 3),
        lambda path: path.write_bytes(good["000002.tci"] if path.name == "000001.tci" else good["000001.tci"]),
        lambda path: path.write_bytes(os.urandom(5000)),
    ]
    for i, how in enumerate(spoil):
        copy = tmp_path / f"spoilt{i}"
        shutil.copytree(folder, copy)
        for path in copy.glob("*.tci"):
            how(path)
        for readonly in (True, False):
            with Journal.open(copy, readonly=readonly) as journal:
                assert journal.damage == ()
                assert [journal.image_of_frame(frame).image_index for frame in range(30)] == list(range(30))
                found = journal.verify()
                assert all(item.derived and "the index" in item.what for item in found), "nothing is lost"
                assert bool(found) == (readonly and i > 1), "one that is missing or empty is no damage"
        with Journal.open(copy, readonly=True) as journal:
            assert journal.n_images == 30
        assert all((copy / name).read_bytes()[: len(data)] == data for name, data in good.items())


def test_an_index_that_leads_astray_is_noticed(folder: Path) -> None:
    """Sums right, contents wrong: as no crash makes it, but a person who puts files back can."""
    with Journal.create(folder, RUN) as journal:
        ends = [SEGMENT_HEAD_BYTES, *(add_image(journal, frame).lsn for frame in range(3))]
    path = folder / "000000.tci"
    entries = np.array([(0, ends[0], ends[1] - ends[0], 0), (1, ends[0], 1, 1), (2, ends[1], 5, 2)], ENTRY)
    entries[1] = (1, ends[1], 17, 1)
    entries[2] = (2, ends[2], ends[3] - ends[2], 9)
    IndexWriter(path, path.read_bytes()[:SEGMENT_HEAD_BYTES], 0, 0).add(entries, ends[3], ends[2])
    with Journal.open(folder) as journal:
        assert [(item.offset, item.frames) for item in journal.verify()] == [(ends[1], (1,)), (ends[2], (2,))]
        assert "delete 000000.tci" in journal.verify()[0].what
        with pytest.raises(JournalError, match="no sound record"):
            journal.image(1)


def test_an_index_that_cannot_be_is_made_anew(folder: Path) -> None:
    """Sums right, contents impossible: nothing is believed, and nothing allocated by it."""
    with Journal.create(folder, RUN, segment_bytes=1000) as journal:
        for frame in range(7):
            add_image(journal, frame)
    path = folder / "000001.tci"
    good = path.read_bytes()
    head, body = good[:SEGMENT_HEAD_BYTES], np.frombuffer(good[SEGMENT_HEAD_BYTES + 28 :], ENTRY)
    assert body["image_index"].tolist() == [4, 5, 6]
    upto, last = int(body["offset"][2] + body["nbytes"][2]), int(body["offset"][2])
    base_lsn = struct.unpack_from("<Q", head, 40)[0]

    def changed(field: str, values: list[int]) -> np.ndarray[Any, Any]:
        entries = body.copy()
        entries[field] = values
        return entries

    wrong: list[list[tuple[np.ndarray[Any, Any], int, int]]] = [
        [(changed("image_index", [3, 4, 5]), upto, last)],
        [(changed("image_index", [4, 6, 5]), upto, last)],
        [(changed("image_index", [4, 5, 2**40]), upto, last)],
        [(changed("image_index", [4, 5, 7]), upto, last)],
        [(changed("offset", [0, *body["offset"].tolist()[1:]]), upto, last)],
        [(changed("offset", [*body["offset"].tolist()[:2], upto]), upto, last)],
        [(changed("nbytes", [2**64 - 1, 5, 5]), upto, last)],
        [(body[:2], upto - 1, last)],
        [(body[:1], last, last), (body[1:], upto, last)],
        [(body, upto, last), (body[:0], upto, last)],
        [(body[:2], last, int(body["offset"][0]))],
        [(body, upto, 2**63 + 1)],
    ]
    for blocks in wrong:
        path.unlink()
        writer = IndexWriter(path, head, base_lsn, 0)
        for entries, block_upto, block_last in blocks:
            writer.add(entries, block_upto, block_last)
        tracemalloc.start()
        try:
            with Journal.open(folder) as journal:
                assert journal.verify() == []
                assert journal.n_images == 7
                assert [journal.image_of_frame(frame).image_index for frame in range(7)] == list(range(7))
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


def test_an_index_lists_nothing_that_was_not_durable(folder: Path) -> None:
    with Journal.create(folder, RUN, segment_bytes=1 << 30) as journal:
        for frame in range(3000):
            add_image(journal, frame, 1)
        assert not (folder / "000000.tci").exists()
        journal.sync()
        listed = (folder / "000000.tci").stat().st_size
        for frame in range(3000, 6000):
            add_image(journal, frame, 1)
        assert (folder / "000000.tci").stat().st_size == listed
        journal.sync()
        assert (folder / "000000.tci").stat().st_size > listed


@pytest.mark.usefixtures("no_fsync")
def test_a_long_journal_opens_at_once(folder: Path) -> None:
    """A hundred thousand records: counted in bytes read, which does not depend on the machine."""
    with Journal.create(folder, RUN, segment_bytes=4 << 20) as journal:
        for frame in range(10_000):
            add_image(journal, frame, 1)
            for number in range(9):
                add_stage(journal, number)
        read = bytes_read()
        again = Journal.open(folder, readonly=True)
        scanned = bytes_read() - read
        assert again.n_images == 10_000
        assert scanned < 8 << 20  # the last segment has no index yet
    before = bytes_read()
    tracemalloc.start()
    try:
        again = Journal.open(folder, readonly=True)
        assert bytes_read() - before < 1 << 20
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
    assert again.n_images == 10_000
    assert sum(1 for _ in again.records(with_parts=False)) == 100_000
    assert again.image_of_frame(7777).frame == 7777


def bytes_read() -> int:
    """What this process has read from files so far, by the kernel's count."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


# Disks that refuse ---------------------------------------------------------------------------------------------------


@contextmanager
def files_at_most(nbytes: int) -> Iterator[None]:
    """Let the kernel cut writes short at a file size, and refuse those beyond: as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("room", [0, 1, RECORD_HEAD_BYTES, 150, 3000])
def test_a_write_that_fails_half_way_is_as_if_it_had_not_been_asked(folder: Path, room: int) -> None:
    with Journal.create(folder, RUN) as journal:
        before = add_image(journal, 0)
        with files_at_most(before.lsn + room), pytest.raises(JournalError, match="cannot write to") as caught:
            add_image(journal, 1, 5000)
        assert caught.value.errno == errno.EFBIG
        assert segments_of(folder)[0].stat().st_size == journal.written_lsn == before.lsn
        assert journal.n_images == 1
        assert 1 not in journal.frames()
        assert journal.sync() == before.lsn
        assert add_image(journal, 1, 5000).image_index == 1
    with Journal.open(folder) as journal:
        assert journal.verify() == []
        assert frames_of(journal.records()) == [0, 1]


@pytest.mark.usefixtures("way")
def test_remains_that_cannot_be_cut_off_are_written_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _length: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Journal.create(folder, RUN) as journal:
        before = add_image(journal, 0)
        with files_at_most(before.lsn + 3000), monkeypatch.context() as patch:
            patch.setattr(os, "ftruncate", refuse)
            with pytest.raises(JournalError):
                add_image(journal, 1, 5000)
        assert segments_of(folder)[0].stat().st_size > before.lsn
        add_image(journal, 1, 50)
        shutil.copytree(folder, folder.parent / "crashed")
    with Journal.open(folder.parent / "crashed") as journal:
        assert frames_of(journal.records()) == [0, 1]


def test_a_segment_that_cannot_be_begun_leaves_the_journal_usable(folder: Path) -> None:
    with Journal.create(folder, RUN, segment_bytes=1000) as journal:
        before = [add_image(journal, frame).lsn for frame in range(4)][-1]
        folder.joinpath("000001.new").mkdir()  # stands for whatever makes opening a file fail, also for root
        with pytest.raises(JournalError, match="cannot begin a new segment") as caught:
            add_image(journal, 4)
        assert caught.value.errno == errno.EISDIR
        folder.joinpath("000001.new").rmdir()
        with files_at_most(10), pytest.raises(JournalError, match="cannot begin a new segment"):
            add_image(journal, 4)
        assert journal.sync() == before
        assert [path.name for path in folder.iterdir() if path.suffix != ".tci"] == ["000000.tcj"]
        add_image(journal, 4)
        assert len(segments_of(folder)) == 2
        assert frames_of(journal.records()) == [0, 1, 2, 3, 4]
        assert journal.verify() == []


@pytest.mark.usefixtures("way")
def test_after_a_failed_fsync_nothing_is_called_durable_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = True

    def fdatasync(_fd: int) -> None:
        if failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Journal.create(folder, RUN) as journal:
        durable = add_image(journal, 0).lsn
        journal.sync()
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        add_image(journal, 1)
        with pytest.raises(JournalError, match=r"refused to make the journal .* durable") as caught:
            journal.sync()
        assert caught.value.errno == errno.EIO
        failing = False  # the second fsync would succeed, and mean nothing
        with pytest.raises(JournalError, match=f"after lsn {durable} may be lost"):
            journal.sync()
        with pytest.raises(JournalError, match="open the journal anew"):
            add_image(journal, 2)
        assert journal.synced_lsn == durable
        assert journal.image(1).frame == 1, "it can still be read"


@pytest.mark.usefixtures("way")
def test_opening_writes_again_what_was_not_known_durable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed fsync the pages are clean, though not on the disk: only writing makes the next fsync count."""
    with Journal.create(folder, RUN) as journal:
        durable = [add_image(journal, frame).lsn for frame in range(3)][-1]
        journal.sync()
        end = [add_image(journal, frame).lsn for frame in range(3, 6)][-1]
        shutil.copytree(folder, folder.parent / "crashed")
    written: list[tuple[int, int]] = []
    real_pwritev, real_fsync = os.pwritev, os.fsync

    def pwritev(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        done = real_pwritev(fd, buffers, offset)
        written.append((offset, offset + done))
        return done

    def fsync(fd: int) -> None:
        written.append((-1, -1))
        real_fsync(fd)

    monkeypatch.setattr(os, "pwritev", pwritev)
    monkeypatch.setattr(os, "fsync", fsync)
    with Journal.open(folder.parent / "crashed") as journal:
        assert journal.synced_lsn == journal.written_lsn == end
        again = [span for span in written if span != (-1, -1)]
        assert again == [(durable, end)]
        assert written.index((durable, end)) < written.index((-1, -1))
        assert frames_of(journal.records()) == list(range(6))


def test_a_new_segment_is_durable_before_anything_in_it_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "fdatasync", "pwritev")}
    real_rename = Path.rename

    def name_of(fd: int) -> str:
        return Path(f"/proc/self/fd/{fd}").readlink().name

    for name in real:

        def spy(fd: int, *rest: Any, name: str = name) -> Any:
            steps.append(f"{name} {name_of(fd)}")
            return real[name](fd, *rest)

        monkeypatch.setattr(os, name, spy)

    def rename(path: Path, target: Path) -> Path:
        steps.append(f"rename {path.name} {target.name}")
        return real_rename(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with Journal.create(folder, RUN, segment_bytes=400) as journal:
        add_image(journal, 0)
        steps.clear()
        add_image(journal, 1, 300)
        assert steps == [
            "fdatasync 000000.tcj",
            "pwritev 000001.new",
            "fsync 000001.new",
            "rename 000001.new 000001.tcj",
            "fsync journal",
            "pwritev 000001.tcj",
        ]


def test_a_folder_that_is_made_is_made_durable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink())
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    Journal.create(folder, RUN).close()
    assert {folder.parent, folder.parent.parent, folder} <= set(synced)


# Threads -------------------------------------------------------------------------------------------------------------


def test_syncing_and_reading_beside_an_appender(folder: Path, way: str) -> None:
    """One thread appends, one syncs, one reads what it was told of; segments change all the time."""
    n_frames, segment_bytes = (1500, 10_000) if way == "cached" else (300, 100_000)
    appended: list[Position] = []
    failures: list[BaseException] = []
    done = threading.Event()
    journal = Journal.create(folder, RUN, segment_bytes=segment_bytes)

    def watch(step: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                while not done.is_set():
                    step()
                step()
            except BaseException as error:  # noqa: BLE001  a thread of a test hands over whatever went wrong
                failures.append(error)

        return run

    def sync() -> None:
        written = journal.written_lsn
        durable = journal.sync()
        assert written <= durable <= journal.synced_lsn <= journal.written_lsn

    def read() -> None:
        if appended:
            image_index = appended[-1].image_index
            assert image_index is not None
            assert journal.image(image_index).header == b"header of %d" % image_index
            assert journal.image_of_frame(image_index // 2).parts == (payload_of(image_index // 2),)
            assert image_index in journal.frames()

    def iterate() -> None:
        floor = len(appended)
        frames = frames_of(journal.records(with_parts=False))
        assert frames == list(range(len(frames)))
        assert len(frames) >= floor

    threads = [threading.Thread(target=watch(step)) for step in (sync, sync, read, iterate)]
    for thread in threads:
        thread.start()
    try:
        appended.extend(add_image(journal, frame) for frame in range(n_frames))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert journal.sync() == journal.written_lsn
    journal.close()
    with Journal.open(folder, readonly=True) as again:
        assert again.verify() == []
        assert again.n_images == n_frames


@pytest.mark.usefixtures("way")
def test_sync_waits_for_nobody_who_only_appends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An fsync under way does not hold up the appending thread, and does not vouch for what came after it began."""
    in_fsync, let_go = threading.Event(), threading.Event()
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        in_fsync.set()
        assert let_go.wait(30)
        real(fd)

    with Journal.create(folder, RUN) as journal:
        first = add_image(journal, 0)
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        results: list[int] = []
        thread = threading.Thread(target=lambda: results.append(journal.sync()))
        thread.start()
        assert in_fsync.wait(30)
        second = add_image(journal, 1)
        assert journal.synced_lsn < first.lsn
        let_go.set()
        thread.join()
        assert results == [first.lsn]
        assert journal.synced_lsn == first.lsn < second.lsn
        assert journal.sync() == second.lsn


def test_a_sync_with_nothing_to_do_leaves_the_disk_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    with Journal.create(folder, RUN) as journal:
        add_image(journal, 0)
        journal.sync()
        monkeypatch.setattr(os, "fdatasync", calls.append)
        assert journal.sync() == journal.written_lsn
        assert not calls


# Checking ------------------------------------------------------------------------------------------------------------


def test_verify_reports_progress_to_its_end(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    with Journal.create(folder, RUN) as journal:
        for frame in range(5):
            add_image(journal, frame, 3 << 20)
        assert journal.verify(lambda done, total: told.append((done, total))) == []
        assert told[-1] == (journal.written_lsn, journal.written_lsn)
    assert len(told) > 2
    assert told == sorted(told)


def test_layout_on_disk_is_what_the_text_says(folder: Path) -> None:
    """The format is a contract: another program may read it by the text of journal_format."""
    from zlib import crc32

    with Journal.create(folder, RUN) as journal:
        journal.append(
            RecordKind.IMAGE,
            topic="tc1/a/b/image",
            header=b"HEAD",
            parts=[b"ab", b"cde"],
            t_recv_ns=-5,
            frame=9,
            acked_seq=3,
        )
    data = (folder / "000000.tcj").read_bytes()
    magic, version, _, nonce, run, number, base_lsn, _, _, crc = struct.unpack_from("<4sHHQ16sQQQII", data)
    assert (magic, version, number, base_lsn, crc) == (b"TCJS", 1, 0, 0, crc32(data[:60]))
    assert run.hex() == RUN.replace("-", "")
    fields = struct.unpack_from("<4sBBHQQQqQQQQHHHHIIII", data, 64)
    meta = struct.pack("<QQ", 2, 3) + b"tc1/a/b/image" + b"HEAD"
    assert fields == (
        b"TCJR", 1, 2, 1 | 2, nonce, 64, 64, -5, 3, 9, 0, 5, 13, 2, 0, 0, 4, crc32(meta), crc32(b"abcde"),
        crc32(data[64:156]),
    )  # fmt: skip
    assert data[160:] == meta + b"abcde"
    index = (folder / "000000.tci").read_bytes()
    assert index[:64] == data[:64]
    block = struct.pack("<4sIQQ", b"TCJX", 1, len(data), 64)
    entry = struct.pack("<QQQQ", 0, 64, len(data) - 64, 9)
    assert index[64:] == block + struct.pack("<I", crc32(block + entry)) + entry
