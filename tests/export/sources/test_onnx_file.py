"""Bundles of ONNX files: built, compared with the file itself, opened and equal to its own run. No torch."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from foreign_networks import ENCODER, HEAD, network, resized
from own_pictures import write_pngs

from isnet_trt import Segmenter, cli
from isnet_trt.errors import BuildError, ImageError, ParityError, SettingsError
from isnet_trt.export import EngineOptions, OnnxFile, PrecisionOptions, build
from isnet_trt.export.intake.enlargement import enlarged
from isnet_trt.export.sessions import open_session
from isnet_trt.pictures.preprocess import normalise
from isnet_trt.recipes import NetworkRecipe
from isnet_trt.recipes.custom import colours
from isnet_trt.settings import Inference, Labels, NetworkFacts, Preprocess

CPU = EngineOptions("onnxruntime")
WHOLE = Preprocess(None, mean=(120.0, 110.0, 100.0), std=(60.0, 60.0, 60.0))
SKIP = (
    ENCODER + "    up = Resize (s, , scales)\n    both = Concat <axis: int = 1> (up, r)\n    y = Conv (both, w3, b3)\n"
)
SKIP_WEIGHTS = {"scales": np.array([1, 1, 2, 2], np.float32), "w3": np.ones((5, 24, 1, 1), np.float32)}


def described(classes: int = 5, **facts: Any) -> NetworkRecipe:
    labels = Labels(tuple(f"class {k}" for k in range(classes)), colours(classes))
    return NetworkRecipe("mine", labels, WHOLE, NetworkFacts(**facts), {"default": Inference()})


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(proto, folder / "given.onnx")
    return folder / "given.onnx"


def labels_of(proto: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    """Labels of the network's own run on the whole image."""
    pixels = np.ascontiguousarray(normalise(image, WHOLE).transpose(2, 0, 1)[None])
    with open_session(proto) as session:
        scores = session.run(None, {session.get_inputs()[0].name: pixels})[0]
    return enlarged(scores, image.shape[:2], "half_pixel")[0].argmax(0)


@pytest.mark.parametrize("mode", ["half_pixel", "align_corners"])
def test_a_bundle_gives_the_labels_of_the_file(tmp_path: Path, mode: str) -> None:
    proto = resized(mode)
    lines: list[str] = []
    bundle = build(OnnxFile(saved(proto, tmp_path), described()), tmp_path / "bundle", engine=CPU, say=lines.append)
    manifest = bundle.manifest
    assert (manifest.output_stride, manifest.network.upsampling, manifest.recipe) == (4, mode, "mine")
    assert manifest.checkpoint.name == "given.onnx"
    assert any(line.startswith("resize") and "left to the merge" in line for line in lines)
    image = np.random.default_rng(1).integers(0, 256, (61, 83, 3), np.uint8)
    with Segmenter.open(bundle) as segmenter:
        assert (segmenter(image).labels == labels_of(proto, image)).mean() > 0.999


def test_sizes_that_are_no_multiple_are_padded(tmp_path: Path) -> None:
    bundle = build(OnnxFile(saved(network(SKIP, **SKIP_WEIGHTS), tmp_path), described()), tmp_path / "b", engine=CPU)
    assert bundle.manifest.network.size_multiple == 4
    with Segmenter.open(bundle) as segmenter:
        assert segmenter(np.zeros((61, 83, 3), np.uint8)).labels.shape == (61, 83)


def test_one_class_with_a_threshold(tmp_path: Path) -> None:
    """The label is 1 where the sigmoid in the graph is above the threshold, and the gate counts those labels."""
    body = HEAD.replace("y =", "low =") + "    y = Sigmoid (low)\n"
    recipe = described(2, threshold=0.3)
    bundle = build(OnnxFile(saved(network(body, classes=1), tmp_path), recipe), tmp_path / "b", engine=CPU)
    assert bundle.manifest.network.activation == "sigmoid"
    with Segmenter.open(bundle) as segmenter:
        labels = segmenter(np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)).labels
    assert set(np.unique(labels)) == {0, 1}


def test_int8_with_a_bias_behind_an_identity(tmp_path: Path) -> None:
    body = "    c1 = Identity (b1)\n" + HEAD.replace("(x, w1, b1)", "(x, w1, c1)")
    precision = PrecisionOptions("int8", calib=Path(__file__).parents[3] / "export" / "pictures", calib_inputs=2)
    bundle = build(
        OnnxFile(saved(network(body), tmp_path), described()), tmp_path / "b", engine=CPU, precision=precision
    )
    graph = onnx.load(bundle.path("model.onnx")).graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) >= 2
    assert bundle.manifest.parity["graph"]["eight-bit layers"] == 2


FIXED = network(inputs="float[1, 3, 64, 64] x")


def test_a_fixed_size_is_that_of_the_windows(tmp_path: Path) -> None:
    source = saved(FIXED, tmp_path)
    with pytest.raises(BuildError, match=r"64x64 only, and the preset 'default' gives it others.*window: \[64, 64\]"):
        build(OnnxFile(source, described()), tmp_path / "b", engine=CPU)
    slide = {"default": Inference("slide", (64, 64), (40, 40), scales=(0.5, 1.0), flip=True)}
    recipe = described()
    recipe = NetworkRecipe(recipe.name, recipe.labels, recipe.preprocess, recipe.network, slide)
    bundle = build(OnnxFile(source, recipe), tmp_path / "b", engine=CPU)
    with Segmenter.open(bundle) as segmenter:
        assert segmenter(np.zeros((90, 75, 3), np.uint8)).labels.shape == (90, 75)


@pytest.mark.parametrize("inside", [4, 0], ids=["in the graph", "declared only"])
def test_a_network_of_four_images_at_once(tmp_path: Path, inside: int) -> None:
    body = HEAD.replace("y =", "low =") + "    y = Reshape (low, shape)\n"
    shape = np.array([inside, 5, 16, 24])
    four = saved(network(body, inputs="float[4, 3, 64, 96] x", shape=shape), tmp_path)
    slide = {"default": Inference("slide", (64, 96), (40, 60), flip=True, softmax_before_resize=True)}
    bundle = build(OnnxFile(four, dataclasses.replace(described(), presets=slide)), tmp_path / "four", engine=CPU)
    (tmp_path / "any").mkdir()
    free = saved(network(), tmp_path / "any")
    other = build(OnnxFile(free, dataclasses.replace(described(), presets=slide)), tmp_path / "free", engine=CPU)
    image = np.random.default_rng(5).integers(0, 256, (131, 170, 3), np.uint8)
    with Segmenter.open(bundle) as segmenter, Segmenter.open(other) as expected:
        results = [one(image, probabilities=True) for one in (segmenter, expected)]
    np.testing.assert_allclose(results[0].probabilities, results[1].probabilities, atol=1e-5)  # float32
    assert (results[0].labels == results[1].labels).mean() > 0.999


def test_images_smaller_than_the_only_size(tmp_path: Path) -> None:
    slide = {"default": Inference("slide", (64, 96), (64, 96))}
    recipe = dataclasses.replace(described(), presets=slide)
    source = saved(network(inputs="float[1, 3, 64, 96] x"), tmp_path)
    bundle = build(OnnxFile(source, recipe), tmp_path / "b", engine=CPU)
    with Segmenter.open(bundle) as segmenter:
        with pytest.raises(ImageError, match=r"image of 40x200 .* \(1, 3, 64, 96\), not \(1, 3, 40, 96\)\. Resize"):
            segmenter(np.zeros((40, 200, 3), np.uint8))
        assert segmenter(np.zeros((64, 200, 3), np.uint8)).labels.shape == (64, 200)
    lines: list[str] = []
    images = [np.random.default_rng(height).integers(0, 256, (height, 200, 3), np.uint8) for height in (40, 90)]
    (tmp_path / "pictures").mkdir()
    write_pngs(tmp_path / "pictures", images)
    precision = PrecisionOptions("int8", calib=tmp_path / "pictures", calib_inputs=3)
    build(OnnxFile(source, recipe), tmp_path / "small", engine=CPU, precision=precision, say=lines.append)
    assert any("a window has 40x96, the network takes 64x96 only" in line for line in lines)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"activation": "softmax"}, "activation: softmax contradicts given.onnx, whose output has values from -"),
        ({"size_multiple": 6}, "size_multiple: 6 contradicts given.onnx, which takes multiples of 4 only"),
    ],
)
def test_recipe_and_network_contradict_each_other(tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    source = saved(network(SKIP, **SKIP_WEIGHTS), tmp_path)
    with pytest.raises(SettingsError, match=message):
        build(OnnxFile(source, described(**facts)), tmp_path / "b", engine=CPU)
    assert not (tmp_path / "b").exists()


def test_an_activation_that_contradicts_the_last_node(tmp_path: Path) -> None:
    body = HEAD.replace("y =", "low =") + "    y = Softmax <axis: int = 1> (low)\n"
    with pytest.raises(SettingsError, match=r"activation: sigmoid contradicts .*, whose output is that of a softmax"):
        OnnxFile(saved(network(body), tmp_path), described(activation="sigmoid")).load()
    assert OnnxFile(tmp_path / "given.onnx", described()).load().recipe.network.activation == "softmax"


def test_options_that_the_network_has_no_use_for(tmp_path: Path) -> None:
    source = OnnxFile(saved(network(), tmp_path), described())
    with pytest.raises(SettingsError, match="has no context operations"):
        build(source, tmp_path / "b", engine=EngineOptions("tensorrt-rtx", context="plugin"))
    source = OnnxFile(saved(FIXED, tmp_path), described())
    with pytest.raises(SettingsError, match=r"--static 64x96: .* takes 64x64 only"):
        build(source, tmp_path / "b", engine=EngineOptions("onnxruntime", static=(64, 96)))


def test_the_gate_compares_with_the_file_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A surgery that changes the network is found, since the reference is the file as it was given."""
    intake = sys.modules["isnet_trt.export.intake.graph"]
    normal = intake.normalise

    def wrong(model: Any) -> None:
        normal(model)
        weight = model.graph.initializers["w2"]
        weight.const_value = onnx_ir.tensor(weight.const_value.numpy() * np.float32(1.1), name="w2")

    monkeypatch.setattr(intake, "normalise", wrong)
    with pytest.raises(ParityError, match="does not compute what the given network does"):
        build(OnnxFile(saved(network(opset=20), tmp_path), described()), tmp_path / "b", engine=CPU)
    assert not (tmp_path / "b").exists()


@pytest.mark.rtx
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_rtx_engine(tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built by the real library, with profiles for the graph's own input and no plugins."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("isnet_trt.export.build_bundle.include_kernels", lambda *arguments: False)
    options = EngineOptions("tensorrt-rtx", batch=2, targets=("8.6",))
    # Neither operator can be built in bf16; both stay float32.
    body = (
        HEAD.replace("y =", "low =")
        + "    h = HardSwish (low)\n    y = ConvTranspose <strides: ints = [2, 2]> (h, up)\n"
    )
    proto = network(body, up=np.ones((5, 5, 2, 2), np.float32)) if precision == "bf16" else resized()
    source = OnnxFile(saved(proto, tmp_path), described())
    bundle = build(source, tmp_path / "b", engine=options, precision=PrecisionOptions(precision))
    engine = bundle.manifest.engine
    assert (engine.context, engine.shapes[1][0]) == ("native", 2)
    assert bundle.path("model.engine").stat().st_size > 1000


def test_commands_for_checkpoints_say_what_a_graph_is_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graph, out = str(saved(network(), tmp_path)), str(tmp_path / "b")
    cases = {
        "isnet_trt.commands.build": (["--ckpt", graph, "--out", out], "python -m isnet_trt.build --onnx"),
        "isnet_trt.commands.qat": (["--ckpt", graph, "--out", out], "build --max-drop or --keep"),
        "isnet_trt.commands.evaluate": ([graph, "--dataset", "scenes"], "python -m isnet_trt.build --onnx"),
    }
    for module, (arguments, message) in cases.items():
        assert cli.run(importlib.import_module(module).main, arguments) == 2
        assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--onnx", "x.onnx"], "--onnx needs --recipe FILE.yaml"),
        (["--onnx", "x.onnx", "--weights", "w.pth"], "--weights is for --ckpt and --module"),
        (["--ckpt", "x.pth", "--output", "y"], "--output is for --onnx and --module"),
        (["--module", "a:b", "--recipe", "r.yaml", "--input", "y"], "--input is for --onnx"),
        (["--ckpt", "x.pth", "--weights", "average"], "of a checkpoint it is plain or ema"),
    ],
)
def test_options_of_another_kind_of_network(arguments: list[str], message: str, capfd: pytest.CaptureFixture) -> None:
    assert cli.run(importlib.import_module("isnet_trt.commands.build").main, [*arguments, "--out", "b"]) == 2
    assert message in capfd.readouterr().err
