"""Plugins: what a good one gets, and that a bad one harms only itself."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from structlog.testing import capture_logs

from tilecast.errors import CalibrationError, StartRefusedError, UnknownCalibrationError
from tilecast.hookspecs import Committed, Feed, FrameStep, RunStart, View, hookimpl
from tilecast.options import PluginOptions, option
from tilecast.plugins import PluginFailedError, Plugins, SourceThreads, Teller

COMMIT = Committed(
    run="0190a5a8-0000-7000-8000-000000000001",
    instrument="scope",
    stream="camera",
    epoch=0,
    rev=1,
    tiles=((0, 0, 0, 0, -1, 2),),
    gone=(),
    t_recv_ns=1,
    t_commit_ns=2,
)


def plugin(**hooks: Callable[..., Any]) -> ModuleType:
    """A module with these functions as its hooks."""
    module = ModuleType("guest")
    for name, function in hooks.items():
        setattr(module, name, hookimpl(function))
    return module


def fails(*_: object, **__: object) -> None:
    raise ZeroDivisionError("a guest's mistake")


class TestLoading:
    def test_ours_come_in_by_the_same_door(self) -> None:
        plugins = Plugins.load()
        assert "calibration" in plugins.names
        assert plugins.failed == {}

    def test_a_plugin_that_cannot_be_imported_is_named_and_left_out(self) -> None:
        entries = [
            EntryPoint("broken", "tilecast_no_such_module", "tilecast.plugins"),
            EntryPoint("calibration", "tilecast_plugins.calibration.plugin", "tilecast.plugins"),
        ]
        with capture_logs() as logs:
            plugins = Plugins.load(entries)
        assert plugins.names == ["calibration"]
        assert "tilecast_no_such_module" in plugins.failed["broken"]
        assert (logs[0]["event"], logs[0]["plugin"]) == ("plugin left out", "broken")

    @pytest.mark.parametrize(
        ("hooks", "reason"),
        [
            ({"tilecast_commited": lambda: None}, "tilecast_commited"),
            ({"tilecast_committed": lambda colour: colour}, "colour"),
        ],
        ids=["unknown hook", "unknown argument"],
    )
    def test_a_hook_that_does_not_fit_is_named(self, hooks: dict[str, Any], reason: str) -> None:
        plugins = Plugins([("good", plugin(tilecast_committed=lambda: None)), ("bad", plugin(**hooks))])
        assert reason in plugins.failed["bad"]
        assert plugins.names == ["good"]
        plugins.tell(COMMIT)

    def test_the_same_name_twice(self) -> None:
        plugins = Plugins([("one", plugin()), ("one", plugin())])
        assert plugins.names == ["one"]
        assert "one" in plugins.failed


class TestCalibration:
    def find(self, plugins: Plugins) -> NDArray[Any]:
        return plugins.find_calibration("20x", "flat", shape=(2, 2), folder=Path("/nowhere"))

    def test_the_first_that_knows_wins_and_gets_what_it_asks_for(self) -> None:
        seen: list[object] = []

        def knows(name: str, role: str, shape: tuple[int, int], folder: Path) -> NDArray[Any]:
            seen.append((name, role, shape, folder))
            return np.ones(shape)

        def unknown(name: str) -> None:
            raise UnknownCalibrationError(name)

        plugins = Plugins(
            [
                ("a", plugin(tilecast_find_calibration=lambda: None)),
                ("b", plugin(tilecast_find_calibration=unknown)),
                ("c", plugin(tilecast_find_calibration=knows)),
                ("d", plugin(tilecast_find_calibration=fails)),
            ]
        )
        assert self.find(plugins).shape == (2, 2)
        assert seen == [("20x", "flat", (2, 2), Path("/nowhere"))]

    def test_nobody_knows(self) -> None:
        def unknown(name: str) -> None:
            raise UnknownCalibrationError(f"no {name} here; there is a 40x")

        with pytest.raises(UnknownCalibrationError, match="no 20x here; there is a 40x"):
            self.find(Plugins([("a", plugin(tilecast_find_calibration=unknown))]))
        with pytest.raises(UnknownCalibrationError, match="no flat named '20x'"):
            self.find(Plugins())

    def test_known_and_unusable_is_final(self) -> None:
        def unusable() -> None:
            raise CalibrationError("it is of last year")

        plugins = Plugins(
            [
                ("a", plugin(tilecast_find_calibration=unusable)),
                ("b", plugin(tilecast_find_calibration=lambda: np.ones((2, 2)))),
            ]
        )
        with pytest.raises(CalibrationError, match="of last year"):
            self.find(plugins)
        assert plugins.errors == {}

    def test_a_failure_is_named(self) -> None:
        plugins = Plugins([("a", plugin(tilecast_find_calibration=fails))])
        with capture_logs() as logs, pytest.raises(CalibrationError, match="the plugin a failed"):
            self.find(plugins)
        assert plugins.errors == {"a": 1}
        assert logs[0]["plugin"] == "a"


class TestCommits:
    def test_one_failing_does_not_keep_it_from_the_others(self) -> None:
        told: list[Committed] = []
        good = plugin(tilecast_committed=lambda commit: told.append(commit))
        plugins = Plugins([("a", good), ("b", plugin(tilecast_committed=fails)), ("c", plugin())])
        with capture_logs() as logs:
            plugins.tell(COMMIT)
            plugins.tell(COMMIT)
        assert told == [COMMIT, COMMIT]
        assert plugins.errors == {"b": 2}
        assert [entry["plugin"] for entry in logs] == ["b", "b"]

    def test_a_slow_plugin_slows_nobody_and_misses_some(self) -> None:
        entered, go_on, told = threading.Event(), threading.Event(), []

        def slow(commit: Committed) -> None:
            entered.set()
            go_on.wait(30)
            told.append(commit.rev)

        teller = Teller(Plugins([("slow", plugin(tilecast_committed=slow))]), max_waiting=2)
        teller.tell(COMMIT)
        assert entered.wait(30)
        with capture_logs() as logs:
            for _ in range(5):
                teller.tell(COMMIT)
        assert teller.n_missed == 3
        assert {entry["event"] for entry in logs} == {"plugin is slow and missed some news"}
        assert not teller.close(0.01)
        go_on.set()
        assert teller.close(30)
        assert len(told) == 3

    def test_without_listeners_nothing_is_queued(self) -> None:
        teller = Teller(Plugins(), max_waiting=1)
        for _ in range(5):
            teller.tell(COMMIT)
        assert teller.n_missed == 0
        assert teller.close()


class TestSources:
    def test_run_until_they_are_told_to_stop(self, tmp_path: Path) -> None:
        first = threading.Event()
        doors: list[str] = []

        class Ticker:
            name = "ticker"

            def run(self, feed: Feed, stop: threading.Event) -> None:
                doors.append(f"{feed.endpoint} {feed.instrument}")
                first.set()
                stop.wait(30)

        plugins = Plugins([("p", plugin(tilecast_message_sources=lambda: [Ticker()]))])
        threads = SourceThreads(plugins, "scope", tmp_path)
        threads.start("ipc:///door")
        assert first.wait(30)
        assert threads.running == ["source ticker"]
        assert [(one["source"], one["state"]) for one in threads.stats()] == [("ticker", "running")]
        assert threads.close(30)
        assert doors == ["ipc:///door scope"]
        assert threads.stats()[0]["state"] == "ended"

    def test_failures_are_named(self, tmp_path: Path) -> None:
        class Broken:
            name = "broken"

            def run(self, feed: Feed, stop: threading.Event) -> None:  # noqa: ARG002 - the interface
                raise OSError("the share is gone")

        plugins = Plugins(
            [
                ("a", plugin(tilecast_message_sources=fails)),
                ("b", plugin(tilecast_message_sources=lambda: [Broken()])),
                ("c", plugin(tilecast_message_sources=lambda: 3)),
            ]
        )
        with capture_logs() as logs:
            threads = SourceThreads(plugins, "scope", tmp_path)
            threads.start("ipc:///door")
            assert threads.close(30)
        assert [(one["plugin"], one["state"]) for one in threads.stats()] == [
            ("b", "failed: OSError: the share is gone")
        ]
        assert plugins.errors == {"a": 1, "b": 1, "c": 1}
        over = next(entry for entry in logs if "source" in entry)
        assert (over["plugin"], over["source"]) == ("b", "broken")

    def test_one_that_fails_is_started_again_up_to_a_limit(self, tmp_path: Path) -> None:
        class Broken:
            name = "broken"
            n_runs = 0

            def run(self, feed: Feed, stop: threading.Event) -> None:  # noqa: ARG002 - the interface
                Broken.n_runs += 1
                raise OSError("the share is gone")

        plugins = Plugins([("b", plugin(tilecast_message_sources=lambda: [Broken()]))], max_failures=4)
        with capture_logs() as logs:
            threads = SourceThreads(plugins, "scope", tmp_path, wait_s=0.01)
            threads.start("ipc:///door")
            threads._sources[0].thread.join(30)
        assert threads.running == []
        assert Broken.n_runs == 4
        again = [entry["wait_s"] for entry in logs if entry["event"] == "message source failed; it is started again"]
        assert again == [0.01, 0.02, 0.04]
        assert logs[-1]["event"] == "message source failed and is over"
        assert (plugins.errors, plugins.disabled) == ({"b": 4}, {})
        assert threads.stats()[0]["n_failures"] == 4

    def test_one_that_recovers_goes_on_with_a_new_publisher(self, tmp_path: Path) -> None:
        ran = threading.Event()

        class Shaky:
            name = "shaky"

            def run(self, feed: Feed, stop: threading.Event) -> None:
                marker = feed.folder / "was here"
                if not marker.exists():
                    marker.touch()
                    raise OSError("once")
                feed.tell(n_taken=3, last="a.tif")
                ran.set()
                stop.wait(30)

        plugins = Plugins([("s", plugin(tilecast_message_sources=lambda: [Shaky()]))])
        with capture_logs():
            threads = SourceThreads(plugins, "scope", tmp_path, wait_s=0.01)
            threads.start("ipc:///door")
            assert ran.wait(30)
            told = threads.stats()[0]
            assert threads.close(30)
        assert (told["state"], told["n_failures"], told["again_in_s"]) == ("running", 1, None)
        assert told["told"] == {"n_taken": 3, "last": "a.tif"}
        assert (tmp_path / ".plugins" / "s" / "was here").exists()


class TestHanging:
    def test_nobody_waits_longer_than_the_limit_nor_twice(self) -> None:
        go_on = threading.Event()
        plugins = Plugins(
            [("slow", plugin(tilecast_find_calibration=lambda: go_on.wait(30) and None))],
            timeout_s=0.05,
            max_failures=3,
        )

        def find() -> NDArray[Any]:
            return plugins.find_calibration("20x", "flat", shape=(2, 2), folder=Path("/nowhere"))

        with capture_logs() as logs:
            with pytest.raises(CalibrationError, match=r"the plugin slow failed .* did not return within 0\.05 s"):
                find()
            assert plugins.hanging() == {"slow": "tilecast_find_calibration"}
            for _ in range(2):
                with pytest.raises(CalibrationError, match="has not come back"):
                    find()
            with pytest.raises(UnknownCalibrationError, match="slow failed too often"):
                find()
        assert plugins.errors == {"slow": 3}
        assert "3 times in a row in tilecast_find_calibration" in plugins.disabled["slow"]
        assert [entry["event"] for entry in logs] == ["plugin failed"] * 3 + ["plugin disabled"]
        go_on.set()

    def test_one_that_comes_back_is_called_again(self) -> None:
        go_on, back = threading.Event(), threading.Event()

        def slow() -> NDArray[Any]:
            go_on.wait(30)
            back.set()
            return np.ones((2, 2))

        plugins = Plugins([("slow", plugin(tilecast_find_calibration=slow))], timeout_s=0.05)
        with capture_logs(), pytest.raises(CalibrationError):
            plugins.find_calibration("20x", "flat", shape=(2, 2), folder=Path("/nowhere"))
        go_on.set()
        assert back.wait(30)
        while plugins.hanging():
            pass
        assert plugins.find_calibration("20x", "flat", shape=(2, 2), folder=Path("/nowhere")).all()
        assert plugins.disabled == {}

    def test_the_watch_finds_who_hangs_in_a_commit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now_s = [0.0]
        clock = SimpleNamespace(**(vars(time) | {"monotonic": lambda: now_s[0]}))
        monkeypatch.setattr("tilecast.plugins.time", clock)
        entered, go_on, told = threading.Event(), threading.Event(), threading.Event()

        def hangs() -> None:
            entered.set()
            go_on.wait(30)

        plugins = Plugins(
            [
                ("hangs", plugin(tilecast_committed=hangs)),
                ("good", plugin(tilecast_committed=lambda commit: commit.rev == 2 and told.set())),
            ],
            timeout_s=1.0,
            max_failures=2,
        )
        teller = Teller(plugins, max_waiting=2)
        with capture_logs() as logs:
            for rev in (1, 2):
                teller.tell(replace(COMMIT, rev=rev))
            assert entered.wait(30)
            assert told.wait(30), "the others are told all the same"
            for now_s[0], n_timeouts in ((0.9, 0), (1.0, 1), (1.9, 1), (2.0, 2)):
                plugins.watch()
                assert plugins.errors.get("hangs", 0) == n_timeouts
                assert ("hangs" in plugins.disabled) == (n_timeouts == 2)
        assert plugins.errors == {"hangs": 2}
        assert logs[-1]["event"] == "plugin disabled"
        assert teller.close(30), "nobody waits for who was given up"
        go_on.set()

    def test_a_pause_of_the_machine_counts_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However many timeouts it lasted; only whole timeouts of a machine that runs are the plugin's."""
        entered, go_on = threading.Event(), threading.Event()
        plugins = Plugins(
            [("hangs", plugin(tilecast_committed=lambda: (entered.set(), go_on.wait(30))))],
            timeout_s=10,
            max_failures=3,
        )
        teller = Teller(plugins)
        teller.tell(COMMIT)
        assert entered.wait(30)
        now_s = time.monotonic()
        with capture_logs():
            for after_s, counted in ((9, 0), (65, 1), (74, 1), (75.5, 2), (76, 2), (90, 3)):
                monkeypatch.setattr("tilecast.plugins.time.monotonic", lambda after_s=after_s: now_s + after_s)
                plugins.watch()
                assert plugins.errors.get("hangs", 0) == counted, after_s
        monkeypatch.undo()
        assert "hangs" in plugins.disabled
        go_on.set()

    def test_commits_with_many_tiles_do_not_pile_up(self) -> None:
        entered, go_on = threading.Event(), threading.Event()
        teller = Teller(Plugins([("p", plugin(tilecast_committed=lambda: (entered.set(), go_on.wait(30))))]))
        large = replace(COMMIT, tiles=COMMIT.tiles * 150_000)
        teller.tell(large)
        assert entered.wait(30)
        with capture_logs():
            for _ in range(4):
                teller.tell(large)
        assert teller.n_missed == 2
        go_on.set()
        assert teller.close(30)


class TestDisabling:
    def test_after_so_many_failures_in_a_row(self) -> None:
        outcomes = iter([True, True, False, True, True, True, True])

        def sometimes() -> None:
            if next(outcomes):
                raise ZeroDivisionError

        plugins = Plugins([("p", plugin(tilecast_committed=sometimes))], max_failures=3)
        with capture_logs() as logs:
            for _ in range(7):
                plugins.tell(COMMIT)
        assert plugins.errors == {"p": 5}
        assert next(outcomes) is True, "it was not called any more"
        assert [entry["event"] for entry in logs].count("plugin disabled") == 1

    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError])
    def test_nothing_that_it_raises_gets_out(self, error: type[BaseException]) -> None:
        class Mute(error):  # type: ignore[misc, valid-type]
            def __str__(self) -> str:
                raise ZeroDivisionError

        def quits() -> None:
            raise Mute

        plugins = Plugins([("p", plugin(tilecast_committed=quits, tilecast_find_calibration=quits))])
        with capture_logs():
            plugins.tell(COMMIT)
            with pytest.raises(CalibrationError, match="the plugin p failed"):
                plugins.find_calibration("20x", "flat", shape=(2, 2), folder=Path("/nowhere"))
        assert plugins.errors == {"p": 2}

    @pytest.mark.parametrize("image", ["rubbish", np.zeros((2, 2), object), np.zeros((2, 2), complex), 3])
    def test_what_is_no_image(self, image: object) -> None:
        plugins = Plugins([("p", plugin(tilecast_find_calibration=lambda: image))])
        with capture_logs(), pytest.raises(CalibrationError, match=r"the plugin p failed .* array of real numbers"):
            plugins.find_calibration("20x", "flat", shape=(2, 2), folder=Path("/nowhere"))
        assert plugins.errors == {"p": 1}

    def test_sources_without_end(self) -> None:
        class Source:
            name = "one"

            def run(self, feed: Feed, stop: threading.Event) -> None: ...

        endless = plugin(tilecast_message_sources=lambda: itertools.repeat(Source()))
        nameless = plugin(tilecast_message_sources=lambda: [object()])
        plugins = Plugins([("endless", endless), ("nameless", nameless)])
        with capture_logs():
            assert plugins.message_sources("scope") == []
        assert plugins.errors == {"endless": 1, "nameless": 1}


START = RunStart(
    run=COMMIT.run,
    name="scan",
    instrument="scope",
    stream="camera",
    shape=(4, 8),
    dtype="<u2",
    pixel_size_um=(1.0, 1.0),
    header={},
)


class TestSteps:
    def test_who_splits_comes_last_and_each_gets_its_own_options(self) -> None:
        class Shade(PluginOptions):
            level: int = option(3, "A number.")

        def splits() -> FrameStep:
            return FrameStep(views=(View(shape=(4, 4)), View(shape=(4, 4))))

        def shades(options: Shade) -> FrameStep:
            return FrameStep(settings={"level": options.level})

        guests = [("a", plugin(tilecast_run_starting=splits)), ("b", plugin(tilecast_run_starting=shades))]
        plugins = Plugins(guests, options_of=lambda name: Shade(level=7) if name == "b" else PluginOptions())
        steps = plugins.run_starting(START)
        assert [(name, dict(step.settings), len(step.views)) for name, step in steps] == [
            ("b", {"level": 7}, 0),
            ("a", {}, 2),
        ]
        with pytest.raises(StartRefusedError, match="a and c would each split the frames"):
            Plugins([guests[0], ("c", plugin(tilecast_run_starting=splits))]).run_starting(START)

    def test_one_that_refuses_has_not_failed(self) -> None:
        def refuses() -> None:
            raise StartRefusedError("the objective is not known")

        plugins = Plugins([("p", plugin(tilecast_run_starting=refuses))], max_failures=1)
        for _ in range(3):
            with pytest.raises(StartRefusedError, match="the plugin p refuses the run: the objective is not known"):
                plugins.run_starting(START)
        assert plugins.errors == {}

    @pytest.mark.parametrize(
        "step",
        [
            3,
            FrameStep(settings={"x": float("nan")}),
            FrameStep(settings={"x": object()}),
            FrameStep(arrays={"../up": np.zeros(1)}),
            FrameStep(arrays={"x": np.zeros(1, object)}),
            FrameStep(views=(View(shape=(0, 4)),)),
            FrameStep(views=(View(shape=(4, 4), channel=-1),)),
            FrameStep(views=(View(shape=(4, 4)),) * 17),
        ],
        ids=["no step", "nan", "no json", "path", "object", "nothing", "channel", "many"],
    )
    def test_what_cannot_be_frozen_refuses_the_run(self, step: object) -> None:
        plugins = Plugins([("p", plugin(tilecast_run_starting=lambda: step))])
        with capture_logs(), pytest.raises(StartRefusedError, match=r"the plugin p failed .* switch it off"):
            plugins.run_starting(START)
        assert plugins.errors == {"p": 1}

    def test_one_that_failed_too_often_still_refuses(self) -> None:
        """A run must not lack silently what it was set up for."""
        plugins = Plugins([("p", plugin(tilecast_run_starting=fails))], max_failures=1)
        with capture_logs():
            for words in ("failed when it was told", "is not called any more"):
                with pytest.raises(StartRefusedError, match=words):
                    plugins.run_starting(START)
        assert plugins.errors == {"p": 1}
        assert plugins.takes_starts

    def test_a_frame_with_which_it_fails_or_hangs(self) -> None:
        go_on = threading.Event()
        plugins = Plugins([("p", plugin())], timeout_s=0.05)
        frame = np.zeros((4, 8), np.uint16)
        with capture_logs():
            with pytest.raises(PluginFailedError, match="the plugin p failed with a frame: ZeroDivisionError"):
                plugins.images("p", fails, frame)  # type: ignore[arg-type]
            with pytest.raises(PluginFailedError, match="frames did not return within"):
                plugins.images("p", lambda _: go_on.wait(30), frame)  # type: ignore[arg-type, return-value]
        go_on.set()
        assert plugins.costs["p", "frames"].n_failures == 2
        with pytest.raises(PluginFailedError, match="the plugin gone, which cannot be used: it is not installed"):
            plugins.make_images("gone", FrameStep(), shape=(4, 8), dtype="<u2")


class TestCosts:
    def test_calls_their_time_and_what_went_wrong_last(self) -> None:
        def works() -> None:
            until = time.thread_time() + 0.02
            while time.thread_time() < until:
                pass

        plugins = Plugins([("good", plugin(tilecast_committed=works)), ("bad", plugin(tilecast_committed=fails))])
        with capture_logs() as logs:
            plugins.tell(COMMIT)
        assert not [entry for entry in logs if entry["event"] == "plugin call"]
        good, bad = plugins.costs["good", "tilecast_committed"], plugins.costs["bad", "tilecast_committed"]
        assert (good.n_calls, good.n_failures, bad.n_calls, bad.n_failures) == (1, 0, 1, 1)
        assert good.cpu_s >= 0.02
        assert good.seconds >= good.longest_s >= 0.02
        assert plugins.last_errors == {"bad": "tilecast_committed: ZeroDivisionError: a guest's mistake"}
        assert plugins.stats()["hooks"] == {"bad": ["tilecast_committed"], "good": ["tilecast_committed"]}

    def test_a_trace_tells_each_call(self) -> None:
        plugins = Plugins([("p", plugin(tilecast_run_starting=lambda: None))], trace=True)
        with capture_logs() as logs:
            plugins.run_starting(START)
        [entry] = logs
        assert (entry["event"], entry["plugin"], entry["hook"]) == ("plugin call", "p", "tilecast_run_starting")
        assert (entry["with_"], entry["then"]) == ("run=RunStart(0190a5a8)", "returned")

    def test_one_that_is_switched_off_is_not_imported(self) -> None:
        entry = EntryPoint("off", "tilecast_no_such_module", "tilecast.plugins")
        plugins = Plugins.load([entry], options_of=lambda _: PluginOptions(enabled=False))
        assert (plugins.switched_off, plugins.failed) == (["off"], {})
