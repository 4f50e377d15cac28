"""Datasets of one's own: from a folder of pictures and a YAML file to recipe, pictures, checkpoint and bundle."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import run_python
from miniature import SIZES
from own_pictures import CLASSES, DESCRIPTION, make_pictures, write

from isnet_trt import Segmenter
from isnet_trt.datasets.layouts import open_dataset
from isnet_trt.errors import DataError, SettingsError
from isnet_trt.recipes import DATASETS, IGNORE, RECIPES, recipe
from isnet_trt.recipes.custom import colours, custom_recipe
from isnet_trt.training.checkpoint import load_checkpoint
from isnet_trt.training.data.augment import Augment

DEMO = Path(__file__).parents[2] / "training" / "assets" / "isnet_demo.pth"


def test_a_recipe_from_every_key(tmp_path: Path) -> None:
    file = write(tmp_path, min_lr=0.001, weight_decay=0, rotation=[0.5, 20], photometric=True, backbone="resnet50")
    own = recipe(str(file))
    assert own == custom_recipe(file)
    assert (own.name, own.dataset) == ("tiles", str(file.resolve()))
    assert own.labels.names == tuple(CLASSES.values())
    assert own.labels.palette[1] == (255, 128, 0)
    assert own.labels.flip_pairs == ((3, 4),)
    assert (own.architecture.num_classes, own.architecture.backbone.name) == (5, "resnet50")
    assert (own.crop, own.preprocess.size) == ((96, 160), (320, 160))
    rule = own.augmentation
    assert (rule.base, rule.factors, rule.rotation, rule.photometric) == ((320, 160), (0.75, 1.5), (0.5, 20), True)
    assert not rule.pad_turns
    assert (own.optimiser.lr, own.optimiser.min_lr, own.optimiser.weight_decay) == (0.01, 0.001, 0)
    assert (own.batch, own.epochs) == (2, 3)


def test_defaults_are_those_of_the_likened_recipe(tmp_path: Path) -> None:
    optional = set(DESCRIPTION) - {"name", "images", "classes"}
    own = recipe(str(write(tmp_path, **dict.fromkeys(optional, ...))))
    like = RECIPES["isnet_resnet50os8_ade20k"]
    assert (own.crop, own.batch, own.epochs, own.optimiser) == (like.crop, like.batch, like.epochs, like.optimiser)
    assert (own.preprocess, own.ms_flip) == (like.preprocess, like.ms_flip)
    assert own.labels.palette == colours(5)
    human = recipe(str(write(tmp_path, like="isnet_resnet50os8_lip", size=[236, 236], flip_pairs=..., crop=...)))
    assert human.architecture.shortcut_channels == 48
    assert human.augmentation.base == (259, 259)  # 236 · 520 / 473
    assert human.optimiser.min_lr == pytest.approx(human.optimiser.lr / 100)


def test_default_colours_are_the_usual_map() -> None:
    assert colours(182) == DATASETS["cocostuff10k"].labels.palette
    assert len(set(colours(256))) == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ...}, r"the key 'name' is missing"),
        ({"name": "isnet_demo"}, r"name: 'isnet_demo' is not a name"),
        ({"name": "a/b"}, r"name: 'a/b' is not a name"),
        ({"like": "isnet_vgg"}, r"like: 'isnet_vgg' is not one of the recipes isnet_resnet50"),
        ({"backbone": 50}, r"backbone: 50 is not one of resnet50"),
        ({"classes": ["one"]}, r"classes: \['one'\] is not .*two classes at least"),
        ({"classes": [True, "b"]}, r"True is no name; put it in quotes"),
        ({"classes": ["a", "b", "a"]}, r"'a' is there twice"),
        ({"classes": {"a": "b", "c": "d"}}, r"'a' is no stored value"),
        ({"classes": {0: "b", -1: "d"}}, r"-1 is no stored value"),
        ({"palette": [[0, 0, 0]]}, r"palette: .* is not 5 colours"),
        ({"palette": [[0, 0, 256]] * 5}, r"palette: .* is not 5 colours"),
        ({"palette": ["red"] * 5}, r"'red' is no colour"),
        ({"ignore": 7}, r"ignore: 7 is not .*7 is a class"),
        ({"ignore": "none"}, r"ignore: 'none' is not"),
        ({"flip_pairs": [["left", "up"]]}, r"no class is called 'up'"),
        ({"flip_pairs": [["left", "right"], ["left", "tile"]]}, r"one other only"),
        ({"crop": [96]}, r"crop: \[96\] is not \[height, width\] of at least 32"),
        ({"crop": 16}, r"crop: 16 is not"),
        ({"size": [0, 5]}, r"size: \[0, 5\] is not \[longer side, shorter side\]"),
        ({"scales": [2, 1]}, r"scales: \[2, 1\] is not"),
        ({"rotation": [2, 10]}, r"rotation: \[2, 10\] is not"),
        ({"photometric": "on!"}, r"photometric: 'on!' is not true or false"),
        ({"lr": "fast"}, r"lr: 'fast' is not a learning rate"),
        ({"lr": True}, r"lr: True is not"),
        ({"min_lr": 0.5}, r"min_lr: 0\.5 is not a learning rate within 0\.\.0\.01"),
        ({"batch": 0}, r"batch: 0 is not"),
        ({"epochs": 1.5}, r"epochs: 1\.5 is not"),
        ({"split": 1.0}, r"split: 1\.0 is not the share"),
        ({"split": {"train": "a"}}, r"split: \{'train': 'a'\} is not"),
        ({"images": 3}, r"images: 3 is not a folder"),
        ({"labels": "masks/*.png"}, r"labels: 'masks/\*\.png' is not a path with \{name\}"),
        ({"labels": "{split}/{name}.png"}, r"has \{split\}, but images \('photos'\) has not"),
        ({"images": "{split}", "labels": "{split}/{name}.png"}, r"split: 0\.3 is not \{train: …, val: …\}"),
        ({"learning_rate": 1}, r"the key 'learning_rate' is unknown; there are: name, like"),
        ({"clases": 1}, r"the key 'clases' is unknown; did you mean 'classes'\?"),
    ],
)
def test_wrong_keys_and_values_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises(SettingsError, match=message) as raised:
        recipe(str(file))
    assert str(raised.value).startswith(str(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: [", "is not valid YAML"),
        ("- a\n- b\n", "expected keys and values"),
        ("name: a\nname: b\n", "the key 'name' is there twice"),
        ("name: !!python/object/apply:os.system ['true']\n", "is not valid YAML"),
        ("", "expected keys and values"),
    ],
)
def test_files_that_are_no_description(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yml").write_text(content, "utf-8")
    with pytest.raises(SettingsError, match=message):
        recipe(str(tmp_path / "bad.yml"))
    with pytest.raises(SettingsError, match=r"none\.yaml cannot be read: No such file"):
        recipe(str(tmp_path / "none.yaml"))


def test_pictures_by_share(tmp_path: Path) -> None:
    truth = make_pictures(tmp_path)
    file = write(tmp_path)
    train, val = (open_dataset(str(file), None, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (7, 3)
    assert {*train.names, *val.names} == set(truth)
    for opened in (train, val):
        for i, name in enumerate(opened.names):
            image, labels = opened[i]
            want = truth[name].copy()
            want[-1, 0] = IGNORE
            np.testing.assert_array_equal(labels, want)
            assert image.shape == (*labels.shape, 3)
    assert pickle.loads(pickle.dumps(val)) == val
    before = set(val.names)
    (tmp_path / "photos/a/zz.jpg").write_bytes((tmp_path / f"photos/{val.names[0]}.jpg").read_bytes())
    (tmp_path / "masks/a/zz_mask.png").write_bytes((tmp_path / f"masks/{val.names[0]}_mask.png").read_bytes())
    after = set(open_dataset(str(file), None, "val").names)
    assert len(after - before) <= 1  # a picture that is added leaves the others where they are


def test_pictures_by_lists_and_under_another_root(tmp_path: Path) -> None:
    truth = make_pictures(tmp_path / "data")
    names = list(truth)
    (tmp_path / "data/mine.txt").write_text("\n".join(names[:4]), "utf-8")
    (tmp_path / "data/yours.txt").write_text("\n".join(names[4:6]), "utf-8")
    file = write(tmp_path / "elsewhere", split={"train": "mine.txt", "val": "yours.txt"}, images="photos/**/*.jpg")
    assert open_dataset(str(file), tmp_path / "data", "train").names == tuple(names[:4])
    assert open_dataset(str(file), tmp_path / "data", "val").names == tuple(names[4:6])
    (tmp_path / "data/yours.txt").write_text("a/absent\n", "utf-8")
    with pytest.raises(DataError, match=r"yours\.txt: 1 names without a picture: a/absent"):
        open_dataset(str(file), tmp_path / "data", "val")


def test_pictures_by_folders(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    file = write(
        tmp_path,
        images="photos/{split}/*.jpg",
        labels="masks/{split}/{name}_mask.png",
        split={"train": "a", "val": "b"},
    )
    assert [len(open_dataset(str(file), None, split)) for split in ("train", "val")] == [5, 5]
    assert open_dataset(str(file), None, "val").names[0] == "shot.01"


def test_broken_folders(tmp_path: Path) -> None:
    file = write(tmp_path)
    with pytest.raises(DataError, match="photos: there is no such folder"):
        open_dataset(str(file), None, "train")
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        open_dataset(str(file), None, "train")
    make_pictures(tmp_path, 3)
    for mask in (tmp_path / "masks").rglob("*.png"):
        mask.unlink()
    with pytest.raises(DataError, match=r"2 of 2 pictures \(photos\) have no labels; missing are .*_mask\.png"):
        open_dataset(str(file), None, "train")
    (tmp_path / "photos/b/shot.01.png").write_bytes(b"")
    with pytest.raises(DataError, match="have one name"):
        open_dataset(str(file), None, "train")


def test_an_unlisted_value_is_an_error(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    opened = open_dataset(str(write(tmp_path, ignore=255)), None, "train")
    with pytest.raises(DataError, match=r"label value 254 .*allowed are 0, 7, 9, 12\.\.13, 255"):
        opened[0]


def test_batches_of_both_orientations_have_one_size(tmp_path: Path) -> None:
    make_pictures(tmp_path)
    file = write(tmp_path)
    opened, augment = open_dataset(str(file), None, "train"), Augment.of(recipe(str(file)))
    shapes = {augment(*opened[i], np.random.default_rng(i))[1].shape for i in range(len(opened))}
    assert shapes == {(96, 160)}


@pytest.mark.slow
def test_from_pictures_to_a_bundle(tmp_path: Path) -> None:
    """The commands of docs/fine-tuning.md, started from the demo model, whose classes are others."""
    make_pictures(tmp_path)
    file, run, out = str(write(tmp_path)), tmp_path / "run", tmp_path / "bundle"
    assert "0 bad" in command("training.data", "check", file, "--out", str(tmp_path / "page.png"))
    output = command("training.train", "--recipe", file, "--init", str(DEMO), "--out", str(run), "--workers", "1")
    assert "9 classes instead of 5" in output
    checkpoint = str(run / "checkpoints-epoch-latest.pth")
    assert load_checkpoint(checkpoint, file).recipe == recipe(file)
    command("build", "--ckpt", checkpoint, "--recipe", file, "--out", str(out), "--engine", "onnxruntime")
    with Segmenter.open(out) as segmenter:
        answer = segmenter(tmp_path / "photos/a/shot.00.jpg")
    assert answer.names == tuple(CLASSES.values())
    assert answer.labels.shape == SIZES[0]


def command(module: str, *arguments: str) -> str:
    """Run one of the command lines; what it printed."""
    done = run_python("-m", f"isnet_trt.{module}", *arguments, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_recipes_command_shows_it_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from isnet_trt.recipes import recipe; from isnet_trt.recipes.__main__ import main;"
        "assert 'yaml' not in sys.modules;"
        f"main([{str(write(tmp_path))!r}]); assert 'torch' not in sys.modules"
    )
    shown = run_python("-c", code, check=True).stdout
    assert '"name": "tiles"' in shown
