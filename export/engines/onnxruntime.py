"""Bundles for ONNX Runtime: the ONNX graph is the engine."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from isnet_trt.bundle import ONNX
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.onnxruntime import LIBRARY
from isnet_trt.export.engines.base import BuildRequest, BuiltEngine, EngineBuilder


class OnnxRuntimeBuilder(EngineBuilder):
    """Nothing is compiled; eight bits are uint8 activations, and any input size and batch is taken."""

    library = LIBRARY
    eight_bits: ClassVar = {"int8": "cpu"}
    fastest_first = ("int8", "fp32")  # float16 is never faster on a CPU

    def build(self, request: BuildRequest, folder: Path) -> BuiltEngine:
        info = EngineInfo(self.kind, self.library.load().__version__, ONNX)
        return BuiltEngine(info, {"bytes": (folder / ONNX).stat().st_size})


BUILDER = OnnxRuntimeBuilder()
