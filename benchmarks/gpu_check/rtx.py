"""Does TensorRT-RTX, or TensorRT, build and run on this card: targets, precisions, and what eight bits gain."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu_check import engines
from benchmarks.gpu_check.check import Answer, CannotRun, Check, Setup, device_lost, part
from benchmarks.gpu_check.kernels import seed_of
from benchmarks.gpu_check.place import device

TARGETS = ("default", "SM80", "SM86", "SM89", "SM120")
ERRORS = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 5e-2}
"""Precision -> the most that an engine's relative error against float64 may be."""
EIGHT_BITS = {"int8": 0.15, "fp8": 0.25}
"""The same after four layers of eight bits against float16 on random data."""
LAYERS: dict[str, tuple[tuple[int, int, int, int], int, int]] = {
    "1x1 256, 128x171": ((1, 256, 128, 171), 1, 1),
    "1x1 512, 64x86": ((1, 512, 64, 86), 1, 1),
    "1x1 2048, 64x86": ((1, 2048, 64, 86), 1, 1),
    "3x3 256 dilated 2, 64x86": ((1, 256, 64, 86), 3, 2),
    "3x3 512 dilated 4, 64x86": ((1, 512, 64, 86), 3, 4),
    "3x3 512, 8 x 64x128": ((8, 512, 64, 128), 3, 1),
    "1x1 1024, 8 x 64x128": ((8, 1024, 64, 128), 1, 1),
}
"""Convolutions of the published models at stride 8 (name -> input, kernel, dilation), as many filters as channels."""


def _library(kind: str) -> Any:
    from isnet_trt.engines.table import library

    return library(kind).load()


def runs(kind: str, target: str) -> Callable[[Answer, Setup], None]:
    """Build, load and run a small network in every precision; the library's exact words where it refuses."""

    def run(answer: Answer, setup: Setup) -> None:
        library = _library(kind)
        answer.figure("library", f"{kind} {library.__version__}")
        good = [dtype for dtype in engines.FLOATS if _try(answer, setup, library, target, dtype)]
        answer.figure("ran", good)
        if not good:
            raise CannotRun(f"no precision of target {target} runs here; the rows have the library's words")

    return run


def _try(answer: Answer, setup: Setup, library: Any, target: str, dtype: str) -> bool:
    cells: dict[str, Any] = {"target": target, "precision": dtype, "build s": "", "answer": ""}
    model, start = engines.small_network(dtype, seed_of(setup, dtype)), time.monotonic()
    try:
        serialised = engines.build(library, model, None if target == "default" else target)
        cells["build s"] = time.monotonic() - start
        loaded = engines.Loaded(library, serialised)
        cells["relative error"] = _error(loaded, model, seed_of(setup, target))
        cells["µs"] = 1e6 * loaded.seconds()
        cells["answer"] = "runs"
    except Exception as failure:  # a library that does not run here may say so in any way, CUDA's through PyTorch
        answer.row(**{**cells, "answer": f"{type(failure).__name__}: {failure}"})
        if device_lost():
            raise
        return False
    answer.row(**cells)
    wrong = f"{dtype} of target {target} runs, but its result is off by {cells['relative error']:.2g}"
    return answer.require(cells["relative error"] <= ERRORS[dtype], wrong)


def _error(loaded: engines.Loaded, model: bytes, seed: int) -> float:
    """Relative distance from the same graph in ONNX's own reference evaluation in float64."""
    import torch

    image = np.random.default_rng(seed).standard_normal((2, 3, 33, 33)).astype(np.float32)
    out = loaded.bind(torch.from_numpy(image).to(device()))
    loaded.run()
    torch.cuda.synchronize()
    wanted = in_float64(model, image)
    return float(np.linalg.norm(out.double().cpu().numpy() - wanted) / np.linalg.norm(wanted))


def in_float64(model: bytes, image: Any) -> Any:
    """The graph of `engines.small_network` in float64, with the weights that it holds, on the CPU."""
    import onnx
    import torch
    from onnx import numpy_helper
    from torch.nn import functional

    held = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(model).graph.initializer}
    w1, w2, w3 = (torch.from_numpy(held[name].astype(np.float64)) for name in ("w1", "w2", "w3"))
    x = torch.from_numpy(image.astype(np.float64))
    x = functional.relu(functional.conv2d(x, w1, padding=1))
    x = functional.relu(functional.conv2d(x, w2, padding=4, dilation=4))
    flat = x.flatten(2)
    mixed = torch.softmax(flat @ flat.transpose(1, 2), 2) @ flat
    return functional.conv2d(mixed.view_as(x), w3).numpy()


def precisions(kind: str) -> Callable[[Answer, Setup], None]:
    """Convolutions of the published models in float16, bfloat16, int8 and fp8, layer by layer."""

    def run(answer: Answer, setup: Setup) -> None:
        library, target = _library(kind), None
        if kind == "tensorrt-rtx":
            target = running_target(setup)
            answer.figure("target", target)
        for name in list(LAYERS)[:2] if setup.quick else LAYERS:
            _layer(answer, setup, library, None if target == "default" else target, name)

    return run


def running_target(setup: Setup) -> str:
    """The first target that was seen running."""
    for target in TARGETS:
        if setup.figure(f"rtx.runs.{target}", "ran"):
            return target
    raise CannotRun("no target of TensorRT-RTX was seen running here (checks rtx.runs)")


def _layer(answer: Answer, setup: Setup, library: Any, target: str | None, name: str) -> None:
    shape, kernel, dilation = LAYERS[name]
    cells: dict[str, Any] = {"layer": name}
    plain = None
    for dtype in ("fp16", "bf16", *EIGHT_BITS):
        with part(answer, f"{name} {dtype}", engines.BuildFailed):
            model = engines.convolution(dtype, shape, shape[1], kernel, dilation, seed_of(setup, name))
            loaded = engines.Loaded(library, engines.build(library, model, target))
            out = _output(loaded, shape, dtype, seed_of(setup, name, "image"))
            cells[f"{dtype} µs"] = 1e6 * loaded.seconds()
            plain = out if dtype == "fp16" else plain
            if dtype in EIGHT_BITS:
                cells[f"{dtype} built as"] = types_of(loaded.layers())
                _compare_eight_bits(answer, name, dtype, out, plain, cells)
    answer.row(**cells)


def _output(loaded: engines.Loaded, shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    import torch

    generator = torch.Generator(device()).manual_seed(seed)
    kind = torch.bfloat16 if dtype == "bf16" else torch.float16
    out = loaded.bind(torch.randn(shape, generator=generator, device=device()).clamp(-4, 4).to(kind))
    loaded.run()
    torch.cuda.synchronize()
    return out.float()


def _compare_eight_bits(answer: Answer, name: str, dtype: str, out: Any, plain: Any, cells: dict[str, Any]) -> None:
    if plain is None:
        return
    error = float((out - plain).norm() / plain.norm())
    cells[f"{dtype} error"] = error
    cells[f"{dtype} times as fast as fp16"] = cells["fp16 µs"] / cells[f"{dtype} µs"]
    answer.require(error <= EIGHT_BITS[dtype], f"{name} in {dtype} is off from float16 by {error:.2g}")


def types_of(layers: str) -> str:
    """The types that the engine's convolutions read, most frequent first, or the inspector's words where these are of
    another format."""
    from isnet_trt.errors import BuildError
    from isnet_trt.export.engines.inspection import parse_layers

    try:
        found = Counter(kind for layer in parse_layers(layers) for kind in layer.inputs)
    except BuildError as error:
        return str(error)
    return ", ".join(f"{kind} {count}" for kind, count in found.most_common())


def ahead_of_time(answer: Answer, setup: Setup) -> None:
    """Engines of every target and precision are built, which needs no GPU; none is run."""
    library = _library("tensorrt-rtx")
    for target in TARGETS[1:2] if setup.quick else TARGETS[1:]:
        for dtype in (*engines.FLOATS, *EIGHT_BITS):
            model = (
                engines.small_network(dtype, setup.seed)
                if dtype in engines.FLOATS
                else engines.convolution(dtype, (1, 64, 16, 24), 64, 3, 1, setup.seed)
            )
            try:
                answer.row(target=target, precision=dtype, bytes=len(engines.build(library, model, target)))
            except engines.BuildFailed as failure:
                answer.row(target=target, precision=dtype, bytes=0, answer=str(failure))
                known = dtype == "fp8" and target in ("SM80", "SM86")  # there are no units for it
                answer.require(known, f"{dtype} for {target} does not build: {failure}")


_RTX, _TRT = ("gpu", "torch-cuda", "onnx", "tensorrt-rtx"), ("gpu", "torch-cuda", "onnx", "tensorrt")
CHECKS = (
    *(
        Check(
            f"rtx.runs.{target}", f"TensorRT-RTX builds and runs, target {target}", runs("tensorrt-rtx", target),
            _RTX, 90, alone=True, quick=target in TARGETS[:2], rank=4,
        )
        for target in TARGETS
    ),
    Check("trt.runs", "TensorRT builds and runs", runs("tensorrt", "default"), _TRT, 180, alone=True, rank=4),
    Check(
        "rtx.precisions", "eight bits beside float16, layer by layer, TensorRT-RTX", precisions("tensorrt-rtx"),
        _RTX, 240, alone=True, rank=11,
    ),
    Check(
        "trt.precisions", "eight bits beside float16, layer by layer, TensorRT", precisions("tensorrt"),
        _TRT, 400, alone=True, rank=11,
    ),
    Check(
        "rtx.ahead_of_time", "TensorRT-RTX engines of all targets and precisions, built only", ahead_of_time,
        ("no gpu", "onnx", "tensorrt-rtx"), 300, alone=True, rank=4,
    ),
)  # fmt: skip
