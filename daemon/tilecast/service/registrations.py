"""A registration on its way into a run's store, as a file in the run's folder.

Whoever registers a run need not be who may write it: if a daemon has the run open, the daemon makes the mosaic anew,
and what it is to be placed by waits for it here, since it is too large for a query. It is put there by one rename, and
removed when it has been taken.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tilecast.errors import StoreError
from tilecast.store.tile_store import EdgeRow, Position, Registration

PENDING_REGISTRATION = "registration.pending.json"
_LAYOUTS = ("stage", "registered")
_EDGE: tuple[Any, ...] = (int, int, int, int, int, float, float, float, bool)


def write_pending(folder: Path, registration: Registration) -> None:
    """Leave a registration for whoever may write the run.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    content = {
        "facts": dict(registration.facts),
        "edges": [list(edge) for edge in registration.edges],
        **{layout: [list(one) for one in getattr(registration, layout)] for layout in _LAYOUTS},
    }
    path = folder / PENDING_REGISTRATION
    draft = path.with_suffix(".draft")
    try:
        draft.write_text(json.dumps(content), encoding="utf-8")
        draft.rename(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error


def take_pending(folder: Path) -> Registration:
    """The registration that was left, which is there no more after this.

    Raises
    ------
    StoreError
        If there is none, or it is none.
    """
    path = folder / PENDING_REGISTRATION
    try:
        content = json.loads(path.read_bytes())
        path.unlink()
        return Registration(
            facts=dict(content["facts"]),
            edges=tuple(
                EdgeRow(*(kind(value) for kind, value in zip(_EDGE, edge, strict=True))) for edge in content["edges"]
            ),
            stage=_positions(content["stage"]),
            registered=_positions(content["registered"]),
        )
    except OSError as error:
        raise StoreError(f"there is no registration to take in {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise StoreError(f"{path} is not a registration ({error!r}); register the run again") from error


def _positions(rows: list[list[object]]) -> tuple[Position, ...]:
    found = []
    for frame, view, row, col, source in rows:
        numbers = [number for number in (frame, view, row, col) if isinstance(number, int)]
        if len(numbers) < 4 or source not in ("stage", "joined", "registered"):
            raise ValueError(f"a position is frame, view, row, col and source; got {[frame, view, row, col, source]}")
        found.append(Position(numbers[0], numbers[1], numbers[2], numbers[3], str(source)))
    return tuple(found)
