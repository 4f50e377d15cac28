"""Every kernel of `isnet_trt.cuda.kernel_specs` against its reference, at real and odd sizes, and beside its floor."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu_check import timing
from benchmarks.gpu_check.check import Answer, Check, Setup, part
from benchmarks.gpu_check.context_trials import AttentionCase, AttentionTrial, multiprocessors
from benchmarks.gpu_check.families import FAMILIES, Family
from benchmarks.gpu_check.forms import MODELS, Ahead, Form, Jit, compile_for, compiled, forms, here
from benchmarks.gpu_check.needs import KERNELS
from benchmarks.gpu_check.trial import Trial, examine
from benchmarks.kernel_cost import Card
from isnet_trt.cuda.architectures import KERNEL_TARGETS, PORTABLE

TIMED = ("fp16", "bf16")
AIM = 0.5
"""Share of the matrix rate that attention should reach where 8 windows are batched."""


def seed_of(setup: Setup, *words: str) -> int:
    """A seed for the inputs of one trial."""
    return (setup.seed + zlib.crc32(" ".join(words).encode())) % 2**31


def compare(answer: Answer, setup: Setup, family: Family, ways: Sequence[Form], cases: Sequence[Any]) -> None:
    """Examine every case in every type by every form; rows, and what is wrong.

    What a form raises costs that one case; of Triton's own launches it is something that this machine lacks, such as
    the C compiler that Triton makes its launchers with.
    """
    for case in cases:
        for dtype in family.dtypes:
            seed, wanted = seed_of(setup, family.name, case.label, dtype), None
            for form in ways:
                what = f"{family.name} {dtype}, {case.label}, {form.name}"
                lacking = (Exception,) if isinstance(form, Jit) else ()
                with part(answer, what, *lacking):
                    trial = family.make(form, case, dtype, seed)
                    wanted = trial.reference() if wanted is None else wanted
                    found = examine(trial, wanted)
                    for text in found.wrong:
                        answer.wrong(f"{what}: {text}")
                    cells = {"form": form.name, "case": case.label, "type": dtype, "right": not found.wrong}
                    answer.row(**cells, nearest=str(found.worst))


def right(family: Family) -> Callable[[Answer, Setup], None]:
    """A check of one family by every form: odd cases, and those of models.

    Triton compiles anew for every case, and the reference of a real one takes the CPU seconds: quickly only the first
    odd case goes through Triton, and one real case is tried, in one type.
    """

    def run(answer: Answer, setup: Setup) -> None:
        answer.figure("seed", setup.seed)
        ways = forms(setup)
        ahead = [form for form in ways if isinstance(form, Ahead)]
        for number, case in enumerate(family.odd):
            compare(answer, setup, family, ahead if setup.quick and number else ways, [case])
        if setup.quick:
            compare(answer, setup, dataclasses.replace(family, dtypes=family.dtypes[:1]), ahead, family.real[:1])
        else:
            compare(answer, setup, family, ahead, family.real)

    return run


def fast(family: Family) -> Callable[[Answer, Setup], None]:
    """A timing of one family at the models' sizes, beside the floor from this card's own rates."""

    def run(answer: Answer, setup: Setup) -> None:
        own, card = own_form(setup), measured_card(setup)
        if card is None:
            answer.missing("floors", "check rates has not run")
        for case in family.real:
            types = [one for one in TIMED if one in family.dtypes] or family.dtypes
            for dtype in types[:1] if setup.quick else types:
                with part(answer, f"{case.label} {dtype}"):
                    trials = _trials(family, own, case, dtype, setup)
                    answer.row(case=case.label, type=dtype, **timed(trials, card))

    return run


def own_form(setup: Setup) -> Form:
    """What a bundle launches on this GPU: kernels compiled ahead of time for its architecture."""
    return next(form for form in forms(setup) if isinstance(form, Ahead))


def _trials(family: Family, form: Form, case: Any, dtype: str, setup: Setup) -> list[Trial]:
    """Enough input sets that none is still in the cache when its turn comes again."""
    first = family.make(form, case, dtype, seed_of(setup, case.label, dtype))
    count = timing.sets(int(first.cost.bytes), int(setup.figure("machine", "level-2 cache bytes") or 50e6))
    return [
        first,
        *(family.make(form, case, dtype, seed_of(setup, case.label, dtype, str(i))) for i in range(1, count)),
    ]


def measured_card(setup: Setup) -> Card | None:
    """This card with the rates that check ``rates`` measured; None where it has not run."""
    copy, matrix = setup.figure("rates", "copy"), setup.figure("rates", "matrix fp16")
    if not copy or not matrix:
        return None
    return Card("this card", copy, matrix, setup.figure("rates", "matrix fp32") or matrix / 16)


def timed(trials: Sequence[Trial], card: Card | None) -> dict[str, Any]:
    """Cells of a row: microseconds, spread, floor, and how near to it."""
    spread = timing.seconds(lambda number: trials[number % len(trials)].launch())
    cells = {"µs": 1e6 * spread.p50, "spread %": 100 * spread.width}
    if card:
        floor = trials[0].cost.floor(card)
        cells |= {"floor µs": 1e6 * floor, "floor reached %": 100 * floor / spread.p50}
    return cells


def attention_rate(answer: Answer, setup: Setup) -> None:
    """Attention at 4,096 and 8,192 tokens, 1 and 8 windows, beside PyTorch's and this card's matrix rate."""
    form, matrix = own_form(setup), setup.figure("rates", "matrix fp16")
    if not matrix:
        answer.missing("share of the matrix rate", "check rates has not run")
    answer.figure("multiprocessors", multiprocessors(form))
    for tokens, batch in ((4096, 8), (8192, 8), (4096, 1), (8192, 1)):
        case = AttentionCase(f"{batch} x {tokens:,}", batch, tokens, tokens)
        trial = AttentionTrial(form, case, "fp16", seed_of(setup, case.label))
        ours = trial.cost.flops / timing.seconds(_launching(trial)).p50
        cells: dict[str, Any] = {"TFLOP/s": ours / 1e12}
        with part(answer, f"PyTorch's attention, {case.label} tokens", Exception):
            cells["PyTorch's TFLOP/s"] = trial.cost.flops / timing.seconds(_torch(trial)).p50 / 1e12
        if matrix:
            cells["of the matrix rate %"] = 100 * ours / matrix
            enough = batch == 1 or ours >= AIM * matrix
            answer.require(enough, f"{case.label} tokens: {100 * ours / matrix:.0f} % of the matrix rate, aim 50 %")
        answer.row(case=case.label, parts=trial.parts, **cells)


def _launching(trial: Trial) -> timing.Work:
    return lambda _: trial.launch()


def _torch(trial: AttentionTrial) -> timing.Work:
    import torch

    q, k, v = (one[:, None] for one in (trial.q, trial.k, trial.v))
    return lambda _: torch.nn.functional.scaled_dot_product_attention(q, k, v)


def compile_all(answer: Answer, setup: Setup) -> None:
    """Kernels of every architecture compile without a spill; needs no GPU."""
    for arch in (PORTABLE,) if setup.quick else KERNEL_TARGETS:
        entries: dict[str, Any] = {}
        for text in compile_for(setup, (arch,), again=True):
            answer.wrong(text)
        for file in compiled(setup, arch).glob(f"*/sm_{arch}/launch.json"):
            entries |= json.loads(file.read_text("utf-8"))["kernels"]
        most = max((entry["registers"] for entry in entries.values()), default=0)
        answer.row(arch=f"sm_{arch}", kernels=len(entries), registers=most)
        for name, entry in entries.items():
            answer.require(not entry["spill_bytes"], f"{name} for sm_{arch} spills {entry['spill_bytes']} bytes")


def compile_here(answer: Answer, setup: Setup) -> None:
    """Kernels for this GPU and the portable PTX, for the checks that follow."""
    _, arch = here()
    answer.figure("architecture", f"sm_{arch}")
    for text in compile_for(setup, (arch, PORTABLE), again=True):
        answer.wrong(text)
    for one in dict.fromkeys((arch, PORTABLE)):
        models = [model for model in MODELS if (compiled(setup, one) / model / f"sm_{one}" / "launch.json").is_file()]
        answer.row(arch=f"sm_{one}", compiled=models)


CHECKS = (
    Check("kernels.compile", "kernels compile for this GPU", compile_here, ("gpu", "triton"), 240, rank=2),
    *(
        Check(f"kernels.{one.name}", f"{one.name} against its reference, every form", right(one), KERNELS, 240, rank=3)
        for one in FAMILIES
    ),
    Check("kernels.attention_rate", "attention beside PyTorch's", attention_rate, KERNELS, 120, rank=5),
    *(
        Check(f"speed.{one.name}", f"{one.name} beside its floor", fast(one), KERNELS, 120, rank=12)
        for one in FAMILIES
    ),
    Check(
        "kernels.compile_all", "kernels of all architectures compile and do not spill", compile_all,
        ("no gpu", "triton"), 1200, quick=False, rank=2,
    ),
)  # fmt: skip
