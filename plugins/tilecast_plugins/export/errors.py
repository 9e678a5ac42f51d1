"""What is said to a person when an export cannot be made."""

from __future__ import annotations

from tilecast_protocol.errors import TilecastError


class ExportError(TilecastError):
    """An export cannot be made as asked; the message says why, and what to do."""
