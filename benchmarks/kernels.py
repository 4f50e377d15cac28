"""How fast kernels and stages are on this GPU, beside the least that its own rates allow.

The cases are those of tests/kernels/cases.py, at the sizes of the published models; whether the kernels are right is
shown by ``make test-gpu``. Records have the layout of that suite (kind ``gpu_check``) and may go into the same file.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import gpu_timing, results, stats
from benchmarks import kernel_cost as cost
from benchmarks.kernel_cost import Card, Cost
from isnet_trt import cli
from isnet_trt.errors import EngineUnavailable, SettingsError
from isnet_trt.merging import geometry
from isnet_trt.pictures.preprocess import test_size

TIMED = ("fp16", "bf16")
ATTENTION_AIM, ADDED_AIM = 0.5, 0.15
"""Share of the matrix rate that attention should reach on 8 windows; most that all other stages should take beside the
network."""
ATTENTION = ((4096, 8), (8192, 8), (4096, 1), (8192, 1))
"""Tokens and windows."""
FLOAT = 4
"""Bytes of an engine's input and output values."""
MODELS = {
    "ADE": ("isnet_resnet50os8_ade20k", "default"),
    "Cityscapes": ("isnet_resnet50os8_cityscapes", "ms-flip"),
}
"""Case -> recipe and preset: whole 512x683, and 262 windows of 512x1024."""
_DESCRIPTION = """Time kernels and stages on this machine's GPU, beside the floors that its own rates give.

speed.FAMILY is a kernel at the sizes of the published models; attention.rate is attention beside PyTorch's; stages.CASE
are all stages of an image but the network, on the GPU's clock; whole.CASE compares them with PyTorch's float16 network
in a CUDA graph. Bundles, engines and other peers: python -m benchmarks.latency."""
_EPILOG = """examples:
  python -m benchmarks.kernels                                      # everything
  python -m benchmarks.kernels --only speed.attention --quick
  python -m benchmarks.kernels --out benchmarks/results/nvidia-h100-80gb-hbm3.json   # beside its other records

exit status: 0 all was measured, 1 an aim was missed or something could not be measured"""
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


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.kernels", _DESCRIPTION, _EPILOG)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="only measurements whose names hold a WORD"
    )
    parser.add_argument("--quick", action="store_true", help="fewer types and rounds")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON; records of the same name in it are replaced")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep compiled kernels in DIR")
    parser.add_argument("--seed", type=int, default=0, help="of all random inputs (default: 0)")
    arguments = parser.parse_args(argv)
    names = [n for n in measurements() if not arguments.only or any(word in n for word in arguments.only)]
    if not names:
        raise SettingsError(
            f"--only {' '.join(arguments.only)}: no name holds it; there are {', '.join(measurements())}"
        )
    with tempfile.TemporaryDirectory() as temporary:
        records = run(names, arguments, arguments.work or Path(temporary))
    return cli.FAILED if any(record["status"] != "passed" for record in records) else 0


def run(names: Iterable[str], arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Measure and print what ``names`` name; every record is written as it comes.

    Raises:
        EngineUnavailable: there is no GPU.
    """
    from isnet_trt.cuda.gpu import probe_gpu
    from tests.gpu.target import Target

    gpu, reason = probe_gpu()
    if gpu is None:
        raise EngineUnavailable(f"kernels are timed on an NVIDIA GPU: {reason}")
    rates, seconds = timed_call(lambda: measure_rates(arguments.quick))
    numbers = {name: value for name, value in rates.items() if isinstance(value, float)}
    card = Card(gpu.name, numbers["copy"], numbers["matrix fp16"], numbers["matrix fp32"])
    bench = Bench(Target(folder.resolve(), arguments.quick, arguments.seed), arguments.quick, card, numbers)
    records = [record("rates", "matrix and copy rates of this card", seconds, figures=numbers)]
    write(arguments.out, records)
    for name in names:
        records.append(measure(name, bench))
        write(arguments.out, records)
    return records


def measure(name: str, bench: Bench) -> Row:
    """The record of one measurement; one that fails says why."""
    call, bench.missed = measurements()[name], []
    try:
        rows, seconds = timed_call(lambda: list(call(bench)))
        row = record(name, (call.__doc__ or name).splitlines()[0], seconds, rows, "; ".join(bench.missed))
    except Exception as error:  # such as kernels that do not compile: the others are still timed
        row = record(name, name, 0.0, why=f"{type(error).__name__}: {error}")
    print(f"\n{name}  {row['why']}")
    for cells in row["rows"]:
        print("  " + "  ".join(f"{key} {f'{v:.4g}' if isinstance(v, float) else v}" for key, v in cells.items()))
    return row


def timed_call(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of ``work``, and its seconds."""
    start = time.monotonic()
    return work(), time.monotonic() - start


def record(case: str, title: str, seconds: float, rows: Sequence[Row] = (), why: str = "", figures: Any = None) -> Row:
    """A record of the GPU suite's layout; ``why`` it failed, or nothing."""
    return {
        "kind": "gpu_check", "case": case, "title": title.rstrip("."), "status": "failed" if why else "passed",
        "why": " ".join(why.split()), "seconds": round(seconds, 2), "figures": figures or {}, "rows": list(rows),
        "missing": [],
    }  # fmt: skip


def write(out: Path | None, records: Sequence[Row]) -> None:
    """Put ``records`` into a result file, in the place of those of the same cases."""
    if out is None:
        return
    cases = {row["case"] for row in records}
    before = results.read(out) if out.is_file() else {"records": [], "gaps": []}
    kept = [row for row in before["records"] if row["case"] not in cases]
    results.write(out, {**results.result((), ()), "records": [*kept, *records], "gaps": before["gaps"]})


def measurements() -> dict[str, Callable[[Bench], Iterator[Row]]]:
    """Name -> what is measured, as rows."""
    from tests.kernels.cases import FAMILIES

    speeds = {f"speed.{name}": _bound(speed, name) for name in FAMILIES}
    stages = {f"stages.{name}": _bound(stage_times, name) for name in MODELS}
    return {**speeds, "attention.rate": attention_rate, **stages, **{f"whole.{n}": _bound(whole, n) for n in MODELS}}


def _bound(work: Callable[[Bench, str], Iterator[Row]], name: str) -> Callable[[Bench], Iterator[Row]]:
    def call(bench: Bench) -> Iterator[Row]:
        return work(bench, name)

    call.__doc__ = (work.__doc__ or "").replace("NAME", name)
    return call


def measure_rates(quick: bool, device: str = "cuda", sides: tuple[int, int] = (8192, 4096)) -> dict[str, float | str]:
    """Operations/s of products of large random matrices, and bytes/s read and written of a large copy; a string is why
    a type has no rate here."""
    import torch

    side, size = sides[quick], 2 * sides[quick] ** 2 * 8
    torch.backends.cuda.matmul.allow_tf32 = False
    rates: dict[str, float | str] = {}
    for name, make in _PRODUCTS.items():
        try:
            rates[f"matrix {name}"] = 2 * side**3 / gpu_timing.seconds(make(side, device), captured=False).p50
        except Exception as error:  # a type that this card or this PyTorch has not
            rates[f"matrix {name}"] = f"{type(error).__name__}: {error}"
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates["copy"] = 2 * size / gpu_timing.seconds(lambda _: target.copy_(source), captured=False).p50
    return rates


def _plain(dtype: str, tf32: bool = False) -> Callable[[int, str], gpu_timing.Work]:
    def make(side: int, device: str) -> gpu_timing.Work:
        import torch

        a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(a)

        def work(_: int) -> None:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            torch.mm(a, b, out=out)
            torch.backends.cuda.matmul.allow_tf32 = False

        return work

    return make


def _int8(side: int, device: str) -> gpu_timing.Work:
    import torch

    a, b = (torch.randint(-127, 128, (side, side), dtype=torch.int8, device=device) for _ in range(2))
    b = b.t()  # column-major, as the library wants the second factor
    return lambda _: torch._int_mm(a, b)


def _fp8(side: int, device: str) -> gpu_timing.Work:
    import torch

    a, b = (torch.randn(side, side, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=device)
    b = b.t()
    return lambda _: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


_PRODUCTS: dict[str, Callable[[int, str], gpu_timing.Work]] = {
    "fp16": _plain("float16"), "bf16": _plain("bfloat16"), "tf32": _plain("float32", tf32=True),
    "fp32": _plain("float32"), "int8": _int8, "fp8": _fp8,
}  # fmt: skip


def speed(bench: Bench, name: str) -> Iterator[Row]:
    """NAME at the sizes of the published models, beside its floor."""
    from tests.kernels.cases import FAMILIES

    family = FAMILIES[name]
    dtypes = [dtype for dtype in TIMED if dtype in family.dtypes] or list(family.dtypes)
    for case in family.real:
        for dtype in dtypes[: 1 if bench.quick else None]:
            trials = _trials(bench, family, case, dtype)
            spread = gpu_timing.seconds(lambda number, trials=trials: trials[number % len(trials)].launch())  # type: ignore[misc]
            yield {"case": case.label, "type": dtype, **beside_floor(spread, trials[0].cost, bench.card)}


def _trials(bench: Bench, family: Any, case: Any, dtype: str) -> list[Any]:
    """Enough input sets that none is still in the level-2 cache when its turn comes again."""
    import torch

    variant = bench.target.variants()[0]
    first = family.trial(variant, case, dtype, bench.target.seed)
    on_gpu = bench.target.device == "cuda"
    cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 50 << 20) if on_gpu else 0
    count = gpu_timing.sets(int(first.cost.bytes), cache)
    return [first, *(family.trial(variant, case, dtype, bench.target.seed + i) for i in range(1, count))]


def beside_floor(spread: stats.Spread, least: Cost | None, card: Card) -> Row:
    """Cells of a row: microseconds, spread, floor, and how near to it."""
    cells = {"µs": 1e6 * spread.p50, "spread %": 100 * spread.width}
    if least is None:
        return cells
    floor = least.floor(card)
    return {**cells, "floor µs": 1e6 * floor, "floor reached %": 100 * floor / spread.p50}


def attention_rate(
    bench: Bench, sizes: Sequence[tuple[int, int]] = ((4096, 8), (8192, 8), (4096, 1), (8192, 1))
) -> Iterator[Row]:
    """Attention of 4,096 and 8,192 tokens, 1 and 8 windows, beside PyTorch's and this card's matrix rate."""
    import torch

    from tests.kernels.context_trials import AttentionCase, attention

    matrix = bench.rates["matrix fp16"]
    for tokens, batch in ATTENTION:
        case = AttentionCase(f"{batch} x {tokens:,}", batch, tokens, tokens)
        trial = attention(bench.target.variants()[0], case, "fp16", bench.target.seed)
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


def floors(case: Any) -> dict[str, Cost]:
    """Stage -> what it must move and compute; the engine is float32 at its borders. Whole mode: one plain pass."""
    picture = test_size(case.size, case.preprocess)
    classes, inference = case.labels.count, case.inference
    least: dict[str, Cost] = {}
    if picture != case.size:
        least["resize"] = cost.resize(case.size, picture)
    shown = [w for one in geometry.passes(picture, inference) for w in geometry.windows(one, inference)]
    values = sum(w.size[0] * w.size[1] for w in shown)
    least["gather"] = Cost(3.0 * picture[0] * picture[1] + FLOAT * 3 * values, 9 * 3 * values)
    logits = classes * sum(h * w for h, w in (geometry.coarse_size(w.size, case.stride) for w in shown))
    least["finite"] = Cost(FLOAT * float(logits), logits)
    if inference.mode == "slide":
        least["accumulate"] = cost.accumulate(picture, inference, classes, case.stride, FLOAT)
        # What finish reads are volumes of the scaled pictures; it writes the source's size.
        least["finish"] = cost.finish(picture, inference, classes)
    else:
        pixels = case.size[0] * case.size[1]
        least["finish"] = Cost(FLOAT * float(logits) + pixels, (cost.BILINEAR + 1) * classes * pixels)
    return least


def stage_times(bench: Bench, name: str, case: Any = None) -> Iterator[Row]:
    """NAME: all stages but the network, on the GPU's clock, beside their floors."""
    from tests.gpu.comparison import recipe_case
    from tests.gpu.networks import Strided

    case = case or recipe_case(*MODELS[name])
    pipeline = bench.target.pipeline(Strided(case.labels.count, case.stride, bench.target.seed), case)
    times, least = staged(pipeline, case, bench), floors(case)
    pipeline.close()
    for stage, spread in times.items():
        if stage != "engine":
            yield {"stage": stage, **beside_floor(spread, least.get(stage), bench.card)}


def staged(pipeline: Any, case: Any, bench: Bench) -> dict[str, stats.Spread]:
    """Stage -> spread of its seconds in one image, launched one by one."""
    import torch

    from isnet_trt.pictures.interop import image_from
    from tests.gpu.comparison import image

    source = image_from(image(case.size, bench.target.seed))
    gpu_timing.warm(lambda _: pipeline(source, case.inference))
    samples: dict[str, list[float]] = {}
    stream = torch.cuda.ExternalStream(pipeline.stream)
    with pipeline.device:
        for number in range(bench.rounds + 1):
            gpu_timing.hold(stream)  # else a short step takes as long as Python takes to launch it
            spans = [_span(stream, stage, call) for stage, call in pipeline.steps(case.size, case.inference)]
            torch.cuda.synchronize()
            total: dict[str, float] = {}
            for stage, begin, end in spans:
                total[stage] = total.get(stage, 0.0) + begin.elapsed_time(end) / 1e3
            for stage, seconds in total.items() if number else ():  # the first loads what later ones need not
                samples.setdefault(stage, []).append(seconds)
    return {stage: stats.spread(seconds) for stage, seconds in samples.items()}


def _span(stream: Any, stage: str, call: Callable[[], None]) -> tuple[str, Any, Any]:
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record(stream)
    call()
    end.record(stream)
    return stage, begin, end


def whole(bench: Bench, name: str) -> Iterator[Row]:
    """NAME: PyTorch's float16 network in a CUDA graph, all other stages beside it, and the whole call."""
    from benchmarks.weights import filled_checkpoint
    from isnet_trt.training.checkpoint import load_checkpoint, load_model
    from tests.gpu.comparison import recipe_case
    from tests.gpu.networks import Torch

    case = recipe_case(*MODELS[name])
    with tempfile.TemporaryDirectory() as folder:
        recipe = MODELS[name][0]
        model = load_model(load_checkpoint(filled_checkpoint(recipe, Path(folder) / "filled.pth"), recipe))
    yield from beside_network(bench, case, Torch(model, case.labels.count, case.stride, "float16", bench.target.device))


def beside_network(bench: Bench, case: Any, network: Any) -> Iterator[Row]:
    """The network's time is that of a CUDA graph: launched eagerly it takes what PyTorch's launching takes, and all
    stages would be compared with that."""
    import torch

    from tests.gpu.comparison import around, image

    picture = test_size(case.size, case.preprocess)
    shape = (case.batch, 3, *(case.inference.window or picture))
    shown = [w for p in geometry.passes(picture, case.inference) for w in geometry.windows(p, case.inference)]
    runs = -(-len(shown) // case.batch)
    batch = torch.randn(shape, device=bench.target.device)
    graph, eager = (
        runs * gpu_timing.seconds(lambda _: network.logits(batch), bench.rounds, captured).p50
        for captured in (True, False)
    )
    pipeline = bench.target.pipeline(network, case)
    stages = sum(spread.p50 for stage, spread in staged(pipeline, case, bench).items() if stage != "engine")
    added = stages / graph
    if added > ADDED_AIM:
        bench.missed.append(f"all other stages take {100 * added:.0f} % of the network's time, the aim is 15 %")
    source = image(case.size, bench.target.seed)
    with around(network, case, pipeline) as opened:
        call = wall(lambda: opened(source, inference=case.inference), bench.rounds)
        several = wall(lambda: list(opened.map([source] * 4, inference=case.inference)), max(3, bench.rounds // 3))
    yield {
        "network": network.description, "runs of the network": runs, "network, CUDA graph ms": 1e3 * graph,
        "network, eager ms": 1e3 * eager, "all other stages ms": 1e3 * stages, "added %": 100 * added,
        "call ms": 1e3 * call.p50, "spread %": 100 * call.width, "map, ms each": 1e3 * several.p50 / 4,
    }  # fmt: skip


def wall(work: Callable[[], object], rounds: int) -> stats.Spread:
    """Seconds of a call that returns when all is done, by the host's clock."""
    gpu_timing.warm(lambda _: work())
    return stats.spread([timed_call(work)[1] for _ in range(rounds)])


if __name__ == "__main__":
    sys.exit(cli.run(main))
