"""The GPU check on the caller's memory, forks and threads: it passes what is right and finds what is planted."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import pytest
import tiny_model
from cuda_double import Driver, Gpu, Pycuda
from cuda_host import CARD, HostEngine, QueuedKernels, ReferenceKernels

from benchmarks.gpu_check import callers, catalogue, rigs
from benchmarks.gpu_check.check import Setup
from benchmarks.gpu_check.networks import Network
from benchmarks.gpu_check.rigs import Case
from isnet_trt.cuda import device as device_module
from isnet_trt.cuda.device import Device
from isnet_trt.cuda.pipeline import Pipeline
from isnet_trt.cuda.transfers import Transfers
from isnet_trt.forks import Home
from isnet_trt.settings import Inference, Preprocess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform")
CASE = Case("small", tiny_model.labels(5, ((1, 2),)), Preprocess((47, 33)), Inference(), (33, 47))
SETUP = Setup(seed=4)


class OnHost(HostEngine):
    """A network of the GPU check on host addresses."""

    def __init__(self, gpu: Gpu, network: Network) -> None:
        self.gpu, self.engine = gpu, network
        self.classes, self.stride = network.classes, network.stride
        self.not_capturable, self.gain = "", 1.0
        self.shapes, self.kept = [], []


class HostRig:
    """Pipelines on host memory."""

    def pipeline(self, network: Network, case: Case) -> Pipeline:
        device_module._contexts.clear()
        gpu = Gpu()
        device = Device(Pycuda(gpu), Driver(gpu), CARD)
        kernels = QueuedKernels(gpu, ReferenceKernels(case.labels.count))
        return Pipeline(device, kernels, OnHost(gpu, network), rigs.model(case))


class Collected:
    """An answer that keeps everything."""

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.said: list[str] = []
        self.figures: dict[str, Any] = {}

    def row(self, **cells: Any) -> None:
        self.rows.append(cells)

    def require(self, good: bool, text: str) -> bool:
        if not good:
            self.said.append(text)
        return good

    def figure(self, name: str, value: Any) -> None:
        self.figures[name] = value


def memory() -> Collected:
    answer = Collected()
    callers.memory(answer, SETUP, HostRig(), CASE, "cpu")
    return answer


def test_memory_that_is_right_passes():
    answer = memory()
    assert answer.said == []
    assert len(answer.rows) == 3 * 2 * 3 + 2
    assert {row["equal %"] for row in answer.rows} == {100}


def test_wrong_pictures_and_label_maps_are_found(monkeypatch):
    monkeypatch.setattr(callers.Caller, "write", lambda self, tensor, values: None)
    assert any(said.startswith("picture, bgr, DLPack") for said in memory().said)
    monkeypatch.undo()
    wait = Transfers.wait
    monkeypatch.setattr(Transfers, "wait", lambda self, slot: wait(self, slot) * 0)
    said = memory().said
    assert "all pixels have one class: nothing was compared" in said
    monkeypatch.undo()
    read = callers.Caller.read
    monkeypatch.setattr(callers.Caller, "read", lambda self, tensor: (read(self, tensor)[0] + 1, tensor.numpy()))
    said = memory().said
    assert "label map, pointer, stream given: 0.000 % of the labels are those of the host array" in said
    assert "label map, pointer, stream given: written between the rows" in said


def test_forks_are_refused_or_found_out(monkeypatch):
    answer = Collected()
    callers.fork(answer, SETUP, HostRig(), CASE)
    assert answer.said == []
    assert "cannot be used in process" in answer.figures["what the child was told"]
    monkeypatch.setattr(Home, "check", lambda self, what: None)
    callers.fork(answer, SETUP, HostRig(), CASE)
    assert answer.said == ["the child was not refused in words: it was not refused"]


def test_a_call_that_keeps_the_lock_is_found(monkeypatch):
    keeps_the_lock = ctypes.PyDLL(None).usleep
    assert callers._counted(lambda: keeps_the_lock(20_000)) == 0
    assert callers._counted(lambda: ctypes.CDLL(None).usleep(200_000)) > 0
    monkeypatch.setattr(callers, "_counted", lambda call: call() or 0)
    answer = Collected()
    callers.lock(answer, SETUP, HostRig(), CASE, "cpu")
    assert answer.said == ["no other thread ran while a call waited for the GPU: it keeps Python's lock"]


def test_the_checks_are_part_of_the_whole():
    names = [check.name for check in catalogue.checks()]
    assert {check.name for check in callers.CHECKS} <= set(names)
