"""Whole plans counted: every launch around the network, and the time that the counts predict for an H100.

    python -m tests.kernels.counting --plans --write

counts the kernels of sm_90 in plans of published models, writes ``plans.json`` and the second table of
kernels/README.md. Of launches of one kernel for one size (the batches of windows, the bands of a scale) five, spread
evenly, stand for all.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ptx_counts import CountedKernels, SampledMemory

from benchmarks import kernel_cost as cost
from isnet_trt.cuda.element_types import FLOAT
from isnet_trt.cuda.plan import plan
from isnet_trt.cuda.plan_steps import Clear, Copy, Infer, Launch, Plan
from isnet_trt.pictures.preprocess import test_size
from isnet_trt.settings import Inference
from tests.gpu.comparison import Case, recipe_case
from tests.kernels.variants import set_folder

if TYPE_CHECKING:
    from tests.kernels.counting import Rates

PLANS = Path(__file__).parent / "plans.json"
MARKS = ("<!-- plans: begin -->\n", "<!-- plans: end -->")
ARCH, SAMPLE = 90, 5
_ADE, _CITYSCAPES = "isnet_resnet50os8_ade20k", "isnet_resnet50os8_cityscapes"
RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "nvidia-h100-80gb-hbm3.json"
CASES: dict[str, Case] = {
    "ADE 480×640, whole": recipe_case(_ADE, "default"),
    "ADE 480×640, whole, 3 scales": replace(recipe_case(_ADE, "default"), inference=Inference(scales=(0.5, 1.0, 1.5))),
    "Cityscapes 1024×2048, ms+flip": recipe_case(_CITYSCAPES, "ms-flip"),
}
MEASURED = {
    "ADE 480×640, whole": "latency.stages.ADE",
    "Cityscapes 1024×2048, ms+flip": "latency.stages.Cityscapes",
}
"""Plan -> the record in `RESULT` of all its stages but the network, with the kernels of the calibration's commit."""
PCIE = 64e9
"""Bytes a second in one direction, PCIe 5.0 with 16 lanes: NVIDIA's H100 data sheet."""


def planned(name: str) -> Plan:
    """The plan of one of `CASES`."""
    case = CASES[name]
    return plan(case.size, case.inference, case.model)


def count(name: str, folder: Path) -> dict[str, Any]:
    """A record of ``name`` for the kernels below ``folder``: counts and bytes of each stage, bytes up and down."""
    whole = planned(name)
    memory, counts = SampledMemory(), Counter[str]()
    addresses = {buffer: memory.hold(buffer, bytes(size)) for buffer, size in whole.buffers.items()}
    addresses["tables"] = memory.hold("tables", whole.tables)
    kernels = CountedKernels(set_folder(folder, str(CASES[name].labels.count), ARCH), ARCH, memory, counts)
    stages: dict[str, Counter[str]] = {}
    for group in _alike(whole):
        chosen = np.unique(np.linspace(0, len(group) - 1, SAMPLE).round().astype(int))
        counts.clear()
        for index in chosen:
            places = {key: addresses[buffer] + offset for key, (buffer, offset) in group[index].pointers.items()}
            group[index].queue(kernels, 0, places)
        total = stages.setdefault(group[0].stage, Counter())
        total.update({key: round(number * len(group) / len(chosen)) for key, number in counts.items()})
    moved = bytes_moved(whole, CASES[name])
    records = {stage: {"bytes": moved[stage], "counts": dict(sorted((+c).items()))} for stage, c in stages.items()}
    records["finite"]["counts"]["launches"] += sum(isinstance(step, Clear) for step in whole.steps)
    copies = [step.size for step in whole.steps if isinstance(step, Copy)]
    if copies:
        records["copy"] = {"bytes": 2 * sum(copies), "counts": {"launches": len(copies)}}
    return {"plan": name, "stages": records, "up": whole.upload_bytes, "down": whole.result_bytes}


def _alike(whole: Plan) -> Iterator[list[Launch]]:
    """The launches of ``whole`` by kernel and sizes, in the order of their first."""
    groups: dict[Any, list[Launch]] = {}
    for step in whole.steps:
        if isinstance(step, Launch):
            sizes = [step.scalars.get(key) for key in ("batch", "height", "width", "coarse_height", "coarse_width")]
            groups.setdefault((step.stage, step.kernel, *sizes), []).append(step)
    yield from groups.values()


def bytes_moved(whole: Plan, case: Case) -> dict[str, int]:
    """Stage -> bytes of its inputs and results, each once, as far as they are of the size of an image."""
    picture, inference, classes = test_size(case.size, case.preprocess), case.inference, case.labels.count
    windows = sum(math.prod(step.shape) for step in whole.steps if isinstance(step, Infer))
    logits = classes * sum(region.slots * math.prod(region.coarse) for region in whole.regions)
    moved: dict[str, float] = {
        "resize": 3 * (math.prod(case.size) + math.prod(picture)),
        "gather": 3 * math.prod(picture) + FLOAT * windows, "finite": FLOAT * logits,
    }  # fmt: skip
    if inference.mode == "slide":
        moved["accumulate"] = cost.accumulate(picture, inference, classes, case.stride).bytes
        moved["finish"] = cost.finish(picture, inference, classes).bytes
    else:
        volumes = logits // (1 + inference.flip)
        moved |= {"accumulate": FLOAT * (logits + volumes), "finish": FLOAT * volumes + whole.label_bytes}
    return {stage: round(size) for stage, size in moved.items()}


def _seconds(entry: Mapping[str, Any], rates: Rates) -> float:
    return rates.seconds({"instructions": 0, **entry["counts"]}, entry["bytes"])


def predicted(record: Mapping[str, Any], rates: Rates) -> float:
    """Seconds of all stages of a record."""
    return sum(_seconds(entry, rates) for entry in record["stages"].values())


def page(records: Sequence[Mapping[str, Any]], rates: Rates) -> str:
    """What kernels/README.md shows of the plans."""
    lines = [
        "| plan | all stages, predicted, µs | earlier kernels, measured, µs | copies, MB | at least, µs |",
        "|---|--:|--:|--:|--:|",
    ]
    figures = {r["case"]: r["figures"] for r in json.loads(RESULT.read_text("utf-8"))["records"] if r.get("figures")}
    for record in records:
        copied, measured = record["up"] + record["down"], MEASURED.get(record["plan"], "")
        before = f"{1e6 * figures[measured]['all stages, seconds']:,.0f}" if measured else ""
        times = f"**{1e6 * predicted(record, rates):,.0f}** | {before}"
        lines.append(f"| {record['plan']} | {times} | {copied / 1e6:.2f} | {1e6 * copied / PCIE:.0f} |")
    lines += ["", "| plan | stage | launches | million instructions | MB | predicted, µs |"]
    lines += ["|---|---|--:|--:|--:|--:|"]
    for record in records:
        for stage, entry in record["stages"].items():
            instructions, size = entry["counts"].get("instructions", 0) / 1e6, entry["bytes"] / 1e6
            cells = (str(entry["counts"]["launches"]), f"{instructions:.1f}", f"{size:.1f}")
            time = f"{1e6 * _seconds(entry, rates):,.1f}"
            lines.append(f"| {record['plan']} | `{stage}` | {' | '.join(cells)} | {time} |")
    return "\n".join(lines) + "\n"


def write(records: Sequence[Mapping[str, Any]], rates: Rates, file: Path) -> None:
    """Keep the records, and the table in ``file``."""
    PLANS.write_text("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n", "utf-8")
    begin, end = MARKS
    before, rest = file.read_text("utf-8").split(begin)
    file.write_text(before + begin + page(records, rates) + end + rest.split(end)[1], "utf-8")
