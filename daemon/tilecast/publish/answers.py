"""What viewers ask of a run, answered from its store: pure functions of a reader and a checked query.

Each takes a `TileReader` and the arguments of the query and gives the values of the reply's header and its payload.
Nothing is remembered between two questions. Not known here: sockets, threads, who asks, and the daemon that may be
writing the run meanwhile; a reader gives one consistent instant per call, and a region says which `rev` it is of.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilecast.geometry import Canvas, PlaneKey, Rect, TileKey
from tilecast.store.coverage import coverage_bits, coverage_unpack
from tilecast.store.tile_store import RunInfo, TileReader, TileStamp
from tilecast_protocol import pzf
from tilecast_protocol.errors import QueryError
from tilecast_protocol.messages import Buffer


class Answer(NamedTuple):
    """Values for the header of a reply, and its payload."""

    values: dict[str, Any]
    payload: tuple[Buffer, ...] = ()


class Region(NamedTuple):
    """Pixels of one level.

    Attributes
    ----------
    pixels : ndarray, shape of the bounds
    coverage : ndarray of bool, same shape
    rev : int
        Highest rev of the tiles in it, 0 for none.
    """

    pixels: NDArray[Any]
    coverage: NDArray[np.bool_]
    rev: int


def run_summary(info: RunInfo, nbytes: int) -> dict[str, Any]:
    """One line of `runs`."""
    start = info.header
    return {
        "run": info.run,
        "name": info.name,
        "instrument": info.instrument,
        "stream": info.stream,
        "state": info.state,
        "shape": start.get("shape"),
        "dtype": start.get("dtype"),
        "px_um": start.get("px_um"),
        "planes": [list(plane) for plane in info.bboxes],
        "levels": info.levels,
        "tile_size": info.settings.get("tile_size"),
        "bbox": list(info.bbox),
        "rev": info.rev,
        "epoch": info.epoch,
        "frames": info.n_placements,
        "bytes": nbytes,
        "created_ns": info.created_ns,
        "replay_of": start.get("replay_of"),
    }


def run_details(info: RunInfo, nbytes: int) -> dict[str, Any]:
    """The answer to `run`: what `start` said, what it was resolved to, and how the mosaic stands."""
    return run_summary(info, nbytes) | {
        "start": info.header,
        "settings": info.settings,
        "canvas": None if info.canvas is None else canvas_dict(info.canvas),
        "bboxes": [[list(plane), list(rect)] for plane, rect in info.bboxes.items()],
        "report": info.report,
        "revision": info.revision,
    }


def canvas_dict(canvas: Canvas) -> dict[str, Any]:
    """A canvas as viewers get it: level-0 pixels, half-open."""
    return {"bounds": list(canvas.rect), "levels": canvas.levels, "fixed": canvas.fixed}


def snapshot(reader: TileReader, query: dict[str, Any], max_tiles: int) -> Answer:
    """A page of all tiles with their revs."""
    after = None
    if query["after"] is not None:
        t, c, z, level, row, col = query["after"]
        after = (PlaneKey(t, c, z), TileKey(level, row, col))
    plane = None if query["tcz"] is None else PlaneKey(*query["tcz"])
    page = reader.snapshot(plane, query["level"], after=after, limit=min(query["limit"], max_tiles))
    return Answer(
        {"epoch": page.epoch, "rev": page.rev, "tiles": [_stamp(stamp) for stamp in page.tiles], "more": page.more}
    )


def changes(reader: TileReader, query: dict[str, Any], max_tiles: int) -> Answer:
    """What is newer than a rev, or that the asker's history is not this one."""
    found = reader.changes(query["since"], epoch=query["epoch"], limit=min(query["limit"], max_tiles))
    if found.resync:
        return Answer({"resync": True, "epoch": found.epoch})
    return Answer(
        {
            "resync": False,
            "epoch": found.epoch,
            "tiles": [_stamp(stamp) for stamp in found.tiles],
            "gone": [_stamp(stamp) for stamp in found.gone],
            "upto": found.upto,
            "more": found.more,
        }
    )


def tile(reader: TileReader, query: dict[str, Any]) -> Answer:
    """One tile as stored, with its coverage."""
    plane, key = PlaneKey(*query["tcz"]), TileKey(query["level"], query["row"], query["col"])
    if query["if_newer"] is not None:
        rev = reader.tile_rev(plane, key)
        if rev is not None and rev <= query["if_newer"]:
            return Answer({"not_modified": True, "rev": rev})
    stored = reader.tile(plane, key)
    if stored is None:
        return Answer({"absent": True})
    if stored.coverage is None:
        return Answer({"rev": stored.rev, "coverage": "full"}, (stored.pzf,))
    size = int(reader.info().settings["tile_size"])
    bits = coverage_bits(stored.coverage, size)
    assert bits is not None, "only a full tile has no bits"
    return Answer({"rev": stored.rev, "coverage": "mask"}, (stored.pzf, bits))


def region(reader: TileReader, query: dict[str, Any], max_pixels: int, max_tiles: int) -> Answer:
    """One array assembled from tiles, and its coverage."""
    info = reader.info()
    bounds = Rect(*query["bounds"])
    check_region(info, query["level"], bounds, max_pixels, max_tiles)
    found = read_region(reader, info, PlaneKey(*query["tcz"]), query["level"], bounds, fill=query["fill"])
    as_pzf = query["codec"] == "pzf"
    payload: list[Buffer] = [pzf.encode_image(found.pixels) if as_pzf else found.pixels.data.cast("B")]
    full = bool(found.coverage.all())
    if not full:
        payload.append(np.packbits(found.coverage).tobytes())
    values = {
        "shape": list(found.pixels.shape),
        "dtype": info.header["dtype"],
        "codec": query["codec"],
        "coverage": "full" if full else "mask",
        "epoch": info.epoch,
        "rev": found.rev,
    }
    return Answer(values, tuple(payload))


def placements(reader: TileReader, query: dict[str, Any], unplaced: dict[str, Any] | None, max_rows: int) -> Answer:
    """A page of where frames lie and how that is known; on the last page, which have no place yet.

    Parameters
    ----------
    unplaced : dict of str to list of (first, last), optional
        Frames without a place, by the reason; None takes what the last report said.
    """
    info = reader.info()
    limit = min(query["limit"], max_rows)
    rows = list(islice(reader.placements(query["since"], after=query["after"]), limit + 1))
    more = len(rows) > limit
    values: dict[str, Any] = {
        "epoch": info.epoch,
        "rev": info.rev,
        "placements": [row.told for row in rows[:limit]],
        "more": more,
    }
    if not more:
        by_reason = unplaced if unplaced is not None else (info.report or {}).get("unplaced", {})
        values["unplaced"] = [
            {"why": why, "frames": [list(pair) for pair in ranges]} for why, ranges in by_reason.items()
        ]
    return Answer(values)


def check_region(info: RunInfo, level: int, bounds: Rect, max_pixels: int, max_tiles: int) -> None:
    """Refuse a region that is too large or of a level that is not there; before anything is allocated.

    Raises
    ------
    QueryError
    """
    if level >= max(1, info.levels):
        raise QueryError("malformed", f"the run has levels 0 to {max(0, info.levels - 1)}; asked for {level}")
    pixels = bounds.height * bounds.width
    if pixels > max_pixels:
        raise QueryError(
            "too-large",
            f"a region may have {max_pixels} pixels (viewers.max_region_pixels), this one has {pixels}: "
            "ask for a higher level, or in parts",
        )
    size = int(info.settings["tile_size"])
    n_tiles = (-(-bounds.row1 // size) - bounds.row0 // size) * (-(-bounds.col1 // size) - bounds.col0 // size)
    if n_tiles > max_tiles:
        raise QueryError(
            "too-large",
            f"a region may touch {max_tiles} tiles (viewers.max_snapshot_tiles), this one touches {n_tiles}: "
            "ask for a higher level, or in parts",
        )


def read_region(
    reader: TileReader, info: RunInfo, plane: PlaneKey, level: int, bounds: Rect, *, fill: float | None = None
) -> Region:
    """Assemble pixels of one level from tiles.

    Parameters
    ----------
    bounds : Rect
        In pixels of that level, signed; any part of it may lie where nothing is.
    fill : float, optional
        Value of uncovered pixels; 0, or NaN in f4, if not given. Clipped to what the type holds.
    """
    dtype = np.dtype(info.header["dtype"])
    size = int(info.settings["tile_size"])
    pixels = np.full((bounds.height, bounds.width), _fill(fill, dtype), dtype)
    coverage = np.zeros(pixels.shape, np.bool_)
    rev = 0
    for row in range(bounds.row0 // size, -(-bounds.row1 // size)):
        for col in range(bounds.col0 // size, -(-bounds.col1 // size)):
            key = TileKey(level, row, col)
            stored = reader.tile(plane, key)
            if stored is None:
                continue
            rev = max(rev, stored.rev)
            rect = key.rect(size)
            part = rect.intersect(bounds)
            inside = np.s_[part.row0 - rect.row0 : part.row1 - rect.row0, part.col0 - rect.col0 : part.col1 - rect.col0]
            target = np.s_[
                part.row0 - bounds.row0 : part.row1 - bounds.row0, part.col0 - bounds.col0 : part.col1 - bounds.col0
            ]
            values = pzf.decode_image(stored.pzf, shape=(size, size), dtype=info.header["dtype"])[inside]
            mask = coverage_unpack(stored.coverage, size)
            if mask is None:
                pixels[target] = values
                coverage[target] = True
            else:
                np.copyto(pixels[target], values, where=mask[inside])
                coverage[target] = mask[inside]
    return Region(pixels, coverage, rev)


def _fill(fill: float | None, dtype: np.dtype[Any]) -> float:
    if dtype.kind == "f":
        return float("nan") if fill is None else fill
    limits = np.iinfo(dtype)
    wanted = 0.0 if fill is None or fill != fill else fill  # NaN means nothing to an integer
    return int(min(max(wanted, limits.min), limits.max))


def _stamp(stamp: TileStamp) -> list[int]:
    return [*stamp.plane, *stamp.key, stamp.rev]
