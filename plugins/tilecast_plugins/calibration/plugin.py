"""The hooks of the calibration plugin.

* Dark and flat images that a `start` names are found in the folder `calibration.path` (`finding`); the daemon applies
  them.
* `cameras.toml` in that folder, or `user.calibration` of a `start`, says what else is corrected, camera by camera and
  channel by channel (`cameras`, `corrections`). It is frozen in the run.
* If `estimate_into` is set, flat fields are estimated of runs that go on, and of those that have ended (`estimating`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecast.hookspecs import (
    CalibrationError,
    FrameStep,
    Images,
    MakeImages,
    MessageSource,
    RunEnded,
    RunStart,
    StartRefusedError,
    UnknownCalibrationError,
    hookimpl,
)
from tilecast_plugins.calibration.cameras import entries_for, read_value, values_of
from tilecast_plugins.calibration.corrections import OTHERS, check, corrector, frozen_parts, left_after
from tilecast_plugins.calibration.estimating import FlatFields, ended
from tilecast_plugins.calibration.finding import find_image, tilecast_find_calibration
from tilecast_plugins.calibration.options import CalibrationPluginOptions

__all__ = [
    "tilecast_find_calibration",
    "tilecast_make_images",
    "tilecast_message_sources",
    "tilecast_run_ended",
    "tilecast_run_starting",
]


@hookimpl
def tilecast_run_starting(run: RunStart) -> FrameStep | None:
    """What is corrected in this run, beside what its start names; see `cameras`."""
    of_channels = values_of(entries_for(run))
    if not any(of_channels.values()):
        return None
    settings: dict[str, dict[str, Any]] = {}
    arrays: dict[str, NDArray[Any]] = {}
    names: dict[tuple[str, object], str] = {}  # an image that several channels share is kept once
    for channel, values in of_channels.items():
        parts = settings[OTHERS if channel is None else str(channel)] = {}
        for kind, value in values.items():
            key = kind, value
            if key not in names:
                checked = _read(kind, value, run)
                if isinstance(checked, float):
                    parts[kind] = checked
                    continue
                names[key] = f"{kind}_{len(arrays)}"
                arrays[names[key]] = checked
            parts[kind] = names[key]
    return FrameStep(settings=settings, arrays=arrays, by_channel=len(of_channels) > 1)


@hookimpl
def tilecast_make_images(
    step: FrameStep, shape: tuple[int, int], dtype: str, channel: int | None, applied: Mapping[str, NDArray[Any]]
) -> MakeImages:
    """The correction of one channel, from what was frozen."""
    correct = corrector(left_after(frozen_parts(step, channel), applied), shape, dtype)

    def make(frame: NDArray[Any]) -> Images:
        image, low, high = correct(frame)
        return Images([image], low, high)

    return make


def _read(kind: str, value: object, run: RunStart) -> float | NDArray[Any]:
    try:
        found = read_value(value, run, lambda name: find_image(name, kind, run.shape, run.calibrations))
        if isinstance(found, np.ndarray) and found.shape != tuple(run.shape):
            raise ValueError(f"it has the shape {found.shape}, the camera's frames are {tuple(run.shape)}")
        return check(kind, found)
    except (ValueError, CalibrationError, UnknownCalibrationError) as error:
        raise StartRefusedError(f"{kind} = {value!r}: {error}") from error


# ---- estimating flat fields ------------------------------------------------------------------------------------------


@hookimpl
def tilecast_message_sources(options: CalibrationPluginOptions) -> list[MessageSource]:
    """The thread that estimates, if that is wanted."""
    if options.estimate_into is None:
        return []
    return [FlatFields(options.estimate_into, options.estimate_every_s)]


@hookimpl
def tilecast_run_ended(run: RunEnded, options: CalibrationPluginOptions) -> None:
    """Have a flat field estimated, if that is wanted; it takes seconds, and nobody waits for it."""
    if options.estimate_into is not None:
        ended.put(run.folder)
