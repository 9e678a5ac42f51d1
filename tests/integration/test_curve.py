"""A daemon that other machines can reach: who has a key gets all, who has none, or another, gets nothing and is logged.

Peers speak to one of this machine's own addresses, so that they look like another machine; where there is none but
loopback, these tests are skipped.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import zmq

from faults.nursery import ForkedDaemon, shared
from integration.talking import PATIENCE_S, PX_UM, SHAPE, picture
from tilecast.process import DaemonProcess
from tilecast_protocol.client import Client, TileUpdate
from tilecast_protocol.errors import DisconnectedError, QueryError
from tilecast_protocol.key_files import make_pair
from tilecast_protocol.publisher import Publisher
from tilecast_protocol.sockets import CurveKeys

SOCKETS = ("ingest.ack", "ingest.pull", "notify", "query")
KIND = {"ingest.ack": zmq.DEALER, "ingest.pull": zmq.PUSH, "notify": zmq.SUB, "query": zmq.DEALER}


@dataclass(frozen=True)
class Fortress:
    """A daemon with keys on all sockets."""

    daemon: DaemonProcess
    folder: Path
    endpoints: dict[str, str]

    def keys(self, name: str, server: str = "daemon") -> CurveKeys:
        return CurveKeys.load(self.folder / f"{name}.key_secret", self.folder / f"{server}.key")

    def client(self, name: str, timeout_s: float = PATIENCE_S) -> Client:
        return Client(self.endpoints["notify"], self.endpoints["query"], timeout_s=timeout_s, curve=self.keys(name))


@pytest.fixture(scope="module")
def fortress() -> Iterator[Fortress]:
    addresses = (
        entry.address for some in psutil.net_if_addrs().values() for entry in some if entry.family == socket.AF_INET
    )
    address = next((address for address in addresses if not address.startswith("127.")), None)
    if address is None:
        pytest.skip("this machine has no address but loopback")
    with tempfile.TemporaryDirectory(prefix="tilecast-") as temporary:
        folder = Path(temporary)
        for name in ("daemon", "camera", "viewer", "leaver", "revoked", "boss", "stranger"):
            make_pair(folder, name)
        for group, names in {"clients": ("camera", "viewer", "leaver", "revoked"), "operators": ("boss",)}.items():
            (folder / group).mkdir(mode=0o700)
            for name in names:
                (folder / group / f"{name}.key").write_bytes((folder / f"{name}.key").read_bytes())
                (folder / group / f"{name}.key").chmod(0o600)
        settings = dict.fromkeys(SOCKETS, "tcp://0.0.0.0:*") | {
            "curve.secret_key": str(folder / "daemon.key_secret"),
            "curve.clients": str(folder / "clients"),
            "curve.operators": str(folder / "operators"),
            "blend.tile_size": "32",
            "store.commit_interval_ms": "20",
            "log.flood_s": "0",
        }
        daemon = ForkedDaemon(folder / "runs", settings=settings).start()
        try:
            (folder / "clients" / "revoked.key").unlink()
            daemon.wait_logged("key taken away", client="revoked")
            endpoints = {name: daemon.endpoints[name].replace("0.0.0.0", address) for name in SOCKETS}
            yield Fortress(daemon, folder, endpoints)
            assert daemon.stop() == 0, list(daemon.log)[-20:]
        finally:
            daemon.kill()


@pytest.mark.parametrize("name", [*SOCKETS, "ingest.sub"])
def test_a_daemon_that_others_could_reach_without_a_key_does_not_start(name: str, tmp_path: Path) -> None:
    """The very command; what is allowed for one socket is allowed for no other."""
    value = '["tcp://192.0.2.1:5555"]' if name == "ingest.sub" else "tcp://0.0.0.0:*"
    other = "query" if name != "query" else "notify"
    options = (f"store.path={tmp_path}", f"{name}={value}", f"allow_plaintext={other}")
    done = shared().run("run", *(f"--set={option}" for option in options))
    assert done.returncode == 2, done.stderr
    assert name in done.stderr
    assert "curve" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_who_has_a_key_sends_hears_and_asks(fortress: Fortress) -> None:
    with (
        fortress.client("viewer") as viewer,
        Publisher(
            fortress.endpoints["ingest.ack"], instrument="scope", stream="cam", curve=fortress.keys("camera")
        ) as camera,
        Publisher(
            fortress.endpoints["ingest.pull"],
            mode="push",
            instrument="scope",
            stream="stage",
            curve=fortress.keys("camera"),
        ) as stage,
    ):
        assert viewer.health()["ready"]
        run = camera.start("guarded", shape=SHAPE, dtype="<u2", px_um=PX_UM)
        stage.stage((0.0, 0.0))
        camera.image(picture(1), pos_um=(10.0, 10.0))
        camera.flush()
        news = next(update for update in viewer.updates(PATIENCE_S) if isinstance(update, TileUpdate))
        assert news.run == run
        with pytest.raises(QueryError) as caught:
            viewer.rename(run, "mine")
        assert caught.value.code == "not-allowed"
        with fortress.client("boss") as boss:
            boss.rename(run, "renamed")
        assert viewer.run(run)["name"] == "renamed"


def test_operators_give_orders_from_the_command_line(fortress: Fortress) -> None:
    with Publisher(
        fortress.endpoints["ingest.ack"], instrument="scope", stream="cli", curve=fortress.keys("camera")
    ) as camera:
        run = camera.start("by command", shape=SHAPE, dtype="<u2", px_um=PX_UM)

    def command(who: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        keys = [
            "--key",
            str(fortress.folder / f"{who}.key_secret"),
            "--daemon-key",
            str(fortress.folder / "daemon.key"),
        ]
        where = ["--daemon", fortress.endpoints["query"]]
        return shared().run(*arguments, *where, *keys)

    refused = command("viewer", "rename", run, "mine")
    assert refused.returncode == 2
    assert "rename is for operators" in refused.stderr
    assert command("boss", "rename", "by command", "by the boss").returncode == 0
    assert command("boss", "end", run[:8]).returncode == 0
    deleted = command("boss", "delete", "by the boss", "--yes")
    assert (deleted.returncode, deleted.stdout) == (0, f"deleted {run}\n"), deleted.stderr
    with fortress.client("viewer") as viewer:
        assert run not in [row["run"] for row in viewer.runs()]


@pytest.mark.parametrize("name", SOCKETS)
@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ("none", "shows no key"),
        ("unknown", "not in the allow-list"),
        ("revoked", "revoked.key was taken away"),
        ("wrong server", "takes us for somebody else"),
    ],
)
def test_who_has_none_gets_nothing_and_is_logged(fortress: Fortress, name: str, keys: str, why: str) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    peer = context.socket(KIND[name])
    events = peer.get_monitor_socket(zmq.Event.DISCONNECTED)
    peer.linger, peer.immediate = 0, 1
    whose = {"unknown": "stranger", "revoked": "revoked"}.get(keys)
    own = fortress.keys(whose or "camera", "boss" if keys == "wrong server" else "daemon")
    if keys != "none":
        assert own.server is not None
        peer.curve_publickey, peer.curve_secretkey, peer.curve_serverkey = own.public, own.secret, own.server
    if name == "notify":
        peer.subscribe(b"")
    fortress.daemon.log.clear()
    try:
        peer.connect(fortress.endpoints[name])
        line = fortress.daemon.wait_logged("connection refused", socket=name)
        address = fortress.endpoints[name].split("/")[2].partition(":")[0]
        # Who has no key may be gone before anybody could look where he came from.
        assert line["address"] in ((address,) if whose else (address, ""))
        assert why in line["why"]
        assert line["key"] == (own.public.decode() if whose else "")
        assert events.poll(PATIENCE_S * 1000)
        if name == "ingest.pull":
            with pytest.raises(zmq.Again):
                peer.send(b"", zmq.NOBLOCK)
        else:
            assert not peer.poll(0)
    finally:
        peer.disable_monitor()
        events.close()
        peer.close()
        context.term()


def test_a_key_that_is_taken_away_is_cut_off_and_others_go_on(fortress: Fortress) -> None:
    given = fortress.folder / "clients" / "leaver.key"
    with (
        fortress.client("leaver", timeout_s=1) as leaver,
        fortress.client("viewer") as viewer,
        Publisher(
            fortress.endpoints["ingest.ack"], instrument="scope", stream="other", curve=fortress.keys("camera")
        ) as camera,
    ):
        assert leaver.health()["ready"]
        run = camera.start("goes on", shape=SHAPE, dtype="<u2", px_um=PX_UM)
        camera.image(picture(1), pos_um=(10.0, 10.0))
        camera.flush()
        fortress.daemon.log.clear()
        given.rename(given.with_suffix(".off"))
        line = fortress.daemon.wait_logged("key taken away", client="leaver")
        assert line["n_connections_cut"] >= 1
        line = fortress.daemon.wait_logged("connection refused", key=fortress.keys("leaver").public.decode())
        assert "leaver.key was taken away" in line["why"]
        with pytest.raises(DisconnectedError):
            leaver.health()
        camera.image(picture(2), pos_um=(20.0, 10.0))
        camera.flush()
        camera.end()
        camera.flush()
        found = viewer.report(run)
        while not found["final"]:  # it is written, and told, a moment after `end` is acknowledged
            found = viewer.report(run)
        assert found["report"]["received"] == 2
        given.with_suffix(".off").rename(given)
        with fortress.client("leaver") as again:
            assert again.health()["ready"]


def test_a_plugin_needs_no_key_for_its_own_door_and_strangers_get_in_no_other_way(tmp_path: Path) -> None:
    """The door of plugins is on the socket of `ingest.ack`, which asks everybody else for a key."""
    images = tmp_path / "images"
    images.mkdir()
    np.save(images / "f_0_0.npy", picture(1))
    (images / "done").touch()
    make_pair(tmp_path, "daemon")
    make_pair(tmp_path, "stranger")
    (tmp_path / "clients").mkdir(mode=0o700)
    settings = {
        "ingest.ack": "tcp://0.0.0.0:*",
        "curve.secret_key": str(tmp_path / "daemon.key_secret"),
        "curve.clients": str(tmp_path / "clients"),
        "plugins.watch_folder.folders": str(images),
        "plugins.watch_folder.pattern": "f_{row:d}_{col:d}.npy",
        "plugins.watch_folder.settle_ms": "50",
        "plugins.watch_folder.end_marker": "done",
        "log.flood_s": "0",
    }
    with ForkedDaemon(tmp_path / "runs", settings=settings) as daemon:
        run = daemon.wait_logged("run of a folder has ended", n_sent=1)["run"]
        with Client(None, daemon.endpoints["query"]) as client:
            assert client.report(run)["report"]["received"] == 1
        endpoint = daemon.endpoints["ingest.ack"].replace("0.0.0.0", "127.0.0.1")
        with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
            peer.linger = 0
            peer.connect(endpoint)
            line = daemon.wait_logged("connection refused", socket="ingest.ack")
            assert "shows no key" in line["why"]
        keys = CurveKeys.load(tmp_path / "stranger.key_secret", tmp_path / "daemon.key")
        with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
            peer.linger = 0
            assert keys.server is not None
            peer.curve_publickey, peer.curve_secretkey, peer.curve_serverkey = keys.public, keys.secret, keys.server
            peer.connect(endpoint)
            daemon.wait_logged("connection refused", socket="ingest.ack", key=keys.public.decode())
