"""The functions of a C file beside a Python module, compiled when they are first asked for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from weft.kernels.native import build

POINTER, NUMBER, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


@cache
def runner() -> ctypes.CDLL | None:
    """Return what runs operations (program.c), None if this machine cannot compile it."""
    found = build.load(Path(__file__).with_name("program.c"))
    if found is not None:
        found.weft_run.argtypes = [POINTER, NUMBER, NUMBER]
        found.weft_run.restype = None
    return found


def beside(
    module: str, source: str = "cpu.c", **prototypes: list[Any]
) -> Callable[[], ctypes.CDLL | None]:
    """Return what loads the ``source`` beside ``module`` (its ``__file__``), once.

    ``prototypes``: the type of each function's result, or None, then those of its arguments. What
    is returned gives None where the library cannot be made.
    """

    @cache
    def library() -> ctypes.CDLL | None:
        """Return the compiled kernel, None if there is none on this machine."""
        if runner() is None:
            return None
        found = build.load(Path(module).with_name(source))
        if found is not None:
            for name, (result, *arguments) in prototypes.items():
                function = getattr(found, name)
                function.restype, function.argtypes = result, arguments
        return found

    return library
