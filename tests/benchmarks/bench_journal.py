"""How fast the journal is: appending beside a plain copy to the same disk, opening, finding images.

Not a test: run it by hand, `python tests/benchmarks/bench_journal.py --folder DISK_TO_MEASURE`. One process, so the
figures share a machine and a moment; medians where a figure is a latency. It leaves nothing behind.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tilecast_protocol.journal import Journal, RecordKind

RUN = "7b0e8a52-5b57-4c38-9f1e-2d0b4f9b6a11"
TOPIC = "tc1/scope/cam/image"
HEADER = bytes(250)


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure_images(folder: Path, n_frames: int, frame_bytes: int) -> None:
    """Frames with a group fsync in a thread of its own, against a file that is written and synced the same way."""
    pixels = np.random.default_rng(0).integers(0, 4096, frame_bytes // 2, np.uint16)
    total = n_frames * frame_bytes

    def plain() -> None:
        with (folder / "plain").open("wb", buffering=0) as file:
            for _ in range(n_frames):
                file.write(pixels)
            os.fdatasync(file.fileno())

    appends: list[float] = []
    syncs: list[float] = []
    with Journal.create(folder / "images", RUN) as journal:
        done = threading.Event()

        def sync_in_groups() -> None:
            while not done.wait(0.005):
                syncs.append(seconds(journal.sync))

        def append_all() -> None:
            thread = threading.Thread(target=sync_in_groups)
            thread.start()
            for frame in range(n_frames):
                begin = time.perf_counter()
                journal.append(RecordKind.IMAGE, topic=TOPIC, header=HEADER, parts=[pixels], t_recv_ns=0, frame=frame)
                appends.append(time.perf_counter() - begin)
            done.set()
            thread.join()
            journal.sync()

        journal_s = seconds(append_all)
        order = np.random.default_rng(1).permutation(n_frames).tolist()
        read_s = seconds(lambda: [journal.image_of_frame(frame) for frame in order])
    plain_s = seconds(plain)
    print(f"{n_frames} frames of {frame_bytes / 1e6:.1f} MB")
    print(f"  journal, group fsync     {total / journal_s / 1e6:8.0f} MB/s   {n_frames / journal_s:8.1f} frames/s")
    print(f"  plain file, one fsync    {total / plain_s / 1e6:8.0f} MB/s")
    print(f"  append                   {statistics.median(appends) * 1e3:8.2f} ms    worst {max(appends) * 1e3:.1f} ms")
    print(f"  sync                     {statistics.median(syncs) * 1e3:8.2f} ms    worst {max(syncs) * 1e3:.1f} ms")
    print(f"  read in random order     {total / read_s / 1e6:8.0f} MB/s")


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
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--frame-bytes", type=int, default=8 << 20)
    parser.add_argument("--records", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-journal-") as name:
        measure_images(Path(name), options.frames, options.frame_bytes)
        measure_records(Path(name), options.records)


if __name__ == "__main__":
    main()
