"""Coverage masks as they lie in a tile row: nothing for a full tile, else packed bits, compressed.

Coverage is derived from placements and could be computed anew at any time. It is kept with the tile all the same,
because for a tile of the top level that would mean asking every placement under it, so the cost of showing the mosaic
would grow with the mosaic. Nearly every tile is fully covered and costs nothing here; the others, at the ragged edge
of the scan, cost some tens of bytes.

It does not know what a tile shows, or which frames cover it.

>>> import numpy as np
>>> mask = np.zeros((256, 256), bool)
>>> mask[:, :100] = True
>>> blob = coverage_pack(mask)
>>> bool((coverage_unpack(blob, 256) == mask).all())
True
>>> coverage_pack(np.ones((256, 256), bool)) is None
True
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from tilecast.errors import StoreError

# Masks are long runs of equal bytes: the fastest level is within a few bytes of the best.
_ZLIB_LEVEL = 1


def coverage_pack(mask: NDArray[np.bool_] | None) -> bytes | None:
    """The coverage of a tile as it is stored.

    Parameters
    ----------
    mask : ndarray of bool, shape (tile_size, tile_size), optional
        True where a placed frame covers the pixel; None says that all are.

    Returns
    -------
    bytes or None
        None for a fully covered tile; else the bits in row-major order, the first in the highest bit of the first
        byte, padded with zeros to whole bytes (NumPy's `packbits`), compressed with zlib.
    """
    if mask is None or bool(mask.all()):
        return None
    return zlib.compress(np.packbits(mask, axis=None).tobytes(), _ZLIB_LEVEL)


def coverage_bits(blob: bytes | None, tile_size: int) -> bytes | None:
    """The packed bits of a stored coverage, ⌈tile_size²/8⌉ bytes, as the `tile` query sends them; None for full.

    Raises
    ------
    StoreError
        If the bytes are not a mask of that tile size. No more than the expected size is ever decompressed.
    """
    if blob is None:
        return None
    expected_nbytes = -(-tile_size * tile_size // 8)
    stream = zlib.decompressobj()
    try:
        bits = stream.decompress(blob, expected_nbytes + 1)
    except zlib.error as error:
        raise StoreError(
            f"the coverage of a tile cannot be decompressed ({error}); run `tilecast fsck`, which can repair it"
        ) from error
    if len(bits) != expected_nbytes or not stream.eof:
        raise StoreError(
            f"the coverage of a tile should hold {expected_nbytes} bytes for {tile_size}×{tile_size} pixels and does "
            "not; run `tilecast fsck`, which can repair it"
        )
    return bits


def coverage_unpack(blob: bytes | None, tile_size: int) -> NDArray[np.bool_] | None:
    """The mask that `coverage_pack` was given.

    Returns
    -------
    ndarray of bool, shape (tile_size, tile_size), or None
        None for a fully covered tile. The array is new and belongs to the caller.

    Raises
    ------
    StoreError
        As `coverage_bits`.
    """
    bits = coverage_bits(blob, tile_size)
    if bits is None:
        return None
    flat = np.unpackbits(np.frombuffer(bits, np.uint8), count=tile_size * tile_size)
    return flat.reshape(tile_size, tile_size).astype(np.bool_)
