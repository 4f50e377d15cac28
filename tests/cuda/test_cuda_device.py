"""The device against doubles of pycuda and cuda-bindings; what runs without a GPU runs for real."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_double import Driver, Gpu, Pycuda

from isnet_trt.cuda import device as module
from isnet_trt.cuda.device import Device, import_pycuda
from isnet_trt.cuda.gpu import Gpu as Card
from isnet_trt.cuda.gpu import find_gpu
from isnet_trt.errors import EngineError, EngineUnavailable, OutOfMemory

CARD = Card("NVIDIA Double", "8.9", "CUDA 13.0")


@pytest.fixture(params=["late", "at once"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    monkeypatch.setattr(module, "_contexts", {})
    made = Gpu(total=1 << 20)
    made.eager = request.param == "at once"
    return made


@pytest.fixture
def device(gpu: Gpu):
    made = Device(Pycuda(gpu), Driver(gpu), CARD)
    yield made
    with made:
        made.close()
        made.close()
    gpu.nothing_is_left()


def read(address: int, size: int) -> list[int]:
    return list((ctypes.c_uint8 * size).from_address(address))


def test_there_and_back(device):
    with device:
        stream, a, b = device.stream(), device.allocate(300), device.allocate(300)
        staging = device.staging(600)
        staging[:300] = np.arange(300) % 251
        device.copy(a, staging.ctypes.data, 300, stream)
        device.copy(b, a, 300, stream)
        device.fill(b + 10, 7, 5, stream)
        device.copy(staging.ctypes.data + 300, b, 300, stream)
        device.synchronize(stream)
        wanted = np.arange(300) % 251
        wanted[10:15] = 7
        assert (staging[300:] == wanted).all()
        device.free(a)
        device.release(staging)


def test_rows_with_a_pitch(device, gpu):
    with device:
        stream, made, staging = device.stream(), device.allocate(64), device.staging(64)
        staging[:] = np.arange(64)
        device.copy_rows(made, 5, staging.ctypes.data + 1, 20, 4, 3, stream)
        device.copy_rows(made + 32, 4, staging.ctypes.data, 4, 4, 3, stream)
        device.synchronize(stream)
        assert read(made, 15) == [1, 2, 3, 4, 165, 21, 22, 23, 24, 165, 41, 42, 43, 44, 165]
        assert read(made + 32, 12) == list(range(12))
        assert gpu.calls.count("cuMemcpyAsync") == 1  # rows without gaps are one piece


def test_streams_wait_for_each_other(device):
    with device:
        first, second, event = device.stream(), device.stream(), device.event()
        made, staging = device.allocate(4), device.staging(4)
        device.wait_for(second, event)  # marks nothing yet
        device.fill(made, 9, 4, first)
        device.record(event, first)
        device.wait_for(second, event)
        device.copy(staging.ctypes.data, made, 4, second)
        device.record(event, second)
        device.fill(made, 8, 4, second)
        device.reached(event)
        assert list(staging) == [9, 9, 9, 9]
        device.synchronize(second)


def test_time_between_events(device):
    with device:
        stream, (start, stop) = device.stream(), (device.event(timing=True), device.event(timing=True))
        device.record(start, stream)
        device.record(stop, stream)
        device.synchronize(stream)
        assert device.milliseconds(start, stop) == 1.5


def test_a_graph_runs_as_often_as_it_is_launched(device, gpu):
    with device:
        stream, made, staging = device.stream(), device.allocate(4), device.staging(4)
        with device.capture(stream) as graph:
            device.copy(made, staging.ctypes.data, 4, stream)
        staging[:] = [1, 2, 3, 4]
        device.synchronize(stream)
        assert read(made, 4) == [165] * 4  # capturing runs nothing
        for value in (5, 6):
            staging[:] = value
            graph.launch(stream)
            device.synchronize(stream)
            assert read(made, 4) == [value] * 4
        assert len(gpu.graphs) == 1
        graph.close()
        graph.close()


@pytest.mark.parametrize(
    "failing", ["cuStreamEndCapture", "cuGraphInstantiate", "in the block", "cuStreamBeginCapture"]
)
def test_a_capture_that_fails_leaves_nothing_and_a_stream_that_works(device, gpu, failing):
    def capture(stream: int) -> None:
        with device.capture(stream):
            device.fill(made, 1, 4, stream)
            if failing == "in the block":
                raise EngineError("not in a capture")

    with device:
        stream, made = device.stream(), device.allocate(4)
        gpu.fails["cuGraphInstantiate" if failing == "instantiate" else failing] = 901
        with pytest.raises(EngineError, match=r"not in a capture|capture was invalidated"):
            capture(stream)
        gpu.fails.clear()
        assert gpu.graphs == {}
        device.fill(made, 3, 4, stream)
        device.synchronize(stream)
        assert read(made, 4) == [3] * 4


def test_nothing_that_was_forgotten_is_finalised_in_the_middle_of_a_capture(device, gpu):
    """Python's garbage collector runs whenever enough objects have been made."""
    captured: list[bool] = []

    class Forgotten:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            captured.append(gpu.capturing is not None)

    gc.collect()
    with device:
        stream, made = device.stream(), device.allocate(4)
        with device.capture(stream) as graph:
            device.fill(made, 1, 4, stream)
            Forgotten()
            kept = [[] for _ in range(5000)]
        graph.close()
        assert gc.isenabled()
        del kept
        gc.collect()
        assert captured == [False]


def test_who_works_without_a_garbage_collector_stays_without(device):
    gc.disable()
    try:
        with device:
            stream = device.stream()
            with pytest.raises(EngineError, match="in the block"), device.capture(stream):
                raise EngineError("in the block")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_errors_in_the_drivers_words(device, gpu):
    with device:
        stream, made = device.stream(), device.allocate(4)
        with pytest.raises(OutOfMemory, match="out of memory; use a smaller picture"):
            device.allocate(1 << 21)
        gpu.fails = {"cuMemsetD8Async": 2}
        with pytest.raises(OutOfMemory, match=r"cuMemsetD8Async failed: out of memory \(2\); use a smaller picture"):
            device.fill(made, 0, 4, stream)
        gpu.fails = {"cuMemcpyAsync": 700, "cuStreamSynchronize": 700}
        with pytest.raises(EngineError, match=r"cuMemcpyAsync failed: an illegal memory access \(700\)"):
            device.copy(made, made, 4, stream)
        with pytest.raises(EngineError, match="cuStreamSynchronize failed"):
            device.synchronize(stream)
        gpu.fails.clear()
        assert device.memory() == ((1 << 20) - 4, 1 << 20)


def test_the_context_is_pushed_for_the_time_of_the_block(device, gpu):
    with pytest.raises(AssertionError, match="no context is current"):
        device.allocate(4)
    with device:
        with device:
            device.allocate(4)
        device.allocate(4)
    with pytest.raises(RuntimeError, match="in between"), device:
        raise RuntimeError("in between")
    assert not any(gpu.stacks.values())


def test_one_primary_context_for_the_process_and_every_thread(device, gpu):
    other = Device(device._cuda, Driver(gpu), CARD)
    assert other._context is device._context
    assert device._cuda.retained == 1
    failed = []

    def work() -> None:
        try:
            with other:
                other.free(other.allocate(16))
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


def test_without_pycuda_it_says_how_to_build_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(EngineUnavailable, match=r"pycuda is built from source: .*CUDA toolkit"):
        import_pycuda()
    monkeypatch.setattr(module, "look_for_gpu", lambda index: (CARD, ""))
    with pytest.raises(EngineUnavailable, match="pycuda cannot be imported"):
        Device.open()


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_no_cuda_package_is_asked():
    with pytest.raises(EngineUnavailable, match="needs an NVIDIA GPU and its driver: "):
        Device.open()
    assert "pycuda.driver" not in sys.modules


def test_opening_takes_the_libraries(gpu, monkeypatch):
    cuda = Pycuda(gpu)
    monkeypatch.setattr(module, "look_for_gpu", lambda index: (CARD, ""))
    monkeypatch.setattr(module, "import_pycuda", lambda: cuda)
    monkeypatch.setattr(module, "driver", SimpleNamespace(import_driver=lambda: Driver(gpu)))
    made = Device.open()
    assert made.gpu == CARD
    with made:
        made.close()
