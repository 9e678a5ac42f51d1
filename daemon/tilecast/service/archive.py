"""A run as one file: a tar archive that any tar program unpacks, with the checksum of each file in it.

Nothing is compressed: frames and tiles are already, without loss. What counts is holes: the file of tiles has them
wherever a tile was replaced. They are left out, in the form that GNU tar writes for sparse files (1.0) and that GNU
tar, bsdtar and Python read. The last member is `SHA256SUMS`, so that
`tar xf RUN.tar && cd RUN && sha256sum -c SHA256SUMS` checks it without tilecast.

An archive is written under another name, `….partial`, synced, read again from the disk and compared with what was
read from the run, and only then gets its name. It holds a run that is not open; like a copy it needs no lock
(`service.copying`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from tilecast.errors import StoreError
from tilecast.service.copying import (
    Progress,
    back_up,
    chunks_of,
    empty,
    named_extents,
    other_files,
    reading_store,
    recording_files,
    settle,
    sync_tree,
)
from tilecast.service.deletion import partial_folder, seen
from tilecast.service.runs import JOURNAL_NAME
from tilecast.store.folders import look_into
from tilecast.store.lock import RunLock, holder
from tilecast.store.sqlite_connection import TILES_NAME, explained, sync_folder
from tilecast.store.tile_file import Extent
from tilecast.store.tile_store import check_run_id
from tilecast_protocol.errors import QueryError

SUMS_NAME = "SHA256SUMS"
_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(1 << 20)
_MODE = 0o644


def archive_run(folder: Path, path: Path, *, progress: Progress = lambda *_: None) -> tuple[int, int]:
    """Put a run that is not open into one file, and read that again to see that all is in it.

    Parameters
    ----------
    folder : Path
        Of the run.
    path : Path
        Of the archive; it must not be there yet.
    progress : callable
        Told how far it is: stage, bytes done, bytes in all.

    Returns
    -------
    (int, int)
        What `deletion.seen` said of the run before it was read: whether anything has come since.

    Raises
    ------
    QueryError
        `conflict`, if it is open.
    StoreError
        If it cannot be read, the archive cannot be written, or does not hold what it should.
    """
    unborn, database = path.with_name(path.name + ".partial"), path.with_name(path.name + ".partial.sqlite")
    with explained(path, "write the archive"):
        if path.exists():
            raise StoreError(f"{path} is there already; choose another name")
        before = seen(folder)
        try:
            with unborn.open("wb") as file:
                sums = _write(folder, file, database, progress)
                file.flush()
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that it is the disk that is read
            if verify_archive(unborn, progress=progress) != (folder.name, sums):
                raise StoreError(f"{unborn} does not hold what was written into it: the disk fails; the run is kept")
            if seen(folder) != before:
                raise StoreError(f"something came into the run in {folder} meanwhile; archive it again")
            unborn.rename(path)
            sync_folder(path.parent)
        finally:
            unborn.unlink(missing_ok=True)
            for suffix in ("", "-journal"):
                database.with_name(database.name + suffix).unlink(missing_ok=True)
    return before


def verify_archive(path: Path, *, progress: Progress = lambda *_: None) -> tuple[str, dict[str, str]]:
    """Read all of an archive, and compare it with its checksums.

    Returns
    -------
    (str, dict)
        The run, and the SHA-256 of each file, by its path below the run's folder.

    Raises
    ------
    StoreError
        If it is no archive of a run, or damaged.
    """
    found: dict[str, str] = {}
    expected: dict[str, str] = {}
    run, total = "", path.stat().st_size
    with _reading(path) as archive:
        for member in archive:
            run, name = _place_of(member, run)
            content = cast("io.BufferedReader", archive.extractfile(member))  # it is a file: _place_of has looked
            if name == SUMS_NAME:
                expected = _read_sums(content.read())
            else:
                found[name] = hashlib.file_digest(content, "sha256").hexdigest()
            progress("checking", min(total, member.offset_data + member.size), total)
    _compare(path, found, expected)
    return run, found


def unarchive_run(path: Path, root: Path, *, progress: Progress = lambda *_: None) -> Path:
    """Bring a run back from an archive into a folder of runs.

    It is checked with its checksums when it is on the disk, and gets its name after that.

    Returns
    -------
    Path
        The run's folder.

    Raises
    ------
    StoreError
        If there is such a run already, or the archive is none, or is damaged.
    RunLockedError
        If somebody else unpacks it.
    """
    with _reading(path) as archive:
        first = archive.next()
        if first is None:
            raise StoreError(f"{path} is empty: no archive of a run")
        run, _ = _place_of(first, "")
    target, partial = root / run, partial_folder(root, run)
    with explained(root, "bring the run back"):
        root.mkdir(parents=True, exist_ok=True)
        if target.exists():
            raise StoreError(f"there is a run {run} in {root} already; delete it first, or choose another folder")
        partial.mkdir(exist_ok=True)
        with RunLock(partial) as lock:
            try:
                empty(partial)
                _unpack(path, run, partial, progress)
                settle(partial, lock, "unarchived", {"from": str(path)})
                sync_tree(partial)
                partial.rename(target)
                sync_folder(root)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    return target


# ---- writing ---------------------------------------------------------------------------------------------------------


def _write(folder: Path, file: IO[bytes], database: Path, progress: Progress) -> dict[str, str]:
    """All members; the SHA-256 of each."""
    sums: dict[str, str] = {}
    with (
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
        contextlib.ExitStack() as last,
    ):
        store = last.enter_context(reading_store(folder))
        if store is None and (writer := holder(folder)):
            raise QueryError(
                "conflict", f"run {folder.name} is being recorded, by {writer}; end that first, or copy it"
            )
        members: list[tuple[str, int, list[Extent], int]] = []  # name, descriptor, what is no hole, length

        def add(name: str, path: Path) -> None:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            last.callback(os.close, fd)
            size = os.fstat(fd).st_size
            members.append((name, fd, [Extent(0, size)] if size else [], size))

        for other in other_files(folder):
            if other.name != SUMS_NAME:
                add(other.relative_to(folder).as_posix(), other)
        if store is not None:
            connection, tile_file, tile_fd = store
            connection.execute("BEGIN")
            last.callback(connection.execute, "ROLLBACK")
            (state,) = connection.execute("SELECT state FROM run").fetchone()
            if state == "open":
                raise QueryError("conflict", f"run {folder.name} is open; end it first, or copy it")
            back_up(connection, database)
            add(TILES_NAME, database)
            size = os.fstat(tile_fd).st_size
            members.append((tile_file.name, tile_fd, list(named_extents(connection)), size))
            if state != "sealed" and not (folder / JOURNAL_NAME).is_dir():
                raise StoreError(f"the run in {folder} has no recording, and is not sealed; see `tilecast fsck`")
        for path, _ in recording_files(folder):
            add(f"{JOURNAL_NAME}/{path.name}", path)
        if not members:
            raise StoreError(f"there is nothing of a run in {folder}")
        total, done = sum(extent.nbytes for _, _, extents, _ in members for extent in extents), 0
        for name, fd, extents, size in members:
            content = _Content(fd, extents, size)
            archive.addfile(_header(folder.name, name, content), cast("IO[bytes]", content))
            sums[name] = content.sha256()
            done += sum(extent.nbytes for extent in extents)
            progress("archiving", done, total)
        text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode()
        info = tarfile.TarInfo(f"{folder.name}/{SUMS_NAME}")
        info.size, info.mode = len(text), _MODE
        archive.addfile(info, io.BytesIO(text))
    return sums


def _header(run: str, name: str, content: _Content) -> tarfile.TarInfo:
    """The header of a member; that of a file with holes says so as GNU tar does."""
    info = tarfile.TarInfo(f"{run}/{name}")
    info.mode, info.mtime, info.size = _MODE, int(os.fstat(content.fd).st_mtime), content.stored_nbytes
    if content.has_holes:
        info.name = f"{run}/GNUSparseFile.0/{name}"
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": f"{run}/{name}",
            "GNU.sparse.realsize": str(content.size),
        }
    return info


class _Content:
    """A file as it goes into the archive, read once; its checksum is that of the file with its holes."""

    def __init__(self, fd: int, extents: list[Extent], size: int) -> None:
        self.fd = fd
        self.size = size
        self.has_holes = sum(extent.nbytes for extent in extents) < size
        self._extents = extents
        self._sha256 = hashlib.sha256()
        head = _sparse_map(extents, size) if self.has_holes else b""
        self.stored_nbytes = len(head) + sum(extent.nbytes for extent in extents)
        self._chunks = self._read(head)
        self._rest = b""

    def read(self, nbytes: int) -> bytes:
        """The next bytes, less only at the end; for `tarfile`."""
        parts, missing = [], nbytes
        while missing:
            if not self._rest:
                self._rest = next(self._chunks, b"")
                if not self._rest:
                    break
            parts.append(self._rest[:missing])
            self._rest = self._rest[missing:]
            missing -= len(parts[-1])
        return b"".join(parts)

    def sha256(self) -> str:
        """Of everything, when everything has been read."""
        while self.read(1 << 20):
            pass
        return self._sha256.hexdigest()

    def _read(self, head: bytes) -> Iterator[bytes]:
        if head:
            yield head
        at = 0
        for extent in self._extents:
            self._skip(extent.offset - at)
            for offset, nbytes in chunks_of(extent):
                done = 0
                while done < nbytes:
                    data = os.pread(self.fd, nbytes - done, offset + done)
                    if not data:
                        raise StoreError(f"a file of the run became shorter while it was read, at {offset + done}")
                    done += len(data)
                    self._sha256.update(data)
                    yield data
                os.posix_fadvise(self.fd, offset, nbytes, os.POSIX_FADV_DONTNEED)
            at = extent.offset + extent.nbytes
        self._skip(self.size - at)

    def _skip(self, nbytes: int) -> None:
        """Zeros, for the checksum alone."""
        for _, count in chunks_of(Extent(0, nbytes)):
            for _, piece in _pieces(count):
                self._sha256.update(_ZEROS[:piece])


def _pieces(nbytes: int) -> Iterator[tuple[int, int]]:
    for offset in range(0, nbytes, len(_ZEROS)):
        yield offset, min(len(_ZEROS), nbytes - offset)


def _sparse_map(extents: list[Extent], size: int) -> bytes:
    """Where the data of a file with holes lies, as GNU tar's format 1.0 has it: numbers on lines, in whole blocks."""
    places = list(extents)
    if not places or places[-1].offset + places[-1].nbytes < size:
        places.append(Extent(size, 0))  # says that the file ends in a hole
    numbers = [len(places), *(number for place in places for number in place)]
    text = "".join(f"{number}\n" for number in numbers).encode()
    return text + bytes(-len(text) % _BLOCK)


# ---- reading ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:") as archive:
            yield archive
    except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
        raise StoreError(f"{path} cannot be read as the archive of a run: {error}") from error


def _place_of(member: tarfile.TarInfo, run: str) -> tuple[str, str]:
    """The run that a member belongs to, and its path in the run's folder; StoreError if it is no such file."""
    parts = PurePosixPath(member.name).parts
    if not member.isfile() or len(parts) < 2 or ".." in parts or member.name.startswith("/"):
        raise StoreError(f"{member.name!r} does not belong into the archive of a run")
    check_run_id(parts[0])
    if run and parts[0] != run:
        raise StoreError(f"{member.name!r} is not of the run {run} that the archive begins with")
    return parts[0], "/".join(parts[1:])


def _unpack(path: Path, run: str, partial: Path, progress: Progress) -> None:
    """Write all files of an archive, and compare what is on the disk then with the checksums."""
    expected: dict[str, str] = {}
    written: dict[str, Path] = {}
    total = path.stat().st_size
    with _reading(path) as archive:
        for member in archive:
            _, name = _place_of(member, run)
            if name == SUMS_NAME:
                expected = _read_sums(cast("IO[bytes]", archive.extractfile(member)).read())
                continue
            target = written[name] = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            archive.makefile(member, str(target))  # also with holes
            progress("unpacking", min(total, member.offset_data + member.size), total)
    for target in written.values():
        fd = os.open(target, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    found = {}
    for number, (name, target) in enumerate(written.items(), 1):
        with target.open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        progress("checking", number, len(written))
    _compare(path, found, expected)
    info = look_into(partial).info
    if info is not None and info.run != run:
        raise StoreError(f"{path} says that it holds run {run}, and holds {info.run}")


def _read_sums(text: bytes) -> dict[str, str]:
    pairs = (line.split("  ", 1) for line in text.decode().splitlines())
    return {name: digest for digest, name in pairs}


def _compare(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    if not expected:
        raise StoreError(f"{path} ends before its checksums: it is cut short, or no archive of tilecast")
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong:
        shown = ", ".join(wrong[:3]) + (", …" if len(wrong) > 3 else "")
        raise StoreError(f"{path} is damaged: {shown} {'is' if len(wrong) == 1 else 'are'} not what was archived")
