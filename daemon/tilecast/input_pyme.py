"""Scans that PYME (python-microscopy) recorded: a series of PZF frames, or a folder of its ImagePyramid.

PYME's conventions, which end here: arrays are [x, y], so they are transposed; positions are µm, of the *corner* of the
first pixel, and are stage positions plus the offset of the camera's region of interest. A series tells where it was by
events (`ScannerXPos`, `ScannerYPos`) that have times, not frames. A time becomes a frame by counting cycles of the
camera from the last `StartAq`, which names the frame that began then (before the first one: from `StartTime`); a
count never runs past the next start. A frame lies where the last position that is not later than it says; before the
first one, at `Positioning.x` and `.y`. Frames before `Protocol.DataStartsAt` are none of the scan.

A pyramid is read as its tiles of full resolution, each a frame with a position. Which of their pixels were covered is
not known any more: all of them are sent, also those that are 0 because nothing was there.

It does not know how scans are sent. No code of PYME is in it.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecast.input_images import WIRE_DTYPES, ImageSource, InputError, SourceInfo, natural_key
from tilecast_protocol import pzf
from tilecast_protocol.errors import PZFError

METADATA_NAME, EVENTS_NAME = "metadata.json", "events.json"

#: How tiles were named before that was written into the metadata.
_OLD_SCHEMA = "{level:d}/{x:03d}/{x:03d}_{y:03d}_{suff}{ext}"
_TILE_ENDINGS = r"\.(?:pzf|npy)"
_FRAME = re.compile(r".*?(\d+)\.pzf", re.IGNORECASE)


def is_pyme(folder: Path) -> bool:
    """Whether a folder holds what PYME recorded: PZF frames, or a pyramid."""
    return any(folder.glob("*.pzf")) or ((folder / METADATA_NAME).is_file() and (folder / "0").is_dir())


def open_pyme(folder: Path) -> ImageSource:
    """A series or a pyramid of PYME.

    Raises
    ------
    InputError
        If it is neither, or incomplete.
    """
    if not (folder / METADATA_NAME).is_file():
        raise InputError(
            f"{folder} holds PZF frames and no {METADATA_NAME}: expected a series as PYME writes it, with "
            f"{METADATA_NAME} and {EVENTS_NAME}; copy the whole folder"
        )
    metadata = _Metadata.read(folder / METADATA_NAME)
    if "Pyramid.TileSize" in metadata.values:
        return PymePyramid(folder, metadata)
    return PymeSeries(folder, metadata)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that PYME noted: what, details, and when (seconds since 1970)."""

    name: str
    detail: str
    time_s: float


@dataclass(frozen=True, slots=True)
class _Metadata:
    """PYME's metadata: values by names such as ``voxelsize.x``."""

    path: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> _Metadata:
        found = _read_json(path)
        if not isinstance(found, dict):
            raise InputError(f"{path}: expected a map of PYME's metadata, got a {type(found).__name__}")
        return cls(path, dict(_flat(found)))

    def number(self, name: str, default: float | None = None) -> float:
        """A number; InputError if it is missing and there is no default."""
        found = self.values.get(name, default)
        if isinstance(found, bool) or not isinstance(found, int | float) or not np.isfinite(found):
            raise InputError(f"{self.path}: expected a number as {name}, got {found!r}")
        return float(found)

    @property
    def pixel_um(self) -> tuple[float, float]:
        """Size of a pixel, x and y."""
        units = self.values.get("voxelsize.units", "um")
        if units not in ("um", "µm", "μm"):
            raise InputError(f"{self.path}: voxelsize is in {units!r}; PYME writes um")
        x_um = self.number("voxelsize.x")
        return x_um, self.number("voxelsize.y", x_um)

    @property
    def roi_origin_px(self) -> tuple[float, float]:
        """Where the camera's region of interest begins, x and y; counted from 0, or, as older PYME did, from 1."""
        if "Camera.ROIOriginX" in self.values:
            return self.number("Camera.ROIOriginX"), self.number("Camera.ROIOriginY")
        return self.number("Camera.ROIPosX", 1) - 1, self.number("Camera.ROIPosY", 1) - 1


class PymeSeries(ImageSource):
    """A folder of PZF frames with `metadata.json` and `events.json`."""

    def __init__(self, folder: Path, metadata: _Metadata) -> None:
        first = int(metadata.number("Protocol.DataStartsAt", 0))
        files = sorted((_frame_number(path), path) for path in folder.iterdir() if _FRAME.fullmatch(path.name))
        self._files = [path for number, path in files if number >= first]
        if not self._files:
            before = f": all {len(files)} lie before frame {first}, Protocol.DataStartsAt" if files else ""
            raise InputError(f"{folder} has {METADATA_NAME} and no PZF frames of a scan{before}")
        numbers = np.array([number for number, _ in files if number >= first])
        positions: tuple[tuple[float, float], ...] | None = None
        why = ""
        try:
            positions = tuple(_corners_um(numbers, metadata, _read_events(folder / EVENTS_NAME)))
        except InputError as error:
            why = f"and PYME's do not ({error})"
        info = SourceInfo(
            names=tuple(path.name for path in self._files),
            positions_um=positions,
            px_um=metadata.pixel_um,
            without_positions=why,
            positions_said="positions in its events",
            positions_anchor="corner",
            px_um_said="metadata.json",
        )
        super().__init__(folder, len(self._files), info)

    def _read(self, frames: Iterable[int]) -> Iterator[NDArray[Any]]:
        for frame in frames:
            yield _read_pzf(self._files[frame])


class PymePyramid(ImageSource):
    """The tiles of full resolution of an ImagePyramid folder."""

    def __init__(self, folder: Path, metadata: _Metadata) -> None:
        pattern = _tile_pattern(str(metadata.values.get("Pyramid.KeySchema", _OLD_SCHEMA)))
        size_um = metadata.number("Pyramid.PixelSize")
        tile_um = metadata.number("Pyramid.TileSize") * size_um
        x0_um, y0_um = metadata.number("Pyramid.x0"), metadata.number("Pyramid.y0")
        files = (path.relative_to(folder).as_posix() for path in (folder / "0").rglob("*") if path.is_file())
        found = [(name, match) for name in sorted(files, key=natural_key) if (match := pattern.fullmatch(name))]
        if not found:
            raise InputError(
                f"{folder} is a pyramid of PYME, and none of its tiles of full resolution is there as PZF or NumPy: "
                "expected them in the folder 0, named as Pyramid.KeySchema says; copy all of it, or have PYME make it "
                "with PZFTileIO"
            )
        self._files = [folder / name for name, _ in found]
        info = SourceInfo(
            names=tuple(path.name for path in self._files),
            positions_um=tuple(
                (x0_um + int(match["x"]) * tile_um, y0_um + int(match["y"]) * tile_um) for _, match in found
            ),
            px_um=(size_um, size_um),
            positions_said="the places of its tiles",
            positions_anchor="corner",
            px_um_said="metadata.json",
        )
        super().__init__(folder, len(self._files), info)

    def _read(self, frames: Iterable[int]) -> Iterator[NDArray[Any]]:
        for frame in frames:
            path = self._files[frame]
            yield _read_npy(path) if path.suffix.lower() == ".npy" else _read_pzf(path)


def frames_of_times(times_s: NDArray[np.float64], events: list[Event], start_s: float, cycle_s: float) -> NDArray[Any]:
    """The frame that was being taken at each time.

    Parameters
    ----------
    times_s : ndarray, shape (n,)
        Seconds since 1970.
    events : list of Event
        Those of the series; `StartAq` names the frame that began.
    start_s : float
        When the series began: frame 0.
    cycle_s : float
        From one frame to the next.

    Returns
    -------
    ndarray of int, shape (n,)
    """
    starts = [(start_s, 0)]
    starts += [(event.time_s, int(event.detail)) for event in events if event.name == "StartAq"]
    # Where a protocol had tasks before its first frame (frame -1), PYME begins to count when the last of them ran.
    tasks = [event.time_s for event in events if event.name == "ProtocolTask" and event.detail.split(",")[0] == "-1"]
    starts += [(max(tasks), 0)] if tasks else []
    starts.sort(key=lambda start: start[0])
    began_s = np.array([time_s for time_s, _ in starts])
    first = np.array([frame for _, frame in starts], np.int64)
    # No frame of one stretch is later than the first of the next.
    last = np.append(first[1:], np.iinfo(np.int64).max)
    which = np.maximum(np.searchsorted(began_s, times_s, side="right") - 1, 0)
    counted = first[which] + np.trunc((times_s - began_s[which]) / cycle_s).astype(np.int64)
    frames: NDArray[Any] = np.minimum(counted, last[which])
    return frames


def _corners_um(numbers: NDArray[Any], metadata: _Metadata, events: list[Event]) -> list[tuple[float, float]]:
    """Position of the upper left corner of each frame."""
    size_um, origin_px = metadata.pixel_um, metadata.roi_origin_px
    axes = []
    for axis in (0, 1):
        name, initial = ("ScannerXPos", "Positioning.x") if axis == 0 else ("ScannerYPos", "Positioning.y")
        moves = sorted((event for event in events if event.name == name), key=lambda event: event.time_s)
        if not moves and initial not in metadata.values:
            raise InputError(f"there is no event {name} and no {initial}")
        at_um = np.full(numbers.shape, metadata.number(initial, 0.0))
        if moves:
            times_s = np.array([event.time_s for event in moves])
            start_s, cycle_s = metadata.number("StartTime"), metadata.number("Camera.CycleTime")
            if cycle_s <= 0:
                raise InputError(f"Camera.CycleTime is {cycle_s:g} s, expected more than 0")
            since = np.maximum.accumulate(frames_of_times(times_s, events, start_s, cycle_s))
            values = np.array([_first_number(event) for event in moves])
            which = np.searchsorted(since, numbers, side="right") - 1
            at_um = np.where(which >= 0, values[np.maximum(which, 0)], at_um)
        axes.append(at_um + origin_px[axis] * size_um[axis])
    return [(float(x_um), float(y_um)) for x_um, y_um in zip(*axes, strict=True)]


def _first_number(event: Event) -> float:
    try:
        number = float(event.detail.split(", ")[0])
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise InputError(f"an event {event.name} should say a position in µm, and says {event.detail!r}")
    return number


def _read_events(path: Path) -> list[Event]:
    if not path.is_file():
        raise InputError(f"{EVENTS_NAME} is missing: it says where the stage was; copy the whole folder")
    found = _read_json(path)
    try:
        events = [Event(str(name), str(detail), float(time_s)) for name, detail, time_s in found]
        for event in events:
            if event.name == "StartAq":
                int(event.detail)
            if not np.isfinite(event.time_s):
                raise ValueError(f"got {event}")
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: expected a list of [name, description, seconds], {error}") from error
    return events


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of a nested map under dotted names; PYME writes them either way."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _frame_number(path: Path) -> int:
    match = _FRAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _tile_pattern(schema: str) -> re.Pattern[str]:
    """What the names of tiles of level 0 look like, from PYME's rule for making them."""
    made = ""
    seen: set[str] = set()
    try:
        pieces = list(string.Formatter().parse(schema))
    except ValueError as error:
        raise InputError(f"Pyramid.KeySchema is {schema!r}, which cannot be read: {error}") from error
    for literal, field, _, _ in pieces:
        made += re.escape(literal)
        if field in ("x", "y", "z"):
            made += f"(?P={field})" if field in seen else f"(?P<{field}>\\d+)"
            seen.add(field)
        elif field is not None:
            made += {"level": "0", "suff": "img", "ext": _TILE_ENDINGS}.get(field, re.escape(f"{{{field}}}"))
    if not {"x", "y"} <= seen:
        raise InputError(f"Pyramid.KeySchema is {schema!r}; expected one that says x and y of each tile")
    return re.compile(made)


def _read_pzf(path: Path) -> NDArray[Any]:
    """A frame as (rows, columns): PYME's first axis is x."""
    try:
        pixels = pzf.loads(path.read_bytes())[0]
    except (OSError, PZFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return _transposed(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels, path)


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        pixels: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    # PYME sums in float64; its own PZF tiles are float32.
    return _transposed(pixels.astype(np.float32) if pixels.dtype == np.float64 else pixels, path)


def _transposed(pixels: NDArray[Any], path: Path) -> NDArray[Any]:
    if pixels.ndim != 2:
        raise InputError(f"{path} has shape {pixels.shape}; expected one plane [x, y]: send each channel by itself")
    if pixels.dtype.str[1:] not in WIRE_DTYPES:
        raise InputError(f"{path} has pixels of type {pixels.dtype}; expected uint8, uint16 or float32")
    return np.ascontiguousarray(pixels.T, pixels.dtype.newbyteorder("<"))
