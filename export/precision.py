"""Half-precision graphs: an exported float32 graph with float16 or bfloat16 weights and activations.

Engines of TensorRT are strongly typed, so the types of the graph are the types of the engine. Input and output stay
float32. Casts stand only where a half tensor meets a float32 one: at the borders and around the islands.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from isnet_trt.export.fp32_fallback import Half
from isnet_trt.export.onnx_edit import CODES, element_types

FLOAT = TensorProto.FLOAT
_FOLLOWERS = {
    *("Relu", "LeakyRelu", "MaxPool", "Identity", "Concat", "Split", "Pad", "Gather", "Slice", "Expand"),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
}
"""Operators that only move or compare values: they work in the type that their input has."""
_ALWAYS_FLOAT = {"Resize": (1, 2), "QuantizeLinear": (1,), "DequantizeLinear": (1,), "ContextAttention": (3,)}
"""Inputs that are float32 whatever the type of the node: scales, and the attention's bias of each key."""
_BF16_OPSET = 22
"""The first version of ONNX in which convolutions take bfloat16."""
_OWN_TYPE = {"Shape", "Size", "Constant", "ConstantOfShape"}
_RAW: dict[int, Any] = {FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}


def cast_to_half(proto: onnx.ModelProto, half: Half, islands: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of ``proto`` whose float32 nodes compute in ``half``, but for those named in ``islands``.

    Names of tensors and nodes stay as they are, so that border tensors keep theirs; a cast of tensor t is called
    ``t::fp16``, ``t::bf16`` or ``t::fp32``.
    """
    return _Typer(proto, half, frozenset(islands)).result()


class _Typer:
    """One pass over the nodes in order; ``types`` is the element type that each tensor has in the new graph."""

    def __init__(self, proto: onnx.ModelProto, half: Half, islands: frozenset[str]) -> None:
        self.source, self.half, self.low, self.islands = proto, half, CODES[half], islands
        self.before = element_types(proto)
        self.types = dict(self.before)
        self.weights = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.nodes: list[NodeProto] = []
        self.added: dict[str, TensorProto] = {}
        self.cast: set[str] = set()

    def result(self) -> onnx.ModelProto:
        outputs = {value.name for value in self.source.graph.output}
        for node in self.source.graph.node:
            self._take(node)
            for name in outputs.intersection(node.output):
                self._restore(name)
        copy = onnx.ModelProto()
        copy.CopyFrom(self.source)
        del copy.graph.node[:], copy.graph.value_info[:], copy.graph.initializer[:]
        copy.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        copy.graph.initializer.extend(t for t in (*self.weights.values(), *self.added.values()) if t.name in used)
        if self.half == "bf16":
            _raise_opset(copy, _BF16_OPSET)
        return copy

    def _take(self, node: NodeProto) -> None:
        copy = NodeProto()
        copy.CopyFrom(node)
        if node.op_type not in _OWN_TYPE:
            kind = self._kind(node)
            for place, name in enumerate(node.input):
                if self.before.get(name) == FLOAT:
                    fixed = place in _ALWAYS_FLOAT.get(node.op_type, ())
                    copy.input[place] = self._as(name, FLOAT if fixed else kind)
            for name in node.output:
                if self.before.get(name) == FLOAT:
                    self.types[name] = kind
            self._attributes(copy, kind)
        self.nodes.append(copy)

    def _kind(self, node: NodeProto) -> int:
        """The type that a node computes in."""
        if node.name in self.islands:
            return FLOAT
        if node.op_type in _FOLLOWERS:
            made = [name for name in node.input if name and name not in self.weights]
            kinds = {self.types.get(name) for name in made if self.before.get(name) == FLOAT}
            return FLOAT if kinds <= {FLOAT} else self.low
        return self.low

    def _attributes(self, node: NodeProto, kind: int) -> None:
        """What a node itself says about types."""
        if node.op_type == "RegionPool":
            self.types[node.output[1]] = FLOAT
        if node.op_type == "Cast":
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == FLOAT:
                    attribute.i = kind
        if node.op_type == "DequantizeLinear" and kind != FLOAT:
            node.attribute.append(helper.make_attribute("output_dtype", kind))

    def _as(self, name: str, kind: int) -> str:
        """``name`` as a tensor of type ``kind``: itself, a converted weight, or a cast that is made once."""
        if self.types[name] == kind:
            return name
        other = f"{name}::{'fp32' if kind == FLOAT else self.half}"
        if name in self.weights:
            self.added.setdefault(other, _converted(self.weights[name], other, kind))
        elif other not in self.cast:
            self.cast.add(other)
            self.nodes.append(helper.make_node("Cast", [name], [other], name=f"cast {other}", to=kind))
        return other

    def _restore(self, name: str) -> None:
        """Let a graph output be float32 under its own name."""
        if self.types[name] == FLOAT:
            return
        inner = f"{name}::{self.half}"
        maker = self.nodes[-1]
        maker.output[list(maker.output).index(name)] = inner
        self.nodes.append(helper.make_node("Cast", [inner], [name], name=f"cast {name}", to=FLOAT))
        self.types[name] = FLOAT


def _raise_opset(proto: onnx.ModelProto, version: int) -> None:
    """Declare a later opset; between 20 and 22 the operators of our graphs gained types and changed nothing else."""
    for part in (proto, *proto.functions):
        for entry in part.opset_import:
            if entry.domain == "":
                entry.version = max(entry.version, version)


def _converted(tensor: TensorProto, name: str, kind: int) -> TensorProto:
    with np.errstate(over="ignore"):  # a weight beyond float16 makes its node an island, unless the caller insists
        array: NDArray = np.ascontiguousarray(numpy_helper.to_array(tensor).astype(_RAW[kind]))
    return helper.make_tensor(name, kind, tensor.dims, array.tobytes(), raw=True)


def emulate_bf16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The float32 twin of a bfloat16 graph, for engines without bfloat16 convolutions (ONNX Runtime on a CPU).

    Weights are rounded beforehand; the result of each bfloat16 node is rounded to the nearest bfloat16 by two casts.
    Inside a node sums are float32, as they are on tensor cores.
    """
    kinds = element_types(proto)
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    del twin.graph.node[:], twin.graph.initializer[:]
    for tensor in proto.graph.initializer:
        widened = tensor if tensor.data_type != TensorProto.BFLOAT16 else _converted(tensor, tensor.name, FLOAT)
        twin.graph.initializer.append(widened)
    for node in proto.graph.node:
        twin.graph.node.extend(_emulated_node(node, kinds))
    return twin


def _emulated_node(node: NodeProto, kinds: dict[str, int]) -> list[NodeProto]:
    halves = [name for name in node.output if kinds.get(name) == TensorProto.BFLOAT16]
    if node.op_type == "Cast" and kinds.get(node.input[0]) == TensorProto.BFLOAT16:
        return [helper.make_node("Identity", node.input, node.output, name=node.name)]
    if node.op_type == "Cast" and halves:
        return _rounding(node.input[0], node.output[0])
    if node.op_type in _FOLLOWERS:
        return [node]
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [f"{name}::exact" if name in halves else name for name in node.output]
    return [copy, *(one for name in halves for one in _rounding(f"{name}::exact", name))]


def _rounding(exact: str, rounded: str) -> list[NodeProto]:
    short = f"{rounded}::bits"
    return [
        helper.make_node("Cast", [exact], [short], name=f"round {rounded}", to=TensorProto.BFLOAT16),
        helper.make_node("Cast", [short], [rounded], name=f"widen {rounded}", to=FLOAT),
    ]


def count_casts(proto: onnx.ModelProto) -> int:
    """How many casts between floating types a typed graph has; the context operations' own are not counted."""
    return sum(node.op_type == "Cast" and "::" in node.name for node in proto.graph.node)
