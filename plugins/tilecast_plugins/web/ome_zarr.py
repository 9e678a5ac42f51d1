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

Coordinates. A pixel's position is that of its centre, in stage micrometres: that of level 0 is
(index + ½) · pixel size, and the mean of 2^ℓ pixels lies (2^ℓ − 1)/2 pixels further. A flipped axis has a negative
scale. Rotation, shear and exchanged axes cannot be said in these versions of OME-Zarr: then scale is the length of a
pixel's step along each axis, positions are the mosaic's own (unrotated), and the whole affine stands in the attribute
``tilecast``.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.responses import Response

from tilecast_plugins.web import caching
from tilecast_plugins.web.canvas_view import CanvasView
from tilecast_plugins.web.documents import IfNoneMatch, json_document
from tilecast_plugins.web.gateway import BadRequestError, Gateway, NotFoundError

VERSIONS = ("0.4", "0.5")

#: Of how many channels the windows and colours are told.
MAX_OMERO_CHANNELS = 64

AXES: list[dict[str, str]] = [
    {"name": "t", "type": "time"},
    {"name": "c", "type": "channel"},
    {"name": "z", "type": "space"},
    {"name": "y", "type": "space", "unit": "micrometer"},
    {"name": "x", "type": "space", "unit": "micrometer"},
]

Window = tuple[float, float]
Document = dict[str, Any]

_ZARR3_TYPES = {"|u1": "uint8", "<u2": "uint16", "<f4": "float32"}


def group_document(view: CanvasView, version: str, windows: list[Window]) -> Document:
    """The attributes of the image: ``.zattrs`` of 0.4, and what stands under ``attributes`` in 0.5.

    Parameters
    ----------
    windows : list of (low, high)
        Grey levels to show as black and white, per channel; empty leaves the channels out.
    """
    multiscale: Document = {
        "name": view.run.name or view.run.run,
        "type": "mean",
        "axes": AXES,
        "datasets": [
            {"path": str(level), "coordinateTransformations": transformations(view, level)}
            for level in range(view.levels)
        ],
        "metadata": {"method": "mean of the covered pixels of each 2 × 2, ties to even"},
    }
    omero = {"omero": omero_document(view, windows)} if windows else {}
    extra = {
        "tilecast": {
            "run": view.run.run,
            "epoch": view.run.epoch,
            "canvas": list(view.canvas.rect),
            "affine_um": [list(row) for row in view.run.affine],
        }
    }
    if version == "0.4":
        return {"multiscales": [{"version": "0.4", **multiscale}]} | omero | extra
    return {"ome": {"version": "0.5", "multiscales": [multiscale]} | omero} | extra


def transformations(view: CanvasView, level: int) -> list[Document]:
    """Scale and translation of a level, (t, c, z, y, x), y and x in micrometres; of pixel centres."""
    scale_y, scale_x = view.steps_um
    factor, centre = 2**level, 2**level / 2
    row0, col0 = view.canvas.rect.row0, view.canvas.rect.col0
    return [
        {"type": "scale", "scale": [1.0, 1.0, 1.0, scale_y * factor, scale_x * factor]},
        {"type": "translation", "translation": [0.0, 0.0, 0.0, (row0 + centre) * scale_y, (col0 + centre) * scale_x]},
    ]


def omero_document(view: CanvasView, windows: list[Window]) -> Document:
    """How to show the channels: names, colours, and windows within what the pixel type holds."""
    channels = []
    for c, (low, high) in enumerate(windows):
        channel = view.channel(c)
        least, most = {"|u1": (0.0, 255.0), "<u2": (0.0, 65535.0)}.get(view.dtype, (low, high))
        channels.append(
            {
                "label": channel.label,
                "color": channel.color,
                "active": True,
                "coefficient": 1.0,
                "family": "linear",
                "inverted": False,
                "window": {"start": low, "end": high, "min": least, "max": most},
            }
        )
    model = "greyscale" if len(channels) == 1 else "color"
    return {
        "name": view.run.name or view.run.run,
        "channels": channels,
        "rdefs": {"defaultT": 0, "defaultZ": 0, "model": model},
    }


def array_shape(view: CanvasView, level: int) -> list[int]:
    """Shape of the array of a level, (t, c, z, y, x)."""
    return [*view.shape, *view.size(level)]


def zarray_document(view: CanvasView, level: int) -> Document:
    """``.zarray`` of a level, Zarr 2."""
    return {
        "zarr_format": 2,
        "shape": array_shape(view, level),
        "chunks": [1, 1, 1, view.tile_size, view.tile_size],
        "dtype": view.dtype,
        "compressor": None,
        "fill_value": fill_value(view),
        "order": "C",
        "filters": None,
        "dimension_separator": "/",
    }


def array_document(view: CanvasView, level: int) -> Document:
    """``zarr.json`` of a level, Zarr 3."""
    codec: Document = {"name": "bytes"}
    if view.dtype != "|u1":
        codec["configuration"] = {"endian": "little"}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": array_shape(view, level),
        "data_type": _ZARR3_TYPES[view.dtype],
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [1, 1, 1, view.tile_size, view.tile_size]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value(view),
        "codecs": [codec],
        "dimension_names": [axis["name"] for axis in AXES],
        "attributes": {},
    }


def fill_value(view: CanvasView) -> int | str:
    """What a missing chunk is full of, as JSON says it."""
    return "NaN" if view.dtype == "<f4" else 0


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
    if version not in VERSIONS:
        raise BadRequestError(f"versions of OME-Zarr are {' and '.join(VERSIONS)}; asked for {version[:40]!r}")
    view = CanvasView.of(gateway.run(run, epoch))
    chunk = _CHUNKS[version].fullmatch(path) if path.isascii() else None
    if chunk:
        return _chunk(gateway, view, [int(number) for number in chunk.groups()], if_none_match)
    is_old = version == "0.4"
    if path == (".zattrs" if is_old else "zarr.json"):
        _, n_channels, _ = view.shape
        told = range(n_channels) if n_channels <= MAX_OMERO_CHANNELS else ()
        attributes = group_document(view, version, [gateway.window(view.run, c) for c in told])
        if is_old:
            return json_document(attributes, if_none_match)
        return json_document({"zarr_format": 3, "node_type": "group", "attributes": attributes}, if_none_match)
    if is_old and path == ".zgroup":
        return json_document({"zarr_format": 2}, if_none_match)
    array = _ARRAY.fullmatch(path) if path.isascii() else None
    if array and int(array[1]) < view.levels and (array[2] == ".zarray") == is_old and str(int(array[1])) == array[1]:
        level = int(array[1])
        return json_document(zarray_document(view, level) if is_old else array_document(view, level), if_none_match)
    raise NotFoundError(f"there is no {path[:200]!r} in this image")


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
