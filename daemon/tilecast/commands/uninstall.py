"""`tilecast uninstall`: takes away what `tilecast install` has put in place."""

from __future__ import annotations

import click

from tilecast.commands.common import Invocation, tilecast_command
from tilecast.commands.install import carry_out


@tilecast_command("uninstall")
@click.option("--user", is_flag=True, help="What was installed for you alone; else for the whole machine.")
@click.option("--apply", is_flag=True, help="Do it. Without this, it is only shown what would be done.")
def command(_invocation: Invocation, user: bool, apply: bool) -> None:
    """Stop the services and remove their units.

    Runs, configurations and users stay; what was changed by hand (systemctl edit) stays as well.
    """
    from tilecast.service.install import Installation, Place

    place = Place.user() if user else Place.machine()
    carry_out(Installation(place).removal(), apply=apply, nothing="Nothing to do: nothing of it is installed.")
    if apply:
        click.echo(f"Left as they are: {place.config}, and all runs.")
