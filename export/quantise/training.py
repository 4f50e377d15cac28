"""The placement of a quantised graph as roundings of the PyTorch network, for quantisation-aware training."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import ModelProto, NodeProto

from isnet_trt.errors import SettingsError
from isnet_trt.export.quantise.formats import ACTIVATIONS, Flavour
from isnet_trt.export.quantise.placement import (
    GraphIndex,
    Layer,
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

    A tensor is rounded where the module reads it: the input of each layer; of a residual block its whole input where
    the skip is rounded too, since both have one scale; the output of a projection that is a skip. Rounding twice to the
    same scale changes nothing.

    Raises:
        SettingsError: the flavour is that of the CPU, whose roundings of outputs are not trained; use "tensorrt".
    """
    if flavour not in _TYPES:
        raise SettingsError(f"there is no training for {flavour!r} graphs; train for 'tensorrt', it serves both")
    chosen = select_layers(quantisable_layers(proto, flavour), skip)
    index = GraphIndex(proto)
    form = ACTIVATIONS[flavour]

    def scale(tensor: str) -> float:
        return table.scale(tensor, form).scale

    found = [Rounding(layer.name, "input", scale(layer.source)) for layer in chosen]
    additions = [read for read in quantised_inputs(proto, flavour, chosen) if _reader(index, read).op_type == "Add"]
    found += [_skip(quantisable_layers(proto), index, read, scale(read.like)) for read in additions]
    return Placement(_TYPES[flavour], tuple(dict.fromkeys(found)), tuple(layer.name for layer in chosen))


def _reader(index: GraphIndex, read: QuantisedInput) -> NodeProto:
    return next(node for node in index.nodes if node.name == read.node)


def _skip(found: list[Layer], index: GraphIndex, read: QuantisedInput, scale: float) -> Rounding:
    """The rounding of a residual addition's skip: a projection's output, or the input of the block."""
    projection = next((layer.name for layer in found if layer.output == read.tensor), None)
    if projection is not None:
        return Rounding(projection, "output", scale)
    other = _reader(index, read).input[1 - read.index]
    last = next(layer.name for layer in found if layer.output == other)
    return Rounding(last.rpartition(".")[0], "input", scale)
