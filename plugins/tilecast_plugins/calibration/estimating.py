"""Estimates flat fields of runs beside the daemon: while they go on, every so often, and when they have ended.

It is a source that sends nothing: the daemon gives it a thread, says when to stop, starts it again if it fails, and
shows what it tells (`tilecast plugins`). Each estimate is made by `tilecast calibrate flat` in a process of low
priority, because seconds of arithmetic would hold up the daemon's threads; one at a time. What is estimated of a run
lies in one file, which the next estimate of the same run replaces, whole; nothing is applied unless a person says so
(`tilecast rebuild RUN --flat FILE`), also while the run goes on.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

import psutil
import structlog

from tilecast.hookspecs import Feed
from tilecast.reading import RunList

log = structlog.get_logger()

_LONGEST_S: Final = 3600.0
_LOW_PRIORITY: Final = 15
_LOOK_S: Final = 0.5
_LIST_S: Final = 5.0

ended: queue.SimpleQueue[Path] = queue.SimpleQueue()
"""Folders of runs that have ended, of which a flat field is wanted."""


class FlatFields:
    """The source (`hookspecs.MessageSource`).

    Parameters
    ----------
    into : Path
        Folder for the flat fields.
    every_s : float
        How often one is estimated of a run that goes on; 0: only when it has ended.
    """

    name = "flat fields"

    def __init__(self, into: Path, every_s: float) -> None:
        self._into = into
        self._every_s = every_s
        self._n_estimated = 0

    def run(self, feed: Feed, stop: threading.Event) -> None:
        """Estimate until `stop` is set; what was begun is then broken off."""
        rounds = Rounds(RunList(feed.store), self._every_s)
        while not stop.is_set():
            try:
                folder = ended.get(timeout=_LOOK_S)
            except queue.Empty:
                goes_on = rounds.next(time.monotonic())
                if goes_on is not None:
                    self._estimate(goes_on, feed, stop, goes_on=True)
            else:
                self._estimate(folder, feed, stop, goes_on=False)

    def _estimate(self, folder: Path, feed: Feed, stop: threading.Event, *, goes_on: bool) -> None:
        target = self._into / f"flat-{folder.name[:8]}.npy"
        self._into.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tilecast", "calibrate", "flat", str(folder), "--out", str(target), "--force"]
        status, said = _low_priority(command, stop)
        if stop.is_set():
            return
        last = (said.strip().splitlines() or [""])[-1]
        if status == 0:
            self._n_estimated += 1
            feed.tell(n_estimated=self._n_estimated, last=str(target))
            lines = [line for line in said.splitlines() if line.startswith(("illumination", "differences"))]
            then = f"tilecast rebuild {folder.name} --flat {target}"
            state = "open" if goes_on else "ended"
            log.info("flat field estimated", run=folder.name, state=state, file=str(target), said=lines, then=then)
        elif goes_on:
            log.info("no flat field yet", run=folder.name, why=last)
        else:
            log.warning("no flat field could be estimated", run=folder.name, why=last)


class Rounds:
    """Which run that goes on is to be looked at next: each every so often, if something has come since.

    Parameters
    ----------
    runs : RunList
    every_s : float
        0: none is.
    """

    def __init__(self, runs: RunList, every_s: float) -> None:
        self._runs = runs
        self._every_s = every_s
        self._listed_s = -float("inf")
        self._seen: dict[str, tuple[float, int]] = {}  # by run: when it was looked at, or first seen, and its rev then

    def next(self, now_s: float) -> Path | None:
        """The folder of a run, or None if it is too early for all."""
        if not self._every_s or now_s - self._listed_s < min(_LIST_S, self._every_s):
            return None
        self._listed_s = now_s
        going_on = [one for one in self._runs.runs() if one.info is not None and one.info.state == "open"]
        self._seen = {one.run: self._seen.get(one.run, (now_s, 0)) for one in going_on}
        for one in going_on:
            assert one.info is not None
            when_s, rev = self._seen[one.run]
            if now_s - when_s >= self._every_s and one.info.rev != rev:
                self._seen[one.run] = now_s, one.info.rev
                return one.folder
        return None


def _low_priority(command: list[str], stop: threading.Event) -> tuple[int, str]:
    """Status of a command, and what it says; it is ended if it takes too long, or `stop` is set."""
    deadline_s = time.monotonic() + _LONGEST_S
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        with contextlib.suppress(psutil.Error):
            psutil.Process(process.pid).nice(_LOW_PRIORITY)
        while True:
            try:
                said, _ = process.communicate(timeout=_LOOK_S)
            except subprocess.TimeoutExpired:
                if stop.is_set() or time.monotonic() > deadline_s:
                    process.kill()
            else:
                return process.returncode, said
