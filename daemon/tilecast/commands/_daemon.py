"""The daemon that has a run open, for what only it may do there: one process at a time writes a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tilecast.errors import RunLockedError

if TYPE_CHECKING:
    from tilecast.service.config import Config
    from tilecast_protocol.client import Client

_LONGEST_ORDER_S = 24 * 3600.0
_ANSWERS_WITHIN_S = 5.0


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
    from tilecast_protocol.client import Client
    from tilecast_protocol.errors import DisconnectedError

    if not config.query:
        raise locked
    with Client(None, config.query, timeout_s=answers_within_s) as client:
        try:
            store = client.hello()["store"]
        except DisconnectedError:
            raise locked from None
        if Path(store).resolve() != folder.parent.resolve():
            raise locked  # that daemon has other runs
        client.timeout_s = _LONGEST_ORDER_S
        yield client
