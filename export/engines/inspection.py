"""Engine inspection: the layers that a built engine reports, and whether they have the types of its graph.

Source of the text: `IEngineInspector` with `LayerInformationFormat.ONELINE` at detailed profiling verbosity.
TensorRT-RTX writes the same text into its verbose build log, so that it can be read on a machine without a GPU.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto

from isnet_trt.engines.tensorrt_api import LAYERS_HEAD
from isnet_trt.errors import BuildError
from isnet_trt.export.functions import DOMAIN, context_nodes
from isnet_trt.export.onnx_edit import FLOAT_CODES, NAMES, element_types
from isnet_trt.export.options import Context

# In this order: the name BFloat16 contains Float and so does Float8.
_TYPE_NAMES = {
    "bf16": ("BFloat16", "BF16"),
    "fp8": ("FP8", "Float8", "E4M3"),
    "fp16": ("Half", "FP16"),
    "fp32": ("Float", "FP32"),
    "int8": ("Int8", "INT8"),
    "int64": ("Int64", "INT64"),
    "int32": ("Int32", "INT32"),
    "bool": ("Bool", "BOOL"),
}
_ELEMENTS: dict[int, str] = {
    **{code: NAMES[code] for code in FLOAT_CODES},
    TensorProto.INT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}
_PLUGINS = ("custom_layer", "plugin")
"""Kinds of plugin layers: of TensorRT-RTX 1.7, and (in lower case, as a part) of TensorRT 10's inspector."""
_PRODUCTS = {"Conv", "Gemm", "MatMul"}
_WEIGHTS = 2
"""Least rank of a constant that is a weight: biases and scales are vectors."""


@dataclass(frozen=True)
class Layer:
    """One layer of an engine: types of its tensors, and the graph's nodes that it computes.

    ``dense`` is False where an input is known to have gaps between rows.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    dense: bool = True

    @property
    def plugin(self) -> bool:
        """Whether a plugin computes it."""
        return any(name in self.kind.lower() for name in _PLUGINS)


def parse_layers(text: str) -> list[Layer]:
    """The layers in an inspector's text (`LAYERS_HEAD`, then one line each, then an empty line).

    Raises:
        BuildError: there are none, since the library writes another format.
    """
    layers = []
    for line in text.removeprefix(LAYERS_HEAD).lstrip("\n").splitlines():
        if not line.startswith("Name: "):
            break
        layers.append(_layer(line))
    if not layers:
        raise BuildError(f"the engine's layer information cannot be read; it begins with {text[:80]!r}")
    return layers


def _layer(line: str) -> Layer:
    name = line.removeprefix("Name: ").split(", LayerType:")[0]
    kind = re.search(r"LayerType: ([^,]*)", line)
    inputs, constants, outputs = (_tensors(line, group) for group in ("Inputs", "Constants", "Outputs"))
    weights = [tensor for tensor in constants if len(_numbers(tensor, "Dimensions")) >= _WEIGHTS]
    metadata = line.partition("Metadata: ")[2]
    nodes = (part.strip() for layer in re.findall(r"\[ONNX Layer: ([^\]]*)\]", metadata) for part in layer.split("|"))
    return Layer(
        name,
        kind.group(1) if kind else "",
        _types(inputs),
        _types(weights),
        _types(outputs),
        tuple(node.split(" (")[0] for node in nodes),
        all(map(_is_dense, inputs)),
    )


def _tensors(line: str, group: str) -> list[str]:
    """The descriptions of the tensors of one group."""
    body = re.search(rf" {group}: \[ (\{{.*?\}})\]", line)
    return re.findall(r"\{(.*?)\}", body.group(1)) if body else []


def _numbers(tensor: str, field: str) -> list[int]:
    """The list of numbers called ``field`` in a tensor's description; empty without one."""
    match = re.search(rf" {field}: \[([^\]]*)\]", tensor)
    return [int(number) for number in re.findall(r"-?\d+", match.group(1))] if match else []


def _is_dense(tensor: str) -> bool:
    """Whether a tensor's strides, as far as they are known, are those of rows without gaps."""
    step = 1
    shape, strides = _numbers(tensor, "Dimensions"), _numbers(tensor, "Strides")
    # Not strict: a tensor whose strides the text leaves out is taken as dense.
    for size, stride in zip(reversed(shape), reversed(strides), strict=False):
        # -1: the stride depends on a free size. That of an axis of size 1 is never used.
        if stride not in (step, -1) and size != 1:
            return False
        if size < 0:
            return True  # beyond a free size no stride is known
        step *= size
    return True


def _types(tensors: Iterable[str]) -> tuple[str, ...]:
    matches = (re.search(r"(?:Format/)?Data[tT]ype: ([^,}]*)", tensor) for tensor in tensors)
    return tuple(_type(match.group(1)) for match in matches if match)


def _type(text: str) -> str:
    return next((name for name, parts in _TYPE_NAMES.items() if any(part in text for part in parts)), text.strip())


def expected_types(proto: onnx.ModelProto) -> dict[str, str]:
    """Node name -> type that the graph asks a convolution, matrix product or attention to compute in.

    Behind a DequantizeLinear, or a concatenation of such, it is the quantised type.
    """
    kinds = element_types(proto)
    origin: dict[str, str] = {}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear":
            origin[node.output[0]] = node.input[0]
        elif node.op_type == "Concat" and all(name in origin for name in node.input):
            origin[node.output[0]] = origin[node.input[0]]
    return {
        node.name: _ELEMENTS[kinds[origin.get(node.input[0], node.input[0])]]
        for node in proto.graph.node
        if node.op_type in _PRODUCTS or (node.domain == DOMAIN and node.op_type == "ContextAttention")
    }


def wrong_types(layers: Iterable[Layer], expected: dict[str, str]) -> list[str]:
    """A sentence for each node of ``expected`` that no layer computes in its type; empty when the engine is right.

    Nodes in no layer are accepted up to half of all, since a fusion may fold a few away or rename them.
    """
    layers_of = _layers_by_node(layers)
    wrong = []
    for node, kind in expected.items():
        computing = layers_of.get(node, [])
        if computing and all(kind not in layer.inputs for layer in computing):
            built = sorted({name for layer in computing for name in layer.inputs})
            wrong.append(f"{node}: asked {kind}, built {', '.join(built) or 'nothing'}")
    unseen = [node for node in expected if node not in layers_of]
    if 2 * len(unseen) > len(expected):
        wrong.append(f"{len(unseen)} of {len(expected)} nodes are in no layer, such as {unseen[0]}")
    return wrong


def _layers_by_node(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    by_node: dict[str, list[Layer]] = {}
    for layer in layers:
        for node in layer.nodes:
            by_node.setdefault(node, []).append(layer)
    return by_node


def check_types(layers: Sequence[Layer], proto: onnx.ModelProto) -> None:
    """Raise BuildError, with the nodes and types, where the layers do not have the types of the graph."""
    if wrong := wrong_types(layers, expected_types(proto)):
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise BuildError(f"the engine does not have the types of its graph; {'; '.join(wrong[:5])}{more}")


def check_context(layers: Sequence[Layer], proto: onnx.ModelProto, context: Context) -> None:
    """Raise BuildError, with node and layer, where the context operations are not computed as ``context`` says."""
    layers_of = _layers_by_node(layers)
    for node in context_nodes(proto):
        computing = layers_of.get(node.name, [])
        plugins = [layer for layer in computing if layer.plugin]
        if context == "native":
            if plugins:
                raise BuildError(f"native context asked, plugin built: {node.op_type} node {node.name}")
        elif not plugins:
            kinds = ", ".join(layer.kind for layer in computing) or "no layer of its name"
            raise BuildError(f"plugin asked, native built: {node.op_type} node {node.name} became {kinds}")
        elif gaps := [layer.name for layer in plugins if not layer.dense]:
            raise BuildError(f"the plugin {gaps[0]} would read tensors with gaps, which its kernels do not")


def summarise(layers: Iterable[Layer]) -> dict[str, Any]:
    """Layer kind -> {types read: number of layers}, of the layers that read anything."""
    table: dict[str, Counter[str]] = {}
    for layer in layers:
        if layer.inputs:
            table.setdefault(layer.kind, Counter())[" ".join(sorted({*layer.inputs, *layer.constants}))] += 1
    return {kind: dict(counter) for kind, counter in sorted(table.items())}
