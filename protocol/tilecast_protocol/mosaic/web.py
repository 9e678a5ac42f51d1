"""A mosaic read from `tilecast web`, over HTTP: stored tiles by `/api/v1`, news by its server-sent events."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Generator, Iterator
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import numpy as np

from ..client import Resync, TileRef, TileUpdate
from ..errors import DisconnectedError, MalformedError, QueryError
from ..rects import Rect
from .facts import Facts
from .http import Http, refused
from .source import Changed, News, Source, State, Tile, UnknownRunError, choose_run, decoded

_MAX_ATTEMPTS: Final = 5  # to fetch a tile of a run that is rebuilt again and again
_AGAIN_S: Final = 1.0  # until a server that went away is asked again
_UUID: Final = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"


class WebSource(Source):
    """Asks a gateway.

    Parameters
    ----------
    address : str
        Of its page, also as the page's own link has it, or of a run: `…/api/v1/runs/RUN`.
    run : str or None
        See `choose_run`; an address that names one goes first.
    token : str, optional
        The gateway's.
    timeout_s : float
    """

    def __init__(
        self, address: str, run: str | None = None, *, token: str | None = None, timeout_s: float = 10.0
    ) -> None:
        self._root, named, given = read_address(address)
        token = token or given
        self._http = Http({"Authorization": f"Bearer {token}"} if token else None, timeout_s, self.threads)
        try:
            if named is None:
                listed = self._http.json(f"{self._root}/api/v1/runs")["runs"]
                named = choose_run(
                    [(one["run"], str(one.get("name", ""))) for one in reversed(listed)], run, self._root
                )
            self._run = named
            self._now = self.facts()
        except BaseException:
            self.close()
            raise

    @property
    def _base(self) -> str:
        return f"{self._root}/api/v1/runs/{self._run}"

    def facts(self) -> Facts:
        with _known(self._root):
            told = self._http.json(self._base)
        try:
            self._now = _facts(told)
        except (KeyError, TypeError) as error:
            raise MalformedError(f"what {self._root} tells of a run lacks {error}: is it `tilecast web`?") from error
        return self._now

    def tile(self, ref: TileRef) -> Tile | None:
        for _ in range(_MAX_ATTEMPTS):
            now = self._now
            url = f"{self._base}/tiles/{now.epoch}/{ref.t}/{ref.c}/{ref.z}/{ref.level}/{ref.row}/{ref.col}.pzf?mask=1"
            answer = self._http.get(url)
            coverage = answer.headers.get("X-Tilecast-Coverage")
            if answer.status == 404 and coverage == "none":
                return None
            if answer.status == 404 and self.facts().epoch != now.epoch:
                continue  # it was rebuilt, or its canvas moved: tiles have other addresses now
            if answer.status != 200:
                raise refused(url, answer)
            record, bits = answer.body, None
            rows, cols = now.tile_shape
            if coverage == "mask":
                cut = len(record) - -(-rows * cols // 8)
                record, bits = record[:cut], record[cut:]
            return decoded(record, bits, now.tile_shape, now.dtype.str)
        raise QueryError("conflict", f"the run {self._run} was rebuilt {_MAX_ATTEMPTS} times while a tile was read")

    def changes(self, epoch: int, since: int) -> Changed:
        with _known(self._root):
            answer = self._http.json(f"{self._base}/changes?since={since}&epoch={epoch}")
        tiles, gone = (tuple(TileRef(*row[:6]) for row in answer[key]) for key in ("tiles", "gone"))
        return Changed(answer["epoch"], answer["upto"], answer["resync"], tiles, gone, answer["more"])

    def updates(self, epoch: int, rev: int, stop: threading.Event) -> Generator[News, None, None]:
        while not stop.is_set():
            url = f"{self._root}/api/v1/events?run={self._run}&since={rev}&epoch={epoch}"
            try:
                with contextlib.closing(self._http.lines(url)) as lines:
                    for name, told in _events(lines):
                        if stop.is_set():
                            return
                        news = _news(name, told, self._run)
                        if isinstance(news, TileUpdate | Resync):
                            epoch, rev = news.epoch, news.rev
                        if news is not None:
                            yield news
            except DisconnectedError:
                pass
            except QueryError as error:
                if error.code == "unknown-run":
                    yield State("deleted")
                    return
                if error.code != "failed":
                    raise
            stop.wait(_AGAIN_S)

    def close(self) -> None:
        self._http.close()


def read_address(address: str) -> tuple[str, str | None, str | None]:
    """The root of a gateway, and the run and the token that an address names.

    >>> read_address("http://scope:8750/#run=0B0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55&at=1,2")
    ('http://scope:8750', '0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55', None)
    >>> read_address("https://scope/t/s3cret/?x=1")
    ('https://scope/t/s3cret', None, None)
    """
    parts = urlsplit(address)
    path, _, rest = parts.path.partition("/api/v1")
    in_path = re.search(rf"^/runs/({_UUID})", rest)
    values = {**parse_qs(parts.query), **parse_qs(parts.fragment)}
    run = in_path[1] if in_path else values.get("run", [None])[0]
    return (
        f"{parts.scheme}://{parts.netloc}{path.rstrip('/')}",
        run.lower() if run and re.fullmatch(_UUID, run) else None,
        values.get("token", [None])[0],
    )


def _facts(told: dict[str, Any]) -> Facts:
    canvas, size = told["canvas"], int(told["tile_size"])
    (a, b), (c, d) = told["affine"]
    return Facts(
        run=told["run"],
        name=told["name"],
        state=told["state"],
        epoch=told["epoch"],
        rev=told["rev"],
        levels=told["levels"],
        tile_shape=(size, size),
        dtype=np.dtype(told["dtype"]),
        counts=(told["n_times"], told["n_channels"], told["n_slices"]),
        boxes={(one["t"], one["c"], one["z"]): Rect(*one["bbox"]) for one in told["planes"]},
        canvas=None if canvas is None else Rect(*canvas["bounds"]),
        affine=((a, b), (c, d)),
        start=told["start"],
    )


def _events(lines: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and data of each event of a stream."""
    name, data = "", ""
    for line in lines:
        field, _, value = line.partition(":")
        if field == "event":
            name = value.strip()
        elif field == "data":
            data += value
        elif not line:
            if name and data:
                yield name, json.loads(data)
            name, data = "", ""


def _news(name: str, told: dict[str, Any], run: str) -> News | None:
    """What an event means for whoever follows a run; None if nothing."""
    if told.get("run") != run:
        return None
    if name == "commit":
        tiles, gone = (tuple(TileRef(*row[:6]) for row in told[key]) for key in ("tiles", "gone"))
        return TileUpdate(
            run,
            told["epoch"],
            told["rev"],
            tiles,
            gone,
            t_recv_ns=told["t_recv_ns"],
            t_commit_ns=told["t_commit_ns"],
            healed=told["healed"],
        )
    if name == "resync":
        return Resync(run, told["epoch"], told["rev"], "epoch")
    if name == "run" and told["kind"] in ("started", "idle", "ended", "sealed", "deleted"):
        return State("open" if told["kind"] == "started" else told["kind"])
    return None


@contextlib.contextmanager
def _known(root: str) -> Iterator[None]:
    try:
        yield
    except QueryError as error:
        if error.code != "unknown-run":
            raise
        raise UnknownRunError(f"there is no such run at {root}: {error}") from error
