"""A run's folder as a source of `tilecast_protocol.Mosaic`, read beside the daemon, or without one.

The protocol package, which has `Mosaic`, must not know the store; so it finds this class by the entry point `folder` of
the group `tilecast.mosaic_sources`, as the daemon finds plugins. It is apart from `tilecast.reading`, because that
brings along everything a gateway or an exporter needs, and a notebook should open a run at once.

There are no notifications in a folder: whoever follows it looks at the store a few times a second.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from tilecast.geometry import PlaneKey, TileKey
from tilecast.store.coverage import coverage_bits
from tilecast.store.folders import list_runs
from tilecast.store.sqlite_connection import TILES_NAME
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_protocol.client import TileRef
from tilecast_protocol.mosaic.facts import Facts, affine_of, plane_counts
from tilecast_protocol.mosaic.source import (
    Changed,
    News,
    Source,
    State,
    Tile,
    choose_run,
    decoded,
)

_LOOK_S: Final = 0.2  # how often whoever follows looks at the store


class FolderSource(Source):
    """Reads a run on this machine.

    Parameters
    ----------
    folder : path
        The run's, or that of all runs.
    run : str, optional
        Which, where there are several; see `choose_run`.

    Raises
    ------
    UnknownRunError
        There is none.
    StoreError
        It cannot be read; says what to do.
    """

    threads: ClassVar[int] = 2  # they only decode

    def __init__(self, folder: str | Path, run: str | None = None) -> None:
        path = Path(folder).expanduser()
        if not (path / TILES_NAME).is_file():
            runs = [one for one in list_runs(path) if one.info is not None]
            listed = [(one.run, one.info.name if one.info else "") for one in runs]
            path = path / choose_run(listed, run, str(path))
            run = None
        self._reader = SqliteReader(path)
        info = self._reader.info()
        choose_run([(info.run, info.name)], run, str(path))  # refuses another than is here
        self._size = int(info.settings["tile_size"])
        self._dtype = np.dtype(info.header["dtype"])

    def facts(self) -> Facts:
        info = self._reader.info()
        start = info.header
        boxes = {(plane.t, plane.c, plane.z): box for plane, box in info.bboxes.items()}
        return Facts(
            run=info.run,
            name=info.name,
            state=info.state,
            epoch=info.epoch,
            rev=info.rev,
            levels=info.levels,
            tile_shape=(self._size, self._size),
            dtype=self._dtype,
            counts=plane_counts(start, boxes),
            boxes=boxes,
            canvas=None if info.canvas is None else info.canvas.rect,
            affine=affine_of(start),
            start=start,
        )

    def tile(self, ref: TileRef) -> Tile | None:
        stored = self._reader.tile(PlaneKey(*ref.tcz), TileKey(ref.level, ref.row, ref.col))
        if stored is None:
            return None
        bits = coverage_bits(stored.coverage, self._size)
        return decoded(stored.pzf, bits, (self._size, self._size), self._dtype.str)

    def changes(self, epoch: int, since: int) -> Changed:
        found = self._reader.changes(since, epoch=epoch)
        tiles, gone = (
            tuple(TileRef(*stamp.plane, *stamp.key) for stamp in stamps) for stamps in (found.tiles, found.gone)
        )
        return Changed(found.epoch, found.upto, found.resync, tiles, gone, found.more)

    def updates(self, epoch: int, rev: int, stop: threading.Event) -> Generator[News, None, None]:
        state = ""
        while not stop.is_set():
            info = self._reader.info()
            if (info.epoch, info.rev) != (epoch, rev):
                for update in self.since(info.run, epoch, rev):
                    epoch, rev = update.epoch, update.rev
                    yield update
            if info.state != state:
                state = info.state
                yield State(state)
            stop.wait(_LOOK_S)

    def close(self) -> None:
        self._reader.close()
