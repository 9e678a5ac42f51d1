"""IIP as VisiOmatic speaks it, and as OpenSeadragon's IIP source does, on one path.

    /iip?FIF=<run>/<epoch>[/<t>/<z>][/up]&<settings…>&<command>

The image named by ``FIF`` is one (t, z) of a run with all its channels. Without t and z it is the first. The epoch
belongs to the name, as to every address of tiles: an older one is 404.

| command | answer |
|---|---|
| ``obj=…`` | text: sizes, levels, bits, range |
| ``INFO`` | JSON: the same and more, for VisiOmatic's page |
| ``JTL=r,i`` | JPEG of tile i (row-major) of resolution r, 0 being the smallest; ``PTL``, ``WTL``: PNG, WebP |
| ``RGN=x1,y1:x2,y2`` and ``BIN=2^k`` | JPEG of a region, corners included |
| ``VAL=x,y`` | ``{"values": […]}``, one for each channel |
| ``PFL=x1,y1:x2,y2`` | ``{"profile": [{"x", "y", "values"}, …]}`` along any line |

x and y are pixels of the full resolution, counted from 1 at the upper left. VisiOmatic's page, which shows FITS, counts
y from the bottom: ``/up`` behind the image's name turns the y of ``VAL``, ``PFL`` and ``RGN`` for it. Values are null
outside and where no frame lies. Settings: ``CHAN`` (from 1; repeatable for values; without it tiles are in colour),
``MINMAX=chan:lo,hi``, ``MIX=chan:r,g,b``, ``CNT``, ``BRT``, ``GAM``, ``CMP``, ``INV``, ``QLT``. They hold for the one
request they came with.

How a pixel p becomes grey: v = (p − lo)·CNT/(hi − lo) + 0.01·CNT·BRT, clipped to 0…1, to the power GAM, times 255.
``GAM`` is 1/γ of the display: so VisiOmatic's page sends it, and so iipsrv reads it. In colour that is done for each
channel, and the results, each times its ``MIX``, are added. Nothing is remembered between two requests.

Keys that say nothing here (``SDS``, ``WID``, …) are ignored as IIP demands, since clients send what their user set.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from tilecast.reading import PlaneKey, Rect
from tilecast_plugins.web import encoding
from tilecast_plugins.web.canvas_view import CanvasView
from tilecast_plugins.web.documents import document, json_document
from tilecast_plugins.web.gateway import BadRequestError, Gateway, NotFoundError, TooLargeError
from tilecast_plugins.web.rendering import ChannelLook, Look, parse_color

MAX_QUERY_NBYTES = 8192
MAX_CHANNELS = 64

COLOUR_MAPS = ("grey", "jet", "cold", "hot", "cool")

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_WHOLE = r"[+-]?\d{1,10}"
_PATTERNS = {
    "JTL": re.compile(r"(\d{1,6}),(\d{1,16})"),
    "MINMAX": re.compile(rf"(\d{{1,6}}):({NUMBER}),({NUMBER})"),
    "MIX": re.compile(rf"(\d{{1,6}}):({NUMBER}),({NUMBER}),({NUMBER})"),
    "LINE": re.compile(rf"({_WHOLE}),({_WHOLE}):({_WHOLE}),({_WHOLE})"),
    "VAL": re.compile(rf"({_WHOLE}),({_WHOLE})"),
    "CHAN": re.compile(r"\d{1,6}"),
    "FIF": re.compile(r"([^/]{1,200})(?:/(\d{1,18})(?:/(\d{1,9})/(\d{1,9}))?)?(/up)?"),
}
_WRITTEN = {
    "JTL": "r,i: resolution and tile",
    "MINMAX": "channel:low,high",
    "MIX": "channel:red,green,blue",
    "LINE": "x1,y1:x2,y2 in whole pixels",
    "VAL": "x,y in whole pixels",
    "CHAN": "a whole number",
    "FIF": "run/epoch or run/epoch/t/z, with /up behind it where y counts upwards",
}
_TILE_FORMATS = {"JTL": "jpg", "PTL": "png", "WTL": "webp"}


class IIPError(BadRequestError):
    """A request that cannot be read: what was expected, what came."""


@dataclass(frozen=True, slots=True)
class Image:
    """What ``FIF`` names: a run, by its id; an epoch, if it was given; t and z; whether y counts upwards."""

    run: str
    epoch: int | None
    t: int = 0
    z: int = 0
    up: bool = False


@dataclass(frozen=True, slots=True)
class Tile:
    """``JTL``: resolution (0 is the smallest), number of the tile in it, format."""

    resolution: int
    index: int
    format: str


@dataclass(frozen=True, slots=True)
class Region:
    """``RGN`` with ``BIN``: two corners, both included, counted from 1, the first the upper left; and the level."""

    x1: int
    y1: int
    x2: int
    y2: int
    level: int


@dataclass(frozen=True, slots=True)
class Profile:
    """``PFL``: a line from (x1, y1) to (x2, y2), counted from 1."""

    x1: int
    y1: int
    x2: int
    y2: int


@dataclass(frozen=True, slots=True)
class Value:
    """``VAL``: a pixel, counted from 1."""

    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Header:
    """``obj``."""


@dataclass(frozen=True, slots=True)
class Information:
    """``INFO``."""


Command = Tile | Region | Profile | Value | Header | Information


@dataclass(frozen=True, slots=True)
class Settings:
    """How pixels become a picture; the defaults change nothing.

    Attributes
    ----------
    channels : tuple of int
        From 0; empty for colour.
    minmax : dict of int to (low, high)
        Grey levels shown as 0 and 1, of the channels that were named.
    mix : dict of int to (red, green, blue)
        Likewise.
    contrast, brightness, exponent : float
    colour_map : str
    invert : bool
    quality : int or None
        Of the JPEG, 0–100.
    """

    channels: tuple[int, ...] = ()
    minmax: dict[int, tuple[float, float]] = field(default_factory=dict)
    mix: dict[int, tuple[float, float, float]] = field(default_factory=dict)
    contrast: float = 1.0
    brightness: float = 0.0
    exponent: float = 1.0
    colour_map: str = "grey"
    invert: bool = False
    quality: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One request, understood."""

    image: Image
    command: Command
    settings: Settings


def parse(query: str) -> Request:
    """Read a query string.

    Parameters
    ----------
    query : str
        What stands behind the ``?``.

    Raises
    ------
    IIPError
    """
    if len(query) > MAX_QUERY_NBYTES:
        raise IIPError(f"the query has {len(query)} characters; at most {MAX_QUERY_NBYTES} are read")
    pairs = parse_qsl(query, keep_blank_values=True)
    if not pairs or pairs[0][0] != "FIF":
        came = repr(pairs[0][0]) if pairs else "nothing"
        raise IIPError(f"the first key must be FIF=run/epoch; got {came} (keys are in capitals)")
    values: dict[str, list[str]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    run, epoch, t, z, up = _match("FIF", "FIF", values["FIF"][0])
    image = Image(run, None if epoch is None else int(epoch), int(t or 0), int(z or 0), bool(up))
    return Request(image, _command(values), _settings(values))


def _command(values: dict[str, list[str]]) -> Command:
    if "obj" in values:
        return Header()
    if "INFO" in values:
        return Information()
    for key, name in _TILE_FORMATS.items():
        if key in values:
            resolution, index = _match("JTL", key, values[key][0])
            return Tile(int(resolution), int(index), name)
    if "RGN" in values:
        x1, y1, x2, y2 = (int(text) for text in _match("LINE", "RGN", values["RGN"][0]))
        binning = int(_match("CHAN", "BIN", values.get("BIN", ["1"])[0])[0])
        if binning < 1 or binning & (binning - 1):
            raise IIPError(f"BIN must be a power of two; got {binning}")
        return Region(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2), binning.bit_length() - 1)
    if "PFL" in values:
        return Profile(*(int(text) for text in _match("LINE", "PFL", values["PFL"][0])))
    if "VAL" in values:
        return Value(*(int(text) for text in _match("VAL", "VAL", values["VAL"][0])))
    raise IIPError("nothing was asked for: expected one of obj, INFO, JTL, PTL, WTL, RGN, PFL or VAL")


def _settings(values: dict[str, list[str]]) -> Settings:
    many = max(len(values.get(key, ())) for key in ("CHAN", "MINMAX", "MIX"))
    if many > MAX_CHANNELS:
        raise IIPError(f"{many} channels in one request; at most {MAX_CHANNELS}")
    channels = [_channel("CHAN", _match("CHAN", "CHAN", text)[0]) for text in values.get("CHAN", ())]
    minmax, mix = {}, {}
    for text in values.get("MINMAX", ()):
        number, low, high = _match("MINMAX", "MINMAX", text)
        minmax[_channel("MINMAX", number)] = (finite("MINMAX", low), finite("MINMAX", high))
    for text in values.get("MIX", ()):
        number, *parts = _match("MIX", "MIX", text)
        red, green, blue = (finite("MIX", part) for part in parts)
        mix[_channel("MIX", number)] = (red, green, blue)
    colour_map = values.get("CMP", ["grey"])[0]
    if colour_map not in COLOUR_MAPS:
        raise IIPError(f"CMP must be one of {', '.join(COLOUR_MAPS)}; got {colour_map!r}")
    quality = values.get("QLT")
    return Settings(
        channels=tuple(channels),
        minmax=minmax,
        mix=mix,
        contrast=_within(values, "CNT", 1.0, 0, 1000),
        brightness=_within(values, "BRT", 0.0, -100, 100),
        exponent=_within(values, "GAM", 1.0, 0.2, 5),
        colour_map=colour_map,
        invert="INV" in values,
        quality=None if quality is None else round(_within(values, "QLT", 0, 0, 100)),
    )


def _match(pattern: str, key: str, text: str) -> Sequence[str]:
    found = _PATTERNS[pattern].fullmatch(text)
    if not found or not text.isascii():
        raise IIPError(f"{key} must be written {_WRITTEN[pattern]}; got {text[:100]!r}")
    return found.groups() or (found.group(),)


def _channel(key: str, text: str) -> int:
    if int(text) < 1:
        raise IIPError(f"{key}: channels are counted from 1; got {text}")
    return int(text) - 1


def finite(key: str, text: str) -> float:
    """A number that is not absurdly large.

    Raises
    ------
    IIPError
    """
    value = float(text)
    if not abs(value) < 1e38:
        raise IIPError(f"{key}: {text} is too large a number")
    return value


def _within(values: dict[str, list[str]], key: str, default: float, least: float, most: float) -> float:
    if key not in values:
        return default
    text = values[key][0]
    if not text.isascii() or not re.fullmatch(NUMBER, text) or not least <= float(text) <= most:
        raise IIPError(f"{key} must be a number from {least:g} to {most:g}; got {text[:100]!r}")
    return float(text)


def fif(view: CanvasView, t: int = 0, z: int = 0) -> str:
    """What to write as ``FIF`` for an image of a run."""
    return f"{view.run.run}/{view.run.epoch}/{t}/{z}"


def turned(command: Command, height: int) -> Command:
    """A command whose y counts upwards from the bottom of an image, as one whose y counts downwards."""
    if isinstance(command, Value):
        return Value(command.x, height + 1 - command.y)
    if isinstance(command, Profile):
        return Profile(command.x1, height + 1 - command.y1, command.x2, height + 1 - command.y2)
    if isinstance(command, Region):
        y1, y2 = height + 1 - command.y2, height + 1 - command.y1
        return Region(command.x1, y1, command.x2, y2, command.level)
    return command


def tile_place(view: CanvasView, tile: Tile) -> tuple[int, int, int]:
    """(level, row, col) of a tile, counted from the corner of the canvas; may lie outside of it."""
    level = view.levels - 1 - tile.resolution
    _, cols = view.grid(level) if 0 <= level < view.levels else (1, 1)
    return (level, *divmod(tile.index, cols))


def header_text(view: CanvasView, windows: Sequence[tuple[float, float]]) -> str:
    """The answer to ``obj``."""
    height, width = view.size(0)
    return (
        "IIP:1.0\n"
        f"Max-size:{width} {height}\n"
        f"Tile-size:{view.tile_size} {view.tile_size}\n"
        f"Resolution-number:{view.levels}\n"
        f"Resolutions:{resolutions_text(view)}\n"
        f"Bits-per-channel:{bits(view)}\n"
        f"Min-Max-sample-values:{ranges_text(windows)}\n"
        "subject/0:\n"
    )


def information(view: CanvasView, t: int, z: int, windows: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The answer to ``INFO``.

    Parameters
    ----------
    windows : sequence of (low, high)
        The grey levels shown as black and white where nothing else is asked for, per channel.
    """
    height, width = view.size(0)
    # The page needs these to know where y = 1 is.
    header = {"NAXIS": 2, "NAXIS1": width, "NAXIS2": height}
    slices = [[1, width, 1], [1, height, 1]]
    image = {
        "size": [width, height],
        "dataslice": slices,
        "detslice": slices,
        "background_level": [low for low, _ in windows],
        "background_mad": [0.0 for _ in windows],
        "min_max": [[low, high] for low, high in windows],
        "header": header,
    }
    defaults = Settings()
    return {
        "type": "visiomatic",
        "version": "3.0",
        "image_name": fif(view, t, z),
        "object_name": view.run.name,
        "full_size": [width, height],
        "tile_size": [view.tile_size, view.tile_size],
        "tile_levels": view.levels,
        "channels": view.shape[1],
        "bits_per_channel": bits(view),
        "brightness": defaults.brightness,
        "contrast": defaults.contrast,
        "color_saturation": 1.0,
        "gamma": 1.0 / defaults.exponent,
        "quality": 90,
        "header": header,
        "images": [image],
    }


def resolutions_text(view: CanvasView) -> str:
    """Width and height of each resolution, the smallest first."""
    return ",".join("{1} {0}".format(*view.size(level)) for level in reversed(range(view.levels)))


def ranges_text(windows: Sequence[tuple[float, float]]) -> str:
    """The values shown as black and white of each channel."""
    return " ".join(f"{low:g} {high:g}" for low, high in windows)


def bits(view: CanvasView) -> int:
    """Bits of a sample."""
    return int(view.dtype[2]) * 8


def router(gateway: Gateway) -> APIRouter:
    """The endpoint."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/iip")
    async def iip(request: HTTPRequest) -> Response:
        asked = parse(request.url.query)
        return await gateway.work(answer, gateway, asked, request.headers.get("if-none-match"))

    return routes


def answer(gateway: Gateway, asked: Request, if_none_match: str | None) -> Response:
    """What a request asked for."""
    image, command = asked.image, asked.command
    run = gateway.run(image.run, image.epoch)
    view = CanvasView.of(run)
    if image.epoch is None:
        raise NotFoundError(f"an image is named with its epoch, at present FIF={fif(view)}")
    view.plane(image.t, 0, image.z)
    height, _ = view.size(0)
    if image.up:
        command = turned(command, height)
    if isinstance(command, Header | Information):
        windows = [gateway.window(run, c) for c in all_channels(view)]
        if isinstance(command, Header):
            return document(header_text(view, windows).encode(), "text/plain; charset=utf-8", if_none_match)
        told = information(view, image.t, image.z, windows)
        if image.up:
            told["image_name"] += "/up"
        return json_document(told, if_none_match)
    channels = _channels(view, asked.settings)
    if isinstance(command, Value):
        planes = [view.plane(image.t, c, image.z) for c in channels]
        return json_document({"values": _values(gateway, view, planes, command)}, if_none_match)
    if isinstance(command, Profile):
        planes = [view.plane(image.t, c, image.z) for c in channels]
        profile = _profile(gateway, view, planes, command)
        if image.up:
            profile = [point | {"y": height + 1 - point["y"]} for point in profile]
        return json_document({"profile": profile}, if_none_match)
    # A picture of one channel, or of all in colour: of several CHAN the first counts, as in VisiOmatic.
    if asked.settings.channels:
        channels = channels[:1]
    planes = [view.plane(image.t, c, image.z) for c in channels]
    look = _look(gateway, view, channels, asked.settings)
    quality = encoding.DEFAULT_QUALITY if asked.settings.quality is None else asked.settings.quality
    if isinstance(command, Tile):
        return tile_picture(gateway, view, planes, look, command, quality, if_none_match)
    bounds = region_bounds(view, command)
    return gateway.region_picture(
        run,
        planes,
        command.level,
        view.signed(command.level, bounds),
        look,
        "jpg",
        quality=quality,
        if_none_match=if_none_match,
    )


def tile_picture(
    gateway: Gateway,
    view: CanvasView,
    planes: Sequence[PlaneKey],
    look: Look,
    tile: Tile,
    quality: int,
    if_none_match: str | None,
) -> Response:
    """A tile as an answer, or 304; one that nothing covers is blank."""
    key = view.key(*tile_place(view, tile))
    made = gateway.tile_picture(
        view.run, planes, key, look, tile.format, quality=quality, if_none_match=if_none_match, blank=True
    )
    assert made is not None, "blank tiles are pictures too"
    return made


def region_bounds(view: CanvasView, region: Region) -> Rect:
    """The pixels of its level that a region reaches, counted from the corner of the canvas, cut to the canvas.

    Raises
    ------
    IIPError
        If ``BIN`` is larger than the levels allow.
    NotFoundError
        If nothing of it lies in the image.
    """
    if region.level >= view.levels:
        raise IIPError(f"BIN can be a power of two up to {2 ** (view.levels - 1)}; got {2**region.level}")
    height, width = view.size(region.level)
    k = region.level
    wanted = Rect((region.y1 - 1) >> k, (region.x1 - 1) >> k, -(-region.y2 >> k), -(-region.x2 >> k))
    bounds = wanted.intersect(Rect(0, 0, height, width))
    if bounds.empty:
        height, width = view.size(0)
        raise NotFoundError(f"the region lies outside of the image, which is x 1 to {width}, y 1 to {height}")
    return bounds


def all_channels(view: CanvasView) -> range:
    """The channels of an image of all.

    Raises
    ------
    TooLargeError
        If there are more than can be shown.
    """
    count = view.shape[1]
    if count > MAX_CHANNELS:
        raise TooLargeError(f"the run has {count} channels, and IIP shows at most {MAX_CHANNELS}: name one")
    return range(count)


def _channels(view: CanvasView, settings: Settings) -> Sequence[int]:
    """Those that were named, or all."""
    return settings.channels or all_channels(view)


def _look(gateway: Gateway, view: CanvasView, channels: Sequence[int], settings: Settings) -> Look:
    looks = []
    for c in channels:
        color = (1.0, 1.0, 1.0) if len(channels) == 1 else parse_color(view.run.channel(c).color)
        looks.append(ChannelLook(color=color if settings.channels else settings.mix.get(c, color)))
    wanted = Look(
        tuple(looks),
        gamma=1.0 / settings.exponent,
        contrast=settings.contrast,
        brightness=settings.brightness,
        invert=settings.invert,
        cmap=settings.colour_map if len(channels) == 1 and settings.colour_map != "grey" else None,
    )
    given = [settings.minmax.get(c, (None, None)) for c in channels]
    return gateway.look(view.run, channels, wanted, given)


def _values(gateway: Gateway, view: CanvasView, planes: Sequence[PlaneKey], at: Value) -> list[float | None]:
    height, width = view.size(0)
    if not (1 <= at.x <= width and 1 <= at.y <= height):
        return [None] * len(planes)
    corner = view.canvas.rect
    row, col = at.y - 1 + corner.row0, at.x - 1 + corner.col0
    return [gateway.pixels.value(view.run, plane, row, col) for plane in planes]


def _profile(gateway: Gateway, view: CanvasView, planes: Sequence[PlaneKey], line: Profile) -> list[dict[str, Any]]:
    """The pixels of a line, its ends included: one per step along its longer side."""
    count = max(abs(line.x2 - line.x1), abs(line.y2 - line.y1)) + 1
    most = gateway.settings.max_profile_samples
    if count > most:
        raise TooLargeError(f"a profile may have {most} pixels; this one has {count}: ask for it in parts")
    corner, (height, width) = view.canvas.rect, view.size(0)
    start = line.y1 - 0.5 + corner.row0, line.x1 - 0.5 + corner.col0
    end = line.y2 - 0.5 + corner.row0, line.x2 - 0.5 + corner.col0
    profile: list[dict[str, Any]] = []
    for plane in planes:
        for number, sample in enumerate(gateway.pixels.profile(view.run, plane, start, end, count)):
            if len(profile) <= number:
                x, y = math.floor(sample.col) - corner.col0 + 1, math.floor(sample.row) - corner.row0 + 1
                profile.append({"x": x, "y": y, "values": []})
            point = profile[number]
            is_inside = 1 <= point["x"] <= width and 1 <= point["y"] <= height
            point["values"].append(sample.value if is_inside and math.isfinite(sample.value) else None)
    return profile
