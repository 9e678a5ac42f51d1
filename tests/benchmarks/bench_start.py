"""How long does a script wait for `import tilecast_protocol`, and a person for the daemon?

Not a test: run it by hand, on the machine that is to be judged.

    uv run python tests/benchmarks/bench_start.py --starts 10

Every time is of a fresh interpreter, with the bytecode of all modules and the compiled kernels in their caches; the
first run of each does not count. (Bytecode goes into a folder of its own, which is thrown away, because some machines
keep none.) Beside it stands what nobody can save: a bare interpreter, numpy, numba. `--modules` shows the modules that
take longest: their own time, without what they import.

The targets: `import tilecast_protocol` in 0.15 s, the daemon ready in 1.5 s. The exit status is 1 if one is missed.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tilecast.process import DaemonProcess

IMPORT_TARGET_S = 0.15
READY_TARGET_S = 1.5


def median_s(name: str, run: Callable[[], float], n_runs: int, target_s: float | None = None) -> bool:
    """Print median and best of some runs after one that does not count; whether the median is within the target."""
    run()
    took_s = [run() for _ in range(n_runs)]
    median = statistics.median(took_s)
    judged = "" if target_s is None else f"   target {target_s:g} s: {'met' if median <= target_s else 'MISSED'}"
    print(f"{name:>44}: median {median:6.3f} s, best {min(took_s):6.3f}{judged}")
    return target_s is None or median <= target_s


def interpreter_s(code: str, environ: dict[str, str]) -> float:
    """A fresh interpreter that runs this, from beginning to end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **environ}, check=True)
    return time.perf_counter() - began


def statement_s(code: str, environ: dict[str, str]) -> float:
    """A statement inside a fresh interpreter."""
    timed = f"import time; began = time.perf_counter()\n{code}\nprint(time.perf_counter() - began)"
    done = subprocess.run(
        [sys.executable, "-c", timed], env={**os.environ, **environ}, check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def daemon_ready_s(folder: Path, environ: dict[str, str]) -> float:
    """From starting the process to the line of its log that says it is ready."""
    daemon = DaemonProcess(folder / "runs", environ=environ, log_file=folder / "log")
    began = time.perf_counter()
    daemon.start()
    took_s = time.perf_counter() - began
    daemon.stop()
    return took_s


def slowest_modules(folder: Path, environ: dict[str, str], n_modules: int) -> list[tuple[float, str]]:
    """(ms, name) of the modules whose own time is longest in a start of the daemon, and the sum of all."""
    log = folder / "importtime"
    DaemonProcess(folder / "runs", environ=environ | {"PYTHONPROFILEIMPORTTIME": "1"}, log_file=log).start().stop()
    own = re.findall(r"import time:\s*(\d+) \|\s*\d+ \| *(\S+)", log.read_text())
    times = sorted(((int(us) / 1e3, name) for us, name in own), reverse=True)
    return [(sum(ms for ms, _ in times), f"all {len(times)} modules"), *times[:n_modules]]


def main() -> int:
    """Measure, and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["import", "daemon", "all"], default="all", help="what to measure")
    parser.add_argument("--starts", type=int, default=7, help="how often each is measured")
    parser.add_argument("--modules", type=int, default=0, help="show so many modules that take longest to import")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environ = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}

        def statement(code: str) -> Callable[[], float]:
            return lambda: statement_s(code, environ)

        good = True
        if args.part != "daemon":
            median_s("python -c pass, the whole process", lambda: interpreter_s("pass", environ), args.starts)
            median_s("import numpy", statement("import numpy"), args.starts)
            own = "import tilecast_protocol"
            good &= median_s(own, statement(own), args.starts, IMPORT_TARGET_S)
            for what in ("Publisher", "Client"):
                code = f"from tilecast_protocol import {what}"
                median_s(code, statement(code), args.starts)
        if args.part != "import":
            median_s("import numba", statement("import numba"), args.starts)
            median_s("tilecast --help, the whole process", lambda: interpreter_s(_HELP, environ), args.starts)
            good &= median_s(
                "daemon: process started → ready", lambda: daemon_ready_s(folder, environ), args.starts, READY_TARGET_S
            )
        if args.modules:
            print(f"{'start of the daemon, with timed imports':>44}:")
            for ms, module in slowest_modules(folder, environ, args.modules):
                print(f"{module:>44}: {ms:7.1f} ms")
    return 0 if good else 1


_HELP = """
import contextlib, io
from tilecast.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["--help"])
"""

if __name__ == "__main__":
    sys.exit(main())
