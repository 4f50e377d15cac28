"""Several GPUs in one process: each segmenter in its own context, and memory of another GPU refused."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_double import Driver, Gpu, open_device
from cuda_host import Pair, picture
from dlpack_producer import CudaArray
from small_bundle import write_bundle

from isnet_trt import RawImage, RawLabels, Segmenter
from isnet_trt.cuda import backends, driver
from isnet_trt.cuda import gpu as gpu_module
from isnet_trt.cuda.backends import current_gpu
from isnet_trt.errors import EngineUnavailable, SettingsError
from isnet_trt.settings import Placement

SIZE = (31, 44)
ONE_GPU = "there is no cuda:1; this machine has 1 GPU: cuda:0 (NVIDIA Double)"


@pytest.fixture
def pairs(tmp_path: Path) -> Iterator[list[Pair]]:
    """The same network on both GPUs of one machine."""
    gpu = Gpu(devices=2)
    pairs = [Pair(tmp_path, gpu, index) for index in range(2)]
    yield pairs
    for pair in pairs:
        pair.segmenter.close()
    gpu.nothing_is_left()


def test_segmenters_on_two_gpus_from_several_threads(pairs: list[Pair]) -> None:
    images = [picture(*SIZE, seed) for seed in range(3)]
    expected = [pairs[0].host(image).labels for image in images]

    def run(number: int) -> bool:
        segmenter = pairs[number % 2].segmenter
        # Twice: step by step, then captured and replayed.
        labels = [*segmenter.map(images), *segmenter.map(images, inference="ms-flip"), *segmenter.map(images)]
        return all(
            (got.labels == e).mean() > 0.999 for got, e in zip(labels[:3] + labels[6:], expected * 2, strict=True)
        )

    with ThreadPoolExecutor(4) as pool:
        # The double itself is for one thread at a time: what is tested is that no thread depends on another's context.
        for number in range(8):
            assert pool.submit(run, number).result()
    assert [pair.pipeline.device.index for pair in pairs] == [0, 1]


@pytest.mark.parametrize("call", [
    lambda device, memory, stream: device.fill(memory, 0, 16, stream),
    lambda device, memory, stream: device.copy(memory, memory, 16, device.create_stream()),
    lambda device, memory, stream: device.free(memory),
    lambda device, memory, stream: device.synchronize(stream),
])  # fmt: skip
def test_the_double_complains_of_another_context(call: Any) -> None:
    gpu = Gpu(devices=2)
    first, second = open_device(gpu, "cuda-bindings"), open_device(gpu, "cuda-bindings", 1)
    with first:
        memory, stream = first.allocate(16), first.create_stream()
    second._memory.add(memory)
    with second, pytest.raises(AssertionError, match=r"device|is used in"):
        call(second, memory, stream)


def memory_of(pair: Pair, size: int) -> int:
    """Memory of a caller on the GPU of ``pair``; freed by `Device.close` with the pipeline."""
    with pair.pipeline.device:
        return pair.pipeline.device.allocate(size)


def test_memory_of_the_other_gpu_is_refused_whatever_it_is_called(pairs: list[Pair]) -> None:
    first, second = pairs
    address = memory_of(second, SIZE[0] * SIZE[1] * 3)
    pixels = np.ctypeslib.as_array((ctypes.c_uint8 * (SIZE[0] * SIZE[1] * 3)).from_address(address))
    pixels[:] = picture(*SIZE).ravel()
    expected = first.host(picture(*SIZE)).labels
    message = "the image is in the memory of cuda:1, but this segmenter works on cuda:0; open one with device='cuda:1'"
    for image in (RawImage(address, *SIZE, device="cuda"), CudaArray(pixels.reshape(*SIZE, 3))):
        with pytest.raises(SettingsError, match=re.escape(message)):
            first.segmenter(image)
        assert (second.segmenter(image).labels == expected).mean() > 0.999
    with pytest.raises(SettingsError, match="the image is in the memory of cuda:1"):
        first.segmenter(RawImage(address, *SIZE, device="cuda:0"))  # a wrong name
    with pytest.raises(SettingsError, match="the image is in the memory of cuda:0, but this segmenter works on cuda:1"):
        second.segmenter(RawImage(4096, *SIZE, device="cuda:0"))  # which the driver does not know
    out = RawLabels(memory_of(second, SIZE[0] * SIZE[1]), *SIZE, device="cuda")
    with pytest.raises(SettingsError, match="out is in the memory of cuda:1"):
        first.segmenter(picture(*SIZE), out=out)
    assert second.segmenter(picture(*SIZE), out=out).labels is out


def test_the_gpu_that_is_built_on_is_current_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(devices=2)
    monkeypatch.setattr(driver, "import_driver", lambda: Driver(gpu))
    monkeypatch.setattr(backends, "_backends", {})
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with current_gpu(1):
        assert gpu.current() is gpu.primaries[1]
    assert gpu.current() is None
    with current_gpu(0):  # as CUDA chooses by itself: nothing is needed for it
        assert gpu.current() is None


@pytest.mark.parametrize("device", ["cuda:1", "cuda:0001"])
def test_a_gpu_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    folder = write_bundle(tmp_path / "small").folder
    monkeypatch.setattr(gpu_module, "probe_gpu", lambda index: (None, ONE_GPU))
    with pytest.raises(EngineUnavailable, match=re.escape(f"device 'cuda:1' cannot be used: {ONE_GPU}")):
        Segmenter.open(folder, device=device)
    Segmenter.open(folder, device="cpu").close()


NONE = ("cuda:", "cuda:-1", "cuda:x", "CUDA:0", "gpu", "", "cuda:1 ", 1, None, "cuda:" + "9" * 30)


@pytest.mark.parametrize("device", NONE)
def test_devices_that_are_none(tmp_path: Path, device: object) -> None:
    with pytest.raises(SettingsError, match="is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:N'"):
        Segmenter.open(write_bundle(tmp_path / "small").folder, device=device)


def test_an_object_that_reads_as_a_device() -> None:
    torch = pytest.importorskip("torch")
    assert Placement.parse(torch.device("cuda:3")) == Placement("cuda", 3)
    assert Placement.parse(torch.device("cpu")) == Placement("cpu")
    assert Placement.parse("cuda") == Placement("cuda")
    assert Placement.parse("cuda").gpu == 0


def test_a_build_on_a_gpu_that_is_not_there_ends_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isnet_trt.export import EngineOptions, build

    monkeypatch.setattr(gpu_module, "probe_gpu", lambda index: (None, ONE_GPU))
    with pytest.raises(EngineUnavailable, match=re.escape(ONE_GPU)):
        build(tmp_path / "missing.pth", tmp_path / "bundle", engine=EngineOptions("onnxruntime", device="cuda:1"))
    assert not list(tmp_path.iterdir())
