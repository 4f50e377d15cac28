"""Class names, colours and label values noted in checkpoints, and compared by whatever takes one up."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import TINY, data
from torch import Tensor

from isnet_trt import cli
from isnet_trt.commands import build
from isnet_trt.errors import CheckpointError
from isnet_trt.recipes import RECIPES, Recipe, recipe
from isnet_trt.settings import Labels
from isnet_trt.training.checkpoint import load_checkpoint, save_checkpoint
from isnet_trt.training.classes import Classes
from isnet_trt.training.model import ISNet
from isnet_trt.training.pretrained import load_matching
from isnet_trt.training.run_folder import LATEST
from isnet_trt.training.trainer import Options, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = {0: "ground", 7: "tile", 9: "crack"}


def described(folder: Path, classes: dict[int, str] = CLASSES, **keys: Any) -> str:
    """A YAML file of three classes and the demo model's network; its path."""
    path = folder / "own.yaml"
    lines = ["name: own", "like: isnet_demo", "images: photos", f"classes: {classes}"]
    path.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in keys.items())]))
    return str(path)


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Tensor]:
    return ISNet(recipe(described(tmp_path)).architecture).state_dict()


@pytest.fixture
def checkpoint(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    path = tmp_path / "own.pth"
    save_checkpoint(path, weights, recipe="own", classes=Classes.of(recipe(described(tmp_path))).entry())
    return path


def test_the_same_classes_are_taken(tmp_path: Path, checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint, described(tmp_path, ignore="[3]"))
    assert loaded.recipe.labels.names == tuple(CLASSES.values())
    assert any("noted in the file" in note for note in loaded.notes)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "order": ({"classes": {0: "ground", 7: "crack", 9: "tile"}}, "class 1 is 'tile' in the checkpoint, 'crack' in the"),
    "name": ({"classes": {0: "ground", 7: "tiles", 9: "crack"}}, "class 1 is 'tile' in the checkpoint, 'tiles' in the"),
    "number": (
        {"classes": {**CLASSES, 4: "joint"}},
        "3 classes in the checkpoint (ground, tile, crack), 4 in the recipe",
    ),
    "colour": (
        {"palette": "['#000000', '#010203', '#008000']"},
        "the colour of 'tile' is (128, 0, 0) in the checkpoint",
    ),
    "value": (
        {"classes": {0: "ground", 8: "tile", 9: "crack"}},
        "label value 7 is 'tile' in the checkpoint, no class in",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_classes_are_refused(tmp_path: Path, checkpoint: Path, change: str) -> None:
    changes, message = CHANGES[change]
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        load_checkpoint(checkpoint, described(tmp_path, **changes))
    assert str(checkpoint) in str(caught.value)
    assert "own.yaml" in str(caught.value)


def test_build_refuses_them_and_writes_nothing(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = described(tmp_path, {0: "ground", 7: "crack", 9: "tile"})
    arguments = ["--ckpt", str(checkpoint), "--recipe", file, "--out", str(tmp_path / "bundle")]
    assert cli.run(build.main, [*arguments, "--engine", "onnxruntime"]) == cli.ERROR
    assert "'tile' in the checkpoint, 'crack' in the recipe" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.pth", "own.yaml"]


def test_a_checkpoint_without_classes_is_taken_and_said_so(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    for classes in (None, ["a", "b"], {"names": "of another tool"}):
        torch.save({"model": weights, "classes": classes}, tmp_path / "old.pth")
        loaded = load_checkpoint(tmp_path / "old.pth", described(tmp_path))
        (note,) = [note for note in loaded.notes if "class names" in note]
        assert "taken from" in note
        assert "own.yaml: the file notes none" in note
        assert loaded.recipe.labels.names == tuple(CLASSES.values())


@pytest.mark.parametrize("bad", [{"names": [1]}, {"palette": [[0, 0, 0]]}, {"values": {"x": 1}}, {"names": "abc"}])
def test_damaged_classes(tmp_path: Path, weights: dict[str, Tensor], bad: dict[str, Any]) -> None:
    entry = Classes.of(recipe(described(tmp_path))).entry() | bad
    torch.save({"model": weights, "classes": entry}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError, match=r"bad\.pth is damaged: its entry 'classes'"):
        load_checkpoint(tmp_path / "bad.pth", described(tmp_path))


@pytest.mark.parametrize("name", list(RECIPES))
def test_published_classes_survive_being_noted(name: str, tmp_path: Path) -> None:
    classes = Classes.of(RECIPES[name])
    torch.save(classes.entry(), tmp_path / "entry.pth")
    again = Classes.noted({"classes": torch.load(tmp_path / "entry.pth", weights_only=True)}, tmp_path)
    assert again == classes
    assert again is not None
    again.check(RECIPES[name], tmp_path)


def test_init_leaves_classifiers_of_other_classes_out(checkpoint: Path, tmp_path: Path) -> None:
    model = ISNet(recipe(described(tmp_path)).architecture)
    assert load_matching(model, checkpoint, tuple(CLASSES.values())).random == ()
    report = load_matching(model, checkpoint, ("ground", "crack", "tile"))
    assert set(report.random) == {"decoder_stage1.4", "decoder_stage2.4", "auxiliary_decoder.4"}
    assert {why for _, why in report.left_out} == {"other classes, or in another order"}


# A run that goes on


def trainer(out: Path, model: Recipe = TINY, **options: Any) -> Trainer:
    return Trainer(model, dataclasses.replace(Options(out, epochs=2, batch=2, workers=0), **options), data())


def swapped(model: Recipe) -> Recipe:
    names, palette = list(model.labels.names), list(model.labels.palette)
    names[1], names[2] = names[2], names[1]
    return dataclasses.replace(model, labels=Labels(tuple(names), tuple(palette), model.labels.flip_pairs))


def fewer(model: Recipe) -> Recipe:
    labels = Labels(model.labels.names[:4], model.labels.palette[:4])
    architecture = dataclasses.replace(model.architecture, num_classes=4)
    return dataclasses.replace(model, labels=labels, architecture=architecture)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after its first epoch."""
    folder = tmp_path_factory.mktemp("run")
    trainer(folder, stop_after=4, val_limit=1).run()
    return folder


def test_resume_refuses_other_classes_and_touches_nothing(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert len(before) >= 3
    names = TINY.labels.names
    with pytest.raises(CheckpointError, match=f"class 1 is {names[1]!r} in the checkpoint, {names[2]!r} in the recipe"):
        trainer(run, swapped(TINY)).resume()
    with pytest.raises(CheckpointError, match=f"{len(names)} classes in the checkpoint .*, 4 in the recipe"):
        trainer(run, fewer(TINY)).resume()
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    trainer(run).resume()


def changed(run: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of the run's state with a change."""
    state = torch.load(run / LATEST, weights_only=True)
    content = change(state)
    torch.save(state if content is None else content, folder / LATEST)
    return folder


def test_resume_of_a_state_without_classes(run: Path, tmp_path: Path) -> None:
    folder = changed(run, tmp_path, lambda state: state.pop("classes") and None)
    trainer(folder).resume()
    with pytest.raises(CheckpointError, match=r"trained on 9 classes, the recipe tiny has 4: .*--init"):
        trainer(folder, fewer(TINY)).resume()


DAMAGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda s: [1],
    "no model": lambda s: s.update(model=None),
    "weights of the wrong type": lambda s: s["model"].update({"bottleneck.1.bias": torch.ones(8, dtype=torch.int64)}),
    "NaN": lambda s: s["model"]["bottleneck.1.bias"].fill_(torch.nan),
    "no iteration": lambda s: s.update(cur_iter="4"),
    "a negative iteration": lambda s: s.update(cur_iter=-1),
    "no optimiser": lambda s: s.update(optimizer=[]),
    "no parameter groups": lambda s: s["optimizer"].update(param_groups=[]),
    "a rate that is no number": lambda s: s["optimizer"]["param_groups"][0].update(momentum="0.9"),
    "momentum of another shape": lambda s: s["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(2)),
    "momentum that is NaN": lambda s: s["optimizer"]["state"][0]["momentum_buffer"].fill_(torch.nan),
    "state of no parameter": lambda s: s["optimizer"]["state"].update({9999: {}}),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_state_that_cannot_be_continued(run: Path, tmp_path: Path, damage: str) -> None:
    folder = changed(run, tmp_path, DAMAGED[damage])
    fresh = trainer(folder)
    before = {name: tensor.clone() for name, tensor in fresh.model.state_dict().items()}
    with pytest.raises(CheckpointError, match=LATEST):
        fresh.resume()
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.model.state_dict().items())
    assert fresh.iteration == 0
