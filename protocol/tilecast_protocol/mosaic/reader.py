"""`Mosaic`: a run as something that is read, wherever it lies."""

from __future__ import annotations

import importlib.metadata
import math
import os
import re
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from ..client import Region, Resync, TileUpdate
from ..rects import Rect
from .cache import TileCache
from .facts import Facts, Origin, Plane, Space
from .fetching import Tiles, assemble, pieces
from .following import Change, Following
from .level import Level, Selection
from .progress import Progress, reporting
from .source import MissingPlaneError, Source, UnknownRunError

SOURCES: Final = "tilecast.mosaic_sources"
"""The entry points of sources that this package does not bring along; `folder` reads a run on this machine."""

CACHE_ITEMS: Final = 4096
CACHE_NBYTES: Final = 256 << 20

Planes = Any  # int, slice, sequence of int, or None for all


class Mosaic:
    """A run, read from a folder, a daemon, `tilecast web` or a CATMAID tile source; made by `Mosaic.open`.

    Safe between threads. What is known of the run (`facts`), and the tiles in the cache, are those of when they were
    asked for; `refresh` brings both up to date, `follow` keeps them so.

    Parameters
    ----------
    source : Source
    threads : int, optional
        How many fetch tiles at once; as many as suit the source, if it is left out.
    cache_items, cache_nbytes : int
        Most tiles that are kept, and most bytes of them.

    Examples
    --------
    >>> from tilecast_protocol import Mosaic
    >>> with Mosaic.open("runs/0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55") as mosaic:   # doctest: +SKIP
    ...     overview = mosaic.read(level=mosaic.n_levels - 1)
    ...     part = mosaic.read((-200, 0, 300, 400))
    ...     there = mosaic.read(((120.0, 80.0), (180.0, 140.0)), space="um")
    """

    def __init__(
        self,
        source: Source,
        *,
        threads: int | None = None,
        cache_items: int = CACHE_ITEMS,
        cache_nbytes: int = CACHE_NBYTES,
    ) -> None:
        self.source = source
        self.cache = TileCache(cache_items, cache_nbytes)
        self._tiles = Tiles(source, self.cache, source.threads if threads is None else threads)
        self._lock = threading.Lock()
        self._facts: Facts | None = None
        self._following: list[Following] = []
        self._recipe: tuple[Any, ...] | None = None
        self._closed = False
        try:
            facts = self.facts
            #: Up to which commit nothing in the cache is known to be out of date.
            self._at = facts.epoch, facts.rev
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        address: str | os.PathLike[str] | Mapping[str, Any],
        run: str | None = None,
        *,
        threads: int | None = None,
        cache_items: int = CACHE_ITEMS,
        cache_nbytes: int = CACHE_NBYTES,
        **options: Any,
    ) -> Self:
        """Open a run.

        Parameters
        ----------
        address : path, str, or mapping
            A run's folder, or the folder of all runs; a daemon's query endpoint, ``tcp://…`` or ``ipc://…``; the
            address of `tilecast web` or of a link on its page, ``http://…``; or where a CATMAID stack is described,
            ``http…/stack/ID/info``, or that description itself.
        run : str, optional
            Where there are several: an id, how it begins, a name, or `last`. Left out, the newest.
        threads, cache_items, cache_nbytes
            See the class.
        **options
            Of a daemon: `notify` (its notify endpoint), `curve` (`CurveKeys`), `timeout_s`. Of `tilecast web`: `token`,
            `timeout_s`. Of CATMAID: `mirror` (title or position), `auth` (user, password), `headers`, `timeout_s`.

        Raises
        ------
        UnknownRunError
            There is no such run.
        DisconnectedError
            Nobody answers there.
        TilecastError
            It cannot be read; says why.
        """
        mosaic = cls(
            open_source(address, run, **options),
            threads=threads,
            cache_items=cache_items,
            cache_nbytes=cache_nbytes,
        )
        same_run = mosaic.run if mosaic.source.tells_changes else None
        settings = {"threads": threads, "cache_items": cache_items, "cache_nbytes": cache_nbytes, **options}
        mosaic._recipe = (address, same_run, settings)
        return mosaic

    def close(self) -> None:
        """Let go of everything. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        for following in list(self._following):
            following.close()
        self._tiles.close()
        self.cache.clear()
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        facts = self.facts
        return f"<Mosaic {facts.name!r} ({facts.run}), {facts.levels} levels of {facts.dtype}, rev {facts.rev}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it is opened anew."""
        if self._recipe is None:
            raise TypeError("only a mosaic that was made by Mosaic.open can be sent to another process")
        return _reopened, (type(self), *self._recipe)

    # ---- what it is -----------------------------------------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        """What is known of the run."""
        with self._lock:
            if self._facts is None:
                self._facts = self.source.facts()
            return self._facts

    @property
    def run(self) -> str:
        """Its id."""
        return self.facts.run

    @property
    def name(self) -> str:
        """Its name for people."""
        return self.facts.name

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its pixels."""
        return self.facts.dtype

    @property
    def n_levels(self) -> int:
        """How many levels there are; 0 before the first frame."""
        return self.facts.levels

    @property
    def planes(self) -> list[Plane]:
        """(t, c, z) of each plane that has a frame."""
        return sorted(self.facts.boxes)

    @property
    def bounds(self) -> Rect:
        """What is covered, mosaic coordinates of level 0."""
        return self.facts.box

    @property
    def canvas(self) -> Rect | None:
        """The rectangle that viewers are shown, in the same; None before the first frame."""
        return self.facts.canvas

    def to_um(self, row: float, col: float) -> tuple[float, float]:
        """The stage position (x, y) of a point in mosaic coordinates of level 0; (0, 0) is the corner of pixel (0, 0).

        The centre of pixel (r, c) is (r + 0.5, c + 0.5).
        """
        return self.facts.to_um(row, col)

    def to_pixels(self, x_um: float, y_um: float) -> tuple[float, float]:
        """The point (row, col) in mosaic coordinates of level 0 that lies at a stage position."""
        return self.facts.to_pixels(x_um, y_um)

    def refresh(self) -> Facts:
        """Look at the run again, and forget the tiles that have changed since; gives what is known now."""
        for change in self.source.since(self.run, *self._at):
            self._heard(change)
        self._forget_facts()
        return self.facts

    # ---- reading --------------------------------------------------------------------------------------------------

    def level(self, level: int, *, t: Planes = 0, c: Planes = 0, z: Planes = 0, axes: str | None = None) -> Level:
        """A level as an array that is read when it is sliced.

        Parameters
        ----------
        level : int
            0 is full resolution.
        t, c, z : int, slice, sequence of int, or None
            Which planes; a number takes its axis away, None is all there are.
        axes : str, optional
            The order of the axes, of those that are there: `yx`, `czyx`, `xyz` …

        Raises
        ------
        ValueError
            There is no such level, or nothing was placed yet.
        """
        facts = self.facts
        facts.check_level(level)
        return Level(self, level, facts, Selection(facts, t, c, z, axes))

    def levels(self, *, t: Planes = 0, c: Planes = 0, z: Planes = 0, axes: str | None = None) -> list[Level]:
        """All levels, the largest first, as viewers take a pyramid. Parameters as of `level`."""
        return [self.level(level, t=t, c=c, z=z, axes=axes) for level in range(self.n_levels)]

    @overload
    def read(
        self,
        roi: Any = None,
        *,
        space: Space = "pixels",
        origin: Origin = "mosaic",
        level: int = 0,
        t: Planes = 0,
        c: Planes = 0,
        z: Planes = 0,
        axes: str | None = None,
        out: Any = None,
        fill: float | None = None,
        missing: Literal["fill", "raise"] = "fill",
        coverage: Literal[False] = False,
        progress: Progress = None,
    ) -> Any: ...
    @overload
    def read(
        self,
        roi: Any = None,
        *,
        space: Space = "pixels",
        origin: Origin = "mosaic",
        level: int = 0,
        t: Planes = 0,
        c: Planes = 0,
        z: Planes = 0,
        axes: str | None = None,
        out: Any = None,
        fill: float | None = None,
        missing: Literal["fill", "raise"] = "fill",
        coverage: Literal[True],
        progress: Progress = None,
    ) -> Region: ...
    def read(
        self,
        roi: Any = None,
        *,
        space: Space = "pixels",
        origin: Origin = "mosaic",
        level: int = 0,
        t: Planes = 0,
        c: Planes = 0,
        z: Planes = 0,
        axes: str | None = None,
        out: Any = None,
        fill: float | None = None,
        missing: Literal["fill", "raise"] = "fill",
        coverage: bool = False,
        progress: Progress = None,
    ) -> Any:
        """Pixels of a region.

        Parameters
        ----------
        roi : (row0, col0, row1, col1), ((row0, col0), (row1, col1)), ((x0, y0), (x1, y1)) or None
            Half-open, rows before columns in pixels, x before y in micrometres; None is all that is covered. What does
            not begin and end at whole pixels of the level is widened to them.
        space : {"pixels", "level", "um"}
            What `roi` is in: pixels of level 0, pixels of the level itself, or stage micrometres, which the affine of
            the run carries into pixels. Where the camera lies askew, what comes is the rectangle of pixels around it.
        origin : {"mosaic", "canvas"}
            What pixels are counted from: stage (0, 0), with a sign, or the corner of the canvas.
        level : int
            Which level is read; 0 is full resolution.
        t, c, z : int, slice, sequence of int, or None
            Which planes; a number takes its axis away, None is all there are.
        axes : str, optional
            The order of the axes, of those that are there: `yx`, `czyx`, `xyz` …; one of a single plane may be named
            too, and has length 1. Left out: as in `tczyx`.
        out : optional
            What to read into: anything that has a shape and takes slices (NumPy, memmap, HDF5, Zarr). Its pixel type
            must be able to hold the mosaic's.
        fill : float, optional
            Value of pixels that are not covered; 0, or NaN in float mosaics, if it is left out.
        missing : {"fill", "raise"}
            What becomes of a plane that has no frame.
        coverage : bool
            Whether to tell, too, which pixels are covered.
        progress : bool or callable, optional
            See `Progress`.

        Returns
        -------
        ndarray, or `out`
            With `coverage` a `Region`: that, and a bool array of the same shape.

        Raises
        ------
        ValueError
            Something of this cannot be; says what.
        MissingPlaneError
            A plane has no frame, and `missing` is `raise`.
        DisconnectedError, TilecastError
            It cannot be read; says why.
        """
        facts = self.facts
        facts.check_level(level)
        region = facts.region(roi, space, origin, level)
        selection = Selection(facts, t, c, z, axes)
        rows, cols = range(region.row0, region.row1), range(region.col0, region.col1)
        return self._read(facts, level, selection, rows, cols, out, fill, missing, coverage, progress)

    @overload
    def tile(
        self,
        row: int,
        col: int,
        *,
        level: int = 0,
        span: int = 1,
        t: int = 0,
        c: int = 0,
        z: int = 0,
        fill: float | None = None,
        coverage: Literal[False] = False,
    ) -> NDArray[Any]: ...
    @overload
    def tile(
        self,
        row: int,
        col: int,
        *,
        level: int = 0,
        span: int = 1,
        t: int = 0,
        c: int = 0,
        z: int = 0,
        fill: float | None = None,
        coverage: Literal[True],
    ) -> Region: ...
    def tile(
        self,
        row: int,
        col: int,
        *,
        level: int = 0,
        span: int = 1,
        t: int = 0,
        c: int = 0,
        z: int = 0,
        fill: float | None = None,
        coverage: bool = False,
    ) -> Any:
        """A tile, or an oversized one of `span` × `span` tiles, of which this is the upper left.

        Steps of 1 with a span of 2 visit every place with a margin of a tile: what lies across an edge is whole in one
        of them.

        Parameters
        ----------
        row, col : int
            As the source counts tiles: with a sign, from stage (0, 0); in a CATMAID stack from its corner.
        level, span, t, c, z : int
        fill, coverage
            As of `read`.

        Raises
        ------
        ValueError
            There is no such level, or the span is not positive.
        """
        if span < 1:
            raise ValueError(f"a span is 1 or more tiles; got {span}")
        facts = self.facts
        facts.check_level(level)
        height, width = facts.tile_shape
        row0, col0 = row * height + (facts.grid[0] >> level), col * width + (facts.grid[1] >> level)
        rows, cols = range(row0, row0 + span * height), range(col0, col0 + span * width)
        return self._read(
            facts, level, Selection(facts, t, c, z, None), rows, cols, None, fill, "fill", coverage, False
        )

    def follow(
        self,
        callback: Callable[[Change], object] | None = None,
        *,
        existing: bool = True,
        until_end: bool = True,
    ) -> Following:
        """Follow the run while it grows: from now on what is read is never older than what was told.

        Parameters
        ----------
        callback : callable, optional
            Called with each region that changed (`Change`), one after the other, in a thread of its own; what it raises
            ends the following. Without, iterate over what is returned.
        existing : bool
            Whether what is there already comes first.
        until_end : bool
            Whether it ends with the run; else it goes on, for late frames and rebuilds, until it is closed.

        Returns
        -------
        Following
            To be closed, or used with `with`.

        Raises
        ------
        ValueError
            The source does not tell what changes.

        Examples
        --------
        >>> with mosaic.follow() as changes:                                    # doctest: +SKIP
        ...     for change in changes:
        ...         look_at(mosaic.read(change.bounds, t=change.t, c=change.c, z=change.z))
        """
        if not self.source.tells_changes:
            raise ValueError(
                "a CATMAID source does not tell what changes: open the address of `tilecast web` itself, or refresh"
            )
        following = Following(self, callback, existing=existing, until_end=until_end)
        self._following.append(following)
        return following

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _pixels(self, level: int, selection: Selection, rows: range, cols: range) -> NDArray[Any]:
        """For `Level`."""
        found: NDArray[Any] = self._read(self.facts, level, selection, rows, cols, None, None, "fill", False, None)
        return found

    def _read(
        self,
        facts: Facts,
        level: int,
        selection: Selection,
        rows: range,
        cols: range,
        out: Any,
        fill: float | None,
        missing: str,
        coverage: bool,
        progress: Progress,
    ) -> Any:
        planes = selection.planes
        absent = [plane for plane in planes if plane not in facts.boxes]
        if missing == "raise" and absent:
            has = ", ".join(map(str, sorted(facts.boxes)[:8])) or "none yet"
            raise MissingPlaneError(f"there is no frame in plane {absent[0]} (t, c, z) of {facts.name!r}; it has {has}")
        if missing not in ("fill", "raise"):
            raise ValueError(f"missing is 'fill' or 'raise'; got {missing!r}")
        if coverage and not self.source.tells_coverage:
            raise ValueError("a CATMAID source does not tell which pixels are covered; leave out coverage")
        shape = selection.shape(len(rows), len(cols))
        fill = facts.fill if fill is None else fill
        dtype = facts.dtype if out is None else _check_out(out, shape, facts.dtype)
        _check_fill(fill, dtype)
        wanted = list(pieces(facts, level, planes, rows, cols))
        blank = not absent and sum(_n_pixels(one.rows, one.cols) for one in wanted) == math.prod(shape)
        if out is None:
            out = np.full(shape, fill, dtype)
            blank = False
        elif not blank:  # tiles do not reach everywhere
            out[...] = fill
        mask = np.zeros(shape, np.bool_) if coverage else None

        def write(number: int, at_rows: slice, at_cols: slice, pixels: NDArray[Any], covered: Any) -> None:
            index = selection.index(number, at_rows, at_cols)
            out[index] = pixels.T if selection.transposed else pixels
            if mask is not None:
                flat = np.True_ if covered is None else covered
                mask[index] = flat.T if selection.transposed else flat

        with reporting(progress, len(wanted)) as advance:
            assemble(
                self._tiles, wanted, write, dtype=dtype, stored=facts.fill, fill=fill, blank=blank, advance=advance
            )
        return out if mask is None else Region(out, mask)

    def _heard(self, update: TileUpdate | Resync) -> None:
        """Forget what is out of date by this."""
        if isinstance(update, TileUpdate):
            self.cache.drop((*update.tiles, *update.gone))
        else:
            self.cache.clear()
        with self._lock:
            self._facts = None
            self._at = max(self._at, (update.epoch, update.rev))

    def _forget_facts(self) -> None:
        with self._lock:
            self._facts = None

    def _followed_no_more(self, following: Following) -> None:
        if following in self._following:
            self._following.remove(following)


def open_source(address: str | os.PathLike[str] | Mapping[str, Any], run: str | None = None, **options: Any) -> Source:
    """The source for an address; parameters as of `Mosaic.open`."""
    text = "" if isinstance(address, Mapping) else os.fspath(address)
    scheme = text.partition("://")[0] if "://" in text else ""
    if isinstance(address, Mapping) or (
        scheme in ("http", "https") and re.search(r"/stack/[^/?#]+/info/?([?#]|$)", text)
    ):
        from .catmaid import CatmaidSource

        if run is not None:
            raise ValueError("a CATMAID stack is a run by itself: leave out run")
        return CatmaidSource(address if isinstance(address, Mapping) else text, **options)
    if scheme in ("tcp", "ipc", "inproc"):
        from .query import QuerySource

        return QuerySource(text, run, **options)
    if scheme in ("http", "https"):
        from .web import WebSource

        return WebSource(text, run, **options)
    if scheme not in ("", "file"):
        raise ValueError(f"a mosaic is opened from a folder, tcp://, ipc://, http:// or https://; got {text!r}")
    for entry in importlib.metadata.entry_points(group=SOURCES, name="folder"):
        source: Source = entry.load()(text.removeprefix("file://"), run, **options)
        return source
    raise UnknownRunError(
        f"{text!r} is a folder, and what reads folders is not installed here: pip install tilecast, or open the mosaic "
        "through a daemon (tcp://…) or `tilecast web` (http://…)"
    )


def _reopened(cls: type[Mosaic], address: Any, run: str | None, settings: dict[str, Any]) -> Mosaic:
    return cls.open(address, run, **settings)


def _check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The pixel type of what is to be read into."""
    if tuple(out.shape) != shape:
        raise ValueError(f"out must have the shape of what is read, {shape}; it has {tuple(out.shape)}")
    given: np.dtype[Any] = np.dtype(out.dtype)
    if not np.can_cast(dtype, given, "safe"):
        raise ValueError(f"out is {given}, which cannot hold the mosaic's {dtype}")
    return given


def _check_fill(fill: float, dtype: np.dtype[Any]) -> None:
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        if not limits.min <= fill <= limits.max or fill != int(fill):
            raise ValueError(f"fill must be a value of {dtype}; got {fill!r}: read into an out that can hold it")


def _n_pixels(rows: slice, cols: slice) -> int:
    return int((rows.stop - rows.start) * (cols.stop - cols.start))
