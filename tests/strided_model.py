"""A network of another stride than `tiny_model`'s."""

from __future__ import annotations

from pathlib import Path

import onnx
import tiny_model
from onnx import TensorProto, helper, numpy_helper


def write_strided(path: Path, classes: int, stride: int) -> None:
    """A 7x7 convolution with ``stride``: the answer has ceil(side / stride) values."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], strides=[stride, stride], pads=[3, 3, 3, 3])],
        "strided",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", classes, "rows", "columns"])],
        [numpy_helper.from_array(tiny_model.weights(classes), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
