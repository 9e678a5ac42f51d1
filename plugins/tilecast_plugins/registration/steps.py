"""What `tilecast register` does: find a layout, take one from a file, or go from one to the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import click

from tilecast.placing import place_run
from tilecast.reading import Position, RecordedFrames, Registration, StoreError, open_folder
from tilecast_plugins.registration import layouts
from tilecast_plugins.registration.finishing import Asked, Finished, Progress, by_the_stage, register
from tilecast_plugins.registration.pairs import PairOptions
from tilecast_plugins.registration.solve import Method


@dataclass(frozen=True, slots=True)
class Told:
    """What holds for each of the three.

    Attributes
    ----------
    config : Config
    folder : Path
        The run's.
    progress : callable
    dry_run : bool
        Leave the mosaic as it is.
    save, plot : Path, optional
        What to write.
    """

    config: Any
    folder: Path
    progress: Progress
    dry_run: bool = False
    save: Path | None = None
    plot: Path | None = None

    def place(self, layout: str, registration: Registration | None = None) -> None:
        """Make the mosaic anew, unless it is to stay."""
        if not self.dry_run:
            place_run(self.config, self.folder, layout, registration=registration, progress=self.progress)


def asked_for(
    *,
    method: str,
    max_shift_px: int,
    min_quality: float,
    background: float | None,
    clip: float | None,
    normalize: bool,
    channel: int | None,
    once: bool,
    fixed: int | None,
    left_out: str | None,
) -> Asked:
    """The options of the command."""
    return Asked(
        PairOptions(max_shift_px, min_quality, background, clip, normalize),
        cast(Method, method),
        channel,
        fixed,
        _numbers(left_out or ""),
        once,
    )


def _numbers(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        try:
            found |= set(range(int(first), int(last or first) + 1))
        except ValueError as error:
            raise click.BadParameter(f"expected frames such as 3,17-20; got {text!r}") from error
    return frozenset(found)


def find(told: Told, asked: Asked) -> Sequence[str]:
    """Register the run; what to say of it."""
    with open_folder(told.folder) as reader, RecordedFrames(told.folder) as frames:
        finished = register(reader, frames, asked, told.progress)
        _save(told, finished.registration, "registered")
        if told.plot is not None:
            from tilecast_plugins.registration.plots import draw

            draw(finished, frames, told.plot)
    told.place("registered", finished.registration)
    return [*_described(finished), *_done(told, "registered")]


def switch(told: Told, layout: str) -> Sequence[str]:
    """Go to one of the layouts that the run has."""
    with open_folder(told.folder) as reader:
        registration = reader.registration()
        if registration is None:
            raise StoreError(
                f"{told.folder.name} was not registered, so its frames lie by the stage; "
                f"`tilecast register {told.folder.name[:8]}` does it"
            )
        is_so = all(
            (one.row, one.col, one.source) == placed
            for one in getattr(registration, layout)
            if (placed := _placed(reader.placement(one.frame, one.view))) is not None
        )
    _save(told, registration, layout)
    if is_so:
        return [f"{told.folder.name} lies as in the layout {layout} already"]
    told.place(layout)
    return [*_done(told, layout)]


def _placed(row: Any) -> tuple[int, int, str] | None:
    return None if row is None else (row.placement.row, row.placement.col, row.placement.source)


def apply_layout(told: Told, path: Path) -> Sequence[str]:
    """Place frames as a file says."""
    try:
        given = layouts.from_text(path.read_text(encoding="utf-8-sig"), path.suffix.lower())
    except (layouts.LayoutError, UnicodeDecodeError) as error:
        raise layouts.LayoutError(f"{path}: {error}") from error
    with open_folder(told.folder) as reader:
        before = reader.registration()
        stage = by_the_stage(reader)
    known = {one.id for one in stage}
    strangers = sorted({frame for frame, view in given if (frame, view) not in known})
    placed = [one for one in stage if one.id in given]
    if not placed:
        raise layouts.LayoutError(f"{path}: the run has none of the frames in this layout")
    registration = replace(
        before or Registration(),
        facts={"layout of": path.name, "frames in it": len(placed)},
        edges=(),
        stage=tuple(Position(*one.id, one.row, one.col, one.source) for one in stage),
        registered=tuple(Position(*one.id, *given[one.id], "registered") for one in placed),
    )
    _save(told, registration, "registered")
    told.place("registered", registration)
    lines = [f"{len(placed)} of {len(stage)} frames lie as in {path}; the others stay where they are"]
    if strangers:
        lines.append(f"{len(strangers)} frames of the layout are not in the run, the first is {strangers[0]}")
    return [*lines, *_done(told, "registered")]


def _save(told: Told, registration: Registration, layout: str) -> None:
    if told.save is None:
        return
    positions = getattr(registration, layout)
    stage = {(one.frame, one.view): (one.row, one.col) for one in registration.stage}
    if told.save.suffix.lower() == ".json":
        text = layouts.as_json(positions, stage, run=told.folder.name, layout=layout, facts=dict(registration.facts))
    else:
        text = layouts.as_csv(positions, stage)
    told.save.write_text(text, encoding="utf-8")


def _described(finished: Finished) -> Iterator[str]:
    facts = finished.registration.facts
    yield (
        f"{facts['frames compared']} frames, {facts['shifts used']} of {facts['shifts']} shifts used, "
        f"{facts['components']} groups ({facts['frames alone']} frames alone)"
    )
    if facts["residual before_px"] is not None:
        before, after = facts["residual before_px"], facts["residual after_px"]
        yield (
            f"neighbours were off by {before['median']:g} px (median; {before['most']:g} at most), "
            f"now by {after['median']:g} px ({after['most']:g})"
        )
    if facts["frames that cannot be read"]:
        yield f"frames {facts['frames that cannot be read']} cannot be read: the recording is damaged"
    seams = facts["seams"]
    if seams["looked at"]:
        yield f"difference in the overlaps: {seams['before']:.3f} before, {seams['after']:.3f} now, of their contrast"


def _done(told: Told, layout: str) -> Iterator[str]:
    for what, path in (("layout", told.save), ("picture", told.plot)):
        if path is not None:
            yield f"{what}: {path}"
    if told.dry_run:
        yield "the mosaic was left as it is"
    elif layout == "registered":
        yield f"placed {told.folder.name} as registered; back: tilecast register {told.folder.name[:8]} --use stage"
    else:
        yield f"placed {told.folder.name} by the stage"
