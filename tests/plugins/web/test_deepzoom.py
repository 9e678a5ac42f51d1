"""DeepZoom: its levels, its sizes, its descriptor."""

from __future__ import annotations

import itertools
import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecast_plugins.web import deepzoom
from tilecast_plugins.web.canvas_view import CanvasView
from tilecast_plugins.web.gateway import NotFoundError
from web_views import made_view, views


@given(st.integers(1, 1 << 30), st.integers(1, 1 << 30))
def test_the_top_level_is_the_logarithm(width: int, height: int) -> None:
    assert deepzoom.top_level(width, height) == math.ceil(math.log2(max(width, height)))


@given(views())
def test_levels_end_at_one_pixel_and_our_levels_are_among_them(view: CanvasView) -> None:
    height, width = view.size(0)
    top = deepzoom.top_level(width, height)
    sizes = [deepzoom.level_size(view, deepzoom.our_level(view, level)) for level in range(top + 1)]
    assert sizes[0] == (1, 1)
    assert sizes[-view.levels :] == [view.size(level) for level in reversed(range(view.levels))]
    assert all(big in (2 * small, 2 * small - 1) for (small, _), (big, _) in itertools.pairwise(sizes))
    for level in (-1, top + 1):
        with pytest.raises(NotFoundError, match="DeepZoom levels"):
            deepzoom.our_level(view, level)


def test_descriptor() -> None:
    view = made_view()
    image = ElementTree.fromstring(deepzoom.descriptor(view, "png"))
    space = "{http://schemas.microsoft.com/deepzoom/2008}"
    assert image.tag == f"{space}Image"
    assert image.attrib == {"TileSize": "256", "Overlap": "0", "Format": "png"}
    (size,) = image
    height, width = view.size(0)
    assert (size.tag, size.attrib) == (f"{space}Size", {"Width": str(width), "Height": str(height)})
