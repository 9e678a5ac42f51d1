"""`Mosaic` from a folder, a daemon, this gateway and its CATMAID tiles: the same pixels, those of the reference."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from integration.talking import PATIENCE_S, PX_UM, centre_um, picture
from plugins.web.conftest import CORNERS, SHAPE, TILE, WebStation, running_web
from reference import mosaic_reference
from tilecast_protocol import Change, MissingPlaneError, Mosaic, TilecastError
from tilecast_protocol.mosaic import UnknownRunError
from tilecast_protocol.rects import Rect, rect_at_level

PLANES = ((0, 0, 0), (0, 1, 0), (0, 1, 1))
KINDS = ("folder", "query", "web", "catmaid")


@dataclass(frozen=True)
class Sent:
    """A run of u1, and what its mosaic must be."""

    run: str
    expected: mosaic_reference.Mosaic

    def part(self, bounds: Rect, level: int, plane: tuple[int, int, int] = (0, 0, 0)) -> tuple[Any, NDArray[np.bool_]]:
        """Values and coverage of a rectangle, signed pixels of a level."""
        values = np.zeros((bounds.height, bounds.width), np.uint8)
        covered = np.zeros(values.shape, np.bool_)
        for (where, (at, row, col)), (pixels, mask) in self.expected.items():
            if where != plane or at != level:
                continue
            whole = Rect(row * TILE, col * TILE, (row + 1) * TILE, (col + 1) * TILE)
            both = whole.intersect(bounds)
            if not both.empty:
                inside, there = (
                    np.s_[both.row0 - at.row0 : both.row1 - at.row0, both.col0 - at.col0 : both.col1 - at.col0]
                    for at in (whole, bounds)
                )
                values[there], covered[there] = pixels[inside], mask[inside]
        return values, covered


@pytest.fixture(scope="module")
def sent(web_station: WebStation) -> Sent:
    """Frames at `CORNERS` in three planes."""
    frames = []
    with web_station.publisher("mosaic") as publisher:
        run = publisher.start(
            "to be read", shape=SHAPE, dtype="|u1", px_um=PX_UM, planes={"t": 1, "c": 2, "z": 3}, pos_src="frame"
        )
        for plane in PLANES:
            for row, col in CORNERS:
                pixels = picture(900 + len(frames), SHAPE, "|u1")
                publisher.image(pixels, pos_um=centre_um(row, col, SHAPE), tcz=plane)
                frames.append(mosaic_reference.Frame(len(frames), 0, len(frames), plane, row, col, pixels))
        publisher.end()
        publisher.flush()
    web_station.watch.report(run)
    return Sent(run, mosaic_reference.mosaic(frames, "feather", "|u1", TILE))


def address_of(kind: str, station: WebStation, run: str) -> str:
    """Where a run is read; CATMAID shows grey levels 0 to 255 as they are."""
    return {
        "folder": str(station.root / run),
        "query": station.daemon.endpoints["query"],
        "web": station.web.url,
        "catmaid": f"{station.web.url}/catmaid/{run}/stack/0.0/info?min=0&max=255",
    }[kind]


def opened(kind: str, station: WebStation, run: str, **options: Any) -> Mosaic:
    return Mosaic.open(address_of(kind, station, run), None if kind == "catmaid" else run, **options)


@pytest.fixture(params=KINDS)
def mosaic(request: pytest.FixtureRequest, web_station: WebStation, sent: Sent) -> Iterator[Mosaic]:
    with opened(request.param, web_station, sent.run) as found:
        yield found


def test_all_sources_give_the_pixels_of_the_reference(mosaic: Mosaic, sent: Sent) -> None:
    facts = mosaic.facts
    assert facts.canvas is not None
    for level in range(max(key[0] for _, key in sent.expected) + 1):
        around = rect_at_level(facts.canvas, level)
        inside = Rect(around.row0 + 7, around.col0 + 3, around.row1 - 5, around.col1 - 9)
        for bounds in (around, inside):
            values, covered = sent.part(bounds, level)
            np.testing.assert_array_equal(mosaic.read(bounds, space="level", level=level), values)
            if mosaic.source.tells_coverage:
                found = mosaic.read(bounds, space="level", level=level, coverage=True, fill=9)
                np.testing.assert_array_equal(found.coverage, covered)
                np.testing.assert_array_equal(found.pixels, np.where(covered, values, 9))
    with pytest.raises(ValueError, match="the mosaic has levels"):
        mosaic.read(level=facts.levels)


def test_all_sources_mean_the_same_by_a_place(mosaic: Mosaic, sent: Sent) -> None:
    """Level 0, the canvas and the stage, with what they share of their coordinates."""
    bounds = Rect(-61, -17, 13, 40)
    values, _ = sent.part(bounds, 0)
    x0, y0 = mosaic.to_um(bounds.row0, bounds.col0)
    x1, y1 = mosaic.to_um(bounds.row1, bounds.col1)
    assert (x0, y0) == pytest.approx((bounds.col0 * PX_UM[0], bounds.row0 * PX_UM[1]))
    assert mosaic.to_pixels(x0, y0) == pytest.approx((bounds.row0, bounds.col0))
    canvas = mosaic.canvas
    assert canvas is not None
    counted = bounds.shifted(-canvas.row0, -canvas.col0)
    for found in (
        mosaic.read(bounds),
        mosaic.read(((bounds.row0, bounds.col0), (bounds.row1, bounds.col1))),
        mosaic.read(((x0, y0), (x1, y1)), space="um"),
        mosaic.read(counted, origin="canvas"),
        mosaic.level(0)[counted.row0 : counted.row1, counted.col0 : counted.col1],
        mosaic.level(0).at[bounds.row0 : bounds.row1, bounds.col0 : bounds.col1],
        mosaic.read(bounds, axes="xy").T,
    ):
        np.testing.assert_array_equal(found, values)
    halved = rect_at_level(bounds, 1)
    values, _ = sent.part(halved, 1)
    np.testing.assert_array_equal(mosaic.read(bounds, level=1), values)
    np.testing.assert_array_equal(mosaic.read(((x0, y0), (x1, y1)), space="um", level=1), values)
    corner = rect_at_level(canvas, 1)
    shifted = halved.shifted(-corner.row0, -corner.col0)
    np.testing.assert_array_equal(mosaic.read(shifted, space="level", origin="canvas", level=1), values)


@pytest.mark.parametrize("kind", ["folder", "query", "web"])
def test_planes_in_any_order_of_axes(kind: str, web_station: WebStation, sent: Sent) -> None:
    bounds = Rect(-61, -17, -2, 40)
    with opened(kind, web_station, sent.run) as mosaic:
        assert mosaic.planes == list(PLANES)
        assert mosaic.facts.counts == (1, 2, 3)
        every = np.stack([[sent.part(bounds, 0, (0, c, z))[0] for z in range(3)] for c in range(2)])
        np.testing.assert_array_equal(mosaic.read(bounds, c=None, z=None), every)
        np.testing.assert_array_equal(mosaic.read(bounds, c=None, z=None, axes="xzyc"), every.transpose(3, 1, 2, 0))
        np.testing.assert_array_equal(
            mosaic.read(bounds, c=1, z=slice(0, 2), axes="zcyxt"), every[1, :2, None, ..., None]
        )
        np.testing.assert_array_equal(mosaic.read(bounds, c=[1, 0], z=0), every[::-1, 0])
        with pytest.raises(MissingPlaneError, match=r"plane \(0, 0, 1\)"):
            mosaic.read(bounds, c=None, z=[0, 1], missing="raise")
        assert (mosaic.read(bounds, c=0, z=2, fill=5) == 5).all()
        with pytest.raises(ValueError, match="axes"):
            mosaic.read(bounds, c=None, axes="yx")


def test_catmaid_has_slices(web_station: WebStation, sent: Sent) -> None:
    info = f"{web_station.web.url}/catmaid/{sent.run}/stack/0.1/info?min=0&max=255"
    with Mosaic.open(info) as mosaic:
        assert mosaic.facts.counts == (1, 1, 3)
        bounds = Rect(-61, -17, -2, 40)
        every = np.stack([sent.part(bounds, 0, (0, 1, z))[0] for z in range(3)])
        np.testing.assert_array_equal(mosaic.read(bounds, z=None), every)
        with pytest.raises(ValueError, match="coverage"):
            mosaic.read(bounds, coverage=True)
        with pytest.raises(ValueError, match="tilecast web"):
            mosaic.follow()


@pytest.mark.parametrize("source_type", [1, 4, 5, 7, 9])
def test_every_type_of_tile_source(web_station: WebStation, sent: Sent, source_type: int) -> None:
    told = httpx.get(address_of("catmaid", web_station, sent.run), timeout=PATIENCE_S).json()
    told["mirrors"] = [one for one in told["mirrors"] if one["tile_source_type"] == source_type]
    with Mosaic.open(told) as mosaic:
        bounds = Rect(-70, -30, 10, 60)
        np.testing.assert_array_equal(mosaic.read(bounds), sent.part(bounds, 0)[0])
        bounds = rect_at_level(bounds, 1)
        np.testing.assert_array_equal(mosaic.read(bounds, space="level", level=1), sent.part(bounds, 1)[0])


def test_of_several_mirrors_one_that_answers_is_taken(web_station: WebStation, sent: Sent) -> None:
    told = httpx.get(address_of("catmaid", web_station, sent.run), timeout=PATIENCE_S).json()
    dead = told["mirrors"][0] | {"image_base": "http://127.0.0.1:9/", "title": "dead", "position": -1}
    wrong = told["mirrors"][0] | {"image_base": web_station.web.url + "/nothing/", "title": "wrong", "position": -2}
    unknown = told["mirrors"][0] | {"tile_source_type": 8, "title": "of another type"}
    told["mirrors"] = [dead, wrong, unknown, *told["mirrors"]]
    bounds = Rect(-70, -30, 10, 60)
    with Mosaic.open(told, timeout_s=5) as mosaic:
        np.testing.assert_array_equal(mosaic.read(bounds), sent.part(bounds, 0)[0])
    with Mosaic.open(told, mirror=3) as mosaic:
        assert mosaic.source.mirror.position == 3  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no mirror 'none'"):
        Mosaic.open(told, mirror="none")
    with pytest.raises(TilecastError, match="none of the stack's 2 mirrors"):
        Mosaic.open(told | {"mirrors": [dead, wrong]})


def test_levels_slice_as_numpy_does(mosaic: Mosaic, sent: Sent) -> None:
    level = mosaic.level(1)
    whole = sent.part(level.bounds, 1)[0]
    assert (level.shape, level.ndim, level.dtype, len(level)) == (whole.shape, 2, whole.dtype, len(whole))
    for index in np.s_[::3, ::-2], np.s_[-40:-1:7], np.s_[5], np.s_[..., -1], np.s_[None, 10:2:-1, 4], np.s_[9, 8]:
        np.testing.assert_array_equal(level[index], whole[index])
    np.testing.assert_array_equal(np.asarray(level), whole)
    assert np.asarray(level, dtype=np.float64).dtype == np.float64
    for nonsense in ([0, 1], 1.5, "a", True):
        with pytest.raises(IndexError, match="whole numbers and slices"):
            level[nonsense]
    with pytest.raises(IndexError):
        level[whole.shape[0]]


@pytest.mark.parametrize("span", [1, 2, 3])
def test_tiles_and_oversized_tiles(mosaic: Mosaic, sent: Sent, span: int) -> None:
    corner = (mosaic.facts.grid[0] // TILE, mosaic.facts.grid[1] // TILE)
    for row, col in ((-3, -1), (1, 2), (-3, 4)):
        bounds = Rect(row * TILE, col * TILE, (row + span) * TILE, (col + span) * TILE)
        found = mosaic.tile(row - corner[0], col - corner[1], span=span)
        np.testing.assert_array_equal(found, sent.part(bounds, 0)[0])
    with pytest.raises(ValueError, match="span"):
        mosaic.tile(0, 0, span=0)


@pytest.mark.parametrize("kind", ["folder", "query", "web"])
def test_another_process_opens_it_again(kind: str, web_station: WebStation, sent: Sent) -> None:
    with opened(kind, web_station, sent.run, threads=3) as mosaic:
        level = pickle.loads(pickle.dumps(mosaic.level(1)))
        np.testing.assert_array_equal(level[...], mosaic.level(1)[...])
        assert level.mosaic is not mosaic
        level.mosaic.close()


@pytest.mark.parametrize("kind", ["folder", "query", "web"])
def test_which_run_is_opened(kind: str, web_station: WebStation, sent: Sent) -> None:
    where = str(web_station.root) if kind == "folder" else address_of(kind, web_station, sent.run)
    for wanted in (sent.run, sent.run.upper(), sent.run[:13], "to be read"):
        with Mosaic.open(where, wanted) as mosaic:
            assert (mosaic.run, mosaic.name) == (sent.run, "to be read")
    for wanted in ("00000000-0000-4000-8000-000000000000", "nobody's"):
        with pytest.raises(UnknownRunError, match=wanted):
            Mosaic.open(where, wanted)
    with Mosaic.open(where) as mosaic:
        assert mosaic.run


def test_links_of_the_page_are_addresses(web_station: WebStation, sent: Sent) -> None:
    for link in (f"/#run={sent.run}&at=1,2&s=1", f"/api/v1/runs/{sent.run}/thumbnail.jpg", f"/?run={sent.run}"):
        with Mosaic.open(web_station.web.url + link) as mosaic:
            assert mosaic.run == sent.run


def test_a_gateway_with_a_token(web_station: WebStation, sent: Sent) -> None:
    bounds = Rect(-70, -30, 10, 60)
    with running_web("--store", str(web_station.root), "--token", "s3cret") as web:
        for address, options in (
            (web.url, {"token": "s3cret"}),
            (f"{web.url}/?token=s3cret", {}),
            (f"{web.url}/t/s3cret/", {}),
        ):
            with Mosaic.open(address, sent.run, **options) as mosaic:
                np.testing.assert_array_equal(mosaic.read(bounds), sent.part(bounds, 0)[0])
        with pytest.raises(TilecastError, match="token=TOKEN"):
            Mosaic.open(web.url, sent.run)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "http://127.0.0.1:9", "http://127.0.0.1:9/1/stack/2/info"])
def test_nobody_there(address: str) -> None:
    with pytest.raises(ConnectionError, match=r"no answer"):
        Mosaic.open(address, timeout_s=0.5)


def test_addresses_that_are_none(tmp_path: Path, web_station: WebStation) -> None:
    with pytest.raises(UnknownRunError, match="no runs"):
        Mosaic.open(tmp_path)
    with pytest.raises(ValueError, match="ftp"):
        Mosaic.open("ftp://somewhere")
    with pytest.raises(TilecastError, match="404"):
        Mosaic.open(web_station.web.url + "/nothing/stack/1/info")
    with pytest.raises(TilecastError, match="no description"):
        Mosaic.open({"title": "something"})


# ---- following ----


class Growing:
    """A run of its own, which a test sends frame by frame."""

    def __init__(self, station: WebStation, stream: str) -> None:
        self._station = station
        self.publisher = station.publisher(stream)
        self.run = self.publisher.start(stream, shape=SHAPE, dtype="|u1", px_um=PX_UM, pos_src="frame")
        self.frames: list[mosaic_reference.Frame] = []

    def send(self, row: int, col: int) -> None:
        number = len(self.frames)
        pixels = picture(4000 + number, SHAPE, "|u1")
        self.publisher.image(pixels, pos_um=centre_um(row, col, SHAPE))
        self.publisher.flush()
        self.frames.append(mosaic_reference.Frame(number, 0, number, (0, 0, 0), row, col, pixels))

    def end(self) -> None:
        self.publisher.end()
        self.publisher.flush()
        self.publisher.close()

    @property
    def sent(self) -> Sent:
        return Sent(self.run, mosaic_reference.mosaic(self.frames, "feather", "|u1", TILE))


@pytest.fixture
def growing(web_station: WebStation) -> Iterator[Callable[[str], Growing]]:
    made: list[Growing] = []

    def grow(stream: str) -> Growing:
        made.append(Growing(web_station, stream))
        return made[-1]

    yield grow
    for one in made:
        one.publisher.close()


@pytest.mark.parametrize("kind", ["folder", "query", "web"])
def test_what_is_followed_is_never_out_of_date(
    kind: str, web_station: WebStation, growing: Callable[[str], Growing]
) -> None:
    """After each change everything that is read is the mosaic of the frames so far, also where it was read before."""
    run = growing(f"followed-{kind}")
    run.send(0, 0)
    web_station.watch.placed(run.run, 1)
    # To the upper left, twice at one place, so far away that the canvas moves, and between.
    corners = [(-30, -40), (-30, -40), (10, 20), (170, 260), (-200, 5), (20, 30)]
    with opened(kind, web_station, run.run) as mosaic, mosaic.follow() as following:
        changes = following.changes(PATIENCE_S)
        first = next(changes)
        assert first.whole
        assert first.bounds == Rect(0, 0, *SHAPE)
        compare(mosaic, run.sent)
        for number, corner in enumerate(corners):
            rev = mosaic.facts.rev
            run.send(*corner)
            seen: list[Change] = []
            frame = Rect(*corner, corner[0] + SHAPE[0], corner[1] + SHAPE[1])
            while not any(intersects(one, frame) and one.rev > rev for one in seen):
                seen.append(next(changes))
            assert mosaic.facts.rev >= seen[-1].rev
            compare(mosaic, run.sent)
            if number == 1:
                assert len(mosaic.cache) > 0
        run.end()
        for change in changes:
            assert change.rev > 0
        assert following.wait(PATIENCE_S)
        assert mosaic.facts.state == "ended"
        compare(mosaic, run.sent)


def eventually(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)  # asks again: there is nothing to wait on at the other end of HTTP


def intersects(change: Change, frame: Rect) -> bool:
    return not change.bounds.intersect(frame).empty


def compare(mosaic: Mosaic, sent: Sent) -> None:
    for level in range(mosaic.n_levels):
        bounds = rect_at_level(mosaic.bounds, level)
        values, covered = sent.part(bounds, level)
        found = mosaic.read(level=level, coverage=True)
        np.testing.assert_array_equal(found.coverage, covered)
        np.testing.assert_array_equal(found.pixels, values)


@pytest.mark.parametrize("kind", ["folder", "query", "web"])
def test_without_following_a_refresh_brings_it_up_to_date(
    kind: str, web_station: WebStation, growing: Callable[[str], Growing]
) -> None:
    run = growing(f"refreshed-{kind}")
    run.send(0, 0)
    web_station.watch.placed(run.run, 1)
    with opened(kind, web_station, run.run) as mosaic:
        before = mosaic.read()
        run.send(10, 20)
        run.end()
        web_station.watch.report(run.run)
        np.testing.assert_array_equal(mosaic.read(), before)
        mosaic.refresh()
        compare(mosaic, run.sent)


def test_an_epoch_that_is_over_makes_no_hole(web_station: WebStation, growing: Callable[[str], Growing]) -> None:
    """Addresses of tiles hold the epoch; that it is over is not taken for a tile that is absent."""
    run = growing("moved")
    run.send(0, 0)
    web_station.watch.placed(run.run, 1)
    with opened("web", web_station, run.run) as mosaic:
        bounds, epoch = mosaic.bounds, mosaic.facts.epoch
        run.send(170, 260)  # the canvas moves
        told = web_station.watch.until(
            lambda one: getattr(one, "run", None) == run.run and getattr(one, "epoch", epoch) > epoch, "another epoch"
        )
        eventually(lambda: httpx.get(f"{web_station.web.url}/api/v1/runs/{run.run}").json()["epoch"] == told.epoch)
        values, covered = run.sent.part(bounds, 0)
        found = mosaic.read(bounds, coverage=True)
        np.testing.assert_array_equal(found.coverage, covered)
        np.testing.assert_array_equal(found.pixels, values)
        assert mosaic.source.facts().epoch == told.epoch


@pytest.mark.parametrize("kind", ["folder", "query", "web"])
def test_a_callback_is_called_for_each_region(
    kind: str, web_station: WebStation, growing: Callable[[str], Growing]
) -> None:
    run = growing(f"called-{kind}")
    web_station.watch.notice(run.run, "started")
    with opened(kind, web_station, run.run) as mosaic:
        assert (mosaic.n_levels, mosaic.canvas, mosaic.planes) == (0, None, [])
        with pytest.raises(ValueError, match="no frame of it has been placed"):
            mosaic.read()
        got: list[tuple[Change, NDArray[np.uint8]]] = []
        with mosaic.follow(lambda change: got.append((change, mosaic.read(change.bounds)))) as following:
            run.send(0, 0)
            run.send(90, 120)
            run.end()
            assert following.wait(PATIENCE_S)
        sent = run.sent
        for row, col in ((0, 0), (90, 120)):
            frame = Rect(row, col, row + SHAPE[0], col + SHAPE[1])
            assert any(not change.bounds.intersect(frame).empty for change, _ in got)
        last = {change.bounds: pixels for change, pixels in got}
        for bounds, pixels in last.items():
            if bounds in [change.bounds for change, _ in got[-1:]]:
                np.testing.assert_array_equal(pixels, sent.part(bounds, 0)[0])


def test_what_a_callback_raises_is_raised_to_whoever_waits(web_station: WebStation, sent: Sent) -> None:
    def fail(change: Change) -> None:
        raise RuntimeError(f"no cells at {change.bounds}")

    with opened("query", web_station, sent.run) as mosaic:
        following = mosaic.follow(fail)
        with pytest.raises(RuntimeError, match="no cells"):
            following.wait(PATIENCE_S)
        following.close()


def test_many_threads_share_a_mosaic(mosaic: Mosaic, sent: Sent) -> None:
    level = mosaic.level(0)
    whole = sent.part(level.bounds, 0)[0]
    with ThreadPoolExecutor(6) as pool:
        parts = list(pool.map(lambda row: level[row : row + 11], range(0, 120, 11)))
    for number, part in enumerate(parts):
        np.testing.assert_array_equal(part, whole[11 * number : 11 * number + 11])
