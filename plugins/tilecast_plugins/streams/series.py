"""What a Dectris detector says, once it has been read: apart from the libraries that read it, which not all have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SeriesStart:
    """Begins a series.

    Attributes
    ----------
    series : str
        What tells it from others.
    series_id : int
    n_images : int or None
    px_um : (float, float) or None
        Of the detector itself, x and y.
    channels : tuple of str
        Thresholds, in the order of their planes.
    user : dict
        Facts worth keeping.
    """

    series: str
    series_id: int
    n_images: int | None
    px_um: tuple[float, float] | None
    channels: tuple[str, ...]
    user: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class SeriesImage:
    """One exposure: an image of each channel.

    Attributes
    ----------
    series : str
    series_id, image_id : int
    channels : dict of str to ndarray
        u1, u2 or f4, rows and columns; in float32, pixels without a value are NaN.
    exact : bool
        Whether the pixels are the detector's numbers, or were rounded to float32.
    pos_um : tuple of float or None
        From `user_data`, if told where.
    t0_ns, t1_ns : int or None
        Exposure by the detector's clock, UTC.
    """

    series: str
    series_id: int
    image_id: int
    channels: dict[str, NDArray[Any]]
    exact: bool
    pos_um: tuple[float, ...] | None
    t0_ns: int | None
    t1_ns: int | None


@dataclass(frozen=True, slots=True)
class SeriesEnd:
    """Ends a series."""

    series: str
    series_id: int


SeriesMessage: TypeAlias = SeriesStart | SeriesImage | SeriesEnd
