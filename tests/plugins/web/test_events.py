"""Server-sent events: every commit, without a hole, whatever the page missed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import msgpack

from integration.talking import PATIENCE_S, PX_UM, centre_um, new_uuid, picture
from plugins.web.conftest import SHAPE, TILE, WebStation, running_web
from tilecast.store.folders import run_folder
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import NewRun


class Event(dict[str, Any]):
    """Its data; `name` and `id` beside it."""

    name: str
    id: str | None


class Stream:
    """Events of one connection, in order."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def next(self) -> Event:
        """The next event; StopIteration at the end of the stream."""
        fields: dict[str, str] = {}
        for line in self._lines:
            if not line:
                if "event" in fields:
                    event = Event(json.loads(fields["data"]))
                    event.name, event.id = fields["event"], fields.get("id")
                    return event
                continue
            name, _, value = line.partition(": ")
            fields[name] = value
        raise StopIteration

    def to_the_end(self) -> None:
        """All events that are left; the connection times out if it is not closed."""
        for _ in self._lines:
            pass

    def until(self, name: str, where: Callable[[Event], bool] = lambda _: True) -> Event:
        """The first event of this name of which that is true."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            event = self.next()
            if event.name == name and where(event):
                return event
        raise AssertionError(f"no {name} came")


@contextmanager
def following(url: str, headers: dict[str, str] | None = None, **params: Any) -> Iterator[Stream]:
    """Follow events."""
    with httpx.stream("GET", f"{url}/api/v1/events", params=params, headers=headers, timeout=PATIENCE_S) as answer:
        answer.raise_for_status()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Stream(answer.iter_lines())


def seen_tiles(stream: Stream, rev: int) -> set[tuple[int, ...]]:
    """All tiles of commits up to a rev, which must come without a hole."""
    found: set[tuple[int, ...]] = set()
    while True:
        event = stream.until("commit")
        found |= {tuple(tile) for tile in event["tiles"]}
        if event["rev"] >= rev:
            return found


class TestFollowing:
    def test_a_commit_and_its_frame_are_told_at_once(self, web_station: WebStation) -> None:
        publisher, run = web_station.open_run("live", stream="live")
        with publisher:
            publisher.flush()
            web_station.watch.notice(run, "started")
            with following(web_station.web.url, run=run) as stream:
                hello = stream.until("hello")
                assert (hello["run"], hello["rev"]) == (run, 0)
                publisher.image(picture(1, SHAPE), pos_um=centre_um(-9, 4, SHAPE))
                commit = stream.until("commit")
                assert (commit["rev"], commit.id) == (1, "1")
                assert [0, 0, 0, 0, -1, 0] in commit["tiles"]
                frame = stream.until("frame")
                assert frame["rect"] == [-9, 4, -9 + SHAPE[0], 4 + SHAPE[1]]
                assert (frame["plane"], frame["frame"], frame["rev"]) == ([0, 0, 0], 0, 1)
                x_um, y_um = centre_um(-9, 4, SHAPE)
                stage = stream.until("stage")
                assert (stage["x_um"], stage["y_um"], stage["source"]) == (x_um, y_um, "frame")
                publisher.end()
                assert stream.until("run")["kind"] == "ended"
                assert stream.until("report")["detail"]["report"]["received"] == 1
                beat = stream.until("heartbeat")
                assert beat["state"] == "ready"

    def test_who_was_away_is_told_what_changed(self, web_station: WebStation) -> None:
        publisher, run = web_station.open_run("away", stream="away")
        with publisher:
            publisher.flush()
            web_station.watch.notice(run, "started")
            with following(web_station.web.url, run=run) as stream:
                stream.until("hello")
                for rev in (1, 2):  # twice in the same place: the canvas stays, and the history with it
                    publisher.image(picture(rev, SHAPE), pos_um=(0, 0))
                    assert stream.until("commit")["rev"] == rev
        epoch = web_station.client.run(run)["epoch"]
        changes = web_station.client.ask("changes", run=run, epoch=epoch, since=1).header
        missed = {tuple(row[:6]) for row in changes["tiles"]}
        with following(web_station.web.url, run=run, since=1) as stream:
            assert seen_tiles(stream, 2) == missed
            assert stream.until("frame")["rev"] == 2
        with following(web_station.web.url, {"Last-Event-ID": "1"}, run=run) as stream:
            assert seen_tiles(stream, 2) == missed

    def test_who_comes_from_another_history_begins_anew(self, web_station: WebStation) -> None:
        info = web_station.client.run(web_station.scan)
        other = {"since": info["rev"], "epoch": info["epoch"] - 1}
        with following(web_station.web.url, run=web_station.scan, **other) as stream:
            resync = stream.until("resync")
            assert (resync["epoch"], resync["rev"]) == (info["epoch"], info["rev"])

    def test_the_stage_is_told_while_no_frame_comes(self, web_station: WebStation) -> None:
        publisher, run = web_station.open_run("with a stage", stream="staged")
        with publisher, web_station.publisher("xy") as stage:
            publisher.flush()
            web_station.watch.notice(run, "started")
            with following(web_station.web.url, run=run) as stream:
                stream.until("hello")
                stage.stage((12.5, -3.25, 7.0))
                told = stream.until("stage", lambda event: event["source"] == "stage" and event["stream"] == "xy")
                assert (told["x_um"], told["y_um"], told["z_um"]) == (12.5, -3.25, 7.0)

    def test_everything_of_all_runs(self, web_station: WebStation) -> None:
        with following(web_station.web.url) as stream:
            stream.until("hello")
            publisher, run = web_station.open_run("announced", stream="announced")
            with publisher:
                publisher.image(picture(2, SHAPE), pos_um=centre_um(0, 0, SHAPE))
                assert stream.until("run", lambda event: event["run"] == run)["kind"] == "started"
                stream.until("commit", lambda event: event["run"] == run)

    def test_a_run_that_is_not_there(self, web_station: WebStation) -> None:
        url = f"{web_station.web.url}/api/v1/events"
        assert httpx.get(url, params={"run": "00000000-0000-4000-8000-000000000000"}).status_code == 404
        assert httpx.get(url, params={"run": "last"}).status_code == 422

    def test_streams_end_with_the_gateway(self, web_station: WebStation) -> None:
        with (
            running_web("--store", str(web_station.root), "--daemon", *web_station.endpoints) as web,
            following(web.url) as stream,
        ):
            stream.until("hello")
            web.process.terminate()
            stream.to_the_end()
            assert web.process.wait(PATIENCE_S) == 0

    def test_without_a_daemon_the_store_is_looked_at(self, web_station: WebStation) -> None:
        # Nobody listens there: nothing is ever announced.
        nobody = ("ipc:///nonexistent/notify", "ipc:///nonexistent/query")
        publisher, run = web_station.open_run("unheard", stream="unheard")
        with publisher, running_web("--store", str(web_station.root), "--daemon", *nobody) as web:
            publisher.flush()
            web_station.watch.notice(run, "started")
            with following(web.url, run=run) as stream:
                stream.until("hello")
                publisher.image(picture(3, SHAPE), pos_um=(0 * PX_UM[0], 0))
                assert stream.until("commit")["healed"]
            status = httpx.get(f"{web.url}/api/v1/status", timeout=PATIENCE_S).json()
            assert status["daemon"] is None
            assert "did not answer" in status["error"] or "no answer" in status["error"]

    def test_a_run_that_is_deleted_meanwhile(self, web_station: WebStation) -> None:
        run = new_uuid()
        header = msgpack.packb({"dtype": "<u2", "px_um": [1.0, 1.0]})
        new = NewRun(run=run, name="old", instrument="scope", stream="cam", start=header, settings={"tile_size": TILE})
        with SqliteStore.create(run_folder(web_station.root, run), new) as store:
            store.set_state("ended")
        with following(web_station.web.url, run=run) as stream:
            stream.until("hello")
            web_station.client.delete(run)
            assert stream.until("run")["kind"] == "deleted"
            stream.to_the_end()
