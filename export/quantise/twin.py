"""The same numbers for ONNX Runtime: what TensorRT reads, written so that a CPU computes it faithfully.

ONNX Runtime 1.32 cannot run DequantizeLinear with ``output_dtype``, and gives wrong numbers for E4M3 at its full
optimisation level (label agreement 0.02 where 0.99 is right, on the demo model). The twin has casts in place of the
first; in place of the second it scales, casts to E4M3 and back, which no optimiser takes for quantisation. It is for
comparisons only: TensorRT would not find the quantised layers in it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from isnet_trt.export.quantise.formats import FP8
from isnet_trt.export.quantise.insert import copied, element_types, raise_opset
from isnet_trt.export.quantise.placement import Wiring, attribute

_OPSET = 20
_LOWEST, _HIGHEST = "fp8_lowest", "fp8_highest"


def twin(proto: ModelProto) -> ModelProto:
    """A copy of a quantised graph, float32 or typed, that ONNX Runtime runs on a CPU."""
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
        self.graph, self.wiring, self.types = proto.graph, Wiring(proto), element_types(proto)
        for name, value in ((_LOWEST, FP8.lowest), (_HIGHEST, FP8.highest)):
            self.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))

    def plain(self, node: NodeProto) -> Iterator[NodeProto]:
        """The nodes that stand for ``node``."""
        if node.op_type == "QuantizeLinear":
            yield from self._store(node)
        elif node.op_type == "DequantizeLinear":
            yield from self._restore(node)
        else:
            yield node

    def _store(self, node: NodeProto) -> Iterator[NodeProto]:
        source, scale, zero = node.input
        result = node.output[0]
        if self.types.get(source) != TensorProto.FLOAT:
            yield _cast(source, f"{result}::x", TensorProto.FLOAT)
            source = f"{result}::x"
        if not self._is_fp8(zero):
            yield helper.make_node("QuantizeLinear", [source, scale, zero], [result], name=node.name)
            return
        yield helper.make_node("Div", [source, scale], [f"{result}::scaled"], name=f"{node.name}::scaled")
        bounds = [f"{result}::scaled", _LOWEST, _HIGHEST]
        yield helper.make_node("Clip", bounds, [f"{result}::clipped"], name=f"{node.name}::clipped")
        yield _cast(f"{result}::clipped", result, TensorProto.FLOAT8E4M3FN)

    def _restore(self, node: NodeProto) -> Iterator[NodeProto]:
        stored, scale, zero = node.input
        result = node.output[0]
        dtype = attribute(node, "output_dtype", TensorProto.FLOAT)
        exact = result if dtype == TensorProto.FLOAT else f"{result}::exact"
        if self._is_fp8(zero):
            yield _cast(stored, f"{result}::units", TensorProto.FLOAT)
            yield helper.make_node(
                "Mul", [f"{result}::units", self._column(scale)], [exact], name=f"{node.name}::scaled"
            )
        else:
            plain = helper.make_node("DequantizeLinear", [stored, scale, zero], [exact], name=node.name)
            plain.attribute.extend(a for a in node.attribute if a.name == "axis")
            yield plain
        if exact != result:
            yield _cast(exact, result, dtype)

    def _is_fp8(self, zero: str) -> bool:
        return self.wiring.initializers[zero].data_type == TensorProto.FLOAT8E4M3FN

    def _column(self, scale: str) -> str:
        """The name of a scale per output channel in the shape (O, 1, 1, 1); one for a whole tensor as it is."""
        values = self.wiring.weight(scale)
        if values.ndim == 0:
            return scale
        name = f"{scale}::column"
        self.graph.initializer.append(numpy_helper.from_array(values.reshape(-1, 1, 1, 1), name))
        return name


def _cast(source: str, result: str, dtype: int) -> NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}::cast", to=dtype)
