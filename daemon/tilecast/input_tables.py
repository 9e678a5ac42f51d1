"""Tables of positions, in every convention that people write them in: which columns, which unit, of corner or centre.

`tilecast.inputs` reads the table of a whole scan with this, and a plugin that watches a folder one that still grows.
CSV with a header line (comma, semicolon or tab), or JSON: a list of objects, an object for each line, or one object
from file names to positions.

Examples
--------
>>> table = parse_table(Path("positions.csv"), "file,x_px,y_px\\na.tif,0,0\\nb.tif,100,0\\n")
>>> names, unit = choose_columns(table, None, told_apart=False)
>>> number_in(table, 1, names[0]), unit
(100.0, 'px')
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from tilecast.geometry import place_centre
from tilecast.input_images import InputError

Anchor = Literal["corner", "centre"]
Unit = Literal["px", "um"]
Affine = tuple[tuple[float, float], tuple[float, float]]
Tcz = tuple[int, int, int]

JSON_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson"})

Spelling = Callable[..., str]
"""How an option is written where the person who reads a message would write it: `spell("px-um", "0.65")`."""


def on_command_line(option: str, value: str = "") -> str:
    """As of `tilecast send`.

    >>> on_command_line("px-um", "0.65")
    '--px-um 0.65'
    """
    return f"--{option} {value}".rstrip()


FILE_COLUMNS = ("file", "filename", "file_name", "source_file", "image", "name")
"""Columns that may name the file of each row, most telling first."""


class Table(NamedTuple):
    """Rows of cells by the names of their columns; `lines` tells where each stands in the file."""

    path: Path
    header: list[str]
    rows: list[dict[str, str]]
    lines: list[int]


def read_table(path: Path) -> Table:
    """Read a table.

    Raises
    ------
    InputError
        It cannot be read, or is none.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as cause:
        raise InputError(f"cannot read the positions in {path}: {cause}") from cause
    return parse_table(path, text)


def parse_table(path: Path, text: str) -> Table:
    """Read the text of a table; `path` says by its suffix whether it is JSON, and is named in messages.

    Raises
    ------
    InputError
        It is none.
    """
    table = _parse_json(path, text) if path.suffix.lower() in JSON_SUFFIXES else _parse_csv(path, text)
    if not table.rows:
        raise InputError(f"{path} has a header and no positions below it")
    return table


def _parse_csv(path: Path, text: str) -> Table:
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    header = [name.strip() for name in next(reader, [])]
    twice = sorted({name for name in header if header.count(name) > 1})
    if len(header) < 2 or twice:
        what = f"the column {twice[0]!r} is there twice" if twice else f"got {first[:80]!r}"
        raise InputError(f"{path}: expected a line with the names of the columns, as frame,x_px,y_px; {what}")
    rows: list[dict[str, str]] = []
    lines: list[int] = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise InputError(
                f"{path}, line {reader.line_num}: expected {len(header)} columns as in the first line, got {len(cells)}"
            )
        rows.append(dict(zip(header, (cell.strip() for cell in cells), strict=True)))
        lines.append(reader.line_num)
    return Table(path, header, rows, lines)


def _parse_json(path: Path, text: str) -> Table:
    """Objects with the same keys; the keys are the columns."""
    try:
        lines = text.splitlines()
        if path.suffix.lower() == ".json":
            found = json.loads(text)
        else:
            found = [json.loads(line) for line in lines if line.strip()]
    except ValueError as cause:
        raise InputError(f"{path} is not JSON: {cause}") from cause
    if isinstance(found, dict):
        found = [{"file": name, **(value if isinstance(value, dict) else {"": value})} for name, value in found.items()]
    if not isinstance(found, list) or not all(isinstance(row, dict) and row for row in found):
        raise InputError(
            f'{path}: expected a list of objects as [{{"file": "a.tif", "x_um": 0, "y_um": 0}}], or an object '
            'as {"a.tif": {"x_um": 0, "y_um": 0}}'
        )
    header = list(found[0]) if found else []
    for number, row in enumerate(found):
        if row.keys() != set(header):
            raise InputError(f"{path}, entry {number}: expected the keys {', '.join(header)}, got {', '.join(row)}")
        if "" in row or not all(isinstance(cell, str | int | float) for cell in row.values()):
            raise InputError(f"{path}, entry {number}: expected texts and numbers by name, as x_um and y_um, got {row}")
    rows = [{name: str(cell) for name, cell in row.items()} for row in found]
    return Table(path, header, rows, list(range(1, len(rows) + 1)))


def choose_columns(
    table: Table, asked: tuple[str, str] | None, *, told_apart: bool, spell: Spelling = on_command_line
) -> tuple[tuple[str, str], Unit]:
    """Names of the columns that hold x and y, and their unit.

    Parameters
    ----------
    table : Table
    asked : (str, str) or None
        The columns that somebody wants; None: `x_px,y_px`.
    told_apart : bool
        Whether something was said that differs between pixels and micrometres: a table with both is then ambiguous.
    spell : callable
        How options are written in messages.

    Raises
    ------
    InputError
        There are no such columns, or their unit is not known.
    """
    by_lower = {name.lower(): name for name in table.header}
    found = ", ".join(table.header)
    in_px = by_lower.get("x_px"), by_lower.get("y_px")
    in_um = by_lower.get("x_um"), by_lower.get("y_um")
    if asked is None:
        if in_px[0] is None or in_px[1] is None:
            raise InputError(
                f"{table.path} has no columns x_px,y_px, but {found}: say which hold the positions, and their unit, "
                f"with {spell('columns', 'x_um,y_um')} {spell('anchor', 'centre')} {spell('px-um', 'SIZE')}, or "
                f"{spell('columns', 'NAME:px,NAME:px')}"
            )
        if told_apart and None not in in_um:
            raise InputError(
                f"{table.path} has positions in pixels and in µm: which do {spell('anchor')} and {spell('flip-y')} "
                f"speak of? Add {spell('columns', 'x_px,y_px')} or {spell('columns', 'x_um,y_um')}"
            )
        return (in_px[0], in_px[1]), "px"
    names: list[str] = []
    units: set[Unit | None] = set()
    for name in asked:
        bare, _, suffix = name.rpartition(":")
        column = by_lower.get(name.lower()) or by_lower.get(bare.lower())
        if column is None:
            raise InputError(f"{table.path} has no column {name!r}, but {found}")
        names.append(column)
        units.add(unit_of(f":{suffix}") if column.lower() != name.lower() else unit_of(name))
    unit = units.pop()
    if units or unit is None:
        raise InputError(
            f"{spell('columns', ','.join(asked))}: are these pixels or micrometres? Add :px or :um to both names, as "
            f"{names[0]}:px,{names[1]}:px"
        )
    return (names[0], names[1]), unit


def unit_of(name: str) -> Unit | None:
    """The unit in which a column's name ends."""
    lower = name.lower().rstrip(")] ")
    if lower.endswith(("_px", " px", "(px", "[px", ":px", "pixel", "pixels")) or lower == "px":
        return "px"
    if lower.endswith(("_um", " um", "(um", "[um", ":um", "µm", "μm", "micron", "microns")) or lower == "um":
        return "um"
    return None


def number_in(table: Table, row: int, column: str) -> float:
    """A cell as a finite number.

    Raises
    ------
    InputError
        It is none.
    """
    text = table.rows[row][column]
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        hint = " (with a point, not a comma)" if "," in text else ""
        raise InputError(f"{table.path}, line {table.lines[row]}: expected a number{hint} in {column}, got {text!r}")
    return number


def whole_number_in(table: Table, row: int, column: str) -> int:
    """A cell as a number that counts from 0; raises InputError."""
    number = number_in(table, row, column)
    if number < 0 or number != int(number):
        raise InputError(
            f"{table.path}, line {table.lines[row]}: {column} counts from 0, got {table.rows[row][column]!r}; give the "
            "column another name if it means something else"
        )
    return int(number)


def plane_in(table: Table, row: int) -> Tcz:
    """The plane of a row: from the columns t, c and z, those that there are."""
    t, c, z = (whole_number_in(table, row, axis) if axis in table.header else 0 for axis in "tcz")
    return t, c, z


def _nearest(value: float) -> int:
    """The nearest whole number, halves up: floor(value + 0.5) without the rounding of that sum."""
    below = math.floor(value)
    return below + (value - below >= 0.5)


def centre_um(
    xy: tuple[float, float], unit: Unit, anchor: Anchor, affine: Affine, shape: tuple[int, int]
) -> tuple[float, float]:
    """Stage position of a frame's centre such that its corner comes to lie on the pixel nearest to where it was told.

    The way to micrometres and back may round a corner that lies half-way between two pixels to the wrong one; it is
    then put a thousandth of a pixel to the right side.
    What is the centre in micrometres already stays as it is. Positions in pixels count downwards; `affine` is diagonal.
    """
    if unit == "um" and anchor == "centre":
        return xy
    x, y = xy
    height, width = shape
    (x_um, _), (_, y_um) = affine
    if unit == "um":
        left, top = x / x_um, y / y_um
    else:
        left, top = x, y if y_um > 0 else -y
    if anchor == "centre":
        left, top = left - width / 2, top - height / 2
    wanted = _nearest(top), _nearest(left)
    for nudge in (0.0, 1 / 1024):
        left += math.copysign(nudge, wanted[1] - left)
        top += math.copysign(nudge, wanted[0] - top)
        centre = x_um * (left + width / 2), y_um * (top + height / 2)
        if place_centre(centre, affine, shape) == wanted:
            break
    return centre
