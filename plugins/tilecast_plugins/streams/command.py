"""`tilecast listen`: a command for each kind of stream.

They are imported when one of them is asked for: `tilecast --help` shows this group, and has no need of their options.
"""

from __future__ import annotations

from importlib import import_module

import click

_KINDS = ("areadetector", "dectris")


class _Kinds(click.Group):
    """The commands of `tilecast_plugins.streams.commands`, by name."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Their names."""
        return list(_KINDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them; None if there is none of that name."""
        if cmd_name not in _KINDS:
            return None
        found: click.Command = getattr(import_module("tilecast_plugins.streams.commands"), cmd_name)
        return found


@click.group("listen", cls=_Kinds)
def command() -> None:
    """Take in what other acquisition software streams.

    It sends on what comes, over the acknowledged path, until it is stopped. The same can run inside the daemon: the
    options are those of the tables [plugins.areadetector] and [plugins.dectris].

    \b
    Examples:
      tilecast listen areadetector --from tcp://ioc:5556 --px-um 0.65 --x StageX --y StageY
      tilecast listen dectris --from tcp://dcu:31001 --px-um 0.1 --x x --y y
    """
