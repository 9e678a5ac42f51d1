"""`tilecast web`: show mosaics in a browser, and serve them to other viewers. Quick to import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_NEEDS_EXTRA = "`tilecast web` needs the extra `web`, which is not installed: pip install 'tilecast[web]'"


@click.command("web")
@click.option(
    "--store",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of the runs. Default: the option store.path.",
)
@click.option(
    "--daemon",
    "endpoints",
    nargs=2,
    metavar="NOTIFY QUERY",
    help="The daemon's endpoints. Default: its options notify and query.",
)
@click.option(
    "--instrument",
    "instruments",
    nargs=4,
    multiple=True,
    metavar="NAME STORE NOTIFY QUERY",
    help="One of several microscopes, shown side by side: its folder of runs and its daemon's endpoints; - for what it "
    "has not. In place of --store and --daemon.",
)
@click.option("--remote", is_flag=True, help="Read runs through the daemon's query socket: it is on another machine.")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default="127.0.0.1:8750",
    show_default=True,
    help="Where to listen. Port 0 takes a free one. Addresses that other machines can reach need a token.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A file with the token that every request must know.",
)
@click.option(
    "--token",
    metavar="TEXT",
    help="The token itself; other users of this machine can see it.",
)
@click.option("--cors", metavar="ORIGIN", multiple=True, help="A page elsewhere that may read: https://host, or '*'.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that answer.")
@click.option(
    "--threads", type=click.IntRange(1, 64), default=2, show_default=True, help="Threads of each that make pictures."
)
@click.option(
    "--cache-mib", type=click.IntRange(0), default=256, show_default=True, help="Decoded tiles kept, in each process."
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in a browser.")
@click.pass_obj
def command(
    invocation: Any,
    store: Path | None,
    endpoints: tuple[str, str] | None,
    instruments: tuple[tuple[str, str, str, str], ...],
    remote: bool,
    listen: str,
    token_file: Path | None,
    token: str | None,
    cors: tuple[str, ...],
    workers: int,
    threads: int,
    cache_mib: int,
    open_browser: bool,
) -> None:
    """Show mosaics in a browser while they grow, and serve them to other viewers.

    It reads the store beside the daemon, and hears from it what changes; it needs no daemon for runs that have ended.
    If it dies, acquisition does not notice. Everything it serves is listed in the README.

    \b
    Examples:
      tilecast web
      tilecast web --store /data/runs --listen 127.0.0.1:0
      tilecast web --listen 0.0.0.0:8750 --token-file ~/tilecast-token
      tilecast web --instrument left /data/left tcp://127.0.0.1:5572 tcp://127.0.0.1:5573 \\
                   --instrument right - tcp://scope-2:5572 tcp://scope-2:5573
    """
    try:
        from tilecast_plugins.web.serving import address, serve
        from tilecast_plugins.web.serving import listen as listen_on
        from tilecast_plugins.web.settings import Instrument, Settings, SettingsError
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn", "httptools", "uvloop"):
            raise
        raise click.ClickException(_NEEDS_EXTRA) from error
    host, port = _parse_listen(listen)
    config = invocation.config
    notify, query = endpoints or (config.notify or None, config.query or None)
    if instruments and (store or endpoints or remote):
        raise click.UsageError("--instrument says where runs are: leave out --store, --daemon and --remote")
    try:
        several = tuple(
            Instrument(name, None if folder == "-" else Path(folder), *(None if one == "-" else one for one in sockets))
            for name, folder, *sockets in instruments
        )
        settings = Settings(
            store_path=None if remote or several else store or config.store.path,
            notify=None if several else notify,
            query=None if several else query,
            instruments=several,
            host=host,
            port=port,
            token=token_file.read_text().strip() if token_file else token or None,
            cors=cors,
            workers=workers,
            threads=threads,
            cache_nbytes=cache_mib << 20,
        )
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    with listen_on(settings) as listener:

        def ready() -> None:
            click.echo(f"tilecast web: {address(listener)}")
            if open_browser:
                click.launch(address(listener))

        serve(settings, listener, ready)


def _parse_listen(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise click.UsageError(f"--listen is HOST:PORT, as in 127.0.0.1:8750; got {text!r}")
    return host.strip("[]") or "127.0.0.1", int(port)
