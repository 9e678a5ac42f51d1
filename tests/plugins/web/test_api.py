"""`/api/v1` over HTTP: every pixel against the store, and what strangers get wrong."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from integration.talking import new_uuid, picture
from plugins.web.conftest import CORNERS, SHAPE, TILE, WebStation
from tilecast.geometry import PlaneKey, Rect, TileKey, rect_at_level
from tilecast.reading import reduce_tiles
from tilecast.store.folders import run_folder
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import NewRun
from tilecast_protocol import pzf

P0 = PlaneKey()


def info_of(http: httpx.Client, run: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/api/v1/runs/{run}").raise_for_status().json()
    return found


def base_of(http: httpx.Client, run: str) -> str:
    return f"/api/v1/runs/{run}/tiles/{info_of(http, run)['epoch']}"


def decoded(answer: httpx.Response) -> NDArray[Any]:
    with Image.open(io.BytesIO(answer.raise_for_status().content)) as image:
        return np.asarray(image)


def raw_of(answer: httpx.Response) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Pixels and coverage of a raw answer with a mask."""
    answer.raise_for_status()
    shape = tuple(int(side) for side in answer.headers["x-tilecast-shape"].split(","))
    dtype = np.dtype(answer.headers["x-tilecast-dtype"])
    nbytes = shape[0] * shape[1] * dtype.itemsize
    pixels = np.frombuffer(answer.content[:nbytes], dtype).reshape(shape)
    return pixels, np.frombuffer(answer.content[nbytes:], np.uint8).reshape(shape).astype(np.bool_)


class TestRuns:
    def test_the_newest_comes_first(self, http: httpx.Client, web_station: WebStation) -> None:
        rows = http.get("/api/v1/runs").raise_for_status().json()["runs"]
        ours = [row["run"] for row in rows if row["run"] in (web_station.scan, web_station.channels)]
        assert ours == [web_station.channels, web_station.scan]
        assert [row["created_ns"] for row in rows] == sorted((row["created_ns"] for row in rows), reverse=True)

    def test_a_run_tells_its_geometry(self, http: httpx.Client, web_station: WebStation) -> None:
        info = info_of(http, web_station.scan)
        rows, cols = zip(*CORNERS, strict=True)
        assert info["bbox"] == [min(rows), min(cols), max(rows) + SHAPE[0], max(cols) + SHAPE[1]]
        assert (info["dtype"], info["tile_size"], info["n_frames"]) == ("<u2", TILE, len(CORNERS))
        assert info["pixel_size_um"] == [0.5, 0.25]
        assert info["affine"] == [[0.5, 0.0], [0.0, 0.25]]
        assert info["state"] == "ended"
        assert info["report"]["received"] == len(CORNERS)
        assert info["holes"] == {"missing": [], "unplaced": {}, "final": True}
        canvas = Rect(*info["canvas"]["bounds"])
        assert canvas.contains(Rect(*info["bbox"]))

    def test_its_report_is_told_by_itself_too(self, http: httpx.Client, web_station: WebStation) -> None:
        told = http.get(f"/api/v1/runs/{web_station.scan}/report").raise_for_status().json()
        assert told["final"]
        assert told["report"] == info_of(http, web_station.scan)["report"]
        assert told["report"]["n_missing"] == 0
        holes = http.get(f"/api/v1/runs/{web_station.scan}/holes").raise_for_status().json()
        assert holes == {"missing": [], "unplaced": {}, "final": True}

    def test_channels_have_names_and_windows(self, http: httpx.Client, web_station: WebStation) -> None:
        channels = info_of(http, web_station.channels)["channels"]
        assert [channel["name"] for channel in channels] == ["DAPI", "GFP"]
        for channel in channels:
            low, high = channel["window"]
            assert 0 <= low < high <= 256

    def test_changes_lead_to_the_present(self, http: httpx.Client, web_station: WebStation) -> None:
        publisher, run = web_station.open_run("changing", stream="changing")
        with publisher:
            for number in (1, 2):  # twice in the same place: the canvas stays, and the history with it
                publisher.image(picture(number, SHAPE), pos_um=(0, 0))
                web_station.watch.placed(run, number)
        info = info_of(http, run)
        found = http.get(f"/api/v1/runs/{run}/changes", params={"since": info["rev"] - 1}).json()
        assert found["upto"] == info["rev"]
        assert not found["resync"]
        assert found["tiles"]
        assert all(row[6] == info["rev"] for row in found["tiles"])
        other = {"since": info["rev"], "epoch": info["epoch"] + 1}
        assert http.get(f"/api/v1/runs/{run}/changes", params=other).json()["resync"]

    def test_placements_in_pages(self, http: httpx.Client, web_station: WebStation) -> None:
        url = f"/api/v1/runs/{web_station.scan}/placements"
        placed = http.get(url).json()["placements"]
        assert {(row["row"], row["col"]) for row in placed} == set(CORNERS)
        page = http.get(url, params={"limit": 2}).json()
        assert page["more"]
        assert len(page["placements"]) == 2

    def test_status_comes_from_the_daemon(self, http: httpx.Client) -> None:
        status = http.get("/api/v1/status").raise_for_status().json()
        assert status["error"] is None
        assert status["daemon"]["state"] == "ready"
        assert status["daemon"]["problems"] == []
        assert {"queues", "latency_ms", "disk"} <= status["daemon"].keys()


class TestTiles:
    def test_every_tile_of_the_store_is_served_as_it_is(self, http: httpx.Client, web_station: WebStation) -> None:
        base = base_of(http, web_station.scan)
        mosaic = web_station.mosaic(web_station.scan)
        assert min(row for _, (_, row, _) in mosaic) < 0 < max(row for _, (_, row, _) in mosaic)
        for (plane, key), (pixels, coverage) in mosaic.items():
            url = f"{base}/{'/'.join(str(part) for part in (*plane, *key))}"
            got, mask = raw_of(http.get(url + ".raw?mask=1"))
            np.testing.assert_array_equal(got, pixels)
            np.testing.assert_array_equal(mask, coverage)
            stored = http.get(url + ".pzf").content
            np.testing.assert_array_equal(pzf.decode_image(stored), pixels)
            with_mask = http.get(url + ".pzf?mask=1")
            assert with_mask.headers["x-tilecast-coverage"] == ("full" if coverage.all() else "mask")
            bits = b"" if coverage.all() else np.packbits(coverage).tobytes()
            assert with_mask.content == stored + bits
            shown = decoded(http.get(url + ".png?min=0&max=65535"))
            grey = (pixels.astype(np.float64) / 65535 * 255 + 0.5).astype(np.uint8)
            if coverage.all():
                np.testing.assert_array_equal(shown, grey)
            else:
                np.testing.assert_array_equal(shown[..., 1], coverage * np.uint8(255))
                np.testing.assert_array_equal(shown[..., 0], np.where(coverage, grey, 0))

    def test_levels_above_the_store_are_reductions(self, http: httpx.Client, web_station: WebStation) -> None:
        run, mosaic = web_station.scan, web_station.mosaic(web_station.scan)
        base, levels = base_of(http, run), info_of(http, run)["levels"]
        for row, col in ((-1, -1), (-1, 0), (0, -1), (0, 0)):
            key = TileKey(levels, row, col)
            children = [mosaic.get((P0, child)) for child in key.children()]
            answer = http.get(f"{base}/0/0/0/{levels}/{row}/{col}.raw?mask=1")
            if not any(child is not None for child in children):
                assert answer.status_code == 404
                continue
            pixels, coverage = reduce_tiles(children, np.dtype("<u2"), TILE)
            got, mask = raw_of(answer)
            np.testing.assert_array_equal(got, pixels)
            np.testing.assert_array_equal(mask, np.ones_like(mask) if coverage is None else coverage)

    def test_nothing_is_not_found_and_an_old_epoch_neither(self, http: httpx.Client, web_station: WebStation) -> None:
        run = web_station.scan
        epoch = info_of(http, run)["epoch"]
        absent = http.get(f"/api/v1/runs/{run}/tiles/{epoch}/0/0/0/0/1000/0.png")
        old = http.get(f"/api/v1/runs/{run}/tiles/{epoch - 1}/0/0/0/0/0/0.png")
        assert (absent.status_code, old.status_code) == (404, 404)
        assert (absent.headers.get("x-tilecast-coverage"), old.headers.get("x-tilecast-coverage")) == ("none", None)
        assert "no frame covers" in absent.json()["detail"]
        assert f"epoch {epoch}" in old.json()["detail"]

    def test_content_types_are_exact(self, http: httpx.Client, web_station: WebStation) -> None:
        base = base_of(http, web_station.scan)
        for fmt, kind in (("png", "image/png"), ("jpg", "image/jpeg"), ("webp", "image/webp")):
            answer = http.get(f"{base}/0/0/0/0/-1/0.{fmt}").raise_for_status()
            assert answer.headers["content-type"] == kind
            assert answer.headers["cache-control"] == "no-cache"
            assert decoded(answer).shape[:2] == (TILE, TILE)

    @pytest.mark.parametrize(("fmt", "bound"), [("jpg", 2), ("webp", 20)])
    def test_lossy_formats_show_the_same_picture(
        self, http: httpx.Client, web_station: WebStation, fmt: str, bound: float
    ) -> None:
        for (plane, key), (pixels, coverage) in web_station.mosaic(web_station.scan).items():
            url = f"{base_of(http, web_station.scan)}/{'/'.join(str(part) for part in (*plane, *key))}.{fmt}"
            shown = decoded(http.get(url, params={"min": 0, "max": 65535, "quality": 100}))
            grey = shown if shown.ndim == 2 else shown[..., 0]
            difference = np.abs(grey.astype(int) - np.where(coverage, pixels / 65535 * 255, 0))[coverage]
            assert difference.mean() < bound, url
            if fmt == "webp" and not coverage.all():
                np.testing.assert_array_equal(shown[..., -1] == 255, coverage)

    def test_unchanged_is_304_until_anything_differs(self, http: httpx.Client, web_station: WebStation) -> None:
        base = base_of(http, web_station.scan)
        tags = set()
        for path in ("0/-1/0.png", "0/-1/1.png", "0/-1/0.jpg", "0/-1/0.raw", "0/-1/0.pzf", "1/-1/0.png"):
            for query in ("", "?min=5&max=9", "?min=5&max=9&invert=1", "?gamma=2", "?cmap=viridis", "?mask=1"):
                url = f"{base}/0/0/0/{path}{query}"
                answer = http.get(url).raise_for_status()
                tag = answer.headers["etag"]
                again = http.get(url, headers={"If-None-Match": f'"other", {tag}'})
                assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
                assert http.get(url, headers={"If-None-Match": '"other"'}).content == answer.content
                tags.add(tag)
        assert len(tags) == 4 * 5 + 2 * 2  # raw and pzf have no look, and only they a mask

    def test_two_people_with_different_settings_see_their_own(
        self, http: httpx.Client, web_station: WebStation
    ) -> None:
        url = f"{base_of(http, web_station.scan)}/0/0/0/0/-1/0.png"
        first = http.get(url, params={"min": 0, "max": 65535}).content
        other = http.get(url, params={"min": 0, "max": 1000, "invert": 1}).content
        assert first != other
        assert http.get(url, params={"min": 0, "max": 65535}).content == first

    def test_channels_are_mixed_in_their_colours(self, http: httpx.Client, web_station: WebStation) -> None:
        base = base_of(http, web_station.channels)
        both = decoded(http.get(f"{base}/0/0,1/0/0/0/0.png", params={"min": 0, "max": 255, "color": "ff0000,00ff00"}))
        ones = [raw_of(http.get(f"{base}/0/{c}/0/0/0/0.raw?mask=1"))[0] for c in range(2)]
        np.testing.assert_array_equal(both[..., 0], ones[0])
        np.testing.assert_array_equal(both[..., 1], ones[1])
        assert not both[..., 2].any()
        said = decoded(http.get(f"{base}/0/0,1/0/0/0/0.png", params={"min": 0, "max": 255}))
        np.testing.assert_array_equal(said[..., 2], ones[0])  # `start` said that it is blue

    def test_floats_show_holes(self, http: httpx.Client, web_station: WebStation) -> None:
        base = base_of(http, web_station.floats)
        shown = decoded(http.get(f"{base}/0/0/0/0/0/0.png"))
        assert shown[3, 4].tolist() == [0, 0]
        assert shown[3, 5, 1] == 255

    def test_head_is_answered_without_a_body(self, http: httpx.Client, web_station: WebStation) -> None:
        url = f"{base_of(http, web_station.scan)}/0/0/0/0/-1/0.jpg"
        head, got = http.head(url), http.get(url)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(got.content))
        assert head.headers["etag"] == got.headers["etag"]

    @pytest.mark.parametrize(
        ("path", "status"),
        [
            ("0/0/0/0/0/0.tif", 404),
            ("0/0/0/0/0/0", 404),
            ("0/0/0/0/0/1e3.png", 404),
            ("0/0/0/0/0/99999999999.png", 404),
            ("0/0/0/41/0/0.png", 404),
            ("-1/0/0/0/0/0.png", 404),
            ("0/0/0/0/-1/0.png?gamma=0", 400),
            ("0/0/0/0/-1/0.png?gamma=nan", 400),
            ("0/0/0/0/-1/0.png?min=inf", 400),
            ("0/0/0/0/-1/0.png?cmap=rainbow", 400),
            ("0/0/0/0/-1/0.png?color=12", 400),
            ("0/0/0/0/-1/0.png?min=1,2,3", 400),
            ("0/0,1/0/0/-1/0.raw", 400),
            ("0/0/0/0/-1/0.jpg?quality=0", 404),
            ("0/٣/0/0/-1/0.jpg", 404),
        ],
    )
    def test_nonsense_is_told_in_a_sentence(
        self, http: httpx.Client, web_station: WebStation, path: str, status: int
    ) -> None:
        answer = http.get(f"{base_of(http, web_station.scan)}/{path}")
        assert answer.status_code == status, answer.text
        detail = answer.json()["detail"]
        assert len(detail) > 5
        assert "Traceback" not in detail


class TestPixels:
    def test_a_region_is_put_together_from_tiles(self, http: httpx.Client, web_station: WebStation) -> None:
        run, mosaic = web_station.scan, web_station.mosaic(web_station.scan)
        bounds = Rect(-75, -33, 41, 47)
        for level in range(3):
            params = {"row0": bounds.row0, "col0": bounds.col0, "row1": bounds.row1, "col1": bounds.col1}
            got, mask = raw_of(http.get(f"/api/v1/runs/{run}/region.raw", params={**params, "level": level, "mask": 1}))
            at_level = rect_at_level(bounds, level)
            expected = np.zeros((at_level.height, at_level.width), np.uint16)
            covered = np.zeros(expected.shape, np.bool_)
            for row in range(at_level.row0, at_level.row1):
                for col in range(at_level.col0, at_level.col1):
                    tile = mosaic.get((P0, TileKey(level, row // TILE, col // TILE)))
                    if tile is not None:
                        at = row - at_level.row0, col - at_level.col0
                        expected[at] = tile[0][row % TILE, col % TILE]
                        covered[at] = tile[1][row % TILE, col % TILE]
            np.testing.assert_array_equal(got, expected)
            np.testing.assert_array_equal(mask, covered)

    def test_regions_have_limits(self, http: httpx.Client, web_station: WebStation) -> None:
        url = f"/api/v1/runs/{web_station.scan}/region.png"
        large = http.get(url, params={"row0": 0, "col0": 0, "row1": 100_000, "col1": 100_000})
        assert large.status_code == 413
        assert "higher level" in large.json()["detail"]
        higher = http.get(url, params={"row0": 0, "col0": 0, "row1": 100_000, "col1": 100_000, "level": 6})
        assert decoded(higher).shape[:2] == (1563, 1563)
        assert http.get(url, params={"row0": 5, "col0": 0, "row1": 5, "col1": 9}).status_code == 400
        assert http.get(url, params={"row0": 5}).status_code == 422

    def test_values_and_where_they_are(self, http: httpx.Client, web_station: WebStation) -> None:
        url = f"/api/v1/runs/{web_station.scan}/value"
        mosaic = web_station.mosaic(web_station.scan)
        row, col = -50, -7
        got = http.get(url, params={"row": row, "col": col}).json()
        tile = mosaic[P0, TileKey(0, row // TILE, col // TILE)][0]
        assert got["values"] == [float(tile[row % TILE, col % TILE])]
        assert (got["x_um"], got["y_um"]) == ((col + 0.5) * 0.5, (row + 0.5) * 0.25)
        assert http.get(url, params={"row": 40, "col": 40}).json()["values"] == [None]

    def test_a_profile_follows_any_line(self, http: httpx.Client, web_station: WebStation) -> None:
        run, mosaic = web_station.scan, web_station.mosaic(web_station.scan)
        params = {"row0": -69.5, "col0": -29.5, "row1": 70.0, "col1": 95.0}
        got = http.get(f"/api/v1/runs/{run}/profile", params=params).json()
        points = got["points"]
        assert (points[0]["row"], points[-1]["col"]) == (-69.5, 95.0)
        assert got["length_um"] == pytest.approx(np.hypot(124.5 * 0.5, 139.5 * 0.25))
        n_null = 0
        for point in points:
            row, col = int(np.floor(point["row"])), int(np.floor(point["col"]))
            tile = mosaic.get((P0, TileKey(0, row // TILE, col // TILE)))
            at = row % TILE, col % TILE
            expected = float(tile[0][at]) if tile is not None and tile[1][at] else None
            assert point["values"] == [expected]
            n_null += expected is None
        assert 0 < n_null < len(points)
        long = http.get(f"/api/v1/runs/{run}/profile", params={"row0": 0, "col0": 0, "row1": 1e6, "col1": 0})
        assert long.status_code == 413

    def test_a_histogram_counts_what_is_covered(self, http: httpx.Client, web_station: WebStation) -> None:
        run, mosaic = web_station.scan, web_station.mosaic(web_station.scan)
        values = np.concatenate([pixels[mask] for (_, key), (pixels, mask) in mosaic.items() if key[0] == 0])
        got = http.get(f"/api/v1/runs/{run}/histogram", params={"bins": 16}).json()
        counts, edges = np.histogram(values, 16, (values.min(), values.max()))
        assert got["counts"] == counts.tolist()
        assert got["edges"] == pytest.approx(edges.tolist())
        assert (got["n"], got["level"]) == (values.size, 0)
        assert got["window"] == pytest.approx(np.percentile(values, (0.1, 99.9)).tolist())
        nothing = http.get(
            f"/api/v1/runs/{run}/histogram", params={"row0": 30, "row1": 40, "col0": 0, "col1": 9}
        ).json()
        assert (nothing["n"], nothing["low"]) == (0, None)

    def test_a_thumbnail_shows_everything(self, http: httpx.Client, web_station: WebStation) -> None:
        shown = decoded(http.get(f"/api/v1/runs/{web_station.scan}/thumbnail.png"))
        bbox = Rect(*info_of(http, web_station.scan)["bbox"])
        assert shown.shape[:2] == (bbox.height, bbox.width)  # it is that small
        assert shown.shape[2] == 2


class TestOrders:
    def test_rename_note_end_and_delete(self, http: httpx.Client, web_station: WebStation) -> None:
        publisher, run = web_station.open_run("before", stream="orders")
        with publisher:
            publisher.flush()
            web_station.watch.notice(run, "started")
            assert http.patch(f"/api/v1/runs/{run}", json={"name": "after"}).json() == {"run": run}
            assert info_of(http, run)["name"] == "after"
            http.post(f"/api/v1/runs/{run}/notes", json={"text": "the sample moved"}).raise_for_status()
            entries = http.get(f"/api/v1/runs/{run}/log").json()["log"]
            assert any("the sample moved" in json.dumps(entry) for entry in entries)
            refused = http.delete(f"/api/v1/runs/{run}")
            assert refused.status_code == 409
            assert "is open" in refused.json()["detail"]
            http.post(f"/api/v1/runs/{run}/end").raise_for_status()
            web_station.watch.notice(run, "ended")
            http.delete(f"/api/v1/runs/{run}").raise_for_status()  # though the daemon still has it loaded
            assert http.get(f"/api/v1/runs/{run}").status_code == 404

    def test_deleting_a_run_that_nobody_uses(self, http: httpx.Client, web_station: WebStation) -> None:
        run = new_uuid()
        folder = run_folder(web_station.root, run)
        header = {"dtype": "<u2", "px_um": [1.0, 1.0]}
        new = NewRun(
            run=run,
            name="old",
            instrument="scope",
            stream="cam",
            start=msgpack.packb(header),
            settings={"tile_size": TILE},
        )
        with SqliteStore.create(folder, new) as store:
            store.set_state("ended")
        assert info_of(http, run)["levels"] == 0
        assert http.get(f"/api/v1/runs/{run}/thumbnail.png").status_code == 404
        http.delete(f"/api/v1/runs/{run}").raise_for_status()
        assert http.get(f"/api/v1/runs/{run}").status_code == 404
        assert not folder.exists()

    def test_orders_about_nothing(self, http: httpx.Client) -> None:
        nobody = "00000000-0000-4000-8000-000000000000"
        assert http.delete(f"/api/v1/runs/{nobody}").status_code == 404
        assert http.post(f"/api/v1/runs/{nobody}/notes", json={"text": ""}).status_code == 422
        assert http.post(f"/api/v1/runs/{nobody}/notes", content=b"{").status_code == 422
        assert http.put(f"/api/v1/runs/{nobody}").status_code == 405
