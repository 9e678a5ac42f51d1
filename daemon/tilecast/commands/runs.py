"""`tilecast runs`: the runs in the store."""

from __future__ import annotations

import json

import click

from tilecast.commands.common import Invocation, console, format_bytes, format_time, tilecast_command


@tilecast_command("runs")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
def command(invocation: Invocation, as_json: bool) -> None:
    """List the runs on this computer, the newest last.

    Other commands take a run by the beginning of its id, by its name, by its folder, or as `last`.
    """
    from rich.table import Table
    from rich.text import Text

    from tilecast.store.folders import folder_nbytes, list_runs

    path = invocation.config.store.path
    found = list_runs(path)
    if as_json:
        for run in found:
            row: dict[str, object] = {"run": run.run, "folder": str(run.folder), "nbytes": folder_nbytes(run.folder)}
            if run.info is None:
                row["state"] = "making" if run.making else "damaged"
            if run.info is not None:
                row |= {
                    "name": run.info.name,
                    "state": run.info.state,
                    "created_ns": run.info.created_ns,
                    "n_frames": run.info.n_placements,
                    "levels": run.info.levels,
                    "bbox": list(run.info.bbox),
                    "rev": run.info.rev,
                    "epoch": run.info.epoch,
                }
            click.echo(json.dumps(row | ({"error": run.error} if run.error else {}), ensure_ascii=False))
        return
    if not found:
        click.echo(f"There are no runs in {path}.")
        return
    table = Table("run", "name", "state", "started", box=None, pad_edge=False, header_style="bold")
    for heading in ("frames", "mosaic px", "disk"):
        table.add_column(heading, justify="right")
    for run in found:
        disk = format_bytes(folder_nbytes(run.folder))
        if run.info is None:
            state, style = ("being made", "yellow") if run.making else ("unreadable", "red")
            table.add_row(run.run[:8], Text(run.error, style=style), state, "", "", "", disk)
            continue
        bbox = run.info.bbox
        table.add_row(
            run.run[:8],
            Text(run.info.name),
            Text(run.info.state, style="green" if run.info.state == "open" else ""),
            format_time(run.info.created_ns),
            str(run.info.n_placements),
            f"{bbox.col1 - bbox.col0} × {bbox.row1 - bbox.row0}",
            disk,
        )
        if run.error:
            table.add_row("", Text(run.error, style="red"))
    console().print(table)
    click.echo(f"in {path}")
