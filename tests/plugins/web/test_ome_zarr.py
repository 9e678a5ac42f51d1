"""Documents of OME-Zarr: where pixel centres are, at every level; what else readers insist on is for real readers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecast.geometry import PlaneKey, Rect, place_centre
from tilecast_plugins import ngff
from tilecast_plugins.web.canvas_view import CanvasView
from tilecast_plugins.web.ome_zarr import image_of
from web_views import made_view, views


def placed(view: CanvasView, level: int) -> tuple[list[float], list[float]]:
    """Scale and translation of y and x."""
    scale, translation = ngff.transformations(image_of(view), level)
    assert (scale["type"], translation["type"]) == ("scale", "translation")
    assert scale["scale"][:3] == [1, 1, 1]
    assert translation["translation"][:3] == [0, 0, 0]
    return scale["scale"][3:], translation["translation"][3:]


@given(views())
def test_a_mean_lies_in_the_middle_of_its_pixels(view: CanvasView) -> None:
    (step_y, step_x), origin = placed(view, 0)
    for level in range(view.levels):
        scale, translation = placed(view, level)
        assert scale == [step_y * 2**level, step_x * 2**level]
        moved = (2**level - 1) / 2
        assert translation == pytest.approx([origin[0] + moved * step_y, origin[1] + moved * step_x])


@given(st.integers(-5000, 5000), st.integers(-5000, 5000), st.sampled_from([0.5, -0.5]), st.sampled_from([0.25, -0.25]))
def test_positions_are_the_stages(row: int, col: int, x_um: float, y_um: float) -> None:
    """The centre of a frame of one pixel, placed by its stage position, is where the pixel is said to be."""
    affine = [[x_um, 0.0], [0.0, y_um]]
    view = made_view(Rect(row, col, row + 1, col + 1), affine=affine)
    (scale_y, scale_x), (origin_y, origin_x) = placed(view, 0)
    index_row, index_col = row - view.canvas.rect.row0, col - view.canvas.rect.col0
    centre = (origin_x + index_col * scale_x, origin_y + index_row * scale_y)
    assert centre == pytest.approx(((col + 0.5) * x_um, (row + 0.5) * y_um))
    assert place_centre(centre, affine, (1, 1)) == (row, col)


def test_rotation_is_told_beside() -> None:
    view = made_view(affine=[[0.3, -0.4], [0.4, 0.3]])
    assert placed(view, 0)[0] == pytest.approx([0.5, 0.5])
    document = ngff.group_document(image_of(view), "0.5", [(0.0, 1.0)])
    assert document["tilecast"]["affine_um"] == [[0.3, -0.4], [0.4, 0.3]]


def test_both_versions_say_the_same() -> None:
    view = made_view(planes=(PlaneKey(1, 1, 2),), channels=[{"name": "a", "color": "ff0000"}, {"name": "b"}])
    windows = [(10.0, 200.0), (5.0, 300.0)]
    old = ngff.group_document(image_of(view), "0.4", windows)
    new = ngff.group_document(image_of(view), "0.5", windows)["ome"]
    (multiscale,) = old["multiscales"]
    assert multiscale.pop("version") == "0.4"
    assert new["version"] == "0.5"
    assert new["multiscales"] == [multiscale]
    assert [dataset["path"] for dataset in multiscale["datasets"]] == [str(level) for level in range(view.levels)]
    window = new["omero"]["channels"][0]["window"]
    assert window == {"start": 10.0, "end": 200.0, "min": 0.0, "max": 65535.0}
    assert new["omero"]["channels"][0]["color"] == "FF0000"
    assert ngff.array_shape(image_of(view), 0) == [2, 2, 3, *view.size(0)]


@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<f4"])
def test_documents_are_json(dtype: str) -> None:
    view = made_view(dtype=dtype)
    for document in (
        ngff.zarray_document(image_of(view), 0),
        ngff.array_document(image_of(view), 0),
        ngff.group_document(image_of(view), "0.4", [(0.0, 1.5)]),
    ):
        assert json.loads(json.dumps(document, allow_nan=False)) == document
