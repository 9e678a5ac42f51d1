"""`tilecast export`: a run's mosaic, or its single frames, as files that other programs open. Quick to import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tilecast_plugins.export.writing import Request

#: What each format is called, and how its files end.
FORMATS = {"ome-tiff": ".ome.tif", "ome-zarr": ".ome.zarr", "ome-zarr-0.4": ".ome.zarr", "pyme": ".pyramid"}

_TERMINATED = 143


def _numbers(kind: type[int] | type[float]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Reader of an option, as the built-in commands have it."""
    return lambda ctx, param, text: ctx.obj.number_list(kind)(ctx, param, text)


@click.command("export")
@click.argument("run")
@click.argument("target", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMATS)),
    help="What to write: ome-zarr is version 0.5; pyme is an ImagePyramid folder. If not given: what the name of FILE "
    "says (.tif, .zarr), else ome-tiff.",
)
@click.option("--frames", is_flag=True, help="The single images as OME-TIFF, with a positions.csv, into a folder.")
@click.option("--as-recorded", is_flag=True, help="With --frames: as the camera sent them, not calibrated, whole.")
@click.option(
    "--region",
    metavar="TOP,LEFT,BOTTOM,RIGHT",
    callback=_numbers(int),
    help="Only this part, in pixels of full resolution, the last row and column not included; pixel 0,0 is stage "
    "position 0,0. With --frames: those that touch it. If not given: all that is covered.",
)
@click.option(
    "--region-um", metavar="X0,Y0,X1,Y1", callback=_numbers(float), help="Only this part, in stage micrometres."
)
@click.option("--times", metavar="LIST", help="Only these time points, as 0,2-5, counted from 0.")
@click.option("--channels", metavar="LIST", help="Only these channels: numbers as for --times, or names.")
@click.option("--slices", metavar="LIST", help="Only these positions in z, as for --times.")
@click.option("--fill", type=float, help="What pixels get that no frame covers. If not given: 0, NaN in float images.")
@click.option(
    "--tile-size",
    type=click.IntRange(64, 4096),
    default=512,
    show_default=True,
    help="Edge of a tile or chunk of the file, a multiple of 16.",
)
@click.option(
    "--compression",
    type=click.Choice(("zlib", "none")),
    default="zlib",
    show_default=True,
    help="Lossless, for OME-TIFF and OME-Zarr.",
)
@click.option(
    "--pyme-tiles", type=click.Choice(("pzf", "npy")), default="pzf", show_default=True, help="Tiles of pyme."
)
@click.option("--force", is_flag=True, help="Replace what is there; only when the export is whole.")
@click.pass_obj
def command(
    invocation: Any,
    run: str,
    target: Path | None,
    form: str | None,
    frames: bool,
    as_recorded: bool,
    region: tuple[int, int, int, int] | None,
    region_um: tuple[float, float, float, float] | None,
    times: str | None,
    channels: str | None,
    slices: str | None,
    fill: float | None,
    tile_size: int,
    compression: str,
    pyme_tiles: str,
    force: bool,
) -> None:
    """Export a RUN's mosaic, or a part of it, to FILE: OME-TIFF, OME-Zarr, or a pyramid for PYME.

    RUN is the beginning of its id, its name, its folder, or `last`; it may still be going on: then one moment of it is
    exported. All levels are written, with sizes, positions and channels. FILE appears when it is whole; if not given,
    it is RUN's name in this folder.

    \b
    Examples:
      tilecast export last
      tilecast export last liver.ome.zarr --channels DAPI --region-um 0,0,500,500
      tilecast export last frames/ --frames
    """
    from tilecast_plugins.export.writing import Request

    if region and region_um:
        raise click.UsageError("--region and --region-um say the same in two ways: give one of them")
    if frames and form:
        raise click.UsageError("--frames writes OME-TIFF files: leave out --format")
    if as_recorded and not frames:
        raise click.UsageError("--as-recorded is for --frames: a mosaic is made of calibrated images")
    if frames and fill is not None:
        raise click.UsageError("--fill is for mosaics: every pixel of a frame is covered")
    if tile_size % 16:
        raise click.UsageError(f"--tile-size: TIFF wants a multiple of 16; got {tile_size}")
    found = invocation.find_run(run)
    request = Request(
        folder=found.folder,
        target=target,
        form=form or _form_of(target),
        frames=frames,
        as_recorded=as_recorded,
        region=region,
        region_um=region_um,
        times=times,
        channels=channels,
        slices=slices,
        fill=fill,
        tile_size=tile_size,
        compression=compression,
        pyme_tiles=pyme_tiles,
        force=force,
    )
    with invocation.stages_of_progress() as progress, _ended_by_sigterm():
        said = _write(request, progress)
    click.echo(said)


def _write(request: Request, progress: Callable[[str, int, int], None]) -> str:
    from tilecast_plugins.export.writing import write

    return write(request, progress)


def _form_of(target: Path | None) -> str:
    suffix = "" if target is None else target.suffix.lower()
    return "ome-zarr" if suffix == ".zarr" else "ome-tiff"


class _ended_by_sigterm:  # noqa: N801  (a context manager, read as a word)
    """SIGTERM ends the export in good order, as Ctrl-C does: what was half written is deleted."""

    def __enter__(self) -> None:
        import signal
        import sys

        self._old = signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))

    def __exit__(self, *_: object) -> None:
        import signal

        signal.signal(signal.SIGTERM, self._old)
