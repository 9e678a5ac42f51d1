"""How large a pixel is and which way the camera looks, from the core's pixel size configuration.

Micro-Manager's affine is ours: the stage moves by `affine · (dx, dy)` to bring into the centre what is seen (dx, dy)
pixels right of it and below it. So it is taken as it is, without a change of sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tilecast_protocol.errors import TilecastError

Affine: TypeAlias = tuple[tuple[float, float], tuple[float, float]]

_UNSET = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class OpticsError(TilecastError, ValueError):
    """The core does not say how large a pixel is."""


@dataclass(frozen=True, slots=True)
class Optics:
    """What a run says of the way from pixels to the stage.

    Attributes
    ----------
    px_um : (float, float)
        Along x (columns) and y (rows).
    affine : Affine or None
        None: `diag(px_um)`.
    source : {"given", "core", "pixel size"}
        Who says so; `pixel size`: the core knows no affine.
    """

    px_um: tuple[float, float]
    affine: Affine | None
    source: Literal["given", "core", "pixel size"]

    def half_extent_um(self, shape: tuple[int, int]) -> tuple[float, float]:
        """How far a frame (rows, columns) reaches from its centre, along the stage's x and y."""
        (a, b), (c, d) = self.matrix
        height, width = shape
        return (abs(a) * width + abs(b) * height) / 2, (abs(c) * width + abs(d) * height) / 2

    def shift_um(self, dx_px: float, dy_px: float) -> tuple[float, float]:
        """The stage's way to what is seen so many pixels right of and below the centre."""
        (a, b), (c, d) = self.matrix
        return a * dx_px + b * dy_px, c * dx_px + d * dy_px

    @property
    def matrix(self) -> Affine:
        """The affine, also where there is none."""
        return self.affine or ((self.px_um[0], 0.0), (0.0, self.px_um[1]))


def optics_of(core: Any, *, px_um: tuple[float, float] | None = None, affine: Affine | None = None) -> Optics:
    """Read them from the core, unless they are given.

    Parameters
    ----------
    core : CMMCorePlus
    px_um : (float, float), optional
        In place of the core's pixel size, and of its affine.
    affine : Affine, optional
        In place of the core's.

    Raises
    ------
    OpticsError
        The core has no pixel size, and none is given.
    """
    if affine is not None:
        return Optics(px_um or _lengths(affine), affine, "given")
    if px_um is not None:
        return Optics(px_um, None, "given")
    size_um = float(core.getPixelSizeUm())
    if not size_um > 0:
        raise OpticsError(
            "this core does not know how large a pixel is: no pixel size configuration fits its present settings. Add "
            "one (core.definePixelSizeConfig and core.setPixelSizeUm, or the Hardware Configuration Wizard), or give "
            "attach(..., px_um=(x, y))"
        )
    # The configuration's own affine, before binning and magnification: (1, 0, 0, 0, 1, 0) means that nobody set it.
    own = tuple(core.getPixelSizeAffineByID(core.getCurrentPixelSizeConfig()))
    if own in (_UNSET, (0.0,) * 6):
        return Optics((size_um, size_um), None, "pixel size")
    a, b, _, c, d, _ = (float(value) for value in core.getPixelSizeAffine())
    found = ((a, b), (c, d))
    return Optics(_lengths(found), found, "core")


def _lengths(affine: Affine) -> tuple[float, float]:
    (a, b), (c, d) = affine
    return math.hypot(a, c), math.hypot(b, d)
