"""Engine layers against the graph: the inspector's text in every form, and text that cannot be read.

``inspector/`` holds what TensorRT-RTX 1.7 really wrote about engines of `tests.gpu.engines`. No TensorRT has run yet:
its form is written here with the fields that users have shown (https://github.com/NVIDIA/TensorRT/issues/4020).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isnet_trt.errors import BuildError
from isnet_trt.export.engines.inspection import (
    UNKNOWN,
    Layer,
    UnreadableLayers,
    check_context,
    check_types,
    expected_types,
    inspect,
    parse_layers,
    summarise,
    unread_types,
    wrong_types,
)
from isnet_trt.export.functions import context_nodes
from isnet_trt.export.precision import cast_to_half

_HALF = "Strides: [-1,1,-1,16], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }"
TEXT = f"""Layers:
Name: start, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:
Name: node_conv2d, LayerType: correlation, Inputs: [ {{ Name: a, Dimensions: [1,3,-1,-1], {_HALF}], Constants: [ \
{{ Name: w, Dimensions: [16,3,3,3], {_HALF}, {{ Name: scale, Dimensions: [1], Strides: [1], Datatype: Float, Format: \
(Linear) }}], Outputs: [ {{ Name: b, Dimensions: [1,16,-1,-1], {_HALF}], TacticName: t, StreamId: 0, \
Metadata: [ONNX Layer: node_conv2d][ONNX Layer: RegionPool_0_ArgMax | node_region_pool (RegionPool)]

I/O Tensors:
 Name: image, IOMode: Input, DataType: Float
"""
OLDER = """Layers:
Name: conv1, LayerType: CaskConvolution, Inputs: [ { Name: x, Dimensions: [16,3,4,4], \
Format/Datatype: Int8 NC/32HW32 }], \
Outputs: [ { Name: y, Dimensions: [16,8,4,4], Format/Datatype: Row major linear FP16 format }], TacticName: i8
"""


def test_text_of_the_inspector() -> None:
    start, conv = parse_layers(TEXT)
    assert start == Layer("start", "shape_call", (), (), (), ())
    assert (conv.name, conv.kind) == ("node_conv2d", "correlation")
    assert (conv.inputs, conv.constants, conv.outputs) == (("fp16",), ("fp16",), ("fp16",))  # a scale is no weight
    assert conv.nodes == ("node_conv2d", "RegionPool_0_ArgMax", "node_region_pool")
    (older,) = parse_layers(OLDER)
    assert (older.inputs, older.outputs) == (("int8",), ("fp16",))
    assert summarise([start, conv, older]) == {"CaskConvolution": {"int8": 1}, "correlation": {"fp16": 1}}


REAL = Path(__file__).parent / "inspector"
PLUGINS = (REAL / "tensorrt_rtx_1.7_plugins_fp16.txt").read_text("utf-8")
NODES = {"node_of_coarse": "correlation", "node_of_q": "gemm", "node_of_y": "gemm"}


def test_real_text_of_tensorrt_rtx() -> None:
    layers = parse_layers(PLUGINS)
    assert len(layers) == PLUGINS.count("\nName: ") == 31
    by_name = {node: layer for layer in layers for node in layer.nodes if layer.kind in ("correlation", "gemm")}
    assert {node: by_name[node].kind for node in NODES} == NODES
    assert {by_name[node].inputs for node in NODES} == {by_name[node].constants for node in NODES} == {("fp16",)}
    plugins = {node for layer in layers if layer.plugin and layer.dense for node in layer.nodes}
    assert plugins == {"pool", "semantic_level", "image_level", "node_of_features"}
    eight = parse_layers((REAL / "tensorrt_rtx_1.7_int8.txt").read_text("utf-8"))
    assert summarise(eight)["correlation"] == {"int8": 2}


@pytest.mark.parametrize("path", sorted(REAL.iterdir()), ids=lambda path: path.name)
def test_every_text_that_a_library_has_written_is_read(path: Path) -> None:
    layers = parse_layers(path.read_text("utf-8"))
    read = [layer for layer in layers if layer.nodes and set(layer.inputs) - {UNKNOWN}]
    assert 2 * len(read) >= len([layer for layer in layers if layer.inputs])


@pytest.mark.parametrize("separator", ["\x1e", "\x1f", "\x85", "\u2028", ""])
def test_any_separator_between_the_names_of_nodes(separator: str) -> None:
    assert "\x1f" in PLUGINS
    assert parse_layers(PLUGINS.replace("\x1f", separator)) == parse_layers(PLUGINS)


def as_json(layers: list[Layer], **more: Any) -> str:
    """The layers as TensorRT's inspector writes them, with the separator between nodes escaped."""
    words = {"fp16": "Channel major FP16 format where channel % 8 == 0", "fp32": "Row major linear FP32"}

    def tensors(types: tuple[str, ...]) -> list[dict[str, Any]]:
        return [
            {"Name": "t", "Location": "Device", "Dimensions": [1, 8, 4, 4], "Format/Datatype": words.get(kind, kind)}
            for kind in types
        ]

    entries = [
        {
            "Name": layer.name,
            "LayerType": layer.kind,
            "Inputs": tensors(layer.inputs),
            "Outputs": tensors(layer.outputs),
            "Weights": {"Type": {"fp16": "Half", "fp32": "Float"}[layer.constants[0]], "Count": 64},
            "Bias": {"Type": "Float", "Count": 8},
            "TacticValue": "0x0",
            "StreamId": 0,
            "Metadata": "\x1e".join(f"[ONNX Layer: {node}]" for node in layer.nodes),
            **more,
        }
        for layer in layers
    ]
    return json.dumps({"Layers": entries, "Bindings": ["image", "logits"]})


CONV = Layer("conv + relu", "CaskConvolution", ("fp16", "fp32"), ("fp16",), ("fp16",), ("conv", "relu"))


def test_json_of_tensorrt() -> None:
    text = as_json([CONV])
    assert "\\u001e" in text
    assert parse_layers(text) == parse_layers(text.replace("\\u001e", "\x1e")) == [CONV]
    assert parse_layers(as_json([CONV], Unheard={"Of": [1]}, Sparsity=None)) == [CONV]
    eight = as_json([CONV]).replace("Channel major FP16 format where channel % 8 == 0", "Thirty-two wide Int8 format")
    assert parse_layers(eight)[0].inputs == ("int8", "fp32")


def test_json_without_some_fields() -> None:
    """Names stand in for the nodes; types that depend on free sizes, or are new, are unknown."""
    (bare,) = parse_layers('{"Layers": ["conv + relu"]}')
    assert (bare.nodes, bare.kind, bare.computes_in("fp16")) == (("conv", "relu"), "", None)
    assert parse_layers(as_json([CONV], Metadata=""))[0].nodes == ("conv", "relu")
    free = as_json([CONV], Inputs=[{"Name": "x", "Format/Datatype": "N/A due to dynamic shapes"}])
    assert parse_layers(free)[0].inputs == (UNKNOWN,)
    assert parse_layers(free)[0].computes_in("fp16")  # its weights are
    (new,) = parse_layers(as_json([CONV], Inputs=[{"Name": "x", "Format/Datatype": "MXFP6"}], Weights=None))
    assert new.computes_in("fp16") is None
    (copy,) = parse_layers(as_json([CONV], LayerType="Reformat", Metadata=""))
    assert copy.nodes == ()


@pytest.mark.parametrize(
    "text", ["", "Layers:\nConv 1: fp16", "{", "[1, 2]", '{"Layers": {}}', '{"Layers": [', "[" * 100_000, "no layers"]
)
def test_text_that_cannot_be_read_leaves_the_checks_undone(graph: onnx.ModelProto, text: str) -> None:
    with pytest.raises(UnreadableLayers, match="cannot be read"):
        parse_layers(text)
    layers, unchecked = inspect(text, graph, "plugin")
    assert layers == []
    assert len(unchecked) == 1


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Name", "LayerType", "Inputs", "Constants", "Weights", "Dimensions", "Strides", "Metadata"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(_values, max_size=3))
def test_json_of_any_content_is_read_or_unreadable(entries: list[Any]) -> None:
    text = json.dumps({"Layers": entries})
    if any(isinstance(entry, str | dict) for entry in entries):
        assert all(isinstance(layer.computes_in("fp16"), bool | None) for layer in parse_layers(text))
    else:
        with pytest.raises(UnreadableLayers):
            parse_layers(text)


def test_expected_types_follow_the_graph(graph: onnx.ModelProto) -> None:
    types = expected_types(graph)
    assert set(types.values()) == {"fp32"}
    island = next(n.name for n in graph.graph.node if n.op_type == "Conv")
    half = expected_types(cast_to_half(graph, "fp16", {"node_mean", island}))
    assert {name for name, kind in half.items() if kind == "fp32"} == {island}
    assert set(half.values()) == {"fp32", "fp16"}
    assert set(half) == set(types)


def test_wrong_types_are_named(graph: onnx.ModelProto) -> None:
    half = cast_to_half(graph, "fp16", {"node_mean"})
    types = expected_types(half)
    right = [Layer(node, "correlation", (kind,), (kind,), (kind,), (node,)) for node, kind in types.items()]
    check_types(right, half)
    first = right[0]
    wide = Layer(first.name, first.kind, ("fp32",), ("fp32",), ("fp32",), first.nodes)
    assert wrong_types([wide, *right[1:]], types) == [f"{first.name}: asked fp16, built fp32"]
    with pytest.raises(
        BuildError, match=rf"{first.name}: asked fp16, built fp32\. Build with --precision bf16 or fp32"
    ):
        check_types([wide, *right[1:]], half)
    assert check_types(right, half) == []
    (unchecked,) = check_types(right[:3], half)
    assert unchecked.startswith(f"the types of {len(types) - 3} of {len(types)} nodes cannot be told from its layers")
    unknown = [Layer(node, "fusion", (UNKNOWN,), (), (), (node,)) for node in types]
    assert f"the types of {len(types)} of {len(types)}" in check_types(unknown, half)[0]


def test_a_product_behind_a_fused_cast_has_the_type_of_its_weights() -> None:
    fused = Layer("cast_gemm", "kgen", ("fp32",), ("fp16",), ("fp16",), ("gemm",))
    assert wrong_types([fused], {"gemm": "fp16"}) == []
    assert wrong_types([fused], {"gemm": "int8"}) == ["gemm: asked int8, built fp32"]
    stored = Layer("gemm", "kgen", ("fp16",), ("int8",), ("fp16",), ("gemm",))
    assert wrong_types([stored], {"gemm": "int8"}) == ["gemm: asked int8, built fp16"]  # weights only


def test_nodes_in_no_layer_are_accepted_up_to_half() -> None:
    """A fusion folds some away or renames them."""
    expected = dict.fromkeys(("one", "two", "three", "four"), "fp16")
    layers = [Layer(node, "correlation", ("fp16",), (), (), (node,)) for node in expected]
    for unseen in (1, 2):
        assert wrong_types(layers[unseen:], expected) == []
    assert unread_types(layers[3:], expected) == ["one", "two", "three"]
    assert unread_types([], {}) == wrong_types([], {}) == []


def attention_layer(kind: str, shape: str, strides: str) -> str:
    """What TensorRT-RTX says of the demo's first attention, shortened."""
    first = (
        f"{{ Name: q, Dimensions: [{shape}], Strides: [{strides}], StrideOrder: [2,1,0], Datatype: Half, Format: x }}"
    )
    bias = "{ Name: bias, Dimensions: [1,9], Strides: [9,1], StrideOrder: [1,0], Datatype: Float, Format: (Linear) }"
    return (
        f"Layers:\nName: node_attention_myl0_67, LayerType: {kind}, Inputs: [ {first}, {bias}], Constants: [], "
        f"Outputs: [ {first}], TacticName: , StreamId: 0, Metadata: [ONNX Layer: node_transpose_8][ONNX Layer: {{}}]\n"
    )


def without_region_pool(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The graph with its first attention as the only context node, and the node's name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    nodes = context_nodes(copy)
    node = next(node for node in nodes if node.op_type == "ContextAttention")
    for other in nodes:
        if other is not node:
            copy.graph.node.remove(other)
    return copy, node.name


@pytest.mark.parametrize("kind", ["custom_layer", "PluginV3"])
@pytest.mark.parametrize(
    ("shape", "strides", "dense"),
    [
        ("1,357,32", "11424,32,1", True),
        ("1,357,32", "22848,64,1", False),  # half of a concatenation
        ("1,32,357", "11424,1,32", False),  # turned
        ("1,-1,32", "-1,32,1", True),
        ("1,-1,32", "-1,64,1", False),
    ],
)
def test_plugins_read_rows_without_gaps(
    graph: onnx.ModelProto, kind: str, shape: str, strides: str, dense: bool
) -> None:
    reduced, name = without_region_pool(graph)
    layers = parse_layers(attention_layer(kind, shape, strides).replace("{}", name))
    assert (layers[0].plugin, layers[0].dense) == (True, dense)
    if dense:
        check_context(layers, reduced, "plugin")
    else:
        with pytest.raises(BuildError, match="node_attention_myl0_67 would read tensors with gaps"):
            check_context(layers, reduced, "plugin")
    with pytest.raises(BuildError, match=f"native context asked, plugin built: ContextAttention node {name}"):
        check_context(layers, reduced, "native")


def test_native_layers_where_plugins_were_asked(graph: onnx.ModelProto) -> None:
    reduced, name = without_region_pool(graph)
    layers = parse_layers(attention_layer("kgen", "1,357,32", "11424,32,1").replace("{}", name))
    check_context(layers, reduced, "native")
    with pytest.raises(BuildError, match=f"plugin asked, native built: ContextAttention node {name} became kgen"):
        check_context(layers, reduced, "plugin")
    for layers in ([], parse_layers(json.dumps({"Layers": [name]}))):
        (unchecked,) = check_context(layers, reduced, "plugin")
        assert f"no layer of known kind computes {name}" in unchecked
