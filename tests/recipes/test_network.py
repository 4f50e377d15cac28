"""Recipes of any network, from YAML files without keys of training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from isnet_trt.errors import SettingsError
from isnet_trt.recipes import RECIPES, NetworkRecipe, network_recipe
from isnet_trt.recipes.__main__ import main
from isnet_trt.recipes.custom import colours
from isnet_trt.settings import Inference, NetworkFacts, Preprocess

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "pixel_range": 1}
LEAST = {"name": "scenes", "classes": 3, "mean": 0, "std": 1}


def written(folder: Path, **keys: Any) -> Path:
    """A YAML file of ``keys`` (JSON is YAML)."""
    path = folder / "mine.yaml"
    path.write_text(json.dumps(keys), "utf-8")
    return path


def read(folder: Path, **keys: Any) -> NetworkRecipe:
    return network_recipe(written(folder, **(LEAST | keys)))


def test_the_least_that_a_file_says(tmp_path: Path) -> None:
    recipe = read(tmp_path)
    assert (recipe.labels.names, recipe.labels.palette) == (("class 0", "class 1", "class 2"), colours(3))
    assert recipe.preprocess == Preprocess(None, mean=(0, 0, 0), std=(1, 1, 1))
    assert recipe.network == NetworkFacts()
    assert recipe.presets == {"default": Inference()}
    assert recipe.ms_flip == recipe.default == recipe.preset("default")


def test_every_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("""
name: people
classes: {nothing: [0, 0, 0], left arm: '#ff8000', right arm: [0, 255, 1]}
flip_pairs: [[left arm, right arm]]
mean: [104, 117, 123]
std: [1, 2, 3]
channel_order: bgr
size: {long: 640, short: 480}
size_multiple: 32
padding_side: centre
padding_value: [1, 2.5, 255]
activation: softmax
presets:
  default: {window: [96, 129], stride: [40, 50], average: probabilities}
  ms-flip: {window: [96, 129], scales: [0.5, 1, 1.75], flip: true}
  whole:
""")
    recipe = network_recipe(file)
    assert recipe.labels.palette == ((0, 0, 0), (255, 128, 0), (0, 255, 1))
    assert recipe.labels.flip_pairs == ((1, 2),)
    assert recipe.preprocess == Preprocess((640, 480), True, (104, 117, 123), (1, 2, 3), "bgr")
    assert recipe.network == NetworkFacts("softmax", None, "none", 32, "centre", (1, 2.5, 255))
    assert recipe.default == Inference("slide", (96, 129), (40, 50), softmax_before_resize=True)
    most = Inference("slide", (96, 129), (64, 86), (0.5, 1, 1.75), flip=True, softmax_before_resize=True)
    assert recipe.ms_flip == most
    assert recipe.preset("whole") == Inference(softmax_before_resize=True)  # its output is probabilities


def test_values_for_pixels_of_0_to_1_are_those_of_the_published_recipes(tmp_path: Path) -> None:
    preprocess = read(tmp_path, **IMAGENET, size=[512, 333]).preprocess
    assert preprocess.mean == pytest.approx(Preprocess(None).mean)
    assert preprocess.std == pytest.approx(Preprocess(None).std)
    assert (preprocess.size, preprocess.keep_ratio) == ((512, 333), False)
    assert read(tmp_path, mean=0, std=0.5, pixel_range=255).preprocess.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("keys", "names", "palette", "threshold"),
    [
        ({"classes": 1}, ("background", "foreground"), ((0, 0, 0), (128, 0, 0)), 0.5),
        ({"classes": ["text"], "threshold": 0.3}, ("background", "text"), ((0, 0, 0), (128, 0, 0)), 0.3),
        ({"classes": ["text"], "palette": ["#010203"]}, ("background", "text"), ((0, 0, 0), (1, 2, 3)), 0.5),
        ({"classes": {"text": [9, 8, 7]}}, ("background", "text"), ((0, 0, 0), (9, 8, 7)), 0.5),
        ({"classes": ["paper", "text"], "threshold": 0.7}, ("paper", "text"), colours(2), 0.7),
        ({"classes": ["paper", "text"]}, ("paper", "text"), colours(2), None),
    ],
)
def test_one_class_has_a_threshold(
    keys: dict, names: tuple, palette: tuple, threshold: float | None, tmp_path: Path
) -> None:
    recipe = read(tmp_path, **keys)
    assert (recipe.labels.names, recipe.labels.palette) == (names, palette)
    assert recipe.network.threshold == threshold
    assert recipe.network.channels(recipe.labels) == (2 if threshold is None else 1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"images": "photos"}, "images belongs to the recipe of a training"),
        ({"classes": 0}, "classes: 0 is not the number of classes, a list"),
        ({"classes": True}, "classes: True is not"),
        ({"classes": ["a", "a"]}, "'a' is there twice"),
        ({"classes": {"a": "red"}}, "'red' is no colour"),
        ({"classes": {"a": [1, 2, 3]}, "palette": ["#000000"]}, "remove palette"),
        ({"flip_pairs": [["class 0", "door"]]}, "no class is called 'door'"),
        ({"classes": ["a", "b"], "threshold": 0.5, "flip_pairs": [["a", "b"]]}, "not to a threshold"),
        ({"mean": [1, 2]}, r"mean: \[1, 2\] is not three numbers"),
        ({"std": 0}, "std: 0 is not three positive numbers"),
        ({"std": [0.229, 0.224, 0.225]}, "inputs of up to 1138; write pixel_range: 1"),
        ({"pixel_range": 128}, "pixel_range: 128 is not 1 or 255"),
        ({"channel_order": "gbr"}, "channel_order: 'gbr' is not one of rgb, bgr"),
        ({"activation": "relu"}, "activation: 'relu' is not one of none, softmax, sigmoid"),
        ({"threshold": 0.5}, "threshold belongs to networks of one class, but classes has 3"),
        ({"classes": 1, "threshold": 1}, "threshold: 1 is not a probability"),
        ({"classes": 1, "activation": "softmax"}, "softmax over one class is always 1"),
        ({"size_multiple": 0}, "size_multiple: 0 is not a whole number of pixels from 1 to 1024"),
        ({"padding_side": "left"}, "padding_side: 'left' is not one of bottom_right, centre"),
        ({"padding_value": [0, 0, 256]}, r"padding_value: \[0, 0, 256\] is not mean"),
        ({"size": {"long": 100}}, "size: {'long': 100} is not"),
        ({"size": {"long": 100, "short": 200}}, "long is below short"),
        ({"presets": {"fast": {}}}, "one called default"),
        ({"presets": {"default": [1]}}, r"presets: default: \[1\] is not a mapping"),
        ({"presets": {"default": {"windw": [9, 9]}}}, "presets: default: the key 'windw' is unknown; did you mean"),
        ({"presets": {"default": {"stride": [9, 9]}}}, "stride belongs to a window"),
        ({"presets": {"default": {"window": [9, 9], "stride": [10, 9]}}}, "pixels stay uncovered"),
        (
            {"activation": "sigmoid", "presets": {"default": {"average": "logits"}}},
            "there are no logits",
        ),
        ({"presets": {"default": {"scales": [0]}}}, r"presets: default: scales: \[0\] is not a list of factors"),
        ({"means": 1}, "the key 'means' is unknown; did you mean 'mean'"),
    ],
)
def test_mistakes_are_named_with_file_key_and_value(keys: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        read(tmp_path, **keys)
    assert str(caught.value).startswith(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("key", LEAST)
def test_what_cannot_be_known_is_asked(key: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"the key '{key}' is missing"):
        network_recipe(written(tmp_path, **{name: value for name, value in LEAST.items() if name != key}))


def test_probabilities_that_a_network_gives_are_averaged(tmp_path: Path) -> None:
    """Also where its activation is found later, by looking at the network."""
    recipe = read(tmp_path, presets={"default": {}, "ms-flip": {"flip": True}})
    later = dataclasses.replace(recipe, network=NetworkFacts("softmax"))
    assert [preset.softmax_before_resize for preset in recipe.presets.values()] == [False, False]
    assert later.presets == {name: p.replace(softmax_before_resize=True) for name, p in recipe.presets.items()}
    assert later == dataclasses.replace(recipe, network=NetworkFacts("softmax"), presets=later.presets)


def test_the_command_shows_a_file_of_either_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(written(tmp_path, **LEAST, activation="sigmoid"))]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["network"]["activation"]) == ("scenes", "sigmoid")
    with pytest.raises(SettingsError, match="'classes' is missing"):
        main([str(written(tmp_path, name="tiles", images="photos"))])  # of a training


def test_published_recipes_have_the_same_facts() -> None:
    for recipe in RECIPES.values():
        assert recipe.network == NetworkFacts()
        assert recipe.network.channels(recipe.labels) == recipe.labels.count
        assert NetworkRecipe(recipe.name, recipe.labels, recipe.preprocess, recipe.network, recipe.presets)


def test_one_class_without_a_threshold_is_refused(tmp_path: Path) -> None:
    recipe = read(tmp_path, classes=1)
    with pytest.raises(SettingsError, match="a threshold separates two classes, background and one other, not 3"):
        dataclasses.replace(recipe, labels=read(tmp_path).labels)
    with pytest.raises(SettingsError, match="preset 'default' is unknown"):
        dataclasses.replace(recipe, presets={})
