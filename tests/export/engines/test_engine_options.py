"""What can be asked of an engine, and what is refused before anything is built."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines.table import KINDS
from isnet_trt.engines.tensorrt_rtx import COMPUTE_CAPABILITIES as RTX_COMPUTE_CAPABILITIES
from isnet_trt.errors import SettingsError
from isnet_trt.export.engines import engine_builder, tensorrt
from isnet_trt.export.engines.tensorrt import AMPERE_PLUS
from isnet_trt.export.lowering import EIGHT_BITS
from isnet_trt.export.options import EngineOptions

ADA = Gpu("NVIDIA Ada", "8.9", "CUDA 13.0")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("tensorrt", {"context": "both"}, "context 'both' is unknown; it is plugin or native"),
        ("tensorrt", {"workspace": 0.0}, "--workspace 0: it must be more than 0 GiB"),
        ("tensorrt", {"targets": ("8.9",)}, "--targets is for TensorRT-RTX"),
        ("tensorrt", {"version_compatible": True}, "cannot be had with plugins.*add --context native"),
        ("tensorrt", {"timing_cache": Path("nowhere.cache")}, "--timing-cache nowhere.cache does not exist"),
        ("tensorrt-rtx", {"hardware_compatible": True}, r"runs on all of its --targets \(8\.0, 8\.6"),
        ("tensorrt-rtx", {"version_compatible": True, "context": "native"}, r"no lean runtime \(libnvinfer_lean"),
        ("tensorrt-rtx", {"timing_cache": Path(__file__)}, "TensorRT-RTX has no timing cache"),
        ("tensorrt-rtx", {"optimisation_level": 6}, "--optimisation-level 6: it must be 0 to 5"),
        ("tensorrt", {"streams": 0}, "--streams 0: it must be 1 to 64"),
        ("onnxruntime", {"streams": 2}, "--streams is for TensorRT and TensorRT-RTX"),
        ("tensorrt", {"device": "cpu"}, "--device cpu names no GPU to build on"),
        ("tensorrt", {"device": "gpu"}, "device 'gpu' is unknown"),
        ("onnxruntime", {"workspace": 2.0}, "TensorRT and TensorRT-RTX; onnxruntime has no such setting"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_said(kind: str, options: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        engine_builder(kind).check(EngineOptions(**options))


def test_what_can_be_had() -> None:
    trt, rtx = engine_builder("tensorrt"), engine_builder("tensorrt-rtx")
    trt.check(EngineOptions())
    rtx.check(EngineOptions(targets=("8.6",), workspace=0.5))
    compatible = {"hardware_compatible": True, "version_compatible": True, "timing_cache": Path(__file__)}
    trt.check(EngineOptions(context="native", **compatible))


def test_the_engine_is_for_the_gpu_that_it_is_built_on(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [ADA, Gpu("NVIDIA Double", "9.0", "CUDA 13.0", index=1)]
    monkeypatch.setattr(tensorrt, "find_gpu", lambda index: gpus[index])
    assert engine_builder("tensorrt").capabilities(EngineOptions(device="cuda:1"), "fp32") == ("9.0",)


def test_where_an_engine_will_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "find_gpu", lambda index=0: ADA)
    trt, rtx = engine_builder("tensorrt"), engine_builder("tensorrt-rtx")
    anywhere = EngineOptions(hardware_compatible=True)
    assert trt.capabilities(EngineOptions(), "fp16") == ("8.9",)
    assert trt.capabilities(anywhere, "bf16") == AMPERE_PLUS
    assert rtx.capabilities(EngineOptions(), "fp32") == RTX_COMPUTE_CAPABILITIES
    assert rtx.capabilities(EngineOptions(), "fp8") == ("8.9", "12.0", "12.1")
    assert rtx.capabilities(EngineOptions(targets=("8.9", "8.6", "8.9")), "fp16") == ("8.9", "8.6")
    with pytest.raises(SettingsError, match=r"fp8 needs compute capability 8\.9 or newer, not 8\.0, 8\.6, 8\.7"):
        trt.capabilities(anywhere, "fp8")


@pytest.mark.parametrize("kind", KINDS)
def test_each_library_has_a_builder(kind: str) -> None:
    builder = engine_builder(kind)
    assert builder.kind == kind
    assert set(builder.eight_bits) == set(builder.library.precisions) & set(EIGHT_BITS)
    assert builder.library.options <= {field.name for field in dataclasses.fields(EngineOptions)}
    assert not builder.library.options & set(builder.reasons)
