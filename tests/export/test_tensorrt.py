"""TensorRT-RTX's builder is real here: it needs no GPU. What TensorRT itself would do is refused with words."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import pytest
from export_models import random_model

from isnet_trt.engines.libraries import RTX_COMPUTE_CAPABILITIES
from isnet_trt.errors import BuildError, EngineUnavailable, SettingsError
from isnet_trt.export.graph import export_graph
from isnet_trt.export.tensorrt import build_engine, shapes_for
from isnet_trt.training.recipes import RECIPES, recipe

DEMO = recipe("isnet_demo")
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="there is no tensorrt-rtx wheel for this platform"
)


@pytest.mark.rtx
@needs_rtx
@pytest.mark.parametrize("static", [None, (129, 161)])
def test_demo_engine(graph: onnx.ModelProto, static: tuple[int, int] | None, tmp_path: Path) -> None:
    shapes = shapes_for(DEMO, batch=2, static=static)
    built = build_engine(graph, "tensorrt-rtx", shapes, tmp_path / "model.engine", progress=False)
    assert built.capabilities == RTX_COMPUTE_CAPABILITIES
    assert built.size == (tmp_path / "model.engine").stat().st_size
    assert (tmp_path / "model.engine").stat().st_size > 1_000_000  # the weights are inside


@pytest.mark.slow
@pytest.mark.rtx
@needs_rtx
@pytest.mark.parametrize(
    "name", ["isnet_resnet50os8_ade20k", "isnet_resnet101os8_cityscapes", "isnet_resnest101os8_lip"]
)
def test_published_engines(name: str, tmp_path: Path) -> None:
    graph = export_graph(random_model(name), name)
    one = recipe(name)
    for static in (None, one.crop):
        path = tmp_path / "model.engine"
        build_engine(graph, "tensorrt-rtx", shapes_for(one, static=static), path, progress=False)
        assert path.stat().st_size > 0.9 * graph.ByteSize()


@pytest.mark.rtx
@needs_rtx
def test_refused_graph_says_why(graph: onnx.ModelProto, tmp_path: Path) -> None:
    strange = onnx.ModelProto()
    strange.CopyFrom(graph)
    strange.graph.node[0].op_type = "Convolve"
    with pytest.raises(BuildError, match="Convolve"):
        build_engine(strange, "tensorrt-rtx", shapes_for(DEMO), tmp_path / "model.engine", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.rtx
@needs_rtx
def test_unknown_target(graph: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"9\.0.*it knows 8\.0"):
        build_engine(graph, "tensorrt-rtx", shapes_for(DEMO), tmp_path / "model.engine", targets=("9.0",))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_tensorrt_missing(graph: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"pip install 'isnet_trt\[gpu\]'"):
        build_engine(graph, "tensorrt", shapes_for(DEMO), tmp_path / "model.engine")


@pytest.mark.parametrize("name", RECIPES)
def test_profiles_are_ordered(name: str) -> None:
    shapes = shapes_for(recipe(name), batch=4)
    for low, usual, high in zip(shapes.smallest, shapes.usual, shapes.largest, strict=True):
        assert low <= usual <= high
    assert not shapes.static
    assert shapes_for(recipe(name), static=(65, 129)).static
