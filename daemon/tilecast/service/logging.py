"""What the daemon says about itself: structlog, set up once, with floods summed up.

People at a terminal get one coloured line per message, systemd's journal an entry with fields, a file or a pipe one
JSON object per line. The run, the frame and other facts are fields, never parts of the text: a message is a constant
sentence, so that it can be searched for and counted. The same message that comes many times (a camera that sends a
hundred bad frames a second) is shown a few times and then summed up: "bad frame … 431 more in 10 s".

This module knows nothing of what is logged. It has no thread of its own: somebody has to call `summarise_floods` now
and then (the daemon does, every second), or the end of a flood is told only with the next message.

Examples
--------
>>> configure("info", "json", stream=sys.stdout)
>>> structlog.get_logger().info("run started", run="0190…", frame=0)  # doctest: +ELLIPSIS
{"event": "run started", "run": "0190…", "frame": 0, "level": "info", "time": "…"}
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from tilecast.plugins import TRACED
from tilecast.service.journald import Journal, stream_is_journal

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# Fields by which a message is told apart from another with the same text. A frame's number is not among them: "frame
# unplaced" of frames 1, 2, 3, … of one run is one flood.
_IDENTITY = ("level", "event", "reason", "logger", "run", "plugin")

_SUMMARY = "_flood_summary"

# What is shown each time: a trace with holes would be none.
_EACH = frozenset({TRACED})


@dataclass(slots=True)
class _Flood:
    """One kind of message since the time it was first shown."""

    since_s: float
    shown: int
    held_back: int
    last: EventDict


class FloodSummary:
    """A structlog processor that holds back repetitions, and says how many there were.

    Parameters
    ----------
    window_s : float
        Over how long repetitions are summed up; 0 lets everything pass.
    burst : int
        How many of one kind are shown within a window before the rest is held back.
    clock : callable
        Monotonic seconds.
    max_kinds : int
        How many kinds of message are remembered at most.
    """

    def __init__(
        self,
        window_s: float = 10.0,
        burst: int = 3,
        clock: Callable[[], float] = time.monotonic,
        max_kinds: int = 512,
    ) -> None:
        self._window_s = window_s
        self._burst = burst
        self._clock = clock
        self._max_kinds = max_kinds
        self._floods: dict[tuple[str, ...], _Flood] = {}
        self._lock = threading.Lock()

    def __call__(self, _logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
        if event_dict.pop(_SUMMARY, False) or self._window_s == 0 or event_dict.get("event") in _EACH:
            return event_dict
        self.emit_due()
        kind = tuple(str(event_dict.get(field, "")) for field in _IDENTITY)
        with self._lock:
            flood = self._floods.get(kind)
            if flood is None:
                if len(self._floods) < self._max_kinds:
                    self._floods[kind] = _Flood(self._clock(), 1, 0, {})
                return event_dict
            if flood.shown < self._burst:
                flood.shown += 1
                return event_dict
            flood.held_back += 1
            flood.last = dict(event_dict)
        raise structlog.DropEvent

    def emit_due(self, *, final: bool = False) -> None:
        """Log the summary of every flood whose window is over (`final`: of all), and begin anew."""
        now_s = self._clock()
        due = []
        with self._lock:
            for kind, flood in list(self._floods.items()):
                if final or now_s - flood.since_s >= self._window_s:
                    del self._floods[kind]
                    if flood.held_back:
                        due.append(flood)
        for flood in due:
            self._emit(flood, now_s)

    def _emit(self, flood: _Flood, now_s: float) -> None:
        fields = {key: value for key, value in flood.last.items() if key not in ("event", "level")}
        more = f"{flood.last['event']} … {flood.held_back} more in {now_s - flood.since_s:.0f} s"
        # The fields are those of the last one that was held back. It takes the whole way again, to be rendered.
        structlog.get_logger().log(
            LEVELS[flood.last["level"]], more, **fields, repeated=flood.held_back, **{_SUMMARY: True}
        )


class _Lines:
    """Writes finished lines. The stream is looked up for each line, so that a live display may stand in for it."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def msg(self, line: str) -> None:
        stream = self._stream or sys.stderr
        # Whoever read the log may be gone, or its disk full: no reason to lose a frame.
        with self._lock, contextlib.suppress(OSError):
            stream.write(line + "\n")
            stream.flush()

    debug = info = warning = error = critical = exception = msg


class _Entries:
    """Sends entries to the journal; where it does not take one, to standard error as JSON, which leads there, too."""

    def __init__(self, journal: Journal, lines: _Lines, render: Processor) -> None:
        self._journal = journal
        self._lines = lines
        self._render = render

    def msg(self, **event_dict: Any) -> None:
        fields = {key: value for key, value in event_dict.items() if key not in ("event", "level")}
        message, level = str(event_dict.get("event", "")), str(event_dict.get("level", "info"))
        try:
            self._journal.send(_sentence(message, fields), level, fields)
        except OSError:
            self._lines.msg(str(self._render(None, level, dict(event_dict))))

    debug = info = warning = error = critical = exception = msg


class _FromLibraries(logging.Handler):
    """Brings in what libraries (asyncio among them) say through the standard library's logging."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(max(record.levelno, logging.DEBUG), logging.ERROR) // 10 * 10
        structlog.get_logger().log(level, record.getMessage(), logger=record.name, exc_info=record.exc_info)


_floods = FloodSummary(0)


def configure(
    level: str = "info", format_: str = "auto", *, flood_s: float = 10.0, stream: TextIO | None = None
) -> None:
    """Set up logging for the whole process; may be called again.

    Parameters
    ----------
    level : {"debug", "info", "warning", "error"}
    format_ : {"auto", "console", "json"}
        `auto` is `console` where the stream is a terminal, entries with fields where it is systemd's journal, `json`
        elsewhere.
    flood_s : float
        Window in which repetitions are summed up, seconds; 0 shows everything.
    stream : text file, optional
        Standard error, whatever that is at the time of each message, if not given.
    """
    global _floods
    _floods = FloodSummary(flood_s)
    is_terminal = (stream or sys.stderr).isatty()
    console = format_ == "console" or (format_ == "auto" and is_terminal)
    common: list[Processor] = [structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, _floods]
    rendering: list[Processor]
    logger: Any = _Lines(stream)
    if format_ == "auto" and stream is None and stream_is_journal(2):
        rendering = [structlog.processors.format_exc_info, _as_arguments]
        logger = _Entries(_journal(), logger, structlog.processors.JSONRenderer(ensure_ascii=False))
    elif console:
        rendering = [
            structlog.processors.TimeStamper("%H:%M:%S", utc=False, key="timestamp"),
            _short_run,
            structlog.dev.ConsoleRenderer(
                colors=is_terminal, sort_keys=False, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
            ),
        ]
    else:
        rendering = [
            structlog.processors.TimeStamper("iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
    structlog.configure(
        processors=common + rendering,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: logger,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [known for known in root.handlers if isinstance(known, _FromLibraries)]:
        root.removeHandler(handler)
    root.addHandler(_FromLibraries())
    root.setLevel(max(LEVELS[level], logging.WARNING))


def summarise_floods(*, final: bool = False) -> None:
    """Log what was held back, where its time is over; at the end of the process with `final`."""
    _floods.emit_due(final=final)


@functools.cache
def _journal() -> Journal:
    """One connection for the process, however often logging is set up."""
    return Journal()


def _as_arguments(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    return event_dict


def _sentence(event: str, fields: Mapping[str, Any]) -> str:
    """The text of an entry: `journalctl` shows nothing else unless it is asked to."""
    shown = [f"{key}={_word(value)}" for key, value in fields.items() if key != "exception"]
    text = "  ".join([event, *shown])
    return f"{text}\n{fields['exception']}" if "exception" in fields else text


def _word(value: Any) -> str:
    text = str(value)
    return repr(text) if not text or any(letter.isspace() for letter in text) else text


def _short_run(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    """In a terminal, eight characters of a run's id are enough to know it by."""
    run: Any = event_dict.get("run")
    if isinstance(run, str):
        event_dict["run"] = run[:8]
    return event_dict
