"""The words and numbers of the wire protocol, each in one place.

Nothing is done here. What the words mean is told in `protocol/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

VERSION: Final = 1
"""The `v` of every header."""

ITEMSIZE: Final[Mapping[str, int]] = {"|u1": 1, "<u2": 2, "<f4": 4}
"""Bytes of a pixel, by `dtype`."""

DTYPES: Final = tuple(ITEMSIZE)
"""Pixel types, in the order of PZF's DataFormat."""

CODECS: Final = ("raw", "pzf")
BLEND_MODES: Final = ("feather", "mean", "max", "min", "newest", "nearest")
POSITION_SOURCES: Final = ("frame", "stage")
END_REASONS: Final = ("done", "abort", "error")
DURABILITIES: Final = ("fsync", "os")

REJECT_REASONS: Final = (
    "malformed",
    "too-large",
    "bad-payload",
    "unknown-run",
    "run-conflict",
    "run-elsewhere",
    "run-sealed",
    "calibration-missing",
    "disk-reserve",
    "busy",
)

NOTICE_KINDS: Final = (
    "started",
    "idle",
    "ended",
    "report",
    "gap",
    "late",
    "warning",
    "calibration-missing",
    "sealed",
    "renamed",
    "noted",
    "deleted",
)
"""The kinds of notice of version 1; a reader passes over a kind that it does not know."""

STATUS_GOOD: Final = 0
STATUS_INCOMPLETE: Final = 1
STATUS_REPEATED: Final = 2
STATUS_SATURATED: Final = 3

MAX_NOTIFIED_TILES: Final = 4000
"""A commit of more tiles is announced without naming them (`truncated`)."""

MAX_POSITION_PX: Final = 2**30
"""No frame may lie further than this from stage (0, 0), in pixels."""
