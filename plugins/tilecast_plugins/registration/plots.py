"""What registration found, drawn: the layout with its shifts, the worst seam before and after, what is left of shifts.

Needs matplotlib (`pip install 'tilecast[plots]'`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from tilecast.reading import RecordedFrames
from tilecast_plugins.registration.finishing import Finished, Seam, pixels_of

_DPI = 110


def draw(finished: Finished, frames: RecordedFrames, path: Path) -> None:
    """Write the picture, as PNG.

    Raises
    ------
    click.ClickException
        If there is no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise click.ClickException(
            "pictures need matplotlib, which is not installed: pip install 'tilecast[plots]'"
        ) from error
    figure = Figure(figsize=(12, 10), layout="constrained")
    axes = figure.subplots(2, 2)
    _layout(figure, axes[0, 0], finished)
    _residuals(axes[0, 1], finished)
    for ax, when in ((axes[1, 0], "before"), (axes[1, 1], "after")):
        if finished.seams:
            _seam(ax, finished.seams[0], frames, when)
        else:
            ax.set_axis_off()
    figure.savefig(path, format="png", dpi=_DPI)


def _layout(figure: Any, ax: Any, finished: Finished) -> None:
    """Frames where they lie now, and a line for each shift, coloured by its quality; dashed if it was not used."""
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.patches import Rectangle

    track = finished.tracks[0]
    height, width = track.sites[0].placements[0].height, track.sites[0].placements[0].width
    corners = track.solution.positions
    boxes = PatchCollection(
        [Rectangle((col, row), width, height) for row, col in corners.tolist()],
        facecolor="none", edgecolor="0.7", linewidth=0.6,
    )  # fmt: skip
    ax.add_collection(boxes)
    centres = corners[:, ::-1] + np.array([width, height]) / 2
    pairs, quality, used = track.edges.pairs, track.edges.quality, track.solution.used
    limits = (float(quality.min()), float(np.percentile(quality, 95))) if len(quality) else (0.0, 1.0)
    for chosen, style in ((used, "solid"), (~used, "dotted")):
        lines = LineCollection(list(centres[pairs[chosen]]), linestyles=style, cmap="viridis", clim=limits)
        lines.set_array(quality[chosen])
        ax.add_collection(lines)
        if style == "solid" and used.any():
            figure.colorbar(lines, ax=ax, label="quality (standard deviations of chance)")
    ax.autoscale()
    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.set_title(f"{len(track.sites)} frames, {int(used.sum())} shifts; dotted: not used")
    ax.set_xlabel("column (px)")
    ax.set_ylabel("row (px)")


def _residuals(ax: Any, finished: Finished) -> None:
    before, after = [], []
    for track in finished.tracks:
        used = track.edges[track.solution.used]
        before.append(used.left(np.array([(site.row, site.col) for site in track.sites])))
        after.append(used.left(track.solution.positions))
    both = [np.concatenate(before), np.concatenate(after)]
    most = max(1.0, *(float(values.max(initial=0)) for values in both))
    bins = np.arange(0, most + 2) - 0.5
    for values, label in zip(both, ("by the stage", "registered"), strict=True):
        ax.hist(values, bins=bins.tolist(), alpha=0.6, label=label)
    ax.set_title("what positions leave of the shifts")
    ax.set_xlabel("pixels")
    ax.set_ylabel("pairs of frames")
    ax.legend()


def overlay(seam: Seam, frames: RecordedFrames, when: str) -> NDArray[np.float32]:
    """The overlap of two frames, (rows, columns, 3): one in magenta, one in green, grey where they agree."""
    row, col = seam.shift_before if when == "before" else seam.shift_after
    a, b = pixels_of(seam.first, frames), pixels_of(seam.second, frames)
    top, left = max(0, row), max(0, col)
    bottom, right = min(a.shape[0], row + b.shape[0]), min(a.shape[1], col + b.shape[1])
    one, other = a[top:bottom, left:right], b[top - row : bottom - row, left - col : right - col]
    if one.size == 0:
        return np.zeros((1, 1, 3), np.float32)
    shown = []
    for part in (one, other):
        low, high = np.percentile(part, (1, 99.5))
        shown.append(np.clip((part - low) / max(high - low, 1e-9), 0, 1))
    return np.stack([shown[0], shown[1], shown[0]], axis=-1).astype(np.float32)


def _seam(ax: Any, seam: Seam, frames: RecordedFrames, when: str) -> None:
    picture = overlay(seam, frames, when)
    if picture.shape[0] > 2 * picture.shape[1]:
        picture = picture.swapaxes(0, 1)
    ax.imshow(picture, interpolation="nearest", aspect="auto")
    score = seam.before if when == "before" else seam.after
    name = "by the stage" if when == "before" else "registered"
    ax.set_title(f"worst seam, frames {seam.first.frame} and {seam.second.frame}, {name}: {score:.2f}")
    ax.set_axis_off()
