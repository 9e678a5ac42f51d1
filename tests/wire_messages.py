"""Plain messages for tests that change one thing in them: written with msgpack, not with our own encoder."""

from __future__ import annotations

from typing import Any

import msgpack

from tilecast_protocol import messages

RUN = "0f8a2c1e-6f0b-4c53-9f5e-2a1d7c3b4e5f"
BOOT = "c0ffee00-1234-4abc-8def-0123456789ab"
T_NS = 1_790_000_000_000_000_000
PIXELS = bytes(range(24))  # 3 rows of 4, of 2 bytes

_OF_TYPE: dict[str, dict[str, Any]] = {
    "start": {"run": RUN, "name": "liver", "shape": [3, 4], "dtype": "<u2", "px_um": [0.5, 0.5]},
    "image": {"run": RUN, "frame": 0, "codec": "raw", "nbytes": 24},
    "stage": {"pos_um": [1.0, 2.0]},
    "event": {"name": "shutter"},
    "end": {"run": RUN, "reason": "done", "n_sent": 1},
    "hb": {"state": "sending"},
}
PUBLISHER_TYPES = (*_OF_TYPE, "hello")


def header(kind: str, **changes: Any) -> dict[str, Any]:
    """The smallest header of that type, changed."""
    if kind == "hello":
        return {"v": 1, "type": kind, "src": "orca", "boot": BOOT, "next_seq": 0} | changes
    return {"v": 1, "type": kind, "src": "orca", "boot": BOOT, "seq": 3, "t": T_NS} | _OF_TYPE[kind] | changes


def multipart(kind: str, *payload: bytes, **changes: Any) -> list[bytes]:
    """That header on the wire; an image comes with its pixels unless others are given."""
    if kind == "image" and not payload:
        payload = (PIXELS,)
    return [f"tc1/scope/cam/{kind}".encode(), msgpack.packb(header(kind, **changes)), *payload]


def read(kind: str, *payload: bytes, **changes: Any) -> Any:
    """That message, parsed."""
    return messages.parse(multipart(kind, *payload, **changes))
