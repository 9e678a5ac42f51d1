"""What names tell: templates, expressions, and what is said of those that cannot be."""

from __future__ import annotations

import pytest

from tilecast_plugins.watch_folder.names import compile_pattern


@pytest.mark.parametrize(
    ("pattern", "name", "told"),
    [
        ("img_{row:d}_{col:d}.tif", "img_003_12.tif", {"row": 3, "col": 12}),
        ("img_{row}_{col}.tif", "img_3_1.tif", {"row": 3, "col": 1}),
        ("img_{row:d}_{col:d}.tif", "img_3_1.tiff", None),
        ("img_{row:d}_{col:d}.tif", "imgx3_1xtif", None),
        ("{run}_t{t:d}c{c:d}z{z:d}.png", "a_b_t1c2z3.png", {"run": "a_b", "t": 1, "c": 2, "z": 3}),
        ("x{x_um:f}y{y_um:f}.npy", "x-1.5y+20.npy", {"x_um": -1.5, "y_um": 20.0}),
        (r"s(?P<frame>\d+)(_c(?P<c>\d))?\.tif", "s7.tif", {"frame": 7}),
        (r"s(?P<frame>.+)\.tif", "sx.tif", None),
    ],
)
def test_fields_are_read(pattern: str, name: str, told: dict[str, object] | None) -> None:
    assert compile_pattern(pattern).read(name) == told


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("img_{rwo:d}_{col:d}.tif", "unknown field 'rwo'.*did you mean row"),
        (r"(?P<zeile>\d+)\.tif", "unknown field 'zeile'; known are row, col"),
        ("img_{row:d}.tif", "tells row and not col"),
        ("img_{row:d}_{row:d}.tif", "{row} twice"),
        ("img_{row:d}_{col:d}_{x_um:f}_{y_um:f}.tif", "tells positions twice"),
        ("img_{row:f}_{col:d}.tif", "expected {row:d}"),
        ("img_{row:d_{col:d}.tif", "brace without its other|unknown field"),
        ("img.tif", "has no field"),
        (r"(?P<row>\d+_(?P<col>\d+).tif", "is no regular expression"),
    ],
)
def test_mistakes_are_explained(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        compile_pattern(pattern)
