"""TensorRT and TensorRT-RTX on this GPU: do they build and run, what eight bits gain, and our plugins in them."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from isnet_trt.engines.tensorrt_rtx import LIBRARY as RTX
from tests.gpu.record import CannotRun, Record, device_lost
from tests.gpu.target import Target

engines = pytest.importorskip("tests.gpu.engines", exc_type=ImportError)
FLOATS, BuildFailed, Loaded = engines.FLOATS, engines.BuildFailed, engines.Loaded

TARGETS = ("default", "SM80", "SM86", "SM89", "SM120")
ERRORS = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 5e-2}
"""Precision -> the most that an engine's relative error against float64 may be."""
EIGHT_BITS = {"int8": 0.15, "fp8": 0.25}
"""The same after four layers of eight bits against float16 on random data."""
FORMS = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}
"""Precision -> the most that plugin and native form may differ, relatively: both round, in other places."""
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
HEADS = {
    "small": (2, 19, (33, 41)),
    "small, one picture": (1, 19, (33, 41)),  # the native form of several is not always built
    "Cityscapes x2": (2, 19, (64, 128)),
    "ADE": (1, 150, (64, 86)),
}
"""Sizes of the context modules that are built both ways: batch, classes, positions."""
RUNS = [("tensorrt", "trt.runs", "default")] + [("tensorrt-rtx", f"rtx.runs.{target}", target) for target in TARGETS]
KINDS = (("tensorrt", "trt"), ("tensorrt-rtx", "rtx"))


def of_kinds(what: str, order: int, limit: int) -> Any:
    """A test of either library, recorded as ``trt.what`` and ``rtx.what``."""
    params = [
        pytest.param(k, marks=pytest.mark.gpu(f"{short}.{what}", order, limit, seconds=limit / 3), id=k)
        for k, short in KINDS
    ]
    return pytest.mark.parametrize("kind", params)


@pytest.mark.parametrize(
    ("kind", "build_for"),
    [
        pytest.param(kind, to, marks=pytest.mark.gpu(case, 4, 180, slow=to in TARGETS[2:], seconds=40), id=case)
        for kind, case, to in RUNS
    ],
)
def test_runs(record: Record, target: Target, kind: str, build_for: str) -> None:
    """A small network is built and run in every precision; where a library refuses, its exact message."""
    library = engines.load(kind)
    record.figure("library", f"{kind} {library.__version__}")
    ran = [dtype for dtype in FLOATS if run_one(record, target, library, build_for, dtype)]
    record.figure("ran", ran)
    if not ran and not record.wrong:
        raise CannotRun(f"no precision of target {build_for} runs here; the rows have the library's words")


def run_one(record: Record, target: Target, library: Any, build_for: str, dtype: str) -> bool:
    cells: dict[str, Any] = {"target": build_for, "precision": dtype, "build s": "", "answer": ""}
    model, start = engines.small_network(dtype, target.seed_of(dtype)), time.monotonic()
    try:
        serialised = engines.build(library, model, build_for)
        cells["build s"] = time.monotonic() - start
        loaded = Loaded(library, serialised)
        image = np.random.default_rng(target.seed_of(build_for)).standard_normal((2, 3, 33, 33)).astype(np.float32)
        out = loaded.bind(torch.from_numpy(image).to(target.device))
        loaded.run()
        torch.cuda.synchronize()
        cells["relative error"] = error = distance(out.double().cpu().numpy(), engines.in_float64(model, image))
        cells["µs"] = loaded.microseconds()
    except Exception as failure:  # a library that does not run here may say so in any way, CUDA's through PyTorch
        record.row(**{**cells, "answer": f"{type(failure).__name__}: {failure}"})
        if device_lost():
            raise
        return False
    record.row(**{**cells, "answer": "runs"})
    return record.require(error <= ERRORS[dtype], f"{dtype} of target {build_for} runs, but is off by {error:.2g}")


def distance(values: Any, reference: Any) -> float:
    return float(np.linalg.norm(values - reference) / np.linalg.norm(reference))


def running_target(record: Record, kind: str) -> str:
    """The target to build for: with TensorRT-RTX the first that was seen running.

    Raises:
        CannotRun: the library was seen to run no precision, so that every further build would be in vain.
    """
    if kind == "tensorrt":
        seen = TARGETS[:1] if record.known("trt.runs", "ran") != [] else ()  # None: it was not asked
    else:
        seen = tuple(t for t in TARGETS if record.known(f"rtx.runs.{t}", "ran"))
    if not seen:
        title = "target of TensorRT-RTX" if kind == "tensorrt-rtx" else "precision of TensorRT"
        raise CannotRun(f"no {title} was seen running here ({dict(KINDS)[kind]}.runs)")
    record.figure("target", seen[0])
    return seen[0]


@of_kinds("precisions", 11, 400)
def test_precisions(record: Record, target: Target, kind: str) -> None:
    """Convolutions of the published models in float16, bfloat16, int8 and fp8, layer by layer: error, time, types."""
    library, build_for = engines.load(kind), running_target(record, kind)
    for name in list(LAYERS)[: 2 if target.quick else None]:
        shape, kernel, dilation = LAYERS[name]
        cells: dict[str, Any] = {"layer": name}
        plain = None
        for dtype in ("fp16", "bf16", *EIGHT_BITS):
            with record.part(f"{name} {dtype}", BuildFailed):
                model = engines.convolution(dtype, shape, kernel, dilation, target.seed_of(name))
                loaded = Loaded(library, engines.build(library, model, build_for))
                out = output(target, loaded, shape, dtype, name)
                cells[f"{dtype} µs"] = loaded.microseconds()
                plain = out if dtype == "fp16" else plain
                if dtype in EIGHT_BITS:
                    cells[f"{dtype} built as"] = types_of(loaded.layers())
                    compare_eight_bits(record, name, dtype, out, plain, cells)
        record.row(**cells)


def output(target: Target, loaded: Loaded, shape: tuple[int, ...], dtype: str, name: str) -> torch.Tensor:
    generator = torch.Generator(target.device).manual_seed(target.seed_of(name, "image"))
    image = torch.randn(shape, generator=generator, device=target.device).clamp(-4, 4)
    out = loaded.bind(image.to(torch.bfloat16 if dtype == "bf16" else torch.float16))
    loaded.run()
    torch.cuda.synchronize()
    return out.float()


def compare_eight_bits(record: Record, name: str, dtype: str, out: Any, plain: Any, cells: dict[str, Any]) -> None:
    if plain is None:
        return
    cells[f"{dtype} error"] = error = float((out - plain).norm() / plain.norm())
    cells[f"{dtype} times as fast as fp16"] = cells["fp16 µs"] / cells[f"{dtype} µs"]
    record.require(error <= EIGHT_BITS[dtype], f"{name} in {dtype} is off from float16 by {error:.2g}")


def types_of(layers: str) -> str:
    """The types that the engine's convolutions read, most frequent first; the inspector's text if it is another."""
    from isnet_trt.export.engines.inspection import UnreadableLayers, parse_layers

    try:
        counts = Counter(kind for layer in parse_layers(layers) for kind in layer.inputs)
    except UnreadableLayers as error:
        return str(error)
    return ", ".join(f"{kind} {count}" for kind, count in counts.most_common())


@of_kinds("plugins", 5, 400)
def test_plugins(record: Record, target: Target, kind: str) -> None:
    """The context modules as an engine with plugins and one without: equal, replayed from a graph equal, both timed."""
    library, build_for = engines.load(kind), running_target(record, kind)
    for name in list(HEADS)[: 2 if target.quick else None]:
        for dtype in FLOATS:
            with record.part(f"{name} {dtype}"):
                compare_forms(record, target, library, build_for, dtype, name)


def compare_forms(record: Record, target: Target, library: Any, build_for: str, dtype: str, name: str) -> None:
    from isnet_trt.cuda import plugins

    batch, classes, size = HEADS[name]
    model = engines.head(dtype, target.seed_of(name, dtype), batch, classes, size)
    pair: dict[str, Loaded] = {}
    with record.part(f"{name} {dtype}, native form", BuildFailed):
        pair["native"] = Loaded(library, engines.build(library, model, build_for))
    if library.__name__ == RTX.module:
        RTX.allow_plugins(library)
    variant = target.variants()[0]
    with plugins.kernels_for(library, variant.kernels("w256"), variant.multiprocessors) as host:
        try:
            pair["plugin"] = Loaded(library, engines.build(library, model, build_for))
        except BuildFailed as failure:
            record.fail(f"{name} {dtype}: {failure}; the plugins say: {'; '.join(host.failures) or 'nothing'}")
            return
    generator = torch.Generator(target.device).manual_seed(target.seed_of(name, "image"))
    image = torch.randn((batch, engines.FEATURES, *size), generator=generator, device=target.device)
    cells = measure_forms(record, f"{name} {dtype}", pair, image, FORMS[dtype])
    for message in host.failures:
        record.fail(f"{name} {dtype}: a plugin says: {message}")
    record.row(case=name, precision=dtype, **cells)


def measure_forms(
    record: Record, what: str, pair: dict[str, Loaded], image: torch.Tensor, bound: float
) -> dict[str, Any]:
    """Cells of a row; those about the native form only where it was built."""
    outputs = {name: engine.bind(image) for name, engine in pair.items()}
    for engine in pair.values():
        engine.run()
    torch.cuda.synchronize()
    cells: dict[str, Any] = {}
    if "native" in pair:
        expected, values = outputs["native"].double(), outputs["plugin"].double()
        cells["difference"] = error = float((values - expected).norm() / expected.norm())
        record.require(error <= bound, f"{what}: plugin and native form differ by {error:.2g} (at most {bound:.2g})")
    finite = bool(outputs["plugin"].isfinite().all())
    record.require(finite, f"{what}: the plugin's engine gives values that are not finite")
    replayed = pair["plugin"].replays_equal()
    record.require(replayed is not False, f"{what}: the replay of a CUDA graph gives another result than the eager run")
    cells["replay equal"] = "no graph" if replayed is None else replayed
    return cells | {f"{name} µs": engine.microseconds() for name, engine in pair.items()}
