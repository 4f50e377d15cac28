"""What `benchmarks.kernels` measures on a GPU, as rows: rates, kernels, stages of an image, networks and bundles."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_timing, stats
from benchmarks import kernel_cost as cost
from benchmarks.kernel_cost import Card, Cost
from benchmarks.synthetic import filled_checkpoint
from isnet_trt import Segmenter, timing
from isnet_trt.cuda import kernel_specs
from isnet_trt.errors import EngineUnavailable
from isnet_trt.merging import geometry
from isnet_trt.merging.windows import plan
from isnet_trt.pictures.interop import image_from
from isnet_trt.pictures.preprocess import test_size
from isnet_trt.runtime.gpu import GpuRuntime
from isnet_trt.training.checkpoint import load_checkpoint, load_model
from tests.gpu.comparison import Case, around, image, recipe_case
from tests.gpu.networks import Strided, Torch
from tests.kernels.cases import FAMILIES
from tests.kernels.context_trials import AttentionCase, attention
from tests.kernels.variants import set_of

TIMED = ("fp16", "bf16")
ATTENTION_AIM, ADDED_AIM = 0.5, 0.15
"""Share of the matrix rate that attention should reach on 8 windows; most that all other stages should take beside the
network."""
ATTENTION = ((4096, 8), (8192, 8), (4096, 1), (8192, 1))
"""Tokens and windows."""
SAME = 0.9
"""Least share of equal arg max of two float16 networks on noise. Synthetic weights for ADE's 150 classes have near
ties: PyTorch's float16 has 0.964 of its own float32's there, its bfloat16 0.884, and two roundings differ more."""
FLOAT = 4
"""Bytes of an engine's input and output values."""
MODELS = {"ADE": ("isnet_resnet50os8_ade20k", "default"), "Cityscapes": ("isnet_resnet50os8_cityscapes", "ms-flip")}
"""Case -> recipe and preset: whole 512x683, and 262 windows of 512x1024."""
Row = dict[str, Any]


@dataclasses.dataclass
class Bench:
    """What the measurements share: ``target`` is a `tests.gpu.target.Target`; ``card`` has this GPU's own rates."""

    target: Any
    quick: bool
    card: Card
    rates: dict[str, float]
    missed: list[str] = dataclasses.field(default_factory=list)
    """Aims that the measurement did not reach."""

    @property
    def rounds(self) -> int:
        return 5 if self.quick else gpu_timing.ROUNDS


def measure_rates(quick: bool, device: str = "cuda", sides: tuple[int, int] = (8192, 4096)) -> dict[str, float | str]:
    """Operations/s of products of large random matrices, and bytes/s read and written of a large copy; a string is why
    a type has no rate here."""
    side, size = sides[quick], 2 * sides[quick] ** 2 * 8
    rates: dict[str, float | str] = {}
    for name in ("fp16", "bf16", "tf32", "fp32", "int8", "fp8"):
        try:
            rates[f"matrix {name}"] = 2 * side**3 / gpu_timing.seconds(_product(name, side, device), captured=False).p50
        except Exception as error:  # a type that this card or this PyTorch has not
            rates[f"matrix {name}"] = f"{type(error).__name__}: {error}"
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates["copy"] = 2 * size / gpu_timing.seconds(lambda _: target.copy_(source), captured=False).p50
    return rates


def _product(kind: str, side: int, device: str) -> gpu_timing.Work:
    """A product of two square matrices of random values."""
    if kind == "int8":
        a, b = (torch.randint(-127, 128, (side, side), dtype=torch.int8, device=device) for _ in range(2))
        columns = b.t()  # the library wants the second factor column-major
        return lambda _: torch._int_mm(a, columns)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}.get(kind, torch.float32)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    if kind == "fp8":
        unit, columns = torch.ones((), device=device), b.t()
        return lambda _: torch._scaled_mm(a, columns, scale_a=unit, scale_b=unit, out_dtype=torch.bfloat16)
    out = torch.empty_like(a)

    def multiply(_: int) -> None:
        torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
        torch.mm(a, b, out=out)
        torch.backends.cuda.matmul.allow_tf32 = False

    return multiply


def speed(bench: Bench, name: str) -> Iterator[Row]:
    """NAME at the sizes of the published models, beside its floor."""
    family = FAMILIES[name]
    dtypes = [dtype for dtype in TIMED if dtype in family.dtypes] or list(family.dtypes)
    variant, on_gpu = bench.target.variants()[0], bench.target.device == "cuda"
    cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 50 << 20) if on_gpu else 0
    for case in family.real:
        for dtype in dtypes[: 1 if bench.quick else None]:
            trials = [family.trial(variant, case, dtype, bench.target.seed)]
            # Enough input sets that none is still in the level-2 cache when its turn comes again.
            seeds = range(1, gpu_timing.sets(int(trials[0].cost.bytes), cache))
            trials += [family.trial(variant, case, dtype, bench.target.seed + number) for number in seeds]
            spread = gpu_timing.seconds(lambda number, trials=trials: trials[number % len(trials)].launch())  # type: ignore[misc]
            yield {"case": case.label, "type": dtype, **beside_floor(spread, trials[0].cost, bench.card)}


def beside_floor(spread: stats.Spread, least: Cost | None, card: Card) -> Row:
    """Cells of a row: microseconds, spread, floor, and how near to it."""
    cells = {"µs": 1e6 * spread.p50, "spread %": 100 * spread.width}
    if least is None:
        return cells
    floor = least.floor(card)
    return {**cells, "floor µs": 1e6 * floor, "floor reached %": 100 * floor / spread.p50}


def attention_rate(bench: Bench) -> Iterator[Row]:
    """Attention of 4,096 and 8,192 tokens, 1 and 8 windows, beside PyTorch's and this card's matrix rate.

    Where there is one, the kernel with specialised warps, which no bundle has, comes in rows of its own.
    """
    matrix, variant = bench.rates["matrix fp16"], bench.target.variants()[0]
    trial_kernel = kernel_specs.attention_by_maps("fp16", 256, False, kernel_specs.TRIAL_TILES[0]).name
    specialised = trial_kernel in variant.kernels(set_of("attention"))
    for tokens, batch in ATTENTION:
        case = AttentionCase(f"{batch} x {tokens:,}", batch, tokens, tokens)
        trial = attention(variant, case, "fp16", bench.target.seed)
        rate = trial.cost.flops / gpu_timing.seconds(lambda _, trial=trial: trial.launch()).p50  # type: ignore[misc]
        q, k, v = (torch.randn(batch, 1, tokens, 256, device=bench.target.device).half() for _ in range(3))
        theirs = gpu_timing.seconds(
            lambda _, q=q, k=k, v=v: torch.nn.functional.scaled_dot_product_attention(q, k, v)  # type: ignore[misc]
        ).p50
        if batch > 1 and rate < ATTENTION_AIM * matrix:
            bench.missed.append(f"{case.label} tokens: {100 * rate / matrix:.0f} % of the matrix rate, aim 50 %")
        yield {
            "case": case.label, "parts": trial.parts, "TFLOP/s": rate / 1e12,
            "PyTorch's TFLOP/s": trial.cost.flops / theirs / 1e12, "of the matrix rate %": 100 * rate / matrix,
        }  # fmt: skip
        if specialised:
            label = f"{case.label}, specialised warps"
            case = AttentionCase(label, batch, tokens, tokens, 1, tile=128, specialised=True)
            trial = attention(variant, case, "fp16", bench.target.seed)
            rate = trial.cost.flops / gpu_timing.seconds(lambda _, trial=trial: trial.launch()).p50  # type: ignore[misc]
            yield {"case": case.label, "parts": 1, "TFLOP/s": rate / 1e12, "of the matrix rate %": 100 * rate / matrix}


def floors(case: Any) -> dict[str, Cost]:
    """Stage -> what it must move and compute; the engine is float32 at its borders. Whole mode: one plain pass."""
    picture = test_size(case.size, case.preprocess)
    classes, inference = case.labels.count, case.inference
    sizes = [window.size for window in plan(picture, inference).windows]
    pixels = sum(height * width for height, width in sizes)
    logits = classes * sum(math.prod(geometry.coarse_size(size, case.stride)) for size in sizes)
    least = {} if picture == case.size else {"resize": cost.resize(case.size, picture)}
    least["gather"] = Cost(3.0 * math.prod(picture) + FLOAT * 3 * pixels, cost.BILINEAR * 3 * pixels)
    least["finite"] = Cost(FLOAT * float(logits), logits)
    if inference.mode == "slide":
        least["accumulate"] = cost.accumulate(picture, inference, classes, case.stride, FLOAT)
        # What finish reads are volumes of the scaled pictures; it writes the source's size.
        return least | {"finish": cost.finish(picture, inference, classes)}
    return least | {"finish": cost.upsample_argmax(classes, picture, case.size, case.stride)}


def stage_times(bench: Bench, name: str, case: Any = None) -> Iterator[Row]:
    """NAME: all stages but the network, on the GPU's clock, beside their floors."""
    case = case or recipe_case(*MODELS[name])
    pipeline = bench.target.pipeline(Strided(case.labels.count, case.stride, bench.target.seed), case)
    times, least = staged(pipeline, case, bench), floors(case)
    pipeline.close()
    for stage, spread in times.items():
        if stage != "engine":
            yield {"stage": stage, **beside_floor(spread, least.get(stage), bench.card)}


def staged(pipeline: Any, case: Any, bench: Bench) -> dict[str, stats.Spread]:
    """Stage -> spread of its seconds in one image, launched one by one."""
    source = image_from(image(case.size, bench.target.seed))
    gpu_timing.warm(lambda _: pipeline(source, case.inference))
    samples: dict[str, list[float]] = {}
    stream = torch.cuda.ExternalStream(pipeline.stream)

    def span(stage: str, call: Callable[[], None]) -> tuple[str, Any, Any]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(stream)
        call()
        end.record(stream)
        return stage, begin, end

    with pipeline.device:
        for number in range(bench.rounds + 1):
            gpu_timing.hold(stream)  # else a short step takes as long as Python takes to launch it
            spans = [span(stage, call) for stage, call in pipeline.steps(case.size, case.inference)]
            torch.cuda.synchronize()
            total: dict[str, float] = {}
            for stage, begin, end in spans:
                total[stage] = total.get(stage, 0.0) + begin.elapsed_time(end) / 1e3
            for stage, seconds in total.items() if number else ():  # the first loads what later ones need not
                samples.setdefault(stage, []).append(seconds)
    return {stage: stats.spread(seconds) for stage, seconds in samples.items()}


def whole(bench: Bench, name: str) -> Iterator[Row]:
    """NAME: PyTorch's float16 network in a CUDA graph, all other stages beside it, and the whole call."""
    case = recipe_case(*MODELS[name])
    rows = beside_network(bench, case, _torch_network(bench, name, case))
    yield from (row | {"weights": "synthetic"} for row in rows)


def _torch_network(bench: Bench, name: str, case: Any) -> Any:
    """The published model of `MODELS` with synthetic weights, under PyTorch in float16."""
    recipe = MODELS[name][0]
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(load_checkpoint(filled_checkpoint(recipe, Path(folder) / "filled.pth"), recipe))
    return Torch(model, case.labels.count, case.stride, "float16", bench.target.device)


def beside_network(bench: Bench, case: Any, network: Any) -> Iterator[Row]:
    """The network's time is that of a CUDA graph: launched eagerly it takes what PyTorch's launching takes, and all
    stages would be compared with that."""
    picture = test_size(case.size, case.preprocess)
    runs = -(-geometry.window_count(picture, case.inference) // case.batch)
    batch = torch.randn(case.batch, 3, *(case.inference.window or picture), device=bench.target.device)
    graph, eager = (
        runs * gpu_timing.seconds(lambda _: network.logits(batch), bench.rounds, captured).p50
        for captured in (True, False)
    )
    with around(network, case, bench.target.pipeline(network, case)) as segmenter:
        yield {
            "network": network.description, "runs of the network": runs, "network, eager ms": 1e3 * eager,
            **call_cells(bench, segmenter, case, graph),
        }  # fmt: skip


def call_cells(bench: Bench, segmenter: Any, case: Any, network: float | None = None) -> Row:
    """Cells of whole calls: the network's seconds (None: those of the engine's stage), what is added, the call."""
    times = staged(segmenter.runtime.pipeline, case, bench)
    engine = times.pop("engine").p50
    network = engine if network is None else network
    stages = sum(spread.p50 for spread in times.values())
    if stages > ADDED_AIM * network:
        share = 100 * stages / network
        bench.missed.append(f"all other stages take {share:.0f} % of the network's time, the aim is 15 %")
    source = image(case.size, bench.target.seed)
    call = wall(lambda: segmenter(source, inference=case.inference), bench.rounds)
    several = wall(lambda: list(segmenter.map([source] * 4, inference=case.inference)), max(3, bench.rounds // 3))
    return {
        "network ms": 1e3 * network, "all other stages ms": 1e3 * stages, "added %": 100 * stages / network,
        "call ms": 1e3 * call.p50, "spread %": 100 * call.width, "map, ms each": 1e3 * several.p50 / 4,
    }  # fmt: skip


def bundle(bench: Bench, folder: Path) -> Iterator[Row]:
    """A bundle on the GPU, both presets: the engine, all other stages, and whole calls.

    Raises:
        EngineUnavailable: its stages do not run on the GPU.
    """
    with Segmenter.open(folder, device="cuda") as segmenter:
        if not isinstance(segmenter.runtime, GpuRuntime):
            raise EngineUnavailable(segmenter.description)
        size = (1024, 2048) if "slide" in {p.mode for p in segmenter.presets.values()} else (480, 640)
        for preset, inference in segmenter.presets.items():
            model = segmenter.runtime.pipeline.model
            case = Case(preset, segmenter.labels, segmenter.preprocess, inference, size, model.head.stride)
            yield {"preset": preset, "runs": segmenter.description, **call_cells(bench, segmenter, case)}


def peers(bench: Bench, name: str) -> Iterator[Row]:
    """NAME: the network alone on one batch in float16, by PyTorch eager, in a CUDA graph, and by torch.compile."""
    case = recipe_case(*MODELS[name])
    network = _torch_network(bench, name, case)
    shape = (case.batch, 3, *(case.inference.window or test_size(case.size, case.preprocess)))
    batch = torch.randn(shape, device=bench.target.device)
    contenders = {"PyTorch eager": network.logits}
    if not bench.quick:  # compiling takes minutes
        compiled = copy.copy(network)
        compiled.model = torch.compile(network.model, dynamic=False)
        contenders["torch.compile"] = compiled.logits
    yield from (row | {"weights": "synthetic"} for row in network_times(bench, contenders, batch))


def network_times(bench: Bench, contenders: dict[str, Callable[[Any], Any]], batch: Any) -> Iterator[Row]:
    """Interleaved rounds; a contender with other logits than the first is none."""
    expected = next(iter(contenders.values()))(batch).argmax(1)
    works: dict[str, gpu_timing.Work] = {}
    for name, logits in contenders.items():
        equal = float((logits(batch).argmax(1) == expected).float().mean())
        if equal >= SAME:
            works[name] = lambda _, logits=logits: logits(batch)  # type: ignore[misc]
        else:
            bench.missed.append(f"{name}: {100 * equal:.1f} % of the arg max are PyTorch's")
    works["PyTorch, CUDA graph"] = gpu_timing.captured(next(iter(works.values())))
    for work in works.values():
        gpu_timing.warm(work)
    runs = [functools.partial(gpu_timing.once, work, 0) for work in works.values()]
    spreads = list(map(stats.spread, timing.interleaved(runs, range(bench.rounds), "networks")))
    eager = spreads[0].p50
    for name, spread in zip(works, spreads, strict=True):
        cells = {"ms": 1e3 * spread.p50, "spread %": 100 * spread.width}
        yield {"network": name, "shape": list(batch.shape), **cells, "times as fast as eager": eager / spread.p50}


def wall(work: Callable[[], object], rounds: int) -> stats.Spread:
    """Seconds of a call that returns when all is done, by the host's clock."""
    gpu_timing.warm(lambda _: work())
    return stats.spread([timing.seconds(work) for _ in range(rounds)])
