"""Networks of other libraries through the build and the runtime, and other tools around the same session.

A short form of ``python -m benchmarks.networks`` and ``python -m benchmarks.pipelines``, run by ``make test-networks``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("segmentation_models_pytorch") is None,
        reason="segmentation-models-pytorch and others are not installed (make test-networks)",
    ),
]


@pytest.mark.parametrize(
    "name",
    [
        "smp Unet, a sigmoid for each class",
        "smp FPN, ResNet-18",
        "torchvision DeepLabV3 with aux",
        "timm ConvNeXt-Atto and a layer",
    ],
)
def test_labels_are_those_of_the_networks_own_run(name: str) -> None:
    from benchmarks import networks

    record = networks.measure(name, ["CPU fp32"])
    assert record["builds"]["CPU fp32"]["status"] == "built", record["builds"]
    assert list(record["labels"]) == list(networks.PRESETS)
    for labels in record["labels"].values():
        assert labels["wrong"] == 0
        assert labels["classes"] > 4
        assert labels["ties"] < 0.02


def test_a_detector_of_one_class_in_eight_bits() -> None:
    from benchmarks import networks

    record = networks.measure("rapidocr text detector (trained)", ["CPU fp32", "CPU uint8"])
    assert [build["status"] for build in record["builds"].values()] == ["built", "built"], record["builds"]
    assert [labels["wrong"] for labels in record["labels"].values()] == [0, 0, 0]


def test_queries_are_refused_with_the_remedy() -> None:
    from benchmarks import networks

    record = networks.measure("transformers MaskFormer", ["CPU fp32"])
    refusal = record["builds"]["CPU fp32"]
    assert refusal["status"] == "refused"
    assert "class_queries_logits" in refusal["why"]
    assert record["labels"] == {}


def test_other_tools_give_the_same_labels(tmp_path: Path) -> None:
    from small_bundle import write_bundle

    from benchmarks.peers import Setup, load
    from benchmarks.pipelines import PEERS
    from isnet_trt import Inference
    from isnet_trt.settings import Preprocess

    image = np.random.default_rng(8).integers(0, 256, (6, 8, 3), np.uint8).repeat(12, 0).repeat(12, 1)[:61, :93]
    write_bundle(tmp_path / "bundle", preprocess=Preprocess((61, 93), keep_ratio=False))
    runners = [load(Setup(name, name, 1, bundle=tmp_path / "bundle")) for name in PEERS]
    slide = Inference("slide", (32, 64), (24, 48), flip=True, softmax_before_resize=True)
    for inference, able in ((Inference(), runners), (slide, runners[:3])):
        outputs = [runner.run(image, inference) for runner in able]
        assert outputs[0].clear is not None
        clear = outputs[0].clear()
        assert clear.mean() > 0.5
        assert len(np.unique(outputs[0].labels)) > 1
        for output in outputs:
            np.testing.assert_array_equal(output.labels[clear], outputs[0].labels[clear])
