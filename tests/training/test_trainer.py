"""The trainer on a tiny network and tiny scenes: it learns, resumes bit for bit, and stops cleanly."""

from __future__ import annotations

import csv
import dataclasses
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isnet_trt.errors import CheckpointError, SettingsError, TrainingError
from isnet_trt.training import train, trainer
from isnet_trt.training.architecture import Architecture, Backbone
from isnet_trt.training.checkpoint import load_checkpoint, load_model
from isnet_trt.training.data.scenes import EpochSampler, SceneSet, scene_loader
from isnet_trt.training.recipes import RECIPES, Augmentation, recipe
from isnet_trt.training.trainer import LATEST, Options, Trainer

DEMO = recipe("isnet_demo")
TINY = dataclasses.replace(
    DEMO,
    architecture=Architecture(
        Backbone("tiny", "bottleneck", (1, 1, 1, 1), stem_width=4, width=4),
        DEMO.labels.count,
        head_channels=8,
        context_channels=8,
        shortcut_channels=8,
    ),
    crop=(40, 56),
    augmentation=Augmentation((128, 64), (0.8, 1.2)),
)
SCENES = SceneSet(count=4, size=(64, 128), repeats=2)


@pytest.fixture(autouse=True)
def _few_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def options(out: Path, **changes: Any) -> Options:
    return dataclasses.replace(Options(out, epochs=2, batch=2, seed=5, workers=0, scenes=SCENES, held_out=2), **changes)


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_run_learns_and_leaves_logs_and_checkpoints(tmp_path: Path) -> None:
    run = Trainer(TINY, options(tmp_path, epochs=8))
    assert run.run()
    losses = [float(row[3]) for row in rows(tmp_path / "iterations.csv")[1:]]
    assert losses[-1] < 0.9 * losses[0]
    epochs = rows(tmp_path / "epochs.csv")
    assert epochs[0][4:] == list(TINY.labels.names)
    assert [row[:2] for row in epochs[1:]] == [[str(4 * e), str(e)] for e in range(1, 9)]
    assert (tmp_path / LATEST).resolve().name == "checkpoints-epoch-8.pth"
    state = torch.load(tmp_path / LATEST, weights_only=True)
    assert (state["cur_epoch"], state["cur_iter"]) == (8, 32)
    assert set(state["model"]) == set(run.model.state_dict())


def test_the_checkpoint_can_be_loaded_like_a_released_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Trainer(TINY, options(tmp_path, stop_after=2))
    run.run()
    monkeypatch.setitem(RECIPES, TINY.name, TINY)
    loaded = load_model(load_checkpoint(tmp_path / LATEST, TINY))
    x = torch.rand(1, 3, 33, 47)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), run.model.eval()(x), rtol=1e-5, atol=1e-5)  # float32


@pytest.mark.parametrize("stop", [4, 5])
def test_a_resumed_run_gives_the_same_weights_to_the_bit(tmp_path: Path, stop: int) -> None:
    whole = Trainer(TINY, options(tmp_path / "whole"))
    whole.run()
    Trainer(TINY, options(tmp_path / "parts", stop_after=stop)).run()
    second = Trainer(TINY, options(tmp_path / "parts"))
    second.resume()
    assert second.iteration == stop
    second.run()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    assert rows(tmp_path / "whole" / "epochs.csv") == rows(tmp_path / "parts" / "epochs.csv")


def test_workers_change_nothing(tmp_path: Path) -> None:
    batches = []
    for workers in (0, 2):
        loader, sampler = scene_loader(TINY, SCENES, 2, seed=3, workers=workers)
        for epoch in (1, 2):
            sampler.epoch = epoch
            batches.append([(x.clone(), y.clone()) for x, y in loader])
    for plain, forked in zip(batches[:2], batches[2:], strict=True):
        for (x, y), (x2, y2) in zip(plain, forked, strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)
    assert not torch.equal(batches[0][0][0], batches[1][0][0])


def test_each_epoch_has_its_own_order_and_drops_the_last_partial_batch() -> None:
    sampler = EpochSampler(items=11, batch=3, seed=1)
    orders = []
    for sampler.epoch in (1, 2):
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [3, 3, 3]
        orders.append([index for batch in batches for _, index in batch])
        assert len(set(orders[-1])) == 9
    assert orders[0] != orders[1]
    sampler.skip = 2
    assert [index for batch in sampler for _, index in batch] == orders[1][6:]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    run = Trainer(TINY, options(tmp_path))
    real = trainer.losses

    def spoilt(*args: Any) -> Any:
        step = real(*args)
        return step._replace(total=step.total * value) if run.iteration == 6 else step

    monkeypatch.setattr(trainer, "losses", spoilt)
    with pytest.raises(TrainingError, match=r"at iteration 6 .*checkpoints-epoch-latest"):
        run.run()
    state = torch.load(tmp_path / LATEST, weights_only=True)
    assert state["cur_iter"] == 4
    assert all(torch.isfinite(t).all() for t in state["model"].values() if t.is_floating_point())


def test_ctrl_c_saves_and_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run = Trainer(TINY, options(tmp_path))
    step = run._step

    def pressed(*args: Any) -> Any:
        if run.iteration == 5:
            signal.raise_signal(signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(run, "_step", pressed)
    assert not run.run()
    assert "--resume" in capsys.readouterr().out
    assert torch.load(tmp_path / LATEST, weights_only=True)["cur_iter"] == 5


def test_resume_refuses_what_does_not_belong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        Trainer(TINY, options(tmp_path)).resume()
    Trainer(TINY, options(tmp_path, stop_after=1)).run()
    with pytest.raises(CheckpointError, match="seed 5, not 6"):
        Trainer(TINY, options(tmp_path, seed=6)).resume()


def test_a_set_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="8 crops"):
        Trainer(TINY, options(tmp_path, batch=9))


def test_command_line_trains_and_refuses_other_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "tiny", dataclasses.replace(TINY, name="tiny"))
    call = ["--recipe", "tiny", "--out", str(tmp_path), "--scenes", "2", "--repeats", "1", "--batch", "2"]
    assert train.main([*call, "--epochs", "1", "--workers", "0", "--held-out", "1", "--threads", "1"]) == 0
    assert (tmp_path / LATEST).exists()
    with pytest.raises(SettingsError, match="ade20k"):
        train.main(["--recipe", "isnet_resnet50os8_ade20k", "--out", str(tmp_path)])


def test_bfloat16_stays_close_to_float32(tmp_path: Path) -> None:
    totals = []
    for amp in (None, "bf16"):
        run = Trainer(TINY, options(tmp_path, amp=amp))
        x, labels = next(iter(run.loader))
        totals.append(run._step(x, labels, 0.01).total.item())
    np.testing.assert_allclose(totals[0], totals[1], rtol=0.02)  # bfloat16 carries 8 bits
