"""Levels against NumPy: whatever slice, whatever size of tiles, wherever the canvas lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from array_source import ArraySource
from tilecast_protocol.mosaic import Mosaic

AXES = "tczyx"


@st.composite
def slices(draw: st.DrawFn, size: int) -> slice:
    """Any slice of an axis, with ends beyond it."""
    ends = st.none() | st.integers(-size - 3, size + 3)
    return slice(draw(ends), draw(ends), draw(st.none() | st.integers(-5, 5).filter(bool)))


@st.composite
def indices(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Any basic index."""
    some = shape[: draw(st.integers(0, len(shape)))]
    entries: list[Any] = [draw(slices(size) | st.integers(-size, size - 1)) for size in some]
    if draw(st.booleans()):
        where = draw(st.integers(0, len(entries)))
        # Behind an ellipsis entries mean the last axes.
        behind = [
            draw(slices(size) | st.integers(-size, size - 1)) for size in shape[len(shape) - len(entries) + where :]
        ]
        entries = [*entries[:where], Ellipsis, *behind]
    for _ in range(draw(st.integers(0, 2))):
        entries.insert(draw(st.integers(0, len(entries))), None)
    return entries[0] if len(entries) == 1 and draw(st.booleans()) else tuple(entries)


@st.composite
def mosaics(draw: st.DrawFn) -> tuple[ArraySource, np.ndarray[Any, Any]]:
    """A source, and all its planes as one array tczyx."""
    counts = tuple(draw(st.integers(1, 2)) for _ in range(3))
    shape = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    whole = rng.integers(1, 255, (*counts, *shape)).astype(draw(st.sampled_from(["u1", "<u2", "<f4"])))
    covered = rng.random(shape) < draw(st.sampled_from([0.2, 1.0]))
    whole[..., ~covered] = np.nan if whole.dtype.kind == "f" else 0
    step = 2 ** draw(st.integers(0, 2))
    place = st.integers(-30, 30).map(lambda n: n * step)
    source = ArraySource(
        {plane: whole[plane] for plane in np.ndindex(*counts)},  # type: ignore[misc]
        covered=covered,
        corner=(draw(place), draw(place)),
        grid=(draw(place), draw(place)),
        tile_shape=(draw(st.integers(1, 16)), draw(st.integers(1, 16))),
        levels=step.bit_length(),
    )
    return source, whole


@given(mosaics(), st.data())
def test_any_slice_is_what_numpy_gives(made: tuple[ArraySource, np.ndarray[Any, Any]], data: st.DataObject) -> None:
    source, whole = made
    level = data.draw(st.integers(0, source.now.levels - 1))
    axes = "".join(data.draw(st.permutations("tczyx")))
    with Mosaic(source) as mosaic:
        array = mosaic.level(level, t=None, c=None, z=None, axes=axes)
        expected = whole[..., :: 2**level, :: 2**level].transpose([AXES.index(axis) for axis in axes])
        assert (array.shape, array.ndim, array.dtype, array.size, array.nbytes) == (
            expected.shape,
            expected.ndim,
            expected.dtype,
            expected.size,
            expected.nbytes,
        )
        index = data.draw(indices(expected.shape))
        found = array[index]
        np.testing.assert_array_equal(found, expected[index])
        assert found.shape == expected[index].shape


@given(mosaics(), st.data())
def test_signed_slices_are_the_same_pixels(made: tuple[ArraySource, np.ndarray[Any, Any]], data: st.DataObject) -> None:
    source, whole = made
    with Mosaic(source) as mosaic:
        array = mosaic.level(0)
        plane = whole[0, 0, 0]
        padded = np.pad(plane, 50, constant_values=np.nan if plane.dtype.kind == "f" else 0)
        row0, row1 = sorted(data.draw(st.tuples(st.integers(-50, 80), st.integers(-50, 80))))
        col0, col1 = sorted(data.draw(st.tuples(st.integers(-50, 80), st.integers(-50, 80))))
        steps = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
        row, col = array.bounds[:2]
        found = array.at[row + row0 : row + row1 : steps[0], col + col0 : col + col1 : steps[1]]
        expected = padded[50 + row0 : 50 + row1 : steps[0], 50 + col0 : 50 + col1 : steps[1]]
        np.testing.assert_array_equal(found[: expected.shape[0], : expected.shape[1]], expected)
        assert array.at[row, col] == plane[0, 0] or np.isnan(plane[0, 0])


def simple(**options: Any) -> tuple[Mosaic, np.ndarray[Any, Any]]:
    plane = np.arange(600, dtype="<u2").reshape(20, 30)
    return Mosaic(ArraySource({(0, 0, 0): plane}, **options)), plane


def test_only_tiles_that_are_needed_are_fetched() -> None:
    mosaic, plane = simple()
    source: Any = mosaic.source
    np.testing.assert_array_equal(mosaic.level(0)[::16, 3], plane[::16, 3])
    assert sorted((ref.row, ref.col) for ref in source.fetched) == [(0, 0), (2, 0)]


def test_coordinates_with_a_sign_need_both_ends() -> None:
    mosaic, plane = simple(corner=(-8, 16))
    level = mosaic.level(0)
    np.testing.assert_array_equal(level.at[-8:0, 16:20], plane[:8, :4])
    np.testing.assert_array_equal(level.at[-1, 16:20], plane[7, :4])
    np.testing.assert_array_equal(level[-1, :4], plane[-1, :4])
    for index in np.s_[:, 16:20], np.s_[-8:, 16:20], np.s_[0:-8:-1, 16:20], np.s_[None, 0:1, 0:1]:
        with pytest.raises(IndexError):
            level.at[index]


def test_a_level_keeps_its_shape_when_the_canvas_moves() -> None:
    mosaic, plane = simple()
    level = mosaic.level(0)
    source: Any = mosaic.source
    larger = np.pad(plane, ((0, 10), (0, 0)))
    other = ArraySource({(0, 0, 0): larger}).now
    source.planes = {(0, 0, 0): larger}
    source.tell(epoch=2, canvas=other.canvas, boxes=other.boxes)
    mosaic.refresh()
    assert (level.shape, mosaic.level(0).shape) == ((20, 30), (30, 30))
    np.testing.assert_array_equal(level[...], plane)


def test_axes_that_cannot_be() -> None:
    mosaic, _ = simple()
    for axes in ("y", "yxy", "yxq", "zyx" * 2):
        with pytest.raises(ValueError, match="axes has each of"):
            mosaic.level(0, axes=axes)
    with pytest.raises(ValueError, match="levels 0 to 0"):
        mosaic.level(1)
    with pytest.raises(ValueError, match="copied"):
        np.array(mosaic.level(0), copy=False)
    with pytest.raises(IndexError, match="too many indices"):
        mosaic.level(0)[0, 0, 0]
    assert [one.axes for one in mosaic.levels(c=None, axes="ycx")] == ["ycx"]
    assert mosaic.level(0).chunks == (8, 8)
    assert "made" in repr(mosaic.level(0))


@example(slice(None, None, -1))
@given(slices(30))
def test_one_axis(index: slice) -> None:
    mosaic, plane = simple()
    np.testing.assert_array_equal(mosaic.level(0)[2, index], plane[2, index])


def test_dask_gets_whole_tiles() -> None:
    pytest.importorskip("dask.array", reason="Dask is not installed: uv sync --group viewers")
    huge = np.broadcast_to(np.uint8(0), (3000, 1100))
    with Mosaic(ArraySource({(0, 0, 0): huge, (0, 1, 0): huge}, tile_shape=(240, 300))) as mosaic:
        assert mosaic.level(0, c=None).to_dask().chunks == ((1, 1), (960, 960, 960, 120), (900, 200))
    mosaic, plane = simple()
    level = mosaic.level(0)
    array = level.to_dask()
    assert (array.shape, array.dtype) == (level.shape, level.dtype)
    assert int(array.sum(dtype="u8").compute(scheduler="threads")) == int(plane.sum(dtype="u8"))
    there = level.to_dask(8)[3:19, ::-7]
    np.testing.assert_array_equal(there.compute(scheduler="threads"), plane[3:19, ::-7])
    assert array.name != level.to_dask().name  # what is computed once is not taken for what is there later
