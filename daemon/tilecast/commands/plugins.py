"""`tilecast plugins`: which plugins there are, whether they work, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from tilecast.commands.common import Invocation, console, tilecast_command

if TYPE_CHECKING:
    from tilecast.service.config import Config

_ANSWERS_WITHIN_S = 2.0


@tilecast_command("plugins")
@click.option("--json", "as_json", is_flag=True, help="Print everything, for programs.")
def command(invocation: Invocation, as_json: bool) -> None:
    """Show the plugins that are installed, whether they work, and what they cost.

    If the daemon of this configuration runs, it is asked: how often it has called each plugin, how long that took, and
    what went wrong last. If none does, the plugins are imported here, to see whether they can be.

    \b
    Each plugin has options in a table of its own, which `tilecast config` shows; to switch one off:
      tilecast run --set plugins.calibration.enabled=false
    To see every call of a plugin in the log: --set plugins.trace=true
    """
    from rich.table import Table
    from rich.text import Text

    found, is_running = _stats(invocation.config)
    rows = overview(found)
    if as_json:
        click.echo(json.dumps({"daemon": is_running, "plugins": rows}, indent=1))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("plugin", "version", "state", "hook", "calls", "ms/call", "cpu ms/call", "failures"):
        table.add_column(
            heading, overflow="fold", justify="left" if heading in ("plugin", "state", "hook") else "right"
        )
    for row in rows:
        about = [row["name"], f"{row['package']} {row['version']}".strip(), Text(row["state"], style=_style(row))]
        for calls in row["hooks"] or [{}]:
            table.add_row(*about, *_cells(calls))
            about = ["", "", ""]
        for source in row["sources"]:
            table.add_row("", "", "", _about_source(source))
    screen = console()
    screen.print(table)
    for row in rows:
        if row["last_error"]:
            screen.print(f"{row['name']}: {row['last_error']}", style="red", markup=False)
    if not is_running:
        screen.print("No daemon answers here, so there is nothing to tell of calls.", style="dim")


def overview(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each plugin that is installed, from what a daemon's `stats` tell of plugins.

    Parameters
    ----------
    found : mapping
        As `Plugins.stats` gives it, with the daemon's `sources` if there is one.
    """
    from tilecast.guests import guests

    about = {guest.name: guest for guest in guests()}
    names = sorted({*found["names"], *found["failed"], *found["off"], *about})
    rows = []
    for name in names:
        costs = [cost for cost in found["costs"] if cost["plugin"] == name]
        called = {cost["hook"] for cost in costs}
        uncalled = [{"hook": hook, "n_calls": 0, "n_failures": 0} for hook in found["hooks"].get(name, ())]
        rows.append(
            {
                "name": name,
                "package": about[name].distribution if name in about else "",
                "version": about[name].version if name in about else "",
                "state": _state(name, found),
                "last_error": found["failed"].get(name) or found["last_errors"].get(name, ""),
                "hooks": [*costs, *(hook for hook in uncalled if hook["hook"] not in called)],
                "sources": [source for source in found.get("sources", ()) if source["plugin"] == name],
            }
        )
    return rows


def _state(name: str, found: Mapping[str, Any]) -> str:
    if name in found["off"]:
        return "off"
    if name in found["failed"]:
        return "left out"
    if name in found["disabled"]:
        return "not called any more"
    if name in found["hanging"]:
        return f"hangs in {found['hanging'][name]}"
    if name not in found["names"]:
        return "not loaded"
    return "fails" if found["errors"].get(name) else "enabled"


def _style(row: Mapping[str, Any]) -> str:
    return {"enabled": "green", "off": "dim"}.get(row["state"], "red")


def _cells(cost: Mapping[str, Any]) -> list[str]:
    if not cost:
        return []
    n_calls = cost["n_calls"]
    each = [f"{1e3 * cost[name] / n_calls:.3g}" if n_calls else "" for name in ("seconds", "cpu_s") if name in cost]
    return [cost["hook"], str(n_calls), *(each or ["", ""]), str(cost["n_failures"] or "")]


def _about_source(source: Mapping[str, Any]) -> str:
    """A source, how it is, when it is started again if it failed, and what it says of itself."""
    again_in_s = source.get("again_in_s")
    again = "" if again_in_s is None else f" (failure {source['n_failures']}, again in {again_in_s:.0f} s)"
    told = "".join(f"\n  {name}: {fact}" for name, fact in source.get("told", {}).items() if fact != "")
    return f"source {source['source']}: {source['state']}{again}{told}"


def _stats(config: Config) -> tuple[Mapping[str, Any], bool]:
    """What a running daemon says of its plugins; without one, what importing them here shows."""
    from tilecast.service.settings import load_plugins
    from tilecast_protocol.client import Client
    from tilecast_protocol.errors import TilecastError

    if config.query and not config.query.endswith(":*") and not config.needs_curve("query"):
        try:
            with Client(None, config.query, timeout_s=_ANSWERS_WITHIN_S) as client:
                told = client.stats()["plugins"]
        except TilecastError:
            told = {}
        if "costs" in told:  # an older daemon does not tell
            return told, True
    return load_plugins(config).stats(), False
