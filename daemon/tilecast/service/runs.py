"""The folder of a run: what is frozen in it at `start`, what is kept beside its journal, and who may write it.

    <store.path>/<run>/
        frozen.json     what `start` was resolved to; written once, before the start is acknowledged
        dark.npy, flat.npy   the calibration's contents, if there is one
        step-<plugin>-<array>.npy   what plugins do with its frames, where that takes arrays
        frozen.json.rebuild, dark.<sha>.npy, …   the same, as a rebuild with another calibration freezes it anew
        journal/        the truth
        ingest.json     what ingest knows and the journal cannot tell, such as how many messages were refused
        tiles.sqlite    the mosaic, a cache of it
        lock            held by whoever writes the run
        active          there while the daemon has the run loaded; a run that has it after a crash is recovered

What can be derived is not in `frozen.json`: the `start` message itself is the journal's first.

A rebuild may ask for another calibration. What it freezes lies beside the old, under names of its own, until the new
mosaic has taken the place of the old one by its one rename: the store says by which of the two its tiles were made, and
that is the one that holds (`read_frozen`). Whoever has the run's lock next clears up (`settle_frozen`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from tilecast import calibration as cal
from tilecast.errors import CalibrationError, StoreError, StoreTooNewError
from tilecast.geometry import Placement
from tilecast.ingest.joining import PlacingRules
from tilecast.ingest.journalled import read_record as read_message
from tilecast.ingest.verdicts import RunPhase, RunRecord
from tilecast.plugins import Plugins
from tilecast.service.config import Config
from tilecast.service.frame_images import (
    FrameImages,
    FrozenStep,
    MadeImages,
    again_name,
    ask_for_steps,
    frozen_path,
    load_steps,
)
from tilecast.store.folders import run_folder
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_connection import TILES_NAME, sync_folder
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.tile_store import RunInfo
from tilecast_protocol import checks, pzf
from tilecast_protocol.errors import JournalError, MalformedError, TilecastError
from tilecast_protocol.journal import Journal, RecordKind
from tilecast_protocol.messages import Image, Limits, RunNotice, Start, crc32, parse
from tilecast_protocol.topics import parse_topic
from tilecast_protocol.vocabulary import BLEND_MODES

FROZEN_NAME = "frozen.json"
ACTIVE_NAME = "active"
INGEST_NAME = "ingest.json"

#: Of `frozen.json`; it rises when an older tilecast would misunderstand what stands there.
#: Runs whose frames pass through no plugin are written as version 1, which an older one understands.
FROZEN_VERSION = 2
JOURNAL_NAME = "journal"

PENDING_NAME = "frozen.json.rebuild"
"""What a rebuild freezes, until its mosaic is in place."""

_FROZEN_FILE = re.compile(r"(?:dark|flat|step-.+?)(?:\.[0-9a-f]{16})?\.npy")

#: What is in a journal was taken in under the limits of its time.
_ANY_SIZE = Limits(max_frame_bytes=1 << 48)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """What decides about pixels and was resolved at `start`: later changes of the configuration do not touch the run.

    Attributes
    ----------
    mode : str
        Blend mode; an explicit rebuild with another one is recorded in the store, not here.
    tile_size : int
        Edge of a tile, pixels.
    calibration : str
        SHA-256 of the calibration's contents, empty if there is none.
    rules : PlacingRules
        Which frames are placed, and how they are joined to the stage.
    steps : tuple of FrozenStep
        What plugins do with every frame, in this order.
    """

    mode: str
    tile_size: int
    calibration: str
    rules: PlacingRules
    steps: tuple[FrozenStep, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For the store and for people."""
        settings = {"mode": self.mode, "tile_size": self.tile_size, "calibration": self.calibration}
        steps = {"steps": [step.as_dict() for step in self.steps]} if self.steps else {}
        return settings | self.rules.to_dict() | steps

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From what :meth:`as_dict` gave, after a journey through JSON.

        Raises
        ------
        StoreError
            If something is missing, or there is no such blend mode.
        """
        try:
            return cls(
                mode=checks.one_of(*BLEND_MODES)(values["mode"], "mode"),
                tile_size=int(values["tile_size"]),
                calibration=str(values["calibration"]),
                rules=PlacingRules.from_dict(values),
                steps=tuple(map(FrozenStep.from_dict, values.get("steps", ()))),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"the frozen settings of a run lack something: {error!r}; found {values!r}") from error


@dataclass(slots=True, eq=False)
class Run:
    """One loaded run: what all threads need to know of it. Immutable but for its journal and its three flags.

    Attributes
    ----------
    start : Start
        The message that began it.
    store_ready : threading.Event
        Set once the store thread has opened the store, so that readers may open it, or has found that it cannot.
    stuck : str
        Why its mosaic does not go on: a sentence, set by the blend or the store thread, empty while all is well. Its
        journal goes on; what is missing is blended when the run is loaded again, or rebuilt.
    shed : bool
        Set with `stuck` if that is for want of room: the run is loaded again when there is some.
    """

    run: str
    folder: Path
    start: Start
    frozen: Frozen
    images: FrameImages
    journal: Journal
    lock: RunLock
    store_ready: threading.Event = field(default_factory=threading.Event)
    stuck: str = ""
    shed: bool = False

    def load(self, placement: Placement) -> NDArray[Any]:
        """The image of a placed frame, or of a view of it, from the journal (the pyramid's `FrameSource`)."""
        return images_of(self.journal, placement.index, self.start, self.images).images[placement.view]

    def notice(self, kind: str, detail: dict[str, Any]) -> RunNotice:
        """A notice about this run, for viewers."""
        return RunNotice(
            instrument=self.start.instrument, stream=self.start.stream, run=self.run, kind=kind, detail=detail
        )

    def release(self, *, finished: bool = True) -> None:
        """Close the journal and give the run back.

        Parameters
        ----------
        finished : bool
            If not, the next daemon loads it as soon as it starts: it goes on, or something that was journalled has not
            gone its way. So it is with a run that is stuck, too.

        Raises
        ------
        JournalError, OSError
            If something of it fails; it is given back all the same.
        """
        with contextlib.ExitStack() as last:
            last.callback(self.lock.release)
            if finished and not self.stuck:
                last.callback((self.folder / ACTIVE_NAME).unlink, missing_ok=True)
            last.callback(self.journal.close)


def image_pixels(journal: Journal, image_index: int, start: Start) -> NDArray[Any]:
    """The pixels of the image with this ordinal, as the camera sent them."""
    record = journal.image(image_index)
    return pzf.decode_image(record.parts[0], shape=start.shape, dtype=start.dtype)


def images_of(journal: Journal, image_index: int, start: Start, images: FrameImages) -> MadeImages:
    """What the frame with this ordinal becomes; PluginFailedError as `FrameImages.of`."""
    record = journal.image(image_index)
    channel = 0
    if images.by_channel:
        message = read_message(record).message
        assert isinstance(message, Image)
        channel = message.tcz[1]
    return images.of(pzf.decode_image(record.parts[0], shape=start.shape, dtype=start.dtype), channel)


def starts_of(journal: Journal) -> Iterator[Start]:
    """The `start` messages in a journal, with their payload; the first one began the run."""
    for record in journal.records():
        if record.kind is RecordKind.START:
            message = parse([record.topic.encode(), record.header, *record.parts], _ANY_SIZE)
            assert isinstance(message, Start), "the journal's kind and the topic's type are written together"
            yield message


def open_recording(folder: Path) -> Journal:
    """The journal of a run, for reading only.

    Raises
    ------
    StoreError
        If the run is sealed: says since when.
    JournalError
        If it cannot be read.
    """
    try:
        return Journal.open(folder / JOURNAL_NAME, readonly=True)
    except JournalError as error:
        sealed_ns = _sealed_ns(folder)
        if sealed_ns is None:
            raise
        since = datetime.fromtimestamp(sealed_ns // 10**9).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        raise StoreError(
            f"run {folder.name} is sealed since {since}: its recorded frames were dropped then, and it can only be "
            "viewed; `tilecast info` says why and what is no longer possible"
        ) from error


def _sealed_ns(folder: Path) -> int | None:
    """When a run was sealed, UTC; None if it was not, or its store cannot be read."""
    with contextlib.suppress(TilecastError), SqliteReader(folder) as reader:
        if reader.info().state == "sealed":
            return max((event.t_ns for event in reader.events() if event.name == "sealed"), default=0)
    return None


def first_start(journal: Journal) -> Start:
    """The `start` message that a journal begins with.

    Raises
    ------
    StoreError
        If the journal holds none.
    """
    for start in starts_of(journal):
        return start
    raise StoreError(f"the journal in {journal.folder} holds no start message: nothing can be made of it")


def start_in_store(info: RunInfo) -> Start:
    """The `start` message as a run's store keeps it, without payload: for a run whose journal has lost it.

    Raises
    ------
    StoreError
        If the store does not have it.
    """
    header = info.header | ({"nbytes": 0} if info.header.get("nbytes") is not None else {})
    try:
        start = Start.from_header(parse_topic(f"tc1/{info.instrument}/{info.stream}/start"), header)
    except MalformedError as error:
        raise StoreError(f"the start message that the store of run {info.run} keeps cannot be read: {error}") from error
    object.__setattr__(start, "raw_header", info.start)  # as `parse` does
    return start


def resolve(start: Start, rules: PlacingRules, config: Config, plugins: Plugins) -> tuple[Frozen, FrameImages]:
    """What a `start` means on this daemon, to be frozen in the run.

    Raises
    ------
    CalibrationError
        If a calibration that it names or carries is unknown or does not fit.
    StartRefusedError
        If a plugin refuses the run, or fails.
    """
    images: dict[str, NDArray[Any] | None] = {}
    for role, name in (("dark", start.dark), ("flat", start.flat)):
        if name is None:
            images[role] = None
        elif name.startswith("part:"):
            number = int(name.removeprefix("part:"))
            if number >= len(start.parts):
                raise CalibrationError(f"{role} is {name}, and this start carries {len(start.parts)} payload parts")
            images[role] = cal.load_npy(bytes(start.parts[number]), start.shape)
        else:
            images[role] = plugins.find_calibration(
                name,
                "dark" if role == "dark" else "flat",
                shape=start.shape,
                folder=config.calibration.path,
            )
    calibration = cal.freeze(dark=images["dark"], flat=images["flat"], shape=start.shape)
    made = FrameImages(calibration, ask_for_steps(start, plugins, config.calibration.path, calibration))
    return frozen_with(start, rules, config, made), made


def frozen_with(start: Start, rules: PlacingRules, config: Config, images: FrameImages) -> Frozen:
    """What is frozen of a run whose frames become images so."""
    return Frozen(
        mode=start.blend or config.blend.mode,
        tile_size=config.blend.tile_size,
        calibration=images.calibration.sha256,
        rules=rules,
        steps=images.frozen,
    )


def create_run(root: Path, start: Start, frozen: Frozen, images: FrameImages, *, segment_bytes: int) -> Run:
    """Make the folder of a new run; durable when this returns.

    Raises
    ------
    StoreError, JournalError, OSError
        If the folder cannot be made, or there is one already.
    """
    folder = run_folder(root, start.run)
    if is_stillborn(folder):
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        lock = RunLock(folder)
        undo.callback(lock.release)
        freeze_in(folder, frozen, images)
        write_durably(folder / ACTIVE_NAME, b"")
        journal = Journal.create(folder / JOURNAL_NAME, start.run, segment_bytes=segment_bytes)
        undo.callback(journal.close)
        sync_folder(folder.parent)
        undo.pop_all()
    return Run(start.run, folder, start, frozen, images, journal, lock)


def is_stillborn(folder: Path) -> bool:
    """Whether a run's folder holds nothing that was ever promised to anybody.

    So it is if the daemon died, or the disk was full, before the start was journalled. A journal in which something
    durable cannot be read any more is a damaged one, not an empty one.

    Raises
    ------
    JournalError
        If there is a journal that cannot be read at all.
    """
    if not folder.is_dir() or (folder / TILES_NAME).exists():
        return False
    if not any((folder / JOURNAL_NAME).glob("*.tcj")):
        return True
    with Journal.open(folder / JOURNAL_NAME, readonly=True) as journal:
        is_empty = next(iter(journal.records(with_parts=False)), None) is None
        return is_empty and not any(damage.durable for damage in journal.damage)


def freeze_in(folder: Path, frozen: Frozen, images: FrameImages) -> None:
    """Write what is frozen into a run's folder, durably."""
    for name, sha256, data in images.files():
        write_durably(frozen_path(folder, name, sha256), data)
    write_durably(folder / FROZEN_NAME, _frozen_json(frozen))


def _frozen_json(frozen: Frozen) -> bytes:
    values = {"version": FROZEN_VERSION if frozen.steps else 1} | frozen.as_dict()
    return json.dumps(values | {"crc32": _values_crc32(values)}, indent=1).encode()


def freeze_beside(folder: Path, frozen: Frozen, images: FrameImages) -> None:
    """Write what a rebuild freezes anew beside what holds until its mosaic is in place, durably."""
    for name, sha256, data in images.files():
        write_durably(folder / again_name(name, sha256), data)
    write_durably(folder / PENDING_NAME, _frozen_json(frozen))


def settle_frozen(folder: Path) -> None:
    """Keep what holds of what is frozen in a run, and remove the other, if a rebuild has left two of them.

    Only for who holds the run's lock, while no rebuild is going on; killed at any moment, it can be done again.

    Raises
    ------
    StoreError
        If it cannot be read.
    OSError
        If it cannot be written.
    """
    pending = folder / PENDING_NAME
    if not pending.exists():
        return
    frozen = read_frozen(folder)
    if _holds(folder):
        pending.replace(folder / FROZEN_NAME)
    else:
        pending.unlink()
    sync_folder(folder)
    wanted = {frozen_path(folder, f"{role}.npy", frozen.calibration).name for role in frozen_images(folder)}
    for step in frozen.steps:
        wanted |= {frozen_path(folder, step.file_name(name), sha).name for name, sha in step.arrays.items()}
    for path in folder.glob("*.npy"):
        if _FROZEN_FILE.fullmatch(path.name) and path.name not in wanted:
            path.unlink()


def _holds(folder: Path) -> bool:
    """Whether the tiles of a run were made by what a rebuild froze, and not by what lies in `frozen.json`."""
    with contextlib.suppress(TilecastError, OSError):
        pending = _read_frozen(folder / PENDING_NAME).as_dict()
        with SqliteReader(folder) as reader:
            settings = reader.info().settings
        return all(settings.get(name) == pending.get(name) for name in ("calibration", "steps"))
    return False


def load_run(folder: Path, *, segment_bytes: int, plugins: Plugins | None = None) -> Run:
    """Load a run that exists, to write it: its journal is verified, and a torn tail cut off.

    Raises
    ------
    RunLockedError
        If another process writes it.
    StoreError, JournalError, CalibrationError
        If it is damaged.
    """
    with contextlib.ExitStack() as undo:
        lock = RunLock(folder)
        undo.callback(lock.release)
        frozen = read_frozen(folder)
        try:
            settle_frozen(folder)
            write_durably(folder / ACTIVE_NAME, b"")
        except OSError as error:
            raise StoreError(f"cannot write in {folder}: {error.strerror}") from error
        journal = Journal.open(folder / JOURNAL_NAME, segment_bytes=segment_bytes)
        undo.callback(journal.close)
        start = first_start(journal)
        images = load_images(folder, start, frozen, plugins)
        undo.pop_all()
    return Run(start.run, folder, start, frozen, images, journal, lock)


def read_frozen(folder: Path) -> Frozen:
    """What was frozen in a run, at its start or by the last rebuild with another calibration.

    Raises
    ------
    StoreError
        If the file is missing or damaged.
    StoreTooNewError
        If a newer tilecast wrote it.
    """
    is_left = (folder / PENDING_NAME).exists()
    return _read_frozen(folder / (PENDING_NAME if is_left and _holds(folder) else FROZEN_NAME))


def _read_frozen(path: Path) -> Frozen:
    try:
        values = json.loads(path.read_text())
        version = values.get("version", 1)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    if type(version) is int and version > FROZEN_VERSION:
        raise StoreTooNewError(
            f"{path} has version {version}, and this tilecast knows up to {FROZEN_VERSION}: a newer "
            "tilecast wrote it; use that one, or upgrade this one"
        )
    if "crc32" in values and values["crc32"] != _values_crc32(values):
        raise StoreError(
            f"{path} is damaged: its checksum is wrong; `tilecast fsck --repair` writes it again, as "
            "the run's store says"
        )
    return Frozen.from_dict(values)


def vouches(folder: Path) -> bool:
    """Whether what `read_frozen` gives has a checksum: then it is right, and what contradicts it is not."""
    return "crc32" in json.loads((folder / FROZEN_NAME).read_text())


def _values_crc32(values: Mapping[str, Any]) -> int:
    """Checksum of the values themselves, however they are written."""
    return crc32(json.dumps({name: values[name] for name in sorted(values) if name != "crc32"}).encode())


def frozen_images(folder: Path, sha256: str | None = None) -> dict[str, bytes]:
    """For `dark` and `flat`, whichever were frozen in a run: their NPY files.

    Parameters
    ----------
    sha256 : str, optional
        Of the calibration that is meant; that which holds if not given.
    """
    wanted = read_frozen(folder).calibration if sha256 is None else sha256
    if not wanted:
        return {}
    again = {role: folder / again_name(f"{role}.npy", wanted) for role in ("dark", "flat")}
    # Those that a rebuild froze, or those of the start: not one of each.
    if not any(path.exists() for path in again.values()):
        again = {role: folder / f"{role}.npy" for role in again}
    return {role: path.read_bytes() for role, path in again.items() if path.exists()}


def load_images(folder: Path, start: Start, frozen: Frozen, plugins: Plugins | None = None) -> FrameImages:
    """How the frames of a run become images, from what was frozen in it.

    If a plugin that takes part cannot be used, that is said when the first frame comes (`FrameImages.of`).

    Parameters
    ----------
    plugins : Plugins, optional
        Those of the daemon; without it, they are loaded if the run needs one.

    Raises
    ------
    CalibrationError, StoreError
        If what was frozen cannot be read, or is something else.
    """
    calibration = load_calibration(folder, start.shape, frozen.calibration)
    return FrameImages(calibration, load_steps(folder, start, frozen.steps, plugins, calibration))


def load_calibration(folder: Path, shape: tuple[int, int], sha256: str) -> cal.Calibration:
    """The calibration that was frozen in a run, checked against the digest that was frozen beside it.

    Raises
    ------
    CalibrationError
        If it cannot be read, or is another one.
    """
    try:
        images = {role: cal.load_npy(data, shape) for role, data in frozen_images(folder, sha256).items()}
    except OSError as error:
        raise CalibrationError(f"cannot read the calibration images in {folder}: {error.strerror}") from error
    found = cal.freeze(dark=images.get("dark"), flat=images.get("flat"), shape=shape)
    if found.sha256 != sha256:
        raise CalibrationError(f"the calibration images in {folder} are not those that were frozen at its start")
    return found


def read_record(folder: Path, start: Start, frozen: Frozen, phase: RunPhase, revision: int) -> RunRecord:
    """What the ingest machine needs to go on with a run, beside its journal."""
    kept = _read_kept(folder)
    return RunRecord(
        start=start,
        phase=phase,
        revision=revision,
        rules=frozen.rules,
        stage_stream=kept.get("stage_stream", start.stage_stream),
        held=bool(kept.get("held", False)),
        counts=kept.get("counts", {}),
    )


def keep_record(folder: Path, record: RunRecord) -> None:
    """Keep in a run's folder what neither its journal nor its store can tell.

    Raises
    ------
    OSError
        If it cannot be written; what was kept before then stays.
    """
    _write_kept(folder, {"stage_stream": record.stage_stream, "held": record.held, "counts": dict(record.counts)})


def keep_counts(folder: Path, counts: Mapping[str, Any]) -> None:
    """Keep the counts of a run, and leave the rest as it was kept last; OSError as `keep_record`."""
    _write_kept(folder, _read_kept(folder) | {"counts": dict(counts)})


def can_read_kept(folder: Path) -> bool:
    """Whether what is kept beside the journal is a map, as it was written."""
    try:
        return isinstance(json.loads((folder / INGEST_NAME).read_text()), dict)
    except (OSError, ValueError):
        return False


def _read_kept(folder: Path) -> dict[str, Any]:
    """What `keep_record` wrote; nothing if it is not there or ruined: then it starts from zero."""
    kept: Any = None
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads((folder / INGEST_NAME).read_text())
    return kept if isinstance(kept, dict) else {}


def _write_kept(folder: Path, kept: Mapping[str, Any]) -> None:
    write_durably(folder / INGEST_NAME, json.dumps(kept).encode())


def active_runs(root: Path) -> list[Path]:
    """Folders of the runs that a daemon had loaded when it ended without giving them back."""
    if not root.is_dir():
        return []
    found = []
    for path in sorted(root.glob(f"*/{ACTIVE_NAME}")):
        with contextlib.suppress(StoreError):  # of a folder that is none of ours
            found.append(run_folder(root, path.parent.name))
    return found


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file so that after a crash it is there whole, or not at all."""
    unborn = path.with_name(path.name + ".new")
    with unborn.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unborn.replace(path)
    sync_folder(path.parent)
