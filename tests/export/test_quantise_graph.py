"""Placement and insertion: what is rounded in each flavour, that engines take it, and what it costs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from exports import export_once
from marks import builds_rtx
from onnx import TensorProto

from isnet_trt.errors import BuildError, SettingsError
from isnet_trt.export.engines.base import BuildRequest
from isnet_trt.export.engines.profiles import Shapes
from isnet_trt.export.engines.tensorrt_rtx import BUILDER
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.options import EngineOptions
from isnet_trt.export.precision import cast_to_half
from isnet_trt.export.quantise import Agreement, Table, calibrate, emulate_qdq, open_graph, quantisable_layers, quantise
from isnet_trt.export.quantise.formats import FLAVOURS, Flavour
from isnet_trt.export.quantise.placement import GraphIndex, quantised_inputs
from isnet_trt.pictures.preprocess import normalise
from isnet_trt.recipes import recipe
from isnet_trt.training import DEMO_CHECKPOINT
from isnet_trt.training.checkpoint import load_checkpoint, load_model
from isnet_trt.training.data.scenes import held_out_scenes

DEMO = recipe("isnet_demo")
SHAPES = Shapes((1, 3, 32, 32), (1, 3, 128, 192), (2, 3, 256, 256))
Trained = tuple[onnx.ModelProto, Table, list[NetworkInput]]


@pytest.fixture(scope="module")
def trained() -> Trained:
    """The demo model, its table from one drawn scene, and another scene; odd sizes."""
    proto = export_once(load_model(load_checkpoint(DEMO_CHECKPOINT)), DEMO.name)
    scenes = held_out_scenes(3, (253, 381))
    images = [np.ascontiguousarray(scenes[i][0][..., ::-1]) for i in range(3)]
    pixels = [normalise(image, DEMO.preprocess).transpose(2, 0, 1)[None] for image in images]
    pictures = [NetworkInput(str(i), np.ascontiguousarray(x)) for i, x in enumerate(pixels)]
    return proto, calibrate(proto, pictures[:2], progress=False), pictures[2:]


def optimised(proto: onnx.ModelProto, path: Path) -> Counter:
    """How often each operator is in the graph that ONNX Runtime makes of ``proto``."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(("flavour", "least"), [("cpu", 0.97), ("tensorrt", 0.97), ("fp8", 0.96)])
def test_labels_survive(trained: Trained, flavour: Flavour, least: float) -> None:
    proto, table, pictures = trained
    agreement = Agreement(proto, pictures, threads=2)
    quantised = quantise(proto, table, flavour)
    onnx.checker.check_model(quantised, full_check=True)
    assert agreement(proto) == 100
    assert 100 * least < agreement(quantised) < 100


def test_every_layer_runs_in_integers_on_the_cpu(trained: Trained, tmp_path: Path) -> None:
    proto, table, _ = trained
    kinds = optimised(quantise(proto, table, "cpu"), tmp_path / "optimised.onnx")
    assert kinds["QLinearConv"] == len(quantisable_layers(proto, "cpu")) == 40
    assert kinds["QLinearAdd"] == 6  # every residual addition
    assert kinds["QLinearConcat"] == 2
    assert kinds["Conv"] + kinds["FusedConv"] == 6  # two classifiers, three on class centres, one on keys


def test_placement_for_tensorrt(trained: Trained) -> None:
    proto, _, _ = trained
    result = quantised_inputs(proto, "tensorrt", quantisable_layers(proto))
    index = GraphIndex(proto)
    kinds = Counter(next(node for node in index.nodes if node.name == read.node).op_type for read in result)
    assert kinds == {"Conv": 39, "Add": 6, "Concat": 4}
    joined = [read for read in result if read.tensor != read.like]
    assert len(joined) == 4  # one scale for both inputs of a concatenation
    names = {layer.name for layer in quantisable_layers(proto)}
    assert not names & {"decoder_stage1.4", "decoder_stage2.classifier", "slc_net.key_project.0.0"}
    touched = {read.node for read in result}
    assert not touched & {node.name for node in proto.graph.node if node.domain == "isnet_trt"}


def test_biases_stay_float_for_tensorrt_and_zero_points_zero(trained: Trained) -> None:
    proto, table, _ = trained
    graph = quantise(proto, table, "tensorrt").graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) > 2:
            assert stored[node.input[2]].data_type == TensorProto.FLOAT
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = onnx.numpy_helper.to_array(stored[node.input[2]])
            assert zero.dtype == np.int8
            assert not zero.any()
            assert (onnx.numpy_helper.to_array(stored[node.input[1]]) > 0).all()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_skipped_layers_stay_as_they_are(trained: Trained, flavour: Flavour) -> None:
    proto, table, pictures = trained
    scopes = ("backbone_net.layer2", "ilc_net", "decoder_stage1.0")
    graph = quantise(proto, table, flavour, scopes)
    used = {name for node in graph.graph.node for name in node.input}
    for layer in quantisable_layers(proto, flavour):
        assert (layer.weight in used) == layer.name.startswith(scopes)
    with open_graph(graph, threads=2) as engine:
        assert np.isfinite(engine.run(pictures[0].pixels)).all()
    untouched = quantise(proto, table, flavour, [layer.name for layer in quantisable_layers(proto, flavour)])
    assert [node.op_type for node in untouched.graph.node] == [node.op_type for node in proto.graph.node]


def test_wrong_names_and_tables_are_refused(trained: Trained) -> None:
    proto, table, _ = trained
    with pytest.raises(SettingsError, match="no layer is called 'backbone'"):
        quantise(proto, table, "cpu", ["backbone"])
    with pytest.raises(BuildError, match="knows no tensor"):
        quantise(proto, Table(), "cpu")


@pytest.mark.parametrize("function", [False, True])
def test_a_graph_of_a_later_opset_is_refused(trained: Trained, function: bool) -> None:
    """Its operators may compute something else; the opset of Q/DQ would be declared for them."""
    proto, table, _ = trained
    half = cast_to_half(proto, "fp16")
    owner = half.functions[0] if function else half
    entry = next(entry for entry in owner.opset_import if entry.domain == "")
    entry.version = 23
    quantise(half, table, "tensorrt")
    entry.version = 24
    with pytest.raises(BuildError, match="opset 24; this precision needs one from 20 to 23"):
        quantise(half, table, "tensorrt")


@pytest.mark.parametrize("flavour", ["tensorrt", "fp8"])
def test_typed_graph_keeps_its_scales_in_float32(trained: Trained, flavour: Flavour) -> None:
    proto, table, pictures = trained
    half = quantise(cast_to_half(proto, "fp16"), table, flavour)
    onnx.checker.check_model(half, full_check=True)
    assert next(entry.version for entry in half.opset_import if entry.domain == "") == 23
    stored = {tensor.name: tensor for tensor in half.graph.initializer}
    restored = [node for node in half.graph.node if node.op_type == "DequantizeLinear"]
    assert {stored[node.input[1]].data_type for node in restored} == {TensorProto.FLOAT}
    assert all(node.attribute[-1].i == TensorProto.FLOAT16 for node in restored)
    with open_graph(quantise(proto, table, flavour), threads=2) as engine:
        expected = engine.run(pictures[0].pixels)
    with open_graph(half, threads=2) as engine:
        actual = engine.run(pictures[0].pixels)
    assert (actual.argmax(1) == expected.argmax(1)).mean() > 0.985  # float16 moves values over the edge of a step


def test_emulation_of_a_plain_graph_is_the_graph(trained: Trained) -> None:
    proto, _, _ = trained
    assert [node.op_type for node in emulate_qdq(proto).graph.node] == [node.op_type for node in proto.graph.node]


CASES = [
    ("tensorrt", None, None),
    ("tensorrt", "fp16", None),
    ("fp8", None, ("8.9", "12.0")),
    ("fp8", "fp16", ("8.9", "12.0")),
]


@builds_rtx
@pytest.mark.parametrize(("flavour", "half", "targets"), CASES)
def test_engine_is_built(trained: Trained, flavour: Flavour, half, targets, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    proto, table, _ = trained
    graph = quantise(cast_to_half(proto, half) if half else proto, table, flavour)
    path = tmp_path / "model.engine"
    BUILDER.serialise(BuildRequest(graph, SHAPES, EngineOptions(targets=targets), progress=False), path)
    assert path.stat().st_size > 1_000_000


@builds_rtx
def test_fp8_needs_a_gpu_that_has_it(trained: Trained, tmp_path: Path) -> None:
    proto, table, _ = trained
    graph, ampere = quantise(proto, table, "fp8"), EngineOptions(targets=("8.6",))
    with pytest.raises(BuildError, match="could not build"):
        BUILDER.serialise(BuildRequest(graph, SHAPES, ampere, progress=False), tmp_path / "e")
