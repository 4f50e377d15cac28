"""Stand-ins that let the GPU check's own code run on the CPU before it meets a GPU.

`use_cpu` puts PyTorch's tensors on the CPU and gives `torch.cuda` events, streams and graphs that run at once;
`Library` is a TensorRT whose engines are ONNX Runtime sessions on the addresses they are given. What they show is that
the code runs and judges as it should, not any speed.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from benchmarks.gpu_check import engines, place, timing


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        assert self.at

    def elapsed_time(self, other: Event) -> float:
        return max(1e3 * (other.at - self.at), 1e-4)


class Stream:
    def __init__(self, handle: int = 0) -> None:
        self.cuda_stream = handle


class Graph:
    """What is captured has run already; a replay does it again."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


@contextlib.contextmanager
def capturing(graph: Graph) -> Iterator[None]:
    yield


def use_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends."""
    properties = SimpleNamespace(multi_processor_count=3, total_memory=1 << 30, L2_cache_size=1 << 16)
    stand_ins = {
        "Event": Event,
        "Stream": Stream,
        "ExternalStream": Stream,
        "CUDAGraph": Graph,
        "graph": capturing,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": Stream,
        "default_stream": Stream,
        "_sleep": lambda cycles: None,
        "synchronize": lambda: None,
        "get_device_properties": lambda index: properties,
        "mem_get_info": lambda: (1 << 29, 1 << 30),
        "is_available": lambda: True,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(place, "DEVICE", "cpu")
    monkeypatch.setattr(timing, "WARM_SECONDS", 0.0)


class Severity:
    ERROR, INTERNAL_ERROR = "error", "internal error"


class Library:
    """A TensorRT of which an engine is the graph itself; ``unable`` are precisions that it refuses to build."""

    __name__ = "stand_in"
    __version__ = "1.0"
    LayerInformationFormat = SimpleNamespace(ONELINE="oneline")

    class ILogger:
        Severity = Severity

    def __init__(self, *unable: str, wrong: float = 0.0) -> None:
        self.unable, self.wrong = unable, wrong

    def build(self, library: Any, model: bytes, target: str | None = None) -> bytes:
        """In the place of `engines.build`."""
        kinds = {t.data_type for t in onnx.load_from_string(model).graph.initializer}
        names = {onnx.TensorProto.BFLOAT16: "bf16", onnx.TensorProto.FLOAT8E4M3FN: "fp8", onnx.TensorProto.INT8: "int8"}
        for kind in kinds:
            if names.get(kind) in self.unable:
                raise engines.BuildFailed(f"no {names[kind]} for {target}")
        return model

    def Runtime(self, log: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda model: Engine(self, model))


class Engine:
    def __init__(self, library: Library, model: bytes) -> None:
        self.library, self.proto = library, onnx.load_from_string(model)
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def create_execution_context(self) -> Context:
        return Context(self)

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda form: "layers in words of its own")

    def get_tensor_dtype(self, name: str) -> Any:
        kind = next(o for o in self.proto.graph.output if o.name == name).type.tensor_type.elem_type
        return SimpleNamespace(name={1: "FLOAT", 10: "HALF"}[kind])


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.at: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> None:
        self.at[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.engine.session.get_outputs()[0].shape)

    def execute_async_v3(self, stream: int) -> bool:
        half = self.engine.session.get_inputs()[0].type == "tensor(float16)"
        image = _at(self.at["image"], self.shape, np.float16 if half else np.float32)
        made = self.engine.session.run(None, {"image": np.array(image)})[0]
        out = _at(self.at["logits"], made.shape, made.dtype)
        out[...] = made + self.engine.library.wrong * made.std()
        return True


def _at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)
