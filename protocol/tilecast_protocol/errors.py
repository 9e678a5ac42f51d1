"""Every error that tilecast raises on purpose, so that callers can catch one family.

Each also inherits the builtin a caller would have caught without knowing tilecast, and each says what was expected,
what came, and what to do about it.
"""

from __future__ import annotations


class TilecastError(Exception):
    """Base of all errors raised on purpose by tilecast and its protocol package."""


class MalformedError(TilecastError, ValueError):
    """A message breaks the wire contract.

    Parameters
    ----------
    message : str
        A sentence a person can act on.
    reason : str
        The word that goes on the wire (PROTOCOL, "Reasons to reject").
    topic, src, boot, seq
        What could still be read of the message, so that it can be answered; None where it could not.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "malformed",
        topic: str | None = None,
        src: str | None = None,
        boot: str | None = None,
        seq: int | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.topic = topic
        self.src = src
        self.boot = boot
        self.seq = seq


class PZFError(TilecastError, ValueError):
    """Bytes are not a PZF record that can be decoded safely, or an array cannot be written as one."""


class JournalError(TilecastError, OSError):
    """A journal cannot be read or written as asked."""


class JournalTooNewError(JournalError):
    """A newer version wrote the journal: it is not damaged, and must not be changed."""


class QueryError(TilecastError):
    """A query was refused.

    Parameters
    ----------
    code : str
        Short word for programs, as in the reply's `error.code`.
    message : str
        A sentence a person can act on.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class DisconnectedError(TilecastError, ConnectionError):
    """The other side did not answer in time."""
