"""Several processes as one run (gloo, CPU): same gradients as one process, agreement on stopping, no hanging."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from children import PATIENCE
from tiny_training import TINY, data, finished, let_go, rows, start, train_in_process, wait_for, weights
from torch import nn

from isnet_trt.recipes import IGNORE
from isnet_trt.training.distributed import HostSyncBatchNorm
from isnet_trt.training.group import process_group
from isnet_trt.training.run_folder import MID_EPOCH
from isnet_trt.training.trainer import Options, Trainer

GRADIENT = 2e-5
"""float32, relative to the largest gradient norm of all parameters: sums in another order."""
STATISTICS = 1e-5
"""float32, relative: mean and variance of batches in two parts."""
RUN = ("--recipe", "tiny", "--batch", "2", "--workers", "0", "--seed", "5")
LONG = (*RUN, "--scenes", "4", "--repeats", "40", "--epochs", "2", "--save-every", "5")
"""Two epochs of 80 iterations."""


def in_processes(size: int, work: Callable[..., None], *args: Any) -> None:
    """``work(*args)`` in ``size`` processes that find each other as torchrun's do: by a store of their parent."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(_process, (size, store.port, work, args), nprocs=size)


def _process(rank: int, size: int, port: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    place |= {"TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0}
    os.environ.update({key: str(value) for key, value in place.items()})
    torch.set_num_threads(1)
    work(*args)


def one_step(folder: Path) -> None:
    """An iteration on a batch of 4 with unevenly many ignored pixels; leaves what it computed in ``folder``."""
    with process_group("cpu", timeout=PATIENCE) as group:
        run = Trainer(TINY, Options(folder, epochs=1, batch=4, seed=3, workers=0), data(), group)
        for module in run.model.modules():
            if isinstance(module, nn.Dropout2d):  # each process drops channels of its own
                module.p = 0.0
        x, labels = next(iter(run.loader))
        for crop, y in enumerate(labels, start=group.rank * len(labels)):
            y[: 10 * crop] = IGNORE
        labelled = group.sum([int((labels != IGNORE).sum())])[0]
        step = run._step(x, labels, 0.01, labelled)
        gradients = {name: weight.grad for name, weight in run.model.named_parameters()}
        result = {"step": step, "gradients": gradients, "state": run.model.state_dict(), "crops": x}
        torch.save(result, folder / f"{group.size}_{group.rank}.pt")


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    one_step(tmp_path)
    in_processes(2, one_step, tmp_path)
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    assert torch.equal(one["crops"], torch.cat([first["crops"], second["crops"]]))
    assert first["step"] == second["step"] == pytest.approx(one["step"], rel=1e-5)  # float32
    largest = max(gradient.norm() for gradient in one["gradients"].values())
    for name, gradient in one["gradients"].items():
        assert torch.equal(first["gradients"][name], second["gradients"][name]), name
        assert (first["gradients"][name] - gradient).norm() < GRADIENT * largest, name
    for name, value in one["state"].items():
        assert torch.equal(first["state"][name], second["state"][name]), name
        torch.testing.assert_close(first["state"][name], value, rtol=STATISTICS, atol=STATISTICS, msg=name)


def norm_step(folder: Path) -> None:
    """Batch-norm over unequal parts of a batch of 5, in float64."""
    with process_group("cpu", timeout=PATIENCE) as group:
        x = torch.randn(5, 3, 4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        part = (x[:3], x[3:])[group.rank].requires_grad_() if group.size == 2 else x.requires_grad_()
        layer = nn.BatchNorm2d(3).double()
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(2))
        norm = HostSyncBatchNorm.of(layer) if group.size == 2 else layer
        y = norm(part)
        (y.square() * y.sin()).sum().backward()
        outcome = {"y": y.detach(), "x": part.grad, "state": norm.state_dict()}
        outcome |= {"weight": norm.weight.grad, "bias": norm.bias.grad}
        torch.save(outcome, folder / f"{group.size}_{group.rank}.pt")


@pytest.mark.slow
def test_batch_norm_over_unequal_parts_is_exact(tmp_path: Path) -> None:
    norm_step(tmp_path)
    in_processes(2, norm_step, tmp_path)
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    exact = {"rtol": 1e-10, "atol": 1e-12}  # float64
    for key in ("y", "x"):
        torch.testing.assert_close(torch.cat([part[key] for part in two]), one[key], **exact)
    for key in ("weight", "bias"):
        torch.testing.assert_close(two[0][key] + two[1][key], one[key], **exact)
    for part in two:
        for name, value in one["state"].items():
            torch.testing.assert_close(part["state"][name], value, **exact)


@pytest.mark.slow
def test_two_processes_train_and_resume_as_if_uninterrupted(tmp_path: Path) -> None:
    run = (*RUN, "--batch", "4", "--epochs", "2", "--held-out", "3")
    train_in_process(*run, "--out", str(tmp_path / "whole"), processes=2)
    train_in_process(*run, "--out", str(tmp_path / "parts"), "--stop-after", "3", processes=2)
    train_in_process(*run, "--out", str(tmp_path / "parts"), "--resume", processes=2)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    epochs = rows(tmp_path / "whole" / "epochs.csv")
    assert [row[:2] for row in epochs[1:]] == [["2", "1"], ["4", "2"]]
    assert epochs == rows(tmp_path / "parts" / "epochs.csv")


def ranks(launcher: int) -> list[psutil.Process]:
    """The training processes under a torchrun, by rank."""
    outcome = [p for p in psutil.Process(launcher).children() if "LOCAL_RANK" in p.environ()]
    return sorted(outcome, key=lambda p: int(p.environ()["LOCAL_RANK"]))


def in_mid_epoch(out: Path, *more: str) -> Any:
    """Two processes, of which the first has saved in its first epoch; both are held there."""
    process = start(*LONG, "--out", str(out), *more, processes=2, hold_after=5)
    wait_for((out / MID_EPOCH).exists, process)
    return process


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_with_everything_saved(tmp_path: Path) -> None:
    process = in_mid_epoch(tmp_path)
    ranks(process.pid)[1].send_signal(signal.SIGTERM)
    let_go(tmp_path)
    status, output = finished(process)
    assert status == 0, output
    stopped = re.search(r"interrupted after iteration (\d+): saved", output)
    assert stopped, output
    state = torch.load(tmp_path / MID_EPOCH, weights_only=True)
    assert state["cur_iter"] == int(stopped[1])


@pytest.mark.slow
def test_a_killed_process_takes_the_run_down(tmp_path: Path) -> None:
    process = in_mid_epoch(tmp_path)
    ranks(process.pid)[1].kill()
    let_go(tmp_path)
    status, output = finished(process)
    assert status != 0
    assert "exitcode  : -9" in output  # torchrun's report
    assert torch.load(tmp_path / MID_EPOCH, weights_only=True)["cur_iter"] % 5 == 0


@pytest.mark.slow
def test_a_process_that_hangs_takes_the_run_down(tmp_path: Path) -> None:
    # The processes also have so long to find each other.
    process = in_mid_epoch(tmp_path, "--timeout", "20")
    hanging = ranks(process.pid)[1]
    hanging.suspend()
    let_go(tmp_path)
    status, output = finished(process)
    assert status != 0
    assert "process 0 of 2 lost the others" in output
    assert "--resume" in output
    assert not hanging.is_running()
