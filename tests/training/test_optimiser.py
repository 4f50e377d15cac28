"""SGD as one fused kernel: the numbers of torch's default, states of both, and steps that loss scaling leaves out."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import TINY, data
from torch import Tensor, nn

from isnet_trt.training import optimiser
from isnet_trt.training.resume import OwnState, check_state
from isnet_trt.training.trainer import Options, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
ROUNDING = {"rtol": 1e-6, "atol": 1e-7}


def layers() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).to(
        memory_format=torch.channels_last  # type: ignore[call-overload]
    )


def steps(model: nn.Module, sgd: torch.optim.SGD, seeds: range) -> list[Tensor]:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
        sgd.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
def test_a_state_goes_on_with_other_kernels(before: bool, after: bool) -> None:
    model = layers()
    want = steps(model, optimiser.sgd(model, TINY.optimiser, fused=False), range(6))
    model = layers()
    sgd = optimiser.sgd(model, TINY.optimiser, before)
    steps(model, sgd, range(3))
    state = copy.deepcopy(sgd.state_dict())
    for entry in state["state"].values():  # as a state whose tensors were stored row by row
        entry["momentum_buffer"] = entry["momentum_buffer"].contiguous()
    sgd = optimiser.sgd(model, TINY.optimiser, after)
    optimiser.restore(sgd, state)
    assert sgd.param_groups[0]["fused"] is (True if after else None)
    torch.testing.assert_close(steps(model, sgd, range(3, 6)), want, **ROUNDING)


def test_a_first_step_that_is_left_out_changes_nothing() -> None:
    model = layers()
    want = steps(model, optimiser.sgd(model, TINY.optimiser, fused=False), range(1, 3))
    model = layers()
    sgd = optimiser.sgd(model, TINY.optimiser, fused=True)
    assert [bool(sgd.state[p]["momentum_buffer"].any()) for p in model.parameters()] == 6 * [False]
    initial = [parameter.detach().clone() for parameter in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.ones(()))  # creates the scale
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    scaler.step(sgd)
    scaler.update()
    assert all(torch.equal(p, before) for p, before in zip(model.parameters(), initial, strict=True))
    torch.testing.assert_close(steps(model, sgd, range(1, 3)), want, **ROUNDING)


@pytest.mark.parametrize("amp", [None, "fp16"])
def test_a_run_with_fused_steps_gives_the_weights_of_one_without(tmp_path: Path, amp: str | None) -> None:
    states: list[dict[str, Any]] = []
    for fused in (False, True):
        run = Trainer(TINY, Options(tmp_path / str(fused), 2, 2, seed=5, workers=0, amp=amp, stop_after=3), data())
        run.optimiser = optimiser.sgd(run.model, TINY.optimiser, fused)
        run.run()
        states.append(torch.load(run.files.latest, weights_only=True))
    for name, tensor in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][name], tensor, rtol=1e-4, atol=1e-5, msg=name)  # float32
    for state, fused in zip(states, (True, False), strict=True):
        own = OwnState(TINY, run.model, optimiser.sgd(run.model, TINY.optimiser, fused), run.scaler, len(run.sampler))
        check_state(state, own, run.files.latest)
