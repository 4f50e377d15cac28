"""ONNX Runtime, as the runtime sees it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from isnet_trt.engines.base import DeviceEngine, Engine
from isnet_trt.engines.library import PORTABLE, EngineSource, Library
from isnet_trt.engines.onnxruntime_cpu import OnnxRuntimeEngine
from isnet_trt.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine, missing_provider
from isnet_trt.errors import EngineUnavailable


class OnnxRuntime(Library):
    """ONNX Runtime: runs a bundle's ONNX graph on the CPU, and on a GPU where its CUDA provider is asked for."""

    kind = PORTABLE
    title = "ONNX Runtime"
    module = "onnxruntime"
    packages = ("onnxruntime", "onnxruntime-gpu")
    extra = "cpu"
    precisions: ClassVar = {
        "fp32": "float32",
        "fp16": "with fp32 fallback: on a CPU half the size, not faster",
        "bf16": "with fp32 fallback, for the CUDA provider (8.0 and newer); emulated on a CPU",
        "int8": "uint8: smaller and several times faster",
    }

    options = Library.options | {"device"}

    @property
    def install(self) -> str:
        return f"{super().install} (gpu-ort instead of cpu: for NVIDIA GPUs)"

    def open_on_cpu(self, source: EngineSource, *, threads: int | None = None) -> Engine:
        engine = OnnxRuntimeEngine(self.load(), source.path, threads, content=source.content)
        engine.description += source.note
        return engine

    def open_on_gpu(self, source: EngineSource, *, threads: int | None = None, on_device: bool = True) -> DeviceEngine:
        return OnnxRuntimeCudaEngine(
            self.load(),
            source.path,
            (source.classes, source.stride),
            source.kernels,
            on_device,
            threads,
            content=source.content,
            gpu=source.gpu,
            precision=source.precision,
            note=source.note,
        )

    def missing_provider(self) -> str:
        """Why the CUDA provider cannot be used, and what to install; empty if it is there."""
        try:
            return missing_provider(self.load())
        except EngineUnavailable as error:
            return str(error)


LIBRARY = OnnxRuntime()


def open_onnx(path: str | os.PathLike[str], *, threads: int | None = None) -> Engine:
    """A model file under ONNX Runtime on the CPU."""
    return OnnxRuntimeEngine(LIBRARY.load(), Path(path), threads)
