"""What `--format pyme` writes, as PYME's own ImagePyramid opens it: pixels, positions, every layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from integration.talking import PX_UM, centre_um, picture
from plugins.export.conftest import Bench
from plugins.export.expected import levels
from pyme_source import pyme_sources, run_pyme
from reference import mosaic_reference
from viewer_scans import SHAPE, TILE, Scan

LOAD = """
import json, sys
import numpy as np
from PYME.Analysis.tile_pyramid import ImagePyramid
pyramid = ImagePyramid.load_existing(sys.argv[1])
layers = [layer[:, :].squeeze(axis=(2, 3, 4)) for layer in pyramid.layers]
np.savez(sys.argv[2], *layers)
print(json.dumps({"x0": pyramid.x0, "y0": pyramid.y0, "pixel_size": pyramid.pixel_size, "depth": pyramid.depth,
                  "tile_size": pyramid.tile_size, "n_tiles": [pyramid.n_tiles_x, pyramid.n_tiles_y],
                  "run": pyramid.mdh["tilecast.run"]}))
"""

#: Square pixels; the camera's axes as they lie on the stage.
AFFINES = {
    "plain": ((0.5, 0.0), (0.0, 0.5)),
    "x flipped": ((-0.5, 0.0), (0.0, 0.5)),
    "y flipped": ((0.5, 0.0), (0.0, -0.5)),
    "exchanged": ((0.0, 0.5), (-0.5, 0.0)),
}
CORNERS = [(-70, -30), (-70, 5), (-40, -30), (60, 90)]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pyme_sources(tmp_path_factory.mktemp("pyme"))


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("tiles", ["pzf", "npy"])
def test_pyme_opens_it(bench: Bench, sources: Path, tmp_path: Path, affine: str, tiles: str) -> None:
    (a, b), (c, d) = matrix = AFFINES[affine]
    with bench.show.publisher(f"{affine}-{tiles}".replace(" ", "-")) as publisher:
        run = publisher.start("for PYME", shape=SHAPE, dtype="<u2", px_um=(0.5, 0.5), affine=matrix, pos_src="frame")
        frames = []
        for number, (row, col) in enumerate(CORNERS):
            pixels = picture(30 + number, SHAPE)
            right, down = col + SHAPE[1] / 2, row + SHAPE[0] / 2
            publisher.image(pixels, pos_um=(a * right + b * down, c * right + d * down))
            frames.append(mosaic_reference.Frame(number, 0, number, (0, 0, 0), row, col, pixels))
        publisher.end(run=run)
        publisher.flush()
    bench.show.watch.report(run)
    scan = Scan(run, "<u2", mosaic_reference.mosaic(frames, "feather", "<u2", TILE))
    bench.export(run, tmp_path / "made", "--format", "pyme", "--pyme-tiles", tiles)
    told = run_pyme(sources, LOAD, str(tmp_path / "made"), str(tmp_path / "layers.npz"))
    assert told["run"] == run
    assert told["pixel_size"] == 0.5
    with np.load(tmp_path / "layers.npz") as file:
        layers = [file[name] for name in file.files]
    n_layers = told["depth"] + 1
    assert len(layers) == n_layers == 3
    # Each pixel of each layer lies where PYME's convention puts it: [x, y], from the corner (x0, y0), in µm.
    box = (-72, -32, 108, 132)  # all frames, with room to a multiple of 4
    mosaic = levels(scan, box, n_layers)
    inverse = np.linalg.inv(matrix)
    for level in range(n_layers):
        found = layers[level]
        expected = mosaic[level]
        n_seen = 0
        for x, y in np.ndindex(found.shape):
            centre_um_ = (told["x0"] + (x + 0.5) * 0.5 * 2**level, told["y0"] + (y + 0.5) * 0.5 * 2**level)
            col, row = inverse @ centre_um_
            i, j = int((row - box[0]) // 2**level), int((col - box[1]) // 2**level)
            inside = 0 <= i < expected.values.shape[0] and 0 <= j < expected.values.shape[1]
            value = expected.values[i, j] if inside and expected.covered[i, j] else 0
            n_seen += bool(inside and expected.covered[i, j])
            assert found[x, y] == value, (level, x, y)
        assert n_seen == expected.covered.sum()


def test_a_region_shows_nothing_else(bench: Bench, sources: Path, tmp_path: Path) -> None:
    """Also though a pyramid is made of whole tiles."""
    with bench.show.publisher("part") as publisher:
        run = publisher.start("part", shape=SHAPE, dtype="<u2", px_um=(0.5, 0.5), pos_src="frame")
        pixels = picture(77, SHAPE)
        publisher.image(pixels, pos_um=(SHAPE[1] / 4, SHAPE[0] / 4))
        publisher.end(run=run)
        publisher.flush()
    bench.show.watch.report(run)
    bench.export(run, tmp_path / "made", "--format", "pyme", "--region=10,7,40,31")
    told = run_pyme(sources, LOAD, str(tmp_path / "made"), str(tmp_path / "layers.npz"))
    with np.load(tmp_path / "layers.npz") as file:
        found = file["arr_0"]
    assert (told["x0"], told["y0"]) == (7 * 0.5, 10 * 0.5)
    expected = np.zeros(found.shape)
    expected[:24, :30] = pixels[10:40, 7:31].T
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("options", "hint"),
    [((), "choose one with --times, --channels"), (("--channels=0", "--slices=0"), "square pixels")],
)
def test_what_pyme_cannot_hold_is_refused(
    bench: Bench, colour: Scan, tmp_path: Path, options: tuple[str, ...], hint: str
) -> None:
    assert PX_UM[0] != PX_UM[1]
    assert hint in bench.export(colour.run, tmp_path / "made", "--format", "pyme", *options, code=2)
    assert not list(tmp_path.iterdir())


def test_a_turned_camera_is_refused(bench: Bench, tmp_path: Path) -> None:
    with bench.show.publisher("turned") as publisher:
        matrix = ((0.4, -0.3), (0.3, 0.4))
        run = publisher.start("turned", shape=SHAPE, dtype="<u2", px_um=(0.5, 0.5), affine=matrix, pos_src="frame")
        publisher.image(picture(1, SHAPE), pos_um=centre_um(0, 0, SHAPE))
        publisher.end(run=run)
        publisher.flush()
    bench.show.watch.report(run)
    assert "know no rotation" in bench.export(run, tmp_path / "made", "--format", "pyme", code=2)
