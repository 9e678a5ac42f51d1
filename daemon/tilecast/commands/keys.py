"""`tilecast keys`: makes key pairs, and shows who may connect and how keys are used."""

from __future__ import annotations

from pathlib import Path

import click

from tilecast.commands.common import Invocation, add_common_options, console, pass_invocation


@click.group("keys")
@add_common_options
def command() -> None:
    """Make keys for connections between machines, and show who may connect.

    Sockets that other machines can reach are encrypted, and open only to those whose public key lies in one of two
    folders: curve.clients, and curve.operators for those who may also end, rename, rebuild and delete runs.

    \b
    Examples:
      tilecast keys new daemon ~/keys
      tilecast keys new camera-pc ~/keys/clients
      tilecast keys show
    """


@command.command("new")
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
@add_common_options
def new(name: str, folder: Path) -> None:
    """Make the key pair NAME in FOLDER (here, if not given), and show how to use it.

    NAME.key is public. NAME.key_secret is for the machine that the pair is for, and for nobody else; if it was made
    elsewhere, move it there, and leave no copy. Nothing is overwritten.
    """
    from tilecast.errors import ConfigError
    from tilecast_protocol.key_files import make_pair

    folder = folder.expanduser().absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        public, secret = make_pair(folder, name)
    except FileExistsError as error:
        raise ConfigError(f"there is {error.filename} already: choose another name, or remove it") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    click.echo(f"""\
{public}    public: may be given away
{secret}    secret: belongs on the machine of {name} alone

If {name} is a daemon, put into its configuration:
    [curve]
    secret_key = "{secret}"
    clients = "…"      # a folder with the public keys of those who may connect

If {name} is a camera or a viewer, put {public.name} into the daemon's folder curve.clients (or curve.operators, if it
may end and delete runs); the daemon sees it at once. Then, with the daemon's public key beside the secret one:
    from tilecast_protocol import Client, CurveKeys, Publisher
    keys = CurveKeys.load("{secret.name}", server="daemon.key")
    Publisher("tcp://HOST:5570", instrument="…", stream="…", curve=keys)
    Client("tcp://HOST:5572", "tcp://HOST:5573", curve=keys)

To take the key away again, remove {public.name} from that folder.""")


@command.command("show")
@add_common_options
@pass_invocation
def show(invocation: Invocation) -> None:
    """Show the daemon's own key, who may connect, and which sockets need keys."""
    from rich.table import Table
    from rich.text import Text

    from tilecast.service.config import SOCKETS
    from tilecast.service.curve import own_keys, public_keys

    config = invocation.config
    guarded = [name for name in SOCKETS if config.needs_curve(name)]
    click.echo(f"sockets with keys: {', '.join(guarded) or 'none; all are for this machine alone, or in plain text'}")
    if config.allow_plaintext:
        click.echo(f"in plain text, whoever reaches them: {', '.join(config.allow_plaintext)}")
    if config.curve.secret_key is None:
        click.echo("the daemon has no key: `tilecast keys new daemon` makes one, and says where to name it")
    else:
        click.echo(f"the daemon's public key: {own_keys(config.curve.secret_key).public.decode()}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "may", "public key"):
        table.add_column(heading, overflow="fold")
    for folder, may in ((config.curve.operators, "connect, and order"), (config.curve.clients, "connect")):
        for key, name in public_keys(folder).items() if folder is not None else ():
            table.add_row(*map(Text, (name, may, key.decode())))
    if table.row_count:
        console().print(table)
    else:
        click.echo("nobody may connect with a key: curve.clients and curve.operators name no folder, or an empty one")
