"""The gate: right engines pass, wrong ones are named, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from export_models import altered

from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.errors import ParityError, SettingsError
from isnet_trt.export import parity
from isnet_trt.export.graph import save_graph
from isnet_trt.export.network_inputs import load_inputs
from isnet_trt.export.parity import FP32, TOLERANCES, LogitsErrors, compare_logits, gate
from isnet_trt.export.torch_reference import TorchReference
from isnet_trt.merging.merge import Head
from isnet_trt.recipes import recipe
from isnet_trt.training.model import ISNet

PREPROCESS = recipe("isnet_demo").preprocess
HEAD = Head(recipe("isnet_demo").labels.count, 8)


def planted(graph: onnx.ModelProto, scope: str, value: float) -> onnx.ModelProto:
    """The graph with the first convolution of ``scope`` multiplied by ``value``."""
    name = next(t.name for t in graph.graph.initializer if t.name.startswith(scope) and len(t.dims) == 4)
    return altered(graph, {name: lambda weights: weights * value})


def run_gate(model: ISNet, graph: onnx.ModelProto, path: Path) -> dict:
    save_graph(graph, path)
    with open_onnx(path, threads=2) as engine:
        return gate(TorchReference(model, 8), HEAD, graph, engine, load_inputs(PREPROCESS)).to_json()


def test_right_engine_passes(model: ISNet, graph: onnx.ModelProto, tmp_path: Path) -> None:
    report = run_gate(model, graph, tmp_path / "model.onnx")
    assert len(report["pictures"]) == 4
    assert all(row["max"] < 1e-3 and row["agreement"] > 0.999 for row in report["pictures"])
    assert len({(row["height"], row["width"]) for row in report["pictures"]}) >= 3


@pytest.mark.parametrize("scope", ["backbone_net.layer2", "ilc_net.bottleneck", "slc_net.bottleneck"])
def test_planted_error_is_named(model: ISNet, graph: onnx.ModelProto, scope: str, tmp_path: Path) -> None:
    with pytest.raises(ParityError) as failure:
        run_gate(model, planted(graph, scope, 1.5), tmp_path / "model.onnx")
    block = scope if scope in parity.block_outputs(graph) else scope.split(".")[0]
    assert f"first block outside its bound in the ONNX graph: {block}" in str(failure.value)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]  # no probe is left


def test_nan_is_found(model: ISNet, graph: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="NaN or Inf"):
        run_gate(model, planted(graph, "decoder_stage2", np.nan), tmp_path / "model.onnx")


def test_row_bounds_take_no_nan() -> None:
    assert LogitsErrors("p", 3, 5, 1e-4, 1e-5, 1.0).within(FP32)
    assert not LogitsErrors("p", 3, 5, np.nan, np.nan, 1.0).within(FP32)
    expected = np.random.default_rng(0).standard_normal((1, 5, 7, 9)).astype(np.float32)
    assert np.isnan(compare_logits("p", np.where(expected > 2, np.inf, expected).astype(np.float32), expected).max)
    shifted = compare_logits("p", expected + 0.25 * expected.std(), expected)
    assert shifted.rms == pytest.approx(0.25, rel=1e-5)
    assert shifted.agreement == 1.0


def test_pictures_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no pictures"):
        load_inputs(PREPROCESS, tmp_path)
    cv2.imwrite(str(tmp_path / "one.png"), np.full((31, 57, 3), 90, np.uint8))
    (one,) = load_inputs(PREPROCESS, tmp_path)
    assert one.pixels.shape == (1, 3, 512, 941)  # through the recipe's test resize
    (small,) = load_inputs(PREPROCESS, tmp_path / "one.png", (33, 47))
    assert small.pixels.shape == (1, 3, 33, 47)


def test_eight_bits_of_made_up_weights_pass() -> None:
    """ResNet-50 on ADE20K with the fixtures' weights in E4M3: its labels are near ties, the engine is right."""
    measured = LogitsErrors("scene", 97, 131, 2.7, 0.44, 0.443)
    assert measured.within(TOLERANCES["fp8"])
    assert not measured.within(TOLERANCES["fp16"])
    unrelated = np.random.default_rng(0).standard_normal((2, 1, 150, 13, 17)).astype(np.float32)
    assert not compare_logits("noise", *unrelated).within(TOLERANCES["fp8"])


def test_eight_bits_that_fail_are_told_what_helps(model: ISNet, graph: onnx.ModelProto, tmp_path: Path) -> None:
    wrong = planted(graph, "backbone_net.layer2", 40.0)
    save_graph(wrong, tmp_path / "model.onnx")
    with open_onnx(tmp_path / "model.onnx", threads=2) as engine, pytest.raises(ParityError, match="--max-drop"):
        gate(TorchReference(model, 8), HEAD, wrong, engine, load_inputs(PREPROCESS), TOLERANCES["int8"])


def test_histograms_add_the_pictures_up() -> None:
    """The first picture's edges serve all; values beyond them count in the outermost bins."""
    reference, values = (np.linspace(0, 1, 81, dtype=np.float32), np.linspace(0, 0.5, 81, dtype=np.float32))
    first = parity._histogram(None, reference, values)
    edges, *counts = parity._histogram(first, np.full(7, 9, np.float32), np.full(3, -9, np.float32))
    np.testing.assert_array_equal(edges, first[0])
    assert [before.sum() for before in first[1:]] == [81, 81]
    np.testing.assert_array_equal(counts[0] - first[1], [0] * (parity.BINS - 1) + [7])
    np.testing.assert_array_equal(counts[1] - first[2], [3] + [0] * (parity.BINS - 1))


def test_blocks_of_zeros() -> None:
    zeros, ones = np.zeros((1, 2, 3, 5), np.float32), np.ones((1, 2, 3, 5), np.float32)
    assert parity._block("b", zeros, zeros).cosine == 1
    assert parity._block("b", 3 * ones, 3 * ones).cosine == 1  # though 27 / (√27 · √27) is not
    assert parity._block("b", ones * (1 + 1e-7), ones).cosine < 1
    assert parity._block("b", ones, zeros).cosine == parity._block("b", zeros, ones).cosine == 0
    worst = parity._block("b", zeros, zeros).worst(parity._block("b", ones, zeros))
    assert (worst.cosine, worst.max) == (0, 1 / parity.LEAST_SPREAD)


def test_the_gate_counts_every_picture(model: ISNet, graph: onnx.ModelProto, tmp_path: Path) -> None:
    save_graph(graph, tmp_path / "model.onnx")
    inputs = load_inputs(PREPROCESS)[:2]
    with open_onnx(tmp_path / "model.onnx", threads=2) as engine:
        reference = TorchReference(model, 8)
        both, *each = (gate(reference, HEAD, graph, engine, part) for part in (inputs, inputs[:1], inputs[1:]))
    np.testing.assert_array_equal(both.confusion.counts, sum(result.confusion.counts for result in each))
    assert both.rows == [row for result in each for row in result.rows]
    for name, block in both.blocks.items():
        assert block.cosine == min(result.blocks[name].cosine for result in each)
        assert block.rms == max(result.blocks[name].rms for result in each)
        assert block.max == max(result.blocks[name].max for result in each)
        totals = [sum(result.histograms[name][side].sum() for result in each) for side in (1, 2)]
        assert [counts.sum() for counts in both.histograms[name][1:]] == totals
