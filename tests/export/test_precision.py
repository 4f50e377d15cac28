"""Typed graphs: right numbers, the types that were asked for, a float32 fallback where the data needs it."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from export_models import altered
from onnx import TensorProto, helper

from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.export.fp32_fallback import Half, find_fp32_fallback
from isnet_trt.export.graph import block_outputs, save_graph
from isnet_trt.export.onnx_edit import CODES, element_types, output_type
from isnet_trt.export.parity import compare_logits
from isnet_trt.export.precision import cast_to_half, count_casts, emulate_bf16, without_last_cast
from isnet_trt.export.ranges import Ranges, measure_ranges
from isnet_trt.export.sessions import open_session
from isnet_trt.export.tracing import BLOCKS
from isnet_trt.training.model import ISNet

RMS = {"fp16": 5e-3, "bf16": 4e-2}
"""Root mean square error of the logits over their standard deviation; eight times as much for eight times the step."""
CASTS = 6
"""Image, logits, the global mean in and out; a weight needs none."""


@pytest.fixture(scope="module")
def ranges(graph: onnx.ModelProto) -> Ranges:
    return measure_ranges(graph, [np.random.default_rng(4).standard_normal((1, 3, 61, 83)).astype(np.float32)])


def scaled(graph: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The same function, with one tensor in the middle ``factor`` times as large: conv -> relu -> conv."""
    nodes = {node.input[-1]: node for node in graph.graph.node if node.input}
    maker, reader = (nodes[f"backbone_net.layer3.0.{name}.bias"] for name in ("conv1", "conv2"))
    larger = dict.fromkeys(maker.input[1:3], lambda weights: weights.astype(np.float64) * factor)
    return altered(graph, {**larger, reader.input[1]: lambda weights: weights.astype(np.float64) / factor})


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_numbers_and_types(
    model: ISNet, graph: onnx.ModelProto, ranges: Ranges, half: Half, picture: np.ndarray, tmp_path: Path
) -> None:
    fallback = find_fp32_fallback(graph, ranges, half)
    assert fallback == {"node_mean": "ReduceMean over many values"}
    half_graph = cast_to_half(graph, half, fallback)
    assert count_casts(half_graph) <= CASTS
    save_graph(half_graph, tmp_path / "typed.onnx")
    assert (tmp_path / "typed.onnx").stat().st_size < 0.55 * graph.ByteSize()
    kinds = element_types(half_graph)
    element = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[half]
    for node in half_graph.graph.node:
        if node.op_type in ("Conv", "ContextAttention", "RegionPool"):
            assert {kinds[name] for name in node.input[:2]} == {element}
    assert kinds["image"] == kinds["logits"] == TensorProto.FLOAT
    assert list(block_outputs(half_graph)) == list(BLOCKS)
    runnable = half_graph if half == "fp16" else emulate_bf16(half_graph)
    save_graph(runnable, tmp_path / "model.onnx")
    with open_onnx(tmp_path / "model.onnx", threads=2) as engine, torch.inference_mode():
        row = compare_logits("random", engine.run(picture), model(torch.from_numpy(picture)).numpy())
    assert row.rms <= RMS[half]
    assert row.rms >= RMS[half] / 100  # it is rounded


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_a_last_cast_can_be_left_out(
    graph: onnx.ModelProto, ranges: Ranges, half: Half, picture: np.ndarray, tmp_path: Path
) -> None:
    """The values are those that were cast."""
    wide = cast_to_half(graph, half, find_fp32_fallback(graph, ranges, half))
    narrow = without_last_cast(wide)
    assert (output_type(wide), output_type(narrow)) == ("fp32", half)
    assert narrow.graph.output[0].name == wide.graph.output[0].name
    assert element_types(narrow)[narrow.graph.output[0].name] == CODES[half]
    assert len(narrow.graph.node) == len(wide.graph.node) - 1
    onnx.checker.check_model(narrow)
    assert without_last_cast(narrow) is narrow
    assert without_last_cast(graph) is graph
    if half == "fp16":  # ONNX Runtime computes it in float32 on a CPU, and may leave the cast there and back out
        logits = []
        for proto in (wide, narrow):
            save_graph(proto, tmp_path / "model.onnx")
            with open_onnx(tmp_path / "model.onnx", threads=2) as engine:
                logits.append(engine.run(picture))
        np.testing.assert_array_equal(logits[0].astype(np.float16), logits[1].astype(np.float16))
        np.testing.assert_array_equal(logits[1].astype(np.float16), logits[1])


def test_an_output_that_is_computed_in_float32_stays(graph: onnx.ModelProto, ranges: Ranges) -> None:
    (last,) = [node.name for node in graph.graph.node if graph.graph.output[0].name in node.output]
    typed = cast_to_half(graph, "fp16", {**find_fp32_fallback(graph, ranges, "fp16"), last: "a test"})
    assert without_last_cast(typed) is typed


def test_readers_of_the_tensor_before_the_last_cast_follow_it() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Neg", ["h"], ["n"]),
        helper.make_node("Cast", ["n"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Abs", ["n"], ["inner"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 19)], ir_version=9
    )
    narrow = without_last_cast(proto)
    assert [(*node.input, *node.output) for node in narrow.graph.node] == [("x", "h"), ("h", "y"), ("y", "inner")]
    onnx.checker.check_model(narrow, full_check=True)


@pytest.mark.parametrize(("factor", "reason"), [(3e5, "reaches"), (2.0**-24, "stays below")])
def test_the_fallback_comes_from_the_data(
    model: ISNet, graph: onnx.ModelProto, factor: float, reason: str, picture: np.ndarray, tmp_path: Path
) -> None:
    hazard = scaled(graph, factor)
    result = find_fp32_fallback(hazard, measure_ranges(hazard, [picture]), "fp16")
    hit = {name: why for name, why in result.items() if reason in why}
    # The two convolutions around the tensor, and the ReLU between them.
    assert {node.op_type for node in hazard.graph.node if node.name in hit} == {"Conv", "Relu"}
    assert len(hit) == 3
    assert set(result) - set(hit) == {"node_mean"}
    assert set(find_fp32_fallback(hazard, measure_ranges(hazard, [picture]), "bf16")) == {"node_mean"}
    save_graph(cast_to_half(hazard, "fp16", result), tmp_path / "fallback.onnx")
    save_graph(cast_to_half(hazard, "fp16", {"node_mean"}), tmp_path / "none.onnx")
    with torch.inference_mode():
        expected = model(torch.from_numpy(picture)).numpy()
    with open_onnx(tmp_path / "fallback.onnx", threads=2) as engine:
        assert compare_logits("fallback", engine.run(picture), expected).rms <= RMS["fp16"]
    with open_onnx(tmp_path / "none.onnx", threads=2) as engine:
        assert not compare_logits("none", engine.run(picture), expected).rms <= 10 * RMS["fp16"]


def test_a_whole_float32_graph_is_possible(graph: onnx.ModelProto) -> None:
    everything = {node.name for node in graph.graph.node}
    same = cast_to_half(graph, "fp16", everything)
    assert [n.op_type for n in same.graph.node] == [n.op_type for n in graph.graph.node]
    assert count_casts(same) == 0


def round_to_bf16(values: np.ndarray) -> np.ndarray:
    """Float32 values, each the nearest bfloat16 number."""
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_emulation_rounds_to_nearest_bfloat16(graph: onnx.ModelProto, picture: np.ndarray) -> None:
    """The first convolution's result in the emulation: float32 sums of bfloat16 factors, rounded once."""
    emulation = emulate_bf16(cast_to_half(graph, "bf16", {"node_mean"}))
    first = next(n for n in graph.graph.node if n.op_type == "Conv")
    values = {}
    exact = altered(graph, dict.fromkeys(first.input[1:], round_to_bf16))
    for name, proto, fed in (("emulated", emulation, picture), ("exact", exact, round_to_bf16(picture))):
        with open_session(proto, first.output) as session:
            values[name] = session.run(list(first.output), {"image": fed})[0]
    expected = round_to_bf16(values["exact"])
    # A float32 sum near the middle between two bfloat16 numbers may fall either way.
    assert (values["emulated"] == expected).mean() > 0.999


def test_a_small_summand_is_no_reason(graph: onnx.ModelProto, picture: np.ndarray) -> None:
    """Batch-norm folded into a convolution may leave a bias of rounding errors, 1e-8."""
    small = altered(graph, {"backbone_net.layer3.0.conv1.bias": lambda bias: np.full_like(bias, 1e-8)})
    assert set(find_fp32_fallback(small, measure_ranges(small, [picture]), "fp16")) == {"node_mean"}
