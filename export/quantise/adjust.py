"""Three changes of the float32 graph that are meant to help what is rounded afterwards. None changes its function,
but for the correction, which moves biases by what rounding would move the layers' means.

docs/quantisation.md has what they gave; `quantise` uses none by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from isnet_trt.export.quantise.formats import ACTIVATIONS, WEIGHTS, Flavour, weight_scales
from isnet_trt.export.quantise.insert import copied
from isnet_trt.export.quantise.placement import Layer, Wiring, attribute, layers
from isnet_trt.export.quantise.table import Table

_LIMIT = 16.0
"""Largest factor between two channels that equalisation puts in or takes out."""


def corrected(proto: ModelProto, table: Table, flavour: Flavour) -> ModelProto:
    """A copy whose biases take out the shift of each layer's mean that rounding causes.

    Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", ICCV 2019, section 4.2, with
    means from the calibration: bias += Σ W·E[x] − Σ W'·E[x'], W' and x' rounded. Layers without a bias stay.
    """
    copy = ModelProto()
    copy.CopyFrom(proto)
    wiring = Wiring(copy)
    for layer in layers(proto, flavour):
        node = wiring.makers[layer.output]
        if len(node.input) < 3 or attribute(node, "group", 1) != 1:
            continue
        sample = table.records[layer.source].sample
        scale = table.scale(layer.source, ACTIVATIONS[flavour])
        means = sample.mean(0), ACTIVATIONS[flavour].fake(sample, scale).mean(0)
        exact, rounded = (
            kernel.sum((2, 3)) @ mean for kernel, mean in zip(_kernels(wiring, layer, flavour), means, strict=True)
        )
        _replace(wiring, node.input[2], wiring.weight(node.input[2]) + exact - rounded)
    return copy


def _kernels(wiring: Wiring, layer: Layer, flavour: Flavour) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The weight, and what is left of it after rounding."""
    weight = wiring.weight(layer.weight)
    scales = weight_scales(weight, WEIGHTS[flavour])[:, None, None, None]
    return weight, WEIGHTS[flavour].store(weight, scales).astype(np.float32) * scales


def equalised(proto: ModelProto, table: Table) -> ModelProto:
    """A copy in which the channels between two layers have more equal ranges; calibrate it anew.

    Between a convolution, its ReLU and the one convolution that reads it, channel i is divided by s_i = sqrt(r_i / r),
    r_i its largest value and r the geometric mean of these, and the second convolution's weights multiplied by it:
    ReLU(x / s) = ReLU(x) / s. Ibid., section 4.1, on activations as in Xiao et al., "SmoothQuant", ICML 2023.
    """
    copy = ModelProto()
    copy.CopyFrom(proto)
    wiring = Wiring(copy)
    by_source = {layer.source: layer for layer in layers(proto)}
    for first in layers(proto):
        second = by_source.get(first.result)
        reader = wiring.only_reader(first.result)
        if second is None or reader is None or first.result == first.output:
            continue
        nodes = [wiring.makers[layer.output] for layer in (first, second)]
        if any(attribute(node, "group", 1) != 1 for node in nodes) or len(nodes[0].input) < 3:
            continue
        factors = _factors(table.records[first.result].channel_max)
        _replace(wiring, first.weight, wiring.weight(first.weight) / factors[:, None, None, None])
        _replace(wiring, nodes[0].input[2], wiring.weight(nodes[0].input[2]) / factors)
        _replace(wiring, second.weight, wiring.weight(second.weight) * factors[:, None, None])
    return copy


def _factors(peaks: NDArray[np.float32]) -> NDArray[np.float32]:
    used = peaks[peaks > 0]
    if not used.size:
        return np.ones_like(peaks)
    factors = np.sqrt(peaks / np.exp(np.log(used).mean()))
    return np.where(peaks > 0, np.clip(factors, 1 / _LIMIT, _LIMIT), 1).astype(np.float32)


def split(proto: ModelProto) -> ModelProto:
    """A copy in which a convolution of a concatenation is a sum of convolutions, one of each part; calibrate it anew.

    W·concat(a, b) = W_a·a + W_b·b, so that a and b may have scales of their own. The first has the bias, and the name
    of the layer with ``.0`` behind it.
    """
    copy = ModelProto()
    copy.CopyFrom(proto)
    wiring = Wiring(copy)
    nodes: list[NodeProto] = []
    for node in copy.graph.node:
        joined = wiring.makers.get(node.input[0]) if node.op_type == "Conv" else None
        if joined is None or joined.op_type != "Concat":
            nodes.append(copied(node))
            continue
        weight = wiring.weight(node.input[1])
        widths = [_channels(wiring, name) for name in joined.input]
        parts = np.split(weight, np.cumsum(widths)[:-1], axis=1)
        nodes += _parts(copy, node, list(joined.input), parts)
    used = {name for node in nodes for name in node.input}
    weights = [copied(tensor) for tensor in copy.graph.initializer if tensor.name in used]
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.node.extend(node for node in nodes if node.op_type != "Concat" or node.output[0] in used)
    copy.graph.initializer.extend(weights)
    return copy


def _parts(proto: ModelProto, node: NodeProto, sources: list[str], weights: list[NDArray]) -> list[NodeProto]:
    """A convolution of each source with its part of the weights, and their sum under the name of the whole."""
    base = node.input[1].removesuffix(".weight")
    made, total = [], ""
    for index, (source, weight) in enumerate(zip(sources, weights, strict=True)):
        one = copied(node)
        one.name, one.output[0] = f"{node.name}.{index}", f"{node.output[0]}.{index}"
        name = f"{base}.{index}.weight"
        proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight), name))
        one.input[:] = [source, name, *(node.input[2:] if index == 0 else ())]
        made.append(one)
        if index:
            result = node.output[0] if index == len(sources) - 1 else f"{node.output[0]}.sum{index}"
            made.append(helper.make_node("Add", [total, one.output[0]], [result], name=f"{node.name}.sum{index}"))
            total = result
        else:
            total = one.output[0]
    return made


def _channels(wiring: Wiring, tensor: str) -> int:
    """How many channels a tensor has, by the convolution that it comes from through what keeps them."""
    while wiring.kind(tensor) != "Conv":
        tensor = wiring.makers[tensor].input[0]
    return len(wiring.weight(wiring.makers[tensor].input[1]))


def _replace(wiring: Wiring, name: str, value: NDArray) -> None:
    wiring.initializers[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
