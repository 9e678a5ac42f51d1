"""Finds dark and flat images by name, in the folder of the option `calibration.path`.

`dark = "100"` is, unless there is
such a file, a dark image of 100 grey levels everywhere. `flat = "20x"` in a run's `start` means `20x.npy`, `20x.tif`
or `20x.tiff` in that folder; the ending may be given. The image must have the size of the camera's frames; its type is
free. How frames are corrected with it is the daemon's business; what is found here is copied into the run, and a file
that is edited later changes nothing.

The name comes out of a message, so it is checked before it becomes part of a path.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from tilecast.hookspecs import CalibrationError, Role, UnknownCalibrationError, hookimpl

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,99}")
_NUMBER = re.compile(r"\d{1,6}(\.\d{1,6})?")
_ENDINGS = (".npy", ".tif", ".tiff")


@hookimpl
def tilecast_find_calibration(name: str, role: Role, shape: tuple[int, int], folder: Path) -> NDArray[Any]:
    """Read the image called `name`, or make one of a number; the built-in answer to the hook of this name."""
    return find_image(name, role, shape, folder)


def find_image(name: str, role: str, shape: tuple[int, int], folder: Path) -> NDArray[Any]:
    """Read the image called `name`; a dark may be a number of grey levels instead.

    Raises
    ------
    UnknownCalibrationError
        If there is none of this name; the message says which there are.
    CalibrationError
        If it cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise UnknownCalibrationError(
            f"the {role} name {name!r} cannot be used: letters, digits, spaces and _ . - only, at most 100 of them"
        )
    candidates = [folder / name] if name.lower().endswith(_ENDINGS) else [folder / (name + end) for end in _ENDINGS]
    found = [path for path in candidates if path.is_file()]
    if not found and role == "dark" and _NUMBER.fullmatch(name):
        return np.full(shape, float(name), np.float32)
    if not found:
        raise UnknownCalibrationError(f"there is no {role} named {name!r} in {folder}; {_what_there_is(folder)}")
    if len(found) > 1:
        raise CalibrationError(
            f"there are {' and '.join(path.name for path in found)} in {folder}: say which, with its ending"
        )
    try:
        return read_image(found[0], shape)
    except (OSError, EOFError, ValueError, tifffile.TiffFileError) as exc:
        raise CalibrationError(f"the {role} image {found[0]} cannot be read: {exc}") from exc


def read_image(path: Path, shape: tuple[int, int]) -> NDArray[Any]:
    """Read an image of this shape; ValueError, OSError, EOFError or TiffFileError if it cannot be."""
    return _read_npy(path, shape) if path.suffix.lower() == ".npy" else _read_tiff(path, shape)


def _read_npy(path: Path, shape: tuple[int, int]) -> NDArray[Any]:
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_shape(mapped.shape, shape)
    return np.array(mapped)


def _read_tiff(path: Path, shape: tuple[int, int]) -> NDArray[Any]:
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        _check_shape(series.shape, shape)
        image: NDArray[Any] = series.asarray()
        return image


def _check_shape(found: tuple[int, ...], expected: tuple[int, int]) -> None:
    """Before the pixels are read: a wrong file may be of any size."""
    if tuple(found) != tuple(expected):
        raise ValueError(
            f"it has the shape {' × '.join(map(str, found))}, the camera's frames are {expected[0]} × {expected[1]} "
            "(rows × columns)"
        )


def _what_there_is(folder: Path) -> str:
    if not folder.is_dir():
        return "that folder does not exist: create it, or set calibration.path"
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
    if not names:
        return "there are no NPY or TIFF images in it"
    return f"there are {', '.join(names[:10])}{' and others' if len(names) > 10 else ''}"
