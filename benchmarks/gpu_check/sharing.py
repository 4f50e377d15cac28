"""Sharing the GPU with others in the process: PyTorch's primary context, and launches on foreign streams."""

from __future__ import annotations

import numpy as np

from benchmarks.gpu_check.check import Answer, Check, Setup
from benchmarks.gpu_check.context_trials import PoolCase, PoolTrial
from benchmarks.gpu_check.forms import Ahead, forms
from benchmarks.gpu_check.kernels import seed_of
from benchmarks.gpu_check.needs import RUNTIME
from benchmarks.gpu_check.place import device
from benchmarks.gpu_check.trial import examine


def context(answer: Answer, setup: Setup) -> None:
    """Our device works in the context that PyTorch works in, and either sees the other's memory."""
    import torch
    from cuda.bindings import driver

    from isnet_trt.cuda.device import Device

    theirs = torch.arange(1000, device=device(), dtype=torch.float32)
    torch.cuda.synchronize()
    before = int(driver.cuCtxGetCurrent()[1])
    opened = Device.open()
    with opened:
        inside = int(driver.cuCtxGetCurrent()[1])
        stream = opened.create_stream()
        ours = opened.allocate(4000)
        opened.copy(ours, theirs.data_ptr(), 4000, stream)
        staging = opened.allocate_staging(4000)
        opened.copy(staging.ctypes.data, ours, 4000, stream)
        opened.synchronize(stream)
        found = staging.view(np.float32).copy()
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            more = theirs + 1
        opened.synchronize(stream)
        opened.close()
    answer.figure("memory from", opened.backend)
    answer.figure("same context", before == inside)
    answer.require(before == inside, f"our context {inside:#x} is another than PyTorch's {before:#x}")
    answer.require(bool((found == np.arange(1000)).all()), "PyTorch's memory was not read through our device")
    answer.require(bool((more.cpu().numpy() == found + 1).all()), "PyTorch could not work on our stream")
    answer.require(int(driver.cuCtxGetCurrent()[1]) == before, "the context that was current did not come back")


def streams(answer: Answer, setup: Setup) -> None:
    """cubin and PTX are launched on streams of PyTorch, of ours, of the driver, and on the default one."""
    import torch
    from cuda.bindings import driver

    from isnet_trt.cuda.device import Device

    opened = Device.open()
    with opened:
        made = int(driver.cuStreamCreate(1)[1])
        kinds = {
            "PyTorch's": torch.cuda.Stream(),
            "ours": torch.cuda.ExternalStream(opened.create_stream()),
            "the driver's": torch.cuda.ExternalStream(made),
            "the default": torch.cuda.default_stream(),
        }
        for form in (form for form in forms(setup) if isinstance(form, Ahead)):
            for name, stream in kinds.items():
                with torch.cuda.stream(stream):
                    trial = PoolTrial(form, PoolCase("x", 1, 19, 333), "fp16", seed_of(setup, name))
                    found = examine(trial, trial.reference())
                answer.row(form=form.name, stream=name, right=not found.wrong)
                answer.require(not found.wrong, f"{form.name} on {name} stream: {'; '.join(found.wrong)}")
        torch.cuda.synchronize()
        opened.close()


CHECKS = (
    Check("sharing.context", "the runtime works in PyTorch's primary context", context, RUNTIME, alone=True, rank=5),
    Check("sharing.streams", "cubin and PTX on everybody's streams", streams, RUNTIME, 120, rank=5),
)
