"""Quantisation-aware training: the rounding of the engine's graph, a gradient, and the way back to a checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exports import export_once
from torch import Tensor

from isnet_trt.commands import qat
from isnet_trt.errors import CheckpointError, SettingsError, TrainingError
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.quantise import Flavour, Table, calibrate, open_graph, quantise
from isnet_trt.export.quantise.training import training_placement
from isnet_trt.recipes import recipe
from isnet_trt.training import DEMO_CHECKPOINT, train
from isnet_trt.training.checkpoint import load_checkpoint, load_model, save_checkpoint
from isnet_trt.training.data.scenes import SceneCache
from isnet_trt.training.fine_tune import fine_tune
from isnet_trt.training.model import InferenceISNet, ISNet, inference_form
from isnet_trt.training.options import Tuning
from isnet_trt.training.rounding import Placement, RoundedWeight, place, rounded
from isnet_trt.training.unfold import unfold

sys.path.insert(0, str(Path(__file__).parents[1] / "export"))
from export_models import random_model

DEMO = recipe("isnet_demo")
Network = tuple[ISNet, onnx.ModelProto, Table]


def picture(seed: int, height: int = 77, width: int = 105) -> NetworkInput:
    pixels = np.random.default_rng(seed).standard_normal((1, 3, height, width)).astype(np.float32)
    return NetworkInput(str(seed), pixels)


@pytest.fixture(scope="module")
def network() -> Network:
    """The demo model: random weights make logits that do not depend on half of the layers."""
    model = load_model(load_checkpoint(DEMO_CHECKPOINT))
    proto = export_once(model, DEMO.name)
    return model, proto, calibrate(proto, [picture(1), picture(2, 65, 91)], progress=False)


@pytest.mark.parametrize("flavour", ["tensorrt", "fp8"])
@pytest.mark.parametrize("skip", [(), ("backbone_net.layer2.0", "ilc_net.bottleneck")])
def test_network_rounds_where_the_graph_does(network: Network, flavour: Flavour, skip: tuple[str, ...]) -> None:
    model, proto, table = network
    trained = inference_form(model)
    place(trained, training_placement(proto, table, flavour, skip))
    with torch.inference_mode(), open_graph(quantise(proto, table, flavour, skip), threads=2) as engine:
        actual = trained(torch.from_numpy(picture(3).pixels)).numpy()
        expected = engine.run(picture(3).pixels)
        plain = model(torch.from_numpy(picture(3).pixels)).numpy()
    distance, rounding = (float(np.sqrt(((expected - y) ** 2).mean()) / plain.std()) for y in (actual, plain))
    # Values on the edge between two steps round differently in two float32 implementations, and differences grow.
    assert distance < 0.2 * rounding
    assert 1e-3 < rounding < 0.2


def test_rounding_has_the_gradient_of_clamping() -> None:
    x = torch.tensor([-200.0, -3.3, 0.4, 0.6, 126.6, 500.0], requires_grad=True)
    y = rounded(x, 1.0, "int8")
    y.sum().backward()
    assert y.tolist() == [-128.0, -3.0, 0.0, 1.0, 127.0, 127.0]
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    assert rounded(torch.tensor([17.3, 1000.0]), 1.0, "fp8").tolist() == [18.0, 448.0]  # three bits of mantissa


def test_dead_channel_stays_zero() -> None:
    weight = torch.randn(5, 3, 3, 3)
    weight[2] = 0
    out = RoundedWeight("int8")(weight)
    assert torch.isfinite(out).all()
    assert not out[2].any()


def test_gradients_are_those_of_the_training_form(network: Network) -> None:
    model = copy.deepcopy(network[0]).requires_grad_(True)
    collapsed = InferenceISNet(model).requires_grad_(True)
    x = torch.from_numpy(picture(5, 57, 73).pixels)
    for form in (collapsed, model):
        y = form(x)
        assert isinstance(y, Tensor)
        y.square().mean().backward()
    for name in ("slc_net.correlate_net.query_project.0", "slc_net.correlate_net.value_project"):
        convolution, norm, _ = model.get_submodule(name)
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        # The weight in front of a batch-norm counts through the batch-norm's factor.
        folded = collapsed.get_submodule(name.replace("correlate_net.", ""))[0]
        actual, expected = folded.weight.grad * factor[:, None, None, None], convolution.weight.grad
        assert expected.abs().max() > 1e-2
        assert (actual - expected).abs().max() <= 1e-3 * expected.abs().max()  # two orders of summation in float32
    actual, expected = collapsed.decoder_stage1[4].weight.grad, model.decoder_stage1[4].weight.grad
    assert (actual - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.parametrize("name", ["isnet_demo", pytest.param("isnet_resnest101os8_lip", marks=pytest.mark.slow)])
def test_unfolded_weights_compute_the_same(name: str, tmp_path: Path) -> None:
    model = random_model(name)
    collapsed = inference_form(model)
    for parameter in collapsed.parameters():
        parameter.data.mul_(1 + 0.01 * torch.rand(parameter.shape))
    state = unfold(collapsed, model)
    save_checkpoint(tmp_path / "qat.pth", state, qat="int8")
    again = load_model(load_checkpoint(tmp_path / "qat.pth", name))
    x = torch.from_numpy(picture(7).pixels)
    with torch.inference_mode():
        expected, actual = collapsed(x), again(x)
    assert (actual - expected).abs().max() <= 2e-3 * expected.std()
    assert set(state) == set(model.state_dict())


def test_fine_tuning_learns_and_leaves_the_model(network: Network) -> None:
    model, proto, table = network
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    placement = training_placement(proto, table, "tensorrt")
    scenes = SceneCache(1_000_000, 2, (96, 160))
    tuning = Tuning(epochs=2, batch=2, lr=0.01, workers=0, repeats=2)
    small = recipe("isnet_demo")
    state = fine_tune(model, small, scenes, placement, tuning, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    fresh = ISNet(DEMO.architecture)
    fresh.load_state_dict(state)
    moved = (fresh.decoder_stage2[4].weight - model.decoder_stage2[4].weight).abs().max()
    assert 1e-5 < moved < 1


def test_what_cannot_be_trained_is_said(network: Network) -> None:
    model, proto, table = network
    with pytest.raises(SettingsError, match="no training for 'cpu'"):
        training_placement(proto, table, "cpu")
    with pytest.raises(SettingsError, match="no layer is called 'nowhere'"):
        training_placement(proto, table, "tensorrt", ["nowhere"])
    empty = Placement("int8", (), ())
    with pytest.raises(TrainingError, match="fewer than one batch"):
        fine_tune(model, DEMO, SceneCache(1_000_000, 1, (96, 160)), empty, Tuning(workers=0))
    with pytest.raises(CheckpointError, match="does not exist"):
        qat.main(["--ckpt", "nowhere.pth", "--out", "never.pth"])


def test_the_trainer_hands_its_option_on(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth"):
        train.main(["--ckpt", "nowhere.pth", "--qat", "--out", str(tmp_path / "never.pth")])


def test_what_could_not_be_written_is_refused_first(tmp_path: Path) -> None:
    """Before any scene is drawn; the checkpoint to start from is never replaced."""
    mine = tmp_path / "mine.pth"
    mine.write_bytes(DEMO_CHECKPOINT.read_bytes())
    (tmp_path / "file").write_text("years of work")
    places = {
        tmp_path: "no file can be made",
        tmp_path / "file" / "a.pth": "no file can be made",
        mine: "would be lost",
    }
    for out, message in places.items():
        with pytest.raises(SettingsError, match=message):
            qat.main(["--ckpt", str(mine), "--out", str(out)])
    assert mine.read_bytes() == DEMO_CHECKPOINT.read_bytes()


def test_described_pictures_lie_beside_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in training: --data is for those that lie elsewhere."""
    opened = []
    monkeypatch.setattr(qat, "open_dataset", lambda *words: opened.append(words))
    own = dataclasses.replace(DEMO, dataset=str(tmp_path / "tiles.yaml"))
    args = qat.argument_parser().parse_args(["--ckpt", "a.pth", "--out", "b.pth"])
    qat._source(args, own)
    assert opened == [(own.dataset, None, "train")]
    with pytest.raises(SettingsError, match="name its folder with --data"):
        qat._source(args, recipe("isnet_resnet50os8_ade20k"))
