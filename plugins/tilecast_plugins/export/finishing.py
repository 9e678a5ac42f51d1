"""A file or folder appears under its name when it is whole, or not at all.

It is written under a hidden name beside it and renamed at the end. What was there under the name is replaced only
then, and only if that was asked for.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tilecast_plugins.export.errors import ExportError


def check_target(path: Path, *, force: bool) -> None:
    """Refuse a name that cannot be written to; before any work is done.

    Raises
    ------
    ExportError
        If something is there and `force` is not given, or the folder it would lie in is not there.
    """
    if path.name in ("", ".."):
        raise ExportError(f"{path} is a folder, not the name of what is to be written: add a name")
    if not path.parent.is_dir():
        raise ExportError(f"there is no folder {path.parent}: make it first, or choose another place for FILE")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ExportError(f"nothing may be written to the folder {path.parent}: choose another place for FILE")
    if (path.exists() or path.is_symlink()) and not force:
        raise ExportError(f"{path} is there already: --force replaces it, give another FILE otherwise")
    if force and path.is_dir() and any(path.iterdir()) and not looks_exported(path):
        raise ExportError(
            f"{path} is a folder that no export made, and --force would delete it: delete it yourself, or choose "
            "another FILE"
        )


def looks_exported(folder: Path) -> bool:
    """Whether a folder may be replaced by another export: it has one of the files that ours have."""
    return any((folder / name).is_file() for name in (".zgroup", "zarr.json", "metadata.json", "positions.csv"))


def check_room(folder: Path, nbytes: int) -> None:
    """Refuse what may not fit.

    Raises
    ------
    ExportError
        If the disk has less room than `nbytes`.
    """
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise ExportError(
            f"the export may take {_gib(nbytes)}, and the disk of {folder.resolve()} has {_gib(free)} free: make room, "
            "export a --region or fewer planes, or choose another disk for FILE"
        )


@contextlib.contextmanager
def finished(path: Path) -> Iterator[Path]:
    """The name to write under; what is there becomes `path` at the end, or is deleted if that is never reached."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}.part")
    _delete(hidden)
    try:
        yield hidden
        _sync(hidden)
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        if path.is_dir() and not path.is_symlink():
            path.rename(old)  # a folder that is not empty cannot be replaced in one step
        try:
            hidden.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        _delete(old)
    finally:
        _delete(hidden)


def _sync(path: Path) -> None:
    """Have a single file on the disk before its name is; a folder of many is left to the system."""
    if path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _gib(nbytes: int) -> str:
    return f"{nbytes / (1 << 30):.1f} GiB" if nbytes >= 1 << 30 else f"{nbytes / (1 << 20):.1f} MiB"
