"""Bundles for ONNX Runtime: the ONNX graph is the engine."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from isnet_trt.bundle import CUDA_ONNX, ONNX
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.onnxruntime import LIBRARY
from isnet_trt.export.cuda_provider import NO_BF16, for_cuda_provider
from isnet_trt.export.engines.base import BuildRequest, BuiltEngine, EngineBuilder
from isnet_trt.export.graph import save_graph
from isnet_trt.export.options import EngineOptions
from isnet_trt.settings import Placement


class OnnxRuntimeBuilder(EngineBuilder):
    """Nothing is compiled; eight bits are uint8 activations, and any input size and batch is taken.

    A bundle for a GPU holds a second graph, for the CUDA provider. bfloat16 is always for a GPU; on a CPU the portable
    graph emulates it.
    """

    library = LIBRARY
    eight_bits: ClassVar = {"int8": "cpu"}
    fastest_first = ("int8", "fp32")  # float16 is never faster on a CPU
    beside_cpu = " or in its CUDA provider"
    no_bf16: ClassVar = NO_BF16

    def runs_on_gpu(self, options: EngineOptions) -> bool:
        return options.kernels or Placement.parse(options.device).kind == "cuda"

    def build(self, request: BuildRequest, folder: Path) -> BuiltEngine:
        file, for_gpu = ONNX, self.runs_on_gpu(request.options) or request.precision == "bf16"
        if for_gpu and request.precision not in self.eight_bits:
            file = CUDA_ONNX
            save_graph(for_cuda_provider(request.proto), folder / file)
        info = EngineInfo(self.kind, self.library.load().__version__, file)
        return BuiltEngine(info, {"bytes": (folder / file).stat().st_size})


BUILDER = OnnxRuntimeBuilder()
