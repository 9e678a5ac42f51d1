"""The hooks of the example."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import structlog
from numpy.typing import NDArray

from tilecast.hookspecs import (
    Committed,
    Feed,
    FrameStep,
    Images,
    MakeImages,
    MessageSource,
    RunEnded,
    RunStart,
    StartRefusedError,
    View,
    hookimpl,
)
from tilecast.testing.microscope import TestScan
from tilecast_example.options import ExampleOptions

log = structlog.get_logger()

SCAN = TestScan(grid=(1, 4), shape=(48, 64))
"""What the source of this plugin sends."""


@hookimpl
def tilecast_run_starting(run: RunStart, options: ExampleOptions) -> FrameStep | None:
    """Split frames that are to be split; what the second view needs is frozen in the run."""
    if options.fail == "start":
        raise ZeroDivisionError("a mistake at the start")
    if not options.split or run.stream == "example":
        return None
    if run.shape[1] % 2:
        raise StartRefusedError(f"a frame of {run.shape[1]} columns has no halves; set plugins.example.split=false")
    half = (run.shape[0], run.shape[1] // 2)
    return FrameStep(
        settings={"fail": options.fail},
        arrays={"offset": np.full(half, options.offset, np.uint16)},
        views=(View(shape=half, channel=0), View(shape=half, channel=1)),
    )


@hookimpl
def tilecast_make_images(step: FrameStep, shape: tuple[int, int], dtype: str) -> MakeImages:
    """Left and right half, rounded and clipped to the type of the run."""
    middle, limit = shape[1] // 2, np.iinfo(np.dtype(dtype)).max

    def make(frame: NDArray[np.uint16]) -> Images:
        if step.settings["fail"] == "frame":
            raise ZeroDivisionError("a mistake with a frame")
        if step.settings["fail"] == "hang":
            threading.Event().wait()
        right = frame[:, middle:].astype(np.int64) + step.arrays["offset"]
        clipped = np.minimum(right, limit).astype(dtype)
        return Images([frame[:, :middle], clipped], n_high=int(np.count_nonzero(right > limit)))

    return make


class Source:
    """Sends one scan, and waits to be stopped."""

    name = "example"

    def __init__(self, options: ExampleOptions) -> None:
        self._options = options

    def run(self, feed: Feed, stop: threading.Event) -> None:
        """See `hookspecs.MessageSource`."""
        if self._options.fail == "source":
            raise OSError("the camera is gone")
        with feed.publisher("example") as publisher:
            publisher.start("from the example", shape=SCAN.shape, dtype=SCAN.dtype, px_um=(0.5, 0.5))
            for frame in range(self._options.n_frames):
                if stop.is_set():
                    break
                publisher.image(SCAN.frame(frame), pos_um=SCAN.pos_um(frame))
            publisher.end()
        log.info("example has sent all")
        stop.wait()


@hookimpl
def tilecast_message_sources(options: ExampleOptions) -> Sequence[MessageSource]:
    """One source, if it is wanted."""
    return [Source(options)] if options.n_frames else []


@hookimpl
def tilecast_committed(commit: Committed) -> None:
    """Say that tiles were committed."""
    log.info("example saw a commit", run=commit.run, rev=commit.rev, tiles=len(commit.tiles))


@hookimpl
def tilecast_run_ended(run: RunEnded) -> None:
    """Say how a run ended."""
    log.info("example saw the end", run=run.run, state=run.state, received=run.report["received"])
