"""What a plan of useq-schema means in a run's terms: channels, planes, frames, extent; and where an event is.

Pure functions. Positions of useq are centres, as ours are; its grids begin at the top, where y is largest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tilecast_protocol.errors import TilecastError

from .optics import Optics

COUNTED_EVENTS: Final = 50_000
"""Of a longer plan neither the number of frames nor the extent is told: to count it takes seconds."""

_COLOURS: Final = {
    "#0000ff": ("dapi", "hoechst", "bfp", "405"),
    "#00ffff": ("cfp", "cerulean", "445"),
    "#00ff00": ("fitc", "gfp", "488", "alexa488", "af488"),
    "#ffff00": ("yfp", "venus", "514"),
    "#ff0000": ("cy3", "tritc", "rfp", "mcherry", "rhodamine", "tdtomato", "texas", "555", "561", "594"),
    "#ff00ff": ("cy5", "647", "alexa647", "af647", "640", "633"),
    "#ffffff": ("bf", "brightfield", "dic", "phase", "transmitted"),
}


class PositionError(TilecastError, ValueError):
    """Nobody says where the stage was."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `start` can say of a sequence before it is over; None where it does not tell."""

    n_expected: int | None = None
    channels: tuple[dict[str, str], ...] | None = None
    planes: dict[str, int] | None = None
    extent_um: tuple[tuple[float, float], tuple[float, float]] | None = None


def plan_of(
    sequence: Any,
    optics: Optics,
    shape: tuple[int, int],
    *,
    offset_um: tuple[float, float] = (0.0, 0.0),
    n_cameras: int = 1,
    colors: Mapping[str, str] | None = None,
) -> Plan:
    """Look through a sequence.

    Parameters
    ----------
    sequence : useq.MDASequence
        One that is only a placeholder for events made while it runs tells nothing.
    optics : Optics
    shape : (int, int)
        Rows and columns of its frames.
    offset_um : (float, float)
        From where the stage says it is to the centre of the frame.
    n_cameras : int
        Frames per event; each camera is a channel of its own.
    colors : mapping of str to str, optional
        By the name of the channel, `#rrggbb`; those of well-known names are known.
    """
    import useq

    if type(sequence) is not useq.MDASequence:  # pymmcore-plus has a subclass that warns when it is looked at
        return Plan()
    names = [channel.config for channel in sequence.channels] or [""]
    labels = [
        f"{name or 'camera'} {camera + 1}" if n_cameras > 1 else name for name in names for camera in range(n_cameras)
    ]
    channels = tuple(channel_of(label, colors) for label in labels) if any(labels) else None
    events = list(itertools.islice((event for event in sequence if takes_image(event)), COUNTED_EVENTS + 1))
    if not events or len(events) > COUNTED_EVENTS:
        return Plan(channels=channels)
    indices = [plane_of(event, 0, n_cameras) for event in events]
    planes = {axis: max(index[at] for index in indices) + 1 for at, axis in enumerate("tcz")}
    planes["c"] = max(len(labels), planes["c"])
    if channels is not None and len(channels) != planes["c"]:
        channels = None
    return Plan(len(events) * n_cameras, channels, planes, _extent_um(events, optics, shape, offset_um))


def takes_image(event: Any) -> bool:
    """Whether an event makes a frame (autofocus and the like do not)."""
    return getattr(event.action, "type", "acquire_image") == "acquire_image"


def plane_of(event: Any, camera: int, n_cameras: int) -> tuple[int, int, int]:
    """[t, c, z] of a frame; positions and grids are all of one plane."""
    index = event.index
    return int(index.get("t", 0)), int(index.get("c", 0)) * n_cameras + camera, int(index.get("z", 0))


def channel_of(name: str, colors: Mapping[str, str] | None = None) -> dict[str, str]:
    """A channel as `start` has it, with its colour if that is given or well known."""
    colour = (colors or {}).get(name) or _well_known(name)
    return {"name": name} | ({"color": colour} if colour else {})


def commanded_um(event: Any) -> tuple[float, ...] | None:
    """Where an event sends the stage: x, y and, if it says so, z; None if it leaves it where it is."""
    if event.x_pos is None or event.y_pos is None:
        return None
    z = () if event.z_pos is None else (float(event.z_pos),)
    return float(event.x_pos), float(event.y_pos), *z


def measured_um(metadata: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Where the stage was when the frame was taken, from its metadata: x, y and, if there is a focus drive, z."""
    position = metadata.get("position") or {}
    values = [position.get(axis) for axis in "xyz"]
    if values[0] is None or values[1] is None:
        return None
    return tuple(float(value) for value in values if value is not None)


def position_um(
    metadata: Mapping[str, Any], event: Any, last_um: Sequence[float] | None
) -> tuple[tuple[float, ...], str]:
    """Where a frame was taken, and how that is known: `measured`, `commanded`, or `last` (nothing has moved since).

    In hardware-triggered sequences nobody asks the stage; then what it was told counts.

    Raises
    ------
    PositionError
        Nobody ever said.
    """
    measured = measured_um(metadata)
    if measured is not None:
        return measured, "measured"
    commanded = commanded_um(event)
    if commanded is not None:
        return commanded, "commanded"
    if last_um is not None:
        return tuple(last_um), "last"
    raise PositionError(
        "neither the metadata nor the event says where the stage was: choose an XY stage (core.setXYStageDevice), or "
        "give the sequence positions"
    )


def _extent_um(
    events: Sequence[Any], optics: Optics, shape: tuple[int, int], offset_um: tuple[float, float]
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    places = [(event.x_pos, event.y_pos) for event in events]
    if any(x is None or y is None for x, y in places):
        return None
    half_x, half_y = optics.half_extent_um(shape)
    xs, ys = zip(*places, strict=True)
    dx, dy = offset_um
    corners = (min(xs) + dx - half_x, min(ys) + dy - half_y), (max(xs) + dx + half_x, max(ys) + dy + half_y)
    return corners if all(math.isfinite(value) for corner in corners for value in corner) else None


def _well_known(name: str) -> str | None:
    text = "".join(character for character in name.lower() if character.isalnum())
    for colour, words in _COLOURS.items():
        if any(word in text if len(word) > 2 else word == text for word in words):
            return colour
    return None
