"""Datasets of one's own: from a folder of pictures and a YAML file to recipe, pictures, checkpoint and bundle."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import explained, run_python
from miniature import SIZES
from own_pictures import CLASSES, DESCRIPTION, make_pictures, write

from isnet_trt import Segmenter
from isnet_trt.datasets.layouts import open_dataset
from isnet_trt.errors import DataError, SettingsError
from isnet_trt.recipes import DATASETS, IGNORE, RECIPES, recipe
from isnet_trt.recipes.custom import colours, custom_recipe, read_custom
from isnet_trt.recipes.yaml_fields import text
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
        ({"crop": [96]}, r"crop: \[96\] is not \[height, width\], each from 32 to 32768"),
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
    assert done.returncode == 0, explained(done)
    return done.stdout


def test_recipes_command_shows_it_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from isnet_trt.recipes import recipe; from isnet_trt.recipes.__main__ import main;"
        "assert 'yaml' not in sys.modules;"
        f"main([{str(write(tmp_path))!r}]); assert 'torch' not in sys.modules"
    )
    shown = run_python("-c", code, check=True).stdout
    assert '"name": "tiles"' in shown


VALID = 'name: t\nimages: "*.jpg"\nclasses: [a, b]\n'


def error_of(file: Path) -> str:
    with pytest.raises(SettingsError) as raised:
        read_custom(file)
    message = str(raised.value)
    assert message.startswith(str(file))
    assert len(message) < len(str(file)) + 600
    return message[len(str(file)) :]


def laughs() -> str:
    """Forty lists, each of twice the one before: 2**40 values."""
    lists = ["x0: &x0 [lol, lol]", *(f"x{n + 1}: &x{n + 1} [*x{n}, *x{n}]" for n in range(40))]
    return "\n".join(lists)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (VALID + "lr: !!python/object/apply:os.system ['false']", "could not determine a constructor for the tag"),
        (VALID + "like: !!binary aGk=", "like: b'hi' is not one of"),
        (VALID + "batch: !!int ''", "line 4: '' is no int"),
        (VALID + "lr: 2024-13-41", "line 4: '2024-13-41' is no timestamp; put it in quotes"),
        (VALID + "lr: 1e999", "lr: '1e999' is not a learning rate"),
        (VALID + "lr: .nan", "lr: nan is not"),
        (VALID + "lr: .inf", "lr: inf is not"),
        (VALID + f"lr: {10**400}", "is not a learning rate"),
        (VALID + "lr: 0x" + 4000 * "f", "lr: a number of thousands of digits is not"),
        (VALID + f"batch: {2**63}", "batch: 9223372036854775808 is not a whole number from 1 to 65536"),
        (VALID + f"size: [{2**31}, 64]", "size: [2147483648, 64] is not"),
        (VALID + "epochs: -1", "epochs: -1 is not"),
        (VALID + "palette: [[300, 0, 0], [0, 0, 0]]", "palette: [[300"),
        (VALID + "x: " + 100_000 * "[", "is nested more than 16 deep"),
        (VALID + "x:\n" + 100_000 * "- ", "is nested more than 16 deep"),
        (VALID + laughs(), "has more than 100000 values"),
        (VALID + "x: &a [*a]", "*a stands for nothing, or for what it is part of"),
        (VALID + "x: " + 5000 * "1:", "line 4: longer than 4096 letters"),
        (VALID + "split: {train: a, val: b, train: c}", "the key 'train' is there twice"),
        (VALID + "epoch: 3", "the key 'epoch' is unknown; did you mean 'epochs'?"),
        (VALID + "\tlr: 1", "indent with spaces, not with tabs"),
        (VALID + "---\n" + VALID, "expected a single document"),
        (VALID.replace("*.jpg", "a\\0"), "it has a NUL or half a surrogate pair"),
        (VALID.replace("name: t", "name: " + 200 * "t"), "up to 100 letters"),
        ("name: t\nimages: x\nclasses: " + str(list(map("c{}".format, range(70_000)))), "and 65535 at most"),
        ("name: t\nimages: x\nclasses: " + str(list(map("c{}".format, range(100_000)))), "more than 100000 values"),
        ("name: t\nimages: x\nclasses: {1: a, true: b, 2: c}", "the key True is there twice"),
        ("", "expected keys and values"),
    ],
)
def test_hostile_files_are_refused_at_once(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(content, "utf-8")
    start = time.process_time()
    assert message in error_of(file)
    assert time.process_time() - start < 3


@pytest.mark.parametrize("letter", ["\0", "\ud800"])
def test_half_surrogates_and_nul_are_no_text(letter: str) -> None:
    with pytest.raises(ValueError, match="half a surrogate pair"):
        text(f"a{letter}b")
    assert text("caf\xe9 \U0001f600\n") == "caf\xe9 \U0001f600\n"


def test_encodings(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + VALID.replace("\n", "\r\n").encode())
    assert read_custom(file).recipe.labels.names == ("a", "b")
    for content in (VALID.encode("utf-16"), b"# caf\xe9\n" + VALID.encode()):
        file.write_bytes(content)
        assert "is not UTF-8 text" in error_of(file)


def test_an_alias_and_a_merge_key_work_within_bounds(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("name: t\nimages: x\nclasses: &names [a, b]\nflip_pairs: [*names]\n", "utf-8")
    assert read_custom(file).recipe.labels.flip_pairs == ((0, 1),)
    split = "images: '{split}/*'\nsplit: &s {train: a, val: b}\nx: {<<: *s, val: c}\n"
    file.write_text(f"name: t\nclasses: [a, b]\n{split}", "utf-8")
    assert "the key 'x' is unknown" in error_of(file)  # and not: the key 'val' is there twice


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
def test_only_regular_files_of_moderate_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "device.yaml").symlink_to("/dev/zero")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with (tmp_path / "large.yaml").open("wb") as stream:
        stream.truncate(2**30)
    reasons = {"fifo": "it is a FIFO", "folder": "it is a folder", "device": "it is a device", "loop": "symbolic links"}
    for name, reason in (reasons | {"large": "too large: 1073741824 bytes, the limit is 1048576"}).items():
        assert reason in error_of(tmp_path / f"{name}.yaml")
    assert "File name too long" in error_of(tmp_path / f"{300 * 'x'}.yaml")
