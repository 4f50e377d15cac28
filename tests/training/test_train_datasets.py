"""The four datasets and pictures of one's own, from miniature trees through the command line: train, score, resume."""

from __future__ import annotations

import csv
from pathlib import Path

import miniature
import numpy as np
import pytest
import torch
from own_pictures import CLASSES, make_pictures, write
from tiny_training import TINY_RECIPES, finished, start, train_in_process, weights

from isnet_trt.recipes import DATASETS, RECIPES
from isnet_trt.training import DEMO_CHECKPOINT, train
from isnet_trt.training.run_folder import LATEST

RUN = ("--epochs", "2", "--batch", "2", "--repeats", "2", "--workers", "0")


@pytest.fixture(autouse=True)
def _tiny_recipes(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    for name, tiny in TINY_RECIPES.items():
        monkeypatch.setitem(RECIPES, name, tiny)


def entries(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def call(name: str, data: Path, out: Path) -> tuple[str, ...]:
    return ("--recipe", f"tiny_{name}", "--data", str(data), "--out", str(out), *RUN)


@pytest.mark.parametrize("name", DATASETS)
def test_each_dataset_trains_and_is_scored(name: str, tmp_path: Path) -> None:
    truth = miniature.MAKERS[name](tmp_path / "data")
    assert train.main([*call(name, tmp_path / "data", tmp_path), "--threads", "1", "--device", "cpu"]) == 0
    assert torch.load(tmp_path / LATEST, weights_only=True)["cur_iter"] == 6  # 3 pictures, twice, in batches of 2
    losses = [float(row["loss"]) for row in entries(tmp_path / "iterations.csv")]
    assert np.isfinite(losses).all()
    last = entries(tmp_path / "epochs.csv")[-1]
    present = np.unique([c for labels in truth["val"].values() for c in np.unique(labels) if c >= 0])
    scores = np.array([float(last[label]) for label in DATASETS[name].labels.names])
    assert np.isfinite(scores[present]).all()
    assert float(last["miou"]) == pytest.approx(np.nanmean(scores), abs=1e-3)  # four digits in the file


@pytest.mark.slow
def test_two_processes_train_a_dataset_as_one_does(tmp_path: Path) -> None:
    miniature.make_cocostuff10k(tmp_path / "data", val=3)
    arguments = call("cocostuff10k", tmp_path / "data", tmp_path / "two")
    assert "over 2 processes" in train_in_process(*arguments, processes=2)
    state = weights(tmp_path / "two")
    assert all(torch.isfinite(t).all() for t in state.values())
    arguments = call("cocostuff10k", tmp_path / "data", tmp_path / "one")
    assert train.main([*arguments, "--threads", "1", "--device", "cpu"]) == 0
    one, two = (entries(tmp_path / n / "iterations.csv") for n in ("one", "two"))
    # The crops are the same; each process drops channels of its own, so losses agree only roughly.
    assert float(two[0]["loss"]) == pytest.approx(float(one[0]["loss"]), rel=0.15)
    assert [row["epoch"] for row in entries(tmp_path / "two" / "epochs.csv")] == ["1", "2"]


def test_pictures_of_ones_own(tmp_path: Path) -> None:
    make_pictures(tmp_path, 6)
    recipe = write(tmp_path, crop=[40, 64], size=[96, 48], batch=..., epochs=...)
    out = tmp_path / "run"
    arguments = ["--recipe", str(recipe), "--out", str(out), *RUN, "--threads", "1", "--device", "cpu"]
    assert train.main(arguments) == 0
    columns = list(entries(out / "epochs.csv")[-1])
    assert columns == ["iteration", "epoch", "miou", "all_accuracy", *CLASSES.values()]
    second = [*arguments[:3], str(tmp_path / "tuned"), *arguments[4:]]
    assert train.main([*second, "--init", str(DEMO_CHECKPOINT)]) == 0
    first, tuned = (float(entries(d / "iterations.csv")[-1]["loss"]) for d in (out, tmp_path / "tuned"))
    assert np.isfinite([first, tuned]).all()


@pytest.mark.slow
def test_an_unreadable_picture_ends_the_run_and_its_workers(tmp_path: Path) -> None:
    miniature.make_ade20k(tmp_path / "data")
    picture = next((tmp_path / "data").rglob("images/training/*.jpg"))
    picture.write_bytes(b"not a picture")
    arguments = call("ade20k", tmp_path / "data", tmp_path / "run")
    status, output = finished(start(*arguments, "--workers", "1"), seconds=90)
    assert status == 2, output
    assert f"error: {picture}: not a picture" in output
    assert "Traceback" not in output
