"""Placing a run's frames elsewhere, for programs that find out where they belong: all they need of the daemon.

What was found is kept in the run's store, beside where the stage had the frames, so that a person can go from one to
the other at any time. The mosaic made anew and what is kept take the place of the old in one rename: who is killed
before has changed nothing. A run that a daemon has open is placed anew by that daemon.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tilecast.commands._daemon import daemon_of
from tilecast.errors import RunLockedError
from tilecast.store.tile_store import Registration

if TYPE_CHECKING:
    from tilecast.service.config import Config


def place_run(
    config: Config,
    folder: Path,
    layout: str,
    *,
    registration: Registration | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> None:
    """Make a run's mosaic by one of its layouts.

    Parameters
    ----------
    config : Config
        Says where the daemon is that may have the run open.
    folder : Path
        The run's folder.
    layout : 'stage' or 'registered'
    registration : Registration, optional
        What to keep from now on.
    progress : callable
        Called with what is being done, how much of it is done, and how much there is.

    Raises
    ------
    RunLockedError
        If another program than a daemon writes the run.
    StoreError, JournalError
        If it cannot be done; all stays as it was.
    """
    from tilecast.service.rebuild import rebuild_run
    from tilecast.service.registrations import write_pending

    try:
        rebuild_run(folder, registration=registration, layout=layout, progress=progress)
    except RunLockedError as locked:
        with daemon_of(config, folder, locked) as daemon:
            if registration is not None:
                write_pending(folder, registration)
            daemon.rebuild(folder.name, layout=layout, registration=registration is not None)
