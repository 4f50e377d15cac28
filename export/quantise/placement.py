"""Placement: which tensors of a graph are quantised, for TensorRT (int8 and fp8) and for ONNX Runtime on a CPU.

Common to both: a layer is a convolution with stored weights on an image-like tensor. The classifiers (the one whose
arg max decides the pooling, and the last one), the context operations and the convolutions on a few vectors (class
centres, channel attention) are not quantised.

TensorRT: the input of each layer, the identity branch of each residual addition (so that the other branch's convolution
can add it and write eight bits), both inputs of a concatenation on the scale of the result. Other readers of the same
tensor get it unrounded. NVIDIA, "Working with Quantized Types", Q/DQ placement recommendations.

CPU: ONNX Runtime runs a convolution in integers only if its result is quantised too, so a quantised tensor is quantised
for all its readers: inputs and outputs of layers, additions and concatenations of such, maxima on the scale of their
input. A ReLU in front of a tensor with zero point 0 costs nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from isnet_trt.errors import SettingsError
from isnet_trt.export.quantise.formats import Flavour

_MERGES = ("Add", "Mul", "Sub")


@dataclass(frozen=True)
class Layer:
    """A convolution that can be quantised: its scope in the model, its node, and the names of its tensors.

    ``result`` is the output of the ReLU behind the convolution, or the convolution's own output where there is none.
    """

    name: str
    node: str
    weight: str
    source: str
    output: str
    result: str


@dataclass(frozen=True)
class QuantisedInput:
    """Input ``index`` of a node reads ``tensor`` rounded with the scale and zero point of the tensor ``like``."""

    node: str
    index: int
    tensor: str
    like: str


class GraphIndex:
    """Which node produces and which nodes consume each tensor of a graph."""

    def __init__(self, proto: ModelProto) -> None:
        self.nodes = list(proto.graph.node)
        self.initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.outputs = {value.name for value in proto.graph.output}
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
        for node in self.nodes:
            for index, name in enumerate(node.input):
                self.consumers[name].append((node, index))

    def sole_consumer(self, tensor: str) -> NodeProto | None:
        """The only consumer of a tensor; None if there are several, or the tensor is an output of the graph."""
        consumers = self.consumers[tensor]
        return consumers[0][0] if len(consumers) == 1 and tensor not in self.outputs else None

    def producer_op(self, tensor: str) -> str:
        """The operator that produces a tensor; empty for inputs and constants."""
        return self.producers[tensor].op_type if tensor in self.producers else ""

    def after_relu(self, tensor: str) -> str:
        """The output of the ReLU that is the only consumer of ``tensor``, else ``tensor`` itself."""
        consumer = self.sole_consumer(tensor)
        return consumer.output[0] if consumer is not None and consumer.op_type == "Relu" else tensor

    def array(self, name: str) -> NDArray[np.float32]:
        """A stored tensor as float32."""
        return numpy_helper.to_array(self.initializers[name]).astype(np.float32)


def quantisable_layers(proto: ModelProto, flavour: Flavour = "tensorrt") -> list[Layer]:
    """Every layer that can be quantised, in the order of computation.

    On the CPU a layer that produces the keys of an attention is left out: ONNX Runtime 1.32 moves a DequantizeLinear
    behind the reshaping of the keys into the loop over blocks of queries, and aborts the process.
    """
    index = GraphIndex(proto)
    vectors = _vectors(index)
    layers = []
    for node in index.nodes:
        if _is_stored_conv(index, node) and node.input[0] not in vectors and not _is_classifier(index, node):
            output = node.output[0]
            # In a typed graph weights are called ``<name>::fp16``.
            name = node.input[1].split("::")[0].removesuffix(".weight")
            layer = Layer(name, node.name, node.input[1], node.input[0], output, index.after_relu(output))
            if flavour != "cpu" or not _makes_keys(index, layer):
                layers.append(layer)
    return layers


def _is_stored_conv(index: GraphIndex, node: NodeProto) -> bool:
    """Whether the node is a convolution of images with stored weights, and a stored bias if it has one."""
    if node.op_type != "Conv" or not all(name in index.initializers for name in node.input[1:] if name):
        return False
    return len(index.initializers[node.input[1]].dims) == 4


def _makes_keys(index: GraphIndex, layer: Layer) -> bool:
    """Whether the layer's result is, activated and reshaped, the keys or values of a context attention."""
    ends = {layer.result}
    for node in index.nodes:
        if node.op_type in ("Relu", "LeakyRelu", "Reshape", "Transpose") and node.input[0] in ends:
            ends.update(node.output)
        if node.op_type.startswith("ContextAttention") and not ends.isdisjoint(node.input[1:3]):
            return True
    return False


def _is_classifier(index: GraphIndex, node: NodeProto) -> bool:
    """Whether the convolution produces the graph's output or the logits of the class pooling."""
    tensor = node.output[0]
    while tensor not in index.outputs:
        consumer = index.sole_consumer(tensor)
        if consumer is None or consumer.op_type not in ("Reshape", "Cast", "RegionPool"):
            return False
        if consumer.op_type == "RegionPool":
            return True
        tensor = consumer.output[0]
    return True


def _vectors(index: GraphIndex) -> set[str]:
    """Tensors that hold a few vectors per image instead of one at each position."""
    vectors: set[str] = set()
    for node in index.nodes:
        sources = node.input if node.op_type in _MERGES else node.input[:1]
        activations = [name for name in sources if name not in index.initializers]
        if node.op_type in ("ReduceMean", "RegionPool") or (activations and vectors.issuperset(activations)):
            vectors.update(node.output)
    return vectors


def select_layers(layers: Iterable[Layer], skip: Iterable[str]) -> list[Layer]:
    """The layers that no entry of ``skip`` names, by the whole name or by a leading part (``backbone_net.layer1``).

    Raises:
        SettingsError: an entry names no layer.
    """
    candidates, scopes = list(layers), tuple(skip)
    unknown = [scope for scope in scopes if not any(in_scope(layer.name, scope) for layer in candidates)]
    if unknown:
        raise SettingsError(
            f"no layer is called {', '.join(map(repr, unknown))}; layers begin with "
            f"{', '.join(sorted({layer.name.split('.')[0] for layer in candidates}))}"
        )
    return [layer for layer in candidates if not any(in_scope(layer.name, scope) for scope in scopes)]


def in_scope(name: str, scope: str) -> bool:
    """Whether ``scope`` is the name or a leading part of it."""
    return name == scope or name.startswith(scope + ".")


def quantised_inputs(proto: ModelProto, flavour: Flavour, layers: Iterable[Layer]) -> list[QuantisedInput]:
    """Every input of a node that reads a rounded tensor when ``layers`` are quantised."""
    place = _place_for_cpu if flavour == "cpu" else _place_for_tensorrt
    # Two layers behind one concatenation would name its inputs twice.
    return list(dict.fromkeys(place(GraphIndex(proto), list(layers))))


def calibrated_tensors(proto: ModelProto) -> list[str]:
    """The tensors whose ranges any placement can need, in the order of computation."""
    flavours: tuple[Flavour, ...] = ("cpu", "tensorrt")
    needed = {
        entry.like
        for flavour in flavours
        for entry in quantised_inputs(proto, flavour, quantisable_layers(proto, flavour))
    }
    # Layers kept in higher precision change what is rounded around them, but never to a tensor besides these.
    needed |= {name for layer in quantisable_layers(proto) for name in (layer.source, layer.output, layer.result)}
    order = [*(value.name for value in proto.graph.input), *(n for node in proto.graph.node for n in node.output)]
    return [name for name in order if name in needed]


def _place_for_tensorrt(index: GraphIndex, layers: list[Layer]) -> Iterator[QuantisedInput]:
    quantised = {layer.output for layer in layers}
    for layer in layers:
        producer = index.producers.get(layer.source)
        if producer is not None and producer.op_type == "Concat":
            # In front of the concatenation, on one scale, so that it only moves eight-bit values.
            yield from (QuantisedInput(producer.name, i, name, layer.source) for i, name in enumerate(producer.input))
        else:
            yield QuantisedInput(layer.node, 0, layer.source, layer.source)
    for node in index.nodes:
        skip = _identity_input(index, node)
        # Only beside a quantised convolution, whose kernel can then add the branch.
        if skip is not None and node.input[1 - skip] in quantised:
            yield QuantisedInput(node.name, skip, node.input[skip], node.input[skip])


def _identity_input(index: GraphIndex, node: NodeProto) -> int | None:
    """Which input of a residual addition is the identity branch: the earlier of two convolutions, or the ReLU."""
    if node.op_type != "Add" or any(name not in index.producers for name in node.input):
        return None
    operators = [index.producer_op(name) for name in node.input]
    if operators == ["Conv", "Conv"]:
        # The other is the projection, which the residual blocks compute first.
        positions = [index.nodes.index(index.producers[name]) for name in node.input]
        return positions.index(min(positions))
    return operators.index("Relu") if {"Conv", "Relu"} <= set(operators) else None


def _place_for_cpu(index: GraphIndex, layers: list[Layer]) -> Iterator[QuantisedInput]:
    like: dict[str, str] = {}
    for layer in layers:
        like[layer.source] = layer.source
        like[layer.result] = layer.result
    for node in index.nodes:
        # Nodes are in topological order: one pass also reaches what is behind other merges.
        follow = _FOLLOW.get(node.op_type)
        if follow is not None and all(name in like for name in node.input):
            tensor, source = follow(index, node)
            like[tensor] = like.get(source, source)
    for tensor, source in like.items():
        yield from (QuantisedInput(node.name, i, tensor, source) for node, i in index.consumers[tensor])


def _merged(index: GraphIndex, node: NodeProto) -> tuple[str, str]:
    tensor = index.after_relu(node.output[0])
    return tensor, tensor


def _unchanged(index: GraphIndex, node: NodeProto) -> tuple[str, str]:
    # The maximum of rounded values is one of them: their scale fits exactly.
    return node.output[0], node.input[0]


_FOLLOW: dict[str, Callable[[GraphIndex, NodeProto], tuple[str, str]]] = {
    "Add": _merged,
    "Concat": _merged,
    "LeakyRelu": _merged,
    "MaxPool": _unchanged,
}
"""Operators whose result is quantised if all inputs are -> (that result, the tensor with whose scale)."""
