"""`tilecast config`: the table of all options."""

from __future__ import annotations

import click

from tilecast.commands.common import Invocation, console, tilecast_command


@tilecast_command("config")
@click.option("--toml", "form", flag_value="toml", help="Print a configuration file with every option explained.")
@click.option("--markdown", "form", flag_value="markdown", help="Print the table for the documentation.")
def command(invocation: Invocation, form: str | None) -> None:
    """Show all options, their values, and where each came from.

    Options are set in a file (--config), in the variables TILECAST_…, or with --set; the later of these wins. In the
    file, the part of the name before the dot is a table:

    \b
        notify = "tcp://127.0.0.1:5572"
        [ingest]
        idle_end_s = 10

    The same option as a variable: TILECAST_INGEST_IDLE_END_S=10. For once: --set ingest.idle_end_s=10. Sizes are
    written as "256MiB".

    To begin with a file of your own: tilecast config --toml > tilecast.toml
    """
    from rich.table import Table
    from rich.text import Text

    from tilecast.service import config as options

    if form == "markdown":
        click.echo(options.to_markdown(), nl=False)
        return
    config = invocation.config
    if form == "toml":
        click.echo(options.to_toml(config), nl=False)
        return
    screen = console()
    with_help = screen.width >= 160  # narrower, it would push everything else apart
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("option", no_wrap=True)
    table.add_column("value", overflow="fold", min_width=22)  # an endpoint
    table.add_column("unit", max_width=8)
    table.add_column("from", overflow="fold", min_width=len("default"))
    for info in options.options():
        source = config.provenance[info.name]
        cells = [
            Text(info.name),
            Text(options.toml_value(config.value(info.name), info.type), style="" if source == "default" else "bold"),
            Text(info.unit),
            Text(source, style="dim" if source == "default" else "bold"),
            Text(info.help, style="dim"),
        ]
        table.add_row(*(cells if with_help else cells[:-1]))
    screen.print(table)
    if not with_help:
        screen.print("What each does: tilecast config --toml", style="dim")
