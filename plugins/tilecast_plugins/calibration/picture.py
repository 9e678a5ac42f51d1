"""Pictures of calibration images for people: panels side by side, each with a title and a scale of grey.

>>> import tempfile
>>> target = Path(tempfile.mkdtemp()) / "flat.png"
>>> draw(target, [Panel("relative illumination", np.linspace(0.7, 1.2, 64 * 64).reshape(64, 64))])
>>> target.read_bytes()[1:4]
b'PNG'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_EDGE: Final = 384  # pixels of a panel's longer side
_MARGIN: Final = 16
_SCALE: Final = 14  # thickness of the scale
_LINE: Final = 16  # height of a line of text


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """An image to be shown.

    Attributes
    ----------
    title : str
    image : ndarray, 2-D
    window : (float, float) or None
        What is black and what is white; if not given, the smallest and the largest value.
    """

    title: str
    image: NDArray[Any]
    window: tuple[float, float] | None = None


def draw(target: Path, panels: Sequence[Panel]) -> None:
    """Write the panels as one PNG."""
    shape = panels[0].image.shape
    step = max(1, -(-max(shape) // _EDGE))
    height, width = (-(-size // step) for size in shape)
    width_of_all = len(panels) * (max(width, 160) + _MARGIN) + _MARGIN
    canvas = Image.new("L", (width_of_all, height + 3 * _MARGIN + 2 * _LINE + _SCALE), 255)
    pen = ImageDraw.Draw(canvas)
    for number, panel in enumerate(panels):
        left, top = _MARGIN + number * (max(width, 160) + _MARGIN), _MARGIN
        low, high = panel.window or (float(np.nanmin(panel.image)), float(np.nanmax(panel.image)))
        span = (high - low) or 1.0
        shown = np.clip((_binned(panel.image, step) - low) / span, 0, 1)
        pen.text((left, top), panel.title, fill=0)
        canvas.paste(Image.fromarray((255 * np.nan_to_num(shown)).astype(np.uint8)), (left, top + _LINE))
        bottom = top + _LINE + height + _MARGIN // 2
        ramp = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8), (_SCALE, width))
        canvas.paste(Image.fromarray(np.ascontiguousarray(ramp)), (left, bottom))
        pen.rectangle((left, bottom, left + width - 1, bottom + _SCALE - 1), outline=0)
        pen.text((left, bottom + _SCALE + 1), f"{low:.4g}", fill=0)
        text = f"{high:.4g}"
        pen.text((left + width - pen.textlength(text), bottom + _SCALE + 1), text, fill=0)
    canvas.save(target, format="PNG")


def _binned(image: NDArray[Any], step: int) -> NDArray[np.float64]:
    """The mean of each square of pixels; those at the edges may be smaller."""
    rows, cols = (np.arange(0, size, step) for size in image.shape)
    sums = np.add.reduceat(np.add.reduceat(image.astype(np.float64), rows, 0), cols, 1)
    counts = np.outer(np.diff([*rows, image.shape[0]]), np.diff([*cols, image.shape[1]]))
    binned: NDArray[np.float64] = sums / counts
    return binned
