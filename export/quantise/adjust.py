"""Two changes of the float32 graph that are meant to help what is rounded afterwards. Neither changes its function,
but for the correction, which moves biases by what rounding would move the layers' means.

docs/quantisation.md has what they gave; `quantise` uses neither by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from isnet_trt.export.quantise.formats import ACTIVATIONS, WEIGHTS, Flavour, weight_scales
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


def _replace(wiring: Wiring, name: str, value: NDArray) -> None:
    wiring.initializers[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
