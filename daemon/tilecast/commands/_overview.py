"""A daemon on one screen: what `tilecast top` shows of the answers to `hello`, `stats` and `health`.

Pure: it is given what was answered, and makes lines and tables of it; who asked, and how often, is not known here. It
fits any terminal from 80 × 24 on: what is most urgent comes first, and the list of runs is cut where the screen ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tilecast.commands.common import format_bytes
from tilecast.histogram import quantile_s
from tilecast.service.metrics import HARMLESS, drops

_STAGES: Final = {"journal": "recorded", "sync": "on disk", "blend": "blended", "commit": "committed"}
_STATE_STYLE: Final = {"ready": "green", "catching-up": "yellow", "starting": "yellow", "stopping": "yellow"}
_ROOM_STYLE: Final = {"ok": "", "warn": "yellow", "stop": "bold red", "full": "bold red"}
_MAX_PROBLEMS: Final = 4
_WIDE: Final = 100
_RUN_COLUMNS: Final = ("run", "name", "state", "frames", "missing", "rate", "left")
_NAME, _STATE, _FRAMES = 1, 2, 3
_LEAST_NAME: Final = 10
_GAP: Final = 2
_QUEUE_FILLS: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What is known of a daemon.

    Attributes
    ----------
    endpoint : str
        Whom we ask.
    hello, stats, health : mapping
        What was answered last; empty before the first answer.
    cores : float or None
        Processors in use, over the last seconds.
    frames_per_s : mapping
        What each run received over the last seconds, by its uuid.
    silent : str
        Why there is no answer, if there is none now; what is shown is then old.
    silent_s : float
        For how long.
    """

    endpoint: str
    hello: Mapping[str, Any] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)
    health: Mapping[str, Any] = field(default_factory=dict)
    cores: float | None = None
    frames_per_s: Mapping[str, float] = field(default_factory=dict)
    silent: str = ""
    silent_s: float = 0.0


class Screen:
    """An overview as wide and as high as there is room, or whole.

    Parameters
    ----------
    overview : Overview
    hint : str
        The last line.
    whole : bool
        Whether it may be longer than the screen.
    """

    def __init__(self, overview: Overview, *, hint: str = "", whole: bool = False) -> None:
        self._overview = overview
        self._hint = hint
        self._whole = whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        overview = self._overview
        head: list[RenderableType] = [_title(overview), *_alarms(overview)]
        if overview.stats:
            head += [Text(""), _numbers(overview), Text(""), _queues(overview.stats["queues"])]
        tail: list[RenderableType] = [Text(""), _line(self._hint, "dim")] if self._hint else []
        yield Group(*head)
        if overview.stats:
            used = len(console.render_lines(Group(*head, *tail), options))
            # An empty line and the heads of the columns are not runs; the last line is the cursor's.
            room = len(overview.stats["runs"]) if self._whole else console.size.height - 1 - used - 2
            yield Text("")
            yield _runs(overview, max(1, room), options.max_width)
        yield Group(*tail)


def _title(overview: Overview) -> Text:
    hello, stats = overview.hello, overview.stats
    title = Text(no_wrap=True, overflow="ellipsis")
    title.append("tilecast top", "bold")
    if hello:
        title.append(f"  {hello['instrument']}", "bold cyan")
        title.append(f"  {overview.endpoint}  version {hello['version']}", "dim")
    else:
        title.append(f"  {overview.endpoint}", "dim")
    if stats:
        title.append(f"  up {span(stats['uptime_s'])}", "dim")
    return title


def _alarms(overview: Overview) -> Iterator[Text]:
    """What a person must read first."""
    if overview.silent:
        since = f" for {overview.silent_s:.0f} s; what is shown is as old" if overview.stats else ""
        yield _line(f"The daemon does not answer{since}: {overview.silent}", "bold red", wrap=True)
    problems = overview.health.get("problems", [])
    for problem in problems[:_MAX_PROBLEMS]:
        yield _line(f"! {problem}", "bold yellow", wrap=True)
    if len(problems) > _MAX_PROBLEMS:
        yield _line(f"! and {len(problems) - _MAX_PROBLEMS} more", "bold yellow")


def _numbers(overview: Overview) -> RenderableType:
    stats, health = overview.stats, overview.health
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style="cyan", no_wrap=True, min_width=7)
    table.add_column(no_wrap=True, overflow="ellipsis")
    state = Text(stats["state"], style=_STATE_STYLE.get(stats["state"], "bold red"))
    state.append(": takes a start" if not health["no_start"] else ": takes no start", "")
    rates, notify = stats["rates"], stats["notify"]
    memory = f"{format_bytes(stats['rss_bytes'])}"
    if overview.cores is not None:
        memory += f", {overview.cores:.1f} processors busy"
    rows: dict[str, str | Text] = {
        "State": state,
        "Rate": f"{rates.get('images_per_s', 0):.1f} frames/s, {rates.get('image_bytes_per_s', 0) / 1e6:.1f} MB/s in; "
        f"{rates.get('blended_per_s', 0):.1f} blended, {rates.get('commits_per_s', 0):.1f} commits/s",
        "Latency": _latency(stats),
        "": _stages(stats["latency_s_by_stage"]),
        "Lost": _lost(stats["ingest"]),
        "Disk": _disk(stats["disk"], health),
        "Memory": memory,
        "Viewers": f"{notify['n_sent']:,} notifications, {format_bytes(notify['n_bytes'])}",
        "Plugins": _plugins(stats["plugins"]),
    }
    for name, value in rows.items():
        table.add_row(name, value if isinstance(value, Text) else Text(value))
    return table


def _latency(stats: Mapping[str, Any]) -> str:
    last = stats["latency_ms"]
    if not last["n"]:
        return "–"
    return (
        f"p50 {last['p50']:.0f} ms, p99 {last['p99']:.0f} ms, max {last['max']:.0f} ms to the commit "
        f"(last {last['n']:,})"
    )


def _stages(by_stage: Mapping[str, Mapping[str, Any]]) -> Text:
    parts = []
    for stage, word in _STAGES.items():
        histogram = by_stage.get(stage)
        p99_s = None if histogram is None else quantile_s(histogram, 0.99)
        if p99_s is not None:
            parts.append(f"{word} {1e3 * p99_s:.3g}" if p99_s < 0.9995 else f"{word} {1e3 * p99_s:,.0f}")
    # From the coarse histograms for Prometheus, of all frames; the line above is exact, of the last ones.
    return Text("p99 ever, ≈ ms: " + ", ".join(parts) if parts else "", style="dim")


def _lost(ingest: Mapping[str, Any]) -> Text:
    found = [f"{count:,.0f} {cause}" for cause, count in drops(ingest).items() if count and cause not in HARMLESS]
    return Text(", ".join(found), style="yellow") if found else Text("nothing")


def _disk(disk: Mapping[str, Any], health: Mapping[str, Any]) -> Text:
    text = Text(f"{format_bytes(disk['free_bytes'])} of {format_bytes(disk['total_bytes'])} free")
    text.stylize(_ROOM_STYLE.get(disk["room"], ""))
    if health["forecast"]:
        soon = health["full_in_s"] < 3600
        text.append(f", {health['forecast']}", "bold red" if soon else "")
    if disk["lost_bytes_per_s"] >= 1e5:
        text.append(f" ({disk['lost_bytes_per_s'] / 1e6:.0f} MB/s)", "")
    return text


def _plugins(plugins: Mapping[str, Any]) -> Text:
    text = Text(", ".join(plugins["names"]) or "none")
    for name, why in plugins["failed"].items():
        text.append(f"; {name} was left out: {why}", "bold yellow")
    for name, why in plugins["disabled"].items():
        text.append(f"; {name} is disabled: {why}", "bold yellow")
    for name, count in plugins["errors"].items():
        text.append(f"; {name} failed {count} times", "yellow")
    for name in plugins["hanging"]:
        text.append(f"; {name} hangs", "yellow")
    return text


def _queues(queues: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style="cyan", no_wrap=True, min_width=7)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for number, (name, queue) in enumerate(queues.items()):
        share = queue["high_water_bytes"] / queue["max_bytes"] if queue["max_bytes"] else 0.0
        full = queue["nbytes"] / queue["max_bytes"] if queue["max_bytes"] else 0.0
        colour = "cyan" if full < _QUEUE_FILLS else "yellow"
        table.add_row(
            "Queues" if not number else "",
            f"to {name}",
            _bar(queue["nbytes"], max(1, queue["max_bytes"]), 16, colour),
            f"{format_bytes(queue['nbytes'])} of {format_bytes(queue['max_bytes'])}, {queue['depth']} items, "
            f"at most {share:.0%}",
        )
    return table


def _runs(overview: Overview, room: int, width: int) -> RenderableType:
    progress = overview.stats["runs"]
    if not progress:
        return _line("No run is loaded.", "dim")
    with_bars = width >= _WIDE
    bar_width = width // 8
    bars: list[RenderableType] = []
    rows: list[list[Text]] = []
    # Those that go on first; of those the ones that began last.
    order = sorted(progress.items(), key=lambda item: (item[1]["state"] == "open", item[0]), reverse=True)
    shown = order if len(order) <= room else order[: max(1, room - 1)]
    for run, values in shown:
        per_s = overview.frames_per_s.get(run, 0.0)
        planned, placed = values["planned"], values["placed"]
        going = values["state"] == "open"
        left = span((planned - placed) / per_s) if planned and going and per_s > 0 and planned > placed else ""
        bars.append(_bar(min(placed, planned), planned, bar_width, "green") if planned else "")
        rows.append(
            [
                Text(run[:8]),
                Text(values["name"]),
                Text(values["state"], style="green" if going else ""),
                Text(f"{placed:,}" + (f" of {planned:,}" if planned else "")),
                Text(f"{values['missing']:,}", style="bold yellow" if values["missing"] else ""),
                Text(f"{per_s:.1f}/s" if going else ""),
                Text(left),
            ]
        )
    others = sum(_widths(rows)) - _widths(rows)[_NAME] + _GAP * len(_RUN_COLUMNS)
    others += bar_width + _GAP if with_bars else 0
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for column, head in enumerate(_RUN_COLUMNS):
        most = max(_LEAST_NAME, width - others) if column == _NAME else None
        justify: JustifyMethod = "right" if column > _STATE else "left"
        table.add_column(head, no_wrap=True, overflow="ellipsis", max_width=most, justify=justify)
        if column == _FRAMES and with_bars:
            table.add_column("", no_wrap=True)
    for row, bar in zip(rows, bars, strict=True):
        table.add_row(*row[: _FRAMES + 1], *([bar] if with_bars else []), *row[_FRAMES + 1 :])
    if len(shown) < len(order):
        return Group(table, _line(f"… and {len(order) - len(shown)} more", "dim"))
    return table


def _widths(rows: list[list[Text]]) -> list[int]:
    """How wide each column of texts is."""
    return [max(len(head), *(row[column].cell_len for row in rows)) for column, head in enumerate(_RUN_COLUMNS)]


def _bar(done: int, total: int, width: int, colour: str) -> ProgressBar:
    return ProgressBar(total=total, completed=done, width=width, complete_style=colour, finished_style=colour)


def _line(text: str, style: str = "", *, wrap: bool = False) -> Text:
    return Text(text, style=style, no_wrap=not wrap, overflow="fold" if wrap else "ellipsis")


def span(seconds: float) -> str:
    """A time for people, in its two largest units.

    >>> span(9), span(130), span(7900), span(200_000)
    ('9 s', '2 min 10 s', '2 h 11 min', '2 d 7 h')
    """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    for small, large, unit, larger in ((1, 60, "s", "min"), (60, 3600, "min", "h")):
        if seconds < large * (60 if larger == "min" else 24):
            return f"{seconds // large} {larger} {seconds % large // small} {unit}"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"
