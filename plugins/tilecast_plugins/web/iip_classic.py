"""IIP as iipsrv and the viewers of its time speak it, on a path of its own: the same words mean other things here.

    /iipsrv?FIF=<run>/<epoch>[/<t>/<z>[/<c>]]&<settings…>&<command>            also as /fcgi-bin/iipsrv.fcgi

`iip` is VisiOmatic's dialect. Here keys may be written in any case, and:

| command | answer |
|---|---|
| ``OBJ=…`` | text, a line for each object that was asked for, in that order; ``Error/…:3 2 name`` for an unknown one |
| ``JTL=r,i`` | JPEG tile i (row-major) of resolution r, 0 the smallest; ``PTL``, ``WTL``: PNG, WebP; ``JTLS=s,r,i,s`` |
| ``CVT=jpeg`` | the image or, in fractions of it, ``RGN=x,y,w,h``; at most ``WID`` × ``HEI``; ``png``, ``webp`` too |
| ``PFL=r:x1,y1-x2,y2`` | ``{"profile": […]}`` in pixels of resolution r, from 0; to the right or down; ends left out |

Settings: ``MINMAX=c:lo,hi`` (c from 0, ``-`` for all), ``CNT`` (a number, or ``st`` for what fits the data), ``GAM``,
``CMP`` (hot, cold, jet, blue, green, red), ``INV``, ``QLT``. A pixel p becomes ((p − lo)/(hi − lo))^GAM · CNT, cut to
0…1; then ``INV``, then ``CMP``. Without ``MINMAX`` lo and hi are those that fit the data, as ``Min-Max-sample-values``
tells. ``SDS`` and ``LYR`` say nothing here; what would change the picture and is not served is refused.

An image is one (t, z) of a run, of channel c, or of all, mixed in their colours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from fastapi import APIRouter
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from tilecast.reading import PlaneKey, Rect
from tilecast_plugins.web import encoding, iip
from tilecast_plugins.web.canvas_view import CanvasView
from tilecast_plugins.web.documents import document, json_document
from tilecast_plugins.web.gateway import Gateway, NotFoundError, TooLargeError
from tilecast_plugins.web.iip import NUMBER, IIPError
from tilecast_plugins.web.rendering import ChannelLook, Look, parse_color

COLOUR_MAPS: Final = ("hot", "cold", "jet", "blue", "green", "red")
_FORMATS: Final = {"jpeg": "jpg", "jpg": "jpg", "png": "png", "webp": "webp"}
_TILES: Final = {"jtl": "jpg", "ptl": "png", "wtl": "webp"}
_REFUSED: Final = ("rot", "shd", "ctw", "col", "cnv", "icc", "til", "spectra", "iiif", "zoomify", "deepzoom")

_FIF = re.compile(r"([^/]{1,200})/(\d{1,18})(?:/(\d{1,9})/(\d{1,9})(?:/(\d{1,9}))?)?")
_TILE = re.compile(r"(\d{1,6}),(\d{1,16})")
_TILE_OF_SEQUENCE = re.compile(r"-?\d{1,6},(\d{1,6}),(\d{1,16}),-?\d{1,6}")
_REGION = re.compile(rf"({NUMBER}),({NUMBER}),({NUMBER}),({NUMBER})")
_PROFILE = re.compile(r"(\d{1,6}):(\d{1,10}),(\d{1,10})(?:-(\d{1,10}),(\d{1,10}))?")
_MINMAX = re.compile(rf"(\d{{1,6}}|-):({NUMBER}),({NUMBER})")
_SIZE = re.compile(r"\d{1,7}")
_NUMBER = re.compile(NUMBER)


@dataclass(frozen=True, slots=True)
class Picture:
    """``CVT``: (left, top, width, height) in fractions of the image, the most pixels it may have, format."""

    region: tuple[float, float, float, float]
    width: int | None
    height: int | None
    format: str


@dataclass(frozen=True, slots=True)
class Line:
    """``PFL``: a rectangle of a resolution that is one pixel wide or high, and how many pixels it has."""

    resolution: int
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Objects:
    """``OBJ``: the names of what was asked for, as they were written."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One request, understood.

    Attributes
    ----------
    run : str
    epoch, t, z : int
    c : int or None
        A channel, or None for all.
    command
    minmax : dict of (int or None) to (low, high)
        By the number of the channel in the image; None is all.
    contrast, exponent : float
    colour_map : str or None
    invert : bool
    quality : int
    """

    run: str
    epoch: int
    t: int
    z: int
    c: int | None
    command: Objects | iip.Tile | Picture | Line
    minmax: dict[int | None, tuple[float, float]]
    contrast: float
    exponent: float
    colour_map: str | None
    invert: bool
    quality: int


def parse(query: str) -> Request:
    """Read a query string.

    Raises
    ------
    IIPError
    """
    if len(query) > iip.MAX_QUERY_NBYTES:
        raise IIPError(f"the query has {len(query)} characters; at most {iip.MAX_QUERY_NBYTES} are read")
    values: dict[str, list[str]] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        values.setdefault(key.lower(), []).append(value)
    if "fif" not in values:
        raise IIPError("FIF=run/epoch names the image; it is missing")
    run, epoch, t, z, c = _match(_FIF, "FIF", values, "run/epoch, run/epoch/t/z or run/epoch/t/z/channel")
    if refused := [key for key in _REFUSED if key in values]:
        raise IIPError(f"{refused[0].upper()} is not served; OBJ=IIP-opt-comm tells what is")
    minmax: dict[int | None, tuple[float, float]] = {}
    for text in values.get("minmax", ())[: iip.MAX_CHANNELS]:
        number, low, high = _matched(_MINMAX, "MINMAX", text, "channel:low,high, the channel from 0, or - for all")
        minmax[None if number == "-" else int(number)] = (iip.finite("MINMAX", low), iip.finite("MINMAX", high))
    contrast = values.get("cnt", ["1"])[0].lower()
    colour_map = values.get("cmp", [""])[0].lower()
    return Request(
        run,
        int(epoch),
        int(t or 0),
        int(z or 0),
        None if c is None else int(c),
        _command(values),
        minmax,
        1.0 if contrast in ("st", "stretch") else _within("CNT", contrast, 0, 1000),
        _within("GAM", values.get("gam", ["1"])[0], 0.01, 100),
        colour_map if colour_map in COLOUR_MAPS else None,
        "inv" in values,
        round(_within("QLT", values.get("qlt", [str(encoding.DEFAULT_QUALITY)])[0], 0, 100)),
    )


def _command(values: dict[str, list[str]]) -> Objects | iip.Tile | Picture | Line:
    for key, name in _TILES.items():
        if key in values:
            resolution, index = _match(_TILE, key.upper(), values, "r,i: resolution and tile")
            return iip.Tile(int(resolution), int(index), name)
    if "jtls" in values:
        resolution, index = _match(_TILE_OF_SEQUENCE, "JTLS", values, "angle,r,i,angle")
        return iip.Tile(int(resolution), int(index), "jpg")
    if "pfl" in values:
        r, x1, y1, x2, y2 = _match(_PROFILE, "PFL", values, "r:x1,y1-x2,y2 in pixels of resolution r")
        right, down = int(x2 or x1) - int(x1), int(y2 or y1) - int(y1)
        return Line(int(r), int(x1), int(y1), max(1, right), 1 if right > 0 else max(1, down))
    if "cvt" in values:
        fmt = _FORMATS.get(values["cvt"][0].lower())
        if fmt is None:
            raise IIPError(f"CVT is jpeg, png or webp; got {values['cvt'][0][:40]!r}")
        region = (0.0, 0.0, 1.0, 1.0)
        if "rgn" in values:
            found = _match(_REGION, "RGN", values, "x,y,width,height in fractions of the image")
            left, top, width, height = (iip.finite("RGN", text) for text in found)
            region = (max(0.0, left), max(0.0, top), min(1.0, left + width), min(1.0, top + height))
            if not (region[0] < region[2] and region[1] < region[3]):
                raise IIPError(f"RGN lies outside of the image, which is 0,0,1,1; got {values['rgn'][0][:100]!r}")
        sizes = [int(_match(_SIZE, key, values, "pixels")[0]) if key.lower() in values else 0 for key in ("WID", "HEI")]
        return Picture(region, sizes[0] or None, sizes[1] or None, fmt)
    if "obj" in values:
        return Objects(tuple(values["obj"]))
    raise IIPError("nothing was asked for: expected one of OBJ, JTL, PTL, WTL, JTLS, CVT or PFL")


def _match(pattern: re.Pattern[str], key: str, values: dict[str, list[str]], written: str) -> Sequence[str]:
    return _matched(pattern, key, values[key.lower()][0], written)


def _matched(pattern: re.Pattern[str], key: str, text: str, written: str) -> Sequence[str]:
    found = pattern.fullmatch(text)
    if not found or not text.isascii():
        raise IIPError(f"{key} must be written {written}; got {text[:100]!r}")
    return found.groups() or (found.group(),)


def _within(key: str, text: str, least: float, most: float) -> float:
    if not text.isascii() or not _NUMBER.fullmatch(text) or not least <= float(text) <= most:
        raise IIPError(f"{key} must be a number from {least:g} to {most:g}; got {text[:100]!r}")
    return float(text)


def objects_text(view: CanvasView, asked: Objects, windows: Sequence[tuple[float, float]]) -> str:
    """The answer to ``OBJ``: lines that end with CR and LF."""
    height, width = view.size(0)
    top = view.levels - 1
    planes = "1 0" if len(windows) == 1 else "3 0 1 2"
    colours = f"Colorspace,0-{top},0:0 0 {planes[0]} {planes}"
    server, size, levels = "IIP-server:3.65", f"Max-size:{width} {height}", f"Resolution-number:{view.levels}"
    lines = {
        "iip,1.0": ["IIP:1.0"],
        "basic-info": [server, size, levels, colours],
        "iip-server": [server],
        "iip-opt-comm": ["IIP-opt-comm:CVT CNT GAM QLT JTL JTLS PTL WTL WID HEI RGN MINMAX CMP INV PFL"],
        "iip-opt-obj": ["IIP-opt-obj:Tile-size Bits-per-channel Min-Max-sample-values Resolutions"],
        "max-size": [size],
        "tile-size": [f"Tile-size:{view.tile_size} {view.tile_size}"],
        "resolution-number": [levels],
        "resolutions": [f"Resolutions:{iip.resolutions_text(view)}"],
        "bits-per-channel": [f"Bits-per-channel:{iip.bits(view)}"],
        "min-max-sample-values": [f"Min-Max-sample-values:{iip.ranges_text(windows)}"],
        "horizontal-views": ["Horizontal-views:0"],
        "vertical-views": ["Vertical-views:90"],
    }
    said = []
    for name in asked.names:
        if name.lower().startswith("colorspace"):
            said.append(colours)
        elif name.lower() in lines:
            said += lines[name.lower()]
        else:
            name = re.sub(r"[^\x20-\x7e]", "?", name[:100])
            said.append(f"Error/{len(name) + 4}:3 2 {name}")
    return "".join(f"{line}\r\n" for line in said)


def router(gateway: Gateway) -> APIRouter:
    """The endpoint, under both names."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/iipsrv")
    @routes.get("/fcgi-bin/iipsrv.fcgi")
    async def iipsrv(request: HTTPRequest) -> Response:
        asked = parse(request.url.query)
        return await gateway.work(answer, gateway, asked, request.headers.get("if-none-match"))

    return routes


def answer(gateway: Gateway, asked: Request, if_none_match: str | None) -> Response:
    """What a request asked for."""
    run = gateway.run(asked.run, asked.epoch)
    view = CanvasView.of(run)
    channels = iip.all_channels(view) if asked.c is None else (asked.c,)
    planes = [view.plane(asked.t, c, asked.z) for c in channels]
    command = asked.command
    if isinstance(command, Objects):
        text = objects_text(view, command, [gateway.window(run, c) for c in channels])
        return document(text.encode(), "text/plain; charset=utf-8", if_none_match)
    if isinstance(command, Line):
        return json_document({"profile": _profile(gateway, view, planes, command)}, if_none_match)
    look = _look(gateway, view, channels, asked)
    if isinstance(command, iip.Tile):
        return iip.tile_picture(gateway, view, planes, look, command, asked.quality, if_none_match)
    level, bounds, size = picture_bounds(view, command)
    return gateway.region_picture(
        run,
        planes,
        level,
        view.signed(level, bounds),
        look,
        command.format,
        size=size,
        quality=asked.quality,
        if_none_match=if_none_match,
    )


def picture_bounds(view: CanvasView, picture: Picture) -> tuple[int, Rect, tuple[int, int]]:
    """From which level a picture is made, of which of its pixels, and how many rows and columns it then has.

    The size is the largest that fits into what was asked for and keeps the shape; pixels are never magnified. The level
    is the coarsest that has as many.
    """
    height, width = view.size(0)
    left, top, right, bottom = picture.region
    cols, rows = max(1, round((right - left) * width)), max(1, round((bottom - top) * height))
    scale = min(1.0, (picture.width or cols) / cols, (picture.height or rows) / rows)
    size = max(1, round(rows * scale)), max(1, round(cols * scale))
    level = 0
    while level + 1 < view.levels and (rows >> (level + 1)) >= size[0] and (cols >> (level + 1)) >= size[1]:
        level += 1
    height, width = view.size(level)
    row0, col0 = min(height - 1, int(top * height)), min(width - 1, int(left * width))
    bounds = Rect(row0, col0, max(row0 + 1, round(bottom * height)), max(col0 + 1, round(right * width)))
    return level, bounds, size


def _look(gateway: Gateway, view: CanvasView, channels: Sequence[int], asked: Request) -> Look:
    single = len(channels) == 1
    looks = [ChannelLook(color=(1.0, 1.0, 1.0) if single else parse_color(view.run.channel(c).color)) for c in channels]
    wanted = Look(
        tuple(looks),
        gamma=1.0 / asked.exponent,
        # Our contrast acts before the exponent, iipsrv's after it.
        contrast=asked.contrast ** (1.0 / asked.exponent),
        invert=asked.invert,
        cmap=asked.colour_map if single else None,
    )
    everywhere = asked.minmax.get(None, (None, None))
    given = [asked.minmax.get(number, everywhere) for number in range(len(channels))]
    return gateway.look(view.run, channels, wanted, given)


def _profile(gateway: Gateway, view: CanvasView, planes: Sequence[PlaneKey], line: Line) -> list[Any]:
    """Values pixel by pixel, of each the channels; null where nothing is covered."""
    level = view.levels - 1 - line.resolution
    if level < 0:
        raise NotFoundError(f"the image has resolutions 0 to {view.levels - 1}; asked for {line.resolution}")
    height, width = view.size(level)
    bounds = Rect(line.y, line.x, line.y + line.height, line.x + line.width)
    if bounds.row1 > height or bounds.col1 > width:
        raise NotFoundError(f"resolution {line.resolution} has {width} × {height} pixels; the profile leaves it")
    most = gateway.settings.max_profile_samples
    if line.width * line.height > most:
        raise TooLargeError(f"a profile may have {most} pixels; this one has {line.width * line.height}")
    columns = []
    for plane in planes:
        found = gateway.pixels.region(view.run, plane, level, view.signed(level, bounds))
        values, covered = found.pixels.ravel().tolist(), found.coverage
        # A float that is NaN equals nothing, not even itself.
        mask = [value == value for value in values] if covered is None else covered.ravel().tolist()
        columns.append([value if is_there else None for value, is_there in zip(values, mask, strict=True)])
    return [value for pixel in zip(*columns, strict=True) for value in pixel]
