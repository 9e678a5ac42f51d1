"""Finds plugins, calls them, and keeps what goes wrong in them to themselves.

A guest's code may be wrong, slow, or never come back. So every call into a plugin is made from here, in a thread that
nothing else depends on: what it raises is logged with its name and counted, who waits for it waits for a limited time,
and the next one is called all the same. A plugin that fails again and again is not called any more. This is the one
place, beside the ends of threads, where everything is caught. Built-in plugins come in by the same door, their entry
points.

What cannot be guarded against in one process: a plugin that eats memory, never releases the GIL, or crashes the
interpreter. The service manager's limits are for that (systemd/README.md).

What the hooks mean is in `hookspecs`; when they are called is the service's business.

Examples
--------
>>> plugins = Plugins.load()
>>> plugins.find_calibration("20x", "flat", shape=(1024, 1024), folder=folder)  # doctest: +SKIP
"""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pluggy
import structlog
from numpy.typing import NDArray

from tilecast import hookspecs
from tilecast.errors import CalibrationError, UnknownCalibrationError
from tilecast.hookspecs import Committed, Emit, MessageSource, Role

log = structlog.get_logger()

T = TypeVar("T")

_IMPORT_TIMEOUTS: Final = 10  # libraries are large, and disks slow
_MAX_SOURCES: Final = 100  # of one plugin
_MAX_WAITING_TILES: Final = 200_000  # in commits that one plugin has not been told of


class PluginHangsError(Exception):
    """A plugin did not return in time."""


@dataclass(slots=True, eq=False)
class _Call:
    """A call into a plugin that has not returned, since a monotonic time, and how many timeouts have been counted."""

    plugin: str
    where: str
    since_s: float
    n_timeouts: int = 0


class Plugins:
    """The plugins of this installation. All methods may be called by any thread.

    Parameters
    ----------
    named : iterable of (str, object)
        Names and plugins, in the order in which they are asked. One whose hooks do not fit is left out, and listed in
        `failed`.
    timeout_s : float
        How long a call may take. Whoever waits for it does not wait longer; each time that this passes is a failure.
    max_failures : int
        A plugin that fails so often in one hook, without a success between, is not called any more.

    Attributes
    ----------
    failed : dict
        Name of each plugin that could not be loaded, and why.
    errors : dict
        How often each plugin failed since.
    disabled : dict
        Name of each plugin that is not called any more, and why.
    """

    def __init__(
        self, named: Iterable[tuple[str, object]] = (), *, timeout_s: float = 5.0, max_failures: int = 10
    ) -> None:
        self.failed: dict[str, str] = {}
        self.errors: dict[str, int] = {}
        self.disabled: dict[str, str] = {}
        self._timeout_s = timeout_s
        self._max_failures = max_failures
        self._lock = threading.Lock()
        self._running: set[_Call] = set()
        self._in_a_row: Counter[tuple[str, str]] = Counter()
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        for name, plugin in named:
            self._register(name, plugin)

    @classmethod
    def load(
        cls, found: Iterable[EntryPoint] | None = None, *, timeout_s: float = 5.0, max_failures: int = 10
    ) -> Plugins:
        """Load every plugin that is installed.

        Parameters
        ----------
        found : iterable of EntryPoint, optional
            Those of the group `tilecast.plugins` if not given.
        timeout_s, max_failures
            As of the class.
        """
        plugins = cls(timeout_s=timeout_s, max_failures=max_failures)
        for entry in sorted(entry_points(group=hookspecs.ENTRY_POINT_GROUP) if found is None else found):
            try:
                # Importing a plugin runs a guest's code.
                plugin = plugins._ask(entry.name, "import", entry.load, timeout_s * _IMPORT_TIMEOUTS)
            except Exception as exc:  # noqa: BLE001 - a guest's code
                plugins._fail(entry.name, exc)
            else:
                plugins._register(entry.name, plugin)
        return plugins

    @property
    def names(self) -> list[str]:
        """The plugins that were loaded, in the order in which they are asked."""
        return [name for name, _ in self._manager.list_name_plugin()]

    def find_calibration(self, name: str, role: Role, *, shape: tuple[int, int], folder: Path) -> NDArray[Any]:
        """Ask for the image that a `start` names.

        Raises
        ------
        UnknownCalibrationError
            If no plugin knows it.
        CalibrationError
            If the plugin that knows it cannot use it.
        """
        arguments = {"name": name, "role": role, "shape": shape, "folder": folder}
        reason = f"there is no {role} named {name!r}, and no plugin that would look for it"
        if self.disabled:
            reason += f" ({', '.join(sorted(self.disabled))} failed too often, and would not be asked)"
        for plugin, call in self._callers("tilecast_find_calibration"):
            where = "tilecast_find_calibration"
            try:
                image = self._ask(plugin, where, partial(_image, call, arguments))
            except UnknownCalibrationError as exc:
                reason = _words(exc)
                self._succeeded(plugin, where)
            except CalibrationError:
                self._succeeded(plugin, where)
                raise
            except Exception as exc:
                self._raised(plugin, where, exc)
                raise CalibrationError(
                    f"the plugin {plugin} failed while it looked for the {role} {name!r}: {_words(exc)}"
                ) from exc
            else:
                self._succeeded(plugin, where)
                if image is not None:
                    return image
        raise UnknownCalibrationError(reason)

    def message_sources(self, instrument: str) -> list[tuple[str, MessageSource]]:
        """The sources that plugins bring, each with the name of its plugin."""
        sources: list[tuple[str, MessageSource]] = []
        for plugin, call in self._callers("tilecast_message_sources"):
            try:
                found = self._ask(plugin, "tilecast_message_sources", partial(_sources, call, instrument))
            except Exception as exc:  # noqa: BLE001 - a guest's code
                self._raised(plugin, "tilecast_message_sources", exc)
            else:
                sources += [(plugin, source) for source in found]
        return sources

    def committed(self, commit: Committed, plugin: str | None = None) -> None:
        """Tell one plugin (every one, if it is None) of a commit, now and in this thread; see `CommitTeller`."""
        where = "tilecast_committed"
        for name, function in self._callers(where):
            if plugin not in (None, name):
                continue
            call = self._begin(name, where)
            try:
                function(commit=commit)
            except BaseException as exc:  # noqa: BLE001 - a guest's code
                self._raised(name, where, exc)
            else:
                self._succeeded(name, where)
            finally:
                self._end(call)

    def listeners(self, hook: str) -> list[str]:
        """The plugins that implement this hook and are called."""
        return [name for name, _ in self._callers(hook)]

    def watch(self) -> None:
        """Count those that hang: to be called about every second."""
        now_s = time.monotonic()
        late = []
        with self._lock:
            for call in self._running:
                n_timeouts = int((now_s - call.since_s) / self._timeout_s)
                late += [call] * (n_timeouts - call.n_timeouts)
                call.n_timeouts = max(call.n_timeouts, n_timeouts)
        for call in late:
            self._raised(call.plugin, call.where, self._hangs(call.where))

    def hanging(self) -> dict[str, str]:
        """Name of each plugin that has not returned in time, and the hook in which it hangs."""
        with self._lock:
            return {call.plugin: call.where for call in self._running if call.n_timeouts}

    def _ask(self, plugin: str, where: str, function: Callable[[], T], timeout_s: float | None = None) -> T:
        """Call a plugin in a thread of its own; raises what it raises, or PluginHangsError."""
        with self._lock:
            if any((call.plugin, call.where) == (plugin, where) for call in self._running):
                raise PluginHangsError(f"it has not come back from the {where} before")
        future: Future[T] = Future()

        def work() -> None:
            call = self._begin(plugin, where)
            try:
                future.set_result(function())
            except Exception as exc:  # noqa: BLE001 - a guest's code
                future.set_exception(exc)
            except BaseException as exc:  # noqa: BLE001 - one that tries to end the process; who asked shall not
                future.set_exception(RuntimeError(_words(exc)))
            finally:
                self._end(call)

        threading.Thread(target=work, name=f"plugin {plugin}", daemon=True).start()
        concurrent.futures.wait([future], timeout_s or self._timeout_s)
        if not future.done():
            with self._lock:  # the caller counts this one; the watch, those that follow
                for call in self._running:
                    if (call.plugin, call.where) == (plugin, where):
                        call.n_timeouts = max(1, call.n_timeouts)
            raise self._hangs(where, timeout_s)
        return future.result()

    def _hangs(self, where: str, timeout_s: float | None = None) -> PluginHangsError:
        return PluginHangsError(f"{where} did not return within {timeout_s or self._timeout_s:g} s (plugins.timeout_s)")

    def _begin(self, plugin: str, where: str) -> _Call:
        call = _Call(plugin, where, time.monotonic())
        with self._lock:
            self._running.add(call)
        return call

    def _end(self, call: _Call) -> None:
        with self._lock:
            self._running.discard(call)

    def _callers(self, hook: str) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Each plugin that implements a hook, with a way to call it alone."""
        everybody = self._manager.list_name_plugin()
        for name, _ in everybody:
            if name in self.disabled:
                continue
            others = [other for other_name, other in everybody if other_name != name]
            caller = self._manager.subset_hook_caller(hook, others)
            if caller.get_hookimpls():
                yield name, caller

    def _register(self, name: str, plugin: object) -> None:
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as exc:
            if self._manager.get_plugin(name) is plugin:
                self._manager.unregister(plugin)
            self._fail(name, exc)

    def _fail(self, name: str, exc: BaseException) -> None:
        self.failed[name] = _words(exc)
        log.error("plugin left out", plugin=name, reason=self.failed[name])

    def _raised(self, plugin: str, where: str, exc: BaseException) -> None:
        with self._lock:
            self.errors[plugin] = self.errors.get(plugin, 0) + 1
            self._in_a_row[plugin, where] += 1
            is_last = self._in_a_row[plugin, where] >= self._max_failures and plugin not in self.disabled
            if is_last:
                self.disabled[plugin] = f"it failed {self._max_failures} times in a row in {where}: {_words(exc)}"
        is_ours = isinstance(exc, PluginHangsError)
        log.error("plugin failed", plugin=plugin, where=where, why=_words(exc), exc_info=None if is_ours else exc)
        if is_last:
            log.error("plugin disabled", plugin=plugin, why=self.disabled[plugin])

    def _succeeded(self, plugin: str, where: str) -> None:
        with self._lock:
            del self._in_a_row[plugin, where]


def _image(call: Callable[..., Any], arguments: dict[str, Any]) -> NDArray[Any] | None:
    """A calibration image from a plugin: whatever it gives, what goes on is an array of numbers of the right shape."""
    image, shape = call(**arguments), arguments["shape"]
    if image is not None and not (isinstance(image, np.ndarray) and image.dtype.kind in "uif"):
        raise TypeError(f"expected an array of real numbers, or None; got {type(image).__name__}")
    if image is None:
        return None
    if image.shape != tuple(shape):
        raise CalibrationError(f"the calibration image has the shape {image.shape}, the camera's frames have {shape}")
    return image


def _sources(call: Callable[..., Any], instrument: str) -> list[MessageSource]:
    """The sources that a plugin names: a list with an end, of things that have a name and can be run."""
    found = (source for some in call(instrument=instrument) for source in some)
    sources: list[MessageSource] = list(islice(found, _MAX_SOURCES + 1))
    if len(sources) > _MAX_SOURCES:
        raise ValueError(f"a plugin may bring {_MAX_SOURCES} sources")
    for source in sources:
        if not isinstance(source.name, str) or not callable(source.run):
            raise TypeError(f"a source has a name and can be run; got {type(source).__name__}")
    return sources


def _words(exc: BaseException) -> str:
    """What an exception says; that of a guest may not even be able to."""
    try:
        text = str(exc)
    except Exception:  # noqa: BLE001 - a guest's code
        text = "…"
    return text if isinstance(exc, CalibrationError | PluginHangsError) else f"{type(exc).__name__}: {text}"


class CommitTeller:
    """Tells plugins of commits, each from a thread of its own, so that a slow plugin slows nobody.

    Parameters
    ----------
    plugins : Plugins
    max_waiting : int
        Commits that may wait for one plugin; while they do, new ones are not told to it, and are counted.
    """

    def __init__(self, plugins: Plugins, max_waiting: int = 1000) -> None:
        self.n_missed = 0
        self._plugins = plugins
        self._lines = {name: _Line(plugins, name, max_waiting) for name in plugins.listeners("tilecast_committed")}

    def tell(self, commit: Committed) -> None:
        """Never waits."""
        for name, line in self._lines.items():
            if name not in self._plugins.disabled and not line.put(commit):
                self.n_missed += 1
                log.warning("plugin is slow and missed a commit", plugin=name, run=commit.run, rev=commit.rev)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Tell what still waits, and end; False if a plugin did not come back in time."""
        deadline_s = time.monotonic() + timeout_s
        for line in self._lines.values():
            line.end()
        ended = [
            line.join(deadline_s - time.monotonic())
            for name, line in self._lines.items()
            if name not in self._plugins.disabled
        ]
        return all(ended)


class _Line:
    """The commits that wait to be told to one plugin, and the thread that does."""

    def __init__(self, plugins: Plugins, name: str, max_waiting: int) -> None:
        self._plugins = plugins
        self._name = name
        self._max_waiting = max_waiting
        self._queue: queue.SimpleQueue[Committed | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._n_tiles = 0
        self._thread = threading.Thread(target=self._work, name=f"plugin {name}", daemon=True)
        self._thread.start()

    def put(self, commit: Committed) -> bool:
        with self._lock:
            if self._queue.qsize() >= self._max_waiting or self._n_tiles > _MAX_WAITING_TILES:
                return False
            self._n_tiles += len(commit.tiles) + len(commit.gone)
        self._queue.put(commit)
        return True

    def end(self) -> None:
        self._queue.put(None)

    def join(self, timeout_s: float) -> bool:
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (commit := self._queue.get()) is not None:
            with self._lock:
                self._n_tiles -= len(commit.tiles) + len(commit.gone)
            self._plugins.committed(commit, self._name)


class SourceThreads:
    """Runs the message sources that plugins bring, each in a thread of its own.

    Parameters
    ----------
    sources : sequence of (str, MessageSource)
        As `Plugins.message_sources` gives them.
    emit : callable
        Called from those threads with the parts of one message; may block.
    """

    def __init__(self, sources: Sequence[tuple[str, MessageSource]], emit: Emit) -> None:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(plugin, source, emit), name=f"source {source.name}", daemon=True)
            for plugin, source in sources
        ]
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> list[str]:
        """Names of the threads that have not ended."""
        return [thread.name for thread in self._threads if thread.is_alive()]

    def close(self, timeout_s: float = 5.0) -> bool:
        """Ask all sources to stop; False if one did not in time."""
        self._stop.set()
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        for name in self.running:
            log.error("message source did not stop; it is left behind", source=name, timeout_s=timeout_s)
        return not self.running

    def _run(self, plugin: str, source: MessageSource, emit: Emit) -> None:
        try:
            source.run(emit, self._stop)
        except BaseException as exc:
            log.error("message source failed and is over", plugin=plugin, source=source.name, exc_info=exc)
        else:
            log.info("message source has ended", plugin=plugin, source=source.name)
