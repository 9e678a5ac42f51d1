"""A mosaic that is followed while it grows: the cache kept right, and each region that changed handed on.

One thread listens and does nothing else but drop from the cache what has changed, so a slow analysis never sees a tile
of before. What changed and was not yet handed on is kept as a set of tiles: who is slow gets fewer and larger regions,
never a longer and longer queue, and never a region whose commit is not readable yet.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from ..client import Resync, TileRef, TileUpdate
from ..rects import Rect
from .facts import OVER, Facts, Plane
from .source import State

if TYPE_CHECKING:
    from .reader import Mosaic


class Change(NamedTuple):
    """A region that changed.

    Attributes
    ----------
    t, c, z : int
        In which plane.
    bounds : Rect
        Mosaic coordinates of level 0, as `Mosaic.read` takes them: whole tiles, as far as anything is covered.
    epoch, rev : int
        The commit up to which it is told.
    whole : bool
        All of the plane: what was there before, or everything of a run that was rebuilt.
    """

    t: int
    c: int
    z: int
    bounds: Rect
    epoch: int
    rev: int
    whole: bool = False


class Following:
    """Made by `Mosaic.follow`; iterate over it, or wait for its end; close it, or use `with`.

    Parameters
    ----------
    mosaic : Mosaic
    callback : callable, optional
        Called with each `Change`, in a thread of its own, one after the other.
    existing : bool
        Whether what is there already comes first.
    until_end : bool
        Whether it ends with the run.
    """

    def __init__(
        self, mosaic: Mosaic, callback: Callable[[Change], object] | None, *, existing: bool, until_end: bool
    ) -> None:
        self._mosaic = mosaic
        self._until_end = until_end
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._tiles: dict[Plane, set[tuple[int, int]]] = {}
        self._whole: set[Plane] = set()
        self._over = False
        self._error: BaseException | None = None
        facts = mosaic.refresh()
        self._epoch, self._rev = mosaic._at
        if existing:
            self._whole.update(facts.boxes)
        self._listener = threading.Thread(target=self._listen, name="tilecast-follow", daemon=True)
        self._caller = None
        if callback is not None:
            self._caller = threading.Thread(target=self._call, args=(callback,), name="tilecast-changed", daemon=True)
            self._caller.start()
        self._listener.start()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self._over

    def __iter__(self) -> Iterator[Change]:
        return self.changes()

    def changes(self, timeout_s: float | None = None) -> Iterator[Change]:
        """Regions as they change; ends with the run, when it is closed, or when none came for `timeout_s`.

        Raises
        ------
        TilecastError
            It cannot be followed any more, and why.
        """
        while True:
            with self._news:
                if not self._news.wait_for(self._has_news, timeout_s):
                    return
                tiles, self._tiles = self._tiles, {}
                whole, self._whole = self._whole, set()
                epoch, rev = self._epoch, self._rev
                if not tiles and not whole:
                    if self._error is not None:
                        raise self._error
                    return
            facts = self._mosaic.facts
            for plane in sorted(whole | tiles.keys()):
                box = facts.boxes.get(plane)
                if box is None:
                    continue
                if plane in whole:
                    yield Change(*plane, box, epoch, rev, whole=True)
                    continue
                for region in regions(tiles[plane]):
                    bounds = _pixels(region, facts).intersect(box)
                    if not bounds.empty:
                        yield Change(*plane, bounds, epoch, rev)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is over and everything was handed to the callback; False if that takes longer.

        Raises
        ------
        Exception
            What the callback raised, which ends it, or why it cannot be followed any more.
        """
        threads = [self._listener] if self._caller is None else [self._listener, self._caller]
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in threads:
            thread.join(None if deadline_s is None else max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                return False
        if self._error is not None:
            raise self._error
        return True

    def close(self) -> None:
        """End it. What was not handed on yet is not any more."""
        self._stop.set()
        with self._news:
            self._tiles.clear()
            self._whole.clear()
            self._over = True
            self._news.notify_all()
        for thread in (self._listener, self._caller):
            if thread is not None and thread is not threading.current_thread():
                thread.join()
        self._mosaic._followed_no_more(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if error is None and self._error is not None:
            raise self._error

    def _has_news(self) -> bool:
        return bool(self._tiles or self._whole or self._over)

    def _listen(self) -> None:
        try:
            self._follow()
        except BaseException as error:  # noqa: BLE001  (the edge of a thread: whoever waits for changes is told)
            self._error = error
        with self._news:
            self._over = True
            self._news.notify_all()

    def _follow(self) -> None:
        if self._until_end and self._mosaic.facts.state in OVER:
            return
        updates = self._mosaic.source.updates(self._epoch, self._rev, self._stop)
        try:
            for update in updates:
                if isinstance(update, State):
                    self._mosaic._forget_facts()
                    if update.state == "deleted" or (self._until_end and update.state in OVER):
                        break
                else:
                    self._take(update)
        finally:
            updates.close()
        if not self._stop.is_set() and self._mosaic.facts.state in OVER:
            # The end may be heard before the last commit is.
            for last in self._mosaic.source.since(self._mosaic.facts.run, self._epoch, self._rev):
                self._take(last)

    def _take(self, update: TileUpdate | Resync) -> None:
        if isinstance(update, TileUpdate) and (update.epoch, update.rev) <= (self._epoch, self._rev):
            return
        self._mosaic._heard(update)
        whole = self._mosaic.facts.boxes if isinstance(update, Resync) else ()
        with self._news:
            self._epoch, self._rev = update.epoch, update.rev
            if self._stop.is_set():
                return
            self._whole.update(whole)
            if isinstance(update, TileUpdate):
                for ref in _base((*update.tiles, *update.gone)):
                    self._tiles.setdefault(ref.tcz, set()).add((ref.row, ref.col))
            self._news.notify_all()

    def _call(self, callback: Callable[[Change], object]) -> None:
        try:
            for change in self.changes():
                callback(change)
        except BaseException as error:  # noqa: BLE001  (the edge of a thread: `wait` and `close` raise it)
            self._error = error
            self._stop.set()


def _base(refs: Iterable[TileRef]) -> Iterator[TileRef]:
    return (ref for ref in refs if ref.level == 0)


def regions(tiles: Iterable[tuple[int, int]]) -> list[Rect]:
    """Rectangles around groups of tiles that touch, also at corners; rows and columns of tiles, half-open.

    >>> regions([(0, 0), (0, 1), (1, 2), (5, 5)])
    [Rect(row0=0, col0=0, row1=2, col1=3), Rect(row0=5, col0=5, row1=6, col1=6)]
    """
    left = set(tiles)
    found = []
    for first in sorted(left):
        if first not in left:
            continue
        left.remove(first)
        group, edge = [first], [first]
        while edge:
            row, col = edge.pop()
            near = {(row + i, col + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            group += near
            edge += near
        rows, cols = [row for row, _ in group], [col for _, col in group]
        found.append(Rect(min(rows), min(cols), max(rows) + 1, max(cols) + 1))
    return found


def _pixels(region: Rect, facts: Facts) -> Rect:
    """The pixels of level 0 of a rectangle of tiles."""
    height, width = facts.tile_shape
    row0, col0, row1, col1 = region
    return Rect(row0 * height, col0 * width, row1 * height, col1 * width).shifted(*facts.grid)
