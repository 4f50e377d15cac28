"""The peers give the reference's answer: the merge around a network, a checkout, and (slow) every peer at hand."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.peers import PEERS, Missing, Setup, evaluation, reference
from benchmarks.rounds import Case, agreement, measure
from benchmarks.worker import Contender
from isnet_trt import Inference
from isnet_trt.recipes import recipe
from isnet_trt.settings import Preprocess
from isnet_trt.training import DEMO_CHECKPOINT

DEMO = dataclasses.replace(recipe("isnet_demo"), preprocess=Preprocess((97, 65)))
WEIGHT = torch.randn(9, 3, 15, 15, generator=torch.Generator().manual_seed(4)) / 15
IMAGE = np.random.default_rng(8).integers(0, 256, (53, 81, 3), np.uint8)
SMALL = Inference(scales=(0.25,))


def network(x: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 9, ceil(H/8), ceil(W/8))."""
    return F.conv2d(x, WEIGHT, stride=8, padding=7)


@pytest.mark.parametrize(
    "inference",
    [
        Inference(),
        Inference(scales=(0.75, 1.0, 1.3), flip=True),
        Inference(scales=(0.75, 1.3), flip=True, softmax_before_resize=True),
        Inference("slide", (33, 47), (21, 30), (0.75, 1.0), flip=True, softmax_before_resize=True),
    ],
    ids=Inference.describe,
)
def test_pipeline_gives_the_references_labels(inference: Inference) -> None:
    runner = evaluation.PipelineRunner(Setup("one", "pytorch", 1), network, "one convolution", DEMO)
    output = runner.run(IMAGE, inference)
    x = evaluation.network_input(IMAGE, DEMO.preprocess)
    mean = evaluation.merged(evaluation.score_volumes(network, x, inference, DEMO.labels.flip_pairs), IMAGE.shape[:2])
    shares = agreement(output.labels, mean.argmax(0).numpy(), reference.clear_pixels(mean))
    assert shares["clear"] == 1.0  # float32; sums in another order move nearly equal scores only
    assert shares["all"] > 0.995
    assert {"engine", "resize", "merge"} == set(output.stages)


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_has_its_function(name: str) -> None:
    module = importlib.import_module(f"benchmarks.peers.{PEERS[name].module}")
    assert callable(getattr(module, PEERS[name].function))
    assert PEERS[name].description


def test_a_folder_that_is_no_checkout_is_named(tmp_path: Path) -> None:
    setup = Setup("checkout", "checkout", 1, ckpt=DEMO_CHECKPOINT, checkout=tmp_path)
    with pytest.raises(Missing, match="no ssseg/modules"):
        Contender(setup)


def test_a_checkout_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "ssseg" / "modules").mkdir(parents=True)
    with pytest.raises(Missing, match="leaves the configs out"):
        Contender(Setup("checkout", "checkout", 1, ckpt=DEMO_CHECKPOINT, checkout=tmp_path))
    (tmp_path / "ssseg" / "configs" / "isnet").mkdir(parents=True)
    (tmp_path / "ssseg" / "modules" / "__init__.py").write_text("import a_library_that_is_not_there\n", "utf-8")
    with pytest.raises(Missing, match="a_library_that_is_not_there"):
        Contender(Setup("checkout", "checkout", 1, ckpt=DEMO_CHECKPOINT, checkout=tmp_path))


# The public code's layout and interface, with this project's network inside: what is shown is that settings, weights
# and volumes pass through the interface as they must.
_MODULES = """
import copy
from torch import nn
import torch
import torch.nn.functional as F
from isnet_trt.settings import Inference
from isnet_trt.training.model import ISNet
from isnet_trt.recipes import recipe
from benchmarks.peers import evaluation


class Segmentor(ISNet):
    def auginference(self, images):
        settings = self.cfg["inference"]
        {names}
        inference = Inference(
            mode, windows["cropsize"], windows["stride"], tuple(tta["multiscale"]), tta["flip"],
            tta["use_probs_before_resize"],
        )
        return evaluation.score_volumes(super().forward, images, inference, tuple(pairs))


def BuildSegmentor(segmentor_cfg, mode):
    segmentor_cfg = copy.deepcopy(segmentor_cfg)
    assert mode == "TEST" and segmentor_cfg["backbone"]["pretrained"] is False
    segmentor = Segmentor(recipe(segmentor_cfg["name"]).architecture)
    segmentor.cfg = segmentor_cfg
    return segmentor
"""


# How the versions name what is read of cfg["inference"] (ssseg/modules/models/segmentors/base/base.py).
_NAMES = {
    "1.7.0": """tta = settings["tta"]
        windows, mode, pairs = settings["forward"], settings["forward"]["mode"], tta["fixed_seg_target_pairs"]""",
    "1.5.3": """tta = settings["tricks"]
        windows, mode, pairs = settings["opts"], settings["mode"], settings["fixed_seg_target_pairs"]""",
}


@pytest.mark.parametrize("version", _NAMES)
def test_checkout_is_run_through_its_own_interface(version: str, tmp_path: Path) -> None:
    files = {
        "ssseg/__init__.py": f"__version__ = '{version}'",
        "ssseg/modules/__init__.py": _MODULES.replace("{names}", _NAMES[version]),
        "ssseg/configs/__init__.py": "",
        "ssseg/configs/isnet/__init__.py": "",
        "ssseg/configs/isnet/isnet_demo.py": 'SEGMENTOR_CFG = {"name": "isnet_demo", "backbone": {"pretrained": True}}',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    setups = [Setup(n, n, 1, ckpt=DEMO_CHECKPOINT, checkout=tmp_path) for n in ("reference", "checkout")]
    inference = Inference(scales=(0.125, 0.25), flip=True)
    record = measure(Case("small", IMAGE, inference, recipe("isnet_demo").preprocess, 1), setups)
    assert record["gaps"] == []
    assert [c["status"] for c in record["contenders"]] == ["timed", "timed"]
    assert record["contenders"][1]["agreement"]["clear"] == 1.0
    assert f"SSSegmentation {version}, PyTorch" in record["contenders"][1]["description"]


@pytest.mark.slow
def test_every_peer_at_hand_gives_the_references_labels() -> None:
    names = ("reference", "pytorch", "compile", "onnxruntime", "openvino")
    setups = [Setup(name, name, 1, ckpt=DEMO_CHECKPOINT) for name in names]
    record = measure(Case("small", IMAGE, SMALL, recipe("isnet_demo").preprocess, 1), setups)
    timed = {c["name"] for c in record["contenders"] if c["status"] == "timed"}
    missing = {gap["what"] for gap in record["gaps"]}
    assert timed | missing == set(names)
    assert missing <= {"compile", "openvino"}
    assert all(c["agreement"]["clear"] >= 0.999 for c in record["contenders"])
