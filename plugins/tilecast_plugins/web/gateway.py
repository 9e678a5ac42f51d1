"""What all endpoints share: runs, tiles, looks and the pool in which the work is done.

An endpoint parses what its clients say, asks here, and writes what they expect. The hot path is one hop: a request is
parsed in the event loop, `work` runs one function in the pool that looks up, decodes, renders and encodes, and the
answer goes out in one piece.

What `start` froze and where the canvas lies is remembered for `INFO_S` seconds, or until the daemon says that it
changed; so a tile under an old epoch may be served for that long, with the old epoch in its ETag.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from tilecast.reading import PlaneKey, Rect, StoreError, TileKey, rect_at_level
from tilecast_plugins.pixels import Pixels, Tile, percentile_window
from tilecast_plugins.run import Run
from tilecast_plugins.web import caching, encoding, rendering
from tilecast_plugins.web.news import Committed, Moved, News, Newsroom, Notice, StageAt
from tilecast_plugins.web.rendering import ChannelLook, Look
from tilecast_plugins.web.settings import Settings
from tilecast_plugins.web.sources import LocalSource, RemoteSource, Source
from tilecast_protocol.errors import PZFError, QueryError

INFO_S: Final = 0.25
"""How long a run's metadata are remembered."""

STAGE_S: Final = 0.25
"""How often the daemon is asked where its stages are, while a page follows."""

_KEPT_RUNS: Final = 256
_KEPT_WINDOWS: Final = 1024
_WINDOW_PLANES: Final = 4  # of a channel, from which its window is taken
_WINDOW_LEVELS: Final = 3  # that are tried for it, from the top one downwards

P = ParamSpec("P")
T = TypeVar("T")


class NotFoundError(LookupError):
    """What was asked for does not exist; the message says what does."""


class AbsentTileError(NotFoundError):
    """There is no such tile, because nothing of it is covered; its address is a good one."""


class TooLargeError(ValueError):
    """More was asked for than one answer may hold; the message says what to do."""


class BadRequestError(ValueError):
    """What was asked makes no sense; the message says what was expected."""


class Gateway:
    """Everything that an endpoint needs.

    Parameters
    ----------
    settings : Settings

    Attributes
    ----------
    settings : Settings
    source : Source
    pixels : Pixels
    news : Newsroom
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.source = _source(settings)
        self.pixels = Pixels(self.source, settings.cache_nbytes)
        self.news = Newsroom(settings.notify, on_news=self._heard)
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="tilecast-web")
        self._asking_pool = ThreadPoolExecutor(2, thread_name_prefix="tilecast-web-ask")
        self._stage_task: asyncio.Task[None] | None = None
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, tuple[float, Run]] = OrderedDict()
        self._windows: OrderedDict[tuple[Any, ...], tuple[float, float]] = OrderedDict()

    async def work(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in the pool."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: function(*args, **kwargs))

    async def consult(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that may have to wait for the daemon, in threads apart: tiles do not wait for it."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._asking_pool, lambda: function(*args, **kwargs))

    def start(self) -> None:
        """Begin to follow the daemon; in the event loop."""
        self.news.start()
        if self.settings.query is not None:
            self._stage_task = asyncio.get_running_loop().create_task(self._watch_stage())

    async def close(self) -> None:
        """Let go of everything."""
        if self._stage_task is not None:
            self._stage_task.cancel()
        self.news.stop()
        for pool in (self._pool, self._asking_pool):
            pool.shutdown(wait=True, cancel_futures=True)
        self.source.close()

    async def _watch_stage(self) -> None:
        """While somebody looks, ask where the stages are, and tell it if one has moved."""
        known: dict[tuple[str, str], StageAt] = {}
        while True:
            await asyncio.sleep(STAGE_S)
            if not self.news.n_followers:
                continue
            with contextlib.suppress(QueryError, ConnectionError):
                stats = (await self.consult(self.source.ask, "stats"))["stats"]
                for stage in map(_stage_at, stats["ingest"].get("stages", ())):
                    if known.get((stage.instrument, stage.stream)) != stage:
                        known[stage.instrument, stage.stream] = stage
                        self.news.tell(stage)

    # ---- runs: blocking, for functions that run in the pool --------------------------------------------------------

    def run(self, run: str, epoch: int | None = None) -> Run:
        """A run as it was at most `INFO_S` ago.

        Parameters
        ----------
        run : str
            Its UUID, in any case.
        epoch : int, optional
            The epoch in a URL: another than the run's is not found.

        Raises
        ------
        UnknownRunError
            There is no such run.
        NotFoundError
            The epoch is not the run's.
        """
        run = run.lower()
        known = self._runs.get(run)
        if known is None or known[0] < time.monotonic() or (epoch is not None and epoch > known[1].epoch):
            found = self.source.info(run)
            with self._lock:
                self._runs[run] = (time.monotonic() + INFO_S, found)
                while len(self._runs) > _KEPT_RUNS:
                    self._runs.popitem(last=False)
        else:
            found = known[1]
        if epoch is not None and epoch != found.epoch:
            raise NotFoundError(f"the run is in epoch {found.epoch}; {epoch} is over, and its tiles are void")
        return found

    def window(self, run: Run, c: int) -> tuple[float, float]:
        """Black and white point of a channel where nobody says any: nearly all values of its top level lie between.

        It is taken anew each time the run has twice as many commits, and rounded outwards to two digits or so, so that
        tiles which are shown side by side are shown alike.
        """
        name = (run.run, run.epoch, c, run.rev.bit_length())
        found = self._windows.get(name)
        if found is None:
            top = max(0, run.levels - 1)
            for level in range(top, max(-1, top - _WINDOW_LEVELS), -1):
                # A damaged tile is told to whoever asks for it; a run is described, and shown, all the same.
                with contextlib.suppress(StoreError, QueryError, PZFError):
                    found = self._measure(run, c, level)
                    break
            else:
                return _full_range(run.dtype)  # not kept: next time it may go better
            with self._lock:
                self._windows[name] = found
                while len(self._windows) > _KEPT_WINDOWS:
                    self._windows.popitem(last=False)
        return found

    def _measure(self, run: Run, c: int, level: int) -> tuple[float, float]:
        values = []
        for plane, box in [one for one in run.bboxes.items() if one[0].c == c][:_WINDOW_PLANES]:
            region = self.pixels.region(run, plane, level, rect_at_level(box, level))
            found = region.pixels if region.coverage is None else region.pixels[region.coverage]
            values.append(found[np.isfinite(found)] if run.dtype.kind == "f" else found)
        if not sum(len(one) for one in map(np.ravel, values)):
            return _full_range(run.dtype)
        low, high = percentile_window(np.concatenate([np.ravel(one) for one in values]))
        return rounded_window(low, high)

    def look(
        self, run: Run, channels: Sequence[int], wanted: Look, given: Sequence[tuple[float | None, float | None]] = ()
    ) -> Look:
        """A look in which windows that nobody gave are those of the channels.

        Parameters
        ----------
        channels : sequence of int
        wanted : Look
            Of so many channels.
        given : sequence of (low or None, high or None)
            Windows as far as they were given; those that are missing are taken from the run.
        """
        filled = []
        for number, (c, channel) in enumerate(zip(channels, wanted.channels, strict=True)):
            low, high = given[number] if number < len(given) else (None, None)
            if low is None or high is None:
                default_low, default_high = self.window(run, c)
                low, high = default_low if low is None else low, default_high if high is None else high
            filled.append(ChannelLook(low, high, channel.color))
        return replace(wanted, channels=tuple(filled))

    # ---- pictures: blocking ----------------------------------------------------------------------------------------

    def tile(self, run: Run, plane: PlaneKey, key: TileKey) -> Tile | None:
        """A decoded tile of any level; None if nothing of it is covered."""
        return self.pixels.tile(run, plane, key)

    def tile_picture(
        self,
        run: Run,
        planes: Sequence[PlaneKey],
        key: TileKey,
        look: Look,
        fmt: str,
        *,
        quality: int = encoding.DEFAULT_QUALITY,
        if_none_match: str | None = None,
        blank: bool = False,
        crop: tuple[int, int] | None = None,
    ) -> Response | None:
        """A rendered tile as an answer, or 304.

        Parameters
        ----------
        planes : sequence of PlaneKey
            One for each channel of `look`.
        key : TileKey
            Signed; of any level, also above the store's.
        look : Look
            With its windows filled in (`look`).
        fmt : {"png", "jpg", "webp"}
        quality : int
        if_none_match : str, optional
            The header of that name.
        blank : bool
            What becomes of a tile of which nothing is covered: a blank picture, or None.
        crop : (rows, cols), optional
            Only this much of it, from its upper left corner.
        """
        tiles = [self.pixels.tile(run, plane, key) for plane in planes]
        rev = max((tile.rev for tile in tiles if tile is not None), default=None)
        if rev is None and not blank:
            return None
        tag = caching.etag(run.run, run.epoch, tuple(planes), tuple(key), rev, look, fmt, quality, crop)
        if caching.matches(if_none_match, tag):
            return caching.not_modified(tag)
        size = run.tile_size
        rows, cols = crop or (size, size)
        part = np.s_[:rows, :cols]
        alpha = fmt in encoding.TRANSPARENT
        if rev is None:
            picture = rendering.blank((rows, cols), look, alpha=alpha)
        else:
            nothing = np.zeros((rows, cols), run.dtype), np.zeros((rows, cols), np.bool_)
            shown = [
                nothing
                if tile is None
                else (tile.pixels[part], tile.coverage if tile.coverage is None else tile.coverage[part])
                for tile in tiles
            ]
            picture = rendering.render([one[0] for one in shown], [one[1] for one in shown], look, alpha=alpha)
        return picture_answer(encoding.encode(picture, fmt, quality), fmt, tag)

    def layers_picture(
        self,
        run: Run,
        name: tuple[object, ...],
        layers: Sequence[tuple[NDArray[Any], NDArray[np.bool_] | None, int]],
        look: Look,
        fmt: str,
        *,
        quality: int = encoding.DEFAULT_QUALITY,
        if_none_match: str | None = None,
        alpha: bool = True,
        size: tuple[int, int] | None = None,
    ) -> Response:
        """Arrays as a rendered picture, or 304.

        Parameters
        ----------
        name : tuple
            What of the run they are.
        layers : sequence of (pixels, mask, rev)
            One for each channel of `look`.
        alpha : bool
            Whether what is not covered is transparent, where the format can say so; else it is the background.
        size : (rows, cols), optional
            Of the picture, if not that of the arrays.
        """
        rev = max(rev for _, _, rev in layers)
        tag = caching.etag(run.run, run.epoch, name, rev, look, fmt, quality, alpha, size)
        if caching.matches(if_none_match, tag):
            return caching.not_modified(tag)
        picture = rendering.render(
            [pixels for pixels, _, _ in layers],
            [mask for _, mask, _ in layers],
            look,
            alpha=alpha and fmt in encoding.TRANSPARENT,
        )
        if size is not None:
            picture = encoding.resized(picture, size)
        return picture_answer(encoding.encode(picture, fmt, quality), fmt, tag)

    def region_picture(
        self,
        run: Run,
        planes: Sequence[PlaneKey],
        level: int,
        bounds: Rect,
        look: Look,
        fmt: str,
        *,
        size: tuple[int, int] | None = None,
        quality: int = encoding.DEFAULT_QUALITY,
        if_none_match: str | None = None,
    ) -> Response:
        """A rendered rectangle of a level, in that level's pixels, signed; or 304. `size`: of another (rows, cols).

        Raises
        ------
        TooLargeError
            If it is larger than one answer may be.
        """
        self.check_region(bounds)
        if max(bounds.height, bounds.width) > encoding.MAX_SIDE[fmt]:
            raise TooLargeError(f"{fmt} holds pictures of up to {encoding.MAX_SIDE[fmt]} pixels a side; take png")
        regions = [self.pixels.region(run, plane, level, bounds) for plane in planes]
        name = (tuple(planes), level, tuple(bounds))
        return self.layers_picture(
            run, name, regions, look, fmt, quality=quality, if_none_match=if_none_match, size=size
        )

    def check_region(self, bounds: Rect) -> None:
        """Refuse a rectangle that is empty or too large, before anything is read."""
        if bounds.empty:
            raise BadRequestError(
                f"a region needs row0 < row1 and col0 < col1; got rows {bounds.row0} to {bounds.row1}, "
                f"columns {bounds.col0} to {bounds.col1}"
            )
        n_pixels = bounds.height * bounds.width
        if n_pixels > self.settings.max_region_pixels:
            raise TooLargeError(
                f"a region may have {self.settings.max_region_pixels} pixels; this one has {n_pixels}: "
                "ask for a higher level, or in parts"
            )

    def forget(self, run: str) -> None:
        """Ask anew for a run's metadata when they are needed next."""
        with self._lock:
            self._runs.pop(run, None)

    def _heard(self, news: News) -> None:
        if isinstance(news, Committed | Moved | Notice):
            self.forget(news.run)


def _full_range(dtype: np.dtype[Any]) -> tuple[float, float]:
    return (0.0, 1.0) if dtype.kind == "f" else (0.0, float(np.iinfo(dtype).max))


def rounded_window(low: float, high: float) -> tuple[float, float]:
    """A window rounded outwards to a hundredth of its width, at whole powers of ten.

    >>> rounded_window(101.37, 4187.2)
    (100.0, 4190.0)
    """
    step = 10.0 ** (math.floor(math.log10(high - low)) - 2)
    return math.floor(low / step) * step, math.ceil(high / step) * step


def picture_answer(body: bytes, fmt: str, tag: str) -> Response:
    """A picture as an answer. The content type is exactly the format's."""
    return Response(
        body, headers={"Content-Type": encoding.CONTENT_TYPES[fmt], "ETag": tag, "Cache-Control": caching.CACHE_CONTROL}
    )


def _stage_at(said: dict[str, Any]) -> StageAt:
    x_um, y_um, *z_um = said["pos_um"]
    moving, t_ns = said["moving"], said["t_ns"]
    return StageAt(said["instrument"], said["stream"], x_um, y_um, z_um[0] if z_um else None, moving, t_ns)


def _source(settings: Settings) -> Source:
    if settings.store_path is not None:
        return LocalSource(settings.store_path, settings.query)
    assert settings.query is not None, "the settings were checked"
    return RemoteSource(settings.query)
