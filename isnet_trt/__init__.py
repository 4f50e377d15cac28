"""isnet_trt: run ISNet semantic segmentation from a bundle, with the label maps of the reference evaluation.

    from isnet_trt import Segmenter
    with Segmenter.open("bundles/ade") as segmenter:
        segmentation = segmenter(image)          # uint8 H×W×3, RGB
        segmentation.labels                      # uint8 H×W

Importing this package imports neither torch nor onnx nor a CUDA library; an engine library is imported when a bundle
that needs it is opened.
"""

from __future__ import annotations

import importlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isnet_trt._version import __version__

# ONNX Runtime 1.32 writes an identifier of the machine and a log of events into the user's cache, and sends them. Only
# this variable, before its import, keeps it from both; child processes inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from isnet_trt.errors import (
        BuildError,
        BundleError,
        CheckpointError,
        EngineError,
        EngineUnavailable,
        ImageError,
        IsnetError,
        OutOfMemory,
        ParityError,
        SettingsError,
    )
    from isnet_trt.pictures.raw import RawImage, RawLabels, RawPlane
    from isnet_trt.pictures.yuv import I420, NV12
    from isnet_trt.runtime.segmentation import Segmentation
    from isnet_trt.runtime.segmenter import Segmenter
    from isnet_trt.settings import Inference

logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "I420",
    "NV12",
    "BuildError",
    "BundleError",
    "CheckpointError",
    "EngineError",
    "EngineUnavailable",
    "ImageError",
    "Inference",
    "IsnetError",
    "OutOfMemory",
    "ParityError",
    "RawImage",
    "RawLabels",
    "RawPlane",
    "Segmentation",
    "Segmenter",
    "SettingsError",
    "__version__",
    "get_include",
]
_MODULES = {
    "Segmenter": "runtime.segmenter",
    "Segmentation": "runtime.segmentation",
    "Inference": "settings",
    "RawImage": "pictures.raw",
    "RawLabels": "pictures.raw",
    "RawPlane": "pictures.raw",
    "NV12": "pictures.yuv",
    "I420": "pictures.yuv",
}
"""Where the names come from; the others are exceptions."""


def get_include() -> str:
    """The folder of ``isnet.h``, ``isnet.hpp`` and the library's sources, for C and C++ (docs/embedding.md)."""
    return str(Path(__file__).resolve().parent / "c_api")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'isnet_trt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"isnet_trt.{_MODULES.get(name, 'errors')}"), name)
