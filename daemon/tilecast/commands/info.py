"""`tilecast info`: everything that is known of one run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from tilecast.commands._words import describe_report
from tilecast.commands.common import Invocation, find_run, format_bytes, format_time, tilecast_command


@tilecast_command("info")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object, for programs.")
def command(invocation: Invocation, run: str, as_json: bool) -> None:
    """Tell everything about one RUN: size, position, camera, what came in and what was lost.

    RUN is the beginning of its id, its name, its folder, or `last`.
    """
    from tilecast.ingest.verdicts import NO_LONGER
    from tilecast.store.folders import folder_nbytes
    from tilecast.store.sqlite_reader import SqliteReader

    # A path is taken as it is; only for names and ids does the store's place matter.
    found = find_run(invocation.config.store.path, run)
    with SqliteReader(found.folder) as reader:
        info = reader.info()
        size = reader.size()
        events = list(reader.events())
        registration = reader.registration()
        n_registered = sum(row.placement.source == "registered" for row in reader.placements())
    low, high = info.clipped
    notes = [event for event in events if event.name == "note"]
    sealed = [event for event in events if event.name == "sealed"]
    facts: dict[str, Any] = {
        "run": info.run,
        "name": info.name,
        "folder": str(found.folder),
        "state": info.state,
        "instrument": info.instrument,
        "stream": info.stream,
        "created_ns": info.created_ns,
        "updated_ns": info.updated_ns,
        "frames placed": info.n_placements,
        "levels": info.levels,
        "planes": {f"t{t} c{c} z{z}": list(rect) for (t, c, z), rect in sorted(info.bboxes.items())},
        "rev": info.rev,
        "epoch": info.epoch,
        "tiles": info.n_tiles,
        "bytes of tiles": size.nbytes,
        "bytes": folder_nbytes(found.folder),
        "start": info.header,
        "frozen at start": info.settings,
        "clipped by calibration": [f"{low} pixels below", f"{high} above"] if (low, high) != (0, 0) else None,
        "registered": None
        if registration is None
        else {"frames placed by it": n_registered} | dict(registration.facts),
        "report": info.report,
        "sealed_ns": sealed[-1].t_ns if sealed else None,
        "sealed because of": sealed[-1].detail.get("reason") if sealed else None,
        "no longer possible": list(NO_LONGER) if info.state == "sealed" else [],
        "notes": [event.detail.get("text", "") for event in notes],
    }
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False, default=str))
        return
    for key in ("created_ns", "updated_ns"):
        facts[key.removesuffix("_ns")] = format_time(facts.pop(key))
    sealed_ns = facts.pop("sealed_ns")
    if sealed_ns is not None:
        facts["sealed"] = format_time(sealed_ns)
    for key in ("bytes", "bytes of tiles"):
        facts[key] = format_bytes(facts[key])
    bbox, px_um = info.bbox, info.header.get("px_um")
    width, height = bbox.col1 - bbox.col0, bbox.row1 - bbox.row0
    facts["mosaic"] = f"{width} × {height} px, columns {bbox.col0} to {bbox.col1}, rows {bbox.row0} to {bbox.row1}"
    if px_um:
        facts["mosaic"] += f"; {width * px_um[0] / 1000:.3g} × {height * px_um[1] / 1000:.3g} mm"
    if info.report:
        facts["frames"] = describe_report(info.report)
    order = ("run", "name", "folder", "state", "created", "updated", "instrument", "stream", "mosaic", "frames")
    ordered = [*(key for key in order if key in facts), *(key for key in facts if key not in order)]
    for line in describe({key: facts[key] for key in ordered}):
        click.echo(line)


def describe(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Lines for people: one for each fact that there is; what has parts has a line for each, below it.

    >>> print(*describe({"name": "liver", "report": {"missing": [[3, 5]], "planned": None}}), sep="\\n")
    name    liver
    report
      missing  [[3, 5]]
    """
    facts = {key: value for key, value in facts.items() if value not in (None, {}, [])}
    width = max((len(str(key)) for key in facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict):
            yield indent + click.style(str(key), bold=not indent)
            yield from describe(value, indent + "  ")
        else:
            of_words = isinstance(value, list) and all(isinstance(item, str) for item in value)
            shown = ", ".join(value) if of_words else str(value)
            yield indent + click.style(str(key).ljust(width), bold=not indent) + "  " + shown
