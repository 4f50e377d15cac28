"""Engine inspection: the layers that a built engine reports, and whether they have the types of its graph.

Source of the text: `IEngineInspector` with `LayerInformationFormat.JSON` at detailed profiling verbosity. TensorRT-RTX
writes its one-line form into the verbose build log, so that it can be read on a machine without a GPU.

NVIDIA documents no format of the text, and adds fields from version to version. So a field that is missing or unknown
leaves a check undecided, which is a warning of the build; what the text says clearly is a refusal if it is wrong.
Fields as TensorRT 8 to 10 writes them: https://github.com/NVIDIA/TensorRT/issues/4020
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto

from isnet_trt.engines.tensorrt_api import LAYERS_HEAD
from isnet_trt.errors import BuildError
from isnet_trt.export.functions import DOMAIN, context_nodes
from isnet_trt.export.onnx_edit import FLOAT_CODES, NAMES, element_types
from isnet_trt.export.options import Context

UNKNOWN = "unknown"
"""Type of a tensor whose type the text does not give, such as "N/A due to dynamic shapes"."""
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
_EIGHT_BITS = ("int8", "fp8")
_PLUGINS = ("custom_layer", "plugin")
"""Kinds of plugin layers: of TensorRT-RTX 1.7, and (in lower case, as a part) of TensorRT's inspector."""
_PRODUCTS = {"Conv", "Gemm", "MatMul"}


class UnreadableLayers(BuildError):
    """The layer information of an engine is in no known format."""


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

    def computes_in(self, kind: str) -> bool | None:
        """Whether its convolution or product is of type ``kind``; None where the text does not tell."""
        if kind in self.inputs:
            return True
        read, weights = set(self.inputs) - {UNKNOWN}, set(self.constants) - {UNKNOWN}
        # A fused cast may stand before a product: then the type of its weights is that of the product. Eight-bit
        # weights alone do not tell, since they may be dequantised before the product.
        if kind in weights and (kind not in _EIGHT_BITS or not read):
            return True
        return False if read or weights else None


def parse_layers(text: str) -> list[Layer]:
    """The layers in an inspector's text: JSON, or `LAYERS_HEAD`, then one line each, then an empty line.

    Raises:
        UnreadableLayers: there are none, since the library writes another format.
    """
    parse = _json_layers if text.lstrip().startswith(("{", "[")) else _line_layers
    layers = list(parse(text))
    if not layers:
        raise UnreadableLayers(f"the engine's layer information cannot be read; it begins with {text[:80]!r}")
    return layers


def _json_layers(text: str) -> Iterator[Layer]:
    """The layers of the JSON form: an object for each, or only its name where the verbosity is not detailed."""
    try:
        content = json.loads(text, strict=False)  # separators of node names may stand there unescaped
    except (ValueError, RecursionError):
        return
    entries = content.get("Layers") if isinstance(content, dict) else content
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            yield _json_layer(entry)
        elif isinstance(entry, str):
            yield Layer(entry, "", (), (), (), _names(entry))


def _json_layer(entry: dict[str, Any]) -> Layer:
    name, kind = str(entry.get("Name", "")), str(entry.get("LayerType", ""))
    inputs, constants, outputs = (_objects(entry.get(group)) for group in ("Inputs", "Constants", "Outputs"))
    weights = [tensor for tensor in constants if _is_matrix(_numbers(tensor.get("Dimensions")))]
    filters = _objects([entry.get("Weights")])  # TensorRT's convolutions, such as {"Type": "Half", "Count": 9408}
    nodes = _onnx_nodes(str(entry.get("Metadata", "")))
    return Layer(
        name,
        kind,
        tuple(map(_json_type, inputs)),
        tuple(map(_json_type, [*weights, *filters])),
        tuple(map(_json_type, outputs)),
        nodes or (() if kind == "Reformat" else _names(name)),
        all(_is_dense(_numbers(tensor.get("Dimensions")), _numbers(tensor.get("Strides"))) for tensor in inputs),
    )


def _objects(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _numbers(values: Any) -> list[int]:
    numbers = values if isinstance(values, list) else []
    return numbers if all(isinstance(number, int) for number in numbers) else []


def _json_type(tensor: dict[str, Any]) -> str:
    fields = (tensor[name] for name in ("Datatype", "DataType", "Format/Datatype", "Type") if name in tensor)
    return _type(str(next(fields, "")))


def _names(name: str) -> tuple[str, ...]:
    """The nodes in a layer's name, which TensorRT joins from the names of those that it fused."""
    return tuple(name.split(" + "))


def _line_layers(text: str) -> Iterator[Layer]:
    """The layers of the one-line form."""
    # Only at line feeds: \x1e and \x1f, at which str.splitlines() splits as well, stand between the names of nodes.
    for line in text.removeprefix(LAYERS_HEAD).lstrip("\n").split("\n"):
        if not line.startswith("Name: "):
            return
        yield _line_layer(line)


def _line_layer(line: str) -> Layer:
    name = line.removeprefix("Name: ").split(", LayerType:")[0]
    kind = re.search(r"LayerType: ([^,]*)", line)
    inputs, constants, outputs = (_tensors(line, group) for group in ("Inputs", "Constants", "Outputs"))
    weights = [tensor for tensor in constants if _is_matrix(_listed(tensor, "Dimensions"))]
    return Layer(
        name,
        kind.group(1) if kind else "",
        tuple(map(_line_type, inputs)),
        tuple(map(_line_type, weights)),
        tuple(map(_line_type, outputs)),
        _onnx_nodes(line.partition("Metadata: ")[2]),
        all(_is_dense(_listed(tensor, "Dimensions"), _listed(tensor, "Strides")) for tensor in inputs),
    )


def _tensors(line: str, group: str) -> list[str]:
    """The descriptions of the tensors of one group."""
    body = re.search(rf" {group}: \[ (\{{.*?\}})\]", line)
    return re.findall(r"\{(.*?)\}", body.group(1)) if body else []


def _listed(tensor: str, field: str) -> list[int]:
    """The list of numbers called ``field`` in a tensor's description; empty without one."""
    match = re.search(rf" {field}: \[([^\]]*)\]", tensor)
    return [int(number) for number in re.findall(r"-?\d+", match.group(1))] if match else []


def _line_type(tensor: str) -> str:
    match = re.search(r"(?:Format/)?Data[tT]ype: ([^,}]*)", tensor)
    return _type(match.group(1) if match else "")


def _onnx_nodes(metadata: str) -> tuple[str, ...]:
    """The nodes in a layer's metadata, those of a function's body with the function's own node."""
    parts = (part.strip() for layer in re.findall(r"\[ONNX Layer: ([^\]]*)\]", metadata) for part in layer.split("|"))
    return tuple(node.split(" (")[0] for node in parts)


def _is_matrix(shape: Sequence[int]) -> bool:
    """Whether a constant is a weight: biases and scales are vectors, also those of shape (1, channels, 1, 1)."""
    return sum(size != 1 for size in shape) >= 2


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a tensor's strides, as far as they are known, are those of rows without gaps."""
    step = 1
    # Not strict: a tensor whose strides the text leaves out is taken as dense.
    for size, stride in zip(reversed(shape), reversed(strides), strict=False):
        # -1: the stride depends on a free size. That of an axis of size 1 is never used.
        if stride not in (step, -1) and size != 1:
            return False
        if size < 0:
            return True  # beyond a free size no stride is known
        step *= size
    return True


def _type(text: str) -> str:
    return next((name for name, parts in _TYPE_NAMES.items() if any(part in text for part in parts)), UNKNOWN)


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
    """A sentence for each node of ``expected`` that layers compute in another type; empty when there is none."""
    layers_of = _layers_by_node(layers)
    wrong = []
    for node, kind in expected.items():
        computing = layers_of.get(node, [])
        if computing and all(layer.computes_in(kind) is False for layer in computing):
            built = sorted({name for layer in computing for name in layer.inputs} - {UNKNOWN})
            wrong.append(f"{node}: asked {kind}, built {', '.join(built) or 'nothing'}")
    return wrong


def unread_types(layers: Iterable[Layer], expected: dict[str, str]) -> list[str]:
    """The nodes of ``expected`` that are in no layer, or in layers whose types the text does not give."""
    layers_of = _layers_by_node(layers)
    return [
        node
        for node, kind in expected.items()
        if all(layer.computes_in(kind) is None for layer in layers_of.get(node, []))
    ]


def _layers_by_node(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    by_node: dict[str, list[Layer]] = {}
    for layer in layers:
        for node in layer.nodes:
            by_node.setdefault(node, []).append(layer)
    return by_node


def inspect(text: str, proto: onnx.ModelProto, context: Context) -> tuple[list[Layer], list[str]]:
    """Check the layers in an inspector's text against a graph; returns them, and what could not be checked.

    Raises:
        BuildError: a layer has another type than the graph's, or does not compute a context operation as ``context``
            says; the message names node and layer.
    """
    try:
        layers = parse_layers(text)
    except UnreadableLayers as error:
        return [], [str(error)]
    return layers, [*check_types(layers, proto), *check_context(layers, proto, context)]


def check_types(layers: Sequence[Layer], proto: onnx.ModelProto) -> list[str]:
    """Raise BuildError, with the nodes and types, where layers have other types than the graph.

    Returns what could not be checked. Nodes in no layer are accepted up to half of all, since a fusion may fold a few
    away or rename them.
    """
    expected = expected_types(proto)
    if wrong := wrong_types(layers, expected):
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise BuildError(
            f"the engine does not have the types of its graph: {'; '.join(wrong[:5])}{more}. Build with --precision "
            "bf16 or fp32; in eight bits, with --rest bf16 or fp32"
        )
    unread = unread_types(layers, expected)
    if 2 * len(unread) <= len(expected):
        return []
    return [f"the types of {len(unread)} of {len(expected)} nodes cannot be told from its layers, such as {unread[0]}"]


def check_context(layers: Sequence[Layer], proto: onnx.ModelProto, context: Context) -> list[str]:
    """Raise BuildError, with node and layer, where the context operations are not computed as ``context`` says.

    Returns what could not be checked.
    """
    layers_of, unread = _layers_by_node(layers), []
    for node in context_nodes(proto):
        computing = layers_of.get(node.name, [])
        plugins = [layer for layer in computing if layer.plugin]
        if context == "native":
            if plugins:
                raise BuildError(f"native context asked, plugin built: {node.op_type} node {node.name}")
        elif plugins:
            if gaps := [layer.name for layer in plugins if not layer.dense]:
                raise BuildError(f"the plugin {gaps[0]} would read tensors with gaps, which its kernels do not")
        elif kinds := ", ".join(layer.kind for layer in computing if layer.kind):
            raise BuildError(f"plugin asked, native built: {node.op_type} node {node.name} became {kinds}")
        else:
            unread.append(node.name)
    return [f"no layer of known kind computes {', '.join(unread)}, so it cannot be told from plugins"] if unread else []


def summarise(layers: Iterable[Layer]) -> dict[str, Any]:
    """Layer kind -> {types read: number of layers}, of the layers that read anything."""
    table: dict[str, Counter[str]] = {}
    for layer in layers:
        if layer.inputs:
            table.setdefault(layer.kind, Counter())[" ".join(sorted({*layer.inputs, *layer.constants}))] += 1
    return {kind: dict(counter) for kind, counter in sorted(table.items())}
