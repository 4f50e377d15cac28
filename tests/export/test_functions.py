"""The function bodies under ONNX Runtime against numpy in float64."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from isnet_trt.export import functions
from isnet_trt.export.functions import BLOCK, AttentionBody

FP32 = 2e-6
"""Largest error over the largest value: float32 against float64."""
FP16 = 2e-3
"""The same for float16 inputs and outputs: a few roundings of 2^-11."""


def session(
    kind: str, inputs: list[str], outputs: list[str], body: AttentionBody = "plain", half: bool = False, **attributes
):  # type: ignore[no-untyped-def]
    node = helper.make_node(kind, inputs, outputs, domain=functions.DOMAIN, **attributes)
    ranks = {"bias": 2, "log_counts": 2}
    element = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    types = {name: TensorProto.FLOAT if name in ranks else element for name in (*inputs, *outputs)}
    values = [helper.make_tensor_value_info(name, kind, [None] * ranks.get(name, 3)) for name, kind in types.items()]
    graph = helper.make_graph([node], "one", values[: len(inputs)], values[len(inputs) :])
    opsets = [helper.make_opsetid("", functions.OPSET), helper.make_opsetid(functions.DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    functions.attach(model, body)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def region_pool(logits: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The definition, class by class, in float64."""
    batch, classes, _ = logits.shape
    centres = np.zeros((batch, classes, features.shape[2]))
    counts = np.zeros((batch, classes))
    for b in range(batch):
        labels = logits[b].argmax(0)
        for k in range(classes):
            own = np.flatnonzero(labels == k)
            counts[b, k] = len(own)
            if len(own):
                weights = np.exp(logits[b, k, own].astype(np.float64) - logits[b, k, own].max())
                centres[b, k] = weights @ features[b, own] / weights.sum()
    with np.errstate(divide="ignore"):
        return centres, np.log(counts)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray, scale: float) -> np.ndarray:
    """The definition, in float64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) * scale + bias[:, None]
    weights = np.exp(scores - scores.max(2, keepdims=True))
    return weights / weights.sum(2, keepdims=True) @ v


@pytest.mark.parametrize(("batch", "classes", "positions", "width"), [(1, 5, 123, 17), (3, 19, 41, 8), (2, 7, 1, 3)])
def test_region_pool(batch: int, classes: int, positions: int, width: int) -> None:
    random = np.random.default_rng(positions)
    logits = (10 * random.standard_normal((batch, classes, positions))).astype(np.float32)
    logits[:, classes - 1] = -50  # a class that never wins
    logits[:, 1] = logits[:, 0]  # ties: the first wins, the second is absent
    features = random.standard_normal((batch, positions, width)).astype(np.float32)
    run = session("RegionPool", ["logits", "features"], ["centres", "log_counts"])
    centres, log_counts = run.run(None, {"logits": logits, "features": features})
    expected, wanted_counts = region_pool(logits, features)
    assert np.abs(centres - expected).max() <= FP32 * np.abs(expected).max()
    finite = np.isfinite(wanted_counts)
    np.testing.assert_array_equal(np.isneginf(log_counts), ~finite)
    np.testing.assert_allclose(log_counts[finite], wanted_counts[finite], rtol=1e-6, atol=1e-6)
    assert not finite[:, 1].any()
    assert not finite[:, classes - 1].any()


@pytest.mark.parametrize("body", ["plain", "blocked"])
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "width"),
    [(1, 5, 123, 32), (2, BLOCK, 7, 16), (3, BLOCK + 1, 61, 8), (1, 2 * BLOCK + 77, 19, 32), (1, 1, 1, 4)],
)
def test_attention(body: AttentionBody, batch: int, queries: int, keys: int, width: int) -> None:
    random = np.random.default_rng(queries)
    q, k, v = (random.standard_normal((batch, n, width)).astype(np.float32) for n in (queries, keys, keys))
    bias = np.log(random.integers(1, 4, (batch, keys)).astype(np.float32))
    bias[:, 1:2] = -np.inf  # an absent class, where there is more than one
    run = session("ContextAttention", ["q", "k", "v", "bias"], ["out"], body, scale=width**-0.5)
    out = run.run(None, {"q": q, "k": k, "v": v, "bias": bias})[0]
    expected = attention(q, k, v, bias, width**-0.5)
    assert np.abs(out - expected).max() <= FP32 * np.abs(expected).max()


@pytest.mark.parametrize(("positions", "width"), [(123, 17), (32768, 5), (70001, 3)])
def test_region_pool_of_halves(positions: int, width: int) -> None:
    """Logits beyond what exp takes, a class of more positions than float16 can count, one without any."""
    random = np.random.default_rng(positions)
    logits = random.standard_normal((1, 6, positions)).astype(np.float16)
    logits[:, 0] += 3
    logits[:, 1, ::7] = 30000
    logits[:, 5] = -60000
    features = random.standard_normal((1, positions, width)).astype(np.float16)
    run = session("RegionPool", ["logits", "features"], ["centres", "log_counts"], half=True)
    centres, log_counts = run.run(None, {"logits": logits, "features": features})
    assert (centres.dtype, log_counts.dtype) == (np.float16, np.float32)
    expected, wanted_counts = region_pool(logits.astype(np.float32), features.astype(np.float32))
    assert np.abs(centres - expected).max() <= FP16 * np.abs(expected).max()
    np.testing.assert_allclose(log_counts, wanted_counts, rtol=1e-6)
    assert np.isneginf(log_counts[0, 5])


@pytest.mark.parametrize("body", ["plain", "blocked"])
def test_attention_of_halves(body: AttentionBody) -> None:
    random = np.random.default_rng(1)
    q, k, v = (random.standard_normal((2, n, 24)).astype(np.float16) for n in (BLOCK + 3, 37, 37))
    bias = np.log(random.integers(1, 90000, (2, 37)).astype(np.float32))
    bias[:, 3] = -np.inf
    run = session("ContextAttention", ["q", "k", "v", "bias"], ["out"], body, True, scale=24**-0.5)
    out = run.run(None, {"q": q, "k": k, "v": v, "bias": bias})[0]
    assert out.dtype == np.float16
    expected = attention(q, k, v, bias, 24**-0.5)
    assert np.abs(out - expected).max() <= FP16 * np.abs(expected).max()


def test_nodes_name_the_plugin_namespace_once(graph: onnx.ModelProto) -> None:
    functions.attach(graph)
    functions.attach(graph)
    nodes = functions.context_nodes(graph)
    assert sorted(node.op_type for node in nodes) == ["ContextAttention", "ContextAttention", "RegionPool"]
    for node in nodes:
        named = [a.s for a in node.attribute if a.name == "plugin_namespace"]
        assert named == [b"isnet_trt"]
    assert len(graph.functions) == 2
