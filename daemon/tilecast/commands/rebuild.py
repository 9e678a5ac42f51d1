"""`tilecast rebuild`: a run's tiles anew from its journal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tilecast.commands._daemon import daemon_of
from tilecast.commands._words import describe_ranges
from tilecast.commands.common import Invocation, find_run, stages_of_progress, tilecast_command
from tilecast.errors import RunLockedError

if TYPE_CHECKING:
    from tilecast.service.rebuild import Source

_MODES = ("feather", "mean", "max", "min", "newest", "nearest")


@tilecast_command("rebuild")
@click.argument("run")
@click.option("--blend", type=click.Choice(_MODES), help="Blend overlaps another way, from now on.")
@click.option(
    "--rejoin",
    is_flag=True,
    help="Find the position of every frame in the stage stream anew, not only of those that have none.",
)
@click.option("--dark", metavar="FILE|NAME|none", help="Another dark image, or none, from now on.")
@click.option("--flat", metavar="FILE|NAME|none", help="Another flat field, or none, from now on.")
@click.option(
    "--steps",
    type=click.Choice(["again"]),
    help="Ask plugins again what is to be done with every frame: by what their options and files say today.",
)
def command(
    invocation: Invocation,
    run: str,
    blend: str | None,
    rejoin: bool,
    dark: str | None,
    flat: str | None,
    steps: str | None,
) -> None:
    """Make the mosaic of a RUN anew from its recorded frames.

    RUN is the beginning of its id, its name, its folder, or `last`. The old mosaic stays until the new one is complete.
    If the daemon has the run open, the daemon does it. Another calibration is frozen in the run in place of the one of
    its start; a NAME is looked for in calibration.path.

    \b
    Examples:
      tilecast rebuild last --blend max
      tilecast rebuild 3f2a --flat flat-20x.npy --dark none
    """
    from tilecast.ingest.live_run import UNPLACED_BECAUSE
    from tilecast.service.rebuild import Refreeze, rebuild_run
    from tilecast_protocol.ranges import RangeSet

    config = invocation.config
    folder = find_run(config.store.path, run, readable=False).folder
    calibrations = config.calibration.path
    refreeze = None
    if dark is not None or flat is not None or steps is not None:
        from tilecast.plugins import Plugins

        refreeze = Refreeze(
            Plugins.load(options_of=config.of_plugin, timeout_s=config.plugins.timeout_s),
            calibrations,
            dark=_source("--dark", dark, calibrations),
            flat=_source("--flat", flat, calibrations),
            steps=steps is not None,
        )
    with stages_of_progress() as progress:
        try:
            done = rebuild_run(folder, mode=blend, rejoin=rejoin, refreeze=refreeze, progress=progress)
        except RunLockedError as locked:
            with daemon_of(config, folder, locked) as daemon:
                words: dict[str, Any] = {
                    role: _known_to_the_daemon(f"--{role}", source, calibrations)
                    for role, source in (
                        ("dark", refreeze.dark if refreeze else None),
                        ("flat", refreeze.flat if refreeze else None),
                    )
                }
                click.echo("the run is open; the daemon is asked to rebuild it", err=True)
                daemon.rebuild(folder.name, blend=blend, rejoin=rejoin, **words, steps=steps is not None)
            click.echo(f"rebuilt {folder.name}")
            return
    click.echo(f"rebuilt {done.start.run}: {done.n_frames} frames, {done.mode}, epoch {done.commit.epoch}")
    low, high = done.n_clipped
    if low or high:
        click.echo(f"clipped by calibration: {low} pixels below and {high} above what the pixel type holds")
    if done.n_joined:
        click.echo(f"{done.n_joined} frames found their place that had none before")
    for why, ranges in done.unplaced.items():
        click.echo(f"frames {describe_ranges(ranges)} have no place: {UNPLACED_BECAUSE[why]}")
    if done.damaged:
        frames = describe_ranges(RangeSet(done.damaged).ranges())
        click.secho(f"frames {frames} could not be read, and are left out: the recording is damaged", fg="yellow")


def _source(option: str, text: str | None, calibrations: Path) -> Source | None:
    """The image that a person means: a file, a name in the folder of calibrations, or none at all."""
    from tilecast.service.rebuild import Source

    if text is None:
        return None
    if text == "none":
        return Source()
    path = Path(text).expanduser()
    if path.is_file():
        return Source(path.parent, path.name)
    if path.name != text:
        raise click.BadParameter(f"there is no file {path}", param_hint=option)
    return Source(calibrations, text)


def _known_to_the_daemon(option: str, source: Source | None, calibrations: Path) -> str | None:
    """What to tell the daemon, which takes names and no paths."""
    if source is None:
        return None
    if not source.name:
        return "none"
    if source.folder.resolve() != calibrations.resolve():
        raise click.BadParameter(
            f"the run is open, and its daemon takes calibrations from its own folder alone: copy {source.name} to "
            f"{calibrations} (calibration.path), and give its name",
            param_hint=option,
        )
    return source.name
