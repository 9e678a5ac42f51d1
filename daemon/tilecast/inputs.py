"""Somebody's own scan, and where each of its frames lies: what `tilecast send` sends.

Tables of positions come in every convention: pixels or micrometres, of the corner or of the centre, y up or down. This
module reads one convention into the protocol's only one (stage position of the centre, µm, and an `affine` if the stage
counts y upwards), says in one sentence how it read the file (`Scan.how`), refuses what can be read in two ways, and
looks whether the result makes sense: neighbours should overlap, and look alike where they do (`Scan.warnings`). It
knows no sockets; how the pixels are stored is the business of `tilecast.input_images`.

    scan = open_scan(Path("lscm_tensile_ref"))
    print(scan.how)
    for frame in scan.frames():
        publisher.image(frame.pixels, frame=frame.frame, pos_um=frame.pos_um, tcz=frame.tcz)
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilecast.geometry import place_centre
from tilecast.input_images import (
    IMAGE_SUFFIXES,
    ImageSource,
    InputError,
    SourceInfo,
    frame_of,
    natural_key,
    open_image,
    open_images,
)
from tilecast.input_pyme import open_pyme
from tilecast.input_tables import (
    FILE_COLUMNS,
    Affine,
    Anchor,
    Table,
    Tcz,
    Unit,
    centre_um,
    choose_columns,
    number_in,
    parse_table,
    plane_in,
    read_table,
    whole_number_in,
)

__all__ = [
    "FILE_COLUMNS",
    "IMAGE_SUFFIXES",
    "Affine",
    "Anchor",
    "ImageSource",
    "InputError",
    "Scan",
    "ScanFrame",
    "Table",
    "Tcz",
    "Unit",
    "centre_um",
    "choose_columns",
    "frame_of",
    "natural_key",
    "number_in",
    "open_image",
    "open_images",
    "open_pyme",
    "open_scan",
    "parse_table",
    "plane_in",
    "whole_number_in",
]

# What makes a look at the content worth it, and what is enough to say that an axis runs the other way.
_PAIRS_PER_AXIS = 4
_MAX_SKIPPED_BYTES = 512 << 20
_LIKE, _LIKER_BY = 0.4, 0.25


class ScanFrame(NamedTuple):
    """One frame and where it lies.

    Attributes
    ----------
    pixels : ndarray, (height, width)
    pos_um : (x, y)
        Stage position of the centre of the frame.
    tcz : (t, c, z)
        The plane that it belongs to.
    frame : int
        Frame number, from 0.
    """

    pixels: NDArray[Any]
    pos_um: tuple[float, float]
    tcz: Tcz
    frame: int


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A scan that has been read as far as needed to send it.

    Attributes
    ----------
    shape : (height, width)
        Of every frame, pixels.
    dtype : str
        `|u1`, `<u2` or `<f4`.
    px_um : (x, y)
        Pixel size, µm.
    affine : ((a, b), (c, d)) or None
        For `start`; None where it is diag(px_um).
    n_frames : int
    planes : (t, c, z)
        How many of each.
    channels : tuple of dict
        For `start`; empty if nothing is known of them.
    corners : tuple of (row, col)
        The upper left pixel of each frame in the mosaic.
    how : str
        One sentence: how the files were read.
    warnings : tuple of str
        What looks wrong, a sentence each.
    """

    shape: tuple[int, int]
    dtype: str
    px_um: tuple[float, float]
    affine: Affine | None
    n_frames: int
    planes: tuple[int, int, int]
    channels: tuple[dict[str, Any], ...]
    corners: tuple[tuple[int, int], ...]
    how: str
    warnings: tuple[str, ...]
    _source: ImageSource
    _pos_um: tuple[tuple[float, float], ...]
    _tcz: tuple[Tcz, ...]

    def frames(self) -> Iterator[ScanFrame]:
        """All frames in order, read one at a time.

        Raises
        ------
        InputError
            A file cannot be read, or its frame is not like the first.
        """
        for frame, pixels in enumerate(self._source.read(range(self.n_frames))):
            yield ScanFrame(pixels, self._pos_um[frame], self._tcz[frame], frame)

    @property
    def extent_um(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Outer edges of the scan on the stage, ((x0, y0), (x1, y1)), for `start`."""
        rows, cols = zip(*self.corners, strict=True)
        height, width = self.shape
        x_um, y_um = self.px_um
        x0, x1 = min(cols) * x_um, (max(cols) + width) * x_um
        y0, y1 = min(rows) * y_um, (max(rows) + height) * y_um
        return ((x0, y0), (x1, y1)) if self.affine is None else ((x0, 0.0 - y1), (x1, 0.0 - y0))


def open_scan(
    path: Path,
    positions: Path | None = None,
    *,
    columns: str | Sequence[str] | None = None,
    anchor: Anchor | None = None,
    px_um: str | float | Sequence[float] | None = None,
    flip_y: bool = False,
) -> Scan:
    """Read a scan and the positions of its frames.

    Parameters
    ----------
    path : Path
        A folder of TIFF or PNG files or with a `frames.npz`, a series or pyramid of PYME, a TIFF or OME-TIFF, or an
        `.npz`.
    positions : Path, optional
        A table with a header line: comma, semicolon or tab between the columns. Without it `positions.csv` beside the
        frames, or else what OME-XML or PYME's events say. A column `frame`, or one with file names, says which frame a
        row is about; without it the rows are in the order of the frames. Columns `t`, `c`, `z` are numbers of planes.
    columns : str or two str, optional
        The columns that hold x and y, as `x_um,y_um`. Their unit is how their names end, or is added: `x:um,y:um`.
        Default: `x_px,y_px`, if they are there.
    anchor : 'corner' or 'centre', optional
        What the positions are of: the outer corner of the frame's first pixel, or the centre of the frame. Default: the
        corner for pixels and PYME, the centre for OME-XML; has to be told for micrometres in a table.
    px_um : number or (x, y), or either as str, optional
        Pixel size, µm. Default: what OME-XML says; for positions in pixels 1.
    flip_y : bool
        The positions count y upwards, the rows of a frame go down.

    Raises
    ------
    InputError
        Something cannot be read, or in more than one way.
    """
    source = open_images(Path(path))
    given_px_um = None if px_um is None else _parse_px_um(px_um)
    if anchor not in (None, "corner", "centre"):
        raise InputError(f"--anchor: expected corner or centre, got {anchor!r}")
    asked = None if columns is None else _parse_columns(columns)
    table_path = positions if positions is not None else _table_beside(source.path)
    info = source.info
    if table_path is not None:
        told = _from_table(read_table(Path(table_path)), source, asked, anchor, flip_y)
    elif asked is not None:
        raise InputError(
            f"--columns names columns of a table, and none lies beside {source.path}: add --positions FILE"
        )
    elif info.positions_um is not None:
        planes = info.tcz or ((0, 0, 0),) * source.n_frames
        told = _Told(info.positions_said, info.positions_um, planes, "um", anchor or info.positions_anchor, "")
    else:
        raise InputError(
            f"nothing tells where the frames of {source.path} lie, {info.without_positions}: add --positions FILE, a "
            "table with the columns x_px,y_px"
        )
    size_um, size_said = _pixel_size(given_px_um, info, told)
    affine: Affine = ((size_um[0], 0.0), (0.0, -size_um[1] if flip_y else size_um[1]))
    pos_um, corners = _place(told, affine, source.shape)
    counts = tuple(max(plane[axis] for plane in told.tcz) + 1 for axis in range(3))
    warnings = [
        *_gap_warnings(corners, told.tcz, source.shape),
        *_sign_warnings(source, corners, told.tcz, flip_y=flip_y),
    ]
    height, width = source.shape
    what = "the centre" if told.anchor == "centre" else "the upper left corner"
    unit = "pixels" if told.unit == "px" else "µm"
    return Scan(
        shape=source.shape,
        dtype=source.dtype,
        px_um=size_um,
        affine=affine if flip_y else None,
        n_frames=source.n_frames,
        planes=(counts[0], counts[1], counts[2]),
        channels=info.channels if len(info.channels) == counts[1] else (),
        corners=corners,
        how=(
            f"Read {source.n_frames} frames of {height}×{width} {np.dtype(source.dtype).name} from {source.path.name}, "
            f"and {told.name} as {what} of each frame in {unit}, y {'up' if flip_y else 'down'}wards{told.matched}, "
            f"{size_said}."
        ),
        warnings=tuple(warnings),
        _source=source,
        _pos_um=pos_um,
        _tcz=told.tcz,
    )


class _Told(NamedTuple):
    """Positions as somebody wrote them down: (x, y) and plane of each frame, in order of frames."""

    name: str
    xy: Sequence[tuple[float, float]]
    tcz: tuple[Tcz, ...]
    unit: Unit
    anchor: Anchor
    matched: str


# What the options say -------------------------------------------------------------------------------------------------


def _parse_px_um(given: str | float | Sequence[float]) -> tuple[float, float]:
    """One number, or x and y."""
    try:
        if isinstance(given, str):
            numbers = [float(text) for text in given.split(",")]
        elif isinstance(given, Sequence):
            numbers = [float(number) for number in given]
        else:
            numbers = [float(given)]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 2
    if len(numbers) != 2 or not all(math.isfinite(number) and number > 0 for number in numbers):
        raise InputError(f"--px-um: expected the pixel size in µm, as 0.65 or 0.65,0.66 (x,y), got {given!r}")
    return numbers[0], numbers[1]


def _parse_columns(given: str | Sequence[str]) -> tuple[str, str]:
    names = [name.strip() for name in (given.split(",") if isinstance(given, str) else given)]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise InputError(f"--columns: expected two names, as x_um,y_um, got {given!r}")
    return names[0], names[1]


# The table ------------------------------------------------------------------------------------------------------------


def _table_beside(path: Path) -> Path | None:
    beside = (path if path.is_dir() else path.parent) / "positions.csv"
    return beside if beside.is_file() else None


def _from_table(
    table: Table, source: ImageSource, asked: tuple[str, str] | None, anchor: Anchor | None, flip_y: bool
) -> _Told:
    names, unit = choose_columns(table, asked, told_apart=anchor is not None or flip_y)
    if unit == "um" and anchor is None:
        raise InputError(
            f"{table.path}: are {names[0]},{names[1]} of the upper left corner of each frame or of its centre? "
            "Add --anchor corner or --anchor centre"
        )
    order, matched = _match_rows(table, source)
    xy = [(number_in(table, row, names[0]), number_in(table, row, names[1])) for row in order]
    tcz = source.info.tcz or tuple(plane_in(table, row) for row in order)
    return _Told(f"{names[0]},{names[1]} of {table.path.name}", xy, tcz, unit, anchor or "corner", matched)


def _match_rows(table: Table, source: ImageSource) -> tuple[list[int], str]:
    """The row of each frame, in order of frames, and how that was found out."""
    by_lower = {name.lower(): name for name in table.header}
    files = {name: frame for frame, name in enumerate(source.info.names)}
    for column in (by_lower[name] for name in FILE_COLUMNS if name in by_lower):
        cells = [Path(row[column].replace("\\", "/")).name for row in table.rows]
        if files and not files.keys().isdisjoint(cells):
            known = [files.get(cell) for cell in cells]
            return _invert(table, source, known, column), f", matched by {column}"
    if "frame" in by_lower:
        numbers = [whole_number_in(table, row, by_lower["frame"]) for row in range(len(table.rows))]
        known = [number if number < source.n_frames else None for number in numbers]
        return _invert(table, source, known, by_lower["frame"]), ""
    if len(table.rows) != source.n_frames:
        raise InputError(
            f"{table.path} has {len(table.rows)} positions, {source.path} has {source.n_frames} frames: expected one "
            "each, or a column `frame` that counts from 0"
        )
    return list(range(source.n_frames)), ", row by row in the order of the frames"


def _invert(table: Table, source: ImageSource, frames: Sequence[int | None], column: str) -> list[int]:
    """From the frame of each row to the row of each frame."""
    rows: dict[int, int] = {}
    for row, frame in enumerate(frames):
        if frame is None:
            raise InputError(
                f"{table.path}, line {table.lines[row]}: {column} is {table.rows[row][column]!r}, and {source.path} "
                f"has no such frame (it has {source.n_frames}, counted from 0)"
            )
        if frame in rows:
            raise InputError(
                f"{table.path}: lines {table.lines[rows[frame]]} and {table.lines[row]} are both about {column} "
                f"{table.rows[row][column]!r}; expected one line for each frame"
            )
        rows[frame] = row
    without = [frame for frame in range(source.n_frames) if frame not in rows]
    if without:
        name = source.info.names[without[0]] if source.info.names else f"frame {without[0]}"
        raise InputError(
            f"{table.path} has no position for {len(without)} of {source.n_frames} frames, the first is {name}: add "
            "them, or move those frames away"
        )
    return [rows[frame] for frame in range(source.n_frames)]


# From there to the protocol -------------------------------------------------------------------------------------------


def _pixel_size(given: tuple[float, float] | None, info: SourceInfo, told: _Told) -> tuple[tuple[float, float], str]:
    """Pixel size in µm, and where it is from."""
    if given is not None:
        return given, f"{_size_text(given)} µm per pixel"
    if info.px_um is not None:
        return _parse_px_um(info.px_um), f"{_size_text(info.px_um)} µm per pixel as {info.px_um_said} says"
    if told.unit == "um":
        raise InputError(f"{told.name} are in µm: how large is a pixel? Add --px-um, as --px-um 0.65")
    return (1.0, 1.0), "1 µm per pixel for want of --px-um"


def _size_text(px_um: tuple[float, float]) -> str:
    return f"{px_um[0]:g}" if px_um[0] == px_um[1] else f"{px_um[0]:g}×{px_um[1]:g}"


def _place(
    told: _Told, affine: Affine, shape: tuple[int, int]
) -> tuple[tuple[tuple[float, float], ...], tuple[tuple[int, int], ...]]:
    """Stage positions of the centres, µm, and the upper left pixels (row, col) that the protocol gives them."""
    pos_um: list[tuple[float, float]] = []
    corners: list[tuple[int, int]] = []
    for frame, (x, y) in enumerate(told.xy):
        try:
            centre = centre_um((x, y), told.unit, told.anchor, affine, shape)
            corner = place_centre(centre, affine, shape)
        except (ValueError, OverflowError) as cause:
            raise InputError(f"{told.name}: frame {frame} at ({x:g}, {y:g}) cannot be placed: {cause}") from cause
        pos_um.append(centre)
        corners.append(corner)
    return tuple(pos_um), tuple(corners)


# Does it make sense? --------------------------------------------------------------------------------------------------


def _neighbours(
    corners: Sequence[tuple[int, int]], tcz: Sequence[Tcz], shape: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Pairs of frames of one plane that overlap, the earlier one first: all, unless many lie in one place."""
    height, width = shape
    cells: dict[tuple[Tcz, int, int], deque[int]] = defaultdict(partial(deque, maxlen=16))
    for frame, (row, col) in enumerate(corners):
        plane = tcz[frame]
        for i, j in itertools.product((-1, 0, 1), repeat=2):
            for other in cells.get((plane, row // height + i, col // width + j), ()):
                if abs(corners[other][0] - row) < height and abs(corners[other][1] - col) < width:
                    yield other, frame
        cells[plane, row // height, col // width].append(frame)


def _gap_warnings(corners: Sequence[tuple[int, int]], tcz: Sequence[Tcz], shape: tuple[int, int]) -> Iterator[str]:
    """Frames that touch no other, and planes whose frames all lie on one heap."""
    planes: dict[Tcz, list[int]] = defaultdict(list)
    for frame, plane in enumerate(tcz):
        planes[plane].append(frame)
    alone = {frame for frames in planes.values() if len(frames) > 1 for frame in frames}
    n_there = len(alone)
    for pair in _neighbours(corners, tcz, shape):
        alone.difference_update(pair)
    if alone:
        yield (
            f"{len(alone)} of {n_there} frames overlap no other (the first is frame {min(alone)}): look at --px-um, at "
            "the unit and at the signs of the positions."
        )
    for plane, frames in planes.items():
        rows, cols = zip(*(corners[frame] for frame in frames), strict=True)
        if len(frames) > 2 and max(rows) - min(rows) < shape[0] / 5 and max(cols) - min(cols) < shape[1] / 5:
            yield (
                f"All {len(frames)} frames of plane {plane} lie within a fifth of a frame: look at --px-um and at the "
                "unit of the positions."
            )
            break


class _Look(NamedTuple):
    """Two frames to be compared where they overlap: b lies (rows, cols) from a."""

    a: int
    b: int
    rows: int
    cols: int


def _sign_warnings(
    source: ImageSource, corners: Sequence[tuple[int, int]], tcz: Sequence[Tcz], *, flip_y: bool
) -> Iterator[str]:
    """Axes that seem to run the other way.

    A scan whose y is mirrored overlaps just as well: only the pixels tell. Of a few pairs that lie beside each other
    along an axis, the edges that overlap as told are compared, and those that would if the axis ran the other way.
    """
    looks = _pairs_to_look_at(source, corners, tcz)
    wanted = sorted({frame for pairs in looks.values() for look in pairs for frame in (look.a, look.b)})
    pixels = dict(zip(wanted, source.read(wanted), strict=True))
    for axis, pairs in looks.items():
        sign_rows, sign_cols = (-1, 1) if axis == "y" else (1, -1)
        as_told = [_likeness(pixels[p.a], pixels[p.b], p.rows, p.cols) for p in pairs]
        mirrored = [_likeness(pixels[p.a], pixels[p.b], sign_rows * p.rows, sign_cols * p.cols) for p in pairs]
        both = [(told, other) for told, other in zip(as_told, mirrored, strict=True) if math.isfinite(told + other)]
        if not both:
            continue
        told, other = (float(np.median(column)) for column in zip(*both, strict=True))
        if other > _LIKE and other - told > _LIKER_BY:
            advice = "change the sign of the x column"
            if axis == "y":
                advice = "leave out --flip-y" if flip_y else "try --flip-y"
            yield (
                f"The edges of neighbours do not match as {axis} runs now (correlation {told:.2f}), and would if it "
                f"ran the other way ({other:.2f}): {advice}."
            )


def _pairs_to_look_at(
    source: ImageSource, corners: Sequence[tuple[int, int]], tcz: Sequence[Tcz]
) -> dict[str, list[_Look]]:
    """A few pairs of direct neighbours along each axis, those that are reached first."""
    height, width = source.shape
    frame_bytes = height * width * np.dtype(source.dtype).itemsize
    looks: dict[str, list[_Look]] = {"x": [], "y": []}
    for a, b in _neighbours(corners, tcz, source.shape):
        if source.sequential and b * frame_bytes > _MAX_SKIPPED_BYTES:
            break
        rows, cols = corners[b][0] - corners[a][0], corners[b][1] - corners[a][1]
        if abs(cols) > width / 2 and abs(rows) < height / 4:
            axis = "x"
        elif abs(rows) > height / 2 and abs(cols) < width / 4:
            axis = "y"
        else:
            continue
        if len(looks[axis]) < _PAIRS_PER_AXIS:
            looks[axis].append(_Look(a, b, rows, cols))
        elif all(len(pairs) == _PAIRS_PER_AXIS for pairs in looks.values()):
            break
    return looks


def _likeness(a: NDArray[Any], b: NDArray[Any], rows: int, cols: int) -> float:
    """Correlation of two frames where they overlap if b lies (rows, cols) from a; NaN if that cannot be told.

    Means over blocks are compared, so that noise and a stage that is some pixels off do not hide what is alike.
    """
    height, width = a.shape
    in_a = a[max(0, rows) : min(height, height + rows), max(0, cols) : min(width, width + cols)]
    in_b = b[max(0, -rows) : min(height, height - rows), max(0, -cols) : min(width, width - cols)]
    block = [max(1, min(8, size // 4)) for size in in_a.shape]
    small_a, small_b = (_block_means(part, block) for part in (in_a, in_b))
    if small_a.size < 8:
        return math.nan
    small_a -= small_a.mean()
    small_b -= small_b.mean()
    scale = math.sqrt(float((small_a**2).sum() * (small_b**2).sum()))
    return float((small_a * small_b).sum()) / scale if scale > 0 else math.nan


def _block_means(part: NDArray[Any], block: Sequence[int]) -> NDArray[np.float64]:
    rows, cols = part.shape[0] // block[0], part.shape[1] // block[1]
    cut = part[: rows * block[0], : cols * block[1]].astype(np.float64)
    means: NDArray[np.float64] = cut.reshape(rows, block[0], cols, block[1]).mean(axis=(1, 3))
    return means
