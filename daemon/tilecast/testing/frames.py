"""Frames that carry their own identity in their pixels, so that a mosaic can be asked which frame lies where.

That a frame has arrived proves little; that its pixels are where they should be proves placement. A self-describing
frame is paved with stamps of 8 × 8 pixels, each pixel one bit: a fixed first line to be found by, the number of the
frame, where in the frame this stamp is, and a checksum. Any piece of at least 15 × 15 pixels that one frame alone
covers holds a whole stamp, and `read` finds it without knowing where it was cut.

Where frames are blended, stamps become unreadable, unless both frames agree: that, too, is a result.

Examples
--------
>>> frame = describe(1234, (64, 96))
>>> sighting = read(frame[10:30, 21:50])[0]
>>> sighting.frame, sighting.corner
(1234, (-10, -21))
"""

from __future__ import annotations

import zlib
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

STAMP: Final = 8
"""Edge of a stamp in pixels."""

_SYNC: Final = 0b10110010  # it meets itself in no shift, so neighbours in a row are not mistaken for it often
_DARK_BRIGHT: Final[dict[str, tuple[float, float]]] = {"|u1": (20, 200), "<u2": (1000, 50000), "<f4": (0.25, 0.75)}


class Sighting(NamedTuple):
    """A stamp that was found.

    Attributes
    ----------
    frame : int
        Number of the frame it belongs to, modulo 2²⁴.
    frame_row, frame_col : int
        Where its first pixel is in that frame, modulo 2048.
    row, col : int
        Where it was found in the array.
    """

    frame: int
    frame_row: int
    frame_col: int
    row: int
    col: int

    @property
    def corner(self) -> tuple[int, int]:
        """Where the upper left pixel of the frame lies, in coordinates of the array."""
        return self.row - self.frame_row, self.col - self.frame_col


def describe(frame: int, shape: tuple[int, int], dtype: str = "<u2") -> NDArray[Any]:
    """Make the self-describing frame of this number.

    Parameters
    ----------
    frame : int
    shape : tuple of int
        Rows and columns; stamps that do not fit are cut off.
    dtype : {"|u1", "<u2", "<f4"}
    """
    rows, cols = -(-shape[0] // STAMP), -(-shape[1] // STAMP)
    stamps = np.empty((rows, cols, STAMP), np.uint8)
    for row in range(rows):
        for col in range(cols):
            stamps[row, col] = np.frombuffer(_stamp(frame, row, col), np.uint8)
    bits = np.unpackbits(stamps[..., None], axis=-1)  # rows, cols, line of the stamp, pixel of the line
    paved = bits.transpose(0, 2, 1, 3).reshape(rows * STAMP, cols * STAMP)[: shape[0], : shape[1]]
    dark, bright = _DARK_BRIGHT[dtype]
    return np.where(paved == 1, bright, dark).astype(dtype)


def read(pixels: NDArray[Any]) -> list[Sighting]:
    """Find every whole stamp in an array, from the top left to the bottom right.

    Parameters
    ----------
    pixels : ndarray, 2-D
        u1, u2 or f4, as `describe` made it; a mosaic, a tile, or any piece of one.
    """
    if pixels.shape[0] < STAMP or pixels.shape[1] < STAMP:
        return []
    dark, bright = _DARK_BRIGHT[np.dtype(pixels.dtype).newbyteorder("<").str]
    is_bright, is_legible = pixels == bright, (pixels == bright) | (pixels == dark)
    # lines[r, c]: the byte that the eight pixels from (r, c) on make, and whether all of them are legible
    n_cols = pixels.shape[1] - STAMP + 1
    lines = np.zeros((pixels.shape[0], n_cols), np.uint8)
    legible = np.ones((pixels.shape[0], n_cols), bool)
    for bit in range(STAMP):
        lines |= is_bright[:, bit : bit + n_cols].astype(np.uint8) << (STAMP - 1 - bit)
        legible &= is_legible[:, bit : bit + n_cols]
    found = []
    for row, col in np.argwhere((lines == _SYNC) & legible).tolist():
        if row + STAMP > pixels.shape[0] or not legible[row : row + STAMP, col].all():
            continue
        data = lines[row : row + STAMP, col].tobytes()
        frame = int.from_bytes(data[1:4], "big")
        if data == _stamp(frame, data[4], data[5]):
            found.append(Sighting(frame, data[4] * STAMP, data[5] * STAMP, row, col))
    return found


def _stamp(frame: int, row: int, col: int) -> bytes:
    """The eight lines of one stamp, a byte each."""
    content = bytes([_SYNC, *(frame & 0xFFFFFF).to_bytes(3, "big"), row & 0xFF, col & 0xFF])
    return content + (zlib.crc32(content) & 0xFFFF).to_bytes(2, "big")
