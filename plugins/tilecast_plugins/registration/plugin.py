"""The hook of the registration plugin: runs that have ended are registered, if that is wanted.

It is done by `tilecast register`, in a process of its own: seconds of arithmetic would hold up the daemon's threads.
That process asks the daemon to place the frames, which has the run open for a while after its end.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
from typing import Final

import psutil
import structlog

from tilecast.hookspecs import RunEnded, hookimpl
from tilecast_plugins.registration.options import RegistrationOptions

log = structlog.get_logger()

_LONGEST_S: Final = 24 * 3600.0
_LOW_PRIORITY: Final = 15

_waiting: queue.SimpleQueue[tuple[RunEnded, RegistrationOptions]] = queue.SimpleQueue()
_lock = threading.Lock()
_worker: threading.Thread | None = None


@hookimpl
def tilecast_run_ended(run: RunEnded, options: RegistrationOptions) -> None:
    """Have a run registered, if that is wanted; nobody waits for it."""
    global _worker
    # One that has only fallen silent may go on, and ends later.
    if not options.at_end or run.state != "ended" or (options.streams and run.stream not in options.streams):
        return
    _waiting.put((run, options))
    with _lock:
        if _worker is None:
            _worker = threading.Thread(target=_register_all, name="plugin registration at end", daemon=True)
            _worker.start()


def command_for(run: RunEnded, options: RegistrationOptions) -> list[str]:
    """What is run for it."""
    chosen = ["--method", options.method, "--max-shift-px", str(options.max_shift_pixels)]
    chosen += ["--min-quality", str(options.min_quality), *(["--normalize"] if options.normalize else [])]
    where = ["--set", f"store.path={run.folder.parent}", "--set", f"query={run.query}"]
    return [sys.executable, "-m", "tilecast", "register", str(run.folder), *chosen, *where]


def _register_all() -> None:
    """One after another."""
    while True:
        run, options = _waiting.get()
        try:
            with subprocess.Popen(
                command_for(run, options),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process:
                with contextlib.suppress(psutil.Error):
                    psutil.Process(process.pid).nice(_LOW_PRIORITY)
                try:
                    said, _ = process.communicate(timeout=_LONGEST_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    said, _ = process.communicate()
        except (OSError, ValueError) as error:
            log.error("a run could not be registered", run=run.run, why=str(error))
            continue
        lines = said.strip().splitlines() or [""]
        if process.returncode == 0:
            log.info("run registered", run=run.run, said="; ".join(lines[:-1]), then=lines[-1])
        else:
            log.warning("a run could not be registered; its frames lie by the stage", run=run.run, why=lines[-1])
