"""The machine's own limits, measured in the same run: matrix rates and the memory rate.

A rate is the best of several repetitions of the best of several kernels: what the hardware gives to somebody here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

REPEATS = 5
_SIDE, _MATRIX = 64, 1536
_KERNELS = {"3x3": (512, 3), "1x1": (1024, 1)}
"""Convolutions on 64x64 positions: channels and side of the kernel."""


@dataclass(frozen=True)
class Rates:
    """Operations per second of float32 and of uint8 times int8 arithmetic, and bytes per second; by kernel."""

    fp32: dict[str, float]
    int8: dict[str, float]
    memory: dict[str, float]

    def matrix(self, quantised: bool) -> float:
        """The best matrix rate of the arithmetic, in operations per second."""
        return max((self.int8 if quantised else self.fp32).values())

    @property
    def bandwidth(self) -> float:
        """The best memory rate, in bytes per second, reads and writes added."""
        return max(self.memory.values())

    def best(self, other: Rates) -> Rates:
        """The better of two measurements of each kernel: a machine's clock is not always the same."""
        pairs = ((self.fp32, other.fp32), (self.int8, other.int8), (self.memory, other.memory))
        return Rates(*({name: max(rate, b.get(name, 0.0)) for name, rate in a.items()} for a, b in pairs))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a result file."""
        return asdict(self)


def measure(threads: int, repeats: int = REPEATS) -> Rates:
    """The rates with ``threads`` CPU threads; takes about ten seconds."""
    torch.set_num_threads(threads)
    fp32 = {"PyTorch matrix product": 2.0 * _MATRIX**3 / _best(_product(), repeats)}
    int8: dict[str, float] = {}
    for name, (channels, side) in _KERNELS.items():
        for found, quantised in ((fp32, False), (int8, True)):
            rate = _convolution_rate(channels, side, quantised, threads, repeats)
            found[f"ONNX Runtime {name} convolution"] = rate
    return Rates(fp32, int8, _memory(repeats))


def _convolution_rate(channels: int, side: int, quantised: bool, threads: int, repeats: int) -> float:
    session = _session(_convolution(channels, side, quantised), threads)
    x = np.random.default_rng(0).standard_normal((1, channels, _SIDE, _SIDE), dtype=np.float32)
    operations = 2.0 * _SIDE**2 * channels**2 * side**2
    return operations / _best(lambda: session.run(None, {"x": x}), repeats)


def _product() -> Callable[[], object]:
    a, b = torch.randn(_MATRIX, _MATRIX), torch.randn(_MATRIX, _MATRIX)
    out = torch.empty(_MATRIX, _MATRIX)
    return lambda: torch.mm(a, b, out=out)


def _memory(repeats: int) -> dict[str, float]:
    """Copy and sum of arrays far larger than any cache (J. McCalpin's STREAM counts the same way)."""
    a, b, c = (torch.ones(48 * 2**20) for _ in range(3))
    size = a.numel() * 4
    return {
        "copy": 2 * size / _best(lambda: b.copy_(a), repeats),
        "add": 3 * size / _best(lambda: torch.add(a, b, out=c), repeats),
    }


def _best(work: Callable[[], object], repeats: int) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _convolution(channels: int, side: int, quantised: bool) -> onnx.ModelProto:
    """A convolution; quantised: uint8 activations, int8 weights, with Q/DQ around it."""
    weight = np.random.default_rng(1).standard_normal((channels, channels, side, side), dtype=np.float32)
    nodes, source, filters = [], "x", "w"
    constants = [numpy_helper.from_array(weight, "w")]
    if quantised:
        constants = [
            numpy_helper.from_array((weight * 20).clip(-127, 127).astype(np.int8), "wq"),
            numpy_helper.from_array(np.array(0.05, np.float32), "s"),
            numpy_helper.from_array(np.array(128, np.uint8), "z"),
            numpy_helper.from_array(np.array(0, np.int8), "wz"),
        ]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            helper.make_node("DequantizeLinear", ["wq", "s", "wz"], ["wd"]),
        ]
        source, filters = "xd", "wd"
    nodes.append(helper.make_node("Conv", [source, filters], ["y"], pads=[side // 2] * 4))
    if quantised:
        nodes[-1].output[0] = "yf"
        nodes += [
            helper.make_node("QuantizeLinear", ["yf", "s", "z"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "s", "z"], ["y"]),
        ]
    shape = [1, channels, _SIDE, _SIDE]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "rate", tensors[:1], tensors[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _session(model: onnx.ModelProto, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
