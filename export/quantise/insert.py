"""Writing the placement into a graph: QuantizeLinear and DequantizeLinear nodes, weights stored in eight bits.

The graph may be float32, or already typed (float16, bfloat16 with float32 islands). Scales are float32 in every case:
a weight scale below 6e-5 has no exact float16. Opset 23 lets QuantizeLinear take a half-precision tensor with a float32
scale and DequantizeLinear give one back (``output_dtype``); a float32 graph stays at its opset.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from isnet_trt.errors import BuildError
from isnet_trt.export.onnx_edit import element_types
from isnet_trt.export.quantise.formats import ACTIVATIONS, WEIGHTS, Array, Flavour, Format, Scale, weight_scales
from isnet_trt.export.quantise.placement import (
    GraphIndex,
    Layer,
    QuantisedInput,
    quantisable_layers,
    quantised_inputs,
    select_layers,
)
from isnet_trt.export.quantise.table import Table

M = TypeVar("M", NodeProto, TensorProto)
TYPED_OPSET = 23
_TYPED_IR = 11
_LARGEST_BIAS = 2.0**30


def quantise(proto: ModelProto, table: Table, flavour: Flavour, skip: Iterable[str] = ()) -> ModelProto:
    """A copy of ``proto`` with eight-bit layers.

    ``flavour`` "cpu": uint8 activations, for ONNX Runtime. "tensorrt": symmetric int8. "fp8": E4M3. Weights have one
    scale per output channel. ``skip`` names layers that stay as they are (see `placement.kept`).

    Raises:
        SettingsError: an entry of ``skip`` names no layer.
        BuildError: the table does not belong to the graph.
    """
    chosen = select_layers(quantisable_layers(proto, flavour), skip)
    copy = ModelProto()
    copy.CopyFrom(proto)
    _Writer(copy, table, flavour).write(chosen, quantised_inputs(proto, flavour, chosen))
    return copy


class _Writer:
    """Changes one graph."""

    def __init__(self, proto: ModelProto, table: Table, flavour: Flavour) -> None:
        self.proto, self.table, self.flavour = proto, table, flavour
        self.index = GraphIndex(proto)
        self.activations, self.weights = ACTIVATIONS[flavour], WEIGHTS[flavour]
        self.dtypes = element_types(proto)
        self.typed = False
        self.likes: dict[tuple[str, int], str] = {}
        self.behind: dict[str, list[NodeProto]] = {}
        self.before: dict[str, list[NodeProto]] = {}

    def write(self, chosen: list[Layer], places: list[QuantisedInput]) -> None:
        nodes = {node.name: node for node in self.index.nodes}
        rounded: dict[tuple[str, str], str] = {}
        for read in places:
            key = (read.tensor, read.like)
            if key not in rounded:
                rounded[key] = self._round(*key)
            nodes[read.node].input[read.index] = rounded[key]
            self.likes[read.node, read.index] = read.like
        for layer in chosen:
            self._weight(layer, nodes[layer.node])
        self._reorder()
        if self.typed:
            raise_opset(self.proto, TYPED_OPSET)

    def scale(self, tensor: str) -> Scale:
        return self.table.scale(origin(self.index, tensor), self.activations)

    def _round(self, tensor: str, like: str) -> str:
        """Q and DQ behind ``tensor``; the name of the result."""
        prefix = tensor if like == tensor else f"{tensor}_as_{like}"
        scale = self.scale(like)
        self._constant(f"{prefix}_scale", np.float32(scale.scale))
        self._constant(f"{prefix}_zero", _zero(self.activations, scale.zero))
        parameters = [f"{prefix}_scale", f"{prefix}_zero"]
        stored = helper.make_node(
            "QuantizeLinear", [tensor, *parameters], [f"{prefix}_stored"], name=f"{prefix}_QuantizeLinear"
        )
        restored = self._restore(f"{prefix}_stored", parameters, f"{prefix}_rounded", self._dtype(tensor))
        self.behind.setdefault(tensor, []).extend([stored, restored])
        return f"{prefix}_rounded"

    def _restore(self, stored: str, parameters: list[str], result: str, dtype: int, axis: int = -1) -> NodeProto:
        node = helper.make_node("DequantizeLinear", [stored, *parameters], [result], name=f"{result}_DequantizeLinear")
        if axis >= 0:
            node.attribute.append(helper.make_attribute("axis", axis))
        if dtype != TensorProto.FLOAT:
            node.attribute.append(helper.make_attribute("output_dtype", dtype))
            self.typed = True
        return node

    def _dtype(self, tensor: str) -> int:
        return self.dtypes.get(tensor, TensorProto.FLOAT)

    def _weight(self, layer: Layer, node: NodeProto) -> None:
        weight = self.index.weight(layer.weight)
        scales = weight_scales(weight, self.weights)
        if self.flavour == "cpu" and len(node.input) > 2 and node.input[2]:
            scales = self._bias(layer, node, scales)
        dtype = self.index.initializers[layer.weight].data_type
        self._constant(f"{layer.weight}_stored", self.weights.store(weight, scales[:, None, None, None]))
        self._constant(f"{layer.weight}_scale", scales)
        self._constant(f"{layer.weight}_zero", np.full(len(scales), _zero(self.weights, 0)))
        parameters = [f"{layer.weight}_scale", f"{layer.weight}_zero"]
        result = f"{layer.weight}_rounded"
        restored = self._restore(f"{layer.weight}_stored", parameters, result, dtype, axis=0)
        self.before.setdefault(node.name, []).append(restored)
        node.input[1] = result

    def _bias(self, layer: Layer, node: NodeProto, scales: Array) -> Array:
        """The bias in 32-bit units of (input scale · weight scale); the weight scales, enlarged where it overflows."""
        bias = self.index.weight(node.input[2])
        source = np.float32(self.scale(self.likes[layer.node, 0]).scale)
        scales = np.maximum(scales, np.abs(bias) / (source * np.float32(_LARGEST_BIAS))).astype(np.float32)
        units = (source * scales).astype(np.float32)
        name = f"{node.input[2]}_of_{node.name}"
        self._constant(f"{name}_stored", np.rint(bias / units.astype(np.float64)).astype(np.int32))
        self._constant(f"{name}_scale", units)
        self._constant(f"{name}_zero", np.zeros(len(units), np.int32))
        parameters = [f"{name}_scale", f"{name}_zero"]
        restored = self._restore(f"{name}_stored", parameters, f"{name}_rounded", TensorProto.FLOAT, axis=0)
        self.before.setdefault(node.name, []).append(restored)
        node.input[2] = f"{name}_rounded"
        return scales

    def _constant(self, name: str, value: NDArray | np.generic) -> None:
        if name not in self.index.initializers:
            tensor = _tensor(np.asarray(value), name)
            self.proto.graph.initializer.append(tensor)
            self.index.initializers[name] = tensor

    def _reorder(self) -> None:
        """Every node behind those it reads; weights that nothing reads any longer are dropped."""
        graph = self.proto.graph
        ordered = [node for value in graph.input for node in self.behind.get(value.name, [])]
        for node in self.index.nodes:
            ordered += [*self.before.get(node.name, []), node]
            ordered += [extra for name in node.output for extra in self.behind.get(name, [])]
        used = {name for node in ordered for name in node.input}
        left = [tensor for tensor in graph.initializer if tensor.name in used]
        nodes = [copied(node) for node in ordered]
        tensors = [copied(tensor) for tensor in left]
        del graph.node[:]
        del graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(tensors)


def origin(index: GraphIndex, tensor: str) -> str:
    """The tensor that was calibrated: ``tensor`` before any casts."""
    while index.kind(tensor) == "Cast":
        tensor = index.makers[tensor].input[0]
    return tensor


def _zero(form: Format, zero: int) -> Any:
    return form.store(np.zeros((), np.float32), 1.0, zero)[()]


def _tensor(value: NDArray, name: str) -> TensorProto:
    if value.dtype.name == "float8_e4m3fn":
        return helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, value.shape, value.tobytes(), raw=True)
    return numpy_helper.from_array(value, name)


def copied(message: M) -> M:
    """A copy that lives on when the list that holds ``message`` is emptied."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def raise_opset(proto: ModelProto, opset: int) -> None:
    """Set the opset of a graph and its functions, whose operators do the same in 20 to 23 but for the types they take.

    Raises:
        BuildError: the graph is of a later one.
    """
    for entry in [*proto.opset_import, *(e for function in proto.functions for e in function.opset_import)]:
        if entry.domain == "":
            if entry.version > TYPED_OPSET:
                raise BuildError(f"the graph is of opset {entry.version}; Q/DQ are written for up to {TYPED_OPSET}")
            entry.version = opset
    if opset >= TYPED_OPSET:
        proto.ir_version = max(proto.ir_version, _TYPED_IR)
