"""Several daemons on one page: each is shown, and one that is killed, or never was there, harms no other."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from faults.nursery import ForkedDaemon
from integration.scanning import endpoints
from integration.talking import PATIENCE_S, PX_UM, centre_um, picture
from plugins.web.conftest import SHAPE, WebProcess, WebStation, running_web
from tilecast.process import DaemonProcess
from tilecast_plugins.web.settings import Instrument, Settings, SettingsError
from tilecast_protocol import Mosaic
from tilecast_protocol.publisher import Publisher

AT_ONCE_S = 2.5
"""Less than a question to a dead daemon takes, by far more than an answer of a live one."""


@dataclass(frozen=True)
class Hall:
    """A gateway of four instruments: `left` is the station's, `right` is read through its sockets, `shelf` is a folder
    without a daemon, `dead` was never there."""

    web: WebProcess
    right: DaemonProcess
    right_run: str

    def told(self) -> dict[str, dict[str, Any]]:
        """The list, by names."""
        began_s = time.monotonic()
        answer = httpx.get(f"{self.web.url}/api/v1/instruments", timeout=PATIENCE_S)
        assert time.monotonic() - began_s < AT_ONCE_S
        return {one["name"]: one for one in answer.json()["instruments"]}

    def until(self, name: str, condition: Any) -> dict[str, Any]:
        """What is told of an instrument, once this is true of it."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition(told := self.told()[name]):
            assert time.monotonic() < deadline_s, told
            time.sleep(0.05)  # asks again: there is nothing to wait on at the other end of HTTP
        return told


@pytest.fixture(scope="module")
def hall(web_station: WebStation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    folder = tmp_path_factory.mktemp("hall")
    with endpoints() as sockets:
        settings = {"blend.tile_size": "32", "store.commit_interval_ms": "20", **sockets}
        right = ForkedDaemon(folder / "right", settings=settings, log_file=folder / "log")
        right.start()
        try:
            with Publisher(sockets["ingest.ack"], instrument="right", stream="cam") as publisher:
                run = publisher.start("of the right one", shape=SHAPE, dtype="<u2", px_um=PX_UM, pos_src="frame")
                publisher.image(picture(1, SHAPE), pos_um=centre_um(0, 0, SHAPE))
                publisher.flush()
            notify, query = web_station.endpoints
            with running_web(
                *("--instrument", "left", str(web_station.root), notify, query),
                *("--instrument", "right", "-", sockets["notify"], sockets["query"]),
                *("--instrument", "shelf", str(web_station.root), "-", "-"),
                *("--instrument", "dead", "-", f"ipc://{folder}/no", f"ipc://{folder}/one"),
            ) as web:
                yield Hall(web, right, run)
                assert web.stop() == 0
        finally:
            right.kill()


def test_all_are_listed_with_their_state_and_newest_run(hall: Hall, web_station: WebStation) -> None:
    assert list(hall.told()) == ["left", "right", "shelf", "dead"]
    left = hall.until("left", lambda told: told["state"] == "ready" and told["run"])
    assert left["error"] is None
    assert left["free_bytes"] > 0
    right = hall.until("right", lambda told: told["state"] == "ready" and told["run"] and told["run"]["rev"])
    assert (right["run"]["run"], right["run"]["name"], right["run"]["n_frames"]) == (
        hall.right_run,
        "of the right one",
        1,
    )
    shelf = hall.until("shelf", lambda told: told["run"])
    assert (shelf["state"], shelf["heard_s"]) == ("files", None)
    dead = hall.until("dead", lambda told: told["error"])
    assert (dead["state"], dead["run"]) == ("silent", None)
    assert "no answer from the tilecast daemon" in dead["error"]
    for told in (left, right, shelf):
        picture = httpx.get(f"{hall.web.url}/{told['run']['thumbnail']}", timeout=PATIENCE_S)
        assert picture.headers["content-type"] == "image/jpeg"
    assert web_station.scan


def test_each_is_served_in_full_below_its_own_address(hall: Hall, web_station: WebStation) -> None:
    for path in ("", "static/js/main.js", f"api/v1/runs/{web_station.scan}", "api/v1/openapi.json", "api/v1/status"):
        assert httpx.get(f"{hall.web.url}/at/left/{path}", timeout=PATIENCE_S).status_code == 200, path
    told = httpx.get(f"{hall.web.url}/at/left/api/v1/runs/{web_station.scan}/viewers", timeout=PATIENCE_S).json()
    assert told["catmaid"][0].startswith(f"{hall.web.url}/at/left/catmaid/")
    assert httpx.get(told["catmaid"][0], timeout=PATIENCE_S).json()["mirrors"]
    # Runs of one are not found at another, and names that are none not at all.
    assert httpx.get(f"{hall.web.url}/at/right/api/v1/runs/{web_station.scan}", timeout=PATIENCE_S).status_code == 404
    nobody = httpx.get(f"{hall.web.url}/at/nobody/", timeout=PATIENCE_S)
    assert nobody.status_code == 404
    assert "nothing is served" in nobody.json()["detail"]
    below, direct = f"{hall.web.url}/at/left/", web_station.root
    with Mosaic.open(below, web_station.scan) as mosaic, Mosaic.open(direct, web_station.scan) as directly:
        np.testing.assert_array_equal(mosaic.read(), directly.read())


def test_the_page_of_all_names_only_what_is_there(hall: Hall) -> None:
    page = httpx.get(f"{hall.web.url}/", timeout=PATIENCE_S)
    assert "Instruments" in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert httpx.get(f"{hall.web.url}/{path}", timeout=PATIENCE_S).status_code == 200, path


def test_one_that_is_killed_harms_no_other_and_comes_back(hall: Hall, web_station: WebStation) -> None:
    known = hall.until("right", lambda told: told["state"] == "ready" and told["run"])
    hall.right.kill()
    silent = hall.until("right", lambda told: told["state"] == "silent" and told["error"])
    assert silent["run"] == known["run"]  # what was seen last stays
    assert silent["heard_s"] > 5
    # While questions to the dead one wait for their answer, the other answers at once.
    with httpx.Client(base_url=hall.web.url, timeout=PATIENCE_S) as client:
        for _ in range(3):
            began_s = time.monotonic()
            assert client.get(f"/at/left/api/v1/runs/{web_station.scan}/thumbnail.jpg").status_code == 200
            assert client.get(f"/at/left/api/v1/runs/{web_station.scan}").status_code == 200
            assert time.monotonic() - began_s < AT_ONCE_S
            assert client.get(f"/at/right/api/v1/runs/{hall.right_run}").status_code == 503
    assert hall.told()["left"]["state"] == "ready"
    hall.right.start()
    back = hall.until("right", lambda told: told["state"] == "ready" and told["error"] is None)
    assert back["run"]["run"] == hall.right_run


def test_instruments_that_cannot_be(tmp_path: Path) -> None:
    left = Instrument("left", tmp_path, None, None)
    assert Settings(instruments=(left,)).of(left).store_path == tmp_path
    for name in ("", "../left", "a b", "x" * 65, "-"):
        with pytest.raises(SettingsError, match="name"):
            Instrument(name, tmp_path, None, None)
    with pytest.raises(SettingsError, match="nothing to read of left"):
        Instrument("left", None, "tcp://x:1", None)
    with pytest.raises(SettingsError, match="a name of its own"):
        Settings(instruments=(left, left))


def test_below_a_token_too(web_station: WebStation) -> None:
    with running_web("--token", "s3cret", "--instrument", "shelf", str(web_station.root), "-", "-") as web:
        assert httpx.get(f"{web.url}/api/v1/instruments", timeout=PATIENCE_S).status_code == 401
        assert httpx.get(f"{web.url}/at/shelf/api/v1/runs", timeout=PATIENCE_S).status_code == 401
        for path in ("", "api/v1/instruments", "at/shelf/", f"at/shelf/api/v1/runs/{web_station.scan}"):
            assert httpx.get(f"{web.url}/t/s3cret/{path}", timeout=PATIENCE_S).status_code == 200, path
        epoch = web_station.client.run(web_station.scan)["epoch"]
        tile = f"at/shelf/api/v1/runs/{web_station.scan}/tiles/{epoch}/0/0/0/0/-1/0.pzf"
        assert httpx.get(f"{web.url}/t/s3cret/{tile}", timeout=PATIENCE_S).status_code == 200
        with Mosaic.open(f"{web.url}/t/s3cret/at/shelf/", web_station.scan) as mosaic:
            assert mosaic.read().any()
