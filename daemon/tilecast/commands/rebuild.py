"""`tilecast rebuild`: a run's tiles anew from its journal."""

from __future__ import annotations

import click

from tilecast.commands._daemon import daemon_of
from tilecast.commands._words import describe_ranges
from tilecast.commands.common import Invocation, find_run, stages_of_progress, tilecast_command
from tilecast.errors import RunLockedError

_MODES = ("feather", "mean", "max", "min", "newest", "nearest")


@tilecast_command("rebuild")
@click.argument("run")
@click.option("--blend", type=click.Choice(_MODES), help="Blend overlaps another way, from now on.")
@click.option(
    "--rejoin",
    is_flag=True,
    help="Find the position of every frame in the stage stream anew, not only of those that have none.",
)
def command(invocation: Invocation, run: str, blend: str | None, rejoin: bool) -> None:
    """Make the mosaic of a RUN anew from its recorded frames.

    RUN is the beginning of its id, its name, its folder, or `last`. The old mosaic stays until the new one is complete.
    If the daemon has the run open, the daemon does it.

    \b
    Examples:
      tilecast rebuild last --blend max
      tilecast rebuild 3f2a
    """
    from tilecast.ingest.live_run import UNPLACED_BECAUSE
    from tilecast.service.rebuild import rebuild_run
    from tilecast_protocol.ranges import RangeSet

    config = invocation.config
    folder = find_run(config.store.path, run, readable=False).folder
    with stages_of_progress() as progress:
        try:
            done = rebuild_run(folder, mode=blend, rejoin=rejoin, progress=progress)
        except RunLockedError as locked:
            with daemon_of(config, folder, locked) as daemon:
                click.echo("the run is open; the daemon is asked to rebuild it", err=True)
                daemon.rebuild(folder.name, blend=blend, rejoin=rejoin)
            click.echo(f"rebuilt {folder.name}")
            return
    click.echo(f"rebuilt {done.start.run}: {done.n_frames} frames, {done.mode}, epoch {done.commit.epoch}")
    if done.n_joined:
        click.echo(f"{done.n_joined} frames found their place that had none before")
    for why, ranges in done.unplaced.items():
        click.echo(f"frames {describe_ranges(ranges)} have no place: {UNPLACED_BECAUSE[why]}")
    if done.damaged:
        frames = describe_ranges(RangeSet(done.damaged).ranges())
        click.secho(f"frames {frames} could not be read, and are left out: the recording is damaged", fg="yellow")
