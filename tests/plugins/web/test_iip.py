"""The IIP grammar: what clients were seen to send is read, everything else is refused in one sentence."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecast.geometry import PlaneKey
from tilecast_plugins.web import iip
from tilecast_plugins.web.canvas_view import CanvasView
from web_views import UUID, made_view, views


@pytest.mark.parametrize(
    ("query", "command"),
    [
        ("obj=IIP,1.0&obj=Max-size&obj=Tile-size&obj=Resolution-number&obj=Resolutions", iip.Header()),
        ("INFO", iip.Information()),
        ("INFO=", iip.Information()),
        ("CHAN=1&JTL=3,18", iip.Tile(3, 18, "jpg")),
        ("PTL=0,0", iip.Tile(0, 0, "png")),
        ("WTL=0,0", iip.Tile(0, 0, "webp")),
        ("RGN=1,1:512,256", iip.Region(1, 1, 512, 256, 0)),
        ("RGN=512,1:1,256&BIN=4", iip.Region(1, 1, 512, 256, 2)),
        ("CHAN=1&VAL=-3,9", iip.Value(-3, 9)),
        ("PFL=1,2:30,-4", iip.Profile(1, 2, 30, -4)),
    ],
)
def test_commands(query: str, command: object) -> None:
    request = iip.parse(f"FIF={UUID}/3&{query}")
    assert request.image == iip.Image(UUID, 3)
    assert request.command == command


def test_settings_as_visiomatics_page_sends_them() -> None:
    query = f"FIF={UUID}/3/1/2&CMP=jet&INV&CNT=1.5&GAM=0.8000&CHAN=1&MINMAX=1:10,200&QLT=70&JTL=3,18"
    request = iip.parse(query)
    assert request.image == iip.Image(UUID, 3, 1, 2)
    assert request.settings == iip.Settings(
        channels=(0,), minmax={0: (10, 200)}, contrast=1.5, exponent=0.8, colour_map="jet", invert=True, quality=70
    )


def test_settings_are_repeatable_and_the_last_counts() -> None:
    settings = iip.parse(
        "FIF=r/1&MINMAX=1:0,1&MINMAX=3:-1e2,.5&MINMAX=1:2,3&MIX=2:1,0.5,-0.25&CHAN=2&CHAN=1&BRT=-20&JTL=0,0"
    ).settings
    assert settings.minmax == {0: (2, 3), 2: (-100, 0.5)}
    assert settings.mix == {1: (1, 0.5, -0.25)}
    assert settings.channels == (1, 0)
    assert settings.brightness == -20


def test_nothing_asked_leaves_the_defaults() -> None:
    assert iip.parse("FIF=r/1&JTL=0,0&SDS=1,2&WID=3").settings == iip.Settings()


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "first key must be FIF"),
        ("JTL=0,0&FIF=r/1", "first key must be FIF"),
        ("fif=r/1&JTL=0,0", "first key must be FIF"),
        ("FIF=r/1", "nothing was asked for"),
        ("FIF=r/1&jtl=0,0", "nothing was asked for"),
        ("FIF=a/b/c&JTL=0,0", "FIF must be written"),
        ("FIF=r/1/2&JTL=0,0", "FIF must be written"),
        ("FIF=/1&JTL=0,0", "FIF must be written"),
        ("FIF=r/1&JTL=0", "JTL must be written"),
        ("FIF=r/1&JTL=-1,0", "JTL must be written"),
        ("FIF=r/1&JTL=٣,0", "JTL must be written"),
        ("FIF=r/1&CHAN=0&JTL=0,0", "counted from 1"),
        ("FIF=r/1&CHAN=x&JTL=0,0", "CHAN must be"),
        ("FIF=r/1&MINMAX=0,1&JTL=0,0", "MINMAX must be written"),
        ("FIF=r/1&MINMAX=1:nan,1&JTL=0,0", "MINMAX must be written"),
        ("FIF=r/1&MINMAX=1:1e300,1&JTL=0,0", "too large"),
        ("FIF=r/1&MIX=1:1,1&JTL=0,0", "MIX must be written"),
        ("FIF=r/1&CNT=1001&JTL=0,0", "CNT must be a number from 0 to 1000"),
        ("FIF=r/1&GAM=0.1&JTL=0,0", "GAM must be a number from 0.2 to 5"),
        ("FIF=r/1&BRT=1e3&JTL=0,0", "BRT must be"),
        ("FIF=r/1&QLT=nan&JTL=0,0", "QLT must be"),
        ("FIF=r/1&CMP=viridis&JTL=0,0", "CMP must be one of grey, jet"),
        ("FIF=r/1&BIN=3&RGN=1,1:2,2", "power of two"),
        ("FIF=r/1&BIN=0&RGN=1,1:2,2", "power of two"),
        ("FIF=r/1&RGN=0.1,0.2,0.3,0.4", "RGN must be written"),
        ("FIF=r/1&PFL=1,1", "PFL must be written"),
        ("FIF=r/1&" + "CHAN=1&" * 65 + "VAL=1,1", "at most 64"),
        ("FIF=r/1&" + "x" * 9000, "at most 8192"),
    ],
)
def test_what_cannot_be_read_is_said(query: str, says: str) -> None:
    with pytest.raises(iip.IIPError, match=says):
        iip.parse(query)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["FIF", "JTL", "RGN", "BIN", "CHAN", "MINMAX", "MIX", "PFL", "VAL", "CNT", "QLT", "CMP"]),
            st.one_of(st.text(max_size=30), st.from_regex(r"[0-9:,.+e-]{0,20}")),
        ),
        max_size=6,
    )
)
def test_any_query_is_read_or_refused(pairs: list[tuple[str, str]]) -> None:
    query = "&".join(f"{key}={quote(value)}" for key, value in [("FIF", "r/1"), *pairs])
    try:
        request = iip.parse(query)
    except iip.IIPError:
        return
    assert 0 <= request.settings.contrast <= 1000


@given(views(), st.data())
def test_tiles_are_numbered_row_by_row_from_the_smallest_level(view: CanvasView, data: st.DataObject) -> None:
    resolution = data.draw(st.integers(0, view.levels - 1))
    rows, cols = view.grid(view.levels - 1 - resolution)
    row, col = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - 1))
    place = iip.tile_place(view, iip.Tile(resolution, row * cols + col, "jpg"))
    assert place == (view.levels - 1 - resolution, row, col)


def test_the_header_is_read_as_openseadragon_reads_it() -> None:
    view = made_view()
    text = iip.header_text(view, [(5.0, 4000.0)])
    height, width = view.size(0)
    assert [int(part.split("\n")[0]) for part in text.split("Max-size:")[1].split(" ")[:2]] == [width, height]
    sizes = text.split("Resolutions:")[1].split("\n")[0].split(",")
    assert len(sizes) == int(text.split("Resolution-number:")[1].split("\n")[0]) == view.levels
    assert sizes == ["{1} {0}".format(*view.size(level)) for level in reversed(range(view.levels))]
    assert text.startswith("IIP:1.0\n")
    assert "Bits-per-channel:16\n" in text
    assert "Min-Max-sample-values:5 4000\n" in text


def test_information_has_what_visiomatics_page_wants() -> None:
    view = made_view(planes=(PlaneKey(0, 1, 0),))
    found = json.loads(json.dumps(iip.information(view, 0, 0, [(0.0, 10.0), (1.0, 20.0)]), allow_nan=False))
    height, width = view.size(0)
    assert found["type"] == "visiomatic"
    assert found["full_size"] == [width, height]
    assert found["tile_levels"] == view.levels
    assert found["channels"] == 2
    assert found["images"][0]["min_max"] == [[0, 10], [1, 20]]
    assert iip.parse(f"FIF={found['image_name']}&INFO").image == iip.Image(UUID, 3)
    # The page takes floor(full / 2^k) for the size of a level.
    for level in range(view.levels):
        assert (found["full_size"][1] >> level, found["full_size"][0] >> level) == view.size(level)


@given(st.integers(-50, 250), st.integers(-50, 250), st.integers(0, 3))
def test_y_counts_upwards_where_the_name_says_so(y1: int, y2: int, level: int) -> None:
    assert iip.parse("FIF=r/1/up&VAL=1,2").image == iip.Image("r", 1, up=True)
    assert iip.parse("FIF=r/1/2/3/up&VAL=1,2").image == iip.Image("r", 1, 2, 3, up=True)
    low, high = sorted((y1, y2))
    for command in (iip.Value(3, y1), iip.Profile(1, y1, 9, y2), iip.Region(1, low, 9, high, level)):
        once = iip.turned(command, 200)
        assert iip.turned(once, 200) == command
    assert iip.turned(iip.Value(3, 1), 200) == iip.Value(3, 200)
    assert iip.turned(iip.Region(1, 1, 9, 5, 0), 200) == iip.Region(1, 196, 9, 200, 0)
    assert iip.turned(iip.Tile(0, 5, "jpg"), 200) == iip.Tile(0, 5, "jpg")
