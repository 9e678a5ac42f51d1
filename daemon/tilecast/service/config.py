"""Every option of tilecast, in one table: its default, its unit, its help, and the checks it must pass.

The models below *are* that table. The documentation, `tilecast config`, the example file, the names of the
environment variables and the error messages are all made from it, so that they cannot disagree. Options come from
four places, and the later one wins: the defaults, one TOML file, variables `TILECAST_…`, and `--set option=value`.
Which place each value came from is kept (`Config.provenance`), because "where does this value come from?" is the first
question when something is odd.

What is not known is refused, with the nearest known name: a mistyped option that is silently ignored costs an
afternoon at the microscope. A TOML file is taken by its word (`"5"` is not the number 5); variables and `--set` are
text, and are read as the type of their option.

This module does not open sockets, create folders or read key files; it says what should be done, and whether it may.

Notes
-----
`notify` and `query` are endpoints, and TOML cannot have both `query = "tcp://…"` and a table `[query]`; so the further
options about viewers are in the table `[viewers]`.

Examples
--------
>>> config = load(overrides=["ingest.idle_end_s=5", "blend.budget_bytes=64MiB"], environ={})
>>> config.ingest.idle_end_s, config.blend.budget_bytes
(5.0, 67108864)
>>> config.provenance["ingest.idle_end_s"]
'--set'
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from tilecast.errors import ConfigError
from tilecast.guests import guests, table_of
from tilecast.options import (
    GIB,
    MIB,
    TCP,
    Endpoint,
    Endpoints,
    Folder,
    Kind,
    OptionalPath,
    PluginOptions,
    Section,
    Size,
    as_tuple,
    format_size,
    kind_of,
    list_from_text,
    number_from_text,
    option,
    same_text,
)

ENV_PREFIX = "TILECAST_"
ENV_CONFIG_FILE = "TILECAST_CONFIG"
"""The one variable that is not an option: it names the file, as `--config` does."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def endpoint_is_local(endpoint: str) -> bool:
    """Whether only this machine can reach a ZeroMQ endpoint: `ipc://`, or `tcp://` on the loopback interface.

    Everything in doubt (a host name, an interface, a wildcard) counts as not local.

    >>> endpoint_is_local("tcp://127.0.0.1:5570"), endpoint_is_local("tcp://*:5570")
    (True, False)
    """
    if endpoint.startswith(("ipc://", "inproc://")):
        return True
    match = TCP.fullmatch(endpoint)
    if match is None:
        return False
    host = match["host"].strip("[]")
    if host in ("localhost", "lo"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_listen(listen: str) -> str:
    match = _LISTEN.fullmatch(listen)
    if listen and (match is None or int(match["port"]) > 65535):
        raise ValueError("a port to listen on looks like '127.0.0.1:5574'")
    return listen


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name == "daemon":
        raise ValueError("a name has 1 to 64 of A-Z a-z 0-9 _ . -, begins with a letter or digit, and is not 'daemon'")
    return name


def _check_tile_size(value: int) -> int:
    if value % 8:
        raise ValueError("a tile's size must be a multiple of 8")
    return value


SOCKETS = ("ingest.ack", "ingest.pull", "ingest.sub", "notify", "query")
_LISTEN = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]/]+):(?P<port>\d{1,5})")

Listen = Annotated[str, Kind("host:port", same_text), AfterValidator(_check_listen)]
SocketNames = Annotated[
    tuple[Literal["ingest.ack", "ingest.pull", "ingest.sub", "notify", "query", "metrics.listen"], ...],
    Kind("list of sockets", list_from_text(str)),
    BeforeValidator(as_tuple),
]
Statuses = Annotated[
    tuple[Annotated[int, Field(ge=0, le=3)], ...],
    Kind("list of numbers from 0 to 3", list_from_text(number_from_text)),
    BeforeValidator(as_tuple),
]
InstrumentName = Annotated[str, Kind("name", same_text), AfterValidator(_check_name)]


class IngestOptions(Section):
    """Where frames and stage positions come in."""

    ack: Endpoint = option(
        "tcp://127.0.0.1:5570",
        "ROUTER socket for publishers that want every frame acknowledged (the recommended way). Empty: none.",
    )
    pull: Endpoint = option(
        "tcp://127.0.0.1:5571",
        "PULL socket for simple publishers (PUSH); it blocks them while the daemon is behind. Empty: none.",
    )
    sub: Endpoints = option((), "PUB sockets of other programs to listen to. They are lossy; what is lost is reported.")
    idle_end_s: float = option(
        30.0, "A run that has been silent for this long is idle, and its report is written.", unit="s", gt=0
    )
    reorder_tolerance_ms: float = option(
        500.0,
        "How long a frame or message may be overtaken by later ones before it counts as missing.",
        unit="ms",
        ge=0,
    )
    gap_report_ms: float = option(
        1000.0,
        "What goes wrong in a run (gaps, late frames, refusals) is gathered for this long, and announced once.",
        unit="ms",
        gt=0,
    )
    hold_bytes: Size = option(
        64 * MIB,
        "Frames that came before the start of their run, on sockets that cannot be answered, are held up to this size.",
        unit="bytes",
        ge=0,
    )
    hold_s: float = option(
        10.0,
        "Frames that came before the start of their run are held for this long; then they count as lost.",
        unit="s",
        gt=0,
    )
    max_frame_bytes: Size = option(
        256 * MIB, "A frame that is larger than this, as sent or decoded, is refused.", unit="bytes", ge=1
    )
    credit_bytes: Size = option(
        64 * MIB,
        "How much one acknowledged publisher may send ahead of the acknowledgements; at least one frame.",
        unit="bytes",
        ge=1,
    )
    queue_bytes: Size = option(
        64 * MIB,
        "High-water mark of what waits inside the sockets on which frames come in.",
        unit="bytes",
        ge=1,
    )
    blend_status: Statuses = option(
        (0, 3),
        "Frames with these status values are blended (0 good, 1 incomplete, 2 repeated, 3 saturated); others are kept "
        "and listed.",
    )


class JoinOptions(Section):
    """How frames without a position of their own find it in the stage stream."""

    max_gap_ms: float = option(
        250.0, "A frame is placed only between two stage messages that are at most this far apart.", unit="ms", gt=0
    )
    timeout_ms: float = option(
        2000.0,
        "After this wait an unplaced frame is reported. It is still placed when its stage messages come.",
        unit="ms",
        gt=0,
    )
    allow_moving: bool = option(False, "Place frames that were exposed while the stage moved.")
    skip_after_move: int = option(
        0,
        "So many frames after each move of the stage are left out, and listed: for cameras that run freely while the "
        "stage settles. A move is a stage that says it moves, or a frame that lies more than 2 pixels from the one "
        "before.",
        unit="frames",
        ge=0,
        le=1000,
    )


class JournalOptions(Section):
    """The recording that everything else can be made from again."""

    durability: Literal["fsync", "os"] = option(
        "fsync",
        "What an acknowledgement promises. fsync: the frame survives a power failure; os: it survives the end of the "
        "process, but not of the machine.",
    )
    fsync_interval_ms: float = option(
        5.0,
        "Longest wait from writing a frame to the fsync that makes it durable. 0: after each message.",
        unit="ms",
        ge=0,
        le=10_000,
    )
    segment_bytes: Size = option(
        1 * GIB, "The journal of a run is cut into files of about this size.", unit="bytes", ge=1 * MIB
    )


class BlendOptions(Section):
    """How frames become a mosaic."""

    mode: Literal["feather", "mean", "max", "min", "newest", "nearest"] = option(
        "feather", "What is shown where frames overlap, for runs whose start does not say."
    )
    tile_size: Annotated[int, AfterValidator(_check_tile_size)] = option(
        256, "Edge of a tile of the mosaic, for new runs.", unit="px", ge=16, le=4096
    )
    budget_bytes: Size = option(
        320 * MIB,
        "Memory for the parts of mosaics that are being worked on. What does not fit is made again from the journal.",
        unit="bytes",
        ge=1 * MIB,
    )
    queue_bytes: Size = option(
        64 * MIB, "Frames that wait to be blended, at most. A full queue slows the publisher.", unit="bytes", ge=1
    )


class StoreOptions(Section):
    """Where runs lie on disk."""

    path: Folder = option(
        lambda: platformdirs.user_data_path("tilecast") / "runs",
        "The folder that holds the runs, each in a folder of its own. It must be on a disk of this machine.",
        default_text="~/.local/share/tilecast/runs",
    )
    commit_interval_ms: float = option(
        100.0, "Changed tiles are written, and announced to viewers, at most this often.", unit="ms", ge=0
    )
    queue_bytes: Size = option(
        96 * MIB, "Tiles that wait to be written, at most. A full queue slows blending.", unit="bytes", ge=1
    )
    wal_limit_bytes: Size = option(
        8 * MIB, "SQLite's write-ahead log of a run is kept below about this size.", unit="bytes", ge=1 * MIB
    )


class DiskOptions(Section):
    """How much of the disk of the runs is to stay free. Of bytes and percent the one that is less counts."""

    warn_bytes: Size = option(
        10 * GIB, "With less free than this (or than `disk.warn_percent`, if that is less) warnings are given.",
        unit="bytes", ge=0,
    )  # fmt: skip
    warn_percent: float = option(5.0, "See `disk.warn_bytes`.", unit="% of the disk", ge=0, le=100)
    stop_bytes: Size = option(
        2 * GIB,
        "With less free than this (or than `disk.stop_percent`, if that is less) no run is begun and mosaics are not "
        "written; images are recorded until the disk is full.",
        unit="bytes",
        ge=0,
    )
    stop_percent: float = option(1.0, "See `disk.stop_bytes`.", unit="% of the disk", ge=0, le=100)


class RetentionOptions(Section):
    """When journals are dropped. A run without its journal is sealed: it can be viewed, and nothing else."""

    journals: Literal["keep", "drop-checked"] = option(
        "keep",
        "keep: a journal is kept for ever, unless one of the two limits below is set. drop-checked: it is dropped as "
        "soon as its run has ended and a whole check has found nothing.",
    )
    max_bytes: Size = option(
        0,
        "When all journals together are larger than this, the oldest that may be dropped are, after a check. 0: no "
        "limit.",
        unit="bytes",
        ge=0,
    )
    max_age_days: float = option(
        0.0, "Journals of runs that were last written to this long ago are dropped, after a check. 0: never.",
        unit="days", ge=0,
    )  # fmt: skip
    seal_after_days: float = option(
        7.0, "A run that went idle, and was not ended, keeps its journal for at least this long.", unit="days", ge=0
    )


class ViewerOptions(Section):
    """What viewers may ask for, beside the endpoints `notify` and `query`."""

    max_region_pixels: int = option(1 << 25, "Largest region that one query may ask for.", unit="px", ge=1, le=1 << 31)
    max_snapshot_tiles: int = option(
        4000, "Tiles listed in one page of a snapshot, or of changes.", unit="tiles", ge=1, le=1_000_000
    )
    threads: int = option(2, "Threads that answer queries.", ge=1, le=64)
    max_in_flight: int = option(
        64, "Questions of one viewer that may wait for their answers; more are refused.", ge=1, le=1000
    )
    max_request_rate: float = option(
        1000.0, "Questions that one viewer may ask per second, over a while; more are refused.", unit="1/s", ge=1
    )
    unread_bytes: Size = option(
        256 * MIB,
        "Answers that one viewer has asked for and not read, at most; until it reads, more questions are refused.",
        unit="bytes",
        ge=1,
    )
    unread_bytes_of_all: Size = option(1 * GIB, "The same, of all viewers together.", unit="bytes", ge=1)
    queue_bytes: Size = option(
        32 * MIB,
        "High-water mark of notifications waiting for slow viewers; beyond it they lose some, and catch up.",
        unit="bytes",
        ge=1,
    )


class CalibrationOptions(Section):
    """Where the images named by `dark` and `flat` in a run's start are found."""

    path: Folder = option(
        lambda: platformdirs.user_data_path("tilecast") / "calibrations",
        'The folder with calibration images, NPY or TIFF: `flat = "20x"` means 20x.npy, 20x.tif or 20x.tiff in it.',
        default_text="~/.local/share/tilecast/calibrations",
    )


class MetricsOptions(Section):
    """The port for monitoring: `/metrics` (Prometheus), `/healthz` and `/readyz` over HTTP, without a password."""

    listen: Listen = option("", "Where to serve them, such as `127.0.0.1:5574`; port 0: any free one. Empty: nowhere.")


class PluginsOptions(Section):
    """How long plugins are waited for, and how often they may fail. The options of each are in a table of its own."""

    timeout_s: float = option(
        5.0, "A plugin's function that has not returned after this long has failed; nobody waits on.", unit="s", gt=0
    )
    max_failures: int = option(
        10, "A plugin is not called any more when it has failed so often in a row, or for so many timeouts.", ge=1
    )
    trace: bool = option(False, "Log each call into a plugin: which, with what, how long it took, and how it ended.")


class CurveOptions(Section):
    """Keys for sockets that other machines can reach (CURVE; key files as ZeroMQ certificates)."""

    secret_key: OptionalPath = option(None, "The daemon's own key, a file `*.key_secret`.")
    clients: OptionalPath = option(
        None, "Folder with the public keys (`*.key`) of the publishers and viewers that may connect."
    )
    operators: OptionalPath = option(
        None, "Folder with the public keys of those who may also end, rename, rebuild and delete runs."
    )
    publishers: OptionalPath = option(
        None, "Public key (`*.key`) of the programs that `ingest.sub` listens to on other machines."
    )


class LogOptions(Section):
    """What the daemon says about itself, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = option("info", "The least important messages to show.")
    format: Literal["auto", "console", "json"] = option(
        "auto",
        "console is for people, json (one object a line) for programs; auto: console in a terminal, entries with "
        "fields in systemd's journal, else json.",
    )
    flood_s: float = option(
        10.0, "A message that repeats is summed up over this time instead of being shown again. 0: never.",
        unit="s", ge=0,
    )  # fmt: skip


class Config(Section):
    """All options, checked, and never changed afterwards. Read as `config.ingest.ack`, `config.store.path`, …"""

    instrument: InstrumentName = option(
        "microscope", "The name of this microscope in what the daemon itself publishes."
    )
    notify: Endpoint = option(
        "tcp://127.0.0.1:5572", "PUB socket on which viewers are told which tiles changed. Empty: none."
    )
    query: Endpoint = option("tcp://127.0.0.1:5573", "ROUTER socket on which viewers and operators ask. Empty: none.")
    allow_plaintext: SocketNames = option(
        (), "Sockets that may be reached from other machines without encryption and keys."
    )
    ingest: IngestOptions = Field(default_factory=IngestOptions)
    join: JoinOptions = Field(default_factory=JoinOptions)
    journal: JournalOptions = Field(default_factory=JournalOptions)
    blend: BlendOptions = Field(default_factory=BlendOptions)
    store: StoreOptions = Field(default_factory=StoreOptions)
    disk: DiskOptions = Field(default_factory=DiskOptions)
    retention: RetentionOptions = Field(default_factory=RetentionOptions)
    viewers: ViewerOptions = Field(default_factory=ViewerOptions)
    calibration: CalibrationOptions = Field(default_factory=CalibrationOptions)
    metrics: MetricsOptions = Field(default_factory=MetricsOptions)
    plugins: PluginsOptions = Field(default_factory=PluginsOptions)
    curve: CurveOptions = Field(default_factory=CurveOptions)
    log: LogOptions = Field(default_factory=LogOptions)

    _provenance: dict[str, str] = PrivateAttr(default_factory=dict)
    _of_plugins: dict[str, PluginOptions] = PrivateAttr(default_factory=dict)

    def of_plugin(self, name: str) -> PluginOptions:
        """The options of the plugin of this name; of one that is not installed, what all have."""
        table = table_of(name)
        return self._of_plugins.get(table) or _guest_tables().get(table, PluginOptions)()

    @property
    def provenance(self) -> Mapping[str, str]:
        """Where each option's value came from: `default`, a file's path, a variable's name, or `--set`."""
        return {info.name: self._provenance.get(info.name, "default") for info in options()}

    def value(self, name: str) -> Any:
        """The value of the option with this dotted name; KeyError if there is none."""
        found: Any = self
        table, _, leaf = name.rpartition(".")
        if table in _guest_tables():
            found, name = self.of_plugin(table.partition(".")[2]), leaf
        for part in name.split("."):
            if part not in type(found).model_fields:
                raise KeyError(name)
            found = getattr(found, part)
        return found

    def endpoints(self, socket: str) -> tuple[str, ...]:
        """The endpoints of one of the five sockets; empty if it is switched off."""
        value = self.value(socket)
        return value if isinstance(value, tuple) else (value,) if value else ()

    def needs_curve(self, socket: str) -> bool:
        """Whether this socket must speak CURVE: other machines can reach it, and plain text was not allowed."""
        reachable = not all(map(endpoint_is_local, self.endpoints(socket)))
        return reachable and socket not in self.allow_plaintext

    @model_validator(mode="after")
    def _no_open_doors(self) -> Self:
        for socket in SOCKETS:
            if not self.needs_curve(socket):
                continue
            reachable = next(endpoint for endpoint in self.endpoints(socket) if not endpoint_is_local(endpoint))
            needed = ("curve.secret_key", "curve.publishers" if socket == "ingest.sub" else "curve.clients")
            missing = [name for name in needed if self.value(name) is None]
            if missing:
                raise ValueError(
                    f"{socket} = {reachable} can be reached from other machines and needs keys: set "
                    f"{' and '.join(missing)}, or use an endpoint on 127.0.0.1 or ipc://, or, if everybody on that "
                    f'network may read and write, allow_plaintext = ["{socket}"]'
                )
        return self

    @model_validator(mode="after")
    def _metrics_stay_here(self) -> Self:
        listen = self.metrics.listen
        if listen and not endpoint_is_local(f"tcp://{listen}") and "metrics.listen" not in self.allow_plaintext:
            raise ValueError(
                f"metrics.listen = {listen} can be reached from other machines, and asks for no password: use a port "
                "on 127.0.0.1 (and a proxy in front of it), or, if everybody on that network may read the numbers, "
                'allow_plaintext = ["metrics.listen"]'
            )
        return self

    @model_validator(mode="after")
    def _no_shared_endpoint(self) -> Self:
        bound: dict[str, str] = {}
        for socket in ("ingest.ack", "ingest.pull", "notify", "query"):
            for endpoint in self.endpoints(socket):
                if endpoint in bound and not endpoint.endswith(":*"):
                    raise ValueError(f"{bound[endpoint]} and {socket} are both {endpoint}: give each its own endpoint")
                bound[endpoint] = socket
        return self


@dataclass(frozen=True)
class OptionInfo:
    """One row of the table of options, for documents and messages.

    Attributes
    ----------
    name : str
        Dotted, as in `--set` and, with tables, in the file.
    type : str
        What may be written, in plain words.
    default : str
        As written in TOML; empty text where there is none.
    unit, help : str
    """

    name: str
    type: str
    default: str
    unit: str
    help: str

    @property
    def variable(self) -> str:
        """The environment variable that sets this option."""
        return ENV_PREFIX + self.name.replace(".", "_").upper()


def options() -> list[OptionInfo]:
    """The whole table, in the order of the file: first what is outside any table, then table by table.

    The tables of the plugins that are installed are the last.
    """
    return [_info(name, field) for name, field in _fields()]


def our_options() -> list[OptionInfo]:
    """The table as our documents have it: without the plugins of others that happen to be installed."""
    others = {guest.table for guest in guests() if not guest.is_ours}
    return [info for info in options() if info.name.rpartition(".")[0] not in others]


def load(
    config_file: Path | str | None = None,
    overrides: Iterable[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Put the configuration together and check it.

    Parameters
    ----------
    config_file : path, optional
        A TOML file. Relative paths in it start from its own folder.
    overrides : iterable of str
        `option=value`, as given to `--set`; the last one wins.
    environ : mapping
        Where the variables `TILECAST_…` are looked up.

    Returns
    -------
    Config

    Raises
    ------
    ConfigError
        With one line for everything that is wrong: which option, where it was set, what was expected.
    """
    problems: list[str] = []
    layers: list[Iterator[tuple[str, Any, str]]] = []
    if config_file is not None:
        layers.append(_from_file(Path(config_file), problems))
    layers.append(_from_environ(environ, problems))
    layers.append(_from_overrides(overrides, problems))

    tree: dict[str, Any] = {}
    provenance: dict[str, str] = {}
    for layer in layers:
        for name, value, source in layer:
            *sections, leaf = name.split(".")
            table = tree
            for section in sections:
                table = table.setdefault(section, {})
            table[leaf] = value
            provenance[name] = source
    config: Config | None = None
    of_plugins: dict[str, PluginOptions] = {}
    for name, model in _guest_tables().items():
        values = tree.get("plugins", {}).pop(name.partition(".")[2], {})
        try:
            of_plugins[name] = model.model_validate(values)
        except ValidationError as exc:
            problems += [_explain(error, provenance, name) for error in exc.errors()]
    try:
        config = Config.model_validate(tree)
    except ValidationError as exc:
        problems += [_explain(error, provenance) for error in exc.errors()]
    if problems or config is None:
        raise ConfigError("\n".join(problems))
    config._provenance.update(provenance)
    config._of_plugins.update(of_plugins)
    return config


def nearest_option(name: str) -> str | None:
    """The known option that somebody who wrote `name` probably meant, or None.

    >>> nearest_option("ingest.idle_end"), nearest_option("tile_size")
    ('ingest.idle_end_s', 'blend.tile_size')
    """
    names = [name for name, _ in _fields()]
    if match := difflib.get_close_matches(name, names, n=1, cutoff=0.7):
        return match[0]
    leaves = {known.rpartition(".")[2]: known for known in reversed(names)}
    if match := difflib.get_close_matches(name.rpartition(".")[2], leaves, n=1, cutoff=0.7):
        return leaves[match[0]]
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.5)), None)


def to_toml(config: Config | None = None) -> str:
    """An example file: every option with its help, commented out where it has its default value.

    Parameters
    ----------
    config : Config, optional
        Whose values to write; without it, the file holds the defaults only.
    """
    lines = ["# tilecast's configuration: every option, with its default. Remove a # to change one."]
    table = ""
    for info in options():
        section, _, leaf = info.name.rpartition(".")
        if section != table:
            lines += ["", f"# {_about(section)}", f"[{section}]"]
            table = section
        unit = f" [{info.unit}]" if info.unit else ""
        lines += [f"# {info.help}{unit}"]
        if config is not None and config._provenance.get(info.name) is not None:
            lines.append(f"{leaf} = {toml_value(config.value(info.name), info.type)}")
        else:
            default = info.default or '""'
            lines.append(f"# {leaf} = {default}")
    return "\n".join(lines) + "\n"


def to_markdown() -> str:
    """The table of options as it stands in the documentation (`tilecast config --markdown`)."""
    lines = ["| option | default | unit | what it does |", "|---|---|---|---|"]
    for info in our_options():
        default = f"`{info.default}`" if info.default else ""
        help_ = info.help.replace("|", "\\|")
        lines.append(f"| `{info.name}` | {default} | {info.unit} | {help_} |")
    return "\n".join(lines) + "\n"


def toml_value(value: Any, kind: str = "") -> str:
    """A value of an option as it is written in TOML; sizes (`kind` is `size`) with their unit."""
    if value is None:
        return '""'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, int) and kind == "size":
        return f'"{format_size(value)}"'
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    # A JSON string is a TOML basic string, but for the DEL character.
    return json.dumps(str(value), ensure_ascii=False) if isinstance(value, str | Path) else str(value)


def _tables() -> dict[str, type[Section]]:
    annotations = {name: field.annotation for name, field in Config.model_fields.items()}
    ours = {
        name: type_ for name, type_ in annotations.items() if isinstance(type_, type) and issubclass(type_, Section)
    }
    return ours | _guest_tables()


def _guest_tables() -> dict[str, type[PluginOptions]]:
    """The table of each plugin that is installed, by its dotted name."""
    return {guest.table: guest.options for guest in guests() if guest.has_table}


def _about(table: str) -> str:
    """What the configuration file says above a table."""
    for guest in guests():
        if guest.table == table and guest.options is PluginOptions:
            return f"The plugin {guest.name}."
    return (_tables()[table].__doc__ or "").strip().partition("\n")[0]


def _fields() -> Iterator[tuple[str, FieldInfo]]:
    """Dotted name and field of every option; the options of a table follow those outside any."""
    tables = _tables()
    for name, field in Config.model_fields.items():
        if name not in tables:
            yield name, field
    for table, model in tables.items():
        for name, field in model.model_fields.items():
            yield f"{table}.{name}", field


def _info(name: str, field: FieldInfo) -> OptionInfo:
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    kind = kind_of(field)
    if extra["default_text"]:
        default = f'"{extra["default_text"]}"'
    else:
        default = "" if field.default is None else toml_value(field.default, kind.name)
    return OptionInfo(name, kind.name, default, str(extra["unit"]), field.description or "")


def _is_moot(name: str) -> bool:
    """Whether nobody can say if there is such an option: its plugin is left out, because its options cannot be read."""
    table, _, leaf = name.rpartition(".")
    return leaf != "enabled" and any(guest.trouble and guest.table == table for guest in guests())


def _unknown(name: str, source: str) -> str:
    table = name.rpartition(".")[0]
    if table.startswith("plugins.") and table not in (known := _guest_tables()):
        plugin = table.partition(".")[2]
        near = difflib.get_close_matches(table, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "`tilecast plugins` lists those that are"
        return f"{source}: there is no option {name}, because no plugin {plugin} is installed: {hint}"
    meant = nearest_option(name)
    hint = f"did you mean {meant}?" if meant else "`tilecast config` lists all options"
    return f"{source}: there is no option {name}: {hint}"


def _from_file(path: Path, problems: list[str]) -> Iterator[tuple[str, Any, str]]:
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no configuration file {path}: correct --config, or write one with "
            f"`tilecast config --toml > {path}`"
        ) from None
    except OSError as exc:
        raise ConfigError(f"the configuration file {path} cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not a TOML file: {exc}") from exc
    yield from _walk(document, "", path, problems)


def _walk(table: Mapping[str, Any], prefix: str, path: Path, problems: list[str]) -> Iterator[tuple[str, Any, str]]:
    fields, tables = dict(_fields()), _tables()
    for key, value in table.items():
        name = prefix + key
        if name in fields:
            if isinstance(value, dict):
                problems.append(f"{path}: {name} is an option, not a table: write {name} = value above the tables")
            else:
                yield name, _from_folder(value, fields[name], path.parent), str(path)
        elif name in tables and isinstance(value, dict):
            yield from _walk(value, f"{name}.", path, problems)
        elif name in tables:
            problems.append(f"{path}: {name} is a table: write [{name}] and its options below, not {name} = {value!r}")
        elif _is_moot(name):
            continue
        elif isinstance(value, dict) and value:
            problems += [_unknown(f"{name}.{inner}", str(path)) for inner in value]
        else:
            problems.append(_unknown(name, str(path)))


def _from_folder(value: Any, field: FieldInfo, folder: Path) -> Any:
    """Relative paths of a file start from the folder of that file, wherever the daemon was started."""
    kind = kind_of(field).name
    if kind == "path" and isinstance(value, str) and value:
        return str(folder.absolute() / Path(value).expanduser())
    if kind == "list of paths" and isinstance(value, list):
        return [str(folder.absolute() / Path(each).expanduser()) if isinstance(each, str) else each for each in value]
    return value


def _from_environ(environ: Mapping[str, str], problems: list[str]) -> Iterator[tuple[str, Any, str]]:
    fields = dict(_fields())
    by_variable = {ENV_PREFIX + name.replace(".", "_").upper(): name for name in fields}
    moot = tuple(f"{ENV_PREFIX}{guest.table.replace('.', '_').upper()}_" for guest in guests() if guest.trouble)
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX) or variable == ENV_CONFIG_FILE:
            continue
        name = by_variable.get(variable)
        if name is None and variable.startswith(moot):
            continue
        if name is None:
            meant = difflib.get_close_matches(variable, by_variable, n=1)
            hint = f"did you mean {meant[0]}?" if meant else "`tilecast config` lists all options"
            problems.append(f"there is no option for the environment variable {variable}: {hint}")
        else:
            yield from _read_text(name, fields[name], environ[variable], variable, problems)


def _from_overrides(overrides: Iterable[str], problems: list[str]) -> Iterator[tuple[str, Any, str]]:
    fields = dict(_fields())
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.strip()
        if not equals:
            problems.append(f"--set {override}: expected option=value, such as --set {name or 'store.path'}=…")
        elif name not in fields:
            problems += [] if _is_moot(name) else [_unknown(name, "--set")]
        else:
            yield from _read_text(name, fields[name], text.strip(), "--set", problems)


def _read_text(
    name: str, field: FieldInfo, text: str, source: str, problems: list[str]
) -> Iterator[tuple[str, Any, str]]:
    try:
        yield name, kind_of(field).from_text(text), source
    except tomllib.TOMLDecodeError as exc:
        problems.append(f"{name} ({source}): expected a {kind_of(field).name}, got {text}: {exc}")


def _explain(error: Any, provenance: Mapping[str, str], table: str = "") -> str:
    """One sentence for one finding of pydantic (in a plugin's table): which option, set where, what was expected."""
    fields = dict(_fields())
    parts = ([table] if table else []) + [str(part) for part in error["loc"]]
    name = next((joined for n in range(len(parts), 0, -1) if (joined := ".".join(parts[:n])) in fields), "")
    own_words = str(error["ctx"]["error"]) if error["type"] == "value_error" else ""
    if not name:
        return own_words or f"{'.'.join(parts)}: {error['msg']}"
    field = fields[name]
    info = _info(name, field)
    unit = f" in {info.unit}" if info.unit and info.unit != "bytes" else ""
    expected = own_words or f"expected {info.type}{unit}{_bounds(field)}"
    return f"{name} ({provenance.get(name, 'default')}): {expected}; got {error['input']!r}"


def _bounds(field: FieldInfo) -> str:
    words = {"ge": "at least", "gt": "more than", "le": "at most"}
    bounds = [(word, getattr(marker, key, None)) for marker in field.metadata for key, word in words.items()]
    texts = [f"{word} {bound}" for word, bound in bounds if bound is not None]
    return ", " + " and ".join(texts) if texts else ""
