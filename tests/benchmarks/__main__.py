"""All benchmarks, or those that are named, one after the other, each in a process of its own.

    uv run python tests/benchmarks                      all, as long as they take (about half an hour)
    uv run python tests/benchmarks --quick              all, just long enough to see that they work
    uv run python tests/benchmarks pzf blend            these
    uv run python tests/benchmarks --list               which there are
    uv run python tests/benchmarks growth -- --stall 10 one, with options of its own (`-- --help` lists them)

Each can also be run alone, as `uv run python tests/benchmarks/bench_pzf.py`. What they print is for people. One that
misses a target ends with status 1, and so does this command, after the others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent


class Benchmark(NamedTuple):
    """What is known of a benchmark here: what it tells, its options, also for a quick look, whether it needs a disk."""

    summary: str
    options: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    needs_disk: bool = False
    script: str = ""


# Small frames would take long to fill the budgets of memory, and growth means something only when they are full.
_SMALL = ("--shape", "128x128", "--set", "blend.budget_bytes=8MiB", "--set", "blend.queue_bytes=8MiB")

BENCHMARKS = {
    "pzf": Benchmark("the codec, beside pymecompress", quick=("--repeats", "2")),
    "blend": Benchmark("blending, rendering and all upper levels, per frame", quick=("--scans", "2", "--size", "512")),
    "reduce": Benchmark("one tile into its parent; how long kernels take to compile", quick=("--rounds", "3")),
    "join": Benchmark("frames to stage positions, and all checks of a message", quick=("--frames", "500")),
    "journal": Benchmark("appending, syncing, opening, finding", quick=("--frames", "20"), needs_disk=True),
    "durability": Benchmark(
        "what an fsync before each acknowledgement costs",
        quick=("--shape", "128x128", "--frames", "5", "--turns", "1"),
        needs_disk=True,
    ),
    "store": Benchmark(
        "commits, checkpoints",
        options=("--part", "commits"),
        quick=("--part", "commits", "--seconds", "2"),
        needs_disk=True,
    ),
    "large-store": Benchmark(
        "looking into a store of 1,000 × 1,000 tiles",
        options=("--part", "large"),
        quick=("--part", "large", "--side", "100"),
        needs_disk=True,
        script="bench_store.py",
    ),
    "import": Benchmark(
        "import tilecast_protocol",
        options=("--part", "import"),
        quick=("--part", "import", "--starts", "2"),
        script="bench_start.py",
    ),
    "start": Benchmark(
        "the daemon: from its start until it is ready",
        options=("--part", "daemon"),
        quick=("--part", "daemon", "--starts", "2"),
    ),
    "growth": Benchmark(
        "whether frame 10,000 costs what frame 500 did, and memory",
        quick=("--frames", "2000", *_SMALL),
        needs_disk=True,
    ),
    "stall": Benchmark(
        "memory while the store hangs, and afterwards",
        options=("--frames", "4000", "--stall", "10"),
        quick=("--frames", "2000", "--stall", "2", *_SMALL),
        needs_disk=True,
        script="bench_growth.py",
    ),
    "viewers": Benchmark(
        "latency without viewers, and with fifty",
        quick=("--shape", "256x256", "--fps", "20", "--seconds", "3", "--skip", "1"),
        needs_disk=True,
    ),
    "web": Benchmark(
        "tiles per second over HTTP, and what they cost a scan",
        quick=("--part", "serving", "--shape", "512x512", "--frames", "9", "--seconds", "1"),
        needs_disk=True,
    ),
    "registration": Benchmark(
        "what a shift and a finish cost",
        quick=("--size", "512", "--grid", "2", "3", "--side", "30"),
    ),
}
"""In the order in which they run."""


def command_of(name: str, folder: Path, extra: list[str], *, quick: bool) -> list[str]:
    """The command line of a benchmark; what the caller adds comes last, and wins."""
    benchmark = BENCHMARKS[name]
    script = HERE / (benchmark.script or f"bench_{name}.py")
    options = benchmark.quick if quick else benchmark.options
    disk = ["--folder", str(folder)] if benchmark.needs_disk else []
    return [sys.executable, str(script), *options, *disk, *extra]


def split_at_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What is for us, and what is for the benchmark."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def main() -> int:
    """Run them; 1 if one failed or missed a target, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="tests/benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (all); --list shows them")
    parser.add_argument("--list", action="store_true", help="show which there are")
    parser.add_argument("--quick", action="store_true", help="just long enough to see that they work")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be judged; nothing is left"
    )
    ours, extra = split_at_dashes(sys.argv[1:])
    args = parser.parse_args(ours)
    if args.list:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:12} {benchmark.summary}")
        return 0
    unknown = [name for name in args.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    names = args.names or list(BENCHMARKS)
    if extra and len(names) != 1:
        parser.error("options after -- are for one benchmark: name it")
    failed = []
    for name in names:
        command = command_of(name, args.folder, extra, quick=args.quick)
        print(f"\n== {name}: {BENCHMARKS[name].summary}", flush=True)
        began = time.monotonic()
        try:
            code = subprocess.run(command, check=False).returncode
        except KeyboardInterrupt:
            return 130
        print(f"== {name}: status {code} after {time.monotonic() - began:.0f} s", flush=True)
        if code:
            failed.append(name)
    if failed:
        print(f"\nmissed a target, or failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
