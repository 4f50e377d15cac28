"""Insertion of QuantizeLinear and DequantizeLinear nodes into a graph, with weights stored in eight bits.

The graph may be float32, or already typed (float16 or bfloat16 with an fp32 fallback). Scales are float32 in every
case: a weight scale below 6e-5 has no exact float16. Opset 23 lets QuantizeLinear take a half-precision tensor with a
float32 scale, and DequantizeLinear return one (``output_dtype``); a float32 graph keeps its opset.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from isnet_trt.export.onnx_edit import LATEST_OPSET, copied, element_types, set_opset, with_nodes
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

_LARGEST_BIAS = 2.0**30
"""Largest stored int32 bias: half of what int32 holds, since the products of the layer are added to it."""


def quantise(proto: ModelProto, table: Table, flavour: Flavour, skip: Iterable[str] = ()) -> ModelProto:
    """A copy of ``proto`` with quantised layers.

    ``flavour`` "cpu": uint8 activations, for ONNX Runtime. "tensorrt": symmetric int8. "fp8": E4M3. Weights have one
    scale per output channel. ``skip`` names layers that stay as they are (see `placement.select_layers`).

    Raises:
        SettingsError: an entry of ``skip`` names no layer.
        BuildError: the table does not belong to the graph.
    """
    layers = select_layers(quantisable_layers(proto, flavour), skip)
    return _Writer(copied(proto), table, flavour).write(layers, quantised_inputs(proto, flavour, layers))


class _Writer:
    """Changes the nodes of one graph.

    ``after`` holds the new nodes behind each tensor, ``before`` those in front of each node, by name.
    """

    def __init__(self, proto: ModelProto, table: Table, flavour: Flavour) -> None:
        self.proto, self.table, self.flavour = proto, table, flavour
        self.index = GraphIndex(proto)
        self.activations, self.weights = ACTIVATIONS[flavour], WEIGHTS[flavour]
        self.types = element_types(proto)
        self.constants: dict[str, TensorProto] = {}
        self.likes: dict[tuple[str, int], str] = {}
        self.after: dict[str, list[NodeProto]] = defaultdict(list)
        self.before: dict[str, list[NodeProto]] = defaultdict(list)
        self.typed = False

    def write(self, layers: list[Layer], inputs: list[QuantisedInput]) -> ModelProto:
        nodes = {node.name: node for node in self.index.nodes}
        rounded: dict[tuple[str, str], str] = {}
        for entry in inputs:
            # One Q/DQ pair for each tensor and scale, whatever the number of readers.
            key = (entry.tensor, entry.like)
            if key not in rounded:
                rounded[key] = self._round(*key)
            nodes[entry.node].input[entry.index] = rounded[key]
            self.likes[entry.node, entry.index] = entry.like
        for layer in layers:
            self._store_weight(layer, nodes[layer.node])
        result = with_nodes(self.proto, self._ordered(), self.constants.values())
        if self.typed:
            set_opset(result, LATEST_OPSET)
        return result

    def _scale(self, tensor: str) -> Scale:
        return self.table.scale(_before_casts(self.index, tensor), self.activations)

    def _round(self, tensor: str, like: str) -> str:
        """Insert Q and DQ behind ``tensor`` with the scale of the tensor ``like``; the name of the result."""
        prefix = tensor if like == tensor else f"{tensor}_as_{like}"
        scale = self._scale(like)
        self._constant(f"{prefix}_scale", np.float32(scale.scale))
        self._constant(f"{prefix}_zero", _zero(self.activations, scale.zero))
        inputs = [tensor, f"{prefix}_scale", f"{prefix}_zero"]
        self.after[tensor] += [
            helper.make_node("QuantizeLinear", inputs, [f"{prefix}_stored"], name=f"{prefix}_QuantizeLinear"),
            self._dequantise(prefix, self.types.get(tensor, TensorProto.FLOAT)),
        ]
        return f"{prefix}_rounded"

    def _dequantise(self, prefix: str, element: int, **axis: Any) -> NodeProto:
        inputs, result = [f"{prefix}_{part}" for part in ("stored", "scale", "zero")], f"{prefix}_rounded"
        node = helper.make_node("DequantizeLinear", inputs, [result], name=f"{result}_DequantizeLinear", **axis)
        if element != TensorProto.FLOAT:
            node.attribute.append(helper.make_attribute("output_dtype", element))
            self.typed = True
        return node

    def _store_weight(self, layer: Layer, node: NodeProto) -> None:
        weight = self.index.array(layer.weight)
        scales = weight_scales(weight, self.weights)
        # ONNX Runtime's integer convolution takes an int32 bias; TensorRT adds a floating-point one.
        if self.flavour == "cpu" and len(node.input) > 2 and node.input[2]:
            scales = self._store_bias(layer, node, scales)
        stored = self.weights.store(weight, scales[:, None, None, None])
        zeros = np.full(len(scales), _zero(self.weights, 0))
        element = self.index.initializers[layer.weight].data_type
        node.input[1] = self._store(node, layer.weight, (stored, scales, zeros), element)

    def _store_bias(self, layer: Layer, node: NodeProto, scales: Array) -> Array:
        """The bias in 32-bit units of (input scale · weight scale); the weight scales, enlarged where it overflows."""
        bias = self.index.array(node.input[2])
        source = np.float32(self._scale(self.likes[layer.node, 0]).scale)
        scales = np.maximum(scales, np.abs(bias) / (source * np.float32(_LARGEST_BIAS))).astype(np.float32)
        units = (source * scales).astype(np.float32)
        # In float64: an int32 has more digits than a float32.
        stored = np.rint(bias / units.astype(np.float64)).astype(np.int32)
        # Named after the node too: the unit depends on the scale of the node's input.
        constants = (stored, units, np.zeros(len(units), np.int32))
        node.input[2] = self._store(node, f"{node.input[2]}_of_{node.name}", constants, TensorProto.FLOAT)
        return scales

    def _store(self, node: NodeProto, prefix: str, constants: tuple[NDArray, ...], element: int) -> str:
        """Add stored numbers, scales and zero points with their DQ in front of ``node``; the name of the result."""
        for part, value in zip(("stored", "scale", "zero"), constants, strict=True):
            self._constant(f"{prefix}_{part}", value)
        self.before[node.name].append(self._dequantise(prefix, element, axis=0))
        return f"{prefix}_rounded"

    def _constant(self, name: str, value: NDArray | np.generic) -> None:
        if name not in self.index.initializers and name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value), name)

    def _ordered(self) -> Iterable[NodeProto]:
        """Every node behind those it reads."""
        for value in self.proto.graph.input:
            yield from self.after[value.name]
        for node in self.index.nodes:
            yield from (*self.before[node.name], node)
            for name in node.output:
                yield from self.after[name]


def _before_casts(index: GraphIndex, tensor: str) -> str:
    """The calibrated tensor: ``tensor`` in front of the casts of a typed graph."""
    while index.producer_op(tensor) == "Cast":
        tensor = index.producers[tensor].input[0]
    return tensor


def _zero(form: Format, zero: int) -> Any:
    return form.store(np.zeros((), np.float32), 1.0, zero)[()]
