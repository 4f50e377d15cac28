"""Warp instructions and memory transactions of every kernel, counted without a GPU, and the time they predict.

    python -m tests.kernels.counting --write

compiles the kernels for sm_80, sm_90 and sm_120, counts them on cases of the published models (tests/ptx_counts.py) and
writes ``counts.json`` and the table of kernels/README.md. tests/kernels/test_counting.py fails where a count differs.

`Rates` are fitted to an H100's times of the kernels of commit 87b9aa6 (``calibration.json``: counts of their PTX of
sm_90 by this program's counter, and times from benchmarks/results/nvidia-h100-80gb-hbm3.json). Those of ``attention``
there (pointers, of the same commit, and tensor maps, of a prototype with today's tiles) give a rate of their own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ptx_counts import CountedKernels, SampledMemory

from tests.kernels import plan_counts
from tests.kernels.cases import FAMILIES
from tests.kernels.variants import Emulated, compile_sets, set_folder

FOLDER = Path(__file__).parent
COUNTS, CALIBRATION = FOLDER / "counts.json", FOLDER / "calibration.json"
PAGE = FOLDER.parents[1] / "kernels" / "README.md"
MARKS = ("<!-- counts: begin -->\n", "<!-- counts: end -->")
ARCHES = (80, 90, 120)
COMPILED = {"19": ("fp32", "fp16"), "150": ("fp32", "fp16"), "w256": ("fp16",)}
"""Set of kernels -> the engine's types that it is compiled for: logits are float32 or float16, plugins get float16."""
CONTEXT = ("region_pool", "attention")
HALF_LOGITS = ("finite", "accumulate", "upsample_argmax")
"""Kernels that are counted with float16 logits too."""
CASES = {
    "resize": ("480x640 to 512x683",),
    "yuv_resize": ("1080x1920 to 512x910, NV12",),
    "gather": ("ADE, whole 512x683", "Cityscapes x8, 512x1024"),
    "finite": ("Cityscapes x8",),
    "accumulate": (
        "Cityscapes, 15 windows",
        "half of Cityscapes, flip, probabilities",
        "ADE, whole, flip, probabilities",
    ),
    "finish": ("Cityscapes, 1 scale", "ADE, whole, 3 scales"),
    "upsample_argmax": ("ADE, 512x683", "Cityscapes, 1024x2048"),
    "region_pool": ("ADE, 150 classes, 5,504 positions", "Cityscapes x8, 19 classes, 8,192 positions"),
    "attention": ("ADE, 5,504 keys", "ADE, 150 keys", "Cityscapes x8, 8,192 keys", "Cityscapes x8, 19 keys"),
}
"""Labels of the cases by family of kernels; attention has those of `SPECIALISED` as well."""
SPECIALISED = {
    f"{case.label}, specialised warps": replace(
        case, label=f"{case.label}, specialised warps", parts=parts, tile=128, specialised=True
    )
    for case in FAMILIES["attention"].real
    for parts in {"ADE, 5,504 keys": [3], "Cityscapes x8, 8,192 keys": [1]}.get(case.label, ())
}
"""Label -> case of the attention that no bundle has, for `SPECIALISED_ARCH` alone, in as many parts."""
SPECIALISED_ARCH, GROUPS = 90, 2
"""``GROUPS`` of its warps multiply and compute weights each in its own time."""
CASES["attention"] += tuple(SPECIALISED)
_HALF = ", float16 logits"
MULTIPROCESSORS, CLOCK, BANDWIDTH = 132, 1.755e9, 2.95e12
"""Of an H100 SXM; the bandwidth is that of a copy, measured."""
MATRIX_FLOPS, MATRIX_RATE = 2 * 16 * 8 * 16, 700e12
"""FLOP of a matrix instruction (m16n8k16), and the rate that a large product has reached."""


@dataclass(frozen=True)
class Rates:
    """Seconds of a launch, and what a warp instruction costs relative to a scheduler's and a multiprocessor's cycle.

    ``issue`` is cycles of a scheduler (four on each multiprocessor) for any instruction, ``wait`` further cycles of a
    multiprocessor for one that waits for other threads. ``beside`` takes the place of both in attention: cycles of a
    scheduler for an instruction, during which its warps multiply nothing.
    """

    launch: float
    issue: float
    wait: float
    beside: float = 0

    def seconds(self, counts: Mapping[str, int], bytes_moved: float = 0) -> float:
        """Predicted time: by instructions, but at least by the bytes to be moved and by matrix instructions."""
        by_instructions = float(np.dot(features(counts), (self.launch, self.issue, self.wait)))
        return max(by_instructions, bytes_moved / BANDWIDTH, multiplying(counts))

    def attention(self, counts: Mapping[str, int], bytes_moved: float = 0, groups: int = 1) -> float:
        """Predicted time where ``groups`` of a block's warps use the matrix units in turn.

        Each group has its share of the work and either multiplies or computes weights; while one computes, another may
        multiply.
        """
        in_turn = (multiplying(counts) + self.beside * features(counts)[1]) / groups
        return self.launch * counts["launches"] + max(in_turn, multiplying(counts), bytes_moved / BANDWIDTH)

    def of(self, record: Mapping[str, Any]) -> float:
        """Predicted time of a record of `count`."""
        if record["kernel"] != "attention":
            return self.seconds(record["counts"], record["bytes"])
        groups = GROUPS if record["case"] in SPECIALISED else 1
        return self.attention(record["counts"], record["bytes"], groups)


def multiplying(counts: Mapping[str, int]) -> float:
    """Seconds that the matrix instructions take."""
    return counts.get("matrix", 0) * MATRIX_FLOPS / MATRIX_RATE


def features(counts: Mapping[str, int]) -> tuple[float, float, float]:
    """Launches, and the seconds that a cycle for every instruction, and for every one that waits, would take."""
    cycles = MULTIPROCESSORS * CLOCK
    return counts["launches"], counts["instructions"] / (4 * cycles), counts.get("barriers", 0) / cycles


def calibrate() -> Rates:
    """The rates with the least sum of squared relative errors, none of them negative."""
    from scipy.optimize import nnls

    calibration = json.loads(CALIBRATION.read_text("utf-8"))
    points = calibration["kernels"]
    matrix = np.array([features(point["counts"]) for point in points])
    times = np.array([point["microseconds"] for point in points]) / 1e6
    fitted = map(float, nnls(matrix / times[:, None], np.ones(len(times)))[0])
    points = calibration["attention"]
    times = np.array([point["microseconds"] for point in points]) / 1e6
    rest = 1 - np.array([multiplying(point["counts"]) for point in points]) / times
    cycles = np.array([features(point["counts"])[1] for point in points]) / times
    return Rates(*fitted, float(cycles @ rest / (cycles @ cycles)))


class _Counted(Emulated):
    """A variant whose kernels of sm_``arch`` are counted."""

    def __init__(self, folder: Path, arch: int) -> None:
        super().__init__(folder, MULTIPROCESSORS)
        self.memory, self.counts = SampledMemory(), Counter[str]()
        self._open = lambda name: CountedKernels(set_folder(folder, name, arch), arch, self.memory, self.counts)


def count(folder: Path, arch: int, families: Collection[str] = tuple(CASES)) -> Iterator[dict[str, Any]]:
    """One record for each case, for the kernels of sm_``arch`` that `compile_for_counting` left in ``folder``."""
    for family in families:
        for label, dtype in cases(family):
            if label in SPECIALISED and arch != SPECIALISED_ARCH:
                continue
            name = label.removesuffix(_HALF)
            case = SPECIALISED.get(label) or next(case for case in FAMILIES[family].real if case.label == name)
            variant = _Counted(folder, arch)
            trial = FAMILIES[family].trial(variant, case, dtype, 8)
            for output in trial.outputs:
                output.tensor.zero_()  # indices that a block left out would have written point into their buffer
            trial.launch()
            record = {"arch": arch, "kernel": family, "case": label, "bytes": round(trial.cost.bytes)}
            if family == "attention":
                record["flops"] = round(trial.cost.flops)
            yield record | {"counts": dict(sorted((+variant.counts).items()))}


def cases(family: str) -> Iterator[tuple[str, str]]:
    """Label and element type of each case of a family."""
    types = {"fp16": ""} if family in CONTEXT else {"fp32": ""}
    types |= {"fp16": _HALF} if family in HALF_LOGITS else {}
    yield from ((label + suffix, dtype) for label in CASES[family] for dtype, suffix in types.items())


def compile_for_counting(folder: Path, arch: int, families: Collection[str] = tuple(CASES)) -> None:
    """Compile the sets of `COMPILED` that hold ``families`` for sm_``arch``; AssertionError if one fails."""
    context = set(families) & set(CONTEXT)
    for name, dtypes in COMPILED.items():
        if not (context if name == "w256" else set(families) - set(CONTEXT)):
            continue
        failed = compile_sets(folder, (arch,), [name], dtypes=dtypes)
        assert not failed, failed


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """What kernels/README.md shows: the model and its error, millions of instructions, times on an H100."""
    rates, points = calibrate(), json.loads(CALIBRATION.read_text("utf-8"))
    ratios = [1e6 * rates.seconds(point["counts"]) / point["microseconds"] for point in points["kernels"]]
    others = [1e6 * rates.attention(point["counts"]) / point["microseconds"] for point in points["attention"]]
    text = (
        f"The prediction is {1e6 * rates.launch:.2f} µs a launch, {rates.issue:.1f} cycles of a scheduler for each "
        f"instruction and {rates.wait:.0f} cycles of a multiprocessor for each barrier of a warp, but no less than the "
        f"bytes at {BANDWIDTH / 1e12:.2f} TB/s and the matrix instructions at {MATRIX_RATE / 1e12:.0f} TFLOP/s take. "
        f"It is fitted to the times that an H100 measured for the kernels of commit {points['commit']}, {len(ratios)} "
        f"cases, of which it gives {min(ratios):.2f} to {max(ratios):.2f} times the time (median "
        f"{np.median(ratios):.2f}). `attention` takes the matrix instructions, and {rates.beside:.2f} cycles of a "
        f"scheduler for each instruction after them: fitted to {len(others)} forms, of which that gives "
        f"{min(others):.2f} to {max(others):.2f} times the time. With specialised warps {GROUPS} groups do so side by "
        "side, and the matrix instructions of one hide what the other does: nothing of that kind has been measured."
    )
    return f"{text}\n\n{table(records, rates)}"


def table(records: Sequence[Mapping[str, Any]], rates: Rates) -> str:
    """Millions of instructions by architecture, and what the sm_90 kernels would take on an H100, as Markdown."""
    by_case: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for record in records:
        by_case.setdefault((record["kernel"], record["case"]), {})[record["arch"]] = record
    lines = ["| kernel | case | " + " | ".join(f"sm_{arch}" for arch in ARCHES) + " | H100, µs, predicted | TFLOP/s |"]
    lines.append("|---|---|" + "--:|" * (len(ARCHES) + 2))
    for (kernel, case), found in by_case.items():
        numbers = [f"{found[arch]['counts']['instructions'] / 1e6:.2f}" if arch in found else "" for arch in ARCHES]
        hopper = found.get(90)
        time = f"{1e6 * rates.of(hopper):.1f}" if hopper else ""
        flops = f"{hopper['flops'] / rates.of(hopper) / 1e12:.0f}" if hopper and kernel == "attention" else ""
        lines.append(f"| `{kernel}` | {case} | {' | '.join(numbers)} | {time} | {flops} |")
    return "\n".join(lines) + "\n"


def write(records: Sequence[Mapping[str, Any]]) -> None:
    """Keep the counts, and what `page` says of them."""
    COUNTS.write_text("[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n", "utf-8")
    begin, end = MARKS
    before, rest = PAGE.read_text("utf-8").split(begin)
    PAGE.write_text(before + begin + page(records) + end + rest.split(end)[1], "utf-8")


def main() -> None:
    """Count kernels or plans, print what the page shows, and with ``--write`` keep it."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.counting", description=summary)
    parser.add_argument("--write", action="store_true", help=f"write {COUNTS.name} and the table of {PAGE.name}")
    parser.add_argument("--plans", action="store_true", help="count the kernels of whole plans instead")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="kernels to count again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.plans:
            _count_plans(Path(folder), options.write)
        else:
            _count_kernels(Path(folder), options.only, options.write)


def _count_plans(folder: Path, keep: bool) -> None:
    compile_for_counting(folder, plan_counts.ARCH, ["finish"])
    records = [plan_counts.count(name, folder) for name in plan_counts.CASES]
    print(plan_counts.page(records, calibrate()))
    if keep:
        plan_counts.write(records, calibrate(), PAGE)


def _count_kernels(folder: Path, only: Sequence[str], keep: bool) -> None:
    stored = json.loads(COUNTS.read_text("utf-8"))
    records: list[dict[str, Any]] = []
    for arch in ARCHES:
        compile_for_counting(folder, arch, only)
        counted = list(count(folder, arch, only))
        for family in CASES:  # in the order of the table
            source = counted if family in only else stored
            records += [record for record in source if (record["arch"], record["kernel"]) == (arch, family)]
    print(page(records))
    if keep:
        write(records)


if __name__ == "__main__":
    main()
