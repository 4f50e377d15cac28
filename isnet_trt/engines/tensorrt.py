"""TensorRT, as the runtime sees it."""

from __future__ import annotations

from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines.library import PORTABLE
from isnet_trt.engines.tensorrt_family import TensorRTFamily
from isnet_trt.errors import EngineUnavailable

_OLDEST = (7, 5)
"""Oldest compute capability of TensorRT from 10.5 on (Turing)."""


class TensorRT(TensorRTFamily):
    """TensorRT 10.13 to 11: builds on the GPU that will run the engine."""

    kind = "tensorrt"
    title = "TensorRT"
    module = "tensorrt"
    packages = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
    extra = "gpu"
    options = TensorRTFamily.options | {"hardware_compatible", "version_compatible", "timing_cache"}

    def unsupported(self, gpu: Gpu) -> str:
        if tuple(map(int, gpu.compute_capability.split("."))) < _OLDEST:
            return f"{self.kind} runs from compute capability {'.'.join(map(str, _OLDEST))} on"
        return ""

    def check_builder(self, gpu: Gpu | None, reason: str) -> None:
        if gpu is None:
            raise EngineUnavailable(
                f"TensorRT builds on the GPU that will run the engine: {reason}; use engine 'tensorrt-rtx' (it builds "
                f"ahead of time) or {PORTABLE!r}"
            )


LIBRARY = TensorRT()
