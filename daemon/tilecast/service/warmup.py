"""Compiles the kernels before the first frame, and says so: the first use on a machine takes a while.

Compiled kernels are kept beside the installed sources (or where NUMBA_CACHE_DIR says), so that later starts only load
them. Without this the first frame of the first scan would wait, and nobody would know for what. As a program this
module does it ahead of the daemon, for the unit tilecast-kernels.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable

import structlog

log = structlog.get_logger()

_SLOW_S = 0.5


def warm_up(dtypes: Iterable[str] = ("|u1", "<u2", "<f4"), modes: Iterable[str] = ("feather",)) -> float:
    """Compile or load everything that frames of these types need; seconds it took.

    In a terminal a progress bar is shown as soon as it takes noticeable time; elsewhere it is logged.
    """
    began = time.monotonic()
    show: _Bar | None = None
    kernels = _kernels(dtypes, modes)
    try:
        for number, (name, compile_it) in enumerate(kernels):
            if show is None and time.monotonic() - began > _SLOW_S:
                show = _Bar(len(kernels))
            if show is not None:
                show.at(number, name)
            compile_it()
    finally:
        if show is not None:
            show.close()
    seconds = time.monotonic() - began
    if show is not None:
        log.info("kernels loaded", seconds=round(seconds, 1))
    return seconds


def _kernels(dtypes: Iterable[str], modes: Iterable[str]) -> list[tuple[str, Callable[[], None]]]:
    from tilecast.kernels import kernels_for  # numba takes its time to import; only who compiles waits for it
    from tilecast_protocol import pzf

    found: dict[str, Callable[[], None]] = dict(pzf.KERNELS)
    for dtype in dtypes:
        for mode in modes:
            found.update(kernels_for(dtype, mode))
    return list(found.items())


class _Bar:
    """Progress, for whoever watches: a bar in a terminal, two lines in a log."""

    def __init__(self, total: int) -> None:
        self._progress = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                TextColumn("Loading kernels (on first use they are compiled)"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._progress.add_task("", total=total)
            self._progress.start()
        else:
            log.info("loading kernels; on first use they are compiled, which takes up to half a minute")

    def at(self, number: int, name: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=number, description=name)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


if __name__ == "__main__":
    from tilecast.service.logging import configure

    configure()
    warm_up()
