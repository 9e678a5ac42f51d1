"""`tilecast replay`: a recording into a daemon, once more."""

from __future__ import annotations

import click

from tilecast.commands._words import describe_ranges
from tilecast.commands.common import Invocation, find_run, progress, tilecast_command

_MOST_OF_NAME = 57  # names have up to 64 characters


@tilecast_command("replay")
@click.argument("run")
@click.option("--to", "endpoint", metavar="ENDPOINT", help="The daemon's ingest.ack socket, if not the configured one.")
@click.option("--speed", default="1", show_default=True, help="1 as recorded, 10 ten times as fast, max as it goes.")
@click.option("--instrument", help="Name of the instrument to replay as.  [default: the recorded one and '-replay']")
@click.option("--drop", type=click.FloatRange(0, 1), default=0.0, help="Leave out this share of the images.")
@click.option("--duplicate", type=click.FloatRange(0, 1), default=0.0, help="Send this share of the images twice.")
@click.option("--reorder", type=click.IntRange(0), default=0, help="Let up to this many later images overtake one.")
@click.option("--delay", "delay_ms", type=click.FloatRange(0), default=0.0, help="Wait up to this long at random (ms).")
@click.option("--seed", type=int, default=0, help="The same seed makes the same trouble.")
def command(
    invocation: Invocation,
    run: str,
    endpoint: str | None,
    speed: str,
    instrument: str | None,
    drop: float,
    duplicate: float,
    reorder: int,
    delay_ms: float,
    seed: int,
) -> None:
    """Play a recorded RUN into a running daemon, as a new run.

    RUN is the beginning of its id, its name, its folder, or `last`. Times and order stay as recorded. The instrument
    gets another name, so that a replay never mixes with a microscope that is at work. With --drop, --duplicate,
    --reorder and --delay it tests what becomes of a bad line.

    \b
    Examples:
      tilecast replay last --speed max
      tilecast replay 3f2a --speed 4 --drop 0.01 --seed 7
    """
    import math

    from tilecast.replay import Nastiness, replay
    from tilecast.service import runs
    from tilecast_protocol.publisher import Publisher
    from tilecast_protocol.ranges import RangeSet

    config = invocation.config
    folder = find_run(config.store.path, run, readable=False).folder
    factor = _factor(speed)
    nastiness = Nastiness(drop=drop, duplicate=duplicate, reorder=reorder, delay_ms=delay_ms, seed=seed)
    with runs.open_recording(folder) as journal:
        frozen = runs.read_frozen(folder)
        start = runs.first_start(journal)
        n_records = sum(1 for _ in journal.records(with_parts=False))
        with (
            Publisher(
                endpoint or config.ingest.ack,
                instrument=instrument or f"{start.instrument[:_MOST_OF_NAME]}-replay",
                stream=start.stream,
                src="tilecast-replay",
                timeout_s=math.inf if factor is None else 60.0,
                on_rejected=lambda rejected: click.secho(str(rejected), fg="yellow", err=True),
            ) as publisher,
            progress("replaying", n_records) as step,
        ):
            publisher.wait_connected(10.0)
            result = replay(
                journal,
                publisher.send,
                speed=factor,
                mode=frozen.mode,
                calibration=runs.frozen_images(folder),
                nastiness=nastiness,
                on_message=step,
            )
    click.echo(f"replayed {folder.name} as {result.run}: {result.n_images} images, {result.n_stage} stage messages")
    if result.damaged:
        shown = describe_ranges(RangeSet(result.damaged).ranges())
        click.secho(f"the recording is damaged; frames {shown} could not be read", fg="yellow")
    if result.dropped:
        click.echo(f"left out frames {describe_ranges(RangeSet(result.dropped).ranges())}")
    if result.duplicated:
        click.echo(f"sent twice: frames {describe_ranges(RangeSet(result.duplicated).ranges())}")


def _factor(speed: str) -> float | None:
    """The number that a person gave as speed; None for `max`."""
    if speed == "max":
        return None
    try:
        factor = float(speed.removesuffix("x").removesuffix("×"))
    except ValueError:
        factor = 0.0
    if not factor > 0:
        raise click.BadParameter(f"a speed is a number above 0, or 'max'; got {speed!r}", param_hint="--speed")
    return factor
