"""Both sources tell the same, and what is asked of a daemon that is not there fails soon."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import numpy as np
import pytest

from integration.talking import PATIENCE_S
from plugins.web.conftest import WebStation, running_web
from tilecast.geometry import PlaneKey, Rect, TileKey
from tilecast_plugins.run import MAX_CHANNELS, Run
from tilecast_plugins.web.sources import LocalSource, NoDaemonError, RemoteSource, Source, UnknownRunError
from tilecast_protocol.errors import DisconnectedError
from web_views import made_run

P0 = PlaneKey()
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def sources(web_station: WebStation) -> Iterator[tuple[LocalSource, RemoteSource]]:
    """Of the same runs."""
    query = web_station.daemon.endpoints["query"]
    local, remote = LocalSource(web_station.root, query), RemoteSource(query)
    yield local, remote
    local.close()
    remote.close()


def test_they_tell_the_same_of_a_run(sources: tuple[LocalSource, RemoteSource], web_station: WebStation) -> None:
    local, remote = sources
    for run in (web_station.scan, web_station.channels, web_station.floats):
        assert local.info(run) == remote.info(run)
        info = local.info(run)
        assert local.changes(run, info.rev - 1) == remote.changes(run, info.rev - 1)
        assert local.changes(run, info.rev + 5).resync == remote.changes(run, info.rev + 5).resync is True
        assert local.placements(run) == remote.placements(run)
        assert local.placements(run, limit=1)[1] == (info.n_frames > 1)
        assert local.report(run) == remote.report(run)
        assert local.nbytes(run) == remote.nbytes(run) > 0
    ours = {web_station.scan, web_station.channels, web_station.floats}
    listed = [[one for one in source.runs() if isinstance(one, Run) and one.run in ours] for source in sources]
    assert listed[0] == listed[1]
    assert len(listed[0]) == 3


def test_they_give_the_same_tiles(sources: tuple[LocalSource, RemoteSource], web_station: WebStation) -> None:
    info = sources[0].info(web_station.scan)
    for plane, (level, row, col) in web_station.mosaic(web_station.scan):
        key = TileKey(level, row, col)
        blobs = [source.tile(info, PlaneKey(*plane), key) for source in sources]
        assert blobs[0] is not None
        assert blobs[0] == blobs[1]
        assert sources[0].tile_rev(info, P0, key) == sources[1].tile_rev(info, P0, key) == blobs[0].rev
    for source in sources:
        assert source.tile(info, P0, TileKey(0, 999, 0)) is None
        assert source.tile_rev(info, P0, TileKey(0, 999, 0)) is None


@pytest.mark.parametrize("number", [0, 1], ids=["local", "remote"])
def test_a_run_that_is_not_there(sources: tuple[LocalSource, RemoteSource], number: int) -> None:
    source: Source = sources[number]
    for ask in (source.info, source.nbytes, source.placements, source.report, source.events):
        with pytest.raises(UnknownRunError, match=NOBODY):
            ask(NOBODY)
    with pytest.raises(UnknownRunError):
        source.changes(NOBODY, 0)


def test_a_name_never_becomes_a_path(web_station: WebStation) -> None:
    source = LocalSource(web_station.root)
    for bad in ("..", "../runs", web_station.scan.upper(), web_station.scan + "/../" + web_station.scan, ""):
        with pytest.raises(UnknownRunError):
            source.info(bad)
    source.close()


def test_stage_and_pixels_are_each_others_inverse(web_station: WebStation) -> None:
    source = LocalSource(web_station.root)
    run = source.info(web_station.scan)
    source.close()
    assert run.stage_um(10, 20) == (20 * 0.5, 10 * 0.25)
    np.testing.assert_allclose(run.pixel_at(*run.stage_um(-3.5, 7.25)), (-3.5, 7.25))


def test_without_a_daemon(web_station: WebStation) -> None:
    source = LocalSource(web_station.root)
    with pytest.raises(NoDaemonError, match="query socket"):
        source.ask("stats")
    assert source.report(web_station.scan)["final"]
    source.close()


def test_a_daemon_that_does_not_answer_is_left_alone_for_a_while(web_station: WebStation) -> None:
    source = LocalSource(web_station.root, "ipc:///nonexistent/query")
    with pytest.raises(DisconnectedError):
        source.ask("stats")
    began = time.monotonic()
    with pytest.raises(DisconnectedError, match="a moment ago"):
        source.ask("stats")
    assert time.monotonic() - began < 1
    source.close()


def test_a_gateway_on_another_machine_serves_the_same_bytes(http: httpx.Client, web_station: WebStation) -> None:
    epoch = web_station.client.run(web_station.scan)["epoch"]
    tile = f"/api/v1/runs/{web_station.scan}/tiles/{epoch}/0/0/0/0/-1/0"
    with running_web("--remote", "--daemon", *web_station.endpoints) as web:
        for path in (
            f"{tile}.png",
            f"{tile}.pzf",
            f"{tile}.raw?mask=1",
            f"/api/v1/runs/{web_station.scan}/thumbnail.jpg",
        ):
            there, here = httpx.get(web.url + path, timeout=PATIENCE_S), http.get(path)
            assert there.status_code == here.status_code == 200
            assert there.content == here.content
            assert there.headers["etag"] == here.headers["etag"]
        unknown = httpx.get(f"{web.url}/api/v1/runs/{NOBODY}", timeout=PATIENCE_S)
        assert unknown.status_code == 404
        log = httpx.get(f"{web.url}/api/v1/runs/{web_station.scan}/log", timeout=PATIENCE_S)
        assert log.status_code == 501


def test_neither_a_huge_number_nor_many_channels_make_a_long_list() -> None:
    lone = made_run(planes=(PlaneKey(), PlaneKey(0, 2**31 - 1, 0)))
    assert [(one["c"], one["name"]) for one in lone.channels] == [(0, "channel 0"), (2**31 - 1, f"channel {2**31 - 1}")]
    assert lone.n_channels == 2**31
    planned = made_run(planned={"c": 2**31 - 1})
    assert [one["c"] for one in planned.channels] == list(range(MAX_CHANNELS))
    many = made_run(planes=tuple(PlaneKey(0, c, 0) for c in range(0, 1000, 2)))
    assert [one["c"] for one in many.channels] == list(range(0, 2 * MAX_CHANNELS, 2))
    named = made_run(planes=(PlaneKey(0, 3, 0),), channels=[{"name": "DAPI", "color": "0000ff"}, {}])
    assert [(one["c"], one["name"]) for one in named.channels] == [(0, "DAPI"), (1, "channel 1"), (3, "channel 3")]


def test_the_list_of_a_daemon_asks_only_about_runs_that_changed(
    sources: tuple[LocalSource, RemoteSource], web_station: WebStation, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, remote = sources
    first = [one for one in remote.runs() if isinstance(one, Run)]
    asked: list[str] = []
    info = remote.info
    monkeypatch.setattr(remote, "info", lambda run: asked.append(run) or info(run))
    again = [one for one in remote.runs() if isinstance(one, Run) and one.state != "open"]
    ended = {web_station.scan, web_station.channels, web_station.floats}
    assert ended <= {one.run for one in again}
    assert not ended & set(asked)
    assert [one for one in again if one.run in ended] == [one for one in first if one.run in ended]


def test_a_channel_number_from_a_message_makes_no_list_of_that_length(
    sources: tuple[LocalSource, RemoteSource], web_station: WebStation
) -> None:
    run = sources[0].info(web_station.channels)
    far = replace(run, bboxes={**run.bboxes, PlaneKey(0, 2**31 - 1, 0): Rect(0, 0, 8, 8)})
    assert far.n_channels == 2**31
    assert far.channels[: len(run.channels)] == run.channels
    assert [channel["c"] for channel in far.channels] == [*range(len(run.channels)), 2**31 - 1]
