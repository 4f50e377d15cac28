"""States of earlier runs that are spoilt in one part: refused with what to do, and the trainer is as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import TINY, data

from isnet_trt.errors import CheckpointError
from isnet_trt.training.run_folder import LATEST, MID_EPOCH
from isnet_trt.training.trainer import Options, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
State = dict[str, Any]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, State]:
    """A run with loss scaling that ended in its second epoch, and its state."""
    run = Trainer(
        TINY, Options(tmp_path_factory.mktemp("run"), 2, 2, seed=5, workers=0, amp="fp16", stop_after=5), data()
    )
    run.run()
    return run, torch.load(run.files.latest, weights_only=True)


def first(state: State) -> State:
    return state["optimizer"]["state"][0]


def group(state: State) -> State:
    return state["optimizer"]["param_groups"][0]


def spoil(state: Any, *names: str | int, value: Any) -> None:
    for name in names[:-1]:
        state = state[name]
    state[names[-1]] = value


CASES: dict[str, tuple[Callable[[State], Any], str]] = {
    "no weights": (lambda s: s.pop("model"), "'model' is no state dict"),
    "weights as a list": (lambda s: spoil(s, "model", value=[1, 2]), "'model' is no state dict"),
    "a number among the weights": (lambda s: spoil(s, "model", "decoder_stage2.4.bias", value=3.5), "no state dict"),
    "an infinite weight": (lambda s: s["model"]["decoder_stage2.4.bias"].fill_(math.inf), "infinite values"),
    "no iteration": (lambda s: s.pop("cur_iter"), "'cur_iter' is None"),
    "an iteration as text": (lambda s: spoil(s, "cur_iter", value="5"), "'cur_iter' is '5'"),
    "half an iteration": (lambda s: spoil(s, "cur_iter", value=5.5), r"'cur_iter' is 5\.5"),
    "true for an iteration": (lambda s: spoil(s, "cur_iter", value=True), "'cur_iter' is True"),
    "a negative iteration": (lambda s: spoil(s, "cur_iter", value=-5), "'cur_iter' is -5"),
    "an iteration of another epoch": (
        lambda s: spoil(s, "cur_iter", value=9),
        "but 9 iterations are 2 epochs",
    ),
    "an epoch as a list": (lambda s: spoil(s, "cur_epoch", value=[1]), r"'cur_epoch' is \[1\]"),
    "no optimiser": (lambda s: s.pop("optimizer"), "'optimizer' is no optimiser's state"),
    "an optimiser as a list": (lambda s: spoil(s, "optimizer", value=[]), "'optimizer' is no"),
    "an optimiser without groups": (lambda s: s["optimizer"].pop("param_groups"), "'optimizer' is no"),
    "a parameter too few": (lambda s: group(s)["params"].pop(), "other parameters"),
    "parameters as a tensor": (lambda s: spoil(group(s), "params", value=torch.zeros(3)), "other parameters"),
    "tensors as parameters": (lambda s: spoil(group(s)["params"], 0, value=torch.zeros(3)), "other parameters"),
    "a switch as text": (lambda s: spoil(group(s), "foreach", value="no"), "optimiser's foreach cannot"),
    "momentum as text": (lambda s: spoil(group(s), "momentum", value="0.9"), "optimiser's momentum cannot"),
    "no momentum": (lambda s: group(s).pop("momentum"), "optimiser's momentum cannot"),
    "a decay that is NaN": (lambda s: spoil(group(s), "weight_decay", value=math.nan), "weight_decay cannot"),
    "ascent": (lambda s: spoil(group(s), "maximize", value=True), "maximize cannot"),
    "a buffer cut off": (lambda s: s["optimizer"]["state"].popitem(), "of .* parameters"),
    "a buffer of another shape": (lambda s: spoil(first(s), "momentum_buffer", value=torch.zeros(3)), "parameter 0"),
    "a buffer as text": (lambda s: spoil(first(s), "momentum_buffer", value="zero"), "parameter 0"),
    "a buffer with NaN": (lambda s: first(s)["momentum_buffer"].fill_(math.nan), "parameter 0"),
    "a scaler as a list": (lambda s: spoil(s, "grad_scaler", value=[2.0]), "'grad_scaler' is no state"),
    "a scaler without its scale": (lambda s: s["grad_scaler"].pop("scale"), "'grad_scaler' is no state"),
    "a scale of 0": (lambda s: spoil(s, "grad_scaler", "scale", value=0.0), "scaler's scale"),
    "a scale as text": (lambda s: spoil(s, "grad_scaler", "scale", value="65536"), "scaler's scale"),
    "rows as text": (lambda s: spoil(s, "rows", value={"epochs": "1"}), "'rows' is"),
    "rows as a number": (lambda s: spoil(s, "rows", value=7), "'rows' is 7"),
    "the seed as a tensor": (lambda s: spoil(s, "seed", value=torch.tensor([5, 5])), "with seed tensor"),
    "true for a batch": (lambda s: spoil(s, "batch", value=2.0), r"with batch 2\.0"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_part_that_cannot_be_used(case: str, stopped: tuple[Trainer, State], tmp_path: Path) -> None:
    change, message = CASES[case]
    run, _ = stopped
    state = torch.load(run.files.latest, weights_only=True)
    change(state)
    torch.save(state, tmp_path / LATEST)
    refused(run, tmp_path, message)


@pytest.mark.parametrize(
    "content", [[1, 2], "text", 7, {}, {"model": {}}, {1: 2}, [{"model": torch.zeros(3)}], torch.zeros(2), None]
)
def test_content_that_is_no_state(content: Any, stopped: tuple[Trainer, State], tmp_path: Path) -> None:
    torch.save(content, tmp_path / LATEST)
    refused(stopped[0], tmp_path, r"cannot be read|was trained with")


def refused(run: Trainer, folder: Path, message: str) -> None:
    """The run, moved to ``folder``, refuses the state there and keeps its own."""
    files, before = run.files, {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.files = type(files)(folder)
    try:
        with pytest.raises(CheckpointError, match=message) as raised:
            run.resume()
    finally:
        run.files = files
    assert str(folder / LATEST) in str(raised.value)
    assert run.iteration == 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())


def test_the_message_names_the_checkpoint_to_go_on_from(stopped: tuple[Trainer, State], tmp_path: Path) -> None:
    run, state = stopped
    for name, content in (("checkpoints-epoch-1.pth", state), (MID_EPOCH, {**state, "cur_iter": None})):
        torch.save(content, tmp_path / name)
    (tmp_path / LATEST).symlink_to(MID_EPOCH)
    refused(run, tmp_path, r"Nothing was changed; go on from an earlier one \(ln -sfn checkpoints-epoch-1\.pth")
    (tmp_path / MID_EPOCH).write_bytes(b"PK\x03\x04 cut off")
    refused(run, tmp_path, r"damaged.*ln -sfn checkpoints-epoch-1\.pth")


def test_states_without_the_newer_entries_are_taken(stopped: tuple[Trainer, State], tmp_path: Path) -> None:
    run, state = stopped
    older = {name: value for name, value in state.items() if name not in ("rows", "classes", "grad_scaler")}
    group(older).pop("differentiable")
    torch.save(older, tmp_path / LATEST)
    files, run.files = run.files, type(run.files)(tmp_path)
    run.resume()
    run.files = files
    assert run.iteration == 5
