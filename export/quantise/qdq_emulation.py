"""The same numbers from ONNX Runtime: a quantised graph written in plain operators, for comparisons.

ONNX Runtime 1.32 cannot run DequantizeLinear with ``output_dtype``; gives wrong numbers for E4M3 at its full
optimisation level (label agreement 0.02 where 0.99 is right, on the demo model); and fuses some of the int8 layers of a
graph for TensorRT in its own way, which moves the logits by a third of what the rounding itself does. In the twin
weights are stored as what they are rounded to, and an activation is divided by its scale, rounded, clipped and
multiplied again: no optimiser takes that for quantisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from isnet_trt.export.onnx_edit import element_types
from isnet_trt.export.quantise.formats import FP8, INT8, UINT8, Format
from isnet_trt.export.quantise.insert import copied, raise_opset
from isnet_trt.export.quantise.placement import GraphIndex, attribute

_OPSET = 20
_FORMATS = {form.onnx_type: form for form in (INT8, UINT8, FP8)}


def emulate_qdq(proto: ModelProto) -> ModelProto:
    """A copy of a graph of any flavour, float32 or typed, that ONNX Runtime computes faithfully on a CPU."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    writer = _Writer(copy)
    nodes = [part for node in proto.graph.node for part in writer.plain(node)]
    used = {name for node in nodes for name in node.input}
    left = [copied(tensor) for tensor in copy.graph.initializer if tensor.name in used]
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.node.extend(nodes)
    copy.graph.initializer.extend(left)
    raise_opset(copy, _OPSET)
    return copy


class _Writer:
    """Writes the nodes of one graph anew."""

    def __init__(self, proto: ModelProto) -> None:
        self.graph, self.index, self.types = proto.graph, GraphIndex(proto), element_types(proto)

    def plain(self, node: NodeProto) -> Iterator[NodeProto]:
        """The nodes that stand for ``node``."""
        if node.op_type == "QuantizeLinear":
            yield from self._store(node)
        elif node.op_type == "DequantizeLinear" and node.input[0] in self.index.initializers:
            yield from self._constant(node)
        elif node.op_type == "DequantizeLinear":
            yield from self._restore(node)
        else:
            yield node

    def _store(self, node: NodeProto) -> Iterator[NodeProto]:
        """Stored numbers without their zero point, as float32."""
        source, scale, zero = node.input
        result = node.output[0]
        form, shift = self._format(zero)
        if self.types.get(source) != TensorProto.FLOAT:
            yield _node("Cast", [source], f"{result}::x", to=TensorProto.FLOAT)
            source = f"{result}::x"
        yield _node("Div", [source, scale], f"{result}::units")
        rounded = f"{result}::units" if form is FP8 else f"{result}::whole"
        if form is not FP8:
            yield _node("Round", [f"{result}::units"], rounded)
        bounds = [self._number(f"{result}::{end}", value - shift) for end, value in _ends(form)]
        clipped = f"{result}::clipped" if form is FP8 else result
        yield _node("Clip", [rounded, *bounds], clipped)
        if form is FP8:
            yield _node("Cast", [clipped], f"{result}::fp8", to=TensorProto.FLOAT8E4M3FN)
            yield _node("Cast", [f"{result}::fp8"], result, to=TensorProto.FLOAT)

    def _restore(self, node: NodeProto) -> Iterator[NodeProto]:
        result, dtype = node.output[0], _dtype(node)
        exact = result if dtype == TensorProto.FLOAT else f"{result}::exact"
        yield _node("Mul", [node.input[0], node.input[1]], exact)
        if exact != result:
            yield _node("Cast", [exact], result, to=dtype)

    def _constant(self, node: NodeProto) -> Iterator[NodeProto]:
        """A weight as the float32 numbers that it is rounded to, and a cast where the graph is typed."""
        stored, scale = (self.index.weight(name) for name in node.input[:2])
        result, dtype = node.output[0], _dtype(node)
        value = stored * scale.reshape(-1, *[1] * (stored.ndim - 1))
        exact = result if dtype == TensorProto.FLOAT else f"{result}::exact"
        self.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), exact))
        if exact != result:
            yield _node("Cast", [exact], result, to=dtype)

    def _format(self, zero: str) -> tuple[Format, int]:
        tensor = self.index.initializers[zero]
        return _FORMATS[tensor.data_type], int(self.index.weight(zero))

    def _number(self, name: str, value: float) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name


def _ends(form: Format) -> tuple[tuple[str, float], tuple[str, float]]:
    return ("lowest", form.lowest), ("highest", form.highest)


def _dtype(node: NodeProto) -> int:
    return attribute(node, "output_dtype", TensorProto.FLOAT)


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"{output}::{kind}", **attributes)
