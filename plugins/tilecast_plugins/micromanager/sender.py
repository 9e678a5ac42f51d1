"""Carries runs to the daemon in a thread of its own, so that nobody who hands it a frame ever waits.

Frames wait in memory, up to so many bytes, while the daemon is slow or away. What does not fit is lost: it keeps its
number, so that the daemon's report names it as missing, and the log says which frames and why. A microscope is never
held up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from numpy.typing import NDArray

from tilecast_plugins.patience import STEP_S, Patience
from tilecast_protocol.errors import DisconnectedError, TilecastError
from tilecast_protocol.publisher import Publisher, RejectedError
from tilecast_protocol.ranges import RangeSet
from tilecast_protocol.window import Rejected

log = logging.getLogger("tilecast.micromanager")

Reason: TypeAlias = Literal["done", "abort", "error"]


_REMEMBERED: Final = 100_000
"""Frames that were given to the publisher; its window is never as large."""


@dataclass(eq=False)
class Run:
    """A run that was begun, as far as frames were taken in and lost.

    Attributes
    ----------
    run : str
        Its uuid.
    name : str
    n_frames : int
        Numbers that were given out.
    lost : RangeSet
        Those of them that the daemon will not get from here.
    refused : bool
        Whether the daemon, or our own checks, refused its start.
    """

    run: str
    name: str
    n_frames: int = 0
    lost: RangeSet = field(default_factory=RangeSet)
    refused: bool = False
    _logged: set[str] = field(default_factory=set)

    def next_number(self) -> int:
        """The number of the next frame, whether or not it can be sent."""
        self.n_frames += 1
        return self.n_frames - 1

    def lose(self, number: int, why: str) -> None:
        """Count a frame as lost; the first for each reason is logged."""
        self.lost.add(number)
        if why not in self._logged:
            self._logged.add(why)
            log.error("run %s (%s): frame %d is lost: %s", self.run, self.name, number, why)


class Sender(threading.Thread):
    """Sends what it is given, in order, for as long as it takes.

    Parameters
    ----------
    publisher : Publisher
        Its own from now on.
    buffer_bytes : int
        Most pixels that wait here; up to one more frame is on its way, beside what the publisher keeps until it is
        acknowledged.
    """

    def __init__(self, publisher: Publisher, buffer_bytes: int) -> None:
        super().__init__(name=f"tilecast sender {publisher.src}", daemon=True)
        self._publisher = publisher
        self._buffer_bytes = buffer_bytes
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Callable[[], None], int]] = deque()
        self._waiting_bytes = 0
        self._busy = False
        self._given: deque[tuple[Run, int]] = deque(maxlen=_REMEMBERED)  # to the publisher, oldest first
        self._deadline_s: float | None = None  # set to stop
        self._patience = Patience(
            log, lambda: self._out_of_time, "The acquisition goes on; frames wait in memory, as far as they fit."
        )
        self.runs: list[Run] = []

    # ---- what is called from the microscope's threads: nothing here waits ------------------------------------------

    def begin(self, run: Run, fields: Callable[[], dict[str, Any]]) -> None:
        """Begin a run; `fields` makes what `start` says of it, in the sender's thread."""
        self.runs.append(run)
        self._put(lambda: self._begin(run, fields))

    def image(self, run: Run, number: int, pixels: NDArray[Any], fields: dict[str, Any]) -> None:
        """Send a frame; the pixels are not copied, and must not change any more."""
        with self._changed:
            full = self._waiting_bytes + pixels.nbytes > self._buffer_bytes
            if not full:
                self._put(lambda: self._image(run, number, pixels, fields), pixels.nbytes)
        if full:
            run.lose(
                number,
                f"the daemon is behind or away, and {self._buffer_bytes / 1e6:.0f} MB of frames wait for it already "
                "(buffer_bytes)",
            )

    def end(self, run: Run, reason: Reason) -> None:
        """End a run."""
        self._put(lambda: self._end(run, reason))

    # ---- for whoever has time -------------------------------------------------------------------------------------

    def flush(self, timeout_s: float) -> None:
        """Wait until everything is safe with the daemon.

        Raises
        ------
        DisconnectedError
            It is not in time; it is kept, and still sent.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            if not self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout_s):
                raise DisconnectedError(
                    f"{len(self._waiting) + self._busy} messages still wait for the daemon at "
                    f"{self._publisher.endpoint} after {timeout_s:g} s; the log says why"
                )
        self._publisher.flush(max(0.0, deadline_s - time.monotonic()))

    def close(self, timeout_s: float) -> int:
        """Send what waits, for at most so long, and end the thread; returns how many frames were lost, ever."""
        with self._changed:
            if self._deadline_s is None:
                self._deadline_s = time.monotonic() + timeout_s
            self._changed.notify_all()
        self.join()
        return sum(len(run.lost) for run in self.runs)

    def run(self) -> None:
        """Send until `close`."""
        while (work := self._next()) is not None:
            try:
                work()
            except Exception:  # the edge of the thread: what is left must still be sent
                log.exception("tilecast's sender failed at one message, and goes on with the next")
            with self._changed:
                self._busy = False
                self._changed.notify_all()
        assert self._deadline_s is not None
        try:
            self._publisher.close(max(0.1, self._deadline_s - time.monotonic()))
        except TilecastError as error:
            log.error("tilecast: not everything has arrived: %s", error)
            for run, number in list(self._given)[len(self._given) - self._publisher.n_unsettled_images :]:
                run.lose(number, "it was sent, like those after it, and the daemon has not acknowledged it")

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _put(self, work: Callable[[], None], nbytes: int = 0) -> None:
        with self._changed:
            self._waiting.append((work, nbytes))
            self._waiting_bytes += nbytes
            self._changed.notify_all()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._deadline_s is not None)
            if not self._waiting:
                return None
            work, nbytes = self._waiting.popleft()
            self._waiting_bytes -= nbytes
            self._busy = True
            return work

    @property
    def _out_of_time(self) -> bool:
        return self._deadline_s is not None and time.monotonic() > self._deadline_s

    def _begin(self, run: Run, fields: Callable[[], dict[str, Any]]) -> None:
        try:
            start = fields()
            if not self._patience.until_taken(lambda: self._publisher.start(run.name, run=run.run, **start)):
                run.refused = True
                log.error("run %s (%s) was never begun: the daemon could not be reached", run.run, run.name)
        except (RejectedError, ValueError, TypeError) as error:
            run.refused = True
            log.error("run %s (%s) cannot be shown: %s", run.run, run.name, error)

    def _image(self, run: Run, number: int, pixels: NDArray[Any], fields: dict[str, Any]) -> None:
        if run.refused:
            run.lose(number, "its run was not begun")
            return
        if self._out_of_time:
            run.lose(number, "it still waited for the daemon when the time to detach was over")
            return
        try:
            if not self._patience.until_taken(
                lambda: self._publisher.image(pixels, run=run.run, frame=number, timeout_s=STEP_S, **fields)
            ):
                run.lose(number, "the daemon could not be reached until tilecast was detached")
            else:
                self._given.append((run, number))
        except (ValueError, TypeError) as error:
            run.lose(number, str(error))

    def _end(self, run: Run, reason: Reason) -> None:
        if not run.refused:
            self._patience.until_taken(lambda: self._publisher.end(reason, run=run.run, n_sent=run.n_frames))
        if run.lost:
            ranges = ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in run.lost.ranges())
            log.error(
                "run %s (%s): %d of %d frames never reached the daemon: %s",
                run.run, run.name, len(run.lost), run.n_frames, ranges,
            )  # fmt: skip


def log_rejection(rejected: Rejected) -> None:
    """What the daemon refuses is named in our log, too."""
    log.error("tilecast: the daemon refused a message: %s", rejected)
