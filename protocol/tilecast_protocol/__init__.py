"""What cameras, stages and viewers import to speak with tilecast.

Importing the package costs next to nothing: each name below is loaded from its module when it is first used, so that a
stage script does not load the codec, and nobody compiles anything before the first frame.

Examples
--------
>>> from tilecast_protocol import Stage, encode, new_boot
>>> stage = Stage(instrument="scope", stream="xy", src="xy", boot=new_boot(), seq=0, t_ns=1, pos_um=(10, 20.5))
>>> encode(stage)[0]
b'tc1/scope/xy/stage'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Client, Resync, TileRef, TileUpdate
    from .errors import DisconnectedError, JournalError, MalformedError, PZFError, QueryError, TilecastError
    from .journal import Journal, RecordKind
    from .messages import (
        Ack,
        DaemonHeartbeat,
        End,
        Event,
        Heartbeat,
        Hello,
        Image,
        Limits,
        Rejection,
        RunNotice,
        RunRev,
        RunState,
        Stage,
        Start,
        Tiles,
        Welcome,
        encode,
        new_boot,
        new_run,
        parse,
        parse_from_daemon,
        same_start,
    )
    from .mosaic import Change, MissingPlaneError, Mosaic
    from .publisher import Publisher, RejectedError
    from .queries import COMMANDS, Reply, make_error, make_query, make_reply, parse_query, parse_reply
    from .ranges import RangeSet
    from .sockets import CurveKeys

__all__ = [
    "COMMANDS",
    "Ack",
    "Change",
    "Client",
    "CurveKeys",
    "DaemonHeartbeat",
    "DisconnectedError",
    "End",
    "Event",
    "Heartbeat",
    "Hello",
    "Image",
    "Journal",
    "JournalError",
    "Limits",
    "MalformedError",
    "MissingPlaneError",
    "Mosaic",
    "PZFError",
    "Publisher",
    "QueryError",
    "RangeSet",
    "RecordKind",
    "RejectedError",
    "Rejection",
    "Reply",
    "Resync",
    "RunNotice",
    "RunRev",
    "RunState",
    "Stage",
    "Start",
    "TileRef",
    "TileUpdate",
    "TilecastError",
    "Tiles",
    "Welcome",
    "encode",
    "make_error",
    "make_query",
    "make_reply",
    "new_boot",
    "new_run",
    "parse",
    "parse_from_daemon",
    "parse_query",
    "parse_reply",
    "same_start",
]

_MODULE_OF = {
    name: module
    for module, names in {
        "client": "Client Resync TileRef TileUpdate",
        "errors": "DisconnectedError JournalError MalformedError PZFError QueryError TilecastError",
        "journal": "Journal RecordKind",
        "messages": "Ack DaemonHeartbeat End Event Heartbeat Hello Image Limits Rejection RunNotice RunRev RunState "
        "Stage Start Tiles Welcome encode new_boot new_run parse parse_from_daemon same_start",
        "mosaic": "Change MissingPlaneError Mosaic",
        "publisher": "Publisher RejectedError",
        "queries": "COMMANDS Reply make_error make_query make_reply parse_query parse_reply",
        "ranges": "RangeSet",
        "sockets": "CurveKeys",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
