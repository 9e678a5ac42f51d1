"""The documents of OME-Zarr, 0.4 (Zarr 2) and 0.5 (Zarr 3): one code for the live gateway and for exported files.

An image has the axes t, c, z, y, x, one array per level, and square chunks. `Image` is what the documents need to know
of it; pixels, chunks and where they come from are the business of others.

Coordinates. A pixel's position is that of its centre, in stage micrometres: that of level 0 is
(index + ½) · pixel size, and the mean of 2^ℓ pixels lies (2^ℓ − 1)/2 pixels further. A flipped axis has a negative
scale. Rotation, shear and exchanged axes cannot be said in these versions of OME-Zarr: then scale is the length of a
pixel's step along each axis, positions are the mosaic's own (unrotated), and the whole affine stands in the attribute
``tilecast``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tilecast.reading import Rect
from tilecast_plugins.run import Channel, Run

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A mosaic, or a part of it, as an image of OME-Zarr.

    Attributes
    ----------
    run : Run
        What it is of.
    rect : Rect
        What it shows, level-0 pixels.
    levels : int
        How many arrays it has.
    chunk_size : int
        Edge of a chunk, pixels.
    shape : (t, c, z)
        How many of each.
    channels : tuple of Channel
        Those that are told; empty for none.
    fill : float, optional
        What is not covered; 0, or NaN in floats, if not given.
    gzip_level : int, optional
        With which level chunks are compressed; not at all if not given.
    """

    run: Run
    rect: Rect
    levels: int
    chunk_size: int
    shape: tuple[int, int, int]
    channels: tuple[Channel, ...]
    fill: float | None = None
    gzip_level: int | None = None

    @property
    def name(self) -> str:
        """For people."""
        return self.run.name or self.run.run

    @property
    def dtype(self) -> str:
        """``|u1``, ``<u2`` or ``<f4``."""
        return self.run.dtype.newbyteorder("<").str

    def size(self, level: int) -> tuple[int, int]:
        """Rows and columns of a level; a pixel that lies only partly inside counts."""
        return -(-self.rect.height >> level), -(-self.rect.width >> level)


def group_document(image: Image, version: str, windows: list[Window]) -> Document:
    """The attributes of the image: ``.zattrs`` of 0.4, and what stands under ``attributes`` in 0.5.

    Parameters
    ----------
    windows : list of (low, high)
        Grey levels to show as black and white, of each of the image's channels; empty leaves them out.
    """
    multiscale: Document = {
        "name": image.name,
        "type": "mean",
        "axes": AXES,
        "datasets": [
            {"path": str(level), "coordinateTransformations": transformations(image, level)}
            for level in range(image.levels)
        ],
        "metadata": {"method": "mean of the covered pixels of each 2 × 2, ties to even"},
    }
    omero = {"omero": omero_document(image, windows)} if windows else {}
    extra = {
        "tilecast": {
            "run": image.run.run,
            "epoch": image.run.epoch,
            "canvas": list(image.rect),
            "affine_um": [list(row) for row in image.run.affine],
        }
    }
    if version == "0.4":
        return {"multiscales": [{"version": "0.4", **multiscale}]} | omero | extra
    return {"ome": {"version": "0.5", "multiscales": [multiscale]} | omero} | extra


def transformations(image: Image, level: int) -> list[Document]:
    """Scale and translation of a level, (t, c, z, y, x), y and x in micrometres; of pixel centres."""
    scale_y, scale_x = image.run.steps_um
    factor, centre = 2**level, 2**level / 2
    row0, col0 = image.rect.row0, image.rect.col0
    return [
        {"type": "scale", "scale": [1.0, 1.0, 1.0, scale_y * factor, scale_x * factor]},
        {"type": "translation", "translation": [0.0, 0.0, 0.0, (row0 + centre) * scale_y, (col0 + centre) * scale_x]},
    ]


def omero_document(image: Image, windows: list[Window]) -> Document:
    """How to show the channels: names, colours, and windows within what the pixel type holds."""
    channels = []
    for channel, (low, high) in zip(image.channels, windows, strict=True):
        least, most = {"|u1": (0.0, 255.0), "<u2": (0.0, 65535.0)}.get(image.dtype, (low, high))
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
    return {"name": image.name, "channels": channels, "rdefs": {"defaultT": 0, "defaultZ": 0, "model": model}}


def array_shape(image: Image, level: int) -> list[int]:
    """Shape of the array of a level, (t, c, z, y, x)."""
    return [*image.shape, *image.size(level)]


def group_files(image: Image, version: str, windows: list[Window]) -> dict[str, Document]:
    """The documents of the image itself, by the name of the file."""
    attributes = group_document(image, version, windows)
    if version == "0.4":
        return {".zgroup": {"zarr_format": 2}, ".zattrs": attributes}
    return {"zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": attributes}}


def array_file(image: Image, version: str, level: int) -> tuple[str, Document]:
    """The name of the file that describes the array of a level, and the document."""
    if version == "0.4":
        return ".zarray", zarray_document(image, level)
    return "zarr.json", array_document(image, level)


def zarray_document(image: Image, level: int) -> Document:
    """``.zarray`` of a level, Zarr 2."""
    return {
        "zarr_format": 2,
        "shape": array_shape(image, level),
        "chunks": [1, 1, 1, image.chunk_size, image.chunk_size],
        "dtype": image.dtype,
        "compressor": None if image.gzip_level is None else {"id": "gzip", "level": image.gzip_level},
        "fill_value": fill_value(image),
        "order": "C",
        "filters": None,
        "dimension_separator": "/",
    }


def array_document(image: Image, level: int) -> Document:
    """``zarr.json`` of a level, Zarr 3."""
    codec: Document = {"name": "bytes"}
    if image.dtype != "|u1":
        codec["configuration"] = {"endian": "little"}
    codecs = [codec]
    if image.gzip_level is not None:
        codecs.append({"name": "gzip", "configuration": {"level": image.gzip_level}})
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": array_shape(image, level),
        "data_type": _ZARR3_TYPES[image.dtype],
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [1, 1, 1, image.chunk_size, image.chunk_size]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value(image),
        "codecs": codecs,
        "dimension_names": [axis["name"] for axis in AXES],
        "attributes": {},
    }


def fill_value(image: Image) -> float | str:
    """What a missing chunk is full of, as JSON says it."""
    is_float = image.dtype == "<f4"
    fill = image.fill if image.fill is not None else math.nan if is_float else 0
    if math.isnan(fill):
        return "NaN"
    return float(fill) if is_float else int(fill)


def chunk_path(version: str, level: int, t: int, c: int, z: int, row: int, col: int) -> str:
    """Where a chunk lies below the image."""
    return f"{level}/{'' if version == '0.4' else 'c/'}{t}/{c}/{z}/{row}/{col}"
