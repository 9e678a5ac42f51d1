"""DeepZoom, for OpenSeadragon and the many programs that read `.dzi`.

    /deepzoom/<run>/<epoch>/<t>/<c>/<z>/mosaic.dzi
    /deepzoom/<run>/<epoch>/<t>/<c>/<z>/mosaic_files/<L>/<x>_<y>.<png|jpg|webp>

DeepZoom counts its levels from a single pixel upwards: level L of Lmax = ⌈log2(max(width, height))⌉ is our level
Lmax − L. Below our top level, which has at most 2 × 2 tiles, levels are reductions of it, down to one pixel; they are
computed from the corner of the canvas, as DeepZoom halves, and their tiles are cropped to the image.

``<c>`` is a channel, or several with commas between, which are mixed. What the picture looks like (``min``, ``max``,
``gamma``, … as `looks` reads them) and its ``format`` stand in the query of the `.dzi`, and OpenSeadragon repeats that
query with every tile. Tiles that nothing covers are transparent, in JPEG black, never 404:
OpenSeadragon would not ask for them again.
"""

from __future__ import annotations

import re

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tilecast_plugins.web import encoding
from tilecast_plugins.web.canvas_view import CanvasView, above_top
from tilecast_plugins.web.documents import IfNoneMatch, document
from tilecast_plugins.web.gateway import BadRequestError, Gateway, NotFoundError
from tilecast_plugins.web.looks import MAX_CHANNELS, wanted_look


def top_level(width: int, height: int) -> int:
    """DeepZoom's number of the full resolution: ⌈log2(max(width, height))⌉."""
    return (max(width, height) - 1).bit_length()


def our_level(view: CanvasView, deepzoom_level: int) -> int:
    """Which of our levels a DeepZoom level is; may lie above the canvas's own top.

    Raises
    ------
    NotFoundError
        If the image has no such level.
    """
    height, width = view.size(0)
    top = top_level(width, height)
    if not 0 <= deepzoom_level <= top:
        raise NotFoundError(f"the image has DeepZoom levels 0 to {top}; asked for {deepzoom_level}")
    return top - deepzoom_level


def level_size(view: CanvasView, level: int) -> tuple[int, int]:
    """Rows and columns of one of our levels, however high: ⌈size / 2^level⌉."""
    height, width = view.size(0)
    return -(-height >> level), -(-width >> level)


def descriptor(view: CanvasView, format_name: str) -> bytes:
    """The `.dzi` file."""
    height, width = view.size(0)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" '
        f'TileSize="{view.tile_size}" Overlap="0" Format="{format_name}">'
        f'<Size Width="{width}" Height="{height}"/></Image>\n'
    ).encode()


def router(gateway: Gateway) -> APIRouter:
    """The endpoints."""
    routes = APIRouter(prefix="/deepzoom/{run}/{epoch}/{t}/{c}/{z}", include_in_schema=False)

    @routes.get("/{name}.dzi")
    async def dzi(
        run: str,
        epoch: int,
        t: int,
        c: str,
        z: int,
        format: str = "png",  # noqa: A002
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        def answer() -> Response:
            view = CanvasView.of(gateway.run(run, epoch))
            for channel in _channels(c):
                view.plane(t, channel, z)
            return document(descriptor(view, _format(format)), "application/xml", if_none_match)

        return await gateway.work(answer)

    @routes.get("/{name}_files/{level}/{col}_{row}.{suffix}")
    async def tile(
        request: Request,
        run: str,
        epoch: int,
        t: int,
        c: str,
        z: int,
        level: int,
        col: int,
        row: int,
        suffix: str,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        query = dict(request.query_params)

        def answer() -> Response:
            fmt = _format(suffix)
            view = CanvasView.of(gateway.run(run, epoch))
            channels = _channels(c)
            planes = [view.plane(t, one, z) for one in channels]
            look = wanted_look(query, len(channels)).of(gateway, view.run, channels)
            our = our_level(view, level)
            if our < view.levels:
                key = view.key(our, row, col)
                made = gateway.tile_picture(view.run, planes, key, look, fmt, if_none_match=if_none_match, blank=True)
                assert made is not None, "blank tiles are pictures too"
                return made
            if (row, col) != (0, 0):
                raise NotFoundError(f"DeepZoom level {level} has one tile, 0_0; asked for {col}_{row}")
            found = [above_top(gateway.pixels, view, plane, our) for plane in planes]
            name = (tuple(planes), "above", our)
            return gateway.layers_picture(view.run, name, found, look, fmt, if_none_match=if_none_match)

        return await gateway.work(answer)

    return routes


def _channels(text: str) -> list[int]:
    """The channels in an address: one, or several with commas between.

    Raises
    ------
    BadRequestError
    """
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", text) or text.count(",") >= MAX_CHANNELS:
        raise BadRequestError(f"channels are up to {MAX_CHANNELS} numbers with commas between; got {text[:40]!r}")
    return [int(one) for one in text.split(",")]


def _format(suffix: str) -> str:
    fmt = "jpg" if suffix == "jpeg" else suffix
    if fmt not in encoding.PICTURES:
        raise BadRequestError(f"tiles are {', '.join(encoding.PICTURES)}; asked for {suffix[:40]!r}")
    return fmt
