"""`tilecast install`: tilecast as a service of systemd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from tilecast.commands.common import Invocation, tilecast_command

if TYPE_CHECKING:
    from tilecast.service.install import Step


@tilecast_command("install")
@click.option("--user", is_flag=True, help="For you alone, in your own service manager; else for the whole machine.")
@click.option("--apply", is_flag=True, help="Do it. Without this, it is only shown what would be done.")
@click.option("--instance", metavar="NAME", help="A daemon of its own for one of several microscopes: tilecast@NAME.")
@click.option("--port", type=click.IntRange(1, 65_532), default=5580, show_default=True, help="First of its 4 ports.")
@click.option("--web", is_flag=True, help="Start the pages for browsers, too.")
@click.option("--restart", is_flag=True, help="Restart what runs, also if nothing has changed.")
def command(
    _invocation: Invocation, user: bool, apply: bool, instance: str | None, port: int, web: bool, restart: bool
) -> None:
    """Put tilecast in place as a service of systemd, and start it; or bring one up to date.

    Shows what would be done; --apply does it. What is done already is left alone. The configuration,
    /etc/tilecast/tilecast.toml, is written once and never changed again; runs go on where they were.

    \b
    Examples:
      tilecast install
      sudo /opt/tilecast/bin/tilecast install --apply
      tilecast install --user --apply
    """
    from tilecast.errors import ConfigError
    from tilecast.service.config import load
    from tilecast.service.install import Installation, Place, Wishes

    if instance is not None:
        load(overrides=[f"instrument={instance}"], environ={})  # it becomes this, and the name of files
        if instance == "tilecast":
            raise ConfigError("the name tilecast is that of the only daemon; give another one")
    place = Place.user() if user else Place.machine()
    steps = Installation(place).steps(Wishes(instance, port, web, restart))
    carry_out(steps, apply=apply, nothing="Nothing to do: everything is in place.")
    if apply and steps:
        unit = f"tilecast@{instance}" if instance else "tilecast"
        flag = "--user " if user else ""
        click.echo(f"How it is: systemctl {flag}status {unit}. What it says: journalctl {flag}-u {unit} -f")


def carry_out(steps: Sequence[Step], *, apply: bool, nothing: str) -> None:
    """Show steps, and do them if that was asked for."""
    if not steps:
        click.echo(nothing)
    for step in steps:
        click.echo(step.what if apply else f"would: {step.what}")
        if apply:
            step.do()
    if steps and not apply:
        click.echo("Nothing was done; --apply does it.")
