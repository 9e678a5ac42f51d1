"""Tells the service manager how the daemon is doing: systemd's notification protocol.

A service of `Type=notify` says on a datagram socket, whose name is in `NOTIFY_SOCKET`, that it is ready, that it
reloads, that it stops, that it is alive, and one line for people. Where that variable is not set, nothing is said.

The protocol is a text in one datagram, and has been the same since 2010; a library for it would be longer than this.
Who decides what is said is `service/app.py`; what "alive" means, `service/watch.py`.

>>> Manager({}).tell("READY=1")
False
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

import psutil

_SEND_S = 1.0
_PULSE_S = 2.0
_EXTENSION_S = 20.0
_WORKING_CPU_S = 0.02  # between two looks; an idle process with its timers takes less


class Manager:
    """The service manager that has started this process, if one has.

    Parameters
    ----------
    environ : mapping
        Where it said how it is to be told.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        # An @ stands for the zero byte with which abstract names begin; anything else but a path is not for us.
        self._address = "\0" + name[1:] if name.startswith("@") else name if name.startswith("/") else ""
        self._watchdog_s = _watchdog_s(environ)

    @property
    def listens(self) -> bool:
        """Whether there is one that wants to be told."""
        return bool(self._address)

    @property
    def watchdog_s(self) -> float | None:
        """It kills this process if it does not hear `WATCHDOG=1` for so long; None: it does not."""
        return self._watchdog_s

    def tell(self, *assignments: str) -> bool:
        """Send assignments such as `READY=1`; False if nobody listens, or it could not be sent."""
        if not self._address:
            return False
        message = "\n".join(text.replace("\n", " ") for text in assignments).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to_manager:
                to_manager.settimeout(_SEND_S)
                to_manager.sendto(message, self._address)
        except OSError:
            return False  # a manager that is being replaced; the next second it is told again
        return True

    def reloading(self) -> None:
        """Say that the configuration is being read again; `READY=1` ends it."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


class Patience:
    """Asks the manager for more time while this process works at something that may take long; a context manager.

    It works if it uses its processor or the disk. One that hangs gets no more time, and is ended as if nobody had
    asked.

    Parameters
    ----------
    manager : Manager
    status : callable
        What it works at, for people.
    pulse_s : float
        How often it is looked.
    """

    def __init__(self, manager: Manager, status: Callable[[], str], *, pulse_s: float = _PULSE_S) -> None:
        self._manager = manager
        self._status = status
        self._pulse_s = pulse_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tilecast-patience", daemon=True)

    def __enter__(self) -> Patience:
        if self._manager.listens:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Ask no more; may be called from any thread, and again."""
        self._over.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        process = psutil.Process()
        before = _work(process)
        while not self._over.wait(self._pulse_s):
            cpu_s, nbytes = now = _work(process)
            if cpu_s - before[0] >= _WORKING_CPU_S or nbytes != before[1]:
                self._manager.tell(f"EXTEND_TIMEOUT_USEC={round(_EXTENSION_S * 1e6)}", f"STATUS={self._status()}")
            before = now


def _work(process: psutil.Process) -> tuple[float, int]:
    """Seconds of processor time that this process has used, and bytes that it has moved to and from the disk."""
    nbytes = 0
    with contextlib.suppress(psutil.Error, OSError, AttributeError):  # not on every system, nor for everybody
        counters = process.io_counters()
        nbytes = counters.read_bytes + counters.write_bytes
    times = process.cpu_times()
    return times.user + times.system, nbytes


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Seconds, if the manager watches this very process."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6
