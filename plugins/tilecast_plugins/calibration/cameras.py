"""Which corrections belong to a run, camera by camera and channel by channel: `cameras.toml`, and the `start` message.

In the folder `calibration.path`:

    [[camera]]
    stream = "camera-1"        # left out: every camera
    dark = 100                 # a number, or the name of an image in this folder
    hot = "hot-camera-1"

    [[camera]]
    stream = "camera-1"
    channel = "GFP"            # or its number; left out: every channel
    flat = "20x-488"

All entries that fit a frame count; of those that say the same the last one does. A program that starts a run can say
the same in `user`, where a value may also be `part:0`, a payload part of the message with an NPY file: `"user":
{"calibration": [{"channel": 0, "dark": 100}]}`. That counts after the file. What `dark` and `flat` of the `start`
message itself name is applied by the daemon, to all channels, and then not said here a second time.
"""

from __future__ import annotations

import difflib
import io
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tilecast.hookspecs import RunStart, StartRefusedError
from tilecast_plugins.calibration.corrections import KINDS

FILE: Final = "cameras.toml"

Find = Callable[[str], NDArray[Any]]
"""Reads an image by its name."""

_KEYS: Final = ("stream", "channel", *KINDS)
_MOST_ENTRIES: Final = 1000
_MOST_CHANNELS: Final = 100


def entries_for(run: RunStart) -> list[dict[str, Any]]:
    """The entries that concern a run, each with `channel` as a number or None, in the order in which they count.

    Raises
    ------
    StartRefusedError
        If something is said that is not known, or cannot be meant.
    """
    said = [(entry, str(run.calibrations / FILE)) for entry in _in_file(run.calibrations / FILE)]
    taken = {role for role in ("dark", "flat") if run.header.get(role) is not None}
    found = [
        {key: value for key, value in entry.items() if key not in taken}
        for entry in (_checked(entry, where, run) for entry, where in said)
        if entry is not None
    ]
    for entry in _in_start(run):
        if "stream" in entry:
            raise StartRefusedError("user.calibration of a start is for its own stream: leave out `stream`")
        checked = _checked(entry, "user.calibration of the start", run)
        assert checked is not None
        twice = sorted(taken & checked.keys())
        if twice:
            raise StartRefusedError(
                f"the start names {twice[0]} twice, by itself and in user.calibration: leave one out"
            )
        found.append(checked)
    return [entry for entry in found if entry.keys() & set(KINDS)]


def values_of(entries: Sequence[Mapping[str, Any]]) -> dict[int | None, dict[str, Any]]:
    """What holds for each channel that is named, and, under None, for all others.

    >>> values_of([{"channel": None, "dark": 100}, {"channel": 1, "flat": "a"}])
    {None: {'dark': 100}, 1: {'dark': 100, 'flat': 'a'}}
    """
    channels = {None: None} | {entry["channel"]: None for entry in entries}
    return {
        channel: {
            key: value
            for entry in entries
            if entry["channel"] in (None, channel)
            for key, value in entry.items()
            if key in KINDS
        }
        for channel in channels
    }


def read_value(value: object, run: RunStart, find: Find) -> float | NDArray[Any]:
    """The number or the image that an entry means.

    Raises
    ------
    ValueError
        If there is no such part, or it is not an image of the frames' size.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected a number or the name of an image, got {value!r}")
    if not isinstance(value, str):
        return float(value)
    if not value.startswith("part:"):
        return find(value)
    number = value.removeprefix("part:")
    if not (number.isascii() and number.isdigit()) or int(number) >= len(run.parts):
        raise ValueError(f"{value}: this start carries {len(run.parts)} payload parts, counted from 0")
    return _from_npy(run.parts[int(number)], run.shape)


def _from_npy(data: bytes, shape: tuple[int, int]) -> NDArray[Any]:
    """An image out of a message; nothing is allocated before its size has been checked."""
    file = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("expected an NPY file of version 1.0")
        found, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.kind not in "uif" or tuple(found) != tuple(shape):
            raise ValueError(f"expected real numbers of shape {tuple(shape)}, got {dtype} of shape {found}")
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    except (ValueError, EOFError, SyntaxError, TypeError, OSError) as error:
        raise ValueError(f"the payload part is not an NPY file that can be used: {error}") from error


def _in_file(path: Path) -> list[Any]:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise StartRefusedError(f"cannot read {path}: {error}") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StartRefusedError(f"{path}: {error}") from error
    entries = values.pop("camera", [])
    if values or not isinstance(entries, list):
        what = f"got {next(iter(values))!r}" if values else "got [camera], which needs a second pair of brackets"
        raise StartRefusedError(f"{path}: expected tables [[camera]] and nothing else; {what}")
    return entries


def _in_start(run: RunStart) -> list[Any]:
    user = run.header.get("user")
    said = user.get("calibration", []) if isinstance(user, Mapping) else []
    entries = [said] if isinstance(said, Mapping) else said
    if not isinstance(entries, list) or len(entries) > _MOST_ENTRIES:
        raise StartRefusedError(
            "user.calibration of a start is a map, or a list of maps with keys " + ", ".join(_KEYS[1:])
        )
    return entries


def _checked(entry: object, where: str, run: RunStart) -> dict[str, Any] | None:
    """An entry of known keys, its channel a number; None if it is of another camera."""
    if not isinstance(entry, Mapping):
        raise StartRefusedError(f"{where}: expected keys and values, got {entry!r}")
    for key in entry:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_KEYS)}"
            raise StartRefusedError(f"{where}: {key!r} is not known; {hint}")
    if entry.get("stream", run.stream) != run.stream:
        return None
    return dict(entry) | {"channel": _channel(entry.get("channel"), where, run)}


def _channel(said: object, where: str, run: RunStart) -> int | None:
    if said is None or (isinstance(said, int) and not isinstance(said, bool) and 0 <= said < _MOST_CHANNELS):
        return said
    channels = run.header.get("channels") or []
    names = [channel.get("name") for channel in channels if isinstance(channel, Mapping)]
    if isinstance(said, str) and said in names:
        return names.index(said)
    if isinstance(said, str) and not names:
        raise StartRefusedError(f"{where}: channel {said!r}, and this run does not name its channels: give its number")
    raise StartRefusedError(
        f"{where}: there is no channel {said!r}; this run has {', '.join(map(repr, names)) or 'numbers from 0'}"
    )
