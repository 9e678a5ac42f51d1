"""`tilecast runs`: the runs in the store, those that are wanted, in the order that is wanted."""

from __future__ import annotations

import fnmatch
import json
import re
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from tilecast.commands.common import Invocation, console, format_bytes, format_time, tilecast_command

if TYPE_CHECKING:
    from tilecast.store.folders import FoundRun

_STATES: Final = ("open", "idle", "ended", "sealed", "making", "damaged")
_UNIT_S: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


class Listed(NamedTuple):
    """A run, the room that it takes in bytes, and its state; that of one that cannot be read has a word, too."""

    found: FoundRun
    nbytes: int
    state: str

    @property
    def created_ns(self) -> int:
        """When it began; 0 if that cannot be read."""
        return 0 if self.found.info is None else self.found.info.created_ns

    @property
    def name(self) -> str:
        """Empty if it cannot be read."""
        return "" if self.found.info is None else self.found.info.name


# Each ends with the date, so that what is equal stays in its order; what cannot be read comes last by date.
_ORDERS: Final[dict[str, Callable[[Listed], Any]]] = {
    "date": lambda run: (run.found.info is None, run.created_ns),
    "size": lambda run: (run.nbytes, run.created_ns),
    "name": lambda run: (run.name.casefold(), run.created_ns),
    "state": lambda run: (_STATES.index(run.state) if run.state in _STATES else len(_STATES), run.created_ns),
}


def parse_since(text: str, now_s: float) -> int:
    """A moment in the past, UTC ns: a date, a date and a time (of the local clock), or an age.

    >>> parse_since("2h", 7200.0), parse_since("1d", 86_401.0)
    (0, 1000000000)
    """
    age = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if age is not None:
        return round((now_s - float(age[1]) * _UNIT_S[age[2]]) * 1e9)
    try:
        return round(datetime.fromisoformat(text).astimezone().timestamp() * 1e9)
    except ValueError:
        raise click.BadParameter(
            f"a date such as 2026-03-01 or '2026-03-01 14:30', or an age such as 90m, 12h, 7d, 2w; got {text!r}",
            param_hint="--since",
        ) from None


def wanted(
    runs: Iterable[Listed], *, states: Iterable[str] = (), since_ns: int | None = None, name: str | None = None
) -> list[Listed]:
    """Those of the runs that are in one of these states, began since then, and have such a name.

    `name` is a part of it, whatever the case, or a pattern with `*` and `?` for the whole of it.
    """
    pattern = None if name is None else name.casefold() if set(name) & set("*?[") else f"*{name.casefold()}*"
    allowed = set(states)
    return [
        run
        for run in runs
        if (not allowed or run.state in allowed)
        and (since_ns is None or run.created_ns >= since_ns)
        and (pattern is None or fnmatch.fnmatchcase(run.name.casefold(), pattern))
    ]


@tilecast_command("runs")
@click.option("--sort", type=click.Choice(tuple(_ORDERS)), default="date", show_default=True, help="In which order.")
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option("--state", "states", type=click.Choice(_STATES), multiple=True, help="Only these; may be repeated.")
@click.option("--since", metavar="DATE|AGE", help="Only what began since 2026-03-01, or in the last 90m, 12h, 7d, 2w.")
@click.option("--name", metavar="TEXT", help="Only names with this in them; with * or ?, names like this.")
@click.option("--deleted", is_flag=True, help="Instead, the log of what was deleted.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
def command(
    invocation: Invocation,
    sort: str,
    reverse: bool,
    states: tuple[str, ...],
    since: str | None,
    name: str | None,
    deleted: bool,
    as_json: bool,
) -> None:
    """List the runs on this computer, the newest last.

    Other commands take a run by the beginning of its id, by its name, by its folder, or as `last`.

    \b
    Examples:
      tilecast runs --sort size
      tilecast runs --state ended --since 7d --name liver
    """
    from tilecast.store.folders import folder_nbytes, list_runs

    path = invocation.config.store.path
    since_ns = None if since is None else parse_since(since, time.time())
    if deleted:
        _show_deletions(path, as_json)
        return
    everything = [Listed(found, folder_nbytes(found.folder), _state(found)) for found in list_runs(path)]
    chosen = sorted(wanted(everything, states=states, since_ns=since_ns, name=name), key=_ORDERS[sort])
    if reverse:
        chosen.reverse()
    if as_json:
        for run in chosen:
            click.echo(json.dumps(_row(run), ensure_ascii=False))
        return
    if not everything:
        click.echo(f"There are no runs in {path}.")
        return
    if chosen:
        _show(chosen)
    of_all = "" if len(chosen) == len(everything) else f" of {len(everything)}"
    total = format_bytes(sum(run.nbytes for run in chosen))
    click.echo(f"{len(chosen)}{of_all} {'run' if len(everything) == 1 else 'runs'}, {total}, in {path}")


def _state(found: FoundRun) -> str:
    if found.info is not None:
        return found.info.state
    return "making" if found.making else "damaged"


def _row(run: Listed) -> dict[str, object]:
    found = run.found
    row: dict[str, object] = {
        "run": found.run,
        "folder": str(found.folder),
        "nbytes": run.nbytes,
        "state": run.state,
    }
    if found.info is not None:
        row |= {
            "name": found.info.name,
            "created_ns": found.info.created_ns,
            "n_frames": found.info.n_placements,
            "levels": found.info.levels,
            "bbox": list(found.info.bbox),
            "rev": found.info.rev,
            "epoch": found.info.epoch,
        }
    return row | ({"error": found.error} if found.error else {})


def _show(runs: Iterable[Listed]) -> None:
    from rich.table import Table
    from rich.text import Text

    # On a narrow terminal it is the name that gets several lines.
    table = Table("run", "name", box=None, pad_edge=False, header_style="bold")
    for heading in ("state", "started", "frames", "mosaic px", "disk"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("state", "started") else "right")
    for run in runs:
        found, disk = run.found, format_bytes(run.nbytes)
        if found.info is None:
            state, style = ("being made", "yellow") if found.making else ("unreadable", "red")
            table.add_row(found.run[:8], Text(found.error, style=style), state, "", "", "", disk)
            continue
        bbox = found.info.bbox
        table.add_row(
            found.run[:8],
            Text(found.info.name),
            Text(found.info.state, style="green" if found.info.state == "open" else ""),
            format_time(found.info.created_ns).rpartition(":")[0],  # to the minute
            str(found.info.n_placements),
            f"{bbox.col1 - bbox.col0} × {bbox.row1 - bbox.row0}",
            disk,
        )
        if found.error:
            table.add_row("", Text(found.error, style="red"))
    console().print(table)


def _show_deletions(path: Path, as_json: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from tilecast.service.deletion import deletions

    entries = deletions(path)
    if as_json:
        for entry in entries:
            click.echo(json.dumps(entry, ensure_ascii=False))
        return
    if not entries:
        click.echo(f"Nothing was deleted from {path}.")
        return
    table = Table("deleted", "run", "name", "why", box=None, pad_edge=False, header_style="bold")
    for heading in ("frames", "disk"):
        table.add_column(heading, justify="right")
    for entry in entries:
        table.add_row(
            format_time(entry["t_ns"]),
            entry["run"][:8],
            Text(str(entry.get("name", ""))),
            Text(str(entry.get("why", ""))),
            str(entry.get("n_frames", "")),
            format_bytes(entry["nbytes"]),
        )
    console().print(table)
