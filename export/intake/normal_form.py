"""The form of our own exports: one opset, plain weights, unique names, ``image`` in and ``logits`` out."""

from __future__ import annotations

import re
from collections import Counter

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from isnet_trt._version import __version__
from isnet_trt.export.functions import OPSET
from isnet_trt.export.graph import INPUT, OUTPUT
from isnet_trt.export.onnx_edit import opset_of

_IR_VERSION = 10
"""Of onnx 1.16, the first that has all that functions in a graph need."""
_ANONYMOUS = re.compile(r"(onnx::)?\w+_\d+$|\d+$")
"""Names of weights that an exporter numbered, such as onnx::Conv_123."""


def raised(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """``proto`` in opset `OPSET` or later, and a note; ``proto`` itself where onnx cannot convert it."""
    version = opset_of(proto)
    if version >= OPSET:
        return proto, ""
    try:
        converted = onnx.version_converter.convert_version(proto, OPSET)
        onnx.checker.check_model(converted)
    except Exception as error:  # the converter raises RuntimeError, its checks and protobuf other types
        reason = " ".join(str(error).split())[:200]
        return proto, f"opset {version} stays: onnx cannot raise it to {OPSET} ({reason})"
    if version < 11:
        _keep_positions(converted)
    return converted, f"opset raised from {version} to {OPSET}"


def _keep_positions(converted: onnx.ModelProto) -> None:
    """Let Upsample and Resize of opset 10 or earlier sample as they do there, which the converter leaves out."""
    for node in converted.graph.node:
        if node.op_type == "Resize" and not any(
            each.name == "coordinate_transformation_mode" for each in node.attribute
        ):
            node.attribute.append(onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            node.attribute.append(onnx.helper.make_attribute("nearest_mode", "floor"))


def normalise(model: ir.Model) -> None:
    """Bring a model of one input and one output to the form of our exports, in place.

    Functions are inlined, constants become initializers, identities go; nodes and tensors get unique names, and the
    weight of a convolution that an exporter only numbered is named after its node.
    """
    passes.InlinePass()(model)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.IdentityEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.TopologicalSortPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    _rename(model.graph)
    passes.NameFixPass()(model)
    model.ir_version = max(model.ir_version or 0, _IR_VERSION)
    model.producer_name, model.producer_version = "isnet_trt", __version__
    model.doc_string = None
    model.metadata_props.clear()


def _rename(graph: ir.Graph) -> None:
    """Give input and output our names, tensors no ``::`` (which marks what the lowering adds), weights their scopes."""
    taken = Counter(value.name for value in (*graph.initializers.values(), *graph.inputs, *_outputs(graph)))
    for node in graph.all_nodes():
        if node.op_type == "Conv" and len(node.inputs) > 1 and (weight := node.inputs[1]) is not None:
            scope = scope_of(node.name or "")
            if weight.is_initializer() and scope and _ANONYMOUS.match(weight.name or "") and len(weight.uses()) == 1:
                _set(weight, f"{scope}.weight", taken)
    ports = {id(graph.inputs[0]): INPUT, id(graph.outputs[0]): OUTPUT}
    for value in list(dict.fromkeys((*graph.inputs, *graph.initializers.values(), *_outputs(graph)))):
        name = (value.name or "").replace("::", "_")
        if name in (INPUT, OUTPUT):
            name += "_"
        _set(value, ports.get(id(value), name), taken)


def _outputs(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph.all_nodes() for value in node.outputs]


def _set(value: ir.Value, name: str, taken: Counter) -> None:
    """Name a value, with a number where another has the name."""
    if value.name == name:
        return
    unique, number = name, 0
    while name not in (INPUT, OUTPUT) and taken[unique]:
        number += 1
        unique = f"{name}_{number}"
    taken[unique] += 1
    value.name = unique


def scope_of(node: str) -> str:
    """The module of a node as torch's older exporter names it: ``/a/a.0/conv/Conv`` -> ``a.0.conv``."""
    parts: list[str] = []
    for part in node.strip("/").split("/")[:-1]:
        # A child of a container repeats the name of its parent.
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)
