"""`tilecast record`: keep a stream that others publish."""

from __future__ import annotations

import signal
import threading
from typing import Any

import click

from tilecast.commands.common import Invocation, console, format_bytes, tilecast_command


@tilecast_command("record")
@click.argument("sources", nargs=-1, metavar="[ENDPOINT]...")
@click.option("--pull", metavar="ENDPOINT", help="Also bind a PULL socket here, for programs that push.")
@click.option("--runs", "n_runs", type=click.IntRange(1), help="End after this many runs have ended.")
def command(invocation: Invocation, sources: tuple[str, ...], pull: str | None, n_runs: int | None) -> None:
    """Record what is published on the PUB sockets ENDPOINT, without making a mosaic of it.

    Each run gets a folder below store.path. Ctrl-C ends it in good order. `tilecast rebuild` makes the mosaic of a
    recording, `tilecast replay` plays it into a daemon. PUB sockets may lose frames when they are read too slowly; what
    is missing is in the report. What is on other machines needs keys, or allow_plaintext, as for the daemon.

    \b
    Examples:
      tilecast record ipc:///tmp/camera ipc:///tmp/stage --set store.path=/data/recordings
      tilecast record tcp://camera-pc:5600 --set allow_plaintext=ingest.sub
    """
    from rich.live import Live
    from rich.text import Text

    from tilecast.service.logging import configure
    from tilecast.service.recorder import Recorder
    from tilecast.service.warmup import warm_up

    if not sources and pull is None:
        raise click.UsageError("give at least one ENDPOINT to listen to, or --pull")
    invocation.overrides += [f"ingest.sub={','.join(sources)}", f"ingest.pull={pull or ''}"]
    config = invocation.config
    configure("warning", config.log.format, flood_s=config.log.flood_s)
    warm_up(dtypes=())
    done = threading.Event()
    ended: list[dict[str, Any]] = []

    def on_ended(report: dict[str, Any]) -> None:
        ended.append(report)
        click.echo(
            f"run {report['run']} {report['state']}: {report['received']} of {report['expected']} frames"
            + (f", {report['n_missing']} missing" if report["n_missing"] else "")
        )
        if n_runs is not None and len({one["run"] for one in ended}) >= n_runs:
            done.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    with Recorder(config, on_ended=on_ended) as recorder:
        click.echo(f"recording into {config.store.path}; Ctrl-C ends it", err=True)
        with Live(console=console(err=True), refresh_per_second=4, transient=True) as live:
            while not done.wait(0.25) and not recorder.stopped.is_set():
                stats = recorder.stats()
                live.update(
                    Text(f"{stats.get('images', 0)} images, {format_bytes(stats.get('image_bytes', 0))} received")
                )
    if recorder.failure is not None:
        raise click.ClickException(f"recording ended: {recorder.failure}; what was received is kept")
