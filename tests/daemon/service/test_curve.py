"""Who is let in, without a daemon: key folders, their permissions, who is an operator, and files as sockets."""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from structlog.testing import capture_logs

from tilecast.errors import ConfigError
from tilecast.ingest.verdicts import IngestPath
from tilecast.service.config import load
from tilecast.service.curve import KeyRing, own_keys, public_keys
from tilecast.service.sockets import Sockets
from tilecast_protocol.key_files import make_pair, read_public
from tilecast_protocol.sockets import CurveKeys

PATIENCE_MS = 30_000


@pytest.fixture
def clients(tmp_path: Path) -> Path:
    folder = tmp_path / "clients"
    folder.mkdir(mode=0o700)
    for name in ("camera", "viewer"):
        make_pair(folder, name)
    return folder


@pytest.fixture
def operators(tmp_path: Path) -> Path:
    folder = tmp_path / "operators"
    folder.mkdir(mode=0o700)
    make_pair(folder, "boss")
    return folder


def key(folder: Path, name: str) -> bytes:
    return read_public(folder / f"{name}.key")


class TestKeyRing:
    def test_who_may_connect_and_who_may_order(self, clients: Path, operators: Path) -> None:
        ring = KeyRing(clients, operators)
        boss, viewer = key(operators, "boss"), key(clients, "viewer")
        assert (ring.name(viewer), ring.name(boss), ring.name(b"x" * 40)) == ("viewer", "boss", None)
        assert (ring.is_operator(viewer), ring.is_operator(boss), ring.is_operator(b"")) == (False, True, False)
        assert not KeyRing(clients, None).is_operator(boss)
        assert KeyRing(None, None).name(viewer) is None

    def test_a_key_is_taken_away_and_given_back(self, clients: Path) -> None:
        ring, viewer = KeyRing(clients, None), key(clients, "viewer")
        assert ring.refresh() == {}
        file = clients / "viewer.key"
        file.rename(clients / "viewer.key.off")
        assert ring.refresh() == {viewer: "viewer"}
        assert (ring.name(viewer), ring.refresh()) == (None, {})
        assert "viewer.key was taken away" in ring.why_not(viewer)
        assert "not in the allow-list" in ring.why_not(b"x" * 40)
        (clients / "viewer.key.off").rename(file)
        assert ring.refresh() == {}
        assert ring.name(viewer) == "viewer"

    def test_an_operator_becomes_a_client(self, clients: Path, operators: Path) -> None:
        ring, boss = KeyRing(clients, operators), key(operators, "boss")
        (operators / "boss.key").rename(clients / "boss.key")
        assert ring.refresh() == {}
        assert (ring.name(boss), ring.is_operator(boss)) == ("boss", False)

    def test_a_bad_file_later_on_is_told_once_and_harms_no_other(self, clients: Path) -> None:
        ring = KeyRing(clients, None)
        with capture_logs() as logs:
            (clients / "half.key").write_text("curve\n")
            assert ring.refresh() == {}
            (clients / "camera.key").chmod(0o666)
            assert list(ring.refresh().values()) == ["camera"]
            (clients / "viewer.key_secret").unlink()
            assert ring.refresh() == {}
        assert ring.name(key(clients, "viewer")) == "viewer"
        assert sorted(entry["why"].split(" ")[0] for entry in logs) == [
            str(clients / "camera.key"),
            str(clients / "half.key"),
        ]

    @pytest.mark.parametrize("harm", ["open", "gone"])
    def test_a_folder_that_cannot_be_trusted_lets_nobody_in(self, clients: Path, harm: str) -> None:
        ring = KeyRing(clients, None)
        clients.chmod(0o777) if harm == "open" else clients.rename(clients.with_name("elsewhere"))
        with capture_logs():
            assert sorted(ring.refresh().values()) == ["camera", "viewer"]


class TestStrictness:
    def test_the_folder_and_its_files(self, clients: Path) -> None:
        clients.chmod(0o770)
        with pytest.raises(ConfigError, match=f"chmod go-w {clients}"):
            public_keys(clients)
        clients.chmod(0o755)
        (clients / "viewer.key").chmod(0o664)
        with pytest.raises(ConfigError, match=f"chmod go-w {clients / 'viewer.key'}"):
            public_keys(clients)
        with pytest.raises(ConfigError, match="is no folder"):
            public_keys(clients / "viewer.key")

    def test_the_own_key(self, clients: Path) -> None:
        secret = clients / "camera.key_secret"
        secret.chmod(0o640)
        with pytest.raises(ConfigError, match=f"chmod 600 {secret}"):
            own_keys(secret)
        with pytest.raises(ConfigError, match="cannot be read"):
            own_keys(clients / "none.key_secret")

    @pytest.mark.parametrize("harm", ["secret", "clients", "operators"])
    def test_sockets_are_not_even_made(self, harm: str, clients: Path, operators: Path, tmp_path: Path) -> None:
        secret = make_pair(tmp_path, "daemon").secret
        {"secret": secret, "clients": clients, "operators": operators}[harm].chmod(0o777)
        config = load(None, guarded(secret, clients, operators), {})
        with pytest.raises(ConfigError, match="chmod"):
            Sockets(config)


def guarded(secret: Path, clients: Path, operators: Path) -> list[str]:
    options = {"curve.secret_key": secret, "curve.clients": clients, "curve.operators": operators}
    return ["query=tcp://0.0.0.0:*", *(f"{name}={path}" for name, path in options.items())]


# ---- files as sockets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("umask", "mode"), [(0o000, 0o660), (0o022, 0o640), (0o077, 0o600)])
def test_others_cannot_open_a_file_that_is_a_socket(tmp_path: Path, umask: int, mode: int) -> None:
    path = tmp_path / "q"
    before = os.umask(umask)
    try:
        sockets = Sockets(load(None, [f"query=ipc://{path}"], {}))
        query = sockets.query()
        assert query is not None
        assert os.umask(umask) == umask
        assert stat.S_IMODE(path.stat().st_mode) == mode
        query.close()
        sockets.close()
    finally:
        os.umask(before)


# ---- the door beside a guarded socket --------------------------------------------------------------------------------


@pytest.fixture
def beside(tmp_path: Path, clients: Path) -> Iterator[tuple[Sockets, zmq.Socket[bytes]]]:
    """The acknowledged path, which asks for keys, and its door, which does not, on one socket."""
    options = {
        "ingest.ack": "tcp://0.0.0.0:*",
        "curve.secret_key": make_pair(tmp_path, "daemon").secret,
        "curve.clients": clients,
    }
    sockets = Sockets(load(None, [f"{name}={value}" for name, value in options.items()], {}), with_feed=True)
    (socket,) = sockets.ingest([IngestPath.ACK])[IngestPath.ACK]
    yield sockets, socket
    socket.close()
    sockets.close()


class Peers:
    """Connects peers, with keys or without; each has a message on its way."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def connect(self, endpoint: str, keys: CurveKeys | None = None) -> zmq.Socket[bytes]:
        peer = self.context.socket(zmq.DEALER)
        if keys is not None:
            assert keys.server is not None
            peer.curve_publickey, peer.curve_secretkey, peer.curve_serverkey = keys.public, keys.secret, keys.server
        peer.connect(endpoint.replace("0.0.0.0", "127.0.0.1"))
        peer.send(b"hi")
        return peer

    def see_turned_away(self, endpoint: str) -> None:
        """Connect without a key until the connection is ended."""
        peer = self.connect(endpoint)
        events = peer.get_monitor_socket(zmq.Event.DISCONNECTED)
        assert events.poll(PATIENCE_MS)
        peer.disable_monitor()
        events.close()
        peer.close(linger=0)


@pytest.fixture
def peers() -> Iterator[Peers]:
    made = Peers()
    yield made
    made.context.destroy(0)


def heard(socket: zmq.Socket[bytes]) -> bytes:
    assert socket.poll(PATIENCE_MS), "nothing came"
    return socket.recv_multipart()[1]


def test_who_comes_by_the_door_leaves_the_guard_at_its_post(
    beside: tuple[Sockets, zmq.Socket[bytes]], peers: Peers, clients: Path, tmp_path: Path
) -> None:
    """A file has no address that could be logged; keys are asked for as before."""
    sockets, socket = beside
    endpoint = sockets.endpoints["ingest.ack"]
    peers.connect(sockets.feed)
    assert heard(socket) == b"hi"
    peers.see_turned_away(endpoint)
    assert not socket.poll(0)
    peers.connect(endpoint, CurveKeys.load(clients / "camera.key_secret", tmp_path / "daemon.key"))
    assert heard(socket) == b"hi"


def test_without_a_guard_nobody_comes_in_and_who_is_in_stays(
    beside: tuple[Sockets, zmq.Socket[bytes]],
    peers: Peers,
    clients: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """libzmq's thread waits for ever for who listens to its events: they are read even then."""
    sockets, socket = beside
    endpoint = sockets.endpoints["ingest.ack"]
    keys = CurveKeys.load(clients / "camera.key_secret", tmp_path / "daemon.key")
    camera = peers.connect(endpoint, keys)
    assert heard(socket) == b"hi"
    broken = threading.Event()

    def fail(_ring: KeyRing) -> dict[bytes, str]:
        broken.set()
        raise RuntimeError("as no code of ours should")

    monkeypatch.setattr(KeyRing, "refresh", fail)
    assert broken.wait(PATIENCE_MS / 1000)
    peers.connect(endpoint, keys)
    for _ in range(10):
        peers.see_turned_away(endpoint)
        camera.send(b"still here")
        assert heard(socket) == b"still here"
    assert not socket.poll(0), "the second camera is in"


# ---- what a peer says of itself --------------------------------------------------------------------------------------


def say_hi(connection: socket.socket, *properties: tuple[bytes, bytes]) -> None:
    """Speak ZMTP 3.0 as a DEALER without security: greeting, READY with these properties, and then a message."""
    said = b""
    for name, value in [(b"Socket-Type", b"DEALER"), *properties]:
        said += struct.pack(">B", len(name)) + name + struct.pack(">I", len(value)) + value
    ready = b"\x05READY" + said
    connection.settimeout(PATIENCE_MS / 1000)
    connection.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    connection.sendall(b"\x04" + struct.pack(">B", len(ready)) + ready)
    heard = b""
    while b"READY" not in heard:
        more = connection.recv(4096)
        assert more, "the connection was ended"
        heard += more
    connection.sendall(b"\x00\x02hi")


@pytest.fixture
def address() -> str:
    """One of this machine's addresses by which it looks like another."""
    found = other_address()
    if found is None:
        pytest.skip("this machine has no address but loopback")
    return found


def other_address() -> str | None:
    import psutil

    addresses = (entry.address for entries in psutil.net_if_addrs().values() for entry in entries
                 if entry.family == socket.AF_INET)  # fmt: skip
    return next((address for address in addresses if not address.startswith("127.")), None)


@pytest.fixture
def plain(operators: Path) -> Iterator[tuple[Sockets, zmq.Socket[bytes], int]]:
    """A query socket that others reach without keys; the daemon has operators all the same."""
    options = ["query=tcp://0.0.0.0:*", "allow_plaintext=query", f"curve.operators={operators}"]
    sockets = Sockets(load(None, options, {}))
    query = sockets.query()
    assert query is not None
    yield sockets, query, int(sockets.endpoints["query"].rpartition(":")[2])
    query.close()
    sockets.close()


@pytest.mark.parametrize("with_key", [False, True])
def test_who_says_that_he_is_an_operator_is_none(
    plain: tuple[Sockets, zmq.Socket[bytes], int], operators: Path, address: str, with_key: bool
) -> None:
    sockets, query, port = plain
    claims = [(b"Peer-Address", b"127.0.0.1")] + [(b"User-Id", key(operators, "boss"))] * with_key
    with socket.create_connection((address, port)) as stranger:
        say_hi(stranger, *claims)
        assert query.poll(PATIENCE_MS)
        frame = query.recv_multipart(copy=False)[1]
        assert not with_key or frame.get("User-Id") == key(operators, "boss").decode(), "that is what he says"
        assert not sockets.is_operator(frame)


def test_who_is_on_this_machine_is_an_operator(plain: tuple[Sockets, zmq.Socket[bytes], int]) -> None:
    sockets, query, port = plain
    with socket.create_connection(("127.0.0.1", port)) as somebody:
        say_hi(somebody)
        assert query.poll(PATIENCE_MS)
        assert sockets.is_operator(query.recv_multipart(copy=False)[1])
