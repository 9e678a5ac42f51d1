"""`tilecast calibrate`: makes dark images, flat fields, and transforms of dual-view cameras. Quick to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("calibrate")
@click.argument("kind", metavar="dark|flat|split", type=click.Choice(["dark", "flat", "split"]))
@click.argument("source")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What to write: .npy or .tif, for split .json. If not given: KIND with that ending, in this folder.",
)
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
@click.option(
    "--png",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The picture of the image, with its scale; if not given, beside the file.",
)
@click.option(
    "--dark",
    metavar="NUMBER|FILE",
    help="For flat: what the camera shows without light. If not given: what is frozen in a run, else 0.",
)
@click.option("--channel", type=click.IntRange(0), default=0, show_default=True, help="Only frames of this channel.")
@click.option("--bleaching", is_flag=True, help="For flat: light is lost from frame to frame; it is made good.")
@click.option("--positions", metavar="FILE", help="For a folder of frames, as for `tilecast send`.")
@click.option("--columns", metavar="X,Y", help="As for `tilecast send`.")
@click.option("--anchor", type=click.Choice(["corner", "centre"]), help="As for `tilecast send`.")
@click.option("--px-um", metavar="SIZE", help="As for `tilecast send`.")
@click.option("--flip-y", is_flag=True, help="As for `tilecast send`.")
@click.option(
    "--halves", type=click.Choice(["left-right", "top-bottom"]), default="left-right", help="For split: where they are."
)
@click.option(
    "--mirror",
    type=click.Choice(["none", "rows", "columns"]),
    default="none",
    help="For split: rows or columns of the second half run backwards.",
)
@click.pass_obj
def command(
    invocation: Any,
    kind: str,
    source: str,
    out: Path | None,
    force: bool,
    png: Path | None,
    dark: str | None,
    channel: int,
    bleaching: bool,
    positions: str | None,
    columns: str | None,
    anchor: str | None,
    px_um: str | None,
    flip_y: bool,
    halves: str,
    mirror: str,
) -> None:
    """Make calibration images from a run or a folder of frames, and see how much they help.

    SOURCE is a run (the beginning of its id, its name, its folder, or `last`) or frames as `tilecast send` takes them.
    dark: the median of frames that were taken without light. flat: how an ordinary scan was lit, from all its frames
    and what they share. split: how the halves of a dual-view camera lie on each other, from one frame with beads.

    \b
    Examples:
      tilecast calibrate dark dark-frames/ --out ~/.local/share/tilecast/calibrations/camera-1.npy
      tilecast calibrate flat last --dark 100
      tilecast calibrate split beads.tif --mirror columns
    """
    from tilecast_plugins.calibration.making import Asked, make

    if kind != "flat" and (dark is not None or bleaching):
        raise click.UsageError(f"--dark and --bleaching are for flat, not for {kind}")
    if kind != "split" and (halves != "left-right" or mirror != "none"):
        raise click.UsageError(f"--halves and --mirror are for split, not for {kind}")
    ending = ".json" if kind == "split" else ".npy"
    target = out or Path(kind + ending)
    allowed = (".json",) if kind == "split" else (".npy", ".tif", ".tiff")
    if target.suffix.lower() not in allowed:
        raise click.UsageError(f"--out {target}: its name should end with {' or '.join(allowed)}")
    if target.exists() and not force:
        raise click.UsageError(f"{target} exists: give another --out, or --force to replace it")
    reading = {"positions": positions, "columns": columns, "anchor": anchor, "px_um": px_um, "flip_y": flip_y}
    asked = Asked(
        source=source,
        target=target,
        png=png or target.with_suffix(".png"),
        channel=channel,
        dark=dark,
        bleaching=bleaching,
        reading=reading,
        halves=halves,
        mirror=mirror,
    )
    for line in make(kind, asked, invocation):
        click.echo(line)
