"""The GPU tests of sharing and refusals on the real cuda-bindings and a driver that is none.

Run by test_gpu_bodies.py with the fake libcuda.so.1 on the loader's path and kernels interpreted. PyTorch's tensors lie
on the CPU, which is where this driver's "device" memory lies too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest
from cuda_host import ReferenceKernels

from isnet_trt.cuda import driver
from isnet_trt.cuda.gpu import probe_gpu
from tests.gpu import test_gpu_driver
from tests.gpu.host import HostTarget, use_cpu
from tests.gpu.record import Record
from tests.interpreter import use_interpreter
from tests.kernels.context_trials import PoolCase
from tests.kernels.variants import Variant

use_interpreter()


class FakeTarget(HostTarget):
    """Kernels of sm_89 as the fake driver's GPU has them."""

    def architecture(self) -> tuple[str, int]:
        gpu, _ = probe_gpu()
        assert gpu is not None
        return gpu.compute_capability, 89

    def compile(self, retry: bool = False) -> list[str]:
        return []


def check_context(api: Any, record: Record, target: FakeTarget) -> None:
    """In PyTorch's context all is well; where PyTorch works in another one, it is found."""
    context = driver.call(api, "cuDevicePrimaryCtxRetain", 0)
    driver.call(api, "cuCtxPushCurrent", context)
    test_gpu_driver.test_context(record, target)
    assert record.wrong == []
    assert record.figures["same context"]
    driver.call(api, "cuCtxPopCurrent")
    test_gpu_driver.test_context(record, target)
    assert len(record.wrong) == 1
    assert "our context 0x1000 is another than PyTorch's 0x0" in record.wrong[0]


def check_streams(patch: pytest.MonkeyPatch, record: Record, target: FakeTarget) -> None:
    patch.setattr(test_gpu_driver, "SMALL_POOL", PoolCase("small", 1, 5, 40, 33, 1))
    test_gpu_driver.test_streams(record, target)
    assert record.wrong == []
    assert [row["stream"] for row in record.rows] == ["PyTorch's", "ours", "the driver's", "the default"]
    patch.setattr(Variant, "run", lambda self, set_name, name, **arguments: None)
    test_gpu_driver.test_streams(record, target)
    assert len(record.wrong) == 4
    assert "on the driver's stream: wrong classes of positions" in record.wrong[2]


def check_other_gpu(patch: pytest.MonkeyPatch, record: Record, target: FakeTarget) -> None:
    """With real kernels, which this driver refuses in its own words."""
    test_gpu_driver.test_other_gpu(record, target)
    assert record.wrong == []
    assert [(row["what"], row["error"]) for row in record.rows] == [
        ("kernels for sm_200 only", "EngineUnavailable"), ("a changed kernel", "BundleError"),
        ("code that is none", "EngineError"),
    ]  # fmt: skip
    any_digest = SimpleNamespace(hexdigest=lambda: ANY)
    patch.setattr("isnet_trt.cuda.kernels.hashlib", SimpleNamespace(sha256=lambda content: any_digest))
    test_gpu_driver.test_other_gpu(record, target)
    assert record.wrong == ["a changed kernel was not refused"]


def main(folder: Path) -> None:
    target = FakeTarget(folder, ReferenceKernels)
    records = [Record(folder / f"{number}.jsonl") for number in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        use_cpu(patch)
        check_context(driver.import_driver(), records[0], target)
        check_streams(patch, records[1], target)
        check_other_gpu(patch, records[2], target)
    print("as it should be")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
