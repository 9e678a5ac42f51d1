"""What a file's name tells: a pattern that a person writes, as a template or as a regular expression.

Examples
--------
>>> pattern = compile_pattern("img_{row:d}_{col:d}.tif")
>>> pattern.read("img_003_12.tif")
{'row': 3, 'col': 12}
>>> pattern.read("overview.tif") is None
True
>>> compile_pattern(r"(?P<run>.+)_x(?P<x_um>-?[\\d.]+)_y(?P<y_um>-?[\\d.]+)\\.tif").read("liver_x-1.5_y20.tif")
{'run': 'liver', 'x_um': -1.5, 'y_um': 20.0}
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

WHOLE_NUMBERS = ("row", "col", "t", "c", "z", "frame")
NUMBERS = ("x_um", "y_um", "x_px", "y_px")
TEXTS = ("run",)
FIELDS = (*WHOLE_NUMBERS, *NUMBERS, *TEXTS)
POSITIONS = (("row", "col"), ("x_um", "y_um"), ("x_px", "y_px"))
"""Pairs of fields that tell a position."""

_HOLE = re.compile(r"\{([^{}]*)\}")
_OF_FIELD = (
    dict.fromkeys(WHOLE_NUMBERS, r"\d+") | dict.fromkeys(NUMBERS, r"[-+]?\d+(?:\.\d+)?") | dict.fromkeys(TEXTS, r".+?")
)
_SPEC = {"d": WHOLE_NUMBERS, "f": NUMBERS, "s": TEXTS}


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern that names are read with.

    Attributes
    ----------
    text : str
        As somebody wrote it.
    fields : tuple of str
        What it tells, of `FIELDS`.
    expression : re.Pattern
    """

    text: str
    fields: tuple[str, ...]
    expression: re.Pattern[str]

    @property
    def position(self) -> tuple[str, str] | None:
        """The two fields that tell where a frame lies; None if there are none."""
        return next((pair for pair in POSITIONS if pair[0] in self.fields), None)

    def read(self, name: str) -> dict[str, int | float | str] | None:
        """The fields of a name; None if it does not fit the pattern, or a number in it is none."""
        match = self.expression.fullmatch(name)
        if match is None:
            return None
        values: dict[str, int | float | str] = {}
        for field in self.fields:
            text = match[field]
            if text is None:
                continue
            try:
                values[field] = int(text) if field in WHOLE_NUMBERS else float(text) if field in NUMBERS else text
            except ValueError:
                return None
        return values


def compile_pattern(text: str) -> Pattern:
    """Read a pattern.

    Parameters
    ----------
    text : str
        A template such as `img_{row:d}_{col:d}.tif`, or, if it has a group `(?P<name>…)`, a regular expression that
        whole names must match.

    Raises
    ------
    ValueError
        A field is not known, is there twice, or lacks its other half; or it is no regular expression.
    """
    if "(?P<" in text:
        source = text
    else:
        holes = [_field(hole, text) for hole in _HOLE.findall(text)]
        twice = sorted({name for name in holes if holes.count(name) > 1})
        if twice:
            raise ValueError(f"the pattern {text!r} has {{{twice[0]}}} twice; expected each field once")
        literal = _HOLE.split(text)[::2]
        if any("{" in piece or "}" in piece for piece in literal):
            raise ValueError(f"the pattern {text!r} has a brace without its other; fields are written {{row:d}}")
        groups = [*(f"(?P<{name}>{_OF_FIELD[name]})" for name in holes), ""]
        source = "".join(re.escape(piece) + group for piece, group in zip(literal, groups, strict=True))
    try:
        expression = re.compile(source)
    except re.error as error:
        raise ValueError(f"the pattern {text!r} is no regular expression: {error}") from error
    fields = tuple(expression.groupindex)
    for name in fields:
        _check_known(name, text)
    for first, second in POSITIONS:
        if (first in fields) != (second in fields):
            there, missing = (first, second) if first in fields else (second, first)
            raise ValueError(f"the pattern {text!r} tells {there} and not {missing}; a position needs both")
    told = [pair for pair in POSITIONS if pair[0] in fields]
    if len(told) > 1:
        raise ValueError(f"the pattern {text!r} tells positions twice, as {told[0]} and as {told[1]}; keep one pair")
    if not fields:
        raise ValueError(f"the pattern {text!r} has no field; expected some of {', '.join(FIELDS)}, as {{row:d}}")
    return Pattern(text, fields, expression)


def _field(hole: str, text: str) -> str:
    """The name in a hole of a template, as `row:d` or `row`."""
    name, _, spec = hole.partition(":")
    _check_known(name, text)
    if spec and name not in _SPEC.get(spec[-1], ()):
        letter = next(letter for letter, names in _SPEC.items() if name in names)
        raise ValueError(f"the pattern {text!r} has {{{hole}}}; expected {{{name}:{letter}}}")
    return name


def _check_known(name: str, text: str) -> None:
    if name not in FIELDS:
        near = difflib.get_close_matches(name, FIELDS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"the pattern {text!r} has an unknown field {name!r}; known are {', '.join(FIELDS)}{meant}")
