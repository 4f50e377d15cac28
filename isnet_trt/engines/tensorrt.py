"""TensorRT, as the runtime sees it."""

from __future__ import annotations

from typing import Any

from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines.library import PORTABLE
from isnet_trt.engines.tensorrt_api import release
from isnet_trt.engines.tensorrt_family import TensorRTFamily
from isnet_trt.errors import EngineUnavailable

_OLDEST_GPU = (7, 5)
"""Oldest compute capability of TensorRT from 10.5 on (Turing)."""
_OLDEST, _MAJORS = (10, 6), (10, 11)
"""Oldest version, and the major versions, whose API this package uses: of the releases 10.6.0, 10.15.1 and 11.2.1."""
SUPPORTED = "TensorRT 10.6 and later 10.x, and 11.x"


class TensorRT(TensorRTFamily):
    """TensorRT 10.6 to 11: builds on the GPU that will run the engine."""

    kind = "tensorrt"
    title = "TensorRT"
    module = "tensorrt"
    packages = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
    extra = "gpu"
    options = TensorRTFamily.options | {"hardware_compatible", "version_compatible", "timing_cache"}

    def unsupported(self, gpu: Gpu) -> str:
        if tuple(map(int, gpu.compute_capability.split("."))) < _OLDEST_GPU:
            return f"{self.kind} runs from compute capability {'.'.join(map(str, _OLDEST_GPU))} on"
        return super().unsupported(gpu)

    def unsupported_version(self, version: str) -> str:
        numbers = tuple(int(part) for part in release(version).split("."))
        if numbers >= _OLDEST and numbers[0] in _MAJORS:
            return ""
        return (
            f"TensorRT {version} is installed, and isnet_trt supports {SUPPORTED}: {self.install}, or "
            f"use engine {PORTABLE!r}"
        )

    def check_builder(self, gpu: Gpu | None, reason: str) -> None:
        if gpu is None:
            raise EngineUnavailable(
                f"TensorRT builds on the GPU that will run the engine: {reason}; use engine 'tensorrt-rtx' (it builds "
                f"ahead of time) or {PORTABLE!r}"
            )
        self.check_driver(gpu)

    def create_builder(self, logger: Any) -> Any:
        # Where CUDA does not start, the Builder of TensorRT 10.6 ends the process; a Runtime shows it without that.
        self.create_runtime(logger)
        return super().create_builder(logger)


LIBRARY = TensorRT()
