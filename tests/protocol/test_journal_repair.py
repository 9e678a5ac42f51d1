"""A journal gets back what it holds twice, keeps what is damaged, and says which frames a missing file held."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tilecast_protocol.journal import Journal, RecordKind
from tilecast_protocol.journal_repair import repair_journal

RUN = "0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55"
FRAMES = 12
PAYLOAD = bytes(range(200))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A journal of four segments with three frames each, closed."""
    path = tmp_path / "journal"
    with Journal.create(path, RUN, segment_bytes=1200) as journal:
        for frame in range(FRAMES):
            journal.append(RecordKind.IMAGE, topic="t", header=b"h", parts=[PAYLOAD], t_recv_ns=frame, frame=frame)
    assert len(list(path.glob("*.tcj"))) == 4
    return path


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a journal."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("what", ["head", "index", "swapped index", "both"])
def test_heads_and_indices_come_back_as_they_were(folder: Path, number: int, what: str) -> None:
    before = contents(folder)
    segment, index = folder / f"{number:06d}.tcj", folder / f"{number:06d}.tci"
    if what in ("head", "both"):
        flip(segment, 20)
    if what in ("index", "both"):
        flip(index, -10)
    if what == "swapped index":
        shutil.copy(folder / f"{(number + 1) % 4:06d}.tci", index)
    with Journal.open(folder, readonly=True) as journal:
        found = journal.verify()
        assert {item.segment for item in found} == {number}
        assert all(item.derived and not item.frames for item in found)
    done = repair_journal(folder)
    assert f"{number:06d}" in done[0]
    if what == "both":
        repair_journal(folder)  # the index is looked into when the head is right
    assert contents(folder) == before
    assert repair_journal(folder) == []


def test_a_damaged_record_stays_and_so_does_what_tells_of_it(folder: Path) -> None:
    flip(folder / "000003.tcj", 64 + 96 + 30)
    flip(folder / "000003.tci", -10)
    flip(folder / "000001.tci", -10)
    before = contents(folder)
    assert repair_journal(folder) == ["the index 000001.tci was made anew"]
    after = contents(folder)
    assert (after.pop("000003.tcj"), after.pop("000003.tci")) == (before["000003.tcj"], before["000003.tci"])
    with Journal.open(folder, readonly=True) as journal:
        assert {frame for item in journal.verify() for frame in item.frames} == {9}


@pytest.mark.parametrize(("number", "frames"), [(0, (0, 1, 2)), (2, (6, 7, 8)), (3, (9, 10, 11))])
def test_a_missing_file_is_told_with_its_frames_while_its_index_is_there(
    folder: Path, number: int, frames: tuple[int, ...]
) -> None:
    (folder / f"{number:06d}.tcj").unlink()
    with Journal.open(folder, readonly=True) as journal:
        [found] = journal.verify()
        assert (found.segment, found.frames, found.derived) == (number, frames, False)
        assert "missing" in found.what
        assert len(journal.frames()) == FRAMES - 3
    (folder / f"{number:06d}.tci").unlink()
    with Journal.open(folder, readonly=True) as journal:
        assert [item.frames for item in journal.verify()] == ([] if number == 3 else [()])
