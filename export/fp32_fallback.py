"""The fp32 fallback: which nodes of a half-precision graph stay float32, and why, from tensor ranges on pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

from isnet_trt.export.ranges import Range, Ranges, scores_bound_name

Half = Literal["fp16", "bf16"]
REDUCTIONS = {"ReduceMean", "ReduceSum", "GlobalAveragePool", "Softmax", "LogSoftmax", "Log"}
"""Operators that sum over a whole picture or take logarithms: eleven or eight bits are too few for their sums."""
LARGEST = 65504.0
"""Largest finite float16 (IEEE 754 binary16)."""
MARGIN = 4.0
"""Required ratio of float16's largest value to a tensor's largest value on the pictures."""
SMALLEST = 2.0**-13
"""A tensor whose largest value is below has fewer than float16's eleven bits: subnormals have a step of 2^-24."""
_WITH_BIAS = {"Conv", "ConvTranspose", "Gemm", "BatchNormalization", "InstanceNormalization", "LayerNormalization"}
"""Operators whose third input is added."""

Fp32Fallback = dict[str, str]
"""Node name -> why the node stays float32."""


def find_fp32_fallback(
    proto: onnx.ModelProto, ranges: Ranges, half: Half, no_bf16: Mapping[str, str] | None = None
) -> Fp32Fallback:
    """The nodes of ``proto`` to compute in float32 when the rest is ``half``.

    Always the operators of `REDUCTIONS`; for bf16 also those of ``no_bf16`` (operator -> what lacks it in bf16), which
    has the exponents of float32. For fp16 also each node with an input, weight or output whose largest value in
    ``ranges`` (`isnet_trt.export.ranges.measure_ranges`) is above `LARGEST` / `MARGIN` or below `SMALLEST`, and each
    attention whose scores may be; a small summand counts only if the sum is small too.
    """
    fallback = {
        node.name: f"{node.op_type} over many values" for node in proto.graph.node if node.op_type in REDUCTIONS
    }
    if half == "bf16":
        reasons = no_bf16 or {}
        lacking = [node for node in proto.graph.node if node.op_type in reasons]
        return fallback | {node.name: f"{reasons[node.op_type]} has no {node.op_type} in bf16" for node in lacking}
    # Weights are cast as well: one beyond float16's range would become infinite.
    known = ranges | _weight_ranges(proto)
    for node in proto.graph.node:
        added = node.input[2:3] if node.op_type in _WITH_BIAS else node.input if node.op_type == "Add" else ()
        for name in _tensors(node):
            # What a small summand loses is below the last bit of an output that is not small itself.
            reason = _hazard(known.get(name), smallest=0 if name in added else SMALLEST)
            if reason and node.name not in fallback:
                fallback[node.name] = f"{name} {reason}"
    return fallback


def _tensors(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    yield from node.output
    # The node's body computes q·k in half precision before it widens the scores: they could overflow unseen inside it.
    if node.op_type == "ContextAttention":
        yield scores_bound_name(node)


def _hazard(measured: Range | None, smallest: float) -> str:
    # 0 is exact in every type; indices, shapes and what else `measure_ranges` leaves out have no range.
    if measured is None or measured.reach == 0:
        return ""
    if measured.reach > LARGEST / MARGIN:
        return f"reaches {measured.reach:.3g}"
    return f"stays below {measured.reach:.3g}" if measured.reach < smallest else ""


def _weight_ranges(proto: onnx.ModelProto) -> Ranges:
    weights = (tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in weights}
    return {
        name: Range(float(array.min()), float(array.max()), float(np.sqrt(np.square(array, dtype=np.float64).mean())))
        for name, array in arrays.items()
        if array.size
    }
