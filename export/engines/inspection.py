"""Engine inspection: the layers that a built engine reports, and whether they have the types of its graph.

Source of the text: `IEngineInspector` with `LayerInformationFormat.ONELINE` at detailed profiling verbosity.
TensorRT-RTX writes the same text into its verbose build log, so that it can be read on a machine without a GPU.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto

from isnet_trt.errors import BuildError
from isnet_trt.export.functions import DOMAIN, context_nodes
from isnet_trt.export.onnx_edit import FLOAT_CODES, NAMES, element_types
from isnet_trt.export.options import Context

HEAD = "Layers:"
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
    """One layer of an engine: types of what it reads and makes, and the graph's nodes that it computes.

    ``dense`` is False where an input is known not to lie row after row without gaps.
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
    """The layers in an inspector's text (a `HEAD` line, then one line each, then an empty line).

    Raises:
        BuildError: there are none: the library's format is another one.
    """
    layers = []
    for line in text.removeprefix(HEAD).lstrip("\n").splitlines():
        if not line.startswith("Name: "):
            break
        layers.append(_layer(line))
    if not layers:
        raise BuildError(f"the engine's layer information cannot be read; it begins with {text[:80]!r}")
    return layers


def _layer(line: str) -> Layer:
    name = line.removeprefix("Name: ").split(", LayerType:")[0]
    kind = re.search(r"LayerType: ([^,]*)", line)
    inputs, constants, outputs = (tuple(_types(line, group)) for group in ("Inputs", "Constants", "Outputs"))
    metadata = line.partition("Metadata: ")[2]
    nodes = (part.strip() for layer in re.findall(r"\[ONNX Layer: ([^\]]*)\]", metadata) for part in layer.split("|"))
    named = tuple(node.split(" (")[0] for node in nodes)
    dense = all(map(_dense, _tensors(line, "Inputs")))
    return Layer(name, kind.group(1) if kind else "", inputs, constants, outputs, named, dense)


def _tensors(line: str, group: str) -> list[str]:
    """The descriptions of the tensors of one group."""
    body = re.search(rf" {group}: \[ (\{{.*?\}})\]", line)
    return re.findall(r"\{(.*?)\}", body.group(1)) if body else []


def _dense(tensor: str) -> bool:
    """Whether a tensor's strides, as far as they are known, are those of rows without gaps."""
    shape, strides = (
        [int(one) for one in found.group(1).split(",")] if found else []
        for found in (re.search(rf" {name}: \[([-\d,]+)\]", tensor) for name in ("Dimensions", "Strides"))
    )
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=False):
        if stride not in (step, -1) and size != 1:
            return False
        if size < 0:
            return True  # beyond a free size no stride is known
        step *= size
    return True


def _types(line: str, group: str) -> Iterator[str]:
    """The types of one group's tensors; of the constants only those that are weights."""
    for tensor in _tensors(line, group):
        word = re.search(r"(?:Format/)?Data[tT]ype: ([^,}]*)", tensor)
        shape = re.search(r"Dimensions: \[([^\]]*)\]", tensor)
        rank = shape.group(1).count(",") + 1 if shape else 0
        if word and (group != "Constants" or rank >= _WEIGHTS):
            yield _type(word.group(1))


def _type(word: str) -> str:
    return next((name for name, words in _TYPE_NAMES.items() if any(part in word for part in words)), word.strip())


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
            built = sorted({one for layer in computing for one in layer.inputs})
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
    """Refuse an engine whose layers do not have the types of its graph.

    Raises:
        BuildError: the message lists the nodes, what was asked and what was built.
    """
    if wrong := wrong_types(layers, expected_types(proto)):
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise BuildError(f"the engine does not have the types of its graph; {'; '.join(wrong[:5])}{more}")


def check_context(layers: Sequence[Layer], proto: onnx.ModelProto, context: Context) -> None:
    """Refuse an engine that computes the context operations otherwise than asked.

    Raises:
        BuildError: the message names the node, and the layer that computes it.
    """
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
