"""OME-Zarr, 0.4 (Zarr 2) and 0.5 (Zarr 3): the mosaic as arrays for Python, napari and the like, while it grows.

    /zarr/0.4/<run>/<epoch>.zarr     /zarr/0.5/<run>/<epoch>.zarr

An image has the axes t, c, z, y, x, one array per level of the canvas, and one chunk per tile. Chunks are made from
the store when they are asked for, uncompressed, so a reader that opened the image an hour ago gets the pixels of this
moment. The canvas, and with it every shape, belongs to the epoch in the address; when the run outgrows it, the address
is 404 and a reader opens the next one. (More time points or planes than `start` announced make t, c, z longer within
an epoch: readers see them when they open the image again.)

A chunk that nothing covers is 404, which readers take as the fill value: 0, or NaN for float runs, the same that
uncovered pixels of other chunks have. Everything else that is not there (`.zmetadata`, `labels`, …) is a plain 404,
too, since readers probe for it.

What the documents say, coordinates above all, is in `tilecast_plugins.ngff`.
"""

from __future__ import annotations

import re

import numpy as np
from fastapi import APIRouter
from starlette.responses import Response

from tilecast_plugins import ngff
from tilecast_plugins.web import caching
from tilecast_plugins.web.canvas_view import CanvasView
from tilecast_plugins.web.documents import IfNoneMatch, json_document
from tilecast_plugins.web.gateway import BadRequestError, Gateway, NotFoundError

_N = r"(\d{1,12})"
_ARRAY = re.compile(r"(\d{1,3})/(\.zarray|zarr\.json)")
_CHUNKS = {
    "0.4": re.compile(f"{_N}/{_N}/{_N}/{_N}/{_N}/{_N}"),
    "0.5": re.compile(f"{_N}/c/{_N}/{_N}/{_N}/{_N}/{_N}"),
}


def router(gateway: Gateway) -> APIRouter:
    """The endpoints."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/zarr/{version}/{run}/{epoch}.zarr/{path:path}")
    async def anything(version: str, run: str, epoch: int, path: str, if_none_match: IfNoneMatch = None) -> Response:
        return await gateway.work(answer, gateway, version, run, epoch, path, if_none_match)

    return routes


def answer(gateway: Gateway, version: str, run: str, epoch: int, path: str, if_none_match: str | None) -> Response:
    """A file of the image, as if it lay in a folder.

    Raises
    ------
    NotFoundError
        If there is no such file, which for a chunk means that it holds the fill value only.
    """
    if version not in ngff.VERSIONS:
        raise BadRequestError(f"versions of OME-Zarr are {' and '.join(ngff.VERSIONS)}; asked for {version[:40]!r}")
    view = CanvasView.of(gateway.run(run, epoch))
    chunk = _CHUNKS[version].fullmatch(path) if path.isascii() else None
    if chunk:
        return _chunk(gateway, view, [int(number) for number in chunk.groups()], if_none_match)
    image = image_of(view)
    if path in (".zgroup", ".zattrs", "zarr.json"):
        windows = [gateway.window(view.run, c) for c in range(len(image.channels))]
        documents = ngff.group_files(image, version, windows)
        if path in documents:
            return json_document(documents[path], if_none_match)
    array = _ARRAY.fullmatch(path) if path.isascii() else None
    if array and int(array[1]) < view.levels and str(int(array[1])) == array[1]:
        name, document = ngff.array_file(image, version, int(array[1]))
        if name == array[2]:
            return json_document(document, if_none_match)
    raise NotFoundError(f"there is no {path[:200]!r} in this image")


def image_of(view: CanvasView) -> ngff.Image:
    """The canvas as an image: chunks are its tiles, and come uncompressed."""
    _, n_channels, _ = view.shape
    told = range(n_channels) if n_channels <= ngff.MAX_OMERO_CHANNELS else ()
    return ngff.Image(
        run=view.run,
        rect=view.canvas.rect,
        levels=view.levels,
        chunk_size=view.tile_size,
        shape=view.shape,
        channels=tuple(view.run.channel(c) for c in told),
    )


def _chunk(gateway: Gateway, view: CanvasView, numbers: list[int], if_none_match: str | None) -> Response:
    level, t, c, z, row, col = numbers
    plane, key = view.plane(t, c, z), view.key(level, row, col)
    tile = gateway.tile(view.run, plane, key)
    if tile is None:
        raise NotFoundError("no frame covers this chunk: it is full of the fill value")
    tag = caching.etag(view.run.run, view.run.epoch, tuple(plane), tuple(key), tile.rev, "zarr")
    if caching.matches(if_none_match, tag):
        return caching.not_modified(tag)
    body = np.ascontiguousarray(tile.pixels.astype(view.dtype, copy=False)).tobytes()
    headers = {"Content-Type": "application/octet-stream", "ETag": tag, "Cache-Control": caching.CACHE_CONTROL}
    return Response(body, headers=headers)
