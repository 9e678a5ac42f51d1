"""The command `tilecast`: finds the subcommand, and says what went wrong in one sentence.

Subcommands are in `tilecast.commands`, one module each, and are imported when they are called: `tilecast --help` must
not wait for numba. So the table below holds what `--help` shows of each, and nothing else is known of them here.

Plugins bring commands of their own by entry points of the group `tilecast.commands`: each names a `click.Command` in a
module that must be quick to import. The name in the group is the command's. It gets the options that all commands have;
its context's `obj` is the `Invocation`, with the daemon's configuration as `config`.

`--config`, `--set` and `--debug` may stand before or after the name of the subcommand (`tilecast.commands.common`).
An error that tilecast raises on purpose ends the command with exit code 2 and its message; anything else is a mistake
of ours and shows its traceback.
"""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points
from typing import Any

import click

from tilecast.commands.common import Invocation, add_common_options, report_error
from tilecast_protocol.errors import TilecastError

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("tilecast.commands.demo", "See it at work: a simulated microscope, and its mosaic growing."),
    "run": ("tilecast.commands.run", "Run the daemon: take in frames, build mosaics, tell viewers."),
    "send": ("tilecast.commands.send", "Send a scan from disk to a running daemon."),
    "record": ("tilecast.commands.record", "Keep a stream that others publish, without a mosaic."),
    "replay": ("tilecast.commands.replay", "Play a recorded run into a running daemon."),
    "rebuild": ("tilecast.commands.rebuild", "Make the mosaic of a run anew from its frames."),
    "fsck": ("tilecast.commands.fsck", "Check that everything of a run is as it must be."),
    "seal": ("tilecast.commands.seal", "Drop the recording of a run for good, and keep its mosaic."),
    "runs": ("tilecast.commands.runs", "List the runs on this computer."),
    "info": ("tilecast.commands.info", "Tell everything about one run."),
    "end": ("tilecast.commands.end", "End a run that its camera has left open."),
    "rename": ("tilecast.commands.rename", "Give a run another name."),
    "note": ("tilecast.commands.note", "Write a note into a run."),
    "copy": ("tilecast.commands.copy", "Copy a run, also while it is scanned."),
    "archive": ("tilecast.commands.archive", "Put a run into one file, and check that."),
    "unarchive": ("tilecast.commands.unarchive", "Bring a run back from its file."),
    "delete": ("tilecast.commands.delete", "Delete runs for good."),
    "export-png": ("tilecast.commands.export_png", "Save a picture of a run's mosaic, or of a part of it."),
    "top": ("tilecast.commands.top", "Watch a running daemon in the terminal."),
    "doctor": ("tilecast.commands.doctor", "Check this installation, and say what to do about what is wrong."),
    "bench": ("tilecast.commands.bench", "Measure whether this machine keeps up with a camera."),
    "keys": ("tilecast.commands.keys", "Make keys for other machines, and show who may connect."),
    "install": ("tilecast.commands.install", "Put tilecast in place as a service of systemd."),
    "uninstall": ("tilecast.commands.uninstall", "Take the service away again; runs stay."),
    "plugins": ("tilecast.commands.plugins", "Show the plugins, whether they work, and what they cost."),
    "config": ("tilecast.commands.config", "Show all options, their values, and where each came from."),
}
"""Name: module, which has the command as `command`, and what `--help` says of it; in the order shown."""


ENTRY_POINT_GROUP = "tilecast.commands"


def guest_names() -> list[str]:
    """Names of the commands that plugins bring; nothing is imported for it."""
    return sorted({entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)} - COMMANDS.keys())


def _guest(name: str) -> click.Command | None:
    """The command of a plugin, with the options of all commands; None if there is none of this name.

    Raises
    ------
    click.ClickException
        If it cannot be imported, or is no command.
    """
    found = [entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name == name]
    if not found:
        return None
    try:
        command = found[0].load()
    except Exception as exc:  # a guest's code
        raise click.ClickException(f"the command '{name}' of the plugin {found[0].value} fails: {exc!r}") from exc
    if not isinstance(command, click.Command):
        raise click.ClickException(f"the plugin {found[0].value} should be a click.Command; it is {command!r}")
    if not any("--set" in param.opts for param in command.params):
        command.params += _common_params()
    return command


def _common_params() -> list[click.Parameter]:
    return click.command("any")(add_common_options(lambda: None)).params


def _guest_summary(name: str) -> str:
    """What `--help` says of a plugin's command."""
    try:
        command = _guest(name)
    except click.ClickException as exc:
        return exc.message
    return "" if command is None else command.get_short_help_str(200)


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are needed."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return [*COMMANDS, *guest_names()]

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return _guest(name)
        command: click.Command = importlib.import_module(COMMANDS[name][0]).command
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        guests = [(name, _guest_summary(name)) for name in guest_names()]
        with formatter.section("Commands"):
            formatter.write_dl([*((name, summary) for name, (_, summary) in COMMANDS.items()), *guests])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and args[0] not in (known := self.list_commands(ctx)):
            near = difflib.get_close_matches(args[0], known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "`tilecast --help` lists the commands"
            raise click.UsageError(f"there is no command '{args[0]}': {hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        ctx.ensure_object(Invocation)
        try:
            return super().invoke(ctx)
        except (TilecastError, OSError) as exc:
            if ctx.ensure_object(Invocation).debug or isinstance(exc, BrokenPipeError):
                raise
            report_error(exc)
            ctx.exit(2)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tilecast", prog_name="tilecast")
@add_common_options
def main() -> None:
    """Build the mosaic of a tile scan while the microscope is still scanning.

    Frames and stage positions come in, a blended mosaic grows, and viewers are shown it live. Everything that comes in
    is kept, and can be replayed.

    Each command has its own --help.
    """
