"""The gate: right engines pass, wrong ones are named, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.errors import ParityError, SettingsError
from isnet_trt.export import parity
from isnet_trt.export.graph import save_graph
from isnet_trt.export.parity import FP32, TOLERANCES, Row, compare, gate, load_inputs
from isnet_trt.recipes import recipe
from isnet_trt.training.model import ISNet

PREPROCESS = recipe("isnet_demo").preprocess


def planted(graph: onnx.ModelProto, scope: str, value: float) -> onnx.ModelProto:
    """The graph with the first convolution of ``scope`` multiplied by ``value``."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(graph)
    tensor = next(t for t in wrong.graph.initializer if t.name.startswith(scope) and len(t.dims) == 4)
    weights = numpy_helper.to_array(tensor).copy()
    weights *= value
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    return wrong


def run_gate(model: ISNet, graph: onnx.ModelProto, path: Path) -> dict:
    save_graph(graph, path)
    with open_onnx(path, threads=2) as engine:
        return gate(model, graph, engine, load_inputs(PREPROCESS)).to_json()


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
    assert Row("p", 3, 5, 1e-4, 1e-5, 1.0).within(FP32)
    assert not Row("p", 3, 5, np.nan, np.nan, 1.0).within(FP32)
    wanted = np.random.default_rng(0).standard_normal((1, 5, 7, 9)).astype(np.float32)
    assert np.isnan(compare("p", np.where(wanted > 2, np.inf, wanted).astype(np.float32), wanted).max)
    shifted = compare("p", wanted + 0.25 * wanted.std(), wanted)
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
    measured = Row("scene", 97, 131, 2.7, 0.44, 0.443)
    assert measured.within(TOLERANCES["fp8"])
    assert not measured.within(TOLERANCES["fp16"])
    unrelated = np.random.default_rng(0).standard_normal((2, 1, 150, 13, 17)).astype(np.float32)
    assert not compare("noise", *unrelated).within(TOLERANCES["fp8"])


def test_eight_bits_that_fail_are_told_what_helps(model: ISNet, graph: onnx.ModelProto, tmp_path: Path) -> None:
    wrong = planted(graph, "backbone_net.layer2", 40.0)
    save_graph(wrong, tmp_path / "model.onnx")
    with open_onnx(tmp_path / "model.onnx", threads=2) as engine, pytest.raises(ParityError, match="--max-drop"):
        gate(model, wrong, engine, load_inputs(PREPROCESS), TOLERANCES["int8"])
