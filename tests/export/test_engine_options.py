"""What can be asked of an engine, and what is refused before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines.tensorrt_rtx import COMPUTE_CAPABILITIES as RTX_COMPUTE_CAPABILITIES
from isnet_trt.errors import SettingsError
from isnet_trt.export.engine_options import AMPERE_PLUS, EngineOptions

ADA = Gpu("NVIDIA Ada", "8.9", "CUDA 13.0")


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("tensorrt", {"context": "both"}, "context 'both' is unknown; it is plugin or native"),
        ("tensorrt", {"workspace": 0.0}, "--workspace 0: it must be more than 0 GiB"),
        ("tensorrt", {"targets": ("8.9",)}, "--targets is for TensorRT-RTX"),
        ("tensorrt", {"version_compatible": True}, "cannot be had with plugins.*add --context native"),
        ("tensorrt", {"timing_cache": Path("nowhere.cache")}, "--timing-cache nowhere.cache does not exist"),
        ("tensorrt-rtx", {"hardware_compatible": True}, r"runs on all of its --targets \(8\.0, 8\.6"),
        ("tensorrt-rtx", {"version_compatible": True, "context": "native"}, r"no lean runtime \(libnvinfer_lean"),
        ("tensorrt-rtx", {"timing_cache": Path(__file__)}, "TensorRT-RTX has no timing cache"),
        ("onnxruntime", {"workspace": 2.0}, "--workspace are for TensorRT engines; onnxruntime has no such setting"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_said(kind: str, options: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        EngineOptions(**options).check(kind)


def test_what_can_be_had() -> None:
    EngineOptions().check("tensorrt")
    EngineOptions(targets=("8.6",), workspace=0.5).check("tensorrt-rtx")
    EngineOptions("native", hardware_compatible=True, version_compatible=True, timing_cache=Path(__file__)).check(
        "tensorrt"
    )


def test_where_an_engine_will_run() -> None:
    assert EngineOptions().capabilities("tensorrt", ADA, "fp16") == ("8.9",)
    assert EngineOptions(hardware_compatible=True).capabilities("tensorrt", ADA, "bf16") == AMPERE_PLUS
    assert EngineOptions().capabilities("tensorrt-rtx", None, "fp32") == RTX_COMPUTE_CAPABILITIES
    assert EngineOptions().capabilities("tensorrt-rtx", None, "fp8") == ("8.9", "12.0", "12.1")
    assert EngineOptions(targets=("8.9", "8.6", "8.9")).capabilities("tensorrt-rtx", None, "fp16") == ("8.9", "8.6")
    with pytest.raises(SettingsError, match=r"fp8 needs compute capability 8\.9 or newer, not 8\.0, 8\.6, 8\.7"):
        EngineOptions(hardware_compatible=True).capabilities("tensorrt", ADA, "fp8")
