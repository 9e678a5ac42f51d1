"""How fast the journal is: appending through the page cache and past it, opening, finding images.

Not a test: run it by hand, `python tests/benchmarks/bench_journal.py --folder DISK_TO_MEASURE`. One process, so the
figures share a machine and a moment; medians where a figure is a latency. CPU is ms per frame, of the appending thread
and of the whole process. It leaves nothing behind.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilecast_protocol.journal import Journal, RecordKind
from tilecast_protocol.journal_direct import ALIGNMENT

RUN = "7b0e8a52-5b57-4c38-9f1e-2d0b4f9b6a11"
TOPIC = "tc1/scope/cam/image"
HEADER = bytes(250)


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def in_memory_at_page(nbytes: int, beside: int = 0) -> NDArray[np.uint8]:
    """Noise that no disk compresses, `beside` bytes behind a page boundary."""
    memory = np.random.default_rng(0).integers(0, 256, nbytes + 2 * ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT + beside
    return memory[start : start + nbytes]


def measure_plain(folder: Path, n_frames: int, frame_bytes: int) -> None:
    """The same bytes through the page cache and past it, with one fsync at the end: what the disk can do."""
    payload = in_memory_at_page(-(-frame_bytes // ALIGNMENT) * ALIGNMENT)
    for name, flag in (("page cache", 0), ("O_DIRECT", os.O_DIRECT)):
        path = folder / "plain"
        cpu, begin = time.process_time(), time.perf_counter()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | flag)
        for n in range(n_frames):
            os.pwrite(fd, payload.data, n * payload.size)
        os.fdatasync(fd)
        os.close(fd)
        wall_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu
        path.unlink()
        rate = n_frames * payload.size / wall_s / 1e6
        print(f"  plain file, {name:<22} {rate:6.0f} MB/s                                {cpu_s / n_frames * 1e3:6.2f}")


def measure_images(
    folder: Path, n_frames: int, payload: NDArray[np.uint8], *, name: str, direct: bool, fps: float | None
) -> None:
    """Frames with a group fsync in a thread of its own, as the daemon does it."""
    appends: list[float] = []
    syncs: list[float] = []
    append_cpu_s = 0.0
    with Journal.create(folder / "images", RUN, direct=direct) as journal:
        written, done = threading.Event(), threading.Event()

        def sync_in_groups() -> None:
            while not done.is_set():
                written.wait()
                done.wait(0.005)
                written.clear()
                syncs.append(seconds(journal.sync))

        thread = threading.Thread(target=sync_in_groups)
        thread.start()
        cpu, start = time.process_time(), time.perf_counter()
        for frame in range(n_frames):
            if fps is not None:
                time.sleep(max(0.0, start + frame / fps - time.perf_counter()))
            begin, thread_cpu = time.perf_counter(), time.thread_time()
            journal.append(RecordKind.IMAGE, topic=TOPIC, header=HEADER, parts=[payload.data], t_recv_ns=0, frame=frame)
            append_cpu_s += time.thread_time() - thread_cpu
            appends.append(time.perf_counter() - begin)
            written.set()
        done.set()
        written.set()
        thread.join()
        journal.sync()
        wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
        order = np.random.default_rng(1).permutation(n_frames).tolist()
        read_s = seconds(lambda: [journal.image_of_frame(frame) for frame in order])
    shutil.rmtree(folder / "images")
    total = n_frames * payload.size / 1e6
    print(
        f"  {name:<34} {total / wall_s:6.0f} MB/s {statistics.median(appends) * 1e3:7.2f} {max(appends) * 1e3:6.1f} ms"
        f"  {append_cpu_s / n_frames * 1e3:7.2f} {cpu_s / n_frames * 1e3:6.2f} ms"
        f"  {statistics.median(syncs) * 1e3:6.2f} {max(syncs) * 1e3:6.1f} ms  {total / read_s:6.0f} MB/s"
    )


def measure_ways(folder: Path, n_frames: int, frame_bytes: int) -> None:
    """Every way to write an image, one after the other, twice: as fast as they go, and 50 a second."""
    aligned, unaligned = in_memory_at_page(frame_bytes), in_memory_at_page(frame_bytes, beside=16)
    print(f"{n_frames} frames of {frame_bytes / 1e6:.1f} MB with group fsync")
    print(f"{'':36} {'':11} append: median, worst  CPU: append, all   sync: median, worst  read")
    for fps in (None, None, 50.0):
        print("  -- as fast as they go" if fps is None else f"  -- {fps:.0f} frames/s")
        for name, direct, payload in (
            ("through the page cache", False, unaligned),
            ("past it", True, unaligned),
            ("past it, payload at a page boundary", True, aligned),
        ):
            measure_images(folder, n_frames, payload, name=name, direct=direct, fps=fps)
    measure_plain(folder, n_frames, frame_bytes)


def measure_records(folder: Path, n_records: int) -> None:
    """A long journal of small records, nine stage messages to an image."""
    with Journal.create(folder / "records", RUN) as journal:

        def append_all() -> None:
            for i in range(n_records):
                image = i % 10 == 0
                kind = RecordKind.IMAGE if image else RecordKind.STAGE
                journal.append(kind, topic=TOPIC, header=HEADER, t_recv_ns=i, frame=i // 10 if image else None)

        append_s = seconds(append_all)
        journal.sync()
    path = folder / "records"
    open_s = seconds(lambda: Journal.open(path).close())
    (path / "000000.tci").unlink()
    scan_s = seconds(lambda: Journal.open(path).close())
    with Journal.open(path, readonly=True) as journal:
        walk_s = seconds(lambda: sum(1 for _ in journal.records(with_parts=False)))
        find_s = seconds(lambda: [journal.image_of_frame(frame) for frame in range(0, n_records // 10, 10)])
    print(f"{n_records} small records")
    print(f"  append                   {append_s / n_records * 1e6:8.1f} µs")
    print(f"  open                     {open_s * 1e3:8.1f} ms")
    print(f"  open without its index   {scan_s * 1e3:8.1f} ms")
    print(f"  walk through             {walk_s / n_records * 1e6:8.1f} µs per record")
    print(f"  find and read one image  {find_s / (n_records / 100) * 1e6:8.1f} µs")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure (default: temporary files)")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--frame-bytes", type=int, default=5_500_000)
    parser.add_argument("--records", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-journal-") as name:
        measure_ways(Path(name), options.frames, options.frame_bytes)
        measure_records(Path(name), options.records)


if __name__ == "__main__":
    main()
