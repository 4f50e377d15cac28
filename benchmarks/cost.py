"""What a network must do at least, from its ONNX graph: floating-point operations and bytes, block by block.

Operations are those of convolutions, matrix products and the two context operations (a multiply-add counts 2);
elementwise work is not counted. Bytes are a block's weights plus the tensors that cross its border, once each: what
has to move if everything inside the block stayed in cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from onnx import TensorProto, helper

from isnet_trt.errors import SettingsError
from isnet_trt.export.functions import DOMAIN
from isnet_trt.export.graph import block_outputs
from isnet_trt.settings import Size

TAIL = "decoder_stage2"
"""The block behind the last named border."""
_CONTEXT = ((DOMAIN, "RegionPool"), (DOMAIN, "ContextAttention"))
_WEIGHT_AT = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
_PRODUCTS = ("MatMul", "MatMulInteger", "Gemm", "QLinearMatMul")
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Block:
    """Part of the network up to a block's output ``tensor``: its ``operations`` and least ``bytes``."""

    name: str
    operations: float
    bytes: float
    tensor: str


def blocks(path: Path, size: Size, batch: int = 1) -> list[Block]:
    """The blocks of a model file for inputs (batch, 3, *size), in order of computation.

    Raises:
        SettingsError: ONNX Runtime cannot run the graph at that size.
    """
    proto = flat(path)
    shapes = tensor_shapes(proto, size, batch)
    types = _types(proto)
    outputs = [name for name in (*block_outputs(proto).values(), proto.graph.output[0].name) if name in shapes]
    names = [*(name for name, tensor in block_outputs(proto).items() if tensor in shapes), TAIL]
    owned = owners(proto, outputs)
    return [
        Block(name, _operations(proto, owned, i, shapes), _bytes(proto, owned, i, shapes, types), outputs[i])
        for i, name in enumerate(names)
    ]


def flat(path: Path) -> onnx.ModelProto:
    """The model with every function but the two context operations in line."""
    proto = onnx.load(str(path))
    kept = [(f.domain, f.name) for f in proto.functions if (f.domain, f.name) in _CONTEXT]
    return onnx.inliner.inline_selected_functions(proto, kept, exclude=True) if proto.functions else proto


def tensor_shapes(proto: onnx.ModelProto, size: Size, batch: int) -> Shapes:
    """The shape of every tensor, as a run tells it: exact also where sizes are free and inference gives up."""
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    names = [name for node in proto.graph.node for name in node.output if name]
    del probe.graph.output[:]
    for i, name in enumerate(names):
        probe.graph.node.append(helper.make_node("Shape", [name], [f"shape_of_{i}"]))
        probe.graph.output.append(helper.make_tensor_value_info(f"shape_of_{i}", TensorProto.INT64, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    image = np.random.default_rng(0).standard_normal((batch, 3, *size), dtype=np.float32)
    try:
        session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run(None, {proto.graph.input[0].name: image})
    except Exception as error:
        raise SettingsError(f"the graph cannot be run at {size[0]}x{size[1]}: {error}") from None
    shapes: Shapes = {name: tuple(map(int, shape)) for name, shape in zip(names, found, strict=True)}
    shapes[proto.graph.input[0].name] = image.shape
    shapes.update({weight.name: tuple(weight.dims) for weight in proto.graph.initializer})
    return shapes


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    """Tensor name -> bytes of an element, where inference finds its type (4 elsewhere)."""
    inferred = onnx.shape_inference.infer_shapes(proto)
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *inferred.graph.input)}
    kinds |= {weight.name: weight.data_type for weight in proto.graph.initializer}
    return {name: helper.tensor_dtype_to_np_dtype(kind).itemsize for name, kind in kinds.items() if kind}


def owners(proto: onnx.ModelProto, ends: Sequence[str]) -> dict[int, int]:
    """Node number -> block number: what the end of a block needs and no earlier block had.

    Where the end is quantised, that belongs to it: an integer kernel puts out the quantised values.
    """
    producers = {name: i for i, node in enumerate(proto.graph.node) for name in node.output}
    found: dict[int, int] = {}
    for block, end in enumerate(ends):
        waiting = [producers[end]] if end in producers else []
        while waiting:
            number = waiting.pop()
            if number in found:
                continue
            found[number] = block
            waiting += [producers[name] for name in proto.graph.node[number].input if name in producers]
        for number, node in enumerate(proto.graph.node):
            if node.op_type == "QuantizeLinear" and node.input[0] == end:
                found.setdefault(number, block)
    return found


def _operations(proto: onnx.ModelProto, owned: dict[int, int], block: int, shapes: Shapes) -> float:
    return sum(operations(node, shapes) for i, node in enumerate(proto.graph.node) if owned.get(i) == block)


def operations(node: onnx.NodeProto, shapes: Shapes) -> float:
    """Floating-point (or integer) operations of one node."""
    out = shapes.get(node.output[0], ())
    if node.op_type in _WEIGHT_AT:
        return 2.0 * math.prod(out) * math.prod(shapes[node.input[_WEIGHT_AT[node.op_type]]][1:])
    if node.op_type in _PRODUCTS:
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return 2.0 * math.prod(out) * shapes[node.input[0]][-2 if transposed else -1]
    if (node.domain, node.op_type) == _CONTEXT[0]:
        (batch, classes, positions), channels = shapes[node.input[0]], shapes[node.input[1]][-1]
        return 2.0 * batch * classes * positions * channels
    if (node.domain, node.op_type) == _CONTEXT[1]:
        (batch, queries, width), (_, keys, values) = shapes[node.input[0]], shapes[node.input[2]]
        return 2.0 * batch * queries * keys * (width + values)
    return 0.0


def _bytes(proto: onnx.ModelProto, owned: dict[int, int], block: int, shapes: Shapes, types: dict[str, int]) -> float:
    nodes = list(enumerate(proto.graph.node))
    inside = [node for i, node in nodes if owned.get(i) == block]
    made = {name for node in inside for name in node.output}
    used = {name for node in inside for name in node.input if name}
    elsewhere = {name for i, node in nodes if owned.get(i) not in (None, block) for name in node.input}
    given = {output.name for output in proto.graph.output}
    crossing = (used - made) | (made & (elsewhere | given))
    return float(sum(math.prod(shapes[name]) * types.get(name, 4) for name in crossing if name in shapes))
