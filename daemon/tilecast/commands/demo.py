"""`tilecast demo`: a daemon, the live page and a simulated microscope, to see what this is.

Nothing here is pretended but the specimen: the daemon is a process of its own, started as `tilecast run` would be, and
so is the page; the camera and the stage are two publishers that talk to the daemon over TCP; frames carry no positions
and are joined to the stage stream by time. What is shown in the terminal comes from the daemon's own query and notify
sockets. It scans one specimen after the other, and keeps the newest few runs, until it is told to stop. Ctrl-C stops in
the order in which an acquisition should stop: the scan, then its publishers, then the daemon.
"""

from __future__ import annotations

import math
import re
import shutil
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tilecast.commands.common import Invocation, console, format_bytes, tilecast_command
from tilecast.errors import ConfigError, StoreError
from tilecast_protocol.errors import DisconnectedError, QueryError

if TYPE_CHECKING:
    from tilecast.commands._acquisitions import Acquisition
    from tilecast.inputs import Scan
    from tilecast.process import DaemonProcess
    from tilecast.service.config import Config

_POLL_S = 0.25
_PATIENCE = 20  # questions without an answer, a few seconds each
_LINES_AFTER = 11  # of the report and of `_tell`
_SOCKETS = ("ingest.ack", "ingest.pull", "notify", "query")
_ELSEWHERE = "choose another folder with --out FOLDER"
_RUNS_NAME = "runs"
_PICTURE_NAME = "overview.png"
_LOG_NAME = "daemon.log"
_PAGE_LOG_NAME = "web.log"
_PAUSE_S = 5.0  # between two scans
_RUNS_KEPT = 5  # of a demonstration that goes on for days

# Journal and tiles of a noisy 16-bit scan take about 1.3 times its pixels; the write-ahead log comes and goes.
_DISK_PER_PIXEL_BYTE = 1.6
_DISK_BYTES = 300 << 20
_RUNS_PLANNED = 3


def _two_numbers(_ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Reader of ROWSxCOLUMNS."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*[x×,]\s*(\d+)\s*", text)
    if match is None or not (int(match[1]) and int(match[2])):
        raise click.BadParameter(f"expected ROWSxCOLUMNS, as 10x18, got {text!r}", param=param)
    return int(match[1]), int(match[2])


@tilecast_command("demo")
@click.option(
    "--grid",
    metavar="ROWSxCOLUMNS",
    callback=_two_numbers,
    default="12x17",
    show_default=True,
    help="Frames down and across.",
)
@click.option("--frames", type=click.IntRange(1), help="A scan of at least so many frames, in place of --grid.")
@click.option(
    "--shape",
    metavar="ROWSxCOLUMNS",
    callback=_two_numbers,
    default="512x512",
    show_default=True,
    help="Pixels of a frame.",
)
@click.option(
    "--fps", type=click.FloatRange(0.01, 1000), default=10.0, show_default=True, help="Frames per second of the camera."
)
@click.option(
    "--scan",
    "scan_path",
    metavar="SCAN",
    type=click.Path(path_type=Path),
    help="Stream this scan from disk, as `tilecast send` reads it, in place of the simulated microscope.",
)
@click.option("--scans", "n_scans", type=click.IntRange(1), help="End after so many scans, not only when stopped.")
@click.option("--no-browser", is_flag=True, help="Open no browser; the address is printed all the same.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Another number, another specimen.")
@click.option(
    "--out",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("tilecast-demo"),
    show_default=True,
    help="Where the run, the picture and the daemon's log are kept.",
)
def command(
    invocation: Invocation,
    grid: tuple[int, int],
    frames: int | None,
    shape: tuple[int, int],
    fps: float,
    scan_path: Path | None,
    n_scans: int | None,
    no_browser: bool,
    seed: int,
    out: Path,
) -> None:
    """See tilecast at work: a simulated microscope scans, and the mosaic grows, here and in a browser.

    It starts a daemon, the live page, and a microscope with a camera and a stage that talk to the daemon over TCP on
    this machine, as real ones would. It scans one specimen after the other until Ctrl-C ends it in good order, and
    keeps the newest five runs, which the other commands can read, and a picture of the last.

    \b
    Examples:
      tilecast demo
      tilecast demo --grid 4x6 --fps 20 --scans 1 --out /tmp/demo
      tilecast demo --scan my-scan/ --no-browser
    """
    from tilecast.commands._acquisitions import ScanFromDisk, SimulatedScan
    from tilecast.commands._page import PageProcess, open_browser
    from tilecast.commands._signals import stopped_by_signals
    from tilecast.process import DaemonProcess
    from tilecast.service.logging import configure
    from tilecast.simulate import Microscope
    from tilecast_protocol.publisher import RejectedError

    config = invocation.config
    acquisition: Acquisition
    if scan_path is None:
        # The stage is read out often enough that each exposure lies between two readings of a stage that stands still.
        scope = Microscope(
            shape=shape, grid=_grid_of(frames) if frames else grid, seed=seed, stage_hz=max(50.0, 10 * fps)
        )
        acquisition = SimulatedScan(scope, fps)
    else:
        acquisition = ScanFromDisk(_open(scan_path), scan_path.resolve().name, fps)
    own_store = config.provenance["store.path"] == "default"
    store = out / _RUNS_NAME if own_store else config.store.path
    _prepare_folder(out, acquisition, n_scans or _RUNS_PLANNED)
    endpoints = _choose_endpoints(config)
    configure("warning", config.log.format)
    _warm_up()
    log_file = out / _LOG_NAME
    log_file.unlink(missing_ok=True)
    arguments = [] if invocation.config_file is None else ["--config", str(invocation.config_file)]
    for override in invocation.overrides:
        arguments += ["--set", override]
    try:
        with (
            DaemonProcess(store, settings=endpoints, log_file=log_file, arguments=arguments) as daemon,
            PageProcess(store, daemon.endpoints["notify"], daemon.endpoints["query"], out / _PAGE_LOG_NAME) as page,
            stopped_by_signals() as stop,
        ):
            if page.address is None:
                click.echo(f"There is no page: {page.problem}")
            else:
                click.echo(f"The live page: {page.address}")
                if not no_browser:
                    open_browser(page.address)
            run, report = _scan_on(daemon, config.instrument, acquisition, n_scans, stop)
            code = daemon.stop()
    except RejectedError as error:
        first = error.rejected[0]
        advice = f". Free some room, or {_ELSEWHERE}" if first.reason == "disk-reserve" else ""
        raise StoreError(f"{first}{advice}") from error
    if code:
        raise DisconnectedError(f"the daemon did not end in good order; {log_file} says why")
    _tell(store / run, out, own_store=own_store, has_mosaic=report["placed"] > 0)


def _open(scan_path: Path) -> Scan:
    """A scan from disk, as `tilecast send` reads it, with what is to be said of it."""
    from tilecast.inputs import open_scan

    scan = open_scan(scan_path)
    console().print(scan.how)
    for warning in scan.warnings:
        click.secho(f"Warning: {warning}", fg="yellow", err=True)
    return scan


def _scan_on(
    daemon: DaemonProcess, instrument: str, acquisition: Acquisition, n_scans: int | None, stop: threading.Event
) -> tuple[str, dict[str, Any]]:
    """Scan again and again until stopped, or so many times; gives the last run and its report."""
    from tilecast.commands._words import describe_report

    kept: deque[str] = deque()
    number = 0
    while True:
        number += 1
        run, report = _scan(daemon, instrument, acquisition, number, stop)
        kept.append(run)
        click.echo()
        console().print(describe_report(report))
        if number == n_scans or stop.is_set():
            return run, report
        while len(kept) > _RUNS_KEPT:
            _delete(daemon, kept.popleft())
        click.echo(f"The next scan begins in {_PAUSE_S:g} s; Ctrl-C ends the demonstration.")
        if stop.wait(_PAUSE_S):
            return run, report


def _delete(daemon: DaemonProcess, run: str) -> None:
    """Remove a run of ours that is over, so that a demonstration that nobody stops does not fill the disk."""
    from tilecast_protocol.client import Client

    with Client(None, daemon.endpoints["query"]) as client:
        try:
            client.ask("delete", run=run)
        except QueryError as error:
            click.echo(f"The run {run} was not deleted: {error}")


def _grid_of(n_frames: int) -> tuple[int, int]:
    """Rows and columns, about 9 to 16, of at least so many frames."""
    rows = max(1, round(math.sqrt(n_frames * 9 / 16)))
    return rows, math.ceil(n_frames / rows)


def _prepare_folder(out: Path, acquisition: Acquisition, n_runs: int) -> None:
    """Make sure, before anything is started, that the scan can be written.

    Raises
    ------
    StoreError
        If the folder cannot be made or written, or its disk is too full.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".tilecast-probe"
        probe.write_bytes(b"x")
        probe.unlink()
        free = shutil.disk_usage(out).free
    except OSError as error:
        raise StoreError(f"{out} cannot be written ({error.strerror}): {_ELSEWHERE}") from error
    n_runs = min(n_runs, _RUNS_KEPT)
    needed = n_runs * acquisition.n_frames * acquisition.frame_nbytes * _DISK_PER_PIXEL_BYTE + _DISK_BYTES
    if free < needed:
        raise StoreError(
            f"this scan needs about {format_bytes(needed)}, and the disk of {out} has {format_bytes(free)} free: "
            f"{_ELSEWHERE}, or make the scan smaller with --grid"
        )


def _warm_up() -> None:
    """Compile in this process, where progress can be shown; the daemon then finds everything compiled."""
    from tilecast.service.warmup import ON_FIRST_USE, warm_up

    click.echo(f"Loading kernels (on first use they are compiled: {ON_FIRST_USE}) …")
    seconds = warm_up()
    if seconds > 5:
        click.echo(f"Compiled in {seconds:.0f} s; the next start is quick.")


def _choose_endpoints(config: Config, is_free: Callable[[str], bool] | None = None) -> dict[str, str]:
    """Where the demonstration's daemon listens: where it is configured to, unless that is only the default and taken.

    Raises
    ------
    ConfigError
        If a socket that is needed is switched off, or a port that somebody chose is taken.
    """
    is_free = is_free or _port_is_free
    endpoints = {name: config.endpoints(name)[0] if config.endpoints(name) else "" for name in _SOCKETS}
    for name in ("ingest.ack", "notify", "query"):
        if not endpoints[name]:
            raise ConfigError(f"{name} is switched off ({config.provenance[name]}): the demonstration needs it")
    defaults = [name for name in _SOCKETS if config.provenance[name] == "default"]
    for name, endpoint in endpoints.items():
        if name not in defaults and not is_free(endpoint):
            raise ConfigError(
                f"{name} = {endpoint} ({config.provenance[name]}) is taken; is another tilecast running? "
                f"Choose another port with --set {name}=…, or any that is free with --set '{name}=tcp://127.0.0.1:*'"
            )
    if all(is_free(endpoints[name]) for name in defaults):
        return endpoints
    click.echo("The usual ports are taken (by another tilecast?); this daemon takes others that are free.")
    return endpoints | dict.fromkeys(defaults, "tcp://127.0.0.1:*")


def _port_is_free(endpoint: str) -> bool:
    """Whether nobody listens there, as far as that can be told: of a port on this machine."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://127.0.0.1:") or port == "*":
        return True
    with socket.socket() as probe:
        # As ZeroMQ does: a port that a program left a moment ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
    return True


def _scan(
    daemon: DaemonProcess, instrument: str, acquisition: Acquisition, number: int, stop: threading.Event
) -> tuple[str, dict[str, Any]]:
    """Scan, and show it, until everything is in the mosaic; gives the run and its report."""
    from tilecast.commands._live import LiveView
    from tilecast.commands._watch import RunWatch
    from tilecast_protocol.messages import new_run

    run = new_run()
    if number == 1:
        addresses = ", ".join(f"{name} {daemon.endpoints[name]}" for name in ("ingest.ack", "notify", "query"))
        console().print(f"The daemon listens: {addresses}")
    with (
        RunWatch(
            daemon.endpoints["notify"],
            daemon.endpoints["query"],
            run,
            n_expected=acquisition.n_frames,
            frame_nbytes=acquisition.frame_nbytes,
            extent=acquisition.extent,
        ) as watch,
        ExitStack() as stack,
        LiveView(acquisition.title, "Ctrl-C stops the scan in good order", lines_after=_LINES_AFTER) as view,
    ):
        publishers = acquisition.publishers(daemon.endpoints["ingest.ack"], instrument)
        for publisher in publishers:
            stack.enter_context(publisher)
        camera = publishers[-1]

        def scan() -> None:
            acquisition.send(publishers, run, number, stop)

        job, status, n_silent = _Job(scan), None, 0
        while status is None or not (status.ended and job.done):
            if stop.is_set():
                view.hint = "stopping: what was sent is being finished; Ctrl-C once more breaks it off"
            if not daemon.running:
                raise DisconnectedError(_last_words(daemon))
            job.check()
            if camera.n_rejected:
                stop.set()  # the disk is full, most likely; what is said of it is raised by the job
            try:
                status = watch.poll(_POLL_S, n_unacknowledged=sum(one.n_unsettled for one in publishers))
            except (DisconnectedError, QueryError):
                n_silent += 1
                if daemon.running and n_silent > _PATIENCE:
                    raise
            else:
                n_silent = 0
                view.show(status)
        view.show(watch.poll(0))  # how it was left
        return run, watch.report()


def _last_words(daemon: DaemonProcess) -> str:
    """Why a daemon ended that should not have."""
    said = [str(line.get("error", line["event"])) for line in daemon.log if line.get("level") in ("error", "critical")]
    why = f"it said: {'; '.join(said[-2:])}" if said else "it did not say why"
    return f"the daemon has ended in the middle of the scan, and {why}. What it had acknowledged is safe"


class _Job:
    """A function in a thread of its own; what it raises is raised where it is checked."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="tilecast-demo-microscope", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._function()
        except Exception as error:  # noqa: BLE001 - the end of a thread: raised again in the one that waits for it
            self._error = error

    @property
    def done(self) -> bool:
        """Whether the function has returned or raised."""
        return not self._thread.is_alive()

    def check(self) -> None:
        """Raise what the function raised."""
        if self._error is not None:
            raise self._error


def _tell(folder: Path, out: Path, *, own_store: bool, has_mosaic: bool) -> None:
    """Save the picture, and say where everything is and what can be done with it."""
    from tilecast.commands._words import call_again
    from tilecast.commands.export_png import save_png
    from tilecast.store.folders import folder_nbytes
    from tilecast.store.sqlite_reader import SqliteReader

    click.echo(f"\nRun:      {folder} ({format_bytes(folder_nbytes(folder))})")
    if has_mosaic:
        with SqliteReader(folder) as reader:
            picture = save_png(reader, out / _PICTURE_NAME)
        click.echo(f"Picture:  {out / _PICTURE_NAME} ({picture.width} × {picture.height} px)")
    click.echo("\nTo look at it again:")
    where = folder.parent if own_store else None
    name = folder.name[:8]
    for arguments in (
        ("info", name),
        ("export-png", name, "detail.png", "--region=0,0,600,800"),
    ):
        click.echo(f"  {call_again(*arguments, store_path=where)}")
    if own_store:
        click.echo(f"When you have seen enough, delete the folder {out}.")
