"""The runs that are being read: one reader for each, shared by all threads, and not too many open at once.

Opening a store for every question would cost more than the answer. So readers stay open, the one used longest ago is
closed when there are too many, and none is closed while somebody reads through it.

>>> readers = OpenReaders(open_run, most=32)                # doctest: +SKIP
>>> with readers.reading("0b0e5a5e-…") as reader:           # doctest: +SKIP
...     reader.info()
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

from tilecast.store.sqlite_reader import SqliteReader


class _Lent:
    """A reader and how many use it; `wanted` until it is to be closed."""

    __slots__ = ("n_users", "reader", "wanted")

    def __init__(self, reader: SqliteReader) -> None:
        self.reader = reader
        self.n_users = 0
        self.wanted = True


class OpenReaders:
    """Readers by run; safe between threads.

    Parameters
    ----------
    open_run : callable
        Opens the store of a run; may take its time, and raise.
    most : int
        How many stay open while nobody uses them.
    """

    def __init__(self, open_run: Callable[[str], SqliteReader], most: int) -> None:
        self._open_run = open_run
        self._most = most
        self._lock = threading.Lock()
        self._lent: OrderedDict[str, _Lent] = OrderedDict()

    @contextlib.contextmanager
    def reading(self, run: str) -> Iterator[SqliteReader]:
        """The reader of a run, open as long as the `with`; raises what opening it raises."""
        lent = self._borrow(run)
        try:
            yield lent.reader
        finally:
            with self._lock:
                lent.n_users -= 1
                close = not lent.wanted and not lent.n_users
            if close:
                lent.reader.close()

    def forget(self, run: str) -> None:
        """Close the reader of a run, now or when its last user is done."""
        with self._lock:
            lent = self._lent.pop(run, None)
        if lent is not None:
            self._drop([lent])

    def close(self) -> None:
        """Close them all, now or when their last users are done."""
        with self._lock:
            lent = list(self._lent.values())
            self._lent.clear()
        self._drop(lent)

    def __len__(self) -> int:
        return len(self._lent)

    def _borrow(self, run: str) -> _Lent:
        with self._lock:
            lent = self._lent.get(run)
            if lent is not None:
                lent.n_users += 1
                self._lent.move_to_end(run)
                return lent
        opened = self._open_run(run)
        too_many = []
        with self._lock:
            lent = self._lent.setdefault(run, _Lent(opened))
            lent.n_users += 1
            self._lent.move_to_end(run)
            while len(self._lent) > self._most:
                too_many.append(self._lent.popitem(last=False)[1])
        self._drop(too_many)
        if lent.reader is not opened:
            opened.close()  # another thread was faster
        return lent

    def _drop(self, those: list[_Lent]) -> None:
        for lent in those:
            with self._lock:
                lent.wanted = False
                close = not lent.n_users
            if close:
                lent.reader.close()
