"""What a run's report and its notices are in a sentence, and how a person calls us again.

Facts come in as the daemon publishes them; sentences go out. Nothing is measured or asked for here.

>>> describe_ranges([[3, 5], [17, 17]])
'3-5, 17'
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MAX_RANGES = 5


def call_again(*arguments: str | Path, store_path: Path | None = None) -> str:
    """A command line that can be copied, called the way that this one was.

    Parameters
    ----------
    *arguments : str or Path
        What follows `tilecast`.
    store_path : Path, optional
        Where the runs are, if not where the configuration says.
    """
    words = ["uv", "run", "tilecast"] if "UV_RUN_RECURSION_DEPTH" in os.environ else ["tilecast"]
    words += map(str, arguments)
    if store_path is not None:
        words += ["--set", f"store.path={store_path}"]
    return shlex.join(words)


def describe_ranges(ranges: Sequence[Sequence[int]]) -> str:
    """Ranges [first, last] as people write them, the first few."""
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:_MAX_RANGES]]
    return ", ".join(shown) + (", …" if len(ranges) > _MAX_RANGES else "")


def describe_report(report: Mapping[str, Any]) -> str:
    """A run report in one or two sentences: what came, what did not, where it is, how sure that is.

    Parameters
    ----------
    report : mapping
        As in the run's store and in the answer to `report`.
    """
    from tilecast.ingest.live_run import UNPLACED_BECAUSE

    received, expected, planned = report["received"], report["expected"], report["planned"]
    if not expected:
        return "No frame was sent."
    frames = "1 frame" if expected == 1 else f"{expected} frames"
    if received == expected:
        came = f"{'' if expected == 1 else 'all '}{frames} arrived"
    else:
        came = f"{received} of {frames} arrived"
    rest = []
    if report["n_unplaced"]:
        why = "; ".join(
            f"{describe_ranges(ranges)}: {UNPLACED_BECAUSE.get(word, word)}"
            for word, ranges in report["unplaced"].items()
        )
        came += f"; {_are(report['placed'])} in the mosaic"
        rest.append(f"{_have(report['n_unplaced'])} no place ({why})")
    elif received:
        came += f" and {'is' if received == 1 else 'are'} in the mosaic"
    if report.get("n_outside_extent"):  # reports of earlier versions have none
        rest.append(
            f"{_are(report['n_outside_extent'])} outside the extent that was planned "
            f"({describe_ranges(report['outside_extent'])})"
        )
    if report["n_missing"]:
        rest.append(f"{_are(report['n_missing'])} missing ({describe_ranges(report['missing'])})")
    if planned is not None and expected < planned:
        came = f"the scan was stopped after {expected} of {planned} frames; {came}"
    text = ", ".join([came, *rest]) + "."
    refused = sum(report["rejected"].values()) + report["malformed"]
    if refused:
        text += f" {'1 message was' if refused == 1 else f'{refused} messages were'} refused."
    joined = report["joined"]
    if joined is not None:
        median, most = (f"{joined['bracket_ms'][key]:.3g} ms" for key in ("median", "max"))
        bound_um = joined["position_bound_um"]
        text += f" Each position was found in the stage stream, between two readings {median} apart"
        text += "" if most == median else f" (at most {most})"
        if bound_um == 0:
            text += " while the stage stood still."
        else:
            text += "." if bound_um is None else f", so that none is wrong by more than {bound_um:.2g} µm."
    return text[0].upper() + text[1:]


def _are(n: int) -> str:
    return f"{n} {'is' if n == 1 else 'are'}"


def _have(n: int) -> str:
    return f"{n} {'has' if n == 1 else 'have'}"


def describe_losses(report: Mapping[str, Any]) -> str:
    """What of a run that is going on is not in order, or nothing at all."""
    from tilecast.ingest.joining import NO_LATER

    # A frame whose stage message has not come yet is on its way, not lost.
    unplaced = sum(
        last - first + 1 for why, ranges in report["unplaced"].items() if why != NO_LATER for first, last in ranges
    )
    refused = sum(report["rejected"].values()) + report["malformed"]
    counts = (
        (report["n_missing"], "missing"),
        (unplaced, "without a place"),
        (refused, "refused"),
        (report["duplicate"], "sent twice"),
    )
    return ", ".join(f"{n} {what}" for n, what in counts if n)


def describe_notice(kind: str, detail: Mapping[str, Any]) -> str:
    """A notice about a run as a line for a person."""
    match kind, detail:
        case "started", _:
            return "the run has started"
        case "ended", _:
            return "the run has ended"
        case "idle", _:
            return "nothing comes any more; the run is idle"
        case "report", _:
            return "the report is written"
        case "late", {"n": n}:
            return f"{n} frames came after the end of the run"
        case "gap", {"n_missing": n, "missing": ranges}:
            return f"{n} frames are missing: {describe_ranges(ranges)}"
        case "gap", {"n_healed": n}:
            return f"{n} frames that were missing have come"
        case "warning", {"what": "unplaced", "n": n, "message": why}:
            return f"{n} frames have no place: {why}"
        case _, {"message": text} | {"text": text}:
            return str(text)
    return kind
