"""A pipeline on host memory: the real kernels in the interpreter and a real network, queued on the doubles' streams."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from cuda_double import Driver, Gpu, Pycuda
from host_kernels import HostKernels

from isnet_trt.cuda import device as device_module
from isnet_trt.cuda.device import Device
from isnet_trt.cuda.pipeline import Pipeline
from isnet_trt.cuda.plan import Model
from isnet_trt.engines import open_onnx
from isnet_trt.engines.device import Gpu as Card
from isnet_trt.errors import EngineError

CARD = Card("NVIDIA Double", "8.9", "CUDA 13.0")


class QueuedKernels:
    """`HostKernels` that run when their stream does, and touch device memory only."""

    def __init__(self, gpu: Gpu, classes: int) -> None:
        self.gpu = gpu
        self.host = HostKernels(classes=classes)
        self.launched: list[str] = []

    def __contains__(self, name: object) -> bool:
        return name in self.host

    def launch(self, name: str, stream: int, **arguments: Any) -> None:
        self.launched.append(name)
        types = self.host.launches[name].types
        assert set(arguments) == set(types)

        def run() -> None:
            for argument, kind in types.items():
                if kind.startswith("*"):
                    self.gpu.check_range(arguments[argument], 1)
            self.host.launch(name, stream, **arguments)

        self.gpu.put(stream, run)


class HostEngine:
    """ONNX Runtime on the addresses it is given, as a device engine."""

    def __init__(self, gpu: Gpu, path: Path, classes: int, stride: int, not_capturable: str = "") -> None:
        self.gpu = gpu
        self.engine = open_onnx(path, threads=1)
        self.classes, self.stride = classes, stride
        self.not_capturable = not_capturable
        self.shapes: list[tuple[int, ...]] = []
        self.kept: list[frozenset] = []
        self.gain = 1.0

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[0], self.classes, -(-shape[2] // self.stride), -(-shape[3] // self.stride)

    def enqueue(self, input_address: int, output_address: int, shape: tuple[int, ...], stream: int) -> None:
        assert input_address % 256 == 0
        assert output_address % 256 == 0
        self.shapes.append(shape)

        def run() -> None:
            out = self.output_shape(shape)
            self.gpu.check_range(input_address, 4 * int(np.prod(shape)))
            self.gpu.check_range(output_address, 4 * int(np.prod(out)))
            answer = self.engine.run(np.ascontiguousarray(_at(input_address, shape)))
            _at(output_address, out)[...] = answer * np.float32(self.gain)

        self.gpu.put(stream, run)

    def no_graph(self, shapes: frozenset, stream: int) -> str:
        assert shapes <= set(self.shapes)
        return self.not_capturable

    def keep(self, shapes: frozenset) -> None:
        self.kept.append(shapes)

    def fail(self, *arguments: Any) -> None:
        raise EngineError("the engine failed")


def _at(address: int, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape))
    return np.frombuffer((ctypes.c_float * size).from_address(address), np.float32).reshape(shape)


def open_pipeline(
    gpu: Gpu, path: Path, model: Model, not_capturable: str = ""
) -> tuple[Pipeline, QueuedKernels, HostEngine]:
    """Around the network of ``path``."""
    device_module._contexts.clear()
    kernels = QueuedKernels(gpu, model.head.classes)
    engine = HostEngine(gpu, path, model.head.classes, model.head.stride, not_capturable)
    device = Device(Pycuda(gpu), Driver(gpu), CARD)
    return Pipeline(device, kernels, engine, model), kernels, engine
