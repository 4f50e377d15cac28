"""Small segmentation networks of other people's making, with seeded weights, as ONNX graphs. No torch needed."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser

CLASSES = 5
ENCODER = """
    a = Conv <kernel_shape: ints = [3, 3], strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    c = Conv <kernel_shape: ints = [3, 3], strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]> (r, w2, b2)
    s = Relu (c)
"""
HEAD = ENCODER + "    y = Conv (s, w3, b3)\n"
"""Stride 4, output ``y``."""
RESIZED = """
    size = Shape <start: int = 2, end: int = 4> (x)
    front = Shape <start: int = 0, end: int = 2> (low)
    sizes = Concat <axis: int = 0> (front, size)
    y = Resize <mode: string = "linear", coordinate_transformation_mode: string = "{mode}"> (low, , , sizes)
"""


def network(
    body: str = HEAD,
    inputs: str = "float[batch, 3, height, width] x",
    outputs: str = "float[n, k, rows, columns] y",
    classes: int = CLASSES,
    opset: int = 17,
    domains: str = "",
    **weights: np.ndarray,
) -> onnx.ModelProto:
    """A network of the nodes in ``body``, in ONNX's text form; weights w1, b1 … w3, b3 and ``weights`` are stored."""
    generator = np.random.default_rng(7)
    stored = {
        "w1": generator.standard_normal((8, 3, 3, 3)) / 3,
        "b1": generator.standard_normal(8) / 9,
        "w2": generator.standard_normal((16, 8, 3, 3)) / 6,
        "b2": generator.standard_normal(16) / 9,
        "w3": generator.standard_normal((classes, 16, 1, 1)),
        "b3": generator.standard_normal(classes),
    }
    header = f'<ir_version: 9, opset_import: ["": {opset}{domains}]>'
    model = parser.parse_model(f"{header} given ({inputs}) => ({outputs}) {{{body}}}")
    every = {name: np.float32(array) for name, array in stored.items()} | weights
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in every.items() if name in used
    )
    return model


def resized(mode: str = "half_pixel", **options: object) -> onnx.ModelProto:
    """A network of stride 4 that enlarges its output to the size of its input."""
    return network(HEAD.replace("y =", "low =") + RESIZED.format(mode=mode), **options)  # type: ignore[arg-type]
