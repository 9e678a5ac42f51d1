"""Who may talk to the daemon: CURVE on sockets that other machines reach, with an allow-list of client keys.

A socket that only this machine can reach stays plain. Any other speaks CURVE: the daemon shows its own key, and lets in
the keys whose files lie in the folders `curve.clients` and `curve.operators`. The handshake tells us the public key of
each peer, which is how operators (who may end or delete runs) are told from viewers.

The folders are looked at again at every handshake and every second, so that a key is given or taken away by a file.
When one is taken away, connections from the machines where it was used are cut: libzmq does not tell which of them is
whose. Whoever still has a key is back at once.

Who is refused is logged: with key and address if a key was shown; else with the address, unless the connection ended
before it could be looked up.

Only options and sockets are known here; what an operator may do is the query server's business.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import queue
import socket as sockets
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import psutil
import structlog
import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from tilecast.errors import ConfigError
from tilecast.service.config import SOCKETS, Config
from tilecast_protocol.key_files import KeyPair, read_public, read_secret, refuse_writable

log = structlog.get_logger()

_LOOK_MS: Final = 1000
_ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
_MAX_ADDRESSES: Final = 256  # remembered of one key; more, and its connections are found by their port alone

_NO_KEY: Final = "it shows no key, or does not speak CURVE"
_BROKEN_OFF: Final = "it shows no key: it ended the connection in the middle of the handshake"
_WHY: Final = {
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: f"{_NO_KEY}, or takes us for somebody else: does it have our public key?",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: _BROKEN_OFF,
    zmq.Event.HANDSHAKE_FAILED_AUTH: "",  # said when its key was looked up
}
_WATCHED: Final = int(zmq.Event.ACCEPTED | zmq.Event.DISCONNECTED | zmq.Event(sum(map(int, _WHY))))

Socket = zmq.Socket[bytes]
T = TypeVar("T")


def own_keys(path: Path) -> KeyPair:
    """The daemon's own pair of keys.

    Raises
    ------
    ConfigError
        If the file cannot be read, holds no such keys, or can be read by others.
    """
    return _explained(read_secret, path)


def public_key(path: Path) -> bytes:
    """The public key (Z85) in a file; ConfigError as `own_keys`."""
    return _explained(read_public, path)


def public_keys(folder: Path) -> dict[bytes, str]:
    """Public keys (Z85) of all files `*.key` in a folder, each with the name of its file.

    Raises
    ------
    ConfigError
        If it is no folder, one of the files holds no key, or others can change what is in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; expected one with the public keys (*.key) of those who may connect")
    _explained(refuse_writable, folder)
    return {public_key(path): path.stem for path in _key_files(folder)}


def _explained(read: Callable[[Path], T], path: Path) -> T:
    try:
        return read(path)
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _key_files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.key"))
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error.strerror}") from error


class KeyRing:
    """The keys that may connect, and which of them are operators', as the folders have them now.

    One thread calls `refresh`; any may ask.

    Parameters
    ----------
    clients, operators : Path or None
        Folders.

    Raises
    ------
    ConfigError
        If something is wrong with them. Later on, what is wrong is logged, and its keys do not count.
    """

    def __init__(self, clients: Path | None, operators: Path | None) -> None:
        self._folders = [folder for folder in (clients, operators) if folder is not None]
        self._operators_folder = operators
        self._known = {folder: public_keys(folder) for folder in self._folders}
        self._taken_away: dict[bytes, str] = {}
        self._seen = self._signature()
        self._complaints: set[str] = set()

    def name(self, key: bytes) -> str | None:
        """The name of a key that may connect; None of one that may not."""
        return next((known[key] for known in self._known.values() if key in known), None)

    def is_operator(self, key: bytes) -> bool:
        """Whether this key may change runs."""
        folder = self._operators_folder
        return folder is not None and key in self._known[folder]

    def why_not(self, key: bytes) -> str:
        """Why a key may not connect."""
        name = self._taken_away.get(key)
        return "its key is not in the allow-list" if name is None else f"the key {name}.key was taken away"

    def refresh(self) -> dict[bytes, str]:
        """Look at the folders again; returns keys that were taken away since, with their names."""
        found = self._signature()
        if found == self._seen:
            return {}
        self._seen = found
        complaints: set[str] = set()
        fresh = {folder: self._readable(folder, complaints) for folder in self._folders}
        before = {key: name for known in self._known.values() for key, name in known.items()}
        self._known = fresh
        for text in complaints - self._complaints:
            log.error("keys cannot be used", why=text)
        self._complaints = complaints
        gone = {key: name for key, name in before.items() if self.name(key) is None}
        self._taken_away |= gone
        return gone

    def _readable(self, folder: Path, complaints: set[str]) -> dict[bytes, str]:
        """As `public_keys`, but one bad file is left out, and a bad folder holds nothing."""
        found = {}
        try:
            _explained(refuse_writable, folder)
            paths = _key_files(folder)
        except ConfigError as error:
            complaints.add(str(error))
            return {}
        for path in paths:
            try:
                found[public_key(path)] = path.stem
            except ConfigError as error:
                complaints.add(str(error))
        return found

    def _signature(self) -> Any:
        """Something that is another when a key or a permission is."""
        found: list[Any] = []
        for folder in self._folders:
            try:
                paths = [folder, *_key_files(folder)]
            except ConfigError:
                paths = [folder]
            for path in paths:
                try:
                    status = path.stat()
                except OSError as error:
                    found.append((path, error.errno))
                else:
                    # A file's contents are of its time; the folder's is of whatever else was put into it.
                    found.append((path, status.st_ino, status.st_mode, path != folder and status.st_mtime_ns))
        return found


class Doors:
    """Sets sockets up as the configuration asks, and knows operators by their keys.

    Parameters
    ----------
    config : Config
    context : zmq.Context
        The one that all the daemon's sockets are made from.

    Raises
    ------
    ConfigError
        If a key file is missing, wrong, or can be read or changed by others.
    """

    def __init__(self, config: Config, context: zmq.Context[Socket]) -> None:
        self._config = config
        self._gatekeeper: _Gatekeeper | None = None
        self._keys = KeyPair(b"", None)
        self._ring = KeyRing(config.curve.clients, config.curve.operators)
        self._askers_have_keys = config.needs_curve("query")
        if not any(config.needs_curve(socket) for socket in SOCKETS):
            return
        assert config.curve.secret_key is not None, "the configuration checks that keys are there"
        self._keys = own_keys(config.curve.secret_key)
        self._gatekeeper = _Gatekeeper(context, self._ring)

    def bind_security(self, socket: Socket, name: str) -> None:
        """Make `socket`, called `name` in the configuration, a CURVE server if it must be one; before it is bound."""
        if self._config.needs_curve(name):
            assert self._gatekeeper is not None, "there is one if any socket needs it"
            # With a domain to enforce, nobody comes in while nobody answers for the allow-list.
            socket.zap_domain = name.encode()
            socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
            socket.curve_server = True
            socket.curve_publickey, socket.curve_secretkey = self._keys.public, self._keys.secret or b""
            self._gatekeeper.watch(socket, name)

    def connect_security(self, socket: Socket, name: str) -> None:
        """Make `socket` a CURVE client if it must be one; before it is connected."""
        if self._config.needs_curve(name):
            assert self._config.curve.publishers is not None, "the configuration checks that keys are there"
            socket.curve_serverkey = public_key(self._config.curve.publishers)
            socket.curve_publickey, socket.curve_secretkey = self._keys.public, self._keys.secret or b""

    def bound(self, name: str, endpoint: str) -> None:
        """Take note of where a socket was bound."""
        if self._gatekeeper is not None and self._config.needs_curve(name):
            self._gatekeeper.ports.add(int(endpoint.rpartition(":")[2]))

    def is_operator(self, frame: zmq.Frame) -> bool:
        """Whether the peer that asked this on the query socket is on this machine, or has an operator's key."""
        # Without CURVE the peer itself may have told its "User-Id": only the handshake makes that true.
        if self._askers_have_keys and self._ring.is_operator(_told(frame, "User-Id").encode()):
            return True
        address = _told(frame, "Peer-Address")
        return not address or _is_loopback(address)  # ipc has no address, and is this machine

    def close(self) -> None:
        """Stop answering handshakes."""
        if self._gatekeeper is not None:
            self._gatekeeper.close()


def _told(frame: zmq.Frame, what: str) -> str:
    """A property of the connection on which a message came; empty if it has none of this name."""
    try:
        return str(frame.get(what))
    except zmq.ZMQError:
        return ""


def _is_loopback(address: str) -> bool:
    """Whether a peer's address is this machine's own; what cannot be read is not."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


class _Gatekeeper:
    """The thread that libzmq asks about every CURVE handshake (its RFC 27), and that sees those that fail before.

    Parameters
    ----------
    context : zmq.Context
    ring : KeyRing

    Attributes
    ----------
    ports : set of int
        TCP ports of the sockets that it answers for.
    """

    def __init__(self, context: zmq.Context[Socket], ring: KeyRing) -> None:
        self.ports: set[int] = set()
        self._context = context
        self._ring = ring
        self._addresses: defaultdict[bytes, set[str]] = defaultdict(set)
        self._new: queue.SimpleQueue[tuple[Socket, str]] = queue.SimpleQueue()
        self._watched: list[Socket] = []
        self._zap = context.socket(zmq.REP)
        self._zap.bind(_ZAP_ENDPOINT)
        self._ours, theirs = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        endpoint = f"inproc://gatekeeper-{id(self)}"
        self._ours.bind(endpoint)
        theirs.connect(endpoint)
        self._thread = threading.Thread(target=self._work, args=(theirs,), name="gatekeeper", daemon=True)
        self._thread.start()

    def watch(self, socket: Socket, name: str) -> None:
        """Tell of the handshakes that fail on this socket."""
        endpoint = f"inproc://doors-{id(self)}-{len(self._watched)}"
        socket.monitor(endpoint, _WATCHED)
        events = self._context.socket(zmq.PAIR)
        events.connect(endpoint)
        self._watched.append(socket)
        self._new.put((events, name))
        self._ours.send(b"new")

    def close(self) -> None:
        """End the thread."""
        for socket in self._watched:
            if not socket.closed:
                socket.disable_monitor()
        self._ours.send(b"")
        self._thread.join()
        self._ours.close(linger=0)

    # ---- in its thread -----------------------------------------------------------------------------------------------

    def _work(self, control: Socket) -> None:
        monitors: dict[Socket, _Monitor] = {}
        poller = zmq.Poller()
        for socket in (control, self._zap):
            poller.register(socket, zmq.POLLIN)
        try:
            self._serve(control, poller, monitors)
        except Exception as error:
            # Without an answer libzmq lets nobody in.
            log.critical("nobody answers for the keys any more: no new connection is let in", exc_info=error)
            poller.unregister(self._zap)
            self._zap.close(linger=0)
            self._only_read(control, poller, monitors)
        finally:
            for socket in (control, self._zap, *monitors):
                socket.close(linger=0)

    def _serve(self, control: Socket, poller: zmq.Poller, monitors: dict[Socket, _Monitor]) -> None:
        """Answer and tell until `close`."""
        while True:
            ready = dict(poller.poll(_LOOK_MS))
            self._look()
            if self._zap in ready:
                self._zap.send_multipart(self._judge(self._zap.recv_multipart()))
            for events, monitor in monitors.items():
                while events in ready and events.poll(0):
                    monitor.take(parse_monitor_message(events.recv_multipart()))
            if control in ready and not self._told(control, poller, monitors):
                return

    def _only_read(self, control: Socket, poller: zmq.Poller, monitors: dict[Socket, _Monitor]) -> None:
        """Take what monitors say, until `close`: one that nobody reads stops libzmq's thread, and all who are in."""
        while True:
            ready = dict(poller.poll())
            for events in monitors:
                if events in ready:
                    events.recv_multipart()
            if control in ready and not self._told(control, poller, monitors):
                return

    def _told(self, control: Socket, poller: zmq.Poller, monitors: dict[Socket, _Monitor]) -> bool:
        """Take one more socket to watch; False if it is time to end."""
        if not control.recv():
            return False
        events, name = self._new.get()
        monitors[events] = _Monitor(name)
        poller.register(events, zmq.POLLIN)
        return True

    def _judge(self, request: list[bytes]) -> list[bytes]:
        """The answer to one question of libzmq: may the client with this key come in?"""
        version, number, domain, address, _, mechanism, *credentials = request
        key = z85.encode(credentials[0]) if mechanism == b"CURVE" and len(credentials) == 1 else b""
        name, where = self._ring.name(key), address.decode("ascii", "replace")
        if name is None:
            log.warning(
                "connection refused",
                socket=domain.decode(),
                address=where,
                key=key.decode(),
                why=self._ring.why_not(key) if key else _NO_KEY,
            )
            return [version, number, b"400", b"this key may not connect", b"", b""]
        if len(self._addresses[key]) < _MAX_ADDRESSES:
            self._addresses[key].add(where)
        log.debug("connection accepted", socket=domain.decode(), address=where, client=name)
        return [version, number, b"200", b"OK", key, b""]

    def _look(self) -> None:
        gone = self._ring.refresh()
        for key, name in gone.items():
            addresses = self._addresses.pop(key, set())
            n_cut = _cut(self.ports, addresses if len(addresses) < _MAX_ADDRESSES else None) if addresses else 0
            log.warning("key taken away", client=name, key=key.decode(), n_connections_cut=n_cut)


class _Monitor:
    """What the monitor of one socket tells, put together to whole sentences."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._address: dict[int, str] = {}  # by file descriptor
        self._why = ""

    def take(self, event: Any) -> None:
        """One event. A handshake that fails is followed at once by the end of its connection, which has its number."""
        kind = zmq.Event(event["event"])
        if kind is zmq.Event.ACCEPTED:
            self._address[event["value"]] = _peer_address(event["value"])
        elif kind is zmq.Event.DISCONNECTED:
            address = self._address.pop(event["value"], "")
            if self._why:
                log.warning("connection refused", socket=self._name, address=address, key="", why=self._why)
            self._why = ""
        else:
            self._why = _WHY[kind]


def _peer_address(descriptor: int) -> str:
    """The IP address at the other end of one of libzmq's connections; empty if it has none (`ipc`), or has gone."""
    with contextlib.suppress(OSError), sockets.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family in (sockets.AF_INET, sockets.AF_INET6):
            return str(connection.getpeername()[0])
    return ""


def _cut(ports: Iterable[int], addresses: Iterable[str] | None) -> int:
    """End the connections from these addresses (None: from all) to these TCP ports of ours; returns how many."""
    n_cut = 0
    wanted = None if addresses is None else set(addresses)
    for found in psutil.Process().net_connections("tcp"):
        if not found.raddr or found.laddr.port not in ports or (wanted is not None and found.raddr.ip not in wanted):
            continue
        # The number may be another connection's by now: it is looked at again through a copy, which cannot change.
        with contextlib.suppress(OSError), sockets.socket(fileno=os.dup(found.fd)) as connection:
            if connection.getsockname()[1] == found.laddr.port:
                connection.shutdown(sockets.SHUT_RDWR)
                n_cut += 1
    return n_cut
