"""Published models in TensorRT at full size: whole call, engine alone, layers by time, and the same network's peers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_stages, gpu_timing
from benchmarks.gpu_stages import MODELS, Bench
from benchmarks.kernel_cost import Card
from isnet_trt import Segmenter
from isnet_trt.bundle import ENGINE, ONNX
from isnet_trt.cuda import plugins
from isnet_trt.pictures.preprocess import test_size as network_size
from tests.gpu.comparison import recipe_case
from tests.gpu.record import CannotRun, Record
from tests.gpu.target import Target
from tests.gpu.test_gpu_bundles import published

engines = pytest.importorskip("tests.gpu.engines", exc_type=ImportError)

PRECISIONS = ("fp16", "int8", "fp8")
AIMS = {"ADE fp16": 1.6, "Cityscapes fp16": 400.0, "Cityscapes int8": 280.0, "Cityscapes fp8": 280.0}
"""Milliseconds of a whole call on an H100 that are aimed at."""
LONGEST = 25
"""Layers in a record; all of them are in the file beside the inspector's text."""


def model_cases() -> Iterator[Any]:
    for precision in PRECISIONS:
        for name in MODELS:
            case = f"models.{name}.{precision}"
            mark = pytest.mark.gpu(case, 5, 600, slow=precision == "fp8", seconds=150)
            yield pytest.param(name, precision, id=case, marks=mark)


def batch_shape(case: Any) -> tuple[int, int, int, int]:
    """What the network receives: whole images, or a batch of windows."""
    return (case.batch, 3, *(case.inference.window or network_size(case.size, case.preprocess)))


@pytest.mark.parametrize(("name", "precision"), [*model_cases()])
def test_model(record: Record, target: Target, name: str, precision: str) -> None:
    """A published model's TensorRT engine: whole call, engine alone, layers by time; the inspector's text in a file."""
    recipe, preset = MODELS[name]
    case = recipe_case(recipe, preset)
    shape = batch_shape(case)
    folder, seconds = published(target, "tensorrt", recipe, precision, shape[2:], shape[0])
    record.figure("build s", seconds)
    record.figure("aim ms", AIMS.get(f"{name} {precision}"))
    with record.part("whole call"), Segmenter.open(folder, device="cuda") as segmenter:
        record.row(runs=segmenter.description, **whole_call(target, segmenter, case))
    with record.part("engine alone"):
        inspect(record, target, folder, shape, f"{name.lower()}_{precision}")


def whole_call(target: Target, segmenter: Segmenter, case: Any) -> dict[str, Any]:
    """Cells of whole calls, and those of the stages beside the engine."""
    bench = Bench(target, target.quick, Card("", 1.0, 1.0, 1.0), {})
    cells = gpu_stages.call_cells(bench, segmenter, case)
    return {**cells, "missed": "; ".join(bench.missed)}


def inspect(record: Record, target: Target, folder: Path, shape: tuple[int, ...], name: str) -> None:
    """The engine without what surrounds it: time in a CUDA graph, layers by time, and what it says of itself."""
    library = engines.load("tensorrt")
    variant = target.variants()[0]
    with plugins.kernels_for(library, variant.kernels("w256"), variant.multiprocessors):
        loaded = engines.Loaded(library, (folder / ENGINE).read_bytes())
        loaded.bind(torch.randn(shape, device=target.device))
        record.figure("engine alone ms", loaded.microseconds() / 1e3)
        record.figure("replay equal", loaded.replays_equal())
        text = loaded.layers()
        record.figure("inspector", str(keep(target, f"tensorrt_{library.__version__}_{name}.json", text)))
        times = loaded.layer_times()
        keep(target, f"tensorrt_{library.__version__}_{name}_times.csv", table(times))
        record.figure("layers", len(times))
        record.figure("all layers ms", sum(times.values()) / 1e3)
        for layer in list(times)[:LONGEST]:
            row = {"layer": layer, "µs": times[layer]}  # as a keyword, Python would make µ a Greek letter
            record.row(**row)


def table(times: dict[str, float]) -> str:
    return "".join(f"{microseconds:.2f}\t{layer}\n" for layer, microseconds in times.items())


def keep(target: Target, name: str, text: str) -> Path:
    """Write what a library says of an engine to the working folder, for the tests of the inspection."""
    path = target.folder / "inspector" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8", errors="backslashreplace")
    return path


@pytest.mark.parametrize(
    "name", [pytest.param(n, id=n, marks=pytest.mark.gpu(f"models.{n}.pytorch", 6, 400, seconds=120)) for n in MODELS]
)
def test_pytorch(record: Record, target: Target, name: str) -> None:
    """The same network on the same batch in PyTorch: eager, in a CUDA graph, and by torch.compile."""
    bench = Bench(target, target.quick, Card("", 1.0, 1.0, 1.0), {})
    for cells in gpu_stages.peers(bench, name):
        record.row(**cells)
    for message in bench.missed:
        record.fail(message)


PROVIDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "CUDA fp32": ("CUDAExecutionProvider", {"use_tf32": 0}),
    "TensorRT fp16": ("TensorrtExecutionProvider", {"trt_fp16_enable": True}),
    "TensorRT fp32": ("TensorrtExecutionProvider", {}),
}
"""What ONNX Runtime runs the graph with."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, id=n, marks=pytest.mark.gpu(f"models.{n}.onnxruntime", 6, 500, seconds=150)) for n in MODELS],
)
def test_onnxruntime(record: Record, target: Target, name: str) -> None:
    """The same network on the same batch by ONNX Runtime's CUDA and TensorRT providers."""
    recipe, preset = MODELS[name]
    shape = batch_shape(recipe_case(recipe, preset))
    folder, _ = published(target, "onnxruntime-cuda", recipe, "fp32", None)
    for provider in PROVIDERS:
        with record.part(provider):
            run = bound(folder / ONNX, *PROVIDERS[provider], torch.randn(shape, device=target.device))
            seconds = gpu_stages.wall(run, 5 if target.quick else gpu_timing.ROUNDS)
            record.row(provider=provider, shape=list(shape), ms=1e3 * seconds.p50, **{"spread %": 100 * seconds.width})


def bound(path: Path, provider: str, options: dict[str, Any], batch: torch.Tensor) -> Callable[[], object]:
    """A call that runs the graph on ``batch``, where it lies, and returns when it has ended.

    Raises:
        CannotRun: this ONNX Runtime has no such provider, or does not start it.
    """
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        raise CannotRun(f"ONNX Runtime {onnxruntime.__version__} has no {provider}")
    session = onnxruntime.InferenceSession(path, providers=[(provider, options)])
    if session.get_providers()[0] != provider:
        raise CannotRun(f"ONNX Runtime does not start {provider}; it has taken {session.get_providers()[0]}")
    binding, output = session.io_binding(), session.get_outputs()[0].name
    place = (batch.device.type, batch.device.index or 0)
    binding.bind_input(session.get_inputs()[0].name, *place, "float32", list(batch.shape), batch.data_ptr())
    binding.bind_output(output, *place)
    return functools.partial(session.run_with_iobinding, binding)
