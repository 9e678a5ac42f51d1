"""The halves of a dual-view camera, registered by beads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tilecast_plugins.calibration.splitting import RegistrationError, beads, register

SHAPE = (160, 200)


def picture(places: NDArray[np.float64], seed: int = 0) -> NDArray[np.uint16]:
    """Beads at these places, with noise."""
    rows, cols = np.arange(SHAPE[0])[:, None], np.arange(SHAPE[1])[None, :]
    image = np.full(SHAPE, 100.0)
    for row, col in places:
        image += 2000 * np.exp(-(((rows - row) ** 2) / 3)) * np.exp(-(((cols - col) ** 2) / 3))
    return np.random.default_rng(seed).poisson(image).astype(np.uint16)


def spread(seed: int, n: int = 40) -> NDArray[np.float64]:
    """Places that are not close to each other."""
    rng = np.random.default_rng(seed)
    found: list[NDArray[np.float64]] = []
    while len(found) < n:
        place = rng.uniform((15, 15), (SHAPE[0] - 15, SHAPE[1] - 15))
        if all(np.linalg.norm(place - other) > 12 for other in found):
            found.append(place)
    return np.array(found)


def test_beads_are_placed_to_a_fraction_of_a_pixel() -> None:
    places = spread(1)
    found = beads(picture(places))
    distances = np.linalg.norm(found[:, None] - places[None], axis=2)
    assert len(found) == len(places)
    assert distances.min(0).max() < 0.15


@hypothesis_settings(max_examples=15, deadline=None)
@given(
    turn=st.floats(-0.03, 0.03), scale=st.floats(0.97, 1.03), shear=st.floats(-0.02, 0.02),
    shift=st.tuples(st.floats(-9, 9), st.floats(-9, 9)), seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_transform_of_a_splitter_is_found(
    turn: float, scale: float, shear: float, shift: tuple[float, float], seed: int
) -> None:
    middle = np.array(SHAPE) / 2
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[1, shear], [0, 1]]
    places = spread(seed)
    theirs = (places - middle) @ matrix.T + middle + shift
    found = register(picture(places, 1), picture(theirs, 2))
    assert np.abs(found.place(places) - theirs).max() < 0.3
    assert found.n_beads > 15
    assert found.residual_px < 0.2


def test_what_does_not_tell_it_is_refused() -> None:
    with pytest.raises(RegistrationError, match="0 beads were found in the first half, and 6 are needed"):
        register(picture(np.empty((0, 2))), picture(spread(1)))
    with pytest.raises(RegistrationError, match=r"have a partner .* mirrored \(--mirror\)"):
        register(picture(spread(1, 12)), picture(spread(2, 12)), max_distance_px=0.5)
