"""Which nodes of a graph stay float32 in a half-precision engine, and why: found from the ranges on pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

from isnet_trt.export.ranges import Range, Ranges, scores_bound_name

Half = Literal["fp16", "bf16"]
SUMS = {"ReduceMean", "ReduceSum", "GlobalAveragePool", "Softmax", "LogSoftmax", "Log"}
"""Operators that add over a whole picture or take logarithms: eleven or eight bits are not enough for their sums."""
LARGEST = 65504.0
"""Largest finite float16 (IEEE 754 binary16)."""
MARGIN = 4.0
"""Room between the largest value on the pictures and float16's largest."""
SMALLEST = 2.0**-13
"""Below it a tensor's largest value has fewer than the eleven bits of float16: the step of subnormals is 2^-24."""

Fp32Fallback = dict[str, str]
"""Node name -> why it stays float32."""


def find_fp32_fallback(proto: onnx.ModelProto, ranges: Ranges, half: Half) -> Fp32Fallback:
    """The nodes of ``proto`` to compute in float32 when the rest is ``half``.

    Always: operators of `SUMS`. For fp16 also each node with an input, weight or output that comes near `LARGEST` or
    lies below `SMALLEST` altogether on the pictures of ``ranges`` (`isnet_trt.export.ranges.measure`), and an attention
    whose scores may. bfloat16 has the exponents of float32.
    """
    found = {node.name: f"{node.op_type} over many values" for node in proto.graph.node if node.op_type in SUMS}
    if half == "bf16":
        return found
    known = ranges | _weights(proto)
    for node in proto.graph.node:
        for name in _tensors(node):
            reason = _hazard(known.get(name))
            if reason and node.name not in found:
                found[node.name] = f"{name} {reason}"
    return found


def _tensors(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    yield from node.output
    if node.op_type == "ContextAttention":
        yield scores_bound_name(node)


def _hazard(found: Range | None) -> str:
    if found is None or found.reach == 0:
        return ""
    if found.reach > LARGEST / MARGIN:
        return f"reaches {found.reach:.3g}"
    if found.reach < SMALLEST:
        return f"stays below {found.reach:.3g}"
    return ""


def _weights(proto: onnx.ModelProto) -> Ranges:
    arrays = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    return {
        name: Range(float(array.min()), float(array.max()), float(np.sqrt(np.square(array, dtype=np.float64).mean())))
        for name, array in arrays.items()
        if array.size
    }
