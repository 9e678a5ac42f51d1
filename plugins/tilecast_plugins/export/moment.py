"""One instant of a run, however long its export takes and whatever is committed meanwhile.

A run that has ended stands still, and is read as it lies there; should a late frame or a rebuild change it all the
same, the export ends with the word. Of a run that goes on, the tiles of full resolution are copied first, as they are
stored: then those that changed meanwhile, again and again, until nothing was committed between listing the changes and
reading them. Each round is shorter than the last, since less has changed, and no transaction is held open that would
keep the daemon from tidying up.

Upper levels are not taken from the store: they follow from level 0 (`levels`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from tilecast.reading import PlaneKey, Rect, RunInfo, StoredTile, TileKey, TileReader, coverage_bits
from tilecast_plugins.export.errors import ExportError
from tilecast_plugins.export.spool import Spool, spooled
from tilecast_plugins.run import Blob, Run

_STANDING = ("ended", "sealed")
_PATIENCE_S = 60.0

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


class Moment(Protocol):
    """A run at one instant, and its tiles of level 0 then (a `pixels.TileSource`)."""

    @property
    def run(self) -> Run:
        """The run as it was."""

    def tile(self, run: Run, plane: PlaneKey, key: TileKey) -> Blob | None:
        """A tile, or None if there is none."""

    def tile_rev(self, run: Run, plane: PlaneKey, key: TileKey) -> int | None:
        """Its rev."""

    def check(self) -> None:
        """Raise `ExportError` if what was read is not of one instant."""


class Standing:
    """A run that has ended, read where it lies."""

    def __init__(self, reader: TileReader, info: RunInfo) -> None:
        self._reader = reader
        self.run = Run.of(info)

    def tile(self, run: Run, plane: PlaneKey, key: TileKey) -> Blob | None:
        stored = self._reader.tile(plane, key)
        if stored is None:
            return None
        if stored.rev > run.rev:
            self.check()
        return as_blob(stored, run.tile_size)

    def tile_rev(self, run: Run, plane: PlaneKey, key: TileKey) -> int | None:  # noqa: ARG002
        return self._reader.tile_rev(plane, key)

    def check(self) -> None:
        if self._reader.info().rev != self.run.rev:
            raise ExportError(
                f"the run {self.run.run[:8]} changed while it was exported (a late frame, or a rebuild), so nothing "
                "was written: export it again"
            )


class Copied:
    """What was copied of a run that goes on."""

    def __init__(self, spool: Spool, info: RunInfo) -> None:
        self._spool = spool
        self.run = Run.of(info)

    def tile(self, run: Run, plane: PlaneKey, key: TileKey) -> Blob | None:  # noqa: ARG002
        return self._spool.get(plane, key)

    def tile_rev(self, run: Run, plane: PlaneKey, key: TileKey) -> int | None:  # noqa: ARG002
        return self._spool.rev(plane, key)

    def check(self) -> None:
        return


def as_blob(stored: StoredTile, tile_size: int) -> Blob:
    """A tile of a store, with its coverage as bits."""
    return Blob(stored.pzf, stored.rev, coverage_bits(stored.coverage, tile_size))


@contextlib.contextmanager
def moment_of(reader: TileReader, folder: Path, region: Rect | None, progress: Progress) -> Iterator[Moment]:
    """The run as it is now, until the end of the `with`.

    Parameters
    ----------
    folder : Path
        Where a copy may be put, if it needs one.
    region : Rect, optional
        What of it is wanted, level-0 pixels.

    Raises
    ------
    ExportError
        If commits come faster than they can be copied.
    """
    info = reader.info()
    if info.state in _STANDING:
        yield Standing(reader, info)
        return
    with spooled(folder) as spool:
        yield Copied(spool, copy_moment(reader, spool, region, progress))


def copy_moment(reader: TileReader, spool: Spool, region: Rect | None, progress: Progress) -> RunInfo:
    """Copy the tiles of level 0 of a run that is being written; gives the run as of the same commit."""
    deadline_s = time.monotonic() + _PATIENCE_S
    info: RunInfo | None = None
    while info is None:
        spool.clear()
        began = reader.info()
        size = int(began.settings["tile_size"])
        total = began.n_tiles
        for number, (plane, key) in enumerate(_listed(reader), 1):
            if _wanted(key, size, region):
                stored = reader.tile(plane, key)
                if stored is not None:
                    spool.put(plane, key, as_blob(stored, size))
            progress("copying tiles", min(number, total), total)
        info = _catch_up(reader, spool, began, region, deadline_s)
    return info


def _listed(reader: TileReader) -> Iterator[tuple[PlaneKey, TileKey]]:
    for plane in reader.info().bboxes:
        for key in reader.keys(plane, 0):
            yield plane, key


def _catch_up(
    reader: TileReader, spool: Spool, began: RunInfo, region: Rect | None, deadline_s: float
) -> RunInfo | None:
    """Copy what changed since, until it is all of one commit; None if a new history began, so all begins anew."""
    size = int(began.settings["tile_size"])
    since = began.rev
    while True:
        page = reader.changes(since, epoch=began.epoch)
        if page.resync:
            return None
        ahead = page.more
        for stamp in page.gone:
            spool.drop(stamp.plane, stamp.key)
        for stamp in page.tiles:
            if stamp.key.level or not _wanted(stamp.key, size, region):
                continue
            stored = reader.tile(stamp.plane, stamp.key)
            if stored is None:
                spool.drop(stamp.plane, stamp.key)
                ahead = True
            else:
                spool.put(stamp.plane, stamp.key, as_blob(stored, size))
                ahead |= stored.rev > page.upto
        since = page.upto
        info = reader.info()
        if not ahead and info.rev == since and info.epoch == began.epoch:
            return info
        if time.monotonic() > deadline_s:
            raise ExportError(
                f"the run {began.run[:8]} is written faster than it can be copied ({_PATIENCE_S:.0f} s were not "
                "enough); export it when it has ended, or a smaller --region"
            )


def _wanted(key: TileKey, tile_size: int, region: Rect | None) -> bool:
    return region is None or not key.rect(tile_size).intersect(region).empty
