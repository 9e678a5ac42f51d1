"""The command of the example: `tilecast example`."""

from __future__ import annotations

import click


@click.command("example")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Show what the example would do."""
    options = ctx.obj.config.of_plugin("example")
    click.echo(f"splits: {options.split}, sends {options.n_frames} frames, chunks of {options.chunk_bytes} bytes")
