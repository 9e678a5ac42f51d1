"""What of a configuration that was read again holds at once, and what only after a restart.

Sockets are bound, budgets divided and threads started with what stood in the configuration at the start; whatever else
can change while runs go on is listed here. A run keeps what was frozen when it began, whatever is reloaded.

Who hands the values on is `service/app.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from tilecast.service.config import Config, options

LIVE = frozenset(
    {
        "ingest.idle_end_s",
        "ingest.reorder_tolerance_ms",
        "ingest.gap_report_ms",
        "ingest.blend_status",
        "join.timeout_ms",
        "join.allow_moving",
        "join.skip_after_move",
        "blend.mode",
        "blend.tile_size",
        "disk.warn_bytes",
        "disk.warn_percent",
        "disk.stop_bytes",
        "disk.stop_percent",
        "retention.journals",
        "retention.max_bytes",
        "retention.max_age_days",
        "retention.seal_after_days",
        "calibration.path",
        "plugins.trace",
        "log.level",
        "log.format",
        "log.flood_s",
    }
)
"""Options that hold as soon as they are reloaded; those of runs, for runs that begin or are loaded from then on."""


class Reloaded(NamedTuple):
    """What a reload comes to.

    Attributes
    ----------
    config : Config
        What holds now: the old one with what could be applied.
    applied, needs_restart : list of str
        The options whose values were changed.
    """

    config: Config
    applied: list[str]
    needs_restart: list[str]


def reloaded(current: Config, fresh: Config) -> Reloaded:
    """What to make of a configuration that was read again, and checked.

    >>> from tilecast.service.config import load
    >>> now, then = load(environ={}), load(overrides=["log.level=debug", "query=ipc:///x"], environ={})
    >>> found = reloaded(now, then)
    >>> found.applied, found.needs_restart, found.config.log.level, found.config.query == now.query
    (['log.level'], ['query'], 'debug', True)
    """
    changed = [info.name for info in options() if fresh.value(info.name) != current.value(info.name)]
    applied = [name for name in changed if name in LIVE]
    return Reloaded(_taken_over(current, fresh, applied), applied, [name for name in changed if name not in LIVE])


def _taken_over(current: Config, fresh: Config, names: Iterable[str]) -> Config:
    sections: dict[str, dict[str, Any]] = {}
    for name in names:
        section, _, leaf = name.rpartition(".")
        sections.setdefault(section, {})[leaf] = fresh.value(name)
    update = {section: getattr(current, section).model_copy(update=values) for section, values in sections.items()}
    return current.model_copy(update=update)
