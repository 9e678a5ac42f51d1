"""The file with the bytes of tiles: nothing kept is lost or written over, and what nobody wants takes no room."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilecast.store import tile_file
from tilecast.store.tile_file import Extent, TileFile, TileFileReader, disk_nbytes, is_name, new_name
from tilecast.store.tile_store import StoreDamagedError
from tilecast_protocol.journal_direct import ALIGNMENT, WORTHWHILE_BYTES

_SIZES = st.one_of(st.integers(0, 20), st.sampled_from([ALIGNMENT, WORTHWHILE_BYTES, 300_001]))
_COMMITS = st.lists(st.tuples(st.lists(_SIZES, max_size=4), st.booleans(), st.booleans()), max_size=8)


@settings(max_examples=60, deadline=None)
@given(commits=_COMMITS)
def test_what_is_kept_can_be_read_and_the_rest_takes_no_room(
    tmp_path_factory: pytest.TempPathFactory, commits: list[tuple[list[int], bool, bool]]
) -> None:
    path = tmp_path_factory.mktemp("tiles") / "tiles-1.bin"
    kept: list[tuple[Extent, bytes]] = []
    file = TileFile(path, create=True)
    for number, (sizes, keep, reopen) in enumerate(commits):
        blobs = [bytes([number * 16 + i + 1]) * size for i, size in enumerate(sizes)]
        offset = file.append(blobs)
        if keep:
            file.keep()
            for blob in blobs:
                kept.append((Extent(offset, len(blob)), blob))
                offset += len(blob)
        elif number % 2:
            file.forget()
        if reopen:
            file.close()
            file = TileFile(path)
        if len(kept) > 2:
            superseded = [kept.pop(0) for _ in range(2)]
            file.supersede(extent for extent, _ in superseded)
            file.give_back(len(file))
        reader = TileFileReader(path)
        assert all(reader.read(extent) == blob for extent, blob in kept)
        reader.close()
    file.give_back_rest(sorted(extent for extent, _ in kept))
    reader = TileFileReader(path)
    assert all(reader.read(extent) == blob for extent, blob in kept)
    reader.close()
    file.close()
    assert disk_nbytes(path) <= sum(extent.nbytes + 2 * ALIGNMENT for extent, _ in kept)


def test_a_file_system_without_holes_keeps_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = TileFile(tmp_path / "tiles-1.bin", create=True)
    file.append([bytes(9000)])
    file.keep()
    monkeypatch.setattr(tile_file.ctypes, "get_errno", lambda: errno.EOPNOTSUPP)
    monkeypatch.setattr(tile_file, "_fallocate", lambda *_: -1)
    file.supersede([Extent(0, 9000)])
    file.give_back(1)
    assert len(file) == 0
    monkeypatch.setattr(tile_file.ctypes, "get_errno", lambda: errno.EIO)
    file.supersede([Extent(0, 9000)])
    with pytest.raises(OSError, match="Input/output error"):
        file.give_back(1)
    file.close()


def test_an_append_that_fails_leaves_no_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiles-1.bin"
    file = TileFile(path, create=True)
    file.append([b"kept"])
    file.keep()

    def fails(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fails)
        with pytest.raises(OSError, match="No space left"):
            file.append([bytes(2**20)])
    assert path.stat().st_size <= ALIGNMENT
    assert file.append([b"again"]) == ALIGNMENT
    file.close()


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreDamagedError, match="are missing; `tilecast rebuild`"):
        TileFileReader(tmp_path / "tiles-1.bin")
    (tmp_path / "tiles-1.bin").write_bytes(b"12345")
    reader = TileFileReader(tmp_path / "tiles-1.bin")
    assert reader.read(Extent(1, 4)) == b"2345"
    for extent in (Extent(2, 4), Extent(-1, 2), Extent(0, -1)):
        with pytest.raises(StoreDamagedError, match="has 5 in all"):
            reader.read(extent)
    reader.close()
    with pytest.raises(FileExistsError):
        TileFile(tmp_path / "tiles-1.bin", create=True)


def test_names_lead_nowhere_else() -> None:
    assert is_name(new_name())
    assert new_name() != new_name()
    for name in ("", "tiles.bin", "../tiles-1.bin", "tiles-/../x.bin", "tiles-1.bin/", "lock", "/tiles-1.bin"):
        assert not is_name(name)
