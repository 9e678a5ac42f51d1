"""How programs write images into a folder: at once under the last name, under another name first, bit by bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tilecast_protocol import pzf


def encoded(pixels: NDArray[Any], suffix: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    if suffix in (".tif", ".tiff", ".ome.tif"):
        tifffile.imwrite(file, pixels, ome=suffix == ".ome.tif", **options)
    elif suffix == ".png":
        Image.fromarray(pixels).save(file, "PNG")
    elif suffix == ".npy":
        np.save(file, pixels)
    else:
        assert suffix == ".pzf", suffix
        file.write(pzf.encode_image(pixels))
    return file.getvalue()


def write_renamed(path: Path, data: bytes) -> None:
    """Under a name that nobody reads, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.rename(path)
