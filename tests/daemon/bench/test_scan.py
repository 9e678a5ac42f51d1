"""The benchmark's scan: frames where a serpentine has them, made of the noise that was asked for, no two alike."""

from __future__ import annotations

import numpy as np
import pytest

from tilecast.bench.scan import PX_UM, Dtype, FramePool, Scan
from tilecast.geometry import place_centre


def scan(**changes: object) -> Scan:
    values = {"shape": (64, 96), "dtype": "<u2", "overlap": 0.25, "n_frames": 7, "columns": 3}
    return Scan(**values | changes)  # type: ignore[arg-type]


def test_a_serpentine() -> None:
    corners = [scan().corner(frame) for frame in range(7)]
    assert corners == [(0, 0), (0, 72), (0, 144), (48, 144), (48, 72), (48, 0), (96, 0)]


def test_positions_lead_to_the_corners() -> None:
    found = [place_centre(scan().pos_um(frame), ((PX_UM, 0.0), (0.0, PX_UM)), (64, 96)) for frame in range(7)]
    assert found == [scan().corner(frame) for frame in range(7)]


@pytest.mark.parametrize(("dtype", "mean"), [("|u1", 100), ("<u2", 2000), ("<f4", 2000)])
def test_noise_of_photons_around_the_mean(dtype: Dtype, mean: float) -> None:
    pool = FramePool(scan(dtype=dtype))
    frame = pool.frame(3)
    assert (frame.shape, frame.dtype.str) == ((64, 96), dtype)
    assert frame.flags.c_contiguous
    assert frame.mean() == pytest.approx(mean, rel=0.05)
    # Neighbours differ by noise, but at edges of the structure: hence the median. That of the square of a normal value
    # is 0.455 of the variance.
    noise = np.median(np.diff(frame.astype(np.float64), axis=1) ** 2) / 0.455 / 2
    assert noise == pytest.approx(mean, rel=0.3)


def test_no_two_frames_are_alike_and_the_same_seed_gives_the_same() -> None:
    pool, again, other = FramePool(scan()), FramePool(scan()), FramePool(scan(), seed=1)
    frames = {pool.frame(number).tobytes() for number in range(500)}
    assert len(frames) == 500
    np.testing.assert_array_equal(pool.frame(499), again.frame(499))
    assert not np.array_equal(pool.frame(0), other.frame(0))


def test_the_pool_is_bounded_in_bytes() -> None:
    assert FramePool.n_steps(scan()) == 24
    assert FramePool.n_steps(scan(shape=(8192, 8192))) == 3
    assert FramePool.n_steps(scan(shape=(20000, 20000))) == 2
    steps = []
    FramePool(scan(), on_step=lambda: steps.append(1))
    assert len(steps) == 24
