"""What options are declared with: their kinds, their units, and the checks that they must pass.

An option is a field of a class; its default, its unit and its help stand beside it, and the table in the documents,
the example file, variables and error messages are made from that. The daemon declares its own so (`service.config`),
and so do plugins: a subclass of `PluginOptions`, announced by an entry point of the group `tilecast.options`, is the
table `[plugins.<name>]` of the same file.

The module with such a class is imported by every command, so it must be quick to import: this one, the standard
library, and nothing large.

Examples
--------
>>> class WatchOptions(PluginOptions):
...     "A folder that is watched."
...     path: OptionalPath = option(None, "The folder. Empty: none.")
...     settle_ms: float = option(500.0, "A file that has not grown for so long is whole.", unit="ms", gt=0)
>>> WatchOptions(settle_ms=20.0).settle_ms, WatchOptions().enabled
(20.0, True)
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

ENTRY_POINT_GROUP = "tilecast.options"

MIB = 1 << 20
GIB = 1 << 30

TCP = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:\[\]/]+):(?P<port>\d{1,5}|\*)")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]i?)?B?\s*")
_SIZE_FACTOR = {
    None: 1,
    "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "ki": 1 << 10, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What a person may write for an option, and how text from the command line becomes it.

    Parameters
    ----------
    name : str
        In plain words, for tables and messages.
    from_text : callable
        Turns the text of a variable or of `--set` into what a TOML file would have held.
    """

    name: str
    from_text: Callable[[str], Any]


def parse_size(value: object) -> object:
    """Read a size in bytes: a whole number, or text such as `"256MiB"`, `"1.5 GiB"` or `"64 MB"`.

    Returns what it cannot read as it is, for the validation that follows to refuse.

    >>> parse_size("1.5 KiB")
    1536
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise ValueError("a size is a whole number of bytes, or text such as '256MiB' or '2GB'")
        return int(float(match[1]) * _SIZE_FACTOR[match[2]])
    return value


def format_size(nbytes: int) -> str:
    """Bytes as a person writes them, exactly: in the largest binary unit that divides them.

    >>> format_size(256 << 20), format_size(1000)
    ('256MiB', '1000')
    """
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes and nbytes % factor == 0:
            return f"{nbytes // factor}{unit}"
    return str(nbytes)


def _as_path(value: object) -> object:
    return Path(value).expanduser() if isinstance(value, str) and value else value


def _as_optional_path(value: object) -> object:
    return None if value == "" else _as_path(value)


def _as_paths(value: object) -> object:
    return tuple(map(_as_path, value)) if isinstance(value, list) else value


def as_tuple(value: object) -> object:
    """A list out of a file as what an option holds."""
    return tuple(value) if isinstance(value, list) else value


def list_from_text(item: Callable[[str], Any]) -> Callable[[str], Any]:
    """Reader of lists: TOML's notation, or items separated by commas; no text is no item."""

    def from_text(text: str) -> Any:
        if text.lstrip().startswith("["):
            return tomllib.loads(f"value = {text}")["value"]
        return [item(part.strip()) for part in text.split(",") if part.strip()]

    return from_text


def number_from_text(text: str) -> Any:
    """An int or a float where the text is one; otherwise the text, for the validation to refuse by name."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _bool_from_text(text: str) -> Any:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    return words.get(text.strip().lower(), text)


def same_text(text: str) -> Any:
    """For kinds that are written as they are."""
    return text


def _check_endpoint(endpoint: str) -> str:
    if endpoint == "" or (endpoint.startswith("ipc://") and len(endpoint) > len("ipc://")):
        return endpoint
    match = TCP.fullmatch(endpoint)
    if match is None or (match["port"] != "*" and int(match["port"]) > 65535):
        raise ValueError("an endpoint looks like 'tcp://127.0.0.1:5570' or 'ipc:///run/tilecast/ack'")
    return endpoint


def _check_connect_endpoint(endpoint: str) -> str:
    match = TCP.fullmatch(_check_endpoint(endpoint))
    if endpoint == "" or (match is not None and ("*" in (match["host"], match["port"]) or match["host"] == "0.0.0.0")):
        raise ValueError("to connect, an endpoint needs a host and a port: 'tcp://camera-pc:5556'")
    return endpoint


Endpoint = Annotated[str, Kind("endpoint", same_text), AfterValidator(_check_endpoint)]
Endpoints = Annotated[
    tuple[Annotated[str, AfterValidator(_check_connect_endpoint)], ...],
    Kind("list of endpoints", list_from_text(str)),
    BeforeValidator(as_tuple),
]
Size = Annotated[int, Kind("size", same_text), BeforeValidator(parse_size)]
"""Bytes: a whole number, or text such as "256MiB"."""

Folder = Annotated[Path, Kind("path", same_text), BeforeValidator(_as_path)]
"""A path; a relative one in a file starts from the folder of that file."""

OptionalPath = Annotated[Path | None, Kind("path", same_text), BeforeValidator(_as_optional_path)]
"""The same, or nothing."""

Folders = Annotated[tuple[Path, ...], Kind("list of paths", list_from_text(str)), BeforeValidator(_as_paths)]
"""Several of them."""

Texts = Annotated[tuple[str, ...], Kind("list of texts", list_from_text(str)), BeforeValidator(as_tuple)]
Numbers = Annotated[
    tuple[float, ...], Kind("list of numbers", list_from_text(number_from_text)), BeforeValidator(as_tuple)
]

_KIND_OF_TYPE = {
    bool: Kind("true or false", _bool_from_text),
    int: Kind("whole number", number_from_text),
    float: Kind("number", number_from_text),
    str: Kind("text", same_text),
}


def option(default: Any, help_: str, *, unit: str = "", default_text: str = "", **constraints: Any) -> Any:
    """One row of the table. A callable default is evaluated at `load`, and needs a text to show in documents."""
    extra: JsonDict = {"unit": unit, "default_text": default_text}
    if callable(default):
        return Field(default_factory=default, description=help_, json_schema_extra=extra, **constraints)
    return Field(default, description=help_, json_schema_extra=extra, **constraints)


class Section(BaseModel):
    """A table of options: checked, and never changed afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


class PluginOptions(Section):
    """The options of one plugin; a plugin that declares none has these.

    Subclasses add fields made by `option`; the docstring is what the configuration file says above the table.
    """

    enabled: bool = option(True, "Whether the plugin is used. Where not, its other options are checked all the same.")


def kind_of(field: FieldInfo) -> Kind:
    """What may be written for an option."""
    for marker in field.metadata:
        if isinstance(marker, Kind):
            return marker
    if get_origin(field.annotation) is Literal:
        return Kind(" | ".join(map(str, get_args(field.annotation))), same_text)
    assert isinstance(field.annotation, type)
    return _KIND_OF_TYPE[field.annotation]
