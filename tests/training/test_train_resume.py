"""A training process that is killed or told to end, and the run that goes on from what it left."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import torch
from children import PATIENCE
from tiny_training import finished, let_go, rows, start, train_in_process, wait_for, weights, without_rates

from isnet_trt.training.run_folder import LATEST

RUN = ("--recipe", "tiny", "--batch", "2", "--seed", "5", "--repeats", "30", "--epochs", "2", "--save-every", "7")
"""Two epochs of 60 iterations."""
LENGTH = 60


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed")
    train_in_process(*RUN, "--workers", "0", "--out", str(out))
    return out


def in_second_epoch(out: Path, workers: int = 0) -> subprocess.Popen[str]:
    """A run that has saved in the middle of its second epoch and is held there."""
    process = start(*RUN, "--workers", str(workers), "--out", str(out), hold_after=LENGTH + 1)
    wait_for((out / "checkpoints-epoch-1.pth").exists, process)
    wait_for(lambda: torch.load(out / LATEST, weights_only=True)["cur_iter"] > LENGTH, process)
    return process


def assert_same_run(out: Path, undisturbed: Path) -> None:
    mine = weights(out)
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(mine[name], tensor), name
    numbers = [int(row[0]) for row in rows(out / "iterations.csv")[1:]]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 2 * LENGTH
    assert (out / "epochs.csv").read_text() == (undisturbed / "epochs.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_after_kill_9_the_resumed_run_ends_with_the_same_weights(
    tmp_path: Path, undisturbed: Path, workers: int
) -> None:
    process = in_second_epoch(tmp_path, workers)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    reached = torch.load(tmp_path / LATEST, weights_only=True)["cur_iter"]
    assert LENGTH < reached < 2 * LENGTH
    train_in_process(*RUN, "--workers", "0", "--out", str(tmp_path), "--resume")
    assert_same_run(tmp_path, undisturbed)
    assert without_rates(tmp_path / "iterations.csv") == without_rates(undisturbed / "iterations.csv")
    _, left = psutil.wait_procs(children, timeout=PATIENCE)
    assert not left, "the workers of a killed run end by themselves"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_saves_and_ends_with_0(tmp_path: Path, undisturbed: Path, number: int) -> None:
    process = in_second_epoch(tmp_path, workers=2)
    for target in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        if "resource_tracker" not in " ".join(target.cmdline()):
            target.send_signal(number)
    let_go(tmp_path)
    status, output = finished(process)
    assert status == 0, output
    assert "saved, go on with --resume" in output
    train_in_process(*RUN, "--workers", "0", "--out", str(tmp_path), "--resume")
    assert_same_run(tmp_path, undisturbed)
