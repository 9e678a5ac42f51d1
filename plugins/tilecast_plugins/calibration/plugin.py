"""The hooks of the calibration plugin.

* Dark and flat images that a `start` names are found in the folder `calibration.path` (`finding`); the daemon applies
  them.
* `cameras.toml` in that folder, or `user.calibration` of a `start`, says what else is corrected, camera by camera and
  channel by channel (`cameras`, `corrections`). It is frozen in the run.
* If `estimate_into` is set, a flat field is estimated from each run that has ended, in a process of its own.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import structlog
from numpy.typing import NDArray

from tilecast.hookspecs import (
    CalibrationError,
    FrameStep,
    Images,
    MakeImages,
    RunEnded,
    RunStart,
    StartRefusedError,
    UnknownCalibrationError,
    hookimpl,
)
from tilecast_plugins.calibration.cameras import entries_for, read_value, values_of
from tilecast_plugins.calibration.corrections import check, corrector
from tilecast_plugins.calibration.finding import find_image, tilecast_find_calibration
from tilecast_plugins.calibration.options import CalibrationPluginOptions

__all__ = ["tilecast_find_calibration", "tilecast_make_images", "tilecast_run_ended", "tilecast_run_starting"]

log = structlog.get_logger()

_OTHERS: Final = "others"  # channels that are not named
_LONGEST_S: Final = 3600.0
_LOW_PRIORITY: Final = 15


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
        parts = settings[_OTHERS if channel is None else str(channel)] = {}
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
def tilecast_make_images(step: FrameStep, shape: tuple[int, int], dtype: str, channel: int | None) -> MakeImages:
    """The correction of one channel, from what was frozen."""
    parts = step.settings.get(str(channel), step.settings[_OTHERS])
    correct = corrector(
        {kind: step.arrays[value] if isinstance(value, str) else value for kind, value in parts.items()}, shape, dtype
    )

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

_waiting: queue.SimpleQueue[tuple[Path, Path]] = queue.SimpleQueue()
_lock = threading.Lock()
_worker: threading.Thread | None = None


@hookimpl
def tilecast_run_ended(run: RunEnded, options: CalibrationPluginOptions) -> None:
    """Have a flat field estimated, if that is wanted; it takes seconds, and nobody waits for it."""
    global _worker
    if options.estimate_into is None:
        return
    _waiting.put((run.folder, options.estimate_into / f"flat-{run.run[:8]}.npy"))
    with _lock:
        if _worker is None:
            _worker = threading.Thread(target=_estimate_all, name="plugin calibration estimates", daemon=True)
            _worker.start()


def _estimate_all() -> None:
    """One after another, each in a process of its own: seconds of arithmetic would hold up the daemon's threads."""
    while True:
        folder, target = _waiting.get()
        command = [sys.executable, "-m", "tilecast", "calibrate", "flat", str(folder), "--out", str(target), "--force"]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process:
                with contextlib.suppress(psutil.Error):
                    psutil.Process(process.pid).nice(_LOW_PRIORITY)
                try:
                    said, _ = process.communicate(timeout=_LONGEST_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    said, _ = process.communicate()
        except (OSError, ValueError) as error:
            log.error("no flat field could be estimated", run=folder.name, why=str(error))
            continue
        last = (said.strip().splitlines() or [""])[-1]
        if process.returncode == 0:
            then = f"tilecast rebuild {folder.name} --flat {target}"
            log.info("flat field estimated", run=folder.name, file=str(target), said=last, then=then)
        else:
            log.warning("no flat field could be estimated", run=folder.name, why=last)
