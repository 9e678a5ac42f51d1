"""Values become colours: against the formula, pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tilecast_plugins.web.rendering import (
    MAPS,
    ChannelLook,
    Look,
    UnknownLookError,
    blank,
    parse_color,
    render,
)

numbers = st.floats(-1000, 70_000, allow_nan=False)


def formula(values: NDArray[Any], look: Look, channel: ChannelLook) -> NDArray[np.float64]:
    """SERVING's, in float64."""
    p = values.astype(np.float64)
    v = (p - channel.low) * look.contrast / (channel.high - channel.low) + 0.01 * look.contrast * look.brightness
    v = np.clip(v, 0, 1) ** (1 / look.gamma)
    return 1 - v if look.invert else v


@given(
    low=numbers,
    width=st.floats(0.5, 70_000),
    gamma=st.floats(0.2, 5),
    contrast=st.floats(0.1, 10),
    brightness=st.floats(-100, 100),
    invert=st.booleans(),
    dtype=st.sampled_from(["|u1", "<u2", "<f4"]),
)
def test_grey_is_the_formula(
    low: float, width: float, gamma: float, contrast: float, brightness: float, invert: bool, dtype: str
) -> None:
    values = np.random.default_rng(1).integers(0, 256 if dtype == "|u1" else 65536, (8, 9)).astype(dtype)
    channel = ChannelLook(low, low + width)
    look = Look((channel,), gamma=gamma, contrast=contrast, brightness=brightness, invert=invert)
    shown = render([values], [None], look)
    assert shown.dtype == np.uint8
    # The picture is made in float32 from a float64 transfer: at most one level off where it rounds.
    assert np.abs(shown - formula(values, look, channel) * 255).max() <= 0.5 + 1e-3


def test_a_window_without_width_is_a_threshold() -> None:
    values = np.array([[9, 10, 11]], np.uint8)
    assert render([values], [None], Look((ChannelLook(10, 10),))).tolist() == [[0, 255, 255]]


def test_a_window_may_be_upside_down() -> None:
    values = np.array([[0, 255]], np.uint8)
    assert render([values], [None], Look((ChannelLook(255, 0),))).tolist() == [[255, 0]]


@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<f4"])
def test_uncovered_is_transparent_or_background(dtype: str) -> None:
    values = np.full((2, 2), 200, dtype)
    covered = np.array([[True, False], [True, True]])
    look = Look((ChannelLook(0, 255),), background=(1, 2, 3))
    assert render([values], [covered], look)[0].tolist() == [[200, 255], [0, 0]]
    assert render([values], [covered], look, alpha=False)[0].tolist() == [[200] * 3, [1, 2, 3]]
    grey = Look((ChannelLook(0, 255),), background=(7, 7, 7))
    assert render([values], [covered], grey, alpha=False)[0].tolist() == [200, 7]
    assert blank((2, 2), grey, alpha=False).tolist() == [[7, 7], [7, 7]]
    assert not blank((2, 2), grey)[..., -1].any()


def test_rendering_leaves_its_tables_and_arrays_alone() -> None:
    values = np.arange(4, dtype=np.uint8).reshape(2, 2)
    values.flags.writeable = False
    covered = np.array([[True, False], [False, True]])
    look = Look((ChannelLook(0, 3),), background=(9, 9, 9))
    first = render([values], [covered], look, alpha=False)
    first[:] = 77
    assert render([values], [covered], look, alpha=False).tolist() == [[0, 9], [9, 255]]


def test_channels_are_added_where_they_are_covered() -> None:
    one, two = np.array([[100, 200, 50]], np.uint8), np.array([[100, 200, 50]], np.uint8)
    only_two = np.array([[False, True, False]]), np.array([[True, True, False]])
    look = Look((ChannelLook(0, 255, (1, 0, 0)), ChannelLook(0, 255, (1, 1, 0))))
    shown = render([one, two], only_two, look)
    assert shown.tolist() == [[[100, 100, 0, 255], [255, 200, 0, 255], [0, 0, 0, 0]]]


@pytest.mark.parametrize("name", sorted(MAPS))
def test_colour_maps_begin_and_end_where_they_should(name: str) -> None:
    values = np.array([[0, 128, 255]], np.uint8)
    shown = render([values], [None], Look((ChannelLook(0, 255),), cmap=name))
    expected = (np.clip(MAPS[name][[0, 128, 255]], 0, 1) * 255 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(shown.reshape(3, -1)[:, :3] if shown.ndim == 3 else shown.T.repeat(3, 1), expected)


@pytest.mark.parametrize("name", ["viridis", "magma", "inferno", "cividis", "turbo"])
def test_the_perceptual_maps_are_those_of_matplotlib(name: str) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    theirs = matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3]
    assert np.abs(MAPS[name] - theirs).max() < 0.025


def test_not_a_number_is_black() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32)
    assert render([values], [None], Look((ChannelLook(0, 1),))).tolist() == [[0, 0, 0, 255]]


def test_colours() -> None:
    assert parse_color("ff8000") == pytest.approx((1.0, 128 / 255, 0.0))
    assert parse_color("#00FF00") == parse_color("green") == (0.0, 1.0, 0.0)
    for bad in ("", "12345", "12 345", "+12345", "rgb(1)", "ff80001"):
        with pytest.raises(UnknownLookError, match="rrggbb"):
            parse_color(bad)
    with pytest.raises(UnknownLookError, match="viridis"):
        Look(cmap="rainbow")
    with pytest.raises(UnknownLookError, match="gamma"):
        Look(gamma=0)
