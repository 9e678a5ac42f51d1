"""The shift between two frames: found where there is one, and none where there is nothing to find."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from plugins.registration.scans import Scan, cut_lscm, czi, lscm, mist, needs_scans
from tilecast_plugins.registration.kernels import band_passed, correlation, difference
from tilecast_plugins.registration.pairs import MIN_QUALITY, PairOptions, is_pair, match, measure

OPTIONS = PairOptions(max_shift_px=12)


def scene(shape: tuple[int, int], seed: int = 0) -> NDArray[np.float64]:
    """Blobs of a few pixels, as a specimen has them."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.normal(size=shape))
    down, right = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    spectrum *= np.exp(-2 * np.pi**2 * 1.5**2 * (down**2 + right**2))
    smooth = np.fft.irfft2(spectrum, shape)
    return np.asarray(1000 + 300 * smooth / smooth.std())


def seen(scene: NDArray[Any], row: int, col: int, shape: tuple[int, int], seed: int) -> NDArray[np.uint16]:
    """A frame of it, with photon noise."""
    cut = scene[row : row + shape[0], col : col + shape[1]]
    return np.random.default_rng(seed).poisson(np.maximum(cut, 1)).astype(np.uint16)


@settings(max_examples=25)
@given(st.integers(-10, 10), st.integers(-10, 10), st.booleans(), st.integers(0, 1000))
def test_a_shift_is_found_to_the_pixel_whichever_side_the_frames_share(
    down: int, right: int, below: bool, seed: int
) -> None:
    shape, step = (96, 120), (76, 0) if below else (0, 98)
    whole = scene((240, 260), seed)
    a = seen(whole, 20, 20, shape, seed + 1)
    b = seen(whole, 20 + step[0] + down, 20 + step[1] + right, shape, seed + 2)
    found = match(a, b, step, OPTIONS)
    assert found is not None
    assert (found.row, found.col) == (step[0] + down, step[1] + right)
    back = match(b, a, (-step[0], -step[1]), OPTIONS)
    assert back is not None
    assert (back.row, back.col) == (-found.row, -found.col)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_frames_that_have_nothing_in_common_have_no_shift(seed: int) -> None:
    a, b = seen(scene((96, 120), seed), 0, 0, (96, 120), seed), seen(scene((96, 120), seed + 1), 0, 0, (96, 120), seed)
    assert match(a, b, (0, 98), OPTIONS) is None
    assert match(a, b, (76, 3), OPTIONS) is None


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0, 0.5))
def test_frames_without_texture_have_no_shift_though_they_are_shaded_alike(seed: int, shading: float) -> None:
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[-1:1:96j, -1:1:120j]
    lit = 500 * (1 - shading * (down**2 + right**2))
    a, b = (rng.poisson(lit).astype(np.uint16) for _ in "ab")
    assert match(a, b, (0, 98), OPTIONS) is None
    assert match(a, np.full_like(a, 500), (0, 98), OPTIONS) is None
    assert match(np.full_like(a, 500), np.full_like(a, 500), (0, 98), OPTIONS) is None


@pytest.mark.parametrize("period", [6, 8, 11])
def test_a_texture_that_repeats_has_no_shift_or_the_right_one(period: int) -> None:
    pattern = np.random.default_rng(period).uniform(200, 1800, (period, period))
    whole = np.tile(pattern, (300 // period + 1, 300 // period + 1))
    for seed in range(10):
        down, right = np.random.default_rng(seed).integers(-10, 11, 2)
        a = seen(whole, 20, 20, (96, 120), seed)
        b = seen(whole, 20 + down, 118 + right, (96, 120), seed + 1000)
        found = match(a, b, (0, 98), OPTIONS)
        assert found is None or (found.row, found.col) == (down, 98 + right)


def test_one_bright_thing_that_resembles_another_is_no_evidence() -> None:
    down, right = np.mgrid[-12:13, -12:13]
    rng = np.random.default_rng(0)
    a, b = (rng.poisson(200, (96, 120)).astype(float) for _ in "ab")
    a[40:65, 95:120] += 3000 * np.exp(-(down**2 / 30 + right**2 / 8))
    b[45:70, 0:25] += 2000 * np.exp(-(down**2 / 10 + right**2 / 20))
    found = measure(a, b, (0, 98), OPTIONS)
    assert found is not None
    assert found.quality < MIN_QUALITY


def test_what_lies_further_off_than_it_may_is_not_found() -> None:
    whole = scene((140, 260))
    a, b = seen(whole, 20, 20, (96, 120), 1), seen(whole, 36, 118, (96, 120), 2)
    assert match(a, b, (0, 98), PairOptions(max_shift_px=12)) is None
    found = match(a, b, (0, 98), PairOptions(max_shift_px=16))
    assert found is not None
    assert found[:2] == (16, 98)


def test_large_frames_are_binned_and_their_shifts_are_exact() -> None:
    whole = scene((1100, 2100))
    a, b = seen(whole, 3, 5, (1000, 1000), 1), seen(whole, 16, 898, (1000, 1000), 2)
    found = match(a, b, (0, 900), PairOptions(max_shift_px=200))
    assert found is not None
    assert found[:2] == (13, 893)


def test_the_background_says_where_there_is_nothing_to_compare() -> None:
    whole = scene((140, 260))
    a, b = seen(whole, 20, 20, (96, 120), 1), seen(whole, 22, 118, (96, 120), 2)
    assert match(a, b, (0, 98), OPTIONS) is not None
    assert match(a, b, (0, 98), PairOptions(max_shift_px=12, background=float(a.max()))) is None


def test_clipping_and_normalizing_leave_a_true_shift_true() -> None:
    whole = scene((140, 260))
    whole[60:64, 120:124] += 30_000  # one particle that outshines everything
    a, b = seen(whole, 20, 20, (96, 120), 1), seen(whole, 22, 117, (96, 120), 2)
    for options in (
        PairOptions(max_shift_px=12, clip=2000),
        PairOptions(max_shift_px=12, normalize=True),
        PairOptions(max_shift_px=12, clip=2000, normalize=True, background=400),
    ):
        found = match(a, b, (0, 98), options)
        assert found is not None
        assert found[:2] == (2, 97)


def test_corners_are_not_compared() -> None:
    assert is_pair((512, 512), (2, 435))
    assert is_pair((512, 512), (-435, 7))
    assert not is_pair((512, 512), (435, 435))
    assert not is_pair((512, 512), (0, 509))


def test_frames_of_two_sizes_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="one shape"):
        match(np.zeros((8, 8)), np.zeros((8, 9)), (0, 0), OPTIONS)
    with pytest.raises(ValueError, match="max_shift_px"):
        PairOptions(max_shift_px=0)


@given(st.integers(-12, 12), st.integers(-12, 12), st.integers(0, 1000))
def test_the_kernels_say_what_numpy_says(row: int, col: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4000, (9, 10)).astype(np.uint16), rng.integers(0, 4000, (8, 11)).astype(np.uint16)
    row0, row1, col0, col1 = max(0, row), min(9, row + 8), max(0, col), min(10, col + 11)
    one = a[row0:row1, col0:col1].astype(float) if row1 > row0 and col1 > col0 else np.empty((0, 0))
    ncc, n = correlation(a, b, row, col, 1)
    apart, spread, same_n = difference(a, b, row, col)
    assert n == same_n == one.size
    if one.size < 2:
        return
    other = b[row0 - row : row1 - row, col0 - col : col1 - col].astype(float)
    assert ncc == pytest.approx(np.corrcoef(one.ravel(), other.ravel())[0, 1], abs=1e-9)
    assert apart == np.abs(one - other).sum()
    both = np.concatenate([one.ravel(), other.ravel()])
    assert spread == pytest.approx(np.abs(both - both.mean()).sum() / 2)


def test_the_band_pass_is_what_it_says() -> None:
    x = np.random.default_rng(0).normal(size=(12, 15)).astype(np.float32)
    padded = np.pad(x.astype(float), 4, mode="edge")
    fine, coarse = np.array([1, 2, 1]) / 4, np.convolve([1, 2, 1], np.ones(5)) / 20

    def filtered(taps: NDArray[Any]) -> NDArray[np.float64]:
        down = np.apply_along_axis(np.convolve, 0, padded, taps, mode="same")
        return np.asarray(np.apply_along_axis(np.convolve, 1, down, taps, mode="same")[4:-4, 4:-4])

    np.testing.assert_allclose(band_passed(x), filtered(fine) - filtered(coarse), atol=1e-6)


def _shifts(scan: Scan, options: PairOptions) -> list[tuple[int, int, float, bool]]:
    found = []
    for i, j in combinations(range(len(scan.frames)), 2):
        nominal = scan.nominal[j] - scan.nominal[i]
        if is_pair(scan.frames.shape[1:], nominal):
            one = measure(scan.frames[i], scan.frames[j], nominal, options)
            assert one is not None
            found.append((i, j, one.quality, bool(np.abs(one[:2] - (scan.true[j] - scan.true[i])).max() <= 2)))
    return found


class TestRealScans:
    pytestmark = needs_scans

    @pytest.mark.parametrize(
        ("scan", "max_shift_px", "n_pairs", "least"), [(cut_lscm, 40, 60, 200), (lscm, 40, 24, 50), (mist, 10, 38, 12)]
    )
    def test_every_shift_is_found_and_stands_out(
        self, scan: Any, max_shift_px: int, n_pairs: int, least: float
    ) -> None:
        found = _shifts(scan(), PairOptions(max_shift_px=max_shift_px))
        assert len(found) == n_pairs
        assert all(is_true and quality > least for _, _, quality, is_true in found)

    def test_the_shift_of_the_czi(self) -> None:
        scan = czi()
        found = match(scan.frames[0], scan.frames[1], scan.nominal[1], PairOptions())
        assert found is not None
        assert (found.col - scan.nominal[1][1], found.row - scan.nominal[1][0]) == (-7, -2)

    @pytest.mark.parametrize("scan", [cut_lscm, lscm, mist])
    def test_frames_that_lie_apart_never_reach_the_threshold(self, scan: Any) -> None:
        one = scan()
        height, width = one.frames.shape[1:]
        rng = np.random.default_rng(1)
        highest = 0.0
        for _ in range(30):
            i, j = rng.choice(len(one.frames), 2, replace=False)
            step = np.array([0, int(0.88 * width)] if rng.random() < 0.5 else [int(0.88 * height), 0])
            if np.abs(one.true[j] - one.true[i] - step).max() > 70:
                found = measure(one.frames[i], one.frames[j], step, PairOptions())
                assert found is not None
                highest = max(highest, found.quality)
        assert 0 < highest < MIN_QUALITY - 2
