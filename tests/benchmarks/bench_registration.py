"""What registration costs, and how right it is: per frame, for a finish, and beside m2stitch on the same frames.

Not a test: run it by hand, on the machine that is to be judged.

    uv run python tests/benchmarks/bench_registration.py
    uv run --with m2stitch python tests/benchmarks/bench_registration.py --scans ../shared/data/scans

The first part compares frames of 2048², u2, that overlap by 10 %, with their neighbours, one after the other; the
second solves for the positions of a square of frames whose shifts are known. With `--scans`, the folder of the real
scans, what is found is compared with the truth, and with what m2stitch (MIST's algorithm in Python) finds, where that
is installed. All times are processor time.

The targets: 30 ms per frame, 5 s for the finish of 10,000 frames; at least as right as m2stitch, and faster. The exit
status is 1 if one is missed.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilecast_plugins.registration.pairs import PairOptions
from tilecast_plugins.registration.solve import Edges, solve
from tilecast_plugins.registration.tracking import Tracker

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plugins.registration import scans

FRAME_TARGET_MS = 30.0
FINISH_TARGET_S = 5.0


def cpu_s() -> float:
    """Processor time of this process, and of those that have worked for it: m2stitch has some."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def judged(met: bool) -> str:
    return "met" if met else "MISSED"


def bench_frames(size: int, grid: tuple[int, int]) -> bool:
    """Frames of a scene with noise, compared one after the other; whether the target is met."""
    rng = np.random.default_rng(0)
    step = round(0.9 * size)
    height, width = (n * step + size - step + 40 for n in grid)
    scene = np.zeros((height, width), np.float32)
    for factor in (4, 16):
        coarse = rng.normal(0, 200, (height // factor + 1, width // factor + 1)).astype(np.float32)
        scene += np.kron(coarse, np.ones((factor, factor), np.float32))[:height, :width]
    tracker = Tracker((size, size), PairOptions(), lambda _: np.empty(0))
    took_ms, right = [], 0
    true = []
    for number in range(grid[0] * grid[1]):
        row, col = divmod(number, grid[1])
        nominal = 20 + row * step, 20 + (col if row % 2 == 0 else grid[1] - 1 - col) * step
        shift = rng.integers(-8, 9, 2)
        top, left = nominal[0] + int(shift[0]), nominal[1] + int(shift[1])
        seen = 2000 + scene[top : top + size, left : left + size] + rng.normal(0, 30, (size, size))
        frame = np.clip(seen, 0, 65535).astype("<u2")
        true.append((top, left))
        began = time.process_time()
        tracker.add(number, nominal, frame)
        took_ms.append((time.process_time() - began) * 1e3)
    edges = tracker.edges()
    truth = np.array(true)
    right = int((edges.shifts == truth[edges.pairs[:, 1]] - truth[edges.pairs[:, 0]]).all(axis=1).sum())
    usual = took_ms[2:]  # the first ones compile, and plan transforms
    mean = sum(usual) / len(usual)
    print(f"{len(edges)} shifts of {tracker.n_compared} pairs, {right} of them right")
    print(
        f"per frame of {size}²: mean {mean:.1f} ms, most {max(usual):.1f} ms; "
        f"target {FRAME_TARGET_MS:g} ms: {judged(mean <= FRAME_TARGET_MS)}"
    )
    return mean <= FRAME_TARGET_MS and right == len(edges) == tracker.n_compared


def bench_finish(side: int) -> bool:
    """A square of frames, one in a hundred shifts wrong; whether the target is met."""
    rng = np.random.default_rng(0)
    nominal = np.array([[1843 * row, 1843 * col] for row in range(side) for col in range(side)])
    true = nominal + rng.integers(-6, 7, nominal.shape)
    pairs = [(n, n + 1) for n in range(side**2) if (n + 1) % side] + [(n, n + side) for n in range(side**2 - side)]
    edges = Edges.of([(i, j, *(true[j] - true[i]), 50.0, 0.9) for i, j in pairs])
    wrong = rng.choice(len(pairs), len(pairs) // 100, replace=False)
    edges.shifts[wrong] += rng.choice([-1, 1], (len(wrong), 2)) * 35
    began = time.process_time()
    found = solve(nominal, range(len(nominal)), edges)
    took_s = time.process_time() - began
    off = found.positions - true
    n_off = int((np.abs(off - np.median(off, axis=0)).max(axis=1) > 1).sum())
    met = took_s <= FINISH_TARGET_S
    print(
        f"finish of {len(nominal)} frames, {len(edges)} shifts ({len(wrong)} wrong, "
        f"{int(found.used[wrong].sum())} of them used): {took_s:.2f} s, {n_off} frames off by more than 1 px; "
        f"target {FINISH_TARGET_S:g} s: {judged(met)}"
    )
    return met and n_off == 0


def grid_of(scan: scans.Scan) -> tuple[list[int], list[int]]:
    """Row and column of each frame in its grid, as m2stitch wants them."""
    height, width = scan.frames.shape[1:]
    places = np.rint(scan.nominal / np.array([0.85 * height, 0.85 * width])).astype(int)
    return places[:, 0].tolist(), places[:, 1].tolist()


def by_m2stitch(scan: scans.Scan) -> tuple[NDArray[Any] | None, float, str]:
    """Positions by m2stitch, its processor time, and what it said if it found none."""
    import m2stitch

    rows, cols = grid_of(scan)
    began = cpu_s()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            grid, _ = m2stitch.stitch_images(scan.frames, rows=rows, cols=cols, row_col_transpose=False)
    except Exception as error:  # noqa: BLE001 - whatever it makes of a set that it cannot take
        return None, cpu_s() - began, f"{type(error).__name__}: {error}"
    return np.array(grid[["y_pos", "x_pos"]]), cpu_s() - began, ""


def bench_scans() -> bool:
    """The real scans, beside m2stitch if there is one; whether ours is as right, and faster."""
    try:
        import m2stitch  # noqa: F401
    except ImportError:
        print("m2stitch is not installed (uv run --with m2stitch …): only ours")
        others = False
    else:
        others = True
    good = True
    for name, max_shift_px in (("cut_lscm", 40), ("lscm", 40), ("mist", 10), ("czi", 40)):
        scan: scans.Scan = getattr(scans, name)()
        scan.track(PairOptions(max_shift_px))  # compile, plan
        began = time.process_time()
        tracker, _ = scan.track(PairOptions(max_shift_px))
        positions = solve(tracker.nominal, tracker.index, tracker.edges()).positions
        took_s = time.process_time() - began
        ours = scan.errors(positions)
        print(f"{name:9} ours      most {ours.max():6.1f} px off, mean {ours.mean():6.2f} px, {took_s:6.2f} s")
        if others:
            found, their_s, said = by_m2stitch(scan)
            if found is None:
                print(f"{name:9} m2stitch  cannot take it: {said}")
                continue
            theirs = scan.errors(found)
            met = ours.mean() <= theirs.mean() and took_s < their_s
            good &= met
            print(
                f"{name:9} m2stitch  most {theirs.max():6.1f} px off, mean {theirs.mean():6.2f} px, {their_s:6.2f} s; "
                f"as right and faster: {judged(met)}"
            )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, help="edge of a frame, pixels")
    parser.add_argument("--grid", type=int, nargs=2, default=(4, 5), metavar=("ROWS", "COLS"))
    parser.add_argument("--side", type=int, default=100, help="the finish is of so many rows and columns of frames")
    parser.add_argument("--scans", type=Path, help="the folder of the real scans")
    args = parser.parse_args()
    good = bench_frames(args.size, tuple(args.grid))
    good &= bench_finish(args.side)
    if args.scans is not None:
        scans.SCANS = args.scans
        good &= bench_scans()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
