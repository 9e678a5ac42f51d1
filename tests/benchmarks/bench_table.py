"""The table of measured figures: one command that measures all of it, and prints it as markdown.

Not a test: run it by hand, with nothing else going on, on the machine and the disk that are to be judged.

    uv run python tests/benchmarks/bench_table.py --folder /data --minutes 30 --output table.md
    uv run python tests/benchmarks/bench_table.py --quick          just long enough to see that it works

Each row is what one of the other commands says: `tilecast bench --json` for the whole daemon, and the benchmarks beside
this file for the rest. First each is measured once; then those of `tilecast bench`, which vary most, again and again,
until each has its `--runs` or the time is over. A row has the median of its runs, and says of how many. `--output` is
written anew after each run, so what was measured is there even if the command is ended. It ends with status 1 if a
target was missed, or something failed.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
#: What a benchmark prints of something that has a target.
_JUDGED = re.compile(r"^\s*(?P<what>\S.*?): (?P<text>.+?)\s+target (?P<target>.+?): (?P<how>met|MISSED)")
_MOST_S = 900.0

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A line of the table, of something that `tilecast bench` measures.

    Attributes
    ----------
    what : str
    value : callable
        Takes the figures of one run, and gives the number that is judged.
    text : callable
        Takes the figures of one run, and gives what else is told of it.
    target : float or None
    at_least : bool
        Whether the value is to be the target or more; else, or less.
    unit : str
    """

    what: str
    value: Callable[[Figures], float]
    unit: str
    target: float | None = None
    at_least: bool = False
    text: Callable[[Figures], str] = lambda _figures: ""

    def met(self, value: float) -> bool | None:
        """Whether a value is good enough; None if there is no target."""
        if self.target is None:
            return None
        return value >= self.target if self.at_least else value <= self.target


@dataclass
class Measurement:
    """Something that one process measures: with `tilecast bench`, or with a script.

    Attributes
    ----------
    name : str
    options : callable
        Takes the sustained maximum, frames/s, and gives the command line behind `tilecast bench`.
    rows : sequence of Row
    script : tuple of str
        A benchmark beside this file and its options, instead.
    runs : list
        What the runs have given so far: figures, or judged lines.
    """

    name: str
    options: Callable[[float], list[str]] = lambda _fps: []
    rows: Sequence[Row] = ()
    script: tuple[str, ...] = ()
    runs: list[Any] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def _latency(share: str) -> Callable[[Figures], float]:
    return lambda figures: float(figures["latency_ms"][share])


def _rate(figures: Figures) -> str:
    latency = figures["latency_ms"]
    return (
        f"{figures['sustained_fps']:.1f} frames/s, p50 {latency['p50']:.0f} ms, p99 {latency['p99']:.0f} ms, "
        f"{figures['cpu_ms_per_frame']:.1f} ms of processor time per frame"
    )


def _stages(figures: Figures) -> str:
    stages = sorted(figures["cpu_ms_by_stage"].items(), key=lambda item: -item[1])
    copies = figures["ratios"]["cpu_per_memcpy"]
    return f"{copies:.0f} memory copies of the frame; " + ", ".join(f"{name} {ms:.1f}" for name, ms in stages)


def _disk(figures: Figures) -> str:
    return (
        f"{figures['sustained_mb_s']:.0f} MB/s; {figures['used']['disk']:.0%} of the disk's sequential rate; bound: "
        f"{figures['bottleneck']}; other programs used {figures['used']['cores_others']:.0%} of the processor"
    )


def measurements(n_frames: int, n_paced: int, *, quick: bool) -> list[Measurement]:
    """All there is to measure, in the order in which it is done."""
    frame = "512x512" if quick else "2048x2048"

    def bench(*options: str, shape: str = frame, dtype: str = "u2", frames: int) -> Callable[[float], list[str]]:
        return lambda _fps: ["--shape", shape, "--dtype", dtype, "--frames", str(frames), *options]

    def paced(fps: float) -> Measurement:
        return Measurement(
            f"at {fps:g} frames/s",
            bench("--fps", f"{fps:g}", frames=n_paced),
            (
                Row(f"latency at {fps:g} frames/s, p50", _latency("p50"), "ms", 40, text=_rate),
                Row(f"latency at {fps:g} frames/s, p99", _latency("p99"), "ms", 100),
            ),
        )

    def at_share(fps: float) -> list[str]:
        return bench("--fps", f"{0.8 * fps:.2f}", frames=n_paced)(fps)

    def fps_row(what: str, target: float | None = None) -> Row:
        return Row(what, lambda figures: float(figures["sustained_fps"]), "frames/s", target, at_least=True, text=_rate)

    small = [
        "--frames",
        "2000",
        "--shape",
        "128x128",
        "--set",
        "blend.budget_bytes=8MiB",
        "--set",
        "blend.queue_bytes=8MiB",
    ]
    growth, stall = (small, [*small, "--stall", "2"]) if quick else ([], ["--frames", "4000", "--stall", "10"])
    viewers = ["--shape", "256x256", "--fps", "20", "--seconds", "3", "--skip", "1"] if quick else []
    starts, side = (["--starts", "2"], ["--side", "100"]) if quick else ([], [])
    return [
        Measurement(
            "sustained",
            bench("--max", frames=n_frames),
            (
                Row("sustained", lambda figures: float(figures["sustained_fps"]), "frames/s", 50, True, _disk),
                Row("CPU per frame", lambda figures: float(figures["cpu_ms_per_frame"]), "ms", 30, text=_stages),
                Row("memory at most", lambda figures: float(figures["rss_mib"]), "MiB", 1024),
            ),
        ),
        paced(10),
        paced(20),
        Measurement(
            "at 80 % of the maximum",
            at_share,
            (Row("latency at 80 % of the sustained maximum, p99", _latency("p99"), "ms", 400, text=_rate),),
        ),
        Measurement("import", script=("bench_start.py", "--part", "import", *starts)),
        Measurement("start", script=("bench_start.py", "--part", "daemon", *starts)),
        Measurement("viewers", script=("bench_viewers.py", *viewers)),
        Measurement("growth", script=("bench_growth.py", *growth)),
        Measurement(
            "8-bit camera",
            bench("--fps", "100", shape="128x128" if quick else "1024x1024", dtype="u1", frames=n_paced),
            (fps_row("1024² u1 sent at 100 frames/s", 99),),
        ),
        Measurement(
            "many tiny frames",
            bench("--fps", "500", shape="64x64" if quick else "256x256", frames=n_paced),
            (fps_row("256² u2 sent at 500 frames/s", 495),),
        ),
        Measurement(
            "durability os",
            bench("--max", "--set", "journal.durability=os", frames=min(500, n_frames)),
            (fps_row('sustained, acknowledged before fsync (`durability = "os"`)'),),
        ),
        Measurement("stall", script=("bench_growth.py", *stall)),
        Measurement("large store", script=("bench_store.py", "--part", "large", *side)),
    ]


def maximum(done: Sequence[Measurement]) -> float:
    """The sustained rate so far, frames/s."""
    runs = done[0].runs
    return statistics.median(figures["sustained_fps"] for figures in runs) if runs else 10.0


def run_once(measurement: Measurement, fps: float, folder: Path, most_s: float) -> None:
    """Measure once; what comes is added to it."""
    with tempfile.TemporaryDirectory() as name:
        json_file = Path(name) / "figures.json"
        if measurement.script:
            script, *options = measurement.script
            on_disk = [] if script == "bench_start.py" else ["--folder", str(folder)]
            command = [sys.executable, str(HERE / script), *options, *on_disk]
        else:
            options = [*measurement.options(fps), "--folder", str(folder), "--json", str(json_file)]
            command = [sys.executable, "-m", "tilecast", "bench", *options]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=most_s, check=False)
        except subprocess.TimeoutExpired:
            measurement.failures.append(f"not done after {most_s:.0f} s")
            return
        if measurement.script:
            lines = ended.stdout.splitlines()
            judged = [found for line in lines if (found := _JUDGED.match(line))]
            if judged:
                measurement.runs.append((judged, [line.strip() for line in lines if "viewers:" in line]))
        elif json_file.exists():
            measurement.runs.append(json.loads(json_file.read_text()))
        if not (judged if measurement.script else json_file.exists()):
            last = (ended.stderr or ended.stdout).strip().splitlines() or ["nothing was printed"]
            measurement.failures.append(f"status {ended.returncode}: {last[-1]}")


def _verdict(met: bool | None) -> str:
    return {None: "", True: "met", False: "MISSED"}[met]


def lines_of(measurement: Measurement) -> list[tuple[str, str, str, str, int]]:
    """(what, measured, target, verdict, number of runs) of each row."""
    found = []
    if measurement.runs and measurement.script:
        judged, notes = measurement.runs[-1]
        for match in judged:
            text = match["text"].strip()
            found.append((f"{measurement.name}: {match['what']}", text, match["target"], match["how"], 1))
        found += [(measurement.name, note, "", "", 1) for note in notes]
    elif measurement.runs:
        for row in measurement.rows:
            values = [row.value(figures) for figures in measurement.runs]
            value = statistics.median(values)
            typical = min(measurement.runs, key=lambda figures: abs(row.value(figures) - value))
            text = f"{value:.1f} {row.unit}"
            if len(values) > 1:
                text += f" ({min(values):.1f} to {max(values):.1f})"
            if more := row.text(typical):
                text += f"; {more}"
            sign = "≥" if row.at_least else "≤"
            target = "" if row.target is None else f"{sign} {row.target:g} {row.unit}"
            found.append((row.what, text, target, _verdict(row.met(value)), len(values)))
    found += [(measurement.name, f"failed: {why}", "", "FAILED", 0) for why in measurement.failures]
    if not found:
        found.append((measurement.name, "not measured: no time was left", "", "", 0))
    return found


def table(done: Sequence[Measurement]) -> str:
    """All rows as markdown, with the machine they were measured on."""
    rows = [row for measurement in done for row in lines_of(measurement)]
    head = ["| what | measured | target | | runs |", "|---|---|---|---|---|"]
    text = "\n".join(head + ["| " + " | ".join(map(str, row)) + " |" for row in rows])
    of_bench = [figures for measurement in done if not measurement.script for figures in measurement.runs]
    if of_bench:
        figures = of_bench[0]
        machine, limits = figures["machine"], figures["limits"]
        text += (
            f"\n\n{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB; store on "
            f"{figures['file_system']}; one copy of a frame {limits['memcpy_ms']:.2f} ms, PZF encoding "
            f"{limits['pzf_encode_gb_s']:.2f} GB/s, sequential writes {limits['disk_write_mb_s']:.0f} MB/s; "
            f"tilecast {figures['version']}, {time.strftime('%Y-%m-%d')}"
        )
    return text + "\n"


def main() -> int:
    """Measure, and print; 1 if a target was missed or something failed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be judged")
    parser.add_argument("--runs", type=int, default=3, help="runs of `tilecast bench` for each of its rows")
    parser.add_argument("--minutes", type=float, default=30.0, help="nothing is begun after this")
    parser.add_argument("--frames", type=int, default=1500, help="frames of a run that finds the maximum")
    parser.add_argument("--paced", type=int, default=1000, help="frames of a run by the clock")
    parser.add_argument("--only", metavar="NAME", action="append", help="only this measurement; may be repeated")
    parser.add_argument("--quick", action="store_true", help="small frames, few of them: the figures mean nothing")
    parser.add_argument("--output", type=Path, help="write the table here, too, after each run")
    args = parser.parse_args()
    n_frames, n_paced = (60, 40) if args.quick else (args.frames, args.paced)
    every = measurements(n_frames, n_paced, quick=args.quick)
    chosen = [each for each in every if not args.only or each.name in args.only]
    if args.only and not set(args.only) <= {each.name for each in every}:
        parser.error(f"there are {', '.join(each.name for each in every)}")
    until_s = time.monotonic() + 60 * args.minutes
    runs = 1 if args.quick else args.runs
    try:
        for number in range(runs):
            for each in chosen:
                left_s = until_s - time.monotonic()
                if left_s <= 0 or (number and (each.script or each.failures)):
                    continue
                print(f"{time.strftime('%H:%M:%S')} {each.name}, run {number + 1} …", file=sys.stderr, flush=True)
                run_once(each, maximum(every), args.folder, min(_MOST_S, left_s + 60))
                if args.output:
                    args.output.write_text(table(chosen))
    except KeyboardInterrupt:
        return 130
    print(table(chosen))
    bad = [row for each in chosen for row in lines_of(each) if row[3] in ("MISSED", "FAILED")]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
