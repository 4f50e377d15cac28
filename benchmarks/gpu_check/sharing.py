"""Sharing the GPU with others in the process: PyTorch's primary context, foreign streams, pictures in GPU memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu_check import rigs
from benchmarks.gpu_check.check import Answer, Check, Setup
from benchmarks.gpu_check.context_trials import PoolCase, PoolTrial
from benchmarks.gpu_check.forms import Ahead, forms
from benchmarks.gpu_check.kernels import seed_of
from benchmarks.gpu_check.networks import Strided
from benchmarks.gpu_check.rigs import Case, GpuRig
from benchmarks.gpu_check.runtime import ade
from benchmarks.gpu_check.trial import examine
from isnet_trt.interop import RawImage, RawLabels

BUSY_CYCLES = 200_000_000
"""What a stream is kept busy for before the picture is written to it: about a tenth of a second."""


def context(answer: Answer, setup: Setup) -> None:
    """Our device works in the context that PyTorch works in, and either sees the other's memory."""
    import torch
    from cuda.bindings import driver

    from isnet_trt.cuda.device import Device

    theirs = torch.arange(1000, device="cuda", dtype=torch.float32)
    torch.cuda.synchronize()
    before = int(driver.cuCtxGetCurrent()[1])
    device = Device.open()
    with device:
        inside = int(driver.cuCtxGetCurrent()[1])
        stream = device.stream()
        ours = device.allocate(4000)
        device.copy(ours, theirs.data_ptr(), 4000, stream)
        staging = device.staging(4000)
        device.copy(staging.ctypes.data, ours, 4000, stream)
        device.synchronize(stream)
        found = staging.view(np.float32).copy()
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            more = theirs + 1
        device.synchronize(stream)
        device.close()
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

    device = Device.open()
    with device:
        made = int(driver.cuStreamCreate(1)[1])
        kinds = {
            "PyTorch's": torch.cuda.Stream(),
            "ours": torch.cuda.ExternalStream(device.stream()),
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
        device.close()


def pictures(answer: Answer, setup: Setup) -> None:
    """Pictures and label maps in GPU memory by every protocol, on a stream of the caller that is still busy."""
    import torch

    case = ade()
    network = Strided(case.labels.count, case.stride, setup.seed)
    with rigs.on_gpu(GpuRig(setup), network, case) as segmenter:
        answer.figure("segmenter", segmenter.description)
        image = rigs.picture(case.size, setup.seed)
        wanted = segmenter(image).labels
        for name, give in GIVEN.items():
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                buffer = torch.zeros((*case.size, 3), dtype=torch.uint8, device="cuda")
                out = torch.full(case.size, 255, dtype=torch.uint8, device="cuda")
                torch.cuda.synchronize()
                torch.cuda._sleep(BUSY_CYCLES)  # type: ignore[no-untyped-call]
                buffer.copy_(torch.from_numpy(image).pin_memory(), non_blocking=True)
                source, target = give(buffer, out, case)
                segmenter(source, out=target, stream=stream.cuda_stream)
                later = out.clone()  # queued on the caller's stream: it must find the labels
            torch.cuda.synchronize()
            made = later.cpu().numpy()
            answer.row(given=name, equal=bool((made == wanted).all()))
            answer.require(bool((made == wanted).all()), f"{name}: {(made != wanted).mean():.2%} of the labels differ")
        _strided(answer, segmenter, image, wanted, case)


def _raw(buffer: Any, out: Any, case: Case) -> tuple[Any, Any]:
    height, width = case.size
    return (
        RawImage(buffer.data_ptr(), height, width, 3 * width, device="cuda", owner=buffer),
        RawLabels(out.data_ptr(), height, width, width, device="cuda", owner=out),
    )


class _Dlpack:
    """A tensor that shows nothing but DLPack."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __dlpack__(self, **asked: Any) -> Any:
        return self._tensor.__dlpack__(**asked)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


class _Interface:
    """A tensor that shows nothing but the CUDA array interface."""

    def __init__(self, tensor: Any) -> None:
        self.__cuda_array_interface__ = tensor.__cuda_array_interface__
        self._tensor = tensor


Give = Callable[[Any, Any, Case], tuple[Any, Any]]
GIVEN: dict[str, Give] = {
    "pointers": _raw,
    "CUDA array interface": lambda buffer, out, _: (_Interface(buffer), _Interface(out)),
    "DLPack": lambda buffer, out, _: (_Dlpack(buffer), _Dlpack(out)),
    "tensors": lambda buffer, out, _: (buffer, out),
}
"""What is passed -> (picture, labels) in GPU memory."""


def _strided(answer: Answer, segmenter: Any, image: Any, wanted: Any, case: Case) -> None:
    """Rows with padding, BGR, alpha: a frame as a decoder leaves it; and a host picture with labels on the GPU."""
    import torch

    height, width = case.size
    pitch = 4 * width + 64
    frame = torch.full((height, pitch), 99, dtype=torch.uint8, device="cuda")
    rgba = np.dstack([image[:, :, ::-1], np.full(case.size, 7, np.uint8)]).reshape(height, -1)
    frame[:, : 4 * width] = torch.from_numpy(np.ascontiguousarray(rgba)).cuda()
    torch.cuda.synchronize()
    given = RawImage(frame.data_ptr(), height, width, pitch, "bgra", device="cuda", owner=frame)
    answer.require(
        np.array_equal(segmenter(given).labels, wanted), "a padded BGRA frame in GPU memory gives other labels"
    )
    out = torch.full(case.size, 255, dtype=torch.uint8, device="cuda")
    segmenter(image, out=out)
    answer.require(np.array_equal(out.cpu().numpy(), wanted), "host picture, labels in GPU memory: other labels")


_ON_GPU = ("gpu", "torch-cuda", "triton", "cuda-bindings", "pycuda")
CHECKS = (
    Check("sharing.context", "pycuda works in PyTorch's primary context", context, _ON_GPU, alone=True, rank=5),
    Check("sharing.streams", "cubin and PTX on everybody's streams", streams, _ON_GPU, 120, rank=5),
    Check("sharing.pictures", "pictures and labels in GPU memory, by every protocol", pictures, _ON_GPU, 120, rank=9),
)
