"""Engine layers against the graph: TensorRT-RTX's own words about engines that it really built are in test_tensorrt."""

from __future__ import annotations

import onnx
import pytest

from isnet_trt.errors import BuildError
from isnet_trt.export.engines.inspection import (
    Layer,
    check_context,
    check_types,
    expected_types,
    parse_layers,
    summarise,
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


def test_another_format_is_refused() -> None:
    with pytest.raises(BuildError, match="cannot be read"):
        parse_layers("Layers:\nConv 1: fp16")


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
    with pytest.raises(BuildError, match=rf"{first.name}: asked fp16, built fp32"):
        check_types([wide, *right[1:]], half)
    with pytest.raises(BuildError, match="are in no layer"):
        check_types(right[:3], half)


def test_nodes_in_no_layer_are_accepted_up_to_half() -> None:
    """A fusion folds some away or renames them; an engine of which most is unseen is not inspected at all."""
    expected = dict.fromkeys(("one", "two", "three", "four"), "fp16")
    layers = [Layer(node, "correlation", ("fp16",), (), (), (node,)) for node in expected]
    for unseen in (1, 2):
        assert wrong_types(layers[unseen:], expected) == []
    assert wrong_types(layers[3:], expected) == ["3 of 4 nodes are in no layer, such as one"]
    assert wrong_types([], {}) == []


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
    with pytest.raises(BuildError, match=f"node {name} became no layer of its name"):
        check_context([], reduced, "plugin")
