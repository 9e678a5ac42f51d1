"""What `tilecast export` does: from what was asked for to a file that is there, whole, under its name.

The order of things: everything that can be refused is refused before any work (names, planes, region, room on the
disk); then one moment of the run is taken, written under a hidden name, and renamed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tilecast.reading import RecordedFrames, Rect, TileReader, extent_rect, open_folder
from tilecast_plugins.export.command import FORMATS
from tilecast_plugins.export.errors import ExportError
from tilecast_plugins.export.finishing import check_room, check_target, finished
from tilecast_plugins.export.frames import frames_nbytes, wanted_frames, whole_frames, write_frames
from tilecast_plugins.export.levels import Levels, snapped
from tilecast_plugins.export.moment import moment_of
from tilecast_plugins.export.ome_tiff import write_ome_tiff
from tilecast_plugins.export.ome_zarr import write_ome_zarr
from tilecast_plugins.export.picture import Picture, Planes, check_fill, choose_rect
from tilecast_plugins.export.spool import spooled
from tilecast_plugins.pixels import Pixels
from tilecast_plugins.pyme.pyramid import pyramid_rect, write_pyramid
from tilecast_plugins.run import Run

Progress = Callable[[str, int, int], None]

_CACHE_NBYTES = 16 << 20
_MANY = 10_000  # times, channels or positions in z


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An export as asked for; the words are those of the command's options.

    Attributes
    ----------
    folder : Path
        Of the run.
    target : Path or None
        What to write.
    form : str
        One of `command.FORMATS`.
    region : (top, left, bottom, right), pixels, half-open; or None
    region_um : (x0, y0, x1, y1) in stage micrometres; or None
    """

    folder: Path
    target: Path | None = None
    form: str = "ome-tiff"
    frames: bool = False
    as_recorded: bool = False
    region: tuple[int, int, int, int] | None = None
    region_um: tuple[float, float, float, float] | None = None
    times: str | None = None
    channels: str | None = None
    slices: str | None = None
    fill: float | None = None
    tile_size: int = 512
    compression: str = "zlib"
    pyme_tiles: str = "pzf"
    force: bool = False


def write(request: Request, progress: Progress) -> str:
    """Export; gives a sentence that says what was written.

    Raises
    ------
    ExportError
        If it cannot be, with what to do.
    """
    with open_folder(request.folder) as reader:
        run = Run.of(reader.info())
        target = request.target or Path(_file_name(run, request))
        target = target.expanduser()
        check_target(target, force=request.force)
        if request.frames:
            return _write_frames(request, reader, run, target, progress)
        return _write_mosaic(request, reader, run, target, progress)


def _write_mosaic(request: Request, reader: TileReader, run: Run, target: Path, progress: Progress) -> str:
    check_fill(request.fill, run)
    region = _region(request, run)
    # Asked of the run as it is now; a run that goes on may have grown a little when its moment is taken.
    check_room(target.parent, _room(_picture(request, run, Pixels(_Nothing(), 0), region), run))
    with moment_of(reader, target.parent, region, progress) as moment:
        picture = _picture(request, moment.run, Pixels(moment, _CACHE_NBYTES), region)
        with finished(target) as hidden:
            if request.form == "ome-tiff":
                with spooled(target.parent) as spool:
                    write_ome_tiff(picture, hidden, spool, progress, compression=request.compression)
            elif request.form == "pyme":
                write_pyramid(picture, hidden, progress, tiles=request.pyme_tiles)
            else:
                version = "0.4" if request.form == "ome-zarr-0.4" else "0.5"
                write_ome_zarr(picture, hidden, version, progress, compression=request.compression)
            moment.check()
    shown = picture.levels.shown
    n_t, n_c, n_z = picture.planes.shape
    planes = "" if picture.n_planes == 1 else f" × {n_c} channels × {n_z} in z × {n_t} times"
    size = f"{shown.height} × {shown.width} pixels{planes}, {picture.levels.n_levels} levels"
    return f"{target}: {size}, as of rev {moment.run.rev}"


def _write_frames(request: Request, reader: TileReader, run: Run, target: Path, progress: Progress) -> str:
    region = _region(request, run)
    placements = wanted_frames(reader, run, _planes(request, run), region)
    with RecordedFrames(request.folder) as frames:
        if request.as_recorded:
            placements = whole_frames(placements, frames)
        check_room(target.parent, frames_nbytes(run, placements))
        with finished(target) as hidden:
            write_frames(hidden, run, placements, frames, progress, calibrated=not request.as_recorded)
        how = "as recorded" if request.as_recorded or not frames.is_calibrated else "calibrated"
        what = "views of frames" if frames.views and not request.as_recorded else "frames"
    return f"{target}: {len(placements)} {what}, {how}, and positions.csv"


def _picture(request: Request, run: Run, pixels: Pixels, region: Rect | None) -> Picture:
    planes = _planes(request, run)
    box = choose_rect(run, planes)
    if region is None:
        rect = snapped(box, request.tile_size)
    elif region.intersect(box).empty:
        raise ExportError(
            f"nothing is covered in the region {_edges(region)}; the run covers {_edges(box)} (top, left, bottom, "
            "right, in pixels)"
        )
    else:
        rect = region
    whole = pyramid_rect(run, planes, rect, request.tile_size) if request.form == "pyme" else rect
    return Picture(levels=Levels(pixels, run, whole, request.tile_size, rect), planes=planes, fill=request.fill)


class _Nothing:
    """No tiles: where only sizes are asked for."""

    def tile(self, *_: object) -> None:
        return None

    def tile_rev(self, *_: object) -> None:
        return None


def _room(picture: Picture, run: Run) -> int:
    """Bytes that may be needed while the export is made: the file, the levels set aside, and a copy of what runs."""
    copy = 0 if run.state in ("ended", "sealed") else picture.nbytes
    return picture.nbytes + picture.nbytes // 4 + copy


def _region(request: Request, run: Run) -> Rect | None:
    if request.region is not None:
        region = Rect(*request.region)
    elif request.region_um is not None:
        x0, y0, x1, y1 = request.region_um
        try:
            region = extent_rect(((x0, y0), (x1, y1)), run.affine)
        except ValueError as error:
            raise ExportError(f"--region-um: {error}") from error
    else:
        return None
    if region.empty:
        raise ExportError(
            "the region is empty: give top,left,bottom,right in pixels or x0,y0,x1,y1 in µm, the end larger than the "
            "beginning"
        )
    return region


def _planes(request: Request, run: Run) -> Planes:
    names = [str(channel.get("name", "")) for channel in run.start.get("channels") or ()]
    seen = list(run.bboxes)
    return Planes(
        t=chosen("--times", request.times, run.n_times, {plane.t for plane in seen}),
        c=chosen("--channels", request.channels, run.n_channels, {plane.c for plane in seen}, names),
        z=chosen("--slices", request.slices, run.n_slices, {plane.z for plane in seen}),
    )


def chosen(
    option: str, text: str | None, count: int, seen: Collection[int] = (), names: Sequence[str] = ()
) -> tuple[int, ...]:
    """The numbers that a list such as ``0,2-5`` names, in its order.

    If it is not given, all of them; or, if a frame with a huge number makes that unreasonable, those in `seen`.

    >>> chosen("--times", "4,0-2", 6)
    (4, 0, 1, 2)

    Raises
    ------
    ExportError
        If there are none such, or one comes twice.
    """
    if text is None:
        return tuple(range(count)) if count <= _MANY else tuple(sorted(seen))
    numbers: list[int] = []
    for part in text.split(","):
        word = part.strip()
        between = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word, re.ASCII)
        if word in names:
            numbers.append(names.index(word))
        elif between and int(between[1]) <= int(between[2] or between[1]):
            first, last = int(between[1]), int(between[2] or between[1])
            numbers.extend(range(first, min(last, first + count) + 1))
        else:
            known = f", or names: {', '.join(filter(None, names))}" if any(names) else ""
            raise ExportError(f"{option}: expected numbers as in 0,2-5{known}; got {text!r}")
    if max(numbers) >= count or len(set(numbers)) != len(numbers):
        raise ExportError(f"{option}: the run has 0 to {count - 1}, each to be named once; got {text!r}")
    return tuple(numbers)


def _file_name(run: Run, request: Request) -> str:
    stem = re.sub(r"[^\w.-]+", "-", run.name).strip("-.")[:80] or run.run[:8]
    return f"{stem}-frames" if request.frames else stem + FORMATS[request.form]


def _edges(rect: Rect) -> str:
    return ",".join(str(edge) for edge in rect)
