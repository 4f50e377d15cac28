"""The limits of the machine, measured in the same run: matrix rates and the memory rate.

A rate is the best of several repetitions of the best of several kernels: what the hardware gives to somebody here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnx.parser
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks import stats
from benchmarks.sessions import open_session

REPEATS = 5
_POSITIONS, _MATRIX = 64, 1536
"""Sides of the convolutions' input and of the matrices of the product."""
_KERNELS = {"3x3": (512, 3), "1x1": (1024, 1)}
"""Convolutions: channels and side of the kernel."""


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
        """The better of two measurements of each kernel: the clock of a machine is not always the same."""
        pairs = ((self.fp32, other.fp32), (self.int8, other.int8), (self.memory, other.memory))
        return Rates(*({name: max(rate, b.get(name, 0.0)) for name, rate in a.items()} for a, b in pairs))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a result file."""
        return asdict(self)


def measure(threads: int, repeats: int = REPEATS) -> Rates:
    """The rates with ``threads`` CPU threads; takes about ten seconds."""
    torch.set_num_threads(threads)
    a, b, out = (torch.randn(_MATRIX, _MATRIX) for _ in range(3))
    fp32 = {"PyTorch matrix product": 2.0 * _MATRIX**3 / _least(lambda: torch.mm(a, b, out=out), repeats)}
    int8: dict[str, float] = {}
    for name, (channels, side) in _KERNELS.items():
        for rates, quantised in ((fp32, False), (int8, True)):
            rate = _convolution_rate(channels, side, quantised, threads, repeats)
            rates[f"ONNX Runtime {name} convolution"] = rate
    return Rates(fp32, int8, _memory(repeats))


def _convolution_rate(channels: int, side: int, quantised: bool, threads: int, repeats: int) -> float:
    session = open_session(_convolution(channels, side, quantised), threads)
    x = np.random.default_rng(0).standard_normal((1, channels, _POSITIONS, _POSITIONS), dtype=np.float32)
    operations = 2.0 * _POSITIONS**2 * channels**2 * side**2
    return operations / _least(lambda: session.run(None, {"x": x}), repeats)


def _memory(repeats: int) -> dict[str, float]:
    """Copy and sum of arrays far larger than any cache (J. McCalpin's STREAM counts the same way)."""
    a, b, c = (torch.ones(48 * 2**20) for _ in range(3))
    size = a.numel() * 4
    return {
        "copy": 2 * size / _least(lambda: b.copy_(a), repeats),
        "add": 3 * size / _least(lambda: torch.add(a, b, out=c), repeats),
    }


def _least(work: Callable[[], object], repeats: int) -> float:
    """The least seconds of ``repeats`` runs after one that warms up."""
    return min([stats.seconds(work) for _ in range(repeats + 1)][1:])


def _convolution(channels: int, side: int, quantised: bool) -> onnx.ModelProto:
    """A convolution x -> y; quantised: uint8 activations, int8 weights, with Q/DQ around it."""
    shape = f"float[1,{channels},{_POSITIONS},{_POSITIONS}]"
    weight = np.random.default_rng(1).standard_normal((channels, channels, side, side), dtype=np.float32)
    pads = f"pads=[{', '.join([str(side // 2)] * 4)}]"
    constants: dict[str, NDArray[Any]]
    if not quantised:
        body, constants = f"y = Conv<{pads}>(x, w)", {"w": weight}
    else:
        body = f"""xq = QuantizeLinear(x, s, z)  xd = DequantizeLinear(xq, s, z)  wd = DequantizeLinear(wq, s, wz)
            yf = Conv<{pads}>(xd, wd)  yq = QuantizeLinear(yf, s, z)  y = DequantizeLinear(yq, s, z)"""
        scale, zero = np.array(0.05, np.float32), np.array(128, np.uint8)
        quantised_weight = (weight * 20).clip(-127, 127).astype(np.int8)
        constants = {"wq": quantised_weight, "wz": np.array(0, np.int8), "s": scale, "z": zero}
    header = '<ir_version: 10, opset_import: ["" : 18]>'
    model = onnx.parser.parse_model(f"{header} rate ({shape} x) => ({shape} y) {{ {body} }}")
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model
