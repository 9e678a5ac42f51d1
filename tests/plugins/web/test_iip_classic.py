"""The grammar of classic IIP: what viewers of iipsrv write is read, everything else is refused in one sentence."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecast_plugins.web import iip
from tilecast_plugins.web import iip_classic as classic
from web_views import UUID, made_view, views


@pytest.mark.parametrize(
    ("query", "command"),
    [
        ("OBJ=IIP,1.0&OBJ=Max-size&obj=Tile-size", classic.Objects(("IIP,1.0", "Max-size", "Tile-size"))),
        ("jtl=3,18", iip.Tile(3, 18, "jpg")),
        ("PTL=0,0", iip.Tile(0, 0, "png")),
        ("WTL=0,0", iip.Tile(0, 0, "webp")),
        ("JTLS=0,3,18,90", iip.Tile(3, 18, "jpg")),
        ("CVT=JPEG", classic.Picture((0, 0, 1, 1), None, None, "jpg")),
        ("WID=300&HEI=200&RGN=0.25,0.5,0.5,0.5&CVT=png", classic.Picture((0.25, 0.5, 0.75, 1), 300, 200, "png")),
        ("RGN=-0.5,0.9,1,1&CVT=webp", classic.Picture((0, 0.9, 0.5, 1), None, None, "webp")),
        ("PFL=2:5,7-25,7", classic.Line(2, 5, 7, 20, 1)),
        ("PFL=2:5,7-5,9", classic.Line(2, 5, 7, 1, 2)),
        ("PFL=2:5,7", classic.Line(2, 5, 7, 1, 1)),
    ],
)
def test_commands(query: str, command: object) -> None:
    request = classic.parse(f"FIF={UUID}/3&{query}")
    assert (request.run, request.epoch, request.c) == (UUID, 3, None)
    assert request.command == command


def test_settings_and_images() -> None:
    request = classic.parse(
        "fif=r/1/2/3/4&minmax=0:10,200&MINMAX=-:1,2&Cnt=1.5&GAM=0.8&CMP=HOT&INV&QLT=70&SDS=1,2&JTL=0,0"
    )
    assert (request.epoch, request.t, request.z, request.c) == (1, 2, 3, 4)
    assert request.minmax == {0: (10, 200), None: (1, 2)}
    assert (request.contrast, request.exponent, request.colour_map) == (1.5, 0.8, "hot")
    assert (request.invert, request.quality) == (True, 70)
    assert classic.parse("FIF=r/1&CNT=stretch&CMP=none&JTL=0,0").contrast == 1
    assert classic.parse("FIF=r/1&CMP=none&JTL=0,0").colour_map is None


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "FIF=run/epoch names the image"),
        ("FIF=r&JTL=0,0", "FIF must be written"),
        ("FIF=r/1", "nothing was asked for"),
        ("FIF=r/1&JTL=9", "JTL must be written"),
        ("FIF=r/1&ROT=90&JTL=0,0", "ROT is not served"),
        ("FIF=r/1&SHD=1,1&JTL=0,0", "SHD is not served"),
        ("FIF=r/1&CVT=tiff", "CVT is jpeg, png or webp"),
        ("FIF=r/1&CVT=jpeg&RGN=1,1:5,5", "RGN must be written"),
        ("FIF=r/1&CVT=jpeg&RGN=0,0,0,0", "RGN lies outside"),
        ("FIF=r/1&CVT=jpeg&RGN=1.5,0,1,1", "RGN lies outside"),
        ("FIF=r/1&CVT=jpeg&WID=x", "WID must be written"),
        ("FIF=r/1&PFL=1,1:5,5", "PFL must be written"),
        ("FIF=r/1&MINMAX=1:nan,1&JTL=0,0", "MINMAX must be written"),
        ("FIF=r/1&CNT=eq&JTL=0,0", "CNT must be a number from 0 to 1000"),
        ("FIF=r/1&GAM=log&JTL=0,0", "GAM must be a number"),
        ("FIF=r/1&" + "x" * 9000, "at most 8192"),
    ],
)
def test_what_cannot_be_read_is_said(query: str, says: str) -> None:
    with pytest.raises(iip.IIPError, match=says):
        classic.parse(query)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["OBJ", "jtl", "JTLS", "CVT", "RGN", "WID", "HEI", "PFL", "MINMAX", "CNT", "GAM", "QLT"]),
            st.one_of(st.text(max_size=30), st.from_regex(r"[0-9:,.+e-]{0,20}")),
        ),
        max_size=6,
    )
)
def test_any_query_is_read_or_refused(pairs: list[tuple[str, str]]) -> None:
    query = "&".join(f"{key}={quote(value)}" for key, value in [("FIF", "r/1"), *pairs])
    try:
        request = classic.parse(query)
    except iip.IIPError:
        return
    assert 0 <= request.contrast <= 1000
    if isinstance(request.command, classic.Picture):
        left, top, right, bottom = request.command.region
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1


def test_objects_are_told_in_the_order_in_which_they_were_asked_for() -> None:
    view = made_view()
    height, width = view.size(0)
    asked = classic.Objects(
        ("IIP,1.0", "Resolution-number", "MAX-SIZE", "nonsense", "Colorspace,*,*", "Bits-per-channel")
    )
    assert classic.objects_text(view, asked, [(5.0, 4000.0)]).split("\r\n") == [
        "IIP:1.0",
        f"Resolution-number:{view.levels}",
        f"Max-size:{width} {height}",
        "Error/12:3 2 nonsense",
        f"Colorspace,0-{view.levels - 1},0:0 0 1 1 0",
        "Bits-per-channel:16",
        "",
    ]
    basic = classic.objects_text(view, classic.Objects(("Basic-info",)), [(0.0, 1.0)] * 2)
    assert basic.startswith("IIP-server:3.65\r\n")
    assert "0 3 3 0 1 2\r\n" in basic


@given(views(), st.tuples(*[st.floats(0, 1)] * 4), st.integers(1, 3000), st.integers(1, 3000))
def test_pictures_fit_and_are_made_of_enough_pixels(
    view: object, corners: tuple[float, float, float, float], most_wide: int, most_high: int
) -> None:
    (left, right), (top, bottom) = sorted(corners[:2]), sorted(corners[2:])
    if not (left < right and top < bottom):
        return
    picture = classic.Picture((left, top, right, bottom), most_wide, most_high, "jpg")
    level, bounds, (rows, cols) = classic.picture_bounds(view, picture)  # type: ignore[arg-type]
    assert cols <= most_wide
    assert rows <= most_high
    height, width = view.size(level)  # type: ignore[attr-defined]
    assert 0 <= bounds.row0 < bounds.row1 <= height
    assert 0 <= bounds.col0 < bounds.col1 <= width
    # Not magnified, but for what lies between two pixels; nor from a level that has many more pixels than are needed.
    assert bounds.height >= rows - 1
    assert bounds.width >= cols - 1
