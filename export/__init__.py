"""From a network to a bundle: ONNX graph, engine, parity gate. Importing the package does not import torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isnet_trt.export.build_bundle import (
        EngineOptions,
        EvidenceOptions,
        Module,
        OnnxFile,
        PrecisionOptions,
        TuneOptions,
        build,
    )

__all__ = ["EngineOptions", "EvidenceOptions", "Module", "OnnxFile", "PrecisionOptions", "TuneOptions", "build"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'isnet_trt.export' has no attribute {name!r}")
    return getattr(importlib.import_module("isnet_trt.export.build_bundle"), name)
