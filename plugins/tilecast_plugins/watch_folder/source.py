"""One watched folder as a source of messages: notices changes, and sends what `Intake` takes.

Changes are only a reason to look sooner: the folder is looked through every `poll_s` in any case, so that nothing
depends on what an observer may miss (a network share, a queue that was full, a folder that came back).
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal

import psutil
import structlog
from numpy.typing import NDArray
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserver

from tilecast.hookspecs import Feed
from tilecast.reading import StoreError, open_run, run_folder
from tilecast_plugins.watch_folder.intake import Intake, RunRefusedError, StoppedError
from tilecast_plugins.watch_folder.options import WatchFolderOptions
from tilecast_plugins.watch_folder.record import Plane, Record
from tilecast_protocol.errors import DisconnectedError
from tilecast_protocol.messages import End
from tilecast_protocol.publisher import Publisher, RejectedError
from tilecast_protocol.window import Rejected

log = structlog.get_logger()

# What is wrong with a file is said once, when it is set aside, and not at each look at one that is half-written.
for _library in ("tifffile", "PIL", "watchdog"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)

_TURN_S = 0.5  # after so long of waiting it is looked whether the daemon stops
_SHORTEST_S = 0.05  # between two looks at a folder
_RETRY_OBSERVER_S = 5.0
_NETWORK = ("nfs", "cifs", "smb", "fuse", "9p", "afs", "ceph", "glusterfs", "lustre", "davfs", "vboxsf", "virtiofs")


def needs_polling(folder: Path) -> bool:
    """Whether a folder lies on a file system that does not tell of what other machines write."""
    resolved = folder.resolve()
    best, kind = -1, ""
    for partition in psutil.disk_partitions(all=True):
        mount = Path(partition.mountpoint)
        if resolved.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), partition.fstype.lower()
    return kind.startswith(_NETWORK)


class Alarm(FileSystemEventHandler):
    """Wakes a source when something happens in a folder.

    Parameters
    ----------
    how : {"auto", "native", "polling"}
    poll_s : float
    subfolders : bool
    """

    def __init__(self, how: Literal["auto", "native", "polling"], poll_s: float, *, subfolders: bool) -> None:
        self.kind = ""
        self._how = how
        self._poll_s = poll_s
        self._subfolders = subfolders
        self._rang = threading.Event()
        self._observer: BaseObserver | None = None
        self._inode: tuple[int, int] | None = None

    def watch(self, folder: Path) -> None:
        """Watch a folder, unless it is watched already; one that went and came back is another. Raises OSError."""
        status = folder.stat()
        inode = (status.st_dev, status.st_ino)
        if self._observer is not None and inode == self._inode and self._observer.is_alive():
            return
        self.close()
        is_polling = self._how == "polling" or (self._how == "auto" and needs_polling(folder))
        kinds = (True,) if is_polling else (False,) if self._how == "native" else (False, True)
        for polls in kinds:
            try:
                observer: BaseObserver = PollingObserver(timeout=self._poll_s) if polls else Observer()
                observer.schedule(self, str(folder), recursive=self._subfolders)
                observer.start()
            except OSError as error:  # no more inotify watches
                if polls is kinds[-1]:
                    raise
                log.warning("folder is watched by polling: there are no native watches", why=str(error))
                continue
            self._observer, self._inode, self.kind = observer, inode, "polling" if polls else "native"
            self._rang.set()
            return

    def on_any_event(self, event: FileSystemEvent) -> None:
        """See watchdog; its thread calls this."""
        if event.event_type not in ("opened", "closed_no_write"):  # our own reading
            self._rang.set()

    def wait(self, timeout_s: float, stop: threading.Event) -> None:
        """Wait until something happens, at most so long, or until `stop` is set."""
        until_s = time.monotonic() + timeout_s
        while not stop.is_set() and not self._rang.wait(max(0.0, min(_TURN_S, until_s - time.monotonic()))):
            if time.monotonic() >= until_s:
                break
        self._rang.clear()

    def close(self) -> None:
        """Watch no more."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            with suppress(RuntimeError):  # it was never started
                observer.join(5.0)


class FolderSource:
    """A watched folder; see `hookspecs.MessageSource`."""

    def __init__(self, folder: Path, options: WatchFolderOptions) -> None:
        self.name = f"folder {folder}"
        self._folder = folder
        self._options = options
        self._said = ""

    def run(self, feed: Feed, stop: threading.Event) -> None:
        """See `hookspecs.MessageSource`."""
        key = hashlib.sha256(str(self._folder.resolve()).encode()).hexdigest()[:16]
        rejected_list = feed.folder / "tilecast-rejected.jsonl"
        refused: dict[tuple[str, int], tuple[str, str]] = {}
        lock = threading.Lock()

        def on_rejected(rejected: Rejected) -> None:
            if rejected.run is not None and rejected.frame is not None:
                with lock:
                    refused[rejected.run, rejected.frame] = rejected.reason, rejected.message

        alarm = Alarm(self._options.observer, self._options.poll_s, subfolders=self._options.subfolders)
        publisher = feed.publisher(self._options.stream, src=f"watch-{key}", timeout_s=_TURN_S, on_rejected=on_rejected)
        with closing(Record(feed.folder / f"{key}.sqlite")) as record, closing(alarm):
            outlet = PublisherOutlet(publisher, feed.store, refused, lock, stop)
            intake = Intake(self._folder, self._options, record, outlet, rejected_list, stop=stop)
            with suppress(StoppedError):
                outlet.connect()
                intake.resume()
                while not stop.is_set():
                    self._turn(intake, alarm, feed, rejected_list, stop)
        with suppress(DisconnectedError):
            publisher.close()

    def _turn(self, intake: Intake, alarm: Alarm, feed: Feed, rejected_list: Path, stop: threading.Event) -> None:
        """Look once, say how it is, and wait for the next reason to look."""
        trouble = ""
        try:
            alarm.watch(self._folder)
            intake.turn()
        except FileNotFoundError:
            trouble = f"{self._folder} is not there; waiting for it"
        except NotADirectoryError:
            trouble = f"{self._folder} is no folder"
        except PermissionError as error:
            trouble = f"{self._folder} may not be read by this user ({error.strerror}); give it the right to"
        except OSError as error:
            trouble = f"{self._folder} cannot be read: {error.strerror or error}"
        if trouble:
            alarm.close()
        feed.tell(
            trouble=trouble or intake.trouble,
            watched=alarm.kind if not trouble else "",
            n_taken=intake.n_taken,
            n_waiting=intake.n_waiting,
            n_rejected=intake.n_rejected,
            last_rejected=intake.last_rejected,
            rejected_list=str(rejected_list) if intake.n_rejected else "",
        )
        self._say(trouble)  # after it is told: who reads the log may ask at once
        # A folder with very many files is not to take more than a fiftieth of a processor while nothing happens.
        wait_s = max(self._options.poll_s, 50 * intake.look_s)
        if not trouble:
            wait_s = min(wait_s, max(_SHORTEST_S, intake.next_look_s))
        alarm.wait(wait_s, stop)
        stop.wait(max(_SHORTEST_S, intake.look_s))  # what comes in a burst is looked at together

    def _say(self, trouble: str) -> None:
        """Log trouble when it begins, and when it is over."""
        if trouble == self._said:
            return
        if trouble:
            log.error("folder cannot be watched", folder=str(self._folder), why=trouble)
        else:
            log.info("folder is watched again", folder=str(self._folder))
        self._said = trouble


class PublisherOutlet:
    """The way to the daemon through a publisher; see `intake.Outlet`.

    Parameters
    ----------
    publisher : Publisher
        One that waits no longer than it may take to stop.
    store : Path
        The folder of the runs.
    refused : dict
        To which its `on_rejected` adds what was refused, under `lock`.
    lock : Lock
    stop : threading.Event
    """

    def __init__(
        self,
        publisher: Publisher,
        store: Path,
        refused: dict[tuple[str, int], tuple[str, str]],
        lock: threading.Lock,
        stop: threading.Event,
    ) -> None:
        self._publisher = publisher
        self._store = store
        self._refused = refused
        self._lock = lock
        self._stop = stop
        self._known: dict[str, tuple[str, Sequence[tuple[int, int]]]] = {}

    def connect(self) -> None:
        """Wait for the daemon, and keep what it says of the runs that it has."""
        self._patiently(self._publisher.wait_connected)
        welcome = self._publisher.welcome
        assert welcome is not None, "it was waited for"
        self._known = {state.run: (state.state, state.received) for state in welcome.runs}

    def known(self, run: str) -> tuple[str, Sequence[tuple[int, int]]] | None:
        """See `Outlet`."""
        if run in self._known or not run_folder(self._store, run).is_dir():
            return self._known.get(run)
        try:  # one that the daemon has not loaded, because nothing happened in it for a while
            with open_run(self._store, run) as reader:
                return reader.info().state, ()
        except StoreError:
            return "unknown", ()

    def start(self, run: str, start: Mapping[str, Any]) -> None:
        """See `Outlet`."""
        given = {name: value for name, value in start.items() if value is not None}
        given["shape"], given["px_um"] = tuple(given["shape"]), tuple(given["px_um"])
        if "affine" in given:
            given["affine"] = tuple(tuple(row) for row in given["affine"])
        try:
            self._patiently(lambda: self._publisher.start(run=run, **given))
        except RejectedError as error:
            raise RunRefusedError(str(error)) from error

    def image(self, run: str, frame: int, pixels: NDArray[Any], plane: Plane, user: Mapping[str, Any]) -> None:
        """See `Outlet`."""
        self._patiently(
            lambda: self._publisher.image(pixels, run=run, frame=frame, pos_um=plane.pos_um, tcz=plane.tcz, user=user)
        )

    def flush(self) -> dict[tuple[str, int], tuple[str, str]]:
        """See `Outlet`."""
        self._patiently(self._publisher.flush)
        with self._lock:
            refused = dict(self._refused)
            self._refused.clear()
        return refused

    def end(self, run: str, n_sent: int) -> None:
        """See `Outlet`."""
        publisher = self._publisher
        message = End(
            instrument=publisher.instrument, stream=publisher.stream, src=publisher.src, boot=publisher.boot, seq=0,
            t_ns=time.time_ns(), run=run, reason="done", n_sent=n_sent, user={},
        )  # fmt: skip
        self._patiently(lambda: publisher.send(message))
        self._patiently(publisher.flush)

    def _patiently(self, call: Callable[[], object]) -> None:
        """Call until it does not say that the daemon is behind; raises StoppedError when it stops."""
        while True:
            if self._stop.is_set():
                raise StoppedError
            try:
                call()
                return
            except DisconnectedError:
                continue
