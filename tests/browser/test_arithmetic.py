"""The page's pure modules, run in the browser they are for, against NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


@pytest.fixture
def js(page: Page) -> Any:
    """`js(module, expression, **values)`: the expression's value, with `m` the module."""
    page.goto("/static/icon.svg")

    def run(module: str, expression: str, **values: Any) -> Any:
        names = ", ".join(values)
        code = (
            f"async ({{ {names} }}) => {{ const m = await import('/static/js/{module}.js'); return ({expression}); }}"
        )
        return page.evaluate(code, values)

    return run


def test_stage_and_pixels_are_each_others_inverse(js: Any) -> None:
    affine = [[0.3, -0.1], [0.2, -0.4]]
    x_um, y_um = js("geometry", "m.stageOfPixel(affine, 17, -5)", affine=affine)
    np.testing.assert_allclose([x_um, y_um], np.array(affine) @ [-5, 17])
    np.testing.assert_allclose(js("geometry", "m.pixelOfStage(affine, x, y)", affine=affine, x=x_um, y=y_um), [17, -5])


def test_tiles_left_of_the_origin_have_negative_numbers(js: Any) -> None:
    found = js("geometry", "m.tileAt(-1, 513, 1, 256)")
    assert found == {"row": -1, "col": 1, "inRow": 255, "inCol": 0}
    assert js("geometry", "m.tileRect(1, -1, 1, 256)") == [-512, 512, 0, 1024]


@pytest.mark.parametrize(("most", "nice"), [(7, 5), (5, 5), (4.9, 2), (1999, 1000), (0.03, 0.02), (1, 1)])
def test_scale_bars_have_round_lengths(js: Any, most: float, nice: float) -> None:
    assert js("geometry", "m.niceLength(most)", most=most) == pytest.approx(nice)


def test_lengths_are_written_with_their_unit(js: Any) -> None:
    texts = js("geometry", "[0.25, 1, 20, 1500].map(m.formatLength)")
    assert texts == ["250 nm", "1 µm", "20 µm", "1.5 mm"]


@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<f4"])
@pytest.mark.parametrize(("gamma", "invert"), [(1.0, False), (2.2, False), (0.5, True)])
def test_a_table_shows_what_the_formula_says(js: Any, dtype: str, gamma: float, invert: bool) -> None:
    look = {"lo": 20, "hi": 200, "gamma": gamma, "invert": invert, "map": "tint", "color": "#ffffff"}
    values = [0, 19, 20, 21, 60, 110, 199, 200, 201, 255]
    shown = js(
        "lut",
        """(() => {
          const lut = m.buildLut(dtype, look);
          const at = (v) => lut.index === null ? v
            : Math.min(lut.table.length - 1, Math.max(0, Math.floor((v - lut.index.lo) * lut.index.scale)));
          return values.map((v) => lut.table[at(v)] & 255);
        })()""",
        dtype=dtype,
        look=look,
        values=values,
    )
    tone = np.clip((np.array(values) - 20) / 180, 0, 1) ** (1 / gamma)
    np.testing.assert_allclose(shown, 255 * (1 - tone if invert else tone), atol=2.5)


def test_channels_are_added_and_uncovered_pixels_are_transparent(js: Any) -> None:
    out = js(
        "paint",
        """await (async () => {
          const { buildLut } = await import('/static/js/lut.js');
          const look = (color) => ({ lo: 0, hi: 255, gamma: 1, invert: false, map: 'tint', color });
          const layer = (values, mask, color) => ({
            pixels: new Uint8Array(values), mask: mask && new Uint8Array(mask), lut: buildLut('|u1', look(color)),
          });
          const packed = new Uint32Array(4);
          m.paint(packed, [layer([255, 100, 9, 200], [1, 1, 0, 1], '#ff0000'),
                           layer([50, 0, 9, 200], [1, 0, 0, 1], '#ff00ff')]);
          return [...new Uint8Array(packed.buffer)];
        })()""",
    )
    assert np.array(out).reshape(4, 4).tolist() == [
        [255, 0, 50, 255],
        [100, 0, 0, 255],
        [0, 0, 0, 0],
        [255, 0, 200, 255],
    ]


def test_raw_bytes_of_another_length_are_refused(js: Any) -> None:
    said = js("paint", "(() => { try { m.viewRaw(new ArrayBuffer(9), '<u2', 2) } catch (e) { return e.message } })()")
    assert "8 bytes" in said
    assert "got 9" in said


def test_auto_contrast_is_between_the_quantiles_of_the_covered_pixels(js: Any) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.normal(3000, 400, (64, 64)).astype("<u2")
    mask = rng.random((64, 64)) < 0.7
    lo, hi = js(
        "stats",
        """(() => {
          const histogram = m.emptyHistogram('<u2');
          m.countPixels(histogram, new Uint16Array(pixels), new Uint8Array(mask), 64, [8, 0, 64, 32]);
          return m.autoWindow(histogram);
        })()""",
        pixels=pixels.ravel().tolist(),
        mask=mask.astype(int).ravel().tolist(),
    )
    covered = np.sort(pixels[8:, :32][mask[8:, :32]])
    n = covered.size
    assert lo == covered[int(0.002 * n)]
    assert hi == covered[min(n - 1, int(0.998 * n))]


def test_a_histogram_for_drawing_loses_no_pixel(js: Any) -> None:
    values = np.random.default_rng(1).integers(500, 900, 2000).tolist()
    bins = js(
        "stats",
        """(() => {
          const histogram = m.emptyHistogram('<u2');
          m.countPixels(histogram, new Uint16Array(values), null, 2000, [0, 0, 1, 2000]);
          return [...m.rebin(histogram, 400, 1000, 150)];
        })()""",
        values=values,
    )
    assert sum(bins) == pytest.approx(2000)
    np.testing.assert_allclose(bins, np.histogram(values, 150, (400, 1000))[0], atol=1e-6)


def test_frames_over_a_rectangle_cover_it_and_overlap_as_asked(js: Any) -> None:
    centres = js("marks", "m.framesOver([0, 100, 1000, 350], [[1, 0], [0, 1]], [400, 300], 0.1)")
    rows = sorted({one["um"][1] for one in centres})
    cols = sorted({one["um"][0] for one in centres})
    assert cols == [225]
    np.testing.assert_allclose(np.diff(rows), 400 * 0.9)
    assert rows[0] - 200 <= 0
    assert rows[-1] + 200 >= 1000


def test_a_link_comes_back_as_it_was(js: Any) -> None:
    view = {
        "run": "0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55", "row": -12.5, "col": 99.1, "scale": 0.125, "t": 2, "z": 0,
        "looks": "1:3:400:1:0:tint:ff0000;0:0:9:2:1:viridis:00ff00", "auto": False, "follow": True,
    }  # fmt: skip
    assert js("link", "m.fromHash(m.toHash(view))", view=view) == view
    nonsense = js("link", "m.fromHash('#run=../x&at=1&s=-3&t=abc&z=-4')")
    assert {key: value for key, value in nonsense.items() if value} == {}


def test_missing_frames_are_looked_for_between_their_neighbours(js: Any) -> None:
    found = js(
        "holes",
        """m.estimateHoles(
          new Map([[1, { rect: [0, 0, 10, 10], plane: [0, 0, 0] }], [4, { rect: [0, 30, 10, 40], plane: [0, 0, 0] }]]),
          m.numbersOf([[2, 3], [9, 9]]).map((frame) => ({ frame, reason: 'missing' })))""",
    )
    assert [(one["frame"], one["rect"]) for one in found] == [(2, [0, 10, 10, 20]), (3, [0, 20, 10, 30])]
