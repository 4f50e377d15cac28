"""The placement of a quantised graph as roundings of the PyTorch network, for quantisation-aware training."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import ModelProto, NodeProto

from isnet_trt.errors import SettingsError
from isnet_trt.export.quantise.formats import ACTIVATIONS, Flavour
from isnet_trt.export.quantise.placement import (
    GraphIndex,
    QuantisedInput,
    quantisable_layers,
    quantised_inputs,
    select_layers,
)
from isnet_trt.export.quantise.table import Table
from isnet_trt.training.rounding import Placement, Rounding, Type

_TYPES: dict[Flavour, Type] = {"tensorrt": "int8", "fp8": "fp8"}


def training_placement(proto: ModelProto, table: Table, flavour: Flavour, skip: Iterable[str] = ()) -> Placement:
    """What `quantise` would round in ``proto``, for the inference form of the model that it was exported from.

    A tensor is rounded where the module reads it: the input of each layer; the whole input of a residual block where
    its identity branch is rounded too, since both have one scale; the output of a projection on the identity branch.
    Rounding twice with one scale changes nothing.

    Raises:
        SettingsError: the flavour is that of the CPU, whose roundings of outputs are not trained; use "tensorrt".
    """
    if flavour not in _TYPES:
        raise SettingsError(f"there is no training for {flavour!r} graphs; train for 'tensorrt', it serves both")
    candidates = quantisable_layers(proto, flavour)
    layers = select_layers(candidates, skip)
    # Of all candidates: an identity branch is rounded also where its projection is skipped.
    by_output = {layer.output: layer.name for layer in candidates}
    nodes = {node.name: node for node in GraphIndex(proto).nodes}

    def scale(tensor: str) -> float:
        return table.scale(tensor, ACTIVATIONS[flavour]).scale

    roundings = [Rounding(layer.name, "input", scale(layer.source)) for layer in layers]
    roundings += [
        _identity(by_output, nodes[entry.node], entry, scale(entry.like))
        for entry in quantised_inputs(proto, flavour, layers)
        if nodes[entry.node].op_type == "Add"
    ]
    return Placement(_TYPES[flavour], tuple(dict.fromkeys(roundings)), tuple(layer.name for layer in layers))


def _identity(by_output: dict[str, str], addition: NodeProto, entry: QuantisedInput, scale: float) -> Rounding:
    """The rounding of an identity branch: of the output of its projection, or of the input of the residual block."""
    projection = by_output.get(entry.tensor)
    if projection is not None:
        return Rounding(projection, "output", scale)
    last = by_output[addition.input[1 - entry.index]]
    return Rounding(last.rpartition(".")[0], "input", scale)
