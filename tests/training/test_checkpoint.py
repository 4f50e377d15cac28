"""Checkpoint files: every accepted layout, and every kind of bad file refused by name and cause."""

import hashlib
import io
import os
import pickle
import zipfile
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from isnet_trt.errors import CheckpointError, SettingsError
from isnet_trt.recipes import RECIPES
from isnet_trt.training import checkpoint as module
from isnet_trt.training.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint
from isnet_trt.training.fit import expected
from isnet_trt.training.model import ISNet

DEMO = RECIPES["isnet_demo"]
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> ISNet:
    torch.manual_seed(1)
    return ISNet(DEMO.architecture).eval()


@pytest.fixture
def state(model: ISNet) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def saved(folder: Path, content: Any) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path)
    return path


def same(loaded: Checkpoint, state: State) -> bool:
    return list(loaded.state_dict) == list(state) and all(torch.equal(loaded.state_dict[n], state[n]) for n in state)


def refusal(path: Path, recipe: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, recipe)
    assert path.name in str(caught.value)
    assert "weights_only" not in str(caught.value)
    return str(caught.value)


# Layouts that are accepted


def test_published_layout(tmp_path: Path, state: State) -> None:
    momentum = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    path = saved(tmp_path, {"cur_epoch": 3, "cur_iter": 40, "optimizer": momentum, "model": state})
    loaded = load_checkpoint(path)
    assert loaded.recipe is DEMO
    assert same(loaded, state)
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.notes[0] == "left out beside the weights: cur_epoch, cur_iter, optimizer"
    assert "recipe isnet_demo found" in loaded.notes[1]
    assert "9 classes" in loaded.notes[1]


def test_bare_state_dict_with_prefix(tmp_path: Path, state: State) -> None:
    loaded = load_checkpoint(saved(tmp_path, {f"module.{name}": tensor for name, tensor in state.items()}))
    assert same(loaded, state)
    assert "'module.'" in loaded.notes[0]


def test_parameters_and_any_order(tmp_path: Path, model: ISNet, state: State) -> None:
    shuffled = dict(sorted(model.state_dict(keep_vars=True).items()))
    assert same(load_checkpoint(saved(tmp_path, {"state_dict": shuffled}), "isnet_demo"), state)


def test_missing_batch_counters_become_zero(tmp_path: Path, state: State) -> None:
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    loaded = load_checkpoint(saved(tmp_path, kept))
    assert same(loaded, state)
    assert any(f"{len(state) - len(kept)} missing batch counters" in note for note in loaded.notes)


def test_missing_auxiliary_head(tmp_path: Path, model: ISNet, state: State) -> None:
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("auxiliary_decoder.")}
    loaded = load_checkpoint(saved(tmp_path, kept))
    assert same(loaded, kept)
    assert any("auxiliary head is missing" in note for note in loaded.notes)
    x = torch.randn(1, 3, 33, 41)
    with torch.no_grad():
        assert torch.equal(load_model(loaded)(x), model(x))


def test_half_precision_is_converted_and_said(tmp_path: Path, state: State) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    loaded = load_checkpoint(saved(tmp_path, {"model": half}))
    assert {t.dtype for t in loaded.state_dict.values()} == {torch.float32, torch.int64}
    assert torch.equal(loaded.state_dict["bottleneck.0.weight"], half["bottleneck.0.weight"].float())
    assert any("torch.float16" in note for note in loaded.notes)


def test_model_does_not_share_memory_with_the_checkpoint(tmp_path: Path, model: ISNet, state: State) -> None:
    loaded = load_checkpoint(saved(tmp_path, {"model": state}), DEMO)
    net = load_model(loaded)
    assert not net.training
    assert all(p.requires_grad for p in net.parameters())
    net.bottleneck[0].weight.data.zero_()
    assert same(loaded, state)


def test_weights_stay_when_the_file_is_overwritten(tmp_path: Path, state: State) -> None:
    path = saved(tmp_path, {"model": state})
    loaded = load_checkpoint(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert same(loaded, state)


def test_dangling_link_of_a_trainer(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run" / "out"
    folder.mkdir(parents=True)
    path = saved(folder, {"model": state})
    link = folder / "latest.pth"
    link.symlink_to(Path("out") / path.name)
    loaded = load_checkpoint(link)
    assert loaded.path == path
    assert str(path) in loaded.notes[0]
    monkeypatch.chdir(tmp_path / "run")
    path.rename(folder / "other.pth")
    assert "link" in refusal(link)


def test_file_format_of_old_torch(tmp_path: Path, state: State) -> None:
    path = tmp_path / "old.pth"
    torch.save({"model": state}, path, _use_new_zipfile_serialization=False)
    assert same(load_checkpoint(path), state)


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipe_is_found_from_the_content(name: str) -> None:
    compared = module.fits(expected(RECIPES[name].architecture))
    assert [fit.recipe.name for fit in compared if not fit.differences.count] == [name]


# Contents that do not fit


def test_recipe_noted_by_the_trainer(tmp_path: Path, state: State) -> None:
    torch.save({"model": state, "recipe": "isnet_demo"}, tmp_path / "noted.pth")
    loaded = load_checkpoint(tmp_path / "noted.pth")
    assert loaded.recipe.name == "isnet_demo"
    assert "recipe isnet_demo, as noted in the file" in loaded.notes


def test_described_recipe_is_not_taken_for_a_published_one(tmp_path: Path, state: State) -> None:
    torch.save({"model": state, "recipe": "tiles"}, tmp_path / "tiles.pth")
    with pytest.raises(CheckpointError, match=r"'tiles'.*--recipe FILE.yaml"):
        load_checkpoint(tmp_path / "tiles.pth")
    assert load_checkpoint(tmp_path / "tiles.pth", "isnet_demo").recipe.name == "isnet_demo"


def test_wrong_recipe_lists_names_and_the_one_that_fits(tmp_path: Path, state: State) -> None:
    text = refusal(saved(tmp_path, {"model": state}), "isnet_resnet50os8_ade20k")
    assert "missing: backbone_net.layer1.1.conv1.weight, " in text
    assert "unexpected: shortcut.0.weight, " in text
    assert "backbone_net.stem.0.weight [16, 3, 3, 3] instead of [32, 3, 3, 3]" in text
    assert text.endswith("It fits isnet_demo: use that recipe, or name none.")
    assert len(text) < 3000


def test_unknown_recipe_name(tmp_path: Path, state: State) -> None:
    with pytest.raises(SettingsError, match="isnet_demo"):
        load_checkpoint(saved(tmp_path, state), "isnet_resnet18")


def test_missing_and_foreign_entries_are_named(tmp_path: Path, state: State) -> None:
    del state["ilc_net.bottleneck.0.weight"]
    state["head.weight"] = torch.zeros(2)
    for recipe in (None, "isnet_demo"):
        text = refusal(saved(tmp_path, {"model": state}), recipe)
        assert "1 missing: ilc_net.bottleneck.0.weight" in text
        assert "1 unexpected: head.weight" in text


def test_part_of_the_auxiliary_head_is_not_enough(tmp_path: Path, state: State) -> None:
    del state["auxiliary_decoder.4.bias"]
    assert "1 missing: auxiliary_decoder.4.bias" in refusal(saved(tmp_path, state))


def test_other_number_of_classes_names_the_nearest_recipe(tmp_path: Path) -> None:
    shapes = dict(expected(RECIPES["isnet_resnet50os8_cityscapes"].architecture))
    state = {}
    for name, shape in shapes.items():
        shape = (21, *shape[1:]) if shape[:1] == (19,) else shape
        # One stored number seen through the whole shape: the file stays small.
        state[name] = torch.zeros((), dtype=torch.int64 if "tracked" in name else torch.float32).expand(shape)
    text = refusal(saved(tmp_path, {"model": state}))
    assert "fits no recipe" in text
    assert "isnet_resnet50os8_cityscapes (19 classes)" in text
    assert "decoder_stage1.4.weight [21, 512, 1, 1] instead of [19, 512, 1, 1]" in text


def test_weights_of_another_network(tmp_path: Path) -> None:
    text = refusal(saved(tmp_path, {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}))
    assert "none of its 2 entries belongs to an ISNet" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [*(("slc_net.bottleneck.1.bias", value) for value in (nan, inf, -inf)), ("bottleneck.1.running_var", -1e-3)],
)
def test_values_that_are_not_finite_and_negative_variances(
    tmp_path: Path, state: State, name: str, value: float
) -> None:
    state[name][7] = value
    assert name in refusal(saved(tmp_path, state))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ([[["nested"], [1, 2]], []], "a list"),
        ({}, "empty"),
        ({"model": {}}, "empty"),
        ({"model": [torch.zeros(2)]}, "a list"),
        ({"model": None}, "a NoneType"),
        ({"epoch": 3, "lr": 0.1}, "'epoch' (a int)"),
        ({3: torch.zeros(2)}, "3 (a Tensor)"),
        ({"model": {"bottleneck.0.weight": [[1.0]]}}, "'bottleneck.0.weight' (a list)"),
        (torch.zeros(3), "a Tensor"),
        ("weights", "a str"),
    ],
)
def test_containers_without_weights(tmp_path: Path, content: Any, cause: str) -> None:
    assert cause in refusal(saved(tmp_path, content))


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, dtype=torch.int32), torch.zeros(2).to_sparse(), torch.zeros(2, dtype=torch.complex64)],
    ids=["integer", "sparse", "complex"],
)
def test_tensors_that_are_no_weights(tmp_path: Path, state: State, tensor: Tensor) -> None:
    state["bottleneck.1.bias"] = tensor
    assert "bottleneck.1.bias" in refusal(saved(tmp_path, state))


# Files that are no checkpoints


class Trap:
    """Unpickled in the ordinary way, this makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["raw", "old", "zip"])
def test_a_pickle_that_would_run_code_does_not(tmp_path: Path, state: State, form: str) -> None:
    path, marker = tmp_path / "trap.pth", tmp_path / "marker"
    content = {"model": state, "extra": Trap(marker)}
    if form == "raw":
        path.write_bytes(pickle.dumps({"extra": Trap(marker)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    assert ("nothing of it was run" if form == "raw" else f"Python object ({os.mkdir.__module__}.mkdir)") in refusal(
        path
    )
    assert not marker.exists()
    torch.load(path, weights_only=False) if form != "raw" else pickle.loads(path.read_bytes())
    assert marker.exists(), "the trap would not have worked anyway"


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
@pytest.mark.parametrize("new_format", [True, False])
def test_truncated(tmp_path: Path, state: State, keep: float, new_format: bool) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"model": state}, path, _use_new_zipfile_serialization=new_format)
    os.truncate(path, int(path.stat().st_size * keep))
    assert "copy or download it again" in refusal(path)


def zip_of_text() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "no weights here")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "is empty"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(500), "not a PyTorch checkpoint"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a pointer of Git LFS, not the checkpoint itself; run git lfs",
        ),
        (b"\x80", "not a PyTorch checkpoint"),
        (b"\x80\x01" + bytes(100), "not a PyTorch checkpoint"),
        (b"\x80\x06" + bytes(100), "not a PyTorch checkpoint"),
        (b"PK and more text", "not a PyTorch checkpoint"),
        (b"\x80\x02" + bytes(100), "is damaged, incomplete or no PyTorch checkpoint"),
        (zip_of_text(), "is damaged, incomplete or no PyTorch checkpoint"),
    ],
    ids=["empty", "jpeg", "text", "byte", "old pickle", "new pickle", "pk", "garbage", "zip"],
)
def test_foreign_files(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "foreign.pth"
    path.write_bytes(content)
    assert cause in refusal(path)


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent.pth")
    (tmp_path / "folder.pth").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.pth")


# Saving


def test_saved_and_loaded_again(tmp_path: Path, model: ISNet, state: State) -> None:
    path = tmp_path / "new.pth"
    save_checkpoint(path, {f"module.{name}": tensor for name, tensor in state.items()}, cur_epoch=4)
    assert set(torch.load(path, weights_only=True)) == {"model", "cur_epoch"}
    loaded = load_checkpoint(path)
    assert same(loaded, state)
    x = torch.randn(2, 3, 35, 50)
    with torch.no_grad():
        assert torch.equal(load_model(loaded)(x), model(x))
    assert [p.name for p in tmp_path.iterdir()] == ["new.pth"]


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path: Path, state: State) -> None:
    path = tmp_path / "kept.pth"
    save_checkpoint(path, state)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"kept\.pth holds a Python object"):
        save_checkpoint(path, state, path=Path("somewhere"))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["kept.pth"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_save_leaves_the_old_file(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "kept.pth"
    save_checkpoint(path, state)
    before = path.read_bytes()

    def fail(_descriptor: int) -> None:
        raise error

    monkeypatch.setattr(module.os, "fsync", fail)
    with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt, match=r"space|^$"):
        save_checkpoint(path, state)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["kept.pth"]
