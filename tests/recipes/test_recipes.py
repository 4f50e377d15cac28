"""The recipes against what the fixtures say of the published models."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
from children import explained, run_python
from golden_files import GOLDEN

from isnet_trt.errors import SettingsError
from isnet_trt.recipes import DATASETS, RECIPES, recipe
from isnet_trt.recipes.__main__ import main

CLASSES = json.loads((GOLDEN / "classes.json").read_text("utf-8"))


@pytest.mark.parametrize("name", DATASETS)
def test_label_sets_are_the_published_ones(name: str) -> None:
    labels = DATASETS[name].labels
    assert list(labels.names) == CLASSES[name]["names"]
    assert zlib.crc32(np.asarray(labels.palette, np.uint8).tobytes()) == CLASSES[name]["palette_crc32"]


def test_twelve_published_and_the_demo() -> None:
    assert len(RECIPES) == 13
    assert {model.dataset for model in RECIPES.values()} == {*DATASETS, "scenes"}
    assert all(model.architecture.num_classes == model.labels.count for model in RECIPES.values())


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "isnet_demo"])
def test_architecture_is_that_of_the_fixtures(name: str) -> None:
    shapes = {key: shape for key, shape, _ in json.loads((GOLDEN / f"state_dict_{name}.json").read_text("utf-8"))}
    model = recipe(name).architecture
    assert shapes["decoder_stage1.4.weight"][0] == model.num_classes
    assert shapes["bottleneck.0.weight"][:2] == [model.head_channels, model.backbone.stage_channels[3]]
    assert ("shortcut.0.weight" in shapes) == bool(model.shortcut_channels)
    assert ("backbone_net.layer1.0.conv2.fc1.weight" in shapes) == (model.backbone.block == "split_attention")
    blocks = {key.split(".")[2] for key in shapes if key.startswith("backbone_net.layer3.")}
    assert len(blocks) == model.backbone.depths[2]


def test_documented_inference() -> None:
    city = recipe("isnet_resnet101os8_cityscapes").ms_flip
    assert (city.window, city.stride, city.softmax_before_resize) == ((1024, 512), (341, 341), False)
    assert recipe("isnet_resnest101os8_cocostuff10k").ms_flip.softmax_before_resize
    assert not recipe("isnet_resnet101os8_cocostuff10k").ms_flip.softmax_before_resize
    assert recipe("isnet_resnet50os8_ade20k").ms_flip.scales == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert recipe("isnet_resnet50os8_lip").labels.flip_pairs == ((14, 15), (16, 17), (18, 19))
    assert all(model.default.describe() == "whole, scale 1, logits" for model in RECIPES.values())


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(SettingsError, match="isnet_demo"):
        recipe("isnet_resnet18")
    with pytest.raises(SettingsError, match="default, ms-flip"):
        recipe("isnet_demo").preset("fast")


def test_table_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import runpy; sys.argv = ['recipes'];"
        "runpy.run_module('isnet_trt.training.recipes', run_name='__main__')"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, explained(done)
    assert all(name in done.stdout for name in RECIPES)


def test_one_recipe_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["isnet_resnest101os8_lip"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["optimiser"]["lr"] == 0.007
    assert page["miou_ms_flip"] == 56.81


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("poly_default", "isnet_resnet50os8_ade20k"),
        ("poly_s101ade", "isnet_resnest101os8_ade20k"),
        ("poly_s101coco", "isnet_resnest101os8_cocostuff10k"),
    ],
)
def test_learning_rates_of_the_reference(key: str, name: str) -> None:
    golden = np.load(GOLDEN / "golden_pipeline.npz")
    total = int(golden["poly_max_iters"])
    rates = [recipe(name).optimiser.rate(int(i), total) for i in golden["poly_iters"]]
    np.testing.assert_allclose(rates, golden[key], rtol=1e-12)  # float64


def test_beyond_the_end_it_stays_at_the_minimum() -> None:
    rule = recipe("isnet_demo").optimiser
    assert rule.rate(11, 10) == pytest.approx(rule.min_lr)
