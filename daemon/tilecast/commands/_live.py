"""The live view of a run in a terminal: numbers with their units, a progress bar, and the mosaic itself, small.

In a terminal the view is redrawn in place, fits any size from 80 × 24 on, and stays when it is done. Where nobody
watches (a pipe, a log, a dumb terminal) it is one line each second.

It shows what it is given (`_watch.Status`); it asks nobody.

    with LiveView("tilecast demo") as view:
        while scanning:
            view.show(watch.poll(0.25))
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from tilecast.commands._watch import Picture, QueueFill, Status
from tilecast.commands.common import console, format_bytes

_LINE_EVERY_S: Final = 1.0
_MIN_PICTURE_LINES: Final = 4
_MAX_PICTURE_COLS: Final = 160
_GREYS: Final = 64
_UNSCANNED: Final = (24, 28, 40)
_QUEUE_WORDS: Final = {"blend": "to blend", "store": "to write"}


class LiveView:
    """Shows the status of a run until it is left.

    Parameters
    ----------
    title : str
        The first line.
    hint : str
        The last line, while it is going on; may be changed.
    lines_after : int
        How many lines will follow when it is done, so that all of it is seen together.
    out : Console, optional
        Where to; standard output if not given.
    """

    def __init__(self, title: str, hint: str = "", *, lines_after: int = 0, out: Console | None = None) -> None:
        self._title = title
        self.hint = hint
        self._lines_after = lines_after
        self._console = out or console()
        self._live: Live | None = None
        self._line_due_s = 0.0
        self._notice = ""
        self._status = Status()

    def show(self, status: Status) -> None:
        """Show this from now on."""
        self._status = status
        if self._live is not None:
            self._live.update(Panel(self._title, self.hint, status), refresh=True)
            return
        if status.notice not in ("", self._notice):
            self._notice = status.notice
            for notice in (*status.notices_before, status.notice):
                self._console.print(notice, soft_wrap=True)
        if time.monotonic() >= self._line_due_s:
            self._line_due_s = time.monotonic() + _LINE_EVERY_S
            self._console.print(as_line(status), soft_wrap=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            panel = Panel(self._title, self.hint, self._status)
            self._live = Live(panel, console=self._console, auto_refresh=False)
            self._live.start(refresh=True)
        else:
            self._console.print(self._title, soft_wrap=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(Panel(self._title, "", self._status, lines_after=self._lines_after), refresh=True)
            self._live.stop()
        elif error is None:
            self._console.print(as_line(self._status), soft_wrap=True)


class Panel:
    """One picture of a status, as wide and as high as there is room."""

    def __init__(self, title: str, hint: str, status: Status, *, lines_after: int = 0) -> None:
        self._title = title
        self._hint = hint
        self._status = status
        self._lines_after = lines_after

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        head: list[RenderableType] = [
            Text(self._title, style="bold", no_wrap=True, overflow="ellipsis"),
            Text(""),
            _bar(self._status, width),
            Text(""),
            _numbers(self._status),
        ]
        tail: list[RenderableType] = []
        if self._hint:
            tail = [Text(""), Text(self._hint, style="dim", no_wrap=True, overflow="ellipsis")]
        lines = len(console.render_lines(Group(*head, *tail), options))
        # The last line is the cursor's.
        room = console.size.height - 1 - lines - 1 - self._lines_after
        yield Group(*head)
        if self._status.picture is not None and room >= _MIN_PICTURE_LINES and _can_show_pictures(console):
            yield Text("")
            yield _Mosaic(self._status.picture, room)
        yield Group(*tail)


def as_line(status: Status) -> str:
    """The same in one line, for logs.

    >>> as_line(Status(n_expected=9))
    '0 of 9 frames in the mosaic, waiting for the first'
    """
    text = f"{status.n_placed} of {status.n_expected} frames in the mosaic"
    if not status.n_placed:
        return f"{text}, waiting for the first"
    queues = [f"{status.n_unacknowledged} to acknowledge", *map(_queue, status.queues)]
    parts = [
        text,
        _rate(status),
        f"latency {_latency(status)}",
        f"{status.n_tiles:,} tiles written",
        _size(status),
        ", ".join(queues),
        _disk(status),
    ]
    if status.losses:
        parts.insert(1, f"LOST: {status.losses}")
    return "; ".join(parts)


def _bar(status: Status, width: int) -> RenderableType:
    done = f"{status.n_placed:,} of {status.n_expected:,} frames"
    left = ""
    if status.n_placed >= status.n_expected > 0:
        left = "complete"
    elif status.frames_per_s > 0 and not status.ended:
        left = f"{_clock((status.n_expected - status.n_placed) / status.frames_per_s)} left"
    words = Text(f"  {done:>{_digits(status)}}   {left:<10}", no_wrap=True)
    row = Table.grid()
    row.add_column()
    row.add_column()
    room = max(10, width - len(words) - 1)
    row.add_row(ProgressBar(total=max(1, status.n_expected), completed=status.n_placed, width=room), words)
    return row


def _digits(status: Status) -> int:
    """Width of the count when it is complete, so that nothing moves while it grows."""
    return len(f"{status.n_expected:,} of {status.n_expected:,} frames")


def _numbers(status: Status) -> RenderableType:
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style="cyan", no_wrap=True, min_width=7)
    table.add_column(no_wrap=True, overflow="ellipsis")
    queues = [f"{status.n_unacknowledged} to acknowledge", *map(_queue, status.queues)]
    rows = {
        "Rate": _rate(status),
        "Latency": f"{_latency(status)}  (frame arrived → in the mosaic)" if status.p50_ms is not None else "",
        "Mosaic": _size(status),
        "Tiles": f"{status.n_tiles:,} written in {status.n_commits:,} commits" if status.n_commits else "",
        "Queues": " · ".join(queues),
        "Disk": _disk(status),
        "Lost": Text(status.losses, style="bold yellow") if status.losses else "nothing",
        "Daemon": f"{status.state}" + (f" · {status.notice}" if status.notice else ""),
    }
    for name, value in rows.items():
        table.add_row(name, value if isinstance(value, Text) else Text(value or "–"))
    return table


def _rate(status: Status) -> str:
    if not status.n_placed:
        return ""
    return f"{status.frames_per_s:.1f} frames/s, {status.bytes_per_s / 1e6:.1f} MB/s"


def _latency(status: Status) -> str:
    if status.p50_ms is None or status.p99_ms is None:
        return "–"
    return f"p50 {status.p50_ms:.0f} ms, p99 {status.p99_ms:.0f} ms"


def _size(status: Status) -> str:
    if not status.levels:
        return ""
    (width, height), (px_x, px_y) = status.size_px, status.px_um
    return (
        f"{width:,} × {height:,} px, {width * px_x / 1e3:.2f} × {height * px_y / 1e3:.2f} mm, "
        f"{status.levels} level{'' if status.levels == 1 else 's'}"
    )


def _queue(queue: QueueFill) -> str:
    full = f" ({queue.nbytes / queue.max_bytes:.0%} full)" if queue.nbytes and queue.max_bytes else ""
    return f"{queue.depth} {_QUEUE_WORDS.get(queue.name, queue.name)}{full}"


def _disk(status: Status) -> str:
    if not status.run_bytes:
        return ""
    return (
        f"{format_bytes(status.run_bytes)} this run, {format_bytes(status.wal_bytes)} write-ahead log, "
        f"{format_bytes(status.free_bytes)} free"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# The mosaic in characters: two pixels in each, one above the other ----------------------------------------------------


def _can_show_pictures(console: Console) -> bool:
    return console.color_system is not None and console.encoding.lower().startswith("utf")


class _Mosaic:
    """A picture in half blocks, at most so many lines high."""

    def __init__(self, picture: Picture, max_lines: int) -> None:
        self._picture = picture
        self._max_lines = max_lines

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        extent = self._picture.extent
        max_cols = min(options.max_width - 1, _MAX_PICTURE_COLS)
        px = max(extent.width / max_cols, extent.height / (2 * self._max_lines))  # level-0 pixels in one of ours
        rows, cols = max(1, int(extent.height / px)), max(1, int(extent.width / px))
        grey = resample(self._picture, rows + rows % 2, cols)
        for upper, lower in zip(grey[::2], grey[1::2], strict=True):
            yield from _half_blocks(upper.tolist(), lower.tolist())
            yield Segment.line()


def resample(picture: Picture, rows: int, cols: int) -> NDArray[np.int64]:
    """Grey values 0 to 63 on a grid over the picture's extent, -1 where nothing is covered.

    Parameters
    ----------
    picture : Picture
        With at least as many pixels per area as the grid.
    rows, cols : int
        Of the grid.

    Returns
    -------
    ndarray of int, (rows, cols)
        Means of the covered pixels, stretched: black is the darkest hundredth of the pixels, white the brightest three
        hundredth of the means.
    """
    extent, rect, pixels = picture.extent, picture.rect, picture.pixels
    at_row = rect.row0 + (np.arange(pixels.shape[0]) + 0.5) * rect.height / pixels.shape[0] - extent.row0
    at_col = rect.col0 + (np.arange(pixels.shape[1]) + 0.5) * rect.width / pixels.shape[1] - extent.col0
    row = np.clip(at_row * rows / extent.height, 0, rows - 1).astype(np.intp)
    col = np.clip(at_col * cols / extent.width, 0, cols - 1).astype(np.intp)
    covered = picture.coverage
    cell = (row[:, None] * cols + col[None, :])[covered]
    n = np.bincount(cell, minlength=rows * cols)
    total = np.bincount(cell, weights=pixels[covered], minlength=rows * cols)
    mean = total / np.maximum(n, 1)
    seen = n > 0
    grey = np.full(rows * cols, -1, np.int64)
    if seen.any():
        low, high = np.percentile(pixels[covered], 1), np.percentile(mean[seen], 99.7)
        stretched = (mean[seen] - low) / max(high - low, 1e-9)
        grey[seen] = np.clip(stretched * _GREYS, 0, _GREYS - 1).astype(np.int64)
    return grey.reshape(rows, cols)


def _half_blocks(upper: list[int], lower: list[int]) -> Iterator[Segment]:
    """One line of characters; neighbours that look the same are one segment."""
    begin = 0
    for n in range(1, len(upper) + 1):
        if n == len(upper) or (upper[n], lower[n]) != (upper[begin], lower[begin]):
            yield Segment("▀" * (n - begin), _style(upper[begin], lower[begin]))
            begin = n


@lru_cache(maxsize=(_GREYS + 1) ** 2)
def _style(upper: int, lower: int) -> Style:
    return Style(color=_color(upper), bgcolor=_color(lower))


def _color(grey: int) -> Color:
    if grey < 0:
        return Color.from_rgb(*_UNSCANNED)
    value: Any = grey * 255 // (_GREYS - 1)
    return Color.from_rgb(value, value, value)
