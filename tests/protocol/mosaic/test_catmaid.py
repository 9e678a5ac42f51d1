"""CATMAID stacks behind a real web server of the test's own: orientations, mirrors, edges, slices that are gone."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tilecast_protocol import MalformedError, Mosaic, QueryError
from tilecast_protocol.mosaic.catmaid import Mirror, read_description
from tilecast_protocol.rects import Rect

VOLUME = np.random.default_rng(5).integers(0, 256, (3, 70, 101), np.uint8)
HEIGHT, WIDTH = 20, 32


class Server:
    """Serves a volume as tiles of type 4, cropped at the edges; `/padded/` with rows to spare.

    Attributes
    ----------
    asked : list of str
        Paths, in order.
    broken : set of str
        First parts of paths that are answered with 500.
    secret : str
        What `Authorization` must be, if anything.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.broken: set[str] = set()
        self.secret = ""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.asked.append(self.path)
                status, body = server.answer(self.path, self.headers.get("Authorization", ""))
                self.send_response(status)
                self.send_header("Content-Type", "image/png")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, path: str, authorization: str) -> tuple[int, bytes]:
        if authorization != self.secret:
            return 401, b""
        mirror, z, level, name = path.strip("/").split("/")
        if mirror in self.broken:
            return 500, b"broken"
        row, col = map(int, name.removesuffix(".png").split("_"))
        step = 2 ** int(level)
        plane = VOLUME[int(z), ::step, ::step]
        tile = plane[row * HEIGHT : (row + 1) * HEIGHT, col * WIDTH : (col + 1) * WIDTH]
        if not tile.size:
            return 404, b""
        if mirror == "padded":
            tile = np.pad(tile, ((0, HEIGHT - tile.shape[0] + 3), (0, WIDTH - tile.shape[1])), constant_values=255)
        if mirror == "text":
            return 200, b"no picture"
        file = io.BytesIO()
        Image.fromarray(tile).save(file, "PNG")
        return 200, file.getvalue()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def description(server: Server | None, *mirrors: str, **changes: Any) -> dict[str, Any]:
    root = "http://nobody" if server is None else server.url
    return {
        "pid": 7,
        "sid": 3,
        "stitle": "larva",
        "dimension": {"x": 101, "y": 70, "z": 3},
        "translation": {"x": 0, "y": 0, "z": 0},
        "resolution": {"x": 4.0, "y": 5.0, "z": 40.0},
        "orientation": 0,
        "broken_slices": {},
        "canary_location": {"x": 0, "y": 0, "z": 0},
        "num_zoom_levels": 3,
        "mirrors": [
            {
                "title": name,
                "position": number,
                "image_base": f"{root}/{name}",
                "tile_width": WIDTH,
                "tile_height": HEIGHT,
                "tile_source_type": 4,
                "file_extension": ".png",
            }
            for number, name in enumerate(mirrors or ("cropped",))
        ],
    } | changes


@pytest.mark.parametrize("mirror", ["cropped", "padded"])
def test_tiles_may_be_cropped_or_padded_at_the_edges(server: Server, mirror: str) -> None:
    with Mosaic.open(description(server, mirror)) as mosaic:
        assert (mosaic.run, mosaic.name, mosaic.n_levels) == ("7/3", "larva", 3)
        np.testing.assert_array_equal(mosaic.read(z=None), VOLUME)
        np.testing.assert_array_equal(mosaic.level(0, z=None)[::-1, 1:, ::-5], VOLUME[::-1, 1:, ::-5])
        for level in (1, 2):
            found = mosaic.level(level, z=1)[...]
            np.testing.assert_array_equal(found, VOLUME[1, :: 2**level, :: 2**level])
        beyond = mosaic.read((-5, 90, 10, 110), fill=9)
        np.testing.assert_array_equal(beyond[5:, :11], VOLUME[0, :10, 90:])
        assert (beyond[:5] == 9).all()
        assert (beyond[:, 11:] == 9).all()


def test_slices_that_are_gone_are_filled_or_refused(server: Server) -> None:
    told = description(server, broken_slices={"1": 1})
    with Mosaic.open(told) as mosaic:
        found = mosaic.read(z=None, fill=8)
        np.testing.assert_array_equal(found[[0, 2]], VOLUME[[0, 2]])
        assert (found[1] == 8).all()
        with pytest.raises(LookupError, match=r"\(0, 0, 1\)"):
            mosaic.read(z=1, missing="raise")
    assert not any("/1/0/" in path for path in server.asked)


def test_the_mirror_that_fails_is_left_for_the_next(server: Server) -> None:
    told = description(server, "first", "second", "third")
    with Mosaic.open(told, cache_items=0) as mosaic:
        source: Any = mosaic.source
        for _ in range(2):
            server.broken.add(source.mirror.title)
            np.testing.assert_array_equal(mosaic.read(z=None), VOLUME)
            assert source.mirror.title not in server.broken
        server.broken.add(source.mirror.title)
        with pytest.raises(QueryError, match="answers 500"):
            mosaic.read()


def test_a_mirror_that_is_slow_is_not_taken(server: Server) -> None:
    slow = threading.Event()
    answer = server.answer

    def hesitant(path: str, authorization: str) -> tuple[int, bytes]:
        if path.startswith("/slow"):
            slow.wait(0.2)
        return answer(path, authorization)

    server.answer = hesitant  # type: ignore[method-assign]
    with Mosaic.open(description(server, "slow", "quick")) as mosaic:
        assert mosaic.source.mirror.title == "quick"  # type: ignore[attr-defined]
    with Mosaic.open(description(server, "slow", "quick"), mirror="slow") as mosaic:
        assert mosaic.source.mirror.title == "slow"  # type: ignore[attr-defined]


def test_names_and_passwords(server: Server) -> None:
    server.secret = "Basic " + base64.b64encode(b"ada:larva").decode()
    with Mosaic.open(description(server), auth=("ada", "larva")) as mosaic:
        np.testing.assert_array_equal(mosaic.read(), VOLUME[0])
    with Mosaic.open(description(server), headers={"Authorization": server.secret}) as mosaic:
        np.testing.assert_array_equal(mosaic.read(), VOLUME[0])
    with Mosaic.open(description(server)) as mosaic, pytest.raises(QueryError, match="401"):
        mosaic.read()


def test_what_is_no_picture_is_told(server: Server) -> None:
    with Mosaic.open(description(server, "text")) as mosaic, pytest.raises(QueryError, match="not a picture"):
        mosaic.read()


@pytest.mark.parametrize(
    ("orientation", "axes"), [(0, "xy"), (1, "xz"), (2, "zy"), (None, "xy"), ("xz", "xz"), ("ZY", "zy")]
)
def test_stacks_on_edge_lie_along_other_axes_of_the_project(orientation: Any, axes: str) -> None:
    translation, resolution = {"x": 4000, "y": 500, "z": -8000}, {"x": 4.0, "y": 5.0, "z": 40.0}
    told = description(None, orientation=orientation, translation=translation, resolution=resolution)
    facts = read_description(told, Mirror.of(told["mirrors"][0]))
    assert "".join(facts.axes_um) == axes
    assert facts.canvas is not None
    for row, col in ((0, 0), (13, 70)):
        expected = [(translation[axis] + resolution[axis] * n) / 1000 for axis, n in zip(axes, (col, row), strict=True)]
        found = facts.to_um(facts.canvas.row0 + row, facts.canvas.col0 + col)
        assert found == pytest.approx(expected)


def test_as_catpy_has_it() -> None:
    """Its transformer of coordinates and its addresses of tiles."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spatial = pytest.importorskip("catpy.spatial", reason="catpy is not installed: uv sync --group viewers")
        stacks = pytest.importorskip("catpy.stacks")
    for orientation in (0, 1, 2):
        told = description(
            None, orientation=orientation, translation={"x": 4000, "y": 505, "z": -8000}, num_zoom_levels=-1
        )
        theirs = spatial.CoordinateTransformer(told["resolution"], told["translation"], orientation)
        facts = read_description(told, Mirror.of(told["mirrors"][0]))
        assert facts.canvas is not None
        project = theirs.stack_to_project({"x": 11, "y": 17, "z": 0})
        ours = facts.to_um(facts.canvas.row0 + 17, facts.canvas.col0 + 11)
        assert ours == pytest.approx([project[axis] / 1000 for axis in facts.axes_um])
    for kind in (1, 4, 5, 7, 9):
        one = description(None)["mirrors"][0] | {"tile_source_type": kind}
        index = stacks.TileIndex(2, 3, 4, 1, HEIGHT, WIDTH)
        assert Mirror.of(one).url(2, 1, 3, 4) == stacks.StackMirror.from_dict(one).generate_url(index)


def test_the_corner_is_a_whole_pixel_of_every_level() -> None:
    told = description(None, translation={"x": 4 * 1027, "y": -5 * 333.25, "z": 0})
    facts = read_description(told, Mirror.of(told["mirrors"][0]))
    assert facts.canvas == Rect(-332, 1028, -332 + 70, 1028 + 101)
    assert facts.to_um(-332, 1028) == pytest.approx((4 * 1027 / 1000, -5 * 333.25 / 1000))
    assert facts.grid == (-332, 1028)


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({"num_zoom_levels": 2}, 2),
        ({"num_zoom_levels": -1}, 3),
        ({"num_zoom_levels": None}, 3),
        ({"downsample_factors": [{"x": 1, "y": 1, "z": 1}, {"x": 2, "y": 2, "z": 1}]}, 2),
    ],
)
def test_how_many_levels(changes: dict[str, Any], levels: int) -> None:
    told = description(None, **changes)
    assert read_description(told, Mirror.of(told["mirrors"][0])).levels == levels


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dimension": {"x": 1, "y": 2}}, "'z'"),
        ({"orientation": 5}, "number 5"),
        ({"resolution": {"x": 0, "y": 1, "z": 1}}, "is 0"),
        ({"downsample_factors": [{"x": 3, "y": 3, "z": 1}]}, "halved"),
        ({"mirrors": []}, "has none"),
        ({"mirrors": [description(None)["mirrors"][0] | {"tile_source_type": 2}]}, "has 2"),
        ({"mirrors": [{"title": "bare"}]}, "image_base"),
    ],
)
def test_descriptions_that_cannot_be_read(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(MalformedError, match=said):
        Mosaic.open(description(None, **changes))


def test_a_stack_is_a_run_by_itself() -> None:
    with pytest.raises(ValueError, match="leave out run"):
        Mosaic.open(description(None), "a run")
