"""`tilecast register`: finds where frames really lie, and places them there. Quick to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("register")
@click.argument("run")
@click.option(
    "--use",
    type=click.Choice(["stage", "registered"]),
    help="Only go back to where the stage had the frames, or again to where they were registered.",
)
@click.option(
    "--method",
    type=click.Choice(["lsq", "tree"]),
    help="All shifts together, or those of the best spanning tree; plugins.registration.method if not given.",
)
@click.option(
    "--max-shift-px",
    type=click.IntRange(1, 1000),
    help="How far a frame may be from where it is expected; plugins.registration.max_shift_pixels if not given.",
)
@click.option(
    "--min-quality",
    type=click.FloatRange(0),
    help="Least quality of a shift; plugins.registration.min_quality if not given.",
)
@click.option("--background", type=float, metavar="LEVEL", help="Pixels up to this grey level show nothing.")
@click.option("--clip", type=float, metavar="LEVEL", help="Brighter pixels count as this grey level.")
@click.option("--normalize", is_flag=True, help="Dim structures count as much as bright ones.")
@click.option("--channel", type=click.IntRange(0), help="Whose frames are compared; the first one if not given.")
@click.option("--once", is_flag=True, help="Compare the first point in time only, and move all others as it.")
@click.option("--fix", type=click.IntRange(0), metavar="FRAME", help="This frame stays where the stage has it.")
@click.option("--leave-out", metavar="FRAMES", help="Frames that take no part, such as 3,17-20.")
@click.option("--save", type=_FILE, metavar="FILE", help="Write the layout, as .csv or .json.")
@click.option("--load", type=_FILE, metavar="FILE", help="Take the layout from this file (.csv, .json); find nothing.")
@click.option("--plot", type=_FILE, metavar="FILE", help="Draw what was found, as PNG.")
@click.option("--dry-run", is_flag=True, help="Find, save and draw; leave the mosaic as it is.")
@click.pass_obj
def command(
    invocation: Any,
    run: str,
    use: str | None,
    method: str | None,
    max_shift_px: int | None,
    min_quality: float | None,
    background: float | None,
    clip: float | None,
    normalize: bool,
    channel: int | None,
    once: bool,
    fix: int | None,
    leave_out: str | None,
    save: Path | None,
    load: Path | None,
    plot: Path | None,
    dry_run: bool,
) -> None:
    """Find where the frames of a RUN really lie, from what they show where they overlap, and place them there.

    RUN is the beginning of its id, its name, its folder, or `last`. The old mosaic stays until the new one is complete;
    where the stage had the frames is kept. If the daemon has the run open, the daemon makes the new one.

    \b
    Examples:
      tilecast register last
      tilecast register last --use stage
      tilecast register 3f2a --max-shift-px 80 --save layout.csv --plot seams.png
      tilecast register 77c0 --load layout.csv
    """
    try:
        import scipy  # noqa: F401
    except ImportError as error:
        raise click.ClickException(
            "registration needs scipy, which is not installed: pip install 'tilecast[registration]'"
        ) from error
    from tilecast_plugins.registration import steps
    from tilecast_plugins.registration.layouts import ENDINGS

    for option, path in (("--save", save), ("--load", load)):
        if path is not None and path.suffix.lower() not in ENDINGS:
            raise click.UsageError(f"{option} {path}: its name should end with {' or '.join(ENDINGS)}")
    if use is not None and load is not None:
        raise click.UsageError("--use and --load are two ways to say where frames are to lie; give one of them")
    if (use is not None or load is not None) and plot is not None:
        raise click.UsageError("--plot draws what was found just now; it does not go with --use or --load")
    if fix is not None and once:
        raise click.UsageError("--fix and --once do not go together")
    found = invocation.find_run(run)
    with invocation.stages_of_progress() as progress:
        told = steps.Told(invocation.config, found.folder, progress, dry_run=dry_run, save=save, plot=plot)
        if use is not None:
            lines = steps.switch(told, use)
        elif load is not None:
            lines = steps.apply_layout(told, load)
        else:
            usual = invocation.config.of_plugin("registration")
            asked = steps.asked_for(
                method=method or usual.method,
                max_shift_px=usual.max_shift_pixels if max_shift_px is None else max_shift_px,
                min_quality=usual.min_quality if min_quality is None else min_quality,
                background=background,
                clip=clip,
                normalize=normalize or usual.normalize,
                channel=channel,
                once=once,
                fixed=fix,
                left_out=leave_out,
            )
            lines = steps.find(told, asked)
    for line in lines:
        click.echo(line)
