"""The exported graph against the model in PyTorch, at sizes that are no multiple of anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_models import random_model

from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.errors import BuildError
from isnet_trt.export.graph import block_outputs, save_graph, with_attention
from isnet_trt.export.onnx_edit import copied
from isnet_trt.export.tracing import BLOCKS, export_graph
from isnet_trt.training.model import ISNet

FP32 = 2e-5
"""Largest error over the standard deviation of the logits: two float32 implementations."""


def error(model: ISNet, path: Path, shape: tuple[int, ...]) -> float:
    x = np.random.default_rng(shape[-1]).standard_normal(shape).astype(np.float32)
    with torch.inference_mode(), open_onnx(path, threads=2) as engine:
        expected = model(torch.from_numpy(x)).numpy()
        actual = engine.run(x)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / expected.std())


@pytest.mark.parametrize("shape", [(1, 3, 33, 33), (3, 3, 121, 167), (2, 3, 64, 96), (1, 3, 35, 261)])
def test_any_batch_and_size(model: ISNet, graph: onnx.ModelProto, shape: tuple[int, ...], tmp_path: Path) -> None:
    save_graph(graph, tmp_path / "model.onnx")
    assert error(model, tmp_path / "model.onnx", shape) <= FP32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["isnet_resnet50os8_ade20k", "isnet_resnet101os8_lip", "isnet_resnest101os8_lip"])
def test_published_architectures(name: str, tmp_path: Path) -> None:
    model = random_model(name)
    save_graph(export_graph(model, name), tmp_path / "model.onnx")
    for shape in ((1, 3, 65, 47), (3, 3, 33, 91)):
        assert error(model, tmp_path / "model.onnx", shape) <= 10 * FP32  # a hundred random layers


def test_bodies_agree(model: ISNet, graph: onnx.ModelProto, tmp_path: Path) -> None:
    for body in ("plain", "blocked"):
        save_graph(with_attention(graph, body), tmp_path / f"{body}.onnx")
        assert error(model, tmp_path / f"{body}.onnx", (1, 3, 203, 307)) <= FP32


def test_graph_holds_no_path_of_this_machine(graph: onnx.ModelProto) -> None:
    content = graph.SerializeToString()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b"site-packages" not in content
    assert list(block_outputs(graph)) == list(BLOCKS)


def test_large_graphs_keep_their_weights_beside(model: ISNet, graph: onnx.ModelProto, tmp_path: Path) -> None:
    save_graph(graph, tmp_path / "model.onnx", max_bytes=100_000)
    assert (tmp_path / "model.onnx").stat().st_size < 200_000
    assert (tmp_path / "model.onnx.data").stat().st_size > 1_000_000
    assert error(model, tmp_path / "model.onnx", (1, 3, 57, 81)) <= FP32


def test_invalid_graph_is_refused(graph: onnx.ModelProto, tmp_path: Path) -> None:
    broken = copied(graph)
    broken.graph.node[5].input[0] = "nowhere"
    with pytest.raises(BuildError, match="not valid ONNX"):
        save_graph(broken, tmp_path / "model.onnx")


def test_exporter_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    export_graph(random_model(seed=6), "isnet_demo")
    seen = capfd.readouterr()
    assert seen.out == ""
    assert seen.err == ""
