"""Half-precision graphs: an exported float32 graph with float16 or bfloat16 weights and activations.

TensorRT engines are strongly typed: the types of the graph are the types of the engine. Input and output stay float32,
unless `without_last_cast` leaves the output in half precision.
Casts are inserted only where a half tensor meets a float32 one: at the input, at the output, and around the nodes of
the fp32 fallback (`isnet_trt.export.fp32_fallback`).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from isnet_trt.errors import BuildError
from isnet_trt.export.fp32_fallback import Half
from isnet_trt.export.onnx_edit import CODES, copied, element_types, set_opset, with_nodes

FLOAT, BFLOAT16 = CODES["fp32"], CODES["bf16"]
_TYPE_PRESERVING = {
    *("Relu", "LeakyRelu", "MaxPool", "Identity", "Concat", "Split", "Pad", "Gather", "Slice", "Expand"),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
}
"""Operators that only move or compare values: they compute in the type of their input."""
_FLOAT_INPUTS = {"Resize": (1, 2), "QuantizeLinear": (1,), "DequantizeLinear": (1,), "ContextAttention": (3,)}
"""Inputs that are float32 whatever the type of the node: scales, and the attention's bias of each key."""
_BF16_OPSET = 22
"""The first ONNX opset in which convolutions take bfloat16."""
_UNTYPED = {"Shape", "Size", "Constant", "ConstantOfShape"}
"""Operators whose output type does not depend on the type of their input."""


def cast_to_half(proto: onnx.ModelProto, half: Half, fp32_nodes: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of ``proto`` whose float32 nodes compute in ``half``, except those named in ``fp32_nodes``.

    Tensors and nodes keep their names, so that block outputs are still found by name; the cast of a tensor ``t`` is
    called ``t::fp16``, ``t::bf16`` or ``t::fp32``.

    Raises:
        BuildError: the graph has control flow, whose branches read its tensors by names of their own.
    """
    branching = [node for node in proto.graph.node if any(each.HasField("g") for each in node.attribute)]
    if branching:
        raise BuildError(
            f"the graph has control flow ({branching[0].op_type} {branching[0].name}), which stays float32: use "
            "--precision fp32, or export the network for fixed choices"
        )
    return _HalfWriter(proto, half, frozenset(fp32_nodes)).write()


class _HalfWriter:
    """One pass over the nodes in order; ``types`` is the element type that each tensor has in the new graph."""

    def __init__(self, proto: onnx.ModelProto, half: Half, fp32_nodes: frozenset[str]) -> None:
        self.proto, self.half, self.fp32_nodes = proto, half, fp32_nodes
        self.old_types = element_types(proto)
        self.types = dict(self.old_types)
        self.weights = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.nodes: list[NodeProto] = []
        self.added: dict[str, TensorProto] = {}
        self.casts: set[str] = set()

    def write(self) -> onnx.ModelProto:
        outputs = {value.name for value in self.proto.graph.output}
        for node in self.proto.graph.node:
            self._convert(node)
            for name in outputs.intersection(node.output):
                self._restore(name)
        result = with_nodes(self.proto, self.nodes, self.added.values())
        # They record float32 for tensors that are half precision now.
        del result.graph.value_info[:]
        if self.half == "bf16":
            set_opset(result, _BF16_OPSET)
        return result

    def _convert(self, node: NodeProto) -> None:
        copy = copied(node)
        if node.op_type not in _UNTYPED:
            element = self._compute_type(node)
            for index, name in enumerate(node.input):
                if self.old_types.get(name) == FLOAT:
                    fixed = index in _FLOAT_INPUTS.get(node.op_type, ())
                    copy.input[index] = self._as(name, FLOAT if fixed else element)
            for name in node.output:
                if self.old_types.get(name) == FLOAT:
                    self.types[name] = element
            self._set_attributes(copy, element)
        self.nodes.append(copy)

    def _compute_type(self, node: NodeProto) -> int:
        if node.name in self.fp32_nodes:
            return FLOAT
        if node.op_type in _TYPE_PRESERVING:
            # Passing a float32 tensor through half precision and back would cost two casts and its accuracy.
            activations = [
                name for name in node.input if self.old_types.get(name) == FLOAT and name not in self.weights
            ]
            if all(self.types.get(name) == FLOAT for name in activations):
                return FLOAT
        return CODES[self.half]

    def _set_attributes(self, node: NodeProto, element: int) -> None:
        """Change the types that a node states itself."""
        if node.op_type == "RegionPool":
            self.types[node.output[1]] = FLOAT  # log_counts
        if node.op_type == "Cast":
            # In the exported graph a cast to float32 means the type that the network computes in.
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == FLOAT:
                    attribute.i = element
        if node.op_type == "DequantizeLinear" and element != FLOAT:
            node.attribute.append(helper.make_attribute("output_dtype", element))

    def _as(self, name: str, element: int) -> str:
        """``name`` as a tensor of type ``element``: itself, a converted weight, or a cast that all readers share."""
        if self.types[name] == element:
            return name
        other = f"{name}::{'fp32' if element == FLOAT else self.half}"
        if name in self.weights:
            self.added.setdefault(other, _converted(self.weights[name], other, element))
        elif other not in self.casts:
            self.casts.add(other)
            self.nodes.append(helper.make_node("Cast", [name], [other], name=f"cast {other}", to=element))
        return other

    def _restore(self, name: str) -> None:
        """Make a graph output float32 under its own name."""
        if self.types[name] == FLOAT:
            return
        inner = f"{name}::{self.half}"
        # `write` calls this right behind the node that makes the output.
        producer = self.nodes[-1]
        producer.output[list(producer.output).index(name)] = inner
        self.nodes.append(helper.make_node("Cast", [inner], [name], name=f"cast {name}", to=FLOAT))
        self.types[name] = FLOAT


def without_last_cast(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose output has the type that the network computes it in: without a last cast from half to float32.

    The values are the same. A graph that ends in another way is returned as it is.
    """
    graph, types = copied(proto), element_types(proto)
    output = graph.graph.output[0]
    producers = {name: node for node in graph.graph.node for name in node.output}
    cast = producers.get(output.name)
    if cast is None or cast.op_type != "Cast" or cast.input[0] not in producers:
        return proto
    inner, halves = cast.input[0], (CODES["fp16"], BFLOAT16)
    if types.get(inner) not in halves or types.get(output.name) != FLOAT:
        return proto
    # The name of the output stays: inner readers of the half-precision tensor follow it.
    graph.graph.node.remove(cast)
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = [output.name if name == inner else name for name in names]
    output.type.tensor_type.elem_type = types[inner]
    return graph


def _converted(tensor: TensorProto, name: str, element: int) -> TensorProto:
    # A weight beyond float16 becomes Inf; `find_fp32_fallback` keeps its node in float32.
    with np.errstate(over="ignore"):
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(element))
    return numpy_helper.from_array(array, name)


def emulate_bf16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph with the rounding of a bfloat16 one, for engines without bfloat16 convolutions (ONNX Runtime).

    Weights are rounded beforehand; the result of each bfloat16 node is rounded to the nearest bfloat16 by two casts.
    Sums inside a node are float32, as on tensor cores.
    """
    types = element_types(proto)
    result = with_nodes(proto, (new for node in proto.graph.node for new in _emulated(node, types)))
    for tensor in result.graph.initializer:
        if tensor.data_type == BFLOAT16:
            tensor.CopyFrom(_converted(tensor, tensor.name, FLOAT))
    return result


def _emulated(node: NodeProto, types: dict[str, int]) -> list[NodeProto]:
    halves = [name for name in node.output if types.get(name) == BFLOAT16]
    if node.op_type == "Cast" and types.get(node.input[0]) == BFLOAT16:
        # The value is rounded already and float32 in this graph: only the tensor's name must stay.
        return [helper.make_node("Identity", node.input, node.output, name=node.name)]
    if node.op_type == "Cast" and halves:
        return _rounding(node.input[0], node.output[0])
    if node.op_type in _TYPE_PRESERVING:  # bfloat16 values in, the same values out
        return [node]
    copy = copied(node)
    copy.output[:] = [f"{name}::exact" if name in halves else name for name in node.output]
    return [copy, *(new for name in halves for new in _rounding(f"{name}::exact", name))]


def _rounding(exact: str, rounded: str) -> list[NodeProto]:
    bits = f"{rounded}::bits"
    return [
        helper.make_node("Cast", [exact], [bits], name=f"round {rounded}", to=BFLOAT16),
        helper.make_node("Cast", [bits], [rounded], name=f"widen {rounded}", to=FLOAT),
    ]


def count_casts(proto: onnx.ModelProto) -> int:
    """Number of casts that `cast_to_half` inserted; those inside the context operations are not counted."""
    return sum(node.op_type == "Cast" and "::" in node.name for node in proto.graph.node)
