"""Reading runs, for programs that show them: all that such a program needs to import of the daemon.

A gateway, an exporter or an analysis on the machine that holds the runs reads them beside the daemon, without asking
it. This module is their door: which runs there are, a `TileReader` of one, the geometry in which tiles and placements
are told, what a tile's coverage means, and how tiles are reduced. What lies behind it (SQLite, files, schema) may
change without them.

On another machine the same is asked through `tilecast_protocol.client`.

>>> list_runs("/nonexistent")
[]
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tilecast.errors import StoreError as StoreError
from tilecast.geometry import Canvas as Canvas
from tilecast.geometry import Placement as Placement
from tilecast.geometry import PlaneKey as PlaneKey
from tilecast.geometry import Rect as Rect
from tilecast.geometry import TileKey as TileKey
from tilecast.geometry import extent_rect as extent_rect
from tilecast.geometry import rect_at_level as rect_at_level
from tilecast.geometry import tile_span as tile_span
from tilecast.geometry import tiles_in as tiles_in
from tilecast.geometry import union_of as union_of
from tilecast.hookspecs import FrameStep, View
from tilecast.publish.open_readers import OpenReaders
from tilecast.reduction import blank_tile, clear_quadrant, reduce_into
from tilecast.service.frame_images import whole_of
from tilecast.service.runs import first_start, image_pixels, images_of, load_images, open_recording, read_frozen
from tilecast.store.coverage import coverage_bits as coverage_bits
from tilecast.store.coverage import coverage_unpack as coverage_unpack
from tilecast.store.folders import FoundRun as FoundRun
from tilecast.store.folders import RunList as RunList
from tilecast.store.folders import folder_nbytes as folder_nbytes
from tilecast.store.folders import list_runs as list_runs
from tilecast.store.folders import run_folder as run_folder
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.tile_store import Changes as Changes
from tilecast.store.tile_store import EdgeRow as EdgeRow
from tilecast.store.tile_store import PlacementRow as PlacementRow
from tilecast.store.tile_store import Position as Position
from tilecast.store.tile_store import Registration as Registration
from tilecast.store.tile_store import RunFacts as RunFacts
from tilecast.store.tile_store import RunInfo as RunInfo
from tilecast.store.tile_store import StoredTile as StoredTile
from tilecast.store.tile_store import TileReader as TileReader
from tilecast.store.tile_store import TileStamp as TileStamp
from tilecast_protocol.headers import unpack_header


def open_run(root: str | os.PathLike[str], run: str) -> TileReader:
    """A reader of one run, which any number of threads may share, while the daemon writes it.

    Parameters
    ----------
    root : path
        The option `store.path`.
    run : str
        Its UUID, lower case.

    Raises
    ------
    StoreError
        If there is no such run, or it cannot be read.
    """
    return SqliteReader(run_folder(root, run))


def open_folder(folder: str | os.PathLike[str]) -> TileReader:
    """As `open_run`, of a run's folder wherever it lies."""
    return SqliteReader(folder)


class RecordedFrames:
    """The frames of a run, as its camera sent them and as they went into its mosaic; also while it is recorded.

    Parameters
    ----------
    folder : path
        The run's folder.

    Raises
    ------
    StoreError
        If the run is sealed, so that its frames are not kept any more, or what was frozen at its start is lost.
    JournalError, CalibrationError
        If they cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        path = Path(folder)
        self._journal = open_recording(path)
        try:
            self._start = first_start(self._journal)
            self._images = load_images(path, self._start, read_frozen(path))
        except BaseException:
            self._journal.close()
            raise

    @property
    def n_frames(self) -> int:
        """Frames in the recording when it was opened."""
        return self._journal.n_images

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of each frame."""
        return self._start.shape

    @property
    def dark(self) -> NDArray[np.float32] | None:
        """The dark image that is frozen in the run, if there is one."""
        return self._images.calibration.dark

    @property
    def is_calibrated(self) -> bool:
        """Whether the mosaic's frames differ from the recorded ones."""
        return not self._images.is_identity

    @property
    def views(self) -> tuple[View, ...]:
        """What each frame is split into; empty if it is not."""
        return self._images.views

    def step(self, plugin: str) -> FrameStep | None:
        """What a plugin does with each frame, as it is frozen in the run."""
        return next((step.told for step in self._images.steps if step.frozen.plugin == plugin), None)

    def recorded(self, placement: Placement) -> NDArray[Any]:
        """A placed frame's pixels, shape (rows, columns), as its camera sent them."""
        return image_pixels(self._journal, placement.index, self._start)

    def calibrated(self, placement: Placement) -> NDArray[Any]:
        """The same as they went into the mosaic: calibrated and passed through plugins; of a split frame, this view.

        Raises
        ------
        TilecastError
            If a plugin that takes part is not there, or fails.
        """
        return images_of(self._journal, placement.index, self._start, self._images).images[placement.view]

    def whole(self, placement: Placement) -> Placement:
        """Where the whole frame lies of which this is a view; its channel is that of the camera's image."""
        if not self.views:
            return placement
        channel = int((self.header(placement).get("tcz") or (0, 0, 0))[1])
        return whole_of(placement, self.views, self._start.shape, channel)

    def header(self, placement: Placement) -> dict[str, Any]:
        """What the message said that carried a frame (PROTOCOL, `image`)."""
        return unpack_header(self._journal.image(placement.index).header)

    def close(self) -> None:
        """Let go of the recording."""
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def shared_readers(root: str | os.PathLike[str], most: int = 32) -> OpenReaders:
    """Readers of all runs of a store, at most so many of them kept open; `with readers.reading(run) as reader`."""
    return OpenReaders(lambda run: SqliteReader(run_folder(root, run)), most)


def reduce_tiles(
    children: Sequence[tuple[NDArray[Any], NDArray[np.bool_] | None] | None],
    dtype: np.dtype[Any],
    tile_size: int,
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Make a tile of the next level as the daemon makes it: the mean of the covered pixels, ties to even.

    Parameters
    ----------
    children : four of (pixels, coverage) or None, row-major
        Tiles of shape (tile_size, tile_size), uncovered pixels 0 (NaN in floats); coverage None for full ones; None
        for tiles that are not there.
    dtype : dtype
    tile_size : int
        Pixels; a multiple of 8.

    Returns
    -------
    (pixels, coverage)
        New arrays; coverage as above.
    """
    parent = blank_tile(dtype, tile_size)
    mask: NDArray[np.bool_] | None = None if dtype.kind == "f" else np.zeros((tile_size, tile_size), np.bool_)
    for number, child in enumerate(children):
        row_half, col_half = divmod(number, 2)
        if child is None:
            mask = clear_quadrant(parent, mask, row_half, col_half)
        else:
            mask = reduce_into(child[0], child[1], parent, mask, row_half, col_half)
    if dtype.kind == "f":
        mask = np.isfinite(parent)
    if mask is not None and bool(mask.all()):
        mask = None
    return parent, mask
