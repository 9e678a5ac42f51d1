"""Key files for encrypted connections: made, read, and refused where others could read or change them.

The form is that of ZeroMQ certificates, as CZMQ and pyzmq write them: `NAME.key` holds a public key, `NAME.key_secret`
a whole pair. A secret that others can read is none, and a public key that others can change lets in whom they like; so
both are refused here, with the command that mends it.

Not known here: sockets, and who may connect with which key.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import zmq
from zmq.utils import z85

PUBLIC_ENDING: Final = ".key"
SECRET_ENDING: Final = ".key_secret"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LINE: Final = re.compile(rb"""^[ \t]*(public|secret)-key[ \t]*=[ \t]*["']([^"'\s]*)["'][ \t]*\r?$""", re.MULTILINE)
_MAX_NBYTES: Final = 64 * 1024
_BY_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH


class KeyPair(NamedTuple):
    """A public key and, if the file holds it, the secret that belongs to it; Z85, 40 characters."""

    public: bytes
    secret: bytes | None


class KeyPaths(NamedTuple):
    """Where the two files of a new pair lie."""

    public: Path
    secret: Path


def read_public(path: Path) -> bytes:
    """The public key in a file.

    Raises
    ------
    ValueError
        If it is no key file, or others than its owner can change it.
    OSError
        If it cannot be read.
    """
    data, mode = _contents(path)
    refuse_writable(path, mode)
    return _parsed(path, data).public


def read_secret(path: Path) -> KeyPair:
    """The pair in a file that nobody but its owner may read; ValueError and OSError as `read_public`."""
    data, mode = _contents(path)
    if mode & _BY_OTHERS and not _is_credential(path):
        raise ValueError(f"{path} holds a secret key and others can read it: chmod 600 {path}, or make a new pair")
    pair = _parsed(path, data)
    if pair.secret is None:
        raise ValueError(f"{path} holds no secret key; expected a file that ends in {SECRET_ENDING}")
    if zmq.curve_public(pair.secret) != pair.public:
        raise ValueError(f"the two keys in {path} do not belong together: make a new pair")
    return pair


def _is_credential(path: Path) -> bool:
    """Whether the service manager has put this file where only this service can look (systemd's LoadCredential)."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(folder) and path.absolute().parent == Path(folder or "").absolute()


def refuse_writable(path: Path, mode: int | None = None) -> None:
    """ValueError if others than its owner can change this file or folder."""
    if (path.stat().st_mode if mode is None else mode) & _WRITABLE:
        raise ValueError(f"{path} can be changed by others, who could let anybody in: chmod go-w {path}")


def make_pair(folder: Path, name: str) -> KeyPaths:
    """Make a pair of keys: `NAME.key`, which may be given away, and `NAME.key_secret`, which only its owner can read.

    Raises
    ------
    ValueError
        If `name` cannot be the name of a file.
    FileExistsError
        If there is one of the two; nothing is overwritten.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"a key's name has 1 to 64 of A-Z a-z 0-9 _ . -, the first a letter or digit; got {name!r}")
    public, secret = zmq.curve_keypair()
    paths = KeyPaths(folder / (name + PUBLIC_ENDING), folder / (name + SECRET_ENDING))
    public_line, secret_line = f'    public-key = "{public.decode()}"\n', f'    secret-key = "{secret.decode()}"\n'
    _write_new(
        paths.secret,
        "#   ZeroMQ CURVE secret certificate: who has this file is who it names. Never copy or mail it.\n"
        f"metadata\n    name = {name}\ncurve\n{public_line}{secret_line}",
        0o600,
    )
    try:
        _write_new(
            paths.public,
            "#   ZeroMQ CURVE public certificate: may be given to whom it shall be used with.\n"
            f"metadata\n    name = {name}\ncurve\n{public_line}",
            0o644,
        )
    except BaseException:
        paths.secret.unlink()
        raise
    return paths


def _write_new(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)  # whatever the umask said
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def _contents(path: Path) -> tuple[bytes, int]:
    """What a plain file holds, and its mode; a pipe or a device could keep us waiting."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no plain file")
        return file.read(_MAX_NBYTES), status.st_mode


def _parsed(path: Path, data: bytes) -> KeyPair:
    found = dict(_LINE.findall(data))
    if b"public" not in found or not all(map(_is_key, found.values())):
        raise ValueError(f"{path} holds no key; expected a ZeroMQ certificate, as `tilecast keys` makes it")
    return KeyPair(found[b"public"], found.get(b"secret"))


def _is_key(text: bytes) -> bool:
    try:
        return len(text) == 40 and len(z85.decode(text)) == 32
    except (KeyError, ValueError, struct.error):
        return False
