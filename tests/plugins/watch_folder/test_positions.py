"""Every way to tell a position leads to the same place as it does for `tilecast send`, or says what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from folder_writers import encoded
from tilecast.geometry import place_centre
from tilecast.inputs import InputError
from tilecast_plugins.watch_folder.options import WatchFolderOptions
from tilecast_plugins.watch_folder.positions import NoPositionYetError, Positions

SHAPE = (20, 30)

Place = Callable[..., tuple[int, int]]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where the upper left pixel of a file comes to lie: (row, column)."""

    def place(name: str, table: str = "", *, table_name: str = "positions.csv", **options: Any) -> tuple[int, int]:
        path = tmp_path / name
        path.write_bytes(encoded(np.ones(SHAPE, "u2"), path.suffix))
        if table:
            (tmp_path / table_name).write_text(table)
        positions = Positions(WatchFolderOptions(**options))
        source = positions.open(path)
        geometry = positions.geometry(source)
        (plane,) = positions.find(path, source, geometry)
        return place_centre(plane.pos_um, geometry.affine, SHAPE)

    return place


UM: dict[str, Any] = {"columns": ("x_um", "y_um"), "px_um": (0.5,)}


@pytest.mark.parametrize(
    ("name", "table", "options", "corner"),
    [
        ("a.tif", "file,x_px,y_px\na.tif,40,7\n", {}, (7, 40)),
        ("a.tif", "file,x_px,y_px\na.tif,40,7\n", {"anchor": "centre"}, (-3, 25)),
        ("a.tif", "file,x_um,y_um\na.tif,20,3.5\n", UM | {"anchor": "corner"}, (7, 40)),
        ("a.tif", "file,x_um,y_um\na.tif,27.5,8.5\n", UM | {"anchor": "centre"}, (7, 40)),
        ("a.tif", "file,x_um,y_um\na.tif,20,-3.5\n", UM | {"anchor": "corner", "flip_y": True}, (7, 40)),
        ("a.tif", "file,x_px,y_px\nC:\\scan\\a.tif,40,7\n", {}, (7, 40)),
        ("img_12.tif", "frame,x_px,y_px\n11,0,0\n12,40,7\n", {"pattern": "img_{frame:d}.tif"}, (7, 40)),
        ("r2_c3.tif", "", {"pattern": "r{row:d}_c{col:d}.tif"}, (40, 90)),
        ("r2_c3.tif", "", {"pattern": "r{row:d}_c{col:d}.tif", "overlap_percent": 10.0}, (36, 81)),
        ("r2_c3.tif", "", {"pattern": "r{row:d}_c{col:d}.tif", "step_um": (12.0, 8.0), "px_um": (0.5,)}, (32, 72)),
        ("r2_c3.tif", "", {"pattern": "r{row:d}_c{col:d}.tif", "flip_y": True}, (-40, 90)),
        ("x40_y7.tif", "", {"pattern": "x{x_px:f}_y{y_px:f}.tif"}, (7, 40)),
        (
            "x20_y3.5.tif", "",
            {"pattern": "x{x_um:f}_y{y_um:f}.tif", "anchor": "corner", "px_um": (0.5,)}, (7, 40),
        ),
    ],
)  # fmt: skip
def test_conventions(place: Place, name: str, table: str, options: dict[str, Any], corner: tuple[int, int]) -> None:
    assert place(name, table, **options) == corner


@pytest.mark.parametrize(
    ("table", "options", "why"),
    [
        ("", {}, "nothing tells where a.tif lies"),
        ("file,x_px,y_px\nb.tif,1,1\n", {}, "positions.csv has no line about a.tif"),
        ("x_px,y_px\n1,1\n", {}, "does not tell which file a line is about: expected a column `file`"),
        ("file,x_px,y_px\na.tif,1,1\na.tif,2,2\n", {}, "lines 2 and 3 are both about a.tif"),
    ],
)
def test_what_may_come_later(place: Place, table: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(NoPositionYetError, match=why):
        place("a.tif", table, **options)


@pytest.mark.parametrize(
    ("table", "options", "why"),
    [
        ("file,x_um,y_um\na.tif,1,1\n", {}, r"no columns x_px,y_px.*plugins\.watch_folder\.columns = \"x_um,y_um\""),
        ("file,x_um,y_um\na.tif,1,1\n", UM, r"upper left corner of each frame or of its centre.*anchor"),
        (
            "file,x_um,y_um\na.tif,1,1\n", {"columns": ("x_um", "y_um"), "anchor": "centre"},
            r"how large is a pixel\? Set plugins\.watch_folder\.px_um",
        ),
        ("file,x_px,y_px\na.tif,1,here\n", {}, "line 2: expected a number in y_px, got 'here'"),
        ("file,a,b\na.tif,1,1\n", {"columns": ("a", "b")}, "are these pixels or micrometres"),
        ("", {"positions": "ome"}, "nothing tells where a.tif lies: it has no OME-XML"),
        ("", {"pattern": "r{row:d}_c{col:d}.tif"}, r"a\.tif does not fit plugins\.watch_folder\.pattern"),
    ],
)  # fmt: skip
def test_what_has_to_be_told(place: Place, table: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        place("a.tif", table, **options)
    assert not isinstance(caught.value, NoPositionYetError)


def test_a_table_that_grows(tmp_path: Path) -> None:
    now_s = [0.0]
    for name in ("a.npy", "b.npy"):
        (tmp_path / name).write_bytes(encoded(np.ones(SHAPE, "u2"), ".npy"))
    positions = Positions(WatchFolderOptions(), lambda: now_s[0])

    def find(name: str) -> tuple[float, float]:
        source = positions.open(tmp_path / name)
        return positions.find(tmp_path / name, source, positions.geometry(source))[0].pos_um

    table = tmp_path / "positions.csv"
    table.write_text("file,x_px,y_px\na.npy,0,0\nb.npy,1")
    assert find("a.npy") == (15.0, 10.0)
    with pytest.raises(NoPositionYetError, match=r"no line about b\.npy"):
        find("b.npy")
    with table.open("a") as file:
        file.write("00,7")  # without an end of line: it may go on
    with pytest.raises(NoPositionYetError, match=r"no line about b\.npy"):
        find("b.npy")
    now_s[0] = 1.0  # and it does not
    assert find("b.npy") == (115.0, 17.0)
