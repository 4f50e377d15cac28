"""The graph for ONNX Runtime's CUDA provider: nothing of it is computed on the host, so that a CUDA graph holds it.

The provider refuses CUDA graphs of a model with control flow, which the portable graph has in its blocked attention,
or with a node that it has no kernel for. `isnet_trt.engines.onnxruntime_graphs` fixes the sizes: without free sizes no
shape is computed on the host.

https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MultiHeadAttention
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from isnet_trt.export.functions import remove_plugin_namespace
from isnet_trt.export.graph import with_attention
from isnet_trt.export.onnx_edit import CODES, FLOAT_CODES, element_types, opset_of, set_opset, with_nodes

CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
NO_BF16 = dict.fromkeys(
    (
        *("LeakyRelu", "PRelu", "Elu", "Clip", "Log", "Reciprocal", "Floor", "LogSoftmax", "Pad", "Resize"),
        *("GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ArgMax", "ConvTranspose", "DepthToSpace"),
        *("SpaceToDepth", "InstanceNormalization", "BatchNormalization"),
    ),
    "ONNX Runtime's CUDA provider",
)
"""Operators that the provider of onnxruntime-gpu 1.31.1 has no bfloat16 kernel for, as its own partitioning says."""
_END = np.iinfo(np.int64).max


def for_cuda_provider(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph for the CUDA provider: the attention without control flow, by the provider's own operator where
    that is fused, and bfloat16 max pooling, which it does not have, by other operators."""
    graph = with_attention(proto, "plain")
    if graph.functions:
        set_opset(graph, opset_of(graph))  # the bodies are of the oldest, and bfloat16 needs a later one
    remove_plugin_namespace(graph)
    return _CudaWriter(graph).write()


class _CudaWriter:
    """One pass over the nodes in order."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto, self.types = proto, element_types(proto)
        self.producers = {name: node for node in proto.graph.node for name in node.output}
        self.constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.added: dict[str, TensorProto] = {}

    def write(self) -> onnx.ModelProto:
        nodes = [new for node in self.proto.graph.node for new in self._rewritten(node)]
        result = with_nodes(self.proto, nodes, self.added.values())
        if any(node.domain == CONTRIB for node in nodes):
            result.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        return result

    def _rewritten(self, node: NodeProto) -> list[NodeProto]:
        element = self.types.get(node.input[0]) if node.input else None
        half = element in FLOAT_CODES and element != CODES["fp32"]
        if node.op_type == "ContextAttention" and half and self._is_zero(node.input[3]):
            return [_fused_attention(node)]
        if node.op_type == "MaxPool" and element == CODES["bf16"]:
            return self._max_pool(node)
        return [node]

    def _is_zero(self, name: str) -> bool:
        """Whether a tensor is known to hold zeros only."""
        if name in self.constants:
            return not numpy_helper.to_array(self.constants[name]).any()
        node = self.producers.get(name)
        if node is None:
            return False
        if node.op_type in ("Expand", "Cast", "Identity", "Reshape"):
            return self._is_zero(node.input[0])
        if node.op_type in ("ConstantOfShape", "Constant"):
            values = [numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"]
            return not any(value.any() for value in values) and (bool(values) or node.op_type == "ConstantOfShape")
        return False

    def _max_pool(self, node: NodeProto) -> list[NodeProto]:
        """Max pooling of bfloat16; that of 3x3 with stride 2, as in ResNets, by slices, any other in float32."""
        (source,), (target, *_) = node.input, node.output
        if not _is_stem_pool(node):
            wide, pooled = f"{target}::fp32 in", f"{target}::fp32"
            return [
                helper.make_node("Cast", [source], [wide], name=f"cast {wide}", to=CODES["fp32"]),
                helper.make_node("MaxPool", [wide], [pooled], name=node.name, **_attributes(node)),
                helper.make_node("Cast", [pooled], [target], name=f"cast {target}", to=CODES["bf16"]),
            ]
        rows = f"{target}::rows"
        return [*self._pool_axis(source, rows, 2), *self._pool_axis(rows, target, 3)]

    def _pool_axis(self, source: str, target: str, axis: int) -> list[NodeProto]:
        """The largest of each three neighbours along ``axis``, at every second position.

        At the ends the neighbour that is missing is replaced by the element itself, which leaves the maximum as it is.
        """
        nodes: list[NodeProto] = []

        def cut(tensor: str, label: str, start: int, end: int, step: int = 1) -> str:
            name = f"{target}::{label}"
            limits = [self._integers(value) for value in (start, end, axis, step)]
            nodes.append(helper.make_node("Slice", [tensor, *limits], [name], name=name))
            return name

        def join(label: str, *parts: str) -> str:
            name = f"{target}::{label}"
            nodes.append(helper.make_node("Concat", list(parts), [name], name=name, axis=axis))
            return name

        before = join("before", cut(source, "first", 0, 1), cut(source, "but last", 0, -1))
        after = join("after", cut(source, "but first", 1, _END), cut(source, "last", -1, _END))
        strided = [
            cut(tensor, f"{label} strided", 0, _END, 2)
            for tensor, label in ((before, "before"), (source, "middle"), (after, "after"))
        ]
        return [*nodes, helper.make_node("Max", strided, [target], name=target)]

    def _integers(self, value: int) -> str:
        name = f"int64 {value}"
        self.added.setdefault(name, numpy_helper.from_array(np.array([value], np.int64), name))
        return name


def _fused_attention(node: NodeProto) -> NodeProto:
    """The attention without a bias as ONNX Runtime's operator, which holds no N x M scores in half precision."""
    scale = next(attribute.f for attribute in node.attribute if attribute.name == "scale")
    return helper.make_node(
        "MultiHeadAttention", node.input[:3], node.output, node.name, domain=CONTRIB, num_heads=1, scale=scale
    )


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _is_stem_pool(node: NodeProto) -> bool:
    given = _attributes(node)
    form = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    usual = {"dilations": [1, 1], "ceil_mode": 0, "auto_pad": b"NOTSET", "storage_order": 0}
    fits = all(given.get(name) == value for name, value in form.items())
    return fits and len(node.output) == 1 and all(given.get(name, value) == value for name, value in usual.items())
