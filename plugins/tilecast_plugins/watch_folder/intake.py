"""Takes the files of one folder, one turn after the other: looks, waits until they are whole, sends, notes.

How frames get to the daemon (`Outlet`) and what time it is are given, so that this can be tested at any speed and with
any interruption. The order within a turn is what makes that nothing is lost and nothing is taken twice:

1. a file is read in full, and has not changed since it was looked at;
2. run, frame numbers and positions are noted durably (`Record`), as `sending`;
3. the frames are sent, and the daemon says that they are safe;
4. the file is noted as `taken`; only then may it be moved or deleted.

After an interruption between 2 and 4 the same frames are sent again, which the daemon drops if it has them.
"""

from __future__ import annotations

import json
import math
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
import structlog
from numpy.typing import NDArray

from tilecast.inputs import ImageSource, InputError, natural_key
from tilecast_plugins.watch_folder.listing import (
    REJECTED_FOLDER,
    TAKEN_FOLDER,
    WaitingRoom,
    list_images,
    stamp_of,
)
from tilecast_plugins.watch_folder.options import WatchFolderOptions
from tilecast_plugins.watch_folder.positions import Geometry, NoPositionYetError, Positions
from tilecast_plugins.watch_folder.record import KnownFile, KnownRun, Plane, Record, Stamp

log = structlog.get_logger()

_BATCH_FILES = 64
_BATCH_BYTES = 64 << 20
_RETRY_S = 5.0

#: Refusals that say nothing against the frame: it is sent again.
_PASSING = frozenset({"busy", "disk-reserve", "unknown-run", "calibration-missing", "lost"})


class RunRefusedError(Exception):
    """The daemon does not take a run at present; the message says why."""


class StoppedError(Exception):
    """The daemon is stopping."""


class Outlet(Protocol):
    """The way to the daemon."""

    def known(self, run: str) -> tuple[str, Sequence[tuple[int, int]]] | None:
        """State of a run, and the ranges [first, last] of frames that the daemon had when we connected; or None."""
        ...

    def start(self, run: str, start: Mapping[str, Any]) -> None:
        """Begin a run, or go on with it; durable when this returns. Raises RunRefusedError, StoppedError."""
        ...

    def image(self, run: str, frame: int, pixels: NDArray[Any], plane: Plane, user: Mapping[str, Any]) -> None:
        """Send a frame; waits while the daemon is behind. Raises StoppedError."""
        ...

    def flush(self) -> dict[tuple[str, int], tuple[str, str]]:
        """Wait until all frames are safe; returns reason and message for each (run, frame) that was refused.

        Raises StoppedError.
        """
        ...

    def end(self, run: str, n_sent: int) -> None:
        """End a run; durable when this returns. Raises StoppedError."""
        ...


@dataclass(slots=True)
class _Open:
    """A run that takes frames."""

    known: KnownRun
    last_s: float
    is_started: bool = False

    def check_alike(self, name: str, source: ImageSource) -> None:
        """Raise InputError if the frames of a file are not like those of the run."""
        (height, width), dtype = self.known.start["shape"], self.known.start["dtype"]
        if (tuple(source.shape), source.dtype) != ((height, width), dtype):
            raise InputError(
                f"{name} has {source.shape[0]}×{source.shape[1]} {source.dtype}, the run {self.known.start['name']!r} "
                f"{height}×{width} {dtype}: all frames of a run are alike; write the others into a folder of their "
                "own, or tell them apart by {run} in plugins.watch_folder.pattern"
            )

    @property
    def geometry(self) -> Geometry:
        x_um, y_um = self.known.start["px_um"]
        return Geometry((x_um, y_um), bool(self.known.start["affine"]))


@dataclass(slots=True)
class _Batch:
    """Files that are read and not sent."""

    files: list[tuple[KnownFile, ImageSource]] = field(default_factory=list)
    nbytes: int = 0

    def add(self, file: KnownFile, source: ImageSource) -> None:
        """Add a file that is read."""
        self.files.append((file, source))
        self.nbytes += source.shape[0] * source.shape[1] * np.dtype(source.dtype).itemsize

    @property
    def is_full(self) -> bool:
        return len(self.files) >= _BATCH_FILES or self.nbytes >= _BATCH_BYTES


class Intake:
    """The files of one folder.

    Parameters
    ----------
    folder : Path
    options : WatchFolderOptions
    record : Record
    outlet : Outlet
    rejected_list : Path
        A file to which a line of JSON is added for each file that is set aside.
    now_s : callable
        A clock that never goes back.
    stop : threading.Event

    Attributes
    ----------
    n_taken, n_rejected : int
        Since it was made.
    last_rejected : str
        What was set aside last, and why.
    trouble : str
        What keeps it from going on; empty if nothing does.
    look_s : float
        How long it took to list the folder the last time.
    """

    def __init__(
        self,
        folder: Path,
        options: WatchFolderOptions,
        record: Record,
        outlet: Outlet,
        rejected_list: Path,
        *,
        now_s: Callable[[], float] = time.monotonic,
        stop: threading.Event | None = None,
    ) -> None:
        self.n_taken = 0
        self.n_rejected = 0
        self.last_rejected = ""
        self.trouble = ""
        self.look_s = 0.0
        self._folder = folder
        self._options = options
        self._record = record
        self._outlet = outlet
        self._rejected_list = rejected_list
        self._now_s = now_s
        self._stop = stop or threading.Event()
        self._positions = Positions(options, now_s)
        self._waiting = WaitingRoom(options.settle_ms / 1e3)
        self._known: dict[str, KnownFile] = {}
        self._warned: set[str] = set()
        self._runs: dict[str, _Open] = {}
        self._held_for = ""
        self._retry_at_s = 0.0
        self._began_s = self._news_s = now_s()
        self._n_read = 0
        record.forget_rejected()

    @property
    def n_waiting(self) -> int:
        """Files that are there and not taken."""
        return len(self._waiting)

    @property
    def next_look_s(self) -> float:
        """After so many seconds something may have to be done, even if the folder does not change."""
        if not len(self._waiting):
            return math.inf
        return max(0.0, max(self._waiting.next_at_s, self._retry_at_s) - self._now_s())

    def resume(self) -> None:
        """Go on where the daemon was stopped, with the runs that are open; the next turn sends what may be missing."""
        for known in self._record.open_runs():
            state = self._outlet.known(known.run)
            if known.next_frame and state is None:
                log.warning("run is not there any more; another one is begun", run=known.run, folder=str(self._folder))
                self._record.end(known.run)
                continue
            if state is not None:
                self._settle(known.run, state[1])
            if state is not None and state[0] in ("ended", "sealed") and not self._is_sending(known.run):
                self._record.end(known.run)
            else:  # into one that has ended what was on its way may still come, late
                self._runs[known.subject] = _Open(known, self._now_s())

    def turn(self) -> None:
        """Look at the folder once, and take what is whole.

        Raises
        ------
        OSError
            The folder is not there, or cannot be read.
        StoppedError
        """
        # Before the images: what was written before the marker is then in the list.
        markers = {subject: self._marker(subject) for subject in self._runs} if self._options.end_marker else {}
        began_s = time.monotonic()
        try:
            found = list_images(self._folder, subfolders=self._options.subfolders)
        except OSError:
            self._waiting.update({}, self._now_s())
            if not self._record.sending():
                self._end_runs({})  # a run does not stay open for a folder that is gone
            raise
        self.look_s = time.monotonic() - began_s
        if self._record.is_new:
            self._first_look(found)
        now_s = self._now_s()
        new = {name: stamp for name, stamp in found.items() if self._is_new(name, stamp)}
        if self._waiting.update(new, now_s) or self._positions.n_read != self._n_read:
            self._news_s, self._n_read = now_s, self._positions.n_read
        self._known = {name: file for name, file in self._known.items() if name in found}
        if now_s >= self._retry_at_s:
            self.trouble = ""
            if self._resend():
                self._take(self._in_order(self._waiting.ready(now_s)))
        if not self.trouble:
            self._end_runs({subject: stamp for subject, stamp in markers.items() if stamp is not None})

    # ---- what is new -----------------------------------------------------------------------------------------------

    def _first_look(self, found: Mapping[str, Stamp]) -> None:
        if not self._options.existing:
            self._record.note(KnownFile(name, stamp, "skipped") for name, stamp in found.items())
        self._record.looked()

    def _is_new(self, name: str, stamp: Stamp) -> bool:
        """Whether a file is to be taken; one that is taken already is moved or deleted here, if that is wanted."""
        known = self._known.get(name) or self._record.file(name)
        if known is None:
            return True
        self._known[name] = known
        if known.state == "sending":
            return False
        if known.stamp == stamp:
            self._put_away(name, known)
            return False
        if known.state == "taken" and self._record.is_open(known.run):
            if name not in self._warned:
                self._warned.add(name)
                log.warning(
                    "file was written again after it was taken; the run keeps what came first",
                    folder=str(self._folder),
                    file=name,
                )
            return False
        return True

    def _put_away(self, name: str, known: KnownFile) -> None:
        path = self._folder / name
        try:
            if known.state == "taken" and self._options.taken == "delete":
                path.unlink(missing_ok=True)
            elif known.state == "taken" and self._options.taken == "move":
                _move(path, path.parent / TAKEN_FOLDER)
            elif known.state == "rejected" and self._options.rejected == "move":
                _move(path, path.parent / REJECTED_FOLDER)
        except OSError as error:
            if name not in self._warned:
                self._warned.add(name)
                log.warning("file cannot be put away", folder=str(self._folder), file=name, why=str(error))

    def _in_order(self, names: Iterable[str]) -> list[str]:
        if self._options.order == "time":
            return sorted(names, key=lambda name: (self._waiting[name].stamp.mtime_ns, natural_key(name)))
        return sorted(names, key=natural_key)

    # ---- taking ----------------------------------------------------------------------------------------------------

    def _take(self, names: Sequence[str]) -> None:
        batch = _Batch()
        for name in names:
            if self._stop.is_set():
                raise StoppedError
            try:
                taken = self._look_into(name)
            except RunRefusedError as refusal:
                self._hold(str(refusal))
                break
            if taken is not None:
                batch.add(*taken)
            if batch.is_full:
                self._send(batch)
                if self.trouble:
                    return
                batch = _Batch()
        self._send(batch)

    def _look_into(self, name: str) -> tuple[KnownFile, ImageSource] | None:
        """Read a file and find its place, or leave it for later, or set it aside."""
        path, stamp, subject = self._folder / name, self._waiting[name].stamp, self._subject(name)
        if why := self._positions.lacks(path):
            self._later(name, stamp, why)
            return None
        try:
            source = self._positions.open(path)
            crc32 = _crc32(source)
        except (InputError, OSError) as error:
            self._later(name, stamp, str(error), may_come=False)
            return None
        if (after := stamp_of(path)) != stamp:
            self._waiting.changed(name, after, self._now_s())
            return None
        before = self._known.get(name)
        if before is not None and before.state == "taken" and before.crc32 == crc32:
            self._note([replace(before, stamp=stamp)])  # copied or touched: the same image is not taken twice
            self._waiting.remove(name)
            return None
        run = self._runs.get(subject)
        geometry = self._positions.geometry(source) if run is None else run.geometry
        try:
            if run is not None:
                run.check_alike(name, source)
            planes = self._positions.find(path, source, geometry)
        except NoPositionYetError as error:
            self._later(name, stamp, str(error))
            return None
        except InputError as error:
            self._reject(KnownFile(name, stamp, "rejected"), str(error))
            return None
        if run is None:
            run = self._begin(subject, source, geometry)
        self._make_sure_of(run)
        file = KnownFile(name, stamp, "sending", run.known.run, run.known.next_frame, planes, crc32)
        run.known.next_frame += len(planes)
        return file, source

    def _later(self, name: str, stamp: Stamp, why: str, *, may_come: bool = True) -> None:
        """Look into a file again after a while; set it aside if it has not changed for too long.

        If what it lacks may come from elsewhere (its position), nothing else must have come for so long either.
        """
        now_s = self._now_s()
        if (after := stamp_of(self._folder / name)) != stamp:
            self._waiting.changed(name, after, now_s)
            return
        unchanged_s = self._waiting.put_off(name, why, now_s)
        if (min(unchanged_s, now_s - self._news_s) if may_come else unchanged_s) >= self._options.give_up_s:
            self._reject(KnownFile(name, stamp, "rejected"), why)

    def _reject(self, file: KnownFile, why: str) -> None:
        """Set a file aside, and say so: in the list, in the log, and soon in what the source tells of itself."""
        file = replace(file, state="rejected")
        self.n_rejected += 1
        self.last_rejected = f"{file.name}: {why}"
        line = {"t": time.time(), "folder": str(self._folder), "file": file.name, "why": why}
        self._note([file])
        try:
            with self._rejected_list.open("a") as rejected_list:
                rejected_list.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            log.warning("file cannot be listed as rejected", list=str(self._rejected_list), why=str(error))
        self._waiting.remove(file.name)
        log.warning("file cannot be used", folder=str(self._folder), file=file.name, why=why)

    def _note(self, files: Sequence[KnownFile]) -> None:
        self._record.note(files)
        self._known.update((file.name, file) for file in files)

    # ---- sending ---------------------------------------------------------------------------------------------------

    def _send(self, batch: _Batch) -> None:
        if not batch.files:
            return
        self._note([file for file, _ in batch.files])
        broken: dict[str, str] = {}
        for file, source in batch.files:
            try:
                self._send_file(file, source)
            except (InputError, OSError) as error:  # only of several planes, which are read again
                broken[file.name] = f"it changed while it was sent: {error}"
        refused = self._outlet.flush()
        now_s = self._now_s()
        taken, failed = [], []
        for file, _ in batch.files:
            answers = [refused.get((file.run, file.frame + number)) for number in range(len(file.planes))]
            refusals = [answer for answer in answers if answer is not None]
            if any(reason == "run-sealed" for reason, _ in refusals):
                self._abandon(file.run)
            elif passing := [message for reason, message in refusals if reason in _PASSING]:
                self._hold(passing[0])
            elif refusals:
                failed.append((file, f"the daemon refused it ({refusals[0][0]}): {refusals[0][1]}"))
            elif file.name in broken:
                failed.append((file, broken[file.name]))
            else:
                taken.append(replace(file, state="taken"))
        self._note(taken)
        self._held_for = "" if taken else self._held_for
        self.n_taken += len(taken)
        log.debug("files are taken", folder=str(self._folder), n=len(taken), n_in_all=self.n_taken)
        for file in taken:
            self._waiting.remove(file.name)
        for file, why in failed:
            self._reject(file, why)
        sent_to = {file.run for file, _ in batch.files}
        for run in self._runs.values():
            if run.known.run in sent_to:
                run.last_s = now_s

    def _send_file(self, file: KnownFile, source: ImageSource) -> None:
        about = {"file": file.name, "mtime_ns": file.stamp.mtime_ns, "nbytes": file.stamp.nbytes}
        for number, pixels in enumerate(source.read(range(source.n_frames))):
            if self._stop.is_set():
                raise StoppedError
            self._outlet.image(file.run, file.frame + number, pixels, file.planes[number], about)

    def _resend(self) -> bool:
        """Send what was being sent when something came between; whether nothing is left."""
        batch = _Batch()
        for file in self._record.sending():
            run = next((run for run in self._runs.values() if run.known.run == file.run), None)
            path = self._folder / file.name
            file = replace(file, stamp=stamp_of(path) or file.stamp)
            try:
                source = self._positions.open(path)
                if run is None or _crc32(source) != file.crc32:
                    raise InputError("it has other pixels now")
                self._make_sure_of(run)
            except (InputError, OSError) as error:
                why = f"it was changed or taken away before frame {file.frame} was safe in run {file.run}: {error}"
                if self._now_s() - self._began_s < self._options.give_up_s:  # a share may be mounted late
                    self._hold(f"{file.name}: {why}")
                    return False
                self._reject(file, why)
                continue
            except RunRefusedError as refusal:
                self._hold(str(refusal))
                return False
            batch.add(file, source)
            if batch.is_full:
                self._send(batch)
                batch = _Batch()
        self._send(batch)
        return not self.trouble

    def _settle(self, run: str, ranges: Sequence[tuple[int, int]]) -> None:
        """Note as taken what the daemon has already."""
        there = [
            replace(file, state="taken")
            for file in self._record.sending()
            if file.run == run
            and any(first <= file.frame and file.frame + len(file.planes) - 1 <= last for first, last in ranges)
        ]
        self._note(there)
        self.n_taken += len(there)

    def _is_sending(self, run: str) -> bool:
        return any(file.run == run for file in self._record.sending())

    def _hold(self, why: str) -> None:
        """Wait before anything is sent again."""
        if why != self._held_for:
            log.warning("files have to wait", folder=str(self._folder), why=why)
        self.trouble = self._held_for = why
        self._retry_at_s = self._now_s() + _RETRY_S

    # ---- runs ------------------------------------------------------------------------------------------------------

    def _subject(self, name: str) -> str:
        """What the run of a file is of: the folder that it lies in, and the field `run` of its name."""
        parent, _, own = name.rpartition("/")
        pattern = self._positions.pattern
        fields = (pattern.read(own) if pattern else None) or {}
        return f"{parent}\t{fields.get('run', '')}"

    def _begin(self, subject: str, source: ImageSource, geometry: Geometry) -> _Open:
        parent, _, group = subject.partition("\t")
        start = {
            "name": " ".join(part for part in (parent or self._folder.name, group) if part),
            "shape": source.shape,
            "dtype": source.dtype,
            "px_um": geometry.px_um,
            "affine": geometry.affine if geometry.flip_y else None,
            "channels": source.info.channels or None,
            "user": {"folder": str(self._folder / parent)},
        }
        run = _Open(KnownRun(str(uuid4()), subject, start), self._now_s())
        self._record.begin(run.known)
        self._runs[subject] = run
        return run

    def _make_sure_of(self, run: _Open) -> None:
        """Have the daemon know a run. One that it refuses is forgotten if nothing is in it."""
        if run.is_started:
            return
        try:
            self._outlet.start(run.known.run, run.known.start)
        except RunRefusedError:
            if not run.known.next_frame:
                self._abandon(run.known.run)
            raise
        run.is_started = True

    def _abandon(self, run: str) -> None:
        """Put nothing more into a run; what was being sent into it is taken again, into another."""
        self._record.end(run)
        self._runs = {subject: one for subject, one in self._runs.items() if one.known.run != run}
        self._known = {name: file for name, file in self._known.items() if file.state != "sending"}

    def _marker(self, subject: str) -> Stamp | None:
        """The end marker of a run, if it lies there and has not ended one before."""
        stamp = stamp_of(self._folder / subject.partition("\t")[0] / self._options.end_marker)
        used = self._record.file(_end_of(subject))
        return None if used is not None and used.stamp == stamp else stamp

    def _end_runs(self, marked: Mapping[str, Stamp]) -> None:
        waited_for = {self._subject(name) for name in self._waiting}
        now_s = self._now_s()
        for subject, run in list(self._runs.items()):
            is_silent = self._options.end_after_s > 0 and now_s - run.last_s >= self._options.end_after_s
            if subject in waited_for or not (is_silent or subject in marked):
                continue
            try:
                self._make_sure_of(run)
            except RunRefusedError as refusal:
                self._hold(str(refusal))
                return
            self._outlet.end(run.known.run, run.known.next_frame)
            if subject in marked:
                self._record.note([KnownFile(_end_of(subject), marked[subject], "skipped")])
            self._record.end(run.known.run)
            del self._runs[subject]
            log.info("run of a folder has ended", run=run.known.run, n_sent=run.known.next_frame)


def _end_of(subject: str) -> str:
    """Under this name the record keeps the marker that ended a run; no file has it."""
    return f"\tend of {subject}"


def _crc32(source: ImageSource) -> int:
    """Of all pixels of a file; reads them all."""
    value = 0
    for pixels in source.read(range(source.n_frames)):
        value = zlib.crc32(pixels.data, value)
    return value


def _move(path: Path, folder: Path) -> None:
    """Move a file into a folder, under another name if there is one of this name already."""
    folder.mkdir(exist_ok=True)
    target, number = folder / path.name, 0
    while target.exists():
        number += 1
        target = folder / f"{path.stem} ({number}){path.suffix}"
    path.rename(target)
