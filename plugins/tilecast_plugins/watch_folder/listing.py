"""Which files lie in a folder, and which of them have not changed for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tilecast.inputs import IMAGE_SUFFIXES
from tilecast_plugins.watch_folder.record import Stamp

TAKEN_FOLDER = "taken"
REJECTED_FOLDER = ".rejected"
_LONGEST_S = 5.0  # between two looks into a file that is not to be used yet


def list_images(folder: Path, *, subfolders: bool) -> dict[str, Stamp]:
    """The image files in a folder, or in the folders in it, by their names there (`scan 1/img.tif`).

    Hidden files are passed over, and so are other suffixes: that is how programs name what they still write.

    Raises
    ------
    OSError
        The folder is not there, or cannot be read.
    """
    if not subfolders:
        return dict(_images_in(folder, ""))
    found: dict[str, Stamp] = {}
    for inner in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if inner.name != TAKEN_FOLDER and inner.is_dir():
            try:
                found.update(_images_in(inner, f"{inner.name}/"))
            except FileNotFoundError:  # moved away just now
                continue
    return found


def stamp_of(path: Path) -> Stamp | None:
    """Size and time of a file; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns)


def _images_in(folder: Path, prefix: str) -> Iterator[tuple[str, Stamp]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in IMAGE_SUFFIXES:
                continue
            try:
                if entry.is_file():
                    status = entry.stat()
                    yield prefix + entry.name, Stamp(status.st_size, status.st_mtime_ns)
            except FileNotFoundError:  # taken away just now
                continue


@dataclass(slots=True)
class Waiting:
    """A file that is not taken yet.

    Attributes
    ----------
    stamp : Stamp
    since_s : float
        When it was first seen so.
    try_at_s : float
        When to look into it, at the earliest.
    why : str
        Why it was not taken when it was looked into last.
    """

    stamp: Stamp
    since_s: float
    try_at_s: float
    why: str = ""


class WaitingRoom:
    """Files until they are whole.

    Parameters
    ----------
    settle_s : float
        How long a file must not have changed.
    """

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._files: dict[str, Waiting] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __getitem__(self, name: str) -> Waiting:
        return self._files[name]

    @property
    def next_at_s(self) -> float:
        """When the next file may be looked into."""
        return min(file.try_at_s for file in self._files.values())

    def update(self, found: Mapping[str, Stamp], now_s: float) -> bool:
        """Take note of the files that are there and not taken; others are forgotten. True if one is new, or changed."""
        files: dict[str, Waiting] = {}
        for name, stamp in found.items():
            before = self._files.get(name)
            unchanged = before is not None and before.stamp == stamp
            files[name] = before if before and unchanged else Waiting(stamp, now_s, now_s + self._settle_s)
        news = any(file.since_s == now_s for file in files.values())
        self._files = files
        return news

    def ready(self, now_s: float) -> list[str]:
        """Files that may be looked into."""
        return [name for name, file in self._files.items() if now_s >= file.try_at_s]

    def put_off(self, name: str, why: str, now_s: float) -> float:
        """Look into it again after a while; returns for how long it has not changed, in seconds."""
        file = self._files[name]
        file.why = why
        file.try_at_s = now_s + max(self._settle_s, min((now_s - file.since_s) / 4, _LONGEST_S))
        return now_s - file.since_s

    def changed(self, name: str, stamp: Stamp | None, now_s: float) -> None:
        """It changed while it was read."""
        if stamp is None:
            self._files.pop(name, None)
        else:
            self._files[name] = Waiting(stamp, now_s, now_s + self._settle_s)

    def remove(self, name: str) -> None:
        """It is taken, or set aside."""
        self._files.pop(name, None)
