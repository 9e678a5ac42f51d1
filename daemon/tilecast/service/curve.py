"""Who may talk to the daemon: CURVE on sockets that other machines reach, with an allow-list of client keys.

A socket that only this machine can reach stays plain. Any other speaks CURVE: the daemon shows its own key, and lets in
the keys whose files lie in the folders `curve.clients` and `curve.operators`. The handshake tells us the public key of
each peer, which is how operators (who may end or delete runs) are told from viewers.

Only options and sockets are known here; what an operator may do is the query server's business.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

import zmq
import zmq.asyncio
from zmq import auth
from zmq.auth.thread import ThreadAuthenticator

from tilecast.errors import ConfigError
from tilecast.service.config import SOCKETS, Config

_DOMAIN = b"tilecast"


def load_key(path: Path, *, secret: bool) -> tuple[bytes, bytes | None]:
    """The public and, if asked for, the secret key of a ZeroMQ certificate file.

    Raises
    ------
    ConfigError
        If the file cannot be read, holds no such key, or is a secret that others can read.
    """
    try:
        if secret and path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} holds a secret key and others can read it: chmod 600 {path}")
        public, private = auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the key file {path}: {error}; expected a ZeroMQ certificate") from error
    if secret and private is None:
        raise ConfigError(f"{path} holds no secret key; expected a file that ends in .key_secret")
    return public, private


def public_keys(folder: Path | None) -> dict[bytes, str]:
    """Public keys (z85) of all certificates in a folder, each with the name of its file."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; expected one with the public keys (*.key) that may connect")
    return {load_key(path, secret=False)[0]: path.stem for path in sorted(folder.glob("*.key"))}


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
        If a key file is missing or wrong.
    """

    def __init__(self, config: Config, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._config = config
        self._authenticator: ThreadAuthenticator | None = None
        self._keys: tuple[bytes, bytes | None] = (b"", None)
        self._server_keys: dict[str, bytes] = {}
        self._operators = public_keys(config.curve.operators)
        if not any(config.needs_curve(socket) for socket in SOCKETS):
            return
        assert config.curve.secret_key is not None, "the configuration checks that keys are there"
        self._keys = load_key(config.curve.secret_key, secret=True)
        clients = public_keys(config.curve.clients) | self._operators
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback("*", _AllowList(clients))

    def bind_security(self, socket: zmq.Socket[bytes], name: str) -> None:
        """Make `socket`, called `name` in the configuration, a CURVE server if it must be one; before it is bound."""
        if self._config.needs_curve(name):
            # With a domain to enforce, nobody comes in while nobody answers for the allow-list.
            socket.zap_domain = _DOMAIN
            socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)
            socket.curve_server = True
            socket.curve_publickey, socket.curve_secretkey = self._keys[0], self._keys[1] or b""

    def connect_security(self, socket: zmq.Socket[bytes], name: str) -> None:
        """Make `socket` a CURVE client if it must be one; before it is connected."""
        if self._config.needs_curve(name):
            assert self._config.curve.publishers is not None, "the configuration checks that keys are there"
            socket.curve_serverkey = load_key(self._config.curve.publishers, secret=False)[0]
            socket.curve_publickey, socket.curve_secretkey = self._keys[0], self._keys[1] or b""

    def is_operator(self, frame: zmq.Frame) -> bool:
        """Whether the peer that sent `frame` may change runs: it is on this machine, or has an operator's key."""
        try:
            user = frame.get("User-Id")
        except zmq.ZMQError:
            user = ""
        if isinstance(user, str) and user.encode() in self._operators:
            return True
        try:
            address = frame.get("Peer-Address")
        except zmq.ZMQError:
            return True  # ipc: has no address, and is this machine
        return not address or _is_loopback(str(address))

    def close(self) -> None:
        """Stop answering handshakes."""
        if self._authenticator is not None:
            self._authenticator.stop()


def _is_loopback(address: str) -> bool:
    """Whether a peer's address is this machine's own; what cannot be read is not."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


class _AllowList:
    """What pyzmq asks of each CURVE handshake."""

    def __init__(self, keys: dict[bytes, str]) -> None:
        self._keys = keys

    def callback(self, _domain: str, key: bytes) -> bool:
        """Whether the client with this public key may come in."""
        return key in self._keys
