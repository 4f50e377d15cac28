"""How an engine of each library is built; `isnet_trt.engines.table` lists the libraries."""

from __future__ import annotations

import functools
import importlib

from isnet_trt.engines import table
from isnet_trt.export.engines.base import EngineBuilder


@functools.cache
def engine_builder(kind: str) -> EngineBuilder:
    """The builder for the library ``kind``.

    Raises:
        SettingsError: there is no such library.
    """
    table.library(kind)
    builder: EngineBuilder = importlib.import_module(f"{__name__}.{table.module_name(kind)}").BUILDER
    return builder
