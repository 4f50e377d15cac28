"""The GPU check on the caller's memory, forks and threads: it passes what is right and finds what is planted."""

from __future__ import annotations

import ctypes
import sys

import pytest
import tiny_model
from cuda_host import ReferenceKernels
from gpu_check_answers import Collected
from host_rig import HostRig

from benchmarks.gpu_check import callers, catalogue
from benchmarks.gpu_check.check import Setup
from benchmarks.gpu_check.rigs import Case
from isnet_trt.cuda.plan_steps import Plan
from isnet_trt.cuda.transfers import Slot, Transfers
from isnet_trt.forks import OwnerProcess
from isnet_trt.pictures.raw import RawLabels
from isnet_trt.settings import Inference, Preprocess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform")
CASE = Case("small", tiny_model.labels(5, ((1, 2),)), Preprocess((47, 33)), Inference(), (33, 47))
SETUP = Setup(seed=4)


def rig() -> HostRig:
    """Pipelines with the kernels' plain references."""
    return HostRig(ReferenceKernels)


def memory() -> Collected:
    answer = Collected()
    callers.memory(answer, SETUP, rig(), CASE, "cpu")
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
    labels = Transfers.labels

    def zeroed(self: Transfers, plan: Plan, slot: Slot, out: RawLabels | None) -> object:
        self._device.synchronize_event(slot.events["down"])
        slot.result.host[:] = 0
        return labels(self, plan, slot, out)

    monkeypatch.setattr(Transfers, "labels", zeroed)
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
    callers.fork(answer, SETUP, rig(), CASE)
    assert answer.said == []
    assert "cannot be used in process" in answer.figures["what the child was told"]
    monkeypatch.setattr(OwnerProcess, "check", lambda self, what: None)
    callers.fork(answer, SETUP, rig(), CASE)
    assert answer.said == ["the child was not refused in words: it was not refused"]


def test_a_call_that_keeps_the_lock_is_found(monkeypatch):
    waits = {"keeps": ctypes.PyDLL(None).usleep, "hands over": ctypes.CDLL(None).usleep}
    assert callers._longest_pause(lambda: waits["keeps"](100_000)) > 0.9
    assert callers._longest_pause(lambda: waits["hands over"](300_000)) < callers.MOST_PAUSE
    labels = Transfers.labels
    for name, wrong in (("keeps", ["it keeps Python's lock"]), ("hands over", [])):

        def late(self: Transfers, *arguments: object, name: str = name) -> object:
            waits[name](150_000)
            return labels(self, *arguments)

        monkeypatch.setattr(Transfers, "labels", late)
        answer = Collected()
        callers.lock(answer, SETUP, rig(), CASE, "cpu")
        assert [said.split(": ")[-1] for said in answer.said] == wrong
        assert len(answer.figures["longest pause of the other thread, % of the call"]) == 6


def test_the_checks_are_part_of_the_whole():
    names = [check.name for check in catalogue.checks()]
    assert {check.name for check in callers.CHECKS} <= set(names)
