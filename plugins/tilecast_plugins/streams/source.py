"""A stream as its options describe it: what listens, what makes runs of it, and a source for inside the daemon."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tilecast.hookspecs import Feed
from tilecast_plugins.patience import STEP_S, Patience
from tilecast_protocol.publisher import Publisher

from .listening import Listener, Taker
from .options import AreaDetectorOptions, DectrisOptions, StreamOptions
from .pixels import StreamError
from .runs import ArrayRuns, RunSettings, SeriesRuns, log


@dataclass
class StreamSource:
    """One stream, ready to listen.

    Attributes
    ----------
    name : str
        Its endpoint.
    stream : str
    listener : Listener
    runs : callable
        Makes what takes the messages.
    """

    name: str
    stream: str
    listener: Listener[Any]
    runs: Callable[[Publisher, Patience], Taker[Any]]

    def run(self, feed: Feed, stop: threading.Event) -> None:
        """See `hookspecs.MessageSource`."""
        with feed.publisher(self.stream, timeout_s=STEP_S) as publisher:
            self.listen(publisher, stop)

    def listen(self, publisher: Publisher, stop: threading.Event) -> None:
        """Send what comes until `stop` is set."""
        patience = Patience(log, stop.is_set, f"Nothing more is read from {self.name}; what it queues is not lost yet.")
        self.listener.run(self.runs(publisher, patience), stop)


def areadetector_source(options: AreaDetectorOptions) -> StreamSource:
    """Listen to NDPluginZMQ.

    Raises
    ------
    StreamError
        Options that contradict each other.
    """
    from .areadetector import ArrayKeys, parse

    settings = _run_settings(options)
    if settings.px_um is None:
        raise StreamError("areaDetector does not say how large a pixel is: give px_um, in µm at the specimen")
    keys = ArrayKeys(
        x=options.x,
        y=options.y,
        z=options.z,
        unit_um=options.unit_um,
        exposure=options.exposure,
        t_index=options.t_index,
        c_index=options.c_index,
        z_index=options.z_index,
        run=options.run,
    )
    listener = Listener(
        options.endpoint,
        kind=options.socket,
        bind=options.bind,
        parse=lambda parts: parse(
            parts, keys, shape_order=options.shape_order, max_frame_bytes=options.max_frame_bytes
        ),
        max_frame_bytes=options.max_frame_bytes,
    )
    return StreamSource(
        options.endpoint,
        options.stream,
        listener,
        lambda publisher, patience: ArrayRuns(publisher, settings, patience, idle_end_s=options.idle_end_s),
    )


def dectris_source(options: DectrisOptions) -> StreamSource:
    """Listen to stream 2.

    Raises
    ------
    StreamError
        Options that contradict each other, or the extra is missing.
    """
    try:
        from .dectris import parse
    except ImportError as error:
        raise StreamError(
            f"streams of Dectris need the extra `dectris` ({error.name} is missing): pip install 'tilecast[dectris]'"
        ) from error
    settings = _run_settings(options)
    position_keys = [key for key in (options.x, options.y, options.z) if key]
    listener = Listener(
        options.endpoint,
        kind="pull",
        bind=False,
        parse=lambda parts: parse(
            parts, position_keys=position_keys, unit_um=options.unit_um, max_frame_bytes=options.max_frame_bytes
        ),
        max_frame_bytes=options.max_frame_bytes,
    )
    return StreamSource(
        options.endpoint,
        options.stream,
        listener,
        lambda publisher, patience: SeriesRuns(publisher, settings, patience, magnification=options.magnification),
    )


def _run_settings(options: StreamOptions) -> RunSettings:
    if not options.endpoint:
        raise StreamError("there is nothing to listen to: give the endpoint of the other program, tcp://host:port")
    if bool(options.x) != bool(options.y) or (options.z and not options.x):
        raise StreamError(
            f"x and y are given together, z with them; got x={options.x!r}, y={options.y!r}, z={options.z!r}"
        )
    if len(options.px_um) > 2 or any(not size > 0 for size in options.px_um):
        raise StreamError(f"px_um is one or two numbers above 0, in µm; got {list(options.px_um)}")
    if len(options.affine) not in (0, 4):
        raise StreamError(f"affine is four numbers a,b,c,d, for ((a, b), (c, d)); got {list(options.affine)}")
    affine = None
    if options.affine:
        a, b, c, d = options.affine
        affine = ((a, b), (c, d))
    return RunSettings(
        px_um=(options.px_um[0], options.px_um[-1]) if options.px_um else None,
        affine=affine,
        name=options.name,
        stage_stream=options.stage_stream,
        placed_by_frame=bool(options.x),
    )
