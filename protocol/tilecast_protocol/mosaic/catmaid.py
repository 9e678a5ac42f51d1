"""Any CATMAID tile source as a mosaic: stacks of 8-bit pictures behind a web server, as catpy reads them.

The description of a stack (`…/stack/ID/info`) names mirrors; each has tiles of one of CATMAID's types, of which 1, 4,
5, 7 and 9 are read here, as catpy does. The mirror that answers fastest is taken, unless one is named, and the next one
if it fails.

A stack has no sign: its corner is a point of the project space, in nanometres. Mosaic coordinates are chosen such that
pixel (0, 0) lies as near to the origin of that space as whole pixels of every level allow; `Facts.offset_um` is what
is left over. So a stack that `tilecast web` serves has the same coordinates here as anywhere else. Where a stack stands
on edge (orientation xz, zy), its columns and rows run along other axes of the project (`Facts.axes_um`).

CATMAID tells neither coverage nor changes: every tile that exists counts as covered, to ask for coverage is refused,
and a refresh forgets all tiles.
"""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from ..client import TileRef
from ..errors import DisconnectedError, MalformedError, QueryError
from ..rects import Rect
from .facts import Facts
from .http import Answer, Http, refused
from .source import Changed, News, Source, Tile, frozen

#: How each type writes the address of a tile, behind the base of the mirror.
TILE_URLS: Final = {
    1: "{z}/{row}_{col}_{level}.{extension}",
    4: "{z}/{level}/{row}_{col}.{extension}",
    5: "{level}/{z}/{row}/{col}.{extension}",
    7: "largeDataTileSource/{width}/{height}/{level}/{z}/{row}/{col}.{extension}",
    9: "{z}/{row}_{col}_{level}.{extension}",
}

_ORIENTATIONS: Final = {"xy": "xyz", "xz": "xzy", "zy": "zyx"}
"""Which axes of the project the stack's columns, rows and slices run along."""

_RACES: Final = 2  # tiles by which mirrors are compared; the first one opens the connection
_MAX_LEVELS: Final = 32


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where a stack's tiles are.

    Attributes
    ----------
    base : str
        What stands before each tile, with a slash, or a query, at its end.
    kind : int
        CATMAID's tile source type.
    """

    title: str
    position: int
    base: str
    kind: int
    extension: str
    height: int
    width: int

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Mirror:
        """As a description of a stack has it."""
        base = str(told["image_base"])
        return cls(
            str(told.get("title", "")),
            int(told.get("position", 0)),
            base if base.endswith("/") else base + "/",
            int(told["tile_source_type"]),
            str(told["file_extension"]).removeprefix("."),
            int(told["tile_height"]),
            int(told["tile_width"]),
        )

    def url(self, z: int, level: int, row: int, col: int) -> str:
        """The address of a tile; indices count from the corner of the stack."""
        return self.base + TILE_URLS[self.kind].format(
            z=z, level=level, row=row, col=col, extension=self.extension, width=self.width, height=self.height
        )


class CatmaidSource(Source):
    """A CATMAID stack.

    Parameters
    ----------
    description : str or mapping
        Where the description of the stack is, or what it says.
    mirror : str or int, optional
        Title or position of the mirror to take; the fastest, if it is left out.
    auth : (user, password), optional
    headers : mapping, optional
        Sent with every question: `{"X-Authorization": "Token …"}`.
    timeout_s : float

    Raises
    ------
    MalformedError
        It is no description of a stack, or none of its mirrors can be read.
    DisconnectedError
        None of its mirrors answers.
    """

    tells_coverage: ClassVar[bool] = False
    tells_changes: ClassVar[bool] = False

    def __init__(
        self,
        description: str | Mapping[str, Any],
        *,
        mirror: str | int | None = None,
        auth: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        from urllib3 import make_headers

        basic = make_headers(basic_auth=":".join(auth)) if auth else {}
        self._http = Http({**basic, **(headers or {})}, timeout_s, self.threads)
        self._description = description
        self._lock = threading.Lock()
        self._n_read = 0
        try:
            told = self._told()
            mirrors = _mirrors(told, mirror)
            self.mirrors = mirrors if len(mirrors) == 1 else self._fastest_first(mirrors, told)
            self._facts = self._read(told)
        except BaseException:
            self.close()
            raise

    @property
    def mirror(self) -> Mirror:
        """The mirror that is read from."""
        return self.mirrors[0]

    def facts(self) -> Facts:
        told = self._told()
        # Addresses may have moved: those of `tilecast web` hold the epoch.
        now = {(one.title, one.position): one for one in _mirrors(told, None)}
        with self._lock:
            self.mirrors = [now.get((one.title, one.position), one) for one in self.mirrors]
        self._facts = self._read(told)
        return self._facts

    def tile(self, ref: TileRef) -> Tile | None:
        facts, mirrors = self._facts, self.mirrors
        for number, mirror in enumerate(mirrors):
            url = mirror.url(ref.z, ref.level, ref.row, ref.col)
            try:
                answer = self._http.get(url)
                if answer.status not in (200, 404):
                    raise refused(url, answer)
            except (DisconnectedError, QueryError):
                if number == len(mirrors) - 1:
                    raise
                continue
            if number:
                with self._lock:  # from now on the one that answered goes first
                    self.mirrors = mirrors[number:] + mirrors[:number]
            return None if answer.status == 404 else _picture(answer, facts.tile_shape, url)
        raise AssertionError("there is a mirror")

    def changes(self, epoch: int, since: int) -> Changed:  # noqa: ARG002  (nobody can be asked)
        return Changed(self._facts.epoch, self._facts.rev + 1, True)

    def updates(
        self,
        epoch: int,  # noqa: ARG002  (nobody can be asked)
        rev: int,  # noqa: ARG002
        stop: threading.Event,  # noqa: ARG002
    ) -> Generator[News, None, None]:
        raise ValueError("CATMAID does not tell what changes: open the mosaic by the address of `tilecast web` itself")

    def close(self) -> None:
        self._http.close()

    def _told(self) -> Mapping[str, Any]:
        told = self._http.json(self._description) if isinstance(self._description, str) else self._description
        if not isinstance(told, Mapping) or "mirrors" not in told or "dimension" not in told:
            raise MalformedError(
                "this is no description of a CATMAID stack, which has dimension and mirrors: its address ends with "
                "/stack/ID/info"
            )
        return told

    def _read(self, told: Mapping[str, Any]) -> Facts:
        self._n_read += 1
        return read_description(told, self.mirror, self._n_read)

    def _fastest_first(self, mirrors: list[Mirror], told: Mapping[str, Any]) -> list[Mirror]:
        """Mirrors that answer, the fastest per pixel first; of others only those with tiles of the same size."""
        canary = told.get("canary_location") or {}
        x, y, z = (int(canary.get(axis, 0)) for axis in "xyz")
        took: list[tuple[float, Mirror]] = []
        trouble = ""
        for mirror in mirrors:
            url = mirror.url(z, 0, y // mirror.height, x // mirror.width)
            best = math.inf
            try:
                for _ in range(_RACES):
                    began = time.perf_counter()
                    answer = self._http.get(url, again=False)
                    if answer.status != 200:
                        raise refused(url, answer)
                    best = min(best, time.perf_counter() - began)
            except (DisconnectedError, QueryError) as error:
                trouble = str(error)
                continue
            took.append((best / (mirror.height * mirror.width), mirror))
        if not took:
            raise DisconnectedError(f"none of the stack's {len(mirrors)} mirrors answers; the last one: {trouble}")
        ranked = [mirror for _, mirror in sorted(took, key=lambda one: one[0])]
        return [one for one in ranked if (one.height, one.width) == (ranked[0].height, ranked[0].width)]


def read_description(told: Mapping[str, Any], mirror: Mirror, rev: int = 1) -> Facts:
    """What a stack's description says of it.

    Parameters
    ----------
    told : mapping
    mirror : Mirror
        From which it is read.
    rev : int
        How often it was looked at.

    Raises
    ------
    MalformedError
        Something is missing.
    """
    try:
        width, height, depth = (int(told["dimension"][axis]) for axis in "xyz")
        axes = _ORIENTATIONS[_orientation(told.get("orientation"))]
        # As catpy has it: both lie along the axes of the project.
        resolution, translation = told.get("resolution") or {}, told.get("translation") or {}
        across_um, down_um = (float(resolution.get(axis, 1)) / 1000 for axis in axes[:2])
        left_um, top_um = (float(translation.get(axis, 0)) / 1000 for axis in axes[:2])
        broken = {int(one) for one in told.get("broken_slices") or ()}
        levels = _levels(told, mirror, width, height)
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedError(f"the description of the stack cannot be read: {error!r}") from error
    if not (across_um and down_um and width > 0 and height > 0):
        raise MalformedError("a stack has pixels, and they have a size; this one's dimension or resolution is 0")
    step = 1 << (levels - 1)  # so that the corner is a whole pixel of every level
    row0, col0 = round(top_um / down_um / step) * step, round(left_um / across_um / step) * step
    canvas = Rect(row0, col0, row0 + height, col0 + width)
    return Facts(
        run=f"{told.get('pid', '')}/{told.get('sid', '')}".strip("/"),
        name=str(told.get("stitle") or told.get("ptitle") or ""),
        state="",
        epoch=0,
        rev=rev,
        levels=levels,
        tile_shape=(mirror.height, mirror.width),
        dtype=np.dtype("u1"),
        counts=(1, 1, depth),
        boxes={(0, 0, z): canvas for z in range(depth) if z not in broken},
        canvas=canvas,
        affine=((across_um, 0.0), (0.0, down_um)),
        offset_um=(left_um - col0 * across_um, top_um - row0 * down_um),
        axes_um=(axes[0], axes[1]),
        grid=(row0, col0),
    )


def _levels(told: Mapping[str, Any], mirror: Mirror, width: int, height: int) -> int:
    """How many there are: as the stack says, or down to the one that fits into a tile."""
    factors = told.get("downsample_factors")
    if factors:
        for level, factor in enumerate(factors):
            if float(factor["x"]) != 2**level or float(factor["y"]) != 2**level:
                raise ValueError(f"levels are halved in x and y here; level {level} is {dict(factor)}")
        return len(factors)
    said = told.get("num_zoom_levels")
    if said is not None and int(said) > 0:
        return min(int(said), _MAX_LEVELS)
    return 1 + max(
        0, *(math.ceil(math.log2(edge / size)) for edge, size in ((width, mirror.width), (height, mirror.height)))
    )


def _orientation(said: Any) -> str:
    if said is None:
        return "xy"
    if isinstance(said, int):
        return tuple(_ORIENTATIONS)[said] if 0 <= said < 3 else f"number {said}"
    return str(said).lower()


def _mirrors(told: Mapping[str, Any], wanted: str | int | None) -> list[Mirror]:
    """Those that can be read, or the one that is wanted."""
    try:
        every = sorted((Mirror.of(one) for one in told["mirrors"]), key=lambda one: (one.position, one.title))
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedError(f"a mirror of the stack cannot be read: {error!r}") from error
    readable = [one for one in every if one.kind in TILE_URLS and min(one.height, one.width) > 0]
    if not readable:
        kinds = ", ".join(str(one.kind) for one in every) or "none"
        raise MalformedError(f"tile sources of types 1, 4, 5, 7 and 9 can be read; the stack has {kinds}")
    if wanted is None:
        return readable
    chosen = [one for one in readable if wanted in (one.title, one.position)]
    if not chosen:
        choices = ", ".join(f"{one.position} ({one.title})" for one in readable)
        raise ValueError(f"there is no mirror {wanted!r} that can be read; there are {choices}")
    return chosen[:1]


def _picture(answer: Answer, shape: tuple[int, int], url: str) -> Tile:
    """A picture as a tile: what is larger is cropped, what is smaller padded with 0."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(answer.body)) as picture:
            pixels = np.array(picture.convert("L"))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise QueryError("failed", f"{url.partition('?')[0]} is not a picture that can be read: {error}") from error
    if pixels.shape != shape:
        whole = np.zeros(shape, np.uint8)
        part = pixels[: shape[0], : shape[1]]
        whole[: part.shape[0], : part.shape[1]] = part
        pixels = whole
    return frozen(pixels, None)
