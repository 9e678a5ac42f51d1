"""Layouts as files: where each frame of a run lies, as CSV or JSON, to be edited, and applied to another run.

A layout has a line for each frame, or each view of one: `frame`, `view`, `row`, `col`, whole pixels, upper left corner.
What is saved has `stage_row` and `stage_col` besides, which are not read. Frames that are not in a layout stay where
they are.

>>> from tilecast.reading import Position
>>> print(as_csv([Position(3, 0, -5, 870, "registered")], {(3, 0): (0, 868)}), end="")
frame,view,row,col,stage_row,stage_col
3,0,-5,870,0,868
>>> from_text("frame,row,col\\n3,-5,870\\n", ".csv")
{(3, 0): (-5, 870)}
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tilecast.reading import Position
from tilecast_protocol.errors import TilecastError

ENDINGS = (".csv", ".json")
_COLUMNS = ("frame", "view", "row", "col", "stage_row", "stage_col")
_MOST = 1 << 30


class LayoutError(TilecastError):
    """A file is not a layout."""


def _lines(positions: Sequence[Position], stage: Mapping[tuple[int, int], tuple[int, int]]) -> list[dict[str, Any]]:
    lines = []
    for one in positions:
        there = stage.get((one.frame, one.view), (None, None))
        lines.append(dict(zip(_COLUMNS, (one.frame, one.view, one.row, one.col, *there), strict=True)))
    return lines


def as_csv(positions: Sequence[Position], stage: Mapping[tuple[int, int], tuple[int, int]]) -> str:
    """A layout as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_lines(positions, stage))
    return out.getvalue()


def as_json(positions: Sequence[Position], stage: Mapping[tuple[int, int], tuple[int, int]], **about: Any) -> str:
    """A layout as JSON, with whatever else there is to say of it."""
    return json.dumps(about | {"frames": _lines(positions, stage)}, indent=1) + "\n"


def from_text(text: str, ending: str) -> dict[tuple[int, int], tuple[int, int]]:
    """(row, col) of each (frame, view).

    Raises
    ------
    LayoutError
        With what is wrong, and where.
    """
    if ending == ".json":
        try:
            lines: Any = json.loads(text)["frames"]
        except (ValueError, KeyError, TypeError) as error:
            raise LayoutError('a layout as JSON is {"frames": [{"frame": 0, "row": 12, "col": -3}, …]}') from error
    else:
        lines = list(csv.DictReader(io.StringIO(text)))
    return _read(lines)


def _read(lines: Iterable[Any]) -> dict[tuple[int, int], tuple[int, int]]:
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for number, line in enumerate(lines, 1):
        try:
            frame, row, col = (_whole(line[name]) for name in ("frame", "row", "col"))
            view = _whole(line.get("view") or 0)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LayoutError(
                f"entry {number} should have whole numbers frame, row and col, and may have view; got {line!r}"
            ) from error
        if (frame, view) in found:
            raise LayoutError(f"entry {number}: frame {frame}, view {view}, comes twice")
        found[frame, view] = row, col
    if not found:
        raise LayoutError("the layout has no frames")
    return found


def _whole(value: Any) -> int:
    number = int(value)
    if number != float(value) or not -_MOST < number < _MOST:
        raise ValueError(value)
    return number
