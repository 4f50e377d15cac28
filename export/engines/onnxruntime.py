"""Bundles for ONNX Runtime: the ONNX graph is the engine."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import ClassVar

from isnet_trt.bundle import CUDA_ONNX, ONNX
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.onnxruntime import LIBRARY
from isnet_trt.errors import SettingsError
from isnet_trt.export.cuda_provider import NO_BF16, for_cuda_provider
from isnet_trt.export.engines.base import BuildRequest, BuiltEngine, EngineBuilder
from isnet_trt.export.engines.profiles import Shape
from isnet_trt.export.graph import save_graph
from isnet_trt.export.onnx_edit import output_type
from isnet_trt.export.options import EngineOptions
from isnet_trt.settings import MOST_PIXELS, Placement

BATCH = 8
"""Windows at once of a half-precision network, unless the options say another number; float32 holds N x N scores of the
attention for each."""


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

    def check(self, options: EngineOptions) -> None:
        super().check(options)
        if options.half_logits and not self.runs_on_gpu(options):
            raise SettingsError("--half-logits is for an engine on a GPU: give --device cuda or --kernels too")

    def build(self, request: BuildRequest, folder: Path) -> BuiltEngine:
        info = EngineInfo(self.kind, self.library.load().__version__, ONNX)
        for_gpu = self.runs_on_gpu(request.options) or request.precision == "bf16"
        if for_gpu and request.precision not in self.eight_bits:
            save_graph(for_cuda_provider(request.proto), folder / CUDA_ONNX)
            shapes, output = _shapes(request), output_type(request.proto)
            info = dataclasses.replace(info, file=CUDA_ONNX, shapes=shapes, output=output)
        return BuiltEngine(info, {"bytes": (folder / info.file).stat().st_size})


def _shapes(request: BuildRequest) -> tuple[Shape, Shape, Shape]:
    """The inputs that the bundle's presets lead to; any others are taken too, but not another number at once."""
    batch, shapes = request.options.batch, request.shapes
    fixed = request.proto.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    if batch == 1 and request.precision != "fp32" and not fixed:
        batch = min(BATCH, max(1, MOST_PIXELS // math.prod(shapes.largest[2:])))
    return (1, *shapes.smallest[1:]), (batch, *shapes.usual[1:]), (batch, *shapes.largest[1:])


BUILDER = OnnxRuntimeBuilder()
