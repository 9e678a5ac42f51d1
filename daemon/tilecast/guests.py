"""Which plugins are installed, and which options each has: what every command knows of them, and no more.

Nothing of a plugin is imported for this but the module with its options (`tilecast.options`). If that fails, the plugin
is left out and named; the options of the others are read all the same.

Examples
--------
>>> calibration = next(guest for guest in guests() if guest.name == "calibration")
>>> calibration.table, calibration.is_ours
('plugins.calibration', True)
"""

from __future__ import annotations

import functools
import re
import threading
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points

from tilecast.options import ENTRY_POINT_GROUP as OPTIONS_GROUP
from tilecast.options import PluginOptions

PLUGINS_GROUP = "tilecast.plugins"
"""Entry points of this group are plugins; its value is also that of `hookspecs.ENTRY_POINT_GROUP`."""

OURS = "tilecast"
"""The distribution whose plugins are described in our own documents."""

_TABLE = re.compile(r"[a-z][a-z0-9_]*")
RESERVED = frozenset({"timeout_s", "max_failures", "trace"})
"""Names that no plugin can have: options of the table `[plugins]` itself."""

_IMPORT_S = 10.0


@dataclass(frozen=True, slots=True)
class Guest:
    """A plugin that is installed.

    Attributes
    ----------
    name : str
        Of its entry point.
    distribution, version : str
        Of the package that brings it; empty if that does not say.
    options : type
        What its table may hold.
    trouble : str
        Why it cannot be used; empty if nothing is known against it.
    """

    name: str
    distribution: str
    version: str
    options: type[PluginOptions]
    trouble: str = ""

    @property
    def table(self) -> str:
        """The name of its table in the configuration."""
        return table_of(self.name)

    @property
    def has_table(self) -> bool:
        """Whether its name can be that of a table."""
        name = self.table.partition(".")[2]
        return _TABLE.fullmatch(name) is not None and name not in RESERVED

    @property
    def is_ours(self) -> bool:
        """Whether it comes with tilecast."""
        return self.distribution == OURS


def table_of(name: str) -> str:
    """The table of the plugin of this name.

    >>> table_of("watch-folder")
    'plugins.watch_folder'
    """
    return f"plugins.{name.replace('-', '_')}"


@functools.cache
def guests() -> tuple[Guest, ...]:
    """The plugins that are installed, by name; looked up once in a process."""
    options = {entry.name: entry for entry in _sorted(OPTIONS_GROUP)}
    found: dict[str, Guest] = {}
    for entry in [*_sorted(PLUGINS_GROUP), *options.values()]:
        if entry.name not in found:
            found[entry.name] = _guest(entry, options.get(entry.name))
    return tuple(found[name] for name in sorted(found))


def _sorted(group: str) -> list[EntryPoint]:
    return sorted(entry_points(group=group), key=lambda entry: (entry.name, entry.value))


def _guest(entry: EntryPoint, options: EntryPoint | None) -> Guest:
    about = (entry.dist.name, entry.dist.version) if entry.dist is not None else ("", "")
    model, trouble = (PluginOptions, "") if options is None else _imported(options)
    guest = Guest(entry.name, *about, model, trouble)
    if guest.has_table:
        return guest
    rule = f"it has a-z 0-9 - _, begins with a letter, and is none of {', '.join(sorted(RESERVED))}"
    return replace(guest, trouble=f"its name is that of a table of options: {rule}")


def _imported(entry: EntryPoint) -> tuple[type[PluginOptions], str]:
    """The class with a plugin's options, or why there is none."""
    outcome: list[object] = []

    def load() -> None:
        try:
            outcome.append(entry.load())
        except BaseException as exc:  # noqa: BLE001 - a guest's code, which may try to end the process
            outcome.append(exc)

    thread = threading.Thread(target=load, name=f"options of {entry.name}", daemon=True)
    thread.start()
    thread.join(_IMPORT_S)
    found = outcome[0] if outcome else TimeoutError(f"not imported within {_IMPORT_S:g} s")
    if isinstance(found, type) and issubclass(found, PluginOptions):
        return found, ""
    if not isinstance(found, BaseException):
        found = TypeError(f"expected a subclass of tilecast.options.PluginOptions, got {found!r}")
    return PluginOptions, f"its options ({entry.value}) cannot be read: {type(found).__name__}: {found}"
