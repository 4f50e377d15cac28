"""TensorRT-RTX's builder is real here: it needs no GPU. What TensorRT itself would do is refused with words."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from export_models import random_model
from marks import builds_rtx, no_gpu, no_tensorrt

from isnet_trt import Inference
from isnet_trt.cuda import plugins
from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines import tensorrt_api
from isnet_trt.engines.tensorrt_rtx import COMPUTE_CAPABILITIES as RTX_COMPUTE_CAPABILITIES
from isnet_trt.errors import BuildError, EngineUnavailable, SettingsError
from isnet_trt.export.engines import tensorrt_family
from isnet_trt.export.engines.base import BuildRequest
from isnet_trt.export.engines.inspection import check_types, inspect
from isnet_trt.export.engines.profiles import shapes_for
from isnet_trt.export.engines.tensorrt import BUILDER as TENSORRT_BUILDER
from isnet_trt.export.engines.tensorrt_family import SerialisedEngine
from isnet_trt.export.engines.tensorrt_rtx import BUILDER
from isnet_trt.export.lowering import Arithmetic, lower_graph
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.onnx_edit import output_type
from isnet_trt.export.options import EngineOptions
from isnet_trt.export.precision import without_last_cast
from isnet_trt.export.quantise import calibrate
from isnet_trt.export.ranges import measure_ranges
from isnet_trt.export.tracing import export_graph
from isnet_trt.merging import windows
from isnet_trt.pictures.preprocess import test_size
from isnet_trt.recipes import RECIPES, recipe

DEMO = recipe("isnet_demo")
ONE_WAY = dataclasses.replace(shapes_for(DEMO), both_ways=False)
"""Half the time of a build for both."""
PUBLISHED = ("isnet_resnet50os8_ade20k", "isnet_resnet101os8_cityscapes", "isnet_resnest101os8_lip")


@builds_rtx
@pytest.mark.parametrize("static", [None, (129, 161)])
def test_demo_engine(graph: onnx.ModelProto, static: tuple[int, int] | None, tmp_path: Path) -> None:
    shapes = shapes_for(DEMO, batch=2, static=static)
    built = BUILDER.serialise(BuildRequest(graph, shapes, progress=False), tmp_path / "model.engine")
    assert built.capabilities == RTX_COMPUTE_CAPABILITIES
    assert built.size == (tmp_path / "model.engine").stat().st_size
    assert (tmp_path / "model.engine").stat().st_size > 1_000_000  # the weights are inside


@functools.cache
def published(name: str) -> onnx.ModelProto:
    """The graph of a published model with random weights; its export takes longer than an engine."""
    return export_graph(random_model(name), name)


def arithmetics() -> list[Arithmetic]:
    """Everything that is built besides float32."""
    return [*map(Arithmetic, ("fp16", "bf16", "int8", "fp8")), Arithmetic("int8", "fp32")]


class Preparation:
    """A graph for TensorRT-RTX, measured and calibrated once, on one synthetic picture."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        pixels = np.random.default_rng(65).standard_normal((1, 3, 65, 97)).astype(np.float32)
        self.graph, self.ranges = graph, measure_ranges(graph, [pixels])
        self.table = calibrate(graph, [NetworkInput("noise", pixels)], progress=False)

    def __call__(self, arithmetic: Arithmetic) -> onnx.ModelProto:
        table = self.table if arithmetic.eight_bits else None
        return lower_graph(self.graph, arithmetic, "tensorrt-rtx", self.ranges, table).engine


@pytest.fixture(scope="module")
def prepared(graph: onnx.ModelProto) -> Preparation:
    return Preparation(graph)


def built_types(built: SerialisedEngine) -> dict[str, int]:
    """Type of the first input -> how many convolutions and matrix products read it."""
    heavy = (layer.inputs[0] for layer in built.layers if layer.kind in ("correlation", "gemm") and layer.inputs)
    return dict(Counter(heavy))


@builds_rtx
@pytest.mark.parametrize("arithmetic", arithmetics(), ids=str)
def test_engine_has_the_types_asked_for(prepared: Preparation, arithmetic: Arithmetic, tmp_path: Path) -> None:
    typed = prepared(arithmetic)
    path = tmp_path / "model.engine"
    precision = arithmetic.precision
    built = BUILDER.serialise(BuildRequest(typed, ONE_WAY, progress=False, precision=precision), path)
    counts = built_types(built)
    assert counts[precision] >= 40
    rest = arithmetic.rest if arithmetic.eight_bits else precision
    assert set(counts) <= {precision, rest}
    with pytest.raises(BuildError, match="asked fp32, built"):  # the engine of another graph
        check_types(built.layers, prepared.graph)
    if precision == "fp8":
        assert built.capabilities == ("8.9", "12.0", "12.1")


@builds_rtx
@pytest.mark.parametrize(
    ("precision", "name"), [("fp16", "Half"), pytest.param("bf16", "BFloat16", marks=pytest.mark.slow)]
)
def test_output_in_half_precision(prepared: Preparation, precision: str, name: str, tmp_path: Path) -> None:
    """As the engine itself says; the values are the same, since the last convolution writes half precision anyway."""
    wide = prepared(Arithmetic(precision))
    outputs = {}
    for graph in (wide, without_last_cast(wide)):
        shapes = shapes_for(DEMO, static=(65, 97))
        request = BuildRequest(graph, shapes, EngineOptions(context="native"), precision, progress=False)
        text = BUILDER.serialise(request, tmp_path / "engine").layer_information
        outputs[output_type(graph)] = re.findall(r"Name: logits, IOMode: Output, DataType: (\w+),", text)
    assert outputs == {"fp32": ["Float"], precision: [name]}


@builds_rtx
def test_float32_engine_is_not_taken_for_half(prepared: Preparation, tmp_path: Path) -> None:
    built = BUILDER.serialise(BuildRequest(prepared.graph, ONE_WAY, progress=False), tmp_path / "model.engine")
    with pytest.raises(BuildError, match="asked fp16, built fp32"):
        check_types(built.layers, prepared(Arithmetic("fp16")))


@builds_rtx
@no_gpu
def test_layers_that_cannot_be_checked_are_a_warning(
    graph: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is there, with what the library says of it in a file."""
    request = BuildRequest(graph, shapes_for(DEMO, static=(65, 97)), progress=False)
    monkeypatch.setattr(
        tensorrt_family, "inspect", lambda text, *settings: inspect(text.replace("Name", "N"), *settings)
    )
    built = BUILDER.build(request, tmp_path)
    assert (tmp_path / built.info.file).stat().st_size == built.about["bytes"]
    (reason,) = built.about["not checked"]
    assert reason.startswith("the engine's layer information cannot be read; it begins with 'Layers:")
    assert built.notes[0] == f"warning: {reason}"
    assert (tmp_path / tensorrt_family.LAYERS).read_text("utf-8").startswith("Layers:\nName: ")
    (tmp_path / tensorrt_family.LAYERS).unlink()
    # A version that writes them nowhere but in the inspector, which needs a GPU.
    monkeypatch.setattr(tensorrt_api, "LAYERS_HEAD", "no message begins so")
    built = BUILDER.build(request, tmp_path)
    (reason,) = built.about["not checked"]
    assert reason.startswith(
        "the layers of the engine cannot be inspected: IRuntime::deserializeCudaEngine: Error Code 1"
    )
    assert built.about["layers"] == {}
    assert not (tmp_path / tensorrt_family.LAYERS).exists()


@pytest.mark.parametrize(("precision", "targets"), [("fp8", ("8.6", "8.9")), ("bf16", ("7.5",))])
def test_targets_without_units(precision: str, targets: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match=r"8\.6|7\.5"):
        BUILDER.check_precision(precision, EngineOptions(targets=targets))


@pytest.mark.slow
@builds_rtx
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_engines_of_every_precision(name: str, tmp_path: Path) -> None:
    graph, sizes = published(name), {}
    prepared = Preparation(graph)
    for arithmetic in arithmetics():
        typed = prepared(arithmetic)
        options = EngineOptions(targets=("8.9", "12.0") if arithmetic.precision == "fp8" else ("8.6", "12.0"))
        shapes, path = shapes_for(recipe(name), static=(97, 129)), tmp_path / "model.engine"
        precision = arithmetic.precision
        built = BUILDER.serialise(BuildRequest(typed, shapes, options, progress=False, precision=precision), path)
        assert built_types(built)[precision] >= 40
        sizes[str(arithmetic)] = built.size
    weights = graph.ByteSize()
    print(name, sizes, f"float32 graph {weights}")
    assert all(size < 0.62 * weights for size in list(sizes.values())[:2])
    assert all(size < 0.45 * weights for size in list(sizes.values())[2:])


@pytest.mark.slow
@builds_rtx
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_engines(name: str, tmp_path: Path) -> None:
    graph, one = published(name), recipe(name)
    for static in (None, one.crop):
        path = tmp_path / "model.engine"
        BUILDER.serialise(BuildRequest(graph, shapes_for(one, static=static), progress=False), path)
        assert path.stat().st_size > 0.9 * graph.ByteSize()


@builds_rtx
def test_refused_graph_says_why(graph: onnx.ModelProto, tmp_path: Path) -> None:
    strange = onnx.ModelProto()
    strange.CopyFrom(graph)
    strange.graph.node[0].op_type = "Convolve"
    with pytest.raises(BuildError, match="Convolve"):
        BUILDER.serialise(BuildRequest(strange, shapes_for(DEMO), progress=False), tmp_path / "model.engine")
    assert not list(tmp_path.iterdir())


@builds_rtx
def test_unknown_target(graph: onnx.ModelProto, tmp_path: Path) -> None:
    options = EngineOptions(targets=("9.0",))
    with pytest.raises(SettingsError, match=r"9\.0.*it knows 8\.0"):
        BUILDER.serialise(BuildRequest(graph, shapes_for(DEMO), options), tmp_path / "model.engine")


@no_tensorrt
def test_tensorrt_missing(graph: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"pip install '\.\[gpu\]'"):
        TENSORRT_BUILDER.serialise(BuildRequest(graph, shapes_for(DEMO)), tmp_path / "model.engine")


@pytest.mark.parametrize("name", RECIPES)
def test_profiles_are_ordered(name: str) -> None:
    shapes = shapes_for(recipe(name), batch=4)
    for low, usual, high in zip(shapes.smallest, shapes.usual, shapes.largest, strict=True):
        assert low <= usual <= high
    assert not shapes.static
    assert shapes_for(recipe(name), static=(65, 129)).static


def test_kernels_that_a_build_runs_are_unloaded_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    unregistered: list[int] = []
    kernels, host = SimpleNamespace(close=lambda: closed.append(True)), plugins.Host()

    @contextlib.contextmanager
    def kernels_for(library: Any, opened: Any, multiprocessors: int) -> Any:
        host.kernels = opened
        with contextlib.ExitStack() as after:
            after.callback(lambda: unregistered.append(len(closed)))
            yield host

    monkeypatch.setattr(plugins, "kernels_for", kernels_for)
    monkeypatch.setattr(tensorrt_family.Kernels, "open", lambda folder, capability: kernels)
    gpu, library = Gpu("NVIDIA Double", "8.9", "CUDA 13.0", 84), SimpleNamespace(__name__="tensorrt")
    request = BuildRequest(onnx.ModelProto(), ONE_WAY, kernels=tmp_path)
    with TENSORRT_BUILDER._plugins(library, request, gpu) as opened:
        assert opened is host
        assert host.kernels is kernels
    assert host.kernels is None
    with pytest.raises(BuildError), TENSORRT_BUILDER._plugins(library, request, gpu):
        raise BuildError("refused")
    assert host.kernels is None
    assert (closed, unregistered) == ([True, True], [0, 1])  # each time before the kernels go


PICTURES = [(480, 640), (640, 480), (1024, 2048), (1600, 600), (600, 1600), (512, 512)]
"""(height, width), lying and upright."""


@pytest.mark.parametrize("name", RECIPES)
def test_the_documented_inference_of_any_picture_is_in_a_profile(name: str) -> None:
    """Whole and with the recipe's scales, whichever side is the longer."""
    one = recipe(name)
    profiles = shapes_for(one, batch=4).profiles
    for size in PICTURES:
        picture = test_size(size, one.preprocess)
        for inference in (Inference(), one.ms_flip):
            for height, width in {window.size for window in windows.plan(picture, inference).windows}:
                covered = [low[2] <= height <= high[2] and low[3] <= width <= high[3] for low, _, high in profiles]
                assert any(covered), (size, inference.describe(), (height, width), profiles)
