"""One line about the daemon for people: what `systemctl status` shows.

>>> status_line("ready", ["liver, slice 12"], {"images_per_s": 9.84, "image_bytes_per_s": 82.4e6}, 120 << 30)
'ready; 9.8 images/s, 82 MB/s; run: liver, slice 12; 120 GiB free'
>>> status_line("catching-up", [], {}, 3 << 30, "the blend thread hangs")
'catching-up; no run is open; 3.0 GiB free; the blend thread hangs'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_NAMES_SHOWN = 3
_NAME_LENGTH = 60


def status_line(
    state: str, open_runs: Sequence[str], rates: Mapping[str, float], free_nbytes: int, trouble: str = ""
) -> str:
    """State, rate, the names of open runs, room on the disk, and what is wrong."""
    images, nbytes = rates.get("images_per_s", 0.0), rates.get("image_bytes_per_s", 0.0)
    parts = [state]
    if images:
        parts.append(f"{images:.1f} images/s, {nbytes / 1e6:.0f} MB/s")
    shown = [name[:_NAME_LENGTH] for name in open_runs[:_NAMES_SHOWN]]
    if len(open_runs) > _NAMES_SHOWN:
        shown.append(f"{len(open_runs) - _NAMES_SHOWN} more")
    if shown:
        parts.append(f"{'run' if len(open_runs) == 1 else 'runs'}: {', '.join(shown)}")
    else:
        parts.append("no run is open")
    gib = free_nbytes / (1 << 30)
    parts.append(f"{gib:.0f} GiB free" if gib >= 10 else f"{gib:.1f} GiB free")
    if trouble:
        parts.append(trouble)
    return "; ".join(parts)
