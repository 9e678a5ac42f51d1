"""A real terminal for commands that draw and listen to keys."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping
from typing import Any


class Terminal:
    """A command in a terminal of its own, 80 × 24, with these variables besides the usual ones.

    Attributes
    ----------
    process : Popen
    written : str
        What was read so far, with all control sequences.
    """

    def __init__(self, command: list[str], environ: Mapping[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", **(environ or {})},
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(theirs)
        self.written = ""

    def read_until(self, pattern: str) -> None:
        """Read until something is written; fails at the end of all."""
        while not re.search(pattern, self.written):
            piece = self._read()
            assert piece, self.written
            self.written += piece

    def read_all(self) -> str:
        """The rest, until the command ends."""
        while piece := self._read():
            self.written += piece
        self.process.wait(60)
        os.close(self._ours)
        return self.written

    def type(self, text: str) -> None:
        """As if on the keyboard."""
        os.write(self._ours, text.encode())

    def attributes(self) -> list[Any]:
        """How the terminal treats keys."""
        return termios.tcgetattr(self._ours)

    def _read(self) -> str:
        try:
            return os.read(self._ours, 1 << 16).decode(errors="replace")
        except OSError:  # how a terminal says that nobody is there any more
            return ""
