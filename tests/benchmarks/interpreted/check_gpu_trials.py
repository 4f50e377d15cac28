"""The GPU check's own comparisons, run for real on the CPU: right kernels pass, every planted fault is found.

A pytest run of its own (tests/benchmarks/test_gpu_check_trials.py), since Triton's interpreter must be chosen before
triton is imported.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu_check import context
from benchmarks.gpu_check.check import Setup
from benchmarks.gpu_check.context_trials import AttentionCase, AttentionTrial, PoolCase, PoolTrial, attention_oracle
from benchmarks.gpu_check.families import FAMILIES, Family
from benchmarks.gpu_check.forms import MODELS, Ahead, Jit
from benchmarks.gpu_check.kernels import compare
from benchmarks.gpu_check.picture_trials import (
    FinishCase,
    FiniteCase,
    FiniteTrial,
    GatherCase,
    GatherTrial,
    ResizeCase,
    ResizeTrial,
)
from benchmarks.gpu_check.picture_trials import UpsampleTrial as Upsample
from benchmarks.gpu_check.trial import GUARD, Deviation, examine
from isnet_trt.cuda.element_types import FLOATS
from isnet_trt.cuda.kernel_specs import bundle_kernels
from isnet_trt.kernels import attention
from isnet_trt.settings import Inference

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "cuda" / "interpreted")]
from gpu_check_answers import Collected  # noqa: E402

from tests.interpreter import use_interpreter  # noqa: E402
from tests.kernels.variants import TritonKernels as HostKernels  # noqa: E402

assert os.environ.get("TRITON_INTERPRET") == "1", "run this file through tests/benchmarks/test_gpu_check_trials.py"
torch.set_num_threads(1)
use_interpreter()
CPU = Jit("cpu", 86)


def check(family: Family, cases: Any) -> None:
    answer = Collected()
    compare(answer, Setup(seed=11), family, [CPU], cases)
    assert not answer.said
    assert len(answer.rows) == len(cases) * len(family.dtypes)
    assert all(row["right"] for row in answer.rows)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_kernel_that_is_right_passes(family: Family):
    check(dataclasses.replace(family, dtypes=family.dtypes[:1]), family.odd[:1])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_odd_case_of_every_type_passes(family: Family):
    check(family, family.odd)


class Faulty(Jit):
    """Launches, and then does something to the arguments of a launch whose name begins with ``at``."""

    def __init__(self, at: str, fault: Any) -> None:
        super().__init__("cpu", 86, f"faulty {at}")
        self.at, self.fault, self.launches = at, fault, 0

    def run(self, launch: Any, model: str, /, **arguments: Any) -> None:
        super().run(launch, model, **arguments)
        if launch.name.startswith(self.at):
            self.launches += 1
            self.fault(arguments, self.launches)


def unwritten(name: str):
    """The last element of an output keeps its poison."""

    def fault(arguments: dict, _: int) -> None:
        flat = arguments[name].view(-1)
        flat[-1] = {torch.int32: -7, torch.uint8: 255}.get(flat.dtype, float("nan"))

    return fault


def outside(name: str):
    """One element behind an output is written."""

    def fault(arguments: dict, _: int) -> None:
        out = arguments[name]
        whole = out.untyped_storage()
        behind = torch.empty(0, dtype=out.dtype).set_(whole)
        behind[GUARD + out.numel()] = 1

    return fault


def racing(name: str):
    """Every second launch gives another last bit."""

    def fault(arguments: dict, launch: int) -> None:
        if launch % 2 == 0:
            flat = arguments[name].view(-1)
            flat[0] = torch.nextafter(flat[0], torch.tensor(9.0))

    return fault


def scaled(name: str, factor: float):
    """An output that is off by a factor."""

    def fault(arguments: dict, _: int) -> None:
        arguments[name].mul_(factor)

    return fault


def one_row_lower(arguments: dict, _: int) -> None:
    arguments["labels"].copy_(arguments["labels"].roll(1, 0))


def one_level(arguments: dict, _: int) -> None:
    arguments["picture"].view(-1)[5] ^= 1


def two_classes_swapped(arguments: dict, _: int) -> None:
    labels = arguments["labels"]
    first, second = (labels == value for value in (0, 1))
    labels[first], labels[second] = 1, 0


ATTENTION = AttentionCase("small", 1, 33, 40, 1)
POOL = PoolCase("small", 1, 5, 40, 33, 1)
UPSAMPLE = FinishCase("small", ((3, 4),), (6, 9), 5)
GATHER = GatherCase("small", (9, 20), Inference(), 1)
RESIZE = ResizeCase("small", (7, 9), (5, 11))
FINITE = FiniteCase("small", 9, 4)
FAULTS = {
    "finite: missed": (FiniteTrial, FINITE, "finite", scaled("flag", 0), "flag"),

    "attention: not all written": (AttentionTrial, ATTENTION, "attention", unwritten("out"), "relative error"),
    "attention: written behind": (AttentionTrial, ATTENTION, "attention", outside("out"), "outside the outputs"),
    "attention: a race": (AttentionTrial, ATTENTION, "attention", racing("out"), "between two launches"),
    "attention: one part in a thousand": (
        AttentionTrial, ATTENTION, "attention", scaled("out", 1.001), "relative error",
    ),
    "pool: centres off": (PoolTrial, POOL, "pool_combine", scaled("centres", 1.0002), "centres: relative error"),
    "pool: a count off": (PoolTrial, POOL, "pool_combine", scaled("log_counts", 1.0001), "log counts"),
    "pool: classes swapped": (PoolTrial, POOL, "assign", two_classes_swapped, "wrong classes of positions"),
    "pool: labels not all written": (PoolTrial, POOL, "assign", unwritten("labels"), "wrong classes of positions"),
    "upsample: one row lower": (Upsample, UPSAMPLE, "upsample", one_row_lower, "wrong labels of clear pixels"),
    "upsample: padding written": (Upsample, UPSAMPLE, "upsample", scaled("labels", 0), "between the rows"),
    "gather: not all written": (GatherTrial, GATHER, "gather", unwritten("out"), "worst value"),
    "gather: off": (GatherTrial, GATHER, "gather", scaled("out", 1.0001), "worst value"),
    "resize: one level in one value": (ResizeTrial, RESIZE, "resize", one_level, "unlike the reference"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str):
    make, case, at, fault, wanted = FAULTS[name]
    sound = make(CPU, case, "fp32", 3)
    assert not examine(sound, sound.reference()).wrong
    trial = make(Faulty(at, fault), case, "fp32", 3)
    found = examine(trial, trial.reference()).wrong
    assert any(wanted in text for text in found), found


class Broken(Jit):
    """Launches nothing that is wider than a certain width, as Triton where there is no C compiler."""

    def run(self, launch: Any, model: str, /, **arguments: Any) -> None:
        if arguments["count"] > 10:
            raise RuntimeError("Failed to find C compiler.")
        super().run(launch, model, **arguments)


def test_a_form_that_cannot_launch_costs_its_own_cases_alone():
    family = next(family for family in FAMILIES if family.name == "finite")
    family = dataclasses.replace(family, dtypes=("fp32",))
    answer = Collected()
    compare(answer, Setup(seed=11), family, [Broken("cpu", 86, "broken"), CPU], family.odd)
    assert [row["form"] for row in answer.rows] == ["Triton", "Triton", "broken", "Triton"]
    assert [one["what"] for one in answer.absent] == [
        "finite fp32, 4,999 values, broken", "finite fp32, a NaN at the end, broken",
    ]  # fmt: skip
    assert not answer.said


def test_what_a_compiled_form_raises_is_wrong_and_the_others_go_on():
    family = next(family for family in FAMILIES if family.name == "finite")
    family = dataclasses.replace(family, dtypes=("fp32",), odd=family.odd[:1])
    answer = Collected()
    made = Ahead("compiled", 86, Path("nowhere"), "8.6", "cpu")
    compare(answer, Setup(seed=11), family, [made, CPU], family.odd)
    assert [row["form"] for row in answer.rows] == ["Triton"]
    assert len(answer.said) == 1
    assert answer.said[0].startswith("finite fp32, 4,999 values, compiled: ")


def test_the_reference_in_float64_is_the_kernels_own():
    trial = AttentionTrial(CPU, AttentionCase("", 2, 21, 17, 1, hidden=True), "fp16", 5)
    arrays = [t.double().numpy() for t in (trial.q, trial.k, trial.v, trial.bias)]
    made = attention_oracle(trial.q, trial.k, trial.v, trial.bias, 1 / 16).numpy()
    np.testing.assert_allclose(made, attention.reference(*arrays, 1 / 16), atol=1e-12)
    assert (made[-1] == 0).all()  # the last image has no key


def test_nothing_that_is_no_number_is_good():
    assert not Deviation("x", float("nan"), 1.0).good
    assert Deviation("x", 1.0, 1.0).good


def test_inputs_are_other_ones_for_another_seed():
    first, second = (AttentionTrial(CPU, ATTENTION, "fp16", seed).q for seed in (1, 2))
    assert not torch.equal(first, second)


class Named(Jit):
    """Notes what is launched from which folder, and launches nothing."""

    def __init__(self) -> None:
        super().__init__("cpu", 90, "named")
        self.names: set[tuple[str, str]] = set()

    def run(self, launch: Any, model: str, /, **arguments: Any) -> None:
        self.names.add((model, launch.name))


def test_every_kernel_is_tried_and_lies_where_it_is_looked_for():
    form = Named()
    for family in FAMILIES:
        for case in family.odd:
            for dtype in family.dtypes:
                family.make(form, case, dtype, 1).launch()
    there = {(model, launch.name) for model in MODELS for launch in launches(model)}
    assert form.names <= there
    published = {name for model, name in there if model == "150"}
    assert {name for _, name in form.names} >= published - LARGE


LARGE = {f"accumulate_{dtype}_256" for dtype in ("fp32", "fp16", "bf16")}
"""Of ADE's classes: among the cases of models, not among the odd ones."""


def launches(model: str) -> Any:
    """What `forms.compiled` puts into a folder."""
    options = MODELS[model]
    only = options[options.index("--only") + 1 :] if "--only" in options else ("",)
    numbers = dict(zip(options[:2:2], options[1:2], strict=True))
    classes, width = int(numbers.get("--classes", 150)), int(numbers.get("--width", 256))
    return [spec for spec in bundle_kernels(90, FLOATS, classes, width) if spec.name.startswith(only)]


class Hosted(Jit):
    """Kernels by name on host memory, as the runtime launches them."""

    def __init__(self) -> None:
        super().__init__("cpu", 86, "host")
        self._made: dict[str, Any] = {}

    def kernels(self, model: str) -> HostKernels:
        width = 32 if model == "w32" else 256
        return self._made.setdefault(model, HostKernels(("fp32", "fp16", "bf16"), 150, width))


@pytest.mark.parametrize("family", context.hosted(), ids=lambda family: family.name)
@pytest.mark.parametrize("dtype", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_the_host_side_of_the_context_operations_passes(family: Family, dtype: str):
    answer = Collected()
    cases = [dataclasses.replace(case, parts=None) for case in family.odd]
    compare(answer, Setup(seed=3), dataclasses.replace(family, dtypes=(dtype,)), [Hosted()], cases)
    assert not answer.said
    assert len(answer.rows) == len(cases)
