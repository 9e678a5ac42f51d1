"""The flat field of a scan, estimated from its frames."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tilecast_plugins.calibration.illumination import EstimateError, estimate, overlap_difference

SCAN = Path(__file__).resolve().parents[4] / "shared/data/scans/cut_lscm_int_6x6"
OFFSET, LEFT_FROM_FRAME_TO_FRAME = 100, 0.99


class RealScan:
    """The scan as it is to be judged: without its offset, its bleaching made good, by either kind of positions."""

    def __init__(self, positions: str) -> None:
        with np.load(SCAN / "frames.npz") as archive:
            self.recorded = archive["frames"]
        fading = LEFT_FROM_FRAME_TO_FRAME ** np.arange(len(self.recorded))
        self.frames = (self.recorded.astype(np.float64) - OFFSET) / fading[:, None, None]
        self.truth = np.load(SCAN / "flat.npy")
        with (SCAN / "positions.csv").open() as file:
            rows = list(csv.DictReader(file))
        self.corners = {
            "true": [(round(float(row["true_y_px"])), round(float(row["true_x_px"]))) for row in rows],
            "commanded": [(int(row["y_px"]), int(row["x_px"])) for row in rows],
            "stage": [(round(-2 * float(row["y_um"])), round(2 * float(row["x_um"]))) for row in rows],
        }
        self.positions = self.corners[positions]

    def error(self, field: NDArray[Any]) -> float:
        """Relative error, root mean square."""
        ratio = (field / field.mean()) / (self.truth / self.truth.mean())
        return float(np.sqrt(((ratio - 1) ** 2).mean()))

    def improvement(self, field: NDArray[Any]) -> float:
        """How many times smaller the differences in the overlaps become, at the true positions."""
        before = overlap_difference(self.frames, self.corners["true"])
        return before / overlap_difference(self.frames, self.corners["true"], field)


@pytest.mark.shared_data
@pytest.mark.skipif(not SCAN.is_dir(), reason="the real scans are not beside the checkout")
@pytest.mark.parametrize("positions", ["true", "commanded", "stage"])
def test_a_real_scan_tells_how_it_was_lit(positions: str) -> None:
    scan = RealScan(positions)
    found = estimate(iter(scan.frames), scan.positions, (512, 512))
    assert scan.error(found.field) < 0.02
    if positions == "true":
        assert scan.improvement(scan.truth) > 23  # what can be had
        assert scan.improvement(found.field) >= 8
        assert found.improvement == pytest.approx(scan.improvement(found.field), rel=0.1)


@pytest.mark.shared_data
@pytest.mark.skipif(not SCAN.is_dir(), reason="the real scans are not beside the checkout")
def test_bleaching_is_found_with_it() -> None:
    scan = RealScan("true")
    found = estimate(iter(scan.recorded), scan.positions, (512, 512), dark=OFFSET, bleaching=True)
    assert found.bleaching == pytest.approx(LEFT_FROM_FRAME_TO_FRAME, abs=0.0005)
    assert scan.error(found.field) < 0.02
    assert scan.improvement(found.field) >= 8


def specimen(shape: tuple[int, int], seed: int) -> NDArray[np.float64]:
    """Something smooth, in waves of some 250 pixels, and something fine, positive everywhere."""
    rng = np.random.default_rng(seed)
    rows, cols = np.indices(shape) / 40.0
    smooth = sum(
        rng.uniform(0.2, 1) * np.sin(rng.normal(0, 1) * rows + rng.normal(0, 1) * cols + rng.uniform(0, 6))
        for _ in range(6)
    )
    return np.asarray(1000 * np.exp(0.4 * smooth + 0.05 * rng.normal(size=shape)))


def scan_of(
    light: NDArray[np.float64], grid: int, overlap: int, seed: int
) -> tuple[list[NDArray[np.uint16]], list[tuple[int, int]]]:
    height, width = light.shape
    corners = [(row * (height - overlap), col * (width - overlap)) for row in range(grid) for col in range(grid)]
    whole = specimen((corners[-1][0] + height, corners[-1][1] + width), seed)
    frames = [(whole[row : row + height, col : col + width] * light).astype("<u2") for row, col in corners]
    return frames, corners


@given(
    depth=st.floats(0, 0.5), row=st.floats(-0.3, 0.3), col=st.floats(-0.3, 0.3), tilt=st.floats(-0.2, 0.2),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_vignette_is_found(depth: float, row: float, col: float, tilt: float, seed: int) -> None:
    down, right = np.meshgrid(np.linspace(-1, 1, 96), np.linspace(-1, 1, 128), indexing="ij")
    light = (1 - depth * ((down - row) ** 2 + (right - col) ** 2) / 3) * (1 + tilt * right)
    frames, corners = scan_of(light, 4, 32, seed)
    found = estimate(iter(frames), corners, light.shape)
    error = (found.field / (light / light.mean()) - 1).std()
    assert error < 0.015
    assert found.field.mean() == pytest.approx(1, abs=1e-5)
    # Of an even light both are 0, but for rounding.
    assert found.after <= found.before * 1.05 + 1e-6


@given(factor=st.floats(0.1, 10), seed=st.integers(0, 100))
def test_the_field_does_not_depend_on_the_unit_of_light(factor: float, seed: int) -> None:
    light = 1 - 0.3 * np.linspace(-1, 1, 96)[:, None] ** 2 * np.ones(96)
    frames, corners = scan_of(light, 3, 32, seed)
    one, other = (
        estimate((frame.astype(np.float32) * scale for frame in frames), corners, (96, 96)) for scale in (1.0, factor)
    )
    np.testing.assert_allclose(one.field, other.field, rtol=1e-3)


@pytest.mark.parametrize("seed", range(3, 9))
def test_something_that_moved_or_glares_does_not_count(seed: int) -> None:
    light = 1 - 0.3 * np.linspace(-1, 1, 128)[:, None] ** 2 * np.ones(128)
    frames, corners = scan_of(light, 4, 32, seed)
    frames[5][:40] = 60000
    frames[10][:, 100:] = 0
    found = estimate(iter(frames), corners, light.shape)
    assert (found.field / (light / light.mean()) - 1).std() < 0.02


@pytest.mark.parametrize("edge", [16, 32, 48])
def test_narrow_overlaps_tell_the_whole_field(edge: int) -> None:
    """A vignette off its centre and a tilt, all of its forms, whatever number of ordinary blocks overlaps are wide."""
    down, right = np.meshgrid(np.linspace(-1, 1, 128), np.linspace(-1, 1, 96), indexing="ij")
    light = (1 - 0.4 * ((down + 0.2) ** 2 + (right - 0.3) ** 2) / 3) * (1 + 0.1 * down)
    frames, corners = scan_of(light, 4, edge, 11)
    found = estimate(iter(frames), corners, light.shape)
    assert found.n_overlaps == 42
    assert (found.field / (light / light.mean()) - 1).std() < 0.015


@pytest.mark.parametrize("seed", range(4, 10))
def test_without_overlaps_the_mean_of_many_frames_tells_it(seed: int) -> None:
    """Of 400 frames, which hold five waves of the specimen either way.

    9 × 9 frames hold two: their slopes do not average out, and by their own scatter their mean is known to some 0.04
    only (the next test). The estimate says so itself, and a bound must lie beyond its scatter.
    """
    light = 1 - 0.3 * np.linspace(-1, 1, 64)[:, None] ** 2 * np.ones(64)
    frames, corners = scan_of(light, 20, 0, seed)
    found = estimate(iter(frames), corners, (64, 64))
    assert found.n_overlaps == 0
    assert found.scatter < 0.03
    assert (found.field / (light / light.mean()) - 1).std() < 0.03


def test_without_overlaps_the_frames_tell_how_well_it_is_known() -> None:
    """Of a specimen in waves much longer than a frame: never far beyond the scatter, and on the whole as large."""
    light = 1 - 0.3 * np.linspace(-1, 1, 64)[:, None] ** 2 * np.ones(64)
    ratios = []
    for seed in range(4, 24):
        frames, corners = scan_of(light, 9, 0, seed)
        found = estimate(iter(frames), corners, (64, 64))
        assert found.scatter < 0.15
        ratios.append((found.field / (light / light.mean()) - 1).std() / found.scatter)
    assert max(ratios) < 3
    assert 0.5 < np.sqrt(np.mean(np.square(ratios))) < 1.5


def test_the_brightness_of_each_frame_does_not_count_without_overlaps() -> None:
    light = 1 - 0.3 * np.linspace(-1, 1, 64)[:, None] ** 2 * np.ones(64)
    frames, corners = scan_of(light, 9, 0, 4)
    brightness = np.random.default_rng(4).uniform(0.5, 2, len(frames))
    even, uneven = (
        estimate((frame * factor for frame, factor in zip(frames, factors, strict=True)), corners, (64, 64))
        for factors in (np.ones(len(frames)), brightness)
    )
    np.testing.assert_allclose(even.field, uneven.field, rtol=1e-3)


def test_what_cannot_tell_it_is_refused() -> None:
    dark = np.zeros((64, 64), np.uint16)
    with pytest.raises(EstimateError, match="4 frames without overlaps do not tell"):
        estimate([dark] * 4, [(0, 100 * n) for n in range(4)], (64, 64))
    with pytest.raises(EstimateError, match="the frames are dark"):
        estimate([dark] * 16, [(0, 100 * n) for n in range(16)], (64, 64))
    with pytest.raises(EstimateError, match="frames of 20 × 64 pixels are too small"):
        estimate([dark], [(0, 0)], (20, 64))
    with pytest.raises(EstimateError, match="frame 0 is"):
        estimate([dark] * 16, [(0, 16 * n) for n in range(16)], (64, 96))
