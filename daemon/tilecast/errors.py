"""Errors of the daemon itself; those of the wire and the journal are in `tilecast_protocol.errors`."""

from __future__ import annotations

from tilecast_protocol.errors import TilecastError


class ConfigError(TilecastError, ValueError):
    """The configuration is wrong; the message names the option, what was found, and what was probably meant."""


class StoreError(TilecastError):
    """A tile store cannot be opened, read or written as asked."""


class RunLockedError(StoreError):
    """Another process writes this run."""


class StoreOutdatedError(StoreError):
    """The store was written by an older tilecast, and can be read once it has been brought up to date."""


class StoreTooNewError(StoreError):
    """The store was written by a newer tilecast than this one."""


class StartRefusedError(TilecastError):
    """A run cannot begin as its start says; the message tells whoever started it why, and what to do."""


class CalibrationError(StartRefusedError, ValueError):
    """A dark or flat image cannot be found, read, or used for this camera; the message says what to do."""


class UnknownCalibrationError(CalibrationError, LookupError):
    """No dark or flat image of this name was found here; somebody else may still know it."""
