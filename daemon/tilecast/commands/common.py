"""What all subcommands share: options, the configuration, finding a run, progress bars, and how errors look.

Kept light, because `tilecast --help` imports it: everything heavy is imported where it is used.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tilecast.errors import StoreError

if TYPE_CHECKING:
    from rich.console import Console

    from tilecast.service.config import Config
    from tilecast.store.folders import FoundRun

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Invocation:
    """What was said on the command line of any command."""

    config_file: Path | None = None
    overrides: list[str] = field(default_factory=list)
    debug: bool = False
    _config: Config | None = None

    @property
    def config(self) -> Config:
        """The configuration; ConfigError if it is wrong."""
        if self._config is None:
            from tilecast.service.config import load

            self._config = load(self.config_file, self.overrides)
        return self._config

    def find_run(self, text: str, *, readable: bool = True) -> FoundRun:
        """The run that a person means, as `find_run`, among the configured ones: for the commands of plugins."""
        return find_run(self.config.store.path, text, readable=readable)

    def number_list(self, kind: type[int] | type[float]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
        """Reader of an option, as `number_list`: for the commands of plugins."""
        return number_list(kind)

    def stages_of_progress(self) -> AbstractContextManager[Callable[[str, int, int], None]]:
        """A progress bar, as `stages_of_progress`: for the commands of plugins."""
        return stages_of_progress()


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)


def add_common_options(function: F) -> F:
    """Give a command `--config`, `--set` and `--debug`; their values are found in the `Invocation`."""

    def take_config(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
        if value is not None:
            ctx.ensure_object(Invocation).config_file = value

    def take_set(ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]) -> None:
        ctx.ensure_object(Invocation).overrides += value

    def take_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        ctx.ensure_object(Invocation).debug |= value

    for decorate in (
        click.option(
            "--debug", is_flag=True, expose_value=False, callback=take_debug, help="Show where an error came from."
        ),
        click.option(
            "--set",
            metavar="OPTION=VALUE",
            multiple=True,
            expose_value=False,
            callback=take_set,
            help="Change an option for this once; `tilecast config` lists them. May be given several times.",
        ),
        click.option(
            "--config",
            metavar="FILE",
            type=click.Path(path_type=Path),
            envvar="TILECAST_CONFIG",
            expose_value=False,
            callback=take_config,
            help="The configuration file (TOML). Also: the variable TILECAST_CONFIG.",
        ),
    ):
        function = decorate(function)
    return function


def number_list(kind: type[int] | type[float]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Reader of an option that holds as many numbers as its metavar has names, separated by commas."""

    def read(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[float, ...] | None:
        if text is None:
            return None
        names = param.metavar or ""
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = ()
        if not values or not all(map(math.isfinite, values)):
            raise click.BadParameter(f"expected {names} as numbers, got {text!r}", ctx, param)
        if len(values) != names.count(",") + 1:
            raise click.BadParameter(f"expected {names}, got {text!r}", ctx, param)
        return values

    return read


def tilecast_command(name: str) -> Callable[[F], click.Command]:
    """Make a subcommand: the function gets the `Invocation` first, then its own arguments."""

    def decorate(function: F) -> click.Command:
        return click.command(name)(add_common_options(pass_invocation(function)))

    return decorate


def report_error(exc: Exception) -> None:
    """Say on standard error, in red, what went wrong."""
    if isinstance(exc, OSError) and not isinstance(exc, StoreError) and exc.strerror:
        text = f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
    else:
        text = str(exc)
    click.secho(f"tilecast: {text}", fg="red", err=True)


def console(*, err: bool = False) -> Console:
    """Where tables and progress bars go. Piped into a file, tables are as wide as they need."""
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 1000, highlight=False, soft_wrap=False)


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show a progress bar on standard error, if that is a terminal; the value is to be called at each step."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(err=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task(what, total=total)
        yield lambda: bars.advance(task)


@contextmanager
def stages_of_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for a job with several stages; the value is called with stage, done and total, often."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(err=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bars.update(task, visible=False)
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield update


@contextmanager
def bytes_progress() -> Iterator[Callable[[str, int, int], None]]:
    """As `stages_of_progress`, for bytes: shown with their rate."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    shown = sys.stderr.isatty()
    with Progress(
        *columns, TimeRemainingColumn(), console=console(err=True), transient=True, disable=not shown
    ) as bars:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield update


def find_run(store_path: Path, text: str, *, readable: bool = True) -> FoundRun:
    """The run that a person means.

    Parameters
    ----------
    store_path : Path
        The folder that holds the runs.
    text : str
        The run's folder, its id or how that begins, its name, or `last`.
    readable : bool
        Whether its mosaic must be readable; else a recording will do, or a run that is to be repaired.

    Raises
    ------
    StoreError
        If there is none or more than one, saying which there are; or if it cannot be read.
    """
    from tilecast.store.folders import list_runs, look_into

    folder = Path(text).expanduser()
    if (folder / "tiles.sqlite").is_file() or (not readable and (folder / "journal").is_dir()):
        found = [look_into(folder)]
    else:
        runs = list_runs(store_path)
        eligible = [run for run in runs if run.info is not None or not readable]
        if text == "last":
            found = sorted(eligible, key=_started_ns)[-1:]
        else:
            found = [run for run in runs if run.run.startswith(text.lower())] if text else []
            found = found or [run for run in eligible if _name(run) == text]
        if not runs:
            raise StoreError(f"there are no runs in {store_path}; set store.path if they are elsewhere")
    if len(found) > 1:
        choices = ", ".join(run.run[:13] for run in found[-5:])
        raise StoreError(f"{text!r} may be any of {len(found)} runs ({choices}…): give more of the id")
    if not found:
        raise StoreError(f"there is no run {text!r} in {store_path}; `tilecast runs` lists them")
    if readable and found[0].info is None:
        raise StoreError(f"the run {found[0].run} cannot be read: {found[0].error}")
    return found[0]


def _started_ns(run: FoundRun) -> int:
    """When a run began: its store says so, or else what was frozen then."""
    if run.info is not None:
        return run.info.created_ns
    frozen = run.folder / "frozen.json"
    return frozen.stat().st_mtime_ns if frozen.exists() else 0


def _name(run: FoundRun) -> str | None:
    """The name of a run: of a recording it is in the journal only."""
    from tilecast.service.runs import JOURNAL_NAME, first_start
    from tilecast_protocol.errors import TilecastError
    from tilecast_protocol.journal import Journal

    if run.info is not None:
        return run.info.name
    try:
        with Journal.open(run.folder / JOURNAL_NAME, readonly=True) as journal:
            return first_start(journal).name
    except TilecastError:
        return None


def format_bytes(nbytes: float) -> str:
    """Bytes for people: 3 digits or so.

    >>> format_bytes(512), format_bytes(123456789)
    ('512 B', '118 MiB')
    """
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if nbytes >= 1000:
            nbytes, unit = nbytes / 1024, larger
    return f"{nbytes:.0f} {unit}" if nbytes >= 10 or unit == "B" else f"{nbytes:.1f} {unit}"


def format_time(t_ns: int) -> str:
    """A UTC time in nanoseconds, as the local clock shows it, to the second."""
    from datetime import datetime

    return datetime.fromtimestamp(t_ns // 1_000_000_000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
