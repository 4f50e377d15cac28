"""Sharing the GPU with PyTorch, and what cannot work: it must end in the library's own error and leave all usable."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isnet_trt.errors import BundleError, EngineError, EngineUnavailable, IsnetError
from isnet_trt.pictures.interop import RawImage
from isnet_trt.settings import Preprocess
from tests.gpu.comparison import ade, call, image, on_gpu
from tests.gpu.networks import Strided
from tests.gpu.record import CannotRun, Record
from tests.gpu.target import Target
from tests.kernels.context_trials import PoolCase, region_pool
from tests.kernels.trials import examine, wrong
from tests.kernels.variants import set_folder

TOO_LARGE = 16_384
"""Side of the largest square image that is taken; at eight times that, the network's input alone takes 200 GB."""
SMALL_POOL = PoolCase("x", 1, 19, 333, parts=1)


@pytest.mark.gpu("sharing.context", 5, 60)
def test_context(record: Record, target: Target) -> None:
    """The runtime works in PyTorch's primary context, and either sees the other's memory."""
    from cuda.bindings import driver

    from isnet_trt.cuda.device import Device

    tensor = torch.arange(1000, device=target.device, dtype=torch.float32)
    torch.cuda.synchronize()
    before = int(driver.cuCtxGetCurrent()[1])
    device = Device.open()
    with device:
        inside = int(driver.cuCtxGetCurrent()[1])
        stream, memory, staging = device.create_stream(), device.allocate(4000), device.allocate_staging(4000)
        device.copy(memory, tensor.data_ptr(), 4000, stream)
        device.copy(staging.ctypes.data, memory, 4000, stream)
        device.synchronize(stream)
        values = staging.view(np.float32).copy()
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            more = tensor + 1
        device.synchronize(stream)
        device.close()
    record.figure("memory from", device.backend)
    record.figure("same context", before == inside)
    record.require(before == inside, f"our context {inside:#x} is another than PyTorch's {before:#x}")
    record.require(bool((values == np.arange(1000)).all()), "PyTorch's memory was not read through our device")
    record.require(bool((more.cpu().numpy() == values + 1).all()), "PyTorch could not work on our stream")
    after = int(driver.cuCtxGetCurrent()[1])
    record.require(after == before, "the context that was current did not come back")


@pytest.mark.gpu("sharing.streams", 5, 120)
def test_streams(record: Record, target: Target) -> None:
    """cubin and PTX are launched on streams of PyTorch, of ours, of the driver, and on the default one."""
    from cuda.bindings import driver

    from isnet_trt.cuda.device import Device

    device = Device.open()
    with device:
        streams = {
            "PyTorch's": torch.cuda.Stream(),
            "ours": torch.cuda.ExternalStream(device.create_stream()),
            "the driver's": torch.cuda.ExternalStream(int(driver.cuStreamCreate(1)[1])),
            "the default": torch.cuda.default_stream(),
        }
        for variant in (one for one in target.variants() if one.name != "Triton"):
            for name, stream in streams.items():
                with torch.cuda.stream(stream):
                    trial = region_pool(variant, SMALL_POOL, "fp16", target.seed_of(name))
                    messages = wrong(examine(trial, trial.reference()))
                record.row(form=variant.name, stream=name, right=not messages)
                record.require(not messages, f"{variant.name} on {name} stream: {'; '.join(messages)}")
        torch.cuda.synchronize()
        device.close()


def refused(record: Record, what: str, work: Callable[[], Any], kind: type[IsnetError], *words: str) -> None:
    """``work`` must raise ``kind`` with all ``words`` in its message."""
    try:
        work()
    except kind as error:
        message = str(error)
        record.row(what=what, error=type(error).__name__, said=message)
        missing = [word for word in words if word not in message]
        record.require(not missing, f"{what}: the message lacks {', '.join(missing)}: {message}")
    except Exception as error:
        record.fail(f"{what} ends in {type(error).__name__}, not in {kind.__name__}: {error}")
    else:
        record.fail(f"{what} was not refused")


@pytest.mark.gpu("refusals.other_gpu", 10, 60)
def test_other_gpu(record: Record, target: Target) -> None:
    """Kernels of another architecture, and changed or damaged ones, are refused."""
    from isnet_trt.cuda.device import Device
    from isnet_trt.cuda.kernels import Kernels

    capability, arch = target.architecture()
    target.compile()
    folder = set_folder(target.folder, "19", arch)
    with tempfile.TemporaryDirectory() as temporary:
        other, damaged = Path(temporary) / "other", Path(temporary) / "damaged"
        shutil.copytree(folder / f"sm_{arch}", other / "sm_200")
        refused(
            record, "kernels for sm_200 only", lambda: Kernels.open(other, capability), EngineUnavailable,
            "sm_200", capability,
        )  # fmt: skip
        shutil.copytree(folder, damaged)
        for file in (damaged / f"sm_{arch}").glob("resize.*"):
            file.write_bytes(file.read_bytes()[:-1] + b"x")
        refused(record, "a changed kernel", lambda: Kernels.open(damaged, capability), BundleError, "resize", "SHA-256")
        with Device.open():
            kernels = Kernels.open(folder, capability)
            # The driver is not told how long code is: it must not find sizes in it.
            kernels.files.code["resize"] = b"\x7fELF" + bytes(4096)  # type: ignore[index]
            arguments = dict.fromkeys(("source", "picture"), 256) | dict.fromkeys(
                ("pitch", "pixel", "bgr", "source_height", "source_width", "height", "width"), 3
            )
            launch = lambda: kernels.launch("resize", 0, **arguments)  # noqa: E731
            refused(record, "code that is none", launch, EngineError, "resize")


@pytest.mark.gpu("refusals.memory", 10, 60)
def test_out_of_memory(record: Record, target: Target) -> None:
    """An image that no GPU has room for is refused, and an ordinary one afterwards is segmented."""
    case = target.case or ade()
    network, source = Strided(case.labels.count, case.stride, target.seed), image(case.size, target.seed)
    pipeline = target.pipeline(network, case)
    expected = call(pipeline, source, case)
    row = np.zeros(3, np.uint8)
    large = RawImage(row.ctypes.data, TOO_LARGE, TOO_LARGE, owner=row, device=target.device)
    every = case.inference.replace(scales=(1.0, 4.0, 8.0))
    model = pipeline.model
    # The test resize would make the large image small.
    pipeline.model = dataclasses.replace(model, preprocess=Preprocess((TOO_LARGE, TOO_LARGE), keep_ratio=False))
    refused(
        record, f"a picture of {TOO_LARGE}x{TOO_LARGE}", lambda: pipeline(large, every),
        EngineError, "not enough GPU memory", "MiB",
    )  # fmt: skip
    pipeline.model = model
    again = call(pipeline, source, case)
    record.require(np.array_equal(again, expected), "after running out of memory the labels are others")
    pipeline.close()


@pytest.mark.gpu("refusals.closed", 10, 60)
def test_closed(record: Record, target: Target) -> None:
    """A closed segmenter, and images and label maps that cannot be, are refused."""
    case = target.case or ade()
    segmenter = on_gpu(target, Strided(case.labels.count, case.stride, target.seed), case)
    source = image(case.size, target.seed)
    segmenter(source)
    floats = torch.zeros((4, 4), dtype=torch.float32, device=target.device)
    refused(record, "a float picture in GPU memory", lambda: segmenter(floats), IsnetError)
    small = torch.zeros((4, 4), dtype=torch.uint8, device=target.device)
    refused(record, "labels of another size", lambda: segmenter(source, out=small), IsnetError)
    segmenter.close()
    segmenter.close()
    refused(record, "a closed segmenter", lambda: segmenter(source), EngineError, "closed")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(k, marks=pytest.mark.gpu(f"refusals.{k}", 10, 120, seconds=20), id=k)
        for k in ("tensorrt-rtx", "tensorrt")
    ],
)
def test_damaged_engine(record: Record, target: Target, kind: str) -> None:
    """A bundle whose engine is damaged, or for another GPU or version, is refused."""
    folder = target.folder / f"demo-{kind}-fp32"
    if not (folder / "bundle.json").is_file():
        raise CannotRun(f"no {kind} bundle could be built here (bundles.{kind})")
    damaged_engine(record, folder, kind)


def damaged_engine(record: Record, folder: Path, kind: str) -> None:
    """The refusals of a bundle, on a copy of it; what may end the process comes last."""
    from isnet_trt import Segmenter
    from isnet_trt.bundle import ENGINE, read_bundle
    from isnet_trt.engines.library import EngineSource
    from isnet_trt.engines.table import library

    info = read_bundle(folder).manifest.engine
    other = dataclasses.replace(info, compute_capabilities=("1.0",))
    refused(record, "an engine for another GPU", lambda: library(kind).check(other), EngineUnavailable, "1.0")
    older = dataclasses.replace(info, library_version="1.2.3")
    refused(record, "an engine of another version", lambda: library(kind).check(older), EngineUnavailable, "1.2.3")
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "copy"
        shutil.copytree(folder, copy)
        content = (copy / ENGINE).read_bytes()
        (copy / ENGINE).write_bytes(content[: len(content) // 2])
        refused(record, "half an engine in a bundle", lambda: Segmenter.open(copy), BundleError, ENGINE)
        kernels = copy / "kernels" if (copy / "kernels").is_dir() else None
        source = EngineSource(copy / ENGINE, info, kernels, 0, 0)
        (copy / ENGINE).write_bytes(bytes(byte ^ 0x55 for byte in content[:4096]) + content[4096:])
        refused(record, "a damaged engine", lambda: library(kind).open(source), EngineError, kind)
        (copy / ENGINE).write_bytes(content[: len(content) // 2])
        refused(record, "half an engine", lambda: library(kind).open(source), EngineError, kind)
