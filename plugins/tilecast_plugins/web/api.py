"""`/api/v1`: runs, tiles, regions, values, histograms, changes and orders, for our own page and for programs.

Indices are signed and fixed to stage (0, 0); rows come before columns, rectangles are half-open, levels count from full
resolution, positions are in level-0 pixel edges or in stage µm. Described in OpenAPI at `/api/v1/openapi.json`.

Tiles, which are asked for hundreds of times a second, are parsed by hand; the rest leaves that to FastAPI.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.responses import Response

from tilecast.reading import PlaneKey, Rect, TileKey, rect_at_level
from tilecast_plugins.pixels import Histogram
from tilecast_plugins.run import Run
from tilecast_plugins.web import caching, encoding, rendering
from tilecast_plugins.web.gateway import AbsentTileError, BadRequestError, Gateway, NotFoundError, TooLargeError
from tilecast_plugins.web.looks import MAX_CHANNELS, wanted_look
from tilecast_plugins.web.rendering import Look
from tilecast_plugins.web.sources import UnreadableRun

MAX_INDEX = 2**31 - 1
MAX_LEVEL = 40
TILE_FORMATS = ("png", "jpg", "webp", "pzf", "raw")

_THUMBNAIL_SIDE = 320
_HISTOGRAM_PIXELS = 1 << 20

RunId = Annotated[
    str,
    Path(
        description="The run's UUID.",
        pattern="^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
    ),
]
Index = Annotated[int, Query(ge=-MAX_INDEX, le=MAX_INDEX)]
OptionalIndex = Annotated[int | None, Query(ge=-MAX_INDEX, le=MAX_INDEX)]
PlaneIndex = Annotated[int, Query(ge=0, le=MAX_INDEX)]
Level = Annotated[int, Query(ge=0, le=MAX_LEVEL)]
OptionalLevel = Annotated[int | None, Query(ge=0, le=MAX_LEVEL)]
Coordinate = Annotated[float, Query(ge=-MAX_INDEX, le=MAX_INDEX, allow_inf_nan=False)]
Channels = Annotated[
    str, Query(pattern=r"^\d{1,9}(,\d{1,9}){0,15}$", description="A channel, or several with commas between, mixed.")
]


@dataclass(frozen=True, slots=True)
class Shown:
    """Which planes a request is about, and what it says of how to show them.

    Attributes
    ----------
    t, z : int
    c : str
        A channel, or several with commas between.
    """

    request: Request
    t: PlaneIndex = 0
    c: Channels = "0"
    z: PlaneIndex = 0

    @property
    def channels(self) -> list[int]:
        """The channels as numbers."""
        return parse_channels(self.c)

    @property
    def planes(self) -> list[PlaneKey]:
        """A plane for each channel."""
        return [PlaneKey(self.t, c, self.z) for c in self.channels]

    def look(self, gateway: Gateway, run: Run) -> Look:
        """How a picture of them looks; blocking."""
        return wanted_look(self.request.query_params, len(self.channels)).of(gateway, run, self.channels)

    @property
    def quality(self) -> int:
        """For jpg and webp."""
        return parse_quality(self.request.query_params)

    @property
    def if_none_match(self) -> str | None:
        """The header of that name."""
        return self.request.headers.get("if-none-match")


WhatIsShown = Annotated[Shown, Depends()]


class Problem(BaseModel):
    """A refusal: one sentence that says what to do."""

    detail: str


class NewName(BaseModel):
    """A run's new name."""

    name: str = Field(max_length=500)


class NewNote(BaseModel):
    """A note to be written into a run."""

    text: str = Field(min_length=1, max_length=10_000)


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": description}
    for status, description in (
        ("4XX", "What is wrong with the request"),
        ("5XX", "Why it cannot be answered now"),
    )
}
_NUMBER = r"-?\d{1,12}(\.\d{1,12})?"
_COLOR = "([0-9a-fA-F]{6}|" + "|".join(rendering.COLORS) + ")"


def _parameter(name: str, schema: dict[str, Any], text: str, where: str = "query") -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": schema, "description": text}


def _matching(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^{pattern}$"}


_FLAG = {"type": "string", "enum": ["0", "1", "false", "true"]}
_LOOK_PARAMETERS = [
    _parameter("min", _matching(f"{_NUMBER}(,{_NUMBER}){{0,15}}"), "Black points: one, or one for each channel."),
    _parameter("max", _matching(f"{_NUMBER}(,{_NUMBER}){{0,15}}"), "White points; left out, both are from the data."),
    _parameter("gamma", {"type": "number", "minimum": 0.01, "maximum": 100}, "1 changes nothing."),
    _parameter("contrast", {"type": "number", "minimum": 0, "maximum": 1000}, "1 changes nothing."),
    _parameter("brightness", {"type": "number", "minimum": -100, "maximum": 100}, "Percent."),
    _parameter("invert", _FLAG, "Black for white."),
    _parameter("cmap", {"type": "string", "enum": sorted(rendering.MAPS)}, "A colour map, for one channel."),
    _parameter("color", _matching(f"{_COLOR}(,{_COLOR}){{0,15}}"), "One colour for each channel."),
    _parameter("background", _matching(_COLOR), "Uncovered pixels where the format knows no transparency."),
    _parameter("quality", {"type": "integer", "minimum": 1, "maximum": 100}, "For jpg and webp."),
]
_MASK_PARAMETER = _parameter("mask", _FLAG, "Coverage follows the pixels of `raw`, a byte each.")
_TILE_MASK_PARAMETER = _parameter(
    "mask",
    _FLAG,
    "Coverage follows the pixels of `raw`, a byte each, and the record of `pzf`, a bit each, row-major, the first in "
    "the highest bit, if `X-Tilecast-Coverage` is `mask`.",
)


def router(gateway: Gateway) -> APIRouter:
    """All of `/api/v1` but events."""
    api = APIRouter(prefix="/api/v1", responses=REFUSALS)
    _add_tiles(api, gateway)
    _add_runs(api, gateway)
    _add_pixels(api, gateway)
    _add_orders(api, gateway)
    return api


# ---- tiles: the hot path ------------------------------------------------------------------------------------------


def _add_tiles(api: APIRouter, gateway: Gateway) -> None:
    @api.get(
        "/runs/{run}/tiles/{epoch}/{t}/{c}/{z}/{level}/{row}/{name}",
        response_class=Response,
        summary="A tile",
        responses={
            200: {"description": "The tile", "content": {kind: {} for kind in encoding.CONTENT_TYPES.values()}},
            304: {"description": "What you have still holds"},
        },
        openapi_extra={"parameters": _tile_parameters()},
    )
    async def tile(request: Request) -> Response:
        """One tile, signed indices; `rev` may stand in the URL and means nothing.

        404 where nothing is covered, and under an epoch that is over. PNG and WebP are transparent where nothing is
        covered, JPEG shows the background there; `raw` is the pixels, row-major and little-endian, with `mask=1`
        followed by a byte for each that says whether it is covered; `pzf` is the tile as stored, with `mask=1`
        followed by a bit for each if not all are covered. `X-Tilecast-Coverage` is `full`, `mask`, or, where nothing is
        covered, `none`.
        """
        if_none_match = request.headers.get("if-none-match")
        return await gateway.work(tile_answer, gateway, request.path_params, dict(request.query_params), if_none_match)


def _tile_parameters() -> list[dict[str, Any]]:
    whole = {"type": "integer", "minimum": 0, "maximum": MAX_INDEX}
    signed = {"type": "integer", "minimum": -MAX_INDEX, "maximum": MAX_INDEX}
    level = {"type": "integer", "minimum": 0, "maximum": MAX_LEVEL}
    name = _matching(r"-?\d{1,9}\.(png|jpg|webp|pzf|raw)")
    return [
        _parameter("run", {"type": "string", "format": "uuid"}, "The run's UUID.", "path"),
        _parameter("epoch", whole, "The run's epoch.", "path"),
        _parameter("t", whole, "Time.", "path"),
        _parameter("c", _matching(r"\d{1,9}(,\d{1,9}){0,15}"), "A channel, or several, mixed.", "path"),
        _parameter("z", whole, "Slice.", "path"),
        _parameter("level", level, "0 is full resolution.", "path"),
        _parameter("row", signed, "Signed.", "path"),
        _parameter("name", name, "Signed column, and format.", "path"),
        *_LOOK_PARAMETERS,
        _TILE_MASK_PARAMETER,
        _parameter("rev", {"type": "string"}, "Means nothing; it makes the URL another one."),
    ]


def tile_answer(
    gateway: Gateway, path: Mapping[str, str], query: Mapping[str, str], if_none_match: str | None
) -> Response:
    """The answer to the request for a tile; blocking. Raises what `access.refusal` knows."""
    col_text, _, fmt = path["name"].rpartition(".")
    if fmt not in TILE_FORMATS:
        raise NotFoundError(
            f"a tile's name is COLUMN.FORMAT, with {', '.join(TILE_FORMATS)}; got {path['name'][:40]!r}"
        )
    run = gateway.run(path["run"], _index("epoch", path["epoch"], 0))
    channels = parse_channels(path["c"])
    t, z = _index("t", path["t"], 0), _index("z", path["z"], 0)
    planes = [PlaneKey(t, c, z) for c in channels]
    key = TileKey(_index("level", path["level"], 0, MAX_LEVEL), _index("row", path["row"]), _index("column", col_text))
    if fmt in ("pzf", "raw"):
        if len(planes) > 1:
            raise BadRequestError(f"{fmt} holds one channel; ask for each")
        with_mask = query.get("mask") in ("1", "true")
        found = (_stored if fmt == "pzf" else _raw)(gateway, run, planes[0], key, with_mask, if_none_match)
    else:
        look = wanted_look(query, len(channels)).of(gateway, run, channels)
        found = gateway.tile_picture(
            run, planes, key, look, fmt, quality=parse_quality(query), if_none_match=if_none_match
        )
    if found is None:
        raise AbsentTileError("no frame covers anything of this tile")
    return found


def _stored(
    gateway: Gateway, run: Run, plane: PlaneKey, key: TileKey, with_mask: bool, if_none_match: str | None
) -> Response | None:
    if if_none_match is not None:
        rev = gateway.source.tile_rev(run, plane, key)
        tag = caching.etag(run.run, run.epoch, tuple(plane), tuple(key), rev, "pzf", with_mask)
        if rev is not None and caching.matches(if_none_match, tag):
            return caching.not_modified(tag)
    blob = gateway.source.tile(run, plane, key)
    if blob is None:
        return None
    tag = caching.etag(run.run, run.epoch, tuple(plane), tuple(key), blob.rev, "pzf", with_mask)
    headers = _headers(run, (run.tile_size, run.tile_size), blob.rev, tag, "pzf")
    headers["X-Tilecast-Coverage"] = "full" if blob.bits is None else "mask"
    return Response(blob.pzf + (blob.bits or b"" if with_mask else b""), headers=headers)


def _raw(
    gateway: Gateway, run: Run, plane: PlaneKey, key: TileKey, with_mask: bool, if_none_match: str | None
) -> Response | None:
    tile = gateway.pixels.tile(run, plane, key)
    if tile is None:
        return None
    tag = caching.etag(run.run, run.epoch, tuple(plane), tuple(key), tile.rev, "raw", with_mask)
    if caching.matches(if_none_match, tag):
        return caching.not_modified(tag)
    headers = _headers(run, tile.pixels.shape, tile.rev, tag, "raw")
    headers["X-Tilecast-Coverage"] = "full" if tile.coverage is None else "mask"
    return Response(encoding.raw(tile.pixels, tile.coverage, with_mask=with_mask), headers=headers)


def _headers(run: Run, shape: Sequence[int], rev: int, tag: str, fmt: str) -> dict[str, str]:
    return {
        "Content-Type": encoding.CONTENT_TYPES[fmt],
        "ETag": tag,
        "Cache-Control": caching.CACHE_CONTROL,
        "X-Tilecast-Dtype": run.dtype.str,
        "X-Tilecast-Shape": ",".join(str(side) for side in shape),
        "X-Tilecast-Rev": str(rev),
    }


def parse_channels(text: str) -> list[int]:
    """Channels from `0` or `0,2`."""
    parts = text.split(",")
    if len(parts) > MAX_CHANNELS:
        raise BadRequestError(f"at most {MAX_CHANNELS} channels can be mixed; got {len(parts)}")
    return [_index("a channel", part, 0) for part in parts]


def parse_quality(query: Mapping[str, str]) -> int:
    """The parameter `quality`."""
    text = query.get("quality")
    return encoding.DEFAULT_QUALITY if not text else _index("quality", text, 1, 100)


def _index(what: str, text: str, low: int = -MAX_INDEX, high: int = MAX_INDEX) -> int:
    """A whole number of a path."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 12) or not low <= int(text) <= high:
        raise NotFoundError(f"{what} is a whole number from {low} to {high}; got {text[:40]!r}")
    return int(text)


# ---- runs -----------------------------------------------------------------------------------------------------------


def _add_runs(api: APIRouter, gateway: Gateway) -> None:
    @api.get("/runs", summary="All runs, newest first")
    async def runs() -> JSONResponse:
        """Every run in one line; one that cannot be read at the moment has `error`."""
        found = await gateway.consult(gateway.source.runs)
        return JSONResponse(
            {"runs": [_unreadable(one) if isinstance(one, UnreadableRun) else summary(one) for one in found]}
        )

    @api.get("/runs/{run}", summary="One run")
    async def run_info(run: RunId) -> JSONResponse:
        """Everything about a run: geometry, planes, levels, canvas, channels, windows, state, report."""
        return JSONResponse(await gateway.consult(lambda: details(gateway, gateway.source.info(run.lower()))))

    @api.get("/runs/{run}/changes", summary="What changed since a rev")
    async def changes(
        run: RunId,
        since: Annotated[int, Query(ge=0, le=2**53)],
        epoch: Annotated[int | None, Query(ge=0, le=2**53)] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 4000,
    ) -> JSONResponse:
        """Tiles [t, c, z, level, row, col, rev] written and gone after the commit `since`; `resync`: begin anew."""
        found = await gateway.work(gateway.source.changes, run.lower(), since, epoch, limit)
        return JSONResponse(found._asdict())

    @api.get("/runs/{run}/placements", summary="Where frames lie")
    async def placements(
        run: RunId,
        since: Annotated[int, Query(ge=0, le=2**53)] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 4000,
    ) -> JSONResponse:
        """Frames placed after a rev, oldest change first; `more`: ask again with the last `rev`."""
        found, more = await gateway.work(gateway.source.placements, run.lower(), since, limit)
        return JSONResponse({"placements": [one._asdict() for one in found], "more": more})

    @api.get("/runs/{run}/holes", summary="What is missing")
    async def holes(run: RunId) -> JSONResponse:
        """Frames that never came, were refused, or have no place, as ranges [first, last]."""
        return JSONResponse(await gateway.consult(lambda: _holes(gateway.source.report(run.lower()))))

    @api.get("/runs/{run}/report", summary="The run report")
    async def report(run: RunId) -> JSONResponse:
        """The run's report as it stands; `final` once the run has ended."""
        return JSONResponse(_plain(await gateway.consult(gateway.source.report, run.lower())))

    @api.get("/runs/{run}/log", summary="The run's log")
    async def run_log(run: RunId, limit: Annotated[int, Query(ge=1, le=10_000)] = 1000) -> JSONResponse:
        """Events, notes and changes of epoch, oldest first."""
        return JSONResponse({"log": _plain(await gateway.consult(gateway.source.events, run.lower(), limit))})

    @api.get("/status", summary="How the daemon does")
    async def status() -> JSONResponse:
        """Statistics and health from the daemon; `daemon` is null where there is none, with the reason in `error`."""
        return JSONResponse(_plain(await gateway.consult(daemon_status, gateway)))


def summary(run: Run) -> dict[str, Any]:
    """One line of the list of runs."""
    return {
        "run": run.run,
        "name": run.name,
        "instrument": run.instrument,
        "stream": run.stream,
        "state": run.state,
        "epoch": run.epoch,
        "rev": run.rev,
        "levels": run.levels,
        "tile_size": run.tile_size,
        "dtype": run.dtype.str,
        "bbox": list(run.bbox),
        "pixel_size_um": list(run.pixel_size_um),
        "n_frames": run.n_frames,
        "created_ns": run.created_ns,
        "thumbnail": f"/api/v1/runs/{run.run}/thumbnail.jpg?rev={run.rev}",
    }


def _unreadable(run: UnreadableRun) -> dict[str, Any]:
    return {"run": run.run, "state": run.state, "error": run.error}


def details(gateway: Gateway, run: Run) -> dict[str, Any]:
    """Everything about a run; blocking."""
    canvas = run.canvas
    planes = sorted(run.bboxes)
    report = gateway.source.report(run.run)
    return summary(run) | {
        "planes": [{"t": p.t, "c": p.c, "z": p.z, "bbox": list(run.bboxes[p])} for p in planes],
        "n_times": run.n_times,
        "n_channels": run.n_channels,
        "n_slices": run.n_slices,
        "channels": [_plain(channel) | {"window": list(gateway.window(run, channel["c"]))} for channel in run.channels],
        "canvas": canvas and {"bounds": list(canvas.rect), "levels": canvas.levels, "fixed": canvas.fixed},
        "affine": [list(row) for row in run.affine],
        "frame_shape": list(run.start.get("shape") or []),
        "blend": run.settings.get("blend"),
        "start": _plain(run.start),
        "nbytes": gateway.source.nbytes(run.run),
        "report": _plain(report["report"]),
        "revision": report["revision"],
        "holes": _holes(report),
    }


def _holes(report: dict[str, Any]) -> dict[str, Any]:
    """What a run lacks, from its report as it stands."""
    found = report["report"] or {}
    return {
        "missing": _plain(found.get("missing") or []),
        "unplaced": _plain(found.get("unplaced") or {}),
        "final": bool(report["final"]),
    }


def daemon_status(gateway: Gateway) -> dict[str, Any]:
    """What the daemon says of itself; blocking."""
    beat = gateway.news.heartbeat
    values: dict[str, Any] = {
        "gateway": {
            "cache_nbytes": gateway.pixels.nbytes,
            "followers": gateway.news.n_followers,
            "heartbeat": beat and {"state": beat.state, "free_bytes": beat.free_bytes},
        },
        "daemon": None,
        "error": None,
    }
    if gateway.settings.query is None:
        return values | {"error": "the gateway was not told where the daemon is"}
    try:
        return values | {"daemon": gateway.source.ask("stats")["stats"] | gateway.source.ask("health")["health"]}
    except (ConnectionError, ValueError) as error:  # silent, or not a daemon
        return values | {"error": str(error)}


def _plain(value: Any) -> Any:
    """What came out of msgpack or JSON as something that JSON can hold: bytes as their number, NaN as null."""
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case bytes():
            return f"{len(value)} bytes"
        case float() if not math.isfinite(value):
            return None
    return value


# ---- pixels ---------------------------------------------------------------------------------------------------------


def _add_pixels(api: APIRouter, gateway: Gateway) -> None:
    picture: dict[int | str, dict[str, Any]] = {
        200: {"description": "The picture", "content": {kind: {} for kind in encoding.CONTENT_TYPES.values()}},
        304: {"description": "What you have still holds"},
    }

    @api.get(
        "/runs/{run}/thumbnail.{fmt}",
        response_class=Response,
        responses=picture,
        openapi_extra={"parameters": _LOOK_PARAMETERS},
        summary="A small picture of the whole",
    )
    async def thumbnail(run: RunId, fmt: Literal["png", "jpg", "webp"], shown: WhatIsShown) -> Response:
        """The whole mosaic, at most 320 pixels a side; 404 while there is nothing."""
        return await gateway.work(_thumbnail, gateway, run, fmt, shown)

    @api.get(
        "/runs/{run}/region.{fmt}",
        response_class=Response,
        responses=picture,
        openapi_extra={"parameters": [*_LOOK_PARAMETERS, _MASK_PARAMETER]},
        summary="A rectangle of a level",
    )
    async def region(
        run: RunId,
        fmt: Literal["png", "jpg", "webp", "raw"],
        row0: Index,
        row1: Index,
        col0: Index,
        col1: Index,
        shown: WhatIsShown,
        level: Level = 0,
    ) -> Response:
        """What a rectangle of level-0 pixels shows at a level; bounds are widened to whole pixels of that level."""
        return await gateway.work(_region, gateway, run, fmt, Rect(row0, col0, row1, col1), level, shown)

    @api.get("/runs/{run}/value", summary="The value of a pixel")
    async def value(run: RunId, row: Index, col: Index, shown: WhatIsShown) -> JSONResponse:
        """Of each channel the value of a level-0 pixel, null where nothing is covered, and where that is in µm."""
        return JSONResponse(await gateway.work(_value, gateway, run, row, col, shown))

    @api.get("/runs/{run}/profile", summary="Values along a line")
    async def profile(
        run: RunId,
        row0: Coordinate,
        col0: Coordinate,
        row1: Coordinate,
        col1: Coordinate,
        shown: WhatIsShown,
        samples: Annotated[int | None, Query(ge=2, description="Left out: one per pixel of the line.")] = None,
    ) -> JSONResponse:
        """The nearest pixels' values at equally spaced points; the centre of pixel (r, c) is (r + 0.5, c + 0.5)."""
        line = (row0, col0), (row1, col1)
        return JSONResponse(await gateway.work(_profile, gateway, run, line, shown, samples))

    @api.get("/runs/{run}/histogram", summary="How often which values occur")
    async def histogram(
        run: RunId,
        row0: OptionalIndex = None,
        row1: OptionalIndex = None,
        col0: OptionalIndex = None,
        col1: OptionalIndex = None,
        t: PlaneIndex = 0,
        c: Annotated[int, Query(ge=0, le=MAX_INDEX)] = 0,
        z: PlaneIndex = 0,
        level: OptionalLevel = None,
        bins: Annotated[int, Query(ge=1, le=4096)] = 256,
    ) -> JSONResponse:
        """Of a rectangle of level-0 pixels, or of everything; at a level that is quickly counted if none is named."""
        bounds = (row0, col0, row1, col1)
        return JSONResponse(await gateway.work(_histogram, gateway, run, bounds, PlaneKey(t, c, z), level, bins))


def _thumbnail(gateway: Gateway, run_id: str, fmt: str, shown: Shown) -> Response:
    run = gateway.run(run_id)
    if run.bbox.empty:
        raise NotFoundError("there is nothing of this run yet")
    level = 0
    while max(rect_at_level(run.bbox, level).height, rect_at_level(run.bbox, level).width) > _THUMBNAIL_SIDE:
        level += 1
    return _picture(gateway, run, fmt, level, rect_at_level(run.bbox, level), shown)


def _picture(gateway: Gateway, run: Run, fmt: str, level: int, at_level: Rect, shown: Shown) -> Response:
    return gateway.region_picture(
        run,
        shown.planes,
        level,
        at_level,
        shown.look(gateway, run),
        fmt,
        quality=shown.quality,
        if_none_match=shown.if_none_match,
    )


def _region(gateway: Gateway, run_id: str, fmt: str, bounds: Rect, level: int, shown: Shown) -> Response:
    run = gateway.run(run_id)
    at_level = bounds if bounds.empty else rect_at_level(bounds, level)
    gateway.check_region(at_level)
    if fmt != "raw":
        return _picture(gateway, run, fmt, level, at_level, shown)
    if len(shown.planes) > 1:
        raise BadRequestError("raw holds one channel; ask for each")
    plane = shown.planes[0]
    with_mask = shown.request.query_params.get("mask") in ("1", "true")
    found = gateway.pixels.region(run, plane, level, at_level)
    tag = caching.etag(run.run, run.epoch, tuple(plane), level, tuple(at_level), found.rev, "raw", with_mask)
    if caching.matches(shown.if_none_match, tag):
        return caching.not_modified(tag)
    return Response(
        encoding.raw(found.pixels, found.coverage, with_mask=with_mask),
        headers=_headers(run, found.pixels.shape, found.rev, tag, "raw"),
    )


def _value(gateway: Gateway, run_id: str, row: int, col: int, shown: Shown) -> dict[str, Any]:
    run = gateway.run(run_id)
    values = [gateway.pixels.value(run, plane, row, col) for plane in shown.planes]
    x_um, y_um = run.stage_um(row + 0.5, col + 0.5)
    return {"row": row, "col": col, "x_um": x_um, "y_um": y_um, "channels": shown.channels, "values": values}


def _profile(
    gateway: Gateway,
    run_id: str,
    line: tuple[tuple[float, float], tuple[float, float]],
    shown: Shown,
    n_samples: int | None,
) -> dict[str, Any]:
    run = gateway.run(run_id)
    start, end = line
    wanted = n_samples or math.ceil(math.hypot(end[0] - start[0], end[1] - start[1])) + 1
    if wanted > gateway.settings.max_profile_samples:
        raise TooLargeError(
            f"a profile may have {gateway.settings.max_profile_samples} samples; this one has {wanted}: "
            "ask for fewer samples, or a shorter line"
        )
    wanted = max(2, wanted)
    profiles = [gateway.pixels.profile(run, plane, start, end, wanted) for plane in shown.planes]
    (x0_um, y0_um), (x1_um, y1_um) = run.stage_um(*start), run.stage_um(*end)
    length_um = math.hypot(x1_um - x0_um, y1_um - y0_um)
    return {
        "channels": shown.channels,
        "length_um": length_um,
        "points": [
            {
                "row": samples[0].row,
                "col": samples[0].col,
                "distance_um": length_um * number / (wanted - 1),
                "values": [None if math.isnan(one.value) else one.value for one in samples],
            }
            for number, samples in enumerate(zip(*profiles, strict=True))
        ],
    }


def _histogram(
    gateway: Gateway,
    run_id: str,
    bounds: tuple[int | None, int | None, int | None, int | None],
    plane: PlaneKey,
    level: int | None,
    n_bins: int,
) -> dict[str, Any]:
    run = gateway.run(run_id)
    box = run.bboxes.get(plane, Rect(0, 0, 0, 0))
    wanted = Rect(*(default if given is None else given for given, default in zip(bounds, box, strict=True)))
    part = wanted.intersect(box)
    if part.empty:
        part = Rect(0, 0, 0, 0)
    if level is None:
        level = 0
        while _n_pixels(part, level) > _HISTOGRAM_PIXELS:
            level += 1
    at_level = rect_at_level(part, level)
    if not at_level.empty:
        gateway.check_region(at_level)
    return _histogram_values(gateway.pixels.histogram(run, plane, level, at_level, n_bins))


def _n_pixels(rect: Rect, level: int) -> int:
    at_level = rect_at_level(rect, level)
    return at_level.height * at_level.width


def _histogram_values(found: Histogram) -> dict[str, Any]:
    return {
        "edges": np.asarray(found.edges).tolist(),
        "counts": found.counts.tolist(),
        "low": _plain(found.low),
        "high": _plain(found.high),
        "window": list(found.window),
        "n": found.n,
        "level": found.level,
    }


# ---- orders ---------------------------------------------------------------------------------------------------------


def _add_orders(api: APIRouter, gateway: Gateway) -> None:
    @api.patch("/runs/{run}", summary="Rename a run")
    async def rename(run: RunId, new: NewName) -> JSONResponse:
        """For operators; the daemon decides who is one."""
        return await _order(gateway, "rename", run, name=new.name)

    @api.post("/runs/{run}/notes", summary="Write a note into a run")
    async def note(run: RunId, new: NewNote) -> JSONResponse:
        """For operators."""
        return await _order(gateway, "note", run, text=new.text)

    @api.post("/runs/{run}/end", summary="End a run whose camera will not")
    async def end(run: RunId) -> JSONResponse:
        """For operators."""
        return await _order(gateway, "end", run)

    @api.delete("/runs/{run}", summary="Delete a run and its recording")
    async def delete(run: RunId) -> JSONResponse:
        """For operators; there is no way back."""
        return await _order(gateway, "delete", run)


async def _order(gateway: Gateway, cmd: str, run: str, **arguments: Any) -> JSONResponse:
    """Hand an order to the daemon."""
    await gateway.consult(gateway.source.info, run.lower())  # 404 for what is not there, also without a daemon
    await gateway.consult(gateway.source.ask, cmd, run=run.lower(), **arguments)
    gateway.forget(run.lower())
    return JSONResponse({"run": run.lower()})
