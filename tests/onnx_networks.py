"""Small segmentation networks as ONNX files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save_network(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    classes: int,
    weights: dict[str, np.ndarray] | None = None,
    size: tuple[int | str, int | str] = ("height", "width"),
    batch: int | str = "batch",
    output: int = TensorProto.FLOAT,
    **options: Any,
) -> Path:
    """Write the network from the first node's first input, a float32 image, to the last node's output, its logits.

    ``output`` is the type of the elements of the logits, ``options`` are those of `onnx.save`.
    """
    shapes = {nodes[0].input[0]: [batch, 3, *size], nodes[-1].output[0]: [batch, classes, "rows", "columns"]}
    types = TensorProto.FLOAT, output
    ends = [
        helper.make_tensor_value_info(name, kind, shape)
        for kind, (name, shape) in zip(types, shapes.items(), strict=True)
    ]
    constants = [numpy_helper.from_array(values, name) for name, values in (weights or {}).items()]
    graph = helper.make_graph(nodes, path.stem, ends[:1], ends[1:], constants)
    domains = dict.fromkeys(node.domain for node in nodes)
    opsets = [helper.make_opsetid(domain, 1 if domain else 19) for domain in {"": None, **domains}]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path, **options)
    return path
