"""The choice of an engine, as a function of what a machine has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from marks import needs_rtx

from isnet_trt.cuda.gpu import Gpu, find_gpu, probe_gpu
from isnet_trt.engines.select import Machine, choose, look
from isnet_trt.errors import SettingsError

BOTH = {"tensorrt": "10.13", "tensorrt-rtx": "1.7"}


def _gpu(capability: str) -> Gpu:
    return Gpu("NVIDIA Something", capability, "CUDA 13.0")


@pytest.mark.parametrize(
    ("machine", "kind", "explanation"),
    [
        (Machine(None, "no driver", BOTH), "onnxruntime", "no NVIDIA GPU is usable here: no driver"),
        (Machine(_gpu("8.9"), "", BOTH), "tensorrt", "NVIDIA Something (compute capability 8.9) with tensorrt 10"),
        (Machine(_gpu("9.0"), "", {"tensorrt": "10.13"}), "tensorrt", "9.0"),
        (Machine(_gpu("12.0"), "", {"tensorrt-rtx": "1.7"}), "tensorrt-rtx", "with tensorrt-rtx 1.7"),
        (
            Machine(_gpu("9.0"), "", {"tensorrt-rtx": "1.7"}),
            "onnxruntime",
            "tensorrt-rtx runs on compute capability 8.0",
        ),
        (
            Machine(_gpu("7.0"), "", {"tensorrt": "10.13"}),
            "onnxruntime",
            "tensorrt runs from compute capability 7.5 on",
        ),
        (
            Machine(_gpu("8.9")),
            "onnxruntime",
            "tensorrt is not installed (pip install '.[gpu]' in",
        ),
        (Machine(_gpu("8.9"), "", BOTH, False), "onnxruntime", "needs cuda-bindings"),
        (Machine(_gpu("8.9"), "", {}, no_provider="a wheel"), "onnxruntime", "; onnxruntime needs a wheel"),
    ],
)
def test_automatic(machine: Machine, kind: str, explanation: str) -> None:
    choice = choose("auto", machine)
    assert choice.kind == kind
    assert explanation in choice.reason


def test_automatic_on_a_gpu_without_tensorrt() -> None:
    choice = choose("auto", Machine(_gpu("9.0"), "", {"tensorrt-rtx": "1.7"}, no_provider=""))
    assert (choice.kind, choice.on_gpu) == ("onnxruntime", True)
    for part in (
        "NVIDIA Something (compute capability 9.0) with ONNX Runtime's CUDA provider: tensorrt is not installed",
        "tensorrt-rtx runs on compute capability 8.0",
    ):
        assert part in choice.reason
    assert not choose("auto", Machine(None, "no driver", no_provider="")).on_gpu
    assert not choose("auto", Machine(_gpu("8.9"), "", BOTH, no_provider="")).on_gpu


def test_this_machine() -> None:
    choice = choose()
    assert choice == choose("auto", look())
    if find_gpu() is None:
        assert choice.kind == "onnxruntime"


def test_asked_for() -> None:
    assert choose("onnxruntime").kind == "onnxruntime"
    with pytest.raises(SettingsError, match="'trt' is unknown; use auto, tensorrt, tensorrt-rtx, onnxruntime"):
        choose("trt")


@needs_rtx
def test_tensorrt_rtx_builds_without_a_gpu() -> None:
    assert choose("tensorrt-rtx", Machine(None, "no driver")).kind == "tensorrt-rtx"


def test_no_driver_library() -> None:
    gpu, reason = probe_gpu(library="libcuda-that-is-not-there.so.1")
    assert gpu is None
    assert reason == "no NVIDIA driver is installed (libcuda-that-is-not-there.so.1 is missing)"


def test_a_library_that_is_not_the_driver() -> None:
    gpu, reason = probe_gpu(library="libc.so.6")
    assert gpu is None
    assert "has no cuInit" in reason


_DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int index) { *device = 40 + index; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    if (device < 40 || device >= 40 + COUNT || size < 20) return 1;
    strncpy(name, "NVIDIA Test \\xff", size);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (device != 40) return 1;
    *value = attribute == 75 ? 12 : attribute == 76 ? 1 : attribute == 16 ? 170 : -1;
    return 0;
}
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuGetErrorName(int status, const char **name) { *name = "CUDA_ERROR_NO_DEVICE"; return status == 100 ? 0 : 1; }
"""


def _driver(folder: Path, init: int = 0, count: int = 1) -> str:
    """A driver library by the signatures of cuda.h; there is no real one without its device."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    (folder / "driver.c").write_text(_DRIVER)
    library = folder / f"libdriver{init}_{count}.so"
    options = [f"-DINIT={init}", f"-DCOUNT={count}", "-shared", "-fPIC"]
    subprocess.run([compiler, *options, str(folder / "driver.c"), "-o", str(library)], check=True)
    return str(library)


def test_asks_the_driver(tmp_path: Path) -> None:
    gpu, reason = probe_gpu(library=_driver(tmp_path))
    assert gpu == Gpu("NVIDIA Test �", "12.1", "CUDA 13.1", 170)
    assert reason == ""


def test_driver_without_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, reason = probe_gpu(library=_driver(tmp_path, init=100))
    assert gpu is None
    assert reason.startswith("the NVIDIA driver answers CUDA_ERROR_NO_DEVICE (100) to cuInit; is the GPU visible")
    stub = probe_gpu(library=_driver(tmp_path, init=34))[1]
    assert "error 34 to cuInit; it is the stub that the CUDA toolkit has for linkers" in stub
    assert "its version is not that of the loaded kernel" in probe_gpu(library=_driver(tmp_path, init=803))[1]
    assert probe_gpu(library=_driver(tmp_path, init=7))[1] == "the NVIDIA driver answers error 7 to cuInit"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    _, reason = probe_gpu(library=_driver(tmp_path, count=0))
    assert reason == "the NVIDIA driver shows 0 GPUs (CUDA_VISIBLE_DEVICES is '')"


def test_a_gpu_that_is_not_there_names_those_that_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpu, reason = probe_gpu(1, _driver(tmp_path))
    assert gpu is None
    assert reason == "there is no cuda:1; this machine has 1 GPU: cuda:0 (NVIDIA Test �)"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,2")
    reason = probe_gpu(2, _driver(tmp_path, count=2))[1]
    assert reason == (
        "there is no cuda:2; this machine has 2 GPUs: cuda:0 (NVIDIA Test �), cuda:1 (NVIDIA Test �) "
        "(CUDA_VISIBLE_DEVICES is '4,2')"
    )
    assert probe_gpu(-1, _driver(tmp_path))[0] is None
