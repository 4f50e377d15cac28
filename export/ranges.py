"""The range of every tensor of a graph, measured by running it on pictures under ONNX Runtime.

Each tensor is reduced inside the graph, so that memory is that of one run whatever the number of tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tqdm import tqdm

from isnet_trt.errors import BuildError
from isnet_trt.export.functions import context_nodes
from isnet_trt.export.onnx_edit import copied, element_types
from isnet_trt.export.sessions import open_session

_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceSumSquare")


@dataclass(frozen=True)
class Range:
    """Smallest and largest value, and root mean square over the pictures, of one tensor."""

    low: float
    high: float
    rms: float

    @property
    def reach(self) -> float:
        """Largest absolute value."""
        return max(-self.low, self.high)


Ranges = dict[str, Range]


def scores_bound_name(node: onnx.NodeProto) -> str:
    """The key under which `measure_ranges` returns the bound of the scores inside a ``ContextAttention`` node."""
    return f"{node.output[0]}::scores"


def measure_ranges(proto: onnx.ModelProto, inputs: Iterable[NDArray[np.float32]], progress: bool = False) -> Ranges:
    """The ranges of all float32 outputs of nodes of ``proto`` over ``inputs``, (B, 3, H, W) each.

    For a ``ContextAttention`` node, `scores_bound_name` is the key of an upper bound of its scores |scale · q·k|: the
    product of the largest row norms of q and k (Cauchy–Schwarz). The scores themselves are never computed.

    Raises:
        BuildError: there are no inputs, or a tensor is NaN or infinite; the message names it and its node.
    """
    names = float32_outputs(proto)
    producers = {name: node for node in proto.graph.node for name in node.output}
    sums: dict[str, list[float]] = {}
    with open_session(_with_reductions(proto, names)) as session:
        columns = [output.name for output in session.get_outputs()]
        for number, batch in enumerate(tqdm(inputs, "ranges", leave=False, disable=None if progress else True)):
            values = dict(zip(columns, session.run(columns, {session.get_inputs()[0].name: batch}), strict=True))
            for name in names:
                _add(sums, name, values, producers[name], number)
            for node in _attentions(proto):
                _add_scores(sums, node, values)
    if not sums:
        raise BuildError("there are no pictures to measure the graph's ranges on")
    return {name: Range(low, high, (squares / count) ** 0.5) for name, (low, high, squares, count) in sums.items()}


def float32_outputs(proto: onnx.ModelProto) -> list[str]:
    """Names of the float32 outputs of the graph's nodes, in the order of computation.

    ``log_counts`` is left out: it is −inf for a class without positions.
    """
    types = element_types(proto)
    unbounded = {node.output[1] for node in context_nodes(proto) if node.op_type == "RegionPool"}
    outputs = [name for node in proto.graph.node for name in node.output if name]
    return [name for name in outputs if types.get(name) == TensorProto.FLOAT and name not in unbounded]


def _with_reductions(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The graph with reductions of the tensors ``names``, and of the attentions' rows, as its only outputs."""
    copy = copied(proto)
    del copy.graph.output[:]
    for name in names:
        for reduction in _REDUCTIONS:
            _add_output(copy, helper.make_node(reduction, [name], [f"{name}::{reduction}"], keepdims=0))
        # Pictures differ in size: the mean square needs the number of values of each run.
        _add_output(copy, helper.make_node("Size", [name], [f"{name}::Size"]), TensorProto.INT64)
    # Since opset 18 the axes of ReduceL2 are an input.
    copy.graph.initializer.append(numpy_helper.from_array(np.array([2]), "::last"))
    # A set: a tensor that two attentions read must not become two outputs of one name.
    for tensor in {tensor for node in _attentions(proto) for tensor in node.input[:2]}:
        norms = helper.make_node("ReduceL2", [tensor, "::last"], [f"{tensor}::norms"], keepdims=0)
        copy.graph.node.append(norms)
        _add_output(copy, helper.make_node("ReduceMax", [f"{tensor}::norms"], [f"{tensor}::rows"], keepdims=0))
    return copy


def _add_output(copy: onnx.ModelProto, node: onnx.NodeProto, element: int = TensorProto.FLOAT) -> None:
    copy.graph.node.append(node)
    copy.graph.output.append(helper.make_tensor_value_info(node.output[0], element, []))


def _attentions(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in context_nodes(proto) if node.op_type == "ContextAttention"]


def _add(
    sums: dict[str, list[float]], name: str, values: dict[str, NDArray], node: onnx.NodeProto, number: int
) -> None:
    low, high, squares = (float(values[f"{name}::{reduction}"]) for reduction in _REDUCTIONS)
    if not np.isfinite((low, high, squares)).all():
        raise BuildError(
            f"tensor {name} ({node.op_type} {node.name}) is NaN or beyond float32's range on picture {number + 1}: "
            f"the checkpoint is damaged or does not belong to this recipe"
        )
    old = sums.setdefault(name, [low, high, 0.0, 0.0])
    sums[name] = [min(old[0], low), max(old[1], high), old[2] + squares, old[3] + float(values[f"{name}::Size"])]


def _add_scores(sums: dict[str, list[float]], node: onnx.NodeProto, values: dict[str, NDArray]) -> None:
    scale = next(attribute.f for attribute in node.attribute if attribute.name == "scale")
    bound = scale * float(values[f"{node.input[0]}::rows"]) * float(values[f"{node.input[1]}::rows"])
    bound = max(bound, sums.get(scores_bound_name(node), [0.0, 0.0])[1])
    sums[scores_bound_name(node)] = [-bound, bound, bound**2, 1.0]
