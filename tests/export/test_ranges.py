"""Ranges measured inside the graph against the tensors themselves."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from export_models import altered

from isnet_trt.errors import BuildError
from isnet_trt.export.functions import context_nodes
from isnet_trt.export.ranges import float32_outputs, measure_ranges, scores_bound_name
from isnet_trt.export.sessions import open_session


def tensors(graph: onnx.ModelProto, names: list[str], picture: np.ndarray) -> list[np.ndarray]:
    with open_session(graph, names) as session:
        return session.run(names, {"image": picture})


def test_ranges_of_every_tensor(graph: onnx.ModelProto, picture: np.ndarray) -> None:
    other = np.ascontiguousarray(2 * picture[:, :, :41, ::-1])
    ranges = measure_ranges(graph, [picture, other])
    names = float32_outputs(graph)
    attentions = [node for node in context_nodes(graph) if node.op_type == "ContextAttention"]
    assert set(ranges) == {*names, *map(scores_bound_name, attentions)}
    assert len(names) > 100
    for name, one, two in zip(names, tensors(graph, names, picture), tensors(graph, names, other), strict=True):
        result = ranges[name]
        both = np.concatenate([one.ravel(), two.ravel()]).astype(np.float64)
        spread = max(result.reach, 1e-6)
        assert result.low == pytest.approx(both.min(), abs=1e-5 * spread)  # float32, other fusions
        assert result.high == pytest.approx(both.max(), abs=1e-5 * spread)
        assert result.rms == pytest.approx(np.sqrt((both**2).mean()), rel=1e-3, abs=1e-6 * spread)


def test_scores_are_bounded(graph: onnx.ModelProto, picture: np.ndarray) -> None:
    ranges = measure_ranges(graph, [picture])
    for node in context_nodes(graph):
        if node.op_type == "ContextAttention":
            q, k = tensors(graph, list(node.input[:2]), picture)
            scale = next(a.f for a in node.attribute if a.name == "scale")
            largest = np.abs(scale * q @ k.transpose(0, 2, 1)).max()
            assert largest <= ranges[scores_bound_name(node)].reach <= 100 * largest


def test_nan_names_the_tensor(graph: onnx.ModelProto, picture: np.ndarray) -> None:
    node = next(n for n in graph.graph.node if n.op_type == "Conv" and n.input[1].startswith("backbone_net.layer2"))
    wrong = altered(graph, {node.input[1]: lambda weights: weights * np.nan})
    with pytest.raises(BuildError, match=f"tensor {node.output[0]} .*NaN.*picture 1"):
        measure_ranges(wrong, [picture])


def test_no_pictures(graph: onnx.ModelProto) -> None:
    with pytest.raises(BuildError, match="no pictures"):
        measure_ranges(graph, [])
