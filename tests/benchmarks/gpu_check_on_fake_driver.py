"""The GPU check's sharing and refusals on the real cuda-bindings and a driver that is none.

Run by test_gpu_check_driver.py with the fake libcuda.so.1 on the loader's path and kernels interpreted. PyTorch's
tensors lie on the CPU, which is where this driver's "device" memory lies too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

assert os.environ.get("TRITON_INTERPRET") == "1", "run this file through test_gpu_check_driver.py"
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "benchmarks" / "interpreted"), str(TESTS / "benchmarks")]
from check_gpu_trials import Hosted  # noqa: E402
from gpu_check_answers import Collected  # noqa: E402
from gpu_stand_ins import use_cpu  # noqa: E402

from benchmarks.gpu_check import refusals, sharing  # noqa: E402
from benchmarks.gpu_check.check import Setup  # noqa: E402
from benchmarks.gpu_check.context_trials import PoolCase  # noqa: E402
from benchmarks.gpu_check.forms import Ahead  # noqa: E402
from isnet_trt.cuda import driver  # noqa: E402
from isnet_trt.cuda.gpu import probe_gpu  # noqa: E402

SETUP = Setup(seed=5)


def check_context(api: Any) -> None:
    """In PyTorch's context all is well; where PyTorch works in another one, it is found."""
    theirs = driver.call(api, "cuDevicePrimaryCtxRetain", 0)
    driver.call(api, "cuCtxPushCurrent", theirs)
    answer = Collected()
    sharing.context(answer, SETUP)
    assert answer.said == []
    assert answer.figures["same context"]
    driver.call(api, "cuCtxPopCurrent")
    sharing.context(answer, SETUP)
    assert len(answer.said) == 1
    assert "our context 0x1000 is another than PyTorch's 0x0" in answer.said[0]


def check_streams(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sharing, "Ahead", Hosted)
    patch.setattr(sharing, "forms", lambda setup: [Hosted()])
    patch.setattr(sharing, "PoolCase", lambda *sizes: PoolCase("small", 1, 5, 40, 33))
    answer = Collected()
    sharing.streams(answer, SETUP)
    assert answer.said == []
    assert [row["stream"] for row in answer.rows] == ["PyTorch's", "ours", "the driver's", "the default"]
    patch.setattr(Hosted, "run", lambda self, launch, model, /, **arguments: None)
    sharing.streams(answer, SETUP)
    assert len(answer.said) == 4
    assert "on the driver's stream: wrong classes of positions" in answer.said[2]


def check_other_gpu(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """With real kernels, which this driver refuses in its own words."""
    gpu, _ = probe_gpu()
    assert gpu is not None
    own = Ahead("own", 89, folder, gpu.compute_capability)
    patch.setattr(refusals, "own_form", lambda setup: own)
    answer = Collected()
    refusals.other_gpu(answer, SETUP)
    assert answer.said == []
    assert [(row["what"], row["error"]) for row in answer.rows] == [
        ("kernels for sm_200 only", "EngineUnavailable"), ("a changed kernel", "BundleError"),
        ("code that is none", "EngineError"),
    ]  # fmt: skip
    patch.setattr("isnet_trt.cuda.kernels._code", lambda path, digest: path.read_bytes())
    refusals.other_gpu(answer, SETUP)
    assert answer.said == ["a changed kernel was not refused"]


def main(kernels: str) -> None:
    sys.modules["pycuda"] = None  # type: ignore[assignment]  # tests/cuda/test_cuda_libraries.py has pycuda
    with pytest.MonkeyPatch.context() as patch:
        use_cpu(patch)
        check_context(driver.import_driver())
        check_streams(patch)
        check_other_gpu(patch, Path(kernels))
    print("as it should be")


if __name__ == "__main__":
    main(sys.argv[1])
