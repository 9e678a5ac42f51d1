"""Who may ask, and how a refusal looks."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from damaged_store import change_bits
from faults.nursery import ForkedDaemon, shared
from integration.talking import PATIENCE_S
from plugins.web.conftest import TILE, WebProcess, WebStation, running_web
from tilecast.geometry import TileKey
from tilecast_plugins.web.command import command
from tilecast_plugins.web.settings import Settings, SettingsError, is_loopback

TOKEN = "so long & secret"


@pytest.fixture(scope="module")
def guarded(web_station: WebStation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebProcess]:
    """A gateway with a token, readable from one other origin."""
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(TOKEN + "\n")
    options = ("--store", str(web_station.root), "--token-file", str(file), "--cors", "https://catmaid.example")
    with running_web(*options) as web:
        yield web


class TestToken:
    def test_who_does_not_know_it_learns_nothing(self, guarded: WebProcess) -> None:
        for path in ("/", "/api/v1/runs", "/api/v1/openapi.json", "/nothing", "/t/wrong/api/v1/runs"):
            answer = httpx.get(guarded.url + path)
            assert answer.status_code == 401, path
            assert "token" in answer.json()["detail"]
        wrong = {"Authorization": "Bearer wrong"}
        assert httpx.get(f"{guarded.url}/api/v1/runs", headers=wrong).status_code == 401

    def test_a_header_a_path_or_a_cookie(self, guarded: WebProcess) -> None:
        assert httpx.get(f"{guarded.url}/api/v1/runs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        path = httpx.get(f"{guarded.url}/t/{TOKEN.replace(' ', '%20').replace('&', '%26')}/api/v1/runs")
        assert path.status_code == 200
        with httpx.Client(base_url=guarded.url) as browser:
            first = browser.get("/api/v1/runs", params={"token": TOKEN})
            assert first.status_code == 200
            cookie = first.headers["set-cookie"].lower()
            assert "httponly" in cookie
            assert "samesite=strict" in cookie
            assert browser.get("/api/v1/runs").status_code == 200

    def test_tiles_need_it_too(self, guarded: WebProcess, web_station: WebStation) -> None:
        epoch = web_station.client.run(web_station.scan)["epoch"]
        tile = f"api/v1/runs/{web_station.scan}/tiles/{epoch}/0/0/0/0/-1/0.png"
        assert httpx.get(f"{guarded.url}/{tile}").status_code == 401
        assert httpx.get(f"{guarded.url}/t/so%20long%20%26%20secret/{tile}").status_code == 200

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
    def test_other_addresses_need_one(self, host: str, tmp_path: Path) -> None:
        assert not is_loopback(host)
        with pytest.raises(SettingsError, match="token"):
            Settings(store_path=tmp_path, host=host)
        assert Settings(store_path=tmp_path, host=host, token="x").host == host

    def test_only_this_machine_can_connect_unless_told_otherwise(self, tmp_path: Path) -> None:
        [listen] = [option for option in command.params if option.name == "listen"]
        assert is_loopback(str(listen.default).rpartition(":")[0])
        assert is_loopback(Settings(store_path=tmp_path).host)

    def test_the_command_refuses_to_start_without(self, tmp_path: Path) -> None:
        done = shared().run("web", "--listen", "0.0.0.0:0", "--store", str(tmp_path))
        assert done.returncode != 0
        assert "can be reached from other machines: give a token" in done.stderr
        assert "Traceback" not in done.stderr


class TestNames:
    @pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "[::2]", "[", ""])
    def test_a_strange_name_for_this_machine_is_refused(self, web_station: WebStation, host: str) -> None:
        answer = httpx.get(f"{web_station.web.url}/api/v1/runs", headers={"Host": host})
        assert answer.status_code in (400, 403)

    @pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8750"])
    def test_this_machine_has_several_names(self, web_station: WebStation, host: str) -> None:
        assert httpx.get(f"{web_station.web.url}/api/v1/runs", headers={"Host": host}).status_code == 200


class TestOtherPages:
    @pytest.mark.parametrize(
        "headers",
        [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}],
    )
    def test_they_give_no_orders(self, web_station: WebStation, headers: dict[str, str]) -> None:
        answer = httpx.post(f"{web_station.web.url}/api/v1/runs/{web_station.scan}/end", headers=headers)
        assert answer.status_code == 403
        assert "own page" in answer.json()["detail"]

    def test_our_own_page_does(self, web_station: WebStation) -> None:
        url = web_station.web.url
        own = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
        answer = httpx.post(f"{url}/api/v1/runs/{web_station.scan}/notes", json={"text": "seen"}, headers=own)
        assert answer.status_code == 200, answer.text

    def test_they_read_where_they_may(self, guarded: WebProcess, web_station: WebStation) -> None:
        ours = {"Authorization": f"Bearer {TOKEN}"}
        friend = httpx.get(f"{guarded.url}/api/v1/runs", headers={**ours, "Origin": "https://catmaid.example"})
        assert friend.headers["access-control-allow-origin"] == "https://catmaid.example"
        stranger = httpx.get(f"{guarded.url}/api/v1/runs", headers={**ours, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers
        asked = {"Origin": "https://catmaid.example", "Access-Control-Request-Method": "GET"}
        assert httpx.options(f"{guarded.url}/api/v1/runs", headers=asked).status_code == 200
        asked["Access-Control-Request-Method"] = "DELETE"
        assert httpx.options(f"{guarded.url}/api/v1/runs", headers=asked).status_code == 400
        plain = httpx.get(f"{web_station.web.url}/api/v1/runs", headers={"Origin": "https://catmaid.example"})
        assert "access-control-allow-origin" not in plain.headers


class TestRefusals:
    def test_bytes_that_are_no_request(self, web_station: WebStation) -> None:
        parts = urlsplit(web_station.web.url)
        assert parts.hostname is not None
        assert parts.port is not None
        for bad in (b"\x00\xff\r\n\r\n", b"GET /%zz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET / HTTP/9\r\n\r\n"):
            with socket.create_connection((parts.hostname, parts.port), PATIENCE_S) as connection:
                connection.sendall(bad)
                connection.shutdown(socket.SHUT_WR)
                answer = connection.makefile("rb").read()
            assert b"Traceback" not in answer
        assert httpx.get(f"{web_station.web.url}/api/v1/runs").status_code == 200

    def test_orders_are_short(self, web_station: WebStation) -> None:
        url = f"{web_station.web.url}/api/v1/runs/{web_station.scan}/notes"
        long = httpx.post(url, json={"text": "x" * 200_000})
        assert long.status_code == 413
        chunked = httpx.post(url, content=iter([b'{"text": ', b'"x"}']))
        assert chunked.status_code == 411

    def test_a_store_that_is_none_is_told_in_a_sentence(self, web_station: WebStation, tmp_path: Path) -> None:
        run = web_station.scan
        (tmp_path / run).mkdir()
        (tmp_path / run / "tiles.sqlite").write_bytes(b"this is no database" * 1000)
        with running_web("--store", str(tmp_path)) as web:
            answer = httpx.get(f"{web.url}/api/v1/runs/{run}", timeout=PATIENCE_S)
            assert answer.status_code == 503
            assert run in answer.json()["detail"]
            assert "Traceback" not in answer.text
            [row] = httpx.get(f"{web.url}/api/v1/runs").json()["runs"]
            assert (row["run"], row["state"]) == (run, "damaged")

    @pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
    def test_a_damaged_tile_is_told_and_nothing_else_is_disturbed(
        self, web_station: WebStation, tmp_path: Path, remote: bool
    ) -> None:
        """One at full resolution, and one of the top level, from which grey levels would be taken."""
        run, bad, top = web_station.scan, TileKey(0, -1, 0), web_station.client.run(web_station.scan)["levels"] - 1
        shutil.copytree(web_station.root / run, tmp_path / "runs" / run)
        for key in (bad, TileKey(top, -1, -1)):
            change_bits(tmp_path / "runs" / run, key)
        with ExitStack() as stack:
            options = ["--store", str(tmp_path / "runs")]
            if remote:
                daemon = stack.enter_context(ForkedDaemon(tmp_path / "runs", log_file=tmp_path / "log"))
                options = ["--remote", "--daemon", daemon.endpoints["notify"], daemon.endpoints["query"]]
            there = stack.enter_context(running_web(*options)).url
            client = stack.enter_context(httpx.Client(timeout=PATIENCE_S))
            info = client.get(f"{there}/api/v1/runs/{run}")
            assert info.status_code == 200, info.text
            epoch = info.json()["epoch"]
            [channel] = info.json()["channels"]
            low, high = channel["window"]  # of the level below: still of the data, not of the type
            assert 5_000 < low < high < 60_000
            tiles = f"/api/v1/runs/{run}/tiles/{epoch}/0/0/0"
            n_tiles = 0
            for plane, (level, *place) in web_station.mosaic(run):
                if (level, *place) not in (tuple(bad), (top, -1, -1)):
                    path = f"{tiles}/{level}/{place[0]}/{place[1]}.raw?mask=1"
                    assert client.get(there + path).content == client.get(web_station.web.url + path).content, (
                        plane,
                        path,
                    )
                    n_tiles += 1
            assert n_tiles > 15
            stack_info = client.get(f"{there}/catmaid/{run}/stack/0.0/info?min=0&max=65535").json()
            base = stack_info["mirrors"][0]["image_base"]
            row, col = (
                number - round(stack_info["translation"][axis] / stack_info["resolution"][axis]) // TILE
                for number, axis in ((bad.row, "y"), (bad.col, "x"))
            )
            for address in (
                *(f"{there}{tiles}/0/-1/0.{fmt}" for fmt in ("png", "jpg", "webp", "raw", "pzf")),
                f"{there}/api/v1/runs/{run}/region.png?row0=-40&col0=-10&row1=0&col1=20",
                f"{there}/api/v1/runs/{run}/value?row=-5&col=5",
                f"{base}0/{row}_{col}_0.png",
                f"{there}/zarr/0.5/{run}/{epoch}.zarr/0/c/0/0/0/{row}/{col}",
            ):
                for _ in range(2):  # and again: what failed once is not remembered as something else
                    answer = client.get(address)
                    assert answer.status_code == (502 if remote else 503), (address, answer.text)
                    assert "damaged (wrong checksum)" in answer.json()["detail"], address
                    assert "fsck --repair" in answer.json()["detail"], address
                    assert "Traceback" not in answer.text
            value = client.get(f"{there}/api/v1/runs/{run}/value?row=-50&col=-7")
            assert value.json()["values"][0] is not None
