"""The live page of `tilecast demo`: `tilecast web` as a process of its own, if it is installed, and a browser.

The daemon knows plugins by their entry points only, so the page is started as a person would start it. If it cannot be
shown, the demonstration goes on without it and says why.
"""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import webbrowser
from pathlib import Path
from types import TracebackType
from typing import IO, Self

_READY_S = 60.0
_END_S = 10.0
_USUAL_PORT = 8750


class PageProcess:
    """`tilecast web` as a child process.

    Parameters
    ----------
    store_path : Path
    notify, query : str
        The daemon's endpoints.
    log_file : Path
        Where it says what goes wrong.

    Attributes
    ----------
    address : str or None
        Where the page is, once it is there.
    problem : str
        Why it is not.
    """

    def __init__(self, store_path: Path, notify: str, query: str, log_file: Path) -> None:
        self._command = [sys.executable, "-m", "tilecast", "web", "--store", str(store_path)]
        self._command += ["--daemon", notify, query]
        self._log_file = log_file
        self._process: subprocess.Popen[str] | None = None
        self.address: str | None = None
        self.problem = ""

    def __enter__(self) -> Self:
        for port in (_USUAL_PORT, 0):  # the usual one may be taken
            if self._start(port):
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None

    def _start(self, port: int) -> bool:
        """Start it there; whether it says where it is in time."""
        with self._log_file.open("w") as log:
            process = subprocess.Popen(
                [*self._command, "--listen", f"127.0.0.1:{port}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                process_group=0,  # as with the daemon: Ctrl-C is for whoever started it
            )
        assert process.stdout is not None
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
        try:
            found = re.search(r"http://\S+", lines.get(timeout=_READY_S))
        except queue.Empty:
            found = None
        if found is not None:
            self._process, self.address = process, found[0]
            return True
        process.kill()
        process.wait()
        said = self._log_file.read_text(errors="replace").strip().splitlines()
        self.problem = said[-1] if said else f"it did not start within {_READY_S:g} s"
        return False


def _read(stream: IO[str], lines: queue.Queue[str]) -> None:
    """Hand on every line, and an empty one at the end; nobody may have to wait for a reader."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put("")


def open_browser(address: str) -> bool:
    """Show an address in a browser with windows; whether there is one. Browsers in the terminal are not asked."""
    has_screen = sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (sys.stdout.isatty() and has_screen):
        return False
    try:
        return webbrowser.open(address)
    except webbrowser.Error:
        return False
