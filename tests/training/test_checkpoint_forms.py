"""Checkpoints as people have them: each form gives the weights of the plain one, or says what to do."""

from __future__ import annotations

import argparse
import collections
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from isnet_trt.errors import CheckpointError
from isnet_trt.recipes import RECIPES
from isnet_trt.training.checkpoint import Checkpoint, load_checkpoint, read_state
from isnet_trt.training.model import ISNet

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> ISNet:
    torch.manual_seed(2)
    return ISNet(RECIPES["isnet_demo"].architecture).eval()


@pytest.fixture(scope="module")
def state(model: ISNet) -> State:
    return dict(model.state_dict())


@pytest.fixture(scope="module")
def other(state: State) -> State:
    """Averaged weights, told from the plain ones by their values."""
    return {name: tensor * 0.5 if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def load(folder: Path, content: Any, weights: Any = "plain", **options: Any) -> Checkpoint:
    path = folder / "weights.pth"
    torch.save(content, path, **options)
    return load_checkpoint(path, "isnet_demo", weights)


def assert_same(loaded: Checkpoint, state: State) -> None:
    assert list(loaded.state_dict) == list(state)
    for name, tensor in state.items():
        assert torch.equal(loaded.state_dict[name], tensor), name


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPED: dict[str, Callable[[State], Any]] = {
    "torch.compile": lambda s: {"model": prefixed(s, "_orig_mod.")},
    "compiled within DataParallel": lambda s: prefixed(s, "module._orig_mod."),
    "DataParallel within compile": lambda s: prefixed(s, "_orig_mod.module."),
    "Lightning": lambda s: {
        "epoch": 3,
        "pytorch-lightning_version": "2.5",
        "callbacks": {"EarlyStopping{'monitor': 'x'}": {"best_score": torch.tensor(0.5)}},
        "hyper_parameters": argparse.Namespace(lr=0.1),
        "state_dict": {**prefixed(s, "model."), "criterion.weight": torch.ones(9)},
    },
    "name beside the state dict": lambda s: {"model": "isnet_r50", "state_dict": s},
    "settings beside the state dict": lambda s: {"model": {"type": "ISNet"}, "state_dict": s},
    "a container in a container": lambda s: {"state": 3, "model": {"state_dict": s, "version": 2}},
    "other container": lambda s: {"model_state_dict": s, "optimizer_state_dict": {}},
    "numpy numbers beside": lambda s: {"model": s, "miou": np.float64(0.5), "n": np.int32(3), "best": np.array([1.0])},
    "numbers between": lambda s: {**s, "epoch": 3, "miou": np.float32(0.5), "arch": "isnet"},
    "containers of the standard library": lambda s: {
        "state_dict": collections.OrderedDict(s),
        "counts": collections.Counter("abca"),
        "lists": collections.defaultdict(list, {"x": [1]}),
        "set": {1, 2},
        "bytes": b"\x00\xff",
        "array": bytearray(b"ab"),
        "complex": 1 + 2j,
    },
    "a thousand wrappers": lambda s: prefixed(s, "module." * 1000),
}


@pytest.mark.parametrize("form", WRAPPED)
def test_weights_of_every_form_are_those_of_the_plain_one(tmp_path: Path, state: State, form: str) -> None:
    protocol = 2 + 2 * (len(form) % 2)
    assert_same(load(tmp_path, WRAPPED[form](state), pickle_protocol=protocol), state)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_in_both_file_formats(tmp_path: Path, state: State, zipped: bool, protocol: int) -> None:
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    assert_same(load(tmp_path, {"model": state, "epoch": 1}, **options), state)


def test_objects_of_training_tools_beside_the_weights(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmengine keeps its message hub in the file: objects of its own, with bound methods that pickle as getattr."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    made: list[Any] = []

    class HistoryBuffer:
        def __init__(self) -> None:
            self.history, self.method = np.arange(3.0), "abc".upper

        def __setstate__(self, values: dict[str, Any]) -> None:
            made.append(values)

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    content = {"meta": {"epoch": 3}, "state_dict": state, "message_hub": {"log_scalars": {"loss": HistoryBuffer()}}}
    assert_same(load(tmp_path, content), state)
    assert not made
    torch.load(tmp_path / "weights.pth", weights_only=False)
    assert made, "it would have been made"


def test_averaged_model_of_torch(tmp_path: Path, model: ISNet, state: State) -> None:
    content = AveragedModel(model).state_dict()
    assert "n_averaged" in content
    for weights in ("plain", "ema"):  # there is nothing but the average in it
        loaded = load(tmp_path, {"model": content}, weights)
        assert_same(loaded, state)
        assert any("n_averaged" in note for note in loaded.notes)


AVERAGED: dict[str, Callable[[State, State], Any]] = {
    "mmcv": lambda s, o: {"state_dict": {**s, **{"ema_" + n.replace(".", "_"): t for n, t in o.items()}}},
    "with dots": lambda s, o: {"model": {**s, **prefixed(o, "ema_")}},
    "wrapped": lambda s, o: {**prefixed(s, "module."), **prefixed(o, "module.ema_")},
    "before the wrapper": lambda s, o: {**prefixed(s, "module."), **prefixed(o, "ema_module.")},
    "a container of its own": lambda s, o: {"state_dict": s, "ema_state_dict": {**prefixed(o, "module."), "steps": 3}},
    "timm": lambda s, o: {"arch": "isnet", "state_dict": s, "state_dict_ema": o},
    "Lightning": lambda s, o: {"state_dict": {**prefixed(s, "model."), **prefixed(o, "ema_model.module.")}},
    "mmengine, which exchanges them": lambda s, o: {
        "meta": {"mmengine_version": "0.10"},
        "state_dict": o,
        "ema_state_dict": prefixed(s, "module."),
    },
}


@pytest.mark.parametrize("form", AVERAGED)
def test_averaged_copies(tmp_path: Path, state: State, other: State, form: str) -> None:
    content = AVERAGED[form](state, other)
    assert_same(load(tmp_path, content, "ema"), other)
    plain = load(tmp_path, content)
    assert_same(plain, other if "exchanges" in form else state)


def test_parameters_without_a_copy_keep_their_values(tmp_path: Path, state: State, other: State) -> None:
    copies = {f"ema_{name}": tensor for name, tensor in other.items() if "running" not in name}
    loaded = load(tmp_path, {"model": {**state, **copies}}, "ema")
    assert_same(loaded, {name: state[name] if "running" in name else other[name] for name in state})
    assert any("have no average" in note for note in loaded.notes)


def test_no_average_there(tmp_path: Path, state: State) -> None:
    with pytest.raises(CheckpointError, match=r"weights\.pth holds no averaged weights.*leave out --weights ema"):
        load(tmp_path, {"model": state}, "ema")


def test_only_an_average_there(tmp_path: Path, state: State) -> None:
    with pytest.raises(CheckpointError, match="--weights ema takes"):
        load(tmp_path, {"ema_state_dict": state})


def test_two_networks_in_one_file(tmp_path: Path, state: State, other: State) -> None:
    with pytest.raises(CheckpointError, match=r"2 sets of weights.*'model\.'.*'net\.'"):
        load(tmp_path, {**prefixed(state, "model."), **prefixed(other, "net.")})


def test_safetensors(tmp_path: Path, state: State) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(prefixed(state, "module."), path, metadata={"format": "pt"})
    loaded = load_checkpoint(path)
    assert loaded.recipe.name == "isnet_demo"
    assert_same(loaded, state)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a damaged safetensors file"):
        load_checkpoint(path)


def test_safetensors_without_its_package(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path)
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(CheckpointError, match=r"needs the package safetensors: pip install '\.\[build\]'"):
        load_checkpoint(path)


def test_shared_and_strided_storages(tmp_path: Path, state: State) -> None:
    name = "bottleneck.0.weight"
    turned = state[name].transpose(0, 1).contiguous().transpose(0, 1)
    big = torch.cat([torch.zeros(5), state["bottleneck.1.weight"], torch.zeros(5)])
    content = {**state, name: nn.Parameter(turned), "bottleneck.1.weight": big[5:-5]}
    assert not turned.is_contiguous()
    assert_same(load(tmp_path, content), state)


def test_classes_of_ones_own_are_told_the_option(tmp_path: Path, state: State) -> None:
    content = {n: t[:4].clone() if t.shape[:1] == (9,) else t for n, t in state.items()}
    torch.save({"model": content}, tmp_path / "own.pth")
    with pytest.raises(CheckpointError, match=r"--recipe FILE\.yaml"):
        load_checkpoint(tmp_path / "own.pth")


def test_whole_state_of_a_run(tmp_path: Path) -> None:
    """Everything that torch.load gives, tensors of all types."""
    content = {
        "x": [torch.arange(5), (torch.tensor(True), torch.tensor(2.5, dtype=torch.bfloat16))],
        "empty": torch.zeros(0, 3),
        "text": "ä",
        "nested": {1: {"lr": 0.1, "none": None}},
        "wide": torch.ones(3, dtype=torch.complex64),
    }
    for zipped in (True, False):
        torch.save(content, tmp_path / "s.pth", _use_new_zipfile_serialization=zipped)
        loaded = read_state(tmp_path / "s.pth")
        expected = torch.load(tmp_path / "s.pth", weights_only=True)
        assert str(loaded) == str(expected)
        assert loaded["empty"].shape == (0, 3)
