"""`tilecast send`: a scan that lies on disk, into a daemon, as if it were being acquired now.

How the files are read is decided in `tilecast.inputs`, and said in one sentence before anything is sent. Frames go the
acknowledged way and carry their positions; the command returns when the daemon has all of them safe on its disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from tilecast.commands.common import Invocation, console, progress, tilecast_command

if TYPE_CHECKING:
    from tilecast.inputs import Scan
    from tilecast_protocol.publisher import Publisher
    from tilecast_protocol.window import Rejected

_MODES = ("feather", "mean", "max", "min", "newest", "nearest")
_CONNECT_S = 5.0
_SHOWN_REFUSALS = 5
_INTERRUPTED = 130


@tilecast_command("send")
@click.argument("scan_path", metavar="SCAN", type=click.Path(path_type=Path))
@click.option(
    "--positions",
    metavar="CSV",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The table of positions. If not given: positions.csv beside the frames, or what an OME-TIFF or PYME says.",
)
@click.option(
    "--columns",
    metavar="X,Y",
    help="The columns that hold the positions, such as x_px,y_px or x_um,y_um; x:um,y:um says the unit of other names. "
    "If not given: x_px,y_px.",
)
@click.option(
    "--anchor",
    type=click.Choice(("corner", "centre")),
    help="What of the frame the positions are of: its upper left corner or its centre. If not given: the corner, for "
    "pixels.",
)
@click.option("--px-um", metavar="SIZE", help="Size of a pixel in µm; two numbers, X,Y, if it is not square.")
@click.option("--flip-y", is_flag=True, help="The positions count y upwards, while the rows of a frame go down.")
@click.option("--name", help="What to call the run. If not given: the name of the file or folder.")
@click.option("--blend", type=click.Choice(_MODES), help="What is shown where frames overlap, if not as configured.")
@click.option(
    "--fps",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Frames per second; 0 sends as fast as the daemon takes them.",
)
@click.option("--to", "endpoint", metavar="ENDPOINT", help="The daemon's ingest.ack socket, if not the configured one.")
@click.option("--instrument", help="Name of the microscope to send as.  [default: the configured one and '-send']")
@click.option("--stream", default="camera", show_default=True, help="Name of the camera to send as.")
@click.pass_context
def command(
    ctx: click.Context,
    invocation: Invocation,
    scan_path: Path,
    positions: Path | None,
    columns: str | None,
    anchor: Literal["corner", "centre"] | None,
    px_um: str | None,
    flip_y: bool,
    name: str | None,
    blend: str | None,
    fps: float,
    endpoint: str | None,
    instrument: str | None,
    stream: str,
) -> None:
    """Send a SCAN from disk to a running daemon, as a new run.

    SCAN is a folder of TIFF or PNG files, a TIFF or OME-TIFF, or an .npz with an array `frames`. A table with a header
    line tells where the frames lie. Or it is a folder that PYME recorded, a series of PZF frames or an ImagePyramid,
    with the positions that it tells. It says how it read the files, and warns of what looks wrong; then it sends, and
    ends when the daemon has everything safe on its disk. The instrument gets a name of its own, so that a scan from
    disk never mixes with a microscope that is at work.

    \b
    Examples:
      tilecast send scan/
      tilecast send scan.ome.tif
      tilecast send scan/ --positions stage.csv --columns x_um,y_um --anchor centre --px-um 0.65 --flip-y
    """
    from tilecast.commands._signals import stopped_by_signals
    from tilecast.commands._words import call_again
    from tilecast.inputs import open_scan
    from tilecast_protocol.messages import new_run
    from tilecast_protocol.publisher import Publisher

    config = invocation.config
    scan = open_scan(scan_path, positions, columns=columns, anchor=anchor, px_um=px_um, flip_y=flip_y)
    out = console()
    out.print(scan.how)
    for warning in scan.warnings:
        click.secho(f"Warning: {warning}", fg="yellow", err=True)
    refused: list[Rejected] = []
    run = new_run()
    with (
        Publisher(
            endpoint or config.ingest.ack,
            instrument=instrument or f"{config.instrument}-send",
            stream=stream,
            src="tilecast-send",
            timeout_s=60.0,
            on_rejected=refused.append,
        ) as publisher,
        stopped_by_signals() as stop,
    ):
        publisher.wait_connected(_CONNECT_S)
        publisher.start(
            name or scan_path.resolve().name,
            run=run,
            blend=blend,
            **start_fields(scan),
        )
        with progress("sending", scan.n_frames) as step:
            n_sent = send_frames(publisher, scan, fps, stop, step)
        publisher.flush()
    for refusal in refused[:_SHOWN_REFUSALS]:
        click.secho(str(refusal), fg="yellow", err=True)
    if refused:
        raise click.ClickException(f"the daemon refused {len(refused)} of {n_sent} frames of the run {run}")
    stopped = n_sent < scan.n_frames
    what = f"Stopped after {n_sent} of {scan.n_frames} frames; these" if stopped else f"All {n_sent} frames"
    out.print(f"{what} are safe on the daemon's disk, as the run {run}.")
    click.echo("To look at the mosaic, on the computer of the daemon:")
    click.echo(f"  {call_again('export-png', run[:8])}")
    if stopped:
        ctx.exit(_INTERRUPTED)


def start_fields(scan: Scan) -> dict[str, Any]:
    """What `start` says of a scan from disk."""
    return {
        "shape": scan.shape,
        "dtype": scan.dtype,
        "px_um": scan.px_um,
        "affine": scan.affine,
        "n_expected": scan.n_frames,
        "planes": dict(zip("tcz", scan.planes, strict=True)),
        "channels": scan.channels or None,
        "extent_um": scan.extent_um,
        "pos_src": "frame",
    }


def send_frames(publisher: Publisher, scan: Scan, fps: float, stop: threading.Event, step: Callable[[], None]) -> int:
    """Send all frames, or until `stop` is set, and end the run; gives the number of frames sent."""
    reason: Literal["done", "abort", "error"] = "error"
    n_sent = 0
    began_s = time.monotonic()
    try:
        for frame in scan.frames():
            if fps:
                stop.wait(began_s + frame.frame / fps - time.monotonic())
            if stop.is_set():
                break
            publisher.image(frame.pixels, frame=frame.frame, pos_um=frame.pos_um, tcz=frame.tcz)
            n_sent += 1
            step()
        reason = "done" if n_sent == scan.n_frames else "abort"
    finally:
        publisher.end(reason)
    return n_sent
