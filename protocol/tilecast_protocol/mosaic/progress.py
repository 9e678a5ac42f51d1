"""Progress of long reads: a bar for people, in a terminal or a notebook, or a function of the caller's."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

Progress: TypeAlias = "bool | Callable[[int, int], None] | None"
"""True or False; a function, which is told how many tiles of how many are done; None: if it takes long and is seen."""

LONG_S: Final = 1.0
"""How long a read takes before anybody needs a bar."""


@contextlib.contextmanager
def reporting(progress: Progress, total: int, what: str = "reading tiles") -> Iterator[Callable[[], None]]:
    """A function to be called after each of `total` steps."""
    done = 0
    if callable(progress):
        tell = progress

        def told() -> None:
            nonlocal done
            done += 1
            tell(done, total)

        yield told
        return
    if progress is False or (progress is None and not _is_seen()):
        yield lambda: None
        return

    began_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        advance: Callable[[int], None] | None = None

        def step() -> None:
            nonlocal done, advance
            done += 1
            if advance is not None:
                advance(1)
            elif progress or time.monotonic() - began_s > LONG_S:
                advance = stack.enter_context(_bar(total, what))
                advance(done)

        yield step


def _is_seen() -> bool:
    return sys.stderr.isatty() or "ipykernel" in sys.modules


@contextlib.contextmanager
def _bar(total: int, what: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import Progress as Bars

    console = None if "ipykernel" in sys.modules else Console(stderr=True)
    # In a log file the last state stays; in a terminal nothing does.
    with Bars(console=console, transient=console is None or console.is_terminal) as bars:
        task = bars.add_task(what, total=total)
        yield lambda n: bars.advance(task, n)
