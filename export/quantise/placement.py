"""Which tensors of a graph are quantised: one placement for TensorRT (int8 and fp8), one for ONNX Runtime on a CPU.

Common to both: a layer is a convolution with stored weights that works on a map of positions. The classifiers (the
one whose arg max decides the pooling, and the last one), the context operations and the convolutions on a handful of
vectors (class centres, channel attention) stay as they are.

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
from onnx import ModelProto, NodeProto, helper, numpy_helper

from isnet_trt.errors import SettingsError
from isnet_trt.export.quantise.formats import Flavour

_WEIGHT = ".weight"
_MERGES = ("Add", "Mul", "Sub")


@dataclass(frozen=True)
class Layer:
    """A convolution that can be quantised: its scope in the model, its node, and the tensors it reads and makes.

    ``result`` is the tensor behind the ReLU where one follows, else the convolution's own output.
    """

    name: str
    node: str
    weight: str
    source: str
    output: str
    result: str


@dataclass(frozen=True)
class QuantisedInput:
    """Input ``index`` of a node reads ``tensor`` rounded with the parameters of the tensor ``like``."""

    node: str
    index: int
    tensor: str
    like: str


class GraphIndex:
    """Who makes and who reads each tensor of a graph."""

    def __init__(self, proto: ModelProto) -> None:
        self.nodes = list(proto.graph.node)
        self.initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.outputs = {value.name for value in proto.graph.output}
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
        for node in self.nodes:
            for index, name in enumerate(node.input):
                self.readers[name].append((node, index))

    def sole_consumer(self, tensor: str) -> NodeProto | None:
        """The node that alone reads a tensor, if there is one and the tensor is no output of the graph."""
        found = self.readers[tensor]
        return found[0][0] if len(found) == 1 and tensor not in self.outputs else None

    def kind(self, tensor: str) -> str:
        """The operator that makes a tensor; empty for inputs and constants."""
        return self.makers[tensor].op_type if tensor in self.makers else ""

    def after_relu(self, tensor: str) -> str:
        """The output of the ReLU that alone reads ``tensor``, else ``tensor`` itself."""
        reader = self.sole_consumer(tensor)
        return reader.output[0] if reader is not None and reader.op_type == "Relu" else tensor

    def weight(self, name: str) -> NDArray[np.float32]:
        """A stored tensor as float32."""
        return numpy_helper.to_array(self.initializers[name]).astype(np.float32)


def quantisable_layers(proto: ModelProto, flavour: Flavour = "tensorrt") -> list[Layer]:
    """Every layer that can be quantised, in the order of computation.

    On the CPU a layer that makes the keys of an attention is none: ONNX Runtime 1.32 moves a DequantizeLinear behind
    the reshaping of the keys into the loop over blocks of queries, and aborts the process.
    """
    index = GraphIndex(proto)
    few = _vectors(index)
    found = []
    for node in index.nodes:
        if node.op_type == "Conv" and node.input[0] not in few and not _classifies(index, node):
            output = node.output[0]
            name = node.input[1].split("::")[0].removesuffix(_WEIGHT)
            layer = Layer(name, node.name, node.input[1], node.input[0], output, index.after_relu(output))
            if flavour != "cpu" or not _makes_keys(index, layer):
                found.append(layer)
    return found


def _makes_keys(index: GraphIndex, layer: Layer) -> bool:
    """Whether the layer's result is, activated and reshaped, the keys or values of a context attention."""
    ends = {layer.result}
    for node in index.nodes:
        if node.op_type in ("Relu", "LeakyRelu", "Reshape", "Transpose") and node.input[0] in ends:
            ends.update(node.output)
        if node.op_type.startswith("ContextAttention") and not ends.isdisjoint(node.input[1:3]):
            return True
    return False


def _classifies(index: GraphIndex, node: NodeProto) -> bool:
    """Whether the convolution makes the graph's output or the logits of the class pooling."""
    tensor = node.output[0]
    while tensor not in index.outputs:
        reader = index.sole_consumer(tensor)
        if reader is None or reader.op_type not in ("Reshape", "Cast", "RegionPool"):
            return False
        if reader.op_type == "RegionPool":
            return True
        tensor = reader.output[0]
    return True


def _vectors(index: GraphIndex) -> set[str]:
    """Tensors that hold a few vectors a picture instead of one at each position."""
    few: set[str] = set()
    for node in index.nodes:
        sources = node.input if node.op_type in _MERGES else node.input[:1]
        carried = [name for name in sources if name not in index.initializers]
        if node.op_type in ("ReduceMean", "RegionPool") or (carried and all(name in few for name in carried)):
            few.update(node.output)
    return few


def select_layers(all_layers: Iterable[Layer], skip: Iterable[str]) -> list[Layer]:
    """The layers that no entry of ``skip`` names, by its whole name or by a leading part (``backbone_net.layer1``).

    Raises:
        SettingsError: an entry names no layer.
    """
    found, chosen = list(all_layers), tuple(skip)
    unknown = [entry for entry in chosen if not any(in_scope(layer.name, entry) for layer in found)]
    if unknown:
        raise SettingsError(
            f"no layer is called {', '.join(map(repr, unknown))}; layers begin with "
            f"{', '.join(sorted({layer.name.split('.')[0] for layer in found}))}"
        )
    return [layer for layer in found if not any(in_scope(layer.name, entry) for entry in chosen)]


def in_scope(name: str, scope: str) -> bool:
    """Whether ``scope`` is the name or a leading part of it."""
    return name == scope or name.startswith(scope + ".")


def quantised_inputs(proto: ModelProto, flavour: Flavour, chosen: Iterable[Layer]) -> list[QuantisedInput]:
    """Every input of a node that reads a rounded tensor, with the layers ``chosen`` quantised."""
    index = GraphIndex(proto)
    place = _cpu if flavour == "cpu" else _tensorrt
    return list(dict.fromkeys(place(index, list(chosen))))


def calibrated_tensors(proto: ModelProto) -> list[str]:
    """The tensors whose ranges any placement can ask for, in the order of computation."""
    found = quantisable_layers(proto)
    flavours: tuple[Flavour, ...] = ("cpu", "tensorrt")
    wanted = {
        read.like
        for flavour in flavours
        for read in quantised_inputs(proto, flavour, quantisable_layers(proto, flavour))
    }
    # Layers kept in higher precision change what is rounded around them, never to another tensor than these.
    wanted |= {name for layer in found for name in (layer.source, layer.output, layer.result)}
    order = [*(value.name for value in proto.graph.input), *(n for node in proto.graph.node for n in node.output)]
    return [name for name in order if name in wanted]


def _tensorrt(index: GraphIndex, chosen: list[Layer]) -> Iterator[QuantisedInput]:
    quantised = {layer.output for layer in chosen}
    for layer in chosen:
        joined = index.makers.get(layer.source)
        if joined is not None and joined.op_type == "Concat":
            yield from (QuantisedInput(joined.name, i, name, layer.source) for i, name in enumerate(joined.input))
        else:
            yield QuantisedInput(layer.node, 0, layer.source, layer.source)
    for node in index.nodes:
        side = _identity(index, node)
        if side is not None and node.input[1 - side] in quantised:
            yield QuantisedInput(node.name, side, node.input[side], node.input[side])


def _identity(index: GraphIndex, node: NodeProto) -> int | None:
    """Which input of a residual addition is the skip: the older of two convolutions, or what is no convolution."""
    if node.op_type != "Add" or any(name not in index.makers for name in node.input):
        return None
    kinds = [index.kind(name) for name in node.input]
    if kinds == ["Conv", "Conv"]:
        order = [index.nodes.index(index.makers[name]) for name in node.input]
        return order.index(min(order))
    if "Conv" in kinds and "Relu" in kinds:
        return kinds.index("Relu")
    return None


def _cpu(index: GraphIndex, chosen: list[Layer]) -> Iterator[QuantisedInput]:
    like: dict[str, str] = {}
    for layer in chosen:
        like[layer.source] = layer.source
        like[layer.result] = layer.result
    for node in index.nodes:
        follow = _FOLLOW.get(node.op_type)
        if follow is not None and all(name in like for name in node.input):
            tensor, source = follow(index, node)
            like[tensor] = like.get(source, source)
    for tensor, source in like.items():
        # The maximum of rounded values is one of them: their scale fits exactly.
        yield from (QuantisedInput(node.name, i, tensor, source) for node, i in index.readers[tensor])


def _merged(index: GraphIndex, node: NodeProto) -> tuple[str, str]:
    tensor = index.after_relu(node.output[0])
    return tensor, tensor


def _unchanged(index: GraphIndex, node: NodeProto) -> tuple[str, str]:
    return node.output[0], node.input[0]


_FOLLOW: dict[str, Callable[[GraphIndex, NodeProto], tuple[str, str]]] = {
    "Add": _merged,
    "Concat": _merged,
    "LeakyRelu": _merged,
    "MaxPool": _unchanged,
}


def multiplications(layer: Layer, proto: ModelProto, positions: int) -> int:
    """Multiply-adds of a layer whose output has ``positions`` positions."""
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == layer.weight)
    return int(np.prod(weight.dims)) * positions


def attribute(node: NodeProto, name: str, default: int) -> int:
    """A whole-number attribute of a node."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return int(values.get(name, default))
