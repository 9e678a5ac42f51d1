"""How many tiles per second does `tilecast web` serve, and does that cost the scan anything?

Not a test: run it by hand, on the machine and the disk that are to be judged.

    uv run python tests/benchmarks/bench_web.py --folder /data
    uv run python tests/benchmarks/bench_web.py --folder /data --part ingest --fps 8

A real daemon takes in a scan of Poisson noise and then idles; a real gateway serves its tiles; a load generator, a
process of its own that keeps some connections busy, asks for them in random order. Everything shares this machine's
cores, so the processor time of gateway and load generator are told apart.

*Rendered*: 256² JPEG. `warm`: the store is in the page cache and half the tiles or so are decoded already; `decoding`:
the gateway keeps no decoded tiles. *Stored*: PZF as it lies in the store. *Unchanged*: what is answered 304.
*Cold*: a gateway that has just started, a store whose pages were dropped, four connections, each tile once.
*Ingest*: frames at `--fps` (half the sustained maximum is meant) with nobody looking, and with 200 rendered tiles per
second.

The targets, on two cores: 800 rendered tiles/s warm, 1,500 stored/s, cold p99 50 ms; 5 % of the acknowledged rate and
no frame lost. The exit status is 1 if one is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import psutil
from daemon_load import (
    MIB,
    Progress,
    add_common_options,
    cpu_s,
    make_publisher,
    send_paced,
    start_daemon,
    start_run,
)

from tilecast.bench.scan import FramePool, Scan
from tilecast.process import DaemonProcess

RENDERED_TARGET = 800.0
STORED_TARGET = 1500.0
COLD_TARGET_MS = 50.0
INGEST_TARGET = 0.05
VIEWED_TILES_S = 200.0


@dataclass(slots=True)
class Load:
    """What a load generator saw: answers by status, seconds, milliseconds of each, bytes, its own processor time."""

    statuses: Counter[int]
    seconds: float
    took_ms: list[float]
    nbytes: int
    cpu_s: float

    @property
    def per_s(self) -> float:
        """Answers per second."""
        return len(self.took_ms) / self.seconds

    def percentile_ms(self, part: float) -> float:
        """How long answers took."""
        ordered = sorted(self.took_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


class _Connection(asyncio.Protocol):
    """One connection that is kept alive and has one question at a time; parses no more than it must."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, int]] | None = None
        self._buffer = bytearray()
        self._whole = 0
        self._status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, int]]:
        """Send it; the answer's status and bytes."""
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._whole:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            self._status = int(head[9:12])
            at = head.find(b"content-length: ")
            length = 0 if at < 0 or self._status == 304 else int(head[at + 16 : at + 30].split(b"\r", 1)[0])
            self._whole = end + 4 + length
        if len(self._buffer) >= self._whole:
            nbytes = self._whole
            self._buffer.clear()
            self._whole = 0
            assert self.answer is not None
            self.answer.set_result((self._status, nbytes))

    def connection_lost(self, error: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error or ConnectionError("the gateway closed the connection"))


async def _load(
    url: str, requests: Sequence[tuple[str, str]], n: int, seconds: float | None, per_s: float | None
) -> Load:
    """Ask for some time, or each once, over `n` connections; `per_s` paces all of them together."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    load = Load(Counter(), 0.0, [], 0, 0.0)
    began, began_cpu = time.perf_counter(), time.process_time()
    asked = iter(range(10**9 if seconds is not None else len(requests)))

    async def client() -> None:
        _, connection = await loop.create_connection(_Connection, parts.hostname, parts.port)
        for number in asked:
            if seconds is not None and time.perf_counter() - began > seconds:
                break
            if per_s is not None:
                await asyncio.sleep(max(0.0, began + number / per_s - time.perf_counter()))
            path, extra = requests[number % len(requests)]
            request = f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{extra}\r\n".encode()
            asked_at = time.perf_counter()
            status, nbytes = await connection.ask(request)
            load.took_ms.append((time.perf_counter() - asked_at) * 1e3)
            load.statuses[status] += 1
            load.nbytes += nbytes
        connection.transport.close()

    await asyncio.gather(*(client() for _ in range(n)))
    load.seconds = time.perf_counter() - began
    load.cpu_s = time.process_time() - began_cpu
    return load


def _generate(connection: Any, *arguments: Any) -> None:
    """The load generator's process."""
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()
    connection.send("ready")  # Python has started, and what follows is the load alone
    connection.send(asyncio.run(_load(*arguments)))


def generate(
    url: str, requests: Sequence[tuple[str, str]], n: int, seconds: float | None = None, per_s: float | None = None
) -> Load:
    """Put load on the gateway from another process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_generate, args=(theirs, url, requests, n, seconds, per_s))
    process.start()
    theirs.close()
    try:
        ours.recv()
        load: Load = ours.recv()
    finally:
        process.join()
    return load


@contextlib.contextmanager
def gateway(daemon: DaemonProcess, store: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """`tilecast web` as a process of its own: its URL, and it."""
    command = [sys.executable, "-m", "tilecast", "web", "--store", str(store), "--listen", "127.0.0.1:0"]
    command += ["--daemon", daemon.endpoints["notify"], daemon.endpoints["query"], *options]
    web = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    try:
        assert web.stdout is not None
        yield web.stdout.readline().split()[-1].rstrip("/"), psutil.Process(web.pid)
    finally:
        web.terminate()
        web.wait()


def scan_of(args: argparse.Namespace, n_frames: int) -> tuple[Scan, FramePool]:
    """A square scan at 10 % overlap, and its frames."""
    columns = max(1, round(math.sqrt(n_frames)))
    scan = Scan(shape=args.shape, dtype=args.dtype, overlap=0.1, n_frames=n_frames, columns=columns)
    return scan, FramePool(scan)


def cpu_of_all(process: psutil.Process) -> float:
    """Processor time of a gateway and its workers."""
    return sum(cpu_s(one) for one in [process, *process.children(recursive=True)])


def ask(url: str) -> Any:
    """A JSON answer."""
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def tile_paths(url: str, run: str, fmt: str, query: str = "") -> list[str]:
    """Paths of all tiles of level 0."""
    info = ask(f"{url}/api/v1/runs/{run}")
    row0, col0, row1, col1 = (edge // info["tile_size"] for edge in info["bbox"])
    base = f"/api/v1/runs/{run}/tiles/{info['epoch']}/0/0/0/0"
    return [f"{base}/{row}/{col}.{fmt}{query}" for row in range(row0, row1 + 1) for col in range(col0, col1 + 1)]


def shuffled(paths: Sequence[str], seed: int = 1) -> list[tuple[str, str]]:
    """Requests for these, in random order."""
    order = [(path, "") for path in paths]
    random.Random(seed).shuffle(order)
    return order


def existing(url: str, paths: Sequence[str]) -> list[str]:
    """Those that are there; the box's edge tiles may not be."""
    found = []
    for path in paths:
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(url + path):
            found.append(path)
    return found


def told(name: str, load: Load, gateway_s: float, target: float | None = None) -> bool:
    """Print a measurement; whether its target was met."""
    good = target is None or load.per_s >= target
    judged = "" if target is None else f"   target {target:g}/s: {'met' if good else 'MISSED'}"
    n = len(load.took_ms)
    print(
        f"{name:>22}: {load.per_s:7.0f}/s, "
        f"p50 {load.percentile_ms(0.5):.1f} ms, p99 {load.percentile_ms(0.99):.1f} ms, "
        f"{load.nbytes / n / 1e3:.1f} kB each; gateway {gateway_s / n * 1e3:.2f} ms CPU each "
        f"({gateway_s / load.seconds:.2f} cores), load generator {load.cpu_s / n * 1e3:.2f} ms "
        f"({load.cpu_s / load.seconds:.2f} cores); {dict(load.statuses)}{judged}",
        flush=True,
    )
    return good


def measure(
    name: str,
    url: str,
    process: psutil.Process,
    requests: Sequence[tuple[str, str]],
    n: int,
    seconds: float,
    target: float | None = None,
) -> bool:
    """Load for some seconds, and print what was seen."""
    generate(url, requests, n, 1.0)
    began = cpu_of_all(process)
    load = generate(url, requests, n, seconds)
    return told(name, load, cpu_of_all(process) - began, target)


def drop_pages(folder: Path) -> None:
    """Let the kernel forget what it has of all files of a store."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def bench_serving(args: argparse.Namespace, folder: Path) -> bool:
    """Rates and waits of a gateway beside a daemon that idles."""
    scan, pool = scan_of(args, args.frames)
    store = folder / "runs"
    good = True
    with start_daemon(folder) as daemon, make_publisher(daemon) as publisher:
        run = start_run(publisher, scan, "web")
        progress = Progress(daemon, run)
        send_paced(publisher, scan, pool, range(args.frames))
        progress.wait_committed(args.frames)
        progress.close()
        workers = ("--workers", str(args.workers), "--threads", str(args.threads))
        with gateway(daemon, store, *workers) as (url, process):
            jpgs = existing(url, tile_paths(url, run, "jpg"))
            print(f"{len(jpgs)} tiles of level 0; {args.workers} workers of {args.threads} threads", flush=True)
            warm = shuffled(jpgs)
            good &= measure("rendered, warm", url, process, warm, args.connections, args.seconds, RENDERED_TARGET)
            colored = [(path + "?cmap=viridis", "") for path, _ in warm]
            measure("rendered, colour map", url, process, colored, args.connections, args.seconds)
            pzfs = shuffled([path.replace(".jpg", ".pzf") for path in jpgs])
            good &= measure("stored", url, process, pzfs, args.connections, args.seconds, STORED_TARGET)
            pngs = [(path.replace(".jpg", ".png"), "") for path, _ in warm]
            measure("rendered, PNG", url, process, pngs, args.connections, args.seconds)
            known = []
            for path, _ in warm[:200]:
                with urllib.request.urlopen(url + path) as answer:
                    known.append((path, f"If-None-Match: {answer.headers['ETag']}\r\n"))
            measure("unchanged", url, process, known, args.connections, args.seconds)
            burst = generate(url, warm[:100], 100)
            told("burst, 100 connections", burst, 0.0)
            good &= burst.statuses == Counter({200: 100})
        with gateway(daemon, store, *workers, "--cache-mib", "0") as (url, process):
            measure("rendered, decoding", url, process, warm, args.connections, args.seconds)
        daemon.stop()
        drop_pages(store)
        with gateway(daemon, store, *workers) as (url, process):
            ask(f"{url}/api/v1/runs/{run}")
            drop_pages(store)
            began = cpu_of_all(process)
            load = generate(url, shuffled(jpgs, 2)[: args.cold_tiles], 4)
            told("cold", load, cpu_of_all(process) - began)
            p99 = load.percentile_ms(0.99)
            met = p99 <= COLD_TARGET_MS
            print(f"{'cold p99':>22}: {p99:.1f} ms   target {COLD_TARGET_MS:g} ms: {'met' if met else 'MISSED'}")
            good &= met
    return good


def bench_ingest(args: argparse.Namespace, folder: Path) -> bool:
    """Acknowledged frames per second at a fixed rate, without and with viewers."""
    rates, lost = [], 0
    for looked_at in (False, True):
        n_first = max(4, round(args.fps * 2))
        scan, pool = scan_of(args, n_first + round(args.fps * args.seconds))
        home = folder / ("viewed" if looked_at else "alone")
        with start_daemon(home) as daemon, make_publisher(daemon) as publisher:
            run = start_run(publisher, scan, "web")
            progress = Progress(daemon, run)
            send_paced(publisher, scan, pool, range(n_first), fps=args.fps)
            progress.wait_committed(n_first)
            frames = range(n_first, scan.n_frames)
            with gateway(daemon, home / "runs") as (url, process), contextlib.ExitStack() as stack:
                requests = shuffled(existing(url, tile_paths(url, run, "jpg")))
                viewers = None
                if looked_at:
                    context = multiprocessing.get_context("spawn")
                    ours, theirs = context.Pipe()
                    viewers = context.Process(
                        target=_generate, args=(theirs, url, requests, 8, args.seconds, VIEWED_TILES_S)
                    )
                    viewers.start()
                    stack.callback(viewers.join)
                    ours.recv()
                began, began_cpu = time.monotonic(), cpu_of_all(process)
                send_paced(publisher, scan, pool, frames, fps=args.fps)
                publisher.flush()
                took_s = time.monotonic() - began
                rates.append(len(frames) / took_s)
                print(f"{'looked at' if looked_at else 'alone':>22}: {rates[-1]:.2f} frames/s acknowledged", flush=True)
                if viewers is not None:
                    told("rendered meanwhile", ours.recv(), cpu_of_all(process) - began_cpu)
            progress.wait_committed(frames.stop)
            publisher.end()
            lost += progress.stats()["ingest"]["held"]["n_lost"]
            progress.close()
    cost = 1 - rates[1] / rates[0]
    good = cost < INGEST_TARGET and not lost
    print(f"{'cost':>22}: {cost:.1%}, {lost} frames lost   target {INGEST_TARGET:.0%}: {'met' if good else 'MISSED'}")
    return good


def main() -> int:
    """Measure, and print; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_common_options(parser, shape="2048x2048")
    parser.add_argument("--part", choices=["serving", "ingest", "all"], default="all", help="what to measure")
    parser.add_argument("--frames", type=int, default=16, help="of the scan that is served (16)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (5)")
    parser.add_argument("--connections", type=int, default=16, help="that ask at once (16)")
    parser.add_argument("--workers", type=int, default=2, help="processes of the gateway (2)")
    parser.add_argument("--threads", type=int, default=2, help="of each (2)")
    parser.add_argument("--cold-tiles", type=int, default=400, help="that are asked for when all is cold (400)")
    parser.add_argument("--fps", type=float, default=8.0, help="frames per second of the part ingest (8)")
    args = parser.parse_args()
    print(f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / MIB / 1024:.0f} GiB")
    good = True
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        if args.part != "ingest":
            good &= bench_serving(args, Path(name) / "serving")
        if args.part != "serving":
            good &= bench_ingest(args, Path(name) / "ingest")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
