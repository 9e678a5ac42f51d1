"""The picture of a benchmark: how old frames were when viewers were told of them, over the time of the run.

The only place that needs matplotlib, which is imported when a picture is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

_BACKGROUND: Final = "#14171d"
_TEXT: Final = "#d8dde6"
_GRID: Final = "#2b313c"
_DOTS: Final = "#4fc3f7"
_LINES: Final = (("p50", "#a5d86e"), ("p99", "#ffb74d"))


def save_plot(
    path: Path, t_s: Sequence[float], latency_ms: Sequence[float], percentiles_ms: dict[str, float], title: str
) -> None:
    """Save the latency of each frame over the time of its arrival, as PNG.

    Parameters
    ----------
    t_s, latency_ms : sequence of float
        Of each frame.
    percentiles_ms : dict
        `p50` and `p99`, shown as lines.
    title : str

    Raises
    ------
    ModuleNotFoundError
        matplotlib is not installed.
    OSError
        The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), dpi=120, facecolor=_BACKGROUND, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=_BACKGROUND)
    axes.scatter(t_s, latency_ms, s=9, color=_DOTS, alpha=0.8, linewidths=0, label="a frame")
    for name, color in _LINES:
        label = f"{name}: {percentiles_ms[name]:.0f} ms"
        axes.axhline(percentiles_ms[name], color=color, linewidth=1.2, linestyle="--", label=label)
    axes.set_ylim(0, 1.06 * max(latency_ms))
    axes.set_xlabel("time since the first frame arrived, s", color=_TEXT)
    axes.set_ylabel("frame received → viewers told, ms", color=_TEXT)
    figure.suptitle(title, color=_TEXT, fontsize=11)
    axes.tick_params(colors=_TEXT)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color(_GRID)
    # Above the picture, where no frame can be.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, labelcolor=_TEXT)
    figure.savefig(path, format="png", facecolor=_BACKGROUND)
