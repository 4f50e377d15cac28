"""Which element type each tensor of a graph has, and ONNX's codes of the types."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from isnet_trt.cuda.element_types import ELEMENT_TYPES, FLOATS

CODES: dict[str, int] = {name: TensorProto.DataType.Value(element.onnx) for name, element in ELEMENT_TYPES.items()}
"""Name of a type of `isnet_trt.cuda.element_types` -> ONNX's code."""
NAMES = {code: name for name, code in CODES.items()}
FLOAT_CODES = frozenset(CODES[name] for name in FLOATS)


def element_types(proto: onnx.ModelProto) -> dict[str, int]:
    """Tensor name -> ONNX element type, of everything that shape inference knows."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    for tensor in bare.graph.initializer:
        _drop_large(tensor)
    inferred = onnx.shape_inference.infer_shapes(bare).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    return kinds | {tensor.name: tensor.data_type for tensor in proto.graph.initializer}


def _drop_large(tensor: TensorProto) -> None:
    """Shape inference copies the model; it looks into small tensors only."""
    if np.prod(tensor.dims) > 1024:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.append(onnx.StringStringEntryProto(key="location", value="none"))
