"""CATMAID: tile sources of all ten types, and the description of a stack that CATMAID and catpy ask for.

    /catmaid/<run>/stack/<t>.<c>/info               the description, with the address of each mirror
    /catmaid/<run>/<epoch>/<t>/<c>/<window>/<type>/…  tiles, as each type writes them (`read_path`)

A stack is one channel of one time point; its depth is z. It is shown in 8 bits, and the grey levels for black and
white stand in the address of the mirror (``<window>``: ``low_high``), because most types have no other place for them
and neighbouring tiles must agree. The description takes them from its query (``?min=…&max=…``) or, without, from the
data of that moment.

catpy knows types 1, 4, 5, 7 and 9 and gives up on a description that names another; CATMAID's page knows all. So the
description lists those five; ``?types=all`` or ``?types=2,6`` lists others.

Tiles that nothing covers are black tiles with status 200: catpy's threaded fetcher fails on a 404. Outside the canvas
the answer is 404.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from tilecast.reading import PlaneKey
from tilecast_plugins.web import caching, encoding, rendering
from tilecast_plugins.web.canvas_view import CanvasView, above_top
from tilecast_plugins.web.documents import IfNoneMatch, json_document
from tilecast_plugins.web.gateway import BadRequestError, Gateway, NotFoundError, picture_answer
from tilecast_plugins.web.rendering import ChannelLook, Look

CATPY_TYPES = (1, 4, 5, 7, 9)
TYPES = tuple(range(1, 11))
FORMATS = ("png", "jpg", "jpeg")

#: Longest side of an overview, pixels.
OVERVIEW_PX = 256

#: Channels that type 9 mixes at most.
MAX_CHANNELS = 64

#: Colours by the names that type 9 has for them.
COLOURS = {name: rendering.COLORS[name] for name in ("red", "green", "blue", "cyan", "magenta", "yellow", "white")}

_TITLES = {
    1: "file based",
    2: "query",
    3: "through CATMAID",
    4: "file based, folders by zoom",
    5: "directories",
    6: "DVID imageblk",
    7: "render service",
    8: "DVID imagetile",
    9: "Flixserver",
    10: "H2N5",
}


class CatmaidError(BadRequestError):
    """A request that cannot be read as a tile of its type: what was expected, what came."""


@dataclass(frozen=True, slots=True)
class TileAt:
    """A tile, counted from the corner of the canvas."""

    z: int
    level: int
    row: int
    col: int
    format: str


@dataclass(frozen=True, slots=True)
class Overview:
    """The whole of a plane, small."""

    z: int
    format: str


_N = r"(\d{1,9})"
_EXT = r"\.(png|jpg|jpeg)"
_TILE_PATHS = {
    1: re.compile(rf"(?P<z>\d{{1,9}})/(?P<row>\d{{1,9}})_(?P<col>\d{{1,9}})_(?P<level>\d{{1,3}}){_EXT}"),
    4: re.compile(rf"(?P<z>\d{{1,9}})/(?P<level>\d{{1,3}})/(?P<row>\d{{1,9}})_(?P<col>\d{{1,9}}){_EXT}"),
    5: re.compile(rf"(?P<level>\d{{1,3}})/(?P<z>\d{{1,9}})/(?P<row>\d{{1,9}})/(?P<col>\d{{1,9}}){_EXT}"),
    6: re.compile(r"(?P<w>\d{1,9})_(?P<h>\d{1,9})/(?P<x>\d{1,12})_(?P<y>\d{1,12})_(?P<z>\d{1,9})/(png|jpg|jpeg)"),
    7: re.compile(
        r"largeDataTileSource/(?P<w>\d{1,9})/(?P<h>\d{1,9})/(?P<level>\d{1,3})/(?P<z>\d{1,9})/"
        rf"(?P<row>\d{{1,9}})/(?P<col>\d{{1,9}}){_EXT}"
    ),
    8: re.compile(r"xy/(?P<level>\d{1,3})/(?P<col>\d{1,9})_(?P<row>\d{1,9})_(?P<z>\d{1,9})"),
    10: re.compile(
        r"s(?P<level>\d{1,3})/0_1_2/(?P<w>\d{1,9})_(?P<h>\d{1,9})/"
        rf"(?P<x>\d{{1,12}})_(?P<y>\d{{1,12}})_(?P<z>\d{{1,9}}){_EXT}"
    ),
}
_TILE_PATHS[9] = _TILE_PATHS[1]
_OVERVIEW_PATHS = {
    1: re.compile(rf"(?P<z>\d{{1,9}})/small{_EXT}"),
    5: re.compile(rf"small/(?P<z>\d{{1,9}}){_EXT}"),
    7: re.compile(rf"largeDataTileSource/(?P<w>\d{{1,9}})/(?P<h>\d{{1,9}})/small/(?P<z>\d{{1,9}}){_EXT}"),
}
_OVERVIEW_PATHS[4] = _OVERVIEW_PATHS[9] = _OVERVIEW_PATHS[1]


def read_path(source_type: int, path: str, tile_size: int) -> TileAt | Overview:
    """What the rest of an address asks for, behind the mirror's base; not for types 2 and 3, which use a query.

    Raises
    ------
    CatmaidError
    """
    overviews = _OVERVIEW_PATHS.get(source_type)
    found = overviews.fullmatch(path) if overviews and path.isascii() else None
    if found:
        _check_size(found.groupdict(), tile_size)
        return Overview(int(found["z"]), found.groups()[-1])
    pattern = _TILE_PATHS.get(source_type)
    found = pattern.fullmatch(path) if pattern and path.isascii() else None
    if not found:
        raise CatmaidError(
            f"{path[:200]!r} is not how tile source type {source_type} writes a tile"
            if source_type in TYPES
            else f"tile source types are 1 to 10; got {source_type}"
        )
    parts = found.groupdict()
    _check_size(parts, tile_size)
    if "x" in parts:
        row, col = _tile_of(int(parts["x"]), int(parts["y"]), tile_size)
    else:
        row, col = int(parts["row"]), int(parts["col"])
    extension = found.groups()[-1] if source_type != 8 else "jpg"
    return TileAt(int(parts["z"]), int(parts.get("level") or 0), row, col, extension)


def read_query(values: dict[str, str], tile_size: int, levels: int, default_format: str) -> TileAt:
    """A tile of type 2 or 3: ``x``, ``y`` in pixels of the scaled image, ``z``, ``width``, ``height``, ``scale``.

    Raises
    ------
    CatmaidError
    """
    numbers = {}
    for name in ("x", "y", "z", "width", "height"):
        text = values.get(name, "")
        if not (text.isascii() and re.fullmatch(r"\d{1,12}", text)):
            raise CatmaidError(f"expected a whole number {name} in the query; got {text[:100]!r}")
        numbers[name] = int(text)
    _check_size({"w": numbers["width"], "h": numbers["height"]}, tile_size)
    if (values.get("row", "y"), values.get("col", "x")) != ("y", "x"):
        raise CatmaidError("only row=y&col=x is served: stacks have orientation xy")
    row, col = _tile_of(numbers["x"], numbers["y"], tile_size)
    extension = values.get("file_extension", default_format).lstrip(".")
    if extension not in FORMATS:
        raise CatmaidError(f"file_extension must be one of {', '.join(FORMATS)}; got {extension[:100]!r}")
    return TileAt(numbers["z"], _level_of(values.get("scale", ""), levels), row, col, extension)


def _check_size(parts: dict[str, Any], tile_size: int) -> None:
    for name in ("w", "h"):
        if name in parts and int(parts[name]) != tile_size:
            raise CatmaidError(f"tiles are {tile_size} × {tile_size} pixels; asked for {name} = {parts[name]}")


def _tile_of(x: int, y: int, tile_size: int) -> tuple[int, int]:
    if x % tile_size or y % tile_size:
        raise CatmaidError(f"tiles begin at multiples of {tile_size} pixels; asked for x = {x}, y = {y}")
    return y // tile_size, x // tile_size


def _level_of(text: str, levels: int) -> int:
    """The level of a scale, 2^-level, as JavaScript writes it."""
    try:
        scale = float(text) if text.isascii() and len(text) <= 40 else 0.0
    except ValueError:
        scale = 0.0
    for level in range(levels):
        if abs(scale * 2**level - 1) < 1e-6:
            return level
    raise CatmaidError(f"scale must be 1, 0.5, 0.25, … down to {2.0 ** (1 - levels):g}; got {text[:100]!r}")


def window_text(window: tuple[float, float]) -> str:
    """How grey levels stand in an address."""
    return "_".join(repr(int(value)) if float(value).is_integer() else repr(float(value)) for value in window)


def read_window(text: str) -> tuple[float, float]:
    """The grey levels in an address.

    Raises
    ------
    CatmaidError
    """
    number = r"(-?\d{1,39}(?:\.\d{1,40})?(?:e[+-]?\d{1,3})?)"
    found = re.fullmatch(f"{number}_{number}", text)
    if not found or not text.isascii() or float(found[1]) == float(found[2]):
        raise CatmaidError(f"expected two different grey levels, written low_high; got {text[:100]!r}")
    return float(found[1]), float(found[2])


def image_base(root: str, view: CanvasView, t: int, c: int, window: tuple[float, float], source_type: int) -> str:
    """The address that CATMAID puts before each tile.

    Parameters
    ----------
    root : str
        Address of this server, without a slash at its end.
    """
    base = f"{root}/catmaid/{view.run.run}/{view.run.epoch}/{t}/{c}/{window_text(window)}/{source_type}/"
    if source_type == 10:
        size = view.tile_size
        return f"{base}%SCALE_DATASET%/0_1_2/{size}_{size}/%AXIS_0%_%AXIS_1%_%AXIS_2%"
    return base


def stack_info(
    root: str,
    view: CanvasView,
    t: int,
    c: int,
    window: tuple[float, float],
    types: tuple[int, ...],
    extension: str,
    pid: str,
    canary: tuple[int, int],
) -> dict[str, Any]:
    """The description of a stack. Lengths are nanometres; pixel 0 of the stack begins at ``translation``.

    Parameters
    ----------
    pid : str
        The project, as it was asked for.
    canary : (x, y)
        A pixel of the stack whose tile is there.
    """
    y_nm, x_nm = (abs(step_um) * 1000 for step_um in view.run.steps_um)
    row0, col0 = view.canvas.rect[:2]
    height, width = view.size(0)
    channel = view.run.channel(c)
    mirrors = [
        {
            "id": source_type,
            "title": f"{source_type}: {_TITLES[source_type]}",
            "position": position,
            "image_base": image_base(root, view, t, c, window, source_type),
            "tile_width": view.tile_size,
            "tile_height": view.tile_size,
            "tile_source_type": source_type,
            "file_extension": extension,
        }
        for position, source_type in enumerate(types)
    ]
    return {
        "sid": f"{t}.{c}",
        "pid": pid,
        "ptitle": view.run.name,
        "stitle": f"{view.run.name} {channel.label}".strip(),
        "dimension": {"x": width, "y": height, "z": view.shape[2]},
        "resolution": {"x": x_nm, "y": y_nm, "z": 1.0},
        "translation": {"x": col0 * x_nm, "y": row0 * y_nm, "z": 0.0},
        "orientation": 0,
        "broken_slices": {},
        "canary_location": {"x": canary[0], "y": canary[1], "z": 0},
        "mirrors": mirrors,
        "downsample_factors": [{"x": 2**k, "y": 2**k, "z": 1} for k in range(view.levels)],
        "num_zoom_levels": view.levels,
        "comment": "",
        "description": f"tilecast run {view.run.run}, t {t}, channel {c}, epoch {view.run.epoch}",
        "metadata": None,
        "attribution": None,
        "placeholder_color": {"r": 0, "g": 0, "b": 0, "a": 1},
    }


@dataclass(frozen=True, slots=True)
class Stack:
    """One channel of one time point, and the grey levels shown as black and white."""

    view: CanvasView
    t: int
    c: int
    window: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Layer:
    """A channel as type 9 shows it."""

    c: int
    low: float | None
    high: float | None
    gamma: float
    color: rendering.Color


def read_layers(values: dict[str, str], c: int, n_channels: int) -> tuple[tuple[Layer, ...], int]:
    """The channels, and the quality, that the query of type 9 asks for.

    ``color``, ``min``, ``max`` and ``gamma`` are lists, separated by commas. With one entry they are of the stack's own
    channel `c`; with several, entry i is of channel i. A list of one holds for all, an empty entry stands for the
    default.

    Raises
    ------
    CatmaidError
    """
    lists = {name: values.get(name, "").split(",") for name in ("color", "min", "max", "gamma")}
    count = max(len(entries) for entries in lists.values())
    if count > min(n_channels, MAX_CHANNELS) and count > 1:
        raise CatmaidError(f"the run has {n_channels} channels; the lists have {count} entries")
    for name, entries in lists.items():
        if len(entries) not in (1, count):
            raise CatmaidError(f"{name} has {len(entries)} entries, other lists have {count}")
    layers = []
    for number in range(count):
        color, low, high, gamma = (
            lists[name][number if len(lists[name]) > 1 else 0] for name in ("color", "min", "max", "gamma")
        )
        if color and color not in COLOURS:
            raise CatmaidError(f"color must be one of {', '.join(COLOURS)}; got {color[:40]!r}")
        exponent = _number("gamma", gamma)
        if exponent is not None and not 0.01 <= exponent <= 100:
            raise CatmaidError(f"gamma must be from 0.01 to 100; got {gamma[:40]!r}")
        layers.append(
            Layer(
                c if count == 1 else number,
                _number("min", low),
                _number("max", high),
                1.0 if exponent is None else exponent,
                COLOURS[color or "white"],
            )
        )
    quality = _number("quality", values.get("quality", ""))
    if quality is not None and not 0 <= quality <= 100:
        raise CatmaidError(f"quality must be from 0 to 100; got {quality:g}")
    return tuple(layers), encoding.DEFAULT_QUALITY if quality is None else round(quality)


def _number(name: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text) if text.isascii() else math.nan
    except ValueError:
        value = math.nan
    if not abs(value) < 1e38:
        raise CatmaidError(f"{name} must be numbers separated by commas; got {text[:40]!r}")
    return value


def router(gateway: Gateway) -> APIRouter:
    """The endpoints."""
    routes = APIRouter(prefix="/catmaid", include_in_schema=False)

    @routes.get("/{pid}/stacks")
    async def stacks(pid: str, if_none_match: IfNoneMatch = None) -> Response:
        def answer() -> Response:
            view = CanvasView.of(gateway.run(pid))
            n_times, n_channels, _ = view.shape
            return json_document(
                [
                    {"id": f"{t}.{c}", "title": f"{view.run.name} {view.run.channel(c).label}".strip(), "comment": ""}
                    for t in range(min(n_times, _MAX_LISTED))
                    for c in range(min(n_channels, MAX_CHANNELS))
                ],
                if_none_match,
            )

        return await gateway.work(answer)

    @routes.get("/{pid}/stack/{sid}/info")
    async def info(
        request: Request,
        pid: str,
        sid: str,
        types: str = "",
        ext: str = "png",
        min: Annotated[float | None, Query(allow_inf_nan=False, ge=-1e37, le=1e37)] = None,  # noqa: A002
        max: Annotated[float | None, Query(allow_inf_nan=False, ge=-1e37, le=1e37)] = None,  # noqa: A002
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        root = str(request.base_url).rstrip("/")

        def answer() -> Response:
            if ext not in FORMATS:
                raise CatmaidError(f"ext must be one of {', '.join(FORMATS)}; got {ext[:40]!r}")
            t, c = _read_sid(sid)
            view = CanvasView.of(gateway.run(pid))
            plane = view.plane(t, c, 0)
            (channel,) = gateway.look(view.run, [c], Look(), [(min, max)]).channels
            if channel.low == channel.high:
                raise CatmaidError(f"min and max must differ; both are {channel.low:g}")
            window = channel.low, channel.high
            described = stack_info(root, view, t, c, window, _read_types(types), ext, pid, _canary(view, plane))
            return json_document(described, if_none_match)

        return await gateway.work(answer)

    @routes.get("/{pid}/stack/{sid}/tile")
    async def tile_through_catmaid(request: Request, pid: str, sid: str, if_none_match: IfNoneMatch = None) -> Response:
        values = dict(request.query_params)

        def answer() -> Response:
            run, epoch, t, c, window = _read_basename(values.get("basename", ""))
            if (run, f"{t}.{c}") != (pid, sid):
                raise CatmaidError(f"basename is of another stack, {run} {t}.{c}")
            view = CanvasView.of(gateway.run(run, epoch))
            at = read_query(values, view.tile_size, view.levels, "jpg")
            return _picture(gateway, Stack(view, t, c, window), at, if_none_match)

        return await gateway.work(answer)

    @routes.get("/{run}/{epoch}/{t}/{c}/{window}/{source_type}/{path:path}")
    async def tile(
        request: Request,
        run: str,
        epoch: int,
        t: int,
        c: int,
        window: str,
        source_type: int,
        path: str,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        values = dict(request.query_params)

        def answer() -> Response:
            grey_levels = read_window(window)
            view = CanvasView.of(gateway.run(run, epoch))
            if source_type == 2 and not path:
                asked: TileAt | Overview = read_query(values, view.tile_size, view.levels, "jpg")
            else:
                asked = read_path(source_type, path, view.tile_size)
            stack = Stack(view, t, c, grey_levels)
            if source_type == 9:
                return _mixed_picture(gateway, stack, asked, values, if_none_match)
            return _picture(gateway, stack, asked, if_none_match)

        return await gateway.work(answer)

    return routes


_MAX_LISTED = 1000


def _read_sid(sid: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", sid)
    if not found or not sid.isascii():
        raise NotFoundError(f"stacks are named t.c, for instance 0.0; got {sid[:40]!r}")
    return int(found[1]), int(found[2])


def _read_types(text: str) -> tuple[int, ...]:
    if not text:
        return CATPY_TYPES
    if text == "all":
        return TYPES
    chosen = text.split(",")
    if not all(one in map(str, TYPES) for one in chosen):
        raise CatmaidError(f"types are numbers from 1 to 10, separated by commas, or all; got {text[:40]!r}")
    return tuple(dict.fromkeys(int(one) for one in chosen))


def _read_basename(text: str) -> tuple[str, int, int, int, tuple[float, float]]:
    """What the base of a mirror of type 3 says: run, epoch, t, c, window."""
    found = re.search(r"/catmaid/([^/]{1,200})/(\d{1,18})/(\d{1,9})/(\d{1,9})/([^/]{1,200})/3/?$", text)
    if not found or not text.isascii():
        raise CatmaidError(f"basename must be the image_base of a mirror of type 3; got {text[:200]!r}")
    return found[1], int(found[2]), int(found[3]), int(found[4]), read_window(found[5])


def _canary(view: CanvasView, plane: PlaneKey) -> tuple[int, int]:
    """(x, y) of a pixel in the middle of what is covered, counted from the corner of the canvas."""
    canvas = view.canvas.rect
    box = view.run.bboxes.get(plane, canvas).intersect(canvas)
    box = canvas if box.empty else box
    return (box.col0 + box.col1) // 2 - canvas.col0, (box.row0 + box.row1) // 2 - canvas.row0


def _layers(
    gateway: Gateway, view: CanvasView, planes: Sequence[PlaneKey], asked: TileAt | Overview
) -> tuple[object, list[tuple[Any, Any, int]]]:
    """What of the planes is asked for: its name, and pixels, mask and rev of each."""
    if isinstance(asked, Overview):
        return "overview", [overview(gateway, view, plane) for plane in planes]
    key, shape = view.key(asked.level, asked.row, asked.col), (view.tile_size, view.tile_size)
    tiles = [gateway.tile(view.run, plane, key) for plane in planes]
    return tuple(key), [
        (np.zeros(shape, view.run.dtype), np.zeros(shape, np.bool_), 0)
        if tile is None
        else (tile.pixels, tile.coverage, tile.rev)
        for tile in tiles
    ]


def _picture(gateway: Gateway, stack: Stack, asked: TileAt | Overview, if_none_match: str | None) -> Response:
    """One channel, in grey."""
    planes = [stack.view.plane(stack.t, stack.c, asked.z)]
    name, layers = _layers(gateway, stack.view, planes, asked)
    look, fmt = Look((ChannelLook(*stack.window),)), _format(asked.format)
    # Whatever is not covered is black: catpy reads grey, and takes the colour under a transparent pixel.
    return gateway.layers_picture(
        stack.view.run, (tuple(planes), name), layers, look, fmt, if_none_match=if_none_match, alpha=False
    )


def _mixed_picture(
    gateway: Gateway, stack: Stack, asked: TileAt | Overview, values: dict[str, str], if_none_match: str | None
) -> Response:
    """Type 9: channels in colours, each with its own grey levels and gamma, added."""
    view = stack.view
    shown, quality = read_layers(values, stack.c, view.shape[1])
    fmt = _format(asked.format)
    planes = [view.plane(stack.t, one.c, asked.z) for one in shown]
    looks = [_layer_look(gateway, stack, one) for one in shown]
    name, layers = _layers(gateway, view, planes, asked)
    rev = max(rev for _, _, rev in layers)
    tag = caching.etag(view.run.run, view.run.epoch, tuple(planes), name, rev, tuple(looks), fmt, quality, "mixed")
    if caching.matches(if_none_match, tag):
        return caching.not_modified(tag)
    pictures = [
        rendering.render([pixels], [mask], look, alpha=False)
        for look, (pixels, mask, _) in zip(looks, layers, strict=True)
    ]
    return picture_answer(encoding.encode(_added(pictures), fmt, quality), fmt, tag)


def _layer_look(gateway: Gateway, stack: Stack, layer: Layer) -> Look:
    low, high = layer.low, layer.high
    if layer.c == stack.c:  # the stack's own channel has its grey levels in the address
        low, high = (stack.window[0] if low is None else low), (stack.window[1] if high is None else high)
    wanted = Look((ChannelLook(color=layer.color),), gamma=layer.gamma)
    return gateway.look(stack.view.run, [layer.c], wanted, [(low, high)])


def _added(pictures: Sequence[rendering.Picture]) -> rendering.Picture:
    if len(pictures) == 1:
        return pictures[0]
    total = np.zeros((*pictures[0].shape[:2], 3), np.uint16)
    for picture in pictures:
        total += picture if picture.ndim == 3 else picture[..., None]
    return np.minimum(total, 255).astype(np.uint8)


def overview(gateway: Gateway, view: CanvasView, plane: PlaneKey) -> tuple[Any, Any, int]:
    """The whole of a plane, at most `OVERVIEW_PX` wide and high: its pixels, mask and rev."""
    level = view.levels - 1
    height, width = view.size(level)
    while max(height, width) > OVERVIEW_PX:
        level, height, width = level + 1, -(-height // 2), -(-width // 2)
    return above_top(gateway.pixels, view, plane, level)


def _format(extension: str) -> str:
    return "jpg" if extension == "jpeg" else extension
