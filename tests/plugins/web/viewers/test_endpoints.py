"""What every endpoint for viewers must do, whoever asks: right pixels, epochs, ETags, 304, blanks, refusals."""

from __future__ import annotations

import io
import itertools
import json
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from integration.talking import PATIENCE_S, PX_UM
from reference import mosaic_reference
from viewer_scans import TILE, Scan, Show, eventually


@pytest.fixture
def client(stage: Show) -> Any:
    # As long as everybody here waits: httpx gives up after 5 s of itself, which on a busy machine is no answer's fault.
    with httpx.Client(base_url=stage.address, timeout=PATIENCE_S) as client:
        yield client


def info_of(client: httpx.Client, scan: Scan) -> dict[str, Any]:
    return client.get(f"/api/v1/runs/{scan.run}").json()


def image_of(response: httpx.Response) -> NDArray[Any]:
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)))


def bounds_of(client: httpx.Client, scan: Scan) -> tuple[int, int, int, int]:
    """The canvas, as the stack's description puts it: signed level-0 pixels."""
    stack = client.get(f"/catmaid/{scan.run}/stack/0.0/info").json()
    row0, col0 = (round(stack["translation"][axis] / 1000 / px) for axis, px in zip("yx", PX_UM[::-1], strict=True))
    return row0, col0, row0 + stack["dimension"]["y"], col0 + stack["dimension"]["x"]


def urls(client: httpx.Client, scan: Scan) -> dict[str, str]:
    """A tile of each kind, whose picture is there."""
    stack = client.get(f"/catmaid/{scan.run}/stack/0.0/info?min=0&max=255&types=all").json()
    bases = {mirror["tile_source_type"]: mirror["image_base"] for mirror in stack["mirrors"]}
    epoch = client.get(f"/api/v1/runs/{scan.run}").json()["epoch"]
    top = stack["num_zoom_levels"] - 1
    query = f"x=0&y=0&z=0&width={TILE}&height={TILE}&scale={2.0**-top}&row=y&col=x"
    return {
        "1": f"{bases[1]}0/0_0_{top}.png",
        "1 small": f"{bases[1]}0/small.png",
        "2": f"{bases[2]}?{query}",
        "3": f"/catmaid/{scan.run}/stack/0.0/tile?{query}&file_extension=png&basename={bases[3]}&type=all",
        "4": f"{bases[4]}0/{top}/0_0.png",
        "5": f"{bases[5]}{top}/0/0/0.png",
        "5 small": f"{bases[5]}small/0.png",
        "6": f"{bases[6]}{TILE}_{TILE}/0_0_0/png",
        "7": f"{bases[7]}largeDataTileSource/{TILE}/{TILE}/{top}/0/0/0.png",
        "8": f"{bases[8]}xy/{top}/0_0_0",
        "9": f"{bases[9]}0/0_0_{top}.png?color=red&min=0&max=200&gamma=1.5&quality=80",
        "10": bases[10].replace("%SCALE_DATASET%", f"s{top}").replace("%AXIS_0%", "0").replace("%AXIS_1%", "0")
        .replace("%AXIS_2%", "0") + ".png",
        "deepzoom": f"/deepzoom/{scan.run}/{epoch}/0/0/0/mosaic_files/8/0_0.png?min=0&max=255",
        "deepzoom, one pixel": f"/deepzoom/{scan.run}/{epoch}/0/0/0/mosaic_files/0/0_0.webp",
        "iip": f"/iip?FIF={scan.run}/{epoch}&JTL=0,0",
        "iip region": f"/iip?FIF={scan.run}/{epoch}&RGN=1,1:90,70&BIN=2",
        "zarr 0.4": f"/zarr/0.4/{scan.run}/{epoch}.zarr/{top}/0/0/0/0/0",
        "zarr 0.5": f"/zarr/0.5/{scan.run}/{epoch}.zarr/{top}/c/0/0/0/0/0",
    }  # fmt: skip


KINDS = [*map(str, range(1, 11)), "1 small", "5 small", "deepzoom", "deepzoom, one pixel", "iip", "iip region",
         "zarr 0.4", "zarr 0.5"]  # fmt: skip
TYPES = {"2": "image/jpeg", "8": "image/jpeg", "iip": "image/jpeg", "iip region": "image/jpeg",
         "zarr 0.4": "application/octet-stream", "zarr 0.5": "application/octet-stream",
         "deepzoom, one pixel": "image/webp"}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_headers_and_304(client: httpx.Client, grey: Scan, kind: str) -> None:
    url = urls(client, grey)[kind]
    first = client.get(url)
    assert first.status_code == 200, first.text
    assert first.headers["content-type"] == TYPES.get(kind, "image/png")
    assert first.headers["cache-control"] == "no-cache"
    assert int(first.headers["content-length"]) == len(first.content)
    tag = first.headers["etag"]
    assert tag.startswith('"')
    again = client.get(url, headers={"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get(url, headers={"If-None-Match": '"another"'}).content == first.content


@pytest.mark.parametrize("kind", KINDS)
def test_an_old_epoch_is_not_found(client: httpx.Client, grey: Scan, kind: str) -> None:
    epoch = info_of(client, grey)["epoch"]
    url = urls(client, grey)[kind].replace(f"{grey.run}/{epoch}", f"{grey.run}/{epoch + 1}")
    found = client.get(url)
    assert found.status_code == 404, found.text
    assert "epoch" in found.json()["detail"]


@pytest.mark.parametrize("level", range(4))
def test_every_catmaid_type_shows_the_reference(client: httpx.Client, grey: Scan, level: int) -> None:
    """All ten, also those no client here can read; in a window in which grey levels are the values.

    Of the larger levels each tile is asked for in one of the ten ways, in turn, and most of the empty ones not at all.
    """
    bounds = bounds_of(client, grey)
    stack = client.get(f"/catmaid/{grey.run}/stack/0.0/info?min=0&max=255&types=all").json()
    bases = {mirror["tile_source_type"]: mirror["image_base"] for mirror in stack["mirrors"]}
    assert level < stack["num_zoom_levels"]
    whole = grey.canvas(bounds, level)
    places = [
        (row, col)
        for row in range(whole.values.shape[0] // TILE)
        for col in range(whole.values.shape[1] // TILE)
        if (row + col) % 7 == 0 or whole.covered[row * TILE : (row + 1) * TILE, col * TILE : (col + 1) * TILE].any()
    ]
    for number, (row, col) in enumerate(places):
        tile = whole.values[row * TILE : (row + 1) * TILE, col * TILE : (col + 1) * TILE]
        x, y = col * TILE, row * TILE
        query = f"x={x}&y={y}&z=0&width={TILE}&height={TILE}&scale={2.0**-level}&row=y&col=x&file_extension=png"
        template = bases[10].replace("%SCALE_DATASET%", f"s{level}").replace("%AXIS_0%", str(x))
        asked = {
            1: f"{bases[1]}0/{row}_{col}_{level}.png",
            2: f"{bases[2]}?{query}",
            3: f"/catmaid/{grey.run}/stack/0.0/tile?{query}&basename={bases[3]}&type=all",
            4: f"{bases[4]}0/{level}/{row}_{col}.png",
            5: f"{bases[5]}{level}/0/{row}/{col}.png",
            6: f"{bases[6]}{TILE}_{TILE}/{x}_{y}_0/png",
            7: f"{bases[7]}largeDataTileSource/{TILE}/{TILE}/{level}/0/{row}/{col}.png",
            8: f"{bases[8]}xy/{level}/{col}_{row}_0",
            9: f"{bases[9]}0/{row}_{col}_{level}.png",
            10: template.replace("%AXIS_1%", str(y)).replace("%AXIS_2%", "0") + ".png",
        }
        if level > 0:
            del asked[6]  # has no levels
        for source_type, url in list(asked.items()) if level > 2 else [list(asked.items())[number % len(asked)]]:
            found = image_of(client.get(url))
            if source_type == 8:  # has no format: JPEG
                assert np.abs(found.astype(int) - tile).mean() < 12
            else:
                np.testing.assert_array_equal(found, tile, err_msg=f"type {source_type}: {url}")


def test_a_tile_that_nothing_covers_is_what_its_client_needs(client: httpx.Client, grey: Scan) -> None:
    bounds = bounds_of(client, grey)
    covered = grey.canvas(bounds, 0).covered
    tiles = covered.reshape(covered.shape[0] // TILE, TILE, -1, TILE).any(axis=(1, 3))
    row, col = np.argwhere(~tiles)[0]
    stack = client.get(f"/catmaid/{grey.run}/stack/0.0/info").json()
    epoch, n_levels = info_of(client, grey)["epoch"], stack["num_zoom_levels"]
    black = image_of(client.get(f"{stack['mirrors'][0]['image_base']}0/{row}_{col}_0.png"))
    assert (black == 0).all()
    assert black.ndim == 2
    top = (max(covered.shape) - 1).bit_length()
    base = f"/deepzoom/{grey.run}/{epoch}/0/0/0/mosaic_files/{top}/{col}_{row}"
    assert (image_of(client.get(f"{base}.png"))[..., -1] == 0).all()
    assert (image_of(client.get(f"{base}.webp"))[..., -1] == 0).all()
    assert (image_of(client.get(f"{base}.jpg")) == 0).all()
    index = row * (covered.shape[1] // TILE) + col
    assert (image_of(client.get(f"/iip?FIF={grey.run}/{epoch}&JTL={n_levels - 1},{index}")) == 0).all()
    assert client.get(f"/zarr/0.4/{grey.run}/{epoch}.zarr/0/0/0/0/{row}/{col}").status_code == 404
    assert client.get(f"/zarr/0.5/{grey.run}/{epoch}.zarr/0/c/0/0/0/{row}/{col}").status_code == 404


def test_outside_of_the_canvas_is_404(client: httpx.Client, grey: Scan) -> None:
    stack = client.get(f"/catmaid/{grey.run}/stack/0.0/info").json()
    epoch = info_of(client, grey)["epoch"]
    base = stack["mirrors"][0]["image_base"]
    for path in (
        f"{base}0/0_9999_0.png", f"{base}0/0_0_99.png", f"{base}7/0_0_0.png",
        f"/deepzoom/{grey.run}/{epoch}/0/0/0/mosaic_files/8/9999_0.png",
        f"/deepzoom/{grey.run}/{epoch}/0/0/0/mosaic_files/0/1_0.png",
        f"/deepzoom/{grey.run}/{epoch}/0/0/0/mosaic_files/40/0_0.png",
        f"/deepzoom/{grey.run}/{epoch}/0/5/0/mosaic_files/8/0_0.png",
        f"/iip?FIF={grey.run}/{epoch}&JTL=99,0", f"/iip?FIF={grey.run}/{epoch}&JTL=0,4000",
        f"/iip?FIF={grey.run}/{epoch}/0/3&JTL=0,0", f"/iip?FIF={grey.run}/{epoch}&CHAN=2&JTL=0,0",
        f"/iip?FIF={grey.run}/{epoch}&RGN=-50,-50:0,0", f"/iip?FIF={grey.run}&JTL=0,0",
        f"/zarr/0.4/{grey.run}/{epoch}.zarr/0/0/0/0/0/9999", f"/zarr/0.4/{grey.run}/{epoch}.zarr/99/.zarray",
        "/iip?FIF=0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55/1&INFO", "/iip?FIF=x/1&INFO",
    ):  # fmt: skip
        found = client.get(path)
        assert found.status_code == 404, (path, found.text)
        assert found.json()["detail"], path


def test_what_makes_no_sense_is_a_4xx(client: httpx.Client, grey: Scan) -> None:
    stack = client.get(f"/catmaid/{grey.run}/stack/0.0/info").json()
    epoch = info_of(client, grey)["epoch"]
    base = stack["mirrors"][0]["image_base"]
    for path in (
        f"{base}0/0_0_0.tif", f"{base}../../x", f"{base}?x=0", base.replace("/1/", "/2/") + "?x=3",
        f"{base.replace('/1/', '/9/')}0/0_0_0.png?color=mauve", f"{base.replace('/1/', '/9/')}0/0_0_0.png?min=a",
        f"{base.replace('/1/', '/9/')}0/0_0_0.png?min=1,2,3", f"{base.replace('/1/', '/77/')}0/0_0_0.png",
        f"/catmaid/{grey.run}/stack/0.0/info?min=5&max=5", f"/catmaid/{grey.run}/stack/0.0/info?types=11",
        f"/catmaid/{grey.run}/stack/0.0/info?min=nan", f"/catmaid/{grey.run}/stack/0/info",
        f"/catmaid/{grey.run}/stack/0.0/tile?x=0", f"/deepzoom/{grey.run}/{epoch}/0/0/0/mosaic.dzi?format=tif",
        f"/deepzoom/{grey.run}/{epoch}/0/x/0/mosaic.dzi", f"/deepzoom/{grey.run}/{epoch}/0/0/0/mosaic_files/8/0_0.gif",
        f"/deepzoom/{grey.run}/{epoch}/0/0/0/mosaic_files/8/0_0.png?gamma=0",
        f"/iip?FIF={grey.run}/{epoch}", f"/iip?FIF={grey.run}/{epoch}&JTL=a", "/iip",
        f"/iip?FIF={grey.run}/{epoch}&PFL=1,1:9999999,1", f"/zarr/0.6/{grey.run}/{epoch}.zarr/zarr.json",
    ):  # fmt: skip
        found = client.get(path)
        assert 400 <= found.status_code < 500, (path, found.status_code, found.text)
        assert found.json()["detail"], path


def test_settings_are_part_of_the_etag_and_not_remembered(client: httpx.Client, colour: Scan) -> None:
    epoch = info_of(client, colour)["epoch"]
    fif = f"/iip?FIF={colour.run}/{epoch}"
    plain = client.get(f"{fif}&CHAN=1&JTL=0,0")
    changed = client.get(f"{fif}&CHAN=1&MINMAX=1:0,500&INV&JTL=0,0")
    mixed = client.get(f"{fif}&MIX=1:1,0,0&MIX=2:0,0,1&JTL=0,0")
    default = client.get(f"{fif}&JTL=0,0")
    answers = [plain, changed, mixed, default]
    assert len({answer.headers["etag"] for answer in answers}) == len({answer.content for answer in answers}) == 4
    assert client.get(f"{fif}&CHAN=1&JTL=0,0").content == plain.content
    assert client.get(f"{fif}&JTL=0,0").content == default.content


def test_catmaid_type_9_mixes_channels(client: httpx.Client, colour: Scan) -> None:
    bounds = bounds_of(client, colour)
    stack = client.get(f"/catmaid/{colour.run}/stack/0.0/info?min=0&max=65535&types=9").json()
    (mirror,) = stack["mirrors"]
    found = image_of(
        client.get(f"{mirror['image_base']}0/0_0_3.png?color=red,cyan&min=0,1000&max=65535,50000&gamma=1,2")
    )
    first, second = (colour.canvas(bounds, 3, (0, c, 0)) for c in (0, 1))
    red = np.where(first.covered, first.values / 65535, 0)
    cyan = np.where(second.covered, np.clip((second.values - 1000.0) / 49000, 0, 1) ** 0.5, 0)
    expected = np.stack([red, cyan, cyan], axis=2)[:TILE, :TILE] * 255
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("levels_above", range(5))
def test_deepzoom_goes_down_to_a_pixel(client: httpx.Client, grey: Scan, levels_above: int) -> None:
    bounds = bounds_of(client, grey)
    epoch = info_of(client, grey)["epoch"]
    stack = client.get(f"/catmaid/{grey.run}/stack/0.0/info").json()
    level = stack["num_zoom_levels"] - 1 + levels_above
    top = (max(stack["dimension"]["x"], stack["dimension"]["y"]) - 1).bit_length()
    expected = grey.canvas(bounds, stack["num_zoom_levels"] - 1)
    values, covered = expected.values, expected.covered
    for _ in range(levels_above):
        pad = [(0, size % 2) for size in values.shape]
        values, covered = mosaic_reference.reduce(np.pad(values, pad), np.pad(covered, pad))
    url = f"/deepzoom/{grey.run}/{epoch}/0/0/0/mosaic_files/{top - level}/0_0.png?min=0&max=255"
    found = image_of(client.get(url))
    grey_found = found if found.ndim == 2 else found[..., 0]
    alpha = np.full(grey_found.shape, 255) if found.ndim == 2 else found[..., -1]
    size = min(TILE, values.shape[0]), min(TILE, values.shape[1])
    np.testing.assert_array_equal(alpha == 255, covered[: size[0], : size[1]])
    np.testing.assert_array_equal(grey_found, np.where(covered, values, 0)[: size[0], : size[1]])


def test_iip_values_profiles_and_regions(client: httpx.Client, colour: Scan) -> None:
    bounds = bounds_of(client, colour)
    epoch = info_of(client, colour)["epoch"]
    fif = f"/iip?FIF={colour.run}/{epoch}"
    planes = [colour.canvas(bounds, 0, (0, c, 0)) for c in (0, 1)]
    height, width = planes[0].values.shape

    def expected(x: int, y: int) -> list[float | None]:
        inside = 1 <= x <= width and 1 <= y <= height
        return [
            float(plane.values[y - 1, x - 1]) if inside and plane.covered[y - 1, x - 1] else None for plane in planes
        ]

    inside = [tuple(map(int, place[::-1] + 1)) for place in np.argwhere(planes[0].covered)[::397]]
    for x, y in [*inside, (1, 1), (width, height), (0, 1), (1, 0), (width + 1, 1), (1, height + 1), (-5, -5)]:
        assert client.get(f"{fif}&VAL={x},{y}").json() == {"values": expected(x, y)}, (x, y)
    x, y = inside[3]
    assert client.get(f"{fif}&CHAN=2&CHAN=1&VAL={x},{y}").json()["values"] == expected(x, y)[::-1]
    assert client.get(f"{fif}/0/1&CHAN=2&VAL={x},{y}").json()["values"] != expected(x, y)[1:]
    for line in ((x - 40, y - 9, x + 35, y + 70), (x, y, x, y), (-20, y, width + 20, y), (x + 9, y, x - 30, y - 50)):
        profile = client.get(f"{fif}&PFL={line[0]},{line[1]}:{line[2]},{line[3]}").json()["profile"]
        assert (profile[0]["x"], profile[0]["y"], profile[-1]["x"], profile[-1]["y"]) == line
        assert len(profile) == max(abs(line[2] - line[0]), abs(line[3] - line[1])) + 1
        for before, after in itertools.pairwise(profile):
            assert max(abs(after["x"] - before["x"]), abs(after["y"] - before["y"])) == 1
        for point in profile:
            assert point["values"] == expected(point["x"], point["y"])
    up = client.get(f"{fif}/up&PFL={x},{height + 1 - y}:{x + 9},{height - 4 - y}").json()["profile"]
    assert [(point["x"], point["y"]) for point in up[:: len(up) - 1]] == [(x, height + 1 - y), (x + 9, height - 4 - y)]
    assert up[0]["values"] == expected(x, y)
    assert client.get(f"{fif}/up&VAL={x},{height + 1 - y}").json() == {"values": expected(x, y)}
    found = image_of(client.get(f"{fif}&CHAN=1&MINMAX=1:0,65535&QLT=100&RGN=5,9:{5 + 89},{9 + 70}&BIN=2")).astype(int)
    level1 = colour.canvas(bounds, 1, (0, 0, 0))
    right = np.where(level1.covered, level1.values / 257, 0)[4:40, 2:47]
    assert found.shape == right.shape
    assert np.abs(found - right).mean() < 6


def test_iip_rendering(client: httpx.Client, colour: Scan) -> None:
    """v = (p − lo)·contrast/(hi − lo) + 0.01·contrast·brightness, cut to 0…1, to the power GAM; as PNG, so exactly."""
    bounds = bounds_of(client, colour)
    info = client.get(f"/iip?FIF={colour.run}/{info_of(client, colour)['epoch']}&INFO").json()
    fif = f"/iip?FIF={info['image_name']}"
    level = info["tile_levels"] - 1
    plane = colour.canvas(bounds, level, (0, 0, 0))
    values, covered = plane.values[:TILE, :TILE].astype(float), plane.covered[:TILE, :TILE]
    found = image_of(client.get(f"{fif}&CHAN=1&MINMAX=1:3000,50000&CNT=1.5&BRT=-10&GAM=0.8000&PTL=0,0"))
    v = np.clip((values - 3000) * 1.5 / 47000 + 0.01 * 1.5 * -10, 0, 1) ** 0.8
    expected = np.where(covered, v * 255, 0)
    assert np.abs((found if found.ndim == 2 else found[..., 0]) - expected).max() <= 1
    inverted = image_of(client.get(f"{fif}&CHAN=1&MINMAX=1:0,65535&INV&PTL=0,0"))
    assert (
        np.abs((inverted if inverted.ndim == 2 else inverted[..., 0]) - np.where(covered, 255 - values / 257, 0)).max()
        <= 1
    )
    poor, good = (client.get(f"{fif}&CHAN=1&QLT={quality}&JTL=0,0").content for quality in (5, 95))
    assert len(poor) < len(good)
    for name in ("jet", "cold", "hot", "cool"):
        assert image_of(client.get(f"{fif}&CHAN=1&CMP={name}&JTL=0,0")).shape == (TILE, TILE, 3)
    mixed = image_of(client.get(f"{fif}&MINMAX=1:0,65535&MINMAX=2:0,65535&MIX=1:1,0.5,0&MIX=2:0,0.5,1&QLT=100&PTL=0,0"))
    other = colour.canvas(bounds, level, (0, 1, 0))
    parts = [np.where(one.covered, one.values / 65535, 0)[:TILE, :TILE] for one in (plane, other)]
    sums = np.stack([parts[0], 0.5 * parts[0] + 0.5 * parts[1], parts[1]], axis=2) * 255
    assert np.abs(mixed[..., :3] - np.clip(sums, 0, 255)).max() <= 1


def test_a_large_region_is_refused_with_what_to_do(client: httpx.Client, stage: Show) -> None:
    with stage.publisher("far") as publisher:
        run = publisher.start("far", shape=(8, 8), dtype="|u1", px_um=PX_UM, pos_src="frame")
        for x_um in (0.0, 4000.0):
            publisher.image(np.zeros((8, 8), "u1"), pos_um=(x_um, x_um))
        publisher.end(run=run)
        publisher.flush()
    stage.watch.report(run)
    epoch = client.get(f"/api/v1/runs/{run}").json()["epoch"]
    found = client.get(f"/iip?FIF={run}/{epoch}&RGN=1,1:8000,16000")
    assert found.status_code == 413
    assert "ask for a higher level" in found.json()["detail"]
    assert client.get(f"/iip?FIF={run}/{epoch}&RGN=1,1:8000,16000&BIN=16").status_code == 200


def test_documents(client: httpx.Client, colour: Scan) -> None:
    epoch = info_of(client, colour)["epoch"]
    dzi = client.get(f"/deepzoom/{colour.run}/{epoch}/0/0,1/0/mosaic.dzi?format=jpg")
    assert dzi.headers["content-type"] == "application/xml"
    assert 'Format="jpg"' in dzi.text
    header = client.get(f"/iip?FIF={colour.run}/{epoch}&obj=IIP,1.0&obj=Max-size")
    assert header.headers["content-type"].startswith("text/plain")
    old = client.get(f"/zarr/0.4/{colour.run}/{epoch}.zarr/.zattrs")
    new = client.get(f"/zarr/0.5/{colour.run}/{epoch}.zarr/zarr.json")
    for document in (dzi, header, old, new):
        assert document.headers["cache-control"] == "no-cache"
        tag = document.headers["etag"]
        assert client.get(document.url, headers={"If-None-Match": tag}).status_code == 304
    assert json.loads(old.text)["omero"]["channels"][1]["label"] == "GFP"
    for probe in (".zmetadata", "labels/.zgroup", "labels/zarr.json", "zarr.json", "0/zarr.json", "0/.zattrs", "", "0"):
        assert client.get(f"/zarr/0.4/{colour.run}/{epoch}.zarr/{probe}").status_code == 404, probe
    for probe in (".zgroup", ".zattrs", "labels/zarr.json", "0/.zarray", "00/zarr.json"):
        assert client.get(f"/zarr/0.5/{colour.run}/{epoch}.zarr/{probe}").status_code == 404, probe


def test_float_runs_have_nan_where_nothing_is(client: httpx.Client, floats: Scan) -> None:
    epoch = info_of(client, floats)["epoch"]
    bounds = bounds_of(client, floats)
    array = client.get(f"/zarr/0.5/{floats.run}/{epoch}.zarr/0/zarr.json").json()
    assert (array["fill_value"], array["data_type"]) == ("NaN", "float32")
    expected = floats.canvas(bounds, 0).values
    seen = 0
    for row in range(expected.shape[0] // TILE):
        for col in range(expected.shape[1] // TILE):
            if np.isnan(expected[row * TILE : (row + 1) * TILE, col * TILE : (col + 1) * TILE]).all() and row % 5:
                continue
            chunk = client.get(f"/zarr/0.5/{floats.run}/{epoch}.zarr/0/c/0/0/0/{row}/{col}")
            if chunk.status_code == 404:
                continue
            seen += 1
            tile = expected[row * TILE : (row + 1) * TILE, col * TILE : (col + 1) * TILE]
            np.testing.assert_array_equal(np.frombuffer(chunk.content, "<f4").reshape(TILE, TILE), tile)
    assert seen > 10


def test_the_addresses_for_viewers_lead_there(client: httpx.Client, colour: Scan) -> None:
    found = client.get(f"/api/v1/runs/{colour.run}/viewers").json()
    assert len(found["deepzoom"]) == len(found["catmaid"]) == 2
    for address in (
        *found["deepzoom"],
        *found["catmaid"],
        f"{found['iip']['server']}?FIF={found['iip']['image']}&INFO",
    ):
        assert client.get(address).status_code == 200, address
    assert client.get(f"{found['ome_zarr_04']}/.zattrs").status_code == 200
    assert client.get(f"{found['ome_zarr_05']}/zarr.json").status_code == 200
    assert client.get("/api/v1/runs/0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55/viewers").status_code == 404


def test_a_canvas_that_moves_ends_the_addresses(client: httpx.Client, stage: Show) -> None:
    """A run grows beyond its canvas: the epoch rises, old addresses are 404, new ones show the frame in its place."""
    pixels = np.arange(64, dtype="u1").reshape(8, 8)
    with stage.publisher("moving") as publisher:
        run = publisher.start("moving", shape=(8, 8), dtype="|u1", px_um=PX_UM, pos_src="frame")
        publisher.image(pixels, pos_um=(4 * PX_UM[0], 4 * PX_UM[1]))
        stage.watch.placed(run, 1)
        before = client.get(f"/api/v1/runs/{run}/viewers").json()
        image = before["iip"]["image"]
        assert client.get(f"/iip?FIF={image}&VAL=1,1").json() == {"values": [0.0]}
        publisher.image(pixels, pos_um=(-300 * PX_UM[0], -500 * PX_UM[1]))
        stage.watch.placed(run, 2)
        after = eventually(
            lambda: (found := client.get(f"/api/v1/runs/{run}/viewers").json())["epoch"] > before["epoch"] and found,
            "the epoch rises",
        )
        for address in (before["deepzoom"][0], f"/iip?FIF={image}&INFO", f"{before['ome_zarr_05']}/zarr.json"):
            assert client.get(address).status_code == 404, address
        info = client.get(f"/iip?FIF={after['iip']['image']}&INFO").json()
        stack = client.get(f"/catmaid/{run}/stack/0.0/info").json()
        x, y = (round(-stack["translation"][axis] / stack["resolution"][axis]) for axis in "xy")
        assert info["full_size"] == [stack["dimension"]["x"], stack["dimension"]["y"]]
        values = client.get(f"/iip?FIF={after['iip']['image']}&PFL={x + 1},{y + 3}:{x + 8},{y + 3}").json()
        assert [point["values"] for point in values["profile"]] == [[float(value)] for value in pixels[2]]
        publisher.end(run=run)


def test_classic_iip(client: httpx.Client, colour: Scan) -> None:
    """What iipsrv answers: channels and pixels from 0, regions in fractions, profiles at any resolution."""
    bounds = bounds_of(client, colour)
    epoch = info_of(client, colour)["epoch"]
    fif = f"/iipsrv?FIF={colour.run}/{epoch}"
    told = dict(
        line.split(":", 1) for line in client.get(f"{fif}&OBJ=Max-size&OBJ=Resolution-number").text.split("\r\n")[:-1]
    )
    width, height = map(int, told["Max-size"].split())
    levels = int(told["Resolution-number"])
    assert (height, width) == colour.canvas(bounds, 0).values.shape
    # A tile of one channel, exactly: PNG.
    plane = colour.canvas(bounds, levels - 1, (0, 1, 0))
    values, covered = plane.values[:TILE, :TILE].astype(float), plane.covered[:TILE, :TILE]
    found = image_of(client.get(f"{fif}/0/0/1&MINMAX=0:3000,50000&CNT=1.5&GAM=0.8&PTL=0,0"))
    v = np.clip(np.clip((values - 3000) / 47000, 0, 1) ** 0.8 * 1.5, 0, 1)
    assert np.abs((found if found.ndim == 2 else found[..., 0]) - np.where(covered, v * 255, 0)).max() <= 1
    # All channels, in their colours; the second name of the path; keys in small letters.
    mixed = image_of(
        client.get(f"/fcgi-bin/iipsrv.fcgi?fif={colour.run}/{epoch}&minmax=0:0,65535&minmax=1:0,65535&ptl=0,0")
    )
    first = colour.canvas(bounds, levels - 1, (0, 0, 0))
    for part, one in ((2, first), (1, plane)):  # DAPI is blue, GFP green
        expected = np.where(one.covered, one.values / 257, 0)[:TILE, :TILE]
        assert np.abs(mixed[..., part] - expected).max() <= 1
    # A region in fractions, and one made smaller.
    level0 = colour.canvas(bounds, 0, (0, 0, 0))
    part = np.s_[height // 4 : height // 4 + height // 2, width // 2 : width]
    look = f"{fif}/0/0/0&MINMAX=-:0,65535&RGN=0.5,0.25,0.5,0.5"
    found = image_of(client.get(f"{look}&CVT=png"))
    np.testing.assert_allclose(found[..., 0], np.where(level0.covered, level0.values / 257, 0)[part], atol=1)
    np.testing.assert_array_equal(found[..., -1] == 255, level0.covered[part])
    small = client.get(f"{look}&WID={width // 8}&CVT=jpeg")
    assert small.headers["content-type"] == "image/jpeg"
    assert image_of(small).shape == (round(height // 2 * (width // 8) / (width / 2)), width // 8)
    assert (
        client.get(f"{look}&WID={width // 8}&CVT=jpeg", headers={"If-None-Match": small.headers["etag"]}).status_code
        == 304
    )
    # Profiles: pixel by pixel the channels, from 0, at a resolution.
    level1 = [colour.canvas(bounds, 1, (0, c, 0)) for c in (0, 1)]
    row, col = np.argwhere(level1[0].covered)[5]
    resolution = levels - 2
    profile = client.get(f"{fif}&PFL={resolution}:{col},{row}-{col + 9},{row}").json()["profile"]
    assert profile == [
        float(one.values[row, col + n]) if one.covered[row, col + n] else None for n in range(9) for one in level1
    ]
    down = client.get(f"{fif}/0/0/1&PFL={resolution}:{col},{row}-{col},{row + 4}").json()["profile"]
    assert [value is not None for value in down] == level1[1].covered[row : row + 4, col].tolist()
    for query, status in (
        ("PFL=0:0,0-99999,0", 404),
        ("PFL=99:0,0-1,0", 404),
        ("JTL=9,9", 404),
        ("JTL=0,9999", 404),
        ("ROT=90&JTL=0,0", 400),
        ("CVT=gif", 400),
    ):
        refused = client.get(f"{fif}&{query}")
        assert (refused.status_code, set(refused.json())) == (status, {"detail"}), query
    assert client.get(f"/iipsrv?FIF={colour.run}/{epoch + 1}&JTL=0,0").status_code == 404
