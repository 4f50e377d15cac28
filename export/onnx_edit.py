"""Editing ONNX graphs: element types, copies with other nodes, opsets, files."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, external_data_helper, helper

from isnet_trt.cuda.element_types import ELEMENT_TYPES, FLOATS, FloatType
from isnet_trt.errors import BuildError

MAX_PROTOBUF = 2**31 - 2**24
"""Bytes of weights in one file: protobuf cannot hold 2 GiB in a message, and the graph itself needs a margin."""
_OLDEST_OPSET, LATEST_OPSET = 20, 23
_IR_OF_LATEST = 11
CODES: dict[str, int] = {name: TensorProto.DataType.Value(element.onnx) for name, element in ELEMENT_TYPES.items()}
"""Name of a type of `isnet_trt.cuda.element_types` -> ONNX's code."""
NAMES = {code: name for name, code in CODES.items()}
FLOAT_CODES = frozenset(CODES[name] for name in FLOATS)
_PACKED = {TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1}
Message = TypeVar("Message", ModelProto, NodeProto, TensorProto)


def copied(message: Message) -> Message:
    """A copy that stays valid when the list that holds ``message`` is emptied."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def with_nodes(proto: ModelProto, nodes: Iterable[NodeProto], added: Iterable[TensorProto] = ()) -> ModelProto:
    """A copy of ``proto`` with other ``nodes``, and of its initializers and the ``added`` ones those that they read."""
    graph_nodes = list(nodes)
    used = {name for node in graph_nodes for name in node.input}
    copy = copied(proto)
    del copy.graph.node[:], copy.graph.initializer[:]
    copy.graph.node.extend(graph_nodes)
    copy.graph.initializer.extend(tensor for tensor in (*proto.graph.initializer, *added) if tensor.name in used)
    return copy


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(helper.get_attribute_value(a)) for a in node.attribute if a.name == name), default)


def element_types(proto: ModelProto) -> dict[str, int]:
    """Tensor name -> ONNX element type, of everything that shape inference knows."""
    bare = copied(proto)
    # Inference keeps recorded types, which may be those from before a rewriting.
    del bare.graph.value_info[:]
    for tensor in bare.graph.initializer:
        _drop_large(tensor)
    inferred = onnx.shape_inference.infer_shapes(bare).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    return types | {tensor.name: tensor.data_type for tensor in proto.graph.initializer}


def output_type(proto: ModelProto) -> FloatType:
    """The element type of the network's output."""
    return cast(FloatType, NAMES[proto.graph.output[0].type.tensor_type.elem_type])


def _drop_large(tensor: TensorProto) -> None:
    # Shape inference copies the model, but reads the values of small tensors only.
    if np.prod(tensor.dims) > 1024:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="none"))


def opset_of(proto: ModelProto) -> int:
    """The version of ONNX's own operators in a graph."""
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)


def set_opset(proto: ModelProto, opset: int) -> None:
    """Set the opset of a graph and its functions, in place.

    Between opsets 20 and 23 the operators of our graphs gained element types and changed nothing else, so that the
    number alone is set.

    Raises:
        BuildError: the graph is of an opset before or after these, whose operators may compute something else.
    """
    for entry in (*proto.opset_import, *(entry for function in proto.functions for entry in function.opset_import)):
        if entry.domain == "":
            if not _OLDEST_OPSET <= entry.version <= LATEST_OPSET:
                raise BuildError(
                    f"the graph has opset {entry.version}; this precision needs one from {_OLDEST_OPSET} to "
                    f"{LATEST_OPSET}: export the network in one of these, or use fp32 or fp16"
                )
            entry.version = max(entry.version, opset)
    # Opset 23 and IR version 11 came with the same release, ONNX 1.18.
    if opset == LATEST_OPSET:
        proto.ir_version = max(proto.ir_version, _IR_OF_LATEST)


def from_bytes(content: bytes, read: Callable[[str], bytes]) -> ModelProto:
    """A graph of which ``content`` is the file; ``read`` gives the files of its external data by name.

    Raises:
        BuildError: a file of external data is shorter than the tensors that lie in it.
    """
    proto = onnx.load_model_from_string(content)
    read = functools.cache(read)
    for tensor in stored_tensors(proto):
        if external_data_helper.uses_external_data(tensor):
            source = external_data_helper.ExternalDataInfo(tensor)
            start = source.offset or 0
            tensor.raw_data = read(source.location)[start:][: source.length]
            expected = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            # Types of less than a byte are packed, and take no more.
            if len(tensor.raw_data) != expected and tensor.data_type not in _PACKED:
                raise BuildError(
                    f"{source.location} holds {len(tensor.raw_data)} of the {expected} bytes of tensor {tensor.name}: "
                    "it is incomplete, or belongs to another graph"
                )
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    return proto


def stored_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor stored in a model: initializers and attributes, those of subgraphs and functions included."""
    yield from _tensors_of(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _tensors_of(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for each in node.attribute:
        if each.HasField("t"):
            yield each.t
        yield from each.tensors
        for graph in (*([each.g] if each.HasField("g") else []), *each.graphs):
            yield from _tensors_of(graph)


def save(proto: ModelProto, path: Path, max_bytes: int = MAX_PROTOBUF) -> None:
    """Write a graph; beyond ``max_bytes`` its weights go into ``<name>.data`` beside it."""
    if proto.ByteSize() <= max_bytes:
        onnx.save_model(proto, str(path))
    else:  # saving moves the weights out of the message: save a copy
        onnx.save_model(copied(proto), str(path), save_as_external_data=True, location=f"{path.name}.data")
