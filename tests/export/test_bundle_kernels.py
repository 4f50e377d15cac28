"""Which kernels a bundle gets. What is compiled is looked at in tests/commands/test_build.py and tests/kernels."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from children import PATIENCE, start_python, wait_until

from isnet_trt.cuda.architectures import KERNEL_TARGETS
from isnet_trt.cuda.gpu import Gpu
from isnet_trt.cuda.kernel_specs import YUV_KERNEL, needed_kernels
from isnet_trt.errors import BuildError, EngineUnavailable, SettingsError
from isnet_trt.export import bundle_kernels
from isnet_trt.export.bundle_kernels import (
    architectures,
    check_kernels,
    compile_kernels,
    context_kernels,
    kernel_capabilities,
)
from isnet_trt.export.lowering import Arithmetic, lower_graph
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.options import EngineOptions
from isnet_trt.export.precision import without_last_cast
from isnet_trt.export.quantise import calibrate
from isnet_trt.export.ranges import measure_ranges
from isnet_trt.recipes import recipe

DEMO = recipe("isnet_demo").architecture
CHANNELS = DEMO.num_classes, DEMO.context_channels
linux = pytest.mark.skipif(sys.platform != "linux", reason="triton has no wheels for this platform")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        (("8.9",), (80, 89)),
        (("8.0", "8.6", "8.9", "12.0", "12.1"), (80, 86, 89, 120)),
        (("9.0",), (80, 90)),
        (("8.7",), (80,)),
        (None, tuple(KERNEL_TARGETS)),
    ],
)
def test_architectures(capabilities: tuple[str, ...] | None, expected: tuple[int, ...]) -> None:
    assert architectures(capabilities) == expected


@pytest.mark.parametrize(
    ("options", "supported", "expected"),
    [
        ({}, ("8.9",), ("8.9",)),  # TensorRT
        ({}, ("8.0", "8.6", "8.9", "12.0"), ("8.9",)),  # an engine for many GPUs: the others run the portable PTX
        ({}, None, ("8.9",)),
        ({"targets": ("8.6", "12.0")}, ("8.6", "12.0"), ("8.6", "12.0")),
        ({"hardware_compatible": True}, ("8.0", "8.9", "9.0"), ("8.0", "8.9", "9.0")),
        ({}, ("12.0", "12.1"), ("12.0", "12.1")),  # an engine that this machine's GPU does not run
        ({"device": "cuda:1"}, None, ("9.0",)),
        ({"device": "cuda:2"}, ("8.6", "8.9"), ("8.6", "8.9")),  # built ahead of time
    ],
)
def test_kernels_are_for_this_machines_gpu_unless_more_is_asked_for(
    options: dict[str, Any], supported: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = [Gpu("NVIDIA Double", capability, "CUDA 13.0") for capability in ("8.9", "9.0")]
    monkeypatch.setattr(bundle_kernels, "find_gpu", lambda index: gpus[index] if index < 2 else None)
    assert kernel_capabilities(EngineOptions(**options), supported) == expected


@pytest.mark.parametrize(
    ("arithmetic", "kind"),
    [
        (Arithmetic(), "fp32"),
        (Arithmetic("fp16"), "fp16"),
        (Arithmetic("bf16"), "bf16"),
        (Arithmetic("int8", "fp16"), "fp16"),
        (Arithmetic("int8", "fp32"), "fp32"),
    ],
    ids=str,
)
def test_plugins_of_a_graph_launch_these(graph: onnx.ModelProto, arithmetic: Arithmetic, kind: str) -> None:
    pixels = np.random.default_rng(1).standard_normal((1, 3, 65, 97)).astype(np.float32)
    table = calibrate(graph, [NetworkInput("noise", pixels)], progress=False) if arithmetic.eight_bits else None
    lowered = lower_graph(graph, arithmetic, "tensorrt-rtx", measure_ranges(graph, [pixels]), table).engine
    forms = ["", *(f"map{tile}_" for tile in (128, 64) if kind != "fp32")]
    attention = {f"attention_{part}{form}{kind}_w32" for part in ("", "part_") for form in forms}
    attention.add(f"attention_combine_{kind}_w32")
    names = set(context_kernels(lowered, 32))
    assert attention <= names
    pool, join = sorted(names - attention)
    assert pool in {f"pool_{kind}_{kind}", f"pool_fp32_{kind}"}
    assert join == f"pool_join_{kind}"


@linux
def test_a_model_without_kernels() -> None:
    check_kernels("plugin", DEMO.context_channels)
    check_kernels("native", 96)
    with pytest.raises(SettingsError, match="has 96 channels; there are kernels for 32 and 256; use --context native"):
        check_kernels("plugin", 96)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find(name))
    with pytest.raises(EngineUnavailable, match="compiled with Triton, which is not installed"):
        check_kernels("plugin", DEMO.context_channels)


@linux
def test_the_compilers_last_words(graph: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_kernels, "context_kernels", lambda proto, width: ("attention_fp128",))
    with pytest.raises(BuildError, match="kernels cannot be compiled: error: --context attention_fp128: no kernel has"):
        compile_kernels(tmp_path, graph, CHANNELS, "plugin", ("8.6",), progress=False)


@linux
@pytest.mark.slow
def test_kernels_are_for_the_logits_of_the_engine(graph: onnx.ModelProto, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).standard_normal((1, 3, 65, 97)).astype(np.float32)
    half = lower_graph(graph, Arithmetic("fp16"), "tensorrt-rtx", measure_ranges(graph, [pixels])).engine
    compile_kernels(tmp_path, without_last_cast(half), (9, None), None, ("8.0",), progress=False)
    kernels = json.loads((tmp_path / "sm_80" / "launch.json").read_text("utf-8"))["kernels"]
    assert {spec.name for spec in needed_kernels(9, logits="fp16")} == set(kernels) - {YUV_KERNEL}


@linux
@pytest.mark.slow
def test_a_padded_network_of_one_class_gets_the_kernels_that_its_plans_launch(
    graph: onnx.ModelProto, tmp_path: Path
) -> None:
    compile_kernels(tmp_path, graph, (1, None), None, ("8.0",), progress=False, padded=True)
    kernels = json.loads((tmp_path / "sm_80" / "launch.json").read_text("utf-8"))["kernels"]
    assert {spec.name for spec in needed_kernels(1, padded=True)} == set(kernels) - {YUV_KERNEL}
    assert "gather_padded_fp32" in kernels


@linux
@pytest.mark.slow
def test_a_spill_is_a_warning_of_the_build(
    graph: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's process is a real one that takes too large a tile for one of the kernels."""
    run = bundle_kernels._running
    code = """
import dataclasses, sys
from isnet_trt.cuda import kernel_specs
from isnet_trt.kernels import compile
accumulate, large = kernel_specs.accumulate, {"ROWS": 4, "BLOCK": 1024}
def spill(dtype, classes):
    spec = accumulate(dtype, classes)
    return dataclasses.replace(spec, constants={**spec.constants, **large}, num_warps=32)
kernel_specs.accumulate = spill
sys.exit(compile.main(sys.argv[1:]))
"""
    monkeypatch.setattr(bundle_kernels, "_running", lambda command: run([command[0], "-c", code, *command[3:]]))
    spilling = compile_kernels(tmp_path, graph, CHANNELS, None, ("8.0",), progress=False)
    assert spilling == (f"accumulate_fp32_k{DEMO.num_classes} (sm_80)",)
    assert (tmp_path / "sm_80" / "launch.json").is_file()


WAITS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
from isnet_trt.export import bundle_kernels
command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(3600)"]
with bundle_kernels._running(command) as process:
    process.stdout.readline()
    print(process.pid, flush=True)
    time.sleep(3600)
"""


@linux
def test_ctrl_c_ends_the_compiler_too() -> None:
    with start_python("-c", WAITS) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGINT)
        process.wait(PATIENCE)
    wait_until(lambda: not Path(f"/proc/{child}").exists(), lambda: "the compiler outlives the build")
