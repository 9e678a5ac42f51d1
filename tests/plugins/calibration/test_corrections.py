"""Dark, flat field, gain and hot pixels of a camera's channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tilecast import calibration
from tilecast_plugins.calibration.corrections import check, corrector

SHAPE = (5, 7)


def images(low: float, high: float) -> st.SearchStrategy[NDArray[np.float32]]:
    size = SHAPE[0] * SHAPE[1]
    values = st.lists(st.floats(low, high, width=32), min_size=size, max_size=size)
    return values.map(lambda found: np.array(found, np.float32).reshape(SHAPE))


@given(frame=images(0, 65535), dark=images(0, 200), flat=images(0.5, 2), dtype=st.sampled_from(["|u1", "<u2", "<f4"]))
def test_dark_and_flat_are_those_of_the_daemon_bit_for_bit(
    frame: NDArray[Any], dark: NDArray[Any], flat: NDArray[Any], dtype: str
) -> None:
    pixels = np.minimum(frame, 255 if dtype == "|u1" else 65535).astype(dtype)
    expected = calibration.apply(pixels, calibration.freeze(dark=dark, flat=flat, shape=SHAPE))
    image, low, high = corrector({"dark": dark, "flat": flat}, SHAPE, dtype)(pixels)
    np.testing.assert_array_equal(image, expected.pixels)
    assert (low, high) == (expected.n_low, expected.n_high)
    assert image.dtype == pixels.dtype


@given(frame=images(0, 65535), dark=st.floats(0, 500), gain=st.floats(0.1, 10))
def test_numbers_are_images_of_one_value(frame: NDArray[Any], dark: float, gain: float) -> None:
    pixels = frame.astype("<u2")
    numbers = corrector({"dark": check("dark", dark), "gain": check("gain", gain)}, SHAPE, "<u2")(pixels)
    full = {"dark": check("dark", np.full(SHAPE, dark)), "gain": check("gain", np.full(SHAPE, np.float64(gain)))}
    same = corrector(full, SHAPE, "<u2")(pixels)
    assert np.abs(numbers[0].astype(int) - same[0].astype(int)).max() <= 1
    assert (numbers[0] == 65535).sum() >= numbers[2]


@given(frame=images(10, 1000), where=st.tuples(st.integers(0, 4), st.integers(0, 6)))
def test_a_hot_pixel_becomes_the_median_of_its_good_neighbours(frame: NDArray[Any], where: tuple[int, int]) -> None:
    hot = np.zeros(SHAPE)
    hot[where] = 1
    value = check("hot", hot)
    image, low, high = corrector({"hot": value}, SHAPE, "<f4")(frame)
    row, col = where
    around = [
        frame[r, c]
        for r in range(max(0, row - 1), min(5, row + 2))
        for c in range(max(0, col - 1), min(7, col + 2))
        if (r, c) != where
    ]
    assert image[where] == pytest.approx(np.median(around), rel=1e-6)
    image[where] = frame[where]
    np.testing.assert_array_equal(image, frame)
    assert (low, high) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "value", "why"),
    [
        ("flat", 1.0, "flat is an image, not a number"),
        ("gain", 0.0, "expected a finite number above 0"),
        ("dark", float("nan"), "expected a finite number"),
        ("dark", np.full(SHAPE, np.inf), "not finite"),
        ("gain", np.zeros(SHAPE), "every pixel must be above 0"),
        ("hot", np.ones(SHAPE), "100% of the pixels are marked as hot"),
    ],
)
def test_what_cannot_be_used_is_refused(kind: str, value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        check(kind, value)


def test_a_hot_pixel_without_a_good_neighbour_is_named() -> None:
    hot = np.zeros((100, 100))
    hot[10:13, 20:23] = 1
    with pytest.raises(ValueError, match="the hot pixel at row 11, column 21 has only hot neighbours"):
        check("hot", hot)
