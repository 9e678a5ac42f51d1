"""Where the frames of a file lie: from its name, a table beside it, its OME-XML, or the events of a PYME series.

A table may still grow while the scan goes on: it is read again when it has changed, up to its last whole line. What it
does not tell yet it may tell later; so there are two ways to have no position, `NoPositionYetError` and `InputError`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tilecast.inputs import (
    FILE_COLUMNS,
    Affine,
    Anchor,
    ImageSource,
    InputError,
    Table,
    Tcz,
    Unit,
    centre_um,
    choose_columns,
    frame_of,
    number_in,
    open_image,
    open_pyme,
    parse_table,
    plane_in,
    whole_number_in,
)
from tilecast_plugins.watch_folder.listing import stamp_of
from tilecast_plugins.watch_folder.names import Pattern, compile_pattern
from tilecast_plugins.watch_folder.options import WatchFolderOptions
from tilecast_plugins.watch_folder.record import Plane, Stamp

_OPTION = "plugins.watch_folder."
_PYME_FILES = ("metadata.json", "events.json")


class NoPositionYetError(InputError):
    """Nothing tells where a frame lies so far; a table that grows may."""


def spell(option: str, value: str = "") -> str:
    """How an option is written, for messages.

    >>> spell("px-um", "0.65")
    'plugins.watch_folder.px_um = "0.65"'
    """
    name = _OPTION + option.replace("-", "_")
    return f'{name} = "{value}"' if value else name


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a run's pixels are: size in µm (x, y), and the affine of its `start`."""

    px_um: tuple[float, float]
    flip_y: bool

    @property
    def affine(self) -> Affine:
        """From pixels (right, down) to the stage, µm."""
        x_um, y_um = self.px_um
        return ((x_um, 0.0), (0.0, -y_um if self.flip_y else y_um))


@dataclass(slots=True)
class _ReadTable:
    """A table as it was read last: the row of each file and of each frame number, or what is wrong with it."""

    stamp: Stamp
    is_whole: bool
    table: Table | None = None
    rows: dict[str | int, int] = field(default_factory=dict)
    trouble: str = ""


class Positions:
    """Finds positions, as the options say. One thread uses it.

    Parameters
    ----------
    options : WatchFolderOptions
    now_s : callable
        A clock that never goes back.

    Attributes
    ----------
    n_read : int
        How often a table, or the events of a series, were read because they had changed.
    """

    def __init__(self, options: WatchFolderOptions, now_s: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._now_s = now_s
        self._pattern = compile_pattern(options.pattern) if options.pattern else None
        self._tables: dict[Path, tuple[_ReadTable, float]] = {}
        self._series: dict[Path, tuple[object, ImageSource]] = {}
        self.n_read = 0

    @property
    def pattern(self) -> Pattern | None:
        """What names are read with."""
        return self._pattern

    def open(self, path: Path) -> ImageSource:
        """Read a file; one of a PYME series as PYME means it.

        Raises
        ------
        InputError
            It cannot be read.
        OSError
            It is not there.
        """
        if not self._is_of_pyme(path):
            return open_image(path)
        stamps = tuple(stamp_of(path.parent / name) for name in _PYME_FILES)
        known = self._series.get(path.parent)
        if known is None or known[0] != stamps or path.name not in known[1].info.names:
            known = self._series[path.parent] = stamps, open_pyme(path.parent)
            self.n_read += 1
        names = known[1].info.names
        if path.name not in names:
            raise InputError(f"{path.name} is no frame of the scan: it lies before Protocol.DataStartsAt")
        return frame_of(known[1], names.index(path.name))

    def _is_of_pyme(self, path: Path) -> bool:
        if path.suffix.lower() != ".pzf" or self._options.positions not in ("auto", "pyme"):
            return False
        return (path.parent / _PYME_FILES[0]).is_file()

    def geometry(self, source: ImageSource) -> Geometry:
        """Of a run that begins with this file."""
        size = self._options.px_um or source.info.px_um or (1.0, 1.0)
        return Geometry((size[0], size[1]), self._options.flip_y)

    def find(self, path: Path, source: ImageSource, geometry: Geometry) -> tuple[Plane, ...]:
        """Position and plane of each frame of a file.

        Raises
        ------
        NoPositionYetError
            There is none, but may be one later.
        InputError
            There is none; the message says what to do.
        """
        name = self._pattern.read(path.name) if self._pattern else None
        if self._pattern and name is None:
            raise InputError(f"{path.name} does not fit {spell('pattern', self._pattern.text)}")
        fields = name or {}
        own_tcz = tuple(int(fields.get(axis, 0)) for axis in "tcz")
        tcz = source.info.tcz or ((own_tcz[0], own_tcz[1], own_tcz[2]),) * source.n_frames
        origin = self._origin(path, source)
        if origin in ("ome", "pyme"):
            return self._from_file(path, source, geometry, tcz)
        if origin == "name":
            pair = self._pattern.position if self._pattern else None
            assert pair is not None, "the options are checked"
            at = self._from_name(fields, pair, source, geometry)
        else:
            at, told_tcz = self._from_table(path, fields, source, geometry)
            if told_tcz is not None and not source.info.tcz:
                tcz = (told_tcz,) * source.n_frames
        return tuple(Plane(at, plane) for plane in tcz)

    def lacks(self, path: Path) -> str:
        """Why a file has no position yet, as far as that can be said without reading it; empty if it may have one."""
        told_by_name = self._pattern is not None and self._pattern.position is not None
        if self._options.positions in ("ome", "name") or (self._options.positions == "auto" and told_by_name):
            return ""
        where = None if self._options.positions == "pyme" else self._table_path(path)
        if where is None:
            events = path.parent / _PYME_FILES[1]
            return f"{events.name} is not there yet" if self._is_of_pyme(path) and not events.is_file() else ""
        read = self._read(where)
        fields = (self._pattern.read(path.name) if self._pattern else None) or {}
        if read.table is None or path.name in read.rows or fields.get("frame") in read.rows:
            return read.trouble
        return f"{where.name} has no line about {path.name}"

    def _origin(self, path: Path, source: ImageSource) -> str:
        if self._options.positions != "auto":
            return self._options.positions
        if self._pattern is not None and self._pattern.position is not None:
            return "name"
        if self._table_path(path) is None and source.info.positions_um is not None:
            return "ome"
        return "table"

    def _from_file(
        self, path: Path, source: ImageSource, geometry: Geometry, tcz: tuple[Tcz, ...]
    ) -> tuple[Plane, ...]:
        if source.info.positions_um is None:
            why = source.info.without_positions or "it has neither OME-XML nor PYME's metadata.json beside it"
            raise InputError(f"nothing tells where {path.name} lies: {why}")
        if source.info.px_um is None and not self._options.px_um:
            raise InputError(f"{path.name} tells its position in µm, and not the size of a pixel: set {spell('px-um')}")
        anchor: Anchor = source.info.positions_anchor if self._options.anchor == "auto" else self._options.anchor
        centres = [centre_um((x, y), "um", anchor, geometry.affine, source.shape) for x, y in source.info.positions_um]
        return tuple(Plane(at, plane) for at, plane in zip(centres, tcz, strict=True))

    def _from_name(
        self, fields: dict[str, int | float | str], pair: tuple[str, str], source: ImageSource, geometry: Geometry
    ) -> tuple[float, float]:
        if pair == ("row", "col"):
            height, width = source.shape
            if self._options.step_um:
                step = self._options.step_um[0] / geometry.px_um[0], self._options.step_um[1] / geometry.px_um[1]
            else:
                share = 1 - self._options.overlap_percent / 100
                step = width * share, height * share
            xy = float(fields["col"]) * step[0], float(fields["row"]) * step[1]
            return centre_um(xy, "px", "corner", geometry.affine, source.shape)
        xy = float(fields[pair[0]]), float(fields[pair[1]])
        return self._centre(xy, "um" if pair == ("x_um", "y_um") else "px", "the pattern", source, geometry)

    def _centre(
        self, xy: tuple[float, float], unit: Unit, where: str, source: ImageSource, geometry: Geometry
    ) -> tuple[float, float]:
        anchor = self._options.anchor
        if unit == "um" and anchor == "auto":
            raise InputError(
                f"{where}: are positions of the upper left corner of each frame or of its centre? Set "
                f"{spell('anchor', 'corner')} or {spell('anchor', 'centre')}"
            )
        if unit == "um" and source.info.px_um is None and not self._options.px_um:
            raise InputError(f"{where} tells positions in µm: how large is a pixel? Set {spell('px-um')}")
        return centre_um(xy, unit, "corner" if anchor == "auto" else anchor, geometry.affine, source.shape)

    # ---- tables ----------------------------------------------------------------------------------------------------

    def _table_path(self, path: Path) -> Path | None:
        return next((path.parent / name for name in self._options.tables if (path.parent / name).is_file()), None)

    def _from_table(
        self, path: Path, fields: dict[str, int | float | str], source: ImageSource, geometry: Geometry
    ) -> tuple[tuple[float, float], Tcz | None]:
        where = self._table_path(path)
        if where is None:
            why = f" ({source.info.without_positions})" if source.info.without_positions else ""
            raise NoPositionYetError(
                f"nothing tells where {path.name} lies{why}: expected one of {', '.join(self._options.tables)} beside "
                f"it, or positions in its name ({spell('pattern', 'img_{row:d}_{col:d}.tif')})"
            )
        read = self._read(where)
        if read.table is None:
            raise NoPositionYetError(read.trouble)
        row = read.rows.get(path.name)
        if row is None and "frame" in fields:
            row = read.rows.get(int(fields["frame"]))
        if row is None:
            raise NoPositionYetError(f"{where.name} has no line about {path.name}")
        options = self._options
        asked = (options.columns[0], options.columns[1]) if options.columns else None
        told_apart = options.anchor != "auto" or options.flip_y
        names, unit = choose_columns(read.table, asked, told_apart=told_apart, spell=spell)
        xy = number_in(read.table, row, names[0]), number_in(read.table, row, names[1])
        has_plane = any(axis in read.table.header for axis in "tcz")
        return self._centre(xy, unit, where.name, source, geometry), plane_in(read.table, row) if has_plane else None

    def _read(self, path: Path) -> _ReadTable:
        """The table as it is now, without a last line that may still be written."""
        try:
            status = path.stat()
            stamp = Stamp(status.st_size, status.st_mtime_ns)
        except OSError as error:
            return _ReadTable(Stamp(-1, -1), False, trouble=f"{path.name} cannot be read: {error.strerror}")
        known, since_s = self._tables.get(path, (None, self._now_s()))
        if known is not None and known.stamp == stamp:
            settled = self._now_s() - since_s >= self._options.settle_ms / 1e3
            if known.is_whole or not settled:
                return known
            read = self._parse(path, stamp, whole=True)
        else:
            since_s = self._now_s()
            read = self._parse(path, stamp, whole=False)
        self._tables[path] = read, since_s
        return read

    def _parse(self, path: Path, stamp: Stamp, *, whole: bool) -> _ReadTable:
        """Read a table; one that may still grow only up to the end of its last line."""
        self.n_read += 1
        read = _ReadTable(stamp, whole)
        try:
            text = path.read_text("utf-8-sig")
            if not whole and path.suffix.lower() != ".json":
                text = text[: text.rfind("\n") + 1]
            table = parse_table(path, text)
        except (OSError, UnicodeDecodeError) as error:
            read.trouble = f"{path.name} cannot be read: {error}"
            return read
        except InputError as error:
            read.trouble = str(error)
            return read
        by_lower = {name.lower(): name for name in table.header}
        column = next((by_lower[name] for name in FILE_COLUMNS if name in by_lower), None)
        try:
            if column is not None:
                for row, cells in enumerate(table.rows):
                    _add(read, table, PurePosixPath(cells[column].replace("\\", "/")).name, row)
            elif "frame" in by_lower and self._pattern is not None and "frame" in self._pattern.fields:
                for row in range(len(table.rows)):
                    _add(read, table, whole_number_in(table, row, by_lower["frame"]), row)
            else:
                read.trouble = (
                    f"{path.name} does not tell which file a line is about: expected a column `file`, or a column "
                    f"`frame` and {spell('pattern', 'img_{frame:d}.tif')}; got {', '.join(table.header)}"
                )
                return read
        except InputError as error:
            read.trouble = str(error)
            return read
        read.table = table
        return read


def _add(read: _ReadTable, table: Table, key: str | int, row: int) -> None:
    before = read.rows.setdefault(key, row)
    if before != row:
        raise InputError(
            f"{table.path.name}: lines {table.lines[before]} and {table.lines[row]} are both about {key}; expected one "
            "line for each file"
        )
