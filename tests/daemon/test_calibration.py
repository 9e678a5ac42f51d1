"""Correcting a frame: against the formula in exact arithmetic, and everything that is refused."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tilecast import calibration as cal
from tilecast.errors import CalibrationError


def frame(shape: tuple[int, int] = (5, 7), dtype: str = "<u2", seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def test_nothing_is_done_without_images() -> None:
    nothing = cal.freeze(shape=(5, 7))
    image = frame()
    assert nothing.is_identity
    assert nothing.sha256 == ""
    assert cal.apply(image, nothing) == (image, 0, 0)
    assert cal.apply(image, nothing).pixels is image


@pytest.mark.parametrize("dtype", ["|u1", "<u2"])
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (300, 701)])
def test_the_formula(dtype: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    image = frame(shape, dtype)
    dark = rng.integers(0, 40, shape)
    flat = rng.integers(128, 256, shape)  # of a power of two, so that the exact quotient can be told from its rounding
    result = cal.apply(image, cal.freeze(dark=dark, flat=flat, shape=shape))
    mean = Fraction(int(flat.sum()), flat.size)
    n_low = n_high = 0
    limit = np.iinfo(dtype).max
    for pixel in range(0, image.size, max(1, image.size // 500)):
        exact = Fraction(int(image.flat[pixel]) - int(dark.flat[pixel])) * mean / int(flat.flat[pixel])
        expected = min(max(round(exact), 0), limit)
        if abs(exact - int(exact)) != Fraction(1, 2):
            assert abs(int(result.pixels.flat[pixel]) - exact) < Fraction(51, 100) or expected in (0, limit)
            assert abs(int(result.pixels.flat[pixel]) - expected) <= (abs(exact % 1 - Fraction(1, 2)) < 1e-3)
    rounded = np.rint((image.astype(np.float64) - dark) * (float(mean) / flat))
    n_low, n_high = int((rounded < 0).sum()), int((rounded > limit).sum())
    assert (result.n_low, result.n_high) == (n_low, n_high)
    assert result.pixels.dtype == image.dtype
    assert result.pixels.shape == shape


def test_dark_alone_is_a_subtraction_that_stops_at_zero() -> None:
    image = frame()
    result = cal.apply(image, cal.freeze(dark=np.full((5, 7), 100), shape=(5, 7)))
    assert np.array_equal(result.pixels, np.maximum(image.astype(int) - 100, 0))
    assert result.n_low == (image < 100).sum()


def test_ties_go_to_even_and_bright_pixels_stop_at_the_limit() -> None:
    image = np.array([[1, 3, 255, 5]], np.uint8)
    flat = np.array([[2, 2, 2, 0.4]])  # mean 1.6: gain 0.8, 0.8, 0.8, 4
    result = cal.apply(image, cal.freeze(flat=flat, shape=(1, 4)))
    assert result.pixels.tolist() == [[1, 2, 204, 20]]
    half = cal.freeze(dark=np.array([[-0.5, -1.5, 0.5, -0.5]]), shape=(1, 4))
    assert cal.apply(image, half).pixels.tolist() == [[2, 4, 254, 6]]
    assert cal.apply(image, cal.freeze(dark=np.full((1, 4), -1), shape=(1, 4))) [1:] == (0, 1)  # fmt: skip


def test_float_frames_are_neither_rounded_nor_clipped() -> None:
    image = np.array([[0.25, np.nan, -3.0, 1e38]], "<f4")
    result = cal.apply(image, cal.freeze(dark=np.full((1, 4), 1.0), shape=(1, 4)))
    assert result.pixels.dtype == np.float32
    assert np.array_equal(result.pixels, np.array([[-0.75, np.nan, -4.0, 1e38]], "<f4"), equal_nan=True)
    assert result[1:] == (0, 0)


def test_the_frame_is_not_changed_and_views_are_welcome() -> None:
    image = frame((20, 30))
    before = image.copy()
    calibration = cal.freeze(dark=np.full((10, 15), 3), shape=(10, 15))
    assert np.array_equal(cal.apply(image[::2, ::2], calibration).pixels, np.maximum(image[::2, ::2], 3) - 3)
    assert np.array_equal(image, before)


def test_what_was_frozen_cannot_change() -> None:
    dark = np.full((5, 7), 3.0)
    calibration = cal.freeze(dark=dark, shape=(5, 7))
    dark[:] = 99
    assert cal.apply(np.full((5, 7), 10, np.uint8), calibration).pixels.max() == 7
    assert calibration.dark is not None
    with pytest.raises(ValueError, match="read-only"):
        calibration.dark[0, 0] = 1


def test_the_sum_tells_contents_apart_and_nothing_else() -> None:
    dark = np.arange(35).reshape(5, 7)
    sums = {
        cal.freeze(dark=dark, shape=(5, 7)).sha256,
        cal.freeze(flat=dark + 1, shape=(5, 7)).sha256,
        cal.freeze(dark=dark + 1, shape=(5, 7)).sha256,
        cal.freeze(dark=dark + 1, flat=dark + 1, shape=(5, 7)).sha256,
        cal.freeze(dark=dark.reshape(7, 5), shape=(7, 5)).sha256,
    }
    assert len(sums) == 5
    same = cal.freeze(dark=np.asfortranarray(dark.astype("<u2")), shape=(5, 7))
    assert same.sha256 == cal.freeze(dark=dark, shape=(5, 7)).sha256


@pytest.mark.parametrize(
    ("role", "image", "message"),
    [
        ("dark", np.zeros((7, 5)), "the dark image is 7 × 5 pixels"),
        ("flat", np.ones((5, 7, 3)), "the flat image is shape"),
        ("flat", np.zeros((5, 7)), "every pixel must be above 0"),
        ("flat", np.full((5, 7), np.nan), "not finite"),
        ("dark", np.full((5, 7), 1e60), "not finite"),
        ("dark", np.zeros((5, 7), complex), "real numbers"),
        ("dark", np.zeros((5, 7), bool), "real numbers"),
    ],
)
def test_images_that_cannot_be_used(role: str, image: NDArray[Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        cal.freeze(**{role: image}, shape=(5, 7))  # type: ignore[arg-type]


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"frames of 5 × 7 pixels .* got 7 × 5"):
        cal.apply(frame((7, 5)), cal.freeze(dark=frame(), shape=(5, 7)))


class TestNpy:
    @pytest.mark.parametrize("dtype", ["|u1", "<u2", ">u2", "<f4", "<f8", "<i4"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_round_trip(self, dtype: str, order: str) -> None:
        image = np.asarray(frame().astype(dtype), order=order)  # type: ignore[call-overload]
        read = cal.load_npy(cal.dump_npy(image), (5, 7))
        assert read.dtype == image.dtype
        assert np.array_equal(read, image)

    def test_lies_are_found_before_anything_is_allocated(self) -> None:
        huge = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            huge, {"descr": "<f8", "fortran_order": False, "shape": (1 << 30, 1 << 30)}
        )
        with pytest.raises(CalibrationError, match="expected a calibration image of 5 × 7"):
            cal.load_npy(huge.getvalue(), (5, 7))
        with pytest.raises(CalibrationError, match="got 0: it was cut off"):
            cal.load_npy(huge.getvalue(), (1 << 30, 1 << 30))

    def test_objects_are_refused(self) -> None:
        buffer = io.BytesIO()
        np.save(buffer, np.array([[{}]], object), allow_pickle=True)
        with pytest.raises(CalibrationError, match="real numbers"):
            cal.load_npy(buffer.getvalue(), (1, 1))

    @given(st.binary(max_size=300), st.booleans())
    def test_any_bytes(self, data: bytes, has_magic: bool) -> None:
        with pytest.raises(CalibrationError):
            cal.load_npy((b"\x93NUMPY\x01\x00" if has_magic else b"") + data, (40, 70))

    @given(st.integers(0, 500), st.integers(0, 255))
    def test_a_byte_changed(self, position: int, value: int) -> None:
        data = bytearray(cal.dump_npy(frame()))
        data[position % len(data)] = value
        try:
            read = cal.load_npy(bytes(data), (5, 7))
        except CalibrationError:
            return
        assert read.shape == (5, 7)
