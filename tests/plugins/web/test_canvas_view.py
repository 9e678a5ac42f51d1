"""Between signed tiles and a viewer's: every tile of the canvas has one place, and nothing else has any."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import mosaic_reference
from tilecast.geometry import PlaneKey, Rect
from tilecast_plugins.web.canvas_view import CanvasView, halved
from tilecast_plugins.web.gateway import NotFoundError
from web_views import boxes, made_run, made_view, views


@given(views())
def test_every_level_is_whole_tiles_and_half_of_the_one_below(view: CanvasView) -> None:
    for level in range(view.levels):
        height, width = view.size(level)
        assert (height % view.tile_size, width % view.tile_size) == (0, 0)
        assert (height << level, width << level) == view.size(0)
    assert max(view.grid(view.levels - 1)) <= 2


@given(boxes(), st.data())
def test_the_tile_at_a_place_shows_the_pixels_of_that_place(bbox: Rect, data: st.DataObject) -> None:
    view = made_view(bbox, tile_size=32)
    level = data.draw(st.integers(0, view.levels - 1))
    rows, cols = view.grid(level)
    row, col = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - 1))
    there = view.key(level, row, col).rect(32)
    assert there == view.signed(level, Rect(row * 32, col * 32, row * 32 + 32, col * 32 + 32))
    assert view.canvas.rect.row0 + (row * 32 << level) == there.row0 << level
    assert view.canvas.at_level(level).contains(there)


@given(views(), st.integers(-3, 30), st.integers(-3, 2000), st.integers(-3, 2000))
def test_outside_of_the_canvas_there_is_nothing(view: CanvasView, level: int, row: int, col: int) -> None:
    inside = 0 <= level < view.levels and 0 <= row < view.grid(level)[0] and 0 <= col < view.grid(level)[1]
    if inside:
        view.key(level, row, col)
    else:
        with pytest.raises(NotFoundError, match="asked for"):
            view.key(level, row, col)


def test_a_run_without_frames_has_no_view() -> None:
    with pytest.raises(NotFoundError, match="no frame of it has been placed"):
        CanvasView.of(replace(made_run(), canvas=None))


def test_planes_are_those_planned_and_those_seen() -> None:
    view = made_view(planes=(PlaneKey(), PlaneKey(0, 3, 1)), planned={"t": 2, "c": 3})
    assert view.shape == (2, 4, 2)
    assert view.plane(0, 3, 1) == PlaneKey(0, 3, 1)
    with pytest.raises(NotFoundError, match="z = 0 to 1; asked for 2"):
        view.plane(0, 0, 2)
    with pytest.raises(NotFoundError, match="t = 0 to 1"):
        view.plane(-1, 0, 0)


def test_channels_have_their_own_colours_or_ones_that_differ() -> None:
    told = made_view(planes=(PlaneKey(0, 1, 0),), channels=[{"name": "DAPI", "color": "#0000ff"}, {"name": "x"}])
    assert (told.run.channel(0).label, told.run.channel(0).color) == ("DAPI", "0000FF")
    assert told.run.channel(1).label == "x"
    assert told.run.channel(1).color != told.run.channel(0).color
    assert made_view().run.channel(0).color == "FFFFFF"
    assert made_view(channels=[{"name": "a", "color": "bluish"}]).run.channel(0).color == "FFFFFF"


@pytest.mark.parametrize(
    ("start", "steps"),
    [
        ({"px_um": [0.5, 0.25]}, (0.25, 0.5)),
        ({"affine": [[-0.5, 0], [0, 0.25]]}, (0.25, -0.5)),
        ({"affine": [[0.3, -0.4], [0.4, 0.3]]}, (0.5, 0.5)),
        ({"affine": [[0, 2.0], [-1.0, 0]]}, (2.0, 1.0)),
    ],
)
def test_steps_are_signed_where_axes_are_the_stages(start: dict[str, object], steps: tuple[float, float]) -> None:
    assert made_view(**start).run.steps_um == pytest.approx(steps)


@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<f4"])
@given(seed=st.integers(0, 1000), height=st.integers(1, 9), width=st.integers(1, 9))
def test_halving_is_the_daemons_reduction(dtype: str, seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (height, width)).astype(dtype)
    covered = rng.random((height, width)) < 0.7
    values[~covered] = np.nan if dtype == "<f4" else 0
    padded = (height + height % 2, width + width % 2)
    full_values, full_covered = np.full(padded, np.nan if dtype == "<f4" else 0, dtype), np.zeros(padded, bool)
    full_values[:height, :width], full_covered[:height, :width] = values, covered
    expected, expected_covered = mosaic_reference.reduce(full_values, full_covered)
    found, mask = halved(values, None if covered.all() else covered)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.ones(found.shape, bool) if mask is None else mask, expected_covered)
    assert found.dtype == np.dtype(dtype)
