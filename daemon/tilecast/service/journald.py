"""Sends log entries to systemd's journal with their fields, so that `journalctl RUN=0190…` finds them.

The native protocol: one datagram per entry with lines `FIELD=value`; values of several lines with their length before
them; entries that are too large for a datagram in a sealed memory file whose descriptor is sent. systemd's own Python
library builds with C headers that a plain machine does not have, and others are handlers for the standard library's
logging, which we do not log with; so it is done here.

Not known here: what is logged, and in which form elsewhere (`service/logging.py`).
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import re
import socket
import struct
import sys
from collections.abc import Mapping
from typing import Any, Final

JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"

PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""syslog's numbers of our levels."""

_NOT_IN_NAMES: Final = re.compile(r"[^A-Z0-9_]")
_NAME_LENGTH: Final = 64
_OURS: Final = frozenset({"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"})


def stream_is_journal(descriptor: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether what is written to this descriptor goes to the journal: systemd says so, by device and inode."""
    device, colon, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    if not colon:
        return False
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return (str(status.st_dev), str(status.st_ino)) == (device, inode)


def field_name(name: str) -> str:
    """A name as the journal takes it: upper case, digits and underscores, no underscore or digit first.

    >>> field_name("run"), field_name("ingest.ack"), field_name("_x"), field_name("2d")
    ('RUN', 'INGEST_ACK', 'X', 'F2D')
    """
    found = _NOT_IN_NAMES.sub("_", name.upper()).lstrip("_") or "FIELD"
    if found[0].isdigit() or found in _OURS:
        found = f"F{found}"
    return found[:_NAME_LENGTH]


def entry(message: str, level: str, fields: Mapping[str, Any]) -> bytes:
    """One entry as it is sent.

    >>> entry("run started", "info", {"run": "0190"})
    b'MESSAGE=run started\\nPRIORITY=6\\nSYSLOG_IDENTIFIER=tilecast\\nRUN=0190\\n'
    """
    lines = [
        _line("MESSAGE", message),
        _line("PRIORITY", str(PRIORITIES.get(level, 6))),
        _line("SYSLOG_IDENTIFIER", "tilecast"),
    ]
    lines += [_line(field_name(name), str(value)) for name, value in fields.items() if value is not None]
    return b"".join(lines)


def _line(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"


class Journal:
    """The connection to the journal; safe between threads, and works again when the journal was restarted.

    Parameters
    ----------
    address : str
        Its socket.
    """

    def __init__(self, address: str = JOURNAL_SOCKET) -> None:
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def send(self, message: str, level: str, fields: Mapping[str, Any]) -> None:
        """Send an entry.

        Raises
        ------
        OSError
            If the journal does not take it.
        """
        data = entry(message, level, fields)
        try:
            self._socket.sendto(data, self._address)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS) or sys.platform != "linux":
                raise
            self._send_large(data)

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _send_large(self, data: bytes) -> None:
        descriptor = os.memfd_create("tilecast-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(data)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
            self._socket.sendmsg([], [rights], 0, self._address)
