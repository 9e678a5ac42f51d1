"""The mosaic of one run as a pure state machine: placed frames in, batches of rendered tiles out.

    Placement ──add──▶ base tiles, blended ──flush──▶ their parents, level by level ──▶ Batch ──committed──▶ evictable

It owns which tiles have changed, what of them is in memory, and nothing else: no socket, file, clock, log or thread.
What it needs from outside it asks of three small interfaces: where committed frames lie (:class:`PlacementIndex`), the
pixels of a frame (:class:`FrameSource`) and a committed tile (:class:`TileSource`). The same object serves live
acquisition, recovery and the offline rebuild of a recording, which adds the placements in journal order.

How it stays correct
--------------------
A base tile is *empty*, *solo* (one frame touches it; its pixels are that frame's, and give the state back) or *blended*
(two or more; a state such as Σ w·v and Σ w beside the pixels, see `blending`). What is in memory of a tile is a cache:
a tile of which nothing is there is looked up by one query for the whole frame, then taken from its committed pixels
where those are enough, else blended anew from exactly the frames that cover it, in journal order. Integer sums do not
care about order, and whatever does is given the same order again, so the bits are the same either way.

Each flush renders from the changed tiles upwards, one quadrant of a parent per changed child; so after every batch each
upper tile is the reduction of its four children. Levels go up to the one where the union of all planes' boxes spans
2 × 2 tiles; when that grows a level, the new tiles are made for every plane.

A tile exists if it has a covered pixel; one that loses its last (a frame moved away) is listed as gone.

How memory stays bounded
------------------------
What a tile or a loaded frame holds is counted in bytes, and when the budget is passed the least recently used is
dropped: first tiles that have frames all around them and will hardly be touched again (`surroundings`), then others
without a state, which are one read away, and only when few of them are left the states and loaded frames, which cost
the decoding of whole frames to have again. Two things cannot be dropped and are the caller's to
bound: tiles whose newest version is not committed yet (:attr:`PyramidStats.pinned_bytes`; flush when
:attr:`Pyramid.pending_nbytes` says so, and commit),
and what one call works on (the frame, and the states of as many of its tiles as fit a quarter of the budget, at least
one). Nothing that is kept, and nothing that one frame costs, grows with the number of frames or tiles of the run; only
boxes of planes are kept, one for each plane.

>>> from tilecast.geometry import PlaneKey, Placement
>>> from tilecast.testing.memory_sources import MemorySources
>>> outside = MemorySources()
>>> mosaic = Pyramid(PyramidSettings("<u2", "feather", 64), budget_bytes=1 << 20,
...                  placements=outside, frames=outside, tiles=outside)
>>> frame = Placement(frame=0, view=0, plane=PlaneKey(), row=-8, col=0, height=64, width=200, source="stage", index=0)
>>> mosaic.add(frame, np.full((64, 200), 7, np.uint16))
True
>>> batch = mosaic.flush()
>>> batch.levels, len(batch.tiles), int(batch.tiles[PlaneKey(), TileKey(1, -1, 0)].pixels.max())
(2, 12, 7)
>>> outside.commit(batch)
>>> mosaic.committed(batch.number)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tilecast import blending, kernels, reduction, surroundings
from tilecast.geometry import Placement, PlaneKey, Rect, TileKey, level_count, tiles_in, union_of

Pixels = NDArray[Any]
Mask = NDArray[np.bool_]
#: One tile of one plane.
Address = tuple[PlaneKey, TileKey]
#: Tells the frames that touch each tile around the one at hand; asks the PlacementIndex when first called.
_Covering = Callable[[], dict[TileKey, list[Placement]]]

_DTYPES = ("|u1", "<u2", "<f4")
#: Rough cost of the Python objects around a tile's or a frame's arrays.
_OBJECT_BYTES = 1024
#: What one call works on at a time may take this part of the budget.
_PORTION = 4
#: What the top level of a plane has at most: 2 × 2 tiles.
_TOPS = 4
#: Tiles without a state are dropped first while they take more than this part of the budget.
_PLAIN_PART = 12


@dataclass(frozen=True, slots=True)
class PyramidSettings:
    """What is frozen at the start of a run and decides its pixels.

    Attributes
    ----------
    dtype : str
        ``|u1``, ``<u2`` or ``<f4``.
    mode : str
        One of `blending.BLEND_MODES`.
    tile_size : int
        Edge of a tile, pixels; a multiple of 8.
    feather_px : int
        For feather: widest ramp of weights at the edges of a frame, pixels.
    """

    dtype: str
    mode: str = "feather"
    tile_size: int = 256
    feather_px: int = blending.FEATHER_PX

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}; got {self.dtype!r}")
        if self.mode not in blending.BLEND_MODES:
            raise ValueError(f"mode must be one of {', '.join(blending.BLEND_MODES)}; got {self.mode!r}")
        if self.tile_size < 8 or self.tile_size % 8:
            raise ValueError(f"tile_size must be a multiple of 8 pixels; got {self.tile_size}")
        if self.feather_px < 1:
            raise ValueError(f"feather_px must be 1 or more; got {self.feather_px}")


@dataclass(frozen=True, slots=True, eq=False)
class RenderedTile:
    """A tile as it is stored and shown.

    Attributes
    ----------
    pixels : (T, T) array
        Uncovered pixels are 0, or NaN in float tiles. Read-only where the pyramid made it.
    coverage : (T, T) bool array or None
        Which pixels a placed frame covers (at an upper level: any of their four children); None if all.
    """

    pixels: Pixels
    coverage: Mask | None

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        return self.pixels.nbytes + (0 if self.coverage is None else self.coverage.nbytes)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one flush changed; to be written in one transaction.

    Attributes
    ----------
    number : int
        Rises by 1 per batch of this Pyramid, from 1; what `Pyramid.committed` takes.
    placements : tuple of Placement
        Added or moved since the last batch, each (frame, view) once, with where it lies now.
    tiles : dict
        New versions of tiles, lowest level first.
    gone : tuple of (PlaneKey, TileKey)
        Tiles of earlier batches that have no covered pixel any more.
    levels : int
        Levels of every plane, after this batch.
    bboxes : dict
        Level-0 boxes of the planes whose box has grown since the last batch; they never shrink.
    """

    number: int
    placements: tuple[Placement, ...]
    tiles: dict[Address, RenderedTile]
    gone: tuple[Address, ...]
    levels: int
    bboxes: dict[PlaneKey, Rect]

    @property
    def nbytes(self) -> int:
        """Memory its tiles hold."""
        return sum(tile.nbytes for tile in self.tiles.values())


@dataclass(frozen=True, slots=True)
class PyramidStats:
    """What the pyramid holds and has done.

    Attributes
    ----------
    nbytes : int
        Memory counted against the budget.
    budget_bytes : int
        The budget.
    pinned_bytes : int
        The part of it that waits for a commit and cannot be evicted.
    evictions : int
        Tiles, states and loaded frames dropped.
    rebuilds : int
        Base tiles blended anew from the frames that cover them.
    frames_loaded : int
        Frames asked of the FrameSource.
    hits, misses : int
        Tiles wanted and found in memory, or not.
    """

    nbytes: int
    budget_bytes: int
    pinned_bytes: int
    evictions: int
    rebuilds: int
    frames_loaded: int
    hits: int
    misses: int


class PlacementIndex(Protocol):
    """Where the committed frames of the run lie. Uncommitted ones the pyramid knows itself."""

    def covering(self, plane: PlaneKey, rect: Rect) -> Sequence[Placement]:
        """All committed placements of a plane whose rectangle shares a pixel with `rect`, in any order."""

    def has_placement(self, frame: int, view: int) -> bool:
        """Whether this view of this frame has been committed, wherever it lies."""


class FrameSource(Protocol):
    """The pixels of frames, as they are blended: calibrated, the same bits each time."""

    def load(self, placement: Placement) -> NDArray[Any]:
        """The (height, width) array of one placed frame."""


class TileSource(Protocol):
    """The committed tiles of the run."""

    def read(self, plane: PlaneKey, key: TileKey) -> RenderedTile | None:
        """The tile as last committed; None if there is none."""


_NO_QUEUE, _ENCLOSED, _PLAIN, _COSTLY = -1, 0, 1, 2
_ALL_QUIET = 0b1111


@dataclass(slots=True, eq=False)
class _Tile:
    """What is in memory of one tile. Base and upper tiles share it; the latter have no state and no frames."""

    address: Address
    pixels: Pixels | None = None  # None: the tile is known not to exist
    mask: Mask | None = None  # covered pixels of an integer tile, None if all; float tiles tell by NaN
    shared: bool = False  # a batch holds the arrays: copy before writing
    state: blending.State | None = None
    frames: int = 0  # how many touch it
    solo: Placement | None = None  # the one that does, if it is one
    last: tuple[int, int] = (-1, -1)  # highest journal order among them
    exists: bool | None = False  # whether the store, or a batch on its way there, has a version; None: ask the store
    enclosed: bool = False  # has frames all around it; of an upper tile: all four below it are
    quiet: int = 0  # of an upper tile: a bit for each of those four, as last reduced
    batch: int = 0  # number of the uncommitted batch that its newest version is, or will be, part of; 0 if committed
    nbytes: int = 0
    pinned: int = 0
    # Of what can be dropped, if it is there: its number, not the queue, which holds this tile. Such a circle, with all
    # its pixels, would stay in memory for long after the pyramid has gone.
    queue: int = _NO_QUEUE


@dataclass(slots=True, eq=False)
class _LoadedFrame:
    """A frame that a rebuild needed, kept while memory lasts, since neighbouring tiles will need it too."""

    id: tuple[int, int]
    pixels: Pixels
    nbytes: int


class Pyramid:
    """The mosaic of one run: all planes, all levels. One thread at a time.

    Parameters
    ----------
    settings : PyramidSettings
        Pixel type, blend mode, tile size.
    budget_bytes : int
        Memory for states, tiles and loaded frames; see the module's text for what may pass it.
    placements : PlacementIndex
    frames : FrameSource
    tiles : TileSource
    levels : int
        Levels committed so far; 0 for a new run.
    bboxes : dict, optional
        Boxes of the planes committed so far.

    Notes
    -----
    If a call raises because a frame or a tile could not be read, the mosaic in memory may be half changed: every later
    call raises RuntimeError. What is committed is right; go on with a new Pyramid on the same sources.
    """

    def __init__(
        self,
        settings: PyramidSettings,
        *,
        budget_bytes: int,
        placements: PlacementIndex,
        frames: FrameSource,
        tiles: TileSource,
        levels: int = 0,
        bboxes: dict[PlaneKey, Rect] | None = None,
    ) -> None:
        self.settings = settings
        self._dtype = np.dtype(settings.dtype)
        self._size = settings.tile_size
        self._budget_bytes = budget_bytes
        self._placements = placements
        self._frames = frames
        self._source = tiles
        self._blender = blending.make_blender(settings.mode, self._dtype, settings.feather_px)
        self._mask_bytes = settings.tile_size**2
        self._pixel_bytes = self._mask_bytes * self._dtype.itemsize

        self._levels = levels
        self._bboxes = dict(bboxes or {})
        self._union = union_of(self._bboxes.values())
        self._boxes_before: dict[PlaneKey, Rect] = {}  # as last flushed, of planes that have grown since
        self._next_levels = max(levels, level_count(self._union, self._size))  # of the next batch

        self._number = 0  # of the last batch
        self._dirty: dict[Address, _Tile] = {}  # base tiles changed since
        self._above: set[Address] = set()  # the tiles above them, which the next batch makes anew
        self._news: dict[tuple[int, int], Placement] = {}  # placements added or moved since
        # Rectangles of which all other frames are known since, and whether some frame lay elsewhere before.
        self._surveyed: list[tuple[PlaneKey, Rect, list[Rect]]] = []
        self._has_moved = False
        self._uncommitted: dict[tuple[int, int], tuple[Placement, int]] = {}  # with the number of their batch
        self._batches: dict[int, tuple[list[_Tile], list[tuple[int, int]]]] = {}  # not committed: tiles, placement ids

        self._tiles: dict[Address, _Tile] = {}
        self._loaded: dict[tuple[int, int], _LoadedFrame] = {}
        # What can be dropped, least recently used first: base tiles that are enclosed; other tiles without a state;
        # those with one, and frames by (frame, view).
        self._enclosed: OrderedDict[Address, _Tile] = OrderedDict()
        self._plain: OrderedDict[Address, _Tile] = OrderedDict()
        self._costly: OrderedDict[Address | tuple[int, int], _Tile | _LoadedFrame] = OrderedDict()
        self._queues: tuple[OrderedDict[Any, Any], ...] = (self._enclosed, self._plain, self._costly)
        self._held_bytes = 0
        self._pinned_bytes = 0
        self._evictions = self._rebuilds = self._frames_loaded = self._hits = self._misses = 0
        self._midway = False

    @property
    def levels(self) -> int:
        """Levels of every plane, as last flushed."""
        return self._levels

    @property
    def bboxes(self) -> dict[PlaneKey, Rect]:
        """Level-0 box of each plane so far (a copy)."""
        return dict(self._bboxes)

    @property
    def budget_bytes(self) -> int:
        """The memory it may hold; can be changed at any time, and holds at once."""
        return self._budget_bytes

    @budget_bytes.setter
    def budget_bytes(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._shrink()

    @property
    def pending_nbytes(self) -> int:
        """The most that the tiles of the next batch hold, were it made now: what it is to be bounded by."""
        n_tiles = len(self._dirty) + len(self._above)
        if self._levels:  # a new level is made for every plane, also for those that have not changed
            n_tiles += (self._next_levels - self._levels) * _TOPS * len(self._bboxes)
        return n_tiles * (self._pixel_bytes + self._mask_bytes)

    def stats(self) -> PyramidStats:
        """What is held and what has been done so far."""
        return PyramidStats(
            nbytes=self._held_bytes + self._blender.nbytes,
            budget_bytes=self._budget_bytes,
            pinned_bytes=self._pinned_bytes,
            evictions=self._evictions,
            rebuilds=self._rebuilds,
            frames_loaded=self._frames_loaded,
            hits=self._hits,
            misses=self._misses,
        )

    # ---------------------------------------------------------------------------------------------- frames in

    def add(self, placement: Placement, pixels: NDArray[Any] | None = None) -> bool:
        """Blend a placed frame into the base tiles that it touches.

        Parameters
        ----------
        placement : Placement
            Where it lies. Frames may come in any order.
        pixels : (height, width) C-contiguous array of the run's dtype, optional
            Its pixels; asked of the FrameSource if None. Not kept beyond this call.

        Returns
        -------
        bool
            False, and nothing has happened, if this (frame, view) has been added before, wherever it lies.

        Raises
        ------
        ValueError
            If the pixels do not fit the placement or the run, or the placement does not fit the blend mode.
        """
        self._check_whole()
        self._check_placement(placement)
        if placement.id in self._uncommitted or self._placements.has_placement(*placement.id):
            return False
        frame = self._load(placement) if pixels is None else self._checked(placement, pixels)
        self._midway = True
        self._blend(placement, frame)
        self._midway = False
        return True

    def move(self, old: Placement, new: Placement) -> None:
        """Put a frame somewhere else: blend the tiles that it leaves anew, and add it where it goes.

        Parameters
        ----------
        old : Placement
            Where the frame lies: as added, whether committed or not.
        new : Placement
            Where it will: the same frame, view and journal index; the plane may be another.

        Raises
        ------
        ValueError
            If the two are not the same frame, or the frame does not lie at `old`.
        """
        self._check_whole()
        self._check_placement(new)
        if (old.id, old.index, old.height, old.width) != (new.id, new.index, new.height, new.width):
            raise ValueError(f"a move keeps frame, view, index and size; got {old} and {new}")
        if old not in self._covering(old.plane, old.rect):
            raise ValueError(f"frame {old.frame}, view {old.view}, does not lie at {old.plane} {old.rect}")
        frame = self._load(new)
        self._midway = self._has_moved = True
        self._note(new)
        # In the tiles that it leaves it may still lie, at its new place: a rebuild sees to both.
        left = list(tiles_in(old.rect, 0, self._size))
        covering = cache(
            lambda: self._by_tile(old, self._covering(old.plane, surroundings.reach(old.rect, self._size)))
        )
        for portion in self._portions(left):
            self._hold(old.plane, portion)
            self._rebuild(old.plane, {key: covering().get(key, []) for key in portion}, new, frame)
            self._release(old.plane, portion)
        self._blend(new, frame, skip=frozenset(left) if old.plane == new.plane else frozenset())
        self._midway = False

    def _blend(self, placement: Placement, frame: Pixels, skip: frozenset[TileKey] = frozenset()) -> None:
        """Blend a frame into its tiles but those of `skip`, a portion of them at a time."""
        self._note(placement)
        plane = placement.plane
        keys = [key for key in tiles_in(placement.rect, 0, self._size) if key not in skip]
        # Asked at most once for the whole frame, and only if a tile is not in memory: so not while the stage is parked,
        # and thousands of frames lie around.
        around = cache(partial(self._around, placement))
        covering = cache(lambda: self._by_tile(placement, around()))
        for portion in self._portions(keys):
            self._hold(plane, portion)
            rebuild = {}
            for key in portion:
                if not self._make_ready(plane, key, placement, covering):
                    rebuild[key] = [*covering().get(key, []), placement]
            if rebuild:
                self._rebuild(plane, rebuild, placement, frame)
            enclosed: list[bool] | None = None
            if around.cache_info().currsize:
                rects = [each.rect for each in around()]
                enclosed = surroundings.enclosed(placement.rect, rects, portion, self._size).tolist()
            tiles = []
            for i, key in enumerate(portion):
                if key in rebuild:
                    continue  # it was not expected to be touched again, and may be once more
                tile = self._tiles[plane, key]
                tile.enclosed = enclosed is not None and enclosed[i]
                tiles.append(tile)
            self._blend_tiles(tiles, placement, frame)
            self._release(plane, portion)

    def _note(self, placement: Placement) -> None:
        """Take down a placement that the next batch will carry, and what it does to the boxes."""
        self._news[placement.id] = placement
        self._uncommitted[placement.id] = placement, self._number + 1
        box = self._bboxes.get(placement.plane, Rect(0, 0, 0, 0))
        if not box.contains(placement.rect):
            self._boxes_before.setdefault(placement.plane, box)
            self._bboxes[placement.plane] = box.union(placement.rect)
            self._union = self._union.union(placement.rect)
            levels = level_count(self._union, self._size)
            if levels > self._next_levels:
                self._next_levels = levels
                self._above.clear()
                for address in self._dirty:
                    self._mark_above(address)

    def _make_ready(self, plane: PlaneKey, key: TileKey, placement: Placement, covering: _Covering) -> bool:
        """Bring a base tile into memory so that `placement` can be blended into it; False if it must be rebuilt."""
        tile = self._tiles.get((plane, key))
        if tile is not None:
            self._hits += 1
            stale = tile.frames > 1 and tile.state is None and self._blender.needs_state
            late = self._blender.ordered and placement.order < tile.last
            return not (stale or late)
        self._misses += 1
        others = covering().get(key)
        if others is None:
            self._keep(_Tile((plane, key)))
            return True
        last = max(other.order for other in others)
        late = self._blender.ordered and placement.order < last
        if late or (len(others) > 1 and self._blender.needs_state):
            return False
        tile = self._read((plane, key))
        if tile is None:  # a float tile without a finite pixel is not stored
            return False
        tile.frames, tile.last, tile.solo = len(others), last, others[0] if len(others) == 1 else None
        self._keep(tile)
        return True

    def _rebuild(
        self, plane: PlaneKey, wanted: dict[TileKey, list[Placement]], own: Placement, own_pixels: Pixels
    ) -> None:
        """Blend base tiles anew from the frames that cover them, in journal order, each frame loaded once.

        `own` is the frame at hand, whose pixels need not be loaded.
        """
        into: dict[tuple[int, int], tuple[Placement, list[_Tile]]] = {}
        for key, placements in wanted.items():
            before = self._tiles.get((plane, key))
            tile = _Tile((plane, key), exists=None if before is None else before.exists)
            if before is not None:
                self._forget(before)
            self._mark(tile)
            self._keep(tile)
            self._account(tile)
            self._rebuilds += 1
            for placement in placements:
                into.setdefault(placement.id, (placement, []))[1].append(tile)
        for placement, tiles in sorted(into.values(), key=lambda item: item[0].order):
            frame = own_pixels if placement.id == own.id else self._load(placement, keep=True)
            self._blend_tiles(tiles, placement, frame)

    def _blend_tiles(self, tiles: list[_Tile], placement: Placement, frame: Pixels) -> None:
        """Blend a frame into base tiles that are in memory and ready for it."""
        size, is_float = self._size, self._dtype.kind == "f"
        jobs = []
        for tile in tiles:
            key, old, out, mask, solo = tile.address[1], tile.pixels, tile.pixels, tile.mask, None
            window = blending.window_of(placement, key, size)
            if out is None:
                out = np.empty((size, size), self._dtype)
                if not is_float and window[:4] != (0, size, 0, size):
                    mask = np.empty((size, size), np.bool_)
            else:
                if tile.solo is not None:
                    solo = blending.Placed(tile.solo, blending.window_of(tile.solo, key, size))
                if tile.shared:
                    out = np.empty((size, size), self._dtype)
                    mask = None if mask is None else mask.copy()
            jobs.append(blending.Job(window, old, out, mask, tile.state, solo, tile.enclosed))
        self._blender.blend(jobs, frame, placement)
        for tile, job in zip(tiles, jobs, strict=True):
            tile.pixels, tile.mask, tile.state, tile.shared = job.out, job.mask, job.state, False
            tile.frames += 1
            tile.solo = placement if tile.frames == 1 else None
            tile.last = max(tile.last, placement.order)
            self._mark(tile)
            self._account(tile)

    # -------------------------------------------------------------------------------------------- batches out

    def flush(self) -> Batch | None:
        """Render what has changed since the last flush, at every level.

        Returns
        -------
        Batch or None
            None if nothing has changed. Its tiles stay in memory until :meth:`committed` is told its number; batches
            are to be committed in order.
        """
        self._check_whole()
        if not self._news:
            return None
        self._midway = True
        self._number += 1
        levels = self._next_levels
        rendered: dict[Address, RenderedTile] = {}
        gone: list[Address] = []
        changed = list(self._dirty.values())
        for tile in changed:
            self._emit(tile, rendered, gone)
        all_changed = list(changed)
        for level in range(1, levels):
            if level == self._levels:
                changed += self._unchanged_tops(level - 1, {tile.address for tile in changed})
            families: dict[Address, list[_Tile]] = {}
            for tile in changed:
                plane, key = tile.address
                families.setdefault((plane, key.parent()), []).append(tile)
            changed = self._reduce(families)
            for tile in changed:
                self._emit(tile, rendered, gone)
            all_changed += changed
        batch = Batch(
            number=self._number,
            placements=tuple(self._news.values()),
            tiles=rendered,
            gone=tuple(gone),
            levels=levels,
            bboxes={plane: self._bboxes[plane] for plane in self._boxes_before},
        )
        self._batches[self._number] = all_changed, list(self._news)
        self._levels = levels
        self._dirty, self._above, self._news, self._boxes_before = {}, set(), {}, {}
        self._surveyed, self._has_moved = [], False
        self._shrink()
        self._midway = False
        return batch

    def committed(self, number: int) -> None:
        """Take note that this batch, and all before it, can now be read from the three sources.

        Raises
        ------
        ValueError
            If there is no such batch yet.
        """
        if number > self._number:
            raise ValueError(f"batch {number} has not been made yet; the last one is {self._number}")
        for done in [waiting for waiting in self._batches if waiting <= number]:
            tiles, ids = self._batches.pop(done)
            for tile in tiles:
                if tile.batch != done:  # it has changed again, or has been replaced
                    continue
                tile.batch = 0
                if tile.pixels is None:
                    self._forget(tile)
                else:
                    self._account(tile)
                    self._use(tile)
            for frame_id in ids:
                if self._uncommitted[frame_id][1] == done:
                    del self._uncommitted[frame_id]
        self._shrink()

    def _emit(self, tile: _Tile, rendered: dict[Address, RenderedTile], gone: list[Address]) -> None:
        """Hand out a changed tile, or list it as gone if nothing of it is covered any more."""
        mask, covered = tile.mask, tile.pixels is not None
        if tile.pixels is not None and self._dtype.kind == "f":
            mask = reduction.float_coverage(tile.pixels)
            covered = mask is None or bool(mask.any())
        if tile.pixels is not None and covered:
            tile.shared = tile.exists = True
            rendered[tile.address] = RenderedTile(_read_only(tile.pixels), None if mask is None else _read_only(mask))
            return
        if tile.exists is None:
            tile.exists = self._source.read(*tile.address) is not None
        if tile.exists:
            gone.append(tile.address)
        tile.exists = False
        if tile.frames == 0:  # a base tile under frames without a finite pixel keeps its state
            tile.pixels = tile.mask = None
            self._account(tile)

    def _unchanged_tops(self, level: int, changed: set[Address]) -> Iterator[_Tile]:
        """What else there is on the level that was the top so far: at most 2 × 2 tiles of each plane."""
        for plane, box in self._bboxes.items():
            for key in tiles_in(self._boxes_before.get(plane, box), level, self._size):
                if (plane, key) not in changed:
                    tile = self._tiles.get((plane, key)) or self._read((plane, key))
                    if tile is not None and tile.exists:
                        yield tile

    def _reduce(self, families: dict[Address, list[_Tile]]) -> list[_Tile]:
        """Reduce the given children into the tiles above them, and leave the other quadrants alone."""
        tiles, jobs = [], []
        for address, children in families.items():
            tile = self._tiles.get(address)
            if tile is not None:
                self._hits += 1
            else:
                self._misses += 1
                tile = (self._read(address) if self._may_exist(address) else None) or _Tile(address)
                self._keep(tile)
            self._unqueue(tile)
            parts = [
                reduction.Child(*_half_of(child), child.pixels if child.exists else None, child.mask)
                for child in children
            ]
            for child in children:
                bit = 1 << 2 * (child.address[1].row & 1) + (child.address[1].col & 1)
                tile.quiet = tile.quiet | bit if child.enclosed else tile.quiet & ~bit
            tile.enclosed = tile.quiet == _ALL_QUIET
            tiles.append(tile)
            jobs.append(reduction.Family(tile.pixels, tile.mask, parts))
        reduction.reduce_families(jobs, self._dtype, self._size)
        for tile, job in zip(tiles, jobs, strict=True):
            tile.pixels, tile.mask, tile.shared = job.pixels, job.mask, False
            tile.batch = self._number
            self._account(tile)
        return tiles

    # --------------------------------------------------------------------------------------- what is in memory

    def _around(self, placement: Placement) -> list[Placement]:
        """The other frames in reach of one."""
        reach = surroundings.reach(placement.rect, self._size)
        found = [each for each in self._covering(placement.plane, reach) if each.id != placement.id]
        self._surveyed.append((placement.plane, reach, [each.rect for each in found]))
        return found

    def _by_tile(self, placement: Placement, frames: list[Placement]) -> dict[TileKey, list[Placement]]:
        """Those of the frames that touch each of the tiles that a placement touches; tiles without are left out."""
        by_tile: dict[TileKey, list[Placement]] = {}
        block = surroundings.block(placement.rect, self._size)
        for each in frames:
            for key in tiles_in(each.rect.intersect(block), 0, self._size):
                by_tile.setdefault(key, []).append(each)
        return by_tile

    def _covering(self, plane: PlaneKey, rect: Rect) -> list[Placement]:
        """All placements that share a pixel with a rectangle, committed or not, each where it lies now."""
        found = [each for each in self._placements.covering(plane, rect) if each.id not in self._uncommitted]
        for placement, _ in self._uncommitted.values():
            if placement.plane == plane and not placement.rect.intersect(rect).empty:
                found.append(placement)
        return found

    def _portions(self, keys: list[TileKey]) -> Iterator[list[TileKey]]:
        """The tiles of one call, cut into portions whose states take no more than a part of the budget."""
        tile_bytes = self._pixel_bytes + self._mask_bytes * (1 + self._blender.state_bytes) + _OBJECT_BYTES
        count = max(1, self._budget_bytes // _PORTION // tile_bytes)
        for start in range(0, len(keys), count):
            yield keys[start : start + count]

    def _load(self, placement: Placement, *, keep: bool = False) -> Pixels:
        """The pixels of a frame; kept, if asked, while memory lasts."""
        loaded = self._loaded.get(placement.id)
        if loaded is not None:
            self._costly.move_to_end(placement.id)
            return loaded.pixels
        pixels = self._checked(placement, self._frames.load(placement))
        self._frames_loaded += 1
        if keep and pixels.nbytes <= self._budget_bytes // _PORTION:
            loaded = _LoadedFrame(placement.id, pixels, pixels.nbytes + _OBJECT_BYTES)
            self._loaded[placement.id] = self._costly[placement.id] = loaded
            self._held_bytes += loaded.nbytes
            self._shrink()
        return pixels

    def _may_exist(self, address: Address) -> bool:
        """Whether there could have been a tile when the last batch was made: most that a scan comes to are new."""
        plane, key = address
        before = self._boxes_before.get(plane, self._bboxes[plane])
        rect = key.rect(self._size << key.level)
        if before.intersect(rect).empty:
            return False
        if not self._has_moved:
            for surveyed, reach, frames in self._surveyed:
                if surveyed == plane and reach.contains(rect):
                    return any(not frame.intersect(rect).empty for frame in frames)
        return True

    def _read(self, address: Address) -> _Tile | None:
        """A tile as committed, not yet kept; None if there is none."""
        stored = self._source.read(*address)
        if stored is None:
            return None
        if stored.pixels.shape != (self._size, self._size):
            raise ValueError(f"tile {address} should be {self._size} pixels square; got {stored.pixels.shape}")
        pixels = np.require(stored.pixels, self._dtype, ["C", "A", "W"])
        mask = None
        if stored.coverage is not None and self._dtype.kind != "f":
            mask = np.require(stored.coverage, np.bool_, ["C", "A", "W"])
        return _Tile(address, pixels, mask, shared=True, exists=True)

    def _mark(self, tile: _Tile) -> None:
        """Put a base tile among those that the next flush renders."""
        tile.batch = self._number + 1
        if tile.address not in self._dirty:
            self._mark_above(tile.address)
        self._dirty[tile.address] = tile

    def _mark_above(self, address: Address) -> None:
        """Take down the tiles above a base tile, which the next flush makes anew."""
        plane, key = address
        while key.level + 1 < self._next_levels:
            key = key.parent()
            above = plane, key
            if above in self._above:
                return  # and so are all above it
            self._above.add(above)

    def _keep(self, tile: _Tile) -> None:
        """Hold a tile in memory; it is counted when next changed, and cannot be evicted before it is `_use`d."""
        self._tiles[tile.address] = tile

    def _forget(self, tile: _Tile) -> None:
        """Hold it no longer."""
        tile.batch = 0
        tile.pixels = tile.mask = tile.state = None
        self._account(tile)
        self._held_bytes -= tile.nbytes
        del self._tiles[tile.address]
        self._unqueue(tile)

    def _account(self, tile: _Tile) -> None:
        """Count a tile's memory anew."""
        nbytes = _OBJECT_BYTES
        if tile.pixels is not None:
            nbytes += self._pixel_bytes
        if tile.mask is not None:
            nbytes += self._mask_bytes
        pinned = nbytes if tile.batch else 0
        if tile.state is not None:
            nbytes += tile.state.nbytes
        self._held_bytes += nbytes - tile.nbytes
        self._pinned_bytes += pinned - tile.pinned
        tile.nbytes, tile.pinned = nbytes, pinned

    def _hold(self, plane: PlaneKey, keys: list[TileKey]) -> None:
        """Keep tiles from being evicted while they are worked on."""
        for key in keys:
            tile = self._tiles.get((plane, key))
            if tile is not None:
                self._unqueue(tile)

    def _release(self, plane: PlaneKey, keys: list[TileKey]) -> None:
        """Let them go again, as the most recently used."""
        for key in keys:
            self._use(self._tiles[plane, key])
        self._shrink()

    def _use(self, tile: _Tile) -> None:
        """Count a tile as the most recently used, if anything of it can be dropped."""
        self._unqueue(tile)
        if tile.state is None and tile.batch:
            return
        if tile.enclosed:
            tile.queue = _ENCLOSED
        elif tile.state is not None:
            tile.queue = _COSTLY
        else:
            tile.queue = _PLAIN
        self._queues[tile.queue][tile.address] = tile

    def _unqueue(self, tile: _Tile) -> None:
        """Do not count a tile among those that can be dropped."""
        if tile.queue != _NO_QUEUE:
            del self._queues[tile.queue][tile.address]
            tile.queue = _NO_QUEUE

    def _shrink(self) -> None:
        """Drop what can be had again cheaply, then what has not been used for longest, until the budget holds."""
        plain_count = self._budget_bytes // _PLAIN_PART // self._pixel_bytes
        while self._held_bytes + self._blender.nbytes > self._budget_bytes and (
            self._enclosed or self._plain or self._costly
        ):
            oldest: _Tile | _LoadedFrame
            if self._enclosed:
                _, oldest = self._enclosed.popitem(last=False)
            elif len(self._plain) > plain_count or not self._costly:
                _, oldest = self._plain.popitem(last=False)
            else:
                _, oldest = self._costly.popitem(last=False)
            self._evictions += 1
            if isinstance(oldest, _LoadedFrame):
                self._held_bytes -= oldest.nbytes
                del self._loaded[oldest.id]
                continue
            oldest.queue = _NO_QUEUE
            if oldest.batch:
                oldest.state = None
                self._account(oldest)
            else:
                self._forget(oldest)

    # ---------------------------------------------------------------------------------------------- what may come

    def _check_whole(self) -> None:
        if self._midway:
            raise RuntimeError("an earlier call failed midway; go on with a new Pyramid on the same sources")

    def _check_placement(self, placement: Placement) -> None:
        if placement.height < 1 or placement.width < 1:
            raise ValueError(f"a frame has at least one pixel; got {placement.height} × {placement.width}")
        self._blender.check(placement)

    def _checked(self, placement: Placement, pixels: Pixels) -> Pixels:
        """The read-only view that kernels take, if the pixels fit the placement and the run."""
        shape = placement.height, placement.width
        if pixels.shape != shape or pixels.dtype != self._dtype or not pixels.flags.c_contiguous:
            raise ValueError(
                f"frame {placement.frame} should be a C-contiguous {shape} array of {self._dtype.str}; "
                f"got {pixels.shape} of {pixels.dtype.str}"
            )
        return kernels.read_only(pixels)


def _half_of(child: _Tile) -> tuple[int, int]:
    """The quadrant of its parent that a tile is reduced into."""
    _, key = child.address
    return key.row & 1, key.col & 1


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
