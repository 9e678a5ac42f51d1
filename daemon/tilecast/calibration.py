"""Dark and flat-field correction of one frame: a pure function of the frame and of what was frozen at `start`.

    corrected = (frame − dark) · mean(flat) / flat

The flat field is divided by its own mean, so that the grey levels of a mosaic stay comparable to those of the camera.
Integer frames stay integers of their type: rounded to the nearest, ties to even, and clipped to what the type holds;
how many pixels were clipped is counted, because a clipped pixel is information lost. Float frames are neither rounded
nor clipped. Each step is one float32 operation per pixel in a fixed order, and the mean is rounded exactly, so that the
same frame gives the same bits on every machine, whatever made NumPy fast there.

This module does not know where calibrations come from (`hookspecs.tilecast_find_calibration`), nor where a run keeps
them; they cross both borders as the bytes of an NPY file, which says its own shape and type.

Examples
--------
>>> calibration = freeze(dark=np.full((2, 2), 100), flat=np.array([[1.0, 1.0], [1.0, 0.5]]), shape=(2, 2))
>>> apply(np.array([[108, 100], [60, 108]], "<u2"), calibration)
Calibrated(pixels=array([[ 7,  0],
       [ 0, 14]], dtype=uint16), n_low=1, n_high=0)
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilecast.errors import CalibrationError

# A block of rows is taken through all steps while it is in the processor's cache: twice as fast as whole frames.
_BLOCK_PIXELS = 1 << 16

# The header of an NPY file is a Python literal. NumPy's own reader evaluates it, and fails in many ways on a hostile
# one; this is the form that writers use, and no other is read.
_NPY_HEADER = re.compile(
    rb"\{\s*'descr':\s*'(?P<descr>[<>|=](?:[ui][1248]|f[248]))',\s*'fortran_order':\s*(?P<fortran>True|False),"
    rb"\s*'shape':\s*\((?P<shape>\d{1,19}(?:, ?\d{1,19})*,?)\),?\s*\}\s*"
)
_MAX_NPY_HEADER = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What is done to every frame of a run, by content. Made by `freeze`.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns of the frames it is for.
    dark, flat : ndarray or None
        float32, read-only, of that shape, as given (the flat field before it is divided by its mean).
    gain : ndarray or None
        float32, mean(flat) / flat.
    sha256 : str
        Of the contents: two calibrations that do the same have the same. Empty text if nothing is done.
    """

    shape: tuple[int, int]
    dark: NDArray[np.float32] | None
    flat: NDArray[np.float32] | None
    gain: NDArray[np.float32] | None
    sha256: str

    @property
    def is_identity(self) -> bool:
        """Whether frames pass unchanged."""
        return self.dark is None and self.gain is None


class Calibrated(NamedTuple):
    """A corrected frame, and how many of its pixels fell below and above what their type holds."""

    pixels: NDArray[Any]
    n_low: int
    n_high: int


def freeze(
    *, dark: NDArray[Any] | None = None, flat: NDArray[Any] | None = None, shape: tuple[int, int]
) -> Calibration:
    """Check calibration images, and fix them for a run.

    Parameters
    ----------
    dark, flat : ndarray, optional
        Images of `shape`, of any real type; in grey levels of the camera, and in any unit. They are copied.
    shape : tuple of int
        Rows and columns of the camera's frames.

    Raises
    ------
    CalibrationError
        If the sizes differ, a value is not finite, or the flat field is not positive everywhere.
    """
    dark32 = None if dark is None else _checked("dark", dark, shape)
    flat32 = None if flat is None else _checked("flat", flat, shape)
    gain = None
    if flat32 is not None:
        lowest = float(flat32.min())
        if lowest <= 0:
            raise CalibrationError(
                f"the flat field has a pixel of {lowest:g}: every pixel must be above 0, or the frame would be divided "
                "by nothing; subtract the dark image when it is made, and mend dead pixels"
            )
        # fsum rounds once, so the mean is the same whatever order NumPy would have added in.
        mean = math.fsum(flat32.ravel().tolist()) / flat32.size
        gain = (mean / flat32.astype(np.float64)).astype(np.float32)
        gain.flags.writeable = False
    digest = hashlib.sha256()
    for role, image in (("dark", dark32), ("flat", flat32)):
        if image is not None:
            digest.update(f"{role} {shape[0]} {shape[1]} <f4\n".encode())
            digest.update(image.astype("<f4", copy=False).tobytes())
    sha256 = "" if dark32 is None and flat32 is None else digest.hexdigest()
    return Calibration((int(shape[0]), int(shape[1])), dark32, flat32, gain, sha256)


def apply(image: NDArray[Any], calibration: Calibration) -> Calibrated:
    """Correct one frame.

    Parameters
    ----------
    image : ndarray, 2-D
        u1, u2 or f4. It is not changed, and is itself the result if the calibration does nothing.
    calibration : Calibration

    Returns
    -------
    Calibrated
        Pixels of the same shape and type.

    Raises
    ------
    CalibrationError
        If the frame has another size than the calibration.
    """
    if image.shape != calibration.shape:
        raise CalibrationError(f"the calibration is for frames of {_size(calibration.shape)}, got {_size(image.shape)}")
    if calibration.is_identity:
        return Calibrated(image, 0, 0)
    out = np.empty(image.shape, image.dtype)
    rows = max(1, _BLOCK_PIXELS // max(1, image.shape[1]))
    n_low = n_high = 0
    with np.errstate(over="ignore", invalid="ignore"):  # float frames: what is not finite is uncovered later on
        for row in range(0, image.shape[0], rows):
            block = slice(row, row + rows)
            value = image[block].astype(np.float32)
            if calibration.dark is not None:
                np.subtract(value, calibration.dark[block], out=value)
            if calibration.gain is not None:
                np.multiply(value, calibration.gain[block], out=value)
            if image.dtype.kind != "f":
                limit = np.float32(np.iinfo(image.dtype).max)
                np.rint(value, out=value)
                n_low += int(np.count_nonzero(value < 0))
                n_high += int(np.count_nonzero(value > limit))
                np.clip(value, np.float32(0), limit, out=value)
            out[block] = value
    return Calibrated(out, n_low, n_high)


def dump_npy(image: NDArray[Any]) -> bytes:
    """The bytes of an NPY file, for a payload part or a run's folder."""
    buffer = io.BytesIO()
    np.save(buffer, image, allow_pickle=False)
    return buffer.getvalue()


def load_npy(data: bytes | memoryview, shape: tuple[int, int]) -> NDArray[Any]:
    """Read the bytes of an NPY file that came from outside; nothing is allocated before its size has been checked.

    Parameters
    ----------
    data : bytes-like
    shape : tuple of int
        What it must hold: rows and columns.

    Raises
    ------
    CalibrationError
        If it is not an NPY file, holds anything but real numbers, or is of another size.
    """
    view = memoryview(data)
    length_bytes = {b"\x01\x00": 2, b"\x02\x00": 4}.get(bytes(view[6:8]), 0)
    start = 8 + length_bytes
    n_header = int.from_bytes(view[8:start], "little")
    header = _NPY_HEADER.fullmatch(bytes(view[start : start + min(n_header, _MAX_NPY_HEADER)]))
    if bytes(view[:6]) != b"\x93NUMPY" or not length_bytes or header is None:
        raise CalibrationError("a calibration image is sent as the bytes of an NPY file with real numbers; got others")
    found = tuple(int(size) for size in header["shape"].split(b",") if size.strip())
    if found != tuple(shape):
        raise CalibrationError(f"expected a calibration image of {_size(shape)}, got {_size(found)}")
    dtype = np.dtype(header["descr"].decode())
    n_pixels = shape[0] * shape[1]
    body = view[start + n_header :]
    if len(body) != n_pixels * dtype.itemsize:
        raise CalibrationError(f"expected {n_pixels * dtype.itemsize} bytes of pixels, got {len(body)}: it was cut off")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if header["fortran"] == b"True" else "C")


def _checked(role: str, image: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    if image.dtype.kind not in "uif":
        raise CalibrationError(f"the {role} image must hold real numbers, got {image.dtype}")
    if image.shape != tuple(shape):
        raise CalibrationError(
            f"the {role} image is {_size(image.shape)}, the camera's frames are {_size(shape)}: it was taken with "
            "another camera, binning or region of interest"
        )
    with np.errstate(over="ignore"):
        copy = np.array(image, np.float32, order="C")
    if not np.isfinite(copy).all():
        raise CalibrationError(f"the {role} image has pixels that are not finite numbers: mend them first")
    copy.flags.writeable = False
    return copy


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) + " pixels (rows × columns)" if len(shape) == 2 else f"shape {shape}"
