"""Where a mosaic is read from: the one small interface, which every kind of source is behind.

A source tells what is known of a run (`facts`), gives its tiles (`tile`), and, if it can, says what changed
(`changes`, `updates`). Everything else (regions, levels, the cache, threads, following) is the same for all of them,
and lies elsewhere in this package.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..client import Resync, TileRef, TileUpdate
from ..errors import TilecastError
from .facts import Facts


class MissingPlaneError(TilecastError, LookupError):
    """A plane was asked for of which there is nothing, and that was not to be filled."""


class UnknownRunError(TilecastError, LookupError):
    """There is no such run where one was looked for."""


class Tile(NamedTuple):
    """A decoded tile.

    Attributes
    ----------
    pixels : ndarray, (rows, columns)
        Read-only.
    coverage : ndarray of bool, same shape, or None
        Which pixels are covered; None where all are.
    """

    pixels: NDArray[Any]
    coverage: NDArray[np.bool_] | None

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.pixels.nbytes + (0 if self.coverage is None else self.coverage.nbytes)


class Changed(NamedTuple):
    """What changed after a commit; with `resync` everything may have, and a reader begins anew."""

    epoch: int
    rev: int
    resync: bool
    tiles: tuple[TileRef, ...] = ()
    gone: tuple[TileRef, ...] = ()
    more: bool = False


class State(NamedTuple):
    """The run is in another state of its life now (PROTOCOL): `ended`, `idle`, `deleted` …"""

    state: str


News: TypeAlias = TileUpdate | Resync | State


class Source(abc.ABC):
    """Gives tiles of one run. All methods may be called by any thread, and block.

    They raise `DisconnectedError` if nobody answers, `QueryError` or another `TilecastError` if what is asked is
    refused or damaged, each with a sentence that says what to do.
    """

    threads: ClassVar[int] = 8
    """How many tiles are worth asking for at once."""

    tells_coverage: ClassVar[bool] = True
    """Whether tiles come with their coverage."""

    tells_changes: ClassVar[bool] = True
    """Whether one can ask what has changed."""

    @abc.abstractmethod
    def facts(self) -> Facts:
        """The run as it is now."""

    @abc.abstractmethod
    def tile(self, ref: TileRef) -> Tile | None:
        """A tile; None if there is none."""

    @abc.abstractmethod
    def changes(self, epoch: int, since: int) -> Changed:
        """What changed after a commit; `more`: ask again with the `rev` it leads to."""

    @abc.abstractmethod
    def updates(self, epoch: int, rev: int, stop: threading.Event) -> Generator[News, None, None]:
        """What happens after a commit, as it happens, without a hole; ends soon after `stop` was set.

        A source that cannot be reached for a while is waited for. Closing the iterator lets go of what it holds.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything. Calling it again does nothing."""

    def since(self, run: str, epoch: int, rev: int) -> Iterator[TileUpdate | Resync]:
        """What changed after a commit, up to now."""
        more = True
        while more:
            found = self.changes(epoch, rev)
            if found.resync:
                yield Resync(run, found.epoch, found.rev, "epoch")
                return
            if found.rev > rev:
                yield TileUpdate(run, epoch, found.rev, found.tiles, found.gone, healed=True)
            more, rev = found.more and found.rev > rev, found.rev


def frozen(pixels: NDArray[Any], coverage: NDArray[np.bool_] | None) -> Tile:
    """A tile that nobody can change; a mask of which all is true is none."""
    if coverage is not None and bool(coverage.all()):
        coverage = None
    pixels.flags.writeable = False
    if coverage is not None:
        coverage.flags.writeable = False
    return Tile(pixels, coverage)


def decoded(record: bytes | memoryview, bits: bytes | memoryview | None, shape: tuple[int, int], dtype: str) -> Tile:
    """A stored tile as arrays.

    Parameters
    ----------
    record : bytes-like
        PZF.
    bits : bytes-like or None
        Which pixels are covered: a bit each, row-major, packed; None where all are.
    shape : (rows, columns)
    dtype : str

    Raises
    ------
    PZFError
        The bytes are not a tile of this run.
    """
    from ..pzf import decode_image  # brings the compiler along: only for those who fetch pixels

    pixels = decode_image(record, shape=shape, dtype=dtype)
    if bits is None:
        return frozen(pixels, None)
    flat = np.unpackbits(np.frombuffer(bits, np.uint8), count=shape[0] * shape[1])
    return frozen(pixels, flat.reshape(shape).view(np.bool_))


def choose_run(listed: Sequence[tuple[str, str]], wanted: str | None, where: str) -> str:
    """The id of the run that is meant.

    Parameters
    ----------
    listed : sequence of (id, name)
        Oldest first.
    wanted : str or None
        An id, how it begins, or a name; None, or `last`, is the newest.
    where : str
        Said in errors.

    Raises
    ------
    UnknownRunError
        There is none, or more than one.
    """
    if not listed:
        raise UnknownRunError(f"there are no runs at {where}")
    if wanted is None or wanted == "last":
        return listed[-1][0]
    text = wanted.lower()
    found = [run for run, _ in listed if run.startswith(text)] if text else []
    found = found or [run for run, name in listed if name == wanted]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnknownRunError(f"there is no run {wanted!r} at {where}; the newest is {listed[-1][0]}")
    choices = ", ".join(run[:13] for run in found[-5:])
    raise UnknownRunError(f"{wanted!r} may be any of {len(found)} runs at {where} ({choices}…): give more of the id")
