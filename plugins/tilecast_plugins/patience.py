"""Handing messages to a publisher for as long as it takes, by those who must look up from it now and then.

A `Publisher` waits for a daemon that is away, or raises; whoever sends for a microscope or a detector wants to try
again, to say so once, and to stop when told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from tilecast_protocol.errors import DisconnectedError

STEP_S: Final = 2.0
"""How long one attempt waits."""


class Patience:
    """Tries until the daemon takes it.

    Parameters
    ----------
    log : logging.Logger
        Told when the daemon is away, and when it is back.
    give_up : callable
        Asked after each attempt whether to stop trying.
    meanwhile : str
        What becomes of frames while the daemon is away, for the log.
    """

    def __init__(self, log: logging.Logger, give_up: Callable[[], bool], meanwhile: str) -> None:
        self._log = log
        self._give_up = give_up
        self._meanwhile = meanwhile
        self._away = False

    def until_taken(self, send: Callable[[], object]) -> bool:
        """Call it until it raises no `DisconnectedError`; False if that was given up, or the publisher has failed.

        It is called once at least, unless the daemon is known to be away and it is time to give up.
        """
        while not (self._away and self._give_up()):
            try:
                send()
            except DisconnectedError as error:
                if not self._away:
                    self._away = True
                    self._log.warning("%s. %s", error, self._meanwhile)
                # With a cause it is the publisher's thread that has died: it will not come back.
                if error.__cause__ is not None:
                    return False
            else:
                if self._away:
                    self._away = False
                    self._log.warning("the daemon takes frames again")
                return True
        return False
