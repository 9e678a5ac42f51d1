"""Compiles the kernels before the first frame, and says so: the first use on a machine takes a while.

Compiled kernels are kept beside the installed sources (or where NUMBA_CACHE_DIR says), so that later starts only load
them. Without this the first frame of the first scan would wait, and nobody would know for what. As a program this
module does it ahead of the daemon, for the unit tilecast-kernels.

What is compiled for the first time is compiled by two processes, the codec by one and the rest by the other: numba's
compiler holds the interpreter's lock.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import structlog

log = structlog.get_logger()

ON_FIRST_USE: Final = "up to a minute"
"""How long it takes where nothing is compiled yet."""

_SLOW_S: Final = 0.5
_OTHER_S: Final = 15.0
_CODEC: Final = "--codec"


def warm_up(dtypes: Iterable[str] = ("|u1", "<u2", "<f4"), modes: Iterable[str] = ("feather",)) -> float:
    """Compile or load everything that frames of these types need; seconds it took.

    In a terminal a progress bar is shown as soon as it takes noticeable time; elsewhere it is logged.
    """
    began = time.monotonic()
    show: _Bar | None = None
    codec, blending = _codec(), _blending(dtypes, modes)
    is_new = not _is_compiled()
    with _compiled_elsewhere(is_new and bool(blending)) as wait:
        kernels = [*blending, wait, *codec]
        try:
            for number, compile_it in enumerate(kernels):
                if show is None and time.monotonic() - began > _SLOW_S:
                    show = _Bar(len(kernels), is_new)
                if show is not None:
                    show.at(number)
                compile_it()
        finally:
            if show is not None:
                show.close()
    seconds = time.monotonic() - began
    if show is not None:
        log.info("kernels loaded", seconds=round(seconds, 1))
    return seconds


def cache_folders() -> list[Path]:
    """Where compiled kernels are kept.

    Raises
    ------
    RuntimeError
        If numba has found no folder for them.
    """
    return sorted({folder for module in _modules() for folder in _folders(module)})


def _modules() -> list[ModuleType]:
    from tilecast import kernels
    from tilecast_protocol import _pzf_kernels

    return [kernels, _pzf_kernels]


def _folders(module: ModuleType) -> set[Path]:
    paths = (getattr(getattr(found, "stats", None), "cache_path", None) for found in vars(module).values())
    return {Path(path) for path in paths if path}


def _is_compiled() -> bool:
    """Whether kernels of both kinds were compiled since their sources were last changed."""

    def newest(module: ModuleType) -> float:
        indices = (
            index for folder in _folders(module) for index in folder.glob(f"{module.__name__.rpartition('.')[2]}.*.nbi")
        )
        return max((index.stat().st_mtime for index in indices), default=0.0)

    return all(newest(module) >= Path(str(module.__file__)).stat().st_mtime for module in _modules())


@contextmanager
def _compiled_elsewhere(is_wanted: bool) -> Iterator[Callable[[], None]]:
    """Another process that compiles the codec, where a processor is free for it; the value waits for it.

    Whatever becomes of it: what it has not compiled is compiled here.
    """
    if not is_wanted or (os.cpu_count() or 1) < 2:
        yield lambda: None
        return
    nowhere = subprocess.DEVNULL
    command = [sys.executable, "-m", "tilecast.service.warmup", _CODEC]
    other = subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere)

    def wait() -> None:
        try:
            other.wait(_OTHER_S)
        except subprocess.TimeoutExpired:
            log.debug("the process that compiles the codec takes long; it is compiled here, too")

    try:
        yield wait
    finally:
        other.kill()
        other.wait()


def _codec() -> list[Callable[[], None]]:
    from tilecast_protocol import pzf

    return [compile_it for _, compile_it in pzf.KERNELS]


def _blending(dtypes: Iterable[str], modes: Iterable[str]) -> list[Callable[[], None]]:
    from tilecast.kernels import kernels_for  # numba takes its time to import; only who compiles waits for it

    modes = tuple(modes)
    # By name: what two modes need is compiled once.
    return list({name: it for dtype in dtypes for mode in modes for name, it in kernels_for(dtype, mode)}.values())


class _Bar:
    """Progress, for whoever watches: a bar in a terminal, two lines in a log."""

    def __init__(self, total: int, is_new: bool) -> None:
        self._progress: Any = None
        what = f"Compiling kernels, once: {ON_FIRST_USE}" if is_new else "Loading kernels"
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                TextColumn(what),
                BarColumn(bar_width=16),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._progress.add_task("", total=total)
            self._progress.start()
        else:
            log.info(what)

    def at(self, number: int) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=number)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


if __name__ == "__main__":
    from tilecast.service.logging import configure

    configure()
    if sys.argv[1:] == [_CODEC]:
        for _compile_it in _codec():
            _compile_it()
    else:
        warm_up()
