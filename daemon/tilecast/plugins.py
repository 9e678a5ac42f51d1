"""Finds plugins, calls them, and keeps what goes wrong in them to themselves.

A guest's code may be wrong, slow, or never come back. So every call into a plugin is made from here, in a thread that
nothing else depends on: what it raises is logged with its name and counted, who waits for it waits for a limited time,
and the next one is called all the same. A plugin that fails again and again is not called any more. This is the one
place, beside the ends of threads, where everything is caught. Built-in plugins come in by the same door, their entry
points.

What cannot be guarded against in one process: a plugin that eats memory, never releases the GIL, or crashes the
interpreter. The service manager's limits are for that (systemd/README.md).

What the hooks mean is in `hookspecs`; when they are called is the service's business. How often each is called, how
long that takes and what went wrong is counted here (`Plugins.costs`), and logged call by call if that is wanted
(`trace`).

Examples
--------
>>> plugins = Plugins.load()
>>> plugins.find_calibration("20x", "flat", shape=(1024, 1024), folder=folder)  # doctest: +SKIP
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import math
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

import numpy as np
import pluggy
import structlog
from numpy.typing import NDArray

from tilecast import hookspecs
from tilecast.errors import CalibrationError, StartRefusedError, UnknownCalibrationError
from tilecast.guests import guests
from tilecast.hookspecs import Committed, FrameStep, Images, MakeImages, MessageSource, Role, RunEnded, RunStart
from tilecast.options import PluginOptions
from tilecast_protocol.errors import TilecastError
from tilecast_protocol.publisher import Publisher
from tilecast_protocol.window import Rejected

log = structlog.get_logger()

T = TypeVar("T")

_IMPORT_TIMEOUTS: Final = 10  # libraries are large, and disks slow
_MAX_SOURCES: Final = 100  # of one plugin
_MAX_WAITING_TILES: Final = 200_000  # in commits that one plugin has not been told of


_MAX_VIEWS: Final = 16  # of one frame
_MOST_SHOWN: Final = 80  # characters of an argument in the trace
_MOST_TOLD: Final = 2000  # characters of what a source says of itself
_KEPT: Final = ".plugins"  # in the folder of the runs: what plugins keep
_LONGEST_WAIT_S: Final = 60.0  # before a source that failed is started again
_ARRAY_NAME: Final = re.compile(r"[A-Za-z0-9_]{1,64}")

FRAMES: Final = "frames"
"""Under this name calls of the function that makes images are counted: not a hook, but what one made."""

TRACED: Final = "plugin call"
"""What the log says of a call, if `plugins.trace` is set."""

_NEWS: Final[dict[type, tuple[str, str]]] = {
    Committed: ("tilecast_committed", "commit"),
    RunEnded: ("tilecast_run_ended", "run"),
}
"""The hook by which plugins are told of each kind of news, and its argument."""


class PluginHangsError(Exception):
    """A plugin did not return in time."""


class PluginFailedError(TilecastError):
    """A plugin that something cannot do without is not there, fails, or hangs; the message names it."""


@dataclass(slots=True, eq=False)
class _Call:
    """A call into a plugin that has not returned, since a monotonic time.

    `counted_s` is when a timeout of it was last counted. Who waits for it counts the first, by its own patience.
    """

    plugin: str
    where: str
    since_s: float
    arguments: Mapping[str, Any]
    cpu_s: float = field(default_factory=time.thread_time)
    is_awaited: bool = False
    counted_s: float | None = None


@dataclass(slots=True)
class HookCost:
    """What one hook of one plugin has cost since the daemon was started.

    Attributes
    ----------
    n_calls, n_failures : int
        Calls that returned or raised; failures, also those of calls that never returned.
    seconds, longest_s : float
        By the clock.
    cpu_s : float
        Processor time of the thread that called.
    """

    n_calls: int = 0
    n_failures: int = 0
    seconds: float = 0.0
    longest_s: float = 0.0
    cpu_s: float = 0.0


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
    options_of : callable
        Gives the options of the plugin of a name.
    trace : bool
        Log each call.

    Attributes
    ----------
    failed : dict
        Name of each plugin that could not be loaded, and why.
    errors : dict
        How often each plugin failed since.
    disabled : dict
        Name of each plugin that is not called any more, and why.
    last_errors : dict
        What the last failure of each plugin was.
    switched_off : list of str
        Plugins that are installed, and whose option `enabled` is false; they are not imported.
    costs : dict
        What each hook costs, by (plugin, hook).
    trace : bool
        As above; may be changed at any time.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, object]] = (),
        *,
        timeout_s: float = 5.0,
        max_failures: int = 10,
        options_of: Callable[[str], PluginOptions] = lambda _: PluginOptions(),
        trace: bool = False,
    ) -> None:
        self.failed: dict[str, str] = {}
        self.errors: dict[str, int] = {}
        self.disabled: dict[str, str] = {}
        self.last_errors: dict[str, str] = {}
        self.switched_off: list[str] = []
        self.costs: dict[tuple[str, str], HookCost] = {}
        self.trace = trace
        self._options_of = options_of
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
        cls,
        found: Iterable[EntryPoint] | None = None,
        *,
        timeout_s: float = 5.0,
        max_failures: int = 10,
        options_of: Callable[[str], PluginOptions] = lambda _: PluginOptions(),
        trace: bool = False,
    ) -> Plugins:
        """Load every plugin that is installed and enabled.

        Parameters
        ----------
        found : iterable of EntryPoint, optional
            Those of the group `tilecast.plugins` if not given.
        timeout_s, max_failures, options_of, trace
            As of the class.
        """
        plugins = cls(timeout_s=timeout_s, max_failures=max_failures, options_of=options_of, trace=trace)
        trouble = {guest.name: guest.trouble for guest in guests() if guest.trouble}
        for entry in sorted(entry_points(group=hookspecs.ENTRY_POINT_GROUP) if found is None else found):
            try:
                if not options_of(entry.name).enabled:
                    plugins.switched_off.append(entry.name)
                    continue
                if entry.name in trouble:
                    raise ImportError(trouble[entry.name])
                # Importing a plugin runs a guest's code.
                plugin = plugins._ask(entry.name, "import", entry.load, timeout_s=timeout_s * _IMPORT_TIMEOUTS)
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
        where = "tilecast_find_calibration"
        for plugin, call in self._callers(where):
            try:
                image = self._ask(plugin, where, partial(_image, call, shape), arguments)
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

    def run_starting(self, run: RunStart) -> list[tuple[str, FrameStep]]:
        """What plugins want to do with every frame of a run, each with the plugin's name; who splits frames comes last.

        Raises
        ------
        StartRefusedError
            If one refuses the run, fails, has failed too often to be asked, or if two would split its frames.
        """
        where = "tilecast_run_starting"
        steps: list[tuple[str, FrameStep]] = []
        for plugin, call in self._callers(where, also_disabled=True):
            try:
                if plugin in self.disabled:
                    raise StartRefusedError(f"the plugin is not called any more: {self.disabled[plugin]}")
                step = self._ask(plugin, where, partial(_step, call), {"run": run})
            except StartRefusedError as exc:
                self._succeeded(plugin, where)
                raise StartRefusedError(f"the plugin {plugin} refuses the run: {exc}") from exc
            except Exception as exc:
                self._raised(plugin, where, exc)
                raise StartRefusedError(
                    f"the plugin {plugin} failed when it was told that the run begins: {_words(exc)}; mend it, or "
                    "switch it off with its option enabled"
                ) from exc
            self._succeeded(plugin, where)
            if step is not None:
                steps.append((plugin, step))
        steps.sort(key=lambda named: bool(named[1].views))
        splitters = [plugin for plugin, step in steps if step.views]
        if len(splitters) > 1:
            raise StartRefusedError(f"{' and '.join(splitters)} would each split the frames: switch off all but one")
        return steps

    def make_images(
        self,
        plugin: str,
        step: FrameStep,
        *,
        shape: tuple[int, int],
        dtype: str,
        channel: int | None = None,
        applied: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    ) -> MakeImages:
        """The function of a plugin that every frame of a run passes through; see `images`.

        Raises
        ------
        PluginFailedError
            If the plugin is not there, or fails.
        """
        where = "tilecast_make_images"
        call = dict(self._callers(where)).get(plugin)
        if call is None:
            why = self.failed.get(plugin) or self.disabled.get(plugin)
            if why is None and plugin in self.switched_off:
                why = "it is switched off (its option enabled)"
            raise PluginFailedError(
                f"the frames of this run pass through the plugin {plugin}, which cannot be used: "
                f"{why or 'it is not installed, or another version of it'}"
            )
        try:
            arguments = {"step": step, "shape": shape, "dtype": dtype, "channel": channel, "applied": applied}
            make = self._ask(plugin, where, partial(_made, call), arguments)
        except Exception as exc:
            self._raised(plugin, where, exc)
            raise PluginFailedError(f"the plugin {plugin} failed in {where}: {_words(exc)}") from exc
        self._succeeded(plugin, where)
        return make

    def images(self, plugin: str, make: MakeImages, pixels: NDArray[Any]) -> Images:
        """Have one frame pass through a plugin.

        Raises
        ------
        PluginFailedError
            If it fails or hangs.
        """
        try:
            found = self._ask(plugin, FRAMES, lambda _: Images(*make(pixels)), {"pixels": pixels})
        except Exception as exc:
            self._raised(plugin, FRAMES, exc)
            raise PluginFailedError(f"the plugin {plugin} failed with a frame: {_words(exc)}") from exc
        self._succeeded(plugin, FRAMES)
        return found

    def message_sources(self, instrument: str) -> list[tuple[str, MessageSource]]:
        """The sources that plugins bring, each with the name of its plugin."""
        where = "tilecast_message_sources"
        sources: list[tuple[str, MessageSource]] = []
        for plugin, call in self._callers(where):
            try:
                found = self._ask(plugin, where, partial(_sources, call), {"instrument": instrument})
            except Exception as exc:  # noqa: BLE001 - a guest's code
                self._raised(plugin, where, exc)
            else:
                self._succeeded(plugin, where)
                sources += [(plugin, source) for source in found]
        return sources

    @property
    def max_failures(self) -> int:
        """As given: how often in a row anything may fail."""
        return self._max_failures

    def source_failed(self, plugin: str, source: str, exc: BaseException) -> None:
        """Count what ended a source. Its plugin is not disabled for it: `SourceThreads` knows when to give up."""
        self._raised(plugin, f"source {source}", exc, disables=False)

    def tell(self, news: Committed | RunEnded, plugin: str | None = None) -> None:
        """Tell one plugin (every one, if it is None) of a commit or the end of a run, now and in this thread.

        See `Teller`.
        """
        where, argument = _NEWS[type(news)]
        for name, function in self._callers(where):
            if plugin not in (None, name):
                continue
            arguments = {argument: news}
            call = self._begin(name, where, arguments)
            error: BaseException | None = None
            try:
                function(options=self._options_of(name), **arguments)
            except BaseException as exc:  # noqa: BLE001 - a guest's code
                error = exc
            self._end(call, error)
            if error is None:
                self._succeeded(name, where)
            else:
                self._raised(name, where, error)

    @property
    def takes_starts(self) -> bool:
        """Whether a plugin wants to be asked when a run begins."""
        return any(True for _ in self._callers("tilecast_run_starting", also_disabled=True))

    def listeners(self, hook: str) -> list[str]:
        """The plugins that implement this hook and are called."""
        return [name for name, _ in self._callers(hook)]

    def watch(self) -> None:
        """Count those that hang: to be called about every second.

        Each look counts a call once at most, and again only a whole timeout after it was last counted: if this process
        was paused for several timeouts, the plugin was, too.
        """
        now_s = time.monotonic()
        late = []
        with self._lock:
            for call in self._running:
                if call.is_awaited and call.counted_s is None:
                    continue
                if now_s - (call.since_s if call.counted_s is None else call.counted_s) >= self._timeout_s:
                    late.append(call)
                    call.counted_s = now_s
        for call in late:
            self._raised(call.plugin, call.where, self._hangs(call.where))

    def hooks(self) -> dict[str, list[str]]:
        """Which hooks each plugin that was loaded implements."""
        return {
            name: sorted(caller.name for caller in self._manager.get_hookcallers(plugin) or ())
            for name, plugin in self._manager.list_name_plugin()
        }

    def stats(self) -> dict[str, Any]:
        """Everything that can be said of plugins, as `stats` and `tilecast plugins` tell it."""
        with self._lock:
            costs = dict(self.costs)
        return {
            "names": self.names,
            "failed": self.failed,
            "errors": self.errors,
            "hanging": self.hanging(),
            "disabled": self.disabled,
            "off": self.switched_off,
            "last_errors": self.last_errors,
            "hooks": self.hooks(),
            "costs": [{"plugin": plugin, "hook": hook} | asdict(cost) for (plugin, hook), cost in costs.items()],
        }

    def hanging(self) -> dict[str, str]:
        """Name of each plugin that has not returned in time, and the hook in which it hangs."""
        with self._lock:
            return {call.plugin: call.where for call in self._running if call.counted_s is not None}

    def _ask(
        self,
        plugin: str,
        where: str,
        function: Callable[..., T],
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> T:
        """Call a plugin in a thread of its own; raises what it raises, or PluginHangsError.

        `function` is called with nothing, or, where there are arguments, with a map of them and the plugin's options.
        """
        with self._lock:
            if any((call.plugin, call.where) == (plugin, where) for call in self._running):
                raise PluginHangsError(f"it has not come back from the {where} before")
        future: Future[T] = Future()

        def work() -> None:
            call = self._begin(plugin, where, arguments or {}, is_awaited=True)
            error: BaseException | None = None
            try:
                if arguments is None:
                    result = function()
                else:
                    result = function({**arguments, "options": self._options_of(plugin)})
            except BaseException as exc:  # noqa: BLE001 - a guest's code
                error = exc
            self._end(call, error)
            if error is None:
                future.set_result(result)
            elif isinstance(error, Exception):
                future.set_exception(error)
            else:  # one that tries to end the process; who asked shall not
                future.set_exception(RuntimeError(_words(error)))

        threading.Thread(target=work, name=f"plugin {plugin}", daemon=True).start()
        concurrent.futures.wait([future], timeout_s or self._timeout_s)
        if not future.done():
            with self._lock:  # the caller counts this one; the watch, those that follow
                for call in self._running:
                    if (call.plugin, call.where) == (plugin, where):
                        call.counted_s = time.monotonic()
            raise self._hangs(where, timeout_s)
        return future.result()

    def _hangs(self, where: str, timeout_s: float | None = None) -> PluginHangsError:
        return PluginHangsError(f"{where} did not return within {timeout_s or self._timeout_s:g} s (plugins.timeout_s)")

    def _begin(self, plugin: str, where: str, arguments: Mapping[str, Any], *, is_awaited: bool = False) -> _Call:
        call = _Call(plugin, where, time.monotonic(), arguments, is_awaited=is_awaited)
        with self._lock:
            self._running.add(call)
        return call

    def _end(self, call: _Call, error: BaseException | None) -> None:
        """Count what a call cost; in the thread that made it."""
        seconds, cpu_s = time.monotonic() - call.since_s, time.thread_time() - call.cpu_s
        with self._lock:
            self._running.discard(call)
            cost = self._cost(call.plugin, call.where)
            cost.n_calls += 1
            cost.seconds += seconds
            cost.longest_s = max(cost.longest_s, seconds)
            cost.cpu_s += cpu_s
        if self.trace:
            outcome = "returned" if error is None else _words(error)
            said = ", ".join(f"{name}={_short(value)}" for name, value in call.arguments.items())
            log.info(TRACED, plugin=call.plugin, hook=call.where, with_=said, ms=round(1e3 * seconds, 3), then=outcome)

    def _cost(self, plugin: str, where: str) -> HookCost:
        return self.costs.setdefault((plugin, where), HookCost())

    def _callers(self, hook: str, *, also_disabled: bool = False) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Each plugin that implements a hook, with a way to call it alone."""
        everybody = self._manager.list_name_plugin()
        for name, _ in everybody:
            if name in self.disabled and not also_disabled:
                continue
            others = [other for other_name, other in everybody if other_name != name]
            caller = self._manager.subset_hook_caller(hook, others)
            if caller.get_hookimpls():
                yield name, _alone(caller)

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

    def _raised(self, plugin: str, where: str, exc: BaseException, *, disables: bool = True) -> None:
        with self._lock:
            self.errors[plugin] = self.errors.get(plugin, 0) + 1
            self.last_errors[plugin] = f"{where}: {_words(exc)}"
            self._cost(plugin, where).n_failures += 1
            self._in_a_row[plugin, where] += 1
            is_last = disables and self._in_a_row[plugin, where] >= self._max_failures and plugin not in self.disabled
            if is_last:
                self.disabled[plugin] = f"it failed {self._max_failures} times in a row in {where}: {_words(exc)}"
        is_ours = isinstance(exc, PluginHangsError)
        log.error("plugin failed", plugin=plugin, where=where, why=_words(exc), exc_info=None if is_ours else exc)
        if is_last:
            log.error("plugin disabled", plugin=plugin, why=self.disabled[plugin])

    def _succeeded(self, plugin: str, where: str) -> None:
        with self._lock:
            del self._in_a_row[plugin, where]


def _alone(caller: pluggy.HookCaller) -> Callable[..., Any]:
    """One plugin's own answer to a hook: it alone is asked, so it is the only one."""

    def call(**arguments: Any) -> Any:
        answer = caller(**arguments)
        return answer if not isinstance(answer, list) else (answer[0] if answer else None)

    return call


def _image(call: Callable[..., Any], shape: tuple[int, int], arguments: dict[str, Any]) -> NDArray[Any] | None:
    """A calibration image from a plugin: whatever it gives, what goes on is an array of numbers of the right shape."""
    image = call(**arguments)
    if image is not None and not (isinstance(image, np.ndarray) and image.dtype.kind in "uif"):
        raise TypeError(f"expected an array of real numbers, or None; got {type(image).__name__}")
    if image is None:
        return None
    if image.shape != tuple(shape):
        raise CalibrationError(f"the calibration image has the shape {image.shape}, the camera's frames have {shape}")
    return image


def _step(call: Callable[..., Any], arguments: dict[str, Any]) -> FrameStep | None:
    """What a plugin wants to do with frames, as far as that can be frozen."""
    step = call(**arguments)
    if step is None:
        return None
    if not isinstance(step, FrameStep):
        raise TypeError(f"expected a FrameStep, or None; got {type(step).__name__}")
    json.dumps(dict(step.settings), allow_nan=False)
    for name, array in step.arrays.items():
        if not _ARRAY_NAME.fullmatch(name):
            raise ValueError(f"the name of an array has letters, digits and _, at most 64 of them; got {name!r}")
        if not (isinstance(array, np.ndarray) and array.dtype.kind in "uifb"):
            raise TypeError(f"the array {name} must hold real numbers; got {getattr(array, 'dtype', type(array))}")
    if len(step.views) > _MAX_VIEWS:
        raise ValueError(f"a frame can be split into {_MAX_VIEWS} views; got {len(step.views)}")
    for view in step.views:
        sizes = (*view.shape, *(view.corner or ()), view.channel or 0)
        if not all(isinstance(size, int) for size in sizes) or min(*view.shape, (view.channel or 0) + 1) < 1:
            raise ValueError(f"a view has whole numbers of rows and columns, and a channel from 0; got {view}")
    return step


def _made(call: Callable[..., Any], arguments: dict[str, Any]) -> MakeImages:
    make = call(**{name: value for name, value in arguments.items() if name != "options"})
    if not callable(make):
        raise TypeError(f"expected a function that makes images of a frame; got {type(make).__name__}")
    return make  # type: ignore[no-any-return]  # what it gives is checked at each frame


def _sources(call: Callable[..., Any], arguments: dict[str, Any]) -> list[MessageSource]:
    """The sources that a plugin names: a list with an end, of things that have a name and can be run."""
    sources: list[MessageSource] = list(islice(call(**arguments) or (), _MAX_SOURCES + 1))
    if len(sources) > _MAX_SOURCES:
        raise ValueError(f"a plugin may bring {_MAX_SOURCES} sources")
    for source in sources:
        if not isinstance(source.name, str) or not callable(source.run):
            raise TypeError(f"a source has a name and can be run; got {type(source).__name__}")
    return sources


def _short(value: object) -> str:
    """An argument in a few words, for the trace."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype.str}{list(value.shape)}"
    if isinstance(value, Committed | RunEnded | RunStart):
        return f"{type(value).__name__}({value.run[:8]}{f', rev {value.rev}' if isinstance(value, Committed) else ''})"
    if isinstance(value, FrameStep):
        return f"FrameStep({', '.join([*value.settings, *value.arrays])})"
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…"


def _words(exc: BaseException) -> str:
    """What an exception says; that of a guest may not even be able to."""
    try:
        text = str(exc)
    except Exception:  # noqa: BLE001 - a guest's code
        text = "…"
    return text if isinstance(exc, StartRefusedError | PluginHangsError) else f"{type(exc).__name__}: {text}"


class Teller:
    """Tells plugins of commits and ends of runs, each from a thread of its own, so that a slow plugin slows nobody.

    Parameters
    ----------
    plugins : Plugins
    max_waiting : int
        Commits that may wait for one plugin; while they do, new ones are not told to it, and are counted.
    """

    def __init__(self, plugins: Plugins, max_waiting: int = 1000) -> None:
        self.n_missed = 0
        self._plugins = plugins
        listeners = {name for hook, _ in _NEWS.values() for name in plugins.listeners(hook)}
        self._lines = {name: _Line(plugins, name, max_waiting) for name in sorted(listeners)}

    def tell(self, news: Committed | RunEnded) -> None:
        """Never waits."""
        for name, line in self._lines.items():
            if name not in self._plugins.disabled and not line.put(news):
                self.n_missed += 1
                log.warning("plugin is slow and missed some news", plugin=name, run=news.run, what=_short(news))

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
    """The news that wait to be told to one plugin, and the thread that does."""

    def __init__(self, plugins: Plugins, name: str, max_waiting: int) -> None:
        self._plugins = plugins
        self._name = name
        self._max_waiting = max_waiting
        self._queue: queue.SimpleQueue[Committed | RunEnded | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._n_tiles = 0
        self._thread = threading.Thread(target=self._work, name=f"plugin {name}", daemon=True)
        self._thread.start()

    def put(self, news: Committed | RunEnded) -> bool:
        with self._lock:
            if self._queue.qsize() >= self._max_waiting or self._n_tiles > _MAX_WAITING_TILES:
                return False
            self._n_tiles += _n_tiles(news)
        self._queue.put(news)
        return True

    def end(self) -> None:
        self._queue.put(None)

    def join(self, timeout_s: float) -> bool:
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (news := self._queue.get()) is not None:
            with self._lock:
                self._n_tiles -= _n_tiles(news)
            self._plugins.tell(news, self._name)


def _n_tiles(news: Committed | RunEnded) -> int:
    return len(news.tiles) + len(news.gone) if isinstance(news, Committed) else 0


class SourceThreads:
    """Runs the message sources that plugins bring, each in a thread of its own.

    A source that fails is started again, each time after twice the wait, until it has failed `plugins.max_failures`
    times in a row; one that has run for longer than the longest wait begins to count anew.

    Parameters
    ----------
    plugins : Plugins
        They are asked for their sources at once.
    instrument : str
        The option `instrument`.
    store : Path
        The folder of the runs. In it each plugin gets a folder of its own, for what it must know after a restart.
    wait_s : float
        How long after the first failure a source is started again.
    """

    def __init__(self, plugins: Plugins, instrument: str, store: Path, *, wait_s: float = 1.0) -> None:
        self._stop = threading.Event()
        self._sources = [
            _Source(plugins, plugin, source, instrument, store, self._stop, wait_s)
            for plugin, source in plugins.message_sources(instrument)
        ]

    def __len__(self) -> int:
        return len(self._sources)

    def start(self, endpoint: str) -> None:
        """Start them; `endpoint` is the daemon's own acknowledged path, on which they send."""
        for source in self._sources:
            source.endpoint = endpoint
            source.thread.start()

    @property
    def running(self) -> list[str]:
        """Names of the threads that have not ended."""
        return [source.thread.name for source in self._sources if source.thread.is_alive()]

    def stats(self) -> list[dict[str, Any]]:
        """Each source: whether it runs, what ended it, the processor time it took, and what it says of itself."""
        return [source.stats() for source in self._sources]

    def close(self, timeout_s: float = 5.0) -> bool:
        """Ask all sources to stop; False if one did not in time."""
        self._stop.set()
        deadline_s = time.monotonic() + timeout_s
        for source in self._sources:
            if source.thread.ident is not None:
                source.thread.join(max(0.0, deadline_s - time.monotonic()))
        for name in self.running:
            log.error("message source did not stop; it is left behind", source=name, timeout_s=timeout_s)
        return not self.running


class _Source:
    """One message source, its thread, and its door to the daemon (`hookspecs.Feed`)."""

    def __init__(
        self,
        plugins: Plugins,
        plugin: str,
        source: MessageSource,
        instrument: str,
        store: Path,
        stop: threading.Event,
        wait_s: float,
    ) -> None:
        self.endpoint = ""
        self.instrument = instrument
        self.store = store
        self._plugins = plugins
        self._plugin = plugin
        self._source = source
        self._stop = stop
        self._wait_s = wait_s
        self._publishers: list[Publisher] = []
        self._n_rejected = 0
        self._n_failures = 0
        self._in_a_row = 0
        self._again_at_s: float | None = None
        self._state = "running"
        self._told: dict[str, str | int | float] = {}
        self._cpu_s = 0.0
        self.thread = threading.Thread(target=self._run, name=f"source {source.name}", daemon=True)

    @property
    def folder(self) -> Path:
        """See `hookspecs.Feed`."""
        folder = self.store / _KEPT / self._plugin
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def publisher(self, stream: str, **options: Any) -> Publisher:
        """See `hookspecs.Feed`."""
        given: dict[str, Any] = {"src": f"{self._plugin}-{stream}"[:64], "timeout_s": math.inf} | options
        given.setdefault("on_rejected", self._rejected)
        publisher = Publisher(self.endpoint, instrument=self.instrument, stream=stream, **given)
        self._publishers.append(publisher)
        return publisher

    def tell(self, **facts: str | int | float) -> None:
        """See `hookspecs.Feed`."""
        for name, fact in facts.items():
            if not isinstance(fact, str | int | float):
                raise TypeError(f"a source tells texts and numbers of itself; {name} is a {type(fact).__name__}")
        self._told = self._told | {
            name: fact[:_MOST_TOLD] if isinstance(fact, str) else fact for name, fact in facts.items()
        }

    def stats(self) -> dict[str, Any]:
        clock = getattr(time, "pthread_getcpuclockid", None)
        if clock is not None and self.thread.is_alive() and self.thread.ident is not None:
            self._cpu_s = time.clock_gettime(clock(self.thread.ident))
        again_at_s = self._again_at_s
        return {
            "plugin": self._plugin,
            "source": self._source.name,
            "state": self._state,
            "n_failures": self._n_failures,
            "again_in_s": None if again_at_s is None else max(0.0, again_at_s - time.monotonic()),
            "n_rejected": self._n_rejected,
            "cpu_s": self._cpu_s,
            "told": self._told,
        }

    def _rejected(self, rejected: Rejected) -> None:
        self._n_rejected += 1
        log.warning(
            "a message of a plugin was refused", plugin=self._plugin, source=self._source.name, why=str(rejected)
        )

    def _run(self) -> None:
        where = {"plugin": self._plugin, "source": self._source.name}
        while True:
            began_s = time.monotonic()
            failed = self._run_once()
            if not failed:
                self._state = "ended"
                log.info("message source has ended", **where)
                return
            ran_long = time.monotonic() - began_s > _LONGEST_WAIT_S
            self._in_a_row = 1 if ran_long else self._in_a_row + 1
            if self._in_a_row >= self._plugins.max_failures:
                log.error("message source failed and is over", n_failures=self._in_a_row, **where)
                return
            wait_s = min(self._wait_s * 2 ** (self._in_a_row - 1), _LONGEST_WAIT_S)
            log.error("message source failed; it is started again", wait_s=wait_s, n_failures=self._in_a_row, **where)
            self._again_at_s = time.monotonic() + wait_s
            stopped = self._stop.wait(wait_s)
            self._again_at_s = None
            if stopped:
                return
            self._state = "running"

    def _run_once(self) -> bool:
        """Run the source until it returns (False) or raises (True)."""
        try:
            self._source.run(self, self._stop)
        except BaseException as exc:  # noqa: BLE001 - a guest's code
            self._n_failures += 1
            self._state = f"failed: {_words(exc)}"
            self._plugins.source_failed(self._plugin, self._source.name, exc)
            return True
        finally:
            self._cpu_s = time.thread_time()
            for publisher in self._publishers:  # of one that failed; the others have closed theirs
                with contextlib.suppress(TilecastError):
                    publisher.close(0.0)
            self._publishers.clear()
        return False
