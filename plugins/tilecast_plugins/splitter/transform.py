"""How the second half of a dual-view camera lies on the first: what `tilecast calibrate split` writes down.

A JSON file, so that people can read it. `matrix` and `shift_px` lead from (row, col) of a pixel of the first half to
the place of the same specimen in the second, after that has been mirrored back.

>>> Transform().half_of((4, 10)), Transform(halves="top-bottom").half_of((4, 10))
((4, 5), (2, 10))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

FORMAT: Final = "tilecast dual view 1"
HALVES: Final = ("left-right", "top-bottom")
MIRRORS: Final = ("none", "rows", "columns")


class TransformError(ValueError):
    """A frame has no halves."""


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """Where the second half is, and how it lies on the first.

    Attributes
    ----------
    halves : {"left-right", "top-bottom"}
    mirror : {"none", "rows", "columns"}
    matrix : ndarray, shape (2, 2)
    shift_px : ndarray, shape (2,)
    shape : tuple of int or None
        Of the whole frames that it was made with.
    """

    halves: str = "left-right"
    mirror: str = "none"
    matrix: NDArray[np.float64] = field(default_factory=lambda: np.eye(2))
    shift_px: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    shape: tuple[int, int] | None = None

    @property
    def is_identity(self) -> bool:
        """Whether pixels lie on pixels as they are."""
        return bool((self.matrix == np.eye(2)).all() and (self.shift_px == 0).all())

    def half_of(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of a half.

        Raises
        ------
        TransformError
            If there is a row or column in the middle.
        """
        axis = 1 if self.halves == "left-right" else 0
        if shape[axis] % 2 or shape[axis] < 4:
            what = "columns" if axis else "rows"
            raise TransformError(f"{shape[axis]} {what} have no halves: set the camera's region to an even number")
        return (shape[0], shape[1] // 2) if axis else (shape[0] // 2, shape[1])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": FORMAT,
            "halves": self.halves,
            "mirror": self.mirror,
            "matrix": self.matrix.tolist(),
            "shift_px": self.shift_px.tolist(),
            "shape": None if self.shape is None else list(self.shape),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From what `as_dict` gave.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is something else.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise ValueError(f"expected an object with format {FORMAT!r}")
        if values["halves"] not in HALVES or values["mirror"] not in MIRRORS:
            raise ValueError(f"halves {values['halves']!r}, mirror {values['mirror']!r}: expected {HALVES}, {MIRRORS}")
        matrix, shift = np.array(values["matrix"], np.float64), np.array(values["shift_px"], np.float64)
        if (
            matrix.shape != (2, 2)
            or shift.shape != (2,)
            or not (np.isfinite(matrix).all() and np.isfinite(shift).all())
        ):
            raise ValueError("expected a matrix of 2 × 2 finite numbers, and a shift of 2")
        shape = None if values["shape"] is None else (int(values["shape"][0]), int(values["shape"][1]))
        return cls(values["halves"], values["mirror"], matrix, shift, shape)


def halves_of(frame: NDArray[Any], halves: str, mirror: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """The halves of a frame, the second mirrored back: views of its memory.

    >>> halves_of(np.arange(4)[None], "left-right", "columns")[1].tolist()
    [[3, 2]]
    """
    axis = 1 if halves == "left-right" else 0
    middle = frame.shape[axis] // 2
    first, second = (frame[:, :middle], frame[:, middle:]) if axis else (frame[:middle], frame[middle:])
    if mirror == "rows":
        second = second[::-1]
    elif mirror == "columns":
        second = second[:, ::-1]
    return first, second
