"""Finds plugins, calls them, and keeps what goes wrong in them to themselves.

A guest's code may be wrong or slow. So every call into a plugin is made from here, one plugin at a time: what it raises
is logged with its name and counted, and the next one is called all the same. This is the one place, beside the ends of
threads, where everything is caught. Built-in plugins come in by the same door, their entry points.

What the hooks mean is in `hookspecs`; when they are called is the service's business.

Examples
--------
>>> plugins = Plugins.load()
>>> plugins.find_calibration("20x", "flat", shape=(1024, 1024), folder=folder)  # doctest: +SKIP
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy
import structlog
from numpy.typing import NDArray

from tilecast import hookspecs
from tilecast.errors import CalibrationError, UnknownCalibrationError
from tilecast.hookspecs import Committed, Emit, MessageSource, Role

log = structlog.get_logger()


class Plugins:
    """The plugins of this installation.

    Parameters
    ----------
    named : iterable of (str, object)
        Names and plugins, in the order in which they are asked. One whose hooks do not fit is left out, and listed in
        `failed`.

    Attributes
    ----------
    failed : dict
        Name of each plugin that could not be loaded, and why.
    errors : dict
        How often each plugin raised something since.
    """

    def __init__(self, named: Iterable[tuple[str, object]] = ()) -> None:
        self.failed: dict[str, str] = {}
        self.errors: dict[str, int] = {}
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        for name, plugin in named:
            self._register(name, plugin)

    @classmethod
    def load(cls, found: Iterable[EntryPoint] | None = None) -> Plugins:
        """Load every plugin that is installed.

        Parameters
        ----------
        found : iterable of EntryPoint, optional
            Those of the group `tilecast.plugins` if not given.
        """
        plugins = cls()
        for entry in sorted(entry_points(group=hookspecs.ENTRY_POINT_GROUP) if found is None else found):
            try:
                plugin = entry.load()
            except Exception as exc:  # noqa: BLE001 - importing a plugin runs a guest's code
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
        for plugin, call in self._callers("tilecast_find_calibration"):
            try:
                image: NDArray[Any] | None = call(**arguments)
            except UnknownCalibrationError as exc:
                reason = str(exc)
            except CalibrationError:
                raise
            except Exception as exc:
                self._raised(plugin, "tilecast_find_calibration", exc)
                raise CalibrationError(
                    f"the plugin {plugin} failed while it looked for the {role} {name!r}: {exc!r}"
                ) from exc
            else:
                if image is not None:
                    return image
        raise UnknownCalibrationError(reason)

    def message_sources(self, instrument: str) -> list[tuple[str, MessageSource]]:
        """The sources that plugins bring, each with the name of its plugin."""
        sources: list[tuple[str, MessageSource]] = []
        for plugin, call in self._callers("tilecast_message_sources"):
            try:
                sources += [(plugin, source) for found in call(instrument=instrument) for source in found]
            except Exception as exc:  # noqa: BLE001 - a guest's code
                self._raised(plugin, "tilecast_message_sources", exc)
        return sources

    def committed(self, commit: Committed) -> None:
        """Tell every plugin of a commit, now and in this thread; `CommitTeller` does it in one of its own."""
        for plugin, call in self._callers("tilecast_committed"):
            try:
                call(commit=commit)
            except Exception as exc:  # noqa: BLE001 - a guest's code
                self._raised(plugin, "tilecast_committed", exc)

    def listens(self, hook: str) -> bool:
        """Whether any plugin implements this hook."""
        return any(True for _ in self._callers(hook))

    def _callers(self, hook: str) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Each plugin that implements a hook, with a way to call it alone."""
        everybody = self._manager.list_name_plugin()
        for name, _ in everybody:
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

    def _fail(self, name: str, exc: Exception) -> None:
        self.failed[name] = f"{type(exc).__name__}: {exc}"
        log.error("plugin left out", plugin=name, reason=self.failed[name])

    def _raised(self, plugin: str, where: str, exc: Exception) -> None:
        self.errors[plugin] = self.errors.get(plugin, 0) + 1
        log.error("plugin failed", plugin=plugin, where=where, exc_info=exc)


class CommitTeller:
    """Tells plugins of commits from a thread of its own, so that a slow plugin slows nobody.

    Parameters
    ----------
    plugins : Plugins
    max_waiting : int
        Commits that may wait; while it is full, new ones are not told, and are counted.
    """

    def __init__(self, plugins: Plugins, max_waiting: int = 1000) -> None:
        self.n_missed = 0
        self._plugins = plugins
        self._listens = plugins.listens("tilecast_committed")
        self._queue: queue.Queue[Committed | None] = queue.Queue(max_waiting)
        self._thread = threading.Thread(target=self._work, name="plugins", daemon=True)
        self._thread.start()

    def tell(self, commit: Committed) -> None:
        """Never waits."""
        if not self._listens:
            return
        try:
            self._queue.put_nowait(commit)
        except queue.Full:
            self.n_missed += 1
            log.warning("plugins are slow and missed a commit", run=commit.run, rev=commit.rev)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Tell what still waits, and end; False if a plugin did not come back in time."""
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return False
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (commit := self._queue.get()) is not None:
            self._plugins.committed(commit)


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
        for thread in self._threads:
            thread.join(timeout_s)
        return not self.running

    def _run(self, plugin: str, source: MessageSource, emit: Emit) -> None:
        try:
            source.run(emit, self._stop)
        except Exception as exc:  # a guest's code, and the end of its thread
            log.error("message source failed and is over", plugin=plugin, source=source.name, exc_info=exc)
        else:
            log.info("message source has ended", plugin=plugin, source=source.name)
