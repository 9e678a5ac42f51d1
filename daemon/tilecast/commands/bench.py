"""`tilecast bench`: will this machine keep up with my camera?

A real daemon in a process of its own, real sockets, a simulated scan, everything switched on: what a user would have.
The measuring is in `tilecast.bench`; here are the options, the order of things, and how the answer looks.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tilecast.commands.common import Invocation, console, format_bytes, progress, tilecast_command
from tilecast.errors import StoreError
from tilecast_protocol.errors import DisconnectedError

if TYPE_CHECKING:
    from rich.table import Table

    from tilecast.bench.figures import Figures, Outcome
    from tilecast.bench.scan import Dtype
    from tilecast.process import DaemonProcess

_DTYPES: Final[dict[str, Dtype]] = {"u1": "|u1", "u2": "<u2", "f4": "<f4"}
_N_PACED: Final = 300
_PACED_S: Final = 10.0  # at least, or queues might hide a daemon that is too slow
_N_MAX: Final = 500
_SHOWN_MS: Final = 0.05
_LIMIT_FRAMES: Final = 12  # encoded one after the other to see how fast that goes

# Journal, write-ahead log and tiles of frames that do not compress at all; and what is written to see how fast that is.
_DISK_PER_PIXEL_BYTE: Final = 2.0
_DISK_BYTES: Final = 2 << 30


def _shape(_ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, int]:
    """Reader of ROWSxCOLUMNS."""
    match = re.fullmatch(r"\s*(\d+)\s*[x×,]\s*(\d+)\s*", text)
    if match is None or not (int(match[1]) and int(match[2])):
        raise click.BadParameter(f"expected ROWSxCOLUMNS, as 2048x2048, got {text!r}", param=param)
    return int(match[1]), int(match[2])


def _overlap(_ctx: click.Context, param: click.Parameter, text: str) -> float:
    """Reader of `10%` or `0.1`, as a share."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(%?)\s*", text)
    share = float(match[1]) / (100 if match[2] else 1) if match else 1.0
    if not share < 1:
        raise click.BadParameter(f"expected a share below 1, as 10% or 0.1, got {text!r}", param=param)
    return share


def _new_file(_ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """A file that can be written later, as far as that can be told now: nobody wants to hear of it in the end only."""
    if path is not None and not path.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {path.parent}", param=param)
    return path


@tilecast_command("bench")
@click.option(
    "--shape",
    metavar="ROWSxCOLUMNS",
    callback=_shape,
    default="2048x2048",
    show_default=True,
    help="Pixels of a frame.",
)
@click.option(
    "--dtype",
    type=click.Choice(tuple(_DTYPES)),
    default="u2",
    show_default=True,
    help="Type of a pixel: 8 or 16 bits, or a 32-bit float.",
)
@click.option(
    "--overlap",
    metavar="SHARE",
    callback=_overlap,
    default="10%",
    show_default=True,
    help="What neighbouring frames have in common.",
)
@click.option("--fps", type=click.FloatRange(0, min_open=True), help="Frames per second of your camera.")
@click.option(
    "--max",
    "at_most",
    is_flag=True,
    help="Find the sustained maximum: send as fast as the daemon takes frames. So it is without --fps.",
)
@click.option(
    "--frames",
    type=click.IntRange(1),
    help=f"How many.  [default: {_N_PACED}, or 10 s if that is more; to find the maximum {_N_MAX}]",
)
@click.option("--columns", type=click.IntRange(1), default=25, show_default=True, help="Frames in a row of the scan.")
@click.option(
    "--folder",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="On the disk to measure: a folder is made in it, and removed. If not given: the disk of store.path.",
)
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=_new_file,
    help="Write all figures as JSON.",
)
@click.option(
    "--plot",
    "plot_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=_new_file,
    help="Draw the latency over time as PNG; needs tilecast[plots].",
)
@click.option("--keep", is_flag=True, help="Keep the folder with the run and the daemon's log.")
def command(
    invocation: Invocation,
    shape: tuple[int, int],
    dtype: str,
    overlap: float,
    fps: float | None,
    at_most: bool,
    frames: int | None,
    columns: int,
    folder: Path | None,
    json_file: Path | None,
    plot_file: Path | None,
    keep: bool,
) -> None:
    """Measure whether this machine keeps up with a camera.

    It starts a daemon with everything on, sends it a simulated scan over the acknowledged path, and waits until all
    frames are recorded, blended, committed, and viewers told. It also measures what this machine could do at best:
    copying a frame in memory, encoding, writing to the disk.

    \b
    Examples:
      tilecast bench --shape 2048x2048 --dtype u2 --overlap 10% --fps 20
      tilecast bench --max --folder /data --json bench.json --plot bench.png
    """
    from tilecast.bench.figures import make_figures
    from tilecast.bench.limits import file_system_of, measure_limits, this_machine
    from tilecast.bench.measure import measure
    from tilecast.bench.scan import FramePool, Scan
    from tilecast.commands._signals import stopped_by_signals
    from tilecast.process import DaemonProcess

    paced = fps is not None and not at_most
    n_frames = frames or (max(_N_PACED, math.ceil(_PACED_S * fps)) if paced and fps else _N_MAX)
    scan = Scan(shape=shape, dtype=_DTYPES[dtype], overlap=overlap, n_frames=n_frames, columns=columns)
    parent = folder or _nearest_folder(invocation.config.store.path)
    _check_room(parent, n_frames * scan.frame_nbytes * _DISK_PER_PIXEL_BYTE + _DISK_BYTES)
    machine, file_system = this_machine(), file_system_of(parent)
    click.echo(f"The store lies in {parent}: {file_system}.")
    click.echo("Making frames and measuring this machine (compiling, once: up to a minute) …")
    with stopped_by_signals() as stop, _temporary_folder(parent, keep=keep) as own:
        with progress("making frames", FramePool.n_steps(scan)) as step:
            pool = FramePool(scan, on_step=step)
        _check_stop(stop)
        samples = [pool.frame(number) for number in range(min(_LIMIT_FRAMES, FramePool.n_steps(scan)))]
        limits = measure_limits(own, samples, scan.n_frames)
        _check_stop(stop)
        click.echo(f"A daemon gets {n_frames} frames …")
        store, log_file = own / "runs", own / "daemon.log"
        arguments = _arguments(invocation)
        with (
            DaemonProcess(store, settings={"ingest.sub": ""}, log_file=log_file, arguments=arguments) as daemon,
            progress("sending", n_frames) as step,
        ):
            outcome = measure(
                daemon, store, scan, pool, fps=fps if paced else None, check=_checker(stop, daemon), on_frame=step
            )
    figures = make_figures(
        scan, outcome, limits, machine, file_system, fps=fps, paced=paced, version=version("tilecast")
    )
    console().print(figures.verdict, style="bold", soft_wrap=True)
    console().print(_table(figures))
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(figures), indent=2, ensure_ascii=False) + "\n")
        click.echo(f"All figures: {json_file}")
    if plot_file is not None:
        save_picture(plot_file, outcome, figures)
    if keep:
        click.echo(f"Kept: {own}")


def _nearest_folder(path: Path) -> Path:
    """A folder, or the nearest above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _check_room(folder: Path, n_bytes: float) -> None:
    """Make sure, before anything is started, that there is room for the scan."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise StoreError(
            f"this takes up to {format_bytes(n_bytes)}, and the disk of {folder} has {format_bytes(free)} free: choose "
            "another folder with --folder, or fewer frames with --frames"
        )


@contextmanager
def _temporary_folder(parent: Path, *, keep: bool) -> Iterator[Path]:
    """A new folder, which is removed in the end, however that comes."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="tilecast-bench-", dir=parent))
    except OSError as error:
        raise StoreError(f"{parent} cannot be written ({error.strerror}): choose another with --folder") from error
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _arguments(invocation: Invocation) -> list[str]:
    """What the daemon is told of the configuration: the same as we were."""
    arguments = [] if invocation.config_file is None else ["--config", str(invocation.config_file)]
    for override in invocation.overrides:
        arguments += ["--set", override]
    return arguments


def _check_stop(stop: threading.Event) -> None:
    if stop.is_set():
        raise click.Abort


def _checker(stop: threading.Event, daemon: DaemonProcess) -> Callable[[], None]:
    """What ends the measurement early: a signal, or the end of the daemon."""

    def check() -> None:
        _check_stop(stop)
        if not daemon.running:
            said = [line for line in daemon.log if line.get("level") in ("error", "critical")]
            why = "; ".join(str(line.get("error", line["event"])) for line in said[-2:]) or "it did not say why"
            raise DisconnectedError(f"the daemon has ended in the middle of the scan: {why}")

    return check


def _table(figures: Figures) -> Table:
    """The figures, a line each, beside what the machine could do."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, value in _rows(figures):
        table.add_row(name, Text(value))
    return table


def _rows(figures: Figures) -> list[tuple[str, str]]:
    from tilecast.bench.figures import OTHERS_SHARE

    latency, limits, ratios, used = figures.latency_ms, figures.limits, figures.ratios, figures.used
    stages = sorted(figures.cpu_ms_by_stage.items(), key=lambda item: -item[1])
    height, width = figures.shape
    how = f"sent at {figures.fps_asked:g} per second" if figures.paced else "sent as fast as they were acknowledged"
    rows = [
        ("Frames", f"{figures.frames} of {height} × {width} px, {figures.dtype}, {figures.overlap:.0%} overlap, {how}"),
        ("Sustained", f"{figures.sustained_fps:.1f} frames/s, {figures.sustained_mb_s:.0f} MB/s"),
        (
            "Latency",
            f"p50 {latency['p50']:.0f} ms, p99 {latency['p99']:.0f} ms, max {latency['max']:.0f} ms  "
            "(frame received → viewers told)",
        ),
        (
            "Processor",
            f"{figures.cpu_ms_per_frame:.1f} ms per frame, {ratios['cpu_per_memcpy']:.0f} copies of it in memory; "
            f"the sender beside it {figures.sender_cpu_ms_per_frame:.1f} ms",
        ),
        ("by stage", ", ".join(f"{stage} {ms:.1f}" for stage, ms in stages if ms >= _SHOWN_MS) + " ms"),
        ("Memory", f"{figures.rss_mib:.0f} MiB at most"),
        (
            "Disk",
            f"{figures.disk_bytes_per_frame / 1e6:.2f} MB written per frame "
            f"({figures.journal_bytes_per_frame / 1e6:.2f} of journal and {figures.store_bytes_per_frame / 1e6:.2f} of "
            f"tiles stay), {used['disk']:.0%} of the disk's sequential rate",
        ),
        ("Bottleneck", figures.bottleneck),
        (
            "Limits",
            f"one copy of a frame {limits['memcpy_ms']:.2g} ms, PZF encoding {limits['pzf_encode_gb_s']:.2f} GB/s, "
            f"sequential writes {limits['disk_write_mb_s']:.0f} MB/s",
        ),
        (
            "Machine",
            f"{figures.machine['cpu']}, {figures.machine['cores']} cores, {figures.machine['memory_gib']:g} GiB; "
            f"store on {figures.file_system}",
        ),
    ]
    if figures.paced and figures.behind_ms >= 1e3 / (figures.fps_asked or 1):
        rows.append(("Behind", f"frames were sent up to {figures.behind_ms:.0f} ms after they were due"))
    if used["cores_others"] >= OTHERS_SHARE:
        rows.append(("Others", f"other programs used {used['cores_others']:.0%} of the processor meanwhile"))
    return rows


def save_picture(path: Path, outcome: Outcome, figures: Figures) -> None:
    """Save the latency over time as PNG, or say what is missing for that."""
    from tilecast.bench.plot import save_plot

    height, width = figures.shape
    title = (
        f"{figures.frames} frames of {height} × {width} px, {figures.dtype}: {figures.sustained_fps:.1f} frames/s "
        f"sustained, bottleneck: {figures.bottleneck}"
    )
    try:
        save_plot(path, outcome.t_s, outcome.latency_ms, figures.latency_ms, title)
    except ModuleNotFoundError:
        click.secho(
            "No picture: matplotlib is missing. Install it with: pip install 'tilecast[plots]'", fg="yellow", err=True
        )
    else:
        click.echo(f"Latency over time: {path}")
