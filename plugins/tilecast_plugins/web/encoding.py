"""From a picture to bytes: PNG, JPEG and WebP by Pillow; raw pixels; and which content type each has.

Clients insist on their content types exactly: `image/jpeg`, never `image/jpg`, nothing behind it.

>>> CONTENT_TYPES["jpg"]
'image/jpeg'
"""

from __future__ import annotations

import io
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PictureFormat: TypeAlias = Literal["png", "jpg", "webp"]

CONTENT_TYPES: Final = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "pzf": "application/x-pzf",
    "raw": "application/octet-stream",
}

PICTURES: Final = ("png", "jpg", "webp")
TRANSPARENT: Final = frozenset({"png", "webp"})
"""Formats that know transparency."""

DEFAULT_QUALITY: Final = 85
_Z_RLE: Final = 3  # zlib's number of that strategy
MAX_SIDE: Final = {"png": 1 << 20, "jpg": 65_500, "webp": 16_383}
"""Longest side that a format can hold, pixels."""


def encode(picture: NDArray[np.uint8], fmt: str, quality: int = DEFAULT_QUALITY) -> bytes:
    """A picture as a file.

    Parameters
    ----------
    picture : ndarray of uint8, shape (rows, cols) or (rows, cols, 2, 3 or 4)
        Grey, grey and alpha, RGB, RGBA; no alpha for `jpg`.
    fmt : {"png", "jpg", "webp"}
    quality : int
        0..100, for `jpg` and `webp`.
    """
    file = io.BytesIO()
    image = Image.fromarray(picture)
    if fmt == "jpg":
        image.save(file, "JPEG", quality=max(1, quality))
    elif fmt == "png":
        # Runs and Huffman codes only: of camera pixels that is smaller than what a search for repeats finds, and 25 %
        # quicker.
        image.save(file, "PNG", compress_level=1, compress_type=_Z_RLE)
    elif fmt == "webp":
        # Its fastest method: tiles are made while somebody waits.
        image.convert("RGBA" if image.mode == "LA" else "RGB" if image.mode == "L" else image.mode).save(
            file, "WEBP", quality=quality, method=0
        )
    else:
        raise ValueError(f"pictures are {', '.join(PICTURES)}; got {fmt!r}")
    return file.getvalue()


def resized(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture of so many rows and columns; each of its pixels is the mean of those that lie under it."""
    if picture.shape[:2] == size:
        return picture
    found: NDArray[np.uint8] = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BOX))
    return found


def raw(pixels: NDArray[Any], coverage: NDArray[np.bool_] | None, *, with_mask: bool) -> bytes:
    """Pixels row-major and little-endian; then, if asked for, a byte for each: 1 where it is covered, else 0."""
    little = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
    data = np.ascontiguousarray(little).tobytes()
    if not with_mask:
        return data
    mask = np.ones(pixels.shape, np.uint8) if coverage is None else coverage.astype(np.uint8)
    return data + mask.tobytes()
