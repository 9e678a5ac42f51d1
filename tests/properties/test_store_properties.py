"""Whatever is committed to a store, however it crashes: it is what it was after one of its commits, and says so.

The model is two dicts and some numbers. A crash leaves copies of the files as they are, the log not carried over; a
power failure also cuts the log somewhere, which takes the last writes with it, and whole ones only.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tilecast.geometry import Placement, PlaneKey, Rect, TileKey
from tilecast.store.sqlite_connection import TILES_NAME, wal_path
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import Commit, NewRun, TileRow

NEW = NewRun(
    run="7b0e8a52-5b57-4c38-9f1e-2d0b4f9b6a11",
    name="first",
    instrument="scope",
    stream="cam",
    start=b"",
    settings={"tile_size": 64},
)
Address = tuple[PlaneKey, TileKey]

planes = st.builds(PlaneKey, st.integers(0, 1), st.integers(0, 1), st.just(0))
addresses = st.tuples(planes, st.builds(TileKey, st.integers(0, 2), st.integers(-2, 1), st.integers(-2, 1)))
blobs = st.binary(min_size=1, max_size=4) | st.integers(0, 255).map(lambda value: bytes([value]) * 40_000)
coverages = st.none() | st.binary(min_size=1, max_size=8)
corners = st.tuples(st.integers(-500, 500), st.integers(-500, 500))


@dataclass
class Model:
    """What a store must hold."""

    name: str = "first"
    state: str = "open"
    rev: int = 0
    epoch: int = 1
    tiles: dict[Address, tuple[bytes, bytes | None, int]] = field(default_factory=dict)
    gone: dict[Address, int] = field(default_factory=dict)
    placements: dict[int, tuple[Placement, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class StoreMachine(RuleBasedStateMachine):
    """Writes, crashes and opens again, beside the model; `history` is what the store was after every write."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="tilecast-test-"))
        self.n_folders = 0
        self.boot = 0
        self.model = Model()

    @initialize()
    def create(self) -> None:
        self.folder = self.root / "0"
        self.store = SqliteStore.create(self.folder, NEW, boot_id="0")
        self._carried_over()

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.root)

    @rule(
        tiles=st.dictionaries(addresses, st.tuples(blobs, coverages), max_size=5),
        gone=st.sets(addresses, max_size=3),
        placed=st.dictionaries(st.integers(0, 9), st.tuples(planes, corners), max_size=4),
        removed=st.sets(st.integers(0, 9), max_size=2),
        new_epoch=st.sampled_from([None, None, None, "moved"]),
    )
    def commit(
        self,
        tiles: dict[Address, tuple[bytes, bytes | None]],
        gone: set[Address],
        placed: dict[int, tuple[PlaneKey, tuple[int, int]]],
        removed: set[int],
        new_epoch: str | None,
    ) -> None:
        gone -= tiles.keys()
        removed -= placed.keys()
        placements = [
            Placement(frame, 0, plane, *corner, 20, 30, "stage", frame) for frame, (plane, corner) in placed.items()
        ]
        result = self.store.commit(
            Commit(
                tiles=[TileRow(*address, *blob) for address, blob in tiles.items()],
                gone=sorted(gone),
                placements=placements,
                removed_placements=[(frame, 0) for frame in sorted(removed)],
                levels=3,
                bboxes=dict.fromkeys({plane for plane, _ in placed.values()}, Rect(-600, -600, 600, 600)),
                new_epoch=new_epoch,
            )
        )
        model = self.model
        model.rev += 1
        if new_epoch is not None:
            self._begin_epoch()
        for address, blob in tiles.items():
            model.tiles[address] = (*blob, model.rev)
            model.gone.pop(address, None)
        for address in gone:
            model.tiles.pop(address, None)
            model.gone[address] = model.rev
        for frame in removed:
            model.placements.pop(frame, None)
        model.placements |= {one.frame: (one, model.rev) for one in placements}
        assert (result.rev, result.epoch) == (model.rev, model.epoch)
        self._written()

    @rule(state=st.sampled_from(["open", "idle", "ended"]))
    def set_state(self, state: str) -> None:
        self.store.set_state(state)
        self.model.state = state
        self._written()

    @rule(name=st.text("abc äö'\"", min_size=1, max_size=8))
    def rename(self, name: str) -> None:
        self.store.rename(name)
        self.model.name = name
        self._written()

    @rule(text=st.text(max_size=8))
    def note(self, text: str) -> None:
        self.store.add_event("noted", {"text": text})
        self.model.notes.append(text)
        self._written()

    @rule()
    def settle(self) -> None:
        assert self.store.checkpointer.settle()
        self._carried_over()

    @rule()
    def close_and_open(self) -> None:
        self.store.close()
        self._open(self.folder)

    @rule(closes=st.booleans())
    def crash(self, closes: bool) -> None:
        """The process is killed: the files are as they are. It may be that the copy is closed and opened once more."""
        self._open(self._after_crash())
        if closes:
            self.close_and_open()

    @precondition(lambda self: len(self.history) > 1)
    @rule(share=st.floats(0, 1))
    def fail_the_power(self, share: float) -> None:
        """Only what was carried over is sure to be there; of what came later, some, in order."""
        folder = self._after_crash()
        log = wal_path(folder / TILES_NAME)
        if log.exists():
            data = log.read_bytes()
            log.write_bytes(data[: round(share * len(data))])
        self.boot += 1
        history = self.history
        self.store.close()
        self.folder = folder
        self.store = SqliteStore.open(folder, boot_id=str(self.boot))
        info = self.store.info()
        found = [n for n, model in enumerate(history) if self._flaw(model, any_epoch=True) is None]
        assert found, f"rev {info.rev} is none of the states that were: {self._flaw(history[-1], any_epoch=True)}"
        self.model = copy.deepcopy(history[found[-1]])
        self._begin_epoch()
        assert info.epoch == self.model.epoch, "viewers may have seen what is lost"
        self._carried_over()

    def _after_crash(self) -> Path:
        self.n_folders += 1
        folder = self.root / str(self.n_folders)
        folder.mkdir()
        for path in self.folder.glob("tiles*"):
            if not path.name.endswith("-shm"):
                shutil.copyfile(path, folder / path.name)
        return folder

    def _open(self, folder: Path) -> None:
        self.store.close()
        self.folder = folder
        self.store = SqliteStore.open(folder, boot_id=str(self.boot))
        self._carried_over()

    def _begin_epoch(self) -> None:
        self.model.epoch += 1
        self.model.gone.clear()

    def _written(self) -> None:
        self.history.append(copy.deepcopy(self.model))

    def _carried_over(self) -> None:
        """Everything so far is durable in the database file, and the log is not needed."""
        assert self.store.checkpointer.settle()
        self.history = [copy.deepcopy(self.model)]

    def _flaw(self, model: Model, *, any_epoch: bool = False) -> str | None:
        """What of the store is not as this model says."""
        store, info = self.store, self.store.info()
        found = (info.rev, info.name, info.state, info.n_tiles, info.n_placements)
        if found != (model.rev, model.name, model.state, len(model.tiles), len(model.placements)):
            return f"it says {found}"
        if not any_epoch and info.epoch != model.epoch:
            return f"epoch {info.epoch}"
        if {(at.plane, at.key): at.rev for at in store.stamps()} != {at: tile[2] for at, tile in model.tiles.items()}:
            return "the list of tiles"
        for address, tile in model.tiles.items():
            stored = store.tile(*address)
            if stored is None or (stored.pzf, stored.coverage, stored.rev) != tile:
                return f"tile {address}"
        rows = {row.placement.frame: (row.placement, row.rev) for row in store.placements()}
        if rows != model.placements:
            return "placements"
        if [event.detail["text"] for event in store.events() if event.name == "noted"] != model.notes:
            return "notes"
        return None

    @invariant()
    def is_as_the_model_says(self) -> None:
        assert self._flaw(self.model) is None

    @invariant()
    def tells_viewers_what_changed(self) -> None:
        info = self.store.info()
        changes = self.store.changes(info.epoch_rev, limit=10_000)
        assert {(at.plane, at.key): at.rev for at in changes.gone} == {
            at: rev for at, rev in self.model.gone.items() if rev > info.epoch_rev
        }
        assert {(at.plane, at.key) for at in changes.tiles} == {
            at for at, tile in self.model.tiles.items() if tile[2] > info.epoch_rev
        }

    @rule()
    def check(self) -> None:
        assert self.store.check() == []


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
