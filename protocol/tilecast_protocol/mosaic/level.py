"""A level of a mosaic as an array that is not in memory: sliced as NumPy slices, read when it is asked for.

A `Level` counts pixels from the corner of the canvas, as the canvas was when it was made; so its shape never changes,
while its pixels do when the run grows. `Level.at` takes mosaic coordinates instead. The two are apart on purpose: with
a sign, -1 is a pixel; without, it is the last one.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ..rects import Rect
from .facts import Facts, Plane

if TYPE_CHECKING:
    import dask.array as da

    from .reader import Mosaic

AXES: Final = "tczyx"

_CHUNK_PX: Final = 1024  # edge of a chunk for Dask, about


class Selection:
    """Which planes are read, and in which order the axes come.

    Parameters
    ----------
    facts : Facts
    t, c, z : int, slice, sequence of int, or None
        A number takes its axis away; None is all there are.
    axes : str, optional
        The order in which the axes come, each once; `y` and `x` among them, and each of t, c, z that is not a number.
        One that is a number may stand there too, and has length 1. Left out: as in `tczyx`.

    Attributes
    ----------
    numbers : dict of str to sequence of int
        For t, c and z, which ones.
    axes : str
    """

    def __init__(self, facts: Facts, t: Any, c: Any, z: Any, axes: str | None) -> None:
        self.numbers: dict[str, Sequence[int]] = {}
        ranges = ""
        for axis, wanted, count in zip("tcz", (t, c, z), facts.counts, strict=True):
            if wanted is None:
                wanted = slice(None)
            if isinstance(wanted, slice):
                self.numbers[axis] = range(count)[wanted]
            elif isinstance(wanted, Sequence | np.ndarray):
                self.numbers[axis] = [operator.index(one) for one in wanted]
            else:
                self.numbers[axis] = [operator.index(wanted)]
                continue
            ranges += axis
        needed = f"{ranges}yx"
        self.axes = needed if axes is None else axes
        if len(set(self.axes)) != len(self.axes) or not set(needed) <= set(self.axes) <= set(AXES):
            raise ValueError(
                f"axes has each of {', '.join(needed)} once, in any order, and t, c, z beside; got {axes!r}"
            )

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """Of what is read."""
        sizes = {axis: len(numbers) for axis, numbers in self.numbers.items()} | {"y": height, "x": width}
        return tuple(sizes[axis] for axis in self.axes)

    @property
    def planes(self) -> list[Plane]:
        """In the order of t, then c, then z."""
        return [(t, c, z) for t in self.numbers["t"] for c in self.numbers["c"] for z in self.numbers["z"]]

    def index(self, number: int, rows: slice, cols: slice) -> tuple[int | slice, ...]:
        """Where in what is read a part of the plane of that number lies."""
        n_c, n_z = len(self.numbers["c"]), len(self.numbers["z"])
        at: dict[str, int | slice] = {"t": number // (n_c * n_z), "c": number // n_z % n_c, "z": number % n_z}
        at |= {"y": rows, "x": cols}
        return tuple(at[axis] for axis in self.axes)

    @property
    def transposed(self) -> bool:
        """Whether x comes before y."""
        return self.axes.index("x") < self.axes.index("y")


class Level:
    """A level of a mosaic, as an array.

    Made by `Mosaic.level`.

    Attributes
    ----------
    level : int
        0 is full resolution.
    axes : str
        What its dimensions are, of `tczyx`.
    bounds : Rect
        The part of the level that it shows, in mosaic coordinates of the level: the canvas.
    shape, dtype, ndim, size, nbytes
        As NumPy's.
    chunks : tuple of int
        Edges of the pieces in which it is stored.
    at : SignedLevel
        The same in mosaic coordinates.
    """

    def __init__(self, mosaic: Mosaic, level: int, facts: Facts, selection: Selection) -> None:
        self.mosaic = mosaic
        self.level = level
        self.bounds: Rect = facts.canvas_at(level)
        self.dtype = facts.dtype
        self._tile_shape = facts.tile_shape
        self._selection = selection
        self.axes = selection.axes
        self.shape = selection.shape(self.bounds.height, self.bounds.width)

    @property
    def ndim(self) -> int:
        """How many dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many pixels."""
        return int(np.prod(self.shape, dtype=object))

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels, were they in memory."""
        return self.size * self.dtype.itemsize

    @property
    def chunks(self) -> tuple[int, ...]:
        """Edges of a tile along each axis, 1 across planes."""
        sizes = {"y": self._tile_shape[0], "x": self._tile_shape[1]}
        return tuple(sizes.get(axis, 1) for axis in self.axes)

    @property
    def at(self) -> SignedLevel:
        """The same in mosaic coordinates."""
        return SignedLevel(self)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<level {self.level} of {self.mosaic.name!r}: {self.axes} {self.shape}, {self.dtype}>"

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Pixels, as NumPy gives them for whole numbers, slices, `...` and `None`.

        Raises
        ------
        IndexError
            It is out of bounds, or another kind of index.
        """
        wanted: list[range] = []
        into: list[Any] = []
        entries = _expanded(index, self.ndim)
        sizes = iter(self.shape)
        for entry in entries:
            if entry is None:
                into.append(None)
                continue
            size = next(sizes)
            if isinstance(entry, slice):
                chosen = range(size)[entry]
                backwards = chosen.step < 0
                wanted.append(chosen[::-1] if backwards else chosen)
                into.append(slice(None, None, -1) if backwards else slice(None))
            else:
                number = range(size)[entry]  # raises IndexError, with NumPy's meaning of negative numbers
                wanted.append(range(number, number + 1))
                into.append(0)
        found: NDArray[Any] = self._read(wanted)[tuple(into)]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a level of a mosaic is not in memory: it can only be copied there")
        found = self[...]
        return found if dtype is None else found.astype(dtype, copy=False)

    def to_dask(self, chunks: Any = None) -> da.Array:
        """The same as a Dask array, whose chunks are whole tiles; needs the extra `dask`.

        Parameters
        ----------
        chunks : optional
            As Dask takes them; left out, about 1024 pixels along an edge.
        """
        try:
            import dask.array
        except ImportError as error:
            raise ImportError("to_dask needs Dask, which is not installed: pip install 'tilecast[dask]'") from error
        if chunks is None:
            chunks = tuple(edge * max(1, _CHUNK_PX // edge) if edge > 1 else 1 for edge in self.chunks)
        # Its pixels may change: a name of its own each time, so that nothing of before is taken for it.
        return dask.array.from_array(  # type: ignore[no-any-return, no-untyped-call, unused-ignore]
            self, chunks=chunks, name=False, asarray=True, fancy=False, meta=np.empty((0,) * self.ndim, self.dtype)
        )

    def _read(self, wanted: Sequence[range]) -> NDArray[Any]:
        """Pixels of these indices along each axis; all axes are there, all steps positive."""
        along = dict(zip(self.axes, wanted, strict=True))
        numbers = {
            axis: [values[n] for n in along[axis]] if axis in along else list(values)
            for axis, values in self._selection.numbers.items()
        }
        selection = Selection(self.mosaic.facts, numbers["t"], numbers["c"], numbers["z"], None)
        rows, cols = _shifted(along["y"], self.bounds.row0), _shifted(along["x"], self.bounds.col0)
        out = self.mosaic._pixels(self.level, selection, rows, cols)
        order = [AXES.index(axis) for axis in self.axes]
        dropped = tuple(n for n, axis in enumerate(AXES) if axis not in self.axes)
        return out.transpose(*order, *dropped).reshape([len(one) for one in wanted])


class SignedLevel:
    """A level in mosaic coordinates: `level.at[-300:200, 40:90]`.

    Slices need a start and an end, for nothing else says where a plane without edges begins; pixels outside of what is
    covered are 0, or NaN. Axes other than y and x are indexed as ever.
    """

    def __init__(self, level: Level) -> None:
        self._level = level

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Pixels.

        Raises
        ------
        IndexError
            A slice along y or x has no start, no end, or a step that is not positive.
        """
        level = self._level
        entries = _expanded(index, level.ndim)
        if any(entry is None for entry in entries):
            raise IndexError("None is for counted axes; add one to what comes back")
        wanted: list[range] = []
        into: list[Any] = []
        for axis, size, entry in zip(level.axes, level.shape, entries, strict=True):
            if axis in "yx":
                corner = level.bounds.row0 if axis == "y" else level.bounds.col0
                if not isinstance(entry, slice):
                    chosen = range(entry, entry + 1)
                elif entry.start is None or entry.stop is None or (entry.step or 1) < 1:
                    raise IndexError(f"along {axis}, mosaic coordinates are start:stop or start:stop:step; got {entry}")
                else:
                    chosen = range(*(operator.index(one) for one in (entry.start, entry.stop, entry.step or 1)))
                chosen = _shifted(chosen, -corner)
            else:
                chosen = range(size)[entry] if isinstance(entry, slice) else range(size)[entry : entry + 1 or None]
                if chosen.step < 0:
                    raise IndexError(f"along {axis}, steps are positive here; got {entry}")
                if not isinstance(entry, slice) and not chosen:
                    raise IndexError(f"{axis} has {size} entries; asked for {entry}")
            wanted.append(chosen)
            into.append(slice(None) if isinstance(entry, slice) else 0)
        found: NDArray[Any] = level._read(wanted)[tuple(into)]
        return found


def _expanded(index: Any, ndim: int) -> list[Any]:
    """An index with an entry for each dimension: whole numbers, slices, and None."""
    entries = list(index) if isinstance(index, tuple) else [index]
    n_ellipses = sum(entry is Ellipsis for entry in entries)
    if n_ellipses > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    n_given = sum(entry is not None and entry is not Ellipsis for entry in entries)
    if n_given > ndim:
        raise IndexError(f"too many indices: the level has {ndim} dimensions; {n_given} were indexed")
    if not n_ellipses:
        entries.append(Ellipsis)
    where = next(number for number, entry in enumerate(entries) if entry is Ellipsis)
    entries[where : where + 1] = [slice(None)] * (ndim - n_given)
    return [entry if entry is None or isinstance(entry, slice) else _number(entry) for entry in entries]


def _number(entry: Any) -> int:
    if isinstance(entry, bool | np.bool_):
        raise IndexError("a level is indexed with whole numbers and slices; read it, and use masks on what comes")
    try:
        return operator.index(entry)
    except TypeError:
        raise IndexError(
            f"a level is indexed with whole numbers and slices, not {type(entry).__name__}: slice it, and index that"
        ) from None


def _shifted(wanted: range, by: int) -> range:
    return range(wanted.start + by, wanted.stop + by, wanted.step)
