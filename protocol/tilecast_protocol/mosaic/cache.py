"""Decoded tiles, the ones used last, bounded in number and in bytes, and never one that is known to be out of date.

A tile that changes while it is being fetched must not be kept: who fetches says so first (`begin`), and what is
dropped meanwhile is marked. That a tile does not exist is kept as well.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from ..client import TileRef
from .source import Tile


class Fetch:
    """A tile that is being fetched, and whether it was dropped since."""

    __slots__ = ("ref", "stale")

    def __init__(self, ref: TileRef) -> None:
        self.ref = ref
        self.stale = False


class TileCache:
    """Safe between threads.

    Parameters
    ----------
    max_items : int
        Most tiles that are kept.
    max_nbytes : int
        Most bytes of pixels and masks.
    """

    def __init__(self, max_items: int, max_nbytes: int) -> None:
        if max_items < 0 or max_nbytes < 0:
            raise ValueError(f"a cache holds 0 or more tiles and bytes; got {max_items} and {max_nbytes}")
        self.max_items = max_items
        self.max_nbytes = max_nbytes
        self._lock = threading.Lock()
        self._tiles: OrderedDict[TileRef, Tile | None] = OrderedDict()
        self._fetching: dict[TileRef, list[Fetch]] = {}
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._tiles)

    @property
    def nbytes(self) -> int:
        """Bytes of the tiles that are kept."""
        return self._nbytes

    def get(self, ref: TileRef) -> tuple[Tile | None] | None:
        """What is known of a tile, alone in a tuple; None if nothing is."""
        with self._lock:
            if ref not in self._tiles:
                return None
            self._tiles.move_to_end(ref)
            return (self._tiles[ref],)

    def begin(self, ref: TileRef) -> Fetch:
        """Say that a tile is being fetched; `finish` must follow."""
        fetch = Fetch(ref)
        with self._lock:
            self._fetching.setdefault(ref, []).append(fetch)
        return fetch

    def finish(self, fetch: Fetch, found: tuple[Tile | None] | None) -> None:
        """Keep what was fetched, unless it was dropped meanwhile; None: it failed."""
        ref = fetch.ref
        with self._lock:
            fetching = self._fetching[ref]
            fetching.remove(fetch)
            if not fetching:
                del self._fetching[ref]
            if found is None or fetch.stale:
                return
            self._forget(ref)
            (tile,) = found
            self._tiles[ref] = tile
            self._nbytes += 0 if tile is None else tile.nbytes
            while len(self._tiles) > self.max_items or self._nbytes > self.max_nbytes:
                self._forget(next(iter(self._tiles)))

    def drop(self, refs: Iterable[TileRef]) -> None:
        """Forget tiles that have changed."""
        with self._lock:
            for ref in refs:
                self._forget(ref)
                for fetch in self._fetching.get(ref, ()):
                    fetch.stale = True

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._tiles.clear()
            self._nbytes = 0
            for fetching in self._fetching.values():
                for fetch in fetching:
                    fetch.stale = True

    def _forget(self, ref: TileRef) -> None:
        tile = self._tiles.pop(ref, None)
        self._nbytes -= 0 if tile is None else tile.nbytes
