"""Q/DQ emulation: a quantised graph in plain float32 operators that gives the same numbers under ONNX Runtime.

ONNX Runtime 1.32 cannot run DequantizeLinear with ``output_dtype``; gives wrong numbers for E4M3 at its full
optimisation level (label agreement 0.02 where 0.99 is right, on the demo model); and fuses some of the int8 layers of a
graph for TensorRT in its own way, which changes the logits by a third of what the rounding itself does. Here weights
are stored as the values that they are rounded to, and an activation is divided by its scale, rounded, clipped and
multiplied again: no optimiser recognises that as quantisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from isnet_trt.export.onnx_edit import attribute, element_types, set_opset, with_nodes
from isnet_trt.export.quantise.formats import FP8, INT8, UINT8
from isnet_trt.export.quantise.placement import GraphIndex

_OPSET = 20
_FORMATS = {form.onnx_type: form for form in (INT8, UINT8, FP8)}


def emulate_qdq(proto: ModelProto) -> ModelProto:
    """A copy of a graph of any flavour, float32 or typed, that ONNX Runtime computes faithfully on a CPU."""
    writer = _Writer(proto)
    nodes = [part for node in proto.graph.node for part in writer.emulated(node)]
    result = with_nodes(proto, nodes, writer.constants)
    # Only typed Q/DQ, which is gone now, needed a later opset.
    set_opset(result, _OPSET)
    return result


class _Writer:
    def __init__(self, proto: ModelProto) -> None:
        self.index, self.types = GraphIndex(proto), element_types(proto)
        self.constants: list[TensorProto] = []

    def emulated(self, node: NodeProto) -> Iterator[NodeProto]:
        """The nodes that replace ``node``."""
        if node.op_type == "QuantizeLinear":
            yield from self._quantise(node)
        elif node.op_type == "DequantizeLinear":
            yield from self._dequantise(node)
        else:
            yield node

    def _quantise(self, node: NodeProto) -> Iterator[NodeProto]:
        """The stored numbers minus their zero point, as float32."""
        source, scale, zero = node.input
        result = node.output[0]
        form = _FORMATS[self.index.initializers[zero].data_type]
        shift = int(self.index.array(zero))
        # Scales are float32, and Div takes operands of one type only.
        if self.types.get(source) != TensorProto.FLOAT:
            yield _node("Cast", [source], f"{result}::x", to=TensorProto.FLOAT)
            source = f"{result}::x"
        units = f"{result}::units"
        yield _node("Div", [source, scale], units)
        bounds = [
            self._constant(f"{result}::{end}", np.array(value - shift, np.float32))
            for end, value in (("lowest", form.lowest), ("highest", form.highest))
        ]
        if form is FP8:
            yield _node("Clip", [units, *bounds], f"{result}::clipped")
            yield _node("Cast", [f"{result}::clipped"], f"{result}::fp8", to=TensorProto.FLOAT8E4M3FN)
            yield _node("Cast", [f"{result}::fp8"], result, to=TensorProto.FLOAT)
        else:
            # ONNX's Round rounds halves to even, as QuantizeLinear does.
            yield _node("Round", [units], f"{result}::whole")
            yield _node("Clip", [f"{result}::whole", *bounds], result)

    def _dequantise(self, node: NodeProto) -> Iterator[NodeProto]:
        """Real numbers from stored ones: a product, or for a weight the values that it is rounded to."""
        result, element = node.output[0], attribute(node, "output_dtype", TensorProto.FLOAT)
        exact = result if element == TensorProto.FLOAT else f"{result}::exact"
        if node.input[0] in self.index.initializers:
            stored, scale = (self.index.array(name) for name in node.input[:2])
            values = stored * scale.reshape(-1, *[1] * (stored.ndim - 1))
            self._constant(exact, values.astype(np.float32))
        else:
            yield _node("Mul", list(node.input[:2]), exact)
        if exact != result:
            yield _node("Cast", [exact], result, to=element)

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name


def _node(operator: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs, [output], name=f"{output}::{operator}", **attributes)
