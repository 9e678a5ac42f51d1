"""Arrays by their addresses, for kernels that work on many of them in one call.

Why it exists: numba takes arrays one argument each, and a list of them only by converting every one. A call per array
costs a few microseconds, and a hand-over of the GIL, which costs more than the work where threads are busy. So such
kernels take a table of addresses. Whoever calls them keeps the arrays alive, contiguous and of the size that the
kernel is told; nothing else checks it.

This module imports numba, which takes a second: only modules of kernels import it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from numba import types
from numba.extending import intrinsic


def _intrinsic(function: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """What numba puts into a kernel as instructions: called there without its first argument."""
    return cast("Callable[[Any], Any]", intrinsic(function))


@_intrinsic
def pointer(_typing: Any, address: Any) -> Any:
    """A number as a pointer, as `numba.carray` takes it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(address), generate


@_intrinsic
def read_only(_typing: Any, array: Any) -> Any:
    """The same array, of the type that numba gives arrays that are only read."""

    def generate(_context: Any, _builder: Any, _signature: Any, arguments: Any) -> Any:
        return arguments[0]

    return array.copy(readonly=True)(array), generate
