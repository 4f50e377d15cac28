"""A network of others that takes several images only: any number instead, or each image repeated.

`isnet_trt.export.intake.graph` tries the `freed` graph first. Where the number is inside the graph (in a Reshape, say),
`repeating` repeats the image in front of it and takes the first output behind it: every engine runs it as any other.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

_FIRST = "first_image"
"""The node that takes the output for the first image."""


def freed(model: ir.Model) -> ir.Model:
    """A copy of ``model`` that declares no number of images, nor what was inferred from it."""
    copy = model.clone()
    entry = copy.graph.inputs[0]
    assert entry.shape is not None
    declared = list(entry.shape)[1:]
    for value in (*copy.graph.outputs, *itertools.chain.from_iterable(node.outputs for node in copy.graph.all_nodes())):
        value.shape = None
    entry.shape = ir.Shape(["batch", *declared])
    return copy


def repeating(model: ir.Model, batch: int) -> ir.Model:
    """A copy of ``model`` that takes one image, shows it ``batch`` times, and gives the output for one."""
    copy = freed(model)
    graph, entry, end = copy.graph, copy.graph.inputs[0], copy.graph.outputs[0]
    assert entry.shape is not None
    # Concat and Gather: their forms are the same in every opset.
    image = ir.Value(name=f"{entry.name}_once", shape=ir.Shape([1, *list(entry.shape)[1:]]), type=entry.type)
    images = ir.node("Concat", [image] * batch, {"axis": 0}, name="repeat_image")
    entry.replace_all_uses_with(images.outputs[0])
    graph.inputs[0] = image
    graph.insert_before(graph[0], images)
    index = ir.Value(name=_FIRST, const_value=ir.tensor(np.zeros(1, np.int64), name=_FIRST))
    graph.register_initializer(index)
    first = ir.node("Gather", [end, index], {"axis": 0}, name=_FIRST)
    first.outputs[0].name, first.outputs[0].type = f"{end.name}_first", end.type
    graph.append(first)
    graph.outputs[0] = first.outputs[0]
    return copy


def last_node(graph: ir.Graph) -> ir.Node | None:
    """The node that computes the output; of a `repeating` graph the one in front of the choice of an image."""
    node = graph.outputs[0].producer()
    if node is not None and node.name == _FIRST and node.inputs[0] is not None:
        return node.inputs[0].producer()
    return node
