"""`tilecast info`: everything that is known of one run."""

from __future__ import annotations

import json
from typing import Any

import click

from tilecast.commands.common import Invocation, console, find_run, format_bytes, format_time, tilecast_command


@tilecast_command("info")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object, for programs.")
def command(invocation: Invocation, run: str, as_json: bool) -> None:
    """Tell everything about one RUN: size, position, camera, what came in and what was lost.

    RUN is the beginning of its id, its name, its folder, or `last`.
    """
    from rich.pretty import Pretty
    from rich.table import Table
    from rich.text import Text

    from tilecast.ingest.verdicts import NO_LONGER
    from tilecast.store.folders import folder_nbytes
    from tilecast.store.sqlite_reader import SqliteReader

    # A path is taken as it is; only for names and ids does the store's place matter.
    found = find_run(invocation.config.store.path, run)
    with SqliteReader(found.folder) as reader:
        info = reader.info()
        size = reader.size()
        events = list(reader.events())
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
    order = ("run", "name", "folder", "state", "created", "updated", "instrument", "stream", "mosaic")
    table = Table(box=None, show_header=False, pad_edge=False)
    for key in [*order, *(key for key in facts if key not in order)]:
        value = facts[key]
        if value not in (None, {}, []):
            table.add_row(
                Text(key, style="bold"), Text(str(value)) if not isinstance(value, dict | list) else Pretty(value)
            )
    console().print(table)
