"""The trainer on a tiny network and tiny scenes: it learns, resumes bit for bit, and stops cleanly."""

from __future__ import annotations

import dataclasses
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import CHECKOUT, run_python
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import SCENES, TINY, data, rows, without_rates
from torch import nn

from isnet_trt.errors import CheckpointError, DataError, SettingsError, TrainingError
from isnet_trt.recipes import IGNORE, RECIPES, recipe
from isnet_trt.training import train, trainer
from isnet_trt.training.checkpoint import load_checkpoint, load_model
from isnet_trt.training.run_folder import LATEST, MID_EPOCH
from isnet_trt.training.trainer import Data, Options, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def options(out: Path, **changes: Any) -> Options:
    return dataclasses.replace(Options(out, epochs=2, batch=2, seed=5, workers=0), **changes)


def trainer_of(out: Path, **changes: Any) -> Trainer:
    return Trainer(TINY, options(out, **changes), data())


def test_a_run_learns_and_leaves_logs_and_checkpoints(tmp_path: Path) -> None:
    run = trainer_of(tmp_path, epochs=8)
    assert run.run()
    losses = [float(row[3]) for row in rows(tmp_path / "iterations.csv")[1:]]
    assert losses[-1] < 0.9 * losses[0]
    epochs = rows(tmp_path / "epochs.csv")
    assert epochs[0][4:] == list(TINY.labels.names)
    assert [row[:2] for row in epochs[1:]] == [[str(4 * e), str(e)] for e in range(1, 9)]
    assert (tmp_path / LATEST).resolve().name == "checkpoints-epoch-8.pth"
    state = torch.load(tmp_path / LATEST, weights_only=True)
    assert (state["cur_epoch"], state["cur_iter"]) == (8, 32)
    assert list(state["model"]) == list(run.model.state_dict())
    assert set(state["optimizer"]) == {"state", "param_groups"}


def test_weight_decay_is_on_every_parameter(tmp_path: Path) -> None:
    run = trainer_of(tmp_path)
    (group,) = run.optimiser.param_groups
    assert len(group["params"]) == len(list(run.model.parameters()))
    assert (group["weight_decay"], group["momentum"], group["nesterov"]) == (2e-4, 0.9, False)


def test_the_checkpoint_can_be_loaded_like_a_released_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer_of(tmp_path, stop_after=2)
    run.run()
    monkeypatch.setitem(RECIPES, TINY.name, TINY)
    loaded = load_model(load_checkpoint(tmp_path / LATEST, TINY))
    x = torch.rand(1, 3, 33, 47)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), run.model.eval()(x), rtol=1e-5, atol=1e-5)  # float32


@pytest.mark.parametrize(("stop", "amp"), [(4, None), (5, None), (5, "fp16")])
def test_a_resumed_run_gives_the_same_weights_to_the_bit(tmp_path: Path, stop: int, amp: str | None) -> None:
    whole = trainer_of(tmp_path / "whole", amp=amp, save_every=5)
    whole.run()
    trainer_of(tmp_path / "parts", amp=amp, save_every=5, stop_after=stop).run()
    second = trainer_of(tmp_path / "parts", amp=amp, save_every=5)
    second.resume()
    assert second.iteration == stop
    second.run()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    assert second.scaler.state_dict() == whole.scaler.state_dict()
    assert rows(tmp_path / "whole" / "epochs.csv") == rows(tmp_path / "parts" / "epochs.csv")
    assert without_rates(tmp_path / "whole" / "iterations.csv") == without_rates(tmp_path / "parts" / "iterations.csv")


def test_tensorboard_holds_what_the_csv_files_hold(tmp_path: Path) -> None:
    trainer_of(tmp_path, stop_after=5).run()
    second = trainer_of(tmp_path)
    second.resume()
    second.run()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for tag, file, column in (("train/loss", "iterations.csv", 3), ("val/miou", "epochs.csv", 2)):
        logged = {int(row[0]): float(row[column]) for row in rows(tmp_path / file)[1:]}
        shown = {event.step: event.value for event in board.Scalars(tag)}
        assert shown == pytest.approx(logged, abs=1e-4)  # the CSV has four digits


def test_rows_after_the_checkpoint_and_torn_rows_are_dropped(tmp_path: Path) -> None:
    trainer_of(tmp_path, stop_after=4).run()
    with (tmp_path / "iterations.csv").open("a") as file:
        file.write("6,2,0.01,1,1,1,1,1\n8,2,0.0")
    second = trainer_of(tmp_path)
    second.resume()
    second.run()
    assert [row[0] for row in rows(tmp_path / "iterations.csv")] == ["iteration", "4", "8"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    run = trainer_of(tmp_path)
    real = trainer.losses

    def spoilt(*args: Any) -> Any:
        step = real(*args)
        return step._replace(total=step.total * value) if run.iteration == 6 else step

    monkeypatch.setattr(trainer, "losses", spoilt)
    with pytest.raises(TrainingError, match=r"at iteration 7 .*loss itself.*checkpoints-epoch-latest"):
        run.run()
    state = torch.load(tmp_path / LATEST, weights_only=True)
    assert state["cur_iter"] == 4
    assert all(torch.isfinite(t).all() for t in state["model"].values() if t.is_floating_point())


@pytest.mark.parametrize("where", ["backbone_net.layer2.0.conv2", "slc_net.bottleneck.0", "decoder_stage2.4"])
def test_the_module_where_nan_arises_is_named(tmp_path: Path, where: str) -> None:
    run = trainer_of(tmp_path)

    def overflow(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * math.inf if run.iteration == 2 else output

    run.model.get_submodule(where).register_forward_hook(overflow)
    with pytest.raises(TrainingError, match=rf"iteration 3 .*the output of {where}\. "):
        run.run()


def test_a_spoilt_weight_or_input_is_named(tmp_path: Path) -> None:
    run = trainer_of(tmp_path)
    x, labels = next(iter(run.loader))
    x[1, 0, 3, 5] = math.nan
    with pytest.raises(TrainingError, match=r"the input: crops \[1\]"):
        run._step(x, labels, 0.01, labels.numel())
    with torch.no_grad():
        run.model.ilc_net.bottleneck[0].weight[0, 0, 0, 0] = math.inf
    with pytest.raises(TrainingError, match=r"the weight ilc_net\.bottleneck\.0\.weight"):
        run._step(torch.zeros_like(x), labels, 0.01, labels.numel())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    run = trainer_of(tmp_path, stop_after=3)
    run.run()
    before = (tmp_path / LATEST).read_bytes()
    with torch.no_grad():
        run.model.ilc_net.bottleneck[0].weight[0, 0, 0, 0] = math.nan
    run.iteration = 4
    with pytest.raises(CheckpointError, match=r"ilc_net\.bottleneck\.0\.weight .*last good"):
        run.save()
    assert (tmp_path / LATEST).read_bytes() == before
    assert not (tmp_path / "checkpoints-epoch-1.pth").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_and_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, number: int
) -> None:
    run = trainer_of(tmp_path)
    step = run._step

    def pressed(*args: Any) -> Any:
        if run.iteration == 5:
            signal.raise_signal(number)
        return step(*args)

    before = signal.getsignal(number)
    monkeypatch.setattr(run, "_step", pressed)
    assert not run.run()
    assert "after iteration 6: saved, go on with --resume" in capsys.readouterr().out
    state = torch.load(tmp_path / MID_EPOCH, weights_only=True)
    assert (state["cur_epoch"], state["cur_iter"]) == (1, 6)
    assert signal.getsignal(number) is before


def test_scoring_that_was_interrupted_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer_of(tmp_path)
    score = run.validator.score

    def pressed(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return score(*args)

    monkeypatch.setattr(run.validator, "score", pressed)
    assert not run.run()
    assert len(rows(tmp_path / "epochs.csv")) == 1
    second = trainer_of(tmp_path)
    second.resume()
    assert second.run()
    trainer_of(tmp_path / "whole").run()
    assert rows(tmp_path / "epochs.csv") == rows(tmp_path / "whole" / "epochs.csv")


class Unlabelled:
    """The scenes with most of their labels taken away."""

    def __init__(self) -> None:
        self.scenes = data().train

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Any:
        image, labels = self.scenes[index]
        return image, labels if index == 0 else np.full(labels.shape, IGNORE, np.int16)


def test_batches_without_a_labelled_pixel_are_left_out(tmp_path: Path, capsys: Any) -> None:
    run = Trainer(TINY, options(tmp_path, batch=1), Data(Unlabelled(), data().val, 2))
    assert run.run()
    assert capsys.readouterr().out.count("no crop of the batch has a labelled pixel") == 12  # 2 epochs, 8 crops
    assert all(torch.isfinite(t).all() for t in run.model.state_dict().values())


def test_old_checkpoints_are_removed_when_asked(tmp_path: Path) -> None:
    trainer_of(tmp_path, epochs=4, keep=2, save_every=3, val_every=3).run()
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == [f"checkpoints-epoch-{n}.pth" for n in (3, 4, "latest")]
    assert [row[1] for row in rows(tmp_path / "epochs.csv")[1:]] == ["3", "4"]


def test_resume_refuses_what_does_not_belong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        trainer_of(tmp_path).resume()
    trainer_of(tmp_path, stop_after=1).run()
    for changes, message in (({"seed": 6}, "seed 5, not 6"), ({"batch": 4}, "batch 2, not 4")):
        with pytest.raises(CheckpointError, match=message):
            trainer_of(tmp_path, **changes).resume()
    with pytest.raises(CheckpointError, match="crops 8, not 16"):
        Trainer(TINY, options(tmp_path), data(dataclasses.replace(SCENES, repeats=4))).resume()
    (tmp_path / MID_EPOCH).write_bytes((tmp_path / MID_EPOCH).read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"mid-epoch.*cannot be read"):
        trainer_of(tmp_path).resume()


def test_a_run_that_was_moved_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    trainer_of(Path("run"), stop_after=3).run()
    monkeypatch.chdir(tmp_path)
    Path("here/run").rename("moved")
    second = trainer_of(Path("moved"))
    second.resume()
    assert second.iteration == 3


def test_a_batch_that_cannot_be_filled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="8 crops"):
        trainer_of(tmp_path, batch=9)
    resnest = dataclasses.replace(TINY, architecture=recipe("isnet_resnest101os8_lip").architecture)
    with pytest.raises(TrainingError, match="2 crops"):
        Trainer(resnest, options(tmp_path, batch=1), data())


def test_command_line_trains_resumes_and_does_not_overwrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    call = ["--recipe", "tiny", "--out", str(tmp_path), "--scenes", "2", "--repeats", "1", "--batch", "2"]
    call += ["--workers", "0", "--held-out", "1", "--threads", "1", "--device", "cpu"]
    assert train.main([*call, "--epochs", "1", "--resume", "auto"]) == 0
    assert torch.load(tmp_path / LATEST, weights_only=True)["cur_iter"] == 1
    with pytest.raises(SettingsError, match="holds a run already"):
        train.main([*call, "--epochs", "2"])
    assert train.main([*call, "--epochs", "2", "--resume"]) == 0
    assert torch.load(tmp_path / LATEST, weights_only=True)["cur_iter"] == 2


def test_command_line_names_a_missing_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*ade20k"):
        train.main(
            ["--recipe", "isnet_resnet50os8_ade20k", "--out", str(tmp_path), "--data", str(tmp_path / "nowhere")]
        )


def test_child_processes_import_the_checkout(tmp_path: Path) -> None:
    code = "import isnet_trt.training.train as train, miniature; print(train.__file__, miniature.__file__)"
    child = run_python("-c", code, cwd=tmp_path, check=True)
    assert all(Path(file).is_relative_to(CHECKOUT) for file in child.stdout.split())


def test_half_precision_stays_close_to_float32(tmp_path: Path) -> None:
    totals = {}
    for amp in (None, "bf16", "fp16"):
        run = trainer_of(tmp_path, amp=amp)
        x, labels = next(iter(run.loader))
        totals[amp] = run._step(x, labels, 0.01, labels.numel())
    np.testing.assert_allclose(totals["bf16"], totals[None], rtol=0.02)  # bfloat16 carries 8 bits
    np.testing.assert_allclose(totals["fp16"], totals[None], rtol=0.003)  # float16 carries 11 bits


@pytest.mark.slow
def test_the_compiled_network_computes_the_same(tmp_path: Path) -> None:
    eager, compiled = trainer_of(tmp_path), trainer_of(tmp_path, compile=True)
    for run in (eager, compiled):
        for module in run.model.modules():
            if isinstance(module, nn.Dropout2d):  # compiled code draws other channels
                module.p = 0.0
    x, labels = next(iter(eager.loader))
    steps = [run._step(x, labels, 0.01, labels.numel()) for run in (eager, compiled)]
    np.testing.assert_allclose(*steps, rtol=1e-5)  # float32
    for (name, a), (other, b) in zip(eager.model.named_parameters(), compiled.model.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)  # float32 sums in another order
