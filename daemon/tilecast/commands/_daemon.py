"""The daemon that has a run open, for what only it may do there: one process at a time writes a run."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from tilecast.commands.common import find_run
from tilecast.errors import RunLockedError, StoreError

if TYPE_CHECKING:
    from tilecast.service.config import Config
    from tilecast.store.folders import FoundRun
    from tilecast.store.sqlite_store import SqliteStore
    from tilecast_protocol.client import Client

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_LONGEST_ORDER_S = 24 * 3600.0
_ANSWERS_WITHIN_S = 5.0
_CONNECTS_WITHIN_S = 1.0


@contextmanager
def daemon_of(
    config: Config, folder: Path, locked: RunLockedError, *, answers_within_s: float = _ANSWERS_WITHIN_S
) -> Iterator[Client]:
    """A client of the daemon whose runs lie where `folder` does, with the patience that a long order needs.

    Parameters
    ----------
    config : Config
    folder : Path
        Of a run that could not be locked.
    locked : RunLockedError
        What was said then.
    answers_within_s : float
        A daemon that does not say who it is within this time is none.

    Raises
    ------
    RunLockedError
        `locked`, which says who has the run, if there is no such daemon.
    """
    with _local_daemon(config, folder.parent, Remote(), answers_within_s) as client:
        if client is None:
            raise locked
        yield client


@dataclass(frozen=True)
class Remote:
    """Which daemon is meant, if not the one of the configuration, and the keys to show.

    Attributes
    ----------
    endpoint : str or None
        Its `query` socket.
    key : Path or None
        Our own secret key.
    daemon_key : Path or None
        The daemon's public key; if not given, the one beside `curve.secret_key`.
    """

    endpoint: str | None = None
    key: Path | None = None
    daemon_key: Path | None = None


def takes_remote(function: F) -> F:
    """Give a command the options `--daemon`, `--key` and `--daemon-key`, as arguments of these names."""
    path = click.Path(path_type=Path, dir_okay=False)
    for decorate in (
        click.option("--daemon-key", metavar="FILE", type=path, help="The daemon's public key (*.key)."),
        click.option(
            "--key", metavar="FILE", type=path, help="Your own key (*.key_secret), which must be an operator's."
        ),
        click.option("--daemon", metavar="ENDPOINT", help="The query socket of a daemon, if its runs are not here."),
    ):
        function = decorate(function)
    return function


def give_order(
    config: Config,
    run: str,
    remote: Remote,
    *,
    ask: Callable[[Client, str], T],
    alone: Callable[[FoundRun], T],
    confirm: Callable[[str, dict[str, Any]], None] = lambda *_: None,
) -> tuple[str, T]:
    """Have something done to a run: by its daemon, which tells viewers, or, where there is none, here.

    Parameters
    ----------
    config : Config
    run : str
        As `find_run` takes it.
    remote : Remote
    ask : callable
        Asks the daemon.
    alone : callable
        Does it here; called where no daemon has the folder of the run.
    confirm : callable
        Called with the run and what is known of it, before; raises if it is not to be.

    Returns
    -------
    (str, T)
        The run, and what `ask` or `alone` gave.
    """
    if remote.endpoint is not None:
        with _client(config, remote.endpoint, remote) as client:
            row = _choose(client.runs(), run, remote.endpoint)
            confirm(row["run"], row)
            client.timeout_s = _LONGEST_ORDER_S
            return row["run"], ask(client, row["run"])
    found = find_run(config.store.path, run, readable=False)
    confirm(found.run, facts_of(found))
    with _local_daemon(config, found.folder.parent, remote, _ANSWERS_WITHIN_S) as client:
        return found.run, alone(found) if client is None else ask(client, found.run)


def write_into(
    config: Config, run: str, remote: Remote, cmd: str, words: dict[str, Any], here: Callable[[SqliteStore], object]
) -> str:
    """Have words of a person written into a run's store: by its daemon, with the query `cmd`, or by `here`; the run."""

    def alone(found: FoundRun) -> None:
        from tilecast.store.sqlite_store import SqliteStore
        from tilecast_protocol.queries import make_query

        make_query(cmd, run=found.run, **words)  # refuses what a daemon would
        with SqliteStore.open(found.folder) as store:
            here(store)

    def ask(client: Client, run: str) -> None:
        client.ask(cmd, run=run, **words)

    done, _ = give_order(config, run, remote, ask=ask, alone=alone)
    return done


def facts_of(found: FoundRun) -> dict[str, Any]:
    """What there is to know of a run, under the names that the query `runs` has for it."""
    from tilecast.store.folders import folder_nbytes

    facts: dict[str, Any] = {"run": found.run, "bytes": folder_nbytes(found.folder)}
    if found.info is not None:
        facts |= {"name": found.info.name, "state": found.info.state, "frames": found.info.n_placements}
    return facts


def no_daemon(config: Config, found: FoundRun) -> StoreError:
    """What to say where only a daemon can do it, and there is none."""
    return StoreError(
        f"no daemon that has the runs in {found.folder.parent} answers at {config.query or 'no query socket'}, and "
        "only a daemon can do this: start it (tilecast run), or say where it is (--daemon ENDPOINT)"
    )


@contextmanager
def _local_daemon(config: Config, root: Path, remote: Remote, answers_within_s: float) -> Iterator[Client | None]:
    """A client of the daemon of the configuration, if there is one and its runs lie in `root`."""
    from tilecast_protocol.errors import DisconnectedError

    if not config.query or not _is_somebody_there(_reachable(config.query)):
        yield None
        return
    with _client(config, _reachable(config.query), remote) as client:
        client.timeout_s = answers_within_s
        try:
            store = client.hello()["store"]
        except DisconnectedError:
            store = None
        if store is None or Path(store).resolve() != root.resolve():
            yield None
            return
        client.timeout_s = _LONGEST_ORDER_S
        yield client


def _client(config: Config, endpoint: str, remote: Remote) -> Client:
    from tilecast_protocol.client import Client
    from tilecast_protocol.sockets import CurveKeys

    keys = None
    if remote.key is not None:
        server = remote.daemon_key
        if server is None and config.curve.secret_key is not None:
            server = Path(config.curve.secret_key).with_suffix(".key")
        if server is None:
            raise click.UsageError("--key needs --daemon-key: the public key of the daemon that you want to reach")
        try:
            keys = CurveKeys.load(remote.key, server=server)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    return Client(None, endpoint, timeout_s=_ANSWERS_WITHIN_S, curve=keys)


def _reachable(endpoint: str) -> str:
    """Where to connect to a socket that is bound to all addresses of this machine."""
    for anywhere in ("tcp://*:", "tcp://0.0.0.0:"):
        if endpoint.startswith(anywhere):
            return "tcp://127.0.0.1:" + endpoint.removeprefix(anywhere)
    return endpoint


def _is_somebody_there(endpoint: str) -> bool:
    """Whether anybody listens, without the patience of ZeroMQ, which waits for one that may yet come."""
    try:
        if endpoint.startswith("ipc://"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(_CONNECTS_WITHIN_S)
                probe.connect(endpoint.removeprefix("ipc://"))
        elif endpoint.startswith("tcp://"):
            where = urlsplit(endpoint)
            socket.create_connection((where.hostname or "", where.port or 0), _CONNECTS_WITHIN_S).close()
    except (OSError, ValueError):
        return False
    return True


def _choose(rows: list[dict[str, Any]], text: str, endpoint: str) -> dict[str, Any]:
    """The run that a person means, of those that a daemon has."""
    if text == "last":
        found = rows[-1:]
    else:
        found = [row for row in rows if row["run"].startswith(text.lower())] if text else []
        found = found or [row for row in rows if row.get("name") == text]
    if len(found) > 1:
        raise StoreError(f"{text!r} may be any of {len(found)} runs at {endpoint}: give more of the id")
    if not found:
        raise StoreError(f"there is no run {text!r} at {endpoint}")
    return found[0]
