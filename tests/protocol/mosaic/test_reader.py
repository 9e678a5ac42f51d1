"""Reading regions: into what, in which coordinates, and what becomes of that which is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from array_source import ArraySource
from tilecast_protocol.client import TileRef
from tilecast_protocol.errors import DisconnectedError
from tilecast_protocol.mosaic import MissingPlaneError, Mosaic
from tilecast_protocol.mosaic.progress import LONG_S
from tilecast_protocol.rects import Rect

PLANE = np.arange(1, 601, dtype="<u2").reshape(20, 30)


def made(**options: Any) -> Mosaic:
    return Mosaic(ArraySource({(0, 0, 0): PLANE, (0, 2, 0): PLANE + 1000}, **options))


def covered() -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.ones(PLANE.shape, np.bool_)
    mask[5:12, 10:] = False
    return mask


@pytest.mark.parametrize("roi", [(2, 3, 17, 29), (-5, -7, 40, 50)], ids=["inside", "beyond"])
@pytest.mark.parametrize("with_holes", [False, True])
def test_into_anything_that_takes_slices(tmp_path: Path, roi: Any, with_holes: bool) -> None:
    mosaic = made(covered=covered() if with_holes else None)
    expected = mosaic.read(roi, c=None, fill=7)
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: uv sync --group microscopes")
    zarr = pytest.importorskip("zarr", reason="zarr is not installed: uv sync --group viewers")
    with h5py.File(tmp_path / "out.h5", "w") as file:
        outs = [
            np.zeros(expected.shape, "<u2"),
            np.zeros(expected.shape, "<f8"),
            np.asfortranarray(np.zeros(expected.shape, "<u4")),
            np.memmap(tmp_path / "out.raw", "<u2", "w+", shape=expected.shape),
            file.create_dataset("pixels", expected.shape, "<u2", chunks=(1, 5, 5)),
            zarr.create_array(tmp_path / "out.zarr", shape=expected.shape, dtype="<u2", chunks=(1, 6, 7)),
        ]
        for out in outs:
            assert mosaic.read(roi, c=None, out=out, fill=7) is out
            np.testing.assert_array_equal(out[...], expected)


def test_what_out_cannot_hold_is_refused() -> None:
    mosaic = made(covered=covered())
    with pytest.raises(ValueError, match=r"shape of what is read, \(20, 30\)"):
        mosaic.read(out=np.zeros((20, 31), "<u2"))
    with pytest.raises(ValueError, match=r"uint8, which cannot hold the mosaic's uint16"):
        mosaic.read(out=np.zeros((20, 30), "u1"))
    for fill in (-1, 0.5, 70_000, np.nan):
        with pytest.raises(ValueError, match="fill must be a value of uint16"):
            mosaic.read(fill=fill)
    found = mosaic.read(out=np.zeros((20, 30), "<f4"), fill=np.nan)
    np.testing.assert_array_equal(found, np.where(covered(), PLANE, np.nan))


def test_coverage_and_what_is_filled() -> None:
    mosaic = made(covered=covered())
    found = mosaic.read((-2, 0, 18, 30), coverage=True, fill=3, axes="xy")
    expected = np.vstack([np.zeros((2, 30), bool), covered()[:18]])
    np.testing.assert_array_equal(found.coverage, expected.T)
    values = np.vstack([np.zeros((2, 30), "<u2"), PLANE[:18]])
    np.testing.assert_array_equal(found.pixels, np.where(expected, values, 3).T)


def test_missing_planes_are_filled_or_refused() -> None:
    mosaic = made()
    found = mosaic.read(c=None, fill=9)
    np.testing.assert_array_equal(found, np.stack([PLANE, np.full_like(PLANE, 9), PLANE + 1000]))
    for c in (None, 1, 17):
        with pytest.raises(MissingPlaneError, match="no frame in plane"):
            mosaic.read(c=c, missing="raise")
    mosaic.read(c=[0, 2], missing="raise")
    with pytest.raises(ValueError, match="missing is"):
        mosaic.read(missing="sometimes")  # type: ignore[call-overload]


def test_regions_that_are_none() -> None:
    mosaic = made()
    for roi in ((0, 0, 0, 5), (5, 5, 0, 0), (0, 0, 5), "all", (0, 0, np.nan, 5), ((0, 0), (0, 5))):
        with pytest.raises(ValueError, match=r"region|could not convert"):
            mosaic.read(roi)
    with pytest.raises(ValueError, match="space is"):
        mosaic.read((0, 0, 5, 5), space="mm")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="origin is"):
        mosaic.read((0, 0, 5, 5), origin="here")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="no canvas in them"):
        mosaic.read(((0, 0), (5, 5)), space="um", origin="canvas")


@pytest.mark.parametrize(
    ("affine", "um", "bounds"),
    [
        (((0.325, 0), (0, 0.65)), ((0.325, 0.65), (3.25, 6.5)), Rect(1, 1, 10, 10)),
        (((0.325, 0), (0, 0.65)), ((0.33, 0.7), (3.0, 6.0)), Rect(1, 1, 10, 10)),
        (((-0.5, 0), (0, 0.5)), ((-5.0, 1.0), (-1.0, 4.0)), Rect(2, 2, 8, 10)),
        (((0, 0.5), (0.25, 0)), ((1.0, 1.0), (3.0, 2.0)), Rect(2, 4, 6, 8)),
    ],
    ids=["pixels", "widened", "flipped", "swapped"],
)
def test_stage_micrometres_through_the_affine(affine: Any, um: Any, bounds: Rect) -> None:
    mosaic = made(affine=affine)
    np.testing.assert_array_equal(
        mosaic.read(um, space="um"), PLANE[bounds.row0 : bounds.row1, bounds.col0 : bounds.col1]
    )
    corner = mosaic.to_um(3, 4)
    assert mosaic.to_pixels(*corner) == pytest.approx((3, 4))


def test_a_camera_that_lies_askew_gives_the_rectangle_around() -> None:
    mosaic = made(affine=((0.4, 0.3), (-0.3, 0.4)))
    corners = [mosaic.to_pixels(x, y) for x in (4, 7) for y in (0, 2)]
    rows, cols = [row for row, _ in corners], [col for _, col in corners]
    found = mosaic.read(((4, 0), (7, 2)), space="um")
    row0, col0 = int(np.floor(min(rows))), int(np.floor(min(cols)))
    row1, col1 = int(np.ceil(max(rows))), int(np.ceil(max(cols)))
    assert found.shape == (row1 - row0, col1 - col0)
    np.testing.assert_array_equal(found, PLANE[row0:row1, col0:col1])


def test_places_are_exact_for_every_pixel_size() -> None:
    """What begins at a whole pixel gets no row more because a quotient was rounded."""
    for px_um in (0.1, 0.325, 0.65, 1 / 3, 0.1625):
        mosaic = made(affine=((px_um, 0), (0, px_um)))
        for row in range(1, 20):
            found = mosaic.read(((px_um * row, px_um * row), (px_um * 20, px_um * 20)), space="um")
            assert found.shape == (20 - row, 20 - row)


def test_progress_is_told_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    mosaic = made()
    told: list[tuple[int, int]] = []
    mosaic.read(progress=lambda done, total: told.append((done, total)))
    assert told == [(number, 12) for number in range(1, 13)]
    mosaic.read(progress=False)
    mosaic.read()
    assert capsys.readouterr().err == ""
    mosaic.read(progress=True)
    assert "reading tiles" in capsys.readouterr().err
    assert LONG_S > 0


def test_a_read_that_fails_half_way_leaves_nothing_behind() -> None:
    source = ArraySource({(0, 0, 0): PLANE})
    mosaic = Mosaic(source, threads=4)

    def fail(ref: TileRef) -> None:
        if ref.row == 1:
            raise DisconnectedError("the cable was pulled")

    source.before_tile = fail
    with pytest.raises(DisconnectedError, match="cable"):
        mosaic.read()
    source.before_tile = lambda _: None
    np.testing.assert_array_equal(mosaic.read(), PLANE)
    mosaic.close()
    mosaic.close()
    with pytest.raises(ValueError, match="closed"):
        mosaic.read()


def test_settings_that_cannot_be() -> None:
    source = ArraySource({(0, 0, 0): PLANE})
    with pytest.raises(ValueError, match="at least one thread"):
        Mosaic(source, threads=0)
    with pytest.raises(ValueError, match="0 or more"):
        Mosaic(source, cache_items=-1)
    with pytest.raises(TypeError, match=r"Mosaic\.open"):
        Mosaic(source).__reduce__()
    assert "made" in repr(Mosaic(source))
