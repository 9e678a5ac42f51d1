"""Nothing is taken twice, nothing is lost, nothing half-written is taken, whatever comes between.

The files and the record on disk are real. The daemon is a journal in memory with its two promises: a frame that it has
is dropped when it comes again, and after `flush` it is there for good; what it had not promised may be gone after a
crash. The real daemon is killed in test_watching.py.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from folder_writers import encoded, write_renamed
from tilecast.inputs import open_scan
from tilecast.testing.frames import describe
from tilecast_plugins.watch_folder.intake import Intake, RunRefusedError, StoppedError
from tilecast_plugins.watch_folder.options import WatchFolderOptions
from tilecast_plugins.watch_folder.record import Plane, Record

SHAPE = (16, 24)
PATTERN = "img_{row:d}_{col:d}.npy"


class CrashError(BaseException):
    """The power fails."""


class Journal:
    """The daemon: see above. `fuse` is after how many calls the power fails; `keeps` how much unpromised survives."""

    def __init__(self) -> None:
        self.frames: dict[tuple[str, int], tuple[str, NDArray[Any], Plane]] = {}
        self.promised: set[tuple[str, int]] = set()
        self.starts: dict[str, dict[str, Any]] = {}
        self.ends: dict[str, int] = {}
        self.n_duplicates = 0
        self.fuse = -1
        self.keeps_pixels = True
        self.refuses: dict[str, str] = {}  # reason by file
        self.refuses_runs = ""
        self._refused: dict[tuple[str, int], tuple[str, str]] = {}

    def crash(self, kept: float) -> None:
        unpromised = [key for key in self.frames if key not in self.promised]
        for key in unpromised[int(kept * len(unpromised)) :]:
            del self.frames[key]
        self.promised |= self.frames.keys()  # the next daemon syncs what it finds in a journal when it opens it
        self._refused.clear()

    def _burn(self) -> None:
        if self.fuse == 0:
            raise CrashError
        self.fuse -= 1

    def known(self, run: str) -> tuple[str, Sequence[tuple[int, int]]] | None:
        if run not in self.starts:
            return None
        there = [(frame, frame) for of, frame in self.frames if of == run]
        merged: list[tuple[int, int]] = []
        for first, last in sorted(there):
            if merged and merged[-1][1] == first - 1:
                merged[-1] = merged[-1][0], last
            else:
                merged.append((first, last))
        return ("ended" if run in self.ends else "open"), merged

    def start(self, run: str, start: Mapping[str, Any]) -> None:
        self._burn()
        if self.refuses_runs:
            raise RunRefusedError(self.refuses_runs)
        given = json.loads(json.dumps(start))
        assert self.starts.setdefault(run, given) == given, "run-conflict"

    def image(self, run: str, frame: int, pixels: NDArray[Any], plane: Plane, user: Mapping[str, Any]) -> None:
        self._burn()
        assert run in self.starts, "unknown-run"
        if reason := self.refuses.get(user["file"]):
            self._refused[run, frame] = reason, f"because {reason}"
        elif (run, frame) in self.frames:
            self.n_duplicates += 1
        else:
            self.frames[run, frame] = user["file"], pixels.copy() if self.keeps_pixels else np.empty(0), plane

    def flush(self) -> dict[tuple[str, int], tuple[str, str]]:
        self._burn()
        self.promised |= self.frames.keys()
        refused, self._refused = self._refused, {}
        return refused

    def end(self, run: str, n_sent: int) -> None:
        self._burn()
        self.ends[run] = n_sent

    def files(self) -> list[str]:
        return sorted(name for name, _, _ in self.frames.values())


class Bench:
    """A folder, its record, a daemon, and a clock; `restart` is what comes after a crash."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.folder = root / "images"
        self.folder.mkdir()
        self.root = root
        self.journal = Journal()
        self.now_s = 1000.0
        self.options = WatchFolderOptions(**({"pattern": PATTERN, "settle_ms": 500.0, "give_up_s": 20.0} | options))
        self.record: Record | None = None
        self.restart()

    def restart(self) -> None:
        if self.record is not None:
            self.record.close()
        self.record = Record(self.root / "record.sqlite")
        self.intake = Intake(
            self.folder,
            self.options,
            self.record,
            self.journal,
            self.root / "rejected.jsonl",
            now_s=lambda: self.now_s,
            stop=threading.Event(),
        )
        self.intake.resume()

    def turn(self, pass_s: float = 1.0) -> None:
        self.intake.turn()
        self.now_s += pass_s

    def write(self, name: str, number: int, shape: tuple[int, int] = SHAPE) -> None:
        write_renamed(self.folder / name, encoded(describe(number, shape), Path(name).suffix))

    def rejected(self) -> list[tuple[str, str]]:
        path = self.root / "rejected.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [(line["file"], line["why"]) for line in lines]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


STEP = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 5), st.floats(0.05, 1.0)),
    st.tuples(st.just("rename"), st.integers(0, 5), st.just(0.0)),
    st.tuples(st.just("touch"), st.integers(0, 5), st.just(0.0)),
    st.tuples(st.just("turn"), st.just(0), st.sampled_from([0.1, 0.4, 0.6, 2.0])),
    st.tuples(st.just("crash"), st.integers(0, 8), st.floats(0.0, 1.0)),
    st.tuples(st.just("stop"), st.just(0), st.just(0.0)),
)


@given(st.lists(STEP, max_size=40), st.sampled_from(["leave", "move", "delete"]))
def test_every_file_is_there_once_and_whole(steps: list[tuple[str, int, float]], taken: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root), taken=taken, end_after_s=0.0)
        journal = bench.journal
        whole = {f"img_{i}_{i}.npy": encoded(describe(i, SHAPE), ".npy") for i in range(6)}
        written = dict.fromkeys(whole, 0)  # bytes; files are written from their beginning, in as many pieces as come

        def go_on(name: str, share: float, suffix: str = "") -> None:
            path, data = bench.folder / (name + suffix), whole[name]
            upto = min(len(data), written[name] + max(1, int(share * len(data))))
            with path.open("ab") as file:
                file.write(data[written[name] : upto])
            written[name] = upto

        def turn(pass_s: float, kept: float = 1.0) -> None:
            try:
                bench.turn(pass_s)
            except CrashError:
                event("crash")
                journal.fuse = -1
                journal.crash(kept)
                bench.restart()

        kept, touched = 1.0, set()
        for what, number, amount in steps:
            name = f"img_{number % 6}_{number % 6}.npy"
            if what == "write" and written[name] < len(whole[name]):
                go_on(name, amount)
            elif what == "rename" and not written[name]:
                go_on(name, 1.0, ".part")
                (bench.folder / (name + ".part")).rename(bench.folder / name)
            elif what == "touch" and (bench.folder / name).exists():
                (bench.folder / name).touch()
                touched.add(name)
            elif what == "crash":
                journal.fuse, kept = number, amount
            elif what == "turn":
                turn(amount, kept)
            elif what == "stop":
                bench.restart()
        journal.fuse = -1
        for name in whole:
            if written[name] < len(whole[name]):
                go_on(name, 1.0)
        for _ in range(8):
            turn(3.0)
        assert journal.files() == sorted(whole)
        for name, pixels, _ in journal.frames.values():
            np.testing.assert_array_equal(pixels, describe(int(name.split("_")[1]), SHAPE))
        assert bench.rejected() == []
        assert len(journal.starts) == 1
        assert sorted(frame for _, frame in journal.frames) == list(range(6))
        left = {path.name for path in bench.folder.glob("*.npy")}
        assert left == whole.keys() if taken == "leave" else left <= touched


@pytest.mark.parametrize("taken", ["leave", "move", "delete"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("fuse", range(7))
def test_the_power_fails_at_each_call_of_a_turn(tmp_path: Path, fuse: int, kept: float, taken: str) -> None:
    """Of the start, of four frames, of the promise: the same, one by one, as chance above finds only now and then."""
    bench = Bench(tmp_path, taken=taken, end_after_s=0.0)
    names = [f"img_0_{number}.npy" for number in range(4)]
    for number, name in enumerate(names):
        bench.write(name, number)
    bench.turn()
    bench.journal.fuse = fuse
    if fuse < 6:
        with pytest.raises(CrashError):
            bench.turn()
    else:
        bench.turn()
    bench.journal.fuse = -1
    bench.journal.crash(kept)
    bench.restart()
    for _ in range(4):
        bench.turn()
    assert bench.journal.files() == names
    assert sorted(path.name for path in bench.folder.glob("*.npy")) == (names if taken == "leave" else [])


def test_a_file_that_grows_slowly_is_taken_when_it_is_whole(bench: Bench) -> None:
    data = encoded(describe(1, SHAPE), ".npy")
    path = bench.folder / "img_0_0.npy"
    for byte in range(0, len(data), 100):
        for _ in range(3):
            bench.turn()
            assert bench.journal.frames == {}
        with path.open("ab") as file:
            file.write(data[byte : byte + 100])
    for _ in range(3):
        bench.turn()
    assert bench.journal.files() == ["img_0_0.npy"]
    assert bench.rejected() == []


def test_order_of_names_and_of_time(tmp_path: Path) -> None:
    import os

    for order, expected in (("name", [2, 9, 10]), ("time", [10, 2, 9])):
        (tmp_path / order).mkdir()
        bench = Bench(tmp_path / order, order=order)
        for age, number in enumerate((9, 2, 10)):
            bench.write(f"img_0_{number}.npy", number)
            os.utime(bench.folder / f"img_0_{number}.npy", (1e9 - age, 1e9 - age))
        bench.turn()
        bench.turn()
        sent = [name for _, (name, _, _) in sorted(bench.journal.frames.items(), key=lambda item: item[0][1])]
        assert sent == [f"img_0_{number}.npy" for number in expected]


def test_a_run_ends_when_it_is_silent_and_the_next_file_begins_another(bench: Bench) -> None:
    bench.write("img_0_0.npy", 1)
    bench.turn()
    bench.turn()
    assert bench.journal.ends == {}
    for _ in range(70):
        bench.turn()
    (run,) = bench.journal.starts
    assert bench.journal.ends == {run: 1}
    bench.write("img_0_1.npy", 2)
    bench.turn()
    bench.turn()
    assert len(bench.journal.starts) == 2


def test_a_run_ends_though_its_folder_is_gone(bench: Bench) -> None:
    bench.write("img_0_0.npy", 1)
    bench.turn()
    bench.turn()
    bench.folder.rename(bench.root / "gone")
    for _ in range(70):
        with pytest.raises(FileNotFoundError):
            bench.turn()
        bench.now_s += 1.0
    assert len(bench.journal.ends) == 1


def test_a_marker_ends_the_runs_of_its_folder_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pattern="{run}_{row:d}_{col:d}.npy", end_marker="done", end_after_s=0.0)
    bench.write("a_0_0.npy", 1)
    bench.write("b_0_0.npy", 2)
    bench.turn()
    bench.turn()
    assert len(bench.journal.starts) == 2
    (bench.folder / "done").touch()
    bench.turn()
    assert len(bench.journal.ends) == 2
    bench.write("a_0_1.npy", 3)
    for _ in range(5):
        bench.turn()
    assert (len(bench.journal.starts), len(bench.journal.ends)) == (3, 2)
    bench.restart()
    bench.turn()
    assert len(bench.journal.ends) == 2


def test_what_lay_there_before_can_be_left(tmp_path: Path) -> None:
    bench = Bench(tmp_path, existing=False)
    bench.write("img_0_0.npy", 1)
    bench.turn()
    bench.write("img_0_1.npy", 2)
    for _ in range(3):
        bench.turn()
    bench.restart()
    bench.turn()
    bench.turn()
    assert bench.journal.files() == ["img_0_1.npy"]


def test_a_file_that_is_written_anew_is_not_taken_twice(bench: Bench) -> None:
    bench.write("img_0_0.npy", 1)
    bench.turn()
    bench.turn()
    bench.write("img_0_0.npy", 2)
    for _ in range(3):
        bench.turn()
    assert len(bench.journal.frames) == 1
    for _ in range(70):  # the run ends; then another image under this name is another image
        bench.turn()
    assert sorted(int(frame) for _, frame in bench.journal.frames) == [0, 0]
    (bench.folder / "img_0_0.npy").touch()  # and the same is not
    for _ in range(70):
        bench.turn()
    assert len(bench.journal.frames) == 2


def test_bad_files_are_set_aside_with_the_reason(bench: Bench) -> None:
    bench.write("img_0_0.npy", 1)
    bench.turn()
    bench.turn()
    (bench.folder / "img_0_1.npy").write_bytes(b"no image")
    bench.write("img_0_2.npy", 2, shape=(8, 8))
    bench.write("overview.npy", 3)
    np.save(bench.folder / "img_0_4.npy", np.zeros((4, 4, 3), "u1"))
    for _ in range(30):
        bench.turn()
    reasons = dict(bench.rejected())
    assert reasons.keys() == {"img_0_1.npy", "img_0_2.npy", "overview.npy", "img_0_4.npy"}
    assert "cannot be read" in reasons["img_0_1.npy"]
    assert "all frames of a run are alike" in reasons["img_0_2.npy"]
    assert "does not fit" in reasons["overview.npy"]
    assert "one grey plane" in reasons["img_0_4.npy"]
    assert len(list(bench.folder.iterdir())) == 5  # nothing was touched
    assert bench.intake.n_rejected == 4
    bench.turn()
    assert len(bench.rejected()) == 4
    bench.write("img_0_1.npy", 5)  # mended
    bench.turn()
    bench.turn()
    assert bench.journal.files() == ["img_0_0.npy", "img_0_1.npy"]


def test_bad_files_are_moved_if_that_is_wanted(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rejected="move", taken="move", give_up_s=1.0)
    bench.write("img_0_0.npy", 1)
    (bench.folder / "img_0_1.npy").write_bytes(b"no image")
    for _ in range(8):
        bench.turn()
    assert [path.name for path in (bench.folder / ".rejected").iterdir()] == ["img_0_1.npy"]
    assert [path.name for path in (bench.folder / "taken").iterdir()] == ["img_0_0.npy"]


def test_a_refusal_that_passes_is_waited_for_and_another_is_not(bench: Bench) -> None:
    bench.write("img_0_0.npy", 1)
    bench.write("img_0_1.npy", 2)
    bench.journal.refuses = {"img_0_0.npy": "disk-reserve", "img_0_1.npy": "too-large"}
    bench.turn()
    bench.turn()
    assert bench.intake.trouble == "because disk-reserve"
    assert bench.rejected() == [("img_0_1.npy", "the daemon refused it (too-large): because too-large")]
    bench.journal.refuses = {}
    for _ in range(10):
        bench.turn()
    assert bench.journal.files() == ["img_0_0.npy"]
    assert bench.intake.trouble == ""


def test_a_run_that_is_refused_is_tried_again(bench: Bench) -> None:
    bench.write("img_0_0.npy", 1)
    bench.journal.refuses_runs = "no room"
    bench.turn()
    bench.turn()
    assert bench.intake.trouble == "no room"
    bench.journal.refuses_runs = ""
    for _ in range(10):
        bench.turn()
    assert bench.journal.files() == ["img_0_0.npy"]
    assert len(bench.journal.starts) == 1


def test_a_run_that_was_deleted_is_not_brought_back(bench: Bench) -> None:
    bench.write("img_0_0.npy", 1)
    bench.turn()
    bench.turn()
    (deleted,) = bench.journal.starts
    bench.journal.starts.clear()
    bench.journal.frames.clear()
    bench.restart()
    bench.write("img_0_1.npy", 2)
    bench.turn()
    bench.turn()
    assert deleted not in bench.journal.starts
    assert bench.journal.files() == ["img_0_1.npy"]


def test_a_file_that_vanished_before_it_was_safe_is_named(bench: Bench) -> None:
    bench.write("img_0_0.npy", 1)
    bench.turn()
    bench.journal.fuse = 1  # after the start, before the image
    with pytest.raises(CrashError):
        bench.turn()
    bench.journal.fuse = -1
    (bench.folder / "img_0_0.npy").unlink()
    bench.restart()
    bench.turn()
    assert "taken away before frame 0" in bench.intake.trouble
    for _ in range(30):
        bench.turn()
    assert "taken away before frame 0 was safe in run" in dict(bench.rejected())["img_0_0.npy"]


def test_it_stops_between_two_files(bench: Bench) -> None:
    bench.write("img_0_0.npy", 1)
    bench.turn()
    bench.intake._stop.set()
    with pytest.raises(StoppedError):
        bench.turn()
    bench.restart()
    bench.turn()
    bench.turn()
    assert bench.journal.files() == ["img_0_0.npy"]


def test_folders_within_are_runs(tmp_path: Path) -> None:
    bench = Bench(tmp_path, subfolders=True)
    for scan in ("one", "two", ".hidden"):
        (bench.folder / scan).mkdir()
        bench.write(f"{scan}/img_0_0.npy", 1)
    bench.write("img_0_0.npy", 1)
    bench.turn()
    bench.turn()
    assert bench.journal.files() == ["one/img_0_0.npy", "two/img_0_0.npy"]
    assert sorted(start["name"] for start in bench.journal.starts.values()) == ["one", "two"]


def test_memory_does_not_grow_with_a_burst(tmp_path: Path) -> None:
    import tracemalloc

    bench = Bench(tmp_path)
    shape = (256, 256)
    for number in range(300):
        bench.write(f"img_{number // 20}_{number % 20}.npy", number, shape)
    bench.journal.keeps_pixels = False
    bench.turn()
    tracemalloc.start()
    bench.turn()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bench.intake.n_taken == 300
    one = 2 * shape[0] * shape[1]
    assert peak < 64 * one + (4 << 20) < 300 * one


def test_a_series_of_pyme_waits_for_its_events_and_lies_where_send_puts_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, pattern="", give_up_s=5.0)
    frames = [describe(number, SHAPE) for number in range(4)]
    for number, frame in enumerate(frames):
        (bench.folder / f"frame{number:05d}.pzf").write_bytes(encoded(np.ascontiguousarray(frame.T), ".pzf"))
        if number == 0:
            metadata = {"voxelsize.x": 0.25, "voxelsize.y": 0.25, "Camera.CycleTime": 0.1, "StartTime": 1000.0}
            (bench.folder / "metadata.json").write_text(json.dumps(metadata))
        for _ in range(3):
            bench.turn()
    assert bench.journal.frames == {}
    events = [["StartAq", "0", 1000.0]]
    for number in range(4):
        events.append(["ScannerXPos", f"{10.0 * number}", 1000.0 + 0.1 * number])
        events.append(["ScannerYPos", "5.0", 1000.0 + 0.1 * number])
    (bench.folder / "events.json").write_text(json.dumps(events))
    for _ in range(8):
        bench.turn()
    assert bench.rejected() == []
    sent = sorted(bench.journal.frames.values(), key=lambda frame: frame[0])
    expected = list(open_scan(bench.folder).frames())
    assert len(sent) == len(expected) == 4
    for (_, found, plane), frame in zip(sent, expected, strict=True):
        np.testing.assert_array_equal(found, frame.pixels)
        assert plane.pos_um == pytest.approx(frame.pos_um)
    (start,) = bench.journal.starts.values()
    assert start["px_um"] == [0.25, 0.25]
