"""Whatever is appended, however it crashes: what was called durable is there, what is there is what was appended.

Small payloads go through the page cache, all of them past it, or some each way.

The disk is the machine's own with a layer in between, which knows what has reached it: `Disk` lets the power fail so
that every page that was not synced is or is not there, in any combination, and lets an fsync fail as Linux does (the
pages are lost, and clean).
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tilecast_protocol import journal_direct
from tilecast_protocol.errors import JournalError
from tilecast_protocol.journal import Journal, Record, RecordKind

RUN = "7b0e8a52-5b57-4c38-9f1e-2d0b4f9b6a11"
PAGE = 64  # bytes; far smaller than a real one, so that records are torn in every way


class Disk:
    """Stands between `os` and the files of one folder at a time, and remembers what a power failure would leave."""

    def __init__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self._real: dict[str, Callable[..., object]] = {}
        for name in ("pwritev", "fsync", "fdatasync"):
            self._real[name] = getattr(os, name)
            self.patch.setattr(os, name, getattr(self, name))
        self.room: int | None = None
        self.fsync_fails = False
        self._forget()

    def _forget(self) -> None:
        self._durable: dict[int, bytearray] = {}
        self._dirty: dict[int, list[tuple[int, int]]] = {}
        self._names: dict[str, int] = {}

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if self.room is not None:
            room = self.room
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                room -= room % journal_direct.ALIGNMENT
            fitting = []
            for buffer in buffers:
                fitting.append(memoryview(buffer)[:room])
                room -= len(fitting[-1])
            buffers = [buffer for buffer in fitting if len(buffer)]
            if not buffers:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.room -= sum(map(len, buffers))
        done = self._real["pwritev"](fd, buffers, offset)
        assert isinstance(done, int)
        self._dirty.setdefault(os.fstat(fd).st_ino, []).append((offset, done))
        return done

    def fsync(self, fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_dir():
            self._names = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
            return
        inode = os.fstat(fd).st_ino
        dirty = self._dirty.pop(inode, [])
        if self.fsync_fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        now = path.read_bytes()
        durable = self._durable.setdefault(inode, bytearray())
        durable[:] = durable[: len(now)].ljust(len(now), b"\0")
        for offset, nbytes in dirty:
            durable[offset : offset + nbytes] = now[offset : offset + nbytes]

    fdatasync = fsync

    def power_fails(self, folder: Path, luck: random.Random, after: Path) -> None:
        """Make `after` what is found of `folder` when the power is back."""
        after.mkdir()
        share = luck.choice([0.0, 0.5, 0.95, 1.0])
        for entry in folder.iterdir():
            inode = entry.stat().st_ino
            if self._names.get(entry.name) != inode and luck.random() > share:
                continue
            now, durable = entry.read_bytes(), bytes(self._durable.get(inode, b""))
            size = luck.choice([len(durable), luck.randint(*sorted((len(durable), len(now)))), len(now)])
            pages = []
            for at in range(0, size, PAGE):
                source = now if luck.random() < share else durable
                pages.append(source[at : at + PAGE].ljust(min(PAGE, size - at), b"\0")[: size - at])
            (after / entry.name).write_bytes(b"".join(pages))
        self._forget()

    def adopt(self, folder: Path) -> None:
        """What lies in a folder after a restart of the machine is on the disk."""
        self._names = {entry.name: entry.stat().st_ino for entry in folder.iterdir()}
        self._durable = {entry.stat().st_ino: bytearray(entry.read_bytes()) for entry in folder.iterdir()}

    def close(self) -> None:
        self.patch.undo()


class JournalMachine(RuleBasedStateMachine):
    """Appends, syncs, crashes and opens again, beside a plain list of what was appended."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="tilecast-test-"))
        self.disk = Disk()
        self.model: list[Record] = []
        self.n_folders = 0
        self.n_frames = 0

    @initialize(
        segment_bytes=st.sampled_from([400, 1500, 10_000, 60_000]), worthwhile=st.sampled_from([1, 200, 999_999])
    )
    def create(self, segment_bytes: int, worthwhile: int) -> None:
        self.disk.patch.setattr(journal_direct, "WORTHWHILE_BYTES", worthwhile)
        self.segment_bytes = segment_bytes
        self.journal = Journal.create(self.root / "0", RUN, segment_bytes=segment_bytes)

    def teardown(self) -> None:
        try:
            self.disk.fsync_fails = False
            self.journal.close()
        finally:
            self.disk.close()
            shutil.rmtree(self.root)

    @rule(lengths=st.lists(st.integers(0, 300), max_size=3), skip=st.integers(0, 3), seed=st.integers(0, 255))
    def append_image(self, lengths: list[int], skip: int, seed: int) -> None:
        # Frames in no order: an odd number goes down from the top.
        self.n_frames += 1 + skip
        frame = self.n_frames if seed % 3 else 100_000 - self.n_frames
        self._append(RecordKind.IMAGE, [bytes([seed]) * n for n in lengths], frame)

    @rule(kind=st.sampled_from([k for k in RecordKind if k is not RecordKind.IMAGE]), nbytes=st.integers(0, 200))
    def append_other(self, kind: RecordKind, nbytes: int) -> None:
        self._append(kind, [bytes(nbytes)], None)

    def _append(self, kind: RecordKind, parts: list[bytes], frame: int | None) -> None:
        header = b"%d" % len(self.model)
        where = self.journal.append(kind, topic="tc1/a/b/c", header=header, parts=parts, t_recv_ns=7, frame=frame)
        views = tuple(memoryview(part) for part in parts)
        lengths = tuple(map(len, parts))
        record = Record(
            kind, "tc1/a/b/c", header, views, lengths, 7, frame, where.image_index, -1, pzf=False, lsn=where.lsn
        )
        self.model.append(record)

    @rule()
    def sync(self) -> None:
        assert self.journal.sync() == self.journal.written_lsn

    @rule(room=st.integers(0, 400) | st.integers(3000, 10_000))
    def append_on_a_full_disk(self, room: int) -> None:
        before = self.journal.written_lsn
        self.disk.room = room
        try:
            self.append_image([300, 200], 0, 1)
        except JournalError:
            # A new segment may have been begun before the disk was full; no record was written.
            assert self.journal.written_lsn in (before, before + 64)
        finally:
            self.disk.room = None

    @rule()
    def close_and_open(self) -> None:
        self.journal.close()
        self._open(self.journal.folder, self.model)
        assert self.journal.damage == ()

    @rule()
    def lose_the_index(self) -> None:
        self.journal.close()
        for path in self.journal.folder.glob("*.tci"):
            path.unlink()
        self._open(self.journal.folder, self.model)

    @rule()
    def kill_the_process(self) -> None:
        """What was written is in the page cache, what was synced is on the disk, and nothing else is done."""
        self.journal._release()  # as the kernel closes a dead process's files
        self._open(self.journal.folder, self.model)
        assert self.journal.damage == ()

    @rule()
    def fail_to_sync(self) -> None:
        synced = self.journal.synced_lsn
        self.disk.fsync_fails = True
        try:
            if self.journal.written_lsn > synced:
                with pytest.raises(JournalError):
                    self.journal.sync()
                assert self.journal.synced_lsn == synced
                with pytest.raises(JournalError):
                    self._append(RecordKind.STAGE, [], None)
        finally:
            self.disk.fsync_fails = False
        self.journal.close()
        self._open(self.journal.folder, self.model)

    @rule(seed=st.integers(0, 2**32 - 1), times=st.integers(1, 2))
    def fail_the_power(self, seed: int, times: int) -> None:
        """Once, or again before anything else has happened."""
        luck = random.Random(seed)
        for _ in range(times):
            durable = [record for record in self.model if record.lsn <= self.journal.synced_lsn]
            self.n_folders += 1
            folder = self.root / str(self.n_folders)
            self.disk.power_fails(self.journal.folder, luck, folder)
            self.journal.close()
            self.disk.adopt(folder)
            with Journal.open(folder, readonly=True) as reader:
                found = list(reader.records())
            self._open(folder, found)
            assert found[: len(durable)] == durable
            survivors = iter(self.model)
            assert all(record in survivors for record in found), "what is found was appended, in this order"
            assert not any(item.durable for item in self.journal.damage)
            self.model = found

    def _open(self, folder: Path, expected: list[Record]) -> None:
        self.journal = Journal.open(folder, segment_bytes=self.segment_bytes)
        assert list(self.journal.records()) == expected
        assert self.journal.verify() == []
        assert self.journal.synced_lsn == self.journal.written_lsn

    @invariant()
    def says_what_is_there(self) -> None:
        images = [record for record in self.model if record.kind is RecordKind.IMAGE]
        assert set(self.journal.frames()) == {record.frame for record in images}
        if images:
            last = images[-1]
            assert last.image_index is not None
            assert last.frame is not None
            assert self.journal.n_images >= last.image_index + 1
            assert self.journal.image(last.image_index) == self.journal.image_of_frame(last.frame) == last


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
