"""What the API's query parameters say about how a picture is shown.

One value, or one for each channel, with commas between: ``min=100,90&max=4000,2000&color=00ff00,magenta``. What is left
out is taken from the data (windows), or from what `start` said (colours, where several channels are mixed).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tilecast_plugins.run import Run
from tilecast_plugins.web import rendering
from tilecast_plugins.web.gateway import BadRequestError, Gateway
from tilecast_plugins.web.rendering import ChannelLook, Color, Look

MAX_CHANNELS = 16

#: Colours of channels that `start` gives none, in this order.
_PALETTE = ("green", "magenta", "cyan", "yellow", "red", "blue", "orange", "white")


class WantedLook(NamedTuple):
    """A look as far as a request says it: None for what it leaves to the data."""

    lows: tuple[float | None, ...]
    highs: tuple[float | None, ...]
    colors: tuple[Color, ...]
    gamma: float
    contrast: float
    brightness: float
    invert: bool
    cmap: str | None
    background: tuple[int, int, int]

    def of(self, gateway: Gateway, run: Run, channels: Sequence[int]) -> Look:
        """The look for some channels of a run, with nothing left open; blocking."""
        said = run.channels
        if len(self.colors) == len(channels):
            colors = [
                color or _color_of(said, c, len(channels)) for color, c in zip(self.colors, channels, strict=True)
            ]
        else:
            colors = [_color_of(said, c, len(channels)) for c in channels]
        look = Look(
            tuple(ChannelLook(color=color) for color in colors),
            gamma=self.gamma,
            contrast=self.contrast,
            brightness=self.brightness,
            invert=self.invert,
            cmap=self.cmap if len(channels) == 1 else None,
            background=self.background,
        )
        lows, highs = (_spread(values, len(channels)) for values in (self.lows, self.highs))
        return gateway.look(run, channels, look, list(zip(lows, highs, strict=True)))


def wanted_look(query: Mapping[str, str], n_channels: int) -> WantedLook:
    """Read a look from query parameters.

    Raises
    ------
    BadRequestError, UnknownLookError
        A value that makes no sense; the message says what was expected.
    """
    colors = [text for text in query.get("color", "").split(",") if text]
    if len(colors) not in (0, n_channels):
        raise BadRequestError(
            f"color: one for each channel; {n_channels} channels are shown, {len(colors)} colours came"
        )
    red, green, blue = rendering.parse_color(query.get("background") or "000000")
    return WantedLook(
        _numbers(query, "min", n_channels),
        _numbers(query, "max", n_channels),
        tuple(rendering.parse_color(text) for text in colors),
        _number(query, "gamma", 1.0, 0.01, 100.0),
        _number(query, "contrast", 1.0, 0.0, 1000.0),
        _number(query, "brightness", 0.0, -100.0, 100.0),
        _flag(query, "invert"),
        query.get("cmap") or None,
        (round(red * 255), round(green * 255), round(blue * 255)),
    )


def _numbers(query: Mapping[str, str], name: str, n_channels: int) -> tuple[float | None, ...]:
    text = query.get(name, "")
    if not text:
        return ()
    values = tuple(_finite(name, part) if part else None for part in text.split(","))
    if len(values) not in (1, n_channels):
        raise BadRequestError(f"{name}: one number, or one for each of the {n_channels} channels; got {len(values)}")
    return values


def _spread(values: Sequence[float | None], n: int) -> Sequence[float | None]:
    """One value for all, or one for each; none: None for each."""
    return values if len(values) == n else [values[0] if values else None] * n


def _number(query: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = query.get(name)
    value = default if not text else _finite(name, text)
    if not low <= value <= high:
        raise BadRequestError(f"{name} lies between {low:g} and {high:g}; got {value:g}")
    return value


def _finite(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= 1e30:
        raise BadRequestError(f"{name} is a finite number; got {text[:40]!r}")
    return value


def _flag(query: Mapping[str, str], name: str) -> bool:
    text = query.get(name, "").lower()
    if text not in ("", "0", "1", "false", "true"):
        raise BadRequestError(f"{name} is 0 or 1; got {text[:40]!r}")
    return text in ("1", "true")


def _color_of(said: Sequence[Mapping[str, object]], c: int, n_shown: int) -> Color:
    """A channel's colour: alone it is grey; among others as `start` says, or the next of our own."""
    if n_shown == 1:
        return rendering.COLORS["white"]
    given = next((one.get("color") for one in said if one["c"] == c), None)
    if isinstance(given, str):
        try:
            return rendering.parse_color(given)
        except rendering.UnknownLookError:
            pass
    return rendering.COLORS[_PALETTE[c % len(_PALETTE)]]
