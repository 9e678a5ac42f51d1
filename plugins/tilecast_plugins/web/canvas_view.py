"""A run as viewers with non-negative indices see it: a canvas of whole tiles, with a fixed number of levels.

CATMAID, DeepZoom, IIP and OME-Zarr count tiles and pixels from the upper left corner of an image of known size;
tilecast counts them from stage (0, 0), with a sign. A `CanvasView` is the translation between the two at one instant
of a run, and the one place that knows it. The canvas is snapped to whole tiles of its top level, so every level is a
whole number of tiles, and halving never meets an odd number.

The canvas may have more levels than the store has tiles for: a spare one that a growing run needs soon, or those of a
scan that has only begun. `pixels` reduces them as the daemon would. What lies above the canvas's own top level, for
pictures of a few pixels, is not on the stage's grid any more, and halved here.

It does not know HTTP, or colours.

>>> view = CanvasView.of(run)                                 # doctest: +SKIP
>>> view.size(0), view.grid(1), view.key(0, 0, 1)             # doctest: +SKIP
((1024, 512), (2, 1), TileKey(level=0, row=-2, col=1))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecast.reading import Canvas, PlaneKey, Rect, TileKey
from tilecast_plugins.pixels import Pixels
from tilecast_plugins.run import Run
from tilecast_plugins.web.gateway import NotFoundError

Array = NDArray[Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CanvasView:
    """What is shown of a run at one instant.

    Attributes
    ----------
    run : Run
    canvas : Canvas
        That of the run, which is there.
    """

    run: Run
    canvas: Canvas

    @classmethod
    def of(cls, run: Run) -> CanvasView:
        """The view of a run.

        Raises
        ------
        NotFoundError
            If no frame has been placed yet, so that there is nothing to show and no size to tell.
        """
        if run.canvas is None:
            raise NotFoundError(
                f"the run {run.run} has no picture yet: no frame of it has been placed; ask again later"
            )
        return cls(run, run.canvas)

    @property
    def dtype(self) -> str:
        """``|u1``, ``<u2`` or ``<f4``."""
        return self.run.dtype.newbyteorder("<").str

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many time points, channels and z positions there are, from 0 on."""
        return self.run.n_times, self.run.n_channels, self.run.n_slices

    @property
    def tile_size(self) -> int:
        """Edge of a tile, pixels."""
        return self.canvas.tile_size

    @property
    def levels(self) -> int:
        """How many levels viewers are told of."""
        return self.canvas.levels

    def size(self, level: int) -> tuple[int, int]:
        """Rows and columns of a level."""
        rect = self.canvas.at_level(level)
        return rect.height, rect.width

    def grid(self, level: int) -> tuple[int, int]:
        """Rows and columns of tiles of a level."""
        height, width = self.size(level)
        return height // self.tile_size, width // self.tile_size

    def plane(self, t: int, c: int, z: int) -> PlaneKey:
        """The plane of these numbers.

        Raises
        ------
        NotFoundError
            If the run has none of these numbers.
        """
        for name, number, count in zip("tcz", (t, c, z), self.shape, strict=True):
            if not 0 <= number < count:
                raise NotFoundError(f"the run has {name} = 0 to {count - 1}; asked for {number}")
        return PlaneKey(t, c, z)

    def key(self, level: int, row: int, col: int) -> TileKey:
        """The signed tile at a place of the canvas.

        Raises
        ------
        NotFoundError
            If the canvas does not reach there.
        """
        if not 0 <= level < self.levels:
            raise NotFoundError(f"the image has levels 0 to {self.levels - 1}; asked for {level}")
        rows, cols = self.grid(level)
        if not (0 <= row < rows and 0 <= col < cols):
            raise NotFoundError(f"level {level} has {rows} × {cols} tiles; asked for row {row}, column {col}")
        rect = self.canvas.at_level(level)
        return TileKey(level, row + rect.row0 // self.tile_size, col + rect.col0 // self.tile_size)

    def signed(self, level: int, rect: Rect) -> Rect:
        """A rectangle of a level, counted from the corner of the canvas, in pixels counted from stage (0, 0)."""
        corner = self.canvas.at_level(level)
        return rect.shifted(corner.row0, corner.col0)


def above_top(pixels: Pixels, view: CanvasView, plane: PlaneKey, level: int) -> tuple[Array, Mask | None, int]:
    """The whole picture at a level above the canvas's top one, or at that.

    Returns
    -------
    (pixels, mask, rev)
        The mask is None if all is covered, the rev 0 if nothing is.
    """
    top = view.levels - 1
    found = pixels.region(view.run, plane, top, view.canvas.at_level(top))
    array, mask = found.pixels, found.coverage
    for _ in range(level - top):
        array, mask = halved(array, mask)
    return array, mask, found.rev


def halved(pixels: Array, mask: Mask | None) -> tuple[Array, Mask | None]:
    """Half the size: of each 2 × 2 the mean of the covered pixels, ties to even; covered if any is.

    Parameters
    ----------
    pixels : (rows, cols) array
        A last odd row or column is halved as if uncovered pixels lay beside it.
    mask : (rows, cols) bool array or None
        Its covered pixels; None if all are. Those of float images are the finite ones.

    Returns
    -------
    (⌈rows/2⌉, ⌈cols/2⌉) array, and its mask as above
    """
    is_float = pixels.dtype.kind == "f"
    if is_float:
        mask = np.isfinite(pixels)
    if pixels.shape[0] % 2 or pixels.shape[1] % 2:
        mask = np.ones(pixels.shape, np.bool_) if mask is None else mask
        edge = [(0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2)]
        pixels, mask = np.pad(pixels, edge), np.pad(mask, edge)
    sum_type = np.float64 if is_float else np.int64
    total = np.zeros((pixels.shape[0] // 2, pixels.shape[1] // 2), sum_type)
    number = np.zeros(total.shape, np.uint8)
    for i in (0, 1):
        for j in (0, 1):
            part = pixels[i::2, j::2].astype(sum_type)
            if mask is not None:
                part[~mask[i::2, j::2]] = 0
                number += mask[i::2, j::2]
            total += part
    if mask is None:
        number[:] = 4
    covered = number > 0
    mean = total / np.maximum(number, 1)
    if is_float:
        return np.where(covered, mean, np.nan).astype(pixels.dtype), None if covered.all() else covered
    return np.rint(mean).astype(pixels.dtype), None if covered.all() else covered
