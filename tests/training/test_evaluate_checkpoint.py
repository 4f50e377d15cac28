"""Checkpoints in the runtime: the engine around PyTorch, and the demo model beside its bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from miniature import make_lip
from own_pictures import make_pictures, write
from PIL import Image

from isnet_trt import Segmenter, cli
from isnet_trt.commands import evaluate
from isnet_trt.errors import EngineError, EngineUnavailable
from isnet_trt.evaluation.labelled import DrawnScenes
from isnet_trt.export import EngineOptions, build
from isnet_trt.metrics import Confusion
from isnet_trt.pictures.preprocess import normalise
from isnet_trt.recipes import recipe
from isnet_trt.recipes.architecture import RESNET_DEMO
from isnet_trt.training import DEMO_CHECKPOINT
from isnet_trt.training.checkpoint import load_checkpoint, load_model, save_checkpoint
from isnet_trt.training.group import Group
from isnet_trt.training.model import ISNet
from isnet_trt.training.torch_engine import TorchEngine, open_checkpoint
from isnet_trt.training.validate import Validator

EQUAL_LABELS = 0.9999
"""Share of pixels that two float32 implementations of one network label alike: they differ only at near ties."""


@pytest.fixture(scope="module")
def model() -> ISNet:
    return load_model(load_checkpoint(DEMO_CHECKPOINT))


@pytest.fixture(scope="module")
def bundle(traced_once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "bundle"
    build(DEMO_CHECKPOINT, folder, engine=EngineOptions("onnxruntime"))
    return folder


def run(*arguments: object) -> int:
    return cli.run(evaluate.main, [str(argument) for argument in arguments])


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text("utf-8"))


@pytest.mark.parametrize("size", [(1, 65, 97), (2, 40, 33)])
def test_the_engine_answers_what_the_model_does(model: ISNet, size: tuple[int, int, int]) -> None:
    batch, height, width = size
    pixels = np.random.default_rng(height).standard_normal((batch, 3, height, width), np.float32)
    with TorchEngine(model, "cpu") as engine:
        answer = engine.run(pixels)
        with torch.inference_mode():
            expected = model.eval()(torch.from_numpy(pixels)).numpy()
        assert answer.dtype == np.float32
        assert answer.flags.c_contiguous
        np.testing.assert_array_equal(answer, expected)
        assert "PyTorch" in engine.description
    with pytest.raises(EngineError, match="closed"):
        engine.run(pixels)
    engine.close()


def test_the_engine_computes_without_tf32(model: ISNet) -> None:
    seen: list[bool] = []
    hook = model.bottleneck.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    try:
        TorchEngine(model, "cpu").run(np.zeros((1, 3, 33, 41), np.float32))
    finally:
        hook.remove()
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 is before


@pytest.mark.parametrize("batch", [np.zeros((1, 3, 32, 32)), np.zeros((3, 32, 32), np.float32)])
def test_the_engine_refuses_other_arrays(model: ISNet, batch: np.ndarray) -> None:
    with pytest.raises(EngineError, match="float32"):
        TorchEngine(model, "cpu").run(batch)


def _exhaust_gpu(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB\nmore")


def _exhaust_cpu(*_: object) -> None:
    torch.empty(10**15)


@pytest.mark.parametrize(
    ("fail", "message"),
    [(_exhaust_gpu, "CUDA out of memory.*GiB"), (_exhaust_cpu, r".*DefaultCPUAllocator.*")],
)
def test_running_out_of_memory_says_what_to_do(model: ISNet, fail: Callable[..., None], message: str) -> None:
    hook = model.bottleneck.register_forward_hook(fail)
    try:
        with pytest.raises(EngineError, match=rf"\(1, 3, 33, 41\): {message}; the picture is too large"):
            TorchEngine(model, "cpu").run(np.zeros((1, 3, 33, 41), np.float32))
    finally:
        hook.remove()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named(model: ISNet) -> None:
    with pytest.raises(EngineUnavailable, match="no NVIDIA GPU"):
        TorchEngine(model, "cuda")


def test_the_score_is_the_one_that_training_shows(model: ISNet) -> None:
    demo, scenes = recipe("isnet_demo"), DrawnScenes(1, (96, 224))
    watched = Validator(scenes, demo.preprocess, demo.labels.count, None, Group()).score(model)
    assert watched is not None
    image, truth = scenes[0]
    with open_checkpoint(load_checkpoint(DEMO_CHECKPOINT), device="cpu", threads=1) as segmenter:
        labels = segmenter(image, order="bgr").labels
    confusion = Confusion(demo.labels.count)
    confusion.add(labels, truth)
    result = confusion.metrics()
    assert result.all_accuracy == pytest.approx(watched.all_accuracy, abs=1 - EQUAL_LABELS)
    np.testing.assert_allclose(result.iou, watched.iou, atol=5e-3)  # of 0..1; a class may have a hundred pixels


def test_checkpoint_and_bundle_side_by_side(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--dataset", "scenes", "--limit", 1, "--device", "cpu", "--threads", 1, "--out", tmp_path)
    assert run(bundle, *options, "--against", DEMO_CHECKPOINT) == 0
    result = report(tmp_path)
    comparison, models = result["comparison"], result["models"]
    assert comparison["same_weights"] is True
    assert comparison["equal_pixels"] >= EQUAL_LABELS
    assert abs(comparison["miou_difference"]) < 1e-3  # of 0..1
    assert [model["kind"] for model in models] == ["bundle", "checkpoint"]
    assert "PyTorch" in models[1]["engine"]
    assert models[1]["recipe"] == "isnet_demo"
    assert all(model["miou"] > 0.5 for model in models)  # a trained model, on a scene that it has not seen
    image, truth = DrawnScenes(1)[0]
    with Segmenter.open(bundle, threads=1) as segmenter:
        labels = segmenter(image, order="bgr").labels
    counts = np.zeros((9, 9), np.int64)
    np.add.at(counts, (truth.ravel(), labels.ravel()), 1)
    assert models[0]["confusion"] == counts.tolist()
    assert "made from one checkpoint" in capsys.readouterr().out


def test_by_windows_scales_and_flip_they_agree_too(bundle: Path) -> None:
    demo = recipe("isnet_demo")
    windows = demo.ms_flip.replace(window=(48, 80), stride=(32, 53), scales=(0.75, 1.25))
    image, _ = DrawnScenes(1, (67, 113))[0]
    pixels = normalise(np.ascontiguousarray(image[..., ::-1]), demo.preprocess)
    with open_checkpoint(load_checkpoint(DEMO_CHECKPOINT), device="cpu", threads=1) as segmenter:
        expected = segmenter.score(pixels, (67, 113), windows)
    with Segmenter.open(bundle, threads=1) as segmenter:
        scores = segmenter.score(pixels, (67, 113), windows)
    assert float((scores.argmax(0) == expected.argmax(0)).mean()) >= 0.999  # 7571 pixels: seven near ties
    np.testing.assert_allclose(scores, expected, atol=5e-3)  # float32 probabilities; a near tie inside moves some


def test_a_checkpoint_of_other_classes_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    make_lip(tmp_path / "lip", 1, 1)
    options = ("--dataset", "lip", "--data", tmp_path / "lip", "--out", tmp_path / "out")
    assert run(DEMO_CHECKPOINT, *options) == cli.ERROR
    assert "has 9 classes (road, marking, pavement, …) but lip has 20" in capsys.readouterr().err
    assert run(DEMO_CHECKPOINT, *options, "--engine", "onnxruntime") == cli.ERROR
    assert "python -m isnet_trt.build" in capsys.readouterr().err


def test_pictures_of_ones_own(tmp_path: Path) -> None:
    classes = {0: "background", 7: "tile", 9: "crack", 12: "left", 300: "edge"}  # more than a byte holds
    truth = make_pictures(tmp_path, 4, classes)
    write(tmp_path, classes=classes, palette=..., flip_pairs=..., size=[160, 96], crop=..., split=0.5)
    own = recipe(str(tmp_path / "own.yaml"))
    assert own.architecture.backbone is RESNET_DEMO
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "own.pth", ISNet(own.architecture).state_dict())
    options = ("--dataset", tmp_path / "own.yaml", "--out", tmp_path / "out", "--export", tmp_path / "labelled")
    assert run(tmp_path / "own.pth", *options, "--device", "cpu") == 0
    result = report(tmp_path / "out")
    assert result["dataset"]["classes"] == list(classes.values())
    written = sorted((tmp_path / "labelled").rglob("*.png"))
    assert result["pictures"] == len(written) == 2
    counted = sum((truth[f"{path.parent.name}/{path.stem}"] >= 0).sum() for path in written)
    assert np.array(result["models"][0]["confusion"]).sum() == counted
    assert all(set(np.unique(np.asarray(Image.open(path)))) <= set(classes) for path in written)
