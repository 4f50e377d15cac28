"""Which element type each tensor of a graph has."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto


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
