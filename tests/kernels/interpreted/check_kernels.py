"""Every kernel against its reference in Triton's interpreter, and that no planted fault passes the comparisons."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from isnet_trt.cuda import kernel_specs
from isnet_trt.cuda.kernel_specs import bundle_kernels
from tests.interpreter import use_interpreter
from tests.kernels.cases import FAMILIES
from tests.kernels.context_trials import AttentionCase, PoolCase, attention_reference
from tests.kernels.picture_trials import FinishCase, FiniteCase, ResizeCase
from tests.kernels.trials import Deviation, examine, normal, numbers, wrong
from tests.kernels.variants import DTYPES, SETS, Output, Shifted, Variant, interpreted

use_interpreter()
CPU, HOPPER = interpreted(), interpreted(arch=90)
MERGE = ("accumulate", "finish", "threshold", "upsample_argmax")
MANY_STEPS = (*MERGE, "attention", "region_pool", "gather", "gather_padded")
"""Families that take seconds in the interpreter: other types than float32 and many classes only among the slow runs,
but for the first case of those that are no merge.
"""
CASES = [
    pytest.param(family, case, dtype, id=f"{family.name}-{case.label}-{dtype}", marks=[pytest.mark.slow] * slow)
    for family in FAMILIES.values()
    for number, case in enumerate(family.odd)
    for tile in [getattr(case, "tile", 0)]
    if not getattr(case, "specialised", False)  # Gluon is not interpreted
    for dtype in family.dtypes
    if not tile or dtype != "fp32"  # there are none
    for slow in [
        (number > 0 or family.name in MERGE)
        and family.name in MANY_STEPS
        and (dtype != "fp32" or getattr(case, "classes", 0) >= 150)
        and (dtype, bool(tile), getattr(case, "nan", False)) != ("fp16", True, True)
    ]
]


@pytest.mark.parametrize(("family", "case", "dtype"), CASES)
def test_kernels_agree_with_their_references(family: Any, case: Any, dtype: str) -> None:
    trial = family.trial(HOPPER if getattr(case, "tile", 0) else CPU, case, dtype, 11)
    assert not wrong(examine(trial, trial.reference(), twice=False))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "number"), [("attention", 6), ("attention", 7), ("region_pool", 4)])
def test_the_runtime_cuts_in_parts_where_many_multiprocessors_would_idle(name: str, number: int, dtype: str) -> None:
    variant, case = interpreted(40), FAMILIES[name].odd[number]
    trial = FAMILIES[name].trial(variant, case, dtype, 8)
    assert trial.parts > 1
    assert not wrong(examine(trial, trial.reference(), twice=False))


class Faulty(Variant):
    """Runs kernels, and then does something to the arguments of one whose name begins with ``at``."""

    def __init__(self, at: str, fault: Callable[[dict[str, Any], int], None]) -> None:
        super().__init__(f"faulty {at}", "cpu", CPU.kernels)
        self.at, self.fault, self.launches = at, fault, 0

    def run(self, set_name: str, name: str, **arguments: Any) -> None:
        super().run(set_name, name, **arguments)
        if name.startswith(self.at):
            self.launches += 1
            outputs = {k: v.output if isinstance(v, Shifted) else v for k, v in arguments.items()}
            self.fault({k: v.tensor for k, v in outputs.items() if isinstance(v, Output)}, self.launches)


def unwritten(name: str) -> Any:
    """The last element of an output keeps its poison."""

    def fault(outputs: dict[str, Any], _: int) -> None:
        flat = outputs[name].view(-1)
        flat[-1] = {torch.int32: -7, torch.uint8: 255}.get(flat.dtype, float("nan"))

    return fault


def outside(name: str) -> Any:
    """One element behind an output is written."""

    def fault(outputs: dict[str, Any], _: int) -> None:
        whole = torch.empty(0, dtype=outputs[name].dtype).set_(outputs[name].untyped_storage())
        whole[Output.GUARD + outputs[name].numel()] = 1

    return fault


def racing(name: str) -> Any:
    """Every second launch gives another last bit."""

    def fault(outputs: dict[str, Any], launch: int) -> None:
        flat = outputs[name].view(-1)
        flat[0] = torch.nextafter(flat[0], torch.tensor(9.0)) if launch % 2 == 0 else flat[0]

    return fault


def scaled(name: str, factor: float) -> Any:
    """An output is off by a factor."""
    return lambda outputs, _: outputs[name].mul_(factor)


def one_row_lower(outputs: dict[str, Any], _: int) -> None:
    outputs["labels"].copy_(outputs["labels"].roll(1, 0))


def one_level(outputs: dict[str, Any], _: int) -> None:
    outputs["picture"].view(-1)[5] ^= 1


def two_classes_swapped(outputs: dict[str, Any], _: int) -> None:
    first, second = (outputs["labels"] == value for value in (0, 1))
    outputs["labels"][first], outputs["labels"][second] = 1, 0


ATTENTION, POOL = AttentionCase("small", 1, 33, 40, 1), PoolCase("small", 1, 5, 40, 33, 1)
UPSAMPLE, FINITE = FinishCase("small", ((3, 4),), (6, 9), 5), FiniteCase("small", 9, 4)
GATHER, RESIZE = FAMILIES["gather"].odd[3], ResizeCase("small", (7, 9), (5, 11))
FAULTS = {
    "finite: missed": ("finite", FINITE, "finite", scaled("flag", 0), "flag"),
    "attention: not all written": ("attention", ATTENTION, "attention", unwritten("out"), "relative error"),
    "attention: written behind": ("attention", ATTENTION, "attention", outside("out"), "outside the outputs"),
    "attention: a race": ("attention", ATTENTION, "attention", racing("out"), "between two launches"),
    "attention: a part in ten thousand": ("attention", ATTENTION, "attention", scaled("out", 1.0001), "relative error"),
    "pool: centres off": ("region_pool", POOL, "pool_join", scaled("centres", 1.0001), "centres: relative error"),
    "pool: a count off": ("region_pool", POOL, "pool_join", scaled("log_counts", 1.0001), "log counts"),
    "pool: classes swapped": ("region_pool", POOL, "pool_fp32", two_classes_swapped, "wrong classes of positions"),
    "pool: labels not all written": (
        "region_pool",
        POOL,
        "pool_fp32",
        unwritten("labels"),
        "wrong classes of positions",
    ),
    "upsample: one row lower": ("upsample_argmax", UPSAMPLE, "upsample", one_row_lower, "wrong labels"),
    "upsample: padding written": ("upsample_argmax", UPSAMPLE, "upsample", scaled("labels", 0), "between the rows"),
    "gather: not all written": ("gather", GATHER, "gather", unwritten("out"), "worst value"),
    "gather: off": ("gather", GATHER, "gather", scaled("out", 1.0001), "worst value"),
    "resize: one level in one value": ("resize", RESIZE, "resize", one_level, "unlike the reference"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str) -> None:
    family, case, at, fault, message = FAULTS[name]
    sound = FAMILIES[family].make(CPU, case, "fp32", 3)
    assert not wrong(examine(sound, sound.reference()))
    trial = FAMILIES[family].make(Faulty(at, fault), case, "fp32", 3)
    assert any(message in text for text in wrong(examine(trial, trial.reference())))
    assert not Deviation("a NaN", float("nan"), 1.0).good


def test_a_wrong_stride_of_a_tensor_map_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in FAMILIES["attention"].odd if case.tile == 128 and case.nan)
    specs = HOPPER.kernels("w256").specs
    spec = specs["attention_map128_fp16"]
    assert spec.maps["k"].shape == ("batch", "keys", 256)
    for name in spec.maps:
        size = "queries" if name != "q" else "keys"
        maps = {**spec.maps, name: dataclasses.replace(spec.maps[name], shape=("batch", size, 256))}
        monkeypatch.setitem(specs, spec.name, dataclasses.replace(spec, maps=maps))
        trial = FAMILIES["attention"].trial(HOPPER, case, "fp16", 5)
        assert wrong(examine(trial, trial.reference(), twice=False)), name


def test_every_kernel_of_a_bundle_is_tried_and_is_in_its_set() -> None:
    tried: set[tuple[str, str]] = set()

    class Named(Variant):
        def run(self, set_name: str, name: str, **arguments: Any) -> None:
            tried.add((set_name, name))

    for family in FAMILIES.values():
        for case in family.odd:
            for dtype in family.dtypes:
                parts = {"parts": case.parts or 1} if hasattr(case, "parts") else {}
                family.make(Named("named", "cpu", CPU.kernels), type(case)(**(vars(case) | parts)), dtype, 1).launch()
    in_sets = {(name, kernel) for name in SETS for kernel in CPU.kernels(name).specs if kernel.startswith(only(name))}
    assert tried <= in_sets
    published = [bundle_kernels(80, DTYPES, *sizes) for sizes in ((19,), (150,), (300,), (19, 32))]
    published.append(bundle_kernels(80, DTYPES, 1, padded=True))
    assert {name for _, name in tried} >= {spec.name for specs in published for spec in specs}


def only(name: str) -> tuple[str, ...]:
    """The beginnings of the names of a set's kernels."""
    return SETS[name][SETS[name].index("--only") + 1 :]


def test_references_are_the_operators_of_the_model() -> None:
    from isnet_trt.kernels import attention, region_pool
    from isnet_trt.training.model import ops

    shapes = (2, 9, 8), (2, 5, 8), (2, 5, 8), (2, 5), (2, 6, 50), (2, 50, 7)
    q, k, v, bias, logits, features = (normal(CPU, 2 + i, shape).double() for i, shape in enumerate(shapes))
    expected = ops.attention(q, k, v, bias, 0.25).numpy()
    np.testing.assert_allclose(attention.reference(*map(numbers, (q, k, v, bias)), 0.25), expected, atol=1e-12)
    for values, expected in zip(
        region_pool.reference(numbers(logits), numbers(features)), ops.region_pool(logits, features), strict=True
    ):
        np.testing.assert_allclose(values, expected.numpy(), atol=1e-12)
    bias[-1] = -np.inf  # the last image has no key
    chunks = attention_reference(q, k, v, bias, 0.25, chunk=4).numpy()
    np.testing.assert_allclose(chunks, attention.reference(*map(numbers, (q, k, v, bias)), 0.25), atol=1e-12)
    assert (chunks[-1] == 0).all()


def test_scale_one_gathers_the_normalised_bytes_themselves() -> None:
    from isnet_trt.pictures.preprocess import normalise
    from isnet_trt.settings import Preprocess
    from tests.kernels.picture_trials import gather, picture

    trial = gather(CPU, GATHER, "fp32", 5)
    trial.launch()
    rgb, _ = picture(GATHER.size, 3 * GATHER.size[1] + 5, 3, False, 5)
    expected = normalise(rgb, Preprocess((2048, 512))).transpose(2, 0, 1)
    np.testing.assert_array_equal(numbers(trial.outputs[0])[0], expected)


def test_more_scores_than_an_int32_can_count() -> None:
    """900 classes of a 6000×8000 picture at stride 4; zeros that nobody touches take no memory."""
    from isnet_trt.kernels.launch import run
    from isnet_trt.kernels.region_pool import pool

    logits = torch.from_numpy(np.zeros((900, 1500, 2000), np.float16))
    assert logits.numel() > 2**31
    logits[890, 749:751] = 1
    labels = Output("cpu", (1, 3), "u16")
    run(
        kernel_specs.upsample_argmax("fp16", 900),
        logits=logits, labels=labels.tensor, pitch=3, classes=900, coarse_height=1500, coarse_width=2000,
        step_y=1500.0, step_x=float(np.float32(2000) / np.float32(3)), height=1, width=3,
    )  # fmt: skip
    assert (numbers(labels) == 890).all()
    positions = 3_000_000  # one block of them is enough
    logits = torch.from_numpy(np.zeros((1, 900, positions), np.float16))
    logits[0, 890, :64] = 1
    features = torch.from_numpy(np.ones((1, positions, 1), np.float16))
    constants = kernel_specs.pool("fp16", "fp16").constants
    parts, tile = -(-positions // constants["BLOCK_N"]), constants["BLOCK_N"]
    shapes = {"sums": (tile, 1)} | dict.fromkeys(("rows", "tops", "masses", "counts"), (900,))
    types = {"labels": "i32", "rows": "i32", "counts": "i32"}
    shapes |= dict.fromkeys(("labels", "scores", "weights"), (tile,))
    outputs = {name: Output("cpu", shape, types.get(name, "fp32")) for name, shape in shapes.items()}
    pool[(1, 1, 1)](
        logits=logits, features=features, **{name: output.tensor for name, output in outputs.items()},
        batch=1, classes=900, positions=positions, channels=1, parts=parts, **constants,
    )  # fmt: skip
    assert (numbers(outputs["labels"]) == 890).all()
    assert (numbers(outputs["scores"]) == 1).all()
    assert numbers(outputs["counts"])[890] == tile
