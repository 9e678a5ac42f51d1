"""Dual-view cameras: each frame becomes two views, the second registered to the first, both un-mixed.

What is done is decided when a run starts, from the options and the file with the transform, and frozen in the run. Both
views lie about the stage's position of the frame, on each other; each has a channel of its own. They are cut to what
both halves show, so that no pixel is made up. This is the only place at which tilecast resamples pixels: integers are
rounded to the nearest, clipped to their type, and counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecast.hookspecs import FrameStep, Images, MakeImages, RunStart, StartRefusedError, View, hookimpl
from tilecast_plugins.splitter.options import SplitterOptions
from tilecast_plugins.splitter.resampling import Grid
from tilecast_plugins.splitter.transform import Transform, TransformError, halves_of

_LEAST_DETERMINANT = 1e-3


@hookimpl
def tilecast_run_starting(run: RunStart, options: SplitterOptions) -> FrameStep | None:
    """How the frames of this run are split, if they are; see the module."""
    if run.stream not in options.streams:
        return None
    if options.first_channel == options.second_channel:
        raise StartRefusedError(
            f"both halves would become channel {options.first_channel}: set plugins.splitter.second_channel to another"
        )
    transform = _transform(options.transform, options, run.shape)
    unmixing = _unmixing(options.mixing)
    try:
        half = transform.half_of(run.shape)
        grid = Grid.of(half, transform.matrix, transform.shift_px, options.interpolation)
    except (TransformError, ValueError) as error:
        raise StartRefusedError(f"the frames of {run.shape[0]} × {run.shape[1]} cannot be split: {error}") from error
    # The half lies about the position of the frame, and the view where it was cut from it.
    corner = ((run.shape[0] - half[0]) // 2 + grid.row0, (run.shape[1] - half[1]) // 2 + grid.col0)
    views = tuple(
        View(shape=grid.shape, channel=channel, corner=corner)
        for channel in (options.first_channel, options.second_channel)
    )
    settings = transform.as_dict() | {
        "interpolation": options.interpolation,
        "unmixing": None if unmixing is None else unmixing.tolist(),
        "view": [grid.row0, grid.col0, *grid.shape],
    }
    return FrameStep(settings=settings, views=views)


@hookimpl
def tilecast_make_images(step: FrameStep, dtype: str) -> MakeImages:
    """Both views of a frame, from what was frozen."""
    transform = Transform.from_dict(step.settings)
    row0, col0, height, width = step.settings["view"]
    grid = Grid(row0, col0, (height, width), transform.matrix, transform.shift_px, step.settings["interpolation"])
    mixed = step.settings["unmixing"]
    part = np.s_[row0 : row0 + height, col0 : col0 + width]
    is_plain = transform.is_identity and mixed is None

    def make(frame: NDArray[Any]) -> Images:
        first, second = halves_of(frame, transform.halves, transform.mirror)
        if is_plain:
            return Images([first[part], second[part]])
        one = first[part].astype(np.float64)
        two = second[part].astype(np.float64) if transform.is_identity else grid.sample(second.astype(np.float64))
        if mixed is not None:
            (a, b), (c, d) = mixed
            one, two = one * a + two * b, one * c + two * d
        images, n_low, n_high = [], 0, 0
        for value in (one, two):
            image, low, high = _rounded(value, dtype)
            images.append(image)
            n_low, n_high = n_low + low, n_high + high
        return Images(images, n_low, n_high)

    return make


def _rounded(value: NDArray[np.float64], dtype: str) -> tuple[NDArray[Any], int, int]:
    """In the type of the run: to the nearest, ties to even, clipped; how many were below and above."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return value.astype(kind), 0, 0
    limit = np.iinfo(kind).max
    np.rint(value, out=value)
    low, high = int(np.count_nonzero(value < 0)), int(np.count_nonzero(value > limit))
    return np.clip(value, 0, limit).astype(kind), low, high


def _transform(path: Path | None, options: SplitterOptions, shape: tuple[int, int]) -> Transform:
    if path is None:
        return Transform(halves=options.halves, mirror=options.mirror)
    try:
        transform = Transform.from_dict(json.loads(path.read_text()))
    except OSError as error:
        raise StartRefusedError(
            f"plugins.splitter.transform: cannot read {path}: {error.strerror}; `tilecast calibrate split` makes one"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise StartRefusedError(
            f"plugins.splitter.transform: {path} is not a file made by `tilecast calibrate split`: {error}"
        ) from error
    if transform.shape is not None and transform.shape != tuple(shape):
        raise StartRefusedError(
            f"{path} was made with frames of {transform.shape[0]} × {transform.shape[1]} pixels, these are "
            f"{shape[0]} × {shape[1]}: make it anew with this camera, binning and region"
        )
    return transform


def _unmixing(mixing: tuple[float, ...]) -> NDArray[np.float64] | None:
    """The inverse of the mixing matrix; by its formula, so that it is the same everywhere."""
    if not mixing:
        return None
    if len(mixing) != 4:
        raise StartRefusedError(f"plugins.splitter.mixing: expected four numbers a,b,c,d; got {len(mixing)}")
    a, b, c, d = mixing
    determinant = a * d - b * c
    if abs(determinant) < _LEAST_DETERMINANT * max(map(abs, mixing)) ** 2:
        raise StartRefusedError(
            f"plugins.splitter.mixing: {a:g},{b:g},{c:g},{d:g} cannot be un-mixed, because both halves show the same "
            "mixture; measure it with samples of one dye each"
        )
    return np.array([[d, -b], [-c, a]]) / determinant
