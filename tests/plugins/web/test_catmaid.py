"""CATMAID's ten ways to write a tile: each address is read back as the tile that it was written for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecast.geometry import Rect
from tilecast_plugins.web import catmaid
from tilecast_plugins.web.catmaid import CatmaidError, Overview, TileAt
from web_views import UUID, made_view

SIZE = 256

numbers = st.integers(0, 10**6)
tiles = st.builds(
    TileAt,
    z=numbers,
    level=st.integers(0, 30),
    row=numbers,
    col=numbers,
    format=st.sampled_from(["png", "jpg"]),
)


def written(source_type: int, tile: TileAt) -> str:
    """The address behind the base, as SERVING has it."""
    z, level, row, col, ext = tile.z, tile.level, tile.row, tile.col, tile.format
    return {
        1: f"{z}/{row}_{col}_{level}.{ext}",
        4: f"{z}/{level}/{row}_{col}.{ext}",
        5: f"{level}/{z}/{row}/{col}.{ext}",
        6: f"{SIZE}_{SIZE}/{col * SIZE}_{row * SIZE}_{z}/{ext}",
        7: f"largeDataTileSource/{SIZE}/{SIZE}/{level}/{z}/{row}/{col}.{ext}",
        8: f"xy/{level}/{col}_{row}_{z}",
        9: f"{z}/{row}_{col}_{level}.{ext}",
        10: f"s{level}/0_1_2/{SIZE}_{SIZE}/{col * SIZE}_{row * SIZE}_{z}.{ext}",
    }[source_type]


@pytest.mark.parametrize("source_type", [1, 4, 5, 6, 7, 8, 9, 10])
@given(tile=tiles)
def test_an_address_is_read_back(source_type: int, tile: TileAt) -> None:
    found = catmaid.read_path(source_type, written(source_type, tile), SIZE)
    expected = tile
    if source_type == 6:  # has no levels
        expected = TileAt(tile.z, 0, tile.row, tile.col, tile.format)
    if source_type == 8:  # has no extension
        expected = TileAt(tile.z, tile.level, tile.row, tile.col, "jpg")
    assert found == expected


@pytest.mark.parametrize(
    ("source_type", "path"),
    [(1, "7/small.jpg"), (4, "7/small.jpg"), (9, "7/small.jpg"), (5, "small/7.jpg"),
     (7, "largeDataTileSource/256/256/small/7.jpg")],
)  # fmt: skip
def test_overviews(source_type: int, path: str) -> None:
    assert catmaid.read_path(source_type, path, SIZE) == Overview(7, "jpg")


@given(tile=tiles.filter(lambda tile: tile.level < 12), javascript=st.booleans())
def test_a_query_is_read_back(tile: TileAt, javascript: bool) -> None:
    scale = 2.0**-tile.level
    values = {
        "x": str(tile.col * SIZE), "y": str(tile.row * SIZE), "z": str(tile.z), "width": "256", "height": "256",
        "scale": f"{scale:.12g}" if javascript else repr(scale), "row": "y", "col": "x",
    }  # fmt: skip
    assert catmaid.read_query(values, SIZE, 12, tile.format) == tile
    named = values | {"file_extension": "png"}
    assert catmaid.read_query(named, SIZE, 12, "jpg").format == "png"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": "5"}, "multiples of 256"),
        ({"x": "-256"}, "whole number x"),
        ({"y": ""}, "whole number y"),
        ({"width": "100"}, "tiles are 256 × 256"),
        ({"scale": "0.3"}, "scale must be"),
        ({"scale": "nan"}, "scale must be"),
        ({"scale": "0.001953125"}, "down to 0.125"),
        ({"row": "z"}, "row=y&col=x"),
        ({"file_extension": "tif"}, "file_extension must be"),
    ],
)
def test_a_query_that_is_none_of_a_tile_is_refused(change: dict[str, str], says: str) -> None:
    values = {"x": "0", "y": "0", "z": "0", "width": "256", "height": "256", "scale": "1"} | change
    with pytest.raises(CatmaidError, match=says):
        catmaid.read_query(values, SIZE, 4, "jpg")


@pytest.mark.parametrize("source_type", [0, *catmaid.TYPES, 11])
@given(path=st.text(max_size=40))
def test_any_other_path_is_refused(source_type: int, path: str) -> None:
    try:
        found = catmaid.read_path(source_type, path, SIZE)
    except CatmaidError:
        return
    assert isinstance(found, TileAt | Overview)


def test_a_tile_of_another_size_is_refused() -> None:
    for source_type, path in ((6, "512_256/0_0_0/jpg"), (7, "largeDataTileSource/256/128/0/0/0/0.jpg")):
        with pytest.raises(CatmaidError, match="tiles are 256 × 256"):
            catmaid.read_path(source_type, path, SIZE)


@given(
    st.tuples(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30)).filter(lambda pair: pair[0] != pair[1])
    | st.tuples(st.integers(0, 65535).map(float), st.integers(65536, 70000).map(float))
)
def test_grey_levels_are_read_back(window: tuple[float, float]) -> None:
    assert catmaid.read_window(catmaid.window_text(window)) == window


@pytest.mark.parametrize("text", ["", "1", "1_1", "nan_1", "1_2_3", "inf_2", "1_2\n"])
def test_other_grey_levels_are_refused(text: str) -> None:
    with pytest.raises(CatmaidError, match="low_high"):
        catmaid.read_window(text)


def test_stack_info() -> None:
    view = made_view(Rect(-300, 40, 500, 900))
    found = catmaid.stack_info("http://h:1", view, 0, 0, (0.0, 4000.0), (1, 10), "jpg", "p", (300, 500))
    height, width = view.size(0)
    assert found["dimension"] == {"x": width, "y": height, "z": 1}
    assert found["resolution"] == {"x": 500, "y": 250, "z": 1}
    assert found["translation"] == {"x": view.canvas.rect.col0 * 500, "y": view.canvas.rect.row0 * 250, "z": 0}
    assert found["num_zoom_levels"] == view.levels == len(found["downsample_factors"])
    # What CATMAID's own server tells of a stack, and what catpy asks for.
    assert set(found) == {
        "sid", "pid", "ptitle", "stitle", "dimension", "resolution", "translation", "orientation", "broken_slices",
        "canary_location", "mirrors", "downsample_factors", "num_zoom_levels", "comment", "description", "metadata",
        "attribution", "placeholder_color",
    }  # fmt: skip
    assert (found["sid"], found["pid"], found["orientation"], found["broken_slices"]) == ("0.0", "p", 0, {})
    assert found["canary_location"] == {"x": 300, "y": 500, "z": 0}
    assert set(found["placeholder_color"]) == set("rgba")
    for mirror in found["mirrors"]:
        assert {
            "image_base", "tile_width", "tile_height", "tile_source_type", "file_extension", "title", "position",
        } <= set(mirror)  # fmt: skip
    first, last = found["mirrors"]
    assert first["image_base"] == f"http://h:1/catmaid/{UUID}/3/0/0/0_4000/1/"
    assert last["image_base"].endswith("/10/%SCALE_DATASET%/0_1_2/256_256/%AXIS_0%_%AXIS_1%_%AXIS_2%")
    assert (first["tile_source_type"], last["tile_source_type"]) == (1, 10)
