"""The engine libraries, one line each.

A library KIND is described in two modules, imported on demand: `isnet_trt.engines.KIND` for the runtime (its object
``LIBRARY``) and `isnet_trt.export.engines.KIND` for a build (``BUILDER``), with underscores for hyphens.
"""

from __future__ import annotations

import functools
import importlib

from isnet_trt.engines.library import Library
from isnet_trt.errors import SettingsError

KINDS = (
    "tensorrt",
    "tensorrt-rtx",
    "onnxruntime",
)
"""In the order in which ``auto`` prefers them."""


@functools.cache
def library(kind: str) -> Library:
    """The library called ``kind``.

    Raises:
        SettingsError: there is none.
    """
    if kind not in KINDS:
        raise SettingsError(f"engine {kind!r} is unknown to this isnet_trt; it knows {', '.join(KINDS)}")
    described: Library = importlib.import_module(f"isnet_trt.engines.{module_name(kind)}").LIBRARY
    return described


def module_name(kind: str) -> str:
    """Name of the two modules of a library."""
    return kind.replace("-", "_")


def compiling_kinds() -> tuple[str, ...]:
    """The libraries that build serialised engines from graphs."""
    return tuple(kind for kind in KINDS if library(kind).compiles)
