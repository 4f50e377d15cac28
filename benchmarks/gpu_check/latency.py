"""How long everything takes: each stage beside its floor, the engine alone, the whole, and peers on the same card."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import kernel_cost as cost
from benchmarks import stats
from benchmarks.gpu_check import bundles, rigs, timing
from benchmarks.gpu_check.check import Answer, CannotRun, Check, Setup, part
from benchmarks.gpu_check.kernels import measured_card, seed_of
from benchmarks.gpu_check.needs import RUNTIME
from benchmarks.gpu_check.networks import Strided, Torch
from benchmarks.gpu_check.place import device
from benchmarks.gpu_check.rigs import Case, GpuRig
from benchmarks.kernel_cost import Card, Cost
from isnet_trt.merging import geometry
from isnet_trt.pictures.interop import image_from
from isnet_trt.pictures.preprocess import test_size
from isnet_trt.runtime.gpu import GpuRuntime

ROUNDS, FEW = 15, 5
AIM = 0.15
"""Everything but the engine should add at most this share to the engine's time."""
SAME = 0.9
"""Least share of equal arg max of two float16 networks on noise. Made-up weights for ADE's 150 classes have near ties:
PyTorch's float16 has 0.964 of its own float32's there, its bfloat16 0.884, and two roundings differ more than one."""
FLOAT = 4
"""Bytes of an engine's input and output values."""
MODELS = {
    "ADE, whole 512x683": ("isnet_resnet50os8_ade20k", "default", (480, 640), 1),
    "Cityscapes, 1024x2048, ms+flip": ("isnet_resnet50os8_cityscapes", "ms-flip", (1024, 2048), 8),
}
"""Case -> recipe, preset, source size, windows per batch."""


def case_of(name: str) -> Case:
    """One of `MODELS` as a case."""
    from isnet_trt.recipes import recipe

    found, preset, size, batch = MODELS[name]
    made = recipe(found)
    stride = made.architecture.output_stride
    return Case(name, made.labels, made.preprocess, made.preset(preset), size, stride, batch)


def floors(case: Case) -> dict[str, Cost]:
    """Stage -> what it must move and compute; the engine is float32 at its borders. Whole mode: one plain pass."""
    picture = test_size(case.size, case.preprocess)
    classes, inference = case.labels.count, case.inference
    found: dict[str, Cost] = {}
    if picture != case.size:
        found["resize"] = cost.resize(case.size, picture)
    shown = [w for one in geometry.passes(picture, inference) for w in geometry.windows(one, inference)]
    values = sum(w.size[0] * w.size[1] for w in shown)
    found["gather"] = Cost(3.0 * picture[0] * picture[1] + FLOAT * 3 * values, 9 * 3 * values)
    answers = classes * sum(h * w for h, w in (geometry.coarse_size(w.size, case.stride) for w in shown))
    found["finite"] = Cost(FLOAT * float(answers), answers)
    if inference.mode == "slide":
        found["accumulate"] = cost.accumulate(picture, inference, classes, case.stride, FLOAT)
        # What finish reads are volumes of the scaled pictures; it writes the source's size.
        found["finish"] = cost.finish(picture, inference, classes)
    else:
        pixels = case.size[0] * case.size[1]
        found["finish"] = Cost(FLOAT * float(answers) + pixels, (cost.BILINEAR + 1) * classes * pixels)
    return found


def stages(name: str) -> Callable[[Answer, Setup], None]:
    """A check: every stage but the network, on the GPU's own clock, beside its floor."""

    def run(answer: Answer, setup: Setup) -> None:
        case = case_of(name)
        network = Strided(case.labels.count, case.stride, setup.seed)
        pipeline = GpuRig(setup).pipeline(network, case)
        try:
            found = staged(pipeline, case, setup, ROUNDS if not setup.quick else FEW)
        finally:
            pipeline.close()
        found.pop("engine", None)
        _rows(answer, found, floors(case), measured_card(setup))
        answer.figure("all stages, seconds", sum(spread.p50 for spread in found.values()))

    return run


def staged(pipeline: Any, case: Case, setup: Setup, rounds: int) -> dict[str, stats.Spread]:
    """Stage -> spread of its seconds in one picture, launched one by one."""
    import torch

    image = image_from(rigs.picture(case.size, seed_of(setup, case.label)))
    timing.warm(lambda _: pipeline(image, case.inference))
    samples: dict[str, list[float]] = {}
    stream = torch.cuda.ExternalStream(pipeline.stream)
    with pipeline.device:
        for number in range(rounds + 1):
            timing.hold(stream)  # else a short step takes as long as Python takes to launch it
            spans = [_span(stream, stage, call) for stage, call in pipeline.steps(case.size, case.inference)]
            torch.cuda.synchronize()
            if number:  # the first loads what the second does not have to
                for stage, seconds in _summed(spans).items():
                    samples.setdefault(stage, []).append(seconds)
    return {stage: stats.spread(found) for stage, found in samples.items()}


def _span(stream: Any, stage: str, call: Callable[[], None]) -> tuple[str, Any, Any]:
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record(stream)
    call()
    end.record(stream)
    return stage, begin, end


def _summed(spans: Iterable[tuple[str, Any, Any]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for stage, begin, end in spans:
        total[stage] = total.get(stage, 0.0) + begin.elapsed_time(end) / 1e3
    return total


def _rows(answer: Answer, found: dict[str, stats.Spread], least: dict[str, Cost], card: Card | None) -> None:
    for stage, spread in found.items():
        cells: dict[str, Any] = {"stage": stage, "µs": 1e6 * spread.p50, "spread %": 100 * spread.width}
        if card and stage in least:
            floor = least[stage].floor(card)
            cells |= {"floor µs": 1e6 * floor, "floor reached %": 100 * floor / spread.p50}
        answer.row(**cells)


def whole(name: str) -> Callable[[Answer, Setup], None]:
    """A check: the whole picture and the engine alone for every engine that runs here, and what the rest adds."""

    def run(answer: Answer, setup: Setup) -> None:
        case = case_of(name)
        with part(answer, f"{name} PyTorch"):  # first: an engine may end the process
            _torch(answer, setup, case)
        ran = [_engine(answer, setup, case, kind) for kind in bundles.KINDS]
        if not any(ran):
            answer.missing("a bundle's engine", "none runs here; the network is PyTorch's")

    return run


def _engine(answer: Answer, setup: Setup, case: Case, kind: str) -> bool:
    """One engine kind's bundle, through the library's own segmenter."""
    picture = test_size(case.size, case.preprocess)
    window = case.inference.window or picture
    with part(answer, f"{case.label} {kind}"):
        folder, _ = bundles.published(setup, kind, MODELS[case.label][0], "fp16", window, case.batch)
        with bundles.opened(folder, kind) as segmenter:
            if not isinstance(segmenter.runtime, GpuRuntime):
                raise CannotRun(segmenter.description)
            _measure(answer, setup, case, f"{kind} fp16", segmenter.description, segmenter, segmenter.runtime.pipeline)
        return True
    return False


def _torch(answer: Answer, setup: Setup, case: Case) -> None:
    """The pipeline around PyTorch's network in float16: what the stages add on a card without engine library."""
    network = Torch(_model(case), case.labels.count, case.stride, "float16")
    with rigs.on_gpu(GpuRig(setup), network, case) as segmenter:
        assert isinstance(segmenter.runtime, GpuRuntime)
        _measure(answer, setup, case, "PyTorch fp16", network.description, segmenter, segmenter.runtime.pipeline)


def _model(case: Case) -> Any:
    from benchmarks.weights import filled_checkpoint
    from isnet_trt.training.checkpoint import load_checkpoint, load_model

    name = MODELS[case.label][0]
    with tempfile.TemporaryDirectory() as folder:
        return load_model(load_checkpoint(filled_checkpoint(name, Path(folder) / "filled.pth"), name))


def _measure(
    answer: Answer, setup: Setup, case: Case, name: str, description: str, segmenter: Any, pipeline: Any
) -> None:
    """Whole calls by the host's clock, stages by the GPU's, and the share of what is not the engine."""
    rounds = FEW if setup.quick else ROUNDS
    found = staged(pipeline, case, setup, rounds)
    engine = found.pop("engine").p50
    image = rigs.picture(case.size, seed_of(setup, case.label))
    call = wall(lambda: segmenter(image, inference=case.inference), rounds)
    several = wall(lambda: list(segmenter.map([image] * 4, inference=case.inference)), max(3, rounds // 3))
    added = call.p50 / engine - 1
    answer.row(
        network=name, **{"engine ms": 1e3 * engine, "all stages ms": 1e3 * sum(s.p50 for s in found.values())},
        **{"call ms": 1e3 * call.p50, "spread %": 100 * call.width, "map, ms each": 1e3 * several.p50 / 4},
        **{"added %": 100 * added}, runs=description,
    )  # fmt: skip
    answer.figure(f"{name}: added share", added)
    answer.require(added <= AIM, f"{name}: everything but the engine adds {100 * added:.0f} %, the aim is 15 %")


def wall(work: Callable[[], object], rounds: int) -> stats.Spread:
    """Seconds of a call that returns when all is done, by the host's clock."""
    timing.warm(lambda _: work())
    samples = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        samples.append(time.perf_counter() - start)
    return stats.spread(samples)


def peers(name: str) -> Callable[[Answer, Setup], None]:
    """A check: the network alone on one batch, by PyTorch eager, torch.compile and every engine, interleaved."""

    def run(answer: Answer, setup: Setup) -> None:
        import torch

        case = case_of(name)
        picture = test_size(case.size, case.preprocess)
        shape = (case.batch, 3, *(case.inference.window or picture))
        generator = torch.Generator(device()).manual_seed(setup.seed)
        batch = torch.randn(shape, generator=generator, device=device())
        contenders = dict(_contenders(answer, setup, case, batch))
        spreads = timing.interleaved(contenders, FEW if setup.quick else ROUNDS)
        eager = spreads["PyTorch eager fp16"].p50
        for contender, spread in spreads.items():
            answer.row(
                network=contender, shape=list(shape), **{"ms": 1e3 * spread.p50, "spread %": 100 * spread.width},
                **{"times as fast as eager": eager / spread.p50},
            )  # fmt: skip

    return run


def _contenders(answer: Answer, setup: Setup, case: Case, batch: Any) -> Iterable[tuple[str, timing.Work]]:
    import torch

    network = Torch(_model(case), case.labels.count, case.stride, "float16")
    half = batch.to(network.dtype, memory_format=torch.channels_last)
    wanted = network.logits(batch)
    yield "PyTorch eager fp16", _inference(network.model, half)
    if setup.quick:
        answer.missing("torch.compile", "left out with --quick: compiling takes minutes")
    else:
        work = None
        with part(answer, "torch.compile", Exception):  # another project's compiler may fail in any way
            compiled = _inference(torch.compile(network.model, dynamic=False), half)
            _near(answer, "torch.compile", compiled(0), wanted)
            work = compiled
        if work is not None:
            yield "torch.compile fp16", work
    yield from _engines(answer, setup, case, batch, wanted)


def _inference(model: Any, half: Any) -> timing.Work:
    import torch

    def work(_: int) -> Any:
        with torch.inference_mode():
            return model(half)

    return work


def _near(answer: Answer, name: str, made: Any, wanted: Any) -> None:
    """A contender that computes something else is no contender."""
    share = float((made.float().argmax(1) == wanted.argmax(1)).float().mean())
    answer.require(share >= SAME, f"{name}: {100 * share:.1f} % of the arg max are PyTorch's")


def _engines(answer: Answer, setup: Setup, case: Case, batch: Any, wanted: Any) -> Iterator[tuple[str, timing.Work]]:
    """Engines of the bundles, on PyTorch's memory; they stay open until the process ends."""
    import torch

    for kind in bundles.KINDS:
        work = None
        with part(answer, f"{case.label} {kind}"):
            made = _queued(setup, case, kind, batch)
            out = made(0)
            torch.cuda.synchronize()
            _near(answer, kind, out, wanted)
            work = made
        if work is not None:
            yield kind, work


def _queued(setup: Setup, case: Case, kind: str, batch: Any) -> timing.Work:
    """The engine of a bundle, to be queued on PyTorch's current stream."""
    import torch

    if kind == "onnxruntime-cuda":
        raise CannotRun("ONNX Runtime works on a stream of its own only")
    folder, _ = bundles.published(setup, kind, MODELS[case.label][0], "fp16", tuple(batch.shape[2:]), case.batch)
    engine = bundles.opened(folder, kind).engine
    out = torch.full(engine.output_shape(tuple(batch.shape)), float("nan"), device=device())

    def work(_: int) -> Any:
        engine.enqueue(batch.data_ptr(), out.data_ptr(), tuple(batch.shape), torch.cuda.current_stream().cuda_stream)
        return out

    return work


def plans(answer: Answer, setup: Setup) -> None:
    """What each case takes on a GPU, planned without one."""
    from isnet_trt.cuda.plan import BAND_BYTES, plan

    for name in MODELS:
        case = case_of(name)
        made = plan(case.size, case.inference, rigs.model(case))
        windows = len(made.queue.windows)
        runs = sum(step.stage == "engine" and hasattr(step, "shape") for step in made.steps)
        answer.row(case=name, windows=windows, engine_runs=runs, steps=len(made.steps), MiB=made.bytes / 2**20)
        full = runs == -(-windows // case.batch) or case.batch == 1
        answer.require(full, f"{name}: {windows} windows take {runs} runs of {case.batch}")
        bounded = made.buffers.get("volumes", 0) <= BAND_BYTES
        answer.require(bounded, f"{name}: the score volumes take {made.buffers.get('volumes', 0)} bytes at once")


CHECKS = (
    *(Check(f"latency.stages.{n.split(',')[0]}", f"{n}: stages beside their floors", stages(n), RUNTIME, 200, rank=12)
      for n in MODELS),
    *(Check(f"latency.whole.{n.split(',')[0]}", f"{n}: whole, engine alone, what the rest adds", whole(n), RUNTIME, 500,
            alone=True, rank=13) for n in MODELS),
    *(Check(f"latency.peers.{n.split(',')[0]}", f"{n}: network alone, peers on the same card", peers(n), RUNTIME, 600,
            alone=True, rank=14) for n in MODELS),
    Check("plans", "what each case takes on a GPU, planned without one", plans, ("no gpu",), rank=7),
)  # fmt: skip
