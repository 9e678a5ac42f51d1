"""A daemon in a process of its own, started and stopped by a program: for the demonstration, for tests, for scripts.

It chooses free ports, waits until the daemon says that it is ready, and knows its endpoints. It speaks to the daemon as
anybody does: command line, log, signals.

>>> with DaemonProcess(Path("runs")) as daemon:  # doctest: +SKIP
...     Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam")
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from tilecast_protocol.errors import DisconnectedError

_SOCKETS = ("ingest.ack", "ingest.pull", "notify", "query")


class DaemonProcess:
    """`tilecast run` as a child process. It ends with its parent, also if that is killed: it holds a pipe to it.

    Parameters
    ----------
    store_path : Path
        The folder for the runs.
    settings : mapping of str to str, optional
        Further options, as for `--set`; endpoints are free ports on this machine unless they are given here, and there
        is no port for monitoring.
    log_file : Path, optional
        Where its log goes, line by line as JSON; it is added to what is there.
    environ : mapping, optional
        Environment variables to add.

    Attributes
    ----------
    endpoints : dict of str to str
        By the name of the socket, once it is ready; `metrics` is the address of the port for monitoring, if configured.
    log : deque of dict
        The last lines of its log, since it was started last.
    """

    def __init__(
        self,
        store_path: Path,
        *,
        settings: Mapping[str, str] | None = None,
        log_file: Path | None = None,
        environ: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        options = dict.fromkeys(_SOCKETS, "tcp://127.0.0.1:*") | {"metrics.listen": ""}
        # What it says of itself is read here: "ready" is an info.
        options |= {"store.path": str(store_path), "log.format": "json", "log.level": "info"}
        options |= settings or {}
        self._command = [sys.executable, "-m", "tilecast", "run", "--until-eof", *arguments]
        for name, value in options.items():
            self._command += ["--set", f"{name}={value}"]
        self._environ = {**os.environ, **(environ or {})}
        self._log_file = log_file
        self._ready = threading.Event()
        self._condition = threading.Condition()
        self._closed = False
        self.endpoints: dict[str, str] = {}
        self.log: deque[dict[str, Any]] = deque(maxlen=10_000)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self, timeout_s: float = 120.0) -> Self:
        """Start it, and wait until it is ready.

        Raises
        ------
        DisconnectedError
            If it ends before that, or takes longer.
        """
        if self.running:
            raise RuntimeError(f"the daemon runs already, as process {self.pid}; stop it first")
        self._ready.clear()
        self._closed = False
        self.endpoints = {}
        self.log.clear()
        self._process = self._spawn()
        self._reader = threading.Thread(target=self._read_log, args=(self._process.stderr,), daemon=True)
        self._reader.start()
        try:
            ready = self._ready.wait(timeout_s)
        except BaseException:
            self.kill()
            raise
        if not ready or not self.endpoints:
            self.kill()
            said = "; ".join(str(line.get("event")) for line in list(self.log)[-3:])
            raise DisconnectedError(f"the daemon did not become ready; it said: {said or 'nothing'}")
        return self

    @property
    def pid(self) -> int:
        """Its process number."""
        assert self._process is not None, "start it first"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def stop(self, timeout_s: float = 60.0) -> int:
        """Ask it to end in good order; returns its exit code.

        Raises
        ------
        DisconnectedError
            If it does not end in time; it is killed then.
        """
        return self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> int:
        """End it at once, as a power failure of the process would."""
        return self._end(signal.SIGKILL, 10.0)

    def wait_logged(self, event: str, timeout_s: float = 30.0, **fields: Any) -> dict[str, Any]:
        """Wait for a line of the log with this event and these fields; a compiled pattern is looked for in the field.

        Raises
        ------
        TimeoutError
            If none comes.
        """

        def find() -> dict[str, Any] | None:
            for line in self.log:
                if line.get("event") == event and all(_fits(line.get(key), value) for key, value in fields.items()):
                    return line
            return None

        with self._condition:
            if not self._condition.wait_for(lambda: find() is not None or self._closed, timeout_s) or find() is None:
                raise TimeoutError(f"the daemon did not log {event!r} {fields}; last: {list(self.log)[-5:]}")
            found = find()
            assert found is not None
            return found

    def _spawn(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            stderr=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
            env=self._environ,
            process_group=0,  # Ctrl-C in the terminal is for whoever started it, who then stops it when it is time
        )

    def _end(self, number: signal.Signals, timeout_s: float) -> int:
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(number)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.wait()
            raise DisconnectedError(f"the daemon did not end within {timeout_s:g} s, and was killed") from error
        finally:
            assert process.stdin is not None
            process.stdin.close()
            if self._reader is not None:
                self._reader.join()  # all that it said is in the log now
        return code

    def _read_log(self, stream: IO[str]) -> None:
        with stream:
            for text in stream:
                if self._log_file is not None:
                    # A full disk must not end the reading: the daemon would wait for it.
                    with contextlib.suppress(OSError), self._log_file.open("a") as file:
                        file.write(text)
                try:
                    line = json.loads(text)
                except ValueError:
                    line = {"event": text.strip()}
                with self._condition:
                    self.log.append(line)
                    self._condition.notify_all()
                if line.get("event") == "ready":
                    self.endpoints = {name: line[name] for name in (*_SOCKETS, "metrics") if name in line}
                    self._ready.set()
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._ready.set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.stop()
        else:
            self.kill()


def _fits(said: object, wanted: object) -> bool:
    return wanted.search(str(said)) is not None if isinstance(wanted, re.Pattern) else said == wanted
