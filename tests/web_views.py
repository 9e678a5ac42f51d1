"""Runs as the gateway knows them, made up for tests of its pure parts."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tilecast.geometry import Canvas, PlaneKey, Rect, canvas_for, level_count
from tilecast_plugins.run import Run
from tilecast_plugins.web.canvas_view import CanvasView

BOX = Rect(-300, 40, 500, 900)
UUID = "0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55"


def made_run(
    bbox: Rect = BOX,
    *,
    tile_size: int = 256,
    dtype: str = "<u2",
    planes: tuple[PlaneKey, ...] = (PlaneKey(),),
    canvas: Canvas | None = None,
    epoch: int = 3,
    rev: int = 17,
    planned: dict[str, int] | None = None,
    **start: Any,
) -> Run:
    """A run of frames that cover `bbox`; the rest of its `start` is in `start`."""
    levels = level_count(bbox, tile_size)
    return Run(
        run=UUID,
        name="liver 3",
        instrument="scope",
        stream="cam0",
        state="open",
        epoch=epoch,
        rev=rev,
        levels=levels,
        tile_size=tile_size,
        dtype=np.dtype(dtype),
        bboxes=dict.fromkeys(planes, bbox),
        canvas=canvas or canvas_for(bbox, levels, tile_size),
        start={"px_um": [0.5, 0.25], "dtype": dtype, "planes": planned} | start,
        settings={"tile_size": tile_size},
        created_ns=0,
        n_frames=4,
        report=None,
        revision=0,
    )


def made_view(bbox: Rect = BOX, **more: Any) -> CanvasView:
    """The same, as viewers with non-negative indices see it."""
    return CanvasView.of(made_run(bbox, **more))


@st.composite
def boxes(draw: st.DrawFn, most: int = 20_000) -> Rect:
    """Rectangles on either side of stage (0, 0)."""
    row, col = draw(st.integers(-most, most)), draw(st.integers(-most, most))
    return Rect(row, col, row + draw(st.integers(1, most)), col + draw(st.integers(1, most)))


def views() -> st.SearchStrategy[CanvasView]:
    """Views of any run."""
    return st.builds(made_view, boxes(), tile_size=st.sampled_from([16, 32, 256]))
