"""From values to a picture: window, contrast, gamma, inversion, colours, colour maps, channels mixed. Pure functions.

A value p becomes v = (p − lo)·contrast / (hi − lo) + 0.01·contrast·brightness, is cut to 0..1 and raised to 1/gamma;
inverted it is 1 − v. One channel is then grey, a colour times v, or a colour map at v; several channels are colours
times v, added and cut to 0..1. 0..1 becomes 0..255, rounded. Pixels that no frame covers take no part: they are
transparent, or the background where a format knows no transparency.

Integer pixels go through a table of all their values, made once for each setting; floats are computed.

>>> look = Look((ChannelLook(low=0, high=255),))
>>> render([np.array([[0, 128, 255]], np.uint8)], [None], look).tolist()
[[0, 128, 255]]
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Color = tuple[float, float, float]

#: Names that a channel's colour may have; others are `rrggbb` in hexadecimal.
COLORS: dict[str, Color] = {
    "white": (1.0, 1.0, 1.0),
    "grey": (1.0, 1.0, 1.0),
    "gray": (1.0, 1.0, 1.0),
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "cyan": (0.0, 1.0, 1.0),
    "magenta": (1.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "orange": (1.0, 0.5, 0.0),
}

# Points (v, red, green, blue) of each colour map, linear between.
_MAPS: dict[str, list[tuple[float, float, float, float]]] = {
    "grey": [(0, 0, 0, 0), (1, 1, 1, 1)],
    "jet": [(0, 0, 0, 0.5), (0.125, 0, 0, 1), (0.375, 0, 1, 1), (0.625, 1, 1, 0), (0.875, 1, 0, 0), (1, 0.5, 0, 0)],
    "hot": [(0, 0, 0, 0), (1 / 3, 1, 0, 0), (2 / 3, 1, 1, 0), (1, 1, 1, 1)],
    "cold": [(0, 0, 0, 0), (1 / 3, 0, 0, 1), (2 / 3, 0, 1, 1), (1, 1, 1, 1)],
    "cool": [(0, 0, 1, 1), (1, 1, 0, 1)],
    "red": [(0, 0, 0, 0), (1, 1, 0, 0)],
    "green": [(0, 0, 0, 0), (1, 0, 1, 0)],
    "blue": [(0, 0, 0, 0), (1, 0, 0, 1)],
}

# Colours at 33 equally spaced points, linear between. matplotlib's (viridis, magma, inferno and cividis are CC0, turbo
# is Apache-2.0), from which they are nowhere further than 1 %, cividis 2 %.
_SAMPLED_MAPS: dict[str, str] = {
    "viridis": (
        "440154470d6048186a482374472d7b4537814240863e49893b528b375b8d33638d2f6b8e2c728e297a8e26828e23898e21918c"
        "1f978b1f9f8821a68527ad8131b57b3dbc744cc26c5cc8636ece5881d34d95d840aadc32c0df25d5e21aeae51afde725"
    ),
    "magma": (
        "0000040303120a0822130d341d114729115a36106b440f7651127c5d177f6a1c81762181832681902a819c2e7faa337db73779"
        "c23b75cf4070db476ae55064ee5b5ef4695cf9785dfb8761fd9668fea571feb47bfec287fed194fde0a1fceeb0fcfdbf"
    ),
    "inferno": (
        "0000040403120b0724150b37210c4a2f0a5b3d09654a0c6b57106e64156e71196e7d1e6d8a226a972766a32c61b0315bbc3754"
        "c63d4dd04545da4e3ce35933eb6429f1711ff67e14f98c0afb9b06fcaa0ffbba1ff9c932f5d949f2e865f3f586fcffa4"
    ),
    "cividis": (
        "00224e00285b002e6a0533711a386f273e6e32436d3b496c434e6c4b546c535a6d5a5f6e61656f686a716f70737676767d7c78"
        "8381798b8778928d789a9376a29975aaa073b3a670bbad6dc3b369ccba64d4c15fddc858e6d051efd748f8df3cfee838"
    ),
    "turbo": (
        "30123b392a734040a24456c7466be34680f64294ff37a8fa28bceb1ccdd818ddc21fe9af32f2984ef97d6dfe628bff4ba4fc3c"
        "b7f735cbed34dde037ecd13af7c13afdae35fe992cfb8122f56918ec530fe14109d23105c12302ac1701950d017a0403"
    ),
}


class UnknownLookError(ValueError):
    """A colour, colour map or setting that does not exist; the message says which there are."""


@dataclass(frozen=True, slots=True)
class ChannelLook:
    """How one channel is shown.

    Attributes
    ----------
    low, high : float
        The values that become black and white; equal ones are a threshold.
    color : (red, green, blue)
        What white is; parts are usually 0..1.
    """

    low: float = 0.0
    high: float = 255.0
    color: Color = (1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Look:
    """How a picture is shown.

    Attributes
    ----------
    channels : tuple of ChannelLook
        One for each array that is rendered.
    gamma, contrast, brightness : float
        1, 1 and 0 (in percent) change nothing.
    invert : bool
    cmap : str or None
        A colour map in place of the colour, for one channel.
    background : (red, green, blue), 0..255
        Uncovered pixels where the picture has no transparency.
    """

    channels: tuple[ChannelLook, ...] = field(default_factory=lambda: (ChannelLook(),))
    gamma: float = 1.0
    contrast: float = 1.0
    brightness: float = 0.0
    invert: bool = False
    cmap: str | None = None
    background: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        if self.cmap is not None and self.cmap not in MAPS:
            raise UnknownLookError(f"there is no colour map {self.cmap!r}; there are {', '.join(sorted(MAPS))}")
        if not (self.gamma > 0 and math.isfinite(self.gamma)):
            raise UnknownLookError(f"gamma must be above 0; got {self.gamma:g}")

    @property
    def is_grey(self) -> bool:
        """Whether the picture needs one value per pixel only."""
        (red, green, blue), *others = (channel.color for channel in self.channels)
        return not others and self.cmap in (None, "grey") and red == green == blue


def parse_color(text: str) -> Color:
    """A colour by name or as `rrggbb`, with or without `#`; parts 0..1.

    Raises
    ------
    UnknownLookError
    """
    if (named := COLORS.get(text.lower())) is not None:
        return named
    digits = text.removeprefix("#")
    try:
        if len(digits) != 6 or not digits.isalnum():
            raise ValueError
        number = int(digits, 16)
    except ValueError:
        raise UnknownLookError(
            f"a colour is rrggbb in hexadecimal, or one of {', '.join(COLORS)}; got {text[:40]!r}"
        ) from None
    return (number >> 16) / 255, (number >> 8 & 255) / 255, (number & 255) / 255


def render(
    arrays: Sequence[NDArray[Any]],
    coverages: Sequence[NDArray[np.bool_] | None],
    look: Look,
    *,
    alpha: bool = True,
) -> Picture:
    """Make a picture of one or more channels.

    Parameters
    ----------
    arrays : sequence of ndarray, all of one shape (rows, cols)
        u1, u2 or f4; one for each of `look.channels`.
    coverages : sequence of ndarray of bool or None
        Which pixels of each are covered; None for all.
    look : Look
    alpha : bool
        Whether uncovered pixels become transparent; else they are `look.background`.

    Returns
    -------
    ndarray of uint8, shape (rows, cols) or (rows, cols, 2, 3 or 4)
        Grey, grey and alpha, RGB or RGBA. There is no alpha where every pixel is covered by some channel.
    """
    if not len(arrays) == len(coverages) == len(look.channels):
        raise ValueError(f"{len(look.channels)} channels are to be shown; {len(arrays)} arrays came")
    covered = _covered_by_any(coverages)
    picture = _one(arrays[0], look) if len(arrays) == 1 else _mixed(arrays, coverages, look)
    if covered is None:
        return picture
    if alpha:
        layers = picture[..., None] if picture.ndim == 2 else picture
        opacity = np.where(covered, np.uint8(255), np.uint8(0))[..., None]
        return np.concatenate([np.where(covered[..., None], layers, np.uint8(0)), opacity], axis=2)
    if picture.ndim == 2 and len(set(look.background)) > 1:
        picture = np.repeat(picture[..., None], 3, axis=2)
    elif not picture.flags.writeable:
        picture = picture.copy()
    picture[~covered] = look.background if picture.ndim == 3 else look.background[0]
    return picture


def blank(shape: tuple[int, int], look: Look, *, alpha: bool = True) -> Picture:
    """The picture of a place that no frame covers."""
    nothing = np.zeros(shape, np.uint8)
    uncovered = np.zeros(shape, np.bool_)
    return render([nothing] * len(look.channels), [uncovered] * len(look.channels), look, alpha=alpha)


def _covered_by_any(coverages: Sequence[NDArray[np.bool_] | None]) -> NDArray[np.bool_] | None:
    found: NDArray[np.bool_] | None = None
    for coverage in coverages:
        if coverage is None:
            return None
        found = coverage if found is None else found | coverage
    return None if found is None or bool(found.all()) else found


def _one(array: NDArray[Any], look: Look) -> Picture:
    """One channel: (rows, cols), or (rows, cols, 3)."""
    channel = look.channels[0]
    if array.dtype.kind == "u":
        table = _table(channel, look, array.dtype.itemsize, "grey" if look.is_grey else "color")
        picture: Picture = np.take(table, array, axis=0, mode="clip") if table.ndim > 1 else np.take(table, array)
        return picture
    values = _transfer(array.astype(np.float32), channel, look)
    return _to_bytes(values * channel.color[0]) if look.is_grey else _to_bytes(_colored(values, channel, look))


def _mixed(arrays: Sequence[NDArray[Any]], coverages: Sequence[NDArray[np.bool_] | None], look: Look) -> Picture:
    """Several channels, added."""
    total = np.zeros((*arrays[0].shape, 3), np.float32)
    for array, coverage, channel in zip(arrays, coverages, look.channels, strict=True):
        if array.dtype.kind == "u":
            values = np.take(_table(channel, look, array.dtype.itemsize, "values"), array)
        else:
            values = _transfer(array.astype(np.float32), channel, look)
        if coverage is not None:
            values = np.where(coverage, values, np.float32(0))
        for number, part in enumerate(channel.color):
            if part:
                total[..., number] += values * np.float32(part)
    return _to_bytes(total)


@functools.lru_cache(maxsize=64)
def _table(channel: ChannelLook, look: Look, itemsize: int, kind: str) -> NDArray[Any]:
    """What each value of an integer type becomes; `look` counts for what is not in `channel`."""
    values = _transfer(np.arange(256**itemsize, dtype=np.float32), channel, look)
    if kind == "values":
        table: NDArray[Any] = values
    elif kind == "grey":
        table = _to_bytes(values * np.float32(channel.color[0]))
    else:
        table = _to_bytes(_colored(values, channel, look))
    table.flags.writeable = False
    return table


def _transfer(values: NDArray[np.float32], channel: ChannelLook, look: Look) -> NDArray[np.float32]:
    """0..1, what is not finite as 0."""
    span = channel.high - channel.low
    # In float64: a window may be far from 0 and narrow.
    wide = values.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = (wide >= channel.high).astype(np.float64) if span == 0 else (wide - channel.low) * look.contrast / span
        scaled = np.clip(scaled + 0.01 * look.contrast * look.brightness, 0.0, 1.0)
    if look.gamma != 1.0:
        scaled = scaled ** (1.0 / look.gamma)
    if look.invert:
        scaled = 1.0 - scaled
    scaled[~np.isfinite(wide)] = 0.0
    return scaled.astype(np.float32)


def _colored(values: NDArray[np.float32], channel: ChannelLook, look: Look) -> NDArray[np.float32]:
    if look.cmap is None:
        return values[..., None] * np.array(channel.color, np.float32)
    colors = MAPS[look.cmap]
    colored: NDArray[np.float32] = colors[np.minimum(values * np.float32(len(colors)), len(colors) - 1).astype(np.intp)]
    return colored


def _to_bytes(values: NDArray[Any]) -> Picture:
    picture: Picture = (np.clip(values, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return picture


def _map(points: Sequence[tuple[float, float, float, float]]) -> NDArray[np.float32]:
    at = np.array(points, np.float64)
    v = np.linspace(0.0, 1.0, 256)
    return np.stack([np.interp(v, at[:, 0], at[:, part]) for part in (1, 2, 3)], 1).astype(np.float32)


def _sampled(text: str) -> list[tuple[float, float, float, float]]:
    colors = [parse_color(text[at : at + 6]) for at in range(0, len(text), 6)]
    return [(number / (len(colors) - 1), *color) for number, color in enumerate(colors)]


MAPS: dict[str, NDArray[np.float32]] = {
    **{name: _map(points) for name, points in _MAPS.items()},
    **{name: _map(_sampled(text)) for name, text in _SAMPLED_MAPS.items()},
}
"""Colour maps by name: 256 colours each, parts 0..1."""
